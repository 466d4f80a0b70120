"""The shares of data sets in a stream: which of them gives row n, and which of its rows that is.

Both are functions of n alone.  Shares may change from a row on, when a run is taken up again with others: each data set
then goes on where it was.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Multiples of the golden ratio, modulo 1, lie evenly at any number of them: a data set with share w of the unit
# interval gets a row in every 1/w or so.  Whole numbers, so that rows can be counted exactly.
WHOLE = 2**48
STEP = round(WHOLE * (5**0.5 - 1) / 2) | 1


@dataclass(frozen=True)
class Shares:
    """What a stream is made of from a row on.

    Attributes:
      begin: number of that row.
      of: data set -> share; they need not sum to 1.
    """

    begin: int
    of: Mapping[str, float]

    @functools.cached_property
    def ends(self) -> list[int]:
        """Where the part of [0, WHOLE) that is a data set's own ends, in the order of their names."""
        total = sum(self.of.values())
        return [round(WHOLE * (end / total)) for end in itertools.accumulate(self.of[name] for name in sorted(self.of))]

    @functools.cached_property
    def edges(self) -> dict[str, tuple[int, int]]:
        """Data set -> the part of [0, WHOLE) that is its own."""
        return dict(zip(sorted(self.of), itertools.pairwise([0, *self.ends]), strict=True))

    def alike(self, of: Mapping[str, float]) -> bool:
        """Whether these shares are those, but for rounding."""
        mine, other = sum(self.of.values()), sum(of.values())
        return self.of.keys() == of.keys() and all(abs(self.of[n] / mine - of[n] / other) < 1e-9 for n in of)


class Schedule(Sequence):
    """Row of a stream -> (number of its data set, row there).

    Args:
      phases: shares in the order of their begins, the first from row 0 on.
      names: the data sets of the last, as they are numbered.
    """

    def __init__(self, phases: Sequence[Shares], names: Sequence[str]):
        if not phases or phases[0].begin or any(a.begin > b.begin for a, b in itertools.pairwise(phases)):
            raise ValueError("shares are given in the order of their begins, the first from row 0 on")
        if any(share <= 0 for phase in phases for share in phase.of.values()):
            raise ValueError("a data set in the mix has a share above 0")
        if set(names) != phases[-1].of.keys():
            raise ValueError("the last shares are those of the data sets that are mixed")
        self.phases = tuple(phases)
        self.names = tuple(dict.fromkeys([*names, *(name for phase in phases for name in phase.of)]))
        self._order = [sorted(phase.of) for phase in phases]
        ends = [phase.begin for phase in phases[1:]]
        # rows that each data set had given when a phase began
        self._given = [dict.fromkeys(self.names, 0)]
        for phase, end in zip(phases, ends, strict=False):
            given = self._given[-1]
            self._given.append(given | {n: given[n] + _count(end - phase.begin, *phase.edges[n]) for n in phase.of})

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, row: int) -> tuple[int, int]:
        number, phase, given = self._phase(row)
        at = row - phase.begin
        place = at * STEP % WHOLE
        name = self._order[number][bisect.bisect_right(phase.ends, place)]
        return self.names.index(name), given[name] + _count(at, *phase.edges[name])

    def given(self, row: int) -> dict[str, int]:
        """How many rows before this one are of each data set."""
        _, phase, given = self._phase(row)
        return given | {name: given[name] + _count(row - phase.begin, *phase.edges[name]) for name in phase.of}

    def _phase(self, row: int) -> tuple[int, Shares, dict[str, int]]:
        # of two that begin with the same row the later counts
        number = max(i for i, phase in enumerate(self.phases) if phase.begin <= row)
        return number, self.phases[number], self._given[number]


def _count(rows: int, low: int, high: int) -> int:
    """How many of the first so many multiples of STEP lie in [low, high) modulo WHOLE."""
    # x mod WHOLE is at least y where (x - y) / WHOLE and x / WHOLE have the same whole part
    return _floors(rows, WHOLE - low) - _floors(rows, WHOLE - high)


def _floors(count: int, offset: int) -> int:
    """The sum of floor((i * STEP + offset) / WHOLE) over i < count, by the way of Euclid."""
    total, m, a, b = 0, WHOLE, STEP, offset
    while count:
        whole, a = divmod(a, m)
        total += whole * count * (count - 1) // 2
        whole, b = divmod(b, m)
        total += whole * count
        last = a * count + b
        if last < m:
            break
        count, b = divmod(last, m)
        m, a = a, m
    return total
