"""How published tensors are cut over files: as the tensor-parallel layers of the authors' code held them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sphinx_jax.checkpoint.foreign.pth import Stored
from sphinx_jax.checkpoint.store import BadCheckpoint

# what no pattern matches is in every shard whole
OUTPUTS = re.compile(
    r"layers\.\d+\.(attention\.w[qkv]|feed_forward\.w[13])\.(weight|bias|lora_b\.weight)|output\.weight"
)
INPUTS = re.compile(r"layers\.\d+\.(attention\.wo|feed_forward\.w2)\.(weight|lora_a\.weight)|tok_embeddings\.weight")
EXPERTS = re.compile(r"layers\.\d+\.feed_forward\.w[123]")  # the matrices of all experts, each of them cut
EXPERT = re.compile(r"layers\.\d+\.feed_forward\.experts\.(\d+)\..*")  # one expert's, whole in one shard


@dataclass(frozen=True)
class Cut:
    axis: int
    blocks: int = 1  # the axis is so many blocks one after the other, each cut by itself


def cut_of(key: str, experts: int) -> Cut | None:
    """How a tensor is cut; `experts` of the model, 0 without a mixture."""
    if EXPERTS.fullmatch(key):
        return Cut(0, experts)
    if OUTPUTS.fullmatch(key):
        return Cut(0)
    return Cut(1) if INPUTS.fullmatch(key) else None


def cut(key: str, tensor: np.ndarray, shards: int, experts: int) -> list[np.ndarray | None]:
    """The shards' parts of a tensor, views of it; None for a shard that has none of it."""
    if match := EXPERT.fullmatch(key):
        if experts % shards:
            raise BadCheckpoint(f"{experts} experts do not divide over {shards} shards")
        owner = int(match[1]) // (experts // shards)
        return [tensor if shard == owner else None for shard in range(shards)]
    how = cut_of(key, experts)
    if how is None:
        return [tensor] * shards
    before, (size, *after) = tensor.shape[: how.axis], tensor.shape[how.axis :]
    if size % (how.blocks * shards):
        raise BadCheckpoint(f"{key} {tensor.shape} does not divide over {shards} shards")
    parts = np.split(tensor.reshape(*before, how.blocks, size // how.blocks, *after), shards, how.axis + 1)
    return [part.reshape(*before, size // shards, *after) for part in parts]


def join(key: str, parts: Sequence[Stored | None], experts: int, width: int | None = None) -> Stored:
    """The tensor whose parts the shards hold; None for a shard without it.

    `width` of the model tells an embedding cut over its rows (Meta's LLaMA 3) from one cut over its width.
    """
    present = [part for part in parts if part is not None]
    if EXPERT.fullmatch(key):
        if len(present) > 1:
            raise BadCheckpoint(f"{key} is in {len(present)} shards; one shard holds the whole of an expert")
        return present[0]
    first, how = present[0], cut_of(key, experts)
    if len(present) < len(parts):
        raise BadCheckpoint(f"{key} is in {len(present)} of {len(parts)} shards")
    if any((part.shape, part.dtype) != (first.shape, first.dtype) for part in present):
        raise BadCheckpoint(f"{key} differs in shape or dtype from shard to shard")
    if how is None or len(parts) == 1:
        return first
    if key == "tok_embeddings.weight" and first.shape[-1] == width:
        how = Cut(0)
    if not how.blocks:
        raise BadCheckpoint(f"{key} holds experts, and no feed_forward.gate.weight says how many")
    return Joined(tuple(present), how)


@dataclass(frozen=True)
class Joined:
    """A tensor cut over shards."""

    parts: tuple[Stored, ...]
    how: Cut

    @property
    def dtype(self) -> np.dtype:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.parts[0].shape)
        shape[self.how.axis] *= len(self.parts)
        return tuple(shape)

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        if self.how.axis:
            return np.concatenate([part.read(start, stop) for part in self.parts], self.how.axis)
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        rows, at, pieces = self.parts[0].shape[0] // self.how.blocks, 0, []
        for block in range(self.how.blocks):
            for part in self.parts:
                first, last = max(start - at, 0), min(stop - at, rows)
                if first < last:
                    pieces.append(part.read(block * rows + first, block * rows + last))
                at += rows
        return np.concatenate(pieces) if pieces else self.parts[0].read(0, 0)
