"""The order of an epoch over data too large to shuffle whole: a function of (seed, position), near in the files.

Neighbours in the order come from few places: pieces of the data are shuffled, some of them make a window; within a
window runs of items that lie side by side are shuffled, and within some runs the items.  So few files are open at a
time, a block that is read is used whole, and nothing is remembered but the window.
"""

from __future__ import annotations

import functools

import numpy as np

PIECE = 8192  # items, a shard's
WINDOW = 32  # pieces
GROUP = 64  # runs


class Order:
    """Position in an endless stream of epochs -> number of an item.

    Args:
      count: of items.
      run: items that lie side by side and are read together.
      piece, window, group: items of a piece, pieces of a window, runs whose items are mixed.
    """

    def __init__(self, count: int, seed: int, run: int, piece: int = PIECE, window: int = WINDOW, group: int = GROUP):
        if count < 1:
            raise ValueError("there is nothing to put in order")
        self.count, self.seed, self.run = count, seed, run
        self.piece, self.window, self.group = piece, window, group
        self._pieces = functools.lru_cache(2)(self._pieces_of)
        self._window = functools.lru_cache(2)(self._window_of)

    def __call__(self, position: int) -> int:
        epoch, at = divmod(position, self.count)
        ends = self._pieces(epoch)[1]
        number = int(np.searchsorted(ends, at, side="right")) // self.window
        begin = int(ends[number * self.window - 1]) if number else 0
        return int(self._window(epoch, number)[at - begin])

    def _pieces_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The pieces in their order, and where each ends in the epoch."""
        order = np.random.default_rng((self.seed, epoch)).permutation(-(-self.count // self.piece))
        sizes = np.minimum(self.piece, self.count - order * self.piece)
        return order, np.cumsum(sizes)

    def _window_of(self, epoch: int, number: int) -> np.ndarray:
        """Numbers of the items of a window, in their order."""
        rng = np.random.default_rng((self.seed, epoch, number))
        pieces = self._pieces(epoch)[0][number * self.window : (number + 1) * self.window]
        starts = np.concatenate(
            [np.arange(p * self.piece, min((p + 1) * self.piece, self.count), self.run) for p in pieces]
        )
        rng.shuffle(starts)
        ends = np.minimum(starts + self.run, np.minimum((starts // self.piece + 1) * self.piece, self.count))
        items = np.concatenate([np.arange(begin, end) for begin, end in zip(starts, ends, strict=True)])
        # groups of whole runs
        edges = np.concatenate([[0], np.cumsum(ends - starts)])[:: self.group]
        for part in np.split(items, edges[1:]):
            rng.shuffle(part)
        return items

    def __reduce__(self):
        return Order, (self.count, self.seed, self.run, self.piece, self.window, self.group)
