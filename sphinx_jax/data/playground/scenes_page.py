"""Scenes of documents: pages of titles, paragraphs, figures and tables, and bar charts."""

from __future__ import annotations

import numpy as np

from sphinx_jax.data.playground import photos
from sphinx_jax.data.playground.canvas import Canvas, new_canvas, paint
from sphinx_jax.data.playground.scene import Scene, scene_of
from sphinx_jax.data.playground.scenes_text import WORDS, handwriting_mask
from sphinx_jax.data.playground.things import COLOURS, FACES, PLAIN_FACE, SHAPES, Thing, shape_mask, text_mask
from sphinx_jax.data.tasks import Box, LayoutRegion

BLOCKS = ("title", "paragraph", "figure", "table")
INK = (34, 34, 38)


def page_scene(rng: np.random.Generator, domain: str, split: str) -> Scene:
    """A page of two to four blocks in reading order: perhaps a title, then rows of one or two blocks."""
    canvas = new_canvas(rng, domain, split, paper=True)
    margin = round(0.06 * canvas.side)
    y = margin
    things: list[Thing] = []

    def add(kind: str, x1: float, y1: float, x2: float, y2: float) -> None:
        box = _DRAW[kind](canvas, Box(round(x1), round(y1), round(x2), round(y2)))
        things.append(Thing(kind, "", box))

    if rng.random() < 0.6:
        tall = round(0.11 * canvas.side)
        add("title", margin, y, canvas.width - margin, y + tall)
        y = round(things[-1].box.y2) + margin
    rows = 2 if rng.random() < 0.75 else 1
    heights = rng.uniform(0.8, 1.2, rows)
    heights *= (canvas.height - margin - y - (rows - 1) * margin) / heights.sum()
    for tall in heights:
        pair = rng.random() < 0.3 or (rows == 1 and not things)
        halves = [(margin, canvas.width - margin)]
        if pair:
            middle = canvas.width / 2
            halves = [(margin, middle - margin / 2), (middle + margin / 2, canvas.width - margin)]
        for x1, x2 in halves:
            add(photos.pick(rng, BLOCKS[1:]), x1, y, x2, y + tall)
        y += tall + margin
    layout = tuple(LayoutRegion(thing.name, thing.box) for thing in things)
    return scene_of("page", canvas, things=tuple(things), layout=layout)


def _ink(canvas: Canvas, mask: np.ndarray, left: int, top: int) -> Box:
    """Printed or written ink: flat, whatever the domain."""
    cover = mask.astype(np.float32)[..., None] / 255
    area = canvas.pixels[top : top + mask.shape[0], left : left + mask.shape[1]]
    area += cover * (np.array(INK, np.float32) - area)
    return Box(left, top, left + mask.shape[1], top + mask.shape[0])


def _union(boxes: list[Box]) -> Box:
    return Box(min(b.x1 for b in boxes), min(b.y1 for b in boxes), max(b.x2 for b in boxes), max(b.y2 for b in boxes))


def _random_digits(canvas: Canvas, count: int) -> str:
    return "".join(str(d) for d in canvas.rng.integers(0, 10, count))


def _title(canvas: Canvas, box: Box) -> Box:
    rng, wide, tall = canvas.rng, int(box.x2 - box.x1), int(box.y2 - box.y1)
    if canvas.real:
        mask = handwriting_mask(canvas, _random_digits(canvas, int(rng.integers(5, 8))), tall, wide)
    else:
        words = " ".join(photos.pick(rng, WORDS) for _ in range(2))
        mask = text_mask(words, photos.pick(rng, FACES), round(tall * 0.9), wide)
    return _ink(canvas, mask, round(box.x1 + (wide - mask.shape[1]) / 2), round(box.y1))


