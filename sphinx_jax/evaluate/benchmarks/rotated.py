"""Questions that are asked in every rotation of their choices: MMBench, CCBench."""

from __future__ import annotations

from typing import Any

from sphinx_jax.evaluate.forms.reading import Benchmark, Found, choices_of, parquet_rows, tabled
from sphinx_jax.evaluate.question import Question, letter_of
from sphinx_jax.evaluate.rules import circular


def _rotated(row: dict[str, Any], missing: str) -> Question:
    hint = row.get("hint")
    labels = {"category": row.get("category"), "l2-category": row.get("l2-category") or row.get("L2-category")}
    labels |= {"split": row.get("split")}
    choices = choices_of(row, missing=missing)
    return Question(
        int(row["index"]),
        row["question"],
        row.get("image"),
        letter_of(row["answer"], choices),
        choices,
        "" if hint in (None, missing) else hint,
        labels={name: label for name, label in labels.items() if label},
        same=int(row["index"]) % circular.ROTATION,
    )


def _mmbench_parquet(found: Found) -> list[Question] | None:
    rows = parquet_rows(found, ("index", "question", "answer", "A", "B"))
    return [_rotated(row, missing="nan") for row in rows] or None


def _mmbench_table(found: Found) -> list[Question] | None:
    return tabled(found, ("index", "question", "answer", "A", "B"), lambda _, row: _rotated(row, missing=""))


_FORMS = {"table": _mmbench_table, "parquet": _mmbench_parquet}
MMBENCH = Benchmark("MMBench", _FORMS, {"official": circular.official})
MMBENCH_CN = Benchmark("MMBench in Chinese", _FORMS, {"official": circular.official})
