"""Packing: rows of text in which no position is padding."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from sphinx_jax.config import ConfigError
from sphinx_jax.data.conversation import BadItem, encode_conversation
from sphinx_jax.data.rows import Row, Rows, Shape, Source, domain_id, task_ids
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.progress import progress

_log = logging.getLogger(__name__)


class PackedRows(Sequence):
    """The endless stream of a source's texts, cut into rows without padding; row n is a function of (seed, n).

    Every epoch is all texts in an order of its own, one after the other, each from its BOS to its EOS; row n is what
    lies from n times its length on.  ``documents`` numbers the texts of a row from 1: they do not see each other.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, shape: Shape, seed: int):
        if shape.isolate_turns or shape.turns is not None:
            raise ConfigError("packed rows hold whole texts; leave turns and isolate_turns to pictures")
        self.rows, self.source, self.seed = Rows(source, tokenizer, shape), source, seed
        texts = progress(range(len(source.eligible)), desc=f"measuring {source.name}", unit="text")
        self.lengths = np.array([self._measure(number) for number in texts])
        self.total = int(self.lengths.sum())
        if not self.total:
            raise ValueError(f"data set {source.name} has no text that can be used")

    def __len__(self) -> int:
        return sys.maxsize  # as Grain counts what repeats without end

    def __getitem__(self, n: int) -> Row:
        parts = []
        for document, (number, first, last) in enumerate(self.pieces(n), 1):
            part = {name: values[first:last] for name, values in self.columns(number).items()}
            parts.append(part | {"documents": part["documents"] * document})
        row = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return row | {"skipped": np.zeros((), bool)}

    def names(self, n: int) -> str:
        return " + ".join(self.source.name_of(number) for number, *_ in self.pieces(n))

    def pieces(self, n: int) -> Iterator[tuple[int, int, int]]:
        """The texts of a row: number, and the first and the last but one of its tokens."""
        at, end = n * self.rows.shape.length, (n + 1) * self.rows.shape.length
        while at < end:
            epoch, offset = divmod(at, self.total)
            order, ends = self._shuffled(epoch)
            place = int(np.searchsorted(ends, offset, side="right"))
            number = int(order[place])
            first = offset - int(ends[place] - self.lengths[number])
            last = min(int(self.lengths[number]), first + end - at)
            yield number, first, last
            at += last - first

    def columns(self, number: int) -> Row:
        item = self.source.items[int(self.source.eligible[number])]
        if isinstance(item, str) or item.text:
            encoded = self.rows.document(item)
        else:
            encoded = encode_conversation(item.turns, self.rows.tokenizer, sys.maxsize, task_ids=task_ids(item))
        return self.rows.columns(encoded, domain_id(getattr(item, "domain", "")))

    def _measure(self, number: int) -> int:
        try:
            return len(self.columns(number)["tokens"])
        except BadItem as error:
            _log.warning("skipped %s: %s", self.source.name_of(number), error)
            return 0

    @functools.lru_cache(maxsize=4)  # noqa: B019 (one per run)
    def _shuffled(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of an epoch, and where each of its texts ends."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.lengths))
        return order, np.cumsum(self.lengths[order])
