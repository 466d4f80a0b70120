"""What the little world is made of: nine shapes, ten numbers, eight colours, and their outlines."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from sphinx_jax.data.playground.photos import package_file
from sphinx_jax.data.tasks import Box

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond", "moon")
NUMBERS = tuple(f"number {digit}" for digit in range(10))
NAMES = SHAPES + NUMBERS

COLOURS = {
    "red": (214, 32, 38),
    "green": (38, 158, 52),
    "blue": (32, 84, 222),
    "yellow": (248, 222, 40),
    "purple": (142, 44, 178),
    "orange": (250, 132, 18),
    "white": (248, 248, 248),
    "black": (20, 20, 23),
}
"""RGB of each colour name."""

LIGHT_COLOURS = ("white", "yellow")
"""Inks that need dark paper."""

_OVERSAMPLING = 4


@dataclass(frozen=True)
class Thing:
    """A thing in a picture: its name, its colour ("" for a part of a page) and its box in pixels."""

    name: str
    colour: str
    box: Box

    @property
    def phrase(self) -> str:
        return f"{self.colour} {self.name}".strip()

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box.x1 + self.box.x2) / 2, (self.box.y1 + self.box.y2) / 2


def plural(name: str) -> str:
    """`circles` of circle, `crosses` of cross, `number 7s` of number 7, `people` of person."""
    if name == "person":
        return "people"
    return name + ("es" if name.endswith("s") else "s")


def _arc(radius: float, start: float = 0.0, stop: float = 2 * np.pi, count: int = 64) -> np.ndarray:
    angle = np.linspace(start, stop, count)
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 64)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], axis=1) / 16


def _star() -> np.ndarray:
    angle = -np.pi / 2 + np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _cross() -> np.ndarray:
    a = 0.32
    points = [
        (-a, -1),
        (a, -1),
        (a, -a),
        (1, -a),
        (1, a),
        (a, a),
        (a, 1),
        (-a, 1),
        (-a, a),
        (-1, a),
        (-1, -a),
        (-a, -a),
    ]
    return np.array(points, float)


@functools.cache
def _outline(name: str) -> tuple[tuple[np.ndarray, int], ...]:
    """Polygons of a shape in [-1, 1]², drawn in order with 255 (thing) or 0 (hole)."""
    match name:
        case "circle":
            return ((_arc(1.0), 255),)
        case "square":
            return ((np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float), 255),)
        case "triangle":
            return ((np.array([(0, -1), (1.1, 0.9), (-1.1, 0.9)], float), 255),)
        case "star":
            return ((_star(), 255),)
        case "cross":
            return ((_cross(), 255),)
        case "ring":
            return ((_arc(1.0), 255), (_arc(0.55), 0))
        case "heart":
            return ((_heart(), 255),)
        case "diamond":
            return ((np.array([(0, -1.2), (0.78, 0), (0, 1.2), (-0.78, 0)], float), 255),)
        case "moon":
            return ((_arc(1.0), 255), (_arc(0.86) + (0.52, -0.1), 0))
    raise ValueError(f"unknown shape {name!r}: the shapes are {', '.join(SHAPES)}")


def shape_mask(name: str, side: float, angle: float) -> np.ndarray:
    """(h, w) uint8 coverage of a shape with a longer side of `side` pixels, turned by `angle` radians."""
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    polygons = [(points @ turn, value) for points, value in _outline(name)]
    body = polygons[0][0]
    low, size = body.min(0), np.ptp(body, axis=0)
    scale = side * _OVERSAMPLING / size.max()
    canvas = Image.new("L", tuple(int(np.ceil(v * scale / _OVERSAMPLING)) * _OVERSAMPLING for v in size))
    draw = ImageDraw.Draw(canvas)
    for points, value in polygons:
        draw.polygon([tuple(p) for p in (points - low) * scale], fill=value)
    return cut(np.asarray(canvas.reduce(_OVERSAMPLING)))


def ink_mask(ink: Image.Image, width: int, height: int) -> np.ndarray:
    """(h, w) uint8 coverage of the strokes of a small handwritten digit, enlarged smoothly to the size."""
    border = Image.new("L", (ink.width + 2, ink.height + 2))
    border.paste(ink, (1, 1))
    scale = (width / ink.width, height / ink.height)
    large = border.resize((round(border.width * scale[0]), round(border.height * scale[1])), Image.Resampling.BICUBIC)
    large = large.filter(ImageFilter.BoxBlur(scale[1] * 0.3))
    # a steep ramp around half ink makes strokes with smooth edges out of the blurred enlargement
    strokes = np.clip((np.asarray(large, np.float32) - 70) * 3.4, 0, 255).astype(np.uint8)
    return cut(strokes)


FACES = ("DejaVuSans-Bold.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSansMono-Bold.ttf")
PLAIN_FACE = "DejaVuSans.ttf"


@functools.cache
def font(face: str, size: int) -> ImageFont.FreeTypeFont:
    """A DejaVu face that comes with matplotlib, `size` pixels to the em."""
    path = package_file("matplotlib", "mpl-data", "fonts", "ttf", face)
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def text_mask(text: str, face: str, height: int, width: int | None = None) -> np.ndarray:
    """(h, w) uint8 coverage of type with capitals `height` pixels high, or less to be `width` wide."""
    size = max(6, round(height / 0.73))  # DejaVu's capitals are 0.73 em high
    if width is not None:
        while size > 6 and font(face, size).getlength(text) > width:
            size = min(size - 1, int(size * width / font(face, size).getlength(text)))
    face_font = font(face, size)
    left, top, right, bottom = face_font.getbbox(text)
    canvas = Image.new("L", (right - left + 2, bottom - top + 2))
    ImageDraw.Draw(canvas).text((1 - left, 1 - top), text, fill=255, font=face_font)
    return cut(np.asarray(canvas))


def cut(mask: np.ndarray) -> np.ndarray:
    """A coverage without the rows and columns at its edges that hardly hold anything."""
    there = mask >= 96
    rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
