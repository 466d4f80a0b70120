"""The published `meta.json` and `config.json`: a type of model and its sizes, to our config and back."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from sphinx_jax.config import (
    ATTENTION_MAPS,
    FFN_MAPS,
    ConfigError,
    ConvNextConfig,
    DecoderConfig,
    ModelConfig,
    MoeConfig,
    QFormerConfig,
    blip2_config,
    clip_config,
    dinov2_config,
    family,
    to_dict,
    unknown,
)
from sphinx_jax.model.blueprint import flatten

# llama_type -> the member of the family with its views and full-size encoders; None: text alone
TYPES = {
    "llama": None,
    "llama_peft": None,
    "mixtral": None,
    "mixtral_peft": None,
    "mixtral_sparse": None,
    "llama_ens": "sphinx",
    "llama_ens5": "sphinx_1k",
    "llama_ens10": "sphinx_2k",
    "llama_ens5p2": "sphinx_1k_pooled",
    "llama_ens_light": "sphinx_tiny",
    "llama_ens5_light": "sphinx_tiny_1k",
    "llama_ens_peft": "sphinx_peft",
    "mixtral_sparse_ens": "sphinx_moe",
    "mixtral_sparse_ens5": "sphinx_moe_1k",
}
# keys of config.json and of Meta's params.json that are read
READ = {
    "dim",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "vocab_size",
    "multiple_of",
    "ffn_dim_multiplier",
    "hidden_dim",
    "norm_eps",
    "rope_theta",
    "rope_scaling",
    "use_scaled_rope",
    "rope_scaling_factor",
    "rope_high_freq_factor",
    "moe",
    "load_balancing_weight",
    "bias_tuning",
    "lora_rank",
    "vision",
}
# keys that change nothing: sizes of buffers and of training, and what follows from the others
HARMLESS = {
    "max_batch_size",
    "max_seq_len",
    "head_dim",
    "trainable_mode",
    "load_pretrained_visual_encoder",
    "norm_tuning",
    "model_parallel_size",
    "flash",
    "use_flash_attention",
}
# keys that change what is computed -> the values with which they do not
OFF = {
    "qk_norm": (False,),
    "sliding_window": (),
    "vision_chunk_size": (-1,),
    "vision_num_cross_attention_layers": (-1,),
}
# LLaMA 3.1's rope in Meta's code (llama-models, llama3/model.py): factor, low and high frequency factor, length
SCALED_ROPE = (8.0, 1.0, 4.0, 8192.0)
SCALED_POSITIONS = 131072  # that it is published for
DENSE_EXPERTS = ("mixtral", "mixtral_peft")  # types that store every expert under keys of its own
# type with bias tuning -> the maps that have a bias, and whether `bias_tuning` is on by default
BIASES = {
    "llama_peft": (ATTENTION_MAPS + FFN_MAPS, True),
    "mixtral_peft": (ATTENTION_MAPS + FFN_MAPS, True),
    "llama_ens_peft": (("q", "o", *FFN_MAPS), False),
}
# the tables of `vision` -> our field, and what makes it; released files have none of them and mean the full sizes
ENCODERS: dict[str, tuple[str, Callable]] = {
    "clip": ("clip", clip_config),
    "convnext": ("convnext", ConvNextConfig),
    "dinov2": ("dinov2", dinov2_config),
    "blip2_vision": ("blip2", blip2_config),
    "qformer": ("qformer", QFormerConfig),
}


def from_params(kind: str, params: Mapping[str, Any], vocab_size: int) -> ModelConfig:
    """The model of a `llama_type` and the content of `config.json`; `vocab_size` where that names none."""
    if kind not in TYPES:
        raise unknown("llama_type", kind, TYPES)
    _check_keys(params)
    decoder = _decoder(kind, params, vocab_size)
    if TYPES[kind] is None:
        return ModelConfig(name=kind, decoder=decoder)
    full = family(TYPES[kind])
    sizes = {}
    for table, values in params.get("vision", {}).items():
        if table not in ENCODERS:
            raise unknown("table of vision in config.json", table, ENCODERS)
        field, make = ENCODERS[table]
        if getattr(full, field) is None:
            raise ConfigError(f"config.json has sizes for vision.{table}; {kind} has no such encoder")
        sizes[field] = _encoder(table, values, make, getattr(full, field))
    return dataclasses.replace(full, name=kind, decoder=decoder, **sizes)


def _check_keys(params: Mapping[str, Any]) -> None:
    """Refuses, by name, what our decoder does not do and any key that is not known; a value of None is none."""
    for key, value in params.items():
        if value is None or key in HARMLESS or value in OFF.get(key, ()):
            continue
        if key in OFF:
            raise ConfigError(f"{key} {value!r} of config.json or params.json is not supported")
        if key not in READ:
            raise unknown("key of config.json or params.json", key, READ)
    scale = params.get("rope_scaling")
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, int | float) or scale <= 0):
        raise ConfigError(f"rope_scaling {scale!r} of config.json is not a number above 0 that multiplies positions")
    for key in params.get("moe") or ():
        if key not in ("num_experts", "num_experts_per_tok"):
            raise unknown("key of moe in config.json", key, ("num_experts", "num_experts_per_tok"))


def _scaled_rope(params: Mapping[str, Any]) -> dict[str, Any]:
    """Meta's `use_scaled_rope`, with the factors that its later `params.json` may give."""
    if not params.get("use_scaled_rope"):
        return {}
    factor, low, high, length = SCALED_ROPE
    factor, high = params.get("rope_scaling_factor") or factor, params.get("rope_high_freq_factor") or high
    return {"rope_llama3": (float(factor), low, float(high), length), "max_positions": SCALED_POSITIONS}


