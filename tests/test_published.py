"""The published recipes: their numbers, and that each, and the quickstart, runs from end to end at nano size."""

import os
import subprocess
import sys
from importlib import import_module

import pytest
from conftest import ROOT

from sphinx_jax.config import from_dict
from sphinx_jax.recipe.runner import parse
from sphinx_jax.recipe.smoke import nano, smoke

NAMES = ("sphinx_7b", "sphinx_1k", "sphinx_2k", "sphinx_tiny_1k", "sphinx_moe_1k")


def values(name):
    return import_module(f"configs.{name}").get_config().to_dict()


@pytest.mark.parametrize("name", NAMES)
def test_the_recipes_hold_the_published_numbers(name):
    recipe = parse(values(name), origins=False)
    tune = recipe.settings["finetune"]
    assert recipe.model.dtype == "bfloat16" and tune.epochs == 1 and tune.weight_decay == 0 and tune.clip == 8
    assert tune.rate == (5e-6 if "moe" in name else 2e-5) and tune.floor == 0
    old = "tiny" not in name and "moe" not in name
    assert (tune.batch, tune.warmup_epochs) == ((128, 0.03) if old else (256, 0.01))
    if old:
        first = recipe.settings["pretrain_real"]
        assert (first.steps, first.batch, first.text_batch * first.text_length) == (180_000, 640, 65_536)
        assert (first.rate, first.floor, first.warmup, first.weight_decay) == (5e-5, 5e-6, 2000, 0.1)


@pytest.mark.parametrize("name", (*NAMES, "quickstart"))
def test_the_nano_form_has_the_same_parts(name):
    small = smoke(values(name))
    parse(small)
    full, model = from_dict(values(name)["model"]), from_dict(small["model"])
    assert model == nano(full)
    for part in ("clip", "convnext", "dinov2", "blip2", "qformer"):
        assert bool(getattr(full, part)) == bool(getattr(model, part))
    assert full.views.views == model.views.views and bool(full.decoder.moe) == bool(model.decoder.moe)
    assert small["stage"].keys() == values(name)["stage"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", (*NAMES, "quickstart"))
def test_each_recipe_runs_from_end_to_end(name, tmp_path):
    command = [sys.executable, "-m", "sphinx_jax.main", "--config", f"configs/{name}.py", "--smoke"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / name}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for stage in values(name)["stages"]:
        assert (tmp_path / name / stage / "done.json").exists()
