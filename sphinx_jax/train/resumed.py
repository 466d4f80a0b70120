"""Where a stage that goes on is in its data, and with which shares it went there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sphinx_jax.checkpoint import store
from sphinx_jax.data.rows import Source
from sphinx_jax.data.shares import Shares
from sphinx_jax.data.task_mix import shares_of
from sphinx_jax.train.tally import SEEN, position

SHARES = "shares"  # in the recipe of a training checkpoint


@dataclass(frozen=True)
class Place:
    """Where the streams of a stage go on, each by its kind.

    Attributes:
      step: of which the checkpoint is, 0 where there is none.
      rows: taken so far; the next is the first that comes.
      phases: the shares of the data sets, from the first row on.
    """

    step: int
    rows: Mapping[str, int]
    phases: Mapping[str, Sequence[Shares]]

    def at(self, step: int, sizes: Mapping[str, int]) -> dict[str, int]:
        """The first row of a step, this one's or a later one's, with so many rows a step."""
        return {kind: self.rows[kind] + (step - self.step) * size for kind, size in sizes.items()}

    def changed(self) -> list[str]:
        """A line for each kind whose shares are others from here on."""
        return [
            f"from {kind} row {self.rows[kind]} on the shares are {_told(phases[-1])}, they were {_told(phases[-2])}"
            for kind, phases in self.phases.items()
            if len(phases) > 1 and phases[-1].begin == self.rows[kind]
        ]

    def as_json(self) -> dict[str, Any]:
        """What the next checkpoint says, for `place`."""
        return {
            kind: [{"begin": phase.begin, "of": dict(phase.of)} for phase in phases]
            for kind, phases in self.phases.items()
        }


def place(checkpoint: Path | None, sources: Mapping[str, Sequence[Source]], sizes: Mapping[str, int]) -> Place:
    """Where the stage with this newest checkpoint goes on.

    Where shares are not those of before, they are from here on: every data set goes on behind its last row.
    """
    told = {} if checkpoint is None else store.read_recipe(checkpoint)
    step = 0 if checkpoint is None else int(checkpoint.name)
    rows, phases = {}, {}
    for kind, of_kind in sources.items():
        taken = position(told.get(SEEN, {}), kind)
        rows[kind] = step * sizes[kind] if taken is None else taken  # which older checkpoints do not say
        now = shares_of(of_kind)
        before = [Shares(**phase) for phase in told.get(SHARES, {}).get(kind, ())]
        alike = bool(before) and before[-1].alike(now)
        # what was there before shares were kept had those of now
        begin = rows[kind] if before else 0
        phases[kind] = before if alike else [*before, Shares(begin, now)]
    return Place(step, rows, phases)


def _told(shares: Shares) -> str:
    total = sum(shares.of.values())
    return ", ".join(f"{name} {share / total:.1%}" for name, share in shares.of.items())
