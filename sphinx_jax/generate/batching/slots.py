"""The rows of a running batch: whose each is, and its keys and values in one cache."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from sphinx_jax.config import ModelConfig, need
from sphinx_jax.generate.batching import programs
from sphinx_jax.generate.batching.jobs import Job, Slot
from sphinx_jax.generate.batching.programs import Rows
from sphinx_jax.generate.batching.sizes import Sizes
from sphinx_jax.model.cache import Cache

SHARED = 16  # positions that two sequences must have in common for one to take them from the other


class Slots:
    """Slots, and the cache whose rows they are; there is none before the first sequence comes."""

    def __init__(self, config: ModelConfig, sizes: Sizes):
        self.config, self.sizes = config, sizes
        self.clear()

    def clear(self) -> None:
        self._cache: Cache | None = None
        self._slots: list[Slot] = []

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def __getitem__(self, number: int) -> Slot:
        return self._slots[number]

    def __setitem__(self, number: int, slot: Slot) -> None:
        self._slots[number] = slot

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

    def best_source(self, sequence: Job) -> tuple[int, int | None]:
        """How many positions of a sequence are there already, and which slot holds those beyond its beginning.

        Not to be asked while prompts are read: their slots do not hold yet what they say.
        """
        shared, slot = max(
            ((slot.shares(sequence), -number) for number, slot in enumerate(self._slots)), default=(0, 0)
        )
        return (shared, -slot) if shared >= sequence.held + SHARED else (sequence.held, None)

    def make_room(self, more: int, positions: int) -> bool:
        """Have slots for so many more, with so many positions; whether there were none before."""
        busy = len(self._slots) - len(self.free)
        rows = next(size for size in self.sizes.rows if size >= busy + more)
        positions = self.sizes.room(positions)
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
