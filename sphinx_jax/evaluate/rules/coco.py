"""Average precision of boxes and key points by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sphinx_jax.evaluate.question import BadBenchmark, Score

BOXES = "AP AP50 AP75 AP_small AP_medium AP_large AR_1 AR_10 AR_100 AR_small AR_medium AR_large"
COUNT = 17  # key points of a person
POINTS = "AP AP50 AP75 AP_medium AP_large AR AR50 AR75 AR_medium AR_large"


def average_precision(
    annotations: Path,
    results: Sequence[dict[str, Any]],
    kind: Literal["bbox", "keypoints"],
    categories: Sequence[int] = (),
    pictures: Sequence[int | str] = (),
) -> Score:
    """COCO's scores of results in its own form; -1 where nothing falls into a bin.

    Args:
      pictures: those over which the scores are; default: all that the annotations have.

    Raises BadBenchmark where a result is not in COCO's form, or of another picture or category.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        _check(results, kind, truth, annotations)
        found = truth.loadRes(list(results)) if results else COCO()
        if not results:
            found.dataset = {"images": truth.dataset["images"], "annotations": [], "categories": []}
            found.createIndex()
        judge = COCOeval(truth, found, kind)
        if categories:
            judge.params.catIds = list(categories)
        if pictures:
            judge.params.imgIds = list(pictures)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    names = (BOXES if kind == "bbox" else POINTS).split()
    parts: dict[str, Any] = dict(zip(names, map(float, judge.stats), strict=True))
    precision = judge.eval["precision"]  # (thresholds, recalls, categories, areas, detections)
    by_category = {}
    for number, category in enumerate(judge.params.catIds):
        values = precision[:, :, number, 0, -1]
        by_category[truth.cats[category]["name"]] = float(np.mean(values[values > -1])) if (values > -1).any() else -1.0
    return Score("", parts["AP"], None, parts | {"AP_by_category": by_category})


def _check(results: Sequence[Any], kind: str, truth: Any, annotations: Path) -> None:
    with_boxes = any(isinstance(row, dict) and "bbox" in row for row in results)
    for number, row in enumerate(results, 1):
        if problem := _wrong(row, kind, truth, with_boxes):
            raise BadBenchmark(f"result {number} {problem.format(annotations)}: {str(row)[:80]}")


def _wrong(row: Any, kind: str, truth: Any, with_boxes: bool) -> str:
    """What is wrong with a result, if anything; {} stands for the file of annotations."""
    if not isinstance(row, dict):
        return "is no object"
    for name, known in (("image_id", truth.imgs), ("category_id", truth.cats)):
        value = row.get(name)
        if not isinstance(value, int | str) or value not in known:
            return f"has {name} {value!r}, which {{}} does not have" if name in row else f"has no {name}"
    if not _numbers([row.get("score")]):
        return "has no score that is a number"
    if (kind == "bbox" or with_boxes) and not _numbers(row.get("bbox"), 4):
        return "has no bbox of four numbers x, y, width, height"
    if kind == "keypoints" and not _numbers(row.get("keypoints"), 3 * COUNT):
        return f"has no keypoints of {3 * COUNT} numbers, x, y, v of each of the {COUNT} points"
    return ""


def _numbers(values: Any, count: int = 1) -> bool:
    numbers = isinstance(values, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return numbers and len(values) == count
