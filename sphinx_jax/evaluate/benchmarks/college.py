"""Questions of college exams: MMMU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx_jax.data.formats.files import read_json
from sphinx_jax.evaluate.benchmarks.choices import lettered
from sphinx_jax.evaluate.forms import files as f
from sphinx_jax.evaluate.forms.reading import Benchmark, Found, choices_of, tabled
from sphinx_jax.evaluate.question import LETTERS, Question, joined, letter_of
from sphinx_jax.evaluate.rules import mmmu

# of the subjects of MMMU, those of each domain
DOMAINS = {
    "Art and Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health and Medicine": (
        "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy Public_Health"
    ),
    "Humanities and Social Science": "History Literature Sociology Psychology",
    "Tech and Engineering": (
        "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power Materials "
        "Mechanical_Engineering"
    ),
}
_DOMAIN_OF = {subject: domain for domain, subjects in DOMAINS.items() for subject in subjects.split()}


def _college(name: str, text: str, choices: tuple[str, ...], answers: tuple[str, ...], picture: Any) -> Question:
    subject = re.sub(r"^(validation|dev|test)_|_\d+$", "", name)
    if choices:
        answers = tuple(letter for answer in answers for letter in letter_of(answer, choices))
    labels = {"subject": subject} | ({"domain": _DOMAIN_OF[subject]} if subject in _DOMAIN_OF else {})
    return Question(name, text, picture, answers, choices, labels=labels)


def _mmmu_parquet(found: Found) -> list[Question] | None:
    paths = found.parquets()
    together = [path for path in paths if path.parent.name == "lmms-lab"]
    rows = found.rows(together or paths, ("id", "question", "options", "answer"))
    return [
        _college(
            row["id"],
            row["question"],
            tuple(f.listed(row["options"])),
            tuple(f.listed(row["answer"])),
            joined(row.get(f"image_{number}") for number in range(1, 8)),
        )
        for row in rows
    ] or None


def _mmmu_list(found: Found) -> list[Question] | None:
    """The reference's list, where a picture's name is the question's own."""
    rows = [row for path in found.lists() for row in read_json(path)]
    asked = lettered(found) or []
    return [
        _college(Path(row["image_path"]).stem, q.text, q.choices, tuple(f.listed(row["gt_answers"])), q.picture)
        for q, row in zip(asked, rows, strict=True)
    ] or None


def _mmmu_table(found: Found) -> list[Question] | None:
    def one(number: int, row: dict[str, Any]) -> Question:
        answers = tuple(f.listed(row["answer"]))
        return _college(row["id"], row["question"], choices_of(row, LETTERS), answers, row["image"])

    return tabled(found, ("id", "question", "answer"), one)


MMMU = Benchmark(
    "MMMU",
    {"parquet": _mmmu_parquet, "table": _mmmu_table, "list": _mmmu_list},
    {"official": mmmu.official},
    counts={"val": 900},
)
