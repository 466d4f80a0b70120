"""BLINK (Fu et al. 2024): choices about one to four pictures, which are shown side by side.

No file of it was at hand: columns of the parquet copy are those that lmms-eval reads; those of the table, the mark
before the choices and the number of questions are from memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sphinx_jax.evaluate.benchmarks.star import names_choice
from sphinx_jax.evaluate.forms.reading import Benchmark, Found, choices_of, tabled
from sphinx_jax.evaluate.question import Question, Score, joined, letter_of, mean, means_by
from sphinx_jax.evaluate.rules import texts

CHOOSE = "Select from the following choices."  # ends a prompt before its choices


def _question(key: int | str, text: str, choices: Sequence[str], answer: str, task: str, picture: Any) -> Question:
    answers = letter_of(str(answer).strip("() "), choices)
    text = text.partition(CHOOSE)[0].strip()
    return Question(key, text, picture, answers, tuple(choices), labels={"task": task})


def _parquet(found: Found) -> list[Question] | None:
    """Those of the validation split, where that is there."""
    paths = found.parquets()
    answered = [path for path in paths if path.name.startswith("val")] or paths
    needs = ("idx", "sub_task", "prompt", "choices", "answer", "image_1")
    return [
        _question(
            row["idx"],
            row["prompt"],
            row["choices"],
            row["answer"],
            row["sub_task"],
            joined(row.get(f"image_{number}") for number in range(1, 5)),
        )
        for row in found.rows(answered, needs)
    ] or None


def _table(found: Found) -> list[Question] | None:
    def one(number: int, row: dict[str, Any]) -> Question:
        return _question(row["index"], row["question"], choices_of(row), row["answer"], row["category"], row["image"])

    return tabled(found, ("index", "question", "A", "answer", "category"), one)


def official(questions: Sequence[Question], said: Sequence[str]) -> Score:
    """The mean of the accuracies of the tasks; that over questions is a part."""
    items = [float(names_choice(texts.official(text), q)) for q, text in zip(questions, said, strict=True)]
    by_task = means_by(questions, items, "task")
    return Score(
        "mean accuracy over tasks", mean(list(by_task.values())), items, by_task | {"over questions": mean(items)}
    )


BLINK = Benchmark("BLINK", {"parquet": _parquet, "table": _table}, {"official": official}, counts={"val": 1901})
