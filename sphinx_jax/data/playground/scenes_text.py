"""Scenes of text: one to three typeset words, or numbers in real handwriting."""

from __future__ import annotations

import numpy as np

from sphinx_jax.data.playground import photos
from sphinx_jax.data.playground.canvas import Canvas, new_canvas, paint
from sphinx_jax.data.playground.scene import Scene, scene_of
from sphinx_jax.data.playground.scenes_things import paper
from sphinx_jax.data.playground.things import COLOURS, FACES, LIGHT_COLOURS, Thing, ink_mask, text_mask
from sphinx_jax.data.tasks import Box, TextRegion

WORDS = tuple(
    [
        "GO",
        "UP",
        "NO",
        "ON",
        "IN",
        "CAT",
        "DOG",
        "SUN",
        "SKY",
        "CAR",
        "BUS",
        "RED",
        "BOX",
        "CUP",
        "HAT",
        "MAP",
        "PEN",
        "KEY",
        "BED",
        "EGG",
        "ICE",
        "JAM",
        "LEG",
        "NUT",
        "OAK",
        "OWL",
        "PIG",
        "RAT",
        "SEA",
        "TEA",
        "TREE",
        "BIRD",
        "FISH",
        "MOON",
        "STAR",
        "RAIN",
        "SNOW",
        "WIND",
        "FIRE",
        "LAKE",
        "ROAD",
        "SHIP",
        "BOOK",
        "DOOR",
        "LAMP",
        "MILK",
        "RICE",
        "SALT",
        "SHOE",
        "WOLF",
        "BREAD",
        "CHAIR",
        "CLOUD",
        "GRASS",
        "HORSE",
        "HOUSE",
        "PLANT",
        "RIVER",
        "STONE",
        "TABLE",
    ]
)
"""What typeset texts say: 60 words of two to five letters."""


def text_scene(rng: np.random.Generator, domain: str, split: str) -> Scene:
    """One to three texts in different colours, one above the other, sorted from top to bottom."""
    canvas = new_canvas(rng, domain, split)
    count = 1 + int(rng.choice(3, p=(0.36, 0.36, 0.28)))
    band = canvas.height / count
    colours = rng.permutation(list(COLOURS))[:count]
    texts = _texts(rng, domain, count)
    things = []
    for row, (text, colour) in enumerate(zip(texts, colours, strict=True)):
        tall = round(min(rng.uniform(0.46, 0.64) * band, 0.34 * canvas.height))
        wide = round(rng.uniform(0.72, 0.9) * canvas.width)
        write = _handwriting if canvas.real else _type
        box = write(canvas, text, str(colour), (row * band, (row + 1) * band), tall, wide)
        things.append(Thing(f"text {text}", str(colour), box))
    regions = tuple(TextRegion(text, thing.box) for text, thing in zip(texts, things, strict=True))
    return scene_of("text", canvas, things=tuple(things), texts=regions)


def _texts(rng: np.random.Generator, domain: str, count: int) -> list[str]:
    if domain == "synthetic":
        return [WORDS[i] for i in rng.choice(len(WORDS), count, replace=False)]
    found: list[str] = []
    while len(found) < count:
        digits = "".join(str(d) for d in rng.integers(0, 10, int(rng.integers(2, 4))))
        if digits not in found:
            found.append(digits)
    return found


def _start(rng: np.random.Generator, band: tuple[float, float], tall: int, room: int) -> tuple[int, int]:
    """Left and top of something `tall` pixels high in a band, with `room` pixels left to its sides."""
    middle = (band[0] + band[1] - tall) / 2
    slack = max((band[1] - band[0] - tall) / 2 - 4, 0)
    return int(rng.integers(2, max(room - 2, 3))), round(middle + rng.uniform(-slack, slack))


def _type(canvas: Canvas, text: str, colour: str, band: tuple[float, float], tall: int, wide: int) -> Box:
    mask = text_mask(text, photos.pick(canvas.rng, FACES), tall, wide)
    left, top = _start(canvas.rng, band, mask.shape[0], canvas.width - mask.shape[1])
    return paint(canvas, mask, left, top, COLOURS[colour])


def _handwriting(canvas: Canvas, text: str, colour: str, band: tuple[float, float], tall: int, wide: int) -> Box:
    mask = handwriting_mask(canvas, text, tall, wide)
    left, top = _start(canvas.rng, band, mask.shape[0], canvas.width - mask.shape[1])
    if canvas.rng.random() < 0.6:
        edge = 4
        x1, y1 = max(left - edge, 0), max(top - edge, 0)
        x2, y2 = (
            min(left + mask.shape[1] + edge, canvas.width),
            min(top + mask.shape[0] + edge, canvas.height),
        )
        paper(canvas, x2 - x1, y2 - y1, x1, y1, dark=colour in LIGHT_COLOURS)
        return paint(canvas, mask, left, top, COLOURS[colour], shadow=False)
    return paint(canvas, mask, left, top, COLOURS[colour])


def handwriting_mask(canvas: Canvas, digits: str, tall: int, wide: int | None = None) -> np.ndarray:
    """(h, w) uint8 coverage of written digits in a row, `tall` pixels high, or less to be `wide` at most."""
    inks = []
    for digit in digits:
        ink, source = photos.handwritten(canvas.rng, canvas.split, int(digit))
        canvas.use(source)
        inks.append(ink)
    widths = [min(max(ink.width / ink.height, 0.3), 0.9) for ink in inks]
    gap = 0.18
    if wide is not None:
        tall = max(3, min(tall, int(wide / (sum(widths) + gap * (len(digits) - 1)))))
    masks = [ink_mask(ink, max(2, round(width * tall)), tall) for ink, width in zip(inks, widths, strict=True)]
    space = max(1, round(gap * tall))
    row = np.zeros(
        (max(m.shape[0] for m in masks), sum(m.shape[1] for m in masks) + space * (len(masks) - 1)), np.uint8
    )
    x = 0
    for mask in masks:
        row[: mask.shape[0], x : x + mask.shape[1]] = mask
        x += mask.shape[1] + space
    return row
