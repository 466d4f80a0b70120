"""The tasks: one instruction each, the frame of their coordinates, and their answers both ways.

    instruct("rec", phrase="red circle")      # what the human says
    format_answer("rec", box)                 # what the assistant says, from a typed value
    parse_answer("rec", text)                 # the typed value of what a model said

Plain-text instructions that differ by task keep the tasks from colliding in one model (paper section 3.2).
Those marked `published` are worded to the letter as SPHINX's; the others are ours.
"""

import difflib
import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sphinx_jax.data.grammar import (
    COCO_KEYPOINTS,
    COCO_SKELETON,
    Box,
    GrammarError,
    Grounded,
    LayoutRegion,
    Point,
    Pose,
    TextRegion,
    format_box,
    format_boxes,
    format_grounded,
    format_layout,
    format_point,
    format_pose,
    format_table,
    format_text_regions,
    ground,
    parse_boxes,
    parse_grounded,
    parse_layout,
    parse_points,
    parse_poses,
    parse_table,
    parse_text_regions,
)

__all__ = [
    "ANSWERS",
    "COCO_KEYPOINTS",
    "COCO_SKELETON",
    "INSTRUCTIONS",
    "Box",
    "GrammarError",
    "Grounded",
    "Instruction",
    "LayoutRegion",
    "PaddedSquare",
    "Point",
    "Pose",
    "TaskError",
    "TextRegion",
    "format_answer",
    "format_box",
    "format_boxes",
    "format_grounded",
    "format_layout",
    "format_point",
    "format_pose",
    "format_table",
    "format_text_regions",
    "ground",
    "instruct",
    "parse_answer",
    "parse_boxes",
    "parse_grounded",
    "parse_layout",
    "parse_points",
    "parse_poses",
    "parse_table",
    "parse_text_regions",
]


DOMAINS = ("real", "synthetic")  # whose data the paper's two pre-trainings, and the mix of their weights, are of


class TaskError(ValueError):
    """An unknown task, or a value that does not fit one."""


