"""The grammar of answers: typed values to text, and text back to typed values.

Coordinates in text are relative to the padded square, 0 to 1, two decimals (`tasks.PaddedSquare` makes them).

| value | text |
|---|---|
| box | `[0.12, 0.30, 0.45, 0.67]` |
| several boxes of one phrase | `[0.12,0.30,0.45,0.67;0.50,0.30,0.90,0.67]` |
| no box | `none` (ours) |
| point | `[0.50, 0.24]` |
| grounded phrase | `<p>red circle</p>[0.12, 0.30, 0.45, 0.67]` |
| text or layout region | as a grounded phrase: the text or the kind, then one box; joined by `, ` (ours) |
| pose | the 17 COCO keypoints in order, `[0.50,0.24;-;…]`; `-` is one that is not there (ours) |
| table | one row a line, cells joined by ` | ` (ours) |

The forms marked "ours" are not published; the others are SPHINX's.

Formatters are strict: they raise `GrammarError` on a value that would not read back. Parsers take what a
model wrote and never raise: what cannot be read is left out. They accept integers, any blanks, text around
the brackets, several lists in one answer, and

* drop a tail that was cut off: of a list without its `]`, the item after the last `;`, as its last number may
  lack digits;
* clip numbers to [0, 1], but leave out an item with a number below -0.5 or above 1.5: it is not relative;
* put the corners of a box in order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

COCO_KEYPOINTS = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
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
)
"""The 17 keypoints of a person, in the order of COCO's `person_keypoints` annotations."""

COCO_SKELETON = (
    (15, 13),
    (13, 11),
    (16, 14),
    (14, 12),
    (11, 12),
    (5, 11),
    (6, 12),
    (5, 6),
    (5, 7),
    (6, 8),
    (7, 9),
    (8, 10),
    (1, 2),
    (0, 1),
    (0, 2),
    (1, 3),
    (2, 4),
    (3, 5),
    (4, 6),
)
"""The 19 limbs of COCO's `skeleton`, as pairs of indices (from 0) into `COCO_KEYPOINTS`."""

NO_BOX = "none"
MISSING_KEYPOINT = "-"


class GrammarError(ValueError):
    """A value that the grammar cannot write so that it reads back."""


@dataclass(frozen=True)
class Point:
    """A point; pixels or relative, as its owner says."""

    x: float
    y: float

    def __repr__(self) -> str:
        return _shown(self)


