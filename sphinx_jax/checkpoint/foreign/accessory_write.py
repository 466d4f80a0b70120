"""The way back: a model as a published folder, cut over any number of shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from sphinx_jax.checkpoint.casting import cast, common_dtype, place_of
from sphinx_jax.checkpoint.foreign.accessory import CONFIG, META, PREFIX
from sphinx_jax.checkpoint.foreign.accessory_config import DENSE_EXPERTS, to_params
from sphinx_jax.checkpoint.foreign.names import Name, accessory_names
from sphinx_jax.checkpoint.foreign.pth import STORAGE_OF, PthWriter
from sphinx_jax.checkpoint.foreign.shards import cut
from sphinx_jax.checkpoint.store import staged
from sphinx_jax.config import ModelConfig, unknown
from sphinx_jax.data.tokenizer import Tokenizer, from_files
from sphinx_jax.data.tokenizer_files import JSON_FILE, MODEL_FILE, BadTokenizer
from sphinx_jax.model.blueprint import blueprint

MEANING = ("vocab_size", "bos_id", "eos_ids")  # of a tokenizer

Reader = Callable[[str, tuple[int, ...]], np.ndarray]  # (leaf's path, place in its leading axes) -> that row of it


def write_folder(
    out: str | Path,
    reader: Reader,
    config: ModelConfig,
    *,
    shards: int = 1,
    dtype: str | None = None,
    tokenizer: Tokenizer | None = None,
    unused: Mapping[str, np.ndarray] | None = None,
    allow: Collection[str] = (),
) -> Path:
    """Write a published folder, one tensor at a time in memory; `out` appears once it is whole.

    `dtype` of the tensors: as the reader gives them by default.  `unused` as `accessory.read_unused`.  `allow`
    may name `underflow`, for values that are too small for the dtype.
    """
    out, dtype = Path(out), _known(dtype)
    kind, params = to_params(config)
    experts = config.decoder.moe.experts if config.decoder.moe else 0
    names = tensor_names(config, shards)  # what does not divide is found before anything is written
    with staged(out) as begun:
        with ExitStack() as stack:
            files = [
                stack.enter_context(PthWriter(begun / f"consolidated.{shard:02d}-of-{shards:02d}.model.pth"))
                for shard in range(shards)
            ]

            def put(key: str, tensor: np.ndarray, leaf: str = "unused") -> None:
                tensor = tensor if dtype is None else cast(tensor, dtype, f"{leaf} ({key})", allow)
                for file, part in zip(files, cut(key, tensor, shards, experts), strict=True):
                    if part is not None:
                        file.add(PREFIX + key, part)

            for name in names:
                rows = [reader(path, name.index) for path in name.leaves]
                held = common_dtype(row.dtype for row in rows)  # what lies packed together has one
                tensor = name.theirs([row.astype(held, copy=False) for row in rows])
                put(name.foreign, tensor, place_of(name.leaves[0], name.index))
            for key, tensor in (unused or {}).items():
                put(key, tensor)
        (begun / CONFIG).write_text(json.dumps(params, indent=2))
        (begun / META).write_text(json.dumps({"llama_type": kind}))
        if tokenizer is not None:
            for name, content in tokenizer_files(tokenizer).items():
                (begun / name).write_bytes(content)
    return out


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files of a published folder's tokenizer, of which a `tokenizer.model` is taken before all others.

    So one that says less than its companions (added tokens, another EOS) stays out, and a `tokenizer.json` has all.
    """
    files = dict(tokenizer.files)
    if MODEL_FILE in files:
        try:
            alone = from_files({MODEL_FILE: files[MODEL_FILE]})
        except BadTokenizer:  # it has no EOS of its own
            alone = None
        if alone is None or any(getattr(alone, key) != getattr(tokenizer, key) for key in MEANING):
            files[JSON_FILE] = tokenizer.as_json()
            del files[MODEL_FILE]
    return files


def tensor_names(config: ModelConfig, shards: int) -> list[Name]:
    """The tensors of a published folder.

    Raises:
      BadCheckpoint: one of them does not divide over the shards.
    """
    kind, _ = to_params(config)
    experts = config.decoder.moe.experts if config.decoder.moe else 0
    names = list(accessory_names(config, kind in DENSE_EXPERTS))
    for name in names:
        cut(name.foreign, name.blank(blueprint(config).specs[name.leaves[0]].shape), shards, experts)
    return names


def _known(dtype: str | None) -> np.dtype | None:
    known = {str(kind): kind for kind in STORAGE_OF}
    if dtype is not None and dtype not in known:
        raise unknown("dtype of a published folder", dtype, known)
    return known.get(dtype)
