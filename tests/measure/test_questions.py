"""Sixteen questions at once are answered as one after the other, and both are timed."""

from conftest import tiny_config

from sphinx_jax.measure import questions


def test_both_ways_answer_the_same():
    lines = list(questions.measure(tiny_config(), rounds=1))
    assert lines[0] == "45 positions of the picture, 2 layers of 32" and " x  (one after the other" in lines[1]
    assert lines[1].endswith("100% of the answers are the same")
