"""Texts that stand in pictures, and where: TextOCR (Singh et al. 2021), ICDAR 2015 (Karatzas et al. 2015).

Boxes are upright, around the outlines that the files have, and are listed from the top, then from the left. What nobody
could read (`.` in TextOCR, `###` in ICDAR) is no text to be found and is left out. TextOCR's file is held whole while
it is read. From memory: that `points` of TextOCR are an outline of any number of corners, that its pictures are called
by their ids, and the names of folders of pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sphinx_jax.data.formats.annotated import (
    DAMAGED,
    MISSING,
    UNLISTED,
    Annotated,
    Unusable,
    by_row,
    folder,
    gathered,
    grouped,
    words,
)
from sphinx_jax.data.formats.files import BadData, read_json, read_text
from sphinx_jax.data.formats.found import Dropped, Format, Found, Source
from sphinx_jax.data.tasks import TextRegion

_ILLEGIBLE = ".", "###"
_NO_PICTURES = ".txt", ".xml", ".json", ".zip"  # what lies beside pictures


def _tell(picture: Annotated, texts: list[tuple[str, tuple[float, ...]]]) -> None:
    legible = [(text, picture.box(*edges)) for text, edges in texts if text and text not in _ILLEGIBLE]
    regions = sorted((TextRegion(text, box) for text, box in legible if box), key=lambda region: by_row(region.box))
    picture.ask("text_spotting", regions)
    picture.ask("text_detection", [region.box for region in regions])


def _textocr(source: Source) -> Iterator[Found | Dropped]:
    held = read_json(source.file)
    if not isinstance(held, dict) or not all(isinstance(held.get(name), dict) for name in ("imgs", "anns")):
        raise BadData(f"{source.file} has no objects imgs and anns; expected TextOCR")
    rows = grouped(held["anns"].values(), "image_id")
    place = folder(source, "train_images", "train_val_images", "train")

    def one(name: str, image: dict[str, Any]) -> Found:
        picture = Annotated(place / f"{name}.jpg", (image.get("width"), image.get("height")))
        _tell(picture, [(words(row["utf8_string"]), _around(row["points"])) for row in rows.pop(name, [])])
        return picture.found(name, image)

    for name, image in held["imgs"].items():
        yield gathered(name, one, name, image)
    for key in rows:
        yield Dropped("?" if key is None else str(key), DAMAGED if key is None else UNLISTED)


def _icdar(source: Source) -> Iterator[Found | Dropped]:
    files = sorted(source.file.glob("gt_*.txt")) if source.file.is_dir() else []
    if not files:
        raise BadData(f"{source.file} has no files gt_*.txt; expected a folder of ICDAR 2015's")
    place = folder(source, "ch4_training_images")
    beside = place.iterdir() if place.is_dir() else ()
    names = {path.stem: path for path in beside if path.suffix not in _NO_PICTURES}

    def one(file: Path, name: str) -> Found:
        if name not in names:
            raise Unusable(MISSING)
        picture = Annotated(names[name])
        _tell(picture, [_line(line) for line in read_text(file).split("\n") if line.strip()])
        return picture.found(name, {})

    for file in files:
        name = file.stem.removeprefix("gt_")
        yield gathered(name, one, file, name)


def _line(line: str) -> tuple[str, tuple[float, ...]]:
    """The text of `x1,y1,…,x4,y4,text`, which may have commas itself, and the box around the four points."""
    *points, text = line.split(",", 8)
    numbers = [float(number) for number in points]
    if len(numbers) != 8:
        raise ValueError("a line must have eight numbers and a text")
    return words(text), _around(numbers)


def _around(outline: Sequence[float]) -> tuple[float, ...]:
    """Left, top, right, bottom of x, y, x, y, …"""
    xs, ys = outline[::2], outline[1::2]
    return min(xs), min(ys), max(xs), max(ys)


TEXTOCR = Format("TextOCR", "TextOCR_0.1_train.json", _textocr)
ICDAR = Format("ICDAR 2015", "the folder of gt_img_*.txt", _icdar)
