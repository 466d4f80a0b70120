"""What a mix reads: leaves of checkpoints in any form, one matrix at a time and of it a few rows.

A *matrix* is what one leaf holds for one layer (and one expert): methods measure norms, angles and thresholds on it,
never on a stacked leaf.  Where a file keeps matrices in pieces that cannot be read by rows (chunks across layers, a
foreign tensor that lies transposed), the matrix is laid out in a scratch file first, one piece in memory at a time.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from sphinx_jax.checkpoint import casting, store, stream
from sphinx_jax.checkpoint.foreign import accessory, convert
from sphinx_jax.checkpoint.foreign.foreign import Foreign, is_foreign, open_foreign
from sphinx_jax.checkpoint.foreign.names import Index, Name, accessory_names
from sphinx_jax.checkpoint.orbax_files import NESTED_DICTS, Tree
from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.checkpoint.stream import LeafInfo, Reader
from sphinx_jax.config import ModelConfig
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.model.blueprint import blueprint
from sphinx_jax.model.lora import split

PIECE_BYTES = 16 * 2**20  # larger pieces than this are laid out in a scratch file
EMBEDDING, OUTPUT = "decoder/embedding", "decoder/output"  # (V, D) and (D, V)
STACKED = ("layers", "expert")  # axes that count matrices


class Rows(Protocol):
    """A matrix at hand: rows of its first axis."""

    def __call__(self, start: int, stop: int) -> np.ndarray: ...


class MixSource(Protocol):
    """A checkpoint that takes part in a mix."""

    folder: Path
    config: ModelConfig | None  # None for Orbax checkpoints of other programs
    leaves: Mapping[str, LeafInfo]
    tree: Tree  # how the leaves lie

    def tokenizer(self) -> Tokenizer | None: ...

    def unused(self) -> Mapping[str, Any]:
        """What published files hold beside the model, kept for the way back."""

    def files(self) -> list[Path]:
        """All files that hold its arrays."""

    def largest_piece(self) -> int:
        """Bytes of the largest piece that can only be read in one."""

    def matrix(self, path: str, index: Index, scratch: Path) -> Rows:
        """The matrix of a leaf at `index`; what does not fit into memory is laid out below `scratch`."""


def open_source(folder: str | Path) -> MixSource:
    """A checkpoint of ours, any that Orbax wrote, a published folder or a Hugging Face one; reads no array.

    Of a training stage's folder, its newest checkpoint, or its best where it keeps that.
    """
    folder = store.chosen_in(Path(folder)).resolve()
    if not folder.is_dir():
        raise store.missing(folder)
    return ForeignSource(folder) if is_foreign(folder) else OrbaxSource(folder)


def short_names(folders: Sequence[str]) -> list[str]:
    """What of the paths tells them apart, for a reader; different folders have different names."""
    parts = [Path(folder).absolute().parts for folder in folders]
    shared = len(os.path.commonprefix([part[:-1] for part in parts]))
    tails = [part[shared:] for part in parts]
    same = set()
    if len(set(map(len, tails))) == 1:  # else what is left out might be what differs
        same = {i for i, column in enumerate(zip(*tails, strict=True)) if len(set(column)) == 1}
    return ["/".join(part for i, part in enumerate(tail) if i not in same) or tail[-1] for tail in tails]


def stacked_axes(config: ModelConfig | None) -> dict[str, int]:
    """How many leading axes of each leaf count matrices."""
    if config is None:
        return {}
    return {
        path: sum(1 for _ in itertools.takewhile(lambda axis: axis in STACKED, spec.axes))
        for path, spec in blueprint(config).specs.items()
    }


class Laid:
    """An array that lies in C order in a scratch file."""

    def __init__(self, scratch: Path, path: str, shape: tuple[int, ...], dtype: np.dtype):
        scratch.mkdir(parents=True, exist_ok=True)
        self.file = scratch / f"{path.replace('/', '.')}.{os.urandom(4).hex()}"
        self.shape, self.dtype = shape, dtype
        self.file.touch()

    def put(self, box: stream.Box, array: np.ndarray) -> None:
        """Store a box of the array, in runs as long as they get."""
        whole = len(self.shape)
        while whole > 0 and (box[whole - 1].start, box[whole - 1].stop) == (0, self.shape[whole - 1]):
            whole -= 1
        walked = max(whole - 1, 0)  # these axes are walked; the next one and those behind it are one run
        with self.file.open("r+b") as raw:
            for at in np.ndindex(*array.shape[:walked]):
                place = [part.start + i for part, i in zip(box, at, strict=False)] + [box[walked].start]
                place += [0] * (len(self.shape) - len(place))
                raw.seek(int(np.ravel_multi_index(place, self.shape)) * self.dtype.itemsize)
                np.ascontiguousarray(array[at]).tofile(raw)

    def matrix(self, index: Index = ()) -> Rows:
        inner = self.shape[len(index) :]
        first = int(np.ravel_multi_index(index, self.shape[: len(index)])) * math.prod(inner) if index else 0
        row = math.prod(inner[1:])

        def rows(start: int, stop: int) -> np.ndarray:
            size = self.dtype.itemsize
            raw = np.fromfile(self.file, np.uint8, (stop - start) * row * size, offset=(first + start * row) * size)
            return raw.view(self.dtype).reshape(stop - start, *inner[1:])

        return rows

    def forget(self) -> None:
        self.file.unlink()


def lay_out(array: np.ndarray, scratch: Path, path: str) -> Laid:
    """An array of any strides in a scratch file, without a copy in memory."""
    laid = Laid(scratch, path, array.shape, array.dtype)
    step = max(1, PIECE_BYTES * len(array) // array.nbytes)
    for row in range(0, len(array), step):
        part = array[row : row + step]
        laid.put((slice(row, row + len(part)), *(slice(0, n) for n in array.shape[1:])), part)
    return laid


def finite(array: np.ndarray, path: str, folder: str | Path, allow: Collection[str] = ()) -> np.ndarray:
    """Rows of a leaf in float32 or higher; BadCheckpoint as `casting.finite`."""
    casting.finite(array, f"{path} of {folder}", allow)
    return array.astype(np.promote_types(np.float32, array.dtype), copy=False)


class _Kept:
    """The last thing that was laid out or read whole: a leaf's matrices come one after the other.

    A weight and its low-rank factors are read by turns, so each has one of its own (`defaultdict` of factors).
    """

    def __init__(self):
        self._key, self._value = None, None

    def get(self, key: object, make: Callable[[], np.ndarray | Laid]) -> np.ndarray | Laid:
        if self._key != key:
            if isinstance(self._value, Laid):
                self._value.forget()
            self._key, self._value = None, None  # not both in memory
            self._key, self._value = key, make()
        return self._value

    def matrix(self, key: object, make: Callable[[], np.ndarray | Laid], index: Index) -> Rows:
        value = self.get(key, make)
        return value.matrix(index) if isinstance(value, Laid) else lambda start, stop: value[index][start:stop]


class OrbaxSource:
    def __init__(self, folder: Path):
        self.folder = folder
        self._reader = Reader(folder)
        self.leaves, self.tree = self._reader.leaves, self._reader.tree
        self.config = store.read_config(folder) if (folder / store.MODEL).exists() else None
        self._kept = collections.defaultdict(_Kept)  # "", "a" and "b": see _Kept

    def tokenizer(self) -> Tokenizer | None:
        return store.read_tokenizer(self.folder)

    def unused(self) -> Mapping[str, Any]:
        return accessory.read_unused(self.folder)

    def files(self) -> list[Path]:
        return [file for file in sorted(self._reader.state.rglob("*")) if file.is_file()]

    def largest_piece(self) -> int:
        return max(_bytes(leaf.chunk_shape, leaf.dtype) for leaf in self.leaves.values())

    def matrix(self, path: str, index: Index, scratch: Path) -> Rows:
        info = self.leaves[path]
        if len(info.shape) == len(index):
            return lambda start, stop: self._reader.read(path, index)
        across = any(size > 1 for size in info.chunk_shape[: len(index)])
        if not across and _bytes(info.chunk_shape, info.dtype) <= PIECE_BYTES:
            return lambda start, stop: self._reader.read(path, (*index, slice(start, stop)))
        small = _bytes(info.shape, info.dtype) <= PIECE_BYTES
        return self._kept[split(path)[1]].matrix(
            path, lambda: self._reader.read(path) if small else self._lay_out(path, scratch), index
        )

    def _lay_out(self, path: str, scratch: Path) -> Laid:
        info = self.leaves[path]
        laid = Laid(scratch, path, info.shape, info.dtype)
        for box in info.chunks():
            laid.put(box, self._reader.read(path, box))
        return laid


class ForeignSource:
    def __init__(self, folder: Path):
        self.folder = folder
        self._found: Foreign = open_foreign([folder])
        self.config = self._found.config
        if missing := self._found.missing:
            raise BadCheckpoint(f"{folder} lacks {len(missing)} leaves, the first is {missing[0]}")
        self.tree = NESTED_DICTS
        specs = blueprint(self.config).specs
        self.leaves = {
            path: LeafInfo(specs[path].shape, dtype, stream.choose_chunk_shape(specs[path].shape, dtype.itemsize))
            for path, dtype in self._found.dtypes.items()
        }
        self._kept = collections.defaultdict(_Kept)  # "", "a" and "b": see _Kept

    def tokenizer(self) -> Tokenizer | None:
        return self._found.tokenizer

    def unused(self) -> Mapping[str, Any]:
        return {key: tensor.read() for key, tensor in self._found.unused.items()}

    def files(self) -> list[Path]:
        return convert.source_files([self.folder])

    def largest_piece(self) -> int:
        return max(_bytes(tensor.shape, tensor.dtype) for tensor in self._found.tensors.values())

    def matrix(self, path: str, index: Index, scratch: Path) -> Rows:
        # one tensor may hold all experts of a layer
        held = next(index[:n] for n in range(len(index), -1, -1) if (path, index[:n]) in self._found.by_row)

        def read() -> np.ndarray | Laid:
            array = self._found.row(path, held)
            return lay_out(array, scratch, path) if array.nbytes > PIECE_BYTES else array

        return self._kept[split(path)[1]].matrix((path, held), read, index[len(held) :])


class Untied:
    """A checkpoint whose output is its embedding, as one that has the output as a leaf of its own.

    The embedding is turned once, in a scratch file, a few rows of it in memory.
    """

    def __init__(self, source: MixSource):
        self.folder, self.tree = source.folder, source.tree
        self.config = source.config and with_ties(source.config, False)
        vocabulary, dim = source.leaves[EMBEDDING].shape
        dtype = source.leaves[EMBEDDING].dtype
        chunk = stream.choose_chunk_shape((dim, vocabulary), dtype.itemsize)
        self.leaves = {**source.leaves, OUTPUT: LeafInfo((dim, vocabulary), dtype, chunk)}
        self.tokenizer, self.unused, self.files = source.tokenizer, source.unused, source.files
        self.largest_piece = source.largest_piece
        self._source, self._kept = source, _Kept()

    def matrix(self, path: str, index: Index, scratch: Path) -> Rows:
        if path != OUTPUT:
            return self._source.matrix(path, index, scratch)
        return self._kept.matrix(path, lambda: self._turn(scratch), index)

    def _turn(self, scratch: Path) -> Laid:
        (dim, vocabulary), dtype = self.leaves[OUTPUT].shape, self.leaves[OUTPUT].dtype
        rows, laid = self._source.matrix(EMBEDDING, (), scratch), Laid(scratch, OUTPUT, (dim, vocabulary), dtype)
        step = max(1, PIECE_BYTES // (dim * dtype.itemsize))
        for start in range(0, vocabulary, step):
            stop = min(start + step, vocabulary)
            laid.put((slice(0, dim), slice(start, stop)), rows(start, stop).astype(dtype, copy=False).T)
        return laid


def is_tied(source: MixSource) -> bool:
    """Whether a checkpoint's output is its embedding; of one without a config, by its leaves."""
    if source.config is not None:
        return source.config.decoder.tied_embeddings
    return EMBEDDING in source.leaves and OUTPUT not in source.leaves


