"""Questions with choices: ScienceQA, SEED-Bench, AI2D."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sphinx_jax.data.formats.files import read_json
from sphinx_jax.evaluate.forms import files as f
from sphinx_jax.evaluate.forms.reading import Benchmark, Found, choices_of, listed, parquet_rows, tabled
from sphinx_jax.evaluate.question import LETTERS, BadBenchmark, Question, Score, letter_at, letter_of, there
from sphinx_jax.evaluate.rules import exact


def lettered(found: Found) -> list[Question] | None:
    """The reference's lists, choices inside the questions."""

    def one(number: int, row: dict[str, Any]) -> Question:
        text = row["question"]
        body, _, after = text.partition("\nChoices:\n")
        choices = tuple(re.findall(r"^[A-I]\. (.*)$", after, re.MULTILINE))
        context, _, asked = body.partition("Question:\n")
        hint = context.removeprefix("Context:\n").strip()
        same = row["image_path"], text, row["question_id"]
        labels = {}
        if subject := re.match(r"topic.*_subject(.*)_category", str(row["question_id"])):
            labels["subject"] = subject[1]
        answers = letter_of(row["gt_answers"], choices)
        return Question(number, asked, row["image_path"], answers, choices, hint, labels=labels, same=same)

    return listed(found, one)


def _science(number: int, row: dict[str, Any], picture: Any) -> Question:
    choices = tuple(row["choices"])
    hint = row["hint"] or ""
    labels = {"subject": row["subject"]}
    answers = letter_at(row["answer"], choices)
    return Question(number, row["question"], picture, answers, choices, hint, labels=labels)


def _science_release(found: Found) -> list[Question] | None:
    for path in found.named("problems.json"):
        problems, splits = read_json(path), read_json(path.parent / "pid_splits.json")
        rows = [(name, problems[name]) for name in splits["test"] if problems[name].get("image")]
        folder = path.parent / "images" / "test"
        return [_science(i, row, str(folder / name / row["image"])) for i, (name, row) in enumerate(rows)]
    return None


def _science_parquet(found: Found) -> list[Question] | None:
    rows = parquet_rows(found, ("question", "choices", "answer", "hint", "subject"))
    return [_science(i, row, row.get("image")) for i, row in enumerate(rows)] or None


def table_of_choices(label: str):
    def read(found: Found) -> list[Question] | None:
        def one(number: int, row: dict[str, Any]) -> Question:
            labels = {label: row["category"]} if row.get("category") else {}
            choices, hint = choices_of(row, LETTERS), row.get("hint") or ""
            answers = letter_of(row["answer"], choices)
            return Question(number, row["question"], row["image"], answers, choices, hint, labels=labels)

        return tabled(found, ("question", "A", "answer"), one)

    return read


SCIENCEQA = Benchmark(
    "ScienceQA-IMG",
    {
        "release": _science_release,
        "parquet": _science_parquet,
        "table": table_of_choices("topic"),
        "list": lettered,
    },
    {
        "official": exact.official("exact_match", exact.begins_with_letter, "subject"),
        "reference": exact.reference,
    },
    counts={"test": 2017},
)


def _seed(row: dict[str, Any], names: dict[int, str], picture: Any) -> Question:
    choices = tuple(row[f"choice_{letter}"] for letter in "abcd")
    key, kind = str(row["question_id"]), row["question_type_id"]
    labels = {"category": names.get(kind, str(kind))}
    same = row["data_id"], row["question"], key
    answers = letter_of(row["answer"], choices)
    return Question(key, row["question"], picture, answers, choices, labels=labels, same=same)


# the image part of SEED-Bench, by the numbers that its release gives the kinds
SEED_KINDS = dict(
    enumerate(
        (
            "Scene Understanding",
            "Instance Identity",
            "Instance Attributes",
            "Instance Location",
            "Instances Counting",
            "Spatial Relation",
            "Instance Interaction",
            "Visual Reasoning",
            "Text Understanding",
        ),
        1,
    )
)


def _seed_release(found: Found) -> list[Question] | None:
    for path in found.named("SEED-Bench.json", "SEED-Bench*.json"):
        if f.is_list(path):
            continue
        held = read_json(path)
        names = {number: name for name, number in held["question_type"].items()}
        folder = path.parent / "SEED-Bench-image"
        rows = [row for row in held["questions"] if row.get("data_type", "image") == "image"]
        return [_seed(row, names, str(folder / row["data_id"])) for row in rows]
    return None


def _seed_parquet(found: Found) -> list[Question] | None:
    rows = parquet_rows(found, ("question", "choice_a", "answer", "question_id", "data_type"))
    images = [row for row in rows if row["data_type"] == "image"]
    return [_seed(row, SEED_KINDS, row.get("image")) for row in images] or None


