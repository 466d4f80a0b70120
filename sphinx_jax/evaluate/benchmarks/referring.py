"""Phrases and their boxes: RefCOCO, RefCOCO+, RefCOCOg."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sphinx_jax.data.formats.files import read_json, read_pickle
from sphinx_jax.evaluate.forms import files as f
from sphinx_jax.evaluate.forms.reading import Benchmark, Found
from sphinx_jax.evaluate.question import BadBenchmark, Question
from sphinx_jax.evaluate.rules import boxes

SPLITS = ("val", "testA", "testB", "test")


def _numbered(
    phrases: Sequence[tuple[str, str, str, Any, Sequence[float] | None, tuple[int, int] | None]],
) -> list[Question]:
    """(split, phrase, name of the picture, picture, box, size) -> questions, numbered within each split.

    One without a box cannot be scored; a picture that cannot be read is of no size.
    """
    at: dict[str, int] = {}
    questions = []
    for split, phrase, name, picture, box, size in sorted(phrases, key=lambda p: SPLITS.index(p[0])):
        number = at[split] = at.get(split, -1) + 1
        questions.append(
            Question(
                f"{split}:{number}",
                phrase,
                picture,
                box=None if box is None else tuple(map(float, box)),
                size=size,
                labels={"split": split},
                same=(name, phrase, size),
                unfit="" if box else f"{split}:{number}, {phrase!r} in {name}, has no box",
            )
        )
    return questions


def _corners(box: Sequence[float] | None) -> tuple[float, ...] | None:
    if box is None:
        return None
    x, y, width, height = box
    return x, y, x + width, y + height


def _release(refs: Sequence[str]):
    def read(found: Found) -> list[Question] | None:
        paths = found.named(*refs)
        if not paths:
            return None
        beside = paths[0].parent / "instances.json"
        if not beside.is_file():
            raise BadBenchmark(f"{paths[0]} has no instances.json beside it, which has its boxes")
        instances = read_json(beside)
        images = {image["id"]: image for image in instances["images"]}
        boxes_of = {annotation["id"]: annotation["bbox"] for annotation in instances["annotations"]}
        phrases = []
        for ref in read_pickle(paths[0]):
            if ref["split"] not in SPLITS:
                continue
            image, box = images.get(ref["image_id"]), boxes_of.get(ref["ann_id"])
            name = ref["file_name"] if image is None else image["file_name"]
            size = None if image is None else (image["width"], image["height"])
            corners = None if image is None else _corners(box)
            phrases += [(ref["split"], s["sent"], name, name, corners, size) for s in ref["sentences"]]
        return _numbered(phrases)

    return read


def _parquet(found: Found) -> list[Question] | None:
    phrases = []
    for path in found.parquets():
        split = next((s for s in ("testA", "testB", "test", "val") if path.name.startswith(s)), "")
        if not split:
            continue
        for row in found.rows([path], ("image", "answer", "bbox", "file_name"), f.picture_size):
            name = re.sub(r"_\d+(\.\w+)$", r"\1", row["file_name"])  # without the number of the annotation
            box = _corners(row["bbox"])
            phrases += [(split, phrase, name, row["image"], box, row["content"]) for phrase in row["answer"]]
    return _numbered(phrases) or None


def _list(found: Found) -> list[Question] | None:
    phrases = []
    for path in found.lists():
        for row in read_json(path):
            split = row["dataset_name"].rpartition("_")[2]
            size = re.fullmatch(r"height(\d+)_width(\d+)", str(row["question_id"]))
            if split not in SPLITS or size is None:
                raise BadBenchmark(f"{path} has an entry without its split or the size of its picture")
            name = Path(row["image_path"]).name
            sides = int(size[2]), int(size[1])
            phrases.append((split, row["question"], name, row["image_path"], row["gt_answers"], sides))
    return _numbered(phrases) or None


def _benchmark(title: str, *refs: str, counts: dict[str, int]) -> Benchmark:
    forms = {"release": _release(refs), "parquet": _parquet, "list": _list}
    return Benchmark(title, forms, {"official": boxes.official, "reference": boxes.reference}, counts=counts)


REFCOCO = _benchmark("RefCOCO", "refs(unc).p", counts={"val": 10834, "testA": 5657, "testB": 5095})
REFCOCO_PLUS = _benchmark("RefCOCO+", "refs(unc).p", counts={"val": 10758, "testA": 5726, "testB": 4889})
REFCOCOG = _benchmark("RefCOCOg", "refs(umd).p", "refs(google).p", counts={"val": 4896, "test": 9602})
