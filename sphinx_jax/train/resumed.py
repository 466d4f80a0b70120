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

SHARES, ROWS = "shares", "rows"  # in the recipe of a training checkpoint


@dataclass(frozen=True)
class Place:
    """Where the streams of a stage go on, each by its kind.

    Attributes:
      step: of which the checkpoint is, 0 where there is none.
      sizes: rows of a step.
      rows: taken so far; the next is the first that comes.
      phases: the shares of the data sets, from the first row on.  Of kinds that are no longer taken too, as `rows`.
      earlier: whether the checkpoint is of a version that knew nothing of shares, and had another order.
    """

    step: int
    sizes: Mapping[str, int]
    rows: Mapping[str, int]
    phases: Mapping[str, Sequence[Shares]]
    earlier: bool = False

    def at(self, step: int) -> dict[str, int]:
        """The first row of a step, this one's or a later one's."""
        return {kind: self.rows[kind] + (step - self.step) * size for kind, size in self.sizes.items()}

    def changed(self) -> list[str]:
        """A line for each kind whose shares are others from here on."""
        order = "the checkpoint is of an earlier version: from here on items of several data sets come in another order"
        return [order] * (self.earlier and any(len(phases[-1].of) > 1 for phases in self.phases.values())) + [
            f"from {kind} row {self.rows[kind]} on the shares are {_told(phases[-1])}, they were {_told(phases[-2])}"
            for kind, phases in self.phases.items()
            if len(phases) > 1 and phases[-1].begin == self.rows[kind]
        ]

    def told(self, step: int) -> dict[str, Any]:
        """What the checkpoint of a step says, for `place`."""
        shares = {
            kind: [{"begin": phase.begin, "of": dict(phase.of)} for phase in phases]
            for kind, phases in self.phases.items()
        }
        return {SHARES: shares, ROWS: dict(self.rows) | self.at(step)}


def place(checkpoint: Path | None, sources: Mapping[str, Sequence[Source]], sizes: Mapping[str, int]) -> Place:
    """Where the stage with this newest checkpoint goes on.

    Where shares are not those of before, they are from here on: every data set goes on behind its last row.
    """
    told = {} if checkpoint is None else store.read_recipe(checkpoint)
    step = 0 if checkpoint is None else int(checkpoint.name)
    earlier = checkpoint is not None and ROWS not in told
    rows: dict[str, int] = dict(told.get(ROWS, {}))
    phases = {kind: [Shares(**phase) for phase in of_kind] for kind, of_kind in told.get(SHARES, {}).items()}
    for kind, of_kind in sources.items():
        # a kind that joins begins with its first row
        rows.setdefault(kind, step * sizes[kind] if earlier else 0)
        now, before = shares_of(of_kind), phases.get(kind, [])
        alike = bool(before) and before[-1].alike(now)
        # what was there before shares were kept had those of now
        phases[kind] = before if alike else [*before, Shares(rows[kind] if before else 0, now)]
    return Place(step, sizes, rows, phases, earlier)


def _told(shares: Shares) -> str:
    total = sum(shares.of.values())
    return ", ".join(f"{name} {share / total:.1%}" for name, share in shares.of.items())
