"""Which mix?  Coefficients chosen on held-out data; no mix is written to be judged.

The coefficients of N checkpoints are a traced input, so that any number of mixes is one compiled program.  They sum to
1: the last checkpoint stands where the others' coefficients are 0, so a base is simply the last one.
"""

from __future__ import annotations

import abc
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sphinx_jax.model.blueprint import LeafSpec, Leaves
from sphinx_jax.progress import progress
from sphinx_jax.weight_mix.interpolate import interpolate

Coefficients = Any  # (N,) for every leaf, or {path: (N,) or (N, L)}


class Judge(abc.ABC):
    """What mixes of `trees`, N checkpoints, are worth on held-out data: the lower, the better."""

    trees: Sequence[Leaves]
    sign: ClassVar[float] = 1.0  # of what people read, by what is minimised

    @abc.abstractmethod
    def __call__(self, coefficients: Coefficients) -> dict[str, float]:
        """In each domain, or of each benchmark; infinity for a mix that gives no number, the worst there is."""

    def mean(self, coefficients: Coefficients) -> float:
        """The mean over the domains: what is minimised."""
        return float(np.mean(list(self(coefficients).values())))

    def told(self, values: Mapping[str, float]) -> dict[str, float]:
        """As people read them, with their `mean`."""
        found = {name: self.sign * value for name, value in values.items()}
        return found | {"mean": float(np.mean(list(found.values())))}


@dataclass(frozen=True)
class LossJudge(Judge):
    """A held-out loss, which has a gradient.

    Args:
      loss: (leaves, batch) -> (2,) its sum and its count; traced.
      trees: N checkpoints, sharded as they like.
      batches: by domain.
      frozen: leaves that all mixes have.
    """

    loss: Callable[[Leaves, Any], jax.Array]
    trees: Sequence[Leaves]
    batches: Mapping[str, Sequence[Any]]
    frozen: Leaves = field(default_factory=dict)

    def __call__(self, coefficients: Coefficients) -> dict[str, float]:
        coefficients = jax.tree.map(jnp.float32, coefficients)
        sums = {
            d: sum(np.asarray(self._at(coefficients, self.trees, self.frozen, b)) for b in self.batches[d])
            for d in self.batches
        }
        losses = {domain: float(total / count) for domain, (total, count) in sums.items()}
        return {domain: loss if np.isfinite(loss) else np.inf for domain, loss in losses.items()}

    @functools.cached_property
    def _at(self) -> Callable[[Any, Sequence[Leaves], Leaves, Any], jax.Array]:
        return jax.jit(
            lambda coefficients, trees, frozen, batch: self.loss(interpolate(trees, coefficients) | frozen, batch)
        )

    @functools.cached_property
    def gradient(self) -> Callable[[Any, Any], Any]:
        """(coefficients, batch) -> the gradient of the batch's mean loss, by coefficient."""

        @jax.jit
        @jax.grad
        def of_mean(coefficients: Coefficients, trees: Sequence[Leaves], frozen: Leaves, batch: Any) -> jax.Array:
            total, count = self.loss(interpolate(trees, coefficients) | frozen, batch)
            return total / jnp.maximum(count, 1)

        return lambda coefficients, batch: of_mean(coefficients, self.trees, self.frozen, batch)


def along(free: Sequence[float]) -> np.ndarray:
    """All but the last coefficient -> all, which sum to 1."""
    return np.array([*free, 1 - sum(free)], np.float32)


def sweep(
    judge: Judge, grids: Sequence[Sequence[float]], quiet: bool = True
) -> dict[tuple[float, ...], dict[str, float]]:
    """The loss at every point of a grid over all coefficients but the last: point -> domain -> loss."""
    points = list(itertools.product(*grids))
    return {point: judge(along(point)) for point in progress(points, desc="mixes", disable=quiet)}


def best(curve: Mapping[tuple[float, ...], Mapping[str, float]]) -> tuple[float, ...]:
    """The point of the lowest mean over the domains; ValueError if none is finite."""
    means = {point: np.mean(list(losses.values())) for point, losses in curve.items()}
    if not np.isfinite(min(means.values())):
        raise ValueError("no mix has a finite loss; look for NaN or infinity in the checkpoints")
    return min(means, key=means.__getitem__)


