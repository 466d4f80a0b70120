"""Compiles a recipe's real steps for a TPU topology that is not here, and says what they need of each device.

Does the published 13B recipe fit on 64 chips of v5e, and how fast could it be:
  python tools/compile_ahead.py --config configs/sphinx_1k.py --topology v5e:8x8

One stage, with a setting changed, as JSON on the last line:
  python tools/compile_ahead.py --config configs/sphinx_1k.py --topology v5p:4x4x4 --stage finetune \\
      --config.stage.finetune.device_rows=2 --json

A token of one answer (of several at once: --serve 8), its matrices whole and in 8 bits:
  python tools/compile_ahead.py --config configs/sphinx_1k.py --topology v5e:2x4 --serve 1

The table docs/ahead.md, row by row; rows that are done are kept:
  python tools/compile_ahead.py --table docs/ahead.jsonl

Topologies are named as Google Cloud does: v4:4x4x4, v5e:16x16, v5p:2x2x4, v6e:8x8; or hosts of H100s, h100:8 and
h100:4x8 (pip install jax-cuda12-plugin).  A large model takes minutes.
"""

import os
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs here
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU to ask
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several of these may compile at once

from absl import app, flags, logging

from sphinx_jax.command import plain_errors
from sphinx_jax.main import CONFIG, SMOKE, STAGE, parse, recipe_values

_TOPOLOGY = flags.DEFINE_string("topology", None, "What to compile for, e.g. v5e:16x16.")
_JSON = flags.DEFINE_bool("json", False, "End with one JSON object on a line of its own.")
_LARGEST = flags.DEFINE_bool(
    "largest", True, "Also find the largest batch that fits, by two more compilations a stage."
)
_SERVE = flags.DEFINE_integer("serve", None, "A token of so many answers at once, and nothing else.", lower_bound=1)
_TABLE = flags.DEFINE_string("table", None, "Add the rows that this file does not have yet, and draw its table.")

OPTIONS = (CONFIG, _TOPOLOGY, STAGE, _SERVE, _LARGEST, SMOKE, _JSON, _TABLE)


def main(argv: list[str]) -> None:
    from sphinx_jax.measure.ahead import report

    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}; options begin with --")
    if _TABLE.value:
        sys.path.append(str(Path(__file__).parents[1]))  # its recipes are those of the configs beside this folder
        return report.fill(_TABLE.value, lambda name: import_module(f"configs.{name}").get_config().to_dict())
    if CONFIG.value is None or not _TOPOLOGY.value:
        raise ValueError("give --config and --topology, e.g. --config configs/sphinx_1k.py --topology v5e:16x16")
    if _SERVE.value:
        return report.serving(recipe_values(), _TOPOLOGY.value, _SERVE.value, as_json=_JSON.value)
    report.report(recipe_values(), _TOPOLOGY.value, STAGE.value, largest=_LARGEST.value, as_json=_JSON.value)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    with plain_errors(flags.Error):
        app.run(main, flags_parser=partial(parse, text=__doc__, options=OPTIONS))