@dataclass(frozen=True)
class Instruction:
    """What the human says for one task.

    name: the task; template: its wording with `{fields}`; source: where the wording comes from; published:
    False where the wording is ours.
    """

    name: str
    template: str
    source: str
    published: bool = True

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the template, in order."""
        return tuple(field for _, field, _, _ in string.Formatter().parse(self.template) if field)


_PUBLISHED = "the paper and its reference release"
_DEMONSTRATED = "the paper's demonstrations (unverified)"
_REGION = "Please provide the bounding box coordinate of the region this sentence describes"
_SHORT_ANSWER = "\nAnswer the question using a single word or phrase."

INSTRUCTIONS: dict[str, Instruction] = {
    instruction.name: instruction
    for instruction in (
        Instruction("vqa", "{question}" + _SHORT_ANSWER, _PUBLISHED),
        Instruction(
            "vizwiz",
            "{question} When the provided information is insufficient, respond with 'Unanswerable'." + _SHORT_ANSWER,
            _PUBLISHED,
        ),
        Instruction(
            "multiple_choice",
            "{context}Question: {question}\nChoices:\n{choices}\n"
            "Answer with the option's letter from the given choices directly.",
            _PUBLISHED + '; its annotation files spell it option"s',
        ),
        Instruction("short_caption", "Provide a one-sentence caption for the provided image.", _PUBLISHED),
        Instruction("detailed_caption", "Generate a detailed description about the image.", _PUBLISHED),
        Instruction(
            "grounded_caption",
            "Describe the image concisely. Include the bounding box for each mentioned object.",
            _PUBLISHED,
        ),
        Instruction("rec", _REGION + ": {phrase}.", _PUBLISHED),
        Instruction(
            "reg",
            "Please provide a short description for this region: {box}.",
            "ours: the paper has the task, not its wording",
            published=False,
        ),
        Instruction("detection", "Detect all {phrase} shown in the image.", _PUBLISHED),
        Instruction("relation", _REGION + " : {phrase}.", _PUBLISHED + ", with its blank before the colon"),
        Instruction(
            "text_detection",
            "Please detect all texts and provide their bounding box coordinate.",
            _PUBLISHED,
        ),
        Instruction(
            "text_spotting",
            "Detect all regions in the image that contain text and identify their content.",
            _DEMONSTRATED,
        ),
        Instruction("layout", "Detect the layout of the document in the image.", _DEMONSTRATED),
        Instruction("pose", "Detect the key points of the person in the region {box}.", _PUBLISHED),
        Instruction("classification", "Classify the image.", _PUBLISHED),
        Instruction("chart", "Convert this chart to a table.", _PUBLISHED),
        Instruction(
            "marks",
            "Provide a detailed description for each of the marks I've offered: {marks}.",
            _DEMONSTRATED + "; the marks read <Mark 1> [0.56, 0.24], <Mark 2> …",
        ),
        Instruction(
            "anomaly_detection",
            "Detect all anomalies shown in the image.",
            "ours, after the wording of detection",
            published=False,
        ),
        Instruction(
            "text_to_image",
            "Write a prompt from which a text-to-image model would draw the image.",
            "ours: the paper has the task, not its wording",
            published=False,
        ),
    )
}
"""Every instruction by the name of its task."""


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return close[0]


def _require(task: str, known: Iterable[str]) -> None:
    if task not in known:
        raise TaskError(f"unknown task {task!r}: did you mean {_nearest(str(task), known)!r}?")


def instruct(task: str, /, **fields: Any) -> str:
    """The instruction of a task, filled in.

    Fields by task: vqa, vizwiz `question`; multiple_choice `question`, `choices` (a list; letters are added)
    and, if there is one, `context`; rec, relation, detection `phrase`; reg, pose `box` (a relative `Box`);
    marks `marks` (relative `Point`s). The others take none. An unknown task and a missing or unknown field
    raise `TaskError`.
    """
    _require(task, INSTRUCTIONS)
    instruction = INSTRUCTIONS[task]
    optional = {"context"} & set(instruction.fields)
    for name in fields:
        if name not in instruction.fields:
            known = instruction.fields
            hint = f"did you mean {_nearest(name, known)!r}?" if known else "it takes none"
            raise TaskError(f"task {task!r} has no field {name!r}: {hint}")
    for name in instruction.fields:
        if name not in fields and name not in optional:
            raise TaskError(f"task {task!r} lacks its field {name!r}: call instruct({task!r}, {name}=…)")
    texts = {name: _field(name, fields.get(name)) for name in instruction.fields}
    return instruction.template.format(**texts)


def _field(name: str, value: Any) -> str:
    """The text of one field: what its name asks for, from the type a caller has at hand."""
    if name == "context":
        return f"Context: {value}\n" if value else ""
    if name == "choices":
        if isinstance(value, str) or not 1 <= len(value) <= 26:
            raise TaskError(f"choices {value!r}: give a list of 1 to 26 texts")
        lettered = zip(string.ascii_uppercase, value, strict=False)
        return "\n".join(f"{letter}. {choice}" for letter, choice in lettered)
    if name == "marks":
        return ", ".join(f"<Mark {number}> {format_point(point)}" for number, point in enumerate(value, 1))
    if isinstance(value, Box):
        return format_box(value)
    # The templates end the sentence themselves.
    return str(value).strip().removesuffix(".") if name == "phrase" else str(value).strip()


Located = TypeVar("Located", Box, Point, Pose, Grounded, TextRegion, LayoutRegion)


@dataclass(frozen=True)
class PaddedSquare:
    """The square that an image of `width` × `height` pixels is padded to, as large as its longer side.

    The shorter axis starts at `(longer - shorter) // 2`, as `padded_resize` pads. Text gives coordinates
    relative to this square; everything else is in pixels of the image.
    """

    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise TaskError(f"image of {self.width} x {self.height} pixels: give a width and height of at least 1")

    @property
    def side(self) -> int:
        return max(self.width, self.height)

    @property
    def offset(self) -> tuple[int, int]:
        """Pixels left of and above the image in the square."""
        return (self.side - self.width) // 2, (self.side - self.height) // 2

    def from_pixels(self, value: Located) -> Located:
        """Pixels of the image to coordinates relative to the square; any value with boxes or points."""
        left, top = self.offset
        return _move(value, lambda x: (x + left) / self.side, lambda y: (y + top) / self.side)

    def to_pixels(self, value: Located, clip: bool = False) -> Located:
        """Relative coordinates back to pixels of the image; `clip` moves those on the padding to its edge."""
        left, top = self.offset

        def pixel(relative: float, offset: int, limit: int) -> float:
            position = relative * self.side - offset
            return min(max(position, 0.0), float(limit)) if clip else position

        return _move(value, lambda x: pixel(x, left, self.width), lambda y: pixel(y, top, self.height))


def _move(value: Any, move_x: Callable[[float], float], move_y: Callable[[float], float]) -> Any:
    match value:
        case Box():
            x1, y1, x2, y2 = move_x(value.x1), move_y(value.y1), move_x(value.x2), move_y(value.y2)
            expected = value.expected and _move(value.expected, move_x, move_y)
            return replace(value, x1=x1, y1=y1, x2=x2, y2=y2, expected=expected)
        case Point():
            return Point(move_x(value.x), move_y(value.y))
        case Pose():
            return Pose(tuple(point and _move(point, move_x, move_y) for point in value.points))
        case Grounded():
            return replace(value, boxes=tuple(_move(box, move_x, move_y) for box in value.boxes))
        case TextRegion() | LayoutRegion():
            return replace(value, box=_move(value.box, move_x, move_y))
    raise TaskError(f"{type(value).__name__} has no coordinates: give a Box, Point, Pose, Grounded or region")


@dataclass(frozen=True)
class Answer:
    """How the answers of one task are written and read."""

    format: Callable[[Any], str]
    parse: Callable[[str], Any]


def _first(parse: Callable[[str], Sequence[Any]]) -> Callable[[str], Any]:
    return lambda text: next(iter(parse(text)), None)


def _format_caption(value: str | Sequence[Grounded]) -> str:
    return value.strip() if isinstance(value, str) else format_grounded(value)


def _parse_class(text: str) -> str:
    sentence = text.strip().rstrip(".")
    for opening in ("This is a ", "This is an "):
        if sentence.lower().startswith(opening.lower()):
            return sentence[len(opening) :].strip()
    return sentence


_LETTER = re.compile(r"^\W*([A-Za-z])(?:[^\w\s]|\s*$)|\banswer is:?\s*\(?([A-Za-z])\b", re.IGNORECASE)


def _parse_letter(text: str) -> str:
    """The option's letter of `B`, `(b)`, `B. a cat` and `The answer is B`; otherwise the text as it is."""
    match = _LETTER.search(text.strip())
    return (match[1] or match[2]).upper() if match else text.strip()


