"""Scenes of one to four things, and of a single large one."""

from __future__ import annotations

import numpy as np
from PIL import Image

from sphinx_jax.data.playground import photos
from sphinx_jax.data.playground.canvas import Canvas, drop_shadow, new_canvas, paint
from sphinx_jax.data.playground.scene import PLACES, Scene, overlap, scene_of
from sphinx_jax.data.playground.things import (
    COLOURS,
    FACES,
    LIGHT_COLOURS,
    NUMBERS,
    SHAPES,
    Thing,
    ink_mask,
    shape_mask,
    text_mask,
)
from sphinx_jax.data.tasks import Box

# how often there are one, two, three and four things (mean 2.3), and how large they then are
COUNTS = (0.28, 0.30, 0.24, 0.18)
SIDES = ((0.38, 0.48), (0.34, 0.46), (0.30, 0.40), (0.27, 0.34))
"""Longer side of a thing as a share of the picture's longer side, by how many there are."""

SMALLEST = 0.26
NUMBER_SHARE = 0.3
HIDDEN = 0.08
"""Largest share of a thing's box that another may lie on."""


def things_scene(rng: np.random.Generator, domain: str, split: str) -> Scene:
    """One to four things; no two have both the same name and the same colour."""
    canvas = new_canvas(rng, domain, split)
    count = 1 + int(rng.choice(4, p=COUNTS))
    names = _names(rng, count)
    places = rng.permutation(len(PLACES))[:count] if rng.random() < 0.75 else [None] * count
    things: list[Thing] = []
    for (name, colour), place in zip(names, places, strict=True):
        side = rng.uniform(*SIDES[count - 1]) * canvas.side
        for attempt in range(40):
            box_side = max(side * 0.96 ** (attempt // 2), SMALLEST * canvas.side)
            box = _position(canvas, box_side, None if place is None or attempt > 24 else PLACES[place])
            if all(overlap(box, thing.box) <= HIDDEN for thing in things):
                things.append(put(canvas, name, colour, box))
                break
    return scene_of("things", canvas, things=tuple(things))


def single_scene(rng: np.random.Generator, domain: str, split: str) -> Scene:
    """One large thing about the middle: what pictures of a classification data set look like."""
    canvas = new_canvas(rng, domain, split)
    name, colour = _names(rng, 1)[0]
    side = rng.uniform(0.5, 0.68) * canvas.side
    box = _position(canvas, min(side, 0.94 * min(canvas.width, canvas.height)), "centre")
    return scene_of("single", canvas, things=(put(canvas, name, colour, box),))


def _names(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Different (name, colour) pairs; half of the time some share the name or the colour."""
    theme = rng.choice(("none", "name", "colour"), p=(0.45, 0.33, 0.22))
    shared_name, shared_colour = _name(rng), _colour(rng)
    together = int(rng.integers(2, count + 1)) if count > 1 and theme != "none" else 0
    chosen: list[tuple[str, str]] = []
    while len(chosen) < count:
        inside = len(chosen) < together
        pair = (
            shared_name if inside and theme == "name" else _name(rng),
            shared_colour if inside and theme == "colour" else _colour(rng),
        )
        if pair not in chosen:
            chosen.append(pair)
    return [chosen[i] for i in rng.permutation(count)]


def _name(rng: np.random.Generator) -> str:
    return photos.pick(rng, NUMBERS if rng.random() < NUMBER_SHARE else SHAPES)


def _colour(rng: np.random.Generator) -> str:
    return photos.pick(rng, tuple(COLOURS))


def _position(canvas: Canvas, side: float, place: str | None) -> Box:
    """A square of `side` pixels at a place, or anywhere, inside the picture."""
    rng = canvas.rng

    def start(length: int, word: str) -> float:
        room = length - side
        if word == "low":
            return min(rng.uniform(0.01, 0.06) * length, room)
        if word == "high":
            return max(room - rng.uniform(0.01, 0.06) * length, 0)
        if word == "middle":
            return room / 2 + rng.uniform(-0.045, 0.045) * length
        return rng.uniform(0.01, 0.99) * room

    across = down = "any"
    if place == "centre":
        across = down = "middle"
    elif place is not None:
        across = "low" if place.endswith("left") else "high"
        down = "low" if place.startswith("top") else "high"
    x = float(np.clip(start(canvas.width, across), 0, canvas.width - side))
    y = float(np.clip(start(canvas.height, down), 0, canvas.height - side))
    return Box(x, y, x + side, y + side)


def put(canvas: Canvas, name: str, colour: str, box: Box) -> Thing:
    """Draws a thing into a square box; the thing's own box is what it really covers."""
    rng = canvas.rng
    side = box.x2 - box.x1
    if name in SHAPES:
        # squares and diamonds would turn into one another
        most = 0.12 if name in ("square", "diamond", "cross") else 0.22
        return _lay(canvas, name, colour, shape_mask(name, side, rng.uniform(-most, most)), box)
    digit = int(name.removeprefix("number "))
    if not canvas.real:
        mask = text_mask(str(digit), photos.pick(rng, FACES), round(side))
        return _lay(canvas, name, colour, mask, box)
    ink, source = photos.handwritten(rng, canvas.split, digit)
    canvas.use(source)
    if rng.random() < 0.5:
        return _lay(canvas, name, colour, ink_mask(ink, _ink_width(ink.width, ink.height, side), round(side)), box)
    return _tag(canvas, name, colour, ink, box)


def _ink_width(width: int, height: int, tall: float) -> int:
    """Pixels of width of a digit made `tall`: as written, but a 1 not thinner than can be seen."""
    return round(tall * min(max(width / height, 0.36), 1.0))


def _corner(canvas: Canvas, width: int, height: int, box: Box) -> tuple[int, int]:
    """Left and top of something of this size about the middle of a box, inside the picture."""
    left = round((box.x1 + box.x2 - width) / 2)
    top = round((box.y1 + box.y2 - height) / 2)
    return min(max(left, 0), canvas.width - width), min(max(top, 0), canvas.height - height)


def _lay(canvas: Canvas, name: str, colour: str, mask: np.ndarray, box: Box) -> Thing:
    left, top = _corner(canvas, mask.shape[1], mask.shape[0], box)
    return Thing(name, colour, paint(canvas, mask, left, top, COLOURS[colour]))


def _tag(canvas: Canvas, name: str, colour: str, ink: Image.Image, box: Box) -> Thing:
    """A digit in coloured ink on a paper tag: the box is the tag's."""
    side = box.x2 - box.x1
    tall = side * 0.76
    mask = ink_mask(ink, _ink_width(ink.width, ink.height, tall), round(tall))
    wide, high = round(min(max(mask.shape[1] + 0.3 * side, 0.72 * side), side)), round(side)
    tag = paper(canvas, wide, high, *_corner(canvas, wide, high, box), dark=colour in LIGHT_COLOURS)
    left, top = _corner(canvas, mask.shape[1], mask.shape[0], tag)
    paint(canvas, mask, left, top, COLOURS[colour], shadow=False)
    return Thing(name, colour, tag)


def paper(canvas: Canvas, width: int, height: int, left: int, top: int, *, dark: bool = False) -> Box:
    """A smooth sheet of paper with its shadow; returns its box."""
    tone = np.array((60, 64, 70) if dark else (234, 230, 220), np.float32) + canvas.rng.integers(-8, 9)
    drop_shadow(canvas, np.full((height, width), 255, np.uint8), left, top)
    canvas.pixels[top : top + height, left : left + width] = tone
    return Box(left, top, left + width, top + height)
