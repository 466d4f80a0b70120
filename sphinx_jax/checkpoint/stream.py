"""Checkpoints slice by slice, for tools whose checkpoints are larger than memory.

`Reader` opens any checkpoint that Orbax wrote; `Writer` makes one that reads like Orbax's own.  Both go to the
arrays through tensorstore and hold a few chunks at a time, whatever the size of a leaf.

A chunk is written once, in full, and is in the OCDBT database only after its bytes are on disk: the database commits by
replacing its manifest atomically, under a lock.  So the database itself tells what an interrupted run has finished, and
several processes may write to one folder, each its own leaves or chunks.
"""

from __future__ import annotations

import collections
import itertools
import json
import math
import operator
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import EllipsisType
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from sphinx_jax import heap
from sphinx_jax.checkpoint import orbax_files, store
from sphinx_jax.checkpoint.casting import Cast, place_of
from sphinx_jax.checkpoint.store import CHUNK_BYTES, BadCheckpoint
from sphinx_jax.config import ModelConfig, unknown
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.disk import is_full, room_left
from sphinx_jax.paths import located

UNFINISHED = "unfinished.json"
IN_FLIGHT_BYTES = 16 * 2**20  # of chunks being written; they take about twice as much memory
ROW_BYTES = 2**20  # rows from this size on are chunks of their own

Index = int | slice | EllipsisType | tuple[int | slice, ...]
Box = tuple[slice, ...]  # one slice per axis, with start and stop


class WriteFailed(ValueError):
    """A leaf that could not be stored; what was stored before stays, and the same run again goes on from there."""


class LeafInfo(NamedTuple):
    """What is known of a leaf without reading it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk_shape: tuple[int, ...]

    def chunks(self) -> Iterator[Box]:
        """The leaf's chunks in C order: reading or writing one by one touches each chunk once."""
        return (chunk for _, chunk in _chunks_of(self, tuple(slice(0, n) for n in self.shape)))


class Reader:
    """The leaves of a checkpoint, by slice.  Opening one reads no array.

    `folder` is one of our checkpoints or any that Orbax wrote (its old or new layout, zarr 2 or 3, OCDBT or not); of
    several parts the `state` is opened, or the one that `folder` points at.
    """

    leaves: dict[str, LeafInfo]
    tree: orbax_files.Tree

    def __init__(self, folder: str | Path):
        if not isinstance(located(folder), Path):
            raise BadCheckpoint(f"{folder} is in an object store; copy it to a disk, from where it is read by slices")
        self.folder = Path(folder).resolve()
        if (self.folder / UNFINISHED).exists() and not store.is_complete(self.folder):
            raise BadCheckpoint(f"{self.folder} is unfinished; run again what was writing it")
        self.state = orbax_files.find_state(self.folder)
        context = _context()
        specs, self.tree = orbax_files.read_metadata(self.state)
        opening = {path: ts.open(spec, context=context) for path, spec in specs.items()}
        self._arrays = {path: _wait(future, f"cannot open {path} of {self.folder}") for path, future in opening.items()}
        self.leaves = {
            path: LeafInfo(array.shape, array.dtype.numpy_dtype, array.chunk_layout.read_chunk.shape or ())
            for path, array in self._arrays.items()
        }

    def read(self, path: str, index: Index = ()) -> np.ndarray:
        """`leaf[index]` in the leaf's dtype (bfloat16 is ml_dtypes'): ints and slices (step 1) of leading axes."""
        if path not in self.leaves:
            raise unknown("leaf", path, self.leaves)
        box, shape = _box(path, self.leaves[path].shape, index)
        return _wait(self._arrays[path][box].read(), f"cannot read {path} of {self.folder}").reshape(shape)


