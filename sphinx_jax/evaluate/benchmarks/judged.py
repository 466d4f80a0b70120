"""Benchmarks that a judge scores, to whose own programs the answers go: MM-Vet, LLaVA-Bench (in the wild), MathVista.

No file of theirs was at hand: fields are those that the programs of their authors and lmms-eval read; where pictures
lie and the numbers of questions are from memory.  Tables of VLMEvalKit are not read: they lack what the judges tell
questions apart by.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sphinx_jax.data.formats.files import read_json
from sphinx_jax.evaluate.forms.reading import Benchmark, ForJudge, Found, parquet_rows
from sphinx_jax.evaluate.question import InTable, Question
from sphinx_jax.evaluate.rules import texts


def _vet_release(found: Found) -> list[Question] | None:
    for path in found.named("mm-vet.json"):
        rows: dict[str, dict[str, Any]] = read_json(path)
        folder = path.parent / "images"
        return [
            Question(name, row["question"], str(folder / row["imagename"]), (row["answer"],))
            for name, row in rows.items()
        ]
    return None


def _vet_parquet(found: Found) -> list[Question] | None:
    rows = parquet_rows(found, ("question_id", "question", "answer", "image"))
    return [Question(row["question_id"], row["question"], row["image"], (row["answer"],)) for row in rows] or None


def _vet_file(questions: Sequence[Question], said: Mapping[int | str, str], model: str) -> bytes:
    """{"v1_0": answer}"""
    answered = {q.key: texts.official(said[q.key]) for q in questions if q.key in said}
    return json.dumps(answered, indent=1).encode()


MMVET = Benchmark(
    "MM-Vet",
    {"release": _vet_release, "parquet": _vet_parquet},
    {},
    counts={"all": 218},
    for_judge=ForJudge("mm-vet_answers.json", _vet_file),
)


def _wild(rows: Iterable[tuple[Any, str, Any]]) -> list[Question] | None:
    return [Question(key, text, picture) for key, text, picture in rows] or None


def _wild_release(found: Found) -> list[Question] | None:
    """Contexts and the answers to compare with, which lie beside, are the judge's to read."""
    for path in found.named("questions.jsonl"):
        folder = path.parent / "images"
        return _wild((row["question_id"], row["text"], str(folder / row["image"])) for row in read_json(path))
    return None


def _wild_parquet(found: Found) -> list[Question] | None:
    rows = parquet_rows(found, ("question_id", "question", "image"))
    return _wild((row["question_id"], row["question"], row["image"]) for row in rows)


def _wild_file(questions: Sequence[Question], said: Mapping[int | str, str], model: str) -> bytes:
    """A line for every question, empty where it has no answer: the judge pairs lines by their number."""
    lines = []
    for question in questions:
        text = texts.official(said.get(question.key, ""))
        name = hashlib.sha256(json.dumps([model, question.key, text]).encode()).hexdigest()[:22]
        told = {"question_id": question.key, "prompt": question.text, "text": text}
        lines.append(json.dumps(told | {"answer_id": name, "model_id": model, "metadata": {}}) + "\n")
    return "".join(lines).encode()


LLAVA_BENCH = Benchmark(
    "LLaVA-Bench (in the wild)",
    {"release": _wild_release, "parquet": _wild_parquet},
    {},
    counts={"all": 60},
    for_judge=ForJudge("answers.jsonl", _wild_file),
)


def _vista(name: str, row: dict[str, Any], query: str, picture: Any) -> Question:
    told = {column: value for column, value in row.items() if not isinstance(value, InTable)}
    answers = () if row.get("answer") is None else (str(row["answer"]),)
    choices = tuple(map(str, row["choices"] or ()))
    return Question(name, query, picture, answers, choices, source=told | {"pid": name, "query": query})


def _vista_release(found: Found) -> list[Question] | None:
    """Queries stand in the problems, or in a file of their own beside."""
    for path in found.named("testmini.json", "annot_testmini.json"):
        rows, beside = read_json(path), path.parent / "query.json"
        queries = read_json(beside) if beside.is_file() else {}
        return [
            _vista(name, row, row["query"] if "query" in row else queries[name], str(path.parent / row["image"]))
            for name, row in rows.items()
        ]
    return None


def _vista_parquet(found: Found) -> list[Question] | None:
    """Of the small test split, which has answers, where that is there."""
    paths = found.parquets()
    small = [path for path in paths if path.name.startswith("testmini")] or paths
    needs = ("pid", "question", "query", "choices", "question_type", "answer_type", "decoded_image")
    rows = found.rows(small, needs)
    return [_vista(str(row["pid"]), row, row["query"], row["decoded_image"]) for row in rows] or None


def _vista_file(questions: Sequence[Question], said: Mapping[int | str, str], model: str) -> bytes:
    """{pid: the problem, and the response to it}"""
    answered = {q.key: {**q.source, "response": texts.official(said[q.key])} for q in questions if q.key in said}
    return json.dumps(answered, indent=1).encode()


MATHVISTA = Benchmark(
    "MathVista",
    {"release": _vista_release, "parquet": _vista_parquet},
    {},
    counts={"testmini": 1000},
    for_judge=ForJudge("responses.json", _vista_file),
)