def _seed_list(found: Found) -> list[Question] | None:
    rows = [row for path in found.lists() for row in read_json(path)]
    numbered = lettered(found)
    if numbered is None:
        return None
    return [
        Question(str(row["question_id"]), q.text, q.picture, q.answers, q.choices, q.hint, same=q.same)
        for q, row in zip(numbered, rows, strict=True)
    ]


SEED = Benchmark(
    "SEED-Bench",
    {
        "release": _seed_release,
        "parquet": _seed_parquet,
        "table": table_of_choices("category"),
        "list": _seed_list,
    },
    {
        "official": exact.official("accuracy (first character)", exact.first_character, "category"),
        "reference": exact.reference,
    },
    numbered=("table",),
    counts={"image": 14233},
)


def _diagram(
    number: int, text: str, choices: tuple[str, ...], letter: tuple[str, ...], picture: Any, **named: Any
) -> Question:
    """`answers`: the letter, and the text of its choice; none where there is no letter."""
    answers = (*letter, choices[LETTERS.index(letter[0])]) if letter else ()
    same = picture, text, choices, named.get("name", number)
    return Question(number, text, picture, answers, choices, same=same)


def _ai2d_release(found: Found) -> list[Question] | None:
    paths = {path.name.removesuffix(".json"): path for path in found.named("questions/*.json")}
    if not paths:
        return None
    listed_ids = found.named("ai2d_test_ids.csv")
    if not listed_ids:
        found.notes.append(
            f"{found.path} has no ai2d_test_ids.csv, which names the pictures of the test split in their order: the "
            "questions here are of all pictures, and their keys, numbers in that order, are others"
        )
    tested = listed_ids[0].read_text().split() if listed_ids else [Path(name).stem for name in paths]
    by_picture = {}
    for name in tested:
        path = next((path for picture, path in paths.items() if Path(picture).stem == name), None)
        if path is None:
            raise BadBenchmark(f"AI2D has no questions about picture {name}, which its list of test pictures names")
        held = read_json(path)
        by_picture[held["imageName"]] = (path.parent.parent / "images" / held["imageName"], held["questions"])
    asked = [
        (int(row["questionId"].rpartition("-")[2]), place, name, text, row)
        for place, (name, (_, rows)) in enumerate(by_picture.items())
        for text, row in rows.items()
    ]
    # the reference's list takes the first question of each picture, then the second
    return [
        _diagram(
            i,
            text,
            tuple(row["answerTexts"]),
            letter_at(row["correctAnswer"], row["answerTexts"]),
            str(by_picture[name][0]),
            name=row["questionId"],
        )
        for i, (_, _, name, text, row) in enumerate(sorted(asked, key=lambda x: x[:2]))
    ]


def _ai2d_parquet(found: Found) -> list[Question] | None:
    rows = parquet_rows(found, ("question", "options", "answer"))
    return [
        _diagram(i, row["question"], tuple(row["options"]), letter_at(row["answer"], row["options"]), row.get("image"))
        for i, row in enumerate(rows)
    ] or None


def _ai2d_table(found: Found) -> list[Question] | None:
    def one(number: int, row: dict[str, Any]) -> Question:
        choices = choices_of(row)
        return _diagram(number, row["question"], choices, letter_of(row["answer"], choices), row["image"])

    return tabled(found, ("question", "A", "answer"), one)


def _ai2d_list(found: Found) -> list[Question] | None:
    """The question and its first choice are one line there, and the right choice is a text."""

    def one(number: int, row: dict[str, Any]) -> Question:
        asked, mark, first = row["question"].partition("?")
        first, *others = first.split("\n")
        choices, right = (first, *others), str(row["gt_answers"])
        letter = LETTERS[choices.index(right)] if right in choices else "none"
        same = row["image_path"], row["question"], row["question_id"]
        answers = (letter, right) if there(row["gt_answers"]) else ()
        return Question(number, asked + mark, row["image_path"], answers, choices, same=same)

    return listed(found, one)


def _by_text(questions: Sequence[Question], said: Sequence[str]) -> Score:
    """Protocol reference compares with the text of the right choice."""
    return exact.reference([dataclasses.replace(q, answers=q.answers[1:]) for q in questions], said)


AI2D = Benchmark(
    "AI2D",
    {"release": _ai2d_release, "parquet": _ai2d_parquet, "table": _ai2d_table, "list": _ai2d_list},
    {"official": exact.official("exact_match of the letter", exact.letter_of_text), "reference": _by_text},
    counts={"test": 3088},
)
