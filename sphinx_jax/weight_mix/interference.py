"""Where fine-tunes of one base fight: their task vectors δ_i = x_i - base, compared before anything is mixed.

Entries are compared in one pass over each matrix, in the memory of a few rows.  What is summed belongs to a *cell*: a
module of one layer, all its experts included, and the bias that lies beside its kernel; attention's q, k, v and o, and
their biases (`attention/bias/q`), are modules of their own.  Sums of cells add, and are divided last.
"""

from __future__ import annotations

import itertools
import math
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np

from sphinx_jax.checkpoint.foreign.names import Index
from sphinx_jax.config import ConfigError
from sphinx_jax.model.blueprint import matches
from sphinx_jax.progress import progress
from sphinx_jax.weight_mix.mixer import Mixer
from sphinx_jax.weight_mix.settings import LEAF_KINDS, Mix
from sphinx_jax.weight_mix.statistics import Unit, task_vectors, totals

Pair = tuple[int, int]  # two sources, by their numbers from 0


@dataclass(frozen=True)
class Sums:
    """Sums over the entries of some matrices of N sources, float64 (N, N) each.

    Args:
      dot: Σ δ_i δ_j.
      shared: how many entries both sources changed.
      opposed: how many they changed in opposite directions.
      together: Σ |δ_i + δ_j|, so that the diagonal holds 2 Σ |δ_i|.
      base: Σ base².
    """

    entries: int
    dot: np.ndarray
    shared: np.ndarray
    opposed: np.ndarray
    together: np.ndarray
    base: float

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))

    def cosine(self, pair: Pair) -> float | None:
        """<δ_i, δ_j> / (|δ_i| |δ_j|); None where a source changed nothing."""
        i, j = pair
        found = _ratio(self.dot[i, j], math.sqrt(self.dot[i, i]) * math.sqrt(self.dot[j, j]))
        return None if found is None else min(1.0, max(-1.0, found))

    def conflict(self, pair: Pair) -> float | None:
        """The share of sign conflicts among the entries that both sources changed; None where there are none.

        Unrelated task vectors have 0.5.
        """
        return _ratio(self.opposed[pair], self.shared[pair])

    def cancelled(self, pair: Pair) -> float | None:
        """1 - Σ |δ_i + δ_j| / Σ (|δ_i| + |δ_j|): the share of both changes that is gone from their sum.

        It weighs the sign conflicts by magnitude.  TIES, which drops the smaller of two opposed changes, loses half of
        it.  None where neither source changed anything.
        """
        i, j = pair
        kept = _ratio(self.together[pair], (self.together[i, i] + self.together[j, j]) / 2)
        return None if kept is None else 1 - kept

    def relative_norm(self, source: int) -> float | None:
        """|δ_i| / |base|; None where the base is zero."""
        return _ratio(math.sqrt(self.dot[source, source]), math.sqrt(self.base))

    def changed(self) -> bool:
        """Whether any source differs from the base."""
        return bool(self.together.any())


@dataclass(frozen=True)
class Cell:
    """One module of one layer of a stack (`decoder`, `encoders/clip`); outside the layers, of no stack.

    Args:
      kind: one of `settings.LEAF_KINDS`, or `other`.
    """

    stack: str
    layer: int | None
    module: str
    kind: str
    sums: Sums

    def __str__(self) -> str:
        return self.module if self.layer is None else f"{self.stack} {self.layer} {self.module}"


@dataclass(frozen=True)
class Interference:
    """What `measure` found.

    Args:
      unchanged: the shortest paths below which every source is as the base.
      left_out: leaves that were not compared: of whole numbers, or not in every checkpoint.
    """

    sources: tuple[str, ...]
    base: str
    cells: tuple[Cell, ...]
    unchanged: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def pairs(self) -> list[Pair]:
        return list(itertools.combinations(range(len(self.sources)), 2))

    def totals(self) -> dict[str, Sums]:
        """The sums of each kind of module, and of `all`, over the cells that a source changed."""
        changed = [cell for cell in self.cells if cell.sums.changed()]
        found = {
            kind: [cell.sums for cell in changed if kind in (cell.kind, "all")]
            for kind in (*LEAF_KINDS, "other", "all")
        }
        return {kind: reduce(add, sums) for kind, sums in found.items() if sums}

    def to_json(self) -> dict[str, Any]:
        """All numbers; sources are counted from 1, and null stands for what has no value."""
        return {
            "made_by": "mix_weights --interference",
            "sources": {str(i): name for i, name in enumerate(self.sources, 1)},
            "base": self.base,
            "unchanged": list(self.unchanged),
            "left_out": list(self.left_out),
            "totals": {kind: self._numbers(sums) for kind, sums in self.totals().items()},
            "cells": [
                {"stack": cell.stack or None, "layer": cell.layer, "module": cell.module, "kind": cell.kind}
                | self._numbers(cell.sums)
                for cell in self.cells
            ],
        }

    def _numbers(self, sums: Sums) -> dict[str, Any]:
        return {
            "entries": sums.entries,
            "relative_norms": {str(i + 1): sums.relative_norm(i) for i in range(len(self.sources))},
            "pairs": {
                pair_name(pair): {
                    "cosine": sums.cosine(pair),
                    "conflict": sums.conflict(pair),
                    "cancelled": sums.cancelled(pair),
                    "shared_entries": int(sums.shared[pair]),
                }
                for pair in self.pairs
            },
        }


