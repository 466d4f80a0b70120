"""A recipe: the paper at one scale, as an ordered list of stages.

``Recipe`` is what a config file says, with every key checked; ``Run`` is a recipe in a workdir; ``run`` carries out the
stages that are not yet done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
from annotated_types import Ge, Lt
from jax.sharding import Mesh

from sphinx_jax.checkpoint import store
from sphinx_jax.config import ConfigError, ModelConfig, from_dict, unknown
from sphinx_jax.data.conversation_form import as_trained
from sphinx_jax.data.sources import Data, DataConfig
from sphinx_jax.data.tokenizer import Tokenizer, check_fits, load_tokenizer
from sphinx_jax.disk import DiskFull, is_full, told_when_full
from sphinx_jax.distributed import agree, barrier
from sphinx_jax.lock import NAME as LOCK
from sphinx_jax.lock import locked
from sphinx_jax.model.blueprint import Leaves, blueprint
from sphinx_jax.paths import CACHE, as_path, located, write_whole
from sphinx_jax.recipe_check import check_names, check_training
from sphinx_jax.settings import Seed, Settings, mapping, of_field
from sphinx_jax.sharding import make_mesh
from sphinx_jax.train.features import FeatureCache, cache_features
from sphinx_jax.train.numbers import order_numbers

PLAYGROUND = Path(__file__).parent / "data" / "playground"
PARTS = PLAYGROUND / "parts"

# kind -> module and name of (settings dataclass, function (Run, stage name, settings) -> None)
KINDS = {
    "train": ("sphinx_jax.train.stage", "TrainStage", "train"),
    "encoders": ("sphinx_jax.train.parts_stage", "EncodersStage", "train_encoders"),
    "assemble": ("sphinx_jax.train.parts_stage", "AssembleStage", "assemble"),
    "mix": ("sphinx_jax.train.mix_stage", "MixStage", "mix"),
    "evaluate": ("sphinx_jax.evaluate.stage", "EvaluateStage", "evaluate"),
    "show": ("sphinx_jax.evaluate.show", "ShowStage", "show"),
    "chat": ("sphinx_jax.serve.chat", "ChatStage", "chat"),
}

ALONE = ("encoders", "assemble", "evaluate", "show", "chat")  # kinds of stages that one process carries out

# settings that name another stage or a checkpoint
ORIGINS = ("start", "real", "synthetic", "encoders", "decoder", "evaluate", "mix")


Axis = Annotated[int, Ge(-1), Lt(2**31)]


@dataclass(frozen=True)
class MeshConfig(Settings):
    """Sizes of the mesh's axes; one may be -1 and takes what is left."""

    data: Axis = 1
    fsdp: Axis = -1
    tensor: Axis = 1  # 0: the smallest that lets the rows of every stage divide over the other axes
    expert: Axis = 1  # 0: as many as divide both the devices and the model's experts

    def __post_init__(self):
        for axis in ("data", "fsdp"):
            if getattr(self, axis) == 0:
                raise ConfigError(f"{axis} must be at least 1, or -1 for what is left, not 0")
        left = [axis for axis, size in vars(self).items() if size == -1]
        if len(left) > 1:
            raise ConfigError(f"{left[1]} must be at least 0; only one axis, here {left[0]}, may be -1")


@dataclass(frozen=True)
class Recipe(Settings):
    """``stages`` run in this order; ``settings`` holds each one's settings by name.  Stages outside the list (chat) run
    when asked for by name."""

    model: ModelConfig
    stages: tuple[str, ...]
    settings: dict[str, Any]
    data: DataConfig = DataConfig()
    mesh: MeshConfig = MeshConfig()
    title: str = "SPHINX"
    about: tuple[str, ...] = ()  # what the run will do, printed first
    seed: Seed = 0
    tokenizer: str = ""  # folder or file; default: the playground's


