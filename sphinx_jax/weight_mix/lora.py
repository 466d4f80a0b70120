"""Low-rank additions in a mix: with W a weight, the map that a checkpoint computes is W + A·B.

Mixing A and B leaf by leaf would be wrong: (Σ c_i A_i)(Σ c_i B_i) is not Σ c_i A_i·B_i.  Where the c_i are known before
anything is read, the additions stay low-rank, side by side (`SideBySide`).  Other methods need whole matrices, and
get W + A·B of every checkpoint (`Merged`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from sphinx_jax.checkpoint.foreign.names import Index
from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.config import ModelConfig
from sphinx_jax.model.blueprint import blueprint
from sphinx_jax.model.lora import factors_of, split
from sphinx_jax.weight_mix.sources import MixSource, Rows, finite


def with_rank(config: ModelConfig, rank: int) -> ModelConfig:
    """The model with low-rank additions of another rank; 0, without."""
    return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, lora_rank=rank))


def rank_of(source: MixSource, config: ModelConfig) -> int:
    """The rank of a source's low-rank additions; 0, it has none.

    Raises:
      BadCheckpoint: some maps of the model `config` have one and others not, or their ranks differ.
    """
    found = {path: leaf.shape for path, leaf in source.leaves.items() if split(path)[1]}
    declared = source.config.decoder.lora_rank if source.config else 0
    if not found and not declared:
        return 0
    rank = declared or next(shape[-1] for path, shape in sorted(found.items()) if split(path)[1] == "a")
    specs = blueprint(with_rank(config, rank)).specs
    wanted = {path: spec.shape for path, spec in specs.items() if split(path)[1]}
    for path in sorted(wanted.keys() | found.keys()):
        if found.get(path) != wanted.get(path):
            there = found.get(path, "missing")
            raise BadCheckpoint(
                f"{path} of {source.folder} is {there}; with LoRA of rank {rank} {wanted.get(path)} fits"
            )
    return rank


class SideBySide:
    """The low-rank additions of several checkpoints as one: A = [A_1 | A_2 | …] and B = [c_1 B_1; c_2 B_2; …], so that
    A·B = Σ c_i A_i·B_i exactly.

    Args:
      sources: in the order of the coefficients; of any ranks, 0 too.
      config: of the model that is mixed, whatever its rank.
      allow: `nonfinite` takes NaN and infinity as they are.
    """

    def __init__(self, sources: Sequence[MixSource], config: ModelConfig, allow: Collection[str] = ()):
        self.ranks = [rank_of(source, config) for source in sources]
        self.config = with_rank(config, sum(self.ranks))
        self._sources, self._allow = sources, allow
        self.shapes = {path: spec.shape for path, spec in blueprint(self.config).specs.items() if split(path)[1]}

    def rows(
        self, path: str, index: Index, coefficients: Sequence[float], cuts: Iterable[tuple[int, int]], scratch: Path
    ) -> Iterator[tuple[int, np.ndarray]]:
        """A factor at a place in its leading axes, float32 or higher: (first row, rows), in order.

        Args:
          cuts: rows of A from … to … at a time; of B each source's are one piece.
          scratch: as in `MixSource.matrix`.
        """
        having = [
            (source, source.matrix(path, index, scratch), rank, coefficient)
            for source, rank, coefficient in zip(self._sources, self.ranks, coefficients, strict=True)
            if rank
        ]
        if split(path)[1] == "a":
            for start, stop in cuts:
                parts = [finite(rows(start, stop), path, source.folder, self._allow) for source, rows, _, _ in having]
                yield start, np.concatenate(parts, axis=-1)
            return
        start = 0
        for source, rows, rank, coefficient in having:
            yield start, np.float32(coefficient) * finite(rows(0, rank), path, source.folder, self._allow)
            start += rank


class Merged:
    """A checkpoint whose low-rank additions are part of its weights: W reads as W + A·B, in float32 or higher.

    Of one matrix A and B are held whole; of W, and of the sum, the rows that are asked for.
    """

    def __init__(self, source: MixSource, allow: Collection[str] = ()):
        self.folder, self.tree = source.folder, source.tree
        self.config = source.config and with_rank(source.config, 0)
        self.leaves = {path: leaf for path, leaf in source.leaves.items() if not split(path)[1]}
        self.merged = {split(path)[0] for path in source.leaves if split(path)[1]}
        self.tokenizer, self.unused, self.files = source.tokenizer, source.unused, source.files
        self.largest_piece = source.largest_piece
        self._source, self._allow = source, allow

    def matrix(self, path: str, index: Index, scratch: Path) -> Rows:
        weight = self._source.matrix(path, index, scratch)
        if path not in self.merged:
            return weight
        a, b = (self._factor(factor, index, scratch) for factor in factors_of(path))

        def rows(start: int, stop: int) -> np.ndarray:
            own = finite(weight(start, stop), path, self.folder, self._allow)
            return own + np.tensordot(a[start:stop], b, axes=1)

        return rows

    def _factor(self, path: str, index: Index, scratch: Path) -> np.ndarray:
        count = self._source.leaves[path].shape[len(index)]
        return finite(self._source.matrix(path, index, scratch)(0, count), path, self.folder, self._allow)
