"""Boxes of phrases: the share that overlaps the right one by half."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from sphinx_jax.config import need
from sphinx_jax.evaluate.question import Question, Score, means_by
from sphinx_jax.evaluate.rules import documents, exact, texts

ENOUGH = 0.5
NOTHING = (0.0, 0.0, 0.0, 0.0)
_DECIMAL = r"\s*(-?\d*\.?\d+)\s*"
_BOX = re.compile(rf"\[{_DECIMAL},{_DECIMAL},{_DECIMAL},{_DECIMAL}\]")


def official(questions: Sequence[Question], said: Sequence[str]) -> Score:
    """The first box of plain decimals, moved from the padded square into the picture."""
    overlaps = []
    for question, text in zip(questions, said, strict=True):
        box = read_box(texts.official(text)) or NOTHING
        width, height = need(question.size)
        longest, left, top = _frame(width, height)
        sides = np.array([width, height, width, height], np.float64)
        inside = (np.array(box) * longest - np.array([left, top, left, top])) / sides
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
        width, height = need(question.size)
        longest, left, top = _frame(width, height)
        box = np.array(_numbers(texts.reference(text)), np.float32) * np.float32(longest)
        right = np.array(need(question.box), np.float32) + np.array([left, top, left, top], np.float32)
        items.append(float(_iou(box, right) >= ENOUGH) if keep else None)
    more = {"dropped_repeats": documents.by_split(questions, keeps)}
    return Score("precision at IoU 0.5", None, items, means_by(questions, items, "split"), more)


def _frame(width: int, height: int) -> tuple[int, int, int]:
    """Side of the padded square, and where the picture begins in it, from the left and from the top."""
    longest = max(width, height)
    return longest, (longest - width) // 2, (longest - height) // 2


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
