"""Pictures of a benchmark that a model may have been trained on: by content, by look, and by COCO's numbers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from sphinx_jax.data.image import BadImage, ImageSource, load_image
from sphinx_jax.data.read_ahead import read_ahead

ALIKE = 4  # bits of 64 in which the hashes of two pictures may differ that look the same
ROWS, COLUMNS = 8, 9  # of grey values that the hash compares, each with its neighbour
PART = 4096  # pictures that are compared at once
FLAT = 2  # grey values in which neighbours may differ in a picture of one colour, which is like any other

_NUMBER = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})\.(?:jpe?g|png)$")

How = Literal["content", "look", "number"]


class Seen(NamedTuple):
    """What a picture is known by.

    Attributes:
      content: SHA-256 of its pixels.
      look: 64 bits, of each pair of neighbours in a small grey copy which is lighter; None of a picture of one colour.
    """

    content: str
    look: int | None


@dataclass(frozen=True)
class Pair:
    """A picture of a benchmark and one of the training list that is the same."""

    benchmark: str
    trained: str
    how: How
    bits: int = 0  # that differ


def seen(image: ImageSource) -> Seen:
    """Raises BadImage."""
    picture = load_image(image).convert("RGB")
    content = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
    grey = np.asarray(picture.convert("L").resize((COLUMNS, ROWS), Image.Resampling.BOX), np.int16)
    lighter = grey[:, 1:] > grey[:, :-1]
    flat = int(np.ptp(grey)) <= FLAT
    return Seen(content, None if flat else int.from_bytes(np.packbits(lighter).tobytes()))


def coco_number(name: str) -> int | None:
    """COCO's number of a picture, by its file's name; train2014, val2014 and train2017 share numbers."""
    found = _NUMBER.search(name)
    return int(found[1]) if found else None


class Pictures:
    """Pictures that were seen, by name."""

    def __init__(self, names: Iterable[str] = (), found: Iterable[Seen] = ()):
        self.names = list(names)
        found = list(found)
        self.contents: dict[str, list[int]] = {}
        for place, one in enumerate(found):
            self.contents.setdefault(one.content, []).append(place)
        self.with_look = np.array([i for i, one in enumerate(found) if one.look is not None], np.int64)
        self.looks = np.array([one.look for one in found if one.look is not None], np.uint64)


def look_at(pictures: Iterable[tuple[str, ImageSource]], bar: Any = None) -> tuple[Pictures, dict[str, str]]:
    """Named pictures, read by threads -> what they are known by; and names of those that cannot be read, with why."""
    names, found, bad = [], [], {}
    given = list(pictures)
    for (name, _), done in zip(given, read_ahead(lambda one: seen(one[1]), given), strict=True):
        try:
            found.append(done.result())
            names.append(name)
        except BadImage as error:
            bad[name] = str(error)
        if bar is not None:
            bar.update()
    return Pictures(names, found), bad


def pairs(benchmark: Pictures, trained: Pictures, alike: int = ALIKE) -> Iterator[Pair]:
    """Pictures that both have: each pair once, by the surest of the ways."""
    told: set[tuple[int, int]] = set()
    for content, places in benchmark.contents.items():
        for i in places:
            for j in trained.contents.get(content, ()):
                told.add((i, j))
                yield Pair(benchmark.names[i], trained.names[j], "content")
    for begin in range(0, len(benchmark.looks), PART):
        for at in range(0, len(trained.looks), PART):
            apart = benchmark.looks[begin : begin + PART, None] ^ trained.looks[None, at : at + PART]
            bits = np.bitwise_count(apart)
            for row, column in np.argwhere(bits <= alike):
                i, j = int(benchmark.with_look[begin + row]), int(trained.with_look[at + column])
                if (i, j) not in told:
                    told.add((i, j))
                    yield Pair(benchmark.names[i], trained.names[j], "look", int(bits[row, column]))
    numbers: dict[int, list[int]] = {}
    for j, name in enumerate(trained.names):
        if (number := coco_number(name)) is not None:
            numbers.setdefault(number, []).append(j)
    for i, name in enumerate(benchmark.names):
        for j in numbers.get(coco_number(name) or -1, ()):
            if (i, j) not in told:
                yield Pair(benchmark.names[i], trained.names[j], "number")
