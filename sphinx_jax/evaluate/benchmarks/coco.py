"""Objects and people of COCO: boxes of all categories, boxes of people and their key points as text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sphinx_jax.config import need
from sphinx_jax.data.formats.files import read_json
from sphinx_jax.data.tasks import COCO_KEYPOINTS, Box, PaddedSquare, Point, Pose, format_answer, instruct, parse_answer
from sphinx_jax.evaluate.forms.reading import Benchmark, Found
from sphinx_jax.evaluate.metrics import oks
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
    score = coco.average_precision(file, results, "bbox", [person], [q.key for q in questions])
    metric = f"AP at IoU 0.50:0.95 of the category {PERSON}, every score 1.0"
    return Score(metric, score.score, None, score.parts)


def _boxes(text: str, size: tuple[int, int]) -> list[list[float]]:
    """x, y, width, height in pixels of the boxes in a text, in order."""
    frame = PaddedSquare(*size)
    left, top = frame.offset
    found = []
    for box in read_boxes(text):
        x1, y1, x2, y2 = (number * frame.side for number in box)
        found.append([x1 - left, y1 - top, x2 - x1, y2 - y1])
    return found


def read_boxes(text: str) -> list[tuple[float, ...]]:
    """Boxes of an answer, as it has them: corners in the padded square."""
    return [tuple(map(float, numbers)) for numbers in _BOX.findall(text)]


def _people(*names: str):
    """A question of each person whose key points are annotated; its box is given, as the instruction takes a region."""

    def read(found: Found) -> list[Question] | None:
        for path in found.named(*names):
            held = read_json(path)
            if not isinstance(held, dict) or not {"images", "annotations", "categories"} <= held.keys():
                continue
            images = {image["id"]: image for image in held["images"]}
            each = (row for row in held["annotations"] if row.get("num_keypoints") and not row.get("iscrowd"))
            return [_person(row, images[row["image_id"]], path) for row in each if row["area"] > 0]
        return None

    return read


def _person(row: dict[str, Any], image: dict[str, Any], path: Path) -> Question:
    size = image["width"], image["height"]
    frame, (x, y, width, height) = PaddedSquare(*size), row["bbox"]
    # annotated boxes may end a hair outside of the picture
    x1, x2 = (min(max(edge, 0.0), size[0]) for edge in (x, x + width))
    y1, y2 = (min(max(edge, 0.0), size[1]) for edge in (y, y + height))
    text = instruct("pose", box=frame.from_pixels(Box(x1, y1, x2, y2)))
    right = format_answer("pose", frame.from_pixels(_pose(row["keypoints"], size)))
    labels = {"file": str(path)}
    same = "picture", row["image_id"]  # a limit is one of pictures
    return Question(row["id"], text, image["file_name"], (right,), size=size, labels=labels, same=same, source=row)


def _pose(numbers: Sequence[float], size: tuple[int, int]) -> Pose:
    """Key points that are hidden (v = 1) are there, those that are not annotated (v = 0) are not."""
    each = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    points = (Point(min(max(x, 0), size[0]), min(max(y, 0), size[1])) if v else None for x, y, v in each)
    return Pose(tuple(points))


def poses(questions: Sequence[Question], said: Sequence[str]) -> Score:
    """Key points of people whose boxes were given, each person as sure as the others.

    COCO scores all 17 points: one that the answer lacks lies in the corner of the picture, far from where it is.
    """
    results, items = [], []
    for question, text in zip(questions, said, strict=True):
        row, frame = question.source, PaddedSquare(*need(question.size))
        found = parse_answer("pose", texts.official(text))
        pose = Pose((None,) * len(COCO_KEYPOINTS)) if found is None else frame.to_pixels(found)
        items.append(oks(pose, _pose(row["keypoints"], need(question.size)), row["area"]))
        if found is not None:
            points = [number for point in pose.points for number in ((point.x, point.y, 1) if point else (0, 0, 0))]
            whose = {"image_id": row["image_id"], "category_id": row["category_id"]}
            results.append(whose | {"keypoints": points, "score": 1.0})
    pictures = list(dict.fromkeys(q.source["image_id"] for q in questions))
    score = coco.average_precision(_file(questions), results, "keypoints", pictures=pictures)
    metric = "AP at OKS 0.50:0.95 of people whose boxes are given, every score 1.0"
    return Score(metric, score.score, items, score.parts)


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
    {"release": _people("person_keypoints_val*.json", "person_keypoints_*.json")},
    {"official": poses},
    counts={"val2017": 6352},  # what estimators that are given the boxes report to have read
    results={"official": keypoints},
)
