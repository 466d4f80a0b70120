"""The loss on held-out data while a stage trains: the same rows at every look, by data set, task and domain."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import jax
import numpy as np

from sphinx_jax.config import ModelConfig
from sphinx_jax.data.rows import GROUPS, Row, Rows, Shape, Source
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.model.blueprint import blueprint
from sphinx_jax.sharding import constrain
from sphinx_jax.train.step import Batch, Sums, TrainState, batch_sums, by_group, cross_entropy

THREADS = 8  # that read pictures


class _Padded(grain.transforms.RandomMap):
    """Place in the batches -> row: those of the numbers, and beyond them rows that count for nothing."""

    def __init__(self, rows: Rows, numbers: np.ndarray):
        self.rows, self.numbers = rows, numbers

    def random_map(self, place: int, rng: np.random.Generator) -> Row:
        if place < len(self.numbers):
            return self.rows.random_map(self.numbers[place], rng)
        return self.rows.masked(int(self.rows.source.eligible[self.numbers[0]]))  # of which there are features


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows of one data set.

    Args:
      size: rows of a batch, over all processes.
      items: how many of the data set are looked at, from all over it.
      weight: of its loss among those of the other data sets.
    """

    source: Source
    tokenizer: Tokenizer
    shape: Shape
    size: int
    items: int
    weight: float = 1.0

    def batches(self, process: int, processes: int) -> Iterator[dict[str, np.ndarray]]:
        """This process's share of each batch; turns of a picture are drawn alike at every look."""
        numbers, size = self.source.spread(self.items), self.size // processes
        rows = _Padded(Rows(self.source, self.tokenizer, self.shape), numbers)
        places = grain.MapDataset.range(-(-len(numbers) // self.size) * self.size).seed(0)
        # row by row: rows are made ahead, not batches
        share = places.random_map(rows)[process::processes].to_iter_dataset(
            grain.ReadOptions(THREADS, max(THREADS, 2 * size))
        )
        for batch in share.batch(size):
            batch.pop("skipped")
            yield batch


@functools.cache
def make_sums(model: ModelConfig) -> Callable[[dict[str, Any], Batch], Sums]:
    """The jitted (leaves, batch) -> losses of the batch, by task and domain, whole in every process."""
    plan = blueprint(model)

    def sums(leaves: dict[str, Any], batch: Batch) -> Sums:
        losses, _ = cross_entropy(plan.bind(leaves), batch)
        return jax.tree.map(lambda x: constrain(x, None), batch_sums(batch, losses))

    return jax.jit(sums)


def look(
    held: Sequence[HeldOut],
    sums: Callable[[dict[str, Any], Batch], Sums],
    process: int,
    processes: int,
    state: TrainState,
    place: Callable[[np.ndarray], jax.Array],
) -> dict[str, float]:
    """Mean cross-entropies in nats per token, by the names they have in the history.

    `held_out/loss` is the mean by their weights over the data sets of which something can be used; NaN, there is none.
    """
    entry, means, weights, total = {}, [], [], np.zeros((2, GROUPS))
    leaves = state.trainable | state.frozen
    for one in held:
        found = [sums(leaves, jax.tree.map(place, batch)) for batch in one.batches(process, processes)]
        summed = np.sum(jax.device_get(found), axis=0)  # (2, GROUPS)
        total += summed
        loss, count = summed.sum(axis=1)
        if count:
            means.append(float(loss / count))
            weights.append(one.weight)
            if len(held) > 1:
                entry[f"held_out/{one.source.name}"] = means[-1]
    entry["held_out/loss"] = float(np.average(means, weights=weights)) if means else float("nan")
    return entry | by_group(Sums(*total), "held_out/")
