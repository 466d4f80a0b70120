"""The parts recipe: encoders and decoder trained on their own, and assembled into what a model starts from."""

import json

import jax
import numpy as np
import pytest
from conftest import tiny_config

from sphinx_jax.checkpoint import store
from sphinx_jax.config import ConfigError, to_dict
from sphinx_jax.data.conversation import Item
from sphinx_jax.data.tasks import Box
from sphinx_jax.recipe import runner
from sphinx_jax.recipe.stages.parts import caption, grounded_phrases
from sphinx_jax.train.parts import coverage


def values(out) -> dict:
    model = to_dict(tiny_config())
    model["decoder"]["vocab_size"] = 1280
    return {
        "model": model,
        "data": {"playground": "nano"},
        "stages": ("encoders", "decoder", "parts"),
        "stage": {
            "encoders": {"kind": "encoders", "steps": 2, "batch": 4, "log_every": 1},
            "decoder": {
                "kind": "train",
                "start": "fresh",
                "steps": 2,
                "text_batch": 2,
                "text_length": 48,
                "log_every": 1,
                "frozen": ("encoders/*", "embedding_mix/*"),
            },
            "parts": {"kind": "assemble", "encoders": "encoders", "decoder": "decoder", "out": str(out)},
        },
    }


@pytest.mark.slow
def test_parts_are_the_trained_encoders_and_the_trained_decoder(tmp_path, mesh):
    out, workdir = tmp_path / "parts", tmp_path / "run"
    made = runner.run(runner.parse(values(out)), workdir, quiet=True)
    parts = store.restore_parts(out, mesh, made.recipe.model)
    decoder = store.restore(made.checkpoint("decoder"), mesh)
    fresh = made.leaves("fresh")
    assert {p.split("/")[0] for p in parts} == {"encoders", "decoder"}
    for path, leaf in parts.items():
        if path.startswith("decoder/"):
            np.testing.assert_array_equal(leaf, decoder[path], err_msg=path)
    # every encoder has learnt, DINOv2 without a word of text
    for name in ("clip", "convnext", "dinov2", "blip2"):
        assert any(not np.array_equal(parts[p], fresh[p]) for p in parts if p.startswith(f"encoders/{name}/")), name
    history = [json.loads(line) for line in (workdir / "encoders" / "history.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in history) and len(history) == 2
    assert str(tmp_path) not in "".join(p.read_text(errors="ignore") for p in out.rglob("*") if p.suffix == ".txt"), (
        "what is shipped names no machine"
    )


def test_a_misspelt_task_is_named_before_training(tmp_path):
    changed = values(tmp_path / "parts")
    changed["stages"] = ("decoder",)
    changed["stage"]["decoder"] |= {"domains": {"real": 1.0}, "tasks": {"detailed_captoin": 1.0}}
    with pytest.raises(ConfigError, match="did you mean 'detailed_caption'"):
        runner.run(runner.parse(changed), tmp_path / "run", quiet=True)


def test_coverage_counts_each_patch_once():
    # a box over the left half of the right-hand crop of two by two views, four patches a side
    boxes = np.array([[[0.5, 0.0, 0.75, 0.5]]], np.float32)
    frame = np.array([[0.5, 0.0, 1.0, 0.5]], np.float32)
    covered = np.asarray(jax.jit(coverage, static_argnums=2)(boxes, frame, 4)).reshape(4, 4)
    np.testing.assert_allclose(covered, [[1, 1, 0, 0]] * 4)
    whole = np.asarray(coverage(boxes, np.array([[0.0, 0.0, 1.0, 1.0]], np.float32), 4)).reshape(4, 4)
    np.testing.assert_allclose(whole, [[0, 0, 1, 0]] * 2 + [[0] * 4] * 2)


def test_every_grounded_phrase_has_its_box_and_every_picture_a_caption():
    box = Box(0.1, 0.2, 0.3, 0.4)
    item = Item(
        None,
        (("q", "A red circle<p>red circle</p>[0.10, 0.20, 0.30, 0.40]"), ("q", "One circle.")),
        ("grounded_caption", "short_caption"),
    )
    assert grounded_phrases(item) == [("red circle", box)]
    assert caption(item) == "One circle."
