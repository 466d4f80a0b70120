"""Items of several lists as one sequence, read where they lie."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Any, overload

import numpy as np

from sphinx_jax.data.conversation import Item
from sphinx_jax.data.order import PIECE, even


class Indexed(Sequence[Item]):
    """Items by number: from the end too, and slices as lists."""

    @abc.abstractmethod
    def item(self, index: int) -> Item:
        """Of an index from 0 on that is there."""

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self.item(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        return self.item(index % len(self))


def edges_of(items: Sequence[Any]) -> np.ndarray:
    """Where each piece of a sequence begins that lies in a file of its own, and where the last ends."""
    own = getattr(items, "edges", None)
    return even(len(items)) if own is None else own


def kinds_of(items: Sequence[Any]) -> tuple[Sequence[Item], np.ndarray] | None:
    """Where a sequence knows its items by kinds: an item of each kind, and the kind (N,) of every item.

    True of the items of a kind is what the example says of having a picture or a text, of domain and names of tasks.
    """
    if isinstance(items, Chosen):
        found = kinds_of(items.items)
        return found and (found[0], found[1][items.numbers])
    return getattr(items, "kinds", None)


def mask_of(items: Sequence[Any], wanted: Callable[[Any], bool]) -> np.ndarray:
    """(N,) bool: which items are wanted, as `values_of` finds out."""
    return values_of(items, wanted, bool)


def values_of(items: Sequence[Any], value: Callable[[Any], Any], dtype: type) -> np.ndarray:
    """(N,) what `value` says of each item, by what `kinds_of` tells; where it tells nothing each item is looked at."""
    if isinstance(items, Joined):
        return np.concatenate([np.zeros(0, dtype), *(values_of(part, value, dtype) for part in items.parts)])
    if (found := kinds_of(items)) is None:
        return np.fromiter(map(value, items), dtype, len(items))
    examples, kinds = found
    of_kind, values = np.array([value(kind) for kind in examples], dtype), np.empty(len(kinds), dtype)
    for begin in range(0, len(kinds), PIECE):  # indices are eight bytes
        values[begin : begin + PIECE] = of_kind[kinds[begin : begin + PIECE]]
    return values


def counted(items: Sequence[Any]) -> Iterator[tuple[Any, int]]:
    """Items, or examples of their kinds as `kinds_of` has them, and how many each stands for."""
    if isinstance(items, Joined):
        yield from (one for part in items.parts for one in counted(part))
    elif (found := kinds_of(items)) is None:
        yield from ((item, 1) for item in items)
    else:
        counts = np.bincount(found[1], minlength=len(found[0])).tolist()
        yield from ((kind, count) for kind, count in zip(found[0], counts, strict=True) if count)


def tasks_of(items: Sequence[Any]) -> frozenset[str] | None:
    """The tasks that occur in a sequence, `text` for what has none; a few more where it is a part of what says so; None
    where only looking at each item would tell."""
    if isinstance(items, Joined):
        parts = [tasks_of(part) for part in items.parts]
        return None if None in parts else frozenset().union(*(part for part in parts if part is not None))
    if isinstance(items, Ranges | Chosen):
        return tasks_of(items.items)
    return getattr(items, "tasks", None)


def content_of(items: Sequence[Any]) -> str | None:
    """By which a change of a sequence shows, where its files tell that without being read."""
    if isinstance(items, Joined):
        parts = [content_of(part) for part in items.parts]
        return None if None in parts else " ".join(map(str, parts))
    if isinstance(items, Ranges | Chosen):
        numbers = [items.begins, items.ends] if isinstance(items, Ranges) else items.numbers
        whole = content_of(items.items)
        return whole and f"{whole} {sha256(np.asarray(numbers, np.int64).tobytes()).hexdigest()}"
    return getattr(items, "content", None)


class Joined(Indexed):
    """Lists one after the other.

    Attributes:
      block: how many items that lie side by side are read together, at most.
      edges: as `edges_of` has them.
    """

    def __init__(self, parts: Sequence[Sequence[Item]]):
        self.parts = [part for part in parts if len(part)]
        self.ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)
        self.block = max((getattr(part, "block", 1) for part in self.parts), default=1)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @functools.cached_property
    def edges(self) -> np.ndarray:
        starts = [0, *self.ends[:-1]]
        parts = [edges_of(part)[:-1] + start for part, start in zip(self.parts, starts, strict=False)]
        return np.append(np.concatenate(parts), self.ends[-1]) if parts else np.zeros(1, np.int64)

    def item(self, index: int) -> Item:
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[part][index - (int(self.ends[part - 1]) if part else 0)]

    def __iter__(self) -> Iterator[Item]:
        return (item for part in self.parts for item in part)


class Ranges(Indexed):
    """Stretches of a sequence, one after the other.

    Args:
      begins, ends: (stretches,) number of the first item of each, and of the one after the last.
    """

    def __init__(self, items: Sequence[Item], begins: np.ndarray, ends: np.ndarray):
        self.items, self.begins, self.ends = items, begins, ends
        self.block = getattr(items, "block", 1)
        self.edges = np.append(0, np.cumsum(ends - begins))

    def __len__(self) -> int:
        return int(self.edges[-1])

    def item(self, index: int) -> Item:
        part = int(np.searchsorted(self.edges, index, side="right")) - 1
        return self.items[int(self.begins[part]) + index - int(self.edges[part])]


def some_of_each(items: Sequence[Item], count: int, seed: int) -> Ranges:
    """So many items of a sequence in pieces, of each piece its share, one stretch from a place that the seed chooses.

    Neither items nor their numbers are held, and items that are read together stay so.
    """
    edges, block = edges_of(items), getattr(items, "block", 1)
    # halves up, exactly: those of numpy go to the even side, and in floats they may not be halves
    total = int(edges[-1])
    taken = np.diff([(2 * int(edge) * count + total) // (2 * total) for edge in edges])
    sizes = np.diff(edges)
    # a stretch begins with a block; from behind the last block that leaves room it cannot
    last = (sizes - taken) // block
    begins = edges[:-1] + block * np.random.default_rng(seed).integers(0, last + 1)
    kept = taken > 0
    return Ranges(items, begins[kept], (begins + taken)[kept])


class Chosen(Indexed):
    """Some items of a sequence, by number."""

    def __init__(self, items: Sequence[Item], numbers: np.ndarray):
        self.items, self.numbers = items, numbers
        self.block = getattr(items, "block", 1)
        self.skipped = getattr(items, "skipped", ())

    def __len__(self) -> int:
        return len(self.numbers)

    def item(self, index: int) -> Item:
        return self.items[int(self.numbers[index])]
