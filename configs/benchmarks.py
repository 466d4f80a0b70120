"""Asks a model the public benchmarks that lie in a folder, and sets its scores beside the published ones.

python -m sphinx_jax.main --config configs/benchmarks.py:CHECKPOINT --config.data=FOLDER
python -m sphinx_jax.main --config configs/benchmarks.py:CHECKPOINT --config.data=FOLDER \
    --config.stage.benchmarks.limit=100

CHECKPOINT is what tools/convert_checkpoint.py wrote, or a checkpoint or training stage of this project.  FOLDER has a
folder for each benchmark, named as docs/benchmarks.md names it (vqav2, refcoco+, …), with its files in any of their
forms.  Predictions are written as answers come: the same command goes on where it was stopped.
"""

import json

from ml_collections import ConfigDict

from sphinx_jax.checkpoint import store
from sphinx_jax.config import FAMILY, ConfigError, family, to_dict
from sphinx_jax.paths import located


def get_config(checkpoint: str = "") -> ConfigDict:
    if not checkpoint:
        raise ConfigError("say which model: --config configs/benchmarks.py:CHECKPOINT")
    start = store.chosen_in(located(checkpoint))
    if (start / "model.json").is_file():
        model = json.loads((start / "model.json").read_text())
    elif checkpoint in FAMILY:  # what it would take, before there are weights: tools/compile_ahead.py
        model = to_dict(family(checkpoint))
    else:
        raise ConfigError(
            f"{checkpoint} is no checkpoint (it has no model.json): give what tools/convert_checkpoint.py wrote, or "
            "the folder of a training stage"
        )
    c = ConfigDict()
    c.title = f"Benchmarks of {checkpoint}"
    c.model = model
    c.tokenizer = str(start)
    c.data = "benchmarks"
    c.stages = ("benchmarks",)
    c.stage = {"benchmarks": {"kind": "benchmarks", "start": str(start)}}
    return c
