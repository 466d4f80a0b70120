"""Questions with choices that lie in tables and parquet files alone: MMStar, RealWorldQA.

Their columns are from memory: no file of theirs was at hand.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx_jax.evaluate.forms.reading import Benchmark, Found, choices_of, parquet_rows, tabled
from sphinx_jax.evaluate.question import LETTERS, Question, one_answer
from sphinx_jax.evaluate.rules import exact

_CHOICE = re.compile(r"(?:^|[\n,]\s*)\(?([A-I])[:.)]\s*(.+?)(?=,?\s*\(?[A-I][:.)]\s|$)", re.DOTALL)


def _question(number: int, row: dict[str, Any]) -> Question:
    """Choices in columns of their own, or inside the question."""
    labels = {"category": row["category"]} if row.get("category") else {}
    text, choices = row["question"], choices_of(row, LETTERS)
    if not choices:
        before, mark, after = text.partition("Options:")
        if mark:
            text, choices = before.strip(), tuple(choice.strip() for _, choice in _CHOICE.findall(after.strip()))
    key = row.get("index", number)
    key = int(key) if str(key).isdigit() else key
    return Question(key, text, row.get("image"), one_answer(row["answer"]), choices, labels=labels)


def _parquet(found: Found) -> list[Question] | None:
    return [_question(i, row) for i, row in enumerate(parquet_rows(found, ("question", "answer")))] or None


def _table(found: Found) -> list[Question] | None:
    return tabled(found, ("index", "question", "answer"), _question)


def names_choice(text: str, question: Question) -> bool:
    """The letter, or without choices the words, as RealWorldQA's own rule has it: no stop at the end, any case."""
    text, right = text.strip().rstrip("."), question.answers[0].strip().rstrip(".")
    if len(right) == 1 and right in LETTERS:
        found = re.match(r"\(?([A-I])(?:[).:,\s]|$)|\(?([a-i])(?:[).:]|$)", text)  # "a dog" is no letter
        return found is not None and (found[1] or found[2].upper()) == right
    return text.lower() == right.lower()


def _benchmark(title: str, metric: str, count: int) -> Benchmark:
    rules = {"official": exact.official(metric, names_choice, "category")}
    return Benchmark(title, {"table": _table, "parquet": _parquet}, rules, counts={"all": count})


MMSTAR = _benchmark("MMStar", "accuracy of the letter", 1500)
REALWORLDQA = _benchmark("RealWorldQA", "exact_match", 765)
