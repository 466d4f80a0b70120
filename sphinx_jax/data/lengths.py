"""How many tokens the texts of a data set have: recorded when it was prepared, or counted and held in memory.

Texts are told apart by pieces that lie side by side, so that where a token lies is found by the totals of pieces and
the lengths of some.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sphinx_jax.data.conversation import Encoded, Item, encode_conversation
from sphinx_jax.data.formats.files import BadData
from sphinx_jax.data.formats.prepared import Prepared, lengths_file
from sphinx_jax.data.joined import Joined
from sphinx_jax.data.rows import Rows, system_of, task_ids
from sphinx_jax.data.tokenizer import Tokenizer


def encode_whole(item: Item | str, rows: Rows) -> Encoded:
    """All tokens of a text, or of a conversation.  Raises BadItem where it cannot be used."""
    if isinstance(item, str) or item.text:
        return rows.document(item)
    return encode_conversation(item.turns, rows.tokenizer, sys.maxsize, task_ids=task_ids(item), system=system_of(item))


def digest_of(tokenizer: Tokenizer) -> str:
    """Which tokenizer it is, in 16 letters."""
    return sha256(repr(sorted(tokenizer.files.items())).encode()).hexdigest()[:16]


class Lengths(Protocol):
    """Tokens of each text; 0 of one that cannot be used.

    Attributes:
      edges: (P + 1,) int64, number of the first text of each piece, and at the end of all.
      totals: (P,) int64, tokens of each piece.
    """

    edges: np.ndarray
    totals: np.ndarray

    def of(self, piece: int) -> np.ndarray:
        """(texts of the piece,) tokens of each."""
        ...

    def fix(self, number: int) -> str:
        """What to do when it is not true of a text."""
        ...


class Counted:
    """Held in memory; `fix` is told of all texts."""

    def __init__(self, lengths: np.ndarray, edges: np.ndarray, fix: str):
        self.lengths, self.edges, self._fix = lengths, edges, fix
        self.totals = np.add.reduceat(lengths, edges[:-1], dtype=np.int64)

    def of(self, piece: int) -> np.ndarray:
        return self.lengths[self.edges[piece] : self.edges[piece + 1]]

    def fix(self, number: int) -> str:
        return self._fix


class Recorded:
    """Of prepared data: a number a shard in memory, the lengths of its items in a file beside it."""

    def __init__(self, items: Prepared, tokenizer: str):
        self.items, self.tokenizer, self.edges = items, tokenizer, items.edges
        shards = items.manifest["shards"]
        self._shards = np.flatnonzero([shard["items"] for shard in shards])  # the pieces
        self.totals = np.array([shards[shard]["tokens"][tokenizer] for shard in self._shards], np.int64)

    def of(self, piece: int) -> np.ndarray:
        file = self._file(piece)
        try:
            found = np.frombuffer(file.read_bytes(), "<u4")
        except (OSError, ValueError):
            found = np.zeros(0, np.uint32)
        if len(found) != self.edges[piece + 1] - self.edges[piece] or found.sum(dtype=np.int64) != self.totals[piece]:
            raise BadData(f"{file} is not there, or not of its shard; {self.fix(int(self.edges[piece]))}")
        return found

    def fix(self, number: int) -> str:
        file = self._file(int(np.searchsorted(self.edges, number, side="right")) - 1)
        return f"delete {file.name} and give tools/prepare_data.py the same --tokenizer again"

    def _file(self, piece: int) -> Path:
        shard = self.items.manifest["shards"][self._shards[piece]]
        return lengths_file(self.items.folder, shard["name"], self.tokenizer)


class Together:
    """Of lists one after the other."""

    def __init__(self, parts: Sequence[Lengths]):
        self.parts = parts
        self.ends = np.cumsum([len(part.totals) for part in parts])
        self.totals = np.concatenate([part.totals for part in parts])
        self.starts = np.cumsum([0, *(int(part.edges[-1]) for part in parts)])
        moved = [part.edges[:-1] + start for part, start in zip(parts, self.starts, strict=False)]
        self.edges = np.append(np.concatenate(moved), self.starts[-1])

    def of(self, piece: int) -> np.ndarray:
        part = int(np.searchsorted(self.ends, piece, side="right"))
        return self.parts[part].of(piece - (int(self.ends[part - 1]) if part else 0))

    def fix(self, number: int) -> str:
        part = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self.parts[part].fix(number - int(self.starts[part]))


def recorded(items: Sequence[Any], tokenizer: str) -> Lengths | None:
    """Of prepared data, and of lists that are all of them such, where this tokenizer's were recorded."""
    if isinstance(items, Joined):
        parts = [found for part in items.parts if (found := recorded(part, tokenizer))]
        return Together(parts) if parts and len(parts) == len(items.parts) else None
    if isinstance(items, Prepared) and tokenizer in items.manifest.get("tokens", {}):
        return Recorded(items, tokenizer)
    return None
