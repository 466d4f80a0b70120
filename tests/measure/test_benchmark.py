"""The benchmark beside PyTorch: it measures two sides that compute the same, and refuses others."""

import os
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from sphinx_jax.config import ConfigError, DecoderConfig
from sphinx_jax.measure.peers import encoders, sides, train

pytestmark = pytest.mark.peers

SMALL = {"dim": 64, "layers": 2, "heads": 2, "kv_heads": 1, "vocab_size": 96, "multiple_of": 32}


def test_what_bounds_the_rest_is_timed_on_both_sides():
    (pair,) = sides.pairs(train.product, 2, 500)
    assert pair.name == "a product of 0.2 GFLOP" and min(pair.ours + pair.theirs) > 0


@pytest.mark.slow
def test_both_sides_agree_before_they_are_timed(monkeypatch):
    pairs = list(sides.pairs(train.decoder, 2, SMALL, 2, 16))
    assert [pair.name for pair in pairs] == ["forward + backward", "whole step, AdamW"]
    for pair in pairs:
        assert len(pair.ours) == len(pair.theirs) == 2 and min(pair.ours + pair.theirs) > 0
        ratio = min(pair.theirs) / min(pair.ours)
        assert f"{ratio:5.2f} x" in pair.line()
    right = train._same_weights

    def wrong(model, leaves):
        return right(model, {path: leaf * 1.01 for path, leaf in leaves.items()})

    monkeypatch.setattr(train, "_same_weights", wrong)
    with pytest.raises(sides.Apart, match="loss"):
        next(train.decoder("theirs", SMALL, 2, 16))


@pytest.mark.slow
def test_encoders_are_timed_where_they_see_the_same(monkeypatch):
    pairs = list(sides.pairs(encoders.encoders, 1, 2, 64, 2))
    assert [len(pair.theirs) for pair in pairs] == [1, 1, 1, 1]
    right = encoders._ours

    def wrong(*args):
        plan, leaves = right(*args)
        return plan, {path: leaf * 1.1 for path, leaf in leaves.items()}

    monkeypatch.setattr(encoders, "_ours", wrong)
    with pytest.raises(sides.Apart, match="CLIP: features differ"):
        next(encoders.encoders("theirs", 2, 64, 2))


def made(side: str, what: str):
    """A side that cannot go on."""
    if side == "theirs":
        print("what a library says")
        raise {"apart": sides.Apart, "error": ConfigError, "end": SystemExit}[what](f"here is {what}")
    yield sides.Work("nothing", lambda: None)


@pytest.mark.parametrize(("what", "kind"), [("apart", sides.Apart), ("error", ConfigError), ("end", ConfigError)])
def test_what_stops_a_side_stops_the_comparison(what, kind, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    with pytest.raises(kind, match="a side of the comparison ended" if what == "end" else f"here is {what}"):
        list(sides.pairs(made, 1, what))


def test_both_sides_give_the_same_answers(tmp_path, monkeypatch):
    from sphinx_jax.measure.peers import generate

    monkeypatch.setattr(generate, "PAIRS", ((20, 1), (20, 4)))
    small = DecoderConfig(**SMALL, max_positions=1024, tied_embeddings=True)
    lines = list(generate.measure(tmp_path, 1, 5, small))
    assert sum(line.endswith("100% of the tokens are the same") for line in lines) == 2, lines
    assert lines[-1].startswith("5 requests at once") and lines[-1].endswith("tokens/s")
