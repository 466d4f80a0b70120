"""What lies in an object store: data, pictures, workdir and checkpoints, by a stand-in for one.

Its paths are no `pathlib.Path`: what needs a disk fails on them as it would on gs://.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sphinx_jax
from configs import sphinx_7b
from sphinx_jax import paths
from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.stream import Reader
from sphinx_jax.recipe import run as run_module
from sphinx_jax.recipe import runner
from sphinx_jax.recipe.run import done
from sphinx_jax.recipe.smoke import smoke


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A list with pictures of both domains and with texts, in a store."""
    monkeypatch.setattr(paths, "in_store", lambda name: "/bucket" in os.fspath(name))
    monkeypatch.setattr(run_module, "CACHE", tmp_path / "cache")
    random, lines = np.random.default_rng(0), []
    (tmp_path / "bucket" / "pictures").mkdir(parents=True)
    for i in range(8):
        picture = Image.fromarray(random.integers(0, 255, (40, 30, 3), np.uint8))
        picture.save(tmp_path / "bucket" / "pictures" / f"{i}.png")
        talk = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "a small red thing"}]
        lines.append({"image": f"{i}.png", "conversations": talk, "domain": ("real", "synthetic")[i % 2]})
        lines.append({"text": "words and words again " * (i + 1)})
    root = paths.as_path(tmp_path / "bucket")
    (root / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (root / "list.yaml").write_text("META:\n  - {path: items.jsonl, root: pictures}\n")
    return root


@pytest.mark.slow
def test_a_recipe_trains_mixes_and_answers_in_a_store(bucket):
    assert not isinstance(bucket, Path)
    values = smoke(sphinx_7b.get_config().to_dict())
    values["data"] = {
        "playground": None,
        "meta": dict.fromkeys(("train", "validation", "test"), str(bucket / "list.yaml")),
    }
    values["stage"]["pretrain_real"]["cache_features"] = True
    for name in ("pretrain_real", "continue_synthetic", "finetune"):
        values["stage"][name]["steps"] = 2
        values["stage"][name] |= {"evaluate_every": 1, "keep": "best"}
    run = runner.run(runner.parse(values), bucket / "run", quiet=True)
    assert all(done(run, name) for name in run.recipe.stages)
    assert {p.name for p in bucket.iterdir()} == {"items.jsonl", "list.yaml", "pictures", "run"}
    history = [json.loads(line) for line in (bucket / "run/finetune/history.jsonl").read_text().splitlines()]
    assert history[-1]["step"] == 2 and history[-1]["skipped"] == 0
    beta = json.loads((bucket / "run/mix/beta.json").read_text())["chosen"]
    real, synthetic, mixed = (run.leaves(name) for name in ("pretrain_real", "continue_synthetic", "mix"))
    for path, leaf in mixed.items():
        np.testing.assert_allclose(leaf, beta * real[path] + (1 - beta) * synthetic[path], atol=1e-6)
    model = sphinx_jax.from_pretrained(str(bucket / "run"))
    assert isinstance(model.respond([["What?", None]], image=str(bucket / "pictures/0.png"), max_new_tokens=4), str)


def test_what_reads_by_slices_asks_for_a_disk(bucket, mesh):
    from conftest import born, tiny_config

    folder = store.save(bucket / "model", born(tiny_config()), tiny_config(), None, {"made_by": "test"})
    with pytest.raises(store.BadCheckpoint, match="copy it to a disk"):
        Reader(folder)
