"""Boxes of phrases: the share that overlaps the right one by half."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from sphinx_jax.config import need
from sphinx_jax.data.tasks import PaddedSquare
from sphinx_jax.evaluate.question import Question, Score, means_by
from sphinx_jax.evaluate.rules import documents, exact, texts

ENOUGH = 0.5
NOTHING = (0.0, 0.0, 0.0, 0.0)
_DECIMAL = r"\s*(-?\d*\.?\d+)\s*"
FOUR = ",".join([_DECIMAL] * 4)  # numbers of a box, as a pattern
_BOX = re.compile(rf"\[{FOUR}\]")


def official(questions: Sequence[Question], said: Sequence[str]) -> Score:
    """The first box of plain decimals, moved from the padded square into the picture."""
    overlaps = []
    for question, text in zip(questions, said, strict=True):
        box = read_box(texts.official(text)) or NOTHING
        frame = PaddedSquare(*need(question.size))
        sides = np.array([frame.width, frame.height] * 2, np.float64)
        inside = (np.array(box) * frame.side - np.array(frame.offset * 2)) / sides
        overlaps.append(_iou(inside, np.array(need(question.box)) / sides))
    items = [float(overlap >= ENOUGH) for overlap in overlaps]
    more = {"mean_iou": means_by(questions, overlaps, "split")}
    return Score("accuracy at IoU 0.5", None, items, means_by(questions, items, "split"), more)


def read_box(text: str) -> tuple[float, ...] | None:
    """The first box of plain decimals in a text."""
    found = _BOX.search(text)
    return tuple(map(float, found.groups())) if found else None


def reference(questions: Sequence[Question], said: Sequence[str]) -> Score:
    """As the authors' evaluation does it, in the padded square and in float32."""
    keeps = exact.kept(questions)
    items: list[float | None] = []
    for question, text, keep in zip(questions, said, keeps, strict=True):
        frame = PaddedSquare(*need(question.size))
        box = np.array(_numbers(texts.reference(text)), np.float32) * np.float32(frame.side)
        right = np.array(need(question.box), np.float32) + np.array(frame.offset * 2, np.float32)
        items.append(float(_iou(box, right) >= ENOUGH) if keep else None)
    more = {"dropped_repeats": documents.by_split(questions, keeps)}
    return Score("precision at IoU 0.5", None, items, means_by(questions, items, "split"), more)


def _numbers(text: str) -> tuple[float, ...]:
    found = re.search(r"\[(.*?)\]", text, re.DOTALL)
    inside = found[1] if found else text.partition("]")[0]
    try:
        numbers = tuple(map(float, inside.split(",")))
    except ValueError:
        return NOTHING
    return numbers if len(numbers) == 4 else NOTHING


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
        shared = np.prod(np.maximum(high - low, 0))
        return float(shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared))
