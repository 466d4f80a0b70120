"""The rows of a running batch: whose each is, and its keys and values in one cache."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from sphinx_jax.config import ModelConfig, need
from sphinx_jax.generate.batching import programs
from sphinx_jax.generate.batching.jobs import Job, Slot
from sphinx_jax.generate.batching.parked import MOST, Parked, has_room, is_worth_it, park
from sphinx_jax.generate.batching.programs import Rows
from sphinx_jax.generate.batching.sizes import Sizes
from sphinx_jax.model.cache import Cache

SHARED = 16  # positions that two sequences must have in common for one to take them from the other
Source = int | Parked  # where a row is copied from: a slot, or what was one


class Slots:
    """Slots, and the cache whose rows they are; there is none before the first sequence comes."""

    def __init__(self, config: ModelConfig, sizes: Sizes):
        self.config, self.sizes = config, sizes
        self._cache: Cache | None = None
        self._slots: list[Slot] = []
        self._parked: list[Parked] = []  # those used last come last

    def clear(self) -> None:
        """No slots; nobody is in one."""
        self._park(self.free, 0)
        self._cache, self._slots = None, []

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def __getitem__(self, number: int) -> Slot:
        return self._slots[number]

    @property
    def cache(self) -> Cache:
        return need(self._cache)

    @cache.setter
    def cache(self, cache: Cache) -> None:
        self._cache = cache

    @property
    def positions(self) -> int:
        """Of each row."""
        return 0 if self._cache is None else self._cache.positions

    @property
    def free(self) -> list[int]:
        return [number for number, slot in enumerate(self._slots) if slot.sequence is None]

    @property
    def named(self) -> set[str | None]:
        """Names of the pictures that sequences in slots are about."""
        return {slot.named for slot in self._slots if slot.sequence is not None}

    def best_source(self, sequence: Job) -> tuple[int, Source | None]:
        """How many positions of a sequence are there already, and what holds those beyond its beginning.

        Not to be asked while prompts are read: their slots do not hold yet what they say.
        """
        there: list[tuple[int, Source]] = [(slot.shares(sequence), n) for n, slot in enumerate(self._slots)]
        there += [(parked.slot.shares(sequence), parked) for parked in self._parked]
        shared, source = max(there, key=lambda one: one[0], default=(0, None))
        return (shared, source) if shared >= sequence.held + SHARED else (sequence.held, None)

    def enter(self, slot: Slot, shared: int, source: Source | None) -> int:
        """The number of a free slot that is this one from now on.

        The one that has the most in common, if it is free; else the one that was left the longest ago, which is held
        apart where somebody may come back to it.

        Args:
          shared: positions that are taken over from `source`.
        """
        free = self.free
        number = source if source in free else min(free, key=lambda i: self._slots[i].used)
        self._parked = [parked for parked in self._parked if parked is not source]
        if isinstance(source, Parked) and is_worth_it(source.slot, shared):
            self._parked.append(source)
        if is_worth_it(self._slots[number], shared if source == number else 0):
            self._park([number], len(self._slots))
        self._slots[number] = slot
        return number

    def copy(self, into: Cache, row: int, source: Source) -> Cache:
        """Row `row` of another cache, which is taken over, becomes that of a source."""
        if isinstance(source, Parked):
            return source.copy(into, row, self.sizes)
        return programs.copy_row(into, self.cache, source, row)

    def _park(self, numbers: Sequence[int], rows: int) -> None:
        """Hold the last used of these slots apart, as many as there may be beside so many rows."""
        worth = sorted((n for n in numbers if is_worth_it(self._slots[n])), key=lambda n: self._slots[n].used)
        most = self._most_parked(rows)
        if worth and most and has_room(self.cache):
            self._parked += [park(self.config, self.sizes, self._slots[n], self.cache, n) for n in worth[-most:]]
            self._parked = self._parked[-most:]

    def _keep_parked(self, rows: int, positions: int) -> None:
        """Let go of what is held apart where so many rows of so many positions leave no room for it."""
        most = self._most_parked(rows)
        if self._cache is not None and not has_room(self._cache, rows * positions):
            most = 0
        self._parked = self._parked[max(0, len(self._parked) - most) :]

    def _most_parked(self, rows: int) -> int:
        return max(0, min(MOST, self.sizes.rows[-1] - rows))

    def make_room(self, more: int, positions: int) -> bool:
        """Have slots for so many more, with so many positions; whether there were none before."""
        busy = len(self._slots) - len(self.free)
        rows = next(size for size in self.sizes.rows if size >= busy + more)
        positions = self.sizes.room(positions)
        if rows > len(self._slots) or positions > self.positions:
            self._keep_parked(max(rows, len(self._slots)), max(positions, self.positions))
        if self._cache is None:
            self._cache = programs.empty(self.config, rows, positions)
            self._slots = [Slot() for _ in range(rows)]
            return True
        # one size after the other: programs for all pairs would be many
        for size in self.sizes.positions:
            if self.positions < size <= positions:
                self._take(list(range(len(self._slots))), size)
        for size in self.sizes.rows:
            if len(self._slots) < size <= rows:
                self._take([*range(len(self._slots)), *[0] * (size - len(self._slots))], self.positions)
        return False

    def shrink(self) -> None:
        """Fewer rows where few go on; the longest unused go first."""
        busy = len(self._slots) - len(self.free)
        for size in reversed([size for size in self.sizes.rows if busy <= size < len(self._slots)]):
            by_use = sorted(self.free, key=lambda number: self._slots[number].used)
            gone = by_use[: len(self._slots) - size]
            self._park(gone, size)
            self._take([number for number in range(len(self._slots)) if number not in gone], self.positions)

    def _take(self, rows: Sequence[int], positions: int) -> None:
        """Lay the cache out anew: these rows; one that is named again is free."""
        self._cache = programs.resized(self.cache, rows, positions)
        first = {row: number for number, row in reversed(list(enumerate(rows)))}
        self._slots = [self._slots[row] if first[row] == number else Slot() for number, row in enumerate(rows)]

    def rows(self, numbers: Sequence[int], going: Collection[int]) -> Rows:
        """The rows of these slots, of which those `going` are to say something."""
        rows = programs.idle(len(numbers))
        for i, number in enumerate(numbers):
            slot = self._slots[number]
            rows.position[i] = len(slot.ids)
            if number not in going or (s := slot.sequence) is None:
                continue
            ids = s.ids
            rows.token[i], rows.position[i], rows.said[i] = ids[-1], len(ids) - 1, len(s.said)
            rows.left_out[i] = s.seen.left_out if s.seen else 0
            rows.left[i] = s.most - len(s.said)
            rows.state[i] = slot.state
            for of_all, value in zip(rows.rule, s.rule, strict=True):
                of_all[i] = value
            rows.key[i] = programs.key_of(s.seed)
        return rows
