"""Questions with one answer: GQA, OCR-VQA, VSR."""

from __future__ import annotations

from typing import Any

from sphinx_jax.data.formats.files import read_json
from sphinx_jax.evaluate.forms.reading import Benchmark, Found, listed, parquet_rows, tabled
from sphinx_jax.evaluate.question import BadBenchmark, Question, one_answer
from sphinx_jax.evaluate.rules import exact

SPLITS = {1: "train", 2: "val", 3: "test"}  # of OCR-VQA


def _one(number: int, text: str, answer: Any, picture: Any, seen: Any = None, **labels: Any) -> Question:
    """`seen`: what tells the picture from others, where it is not its path."""
    same = (picture if seen is None else seen), text
    return Question(number, text, picture, one_answer(answer), labels=labels, same=same)


def _list(found: Found) -> list[Question] | None:
    def one(number: int, row: dict[str, Any]) -> Question:
        same = row["image_path"], row["question"], row["question_id"]
        return Question(number, row["question"], row["image_path"], one_answer(row["gt_answers"]), same=same)

    return listed(found, one)


def _table(found: Found) -> list[Question] | None:
    return tabled(found, ("question", "answer"), lambda i, row: _one(i, row["question"], row["answer"], row["image"]))


def _gqa_release(found: Found) -> list[Question] | None:
    for path in found.named("testdev_balanced_questions.json", "*_questions.json"):
        return [
            _one(i, row["question"], row["answer"], f"{row['imageId']}.jpg", structural=row["types"]["structural"])
            for i, row in enumerate(read_json(path).values())
        ]
    return None


def _gqa_parquet(found: Found) -> list[Question] | None:
    paths = [path for path in found.parquets() if "images" not in path.parent.name]
    pictures = [path for path in found.parquets() if "images" in path.parent.name]
    if not paths and pictures:
        raise BadBenchmark(f"{pictures[0]} has GQA's pictures; the questions are in testdev_balanced_instructions")
    where = {row["id"]: row["image"] for row in found.rows(pictures, ("id", "image"))}
    rows = found.rows(paths, ("imageId", "question", "answer"))
    return [
        _one(
            i,
            row["question"],
            row["answer"],
            where.get(row["imageId"]),
            row["imageId"],
            structural=(row.get("types") or {}).get("structural"),
        )
        for i, row in enumerate(rows)
    ] or None


GQA = Benchmark(
    "GQA",
    {"release": _gqa_release, "parquet": _gqa_parquet, "table": _table, "list": _list},
    {
        "official": exact.official("exact_match (case and punctuation ignored)", exact.same_folded, "structural"),
        "reference": exact.reference,
    },
    counts={"testdev": 12578},
)


def _ocrvqa_release(found: Found) -> list[Question] | None:
    for path in found.named("dataset.json"):
        books = [(name, book) for name, book in read_json(path).items() if SPLITS.get(book["split"]) == "test"]
        pairs = [(n, q, a) for n, book in books for q, a in zip(book["questions"], book["answers"], strict=True)]
        return [_one(i, text, answer, f"images/{name}.jpg", name) for i, (name, text, answer) in enumerate(pairs)]
    return None


def _ocrvqa_parquet(found: Found) -> list[Question] | None:
    rows = parquet_rows(found, ("image_id", "questions", "answers"))
    pairs = [(row, q, a) for row in rows for q, a in zip(row["questions"], row["answers"], strict=True)]
    return [_one(i, q, a, row["image"], row["image_id"]) for i, (row, q, a) in enumerate(pairs)] or None


OCRVQA = Benchmark(
    "OCR-VQA",
    {"release": _ocrvqa_release, "parquet": _ocrvqa_parquet, "table": _table, "list": _list},
    {
        "official": exact.official("accuracy (VLMEvalKit, percent)", exact.same, percent=True),
        "reference": exact.reference,
    },
)


def _vsr_statement(number: int, row: dict[str, Any]) -> Question:
    text = f'Is the following statement "{row["caption"]}" true or false?'
    return _one(number, text, "true" if int(row["label"]) else "false", row["image"], relation=row.get("relation"))


def _vsr_release(found: Found) -> list[Question] | None:
    rows = [row for path in found.named("*.jsonl")[:1] for row in read_json(path)]
    return [_vsr_statement(i, row) for i, row in enumerate(rows)] or None


def _vsr_parquet(found: Found) -> list[Question] | None:
    rows = parquet_rows(found, ("image", "caption", "label"))
    return [_vsr_statement(i, row) for i, row in enumerate(rows)] or None


VSR = Benchmark(
    "VSR", {"release": _vsr_release, "parquet": _vsr_parquet, "list": _list}, {"reference": exact.reference}
)
