"""MMMU (Yue et al. 2024): choices and open answers read out of what was said."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from sphinx_jax.evaluate.question import LETTERS, Question, Score, mean, means_by
from sphinx_jax.evaluate.rules import texts

SEED = 42
WORDS = 5  # of a text that may name a choice by its words, at least more than
ENDS = ",.!?;:'"
LEADS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


def official(questions: Sequence[Question], said: Sequence[str]) -> Score:
    """What names no choice is drawn at random, as the public script draws it."""
    draw = random.Random(SEED)
    items: list[float] = []
    drawn: dict[int, int | str] = {}
    for number, (question, text) in enumerate(zip(questions, said, strict=True)):
        text = texts.official(text)
        if not question.choices:
            items.append(float(_open(text, question.answers)))
            continue
        letters = LETTERS[: len(question.choices)]
        read = _choice(text, question.choices)
        if not read:
            read = draw.choice(letters)
            drawn[number] = question.key
        items.append(float(read in question.answers))
    wrong = [0.0 if i in drawn else value for i, value in enumerate(items)]
    parts = {
        f"{label}:{name}": value
        for label in ("domain", "subject")
        for name, value in means_by(questions, items, label).items()
    }
    more = {
        "random_items": list(drawn.values()),
        "score_if_random_is_wrong": mean(wrong),
        "per_item_if_random_is_wrong": wrong,
    }
    return Score("instance-level accuracy", mean(items), items, parts, more)


def _choice(text: str, choices: Sequence[str]) -> str:
    for mark in ENDS:
        text = text.strip(mark)
    text = f" {text} "
    letters = LETTERS[: len(choices)]
    for form in ("({})", " {} "):
        found = {letter: text.rfind(form.format(letter)) for letter in letters if form.format(letter) in text}
        if found:
            return max(found, key=lambda letter: found[letter])
    if len(text.split()) > WORDS:
        lower = text.lower()
        named = zip(letters, choices, strict=True)
        found = {letter: lower.rfind(choice.lower()) for letter, choice in named if choice.lower() in lower}
        if found:
            return max(found, key=lambda letter: found[letter])
    return ""


def _open(text: str, answers: Sequence[str]) -> bool:
    right = [form for answer in answers for form in _forms(answer)]
    for said in _said(text):
        for form in _forms(said):
            if isinstance(form, str):
                if any(isinstance(answer, str) and answer in form for answer in right):
                    return True
            elif form in right:
                return True
    return False


def _said(text: str) -> list[str]:
    """The tails of its lines that tell the answer, and the numbers in them."""
    text = text.strip().strip(".").lower()
    lines = text.split("\n")  # in lower case no sentence begins with a capital
    tails = []
    for number, line in enumerate(lines):
        leads = (*LEADS, "=") if number == len(lines) - 1 else LEADS
        after = [line.split(lead)[-1].strip() for lead in leads if lead in line]
        if after and (tail := min(filter(None, after), key=len, default="")) and tail not in (*ENDS,):
            tails.append(tail)
    tails = tails or [text]
    return tails + [number for tail in tails for form in NUMBERS for number in re.findall(form, tail)]


def _forms(text: str) -> list[str | float]:
    """What is compared: a number, or a text, of one character with a blank beside it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]
