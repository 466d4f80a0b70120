"""Rows: an item of a data set as one row of a batch, of static shape."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grain
import numpy as np

from sphinx_jax.data.conversation import SYSTEM, BadItem, Encoded, Item, encode_conversation, pad
from sphinx_jax.data.image import BadImage, load_image, padded_resize
from sphinx_jax.data.joined import mask_of, tasks_of, values_of
from sphinx_jax.data.tasks import DOMAINS, INSTRUCTIONS
from sphinx_jax.data.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

# position in these tuples is the number that batches carry
TASKS = ("other", "text", *INSTRUCTIONS)
DOMAIN_NUMBERS = ("other", *DOMAINS)
GROUPS = len(TASKS) * len(DOMAIN_NUMBERS)  # of which a position is one

Row = dict[str, np.ndarray]


def task_id(name: str) -> int:
    return TASKS.index(name) if name in TASKS else 0


def task_ids(item: Item) -> list[int]:
    """The number of each turn's task."""
    of_none = int(item.image is None)
    return [task_id(task) or of_none for task in item.tasks or ("",) * len(item.turns)]


def system_of(item: Item) -> str:
    return SYSTEM if item.system is None else item.system


def domain_id(name: str) -> int:
    return DOMAIN_NUMBERS.index(name) if name in DOMAIN_NUMBERS else 0


@dataclass(frozen=True)
class Source:
    """One data set in the mix: random access to items (or plain documents, for text) and its share of the stream."""

    name: str
    items: Sequence[Item | str]
    weight: float = 1.0
    # task -> relative weight of its turns; tasks not named have weight 1
    task_weights: Mapping[str, float] = field(default_factory=dict)
    features: Any = None  # FeatureCache: the encoders' view of each picture, in place of its pixels
    # task -> how often an item that has it comes, where others come once
    repeats: Mapping[str, int] = field(default_factory=dict)

    @functools.cached_property
    def epoch(self) -> Sequence[int]:
        """Numbers of the eligible items, each as often as it comes."""
        if not self.repeats or ((tasks := tasks_of(self.items)) is not None and tasks.isdisjoint(self.repeats)):
            return self.eligible  # of many millions not one is looked at
        times = values_of(self.items, self._times, int)
        return np.repeat(self.eligible, times[self.eligible])

    @functools.cached_property
    def eligible(self) -> Sequence[int]:
        """Numbers of the items that have a turn of positive weight."""
        if not any(weight <= 0 for weight in self.task_weights.values()):
            return range(len(self.items))  # of many millions not one is looked at
        if (tasks := tasks_of(self.items)) is not None:
            wanted = {task for task in tasks if task == "text" or self.task_weights.get(task, 1.0) > 0}
            if not wanted or wanted == tasks:
                return range(len(self.items) if wanted else 0)
        return np.flatnonzero(mask_of(self.items, self._wanted))

    def spread(self, most: int) -> np.ndarray:
        """Numbers of at most so many eligible items, from all over the data set."""
        count = len(self.eligible)
        return np.linspace(0, count - 1, min(most, count)).astype(int)

    def name_of(self, number: int) -> str:
        """What an item of an epoch is called: its data set, and its own id or number there."""
        index = int(self.epoch[number])
        return f"{self.name}/{getattr(self.items[index], 'id', '') or index}"

    def _times(self, item: Item) -> int:
        return max((self.repeats.get(task, 1) for task in item.tasks), default=1)

    def _wanted(self, item: Item | str) -> bool:
        return (
            isinstance(item, str) or bool(item.text) or any(self.task_weights.get(task, 1.0) > 0 for task in item.tasks)
        )


@dataclass(frozen=True)
class Shape:
    """The static shape of rows.

    `turns`: how many turns to draw for a picture (None: all, in the order of the file, cut to the length).
    `turn_power`: a turn whose answer has n tokens counts as n to this power: 1 all tokens alike, 0 all turns.
    `packed`: rows of text are filled to the last position, several documents one after the other.
    """

    length: int
    image_size: int | None = None
    turns: int | None = None
    isolate_turns: bool = False
    turn_power: float = 1.0
    packed: bool = False


