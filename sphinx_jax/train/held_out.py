"""The loss on held-out data while a stage trains: the same rows at every look, by data set, task and domain."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import grain
import jax
import numpy as np

from sphinx_jax.config import ModelConfig
from sphinx_jax.data.rows import Row, Rows, Shape, Source
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.model.blueprint import blueprint
from sphinx_jax.train.step import GROUPS, Batch, Sums, TrainState, batch_sums, by_group, cross_entropy

THREADS = 8  # that read pictures


class _Padded(grain.transforms.RandomMap):
    """Number -> row; beyond the last item a row that counts for nothing."""

    def __init__(self, rows: Rows, count: int):
        self.rows, self.count = rows, count

    def random_map(self, number: int, rng: np.random.Generator) -> Row:
        return self.rows.random_map(number, rng) if number < self.count else self.rows.masked(0)


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows of one data set.

    Args:
      size: rows of a batch, over all processes.
      items: how many of the data set are looked at, its first ones.
    """

    source: Source
    tokenizer: Tokenizer
    shape: Shape
    size: int
    items: int

    def batches(self, process: int, processes: int) -> Iterator[dict[str, np.ndarray]]:
        """This process's share of each batch; turns of a picture are drawn alike at every look."""
        count = min(self.items, len(self.source.eligible))
        rows = _Padded(Rows(self.source, self.tokenizer, self.shape), count)
        numbers = grain.MapDataset.range(-(-count // self.size) * self.size).seed(0)
        share = numbers.random_map(rows)[process::processes].batch(self.size // processes)
        for batch in share.to_iter_dataset(grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=2 * self.size)):
            batch.pop("skipped")
            yield batch


@functools.cache
def make_sums(model: ModelConfig) -> Callable[[TrainState, Batch], Sums]:
    """The jitted (state, batch) -> losses of the batch, by task and domain."""
    plan = blueprint(model)

    def sums(state: TrainState, batch: Batch) -> Sums:
        losses, _ = cross_entropy(plan.bind(state.trainable | state.frozen), batch)
        return batch_sums(batch, losses)

    return jax.jit(sums)


def look(
    held: Sequence[HeldOut],
    sums: Callable[[TrainState, Batch], Sums],
    process: int,
    processes: int,
    state: TrainState,
    place: Callable[[np.ndarray], jax.Array],
) -> dict[str, float]:
    """Mean cross-entropies in nats per token, by the names they have in the history.

    `held_out/loss` is the mean over the data sets, each of which counts alike, as it does where mixes are judged; NaN
    where nothing in one of them can be used.
    """
    entry, means, total = {}, [], np.zeros((2, GROUPS))
    for one in held:
        found = [sums(state, jax.tree.map(place, batch)) for batch in one.batches(process, processes)]
        summed = np.sum(jax.device_get(found), axis=0)  # (2, GROUPS)
        total += summed
        loss, count = summed.sum(axis=1)
        means.append(float(loss / count) if count else float("nan"))
        if len(held) > 1:
            entry[f"held_out/{one.source.name}"] = means[-1]
    entry["held_out/loss"] = float(np.mean(means))
    return entry | by_group(Sums(*total), "held_out/")
