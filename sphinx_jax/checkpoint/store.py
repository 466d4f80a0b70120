"""Checkpoints: folders that hold a model's leaves (Orbax), its config, its tokenizer and how it was made.

A checkpoint is complete when `recipe.json` is there: it is written last, after Orbax has committed its parts, so a
process killed at any moment leaves either a complete checkpoint or a folder that readers pass over.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sphinx_jax import config as model_config
from sphinx_jax.config import ModelConfig
from sphinx_jax.data.tokenizer import Tokenizer, has_tokenizer, load_tokenizer
from sphinx_jax.disk import DiskFull, told_when_full
from sphinx_jax.distributed import barrier
from sphinx_jax.model.blueprint import Blueprint, Leaves, blueprint, flatten, unflatten
from sphinx_jax.paths import as_path, remove, write_whole

CHUNK_BYTES = 8 * 2**20  # any leaf can then be read slice by slice
MODEL, RECIPE = "model.json", "recipe.json"
HELD_OUT = "held_out_loss"  # in the recipe of a training checkpoint: nats per token
SCALES = "scales_{}"  # by kind of quantisation: a part of a checkpoint, beside its state and optimizer
UNCOMMITTED = ".orbax-checkpoint-tmp"


class BadCheckpoint(ValueError):
    """A folder that is not a complete checkpoint of the model asked for."""


def _remove_unfinished(folder: Path) -> None:
    """What is left of a save, under its own name and under Orbax's for what is not whole."""
    left = folder.parent.glob(f"{folder.name}{UNCOMMITTED}*") if folder.parent.exists() else ()
    for debris in (folder, *left):
        remove(debris)


def _orbax():
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.array.saving.storage_options.chunk_byte_size = CHUNK_BYTES
    return ocp, context


def save(
    folder: str | Path,
    leaves: Leaves,
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    recipe: dict[str, Any],
    *,
    optimizer: Any = None,
) -> Path:
    """Write a complete checkpoint; `optimizer` (a pytree) makes it resumable.

    Raises:
      BadCheckpoint: there is one in `folder`.
      DiskFull: in one line.
    """
    save_async(folder, leaves, config, tokenizer, recipe, optimizer=optimizer)()
    return as_path(folder)


