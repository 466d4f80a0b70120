"""Packing: rows of text in which no position is padding."""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from sphinx_jax.config import ConfigError
from sphinx_jax.data.conversation import BadItem, encode_conversation
from sphinx_jax.data.rows import Row, Rows, Shape, Source, domain_id, system_of, task_ids
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.distributed import gather
from sphinx_jax.paths import write_whole
from sphinx_jax.progress import progress

_log = logging.getLogger(__name__)


class PackedRows(Sequence):
    """The endless stream of a source's texts, cut into rows without padding; row n is a function of (seed, n).

    Every epoch is all texts in an order of its own, one after the other, each from its BOS to its EOS; row n is what
    lies from n times its length on.  `documents` numbers the texts of a row from 1: they do not see each other.

    Where a row begins follows from the lengths of all texts before it.  The processes of a run count a share of them
    each, once: `kept` is the folder that has them for the next run.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, shape: Shape, seed: int, kept: Path | None = None):
        if shape.isolate_turns or shape.turns is not None:
            raise ConfigError("packed rows hold whole texts; leave turns and isolate_turns to pictures")
        self.rows, self.source, self.seed = Rows(source, tokenizer, shape), source, seed
        self.file = kept and kept / f"{source.name}-{self._digest()}.npy"
        self.lengths = self._lengths()
        self.total = int(self.lengths.sum())
        if not self.total:
            raise ValueError(f"data set {source.name} has no text that can be used")

    def __len__(self) -> int:
        return sys.maxsize  # as Grain counts what repeats without end

    def __getitem__(self, n: int) -> Row:
        parts = []
        for document, (number, first, last) in enumerate(self.pieces(n), 1):
            columns = self.columns(number)
            if len(columns["tokens"]) != self.lengths[number]:
                raise ValueError(
                    f"{self.source.name_of(number)} has {len(columns['tokens'])} tokens, not {self.lengths[number]} as "
                    f"when it was measured; delete {self.file}"
                )
            part = {name: values[first:last] for name, values in columns.items()}
            parts.append(part | {"documents": part["documents"] * document})
        row = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return row | {"skipped": np.zeros((), bool)}

    def names(self, n: int) -> str:
        return " + ".join(self.source.name_of(number) for number, *_ in self.pieces(n))

    def pieces(self, n: int) -> Iterator[tuple[int, int, int]]:
        """The texts of row n, in order: (number of the text, its first token, the end of its tokens, exclusive)."""
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
            encoded = encode_conversation(
                item.turns, self.rows.tokenizer, sys.maxsize, task_ids=task_ids(item), system=system_of(item)
            )
        return self.rows.columns(encoded, domain_id(getattr(item, "domain", "")))

    def _lengths(self) -> np.ndarray:
        """Tokens of every text."""
        count, process, processes = len(self.source.eligible), jax.process_index(), jax.process_count()
        if gather(np.array([self.file is not None and self.file.exists()])).all():
            return np.load(io.BytesIO(self.file.read_bytes()))
        mine = np.zeros(-(-count // processes), np.int64)
        texts = range(process, count, processes)
        for at, number in enumerate(progress(texts, desc=f"measuring {self.source.name}", unit="text")):
            mine[at] = self._measure(number)
        lengths = gather(mine).T.ravel()[:count]
        if self.file is not None and process == 0:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            content = io.BytesIO()
            np.save(content, lengths)
            write_whole(self.file, content.getvalue())
        return lengths

    def _digest(self) -> str:
        """Of all that the lengths depend on."""
        found = hashlib.sha256(repr(sorted(self.rows.tokenizer.files.items())).encode())
        for index in self.source.eligible:
            item = self.source.items[int(index)]
            found.update(repr(item if isinstance(item, str) else (item.text, item.turns, item.system)).encode())
        return found.hexdigest()[:16]

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
