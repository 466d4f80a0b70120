"""HallusionBench (Guan et al. 2024): yes or no about figures, in groups.  Its fields are from memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sphinx_jax.data.formats.files import read_json
from sphinx_jax.evaluate.forms.reading import Benchmark, Found, parquet_rows, tabled
from sphinx_jax.evaluate.question import Question, Score, mean, one_answer
from sphinx_jax.evaluate.rules import texts

NEEDS = ("category", "subcategory", "set_id", "figure_id", "question_id", "question")


def _question(row: dict[str, Any], picture: Any) -> Question:
    """Without a picture where the question is about none."""
    right = "".join(one_answer(row["gt_answer"])).strip().lower()
    group = tuple(str(row[name]) for name in ("category", "subcategory", "set_id"))
    key = "_".join((*group, str(row["figure_id"]), str(row["question_id"])))
    labels = {"category": row["category"], "figure": (*group, str(row["figure_id"]))}
    labels["pair"] = (*group, str(row["question_id"]))
    answer = {"1": "yes", "0": "no"}.get(right, right)
    return Question(key, row["question"], picture, (answer,), labels=labels)


def _release(found: Found) -> list[Question] | None:
    for path in found.named("HallusionBench.json"):
        rows = read_json(path)
        return [_question(row, row.get("filename")) for row in rows if str(row.get("visual_input")) != "0"]
    return None


def _parquet(found: Found) -> list[Question] | None:
    rows = parquet_rows(found, (*NEEDS, "gt_answer"))
    return [_question(row, row.get("image")) for row in rows if str(row.get("visual_input")) != "0"] or None


def _table(found: Found) -> list[Question] | None:
    """Rows are named `category_subcategory_set_figure_question`."""

    def one(number: int, row: dict[str, Any]) -> Question:
        ids = row["index"].rsplit("_", 3)
        named = dict(zip(("set_id", "figure_id", "question_id"), ids[1:], strict=True))
        told = {"category": row["category"], "subcategory": row["l2-category"], "question": row["question"]}
        return _question(told | named | {"gt_answer": row["answer"]}, row["image"])

    return tabled(found, ("index", "question", "answer", "category", "l2-category"), one)


def official(questions: Sequence[Question], said: Sequence[str]) -> Score:
    """Shares of questions (aAcc), of figures all of whose questions are right (fAcc), and of questions that are right
    about all figures of their set (qAcc)."""
    read = [_label(texts.official(text)) for text in said]
    items = [float(label == q.answers[0]) for label, q in zip(read, questions, strict=True)]
    parts = {"aAcc": mean(items)}
    for name, label in (("fAcc", "figure"), ("qAcc", "pair")):
        groups: dict[Any, list[float]] = {}
        for question, item in zip(questions, items, strict=True):
            groups.setdefault(question.labels[label], []).append(item)
        parts[name] = mean([float(all(group)) for group in groups.values()])
    return Score("aAcc", parts["aAcc"], items, parts)


def _label(text: str) -> str:
    words = text.lower().replace(".", " ").replace(",", " ").split()
    found = {word for word in words if word in ("yes", "no")}
    return found.pop() if len(found) == 1 else "unknown"


HALLUSIONBENCH = Benchmark(
    "HallusionBench",
    {"release": _release, "parquet": _parquet, "table": _table},
    {"official": official},
    counts={"with a picture": 951},
)
