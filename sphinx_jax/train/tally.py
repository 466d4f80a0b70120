"""What a stage has seen: rows and skipped ones of each data set, items and learnt tokens of each task and domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sphinx_jax.checkpoint import store
from sphinx_jax.data.rows import DOMAIN_NUMBERS, GROUPS, TASKS
from sphinx_jax.distributed import gather

SEEN = "seen"  # in the recipe of a training checkpoint

# kind of row -> data set -> {"rows", "skipped", "tasks": task -> domain -> {"items", "tokens"}}
Seen = Mapping[str, Mapping[str, Mapping[str, Any]]]


class Tally:
    """Counts over the steps of a run, and over those before it that a checkpoint knows of.

    Args:
      sets: kind of row (`image`, `text`) -> its data sets, by the number that rows carry.
      before: what `seen` said when the checkpoint was written.
    """

    def __init__(self, sets: Mapping[str, Sequence[str]], before: Seen | None = None):
        self.sets, self.before = sets, before or {}
        self._rows = {kind: np.zeros((len(names), 2), np.int64) for kind, names in sets.items()}
        self._of = {kind: np.zeros((len(names), GROUPS, 2), np.int64) for kind, names in sets.items()}

    def add(self, kind: str, rows: Mapping[str, np.ndarray], sets: np.ndarray, skipped: np.ndarray) -> None:
        """This process's share of a batch: (B, T) columns, and of each row (B,) its data set and whether it was
        skipped."""
        if kind not in self.sets:
            return
        np.add.at(self._rows[kind], (sets, skipped.astype(int)), 1)
        row, place = np.nonzero(rows["loss_mask"])
        group = rows["group"][row, place]
        tokens = np.bincount(sets[row] * GROUPS + group, minlength=self._of[kind].shape[0] * GROUPS)
        self._of[kind][..., 1] += tokens.reshape(-1, GROUPS)
        # of a packed row each document, or the part of one that is there, is an item
        documents = rows["documents"][row, place] if "documents" in rows else 0
        of_row = (rows["loss_mask"].shape[1] + 1) * GROUPS  # numbers that a row's items may have
        items = np.unique(row * of_row + documents * GROUPS + group)
        np.add.at(self._of[kind][..., 0], (sets[items // of_row], items % GROUPS), 1)

    def seen(self, shares: int) -> Seen:
        """The counts of all processes; asked for by all of them at once.

        Args:
          shares: that the processes feed of a batch; those that feed the same one see the same.
        """
        found: dict[str, Any] = dict(self.before)  # kinds that are no longer taken too
        for kind, names in self.sets.items():
            rows, of = (_total(counts, shares) for counts in (self._rows[kind], self._of[kind]))
            now = {name: _told(rows[n], of[n]) for n, name in enumerate(names)}
            found[kind] = _sum(self.before.get(kind, {}), now)
        return found


def _total(mine: np.ndarray, shares: int) -> np.ndarray:
    every = gather(mine.ravel())
    return (every.sum(axis=0) * shares // len(every)).reshape(mine.shape)


def _told(rows: np.ndarray, of: np.ndarray) -> dict[str, Any]:
    tasks: dict[str, dict[str, Any]] = {}
    for number in np.flatnonzero(of.any(axis=1)):
        task, domain = divmod(int(number), len(DOMAIN_NUMBERS))
        items, tokens = of[number].tolist()
        tasks.setdefault(TASKS[task], {})[DOMAIN_NUMBERS[domain]] = {"items": items, "tokens": tokens}
    return {"rows": int(rows[0]), "skipped": int(rows[1]), "tasks": tasks}


def _sum(first: Any, second: Any) -> Any:
    """Of two trees of counts."""
    if isinstance(first, int) and isinstance(second, int):
        return first + second
    first, second = first or {}, second or {}
    return {
        key: _sum(first[key], second[key]) if key in first and key in second else first.get(key, second.get(key))
        for key in first | second
    }


def seen_by(stage: Path) -> Seen:
    """What a training stage, by its folder, has seen up to its newest checkpoint; nothing where that does not say."""
    newest = store.newest(stage / "checkpoints")
    return store.read_recipe(newest).get(SEEN, {}) if newest is not None else {}


def by_set(seen: Seen) -> dict[str, float]:
    """The history's numbers: rows that were of use, and learnt tokens, of each data set."""
    found: dict[str, float] = {}
    for sets in seen.values():
        for name, one in sets.items():
            tokens = sum(count["tokens"] for domains in one["tasks"].values() for count in domains.values())
            for key, value in ((f"seen/{name}/rows", one["rows"]), (f"seen/{name}/tokens", tokens)):
                found[key] = found.get(key, 0) + value
    return found
