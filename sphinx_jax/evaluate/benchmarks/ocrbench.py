"""OCRBench (Liu et al. 2023): texts that have to be contained in the answer.  Its fields are from memory."""

from __future__ import annotations

from typing import Any

from sphinx_jax.data.formats.files import read_json
from sphinx_jax.evaluate.forms import files as f
from sphinx_jax.evaluate.forms.reading import Benchmark, Found, parquet_rows, tabled
from sphinx_jax.evaluate.question import Question
from sphinx_jax.evaluate.rules import exact

FORMULAS = "Handwritten Mathematical Expression Recognition"  # of which blanks and case count as they are


def _question(number: int, row: dict[str, Any], kind: str, picture: Any) -> Question:
    return Question(number, row["question"], picture, tuple(f.listed(row["answer"])), labels={"category": kind})


def _parquet(found: Found) -> list[Question] | None:
    rows = parquet_rows(found, ("question", "answer", "question_type"))
    return [_question(i, row, row["question_type"], row.get("image")) for i, row in enumerate(rows)] or None


def _table(found: Found) -> list[Question] | None:
    return tabled(
        found,
        ("question", "answer", "category"),
        lambda number, row: _question(number, row, row["category"], row["image"]),
    )


def _release(found: Found) -> list[Question] | None:
    for path in found.named("OCRBench.json", "FullTest.json"):
        rows = read_json(path)
        return [_question(i, row, row["type"], row["image_path"]) for i, row in enumerate(rows)]
    return None


def _contains(text: str, question: Question) -> bool:
    if question.labels["category"] == FORMULAS:
        bare = text.strip().replace("\n", " ").replace(" ", "")
        return any(answer.strip().replace("\n", " ").replace(" ", "") in bare for answer in question.answers)
    lower = text.lower().strip().replace("\n", " ")
    return any(answer.lower().strip().replace("\n", " ") in lower for answer in question.answers)


OCRBENCH = Benchmark(
    "OCRBench",
    {"release": _release, "parquet": _parquet, "table": _table},
    {"official": exact.official("share of 1000", _contains, "category")},
    counts={"all": 1000},
)