def pair_name(pair: Pair) -> str:
    """Two sources as a reader counts them, from 1."""
    return f"{pair[0] + 1}-{pair[1] + 1}"


def measure(
    sources: Sequence[str],
    base: str | None,
    scratch: Path,
    *,
    missing: str = "error",
    allow: Sequence[str] = (),
    quiet: bool = False,
) -> Interference:
    """Compares the task vectors of checkpoints of any form and size.

    Args:
      scratch: a new folder for matrices that have to be laid out anew; it is gone afterwards.
      missing, allow: as in `Mix`; a leaf that a source lacks is left out, unless that is refused.

    Raises:
      BadCheckpoint: a source is incomplete, does not fit, or holds NaN or infinity.
      ConfigError: there is no base, nothing to compare, or no source differs from the base.
    """
    if base is None:
        raise ConfigError("interference is that of changes to a base; name what the sources were tuned from: --base B")
    if len(sources) < 2:
        raise ConfigError("interference is between two sources or more; name them: --sources A B")
    weights = ({"weight": 1.0},) * len(sources)
    rules = {"missing": missing, "allow": tuple(allow), "merge_lora": True}
    mixer = Mixer(Mix("task_arithmetic", tuple(sources), base, {}, weights, **rules), scratch)
    paths = [path for path in mixer.paths if mixer.mixes(path)]
    sums: dict[tuple[str, int | None, str], Sums] = {}
    kinds, changed = {}, set()
    try:
        with progress(
            total=sum(map(mixer.size, paths)), desc="comparing", unit="B", unit_scale=True, disable=quiet
        ) as bar:
            for path in paths:
                matrices = list(mixer.matrices(path))
                for index in matrices:
                    found = sums_of(mixer.unit(path, index))
                    place = _place(path, index)
                    sums[place] = sums[place] + found if place in sums else found
                    kinds.setdefault(place, _kind(path))
                    if found.changed():
                        changed.add(path)
                    bar.update(mixer.size(path) / len(matrices))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if not changed:
        raise ConfigError(f"no source differs from the base {base}")
    every = set().union(*(source.leaves for source in mixer.named.values()))
    return Interference(
        tuple(sources),
        base,
        tuple(Cell(*place, kinds[place], found) for place, found in sums.items()),
        _shortest(set(paths) - changed, changed),
        tuple(sorted(every - set(paths))),
    )


def sums_of(unit: Unit) -> Sums:
    """The sums of one matrix, the same to the last bit however it is cut into slices."""
    parts = ([*s.sources, s.base] for s in task_vectors(unit).slices())
    *tables, base = totals(parts, _of_block)
    return Sums(math.prod(unit.shape), *tables, base[0, 0])


def _of_block(block: np.ndarray) -> np.ndarray:
    """float64 (N + 1, BLOCK), the base last -> (5, N, N) in the order of `Sums`, Σ base² repeated."""
    deltas, base = block[:-1], block[-1]
    signs = np.sign(deltas)
    changed = np.abs(signs)
    shared = _dots(changed)
    together = np.empty_like(shared)
    for i, j in itertools.combinations_with_replacement(range(len(deltas)), 2):
        together[i, j] = together[j, i] = np.abs(deltas[i] + deltas[j]).sum()
    squares = np.full_like(shared, np.einsum("n,n", base, base))
    return np.stack([_dots(deltas), shared, (shared - _dots(signs)) / 2, together, squares])


def _dots(rows: np.ndarray) -> np.ndarray:
    # by BLAS, many threads would share work too small for them
    return np.einsum("in,jn->ij", rows, rows)


def _place(path: str, index: Index) -> tuple[str, int | None, str]:
    """The stack, layer and module that a matrix belongs to."""
    stack, layer, module = "", None, path
    if index:
        stack, module = re.split("/(?:blocks|pairs)/", path, maxsplit=1)
        layer = index[0]
    return stack, layer, re.sub("/(kernel|bias|scale)$", "", module)


def _kind(path: str) -> str:
    return next((kind for kind, patterns in LEAF_KINDS.items() if matches(path, patterns)), "other")


def _shortest(paths: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    """The shortest prefixes that cover `paths` and none of `others`."""
    taken = {prefix for path in others for prefix in _prefixes(path)}
    return tuple(sorted({next(prefix for prefix in _prefixes(path) if prefix not in taken) for path in paths}))


def _prefixes(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
