"""Questions with short answers: VQAv2, OK-VQA, TextVQA, DocVQA, ChartQA, GQA, OCR-VQA; with choices: ScienceQA.

The files are JSON and are held whole while they are read; an item has all questions about its picture. Where people
gave several answers, the commonest is learnt, of equally common ones the first. From memory: the fields of all but
VQAv2, OK-VQA and DocVQA, and the names of folders of pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from string import ascii_uppercase
from typing import Any

from sphinx_jax.data.formats.annotated import (
    DAMAGED,
    Annotated,
    Unusable,
    folder,
    gathered,
    grouped,
    indexed,
    picture_in,
    words,
)
from sphinx_jax.data.formats.files import BadData, read_json
from sphinx_jax.data.formats.found import Dropped, Format, Found, Source

TRAINING = 1  # the split of OCR-VQA

Row = Mapping[str, Any]


def commonest(answers: Iterable[Any] | None) -> str:
    """Of texts, or of objects with `answer`; empty where there is none."""
    given = [words(answer["answer"] if isinstance(answer, Mapping) else answer) for answer in answers or ()]
    return Counter(given).most_common(1)[0][0] if given else ""


def _asked(
    rows: Iterable[Any],
    key: str,
    place: Path,
    name: Callable[[Row], Any],
    answer: Callable[[Row], Any],
    question: str = "question",
) -> Iterator[Found | Dropped]:
    """Items of rows that are a question each; `key` tells their pictures apart."""

    def one(rows: list[Row]) -> Found:
        picture = Annotated(picture_in(place, name(rows[0])))
        for row in rows:
            picture.ask("vqa", answer(row), question=words(row[question]))
        return picture.found(rows[0][key], {key: rows[0][key]})

    for picture, asked in grouped(rows, key).items():
        yield Dropped("?", DAMAGED) if picture is None else gathered(picture, one, asked)


def _rows(file: Path, held: Any, keys: Iterable[str], what: str) -> list[Any]:
    """A list whose first row has some keys.  Raises BadData."""
    if not isinstance(held, list) or not held:
        raise BadData(f"{file} has no list of questions; expected {what}")
    lacking = [key for key in keys if not (isinstance(held[0], dict) and key in held[0])]
    if lacking:
        raise BadData(f"{file} has questions without {lacking[0]!r}; expected {what}")
    return held


def _of(file: Path, key: str) -> Any:
    """What an object in a file has under a key; None where it is no object."""
    held = read_json(file)
    return held.get(key) if isinstance(held, dict) else None


def _vqa(source: Source) -> Iterator[Found | Dropped]:
    what = "questions of VQAv2 or OK-VQA"
    name = source.file.name.replace("OpenEnded_", "").replace("_questions", "_annotations")
    beside = source.file.with_name(name)
    asked = _rows(source.file, _of(source.file, "questions"), ("image_id", "question_id", "question"), what)
    if beside == source.file or not beside.exists():
        raise BadData(f"{source.file} has no annotations beside it: {name}")
    told = read_json(beside)
    rows = _rows(beside, told.get("annotations") if isinstance(told, dict) else None, ("question_id", "answers"), what)
    annotations = indexed(rows, "question_id")
    if asked[0]["question_id"] not in annotations:
        raise BadData(f"{beside} has no answers to the first question of {source.file.name}; is it of another split?")
    split = str(told.get("data_subtype") or "train2014")
    yield from _asked(
        asked,
        "image_id",
        folder(source, split, f"images/{split}"),
        lambda row: f"COCO_{split}_{row['image_id']:012d}.jpg",
        lambda row: commonest(annotations[row["question_id"]]["answers"]),
    )


def _textvqa(source: Source) -> Iterator[Found | Dropped]:
    rows = _rows(source.file, _of(source.file, "data"), ("image_id", "question"), "TextVQA")
    place = folder(source, "train_images")
    yield from _asked(
        rows, "image_id", place, lambda row: f"{row['image_id']}.jpg", lambda row: commonest(row.get("answers"))
    )


def _docvqa(source: Source) -> Iterator[Found | Dropped]:
    rows = _rows(source.file, _of(source.file, "data"), ("image", "question"), "DocVQA")
    place = folder(source, "documents", "spdocvqa_images")
    yield from _asked(
        rows, "image", place, lambda row: PurePosixPath(row["image"]).name, lambda row: commonest(row.get("answers"))
    )


def _chartqa(source: Source) -> Iterator[Found | Dropped]:
    rows = _rows(source.file, read_json(source.file), ("imgname", "query", "label"), "ChartQA")
    place = folder(source, "png")
    yield from _asked(
        rows, "imgname", place, lambda row: row["imgname"], lambda row: words(row["label"]), question="query"
    )


def _gqa(source: Source) -> Iterator[Found | Dropped]:
    held = read_json(source.file)
    rows = list(held.values()) if isinstance(held, dict) else None
    rows = _rows(source.file, rows, ("imageId", "question"), "GQA")
    place = folder(source, "images")
    yield from _asked(
        rows, "imageId", place, lambda row: f"{row['imageId']}.jpg", lambda row: words(row.get("answer") or "")
    )


def _objects(file: Path, key: str, what: str) -> dict[str, Any]:
    """An object of objects, of which the first has a key.  Raises BadData."""
    held = read_json(file)
    if not isinstance(held, dict) or not held:
        raise BadData(f"{file} is no object, or an empty one; expected {what}")
    first = next(iter(held.values()))
    if not isinstance(first, dict) or key not in first:
        raise BadData(f"{file} has no {key!r} in its first entry; expected {what}")
    return held


def _ocrvqa(source: Source) -> Iterator[Found | Dropped]:
    books = _objects(source.file, "questions", "dataset.json of OCR-VQA")
    place = folder(source, "images")

    def one(name: str, book: Row) -> Found:
        ending = PurePosixPath(book.get("imageURL") or "").suffix or ".jpg"
        picture = Annotated(picture_in(place, name + ending))
        for question, answer in zip(book["questions"], book["answers"], strict=True):
            picture.ask("vqa", words(answer), question=words(question))
        return picture.found(name, {"imageURL": book.get("imageURL")})

    for name, book in books.items():
        if not isinstance(book, dict) or "split" not in book:
            yield Dropped(name, DAMAGED)
        elif book["split"] == TRAINING:
            yield gathered(name, one, name, book)


def _scienceqa(source: Source) -> Iterator[Found | Dropped]:
    problems = _objects(source.file, "choices", "problems.json of ScienceQA")
    splits = source.file.with_name("pid_splits.json")
    training = _of(splits, "train")
    if not isinstance(training, list):
        raise BadData(f"{splits} has no list 'train'; expected that of ScienceQA")
    place = folder(source, "train", "images/train")

    def one(number: Any) -> Found:
        problem = problems[number]
        if not problem.get("image"):
            raise Unusable("question has no picture")
        picture = Annotated(picture_in(place, f"{number}/{problem['image']}"))
        choices = [words(choice) for choice in problem["choices"]]
        right = range(len(choices)).index(problem["answer"])
        hint = words(problem.get("hint") or "")
        context = {"context": hint} if hint else {}
        question = words(problem["question"])
        picture.ask("multiple_choice", ascii_uppercase[right], question=question, choices=choices, **context)
        return picture.found(number, {name: problem.get(name) for name in ("subject", "topic", "grade")})

    for number in training:
        yield gathered(number, one, number)


VQAV2 = Format("VQAv2", "v2_OpenEnded_mscoco_train2014_questions.json, its annotations beside it", _vqa)
OKVQA = Format("OK-VQA", "OpenEnded_mscoco_train2014_questions.json, its annotations beside it", _vqa)
TEXTVQA = Format("TextVQA", "TextVQA_0.5.1_train.json", _textvqa)
DOCVQA = Format("DocVQA", "train_v1.0.json", _docvqa)
CHARTQA = Format("ChartQA", "train_human.json or train_augmented.json", _chartqa)
GQA = Format("GQA", "train_balanced_questions.json", _gqa)
OCRVQA = Format("OCR-VQA", "dataset.json", _ocrvqa)
SCIENCEQA = Format("ScienceQA", "problems.json, pid_splits.json beside it", _scienceqa)
