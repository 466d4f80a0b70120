"""Held-out pictures with what was asked, what was expected and what a model said drawn on them."""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from sphinx_jax.data.tasks import (
    ANSWERS,
    COCO_SKELETON,
    Box,
    Grounded,
    LayoutRegion,
    PaddedSquare,
    Point,
    Pose,
    TextRegion,
    parse_answer,
    parse_boxes,
    parse_points,
)
from sphinx_jax.report.plots import REAL, SYNTHETIC

# Far apart in hue and in lightness, and neither is a domain's colour; the expected answer is dashed as well.
PREDICTED, EXPECTED, ASKED = "#E6007E", "#00B887", "#FFFFFF"
# A thin line around lines, so that they show on any ground.
CASING = {PREDICTED: "#FFFFFF", EXPECTED: "#FFFFFF", ASKED: "#000000"}
DOMAIN_COLOURS = {"real": REAL, "synthetic": SYNTHETIC}
RIGHT, PARTLY, WRONG = "✓", "≈", "✗"
# Lines are drawn at twice the size and averaged down, which smooths them.
OVERSAMPLE = 2

CELL, PADDING, GAP = 300, 24, 10
QUESTION_LINES, ANSWER_LINES = 5, 5


@dataclass(frozen=True)
class Sample:
    """A held-out picture, what was asked about it, what was expected and what a model said.

    Coordinates in question, answer and prediction are relative to the padded square of the picture; score is
    that of the task's metric, 0 to 1.
    """

    image: Image.Image
    task: str
    domain: str
    question: str
    answer: str
    prediction: str
    score: float


def verdict(score: float) -> str:
    """The mark of a score: ✓ for a full one, ✗ below a half (or NaN), ≈ between."""
    if score >= 0.995:
        return RIGHT
    return PARTLY if score >= 0.5 else WRONG


def verdict_text(score: float) -> str:
    """The mark of a score with the score; the mark alone where there is none (NaN)."""
    return verdict(score) if math.isnan(score) else f"{verdict(score)} {score:.2f}"


def readable(task: str, text: str) -> str:
    """An answer for reading: as it is, but a pose, which only a picture tells, by its number of keypoints."""
    text = text.strip()
    pose = parse_answer("pose", text) if task == "pose" else None
    if pose is None:
        return text
    return f"{sum(point is not None for point in pose.points)} of {len(pose.points)} keypoints, drawn"


def _places(task: str, text: str) -> list[Any]:
    """What an answer locates: boxes, points, poses, regions; [] for a text without places."""
    value = parse_answer(task, text) if task in ANSWERS else text
    match value:
        case None:
            return []
        case Box() | Pose():
            return [value]
        case str():
            return [*parse_boxes(text), *parse_points(text)]
    located = Box | Point | Pose | Grounded | TextRegion | LayoutRegion
    return [item for item in value if isinstance(item, located)]


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    # matplotlib carries it, so it is on every machine, and it has the marks of `verdict`.
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


