"""A scene: a picture with everything that is known about it, and words for places in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sphinx_jax.data.playground.canvas import Canvas, finish
from sphinx_jax.data.playground.things import Thing
from sphinx_jax.data.tasks import Box, LayoutRegion, Pose, TextRegion

PLACES = ("top left", "top right", "bottom left", "bottom right", "centre")
"""The places that questions ask for; captions also know `left`, `right`, `top` and `bottom`."""


@dataclass(frozen=True)
class Person:
    """A person: box and keypoints in pixels, and the colour of their clothes."""

    colour: str
    box: Box
    pose: Pose


@dataclass(frozen=True)
class Scene:
    """Pixels (H, W, 3) uint8 and exact labels, all coordinates in pixels of the picture."""

    kind: str
    pixels: np.ndarray
    sources: tuple[str, ...] = ()
    things: tuple[Thing, ...] = ()
    texts: tuple[TextRegion, ...] = ()
    layout: tuple[LayoutRegion, ...] = ()
    people: tuple[Person, ...] = ()
    bars: tuple[tuple[str, int], ...] = ()
    """Names and values of a chart, left to right."""

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        return self.pixels.shape[0]

    def place(self, box: Box) -> str:
        """One of nine words for where the centre of a box is: `centre`, a side or a corner."""
        x, y = (box.x1 + box.x2) / 2 / self.width, (box.y1 + box.y2) / 2 / self.height
        row = "top" if y < 0.41 else "bottom" if y > 0.59 else ""
        column = "left" if x < 0.41 else "right" if x > 0.59 else ""
        return f"{row} {column}".strip() or "centre"

    def clear_place(self, box: Box) -> str | None:
        """One of `PLACES` if nobody could take it for another, else None."""
        x, y = (box.x1 + box.x2) / 2 / self.width, (box.y1 + box.y2) / 2 / self.height
        corner = abs(x - 0.5) > 0.12 and abs(y - 0.5) > 0.12
        centre = abs(x - 0.5) < 0.07 and abs(y - 0.5) < 0.07
        return self.place(box) if corner or centre else None


def scene_of(kind: str, canvas: Canvas, **labels) -> Scene:
    """The finished scene of a canvas."""
    return Scene(kind, finish(canvas), tuple(canvas.sources), **labels)


def overlap(a: Box, b: Box) -> float:
    """Shared area over the area of the smaller box."""
    w, h = min(a.x2, b.x2) - max(a.x1, b.x1), min(a.y2, b.y2) - max(a.y1, b.y1)
    return w * h / min(a.area, b.area) if w > 0 and h > 0 else 0.0
