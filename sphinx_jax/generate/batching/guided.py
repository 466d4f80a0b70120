"""Answers that keep to grammars, continued token by token: each is chosen among those that fit, which the host says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from sphinx_jax.generate.batching import programs
from sphinx_jax.generate.batching.batch import BUSY, Batch, Beside
from sphinx_jax.generate.batching.jobs import Job

FED = (1, 4, 16)  # tokens that are read at once: the one that was chosen, and those that had to follow it


class Guided(Batch):
    """A batch whose sequences have guides.

    What a grammar leaves no choice of is not chosen but read with what was, in one pass.
    """

    def allowed(self, sequences: Sequence[Job | None]) -> np.ndarray:
        allowed = np.ones((len(sequences), self.config.decoder.vocab_size), bool)
        for row, sequence in zip(allowed, sequences, strict=True):
            if sequence is not None and sequence.guide is not None and not sequence.done:
                row[:] = False
                fitting = sequence.guide.allowed()
                row[: len(fitting)] = fitting
        return allowed

    def _continue(self) -> None:
        for _ in range(1 if self._is_read_along else BUSY):
            if self.active:
                self._pass()

    def _jobs(self) -> list[Job]:
        return [job for i in self.active if (job := self._slots[i].sequence) is not None]

    def _pass(self) -> None:
        """Read what was added to each sequence, and choose the next token of those that are read whole."""
        active = self.active
        count, room = len(self._slots), self._slots.positions
        pending = {i: len(job.ids) - len(self._slots[i].ids) for i, job in zip(active, self._jobs(), strict=True)}
        sizes = _sizes(room)
        size = next((s for s in sizes if s >= max(pending.values())), sizes[-1])
        piece = programs.nothing_read(count, size)
        start, last = piece.start, np.zeros(count, np.int32)
        for i, slot in enumerate(self._slots):
            # where a piece would not fit what lies before it is read again; who is idle keeps what is not written over
            start[i] = min(len(slot.ids), slot.held + room - size)
            slot.ids = slot.ids[: start[i]]
            if i in pending and slot.sequence is not None:
                slot.sequence.put(piece, i)
                last[i] = len(slot.sequence.ids) - 1 - start[i]
        visual = self._visual([slot.sequence for slot in self._slots]) if (piece.tokens < 0).any() else None
        common = self.beginnings.common(list(self._slots), active)
        cache = self._slots.cache
        self._slots.cache, hidden = programs.prefill(self.config, self.leaves, cache, *piece, visual, common)
        for i, job in zip(active, self._jobs(), strict=True):
            self._slots[i].ids = job.ids[: start[i] + size]
        self._choose(hidden, last, [i if i in pending and last[i] < size else None for i in range(count)])
        for i in active:
            self._slots[i].used = next(self._ticks)
            self._slots[i].settle()

    def warm_going_on(self, rows: int, positions: int, beside: Iterable[Beside]) -> None:
        nobody = self.allowed([None] * rows)
        for of_all in beside:
            for size in _sizes(positions):
                cache, read = programs.empty(self.config, rows, positions), programs.nothing_read(rows, size)
                _, hidden = programs.prefill(self.config, self.leaves, cache, *read, *of_all)
                programs.begin(self.config, self.leaves, hidden, read.start, programs.idle(rows), self.table, nobody)


def _sizes(positions: int) -> list[int]:
    return [size for size in FED if size <= positions]
