"""Carries out a recipe: trains, mixes, evaluates, answers.  The same command again goes on where it stopped.

The recipe at nano size on pictures made here, from nothing to a report, in minutes on two cores:
  python -m sphinx_jax.main --config configs/quickstart.py

The package brings its recipes along, by name; sphinx-jax is the same command:
  sphinx-jax --config quickstart

One stage, with a setting changed; a chat with what was trained:
  sphinx-jax --config quickstart --stage finetune --config.stage.finetune.steps=4000
  sphinx-jax --config quickstart --stage chat --config.stage.chat.image=photo.jpg

Your own conversations, on a checkpoint that tools/convert_checkpoint.py wrote:
  sphinx-jax --config finetune:FOLDER --config.data.meta.train=list.yaml --workdir runs/mine
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags
from ml_collections.config_flags.config_flags import UnsupportedOperationError

from sphinx_jax import heap
from sphinx_jax.command import plain_errors
from sphinx_jax.paths import MIN_SECONDS, PROGRAMS, as_path
from sphinx_jax.recipe.find import find, folders
from sphinx_jax.recipe.usage import ASKS, page

# not locked: a setting that the file leaves at its default can be given too; `runner.parse` refuses unknown keys
CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The recipe: a Python file with get_config(), or the name of one in configs/ or in the package; --config.key=value "
    "changes one of its settings.",
    lock_config=False,
    accept_new_attributes=True,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is kept; default: runs/<name of the config>.")
STAGE = flags.DEFINE_string("stage", None, "Run this stage alone, e.g. chat; default: all that are not yet done.")
_PROFILE = flags.DEFINE_string("profile", None, "Trace these steps of each training stage for XProf, e.g. 10:13.")
SMOKE = flags.DEFINE_bool("smoke", False, "Run the recipe at nano size on the playground, to see that it runs.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for a run of many processes.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes the run has.")
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", None, "Leave it to JAX to find the other processes, e.g. on a TPU pod; default: as a scheduler says."
)
_HEARTBEAT = flags.DEFINE_integer("heartbeat", 100, "Seconds without a sign of life until a process counts as gone.")
_QUIET = flags.DEFINE_bool("quiet", False, "Print no progress.")


_OPTIONS = (
    *(CONFIG, _WORKDIR, STAGE, SMOKE, _PROFILE, _QUIET),
    *(_DISTRIBUTED, _COORDINATOR, _PROCESSES, _PROCESS, _HEARTBEAT),
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}; options begin with --")
    if CONFIG.value is None:
        raise ValueError("no recipe; give one, e.g. --config configs/quickstart.py")
    file = Path(config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0])
    if not file.is_file():
        raise FileNotFoundError(f"there is no recipe {file}; check --config")
    profile = parse_profile(_PROFILE.value) if _PROFILE.value else None
    # a second run finds its programs compiled
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", MIN_SECONDS)
    from sphinx_jax import distributed
    from sphinx_jax.recipe.run import progress_of

    workdir = as_path(_WORKDIR.value or Path("runs") / (f"{file.stem}-smoke" if SMOKE.value else file.stem))
    cluster = distributed.find_cluster(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value, _DISTRIBUTED.value)
    if cluster is not None:
        if distributed.CHILD not in os.environ:
            sys.exit(distributed.supervise(workdir, progress_of))
        distributed.connect(cluster, _HEARTBEAT.value)
    from sphinx_jax.recipe import runner

    with contextlib.nullcontext() if cluster is None else distributed.leaving_alone():
        found = runner.parse(recipe_values(), origins=False)  # the run looks at those of the stages to come
        run = runner.run(found, workdir, only=STAGE.value, quiet=_QUIET.value, profile=profile)
    if not (STAGE.value or run.quiet):
        from sphinx_jax.recipe.suggest import things_to_try

        given = ["--config", config_flags.get_config_filename(flags.FLAGS["config"])]
        given += ["--smoke"] if SMOKE.value else []
        given += ["--workdir", _WORKDIR.value] if _WORKDIR.value else []
        print("\n".join(things_to_try(run, given)))


def recipe_values() -> dict[str, Any]:
    """What the flags say of the recipe, for `runner.parse`; at nano size with --smoke."""
    values = CONFIG.value.to_dict()
    if not SMOKE.value:
        return values
    from sphinx_jax.recipe.smoke import smoke

    return smoke(values)


def parse_profile(text: str) -> range:
    """`10:13` -> steps 10, 11 and 12."""
    first, colon, end = text.partition(":")
    if not (colon and first.isdigit() and end.isdigit() and int(first) < int(end)):
        raise ValueError(f"--profile {text} is not of the form FIRST:END, e.g. 10:13 for the steps 10, 11 and 12")
    return range(int(first), int(end))


def parse(argv: list[str], text: str = __doc__, options: Sequence[flags.FlagHolder] = _OPTIONS) -> list[str]:
    """Flags of the command line; what is left of it.

    text, options: what --help prints of the command.
    """
    if ASKS & {*argv}:
        argv = _parsed([given for given in argv if given not in ASKS])
        print(page(text, options, CONFIG.value and CONFIG.value.to_dict()))
        sys.exit(0)
    return _parsed(argv)


def _parsed(argv: list[str]) -> list[str]:
    argv = [*argv]
    for i, given in enumerate(argv):
        name, equals, file = given.lstrip("-").partition("=")
        if name != "config" or not (equals or argv[i + 1 :]):
            continue
        file = find(file if equals else argv[i + 1])
        argv[i if equals else i + 1] = f"--config={file}" if equals else file
        # recipes import each other by their folder's name, wherever the command runs
        sys.path += [str(folder.resolve().parent) for folder in (Path(file.partition(":")[0]).parent, *folders())]
    try:
        return flags.FLAGS(argv)
    except flags.IllegalFlagValueError as error:
        if wrong := re.search(r"flag --config\.(\S+?)=(.*?): invalid literal for", str(error)):
            raise ValueError(
                f"{wrong[1]}={wrong[2]}: the recipe has a number there; what is none can be given in its file alone"
            ) from None
        if "Traceback" not in str(error) or os.environ.get("SPHINX_JAX_TRACEBACK"):
            raise
        # of what get_config() raised its own message, without the name of its class
        raise ValueError(re.sub(r"^[\w.]+: ", "", str(error).rstrip().rpartition("\n")[2])) from None
    except UnsupportedOperationError as error:
        named = re.search(r"field config\.(\S+)", str(error))
        what = named[1] if named else error
        raise ValueError(f"{what} is None in the recipe; give it there, not as a flag") from None
    except KeyError as error:  # a path that ends nowhere in the recipe, e.g. --config.stag.finetune.steps
        raise ValueError(f"unknown setting {error.args[0]}") from error
    except SyntaxError as error:
        raise ValueError(f"{error.filename}, line {error.lineno}: {error.msg}") from error


def entry() -> None:
    heap.keep_on_cpu()
    logging.set_verbosity(logging.WARNING)
    with plain_errors(flags.Error, stopped="stopped; the same command goes on from the last checkpoint"):
        app.run(main, flags_parser=parse)


if __name__ == "__main__":
    entry()