class Writer:
    """A checkpoint written slice by slice; nobody takes the folder for a checkpoint before `finish`.

    An interrupted run is taken up by the same `Writer` call: `is_done` says what need not be written again.

    Args:
      folder: new, empty, or what an interrupted run left.
      leaves: {path: (shape, dtype)}, or a reader's `LeafInfo`, whose chunks are then kept: a mixed leaf is best
        written in the chunks that it is read in.
      origin: what the leaves are made from (anything JSON holds: files, hashes, coefficients).  A folder left by a run
        of another origin is refused.
      allow: `underflow` takes values that are too small for their leaf's dtype.
    """

    leaves: dict[str, LeafInfo]

    def __init__(
        self,
        folder: str | Path,
        leaves: Mapping[str, tuple | LeafInfo],
        origin: Any = None,
        allow: Collection[str] = (),
    ):
        self.folder, self._allow = Path(folder).resolve(), allow
        self.leaves = {path: _leaf_info(path, *leaf) for path, leaf in sorted(leaves.items())}
        _claim(self.folder, self.leaves, origin)
        self._state = self.folder / orbax_files.STATE
        self._context = _context()
        opening = {
            path: ts.open(
                orbax_files.new_array_spec(self._state, path, *leaf), create=True, open=True, context=self._context
            )
            for path, leaf in self.leaves.items()
        }
        self._arrays = {path: self._committed(path, future) for path, future in opening.items()}
        self._stored = self._list_stored()
        self._gathered: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._queue: collections.deque[tuple[str, str, int, ts.Future]] = collections.deque()
        self._in_flight = 0

    def is_done(self, path: str, index: Index = ()) -> bool:
        """Whether every chunk of `leaf[index]` is on disk, be it since an earlier run."""
        info = self._info(path)
        box, _ = _box(path, info.shape, index)
        return all(orbax_files.chunk_key(path, at) in self._stored for at, _ in _chunks_of(info, box))

    def write(self, path: str, index: Index, array: Any) -> None:
        """`leaf[index] = array`, cast to the leaf's dtype; each element once: chunks on disk already are passed over.

        Returns when at most `IN_FLIGHT_BYTES` are still on their way; the array may be changed at once.  Chunks
        covered in part wait in memory for the rest, so write rows of few leaves at a time, or whole chunks.

        Raises:
          WriteFailed: this slice or an earlier one could not be stored (a full disk).
          BadCheckpoint: the leaf's dtype cannot hold the values (see `casting`).
        """
        info = self._info(path)
        box, shape = _box(path, info.shape, index)
        array = np.asarray(array)
        if array.shape != shape:
            raise ValueError(f"{path}: the slice is {shape}, the array given {array.shape}")
        if not array.size:
            return
        array = array.reshape([part.stop - part.start for part in box])
        cast = Cast(info.dtype, place_of(path, index), self._allow)
        for at, chunk in _chunks_of(info, box):
            key = orbax_files.chunk_key(path, at)
            if key in self._stored:
                continue
            inside = tuple(slice(max(c.start, b.start), min(c.stop, b.stop)) for c, b in zip(chunk, box, strict=True))
            part = cast(array[_relative(inside, box)])
            if inside == chunk:
                self._store(path, key, chunk, part.copy() if np.may_share_memory(part, array) else part)
            elif (whole := self._gather(key, chunk, inside, part, info.dtype)) is not None:
                self._store(path, key, chunk, whole)
        cast.check()

    def flush(self) -> None:
        """Waits until all whole chunks given so far are on disk; to be called by a process that does not finish."""
        self._wait_for_room(IN_FLIGHT_BYTES)

    def unwritten(self) -> list[str]:
        """Leaves of which something is not on disk yet, by whatever process."""
        self._stored = self._list_stored()
        return [path for path in self.leaves if not self.is_done(path)]

    def finish(
        self,
        config: ModelConfig | None,
        tokenizer: Tokenizer | None,
        recipe: dict[str, Any],
        tree: orbax_files.Tree = orbax_files.NESTED_DICTS,
    ) -> Path:
        """Makes the folder a checkpoint, once all leaves are written (by whatever process).

        Args:
          tree: as a `Reader` has it, for leaves of another program.

        Raises:
          BadCheckpoint: leaves that are not written in full.
        """
        self.flush()
        if missing := self.unwritten():
            raise BadCheckpoint(
                f"{self.folder}: {len(missing)} leaves are not written in full, the first is {missing[0]}"
            )
        written = {path: (leaf.shape, leaf.chunk_shape) for path, leaf in self.leaves.items()}
        orbax_files.write_metadata(self.folder, written, tree)
        store.write_beside(self.folder, config, tokenizer, recipe)
        for left in (*self.folder.glob(f"{UNFINISHED}*"), *self._state.rglob("*.__lock")):
            left.unlink()
        return self.folder

    def _info(self, path: str) -> LeafInfo:
        if path not in self.leaves:
            raise unknown("leaf", path, self.leaves)
        return self.leaves[path]

    def _list_stored(self) -> set[str]:
        listing = ts.KvStore.open(orbax_files.database(self._state), context=self._context).result().list()
        return {key.decode() for key in _wait(listing, f"cannot read {self.folder}")}

    def _gather(self, key: str, chunk: Box, inside: Box, part: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
        """Collects a chunk from parts; gives it back once nothing is missing."""
        if key not in self._gathered:
            shape = [c.stop - c.start for c in chunk]
            self._gathered[key] = np.empty(shape, dtype), np.ones(shape, bool)
        whole, missing = self._gathered[key]
        where = _relative(inside, chunk)
        whole[where], missing[where] = part, False
        if missing.any():
            return None
        del self._gathered[key]
        return whole

    def _store(self, path: str, key: str, chunk: Box, array: np.ndarray) -> None:
        self._wait_for_room(array.nbytes)
        # nobody else holds the array, so tensorstore needs no copy of it
        future = self._arrays[path][chunk].write(array, can_reference_source_data_indefinitely=True).commit
        future.force()
        self._queue.append((path, key, array.nbytes, future))
        self._in_flight += array.nbytes

    def _wait_for_room(self, size: int) -> None:
        while self._queue and self._in_flight + size > IN_FLIGHT_BYTES:
            path, key, written, future = self._queue.popleft()
            self._in_flight -= written
            self._committed(path, future)
            self._stored.add(key)

    def _committed(self, path: str, future: ts.Future) -> Any:
        try:
            return future.result()
        except (ValueError, OSError) as error:
            room = f" ({room_left(self.folder)})" if is_full(error) else ""
            raise WriteFailed(
                f"cannot write {path} to {self.folder}: {_reason(error)}{room}; what is written stays, "
                "run again to go on"
            ) from None


def _claim(folder: Path, leaves: dict[str, LeafInfo], origin: Any) -> None:
    """Marks a folder as being written, or makes sure that it is the same writing that was interrupted there."""
    if store.is_complete(folder):
        raise BadCheckpoint(f"{folder} already holds a checkpoint")
    plan = {
        "origin": origin,
        "leaves": {p: [leaf.shape, leaf.dtype.name, leaf.chunk_shape] for p, leaf in leaves.items()},
    }
    plan = json.dumps(plan, indent=1)
    marker = folder / UNFINISHED
    if not marker.exists():
        folder.mkdir(parents=True, exist_ok=True)
        foreign = any(not found.name.startswith(UNFINISHED) for found in folder.iterdir())
        if foreign and not marker.exists():  # another process may have made it just now
            raise BadCheckpoint(f"{folder} is in use by something else; give a new folder, or empty it")
        draft = folder / f"{UNFINISHED}.{os.getpid()}"
        draft.write_text(plan)
        draft.replace(marker)
    if marker.read_text() != plan:
        raise BadCheckpoint(
            f"{folder} was begun from other sources or for other leaves (see {UNFINISHED} there); delete it or give"
            " another folder"
        )


def _leaf_info(path: str, shape: tuple[int, ...], dtype: Any, chunk_shape: tuple[int, ...] | None = None) -> LeafInfo:
    shape, dtype = tuple(map(int, shape)), np.dtype(dtype)
    if 0 in shape:
        raise BadCheckpoint(f"{path} {shape} has no elements, and Orbax stores no such array")
    if chunk_shape is None or math.prod(chunk_shape) * dtype.itemsize > CHUNK_BYTES:
        chunk_shape = choose_chunk_shape(shape, dtype.itemsize)
    return LeafInfo(shape, dtype, tuple(chunk_shape))


def choose_chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Chunks of at most `CHUNK_BYTES` that are contiguous in C order.

    Whole trailing axes, a piece of one axis, and 1 along those before it: so large rows of the leading axes (a layer,
    an expert) are whole chunks, and writing them one by one holds none back.
    """
    chunk, row = [1] * len(shape), itemsize
    for axis in reversed(range(len(shape))):
        size = shape[axis]
        if row * size <= CHUNK_BYTES:
            chunk[axis] = size
            row *= size
            continue
        fitting = 1 if row >= ROW_BYTES else CHUNK_BYTES // row
        chunk[axis] = -(-size // -(-size // fitting))  # pieces as even as they get
        break
    return tuple(chunk)


def _box(path: str, shape: tuple[int, ...], index: Index) -> tuple[Box, tuple[int, ...]]:
    """`index` with one slice per axis, and the shape that numpy gives the result."""
    index = () if index is Ellipsis else index if isinstance(index, tuple) else (index,)
    if len(index) > len(shape):
        raise IndexError(f"{path} {shape} has {len(shape)} axes, the index has {len(index)}")
    box, kept = [], []
    for size, part in itertools.zip_longest(shape, index, fillvalue=slice(None)):
        if isinstance(part, slice):
            start, stop, step = part.indices(size)
            if step != 1:
                raise IndexError(f"{path}: slices take no step, got {part}")
            box.append(slice(start, max(start, stop)))
            kept.append(box[-1].stop - start)
        else:
            at = operator.index(part)
            if not -size <= at < size:
                raise IndexError(f"{path} {shape} has no row {at}")
            box.append(slice(at % size, at % size + 1))
    return tuple(box), tuple(kept)


def _chunks_of(info: LeafInfo, box: Box) -> Iterator[tuple[tuple[int, ...], Box]]:
    """Grid position and box of every chunk that `box` touches."""
    touched = [range(b.start // c, -(-b.stop // c)) for b, c in zip(box, info.chunk_shape, strict=True)]
    for at in itertools.product(*touched):
        ends = zip(at, info.chunk_shape, info.shape, strict=True)
        yield at, tuple(slice(i * c, min((i + 1) * c, n)) for i, c, n in ends)


def _relative(inside: Box, box: Box) -> Box:
    return tuple(slice(i.start - b.start, i.stop - b.start) for i, b in zip(inside, box, strict=True))


def _context() -> ts.Context:
    """No cache but for the database's index, and few files at a time: memory stays with the chunks in use."""
    heap.give_back()
    return ts.Context(
        {
            "cache_pool": {"total_bytes_limit": 0},
            f"cache_pool#{orbax_files.INDEX_CACHE}": {"total_bytes_limit": 16 * 2**20},
            "file_io_concurrency": {"limit": 4},
        }
    )


def _wait(future: ts.Future, failed: str) -> Any:
    try:
        return future.result()
    except (ValueError, OSError) as error:
        raise BadCheckpoint(f"{failed}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """The end of tensorstore's chain of causes, without the specification that it appends."""
    return re.sub(r" \[\w+=.*", "", str(error), flags=re.DOTALL).rsplit(": ", 1)[-1]