def parse(values: dict[str, Any], *, origins: bool = True) -> Recipe:
    """Plain data -> recipe.

    ``origins``: whether the checkpoints that stages start from must be usable; ``run`` sees to it that they are there.

    Raises:
      ConfigError: an unknown key, with the nearest known one; a value that its setting does not take; a name of a
        stage, task, domain, split or leaf that is not there.
    """
    values = dict(mapping(values, "config"))
    stages = mapping(values.pop("stage", {}), "stage")
    settings = {}
    for name, stage in stages.items():
        if Path(str(name)).name != name:  # it names a folder of the workdir
            raise ConfigError(f"stage.{name}: the name of a stage must do for a folder")
        stage = dict(mapping(stage, f"stage.{name}"))
        kind = stage.pop("kind", None)
        if str(kind) not in KINDS:
            with of_field(f"stage.{name}.kind"):
                raise unknown("kind of stage", str(kind), KINDS)
        settings[name] = from_dict(stage, _settings_class(kind), f"stage.{name}")
    if "settings" in values:
        raise unknown("key of config", "settings", ("stage", *values.keys() - {"settings"}))
    recipe = from_dict({"stages": tuple(stages), **values, "settings": {}}, Recipe, "config")
    for name in recipe.stages:
        if name not in settings:
            raise unknown("stage", name, settings)
    for name, stage in settings.items() if origins else ():
        _check_origins(name, stage, settings, gone=False)
    recipe = dataclasses.replace(recipe, settings=settings)
    for name in settings:
        try:
            check_names(recipe, name, _kind(settings[name]))
        except ConfigError as error:
            raise ConfigError(f"stage.{name}.{error}") from None
    return recipe


