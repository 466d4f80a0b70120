"""The mix of tasks: data sets and instructions become one stream of static batches.

Shuffling, mixing and the choice of turns are functions of (seed, position in the global stream) alone, and processes
slice the stream afterwards: the number of workers or processes changes nothing, and one number is the whole state.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import grain
import numpy as np
from absl import flags

from sphinx_jax.data.joined import edges_of
from sphinx_jax.data.order import Order, even
from sphinx_jax.data.packing import PackedRows
from sphinx_jax.data.rows import Row, Rows, Shape, Source
from sphinx_jax.data.shares import Schedule, Shares
from sphinx_jax.data.tokenizer import Tokenizer

# the streams never end, but those that are zipped must say so alike
ENDLESS = 2**40


class _Name(grain.transforms.Map):
    """Number of an item -> what it is called."""

    def __init__(self, source: Source):
        self.source = source

    def map(self, number: int) -> str:
        return self.source.name_of(number)


class _From(grain.transforms.Map):
    """Row -> row that says which of its stream's data sets it is of."""

    def __init__(self, number: int):
        self.number = number

    def map(self, row: Row) -> Row:
        return row | {"set": np.array(self.number, np.int32)}


class _Near(grain.transforms.Map):
    """Position -> number of an item, where those that are read together come together."""

    def __init__(self, order: Order):
        self.order = order

    def map(self, position: int) -> int:
        return self.order(int(position))


def rows(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    shape: Shape,
    seed: int,
    kept: Path | None = None,
    phases: Sequence[Shares] | None = None,
) -> grain.MapDataset:
    """The endless global stream of rows of one kind (all with pictures, or all without).

    A row is what `Rows` or `PackedRows` make, and the number of its data set, `set`.

    Args:
      kept: the folder where packing keeps the lengths of texts, which take long to count.
      phases: the shares of the data sets, by name, where they changed on the way; None: they are those of the sources.
    """
    phases = phases or [Shares(0, shares_of(sources))]
    if shape.packed:
        streams = [grain.MapDataset.source(p) for p in _packed(sources, tokenizer, shape, seed, kept, phases)]
    else:
        streams = [i.random_map(Rows(s, tokenizer, shape)) for i, s in _shuffled(sources, seed, phases)]
    return _mixed(sources, [stream.map(_From(n)) for n, stream in enumerate(streams)], phases)


def names(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    shape: Shape,
    seed: int,
    kept: Path | None = None,
    phases: Sequence[Shares] | None = None,
) -> grain.MapDataset:
    """What the rows at the same positions of the stream are made of."""
    phases = phases or [Shares(0, shares_of(sources))]
    if shape.packed:
        packed = _packed(sources, tokenizer, shape, seed, kept, phases)
        return _mixed(sources, [grain.MapDataset.range(sys.maxsize).map(p.names) for p in packed], phases)
    return _mixed(sources, [items.map(_Name(source)) for items, source in _shuffled(sources, seed, phases)], phases)


def _packed(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    shape: Shape,
    seed: int,
    kept: Path | None,
    phases: Sequence[Shares],
) -> list[PackedRows]:
    seeds = _seeds(seed, phases)
    return [PackedRows(source, tokenizer, shape, seeds[source.name], kept) for source in _usable(sources)]


def _seeds(seed: int, phases: Sequence[Shares]) -> dict[str, int]:
    """A seed for each data set, by when it joined, which stays so whichever others join and leave."""
    joined = dict.fromkeys(name for phase in phases for name in phase.of)
    return {name: seed + 1000 * number for number, name in enumerate(joined)}


def _shuffled(
    sources: Sequence[Source], seed: int, phases: Sequence[Shares]
) -> Iterator[tuple[grain.MapDataset, Source]]:
    seeds = _seeds(seed, phases)
    for source in _usable(sources):
        count, own = len(source.epoch), seeds[source.name]
        if (block := getattr(source.items, "block", 1)) > 1:
            whole = count == len(source.eligible) == len(source.items)  # and the pieces of all are those of these
            order = Order(edges_of(source.items) if whole else even(count), own, block)
            yield grain.MapDataset.range(sys.maxsize).seed(own).map(_Near(order)), source
        else:
            yield grain.MapDataset.range(count).seed(own).shuffle().repeat(), source


def _usable(sources: Sequence[Source]) -> Sequence[Source]:
    for source in sources:
        if not len(source.eligible):
            raise ValueError(f"data set {source.name} has no item with a task of positive weight")
    return sources


def _mixed(sources: Sequence[Source], streams: list[grain.MapDataset], phases: Sequence[Shares]) -> grain.MapDataset:
    if len(streams) == len(phases) == 1:
        return streams[0]
    return grain.MapDataset.select_from_datasets(streams, Schedule(phases, [source.name for source in sources]))


def shares_of(sources: Sequence[Source]) -> dict[str, float]:
    """Share of each data set in its stream."""
    return {source.name: source.weight for source in sources}


class _Named(grain.transforms.Map):
    def __init__(self, names: tuple[str, ...]):
        self.names = names

    def map(self, parts):
        return dict(zip(self.names, parts, strict=True))


def task_mix(
    streams: Mapping[str, tuple[grain.MapDataset, int]],
    *,
    start: int | Mapping[str, int] = 0,
    process: int = 0,
    processes: int = 1,
    workers: int = 0,
    threads: int = 2,
) -> grain.DatasetIterator:
    """Iterator of batches {name: {key: (global batch / processes, …)}}.

    Args:
      streams: name (`image`, `text`) -> a stream of rows and its global batch size: a batch of each makes a step.
      start: the step to begin with; or, by name, the row.
      workers: processes that prepare batches; with 0 `threads` do it in this one.
    """
    parts = []
    begins = start if isinstance(start, Mapping) else {name: start * batch for name, (_, batch) in streams.items()}
    for name, (stream, batch) in streams.items():
        if batch % processes:
            raise ValueError(f"the {name} batch of {batch} does not divide over {processes} processes")
        share = batch // processes
        # cut before the rows are counted by batches: lengths near the largest number are counted in floats
        parts.append(stream[begins[name] + process :: processes][: share * ENDLESS].batch(share))
    zipped = grain.experimental.ZipMapDataset(parts).map(_Named(tuple(streams)))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
    dataset = zipped.to_iter_dataset(options)
    if workers:
        if (
            not flags.FLAGS.is_parsed()
        ):  # Grain's workers read absl's flags, which only a program that runs by absl parses
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    return iter(dataset)