_TEXT = Answer(lambda value: str(value).strip(), str.strip)
_ONE_BOX = Answer(format_box, _first(parse_boxes))
_BOXES = Answer(format_boxes, parse_boxes)

ANSWERS: dict[str, Answer] = {
    "vqa": _TEXT,
    "multiple_choice": Answer(_TEXT.format, _parse_letter),
    "short_caption": _TEXT,
    "detailed_caption": _TEXT,
    "grounded_caption": Answer(_format_caption, parse_grounded),
    "rec": _ONE_BOX,
    "reg": _TEXT,
    "detection": _BOXES,
    "relation": _ONE_BOX,
    "text_detection": _BOXES,
    "text_spotting": Answer(format_text_regions, parse_text_regions),
    "layout": Answer(format_layout, parse_layout),
    "pose": Answer(format_pose, _first(parse_poses)),
    "classification": Answer(lambda value: f"This is a {str(value).strip()}", _parse_class),
    "chart": Answer(format_table, parse_table),
}
"""Every task that has a metric, with its answers both ways."""


def format_answer(task: str, value: Any) -> str:
    """The answer text of a typed value.

    Text (stripped) for vqa, multiple_choice (the letter), short_caption, detailed_caption, reg and
    classification (the class, written `This is a [CLASS]`); a `Box` for rec and relation; a list of `Box` for
    detection and text_detection; of `TextRegion` for text_spotting; of `LayoutRegion` for layout; a caption
    with `ground(…)` in it, or a list of `Grounded`, for grounded_caption; a `Pose` for pose; rows of cells
    for chart.
    """
    _require(task, ANSWERS)
    return ANSWERS[task].format(value)


def parse_answer(task: str, text: str) -> Any:
    """The typed value of an answer, of the types of `format_answer` (grounded_caption: a list of `Grounded`).

    Never raises on malformed text: None for rec, relation and pose, [] for lists.
    """
    _require(task, ANSWERS)
    return ANSWERS[task].parse(text)
