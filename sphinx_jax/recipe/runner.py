"""Config file -> recipe, and a recipe's stages carried out one after the other, those that are not yet done."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sphinx_jax import heap
from sphinx_jax.checkpoint import store
from sphinx_jax.config import ConfigError, from_dict, unknown
from sphinx_jax.disk import DiskFull, is_full, told_when_full
from sphinx_jax.distributed import agree, barrier
from sphinx_jax.lock import NAME as LOCK
from sphinx_jax.lock import locked
from sphinx_jax.paths import as_path, write_whole
from sphinx_jax.recipe.check import check_names, check_training
from sphinx_jax.recipe.recipe import Recipe
from sphinx_jax.recipe.run import Run, done
from sphinx_jax.recipe.stages.benchmarks import BenchmarksStage, benchmarks
from sphinx_jax.recipe.stages.chat import ChatStage, chat
from sphinx_jax.recipe.stages.evaluate import EvaluateStage, evaluate
from sphinx_jax.recipe.stages.mix import MixStage, mix
from sphinx_jax.recipe.stages.parts import AssembleStage, EncodersStage, assemble, train_encoders
from sphinx_jax.recipe.stages.show import ShowStage, show
from sphinx_jax.recipe.stages.train import train
from sphinx_jax.settings import mapping, of_field
from sphinx_jax.train.settings import TrainStage


class Kind(NamedTuple):
    """A kind of stage: its settings and what carries it out."""

    settings: type
    function: Callable[[Run, str, Any], None]
    alone: bool = True  # one process carries it out


STAGE_KINDS = {
    "train": Kind(TrainStage, train, alone=False),
    "encoders": Kind(EncodersStage, train_encoders),
    "assemble": Kind(AssembleStage, assemble),
    "mix": Kind(MixStage, mix, alone=False),
    "evaluate": Kind(EvaluateStage, evaluate, alone=False),
    "benchmarks": Kind(BenchmarksStage, benchmarks, alone=False),
    "show": Kind(ShowStage, show),
    "chat": Kind(ChatStage, chat),
}

# settings that name another stage or a checkpoint
ORIGINS = ("start", "real", "synthetic", "encoders", "decoder", "evaluate", "mix", "card")


def parse(values: dict[str, Any], *, origins: bool = True) -> Recipe:
    """Plain data -> recipe.

    `origins`: whether the checkpoints that stages start from must be usable; `run` sees to it that they are there.

    Raises:
      ConfigError: an unknown key, with the nearest known one; a value that its setting does not take; a name of a
        stage, task, domain, split or leaf that is not there.
    """
    values = dict(mapping(values, "config"))
    if isinstance(values.get("data"), str):
        values["data"] = {"playground": None, "benchmarks": values["data"]}
    stages = mapping(values.pop("stage", {}), "stage")
    settings = {}
    for name, stage in stages.items():
        if Path(str(name)).name != name:  # it names a folder of the workdir
            raise ConfigError(f"stage.{name}: the name of a stage must do for a folder")
        stage = dict(mapping(stage, f"stage.{name}"))
        kind = stage.pop("kind", None)
        if str(kind) not in STAGE_KINDS:
            with of_field(f"stage.{name}.kind"):
                raise unknown("kind of stage", str(kind), STAGE_KINDS)
        settings[name] = from_dict(stage, STAGE_KINDS[kind].settings, f"stage.{name}")
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
        if jax.process_count() > 1 and STAGE_KINDS[kind].alone:
            if not this.quiet:
                print(f"{name} and what follows is for one process: run the same command there")
            break
        heap.keep_on_cpu()  # a stage that reads checkpoints chunk by chunk undoes it
        STAGE_KINDS[kind].function(this, name, recipe.settings[name])
        if name in recipe.stages and jax.process_index() == 0:
            _mark(this, name, time.time() - started)
        barrier(f"done {name}")


def _check_origins(name: str, stage: Any, known: dict[str, Any], gone: bool = True) -> None:
    """What a stage builds on is `parts`, `fresh`, a stage or a checkpoint: told before hours of work, not after.

    `gone`: whether a folder that is not there is refused too; a stage that has begun does not need it.
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
        if not store.is_complete(store.chosen_in(as_path(origin))):
            raise store.BadCheckpoint(f"{key} of stage {name}: {origin} is not a complete checkpoint")


def _kind(settings: Any) -> str:
    return next(kind for kind, (cls, *_) in STAGE_KINDS.items() if type(settings) is cls)


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
    # words, how many answers are given at once, and the settings of chat, which asks the finished model, change nothing
    # that was made
    free = {"chat": "", "evaluate": "batch", "benchmarks": "batch"}
    kinds = {name: _kind(s) for name, s in recipe.settings.items()}
    asked = ("title", "about", *(f"settings.{name}.{free[kind]}" for name, kind in kinds.items() if kind in free))
    ahead = [f"settings.{name}." for name in recipe.settings if not (workdir / name).exists()]
    # what has begun may go on with other shares of its data sets and domains
    for name, s in recipe.settings.items():
        if _kind(s) == "train" and not (workdir / name / "done.json").exists():
            ahead += [f"settings.{name}.sets", f"settings.{name}.domains"]
    # a setting that the workdir does not know came with a newer version: from now on it counts
    changed = {k for k, value in before.items() if value != now_flat.get(k)}
    changed = sorted(k for k in changed if not k.startswith(asked))
    if set(before.get("stages") or ()) <= set(now["stages"]):  # a stage may be added to what was made
        ahead.append("stages")
    refused = [key for key in changed if not key.startswith(tuple(ahead))]
    if refused:
        key = refused[0]
        raise ConfigError(
            f"{workdir} was made with {key} = {before.get(key)!r}, now it is {now_flat.get(key)!r}"
            + (f" (and {len(refused) - 1} more)" if len(refused) > 1 else "")
            + "; give another --workdir or delete this one"
        )
    if changed or now_flat.keys() - before.keys():
        write_whole(path, content)


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    """By path; a stage's settings whole, be they mappings."""
    if isinstance(tree, dict) and not re.fullmatch(r"settings\.[^.]+\.[^.]+\.", path):
        return {k: v for name, sub in tree.items() for k, v in _flat(sub, f"{path}{name}.").items()}
    return {path.rstrip("."): tree}