def greedy(judge: Judge) -> tuple[np.ndarray, list[int]]:
    """The greedy soup (Wortsman et al., "Model soups", arXiv 2203.05482, recipe 1).

    From the best checkpoint on, each next best one is added to the uniform average where that does not get worse.

    Returns:
      The coefficients, and the checkpoints in the order in which they were tried.
    """
    count = len(judge.trees)
    single = [judge.mean(np.eye(count)[i]) for i in range(count)]
    order = sorted(range(count), key=single.__getitem__)
    kept, lowest = order[:1], single[order[0]]
    for i in order[1:]:
        found = judge.mean(_uniform([*kept, i], count))
        if found <= lowest:
            kept, lowest = [*kept, i], found
    return _uniform(kept, count), order


def uniform(count: int) -> np.ndarray:
    return _uniform(range(count), count)


def _uniform(kept: Sequence[int], count: int) -> np.ndarray:
    return np.isin(np.arange(count), kept) / np.float32(len(kept))


@dataclass(frozen=True)
class Group:
    """Leaves that share their coefficients, layer by layer where they are stacked."""

    pattern: str  # as the weights of a mix name them
    paths: tuple[str, ...]
    layers: int | None


def groups(specs: Mapping[str, LeafSpec]) -> list[Group]:
    """A group for each module of a block, and for each that stands alone."""
    found: dict[tuple[str, int | None], list[str]] = {}
    for path, spec in specs.items():
        parts = path.split("/")
        stacked = spec.axes[:1] == ("layers",)
        named = parts[: parts.index("blocks") + 2 if "blocks" in parts else 2]
        pattern = "/".join(named) + "/*" * (len(named) < len(parts))
        found.setdefault((pattern, spec.shape[0] if stacked else None), []).append(path)
    return [Group(pattern, tuple(paths), layers) for (pattern, layers), paths in found.items()]


def learn(
    judge: LossJudge,
    chooser: Judge,
    over: Sequence[Group],
    start: np.ndarray,
    *,
    epochs: int = 12,
    rate: float = 0.03,
    quiet: bool = False,
) -> dict[str, np.ndarray]:
    """Coefficients of every group and layer by gradient (Adam) on the judge's loss, as AdaMerging does on entropy (Yang
    et al., arXiv 2310.02575).

    A step takes the gradient of one batch from each domain.  Of the coefficients after each epoch, and of `start`,
    those are taken that `chooser`, on other batches, finds best.

    Args:
      start: (N,) coefficients to begin from, for every leaf.

    Returns:
      pattern -> (N,) or (N, L) coefficients.
    """
    free = {
        group.pattern: jnp.tile(jnp.float32(start[:-1, None]), (1, group.layers or 1)) for group in over
    }  # (N - 1, L)
    optimizer = optax.adam(rate)
    state = optimizer.init(free)

    def all_of(free: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        found = {}
        for group in over:
            known = free[group.pattern]
            whole = jnp.concatenate([known, 1 - known.sum(0, keepdims=True)])
            found |= dict.fromkeys(group.paths, whole if group.layers else whole[:, 0])
        return found

    @jax.jit
    def update(free: Any, state: Any, gradients: Sequence[Any]) -> tuple[Any, Any]:
        # the chain rule from a leaf's coefficients to its group's free ones
        (gradient,) = jax.vjp(all_of, free)[1](jax.tree.map(lambda *g: sum(g) / len(g), *gradients))
        changes, state = optimizer.update(gradient, state)
        return optax.apply_updates(free, changes), state

    chosen, lowest = free, chooser.mean(all_of(free))
    with progress(range(epochs), desc="learning", disable=quiet) as bar:
        for _ in bar:
            for batches in zip(*judge.batches.values(), strict=False):
                coefficients = all_of(free)
                free, state = update(free, state, [judge.gradient(coefficients, batch) for batch in batches])
            if (found := chooser.mean(all_of(free))) < lowest:
                chosen, lowest = free, found
            bar.set_postfix_str(f"loss {found:.4f}, best {lowest:.4f}")
    leaves = all_of(chosen)
    return {group.pattern: np.asarray(leaves[group.paths[0]]) for group in over}
