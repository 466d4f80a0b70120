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

    Raises BadBenchmark where results are of other pictures.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        strangers = {r["image_id"] for r in results} - set(truth.getImgIds())
        if strangers:
            raise BadBenchmark(f"the results name picture {min(strangers)}, which {annotations} does not have")
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
