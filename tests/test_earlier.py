"""What earlier versions wrote is read, and their runs go on; `fixtures/earlier/README.md` says how it was made."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import DATA, ROOT

import sphinx_jax

EARLIER = DATA / "earlier"
CHECKPOINTS = ("full/first", "full/second", "lora/tune")
EXPECTED = json.loads((EARLIER / "expected.json").read_text())


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """A copy to work in; the name of the folder is that of the module that `lora.py` imports."""
    monkeypatch.chdir(shutil.copytree(EARLIER, tmp_path / "earlier"))


@pytest.mark.parametrize("stage", CHECKPOINTS)
def test_its_checkpoints_answer_as_they_did(stage):
    model, seen = sphinx_jax.from_pretrained(EARLIER / stage / "checkpoints" / "2"), np.load(EARLIER / "logits.npz")
    with_picture = model.logits(seen["tokens"], seen["pixels"])
    np.testing.assert_allclose(with_picture, seen[stage], atol=1e-5)
    np.testing.assert_allclose(model.logits(seen["tokens"]), seen[f"{stage} text"], atol=1e-5)


def test_its_workdir_loads_as_its_last_stage():
    model, seen = sphinx_jax.from_pretrained(EARLIER / "full"), np.load(EARLIER / "logits.npz")
    np.testing.assert_allclose(model.logits(seen["tokens"]), seen["full/second text"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "workdir", "stage"), [("recipe.py", "full", "second"), ("lora.py", "lora", "tune")])
def test_its_stopped_runs_go_on_to_the_losses_of_a_whole_one(recipe, workdir, stage, earlier):
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "sphinx_jax.main", "--config", recipe, "--workdir", workdir]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{stage}: on from step 2" in done.stdout
    history = [json.loads(line) for line in Path(workdir, stage, "history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in history] == [1, 2, 3, 4]
    np.testing.assert_allclose([entry["loss"] for entry in history], EXPECTED[f"{workdir}/{stage}"], rtol=1e-5)
    assert Path(workdir, stage, "done.json").exists()


@pytest.mark.slow
def test_a_mix_of_its_checkpoints_is_made_again_from_its_recipe(earlier):
    tool = ROOT / "tools" / "mix_weights.py"
    command = [sys.executable, tool, "--recipe", "mix.json", "--out", "mixed"]
    env = os.environ | {"PYTHONPATH": str(tool.parents[1]), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    recipe = json.loads(Path("mixed", "recipe.json").read_text())
    assert recipe["hashes"] == json.loads(Path("mix.json").read_text())["hashes"]
    mixed, first, second = (
        sphinx_jax.from_pretrained(folder).leaves
        for folder in ("mixed", *(f"{source}/checkpoints/2" for source in recipe["sources"]))
    )
    for path, leaf in mixed.items():
        expected = jax.tree.map(lambda a, b: 0.3 * np.asarray(a) + 0.7 * np.asarray(b), first[path], second[path])
        for ours, theirs in zip(jax.tree.leaves(leaf), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6, err_msg=path)