def _paragraph(canvas: Canvas, box: Box) -> Box:
    """Lines of small print; real: part of a photographed page if the split has one, or written numbers."""
    rng, wide, tall = canvas.rng, int(box.x2 - box.x1), int(box.y2 - box.y1)
    sheets = photos.MATERIAL[canvas.split].sheets
    if canvas.real and sheets and rng.random() < 0.5:
        name = canvas.use(photos.pick(rng, sheets))
        canvas.pixels[int(box.y1) : int(box.y2), int(box.x1) : int(box.x2)] = photos.window(rng, name, wide, tall)
        return box
    pitch = 9 if canvas.real else 8
    line = _written_line(canvas, wide) if canvas.real else None
    boxes = []
    for top in range(int(box.y1), int(box.y2) - 6, pitch):
        if canvas.real:
            # one written line, turned by another amount each time, stands for many: each digit takes its time
            mask = np.roll(line, int(rng.integers(wide)), axis=1)
        else:
            words = " ".join(photos.pick(rng, WORDS).lower() for _ in range(2 + wide // 16))
            mask = _small_print(words, wide)
        last = top + 2 * pitch > int(box.y2) - 6
        if last and boxes:
            mask = mask[:, : round(wide * rng.uniform(0.4, 0.8))]
        boxes.append(_ink(canvas, mask, int(box.x1), top))
    return _union(boxes)


def _small_print(text: str, wide: int) -> np.ndarray:
    return text_mask(text, PLAIN_FACE, 5)[:7, :wide]


def _written_line(canvas: Canvas, wide: int) -> np.ndarray:
    line = np.zeros((7, wide), np.uint8)
    x = 0
    while x < wide - 8:
        word = handwriting_mask(canvas, _random_digits(canvas, int(canvas.rng.integers(2, 5))), 6)[:7]
        word = word[:, : wide - x]
        line[: word.shape[0], x : x + word.shape[1]] = word
        x += word.shape[1] + 4
    return line


def _figure(canvas: Canvas, box: Box) -> Box:
    """Real: a photograph. Synthetic: a shape on a coloured ground."""
    rng = canvas.rng
    x1, y1, x2, y2 = (int(v) for v in (box.x1, box.y1, box.x2, box.y2))
    if canvas.real:
        name = canvas.use(photos.pick(rng, photos.MATERIAL[canvas.split].backgrounds))
        canvas.pixels[y1:y2, x1:x2] = photos.window(rng, name, x2 - x1, y2 - y1)
        return box
    ground, ink = (COLOURS[name] for name in rng.permutation(list(COLOURS)[:6])[:2])
    canvas.pixels[y1:y2, x1:x2] = 0.55 * np.array(ground, np.float32) + 0.45 * 255
    mask = shape_mask(photos.pick(rng, SHAPES), 0.7 * min(x2 - x1, y2 - y1), 0.0)
    paint(canvas, mask, (x1 + x2 - mask.shape[1]) // 2, (y1 + y2 - mask.shape[0]) // 2, ink)
    return box


def _table(canvas: Canvas, box: Box) -> Box:
    """Ruled lines with a number in most cells."""
    rng = canvas.rng
    x1, y1, x2, y2 = (int(v) for v in (box.x1, box.y1, box.x2, box.y2))
    columns, rows = int(rng.integers(2, 5)), max(2, (y2 - y1) // int(rng.integers(14, 20)))
    xs, ys = np.linspace(x1, x2 - 1, columns + 1).astype(int), np.linspace(y1, y2 - 1, rows + 1).astype(int)
    tall = min(int(ys[1] - ys[0]) - 5, 11)
    for top in ys[:-1]:
        for left in xs[:-1]:
            if rng.random() < 0.85 and tall > 4:
                digit = _random_digits(canvas, 1)
                mask = handwriting_mask(canvas, digit, tall) if canvas.real else text_mask(digit, FACES[0], tall)
                _ink(canvas, mask, int(left) + 4, int(top) + 3)
    for x in xs:
        canvas.pixels[y1:y2, x] = INK
    for y in ys:
        canvas.pixels[y, x1:x2] = INK
    return Box(x1, y1, x2, y2)


_DRAW = {"title": _title, "paragraph": _paragraph, "figure": _figure, "table": _table}

HIGHEST = 9
BAR_LETTERS = "ABCDEFGH"


def chart_scene(rng: np.random.Generator, domain: str, split: str) -> Scene:
    """Two to four bars of heights 1 to 9: a letter (real: a written digit) below each, its value above."""
    canvas = new_canvas(rng, domain, split, paper=True)
    count = int(rng.integers(2, 5))
    values = [int(v) for v in rng.integers(1, HIGHEST + 1, count)]
    letters = "0123456789" if canvas.real else BAR_LETTERS
    names = [letters[i] for i in rng.permutation(len(letters))[:count]]
    colours = [str(c) for c in rng.permutation([c for c in COLOURS if c != "white"])[:count]]
    tall = round(0.13 * canvas.height)
    base, ceiling = canvas.height - tall - 8, tall + 8
    left, right = round(0.08 * canvas.width), round(0.96 * canvas.width)
    _rules(canvas, left, right, base, ceiling)
    pitch = (right - left) / count
    bar_width = round(min(0.62 * pitch, 0.3 * canvas.width))
    things, bars = [], []
    for place, (name, value, colour) in enumerate(zip(names, values, colours, strict=True)):
        x = round(left + (place + 0.5) * pitch - bar_width / 2)
        high = max(4, round(value / HIGHEST * (base - ceiling)))
        box = paint(canvas, np.full((high, bar_width), 255, np.uint8), x, base - high, COLOURS[colour], shadow=False)
        for text, top in ((name, base + 4), (str(value), base - high - tall - 2)):
            mask = handwriting_mask(canvas, text, tall) if canvas.real else text_mask(text, FACES[0], tall)
            mask = mask[: canvas.height - top - 1]
            _ink(canvas, mask, round(x + (bar_width - mask.shape[1]) / 2), top)
        things.append(Thing(f"bar {name}", colour, box))
        bars.append((name, value))
    return scene_of("chart", canvas, things=tuple(things), bars=tuple(bars))


def _rules(canvas: Canvas, left: int, right: int, base: int, ceiling: int) -> None:
    """The two axes, and a faint line for every third unit."""
    for value in range(3, HIGHEST + 1, 3):
        y = round(base - value / HIGHEST * (base - ceiling))
        canvas.pixels[y, left:right] *= 0.82
    canvas.pixels[base : base + 2, left - 2 : right] = INK
    canvas.pixels[ceiling:base, left - 2 : left] = INK
