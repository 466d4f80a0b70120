"""Open questions with ten answers: VQAv2, OK-VQA, VizWiz, TextVQA."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sphinx_jax.data.formats.files import read_json
from sphinx_jax.evaluate.forms import files as f
from sphinx_jax.evaluate.forms.reading import Benchmark, Form, Found, listed_with_release, parquet_rows, tabled
from sphinx_jax.evaluate.question import BadBenchmark, Question
from sphinx_jax.evaluate.rules import vqa_accuracy

UNTYPED = "none"  # what the converted files of the reference have as the type of a question

PICTURES = {"mscoco": "COCO_{}_{:012d}.jpg", "vizwiz": "VizWiz_{}_{:08d}.jpg"}  # names by split and number


def _question(
    key: Any, text: str, picture: Any, answers: Sequence[Any], question_type: str = UNTYPED, answer_type: Any = None
) -> Question:
    given = tuple(str(a["answer"] if isinstance(a, dict) else a) for a in answers or ())
    labels = {"question_type": question_type} | ({"answer_type": answer_type} if answer_type else {})
    return Question(_number(key), text, picture, given, labels=labels)


def _number(key: Any) -> int | str:
    """A number, or the one in the name of a picture (VizWiz)."""
    if isinstance(key, int):
        return key
    found = re.search(r"(\d+)(?:\.\w+)?$", str(key))
    return int(found[1]) if found else str(key)


def release(*names: str) -> Form:
    """Files of questions and of annotations, whose names fit."""

    def read(found: Found) -> list[Question] | None:
        annotated = _held_out(found.named(*(f"{name}_annotations.json" for name in names)))
        if annotated is None:
            single = found.named(*(f"{name}_questions.json" for name in names))
            if not single or not found.path.is_file():
                return None
            annotated = _held_out(found.beside().named(*(f"{name}_annotations.json" for name in names)))
            if annotated is None:
                raise BadBenchmark(f"{single[0]} has no file of annotations beside it")
        asked = f.named(sorted(annotated.parent.iterdir()), *(f"{name}_questions.json" for name in names))
        asked.sort(key=lambda path: _split(path) != _split(annotated))
        if not asked:
            raise BadBenchmark(f"{annotated} has no file of questions beside it")
        questions, annotations = read_json(asked[0]), read_json(annotated)
        told = {a["question_id"]: a for a in annotations["annotations"]}
        kind = annotations.get("data_subtype", "")
        named = PICTURES.get(annotations.get("data_type", ""), PICTURES["mscoco"])
        found_questions = []
        for q in questions["questions"]:
            if (a := told.get(q["question_id"])) is None:
                raise BadBenchmark(
                    f"{annotated} has no answers to question {q['question_id']}; is it of another split?"
                )
            picture = q["image_id"]
            if isinstance(picture, int):
                picture = named.format(kind, picture)
            types = a.get("question_type") or UNTYPED, a.get("answer_type")
            found_questions.append(_question(q["question_id"], q["question"], picture, a["answers"], *types))
        return found_questions

    return read


def _split(path: Path) -> str:
    """The split in a file's name."""
    found = re.search(r"train|val|test-?dev|test|dev", path.name)
    return found[0] if found else ""


def _held_out(paths: Sequence[Path]) -> Path | None:
    """The first, of another split than training if there is one."""
    return min(paths, key=lambda path: _split(path) == "train", default=None)


def _textvqa(found: Found) -> list[Question] | None:
    paths = found.named("TextVQA_*_val.json")
    return [
        _question(row["question_id"], row["question"], f"{row['image_id']}.jpg", row["answers"])
        for path in paths[:1]
        for row in read_json(path)["data"]
    ] or None


def _vizwiz(found: Found) -> list[Question] | None:
    paths = found.named("val.json")
    return [
        _question(row["image"], row["question"], row["image"], row["answers"], answer_type=row.get("answer_type"))
        for path in paths[:1]
        for row in read_json(path)
    ] or None


def _parquet(found: Found) -> list[Question] | None:
    rows = parquet_rows(found, ("question_id", "question", "answers"))
    return [
        _question(
            row["question_id"],
            row["question"],
            row.get("image"),
            row["answers"],
            row.get("question_type") or UNTYPED,
            row.get("answer_type") or row.get("category"),
        )
        for row in rows
    ] or None


def _table(found: Found) -> list[Question] | None:
    def one(number: int, row: dict[str, Any]) -> Question:
        answers = row.get("answers") or row.get("answer")
        return _question(number, row["question"], row["image"], f.listed(answers) if answers else ())

    return tabled(found, ("question",), one)


def _either(*forms):
    return lambda found: next((questions for form in forms if (questions := form(found))), None)


def _benchmark(title: str, official, *names: str, more=(), counts: Mapping[str, int] | None = None) -> Benchmark:
    read = _either(release(*names), *more)
    forms = {"release": read, "parquet": _parquet, "table": _table, "list": listed_with_release(read, "ten")}
    rules = {"official": official, "reference": vqa_accuracy.reference}
    return Benchmark(title, forms, rules, numbered=("table",), counts=counts)


VQAV2 = _benchmark("VQAv2", vqa_accuracy.public_script, "v2_*", counts={"val": 214354, "test-dev": 107394})
OKVQA = _benchmark(
    "OK-VQA", vqa_accuracy.by_eval_ai("question_type"), "mscoco_*", "OpenEnded_mscoco_*", counts={"val": 5046}
)
VIZWIZ = _benchmark("VizWiz", vqa_accuracy.by_eval_ai("answer_type"), "vizwiz_*", more=(_vizwiz,), counts={"val": 4319})
TEXTVQA = _benchmark("TextVQA", vqa_accuracy.by_eval_ai(), "textvqa_*", more=(_textvqa,), counts={"val": 5000})