def _decoder(kind: str, params: Mapping[str, Any], vocab_size: int) -> DecoderConfig:
    params = {key: value for key, value in params.items() if value is not None}
    missing = [key for key in ("dim", "n_layers", "n_heads") if key not in params]
    if missing:
        raise ConfigError(f"config.json has no {', '.join(missing)}")
    biased, bias_by_default = BIASES.get(kind, ((), False))
    sparse = kind.startswith("mixtral")
    return DecoderConfig(
        dim=params["dim"],
        layers=params["n_layers"],
        heads=params["n_heads"],
        kv_heads=params.get("n_kv_heads"),
        vocab_size=params["vocab_size"] if params.get("vocab_size", -1) > 0 else vocab_size,
        multiple_of=params.get("multiple_of", 256),
        ffn_multiplier=params.get("ffn_dim_multiplier"),
        hidden_dim=params.get("hidden_dim"),
        norm_eps=params.get("norm_eps", 1e-5),
        rope_theta=params.get("rope_theta", 1e6 if sparse else 1e4),
        rope_scaling=params.get("rope_scaling"),
        moe=_moe(kind, params) if sparse else None,
        bias=biased if params.get("bias_tuning", bias_by_default) else (),
        lora_rank=max(0, params.get("lora_rank", 0)) if kind in BIASES else 0,
        **_scaled_rope(params),
    )


def _moe(kind: str, params: Mapping[str, Any]) -> MoeConfig:
    table = params.get("moe", {})
    weight = params.get("load_balancing_weight", 0.01 if kind == "mixtral_sparse_ens5" else 0.1)
    return MoeConfig(
        table.get("num_experts", 8), table.get("num_experts_per_tok", 2), weight, half_router=kind in DENSE_EXPERTS
    )


def _encoder(table: str, values: Mapping[str, Any], make: Callable, full: Any) -> Any:
    known = inspect.signature(make).parameters
    for key in values:
        if key not in known:
            raise unknown(f"key of vision.{table} in config.json", key, known)
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    if make is ConvNextConfig:
        return dataclasses.replace(full, **values)  # its input differs from type to type
    return make(**values)


def to_params(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """The `llama_type` and the content of `config.json` that mean this model; an error where none does."""
    wanted, apart = _comparable(config), {}
    # several types may mean it; the model's own name is the first choice
    for kind in sorted(TYPES, key=lambda kind: kind != config.name):
        params = _decoder_params(config.decoder)
        if TYPES[kind]:
            vision = {table: _differing(config, family(TYPES[kind]), table) for table in ENCODERS}
            params["vision"] = {table: sizes for table, sizes in vision.items() if sizes}
        params = {key: value for key, value in params.items() if value not in (None, {})}
        try:
            meant = _comparable(from_params(kind, params, 0))
        except ConfigError:  # sizes that this type cannot have
            continue
        if meant == wanted:
            return kind, params
        apart[kind] = [key for key, value in wanted.items() if key not in meant or meant[key] != value]
    told = f"no published type can hold the model {config.name!r}"
    if apart:
        nearest = min(apart, key=lambda kind: len(apart[kind]))
        values = (f"{key.replace('/', '.')}={wanted[key]!r}" for key in apart[nearest])
        told += f"; the nearest, {nearest}, has no place for {', '.join(values)}"
    raise ConfigError(told)


def _decoder_params(c: DecoderConfig) -> dict[str, Any]:
    params = {
        "dim": c.dim,
        "n_layers": c.layers,
        "n_heads": c.heads,
        "n_kv_heads": c.kv_heads,
        "vocab_size": c.vocab_size,
        "norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": c.rope_scaling,
    }
    if c.moe:
        params["hidden_dim"], params["load_balancing_weight"] = c.ffn_dim, c.moe.balance_weight
        params["moe"] = {"num_experts": c.moe.experts, "num_experts_per_tok": c.moe.per_token}
    elif c.hidden_dim is None:
        params["multiple_of"], params["ffn_dim_multiplier"] = c.multiple_of, c.ffn_multiplier
    else:
        # sizes from which the formula, rounding up to a multiple, comes to this very width
        usual = int(2 * 4 * c.dim / 3)
        params["multiple_of"] = c.ffn_dim
        params["ffn_dim_multiplier"] = None if usual <= c.ffn_dim else c.ffn_dim / usual
    if c.lora_rank or c.bias:
        params["lora_rank"], params["bias_tuning"] = c.lora_rank, bool(c.bias)
    return params


def _differing(config: ModelConfig, full: ModelConfig, table: str) -> dict[str, Any]:
    """The sizes of an encoder that are not those of the full one."""
    field, make = ENCODERS[table]
    ours, theirs = getattr(config, field), getattr(full, field)
    if not (ours and theirs):
        return {}
    values = {name: (_argument(ours, name), _argument(theirs, name)) for name in inspect.signature(make).parameters}
    return {name: value for name, (value, usual) in values.items() if value != usual}


def _argument(encoder: Any, name: str) -> Any:
    return encoder.activation == "quick_gelu" if name == "quick_gelu" else getattr(encoder, name)


def _comparable(config: ModelConfig) -> dict[str, Any]:
    """The values of a config by path, less what the files don't say, its widths as numbers."""
    c = config.decoder
    widths = {"kv_heads": c.num_kv_heads, "hidden_dim": c.ffn_dim, "head_width": c.head_dim}
    decoder = dataclasses.replace(c, multiple_of=0, ffn_multiplier=None, max_positions=0, **widths)
    views = config.views and dataclasses.replace(config.views, half_resize="")
    return flatten(to_dict(dataclasses.replace(config, name="", dtype="float32", decoder=decoder, views=views)))
