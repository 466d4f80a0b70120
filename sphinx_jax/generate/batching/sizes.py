"""The few sizes that the programs of answering come in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sphinx_jax.sharding import platform

POSITIONS = 256  # of a cache, at least
READING = 4096  # positions of the prompts that are read together


@dataclass(frozen=True)
class Sizes:
    """Rows and tokens of programs, each in ascending order."""

    rows: tuple[int, ...]  # that are continued together
    prompts: tuple[int, ...]  # that are read together
    pieces: tuple[int, ...]  # tokens of a prompt that are read at once
    positions: tuple[int, ...]
    beginnings: tuple[int, ...]  # that are held for sequences that have them in common
    reading: int  # positions of those that are read together, at most, if they are several
    overhead: int  # what a pass through the weights costs, in tokens
    leaving: int  # one in so many answers has to end before the prompts of others are read

    @classmethod
    def of(cls, slots: int, max_positions: int, beginnings: int = 1) -> Sizes:
        """Finer on a CPU, where each row and token costs its share, than where a pass costs the same up to hundreds.

        Args:
          beginnings: that are held at least.
        """
        cpu = platform() == "cpu"
        pieces = (16, 32, 48, 64, 96, 128, 192, 256) if cpu else (64, 256, 1024)
        return cls(
            _ladder(1, slots, 2 if cpu else 4),
            tuple(p for p in ((1, 2, 4, 8, 16) if cpu else (1, 4, 16)) if p <= slots),
            tuple(sorted({min(p, max_positions) for p in pieces})),
            # a CPU does not attend to what is empty
            _ladder(min(POSITIONS, max_positions), max_positions, 4 if cpu else 2),
            _ladder(beginnings, max(slots, beginnings), 4),
            READING,
            16 if cpu else 256,
            slots if cpu else 4,
        )

    @property
    def between(self) -> int:
        """Positions of others' prompts for which whoever is answered waits at a time, or few more."""
        return self.pieces[-1] // 2

    def room(self, positions: int) -> int:
        return next(size for size in self.positions if size >= positions)

    def most_beginnings(self, rows: int) -> int:
        """How many are held at most where so many rows are continued."""
        return next(size for size in self.beginnings if size >= rows)

    def together(self, positions: int) -> tuple[int, ...]:
        """How many prompts that take so many positions may be read together."""
        return tuple(count for count in self.prompts if count == 1 or count * positions <= self.reading)

    def worth(self, lengths: Sequence[int], room: int) -> int:
        """How many of the first of these prompts, of which so many tokens are to be read, are read together.

        All rows are as long as the longest, so many at once are worth it where they are alike, or a pass costs much.
        """
        count = len(lengths)
        for fewer in reversed([p for p in self.prompts if p < count]):
            parts = [lengths[at : min(at + fewer, count)] for at in range(0, count, fewer)]
            if self._cost(lengths[:count], room) <= sum(self._cost(part, room) for part in parts):
                break
            count = fewer
        return count

    def piece(self, length: int, rows: int, room: int, most: float = math.inf) -> int:
        """How many tokens are read next where `length` are to be read in each of some rows.

        Args:
          most: of all rows, where a piece is as short as that.
        """
        fitting = self._fitting(room)
        short = tuple(p for p in fitting if p * rows <= most) or fitting[:1]
        return self._cheapest(length, self.overhead / rows, short)[1]

    def _cost(self, lengths: Sequence[int], room: int) -> float:
        rows = len(lengths)
        return rows * self._cheapest(max(lengths), self.overhead / rows, self._fitting(room))[0]

    def _fitting(self, room: int) -> tuple[int, ...]:
        return tuple(p for p in self.pieces if p <= room)

    def _cheapest(self, length: int, overhead: float, pieces: Sequence[int]) -> tuple[float, int]:
        """Cost of reading `length` tokens, and the first piece: one that holds all, or the largest that is filled."""
        whole = next((p for p in pieces if p >= length), None)
        part = max((p for p in pieces if p < length), default=None)
        ways = [] if whole is None else [(whole + overhead, whole)]
        if part is not None:
            count = (length - 1) // part if whole is None else 1
            rest = self._cheapest(length - count * part, overhead, pieces)[0]
            ways.append((count * (part + overhead) + rest, part))
        return min(ways) if ways else (overhead, max(pieces))


def _ladder(least: int, most: int, factor: int) -> tuple[int, ...]:
    steps = itertools.takewhile(lambda n: n < most, (least * factor**i for i in itertools.count()))
    return (*steps, most)
