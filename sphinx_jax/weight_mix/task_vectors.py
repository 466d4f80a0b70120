"""Mixes of task vectors δ_i = x_i - base, made sparse and reconciled before they are added to the base.

All follow one scheme (mergekit's): of every δ_i a part is kept, and with `rescale` made larger for what is gone (to
the L1 norm of δ_i where it is chosen by rank, by 1 / its probability where it is drawn); it is multiplied by its
weight; where a sign is elected, entries of the other sign are dropped; the sum is divided by the weights that went into
it if `normalize` is on, multiplied by `lambda` and added to the base.

Magnitudes are ranked exactly, the largest first and of equals (common among bfloat16 checkpoints) the first in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sphinx_jax.config import ConfigError
from sphinx_jax.weight_mix.statistics import First, Slice, Unit, cuts, magnitudes, random_bits, task_vectors, totals

Parameters = Mapping[str, Any]
Masks = list[np.ndarray]  # of each source: 0 where an entry is gone, else True or what it is multiplied by
Pass = Callable[[], Iterator[tuple[Slice, Masks]]]

LEAST_NORM = 1e-7  # L1, below which nothing is rescaled (mergekit)


def ties(unit: Unit, p: Parameters) -> Iterator[np.ndarray]:
    """TIES (Yadav et al., arXiv 2306.01708): of the n entries of each δ_i the max(1, int(density · n)) largest are kept
    (none for density 0), and every entry elects a sign.

    base + lambda · Σ_i w_i δ_i [sign(w_i δ_i) = s] / Σ_i w_i [the same], where s is the sign of Σ_i w_i δ_i.
    """
    return _merge(task_vectors(unit), p, _largest, elect=True)


def breadcrumbs(unit: Unit, p: Parameters) -> Iterator[np.ndarray]:
    """Model Breadcrumbs (Davari and Belilovsky, arXiv 2312.06795): base + lambda · Σ_i w_i δ_i, of each δ_i the
    int(density · n) entries kept that follow the int(gamma · n) largest, or as few as leave enough to keep.
    """
    return _merge(task_vectors(unit), p, _without_outliers, elect=False)


def breadcrumbs_ties(unit: Unit, p: Parameters) -> Iterator[np.ndarray]:
    """Model Breadcrumbs (arXiv 2312.06795) with the elected sign of TIES (arXiv 2306.01708)."""
    return _merge(task_vectors(unit), p, _without_outliers, elect=True)


def dare_linear(unit: Unit, p: Parameters) -> Iterator[np.ndarray]:
    """DARE (Yu et al., arXiv 2311.03099): base + lambda · Σ_i w_i m_i δ_i / density, where each entry is kept (m_i = 1)
    with probability density.

    mergekit restores the L1 norm of δ_i instead of dividing by the density.  The draws are this package's own: they
    depend on the seed, the unit's name, the source's number and the entry's position.
    """
    return _merge(task_vectors(unit), p, _at_random, elect=False)


def dare_ties(unit: Unit, p: Parameters) -> Iterator[np.ndarray]:
    """DARE (arXiv 2311.03099; as `dare_linear`) with the elected sign of TIES (arXiv 2306.01708)."""
    return _merge(task_vectors(unit), p, _at_random, elect=True)


def della_linear(unit: Unit, p: Parameters) -> Iterator[np.ndarray]:
    """DELLA (Deep et al., arXiv 2406.11617), its MAGPRUNE without the election: as `dare_linear`, but an entry is
    kept with probability density + epsilon · (2 r - 1), and divided by that, where r rises from 0 for the smallest of
    its row to 1 for the largest (1/2 in a row of one).  density ± epsilon must lie within (0, 1), unless density is 0
    or 1.  mergekit restores the L1 norm instead.
    """
    return _merge(task_vectors(unit), p, _by_row_rank, elect=False)


def della(unit: Unit, p: Parameters) -> Iterator[np.ndarray]:
    """DELLA (arXiv 2406.11617; as `della_linear`) with the elected sign of TIES (arXiv 2306.01708)."""
    return _merge(task_vectors(unit), p, _by_row_rank, elect=True)


def sce(unit: Unit, p: Parameters) -> Iterator[np.ndarray]:
    """SCE (Wan et al., arXiv 2408.07990): select, calculate, erase.

    Of the entries whose variance over the sources is not 0, the int(select_topk · their number) of largest variance are
    kept; w_i = Σ δ_i² / Σ_j Σ δ_j², of what is left; and base + Σ_i w_i δ_i / Σ_i w_i, both sums over the i whose δ_i
    has the sign of Σ_i δ_i.  As in mergekit the weights are equal where the mean squares sum to less than 1e-6, and
    the divisor is at least 1e-6.
    """
    unit = task_vectors(unit)
    passes = _by_variance(unit, p["select_topk"]) if p["select_topk"] < 1 else _everything(unit)

    squares = totals(([*_kept(s, masks)] for s, masks in passes()), lambda block: (block * block).sum(axis=1))
    mean_squares = squares / math.prod(unit.shape)
    total = mean_squares.sum()
    weights = mean_squares / total if total >= 1e-6 else np.full(len(squares), 1 / len(squares))
    for s, masks in passes():
        deltas = [*_kept(s, masks)]
        agree = _elected(deltas)
        shares = [np.float32(w) * m for w, m in zip(weights, agree, strict=True)]
        mixed = sum(share * x for share, x in zip(shares, deltas, strict=True))
        yield s.base + mixed / np.maximum(sum(shares), np.float32(1e-6))


def _merge(
    unit: Unit, p: Parameters, sparsify: Callable[[Unit, Parameters], Pass], elect: bool
) -> Iterator[np.ndarray]:
    """The scheme of this module, over a unit of task vectors."""
    passes = sparsify(unit, p)
    weights = np.array(p["weight"], np.float32)
    for s, masks in passes():
        deltas = [weight * x for weight, x in zip(weights, _kept(s, masks), strict=True)]
        counted = _elected(deltas) if elect else [True] * len(deltas)
        mixed = sum(x * m for x, m in zip(deltas, counted, strict=True))
        if p["normalize"]:
            mixed /= divisor(sum(w * m for w, m in zip(weights, counted, strict=True)))
        yield s.base + np.float32(p["lambda"]) * mixed


def divisor(weight: np.ndarray) -> np.ndarray:
    """What sums of these total weights are divided by to normalise them: 1 where the weights cancel (mergekit)."""
    return np.where(np.abs(weight) < 1e-8, np.float32(1), weight)


def _kept(s: Slice, masks: Masks) -> Iterator[np.ndarray]:
    return (x * mask.reshape(x.shape) for x, mask in zip(s.sources, masks, strict=True))


def _elected(deltas: Sequence[np.ndarray]) -> Masks:
    """Which entries have the sign of their sum over the sources, + where that is 0."""
    positive = sum(deltas) >= 0
    return [np.where(positive, x > 0, x < 0) for x in deltas]


def _rescaled(passes: Pass) -> Pass:
    """What is kept of each source, times its L1 norm over that of what is kept; 1 where either is negligible."""
    parts = ([*s.sources, *_kept(s, masks)] for s, masks in passes())
    before, after = np.split(totals(parts, lambda block: np.abs(block).sum(axis=1)), 2)
    negligible = np.minimum(before, after) < LEAST_NORM
    factors = np.where(negligible, 1, before / np.where(negligible, 1, after)).astype(np.float32)
    return lambda: ((s, [f * mask for f, mask in zip(factors, masks, strict=True)]) for s, masks in passes())


def _everything(unit: Unit) -> Pass:
    return lambda: ((s, [np.ones(x.size, bool) for x in s.sources]) for s in unit.slices())


def _largest(unit: Unit, p: Parameters) -> Pass:
    n = math.prod(unit.shape)
    return _ranked(unit, p, [range(max(1, int(d * n)) if d else 0) for d in p["density"]])


def _without_outliers(unit: Unit, p: Parameters) -> Pass:
    n = math.prod(unit.shape)

    def ranks(density: float, gamma: float) -> range:
        kept = int(density * n)
        first = min(int(gamma * n), n - kept)
        return range(first, first + kept)

    return _ranked(unit, p, [*map(ranks, p["density"], p["gamma"])])


def _ranked(unit: Unit, p: Parameters, kept: Sequence[range]) -> Pass:
    """Keeps the entries of each source whose ranks are in its range."""
    if all(len(ranks) == math.prod(unit.shape) for ranks in kept):
        return _everything(unit)
    found = cuts(lambda: ([magnitudes(x) for x in s.sources] for s in unit.slices()), [(r.start, r.stop) for r in kept])

    def masks() -> Iterator[tuple[Slice, Masks]]:
        marks = [(First(start), First(stop)) for start, stop in found]
        for s in unit.slices():
            keys = map(magnitudes, s.sources)
            yield s, [stop(k) & ~start(k) for (start, stop), k in zip(marks, keys, strict=True)]

    return _rescaled(masks) if p["rescale"] else masks


def _by_variance(unit: Unit, share: float) -> Pass:
    """Keeps that share of the entries that differ between the sources, those that differ most."""

    def keys(s: Slice) -> np.ndarray:
        return magnitudes(np.var(np.stack(s.sources), axis=0, dtype=np.float64).astype(np.float32))

    differing = sum(np.count_nonzero(keys(s)) for s in unit.slices())
    ((cut,),) = cuts(lambda: ([keys(s)] for s in unit.slices()), [[int(differing * share)]])

    def masks() -> Iterator[tuple[Slice, Masks]]:
        first = First(cut)
        for s in unit.slices():
            yield s, [first(keys(s))] * len(s.sources)

    return masks


def _at_random(unit: Unit, p: Parameters) -> Pass:
    return _drawn(unit, p, lambda: ((s, p["density"]) for s in unit.slices()))


def _by_row_rank(unit: Unit, p: Parameters) -> Pass:
    spreads = []
    for density, epsilon in zip(p["density"], p["epsilon"], strict=True):
        sparse = 0 < density < 1
        if sparse and not 0 < density - epsilon <= density + epsilon < 1:
            raise ConfigError(f"della: density {density} ± epsilon {epsilon} leaves (0, 1); choose a smaller epsilon")
        spreads.append(epsilon if sparse else 0.0)

    def probabilities() -> Iterator[tuple[Slice, list[np.ndarray]]]:
        for s, ranks in _row_ranks(unit):
            yield s, [d + e * (2 * r - 1) for d, e, r in zip(p["density"], spreads, ranks, strict=True)]

    return _drawn(unit, p, probabilities)


def _row_ranks(unit: Unit) -> Iterator[tuple[Slice, list[np.ndarray]]]:
    """The place of every entry in its row by magnitude, 0 to 1, flattened; a vector, one row, is held as a whole."""
    if len(unit.shape) > 1:
        for s in unit.slices():
            yield s, [_places(x.reshape(len(x), -1)).reshape(-1) for x in s.sources]
        return
    vectors = map(np.concatenate, zip(*(s.sources for s in unit.slices()), strict=True))
    places = [_places(vector[None])[0] for vector in vectors]
    for s in unit.slices():
        yield s, [x[s.start : s.start + len(s.sources[0])] for x in places]


def _places(rows: np.ndarray) -> np.ndarray:
    """float64 of the same shape (R, C): from 1 for the largest entry of a row, the first of equals, down to 0."""
    width = rows.shape[1]
    # falling magnitude above, column below: one number to sort by, several times as fast as a stable sort
    keys = ((2**31 - magnitudes(rows).astype(np.uint64)) << 32).reshape(rows.shape) | np.arange(width, dtype=np.uint64)
    keys.sort(axis=1)
    places = np.empty(rows.shape)
    falling = np.linspace(1, 0, width) if width > 1 else np.full(width, 0.5)
    np.put_along_axis(places, (keys & (2**32 - 1)).astype(np.intp), falling[None], axis=1)
    return places


def _drawn(unit: Unit, p: Parameters, probabilities: Callable[[], Iterator[tuple[Slice, Sequence[Any]]]]) -> Pass:
    """Keeps each entry with its probability: where its 32 bits, over 2**32, are below it.

    With `rescale` what is kept is divided by the probability, so that the expectation is the entry.
    """

    def masks() -> Iterator[tuple[Slice, Masks]]:
        for s, chances in probabilities():
            start = unit.position(s)
            bits = (random_bits(f"{p['seed']} {i} {unit.name}", start, x.size) for i, x in enumerate(s.sources))
            kept = [b < 2**32 * np.asarray(chance) for b, chance in zip(bits, chances, strict=True)]
            if p["rescale"]:
                kept = [
                    (k / np.where(chance, chance, 1)).astype(np.float32)
                    for k, chance in zip(kept, chances, strict=True)
                ]
            yield s, kept

    return masks
