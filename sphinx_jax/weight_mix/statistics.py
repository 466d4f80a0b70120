"""What a method of the weight mix must know of a whole matrix, gathered slice by slice.

Nothing here depends on how the rows are cut into slices: sums run in float64 over blocks of a fixed number of entries,
ranks are exact, and random bits belong to an entry's position.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

BLOCK = 2**15  # entries summed at a time
LOW_BITS = 16  # of a float32's pattern, which two histograms cover


class Slice(NamedTuple):
    """Some rows of one matrix, as float32, from every checkpoint of the mix."""

    start: int  # the first row, an index of the leading axis
    base: np.ndarray | None  # rows of the base, if the mix has one
    sources: list[np.ndarray]  # rows of each source


@dataclass(frozen=True)
class Unit:
    """One matrix (or vector) of one layer, of one expert: what a method mixes at a time.

    Args:
      name: stable, for it seeds the random methods.
      shape: rows are output features, as in torch; a vector is one row, though its slices cut it.
      slices: each call is one pass over all rows in order.
    """

    name: str
    shape: tuple[int, ...]
    slices: Callable[[], Iterator[Slice]]

    def map(self, change: Callable[[Slice], Slice]) -> Unit:
        """The unit whose slices are these, changed."""
        return replace(self, slices=lambda: map(change, self.slices()))

    def position(self, rows: Slice) -> int:
        """The index of the slice's first entry in the flattened matrix."""
        return rows.start * math.prod(self.shape[1:])


def task_vectors(unit: Unit) -> Unit:
    """The unit with x - base in the place of every source x; without a base, the unit."""
    return unit.map(lambda s: s if s.base is None else s._replace(sources=[x - s.base for x in s.sources]))


def totals(parts: Iterable[Sequence[np.ndarray]], of_block: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Σ `of_block` over N streams of arrays, which must give 0 for zeros.

    Args:
      parts: N arrays of one size at a time.
      of_block: float64 (N, BLOCK), the entries of the streams at the same positions -> float64 of any shape.
    """
    block, filled, total = np.zeros((0, BLOCK)), 0, 0.0
    for arrays in parts:
        if not len(block):
            block = np.zeros((len(arrays), BLOCK))
        done, size = 0, arrays[0].size
        flat = [x.reshape(-1) for x in arrays]
        while done < size:
            taken = min(BLOCK - filled, size - done)
            for row, x in zip(block, flat, strict=True):
                row[filled : filled + taken] = x[done : done + taken]
            done, filled = done + taken, filled + taken
            if filled == BLOCK:
                total, filled = total + of_block(block), 0
    block[:, filled:] = 0
    return total + of_block(block)


def gram(unit: Unit) -> np.ndarray:
    """float64 (N, N): the dot products of the N sources, each as one long vector."""
    return totals((s.sources for s in unit.slices()), lambda block: block @ block.T)


def row_gram(sources: Sequence[np.ndarray]) -> np.ndarray:
    """N arrays of R rows -> float64 (R, N, N): the dot products of the sources' rows."""
    rows = [x.reshape(len(x), -1).astype(np.float64) for x in sources]
    found = np.empty((len(rows[0]), len(rows), len(rows)))
    for i, x in enumerate(rows):
        for j, y in enumerate(rows[: i + 1]):
            found[:, i, j] = found[:, j, i] = (x * y).sum(axis=1)
    return found


def column_gram(unit: Unit) -> np.ndarray:
    """float64 (C, N, N): the dot products of the columns of N matrices (R, C)."""
    total = 0.0
    for s in unit.slices():
        for row in zip(*s.sources, strict=True):  # one at a time, so that the order of the sum is always the same
            entries = np.stack(row).astype(np.float64)
            total = total + entries[:, None] * entries[None]
    return np.moveaxis(total, (0, 1), (-2, -1))


def magnitudes(x: np.ndarray) -> np.ndarray:
    """Keys in the order of the absolute values of float32 entries, flattened: their bit pattern, uint32 below 2**31."""
    return np.abs(x).astype(np.float32, copy=False).reshape(-1).view(np.uint32)


class Cut(NamedTuple):
    """The first n entries, the largest first and of equals the first in order, as a threshold.

    They are those above `key`, and the first `ties` of those equal to it.
    """

    key: int
    ties: int


def cuts(passes: Callable[[], Iterator[Sequence[np.ndarray]]], counts: Sequence[Sequence[int]]) -> list[list[Cut]]:
    """The cuts after the `counts[i]` first entries of the i-th stream of keys, exact in two passes.

    The first pass counts the keys by their upper bits, the second those in a cut's bin by their lower bits.
    """
    upper = [np.zeros(2 ** (31 - LOW_BITS), np.int64) for _ in counts]
    for streams in passes():
        for found, keys in zip(upper, streams, strict=True):
            np.add.at(found, keys >> LOW_BITS, 1)
    bins = [[_descend(found, n) for n in wanted] for found, wanted in zip(upper, counts, strict=True)]

    lower = [[np.zeros(2**LOW_BITS, np.int64) for _ in wanted] for wanted in counts]
    for streams in passes():
        for wanted, found, keys in zip(bins, lower, streams, strict=True):
            for (high, _), count in zip(wanted, found, strict=True):
                inside = keys[keys >> LOW_BITS == high]
                np.add.at(count, inside & (2**LOW_BITS - 1), 1)
    return [
        [_cut(high, *_descend(count, left)) for (high, left), count in zip(wanted, found, strict=True)]
        for wanted, found in zip(bins, lower, strict=True)
    ]


def _descend(histogram: np.ndarray, n: int) -> tuple[int, int]:
    """The bin of the n-th largest entry, and how many of the first n are in that bin."""
    seen = np.cumsum(histogram[::-1])
    index = int(np.searchsorted(seen, n))
    found = len(histogram) - 1 - index
    return found, n - int(seen[index] - histogram[found])


def _cut(high: int, low: int, ties: int) -> Cut:
    return Cut((high << LOW_BITS) + low, ties)


class First:
    """Marks the entries that a cut keeps, in one pass over the keys: called with the next keys, gives their mask."""

    def __init__(self, cut: Cut):
        self._key, self._left = cut

    def __call__(self, keys: np.ndarray) -> np.ndarray:
        mask = keys > self._key
        equal = np.flatnonzero(keys == self._key)[: self._left]
        mask[equal] = True
        self._left -= len(equal)
        return mask


def random_bits(stream: str, start: int, count: int) -> np.ndarray:
    """uint32 (count,): the bits of the entries from position `start` in the random stream of that name.

    Counter-based (Philox4x64, Salmon et al., SC 2011), so any part can be drawn on its own: the key is the stream's
    128-bit BLAKE2b digest, and a counter step gives eight entries, the lower half of a word before the upper.
    """
    digest = hashlib.blake2b(stream.encode(), digest_size=16).digest()
    skipped = start % 8
    philox = np.random.Philox(key=np.frombuffer(digest, "<u8"), counter=start // 8)
    words = philox.random_raw((skipped + count + 1) // 2)
    return words.astype("<u8", copy=False).view("<u4")[skipped : skipped + count]
