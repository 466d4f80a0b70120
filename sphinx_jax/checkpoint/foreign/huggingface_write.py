"""The decoder back to Hugging Face: safetensors, config, tokenizer, chat template; one tensor in memory at a time."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sphinx_jax.checkpoint.casting import cast, place_of
from sphinx_jax.checkpoint.foreign.huggingface import DTYPES, INDEX, SINGLE
from sphinx_jax.checkpoint.foreign.huggingface_names import huggingface_names
from sphinx_jax.checkpoint.foreign.huggingface_tokenizer import write_tokenizer
from sphinx_jax.checkpoint.store import BadCheckpoint, staged
from sphinx_jax.config import ATTENTION_MAPS, FFN_MAPS, DecoderConfig, ModelConfig, unknown
from sphinx_jax.data.conversation_form import generation_config
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.data.tokenizer_files import GENERATION
from sphinx_jax.model.blueprint import blueprint
from sphinx_jax.model.lora import factors_of

Reader = Callable[[str, tuple[int, ...]], np.ndarray]
"""(leaf's path, place in its leading axes) -> the row there; the whole leaf at `()`."""

WRITTEN = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def write(
    folder: str | Path,
    reader: Reader,
    config: ModelConfig,
    tokenizer: Tokenizer | None = None,
    *,
    dtype: str = "float32",
    shard_bytes: int = 5 * 10**9,
    allow: Collection[str] = (),
) -> Path:
    """Writes a model's decoder as `LlamaForCausalLM`, or as `MixtralForCausalLM` where it has experts.

    A low-rank addition is merged into its map, and where some maps have a bias the others get one of zeros.  The chat
    template and `generation_config.json` are those that came with the tokenizer, or those of our form of
    conversation, whose answers end in `\\n###` (see `write_tokenizer`).  Nothing is left of a failed attempt.

    Args:
      folder: a new one.
      dtype: of the files: float32, float16 or bfloat16.
      shard_bytes: a file that would grow beyond this is begun anew.
      allow: `underflow` takes values that are too small for the dtype.

    Raises:
      BadCheckpoint: the folder exists, transformers has no model of this form, or the dtype cannot hold the values.
    """
    folder = Path(folder)
    if dtype not in WRITTEN:
        raise unknown("dtype", dtype, WRITTEN)
    plain = plain_config(config)
    table = transformers_config(plain.decoder, dtype)
    with staged(folder) as begun:
        ends = generation_config(None, ())
        if tokenizer is not None:
            ends = generation_config(tokenizer.bos_id, tokenizer.eos_ids)
            write_tokenizer(begun, tokenizer)
        else:
            _write_json(begun / GENERATION, ends)
        _write_json(begun / "config.json", table | ends)
        _write_tensors(begun, merging(reader, config, plain), plain, WRITTEN[dtype], shard_bytes, allow)
    return folder


def transformers_config(c: DecoderConfig, dtype: str) -> dict[str, Any]:
    """`config.json` of a decoder, in the form of transformers 4, which 5 reads too."""
    rope = None
    if c.rope_llama3 and c.rope_scaling:
        raise BadCheckpoint("transformers has no rope that is of type linear and of type llama3; nothing is written")
    if c.rope_scaling:
        rope = {"rope_type": "linear", "factor": 1 / c.rope_scaling}
    elif c.rope_llama3:
        factor, low, high, length = c.rope_llama3
        rope = {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high}
        rope["original_max_position_embeddings"] = int(length)
    table = {
        "architectures": ["MixtralForCausalLM" if c.moe else "LlamaForCausalLM"],
        "model_type": "mixtral" if c.moe else "llama",
        "vocab_size": c.vocab_size,
        "hidden_size": c.dim,
        "intermediate_size": c.ffn_dim,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_eps,
        "max_position_embeddings": c.max_positions,
        "rope_theta": c.rope_theta,
        "rope_scaling": rope,
        "tie_word_embeddings": c.tied_embeddings,
        "torch_dtype": dtype,
    }
    if not c.moe:
        return table | {"attention_bias": "q" in c.bias, "mlp_bias": "gate" in c.bias}
    experts = {"num_local_experts": c.moe.experts, "num_experts_per_tok": c.moe.per_token, "sliding_window": None}
    return table | experts | {"router_aux_loss_coef": c.moe.balance_weight / c.moe.per_token}


def plain_config(config: ModelConfig) -> ModelConfig:
    """The decoder alone, as transformers can say it: a bias on all maps of a kind or on none, no low-rank addition."""
    c = config.decoder
    if c.moe and c.bias:
        raise BadCheckpoint(f"MixtralForCausalLM has no biases, this decoder has some on {', '.join(c.bias)}")
    bias = tuple(name for maps in (ATTENTION_MAPS, FFN_MAPS) if set(maps) & set(c.bias) for name in maps)
    return ModelConfig(name=config.name, decoder=dataclasses.replace(c, bias=bias, lora_rank=0))


def merging(reader: Reader, config: ModelConfig, plain: ModelConfig) -> Reader:
    """A reader of leaves of `plain` from a model that may have low-rank additions and lack biases."""
    there, wanted = blueprint(config).specs, blueprint(plain).specs

    def read(path: str, index: tuple[int, ...]) -> np.ndarray:
        shape = wanted[path].shape[len(index) :]
        if path not in there:
            return np.zeros(shape, np.float32)
        row = reader(path, index)
        if row.shape != shape:
            raise BadCheckpoint(f"leaf {path} is {row.shape} at {index}, the config wants {shape}")
        a, b = factors_of(path)
        if a not in there:
            return row
        low, high = (reader(part, index).astype(np.float32) for part in (a, b))
        return row.astype(np.float32) + np.tensordot(low, high, axes=1)

    return read


def _write_tensors(
    folder: Path, read: Reader, config: ModelConfig, kind: str, shard_bytes: int, allow: Collection[str]
) -> None:
    specs, dtype = blueprint(config).specs, DTYPES[kind]
    names = {name.foreign: name for name in huggingface_names(config)}
    shapes = {key: name.blank(specs[name.leaves[0]].shape).shape for key, name in names.items()}
    sizes = {key: math.prod(shape) * dtype.itemsize for key, shape in shapes.items()}
    shards = list(_shards(sizes, shard_bytes))
    weight_map = {}
    for number, keys in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(keys, file)
        with (folder / file).open("wb") as stream:
            stream.write(_header({key: shapes[key] for key in keys}, sizes, kind))
            for key in keys:
                name = names[key]
                rows = ((read(path, name.index), place_of(path, name.index)) for path in name.leaves)
                tensor = name.theirs([cast(row, dtype, f"{at} ({key})", allow) for row, at in rows])
                stream.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    if len(shards) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map})


def _shards(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Keys in order, cut where a file would grow beyond the limit."""
    keys, total = [], 0
    for key, size in sizes.items():
        if keys and total + size > limit:
            yield keys
            keys, total = [], 0
        keys.append(key)
        total += size
    yield keys


def _header(shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int], kind: str) -> bytes:
    """What stands before the tensors of a file, which follow in this order."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, shape in shapes.items():
        begin, end = end, end + sizes[key]
        table[key] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors are to be aligned
    return len(text).to_bytes(8, "little") + text


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2))