def save_async(
    folder: str | Path,
    leaves: Leaves,
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    recipe: dict[str, Any],
    *,
    optimizer: Any = None,
    scales: Mapping[str, Leaves] | None = None,
) -> Callable[[], None]:
    """Begin what `save` does: it returns when the arrays may change, and its result waits for the checkpoint.

    Errors of the writing are raised by the wait.  All processes of a run call it, and write their own shards.

    `scales`: kind -> path -> those of leaves that were quantised (`read_scales`), and are given whole.
    """
    folder = as_path(folder)
    if is_complete(folder):
        raise BadCheckpoint(f"{folder} already holds a checkpoint")
    barrier(f"saving {folder}")  # all have seen that it is not there
    if jax.process_index() == 0:
        _remove_unfinished(folder)  # what a killed process left
        with told_when_full(folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
    barrier(f"begun {folder}")
    ocp, context = _orbax()
    parts = {"state": unflatten(leaves)}
    parts |= {SCALES.format(kind): unflatten(of) for kind, of in (scales or {}).items()}
    if slots := jax.tree.leaves(optimizer):  # plain SGD has none, and Orbax writes no empty part
        parts["optimizer"] = {str(i): leaf for i, leaf in enumerate(slots)}
    with told_when_full(folder.parent), context:
        response = ocp.save_checkpointables_async(folder, parts)
    failed: list[BaseException] = []

    def finish() -> None:
        try:
            with told_when_full(folder.parent):
                response.result()
                if jax.process_index() == 0:
                    write_beside(folder, config, tokenizer, recipe)
        except BaseException as error:  # noqa: BLE001 (raised again where the checkpoint is waited for)
            failed.append(error)
            if isinstance(error, DiskFull) and jax.process_index() == 0:
                _remove_unfinished(folder)  # there may be other use for the room

    thread = threading.Thread(target=finish, name=f"saving {folder.name}")
    thread.start()

    def wait() -> None:
        thread.join()
        if failed:
            raise failed[0]

    return wait


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder to write into that becomes `out` where the block ends; nothing is left of one that fails.

    Raises:
      BadCheckpoint: `out` exists.
    """
    if out.exists():
        raise BadCheckpoint(f"{out} exists already; give a new folder")
    begun = out.with_name(out.name + ".begun")
    shutil.rmtree(begun, ignore_errors=True)  # what a killed process left
    try:
        with told_when_full(out.parent):
            begun.mkdir(parents=True)
            yield begun
            begun.rename(out)
    except BaseException:
        shutil.rmtree(begun, ignore_errors=True)
        raise


def missing(folder: Path) -> BadCheckpoint:
    """The error for what is no folder."""
    if folder.is_file():
        return BadCheckpoint(f"{folder} is a file; give the folder that holds it, {folder.parent}")
    return BadCheckpoint(f"{folder} does not exist; give a checkpoint's folder")


def write_beside(folder: Path, config: ModelConfig | None, tokenizer: Tokenizer | None, recipe: dict[str, Any]) -> None:
    """What a checkpoint holds beside its leaves; the recipe, last, makes it complete."""
    if config is not None:  # leaves of another program have none
        (folder / MODEL).write_text(model_config.to_json(config))
    if tokenizer is not None:
        tokenizer.save(folder)
    write_whole(folder / RECIPE, json.dumps(recipe, indent=2).encode())


def is_complete(folder: str | Path) -> bool:
    return (as_path(folder) / RECIPE).is_file()


def read_config(folder: str | Path) -> ModelConfig:
    folder = as_path(folder)
    if not is_complete(folder):
        raise BadCheckpoint(f"{folder} is not a complete checkpoint (it has no {RECIPE})")
    if not (folder / MODEL).exists():
        raise BadCheckpoint(f"{folder} holds leaves of another program (it has no {MODEL})")
    return model_config.from_dict(json.loads((folder / MODEL).read_text()))


def read_recipe(folder: str | Path) -> dict[str, Any]:
    return json.loads((as_path(folder) / RECIPE).read_text())


def read_tokenizer(folder: str | Path) -> Tokenizer | None:
    """The tokenizer of a checkpoint; None if it was made without."""
    return load_tokenizer(folder) if has_tokenizer(folder) else None


def restore(
    folder: str | Path,
    mesh: Mesh,
    plan: Blueprint | None = None,
    *,
    dtypes: Mapping[str, Any] | None = None,
    only: Collection[str] | None = None,
) -> Leaves:
    """The leaves of a checkpoint on a mesh, whatever mesh wrote it.

    `plan` is the model expected; its leaves must be exactly those stored, with the same shapes.  `dtypes`: of
    leaves that are wanted in another dtype than they train in.  `only`: the paths that are read.
    """
    folder = as_path(folder)
    stored = read_config(folder)
    ocp, context = _orbax()
    plan = plan or blueprint(stored)
    expected = plan.abstract(mesh, dtypes)
    with context:
        found = flatten(ocp.metadata(folder, "state").metadata)
        check_leaves(folder, plan, {path: tuple(leaf.shape) for path, leaf in found.items()})
        wanted = {p: x if only is None or p in only else ocp.PLACEHOLDER for p, x in expected.items()}
        found = flatten(ocp.load(folder, unflatten(wanted), checkpointable_name="state"))
        return {path: leaf for path, leaf in found.items() if only is None or path in only}


def check_leaves(folder: Path, plan: Blueprint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises BadCheckpoint where leaves of these shapes are not exactly those of `plan`."""
    wrong = sorted(plan.specs.keys() ^ shapes.keys())
    if wrong:
        raise BadCheckpoint(f"{folder} holds another model: {len(wrong)} leaves differ, the first is {wrong[0]}")
    for path, spec in plan.specs.items():
        if shapes[path] != spec.shape:
            raise BadCheckpoint(
                f"{folder} holds another model: {path} is {shapes[path]}, the config wants {spec.shape}"
            )


def restore_parts(folder: str | Path, mesh: Mesh, config: ModelConfig) -> Leaves:
    """The encoders and the decoder of a parts checkpoint: what a model starts from before its stages."""
    leaves = restore(folder, mesh)
    expected = blueprint(config).specs
    for path, leaf in leaves.items():
        if path not in expected or tuple(leaf.shape) != expected[path].shape:
            raise BadCheckpoint(
                f"{folder} holds parts of another model: {path} {tuple(leaf.shape)} does not fit the config"
            )
    return {path: leaf for path, leaf in leaves.items() if path.startswith(("encoders/", "decoder/"))}


def restore_training(folder: str | Path, optimizer: Any) -> Any:
    """The optimizer state in the structure and layout of `optimizer`."""
    folder = as_path(folder)
    ocp, context = _orbax()
    leaves, structure = jax.tree.flatten(optimizer)
    if not leaves:
        return optimizer
    like = {str(i): jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for i, x in enumerate(leaves)}
    with context:
        parts = ocp.load_checkpointables(folder, {"optimizer": like})
    return jax.tree.unflatten(structure, [parts["optimizer"][str(i)] for i in range(len(leaves))])


def read_scales(folder: str | Path, kind: str) -> dict[str, np.ndarray]:
    """Those of the leaves that training had quantised in `kind`; none where it had not."""
    folder, name = as_path(folder), SCALES.format(kind)
    if not (folder / name).exists():
        return {}
    ocp, context = _orbax()
    with context:
        found = flatten(ocp.metadata(folder, name).metadata)
        # whole in every process
        where = NamedSharding(Mesh(np.array(jax.devices()), ("all",)), PartitionSpec())
        like = {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where) for path, x in found.items()}
        scales = flatten(ocp.load(folder, unflatten(like), checkpointable_name=name))
    return {path: np.asarray(scale) for path, scale in scales.items()}


