"""The mix of tasks: data sets and instructions become one stream of static batches.

Shuffling, mixing and the choice of turns are functions of (seed, position in the global stream) alone, and processes
slice the stream afterwards: the number of workers or processes changes nothing, and one number is the whole state.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grain
import numpy as np
from absl import flags

from sphinx_jax.data.conversation import IGNORE, BadItem, Encoded, Item, encode_conversation, pad
from sphinx_jax.data.image import BadImage, load_image, padded_resize
from sphinx_jax.data.tasks import INSTRUCTIONS
from sphinx_jax.data.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

# position in these tuples is the number that batches carry
TASKS = ("other", "text", *INSTRUCTIONS)
DOMAINS = ("other", "real", "synthetic")

# the streams never end, but those that are zipped must say so alike
ENDLESS = 2**40

Row = dict[str, np.ndarray]


def task_id(name: str) -> int:
    return TASKS.index(name) if name in TASKS else 0


def domain_id(name: str) -> int:
    return DOMAINS.index(name) if name in DOMAINS else 0


@dataclass(frozen=True)
class Source:
    """One data set in the mix: random access to items (or plain documents, for text) and its share of the stream."""

    name: str
    items: Sequence[Item | str]
    weight: float = 1.0
    # task -> relative weight of its turns; tasks not named have weight 1
    task_weights: Mapping[str, float] = field(default_factory=dict)
    features: Any = None  # FeatureCache: the encoders' view of each picture, in place of its pixels

    @functools.cached_property
    def eligible(self) -> np.ndarray:
        """Numbers of the items that have a turn of positive weight."""
        weighted = any(weight <= 0 for weight in self.task_weights.values())
        return np.array([i for i, item in enumerate(self.items) if not weighted or self._wanted(item)])

    def _wanted(self, item: Item | str) -> bool:
        return isinstance(item, str) or any(self.task_weights.get(task, 1.0) > 0 for task in item.tasks)


@dataclass(frozen=True)
class Shape:
    """The static shape of rows.

    ``turns``: how many turns to draw for a picture (None: all, in the order of the file, cut to the length).
    ``turn_power``: a turn whose answer has n tokens counts as n to this power: 1 all tokens alike, 0 all turns.
    """

    length: int
    image_size: int | None = None
    turns: int | None = None
    isolate_turns: bool = False
    turn_power: float = 1.0


class Rows(grain.transforms.RandomMap):
    """Item -> row of a batch.  An item that cannot be used becomes a row without labels, named in the log."""

    def __init__(self, source: Source, tokenizer: Tokenizer, shape: Shape):
        self.source, self.tokenizer, self.shape = source, tokenizer, shape
        self._named: set[int] = set()  # bad items come again every epoch, their line in the log does not

    def random_map(self, number: int, rng: np.random.Generator) -> Row:
        index = int(self.source.eligible[number])
        item = self.source.items[index]
        try:
            return self.row(item, index, rng)
        except (BadItem, BadImage) as error:
            if index not in self._named:
                self._named.add(index)
                _log.warning("skipped %s/%s: %s", self.source.name, getattr(item, "id", "") or index, error)
            return self.masked(index)

    def row(self, item: Item | str, index: int, rng: np.random.Generator) -> Row:
        if isinstance(item, str):
            return self.finish(self.document(item, rng), 0)
        turns, tasks = item.turns, item.tasks or ("",) * len(item.turns)
        if self.shape.turns is not None:
            chosen = self.choose(tasks, rng)
            turns, tasks = [turns[i] for i in chosen], [tasks[i] for i in chosen]
        ids = [task_id(t) or (0 if item.image is not None else 1) for t in tasks]
        encoded = encode_conversation(turns, self.tokenizer, self.shape.length, task_ids=ids)
        row = self.finish(encoded, domain_id(item.domain))
        if self.shape.image_size is not None:
            row |= self.picture(item, index)
        return row

    def choose(self, tasks: Sequence[str], rng: np.random.Generator) -> np.ndarray:
        """Turns of one picture, drawn without replacement by the weights of their tasks, in random order."""
        weights = np.array([self.source.task_weights.get(task, 1.0) for task in tasks])
        # Gumbel top-k is weighted sampling without replacement
        with np.errstate(divide="ignore"):
            keys = np.log(weights) + rng.gumbel(size=len(weights))
        return np.argsort(-keys)[: min(self.shape.turns, int((weights > 0).sum()))]

    def document(self, text: str, rng: np.random.Generator) -> Encoded:
        """A window of a document, every token of it a label."""
        ids = self.tokenizer.encode(text, bos=True, eos=True)
        room = self.shape.length
        start = int(rng.integers(0, max(len(ids) - room, 0) + 1))
        tokens = np.array(ids[start : start + room], np.int32)
        tokens[0] = self.tokenizer.bos_id
        labels = np.where(np.arange(len(tokens)) > 0, tokens, IGNORE)
        nothing = np.zeros(len(tokens), np.int32)
        return Encoded(tokens, labels, labels > 0, nothing, nothing + 1, nothing)

    def finish(self, encoded: Encoded, domain: int) -> Row:
        encoded = pad(encoded, self.shape.length)
        row = {"tokens": encoded.tokens, "labels": encoded.labels}
        row["group"] = np.where(encoded.task >= 0, encoded.task * len(DOMAINS) + domain, 0).astype(np.int32)
        if self.shape.isolate_turns:
            row["segments"] = encoded.segment
        if self.shape.turn_power != 1:
            labelled = encoded.labels > 0
            lengths = np.bincount(encoded.turn[labelled], minlength=1)[np.maximum(encoded.turn, 0)]
            weights = np.maximum(lengths, 1.0) ** (self.shape.turn_power - 1)
            row["weights"] = np.where(labelled, weights, 0).astype(np.float32)
        row["skipped"] = np.zeros((), bool)
        return row

    def picture(self, item: Item, index: int) -> Row:
        if self.source.features is not None:
            return self.source.features[index]
        if item.image is None:
            raise BadItem("the item has no picture")
        return {"pixels": padded_resize(load_image(item.image), self.shape.image_size)}

    def masked(self, index: int) -> Row:
        nothing = np.zeros(0, np.int32)
        row = self.finish(Encoded(nothing, nothing, nothing, nothing, nothing, nothing), 0)
        row["skipped"] = np.ones((), bool)
        if self.shape.image_size is not None:
            size = self.shape.image_size
            features = self.source.features
            row |= features.blank(index) if features is not None else {"pixels": np.zeros((size, size, 3), np.uint8)}
        return row


class _Name(grain.transforms.Map):
    """Item -> what it is called: its data set, and its own id or number there."""

    def __init__(self, source: Source):
        self.source = source

    def map(self, number: int) -> str:
        index = int(self.source.eligible[number])
        return f"{self.source.name}/{getattr(self.source.items[index], 'id', '') or index}"


def rows(sources: Sequence[Source], tokenizer: Tokenizer, shape: Shape, seed: int) -> grain.MapDataset:
    """The endless global stream of rows of one kind (all with pictures, or all without)."""
    return _mixed(sources, seed, lambda items, source: items.random_map(Rows(source, tokenizer, shape)))


def names(sources: Sequence[Source], seed: int) -> grain.MapDataset:
    """What the rows at the same positions of the stream are made of."""
    return _mixed(sources, seed, lambda items, source: items.map(_Name(source)))


def _mixed(
    sources: Sequence[Source], seed: int, make: Callable[[grain.MapDataset, Source], grain.MapDataset]
) -> grain.MapDataset:
    streams = []
    for number, source in enumerate(sources):
        if not len(source.eligible):
            raise ValueError(f"data set {source.name} has no item with a task of positive weight")
        indices = grain.MapDataset.range(len(source.eligible)).seed(seed + 1000 * number)
        streams.append(make(indices.shuffle().repeat(), source))
    if len(streams) == 1:
        return streams[0]
    return grain.MapDataset.mix(streams, weights=[source.weight for source in sources])


class _Named(grain.transforms.Map):
    def __init__(self, names: tuple[str, ...]):
        self.names = names

    def map(self, parts):
        return dict(zip(self.names, parts, strict=True))


def task_mix(
    streams: Mapping[str, tuple[grain.MapDataset, int]],
    *,
    process: int = 0,
    processes: int = 1,
    workers: int = 0,
    threads: int = 2,
) -> grain.DatasetIterator:
    """Iterator of batches {name: {key: (global batch / processes, …)}}; its state is the position in the stream.

    ``streams`` maps a name (``image``, ``text``) to a stream of rows and its global batch size: a batch of each makes a
    step.  ``workers`` > 0 prepares batches in that many processes, else ``threads`` do it in this one.
    """
    parts = []
    for name, (stream, batch) in streams.items():
        if batch % processes:
            raise ValueError(f"the {name} batch of {batch} does not divide over {processes} processes")
        parts.append(stream[process::processes].batch(batch // processes)[:ENDLESS])
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
