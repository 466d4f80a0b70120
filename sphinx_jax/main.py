"""python -m sphinx_jax.main --config configs/quickstart.py [--workdir DIR] [--stage NAME] [--config.key=value]"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The recipe, a Python file with get_config().", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is kept; default: runs/<name of the config>.")
_STAGE = flags.DEFINE_string("stage", None, "Run this stage alone, e.g. chat; default: all that are not yet done.")
_QUIET = flags.DEFINE_bool("quiet", False, "Print no progress.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options begin with --")
    workdir = Path(_WORKDIR.value or Path("runs") / Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem)
    # a second run finds its programs compiled
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "sphinx_jax" / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    from sphinx_jax import recipe

    recipe.run(recipe.parse(_CONFIG.value.to_dict()), workdir, only=_STAGE.value, quiet=_QUIET.value)


def entry() -> None:
    """Errors that a person can mend are one line; everything else keeps its traceback."""
    logging.set_verbosity(logging.WARNING)
    flags.mark_flag_as_required("config")
    try:
        app.run(main)
    except (ValueError, KeyError, AttributeError, FileNotFoundError) as error:
        if os.environ.get("SPHINX_JAX_TRACEBACK"):
            raise
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    entry()
