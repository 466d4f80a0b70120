"""The order of an epoch over data too large to shuffle whole: a function of (seed, position), near in the files.

Neighbours in the order come from few places: pieces of the data are shuffled, some of them make a window; within a
window runs of items that lie side by side are shuffled, and within some runs the items.  So few files are open at a
time, a block that is read is used whole, and nothing is remembered but the window.
"""

from __future__ import annotations

import functools

import numpy as np

PIECE = 8192  # items of what has no shards
WINDOW = 32  # pieces
GROUP = 64  # runs


def even(count: int, piece: int = PIECE) -> np.ndarray:
    """Edges of pieces of so many items."""
    return np.append(np.arange(0, count, piece), count)


class Order:
    """Position in an endless stream of epochs -> number of an item.

    Args:
      edges: (pieces + 1,) where each piece of the data, a shard, begins, and where the last ends.
      run: items that lie side by side and are read together, counted from the begin of their piece.
      window, group: pieces of a window, runs whose items are mixed.
    """

    def __init__(self, edges: np.ndarray, seed: int, run: int, window: int = WINDOW, group: int = GROUP):
        self.edges, self.seed, self.run = np.asarray(edges, np.int64), seed, run
        self.count = int(self.edges[-1])
        if self.count < 1:
            raise ValueError("there is nothing to put in order")
        self.window, self.group = window, group
        self._pieces = functools.lru_cache(2)(self._pieces_of)
        self._window = functools.lru_cache(2)(self.numbers)

    def __call__(self, position: int) -> int:
        epoch, at = divmod(position, self.count)
        ends = self._pieces(epoch)[1]
        number = int(np.searchsorted(ends, at, side="right")) // self.window
        begin = int(ends[number * self.window - 1]) if number else 0
        return int(self._window(epoch, number)[at - begin])

    def _pieces_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The pieces in their order, and where each ends in the epoch."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.edges) - 1)
        return order, np.cumsum(np.diff(self.edges)[order])

    def pieces(self, epoch: int) -> np.ndarray:
        """Numbers of the pieces in the order of an epoch; each `window` of them are mixed."""
        return self._pieces(epoch)[0]

    def numbers(self, epoch: int, number: int) -> np.ndarray:
        """Numbers of the items of a window, in their order."""
        rng = np.random.default_rng((self.seed, epoch, number))
        pieces = self._pieces(epoch)[0][number * self.window : (number + 1) * self.window]
        runs = [self._runs(int(self.edges[piece]), int(self.edges[piece + 1])) for piece in pieces]
        found = np.concatenate(runs)
        rng.shuffle(found)
        items = np.concatenate([np.arange(begin, end) for begin, end in found])
        # groups of whole runs
        groups = np.concatenate([[0], np.cumsum(found[:, 1] - found[:, 0])])[:: self.group]
        for part in np.split(items, groups[1:]):
            rng.shuffle(part)
        return items

    def _runs(self, begin: int, end: int) -> np.ndarray:
        """(runs, 2) where each run of a piece begins and ends."""
        starts = np.arange(begin, end, self.run)
        return np.stack([starts, np.minimum(starts + self.run, end)], axis=1)

    def __reduce__(self):
        return Order, (self.edges, self.seed, self.run, self.window, self.group)
