"""The loss on held-out data while a stage trains, and the checkpoint that it chooses."""

import dataclasses
import io
import json
import math
import os
import signal

import jax
import numpy as np
import pytest
from conftest import DATA, born, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sphinx_jax.checkpoint import store
from sphinx_jax.command import Stopped
from sphinx_jax.config import ConfigError
from sphinx_jax.data.conversation import Item
from sphinx_jax.data.rows import Shape, Source
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.model.blueprint import blueprint
from sphinx_jax.recipe.runner import parse
from sphinx_jax.report.plots import held_out as curve
from sphinx_jax.report.plots import loss_figure
from sphinx_jax.train import loop
from sphinx_jax.train.features import cache_features
from sphinx_jax.train.held_out import HeldOut, look, make_sums
from sphinx_jax.train.history import read_history
from sphinx_jax.train.settings import TrainStage
from sphinx_jax.train.step import TrainState

TOKENIZER = load_tokenizer(DATA / "tokenizer.model")
TEXT = tiny_config(views=None, clip=None, convnext=None, dinov2=None, blip2=None, qformer=None)


@pytest.mark.parametrize("size", [2, 3, 6])
def test_the_loss_is_that_of_the_same_items_whatever_the_batch(size):
    """Beside logits of one row at a time, without padding rows, in float64."""
    items = [Item(None, [(f"Say {n}.", f"{n} and {n + 1}"), ("And?", "no" * n)], id=str(n)) for n in range(1, 9)]
    model, shape = blueprint(TEXT).bind(born(TEXT)), Shape(160, turns=1)
    state = TrainState(born(TEXT), None, {})
    place, sums = jax.numpy.asarray, make_sums(TEXT)

    def held(name: str, these: list[Item], size: int = size) -> HeldOut:
        return HeldOut(Source(name, these), TOKENIZER, shape, size, items=5)

    total, count = 0.0, 0
    rows = [row for batch in held("a", items, 5).batches(0, 1) for row in zip(*batch.values(), strict=True)]
    assert len(rows) == 5
    for row in rows:
        row = dict(zip(next(held("a", items, 5).batches(0, 1)), row, strict=True))
        logits = np.asarray(model.logits(jax.numpy.asarray(row["tokens"][None]))[0], np.float64)[:-1]
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), row["tokens"][1:]]
        total, count = total + losses[row["loss_mask"][1:]].sum(), count + row["loss_mask"][1:].sum()
    found = look([held("a", items)], sums, 0, 1, state, place)
    assert found["held_out/loss"] == pytest.approx(total / count, rel=1e-5)
    both = look([held("a", items), held("b", items[:1])], sums, 0, 1, state, place)
    assert both["held_out/a"] == found["held_out/loss"]
    assert both["held_out/loss"] == pytest.approx((both["held_out/a"] + both["held_out/b"]) / 2)
    broken = [Item(None, [("word " * 200, "yes")])]
    rest = look([held("a", items), held("broken", broken)], sums, 0, 1, state, place)
    assert rest["held_out/loss"] == found["held_out/loss"] and "held_out/broken" not in rest
    assert math.isnan(look([held("broken", broken)], sums, 0, 1, state, place)["held_out/loss"])


def test_items_without_a_wanted_task_need_no_features(tmp_path):
    config = tiny_config()
    picture = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(picture, "PNG")
    tasks = ["caption", "vqa", "vqa", "caption", "vqa"]
    items = [Item(picture.getvalue(), (("What?", "red"),), (task,), id=str(i)) for i, task in enumerate(tasks)]
    source = Source("mine", items, task_weights={"caption": 0.0})
    only = source.eligible[source.spread(3)]
    assert only.tolist() == [1, 2, 4]
    cached = cache_features(tmp_path, items, born(config), config, "encoding", batch=2, only=only)
    held = HeldOut(dataclasses.replace(source, features=cached), TOKENIZER, Shape(160, 32, turns=1), size=2, items=3)
    learnt = [row.any() for batch in held.batches(0, 1) for row in batch["loss_mask"]]
    assert learnt == [True, True, True, False]


