"""Pictures of a benchmark that a model may have been trained on: by content, by look, and by COCO's numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sphinx_jax.data.image import BadImage, ImageSource
from sphinx_jax.data.read_ahead import read_ahead
from sphinx_jax.data.seen import Seen, coco_number, seen

ALIKE = 4  # bits of 64 in which the hashes of two pictures may differ that look the same
PART = 4096  # pictures that are compared at once

How = Literal["content", "look", "number"]


@dataclass(frozen=True)
class Pair:
    """A picture of a benchmark and one of the training list that is the same."""

    benchmark: str
    trained: str
    how: How
    bits: int = 0  # that differ


class Pictures:
    """Pictures that were seen, by name; behind them names of others, which have numbers all the same."""

    def __init__(self, names: Iterable[str] = (), found: Iterable[Seen] = ()):
        self.names = list(names)
        found = list(found)
        self.contents: dict[str, list[int]] = {}
        for place, one in enumerate(found):
            self.contents.setdefault(one.content, []).append(place)
        self.with_look = np.array([i for i, one in enumerate(found) if one.look is not None], np.int64)
        self.looks = np.array([one.look for one in found if one.look is not None], np.uint64)


def look_at(
    pictures: Iterable[tuple[str, ImageSource]], bar: Any = None, unread: Iterable[str] = ()
) -> tuple[Pictures, dict[str, str]]:
    """Named pictures, read by threads -> what they are known by; and names of those that cannot be read, with why.

    Args:
      unread: names of more, which are not there.
    """
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
    return Pictures([*names, *bad, *unread], found), bad


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