@dataclass(frozen=True)
class Box:
    """A box by its edges, left, top, right, bottom; `x1 <= x2`, `y1 <= y2`; in pixels or relative.

    Where a model found it, `confidence` is how sure it is of that, from 0 to 1, and `expected` has for each number the
    mean of those nearby that could have stood there, each as likely as the model has it; text has two decimals.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    confidence: float | None = field(default=None, compare=False, kw_only=True)
    expected: Box | None = field(default=None, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        if not (self.x1 <= self.x2 and self.y1 <= self.y2):
            corners = (self.x1, self.y1, self.x2, self.y2)
            raise GrammarError(f"box {corners}: give x1 <= x2 and y1 <= y2")

    def __repr__(self) -> str:
        return _shown(self)

    @property
    def area(self) -> float:
        return (self.x2 - self.x1) * (self.y2 - self.y1)


@dataclass(frozen=True)
class Grounded:
    """A phrase of a caption with the boxes of what it names (at least one)."""

    phrase: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class TextRegion:
    """A piece of text in the picture and where it is."""

    text: str
    box: Box


@dataclass(frozen=True)
class LayoutRegion:
    """A part of a document page, such as "title" or "table", and where it is."""

    kind: str
    box: Box


@dataclass(frozen=True)
class Pose:
    """The 17 keypoints of one person in the order of `COCO_KEYPOINTS`; None for one that is not visible."""

    points: tuple[Point | None, ...]

    def __post_init__(self) -> None:
        if len(self.points) != len(COCO_KEYPOINTS):
            raise GrammarError(f"pose of {len(self.points)} points: give all {len(COCO_KEYPOINTS)} COCO keypoints")


def _shown(place: Any) -> str:
    """A place as one reads it: four decimals of each number, and nothing of what is not known."""
    known = {f.name: value for f in fields(place) if (value := getattr(place, f.name)) is not None}
    numbers = {name: round(value, 4) if isinstance(value, float) else value for name, value in known.items()}
    return f"{type(place).__name__}({', '.join(f'{name}={value!r}' for name, value in numbers.items())})"


def _number(value: float) -> str:
    rounded = round(value, 2)
    if not 0 <= rounded <= 1:  # also catches NaN
        raise GrammarError(f"coordinate {value} is not in [0, 1]: use PaddedSquare.from_pixels")
    # Adding 0.0 turns the -0.0 that rounding can leave into 0.0.
    return f"{rounded + 0.0:.2f}"


def _numbers(box: Box, separator: str) -> str:
    return separator.join(_number(value) for value in (box.x1, box.y1, box.x2, box.y2))


def format_box(box: Box) -> str:
    """`[0.12, 0.30, 0.45, 0.67]` of a relative box."""
    return f"[{_numbers(box, ', ')}]"


def format_boxes(boxes: Sequence[Box]) -> str:
    """`format_box` of one box, `[x1,y1,x2,y2;x1,y1,x2,y2]` of several, `none` of no relative box."""
    if not boxes:
        return NO_BOX
    if len(boxes) == 1:
        return format_box(boxes[0])
    return "[" + ";".join(_numbers(box, ",") for box in boxes) + "]"


def format_point(point: Point) -> str:
    """`[0.50, 0.24]` of a relative point."""
    return f"[{_number(point.x)}, {_number(point.y)}]"


def _phrase(text: str) -> str:
    phrase = " ".join(text.split())
    if not phrase or any(mark in phrase for mark in ("<p>", "</p>", "###")):
        raise GrammarError(f"phrase {text!r}: give some text without <p>, </p> and ###")
    return phrase


def ground(phrase: str, boxes: Sequence[Box]) -> str:
    """`<p>phrase</p>[…]`, to be put into a caption; blanks become single; there must be a box."""
    if not boxes:
        raise GrammarError(f"phrase {phrase!r} has no box: leave it as plain text")
    return f"<p>{_phrase(phrase)}</p>{format_boxes(boxes)}"


def format_grounded(items: Sequence[Grounded]) -> str:
    """The grounded phrases alone, joined by `, `; `none` of no phrase."""
    return ", ".join(ground(item.phrase, item.boxes) for item in items) or NO_BOX


def format_text_regions(regions: Sequence[TextRegion]) -> str:
    """`<p>text</p>[box], <p>text</p>[box]` of relative regions; `none` of no region."""
    return ", ".join(ground(region.text, [region.box]) for region in regions) or NO_BOX


def format_layout(regions: Sequence[LayoutRegion]) -> str:
    """`<p>kind</p>[box], <p>kind</p>[box]` of relative regions; `none` of no region."""
    return ", ".join(ground(region.kind, [region.box]) for region in regions) or NO_BOX


def format_pose(pose: Pose) -> str:
    """`[x,y;-;x,y;…]` of a relative pose: 17 entries, `-` for each keypoint that is None."""
    items = (f"{_number(point.x)},{_number(point.y)}" if point else MISSING_KEYPOINT for point in pose.points)
    return "[" + ";".join(items) + "]"


def format_table(rows: Sequence[Sequence[str | float]]) -> str:
    """One row a line, cells joined by ` | `; numbers in short (`3`, `0.5`), two cells a row or more."""
    cells = [tuple(_cell(cell) for cell in row) for row in rows]
    text = "\n".join(" | ".join(row) for row in cells)
    if "###" in text or parse_table(text) != cells:
        raise GrammarError(
            f"table {text!r} does not read back: give rows of two or more cells, none empty, no '|', no '###'"
        )
    return text


def _cell(cell: str | float) -> str:
    return cell.strip() if isinstance(cell, str) else f"{cell:.12g}"


_PHRASE = re.compile(r"<p>((?:(?!</?p>).)*)</p>", re.DOTALL)
_LIST = re.compile(r"\[([^\[\]]*)(\])?")
_GROUNDED = re.compile(_PHRASE.pattern + r"\s*" + _LIST.pattern, re.DOTALL)
_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_NUMBERS = re.compile(rf"\s*{_NUMBER}(?:(?:\s*,\s*|\s+){_NUMBER})*\s*")
_SEPARATOR_ROW = re.compile(r":?-{3,}:?|:-+:?|-+:")


def _items(body: str, closed: bool) -> list[str]:
    items = body.split(";")
    return items if closed else items[:-1]


def _lists(text: str) -> Iterator[list[str]]:
    """The items between the `;` of each bracketed list; what stands in `<p>…</p>` is text."""
    for match in _LIST.finditer(_PHRASE.sub(" ", text)):
        yield _items(match[1], closed=match[2] is not None)


def _coordinates(item: str, count: int) -> list[float] | None:
    if not _NUMBERS.fullmatch(item):
        return None
    values = [float(value) for value in item.replace(",", " ").split()]
    if len(values) != count or not all(-0.5 <= value <= 1.5 for value in values):
        return None
    return [min(max(value, 0.0), 1.0) for value in values]


def _boxes(items: Sequence[str]) -> list[Box]:
    found = [values for item in items if (values := _coordinates(item, 4))]
    return [Box(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)) for x1, y1, x2, y2 in found]


def parse_boxes(text: str) -> list[Box]:
    """Every box of an answer, in order, whatever phrases stand around; [] where there is none."""
    return [box for items in _lists(text) for box in _boxes(items)]


def parse_points(text: str) -> list[Point]:
    """Every point of an answer, in order: lists of exactly two numbers; [] where there is none."""
    return [Point(*values) for items in _lists(text) for item in items if (values := _coordinates(item, 2))]


def parse_grounded(text: str) -> list[Grounded]:
    """Every `<p>phrase</p>[…]` of an answer that has a phrase and at least one box."""
    found = []
    for match in _GROUNDED.finditer(text):
        phrase = " ".join(match[1].split())
        boxes = _boxes(_items(match[2], closed=match[3] is not None))
        if phrase and boxes:
            found.append(Grounded(phrase, tuple(boxes)))
    return found


def parse_text_regions(text: str) -> list[TextRegion]:
    """The regions of a text-spotting answer; several boxes after one text become as many regions."""
    return [TextRegion(item.phrase, box) for item in parse_grounded(text) for box in item.boxes]


def parse_layout(text: str) -> list[LayoutRegion]:
    """The regions of a layout answer; several boxes after one kind become as many regions."""
    return [LayoutRegion(item.phrase, box) for item in parse_grounded(text) for box in item.boxes]


def parse_poses(text: str) -> list[Pose]:
    """One pose for each list of exactly 17 keypoints; of a list that was cut off, those not reached are None.

    A closed list of another length is left out, for nobody can say which keypoints it lacks. A keypoint that
    is neither two coordinates nor `-` (or `-,-`) is None.
    """
    poses = []
    for match in _LIST.finditer(_PHRASE.sub(" ", text)):
        closed = match[2] is not None
        points = [_keypoint(item) for item in _items(match[1], closed)]
        if not closed:
            points = points[:17] + [None] * (17 - len(points))
        if len(points) == 17 and (closed or any(points)):
            poses.append(Pose(tuple(points)))
    return poses


def _keypoint(item: str) -> Point | None:
    values = _coordinates(item, 2)
    return Point(*values) if values else None


def parse_table(text: str) -> list[tuple[str, ...]]:
    """The rows with at least two cells, as text; outer `|` and Markdown's line of dashes are left out."""
    rows = []
    for line in text.split("\n"):
        cells = tuple(cell.strip() for cell in line.strip().strip("|").split("|"))
        if len(cells) >= 2 and any(cells) and not all(_SEPARATOR_ROW.fullmatch(cell) for cell in cells):
            rows.append(cells)
    return rows
