"""What readers of annotated pictures share: where a picture is, how large it is, and the turns about it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from sphinx_jax.data.conversation import Item, clean
from sphinx_jax.data.formats.found import Dropped, Found, Source
from sphinx_jax.data.messages import encodable
from sphinx_jax.data.tasks import Box, PaddedSquare, Point, format_answer, instruct
from sphinx_jax.paths import as_path, joined

DAMAGED = "annotation is damaged"
MISSING = "picture is missing"
UNLISTED = "picture is not in the file's list"
UNREADABLE = "picture is damaged"
UNUSABLE = "no usable annotation"

_ON_ITS_SIDE = (5, 6, 7, 8)  # orientations of EXIF whose pictures change width and height when they are set upright


class Unusable(Exception):
    """A picture of which no item can be made; the message is the reason of its `Dropped`."""


class Annotated:
    """A picture, and the turns about it as they are gathered: none twice.

    `size`: width and height as the file gives them; those of the picture's own header where it does not.
    """

    def __init__(self, path: Path, size: tuple[Any, Any] = (None, None)):
        self.path = path
        self._size = size
        self._turns: dict[tuple[str, str], str] = {}  # -> task

    @functools.cached_property
    def square(self) -> PaddedSquare:
        size = self._size if all(self._size) else _header_size(self.path)
        return PaddedSquare(*map(int, size))

    def box(self, x1: float, y1: float, x2: float, y2: float) -> Box | None:
        """The part within the picture of a box in pixels, relative; None where its two decimals have no area."""
        if not all(map(math.isfinite, (x1, y1, x2, y2))):
            raise ValueError("a box of numbers that are not finite")
        width, height = self.square.width, self.square.height
        x1, x2 = (min(max(x, 0), width) for x in (x1, x2))
        y1, y2 = (min(max(y, 0), height) for y in (y1, y2))
        if x1 >= x2 or y1 >= y2:
            return None
        box = self.square.from_pixels(Box(x1, y1, x2, y2))
        written = round(box.x1, 2) < round(box.x2, 2) and round(box.y1, 2) < round(box.y2, 2)
        return box if written else None

    def point(self, x: float, y: float) -> Point | None:
        """A point in pixels, relative; None outside of the picture."""
        inside = 0 <= x <= self.square.width and 0 <= y <= self.square.height
        return self.square.from_pixels(Point(x, y)) if inside else None

    def ask(self, task: str, value: Any, **fields: Any) -> None:
        """A turn, unless its answer or a field of its question is empty."""
        if not value or not all(fields.values()):
            return
        question, answer = clean(instruct(task, **fields)), clean(format_answer(task, value))
        if answer:
            self._turns.setdefault((encodable(question, "the question"), encodable(answer, "the answer")), task)

    def found(self, key: Any, carried: Mapping[str, Any]) -> Found:
        """The item, under its own name, with what is plain of what the file says about it.  Raises Unusable."""
        if not self._turns:
            raise Unusable(UNUSABLE)
        item = Item(str(self.path), tuple(self._turns), tuple(self._turns.values()), id=str(key))
        return Found(item, {name: value for name, value in carried.items() if isinstance(value, str | int | float)})


def gathered(key: Any, gather: Callable[..., Found], *of: Any) -> Found | Dropped:
    """What is made of one picture; what it stumbles over in its annotations costs that picture alone."""
    try:
        return gather(*of)
    except Unusable as reason:
        return Dropped(str(key), str(reason))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return Dropped(str(key), DAMAGED)


def grouped(rows: Iterable[Any], key: str) -> dict[Any, list[Any]]:
    """Rows by their picture, in the order of the file; under None those that name none."""
    found: dict[Any, list[Any]] = {}
    for row in rows:
        picture = row.get(key) if isinstance(row, Mapping) else None
        found.setdefault(picture if isinstance(picture, str | int) else None, []).append(row)
    return found


def indexed(rows: Iterable[Any], key: str) -> dict[Any, Any]:
    """Rows by a key that is another in each."""
    return {name: rows[0] for name, rows in grouped(rows, key).items()}


def folder(source: Source, *usual: str) -> Path:
    """Where the pictures of a source lie.

    The first folder with a usual name in the root, or, where no root was given, beside the file (within it, where
    it is a folder) or one above; without any the root itself, or the folder of the file.
    """
    beside = source.file if source.file.is_dir() else source.file.parent
    bases = (beside, beside.parent) if source.root is None else (source.root,)
    places = (base / name for base in map(as_path, bases) for name in usual)
    return next((place for place in places if place.is_dir()), as_path(bases[0]))


def picture_in(place: Path, name: Any) -> Path:
    """The path of a picture in a folder.  Raises TypeError where the name is no text."""
    if not isinstance(name, str) or not name:
        raise TypeError("the name of a picture must be a text")
    return joined(place, name)


def words(value: Any) -> str:
    """A text on one line; a number is one too.  Raises TypeError."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError(f"{type(value).__name__} is no text")
    return " ".join(str(value).split())


def corners(box: Iterable[float]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of left, top, width, height."""
    x, y, width, height = box
    return x, y, x + width, y + height


def by_row(box: Box) -> tuple[float, float]:
    """Sorts boxes of what is read: from the top, then from the left."""
    return box.y1, box.x1


def _header_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture as it is shown, upright; nothing is decoded."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            on_its_side = image.getexif().get(ExifTags.Base.Orientation) in _ON_ITS_SIDE
            return image.size[::-1] if on_its_side else image.size
    except FileNotFoundError:
        raise Unusable(MISSING) from None
    except Exception:  # Pillow raises almost anything on damaged headers, clients of stores what they like
        raise Unusable(UNREADABLE) from None
