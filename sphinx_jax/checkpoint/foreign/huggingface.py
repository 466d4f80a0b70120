"""Hugging Face folders, read without torch: their files, and the LLaMA-family decoders among them.

A `.safetensors` file is a table of shapes and places in JSON, then the bytes of the tensors; each is read by byte
range when it is asked for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sphinx_jax.checkpoint.foreign.huggingface_config import DEFAULTS, check_config, complete, read_json
from sphinx_jax.checkpoint.foreign.huggingface_names import huggingface_names
from sphinx_jax.checkpoint.foreign.names import Name, check_present
from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.config import ATTENTION_MAPS, FFN_MAPS, DecoderConfig, ModelConfig, MoeConfig
from sphinx_jax.model.blueprint import blueprint

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
}
ARCHITECTURES = {"LlamaForCausalLM": "llama", "MixtralForCausalLM": "mixtral"}  # and the name of our model
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
UNUSED = ("*.rotary_emb.inv_freq",)


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies; `read` fetches it."""

    file: Path
    dtype: np.dtype
    offset: int  # in bytes
    shape: tuple[int, ...]

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows `start` to `stop` of the first axis; the whole tensor by default."""
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        start, stop, _ = slice(start, stop).indices(self.shape[0] if self.shape else 1)
        with self.file.open("rb") as stream:
            stream.seek(self.offset + start * row)
            content = stream.read((stop - start) * row)
        return np.frombuffer(content, self.dtype).reshape((stop - start, *self.shape[1:]) if self.shape else ())


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """{key: tensor} of a `.safetensors` file, reading no tensor."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        if start > size:
            raise BadCheckpoint(f"{file} is incomplete: it holds {size} of at least {start} bytes; download it again")
        table = stream.read(start - 8)
    try:
        entries = {
            key: (entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
            for key, entry in json.loads(table).items()
            if key != "__metadata__"
        }
    except (ValueError, LookupError, AttributeError, TypeError):
        raise BadCheckpoint(f"{file} is not a safetensors file: its table of tensors is unreadable") from None
    tensors = {}
    for key, (kind, shape, begin, end) in entries.items():
        if kind not in DTYPES:
            raise BadCheckpoint(f"{file}: {key} is stored as {kind}; supported are {', '.join(DTYPES)}")
        tensor = Tensor(file, DTYPES[kind], start + begin, shape)
        if end - begin != math.prod(shape) * tensor.dtype.itemsize:
            raise BadCheckpoint(f"{file}: {key} takes {end - begin} bytes, which is no {kind} of shape {shape}")
        if start + end > size:
            raise BadCheckpoint(f"{file} is incomplete: it ends before {key} does; download it again")
        tensors[key] = tensor
    return tensors


def open_folder(folder: str | Path) -> dict[str, Tensor]:
    """{key: tensor} of all safetensors files of a folder (those of its index, where there is one)."""
    folder = Path(folder)
    if (folder / INDEX).is_file():
        with complete(folder / INDEX):
            files = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
    elif (folder / SINGLE).is_file():
        files = [SINGLE]
    else:
        files = sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        raise BadCheckpoint(f"{folder} has no .safetensors file; save the model again with safe_serialization=True")
    lost = [name for name in files if not (folder / name).is_file()]
    if lost:
        raise BadCheckpoint(f"{folder} lacks {', '.join(lost)}, which its {INDEX} lists; download them")
    return {key: tensor for name in files for key, tensor in read_safetensors(folder / name).items()}


def read_config(folder: str | Path) -> ModelConfig:
    """The text-only model of a folder, from its `config.json` as transformers 4 or 5 wrote it.

    Raises:
      BadCheckpoint: another architecture, or something that our decoder does not do, by name.
    """
    folder = Path(folder)
    file = folder / "config.json"
    values = read_json(file)
    architecture = (values.get("architectures") or ["model without a name"])[0]
    if architecture not in ARCHITECTURES:
        raise BadCheckpoint(f"{file} describes a {architecture}; supported are {' and '.join(ARCHITECTURES)}")
    name = ARCHITECTURES[architecture]
    check_config(file, values, name)
    values = DEFAULTS[name] | {key: value for key, value in values.items() if value is not None}
    with complete(file):
        dim, heads = values["hidden_size"], values["num_attention_heads"]
        head_width = values.get("head_dim")
        decoder = DecoderConfig(
            dim=dim,
            layers=values["num_hidden_layers"],
            heads=heads,
            kv_heads=values.get("num_key_value_heads"),
            vocab_size=values["vocab_size"],
            hidden_dim=values["intermediate_size"],
            head_width=None if head_width == dim // heads else head_width,
            norm_eps=values["rms_norm_eps"],
            max_positions=_max_positions(values),
            tied_embeddings=bool(values.get("tie_word_embeddings")) and not _has_output(folder),
            moe=_moe(values) if name == "mixtral" else None,
            bias=ATTENTION_MAPS * bool(values.get("attention_bias")) + FFN_MAPS * bool(values.get("mlp_bias")),
            **_rope(values),
        )
    return ModelConfig(name=name, decoder=decoder)


def named_ends(folder: Path) -> dict[str, Any]:
    """The ids that begin and end a text as `config.json` names them; empty where it names none that ends one."""
    file = folder / "config.json"
    values = read_json(file) if file.is_file() else {}
    found = {key: values.get(key) for key in ("bos_token_id", "eos_token_id")}
    return {} if found["eos_token_id"] is None else found


def _max_positions(values: Mapping[str, Any]) -> int:
    # the first conversions of LLaMA named it otherwise
    return values.get("max_position_embeddings") or values.get("max_sequence_length") or values["positions"]


def _has_output(folder: Path) -> bool:
    """Whether the files hold an output beside the embedding: it then counts, whatever the config says."""
    return {EMBEDDING, OUTPUT} <= open_folder(folder).keys()


def shared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a tied model whose file has the one matrix under the output's name, as safetensors may."""
    if OUTPUT not in tensors or EMBEDDING in tensors:
        return dict(tensors)
    return {EMBEDDING if key == OUTPUT else key: tensor for key, tensor in tensors.items()}


def _moe(values: Mapping[str, Any]) -> MoeConfig:
    experts, per_token = values["num_local_experts"], values["num_experts_per_tok"]
    # transformers sums the load-balance loss over a token's choices, ours is their mean
    return MoeConfig(experts, per_token, balance_weight=values["router_aux_loss_coef"] * per_token)


def _rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of DecoderConfig; the table is `rope_parameters` in transformers 5, `rope_scaling` in 4."""
    table = values.get("rope_scaling") or values.get("rope_parameters") or {}
    kind = table.get("rope_type") or table.get("type") or "default"
    fields = {"rope_theta": float(table.get("rope_theta") or values["rope_theta"])}
    if kind == "linear":
        fields["rope_scaling"] = 1 / table["factor"]
    elif kind == "llama3":
        length = table.get("original_max_position_embeddings") or values["max_position_embeddings"]
        factors = (table["factor"], table["low_freq_factor"], table["high_freq_factor"], length)
        fields["rope_llama3"] = tuple(map(float, factors))
    return fields


def is_folder(folder: Path) -> bool:
    """Whether a folder holds safetensors with their `config.json`."""
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def checked_names(tensors: Mapping[str, Tensor], config: ModelConfig) -> list[Name]:
    """The names of the decoder, checked against the files."""
    return check_present(huggingface_names(config), tensors, blueprint(config).specs, UNUSED)
