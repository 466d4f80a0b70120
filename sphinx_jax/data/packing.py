"""Packing: rows of text in which no position is padding."""

from __future__ import annotations

import functools
import io
import logging
import sys
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sphinx_jax.config import ConfigError
from sphinx_jax.data.conversation import BadItem
from sphinx_jax.data.joined import content_of, edges_of
from sphinx_jax.data.lengths import Counted, Lengths, digest_of, encode_whole, recorded
from sphinx_jax.data.order import Order, even
from sphinx_jax.data.rows import Row, Rows, Shape, Source, domain_id
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.distributed import gather
from sphinx_jax.paths import write_whole
from sphinx_jax.progress import progress

MANY = 100_000  # texts, from which on counting takes long
WINDOWS = 4  # of the order that are remembered

_log = logging.getLogger(__name__)


class PackedRows(Sequence):
    """The endless stream of a source's texts, cut into rows without padding; row n is a function of (seed, n).

    Every epoch is all texts in an order of its own (`Order`'s: near in the files), one after the other, each from its
    BOS to its EOS; row n is what lies from n times its length on.  `documents` numbers the texts of a row from 1: they
    do not see each other.

    Where a row begins follows from the lengths of all texts before it.  Prepared data may have them recorded; then
    memory has a number a shard, and the lengths of a few windows.  Else the processes of a run count a share of them
    each, once: `kept` is the folder that has them for the next run.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, shape: Shape, seed: int, kept: Path | None = None):
        if shape.isolate_turns or shape.turns is not None:
            raise ConfigError("packed rows hold whole texts; leave turns and isolate_turns to pictures")
        self.rows, self.source, self.kept = Rows(source, tokenizer, shape), source, kept
        self.lengths = self._lengths()
        self.total = int(self.lengths.totals.sum())
        if not self.total:
            raise ValueError(f"data set {source.name} has no text that can be used")
        self.order = Order(self.lengths.edges, seed, getattr(source.items, "block", 1))
        self._remember()

    def _remember(self) -> None:
        self._ends = functools.lru_cache(2)(self._ends_of_windows)
        self._window = functools.lru_cache(WINDOWS)(self._texts_of_window)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_ends", "_window")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._remember()

    def __len__(self) -> int:
        return sys.maxsize  # as Grain counts what repeats without end

    def __getitem__(self, n: int) -> Row:
        parts = []
        for document, (number, length, first, last) in enumerate(self.pieces(n), 1):
            columns = self.columns(number)
            if len(columns["tokens"]) != length:
                raise ValueError(
                    f"{self.source.name_of(number)} has {len(columns['tokens'])} tokens, not {length} as when it was "
                    f"measured; {self.lengths.fix(number)}"
                )
            part = {name: values[first:last] for name, values in columns.items()}
            parts.append(part | {"documents": part["documents"] * document})
        row = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return row | {"skipped": np.zeros((), bool)}

    def names(self, n: int) -> str:
        return " + ".join(self.source.name_of(number) for number, *_ in self.pieces(n))

    def pieces(self, n: int) -> Iterator[tuple[int, int, int, int]]:
        """The texts of row n, in order: (number of the text, its tokens, the first of them here, the end of those)."""
        at, end = n * self.rows.shape.length, (n + 1) * self.rows.shape.length
        while at < end:
            epoch, offset = divmod(at, self.total)
            windows = self._ends(epoch)
            window = int(np.searchsorted(windows, offset, side="right"))
            numbers, ends = self._window(epoch, window)
            offset -= int(windows[window - 1]) if window else 0
            place = int(np.searchsorted(ends, offset, side="right"))
            begin = int(ends[place - 1]) if place else 0
            length, first = int(ends[place]) - begin, offset - begin
            last = min(length, first + end - at)
            yield int(numbers[place]), length, first, last
            at += last - first

    def columns(self, number: int) -> Row:
        item = self.source.items[int(self.source.eligible[number])]
        return self.rows.columns(encode_whole(item, self.rows), domain_id(getattr(item, "domain", "")))

    def _ends_of_windows(self, epoch: int) -> np.ndarray:
        """Where the tokens of each window end in the epoch."""
        totals = self.lengths.totals[self.order.pieces(epoch)]
        return np.cumsum(np.add.reduceat(totals, np.arange(0, len(totals), self.order.window)))

    def _texts_of_window(self, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of its texts in their order, and where the tokens of each end in it."""
        numbers, edges = self.order.numbers(epoch, window), self.lengths.edges
        pieces = np.sort(self.order.pieces(epoch)[window * self.order.window :][: self.order.window])
        lengths = [self.lengths.of(int(piece)) for piece in pieces]
        begins = np.cumsum([0, *map(len, lengths)])[:-1]
        of_piece = np.searchsorted(edges[pieces], numbers, side="right") - 1
        places = numbers - edges[pieces][of_piece] + begins[of_piece]
        return numbers, np.cumsum(np.concatenate(lengths)[places], dtype=np.int64)

    def _lengths(self) -> Lengths:
        """Tokens of every text, as they were recorded or as they are counted."""
        count, items = len(self.source.eligible), self.source.items
        whole, digest = count == len(items), digest_of(self.rows.tokenizer)
        if whole and (found := recorded(items, digest)):
            return found
        file = self.kept and self.kept / f"{self.source.name}-{self._digest(whole)}.npy"
        if gather(np.array([file is not None and file.exists()])).all():
            lengths = np.load(io.BytesIO(file.read_bytes()))
        else:
            lengths = self._count(count)
            if file is not None and jax.process_index() == 0:
                file.parent.mkdir(parents=True, exist_ok=True)
                content = io.BytesIO()
                np.save(content, lengths)
                write_whole(file, content.getvalue())
        return Counted(lengths, edges_of(items) if whole else even(count), f"delete {file}")

    def _count(self, count: int) -> np.ndarray:
        process, processes = jax.process_index(), jax.process_count()
        if count > MANY and process == 0:
            _log.warning(
                "%s: the tokens of %d texts are counted; tools/prepare_data.py --tokenizer counts those of prepared "
                "data once, by all processors and for all runs with this tokenizer",
                self.source.name,
                count,
            )
        mine = np.zeros(-(-count // processes), np.uint32)
        texts = range(process, count, processes)
        for at, number in enumerate(progress(texts, desc=f"measuring {self.source.name}", unit="text")):
            mine[at] = self._measure(number)
        return gather(mine).T.ravel()[:count]

    def _digest(self, whole: bool) -> str:
        """Of all that the lengths depend on."""
        found = sha256(repr(sorted(self.rows.tokenizer.files.items())).encode())
        content = content_of(self.source.items)
        if content is not None:
            found.update(content.encode())
            found.update(np.asarray(self.source.eligible, np.int64).tobytes() if not whole else b"")
            return found.hexdigest()[:16]
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
