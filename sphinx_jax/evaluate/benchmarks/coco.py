"""Objects and people of COCO: boxes of all categories, of people as text, and key points."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sphinx_jax.data.formats.files import read_json
from sphinx_jax.data.tasks import PaddedSquare
from sphinx_jax.evaluate.forms.reading import Benchmark, Found
from sphinx_jax.evaluate.question import BadBenchmark, Question, Score
from sphinx_jax.evaluate.rules import coco, texts
from sphinx_jax.evaluate.rules.boxes import FOUR

PERSON = "person"
_BOX = re.compile(rf"(?:\[|;){FOUR}(?=\]|;)")


def _annotated(*names: str):
    def read(found: Found) -> list[Question] | None:
        for path in found.named(*names):
            held = read_json(path)
            if isinstance(held, dict) and {"images", "annotations", "categories"} <= held.keys():
                people = [c["id"] for c in held["categories"] if c["name"] == PERSON]
                labels = {"file": str(path), "person": people[0] if people else None}
                return [
                    Question(i["id"], "", i["file_name"], size=(i["width"], i["height"]), labels=labels)
                    for i in held["images"]
                ]
        return None

    return read


def people(questions: Sequence[Question], said: Sequence[str]) -> Score:
    """Boxes of people, `[x1,y1,x2,y2;…]` in the padded square, each as sure as the others."""
    file, person = _file(questions), questions[0].labels["person"]
    if person is None:
        raise BadBenchmark(f"{file} has no category {PERSON}")
    results = [
        {"image_id": q.key, "category_id": person, "bbox": box, "score": 1.0}
        for q, text in zip(questions, said, strict=True)
        for box in _boxes(texts.official(text), q.size or (1, 1))
    ]
    score = coco.average_precision(file, results, "bbox", [person])
    metric = f"AP at IoU 0.50:0.95 of the category {PERSON}, every score 1.0"
    return Score(metric, score.score, None, score.parts)


def _boxes(text: str, size: tuple[int, int]) -> list[list[float]]:
    """x, y, width, height in pixels of the boxes in a text, in order."""
    frame = PaddedSquare(*size)
    left, top = frame.offset
    found = []
    for numbers in _BOX.findall(text):
        x1, y1, x2, y2 = (float(number) * frame.side for number in numbers)
        found.append([x1 - left, y1 - top, x2 - x1, y2 - y1])
    return found


def boxes(questions: Sequence[Question], results: Sequence[dict[str, Any]]) -> Score:
    score = coco.average_precision(_file(questions), results, "bbox")
    return Score("AP at IoU 0.50:0.95", score.score, None, score.parts)


def keypoints(questions: Sequence[Question], results: Sequence[dict[str, Any]]) -> Score:
    score = coco.average_precision(_file(questions), results, "keypoints")
    return Score("AP at OKS 0.50:0.95", score.score, None, score.parts)


def _file(questions: Sequence[Question]) -> Path:
    return Path(questions[0].labels["file"])


DETECTION = Benchmark(
    "COCO detection",
    {"release": _annotated("instances_val*.json", "instances_*.json")},
    {"official": people},
    counts={"val2017": 5000},
    results={"official": boxes},
)
KEYPOINTS = Benchmark(
    "COCO key points",
    {"release": _annotated("person_keypoints_val*.json", "person_keypoints_*.json")},
    {},
    counts={"val2017": 5000},
    results={"official": keypoints},
)
