"""COCO (Lin et al. 2014): captions, boxes by category and key points of people; CrowdPose (Li et al. 2019).

A file is one JSON object, of hundreds of MB for train2017, and is held whole while it is read. Regions of crowds
(`iscrowd`) name no one and are left out of boxes and poses; the others of their category stay. CrowdPose's order of
key points, where its file does not name them, is that of other public readers; it has no nose, eyes and ears, and its
head and neck have no place among COCO's 17. From memory: the folder of CrowdPose's pictures, `images`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sphinx_jax.data.formats.annotated import (
    DAMAGED,
    UNLISTED,
    Annotated,
    corners,
    folder,
    gathered,
    grouped,
    picture_in,
    words,
)
from sphinx_jax.data.formats.files import BadData, read_json
from sphinx_jax.data.formats.found import Dropped, Format, Found, Reader, Source
from sphinx_jax.data.tasks import COCO_KEYPOINTS, Box, Point, Pose

CROWDPOSE_KEYPOINTS = (
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
    "head",
    "neck",
)

# of COCO's 80 categories, those whose plural no rule gives
_PLURALS = {
    "broccoli": "broccoli",
    "knife": "knives",
    "mouse": "mice",
    "person": "people",
    "scissors": "scissors",
    "sheep": "sheep",
    "skis": "skis",
}


def plural(name: str) -> str:
    """`people` of person, `wine glasses` of wine glass."""
    if name in _PLURALS:
        return _PLURALS[name]
    if re.search(r"[^aeiou]y$", name):
        return name[:-1] + "ies"
    return name + ("es" if name.endswith(("s", "x", "z", "ch", "sh")) else "s")


# one picture's record and annotations, and its path -> what is found
Gather = Callable[[dict[str, Any], list[dict[str, Any]], Path], Found]


def load(file: Path, key: str, what: str) -> dict[str, Any]:
    """The object of a file of COCO's form whose annotations have a key.  Raises BadData."""
    held = read_json(file)
    if not isinstance(held, dict) or not all(isinstance(held.get(name), list) for name in ("images", "annotations")):
        raise BadData(f"{file} has no images and annotations; expected {what}")
    first = next((row for row in held["annotations"] if isinstance(row, dict)), {key: None})
    if key not in first:
        raise BadData(f"{file} has annotations without {key!r}; expected {what}")
    return held


def categories(held: dict[str, Any], file: Path, what: str) -> dict[Any, str]:
    """The names of categories by their numbers.  Raises BadData."""
    try:
        return {row["id"]: words(row["name"]) for row in held["categories"]}
    except (LookupError, TypeError):
        raise BadData(f"{file} has no categories with id and name; expected {what}") from None


def by_picture(source: Source, held: dict[str, Any], gather: Gather, *usual: str) -> Iterator[Found | Dropped]:
    """What `gather` makes of each picture of the list.

    Pictures lie in the folder that the file's name ends in (`train2017`), or in one of the usual ones, unless their
    own names have folders.
    """
    split = source.file.stem.rpartition("_")[2]
    root = folder(source)
    place = folder(source, split, f"images/{split}", *usual)
    rows = grouped(held["annotations"], "image_id")

    def one(image: dict[str, Any]) -> Found:
        own, name = rows.pop(image["id"], []), image["file_name"]
        return gather(image, own, picture_in(root if "/" in words(name) else place, name))

    for number, image in enumerate(held["images"]):
        name = image.get("file_name") if isinstance(image, dict) else None
        yield gathered(name or f"picture {number}", one, image)
    for key in rows:
        yield Dropped("?" if key is None else str(key), DAMAGED if key is None else UNLISTED)


def annotated(image: dict[str, Any], path: Path) -> Annotated:
    return Annotated(path, (image.get("width"), image.get("height")))


def _captions(source: Source) -> Iterator[Found | Dropped]:
    held = load(source.file, "caption", "captions of COCO")

    def one(image: dict[str, Any], rows: list[dict[str, Any]], path: Path) -> Found:
        picture = annotated(image, path)
        for row in rows:
            picture.ask("short_caption", words(row["caption"]))
        return picture.found(image["id"], image)

    yield from by_picture(source, held, one)


def _instances(source: Source) -> Iterator[Found | Dropped]:
    what = "instances of COCO"
    held = load(source.file, "bbox", what)
    names = categories(held, source.file, what)

    def one(image: dict[str, Any], rows: list[dict[str, Any]], path: Path) -> Found:
        picture = annotated(image, path)
        there: dict[str, list[Box]] = {}
        for row in rows:
            box = None if row.get("iscrowd") else picture.box(*corners(row["bbox"]))
            if box:
                there.setdefault(names[row["category_id"]], []).append(box)
        for name, boxes in there.items():
            picture.ask("detection", sorted(boxes, key=_centre), phrase=plural(name))
        return picture.found(image["id"], image)

    yield from by_picture(source, held, one)


def _centre(box: Box) -> tuple[float, float]:
    """Sorts boxes from the left, as the playground does: an order that a picture shows."""
    return box.x1 + box.x2, box.y1 + box.y2


def _poses(what: str, keypoints: Sequence[str]) -> Reader:
    """`keypoints`: their names in order, where the file's own categories do not name them."""

    def read(source: Source) -> Iterator[Found | Dropped]:
        held = load(source.file, "keypoints", what)
        listed = held.get("categories")
        named = (row.get("keypoints") for row in listed if isinstance(row, dict)) if isinstance(listed, list) else ()
        names = next(filter(None, named), keypoints)

        def one(image: dict[str, Any], rows: list[dict[str, Any]], path: Path) -> Found:
            picture = annotated(image, path)
            for row in rows:
                region = None if row.get("iscrowd") else picture.box(*corners(row["bbox"]))
                pose = _pose(picture, names, row["keypoints"])
                if region and any(pose.points):
                    picture.ask("pose", pose, box=region)
            return picture.found(image["id"], image)

        yield from by_picture(source, held, one, "images")

    return read


def _pose(picture: Annotated, names: Sequence[str], numbers: Sequence[float]) -> Pose:
    """Key points that are hidden (v = 1) are there, those that are not annotated (v = 0) are not."""
    points: dict[str, Point | None] = {}
    for name, x, y, v in zip(names, numbers[::3], numbers[1::3], numbers[2::3], strict=True):
        points[name] = picture.point(x, y) if v else None
    return Pose(tuple(points.get(name) for name in COCO_KEYPOINTS))


CAPTIONS = Format("COCO captions", "captions_train2017.json", _captions)
INSTANCES = Format("COCO instances", "instances_train2017.json", _instances)
KEYPOINTS = Format(
    "COCO key points",
    "person_keypoints_train2017.json",
    _poses("key points of people, as COCO has them", COCO_KEYPOINTS),
)
CROWDPOSE = Format("CrowdPose", "crowdpose_train.json", _poses("CrowdPose", CROWDPOSE_KEYPOINTS))