class _Tokens:
    """The loop's collaborators, as small as they get: a state that is its step, held-out losses by step."""

    def __init__(self, folder, mesh, losses, monkeypatch):
        self.folder, self.mesh, self.losses = folder, mesh, losses

        def save(folder, leaves, config, tokenizer, recipe, **_):
            folder.mkdir(parents=True, exist_ok=True)
            return lambda: (folder / store.RECIPE).write_text(json.dumps(recipe))

        monkeypatch.setattr(loop.store, "save_async", save)

    def run(self, until: int, softly: bool = False) -> None:
        """To the end, or until the process is killed, or `softly` told to leave."""

        def begin(found):
            return TrainState({}, 0 if found is None else int(found.name), {})

        def step(state, batches, rate):
            if state.optimizer == until:
                if not softly:
                    raise KeyboardInterrupt
                os.kill(os.getpid(), signal.SIGTERM)
            return TrainState({}, state.optimizer + 1, {}), {"loss": 1.0, "norm": 1.0, "finite": True}

        job = loop.TrainJob(
            "stage",
            self.folder,
            loop.LoopSettings(len(self.losses), 1, save_every=2, keep="best", evaluate_every=1),
            begin,
            step,
            lambda step: 0.1,
            lambda start: iter(lambda: {"text": {"tokens": np.zeros((1, 1))}}, None),
            TEXT,
            None,
            self.mesh,
            recipe={"settings": {"keep": "best"}},
            throughput=loop.Throughput(1, 1.0, 1.0),
            held_out=lambda state, place: {"held_out/loss": self.losses[state.optimizer - 1]},
            quiet=True,
        )
        loop.run(job)


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0, math.nan]), min_size=1, max_size=7),
    st.integers(0, 6),
    st.booleans(),
)
def test_the_newest_and_the_best_stay_also_where_a_run_is_cut(tmp_path_factory, mesh, losses, cut, softly):
    folder = tmp_path_factory.mktemp("best")
    with pytest.MonkeyPatch.context() as patch:
        job = _Tokens(folder, mesh, losses, patch)
        if cut < len(losses):
            with pytest.raises(Stopped if softly else KeyboardInterrupt):
                job.run(cut, softly)
        job.run(len(losses))
    finite = [loss for loss in losses if loss == loss]
    best = max(n for n, loss in enumerate(losses, 1) if loss == min(finite)) if finite else len(losses)
    kept = {int(path.name) for path in (folder / "checkpoints").iterdir()}
    assert kept == {best, len(losses)}
    assert store.newest(folder / "checkpoints").name == str(len(losses))
    assert store.chosen(folder / "checkpoints").name == store.chosen_in(folder).name == str(best)
    looked = {row["step"]: row["held_out/loss"] for row in read_history(folder)}
    np.testing.assert_array_equal([looked[n] for n in range(1, len(losses) + 1)], losses)


def test_keeping_the_best_needs_something_to_tell_it_by():
    with pytest.raises(ConfigError, match="evaluate_every"):
        TrainStage("fresh", steps=2, text_batch=2, keep="best")


def test_a_split_that_is_not_there_is_told_before_the_run():
    stage = {"kind": "train", "start": "fresh", "steps": 2, "domains": {"*": 1.0}, "evaluate_every": 1}
    values = {"model": TEXT, "data": {"playground": None, "meta": {"train": "list.yaml"}}, "stages": ("tune",)}
    with pytest.raises(ConfigError, match="stage.tune.held_out 'validation' is not in data.meta, which has train"):
        parse(values | {"stage": {"tune": stage}})
    parse(values | {"stage": {"tune": stage | {"held_out": "train"}}})


def test_the_report_draws_what_was_looked_at():
    history = [{"step": n, "loss": 3.0 / n, "seconds": n} for n in range(1, 9)]
    plain = loss_figure({"tune": history})
    for n in (2, 4, 8):
        history[n - 1]["held_out/loss"] = math.nan if n == 4 else 2.0 / n
    steps, losses = curve(history)
    assert steps.tolist() == [2, 4, 8] and losses[[0, 2]].tolist() == [1, 0.25] and np.isnan(losses[1])
    assert curve(history[:1]) is None and loss_figure({"tune": history}) != plain