def with_ties(config: ModelConfig, tied: bool) -> ModelConfig:
    return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, tied_embeddings=tied))


def output_rows(config: ModelConfig | None) -> dict[tuple[str, Index], Name]:
    """How to lay a matrix of ours as the published files do, rows being output features.

    Methods that look at rows mean those; packed tensors of the encoders are left as they are here.
    """
    names = accessory_names(config, dense_experts=True) if config else ()
    return {(name.leaves[0], name.index): name for name in names if len(name.leaves) == 1}


def content_hash(files: list[Path], root: Path) -> str:
    """SHA-256 over the names and contents of files, whatever folder they lie in."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            inner = hashlib.file_digest(content, "sha256").hexdigest()
        digest.update(json.dumps([str(file.relative_to(root)), inner]).encode())
    return digest.hexdigest()


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def shared_leaves(sources: Mapping[str, MixSource], missing: str, apart: Container[str] = ()) -> Iterator[str]:
    """Paths of the leaves to mix, in order, but those `apart`.

    Args:
      sources: by the name that an error calls them.
      missing: what becomes of a leaf that a source lacks: `error`, `take` (it is as in the first that has it) or
        `skip` (the mix lacks it too).

    Raises:
      BadCheckpoint: a leaf is missing, its shape differs, or it counts in one and is real in another.
    """
    paths = sorted(set().union(*(source.leaves for source in sources.values())))
    for path in filter(lambda path: path not in apart, paths):
        having = {name: source.leaves[path] for name, source in sources.items() if path in source.leaves}
        if len(having) < len(sources):
            lacking = next(name for name in sources if name not in having)
            if missing == "error":
                raise BadCheckpoint(f"{lacking} has no leaf {path}; --missing take or skip says what to do")
            if missing == "skip":
                continue
        shapes = {name: tuple(leaf.shape) for name, leaf in having.items()}
        if len(set(shapes.values())) > 1:
            hint = (
                "; vocabularies of different size do not mix, bring them to one first"
                if path in (EMBEDDING, OUTPUT)
                else ""
            )
            raise BadCheckpoint(f"{path} differs in shape: {', '.join(f'{s} in {n}' for n, s in shapes.items())}{hint}")
        kinds = {name: leaf.dtype for name, leaf in having.items()}
        if len({jnp.issubdtype(dtype, jnp.floating) for dtype in kinds.values()}) > 1:
            raise BadCheckpoint(f"{path} differs in kind: {', '.join(f'{k} in {n}' for n, k in kinds.items())}")
        yield path