@dataclass(frozen=True)
class _Pen:
    """Draws located values on a picture that was scaled from `square`'s; widths in pixels of the result."""

    draw: ImageDraw.ImageDraw
    square: PaddedSquare
    scale: float
    limit: tuple[int, int]
    colour: str
    dashed: bool = False
    width: int = 2

    def show(self, value: Any) -> None:
        value = self.square.to_pixels(value, clip=True)
        match value:
            case Box():
                self.box(value)
            case Point():
                self.dot(value, 5)
            case Pose():
                self.pose(value)
            case Grounded():
                for box in value.boxes:
                    self.box(box, value.phrase)
            case TextRegion():
                self.box(value.box, value.text)
            case LayoutRegion():
                self.box(value.box, value.kind)

    def at(self, x: float, y: float) -> tuple[float, float]:
        edge = self.width * OVERSAMPLE / 2
        width, height = self.limit
        # The line of a box that reaches the rim stays in the picture.
        return min(max(x * self.scale, edge), width - edge), min(max(y * self.scale, edge), height - edge)

    def line(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        thick = self.width * OVERSAMPLE
        length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
        step = 5.0 * OVERSAMPLE
        dashes = max(1, round(length / step)) if self.dashed else 1
        if not self.dashed:
            self.draw.line([start, end], fill=CASING[self.colour], width=thick + OVERSAMPLE)
        for dash in range(0, dashes, 2):
            first, last = dash / dashes, min(1.0, (dash + 1) / dashes)
            points = [
                (start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1]))
                for share in (first, last)
            ]
            self.draw.line(points, fill=self.colour, width=thick)

    def box(self, box: Box, label: str = "") -> None:
        left_top, right_bottom = self.at(box.x1, box.y1), self.at(box.x2, box.y2)
        if not self.dashed:
            # A rectangle joins its corners; four lines would leave notches.
            around = [left_top, right_bottom]
            thick = self.width * OVERSAMPLE
            casing = CASING[self.colour]
            self.draw.rectangle(_grown(around, OVERSAMPLE / 2), outline=casing, width=thick + OVERSAMPLE)
            self.draw.rectangle(around, outline=self.colour, width=thick)
        else:
            right_top, left_bottom = (right_bottom[0], left_top[1]), (left_top[0], right_bottom[1])
            self.line(left_top, right_top)
            self.line(left_bottom, right_bottom)
            self.line(left_top, left_bottom)
            self.line(right_top, right_bottom)
        if label:
            self.label(label, left_top, right_bottom)

    def label(self, text: str, left_top: tuple[float, float], right_bottom: tuple[float, float]) -> None:
        """The name of a box: above what was said and below what was expected, so that both can be read."""
        font = _font(10 * OVERSAMPLE)
        text = text if len(text) <= 24 else text[:23] + "…"
        ink = self.draw.textbbox((0, 0), text, font=font)
        width, height = ink[2] + 4 * OVERSAMPLE, 13 * OVERSAMPLE
        x = min(left_top[0], self.limit[0] - width)
        y = right_bottom[1] if self.dashed else left_top[1] - height
        y = min(max(y, 0), self.limit[1] - height)
        self.draw.rectangle([max(x, 0), y, max(x, 0) + width, y + height], fill=self.colour)
        ground_is_light = self.colour != PREDICTED
        self.draw.text(
            (max(x, 0) + 2 * OVERSAMPLE, y + height / 2),
            text,
            font=font,
            fill="#000000" if ground_is_light else "#FFFFFF",
            anchor="lm",
        )

    def dot(self, point: Point, radius: float) -> None:
        x, y = self.at(point.x, point.y)
        reach = radius * OVERSAMPLE
        self.draw.ellipse(
            [x - reach, y - reach, x + reach, y + reach],
            fill=self.colour,
            outline="#000000",
            width=OVERSAMPLE,
        )

    def pose(self, pose: Pose) -> None:
        for first, second in COCO_SKELETON:
            start, end = pose.points[first], pose.points[second]
            if start and end:
                self.line(self.at(start.x, start.y), self.at(end.x, end.y))
        for point in pose.points:
            if point:
                self.dot(point, 2.5)


def _grown(corners: list[tuple[float, float]], by: float) -> list[tuple[float, float]]:
    (left, top), (right, bottom) = corners
    return [(left - by, top - by), (right + by, bottom + by)]


def annotate(sample: Sample, side: int = CELL) -> Image.Image:
    """The picture, its longer side `side` pixels, with its places drawn: solid what the model said, dashed
    what was expected, thin white what the question names. Places that cannot be read are not drawn."""
    layers = (
        ([*parse_boxes(sample.question), *parse_points(sample.question)], ASKED, False, 1),
        (_places(sample.task, sample.prediction), PREDICTED, False, 2),
        # On top, as the gaps of its dashes leave a prediction below it visible.
        (_places(sample.task, sample.answer), EXPECTED, True, 2),
    )
    return _drawn(sample.image, layers, side)


