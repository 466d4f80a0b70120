"""MMBench (Liu et al. 2023): a question counts where it is right in every rotation of its choices."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sphinx_jax.evaluate.question import Question, Score, mean, means_by
from sphinx_jax.evaluate.rules import texts

LETTERS = "ABCDE"
ROTATION = 1_000_000  # between the numbers of a question and of its next rotation
MOST_WORDS = 3  # of an answer in which the word A is the letter
FORMS = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")


def official(questions: Sequence[Question], said: Sequence[str]) -> Score:
    """By static matching, without a judge; a question that lacks one of its rotations is left out.

    Where none has a rotation (CCBench) each counts for itself.
    """
    groups: dict[int, list[int]] = {}
    for number, question in enumerate(questions):
        groups.setdefault(int(question.key) % ROTATION, []).append(number)
    right = [_is_right(texts.official(text), q) for q, text in zip(questions, said, strict=True)]
    turned = any(int(q.key) >= ROTATION for q in questions)
    items = [
        float(all(right[i] for i in group)) if not turned or len(group) == len(questions[group[0]].choices) else None
        for group in groups.values()
    ]
    firsts = [questions[group[0]] for group in groups.values()]
    parts = {
        f"{label}:{name}": value
        for label in ("category", "l2-category")
        for name, value in means_by(firsts, items, label).items()
    }
    metric = "circular accuracy (static matching)" if turned else "accuracy (static matching)"
    score = mean([item for item in items if item is not None])
    return Score(metric, score, items, parts, {"per_item_key": list(groups)})


def _is_right(text: str, question: Question) -> bool:
    found = _static(text, question.choices)
    return (found or _ranked(text, LETTERS[: len(question.choices)])) == question.letter


def _static(text: str, choices: Sequence[str]) -> str:
    words = text.split()
    alone = [letter for letter in LETTERS if letter in words]
    if len(alone) == 1 and not (alone == ["A"] and len(words) > MOST_WORDS):
        return alone[0]
    for form in FORMS:
        formed = [letter for letter in LETTERS if form.format(letter) in words]
        if len(formed) == 1:
            return formed[0]
    held = [
        letter for letter, choice in zip(LETTERS, choices, strict=False) if choice and choice.lower() in text.lower()
    ]
    return held[0] if len(held) == 1 else ""


def _ranked(text: str, letters: str) -> str:
    """The letter that is written most like an answer, and of several the last."""
    one = f"[{letters}]"
    forms = (
        (10, rf"^({one})(?![A-Za-z])"),
        (9, rf"(?<![A-Za-z])({one})$"),
        (7, rf"(?:answer|option|choice)(?: is|:)?:?\s*\(?({one})(?![A-Za-z])"),
        (6, rf"\(({one})\)"),
        (5, rf"({one})\."),
        (4, rf"({one}):"),
        (3, rf"({one})\)"),
        (2, rf"({one}) "),
        (0, rf"({one})"),
    )
    found = [(rank, match.start(1), match[1]) for rank, form in forms for match in re.finditer(form, text)]
    return max(found, default=(0, 0, ""))[2]
