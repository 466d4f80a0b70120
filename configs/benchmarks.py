"""Asks a model the public benchmarks that lie in a folder, and sets its scores beside the published ones.

python -m sphinx_jax.main --config configs/benchmarks.py:CHECKPOINT --config.data=FOLDER
python -m sphinx_jax.main --config configs/benchmarks.py:CHECKPOINT --config.data=FOLDER \
    --config.stage.benchmarks.limit=100

CHECKPOINT is what tools/convert_checkpoint.py wrote, or a checkpoint or training stage of this project.  FOLDER has a
folder for each benchmark, named as docs/benchmarks.md names it (vqav2, refcoco+, …), with its files in any of their
forms.  Predictions are written as answers come: the same command goes on where it was stopped.
"""

from ml_collections import ConfigDict

from sphinx_jax.config import ConfigError
from sphinx_jax.recipe.origin import origin


def get_config(checkpoint: str = "") -> ConfigDict:
    if not checkpoint:
        raise ConfigError("say which model: --config configs/benchmarks.py:CHECKPOINT")
    start, model = origin(checkpoint)
    c = ConfigDict()
    c.title = f"Benchmarks of {checkpoint}"
    c.model = model
    c.tokenizer = str(start)
    c.data = "benchmarks"
    c.stages = ("benchmarks",)
    c.stage = {"benchmarks": {"kind": "benchmarks", "start": str(start)}}
    return c
