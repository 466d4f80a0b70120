"""A benchmark's score as lines of a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sphinx_jax.evaluate.predictions import Scored


def lines(scored: Scored) -> str:
    """The metric and its number, then the parts, indented as they are nested."""
    score = scored.score
    without = "no number over all parts" if score.parts else "no number"
    number = without if score.score is None else f"{score.score:.4f}"
    answered = scored.asked - len(scored.missing)
    head = f"{score.metric}: {number}  ({answered} of {scored.asked} questions, read from the {scored.form})"
    return "\n".join([head, *_parts(score.parts, 1)])


def _parts(parts: Mapping[str, Any], depth: int) -> Iterator[str]:
    for name, value in parts.items():
        indent = "  " * depth
        if isinstance(value, Mapping):
            yield f"{indent}{name}"
            yield from _parts(value, depth + 1)
        else:
            yield f"{indent}{name:<{40 - 2 * depth}} {value:.4f}"