def _steps(folder: str | Path) -> list[Path]:
    """The complete checkpoints among `folder`'s step-numbered ones, the newest last."""
    folder = as_path(folder)
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.name.isdigit() and is_complete(p)), key=lambda p: int(p.name))


def newest(folder: str | Path) -> Path | None:
    """The newest complete checkpoint among `folder`'s step-numbered ones."""
    return next(reversed(_steps(folder)), None)


def best(folder: str | Path) -> Path | None:
    """Of the step-numbered checkpoints of a folder that of the lowest held-out loss; of equal ones, and where none has
    a loss, the newest."""
    return min(reversed(_steps(folder)), key=held_out_loss, default=None)


def add_to_recipe(checkpoint: Path, more: dict[str, Any]) -> None:
    """Say more of a complete checkpoint."""
    write_whole(checkpoint / RECIPE, json.dumps(read_recipe(checkpoint) | more, indent=2).encode())


def held_out_loss(checkpoint: Path | None) -> float:
    """What a checkpoint's recipe says of it; infinite where it says nothing."""
    loss = math.inf if checkpoint is None else json.loads((checkpoint / RECIPE).read_text()).get(HELD_OUT, math.inf)
    return math.inf if math.isnan(loss) else loss


def chosen(folder: str | Path) -> Path | None:
    """Of the step-numbered checkpoints of a folder that which others build on: the newest, or the best of a stage that
    keeps its best."""
    found = newest(folder)
    if found is None:
        return None
    settings = json.loads((found / RECIPE).read_text()).get("settings")
    return best(folder) if isinstance(settings, dict) and settings.get("keep") == "best" else found


def chosen_in(folder: Path) -> Path:
    """The chosen checkpoint of a training stage's folder; any other folder is itself."""
    return chosen(folder / "checkpoints") or folder


def keep_newest(folder: str | Path, count: int = 1, besides: Path | None = None) -> None:
    """Delete step-numbered checkpoints but the newest `count` complete ones and `besides`, and what killed saves
    left."""
    found = list(as_path(folder).iterdir())
    for old in (step for step in _steps(folder)[:-count] if step != besides):
        # the marker goes first, so an interrupted deletion is not taken for a checkpoint
        (old / RECIPE).unlink()
        remove(old)
    for debris in found:
        if debris.name.partition(UNCOMMITTED)[0].isdigit() and not is_complete(debris):
            remove(debris)
