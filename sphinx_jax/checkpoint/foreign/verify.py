"""What was written, read again and compared with what it was written from."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from sphinx_jax.checkpoint import store, stream
from sphinx_jax.checkpoint.casting import Cast, place_of
from sphinx_jax.checkpoint.foreign import huggingface_write
from sphinx_jax.checkpoint.foreign.convert import read_rows
from sphinx_jax.checkpoint.foreign.foreign import Foreign, open_foreign
from sphinx_jax.checkpoint.foreign.names import Index
from sphinx_jax.config import ModelConfig
from sphinx_jax.progress import progress


def verify(found: Foreign, out: str | Path, allow: Collection[str] = (), quiet: bool = False) -> int:
    """Read both sides again and compare every leaf: bit for bit, or within the rounding of the checkpoint's dtype.

    Returns the number of tensors; raises BadCheckpoint at the first that differs.
    """
    reader = stream.Reader(out)
    for name in progress(found.names, desc="verifying", unit="tensor", disable=quiet):
        for path, array in read_rows(found, name, allow).items():
            at = place_of(path, name.index)
            _compare(array, reader.read(path, name.index), out, (at, name.foreign), allow)
    return len(found.names)


def verify_foreign(
    read: Callable[[str, Index], np.ndarray],
    out: str | Path,
    config: ModelConfig | None = None,
    allow: Collection[str] = (),
    quiet: bool = False,
) -> int:
    """As `verify`, of a published or Hugging Face folder against the leaves that it was written from.

    Args:
      config: of those leaves; Hugging Face's form has low-rank additions merged and a bias on all maps or none.
    """
    there = open_foreign([out])
    c, plain = config and config.decoder, there.config.decoder
    if c and (c.lora_rank, c.bias) != (plain.lora_rank, plain.bias):
        read = huggingface_write.merging(read, config, there.config)
    for name in progress(there.names, desc="verifying", unit="tensor", disable=quiet):
        for path, written in read_rows(there, name, allow).items():
            at = place_of(path, name.index)
            _compare(read(path, name.index), written, out, (name.foreign, at), allow)
    return len(there.names)


def _compare(
    source: np.ndarray, stored: np.ndarray, out: str | Path, named: tuple[str, str], allow: Collection[str]
) -> None:
    """BadCheckpoint if `stored` is not `source`; they are named as they are called in `out` and there."""
    cast = Cast(stored.dtype, f"{out}: {named[0]}", allow)
    cast.compare(source, stored)
    cast.check()
    if cast.differs:
        raise store.BadCheckpoint(f"{out}: {named[0]} is not {named[1]} of the source")