def mesh_of(recipe: Recipe, devices: Sequence[jax.Device], stages: Iterable[str] | None = None) -> Mesh:
    """The mesh that a recipe asks for, over these devices; ``stages``: those whose rows count, by default all."""
    sizes, count = dataclasses.asdict(recipe.mesh), len(devices)
    if sizes["expert"] == 0:
        moe = recipe.model.decoder.moe
        sizes["expert"] = math.gcd(moe.experts, count) if moe else 1
    if sizes["tensor"] == 0:
        rows = [
            size for name in stages or recipe.settings
            if hasattr(recipe.settings[name], "rows") for size in recipe.settings[name].rows().values()
        ]  # fmt: skip
        fixed = math.prod(size for axis, size in sizes.items() if axis != "tensor" and size > 0)
        fitting = (
            t for t in range(1, count + 1) if count % (t * fixed) == 0 and not any(r % (count // t) for r in rows)
        )
        sizes["tensor"] = next(fitting, 1)
    return make_mesh(**sizes, devices=list(devices))


def _check_origins(name: str, stage: Any, known: dict[str, Any], gone: bool = True) -> None:
    """What a stage builds on is ``parts``, ``fresh``, a stage or a checkpoint: told before hours of work, not after.

    ``gone``: whether a folder that is not there is refused too; a stage that has begun does not need it.
    """
    for key in ORIGINS:
        origin = getattr(stage, key, None)
        if not origin or origin in ("parts", "fresh", *known):
            continue
        if not as_path(origin).exists():
            if "/" not in origin:
                raise unknown(f"{key} of stage {name}", origin, ["parts", "fresh", *known])
            if not gone:
                continue
            raise ConfigError(
                f"{key} of stage {name}: there is no {origin}; tools/convert_checkpoint.py makes such a folder of "
                f"published weights, and --config.stage.{name}.{key}=FOLDER names another"
            )
        if not store.is_complete(origin):
            raise store.BadCheckpoint(f"{key} of stage {name}: {origin} is not a complete checkpoint")


def _settings_class(kind: str) -> type:
    module, name, _ = KINDS[kind]
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Run:
    """A recipe in its workdir."""

    recipe: Recipe
    workdir: Path
    quiet: bool = False
    profile: range | None = None  # steps of each training stage that are traced

    def folder(self, stage: str) -> Path:
        return self.workdir / stage

    @property
    def local(self) -> Path:
        """A disk for what can be made again: the workdir, or a folder of this machine where that is in a store."""
        if isinstance(self.workdir, Path):
            return self.workdir
        return CACHE / hashlib.sha256(str(self.workdir).encode()).hexdigest()[:16]

    @functools.cached_property
    def mesh(self) -> Mesh:
        return mesh_of(self.recipe, jax.devices())

    @functools.cached_property
    def data(self) -> Data:
        return Data(self.recipe.data, self.local)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The recipe's; where that is gone, the one that every checkpoint of a stage holds."""
        given = self.recipe.tokenizer or PLAYGROUND / "tokenizer.model"
        if not located(given).exists():
            found = (store.newest(self.folder(name) / "checkpoints") for name in self.recipe.settings)
            given = next(filter(None, found), given)
        words = as_trained(load_tokenizer(given))
        check_fits(words, self.recipe.model.decoder.vocab_size)
        return words

    def checkpoint(self, start: str) -> Path:
        """The folder that ``start`` names: ``parts``, a stage of this recipe, or a path."""
        if start == "parts":
            return PARTS
        folder = store.newest(self.folder(start) / "checkpoints") if start in self.recipe.settings else as_path(start)
        if folder is None or not store.is_complete(folder):
            raise store.BadCheckpoint(f"there is no complete checkpoint of {start!r} yet; run that stage first")
        return folder

    def leaves(self, start: str, dtypes: Mapping[str, str] | None = None, quantize: str = "") -> Leaves:
        """The model to start from, some leaves in dtypes of their own, the decoder's matrices quantised where that is
        asked for and a checkpoint is read.

        ``parts`` holds encoders and decoder: projections and tags are born here, as LoRA is where the start has none.
        """
        model, plan = self.recipe.model, blueprint(self.recipe.model)
        if start == "fresh":
            leaves = plan.init(self.mesh, self.recipe.seed)
            table = order_numbers(leaves["decoder/embedding"], self.tokenizer, self.recipe.seed)
            return leaves | {"decoder/embedding": table}
        folder = self.checkpoint(start)
        if start == "parts":
            return plan.init(self.mesh, self.recipe.seed) | store.restore_parts(folder, self.mesh, model)
        return self.read(folder, dtypes, quantize)

    def read(self, folder: Path, dtypes: Mapping[str, str] | None = None, quantize: str = "") -> Leaves:
        """The model that a checkpoint holds; LoRA is born where it has none.  Arguments as those of ``leaves``."""
        model, plan = self.recipe.model, blueprint(self.recipe.model)
        lacks_lora = model.decoder.lora_rank and not store.read_config(folder).decoder.lora_rank
        decoder = dataclasses.replace(model.decoder, lora_rank=0) if lacks_lora else model.decoder
        stored = blueprint(dataclasses.replace(model, decoder=decoder))
        if quantize:
            from sphinx_jax.checkpoint.few_bits import restore_quantised

            leaves = restore_quantised(folder, self.mesh, stored, quantize, dtypes or {})
        else:
            leaves = store.restore(folder, self.mesh, stored, dtypes=dtypes)
        born = plan.specs.keys() - leaves.keys()
        return leaves | plan.init(self.mesh, self.recipe.seed, only=born) if born else leaves

    def features(self, leaves: Leaves, split: str, domain: str) -> FeatureCache | None:
        """What the frozen encoders see in the pictures of one split and domain; made once and kept.

        None in a run of several processes, whose steps take pixels: the cache is for small machines.
        """
        if jax.process_count() > 1:
            return None
        items = self.data.items(split, domain)
        folder = self.local / "features" / f"{domain}-{split}"
        return cache_features(folder, items, leaves, self.recipe.model, f"encoding {domain} {split} pictures")


def run(
    recipe: Recipe, workdir: Path, only: str | None = None, quiet: bool = False, profile: range | None = None
) -> Run:
    """Carry out the stages of a recipe that are not yet done, or only the one named.

    Raises:
      ConfigError: the workdir was made with other settings, or another command works in it.
      DiskFull: in one line; the same call goes on once there is room.
    """
    if only is not None and only not in recipe.settings:
        raise unknown("stage", only, recipe.settings)
    leader = jax.process_index() == 0
    this = Run(recipe, workdir, quiet or not leader, profile)
    for name in _todo(this, only):
        if store.newest(this.folder(name) / "checkpoints") is None:
            _check_origins(name, recipe.settings[name], recipe.settings)
    problem = None
    with contextlib.ExitStack() as held:
        try:
            # a chat makes nothing, and asks the model that is there
            if leader and (only is None or _kind(recipe.settings[only]) != "chat"):
                workdir.mkdir(parents=True, exist_ok=True)
                if isinstance(workdir, Path):  # a store has no locks
                    held.enter_context(locked(workdir))
                _settle(recipe, workdir)
        except OSError as error:
            problem = f"cannot write to workdir {workdir}: {error.strerror}; give another --workdir"
            problem = str(DiskFull(workdir)) if is_full(error) else problem
        except ConfigError as error:
            problem = str(error)
        agree(problem)
        with told_when_full(workdir):
            _carry_out(this, only)
    return this


def _todo(this: Run, only: str | None) -> list[str]:
    return [only] if only else [name for name in this.recipe.stages if not done(this, name)]


def _carry_out(this: Run, only: str | None) -> None:
    recipe, todo = this.recipe, _todo(this, only)
    if not this.quiet:
        for line in recipe.about if not only and len(todo) == len(recipe.stages) else ():
            print(line)
        if not todo:
            print(f"All {len(recipe.stages)} stages are done; the results are in {this.workdir}.")
        elif not only:
            print(f"To do in {this.workdir}: {', '.join(todo)}", flush=True)
    check_training(this, [name for name in todo if _kind(recipe.settings[name]) == "train"])
    for name in todo:
        started = time.time()
        kind = _kind(recipe.settings[name])
        if jax.process_count() > 1 and kind in ALONE:
            if not this.quiet:
                print(f"{name} and what follows is for one process: run the same command there")
            break
        module, _, function = KINDS[kind]
        getattr(importlib.import_module(module), function)(this, name, recipe.settings[name])
        if name in recipe.stages and jax.process_index() == 0:
            _mark(this, name, time.time() - started)
        barrier(f"done {name}")


def progress_of(workdir: Path) -> tuple[str, int] | None:
    """The stage that was written to last, and its newest step; None where nothing is kept yet."""
    found = (
        [(f, newest) for f in workdir.glob("*/checkpoints") if (newest := store.newest(f))] if workdir.exists() else []
    )
    if not found:
        return None

    def written(pair: tuple[Path, Path]) -> float:
        seen = (pair[1] / store.RECIPE).stat()
        return getattr(seen, "st_mtime", None) or seen.mtime

    folder, newest = max(found, key=written)
    return folder.parent.name, int(newest.name)


def _kind(settings: Any) -> str:
    return next(kind for kind, (_, cls, _) in KINDS.items() if type(settings).__name__ == cls)


def seconds(this: Run) -> dict[str, float]:
    """Wall time of each finished stage, of the attempt that finished it."""
    times = {}
    for name in this.recipe.stages:
        path = this.folder(name) / "done.json"
        if path.exists():
            times[name] = json.loads(path.read_text())["seconds"]
    return times


def done(this: Run, name: str) -> bool:
    return (this.folder(name) / "done.json").exists()


def _mark(this: Run, name: str, spent: float) -> None:
    this.folder(name).mkdir(parents=True, exist_ok=True)
    if not done(this, name):
        write_whole(this.folder(name) / "done.json", json.dumps({"seconds": spent}).encode())


def _settle(recipe: Recipe, workdir: Path) -> None:
    """Keep the resolved config, and refuse to go on with another one where something was made with it.

    A stage that has not begun may still change, so that a mistake in it does not cost the stages before.
    """
    path = workdir / "config.json"
    now = json.loads(json.dumps(dataclasses.asdict(recipe)))
    content = json.dumps(now, indent=2).encode()
    if not path.exists() or all(p.name in (path.name, LOCK) for p in workdir.iterdir()):
        write_whole(path, content)
        return
    before, now_flat = _flat(json.loads(path.read_text())), _flat(now)
    # words, and the settings of chat, which asks the finished model, change nothing that was made
    asked = ("title", "about", *(f"settings.{name}." for name, s in recipe.settings.items() if _kind(s) == "chat"))
    ahead = tuple(f"settings.{name}." for name in recipe.settings if not (workdir / name).exists())
    # a setting that the workdir does not know came with a newer version
    changed = {k for k, value in before.items() if value != now_flat.get(k)}
    changed = sorted(k for k in changed if not k.startswith(asked))
    refused = [key for key in changed if not key.startswith(ahead)]
    if refused:
        key = refused[0]
        raise ConfigError(
            f"{workdir} was made with {key} = {before.get(key)!r}, now it is {now_flat.get(key)!r}"
            + (f" (and {len(refused) - 1} more)" if len(refused) > 1 else "")
            + "; give another --workdir or delete this one"
        )
    if changed:
        write_whole(path, content)


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        return {k: v for name, sub in tree.items() for k, v in _flat(sub, f"{path}{name}.").items()}
    return {path.rstrip("."): tree}
