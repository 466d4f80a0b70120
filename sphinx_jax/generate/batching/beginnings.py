"""What sequences about one picture begin with, held once: keys and values of BOS and the picture's positions."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import numpy as np

from sphinx_jax.config import ModelConfig, need
from sphinx_jax.generate.batching import programs
from sphinx_jax.generate.batching.jobs import Job, Slot
from sphinx_jax.generate.batching.sizes import Sizes
from sphinx_jax.model.cache import COMMON_AXES, Cache, Common, Grouping

GROUP = 8  # rows whose attention to a beginning is one product


class Beginnings:
    """Those of the pictures used last, by the pictures' names: as many as are in use, or `Sizes.beginnings` says."""

    def __init__(self, config: ModelConfig, sizes: Sizes):
        self.config, self.sizes = config, sizes
        # a picture for which there is no room is refused before it comes here
        self.positions = min(1 + config.image_positions, sizes.positions[-1]) if config.has_vision else 0
        self._cache: Cache | None = None
        self._names: dict[str, int] = {}  # the one used last comes last

    @property
    def places(self) -> int:
        return 0 if self._cache is None else self._cache.rows

    def lacks(self, sequence: Job) -> bool:
        """Whether the beginning of a sequence has to be read first."""
        return sequence.held > 0 and sequence.named not in self._names

    def put(self, name: str, read: Cache, row: int, busy: Collection[str | None], rows: int) -> None:
        """Hold a row of a cache under this name, in the place of one that is not busy, where `rows` are continued."""
        idle = [held for held in self._names if held not in busy]
        if len(self._names) == self.places and not idle:
            # one size after the other: programs for all pairs would be many
            self._resize(next(size for size in self.sizes.beginnings if size > self.places), busy)
        free = set(range(self.places)) - set(self._names.values())
        place = min(free) if free else self._names.pop(idle[0])
        assert self._cache is not None and self.places <= self.sizes.most_beginnings(rows)
        self._cache = programs.copy_row(self._cache, read, row, place)
        self._names[name] = place

    def take_over(self, others: Beginnings, names: Sequence[str], busy: Collection[str | None], rows: int) -> None:
        """Hold a copy of what others hold under these names, which are busy too, as `put` does."""
        for name in names:
            self.put(name, need(others._cache), others._names[name], busy, rows)

    def use(self, sequences: Sequence[Job]) -> None:
        for sequence in sequences:
            if sequence.held and sequence.named is not None:
                self._names[sequence.named] = self._names.pop(sequence.named)

    def shrink(self, rows: int, busy: Collection[str | None]) -> None:
        """No more than `rows` that are continued may need."""
        most = self.sizes.most_beginnings(rows)
        for size in reversed(self.sizes.beginnings):
            if most <= size < self.places:
                self._resize(size, busy)

    def _resize(self, places: int, busy: Collection[str | None]) -> None:
        """So many places; the longest unused go first."""
        if self._cache is None:
            self._cache = programs.empty(self.config, places, self.positions, COMMON_AXES)
            return
        chosen = sorted(self._names, key=lambda name: name in busy)[-places:]
        kept = [name for name in self._names if name in chosen]
        rows = [self._names[name] for name in kept]
        self._names = {name: place for place, name in enumerate(kept)}
        self._cache = programs.resized(self._cache, rows + [0] * (places - len(rows)), self.positions, COMMON_AXES)

    def common(self, rows: Sequence[Job | Slot], going: Collection[int]) -> Common | None:
        """What these rows have in common, of which those `going` are looked at; None where no row has a beginning."""
        held = [row.held for row in rows]
        if not any(held):
            return None
        assert self._cache is not None
        of = {i: self._names[need(rows[i].named)] for i in going if held[i]}
        return Common(self._cache, grouping(held, of))

    def nobodys(self, places: int, rows: int) -> Common:
        """So many beginnings, of which none of the rows has one."""
        return Common(programs.empty(self.config, places, self.positions, COMMON_AXES), grouping([0] * rows, {}))

    def warm_up(self) -> None:
        """Compile what moves beginnings, also from another batch's."""
        for places, more in itertools.zip_longest(self.sizes.beginnings, self.sizes.beginnings[1:]):
            held = self.nobodys(places, 1).cache
            if more:
                grown = programs.resized(held, [0] * more, self.positions, COMMON_AXES)
                programs.resized(grown, [0] * places, self.positions, COMMON_AXES)
            room = self.sizes.room(self.positions)
            for count in self.sizes.together(room):
                held = programs.copy_row(held, programs.empty(self.config, count, room), 0, 0)
            for theirs in self.sizes.beginnings:
                held = programs.copy_row(held, self.nobodys(theirs, 1).cache, 0, 0)


def grouping(held: Sequence[int], of: dict[int, int]) -> Grouping:
    """How rows are attended together: `held` positions of each row are its beginning's, `of` says which it has."""
    together = min(GROUP, len(held))
    rows = np.full((len(held), together), len(held), np.int32)
    beginning = np.zeros(len(held), np.int32)
    count = 0
    for place in dict.fromkeys(of.values()):
        those = [row for row, p in of.items() if p == place]
        for first in range(0, len(those), together):
            some = those[first : first + together]
            rows[count, : len(some)], beginning[count] = some, place
            count += 1
    return Grouping(np.array(held, np.int32), rows, beginning, np.int32(count))
