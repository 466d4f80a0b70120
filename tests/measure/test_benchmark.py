"""The benchmark beside PyTorch: it measures two sides that compute the same, and refuses others."""

import dataclasses

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from sphinx_jax.config import DecoderConfig
from sphinx_jax.measure.peers import encoders, train

SMALL = DecoderConfig(dim=64, layers=2, heads=2, kv_heads=1, vocab_size=96, multiple_of=32)


@pytest.mark.slow
def test_both_sides_agree_before_they_are_timed(monkeypatch):
    pairs = train.decoder(SMALL, 2, 16, rounds=2)
    assert [pair.name for pair in pairs] == ["forward + backward", "whole step, AdamW"]
    for pair in pairs:
        assert len(pair.ours) == len(pair.theirs) == 2 and min(pair.ours + pair.theirs) > 0
        ratio = min(pair.theirs) / min(pair.ours)
        assert f"{ratio:5.2f} x" in pair.line()
    right = train._same_weights

    def wrong(model, leaves):
        return right(model, {path: leaf * 1.01 for path, leaf in leaves.items()})

    monkeypatch.setattr(train, "_same_weights", wrong)
    with pytest.raises(train.Apart, match="loss"):
        train.decoder(SMALL, 2, 16, rounds=1)


@pytest.mark.slow
def test_encoders_are_timed_where_they_see_the_same(monkeypatch):
    pairs = list(encoders.encoders(2, 1, width=64, layers=2))
    assert [len(pair.theirs) for pair in pairs] == [1, 1, 1, 1]
    right = encoders._ours

    def wrong(*args):
        plan, leaves = right(*args)
        return plan, {path: leaf * 1.1 for path, leaf in leaves.items()}

    monkeypatch.setattr(encoders, "_ours", wrong)
    with pytest.raises(train.Apart, match="CLIP: features differ"):
        next(encoders.encoders(2, 1, width=64, layers=2))


def test_both_sides_give_the_same_answers(tmp_path, monkeypatch):
    from sphinx_jax.measure.peers import generate

    monkeypatch.setattr(generate, "PAIRS", ((20, 1), (20, 4)))
    small = dataclasses.replace(SMALL, max_positions=1024, tied_embeddings=True)
    lines = list(generate.measure(tmp_path, 1, 5, small))
    assert sum(line.endswith("100% of the tokens are the same") for line in lines) == 2, lines
    assert lines[-1].startswith("5 requests at once") and lines[-1].endswith("tokens/s")