class Rows(grain.transforms.RandomMap):
    """Item -> row of a batch.  An item that cannot be used becomes a row that teaches nothing, named in the log."""

    def __init__(self, source: Source, tokenizer: Tokenizer, shape: Shape):
        self.source, self.tokenizer, self.shape = source, tokenizer, shape
        self._named: set[int] = set()  # bad items come again every epoch, their line in the log does not

    def random_map(self, number: int, rng: np.random.Generator) -> Row:
        index = int(self.source.epoch[number])
        item = self.source.items[index]
        try:
            return self.row(item, index, rng)
        except (BadItem, BadImage) as error:
            if index not in self._named:
                self._named.add(index)
                _log.warning("skipped %s/%s: %s", self.source.name, getattr(item, "id", "") or index, error)
            return self.masked(index)

    def row(self, item: Item | str, index: int, rng: np.random.Generator) -> Row:
        if isinstance(item, str) or item.text:
            encoded, room = self.document(item), self.shape.length
            # text alone may begin anywhere, what belongs to a picture begins with it
            spare = 0 if self.shape.image_size is not None else max(len(encoded) - room, 0)
            encoded = encoded.cut(int(rng.integers(0, spare + 1)), room)
            encoded.tokens[0] = self.tokenizer.bos_id
            encoded.loss_mask[0] = False
        else:
            encoded = self.conversation(item, rng)
        row = self.finish(encoded, domain_id(getattr(item, "domain", "")))
        if self.shape.image_size is not None:
            row |= self.picture(item, index)
        return row

    def conversation(self, item: Item, rng: np.random.Generator) -> Encoded:
        turns, ids = item.turns, task_ids(item)
        if self.shape.turns is not None:
            chosen = self.choose(item.tasks or ("",) * len(turns), rng)
            turns, ids = [turns[i] for i in chosen], [ids[i] for i in chosen]
        return encode_conversation(turns, self.tokenizer, self.shape.length, task_ids=ids, system=system_of(item))

    def choose(self, tasks: Sequence[str], rng: np.random.Generator) -> np.ndarray:
        """Turns of one picture, drawn without replacement by the weights of their tasks, in random order."""
        weights = np.array([self.source.task_weights.get(task, 1.0) for task in tasks])
        # Gumbel top-k is weighted sampling without replacement
        with np.errstate(divide="ignore"):
            keys = np.log(weights) + rng.gumbel(size=len(weights))
        return np.argsort(-keys)[: min(self.shape.turns, int((weights > 0).sum()))]

    def document(self, item: Item | str) -> Encoded:
        """All of a text, every token of it learnt but the first and unknown ones."""
        text = item if isinstance(item, str) else item.text
        tokens = np.array(self.tokenizer.encode(text, bos=True, eos=True), np.int32)
        learnt = (np.arange(len(tokens)) > 0) & (tokens != self.tokenizer.unk_id)
        nothing = np.zeros(len(tokens), np.int32)
        kind = int(isinstance(item, str) or item.image is None)
        return Encoded(tokens, learnt, np.ones(len(tokens), bool), nothing, nothing + kind, nothing)

    def columns(self, encoded: Encoded, domain: int) -> Row:
        """What a batch holds of every position."""
        row = {"tokens": encoded.tokens, "loss_mask": encoded.loss_mask}
        row["group"] = np.where(encoded.task >= 0, encoded.task * len(DOMAIN_NUMBERS) + domain, 0).astype(np.int32)
        if self.shape.packed:
            row["documents"] = np.ones(len(encoded), np.int32)
        if self.shape.isolate_turns:
            row["segments"] = encoded.segment
        if self.shape.turn_power != 1:
            lengths = np.bincount(encoded.turn[encoded.loss_mask], minlength=1)[np.maximum(encoded.turn, 0)]
            weights = np.maximum(lengths, 1.0) ** (self.shape.turn_power - 1)
            row["weights"] = np.where(encoded.loss_mask, weights, 0).astype(np.float32)
        return row

    def finish(self, encoded: Encoded, domain: int) -> Row:
        return self.columns(pad(encoded, self.shape.length), domain) | {"skipped": np.zeros((), bool)}

    def picture(self, item: Item, index: int) -> Row:
        if self.source.features is not None:
            return self.source.features[index]
        if item.image is None:
            raise BadItem("the item has no picture")
        return {"pixels": padded_resize(load_image(item.image), self.shape.image_size)}

    def masked(self, index: int) -> Row:
        nothing, never = np.zeros(0, np.int32), np.zeros(0, bool)
        row = self.finish(Encoded(nothing, never, never, nothing, nothing, nothing), 0)
        row["skipped"] = np.ones((), bool)
        if self.shape.image_size is not None:
            size = self.shape.image_size
            features = self.source.features
            row |= features.blank(index) if features is not None else {"pixels": np.zeros((size, size, 3), np.uint8)}
        return row
