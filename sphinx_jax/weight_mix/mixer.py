"""A mix, matrix by matrix: each is read, mixed and handed on in slices of a few rows, whatever the model's size."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from sphinx_jax.checkpoint import casting, store, stream
from sphinx_jax.checkpoint.casting import Cast, place_of
from sphinx_jax.checkpoint.foreign import convert
from sphinx_jax.checkpoint.foreign.names import Index
from sphinx_jax.checkpoint.orbax_files import NESTED_DICTS, Tree
from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.config import ModelConfig
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.model import lora
from sphinx_jax.model.blueprint import blueprint
from sphinx_jax.weight_mix import methods as mix_methods
from sphinx_jax.weight_mix.compare import Described, check_alike, fullest
from sphinx_jax.weight_mix.lora import Merged, SideBySide, with_rank
from sphinx_jax.weight_mix.methods import METHODS
from sphinx_jax.weight_mix.settings import Mix, Places, check_patterns
from sphinx_jax.weight_mix.sources import (
    OUTPUT,
    MixSource,
    Untied,
    finite,
    is_tied,
    lay_out,
    open_source,
    output_rows,
    shared_leaves,
    stacked_axes,
)
from sphinx_jax.weight_mix.statistics import Slice, Unit

BLOCK_BYTES = 8 * 2**20  # of rows that are read at a time from each source; at least a chunk
Block = tuple  # of a matrix: integers of the axes that are walked, then a slice of rows; () of a scalar
SLICE_BYTES = 2**20  # of float32 rows that are mixed at a time, from each source: what a processor's cache holds


class Mixer:
    """The matrices of a mix, each computed when it is asked for."""

    def __init__(self, mix: Mix, scratch: Path):
        """Opens the sources, reading no array.

        Args:
          scratch: folder for matrices that have to be laid out anew; it may be deleted afterwards.

        Raises:
          BadCheckpoint: a source is incomplete or does not fit the others.
          ConfigError: the method cannot be used so.
        """
        self.mix, self._scratch = mix, scratch
        self.sources: list[MixSource] = [open_source(folder) for folder in mix.sources]
        self.base = open_source(mix.base) if mix.base else None
        self.tied = self._untie()
        self._lora = self._open_lora()
        self.named = {f"{source.folder}": source for source in self._all()}
        factors = self._lora.shapes if self._lora else {}
        self.paths = sorted([*shared_leaves(self.named, mix.missing, apart=factors), *factors])
        check_patterns(mix, self.paths)
        self.config = self._fitting_config()
        self._stacked = stacked_axes(self.config)
        self._places = Places(self.config)
        self._names = output_rows(self.config)
        dtype = convert.known_dtype(mix.dtype)
        self.leaves = {path: self._leaf(path, dtype) for path in self.paths}
        for path in filter(self.mixes, self.paths):  # what does not fit is found before anything is read
            self._parameters(path, next(self.matrices(path)))
        check_alike({n: Described(s.config, s.tokenizer(), s.folder) for n, s in self.named.items()}, mix.allow)

    def _untie(self) -> list[Path]:
        """Folders whose embedding goes into the output of the mix: the tied ones, beside one that is not tied."""
        tied = [source.folder for source in self._all() if is_tied(source)]
        if all(source.folder in tied or OUTPUT not in source.leaves for source in self._all()):
            return []
        self.sources = [Untied(source) if source.folder in tied else source for source in self.sources]
        self.base = Untied(self.base) if self.base and self.base.folder in tied else self.base
        return tied

    def _all(self) -> list[MixSource]:
        return [*self.sources, *filter(None, [self.base])]

    def _configs(self) -> list[ModelConfig]:
        return [source.config for source in self._all() if source.config is not None]

    def _fitting_config(self) -> ModelConfig | None:
        """The first source's config that rules the leaves of the mix, or the first at all; None of other programs.

        Sources of other configs, say without biases, may have leaves of their own (`Mix.missing`).
        """
        configs = self._configs()
        if self._lora:
            configs = [with_rank(config, self._lora.config.decoder.lora_rank) for config in configs]
        fitting = (config for config in configs if blueprint(config).specs.keys() == set(self.paths))
        return next(fitting, configs[0] if configs else None)

    def check_config(self) -> None:
        """BadCheckpoint if a model of another form than the sources' would come of them unasked, or one of no form.

        Tied and untied sources make an untied model; leaves that are those of no source's config could not be loaded.
        """
        if self.tied and self.mix.missing == "error":
            raise BadCheckpoint(
                f"{self.tied[0]} computes its output with its embedding, other sources have an output of their own; "
                "--missing take mixes that embedding with those outputs, into a model that is not tied"
            )
        if self.config is None:
            return
        wanted, found = blueprint(self.config).specs.keys(), set(self.paths)
        if wrong := sorted(wanted ^ found):
            says = "lacks" if wrong[0] in wanted else "has an unexpected"
            raise BadCheckpoint(
                f"with --missing {self.mix.missing} the mixed leaves match the config of no source: the mix {says} "
                f"{wrong[0]} ({len(wrong)} leaves in all); give sources of one model, or another --missing"
            )

    def _open_lora(self) -> SideBySide | None:
        """The low-rank additions as they go into the mix; None if there are none, or none are left of their own."""
        configs = self._configs()
        if not configs or not (low := SideBySide(self._all(), configs[0], self.mix.allow)).shapes:
            return None
        if METHODS[self.mix.method].fixed and not self.mix.merge_lora:
            return low
        self.sources = [Merged(source, self.mix.allow) for source in self.sources]
        self.base = self.base and Merged(self.base, self.mix.allow)
        return None

    def _leaf(self, path: str, dtype: np.dtype | None) -> stream.LeafInfo:
        first = self._having(path)[0].leaves[path]
        dtype = dtype if dtype is not None and _is_float(first.dtype) else first.dtype
        shape, chunk = first.shape, first.chunk_shape
        if self._is_factor(path):
            shape = chunk = self._lora.shapes[path]
        across = any(size > 1 for size in chunk[: self.stacked(path)])
        if across or math.prod(chunk) * dtype.itemsize > store.CHUNK_BYTES:
            chunk = stream.choose_chunk_shape(shape, dtype.itemsize)
        return stream.LeafInfo(shape, dtype, chunk)

    def _is_factor(self, path: str) -> bool:
        """Whether the leaf holds low-rank factors, put side by side."""
        return self._lora is not None and path in self._lora.shapes

    def _having(self, path: str) -> list[MixSource]:
        return [source for source in self.named.values() if path in source.leaves]

    def mixes(self, path: str) -> bool:
        """Whether the matrices of the leaf are mixed.

        Whole numbers, and leaves that a source lacks, are taken from the first; low-rank factors go side by side.
        """
        having = self._having(path)
        return not self._is_factor(path) and len(having) == len(self.named) and _is_float(having[0].leaves[path].dtype)

    def matrices(self, path: str) -> Iterator[Index]:
        """The places of a leaf's matrices in its leading axes."""
        return itertools.product(*map(range, self.leaves[path].shape[: self.stacked(path)]))

    def stacked(self, path: str) -> int:
        """How many leading axes of a leaf count matrices."""
        return self._stacked.get(path, 0)

    def tokenizer(self) -> Tokenizer | None:
        """That of the checkpoint whose tokenizer has most tokens, of several the first."""
        return fullest(source.tokenizer() for source in self._all())

    def tree(self) -> Tree:
        """How the leaves lie: of another program as its own checkpoints have it, the first before the others."""
        if self.config is not None:
            return NESTED_DICTS
        return functools.reduce(operator.or_, (source.tree for source in self._all()))

    def size(self, path: str) -> int:
        """Bytes of a leaf in all checkpoints that are read."""
        return sum(convert.size_of(source.leaves[path], None) for source in self._having(path))

    def _parameters(self, path: str, index: Index) -> dict[str, Any]:
        return mix_methods.resolve(
            self.mix.method,
            self.mix.at(self._places.at(path, index)),
            sources=len(self.sources),
            base=self.base is not None,
        )

    def _coefficients(self, path: str, index: Index) -> list[np.float32]:
        """The mix coefficients of a LoRA factor: those of its base weight."""
        weight, _ = lora.split(path)
        return mix_methods.coefficients(
            self.mix.method, self._parameters(weight, index), sources=len(self.sources), base=self.base is not None
        )

    def rows(self, path: str, index: Index) -> Iterator[tuple[tuple, np.ndarray]]:
        """A matrix of the mix, in order: (where in the matrix, values in the leaf's dtype).

        Raises:
          BadCheckpoint: a source holds NaN or infinity, or the dtype cannot hold what comes out.
        """
        cast = Cast(self.leaves[path].dtype, place_of(path, index), self.mix.allow)
        for place, part in self._rows(path, index, cast):
            yield place, cast(part)
        cast.check()

    def _rows(self, path: str, index: Index, cast: Cast) -> Iterator[tuple[tuple, np.ndarray]]:
        """As `rows`; what is large goes through `cast` already."""
        info = self.leaves[path]
        blocks = _blocks(info, len(index))
        if self._is_factor(path):
            cuts = [(rows.start, rows.stop) for *_, rows in blocks]
            low = self._lora.rows(path, index, self._coefficients(path, index), cuts, self._scratch)
            yield from (((slice(start, start + len(part)),), part) for start, part in low)
            return
        if not self.mixes(path):
            first = self._having(path)[0]
            read = functools.partial(self._read, {"": first}, path, index)
            where = f"{path} of {first.folder}"
            yield from ((block, casting.finite(read(block)[""], where, self.mix.allow)) for block in blocks)
            return
        parameters = self._parameters(path, index)
        if (path, index) in self._names and _looks_at_rows(self.mix.method, parameters):
            yield (), self._turned(path, index, parameters, cast)
            return
        read = functools.partial(self._read, self.named, path, index)
        shape = info.shape[len(index) :]
        yield from self._mixed(self._unit(path, index, shape, blocks, read), shape, cast, blocks, parameters)

    def unit(self, path: str, index: Index) -> Unit:
        """A matrix as the sources have it, for what measures it; rows lie as ours do."""
        info = self.leaves[path]
        read = functools.partial(self._read, self.named, path, index)
        return self._unit(path, index, info.shape[len(index) :], _blocks(info, len(index)), read)

    def _read(self, sources: Mapping[str, MixSource], path: str, index: Index, block: Block) -> dict[str, np.ndarray]:
        *outer, rows = block or (slice(0, 1),)
        places = {name: source.matrix(path, (*index, *outer), self._scratch) for name, source in sources.items()}
        return {name: place(rows.start, rows.stop) for name, place in places.items()}

    def _turned(self, path: str, index: Index, parameters: Mapping[str, Any], cast: Cast) -> np.ndarray:
        """The matrix of a method that looks at rows: mixed as published files lay it, rows being output features."""
        name, info = self._names[path, index], self.leaves[path]
        there = {}
        for source in self.named:
            ours = np.empty(info.shape[len(index) :], self.named[source].leaves[path].dtype)
            for block in _blocks(info, len(index)):
                ours[block] = self._read({source: self.named[source]}, path, index, block)[source]
            there[source] = lay_out(name.theirs([ours]), self._scratch, path)
        turned = stream.LeafInfo(shape := name.blank(info.shape).shape, info.dtype, (1, *shape[1:]))
        rows = {source: laid.matrix() for source, laid in there.items()}

        def read(block: Block) -> dict[str, np.ndarray]:
            return {source: of(block[0].start, block[0].stop) for source, of in rows.items()}

        blocks, mixed = _blocks(turned, 0, deep=False), np.empty(shape, info.dtype)
        unit = self._unit(path, index, shape, blocks, read)
        for block, part in self._mixed(unit, shape, cast, blocks, parameters):
            mixed[block] = part
        for laid in there.values():
            laid.forget()
        return name.ours(mixed)[0]

    def _mixed(
        self, unit: Unit, shape: tuple[int, ...], cast: Cast, blocks: list[Block], parameters: Mapping[str, Any]
    ) -> Iterator[tuple[Block, np.ndarray]]:
        what = f"the mix of {unit.name}"
        found = METHODS[self.mix.method].run(unit, parameters)
        mixed = (cast(casting.finite(rows, what, self.mix.allow)) for rows in found)
        for block in blocks:
            if not block:
                yield (), next(mixed).reshape(())
                continue
            count = block[-1].stop - block[-1].start
            part = np.empty((count, math.prod(unit.shape[1:])), cast.dtype)
            done = 0
            while done < count:
                rows = next(mixed)
                part[done : done + len(rows)] = rows.reshape(len(rows), -1)
                done += len(rows)
            yield block, part.reshape(count, *shape[len(block) :])

    def _unit(
        self,
        path: str,
        index: Index,
        shape: tuple[int, ...],
        blocks: list[Block],
        read: Callable[[Block], dict[str, np.ndarray]],
    ) -> Unit:
        depth = len(blocks[0])  # axes that are walked, and the one that is cut into rows
        flat = (math.prod(shape[:depth]), math.prod(shape[depth:])) if len(shape) > 1 else shape or (1,)
        step = max(1, SLICE_BYTES // (4 * math.prod(flat[1:])))

        def slices() -> Iterator[Slice]:
            first = 0
            with ThreadPoolExecutor(1) as pool:  # the next block is read while this one is mixed
                ahead = pool.submit(read, blocks[0])
                for following in [*blocks[1:], None]:
                    found = {name: rows.reshape(-1, *flat[1:]) for name, rows in ahead.result().items()}
                    if following is not None:
                        ahead = pool.submit(read, following)
                    count = len(next(iter(found.values())))
                    for row in range(0, count, step):
                        part = {n: finite(rows[row : row + step], path, n, self.mix.allow) for n, rows in found.items()}
                        base = part[str(self.base.folder)] if self.base else None
                        yield Slice(first + row, base, [part[str(source.folder)] for source in self.sources])
                    first += count

        return Unit(place_of(path, index), flat, slices)

    def whole(self, path: str, index: Index = ()) -> np.ndarray:
        """A leaf of the mix at a place in its leading axes, in the dtype of the mix."""
        info = self.leaves[path]
        out = np.empty(info.shape[len(index) :], info.dtype)
        for at in self.matrices(path):
            if at[: len(index)] == index:
                inner = out[at[len(index) :]]  # a view
                for place, part in self.rows(path, at):
                    inner[place] = part
        return out

    def describe(self) -> Iterator[str]:
        """A line for every leaf, what is mixed and what is not, and the sums; no array is read.

        Raises:
          BadCheckpoint: as `check_config`.
        """
        self.check_config()
        for path in self.paths:
            info = self.leaves[path]
            kinds = sorted({str(source.leaves[path].dtype) for source in self._having(path)})
            yield f"{path}  {tuple(info.shape)}  {'/'.join(kinds)} -> {info.dtype}  {self._way(path)}"
        left = sorted(set().union(*(source.leaves for source in self.named.values())) - set(self.paths))
        for path in left:
            yield f"{path}  skipped: not in every source"
        read = sum(self.size(path) for path in self.paths)
        written = sum(convert.size_of(info, None) for info in self.leaves.values())
        yield f"{len(self.paths)} leaves, {read:,} B to read from {len(self.named)} checkpoints, {written:,} B to write"
        yield f"memory beside the program's own: about {self.memory():,} B"

    def _way(self, path: str) -> str:
        """What becomes of a leaf, in a few words."""
        how = f"{sum(1 for _ in self.matrices(path))} x {self.mix.method}"
        if self._is_factor(path):
            return f"{how}, LoRA of rank {' + '.join(map(str, self._lora.ranks))} side by side"
        if not self.mixes(path):
            return "taken from the first that has it"
        merged = any(path in source.merged for source in self.named.values() if isinstance(source, Merged))
        how = f"{how}, LoRA merged into it first" if merged else how
        if path == OUTPUT and self.tied:
            return f"{how}, with the embedding of what is tied: {', '.join(map(str, self.tied))}"
        return how

    def memory(self) -> int:
        """An estimate of the bytes that a mix holds at a time."""
        largest = max(math.prod(info.chunk_shape) * info.dtype.itemsize for info in self.leaves.values())
        blocks = (2 * len(self.named) + 1) * max(BLOCK_BYTES, largest) + 4 * SLICE_BYTES * (len(self.named) + 1)
        return blocks + 2 * stream.IN_FLIGHT_BYTES + max(source.largest_piece() for source in self.named.values())


def _blocks(info: stream.LeafInfo, leading: int, deep: bool = True) -> list[Block]:
    """The parts of a matrix behind so many leading axes that are read at a time: rows, whole chunks of them.

    Where one row is large, as of a stack of whose axes nothing is known, those of the next axis; () is a scalar.
    """
    shape, chunk = info.shape[leading:], info.chunk_shape[leading:]
    if not shape:
        return [()]
    axis = 0
    while deep and axis < len(shape) - 2 and chunk[axis] == 1 and _row(info, leading + axis) > BLOCK_BYTES:
        axis += 1
    step = max(1, BLOCK_BYTES // _row(info, leading + axis) // chunk[axis]) * chunk[axis]
    cuts = [slice(start, min(start + step, shape[axis])) for start in range(0, shape[axis], step)]
    return [(*outer, rows) for outer in np.ndindex(*shape[:axis]) for rows in cuts]


def _row(info: stream.LeafInfo, axis: int) -> int:
    """Bytes of one step along an axis."""
    return info.dtype.itemsize * math.prod(info.shape[axis + 1 :])


def _is_float(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _looks_at_rows(method: str, parameters: Mapping[str, Any]) -> bool:
    """Whether it matters to a method which axis of a matrix is the first."""
    if method in ("della", "della_linear"):
        return True
    return bool(parameters.get("filter_wise")) or not parameters.get("nuslerp_flatten", True)