def with_places(image: Image.Image, places: Sequence[Any], side: int = 480) -> Image.Image:
    """The picture, its longer side `side` pixels, with boxes, points, poses, texts or parts of a page drawn on it.

    places: in pixels of the picture, as `model.ground` and its like return them.
    """
    square = PaddedSquare(*image.size)
    return _drawn(image, (([square.from_pixels(value) for value in places], PREDICTED, False, 2),), side)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """The bytes of a file, e.g. in the form PNG."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def _drawn(image: Image.Image, layers: Iterable[tuple[Sequence[Any], str, bool, int]], side: int) -> Image.Image:
    """`layers`: values in the padded frame with a colour, whether they are dashed, and the width of their lines."""
    image = image.convert("RGB")
    scale = side * OVERSAMPLE / max(image.size)
    large = tuple(max(OVERSAMPLE, round(length * scale)) for length in image.size)
    canvas = image.resize(large, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    for values, colour, dashed, width in layers:
        pen = _Pen(draw, PaddedSquare(*image.size), scale, large, colour, dashed, width)
        for value in values:
            pen.show(value)
    return canvas.resize(tuple(length // OVERSAMPLE for length in large), Image.Resampling.BOX)


def wrap(text: str, font: ImageFont.FreeTypeFont, width: float, most: int) -> list[str]:
    """Text in lines of at most `width` pixels, at most `most` of them (the last one ends in … if cut).

    Line breaks of the text stay; a word longer than a line is broken.
    """
    lines: list[str] = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in paragraph.split():
            joined = f"{line} {word}" if line else word
            if font.getlength(joined) <= width:
                line = joined
                continue
            if line:
                lines.append(line)
            while font.getlength(word) > width and len(word) > 1:
                fits = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
                lines.append(word[:fits])
                word = word[fits:]
            line = word
        lines.append(line)
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and font.getlength(last + "…") > width:
        last = last[:-1]
    return [*lines[: most - 1], last + "…"]


@dataclass(frozen=True)
class _Card:
    """One sample of the grid: its picture and lines of (text, font, colour) below."""

    sample: Sample
    picture: Image.Image
    lines: list[tuple[str, ImageFont.FreeTypeFont, str]]

    @property
    def height(self) -> int:
        return CELL + 30 + sum(font.size + 6 for _, font, _ in self.lines) + 8


def _card(sample: Sample) -> _Card:
    body, bold = _font(14), _font(14, bold=True)
    lines = [(line, bold, "#222222") for line in wrap(sample.question.strip(), bold, CELL, QUESTION_LINES)]
    for name, text, colour in (
        ("expected", sample.answer, "#00785A"),
        ("said", sample.prediction, "#C4006B"),
    ):
        shown = readable(sample.task, text) or "(nothing)"
        shown = f"{name}:\n{shown}" if "\n" in shown else f"{name}: {shown}"
        lines += [(line, body, colour) for line in wrap(shown, body, CELL, ANSWER_LINES)]
    return _Card(sample, annotate(sample), lines)


def grid(samples: list[Sample], columns: int = 4) -> Image.Image:
    """All samples in order on one sheet: picture, task and domain, verdict, question, expected and said."""
    columns = max(1, min(columns, len(samples)))
    cards = [_card(sample) for sample in samples]
    rows = [cards[start : start + columns] for start in range(0, len(cards), columns)]
    heights = [max(card.height for card in row) for row in rows]
    top = 56
    width = max(columns * (CELL + PADDING) + PADDING, 2 * (CELL + PADDING) + PADDING)
    sheet = Image.new("RGB", (width, top + sum(heights) + PADDING * len(rows)), "#FFFFFF")
    draw = ImageDraw.Draw(sheet)
    _draw_legend(draw)
    y = top
    for row, height in zip(rows, heights, strict=True):
        for column, card in enumerate(row):
            _draw_card(sheet, draw, card, PADDING + column * (CELL + PADDING), y)
        y += height + PADDING
    return sheet


def _draw_legend(draw: ImageDraw.ImageDraw) -> None:
    font = _font(14)
    x, y = PADDING, 28
    for name, colour, dashed in (
        ("said by the model", PREDICTED, False),
        ("expected", EXPECTED, True),
        ("named in the question", "#888888", False),
    ):
        for start in range(0, 36, 12 if dashed else 36):
            draw.line([(x + start, y), (x + start + (7 if dashed else 36), y)], fill=colour, width=3)
        draw.text((x + 44, y), name, font=font, fill="#222222", anchor="lm")
        x += 44 + int(font.getlength(name)) + PADDING


def _draw_card(sheet: Image.Image, draw: ImageDraw.ImageDraw, card: _Card, x: int, y: int) -> None:
    draw.rectangle([x, y, x + CELL - 1, y + CELL - 1], fill="#EEF0F2")
    left, top = ((CELL - length) // 2 for length in card.picture.size)
    sheet.paste(card.picture, (x + left, y + top))
    sample = card.sample
    y += CELL + GAP
    small = _font(13)
    colour = DOMAIN_COLOURS.get(sample.domain, "#555555")
    heading = f"{sample.domain} · {sample.task.replace('_', ' ')}"
    draw.text((x, y), heading, font=small, fill=colour)
    mark = verdict(sample.score)
    tint = {RIGHT: "#00785A", PARTLY: "#8A6100", WRONG: "#B3001B"}[mark]
    draw.text((x + CELL, y), verdict_text(sample.score), font=_font(13, bold=True), fill=tint, anchor="ra")
    y += 22
    for text, font, colour in card.lines:
        draw.text((x, y), text, font=font, fill=colour)
        y += font.size + 6
