"""Exact match and letters of choices, as each evaluation reads them."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Sequence
from typing import Any

from sphinx_jax.evaluate.question import Question, Rule, Score, mean, means_by
from sphinx_jax.evaluate.rules import texts

LETTERS = "ABCDE"
SEED = 1  # of the letters that the reference draws
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def kept(questions: Sequence[Question]) -> list[bool]:
    """Whether a question is the first of those that are the same."""
    seen: set = set()
    found = []
    for question in questions:
        found.append(question.same is None or question.same not in seen)
        seen.add(question.same)
    return found


def dropped(keeps: Sequence[bool]) -> list[int]:
    return [i for i, keep in enumerate(keeps) if not keep]


def reference(questions: Sequence[Question], said: Sequence[str]) -> Score:
    """As the authors' evaluation does it.

    Where the answer is one of five letters, what is none of them before its first full stop is drawn at random.
    """
    keeps, draw = kept(questions), random.Random(SEED)
    items: list[float | None] = []
    strict: list[float | None] = []
    drawn: dict[int, str] = {}
    for number, (question, text) in enumerate(zip(questions, said, strict=True)):
        if not keeps[number]:
            items.append(None)
            strict.append(None)
            continue
        right, text = question.answers[0], texts.reference(text)
        unread = False
        if _is_letter(right):
            text = text.partition(".")[0]
            if unread := not _is_letter(text):
                text = drawn[number] = draw.choice(LETTERS)
        items.append(float(_bare(text) == _bare(right)))
        strict.append(0.0 if unread else items[-1])
    more: dict[str, Any] = {"dropped_repeats": dropped(keeps)}
    if drawn:
        more |= {"unmatched_letters": list(drawn), "drawn_letters": {str(i): letter for i, letter in drawn.items()}}
        more |= {"score_if_unmatched_is_wrong": mean([x for x in strict if x is not None])}
        more |= {"per_item_if_unmatched_is_wrong": strict}
    return Score("accuracy", mean([x for x in items if x is not None]), items, {}, more)


def _is_letter(text: str) -> bool:
    return len(text) == 1 and text in LETTERS


def _bare(text: str) -> str:
    return text.replace(".", "").strip().lower()


def official(metric: str, right: Callable[[str, Question], bool], *labels: str, percent: bool = False) -> Rule:
    """A protocol that counts answers which are `right`, in parts by these labels."""

    def score(questions: Sequence[Question], said: Sequence[str]) -> Score:
        items = [float(right(texts.official(text), q)) for q, text in zip(questions, said, strict=True)]
        return Score(metric, (100 if percent else 1) * mean(items), items, means_by(questions, items, *labels))

    return score


def folded(text: str) -> str:
    """Lower case without punctuation."""
    return text.lower().translate(_PUNCTUATION)


def same_folded(text: str, question: Question) -> bool:
    return folded(text) == folded(question.answers[0])


def same(text: str, question: Question) -> bool:
    return text.lower() == question.answers[0].strip().lower()


def begins_with_letter(text: str, question: Question) -> bool:
    """The letter alone, or a capital and a full stop at the start."""
    return text.lower() == question.letter.lower() or _stopped_letter(text) == question.letter


def first_character(text: str, question: Question) -> bool:
    return text[:1].lower() == question.letter.lower()


def letter_of_text(text: str, question: Question) -> bool:
    """The letter that begins the text with a full stop, or else all of it."""
    return folded(_stopped_letter(text) or text) == folded(question.letter)


def _stopped_letter(text: str) -> str:
    found = re.match(r"([A-Z])\.", text)
    return found[1] if found else ""
