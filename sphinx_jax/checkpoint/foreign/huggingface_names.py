"""The Hugging Face side of the table from foreign names to our leaves.

Hugging Face rotates the two halves of a head against each other, we rotate neighbouring pairs: its query and key rows
lie (n s h) with s the half, ours (n h s).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from sphinx_jax.checkpoint.foreign.names import CONV, FFN, LINEAR, SAME, Name, accessory_names, norm_rows
from sphinx_jax.config import DecoderConfig, ModelConfig, VitConfig

Patterns = tuple[str, str]  # of a linear map's weight and of its bias
PLAIN = LINEAR, SAME[1]
HEADS = "(n h) d -> d n h", "(n h) -> n h"
ROTATED = "(n s h) d -> d n (h s)", "(n s h) -> n (h s)"
FROM_HEADS = "d (n h) -> n h d", SAME[1]


def huggingface_names(config: ModelConfig) -> Iterator[Name]:
    """The decoder as `LlamaForCausalLM`, or as `MixtralForCausalLM` where it has experts."""
    c, here = config.decoder, "decoder/blocks"
    yield Name("model.embed_tokens.weight", ("decoder/embedding",), SAME[2])
    for layer in range(c.layers):
        there, index = f"model.layers.{layer}", (layer,)
        yield from _decoder_maps(c, f"{there}.self_attn", f"{here}/attention", _attention(c), index)
        if c.moe:
            yield from _experts(c, f"{there}.block_sparse_moe", f"{here}/ffn", layer)
        else:
            maps = {name: (PLAIN, {}) for name in ("gate", "up", "down")}
            yield from _decoder_maps(c, f"{there}.mlp", f"{here}/ffn", maps, index)
        yield Name(f"{there}.input_layernorm.weight", (f"{here}/attention_norm/scale",), SAME[1], index=index)
        yield Name(f"{there}.post_attention_layernorm.weight", (f"{here}/ffn_norm/scale",), SAME[1], index=index)
    yield Name("model.norm.weight", ("decoder/norm/scale",), SAME[1])
    if not c.tied_embeddings:
        yield Name("lm_head.weight", ("decoder/output",), LINEAR)


def _attention(c: DecoderConfig) -> dict[str, tuple[Patterns, dict[str, int]]]:
    return {
        "q": (ROTATED, {"n": c.heads, "s": 2}),
        "k": (ROTATED, {"n": c.num_kv_heads, "s": 2}),
        "v": (HEADS, {"n": c.num_kv_heads}),
        "o": (FROM_HEADS, {"n": c.heads}),
    }


def _decoder_maps(c: DecoderConfig, foreign: str, ours: str, maps: Mapping, index: tuple[int, ...]) -> Iterator[Name]:
    for name, (patterns, sizes) in maps.items():
        bias = f"{ours}/bias/{name}" if name in c.bias else None
        yield from _linear(f"{foreign}.{name}_proj", f"{ours}/{name}", bias, index, patterns, sizes)


def _experts(c: DecoderConfig, foreign: str, ours: str, layer: int) -> Iterator[Name]:
    yield Name(f"{foreign}.gate.weight", (f"{ours}/router",), LINEAR, index=(layer,))
    for expert in range(c.moe.experts):
        for name, theirs in FFN.items():
            yield from _linear(f"{foreign}.experts.{expert}.{theirs}", f"{ours}/{name}", None, (layer, expert))


def clip_names(c: VitConfig) -> Iterator[Name]:
    """The vision tower as `CLIPVisionModel`."""
    here = "encoders/clip"
    yield Name("embeddings.class_embedding", (f"{here}/class_embedding",), SAME[1])
    yield Name("embeddings.position_embedding.weight", (f"{here}/position_embedding",), SAME[2])
    yield Name("embeddings.patch_embedding.weight", (f"{here}/patch/kernel",), CONV)
    yield from norm_rows("pre_layrnorm", f"{here}/norm_before")  # spelled so in the files
    yield from norm_rows("post_layernorm", f"{here}/norm")
    attention = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.out_proj"}
    mlp = {"up": "mlp.fc1", "down": "mlp.fc2"}
    norms = {"attention_norm": "layer_norm1", "mlp_norm": "layer_norm2"}
    for layer in range(c.layers):
        yield from _vit_block(c, f"encoder.layers.{layer}", f"{here}/blocks", attention, mlp, norms, (layer,))


def dinov2_names(c: VitConfig) -> Iterator[Name]:
    """`Dinov2Model`, with the packed SwiGLU of its largest size or the plain MLP of the others."""
    here = "encoders/dinov2"
    yield Name("embeddings.cls_token", (f"{here}/class_embedding",), "1 1 c -> c")
    yield Name("embeddings.position_embeddings", (f"{here}/position_embedding",), "1 p c -> p c")
    yield Name("embeddings.patch_embeddings.projection.weight", (f"{here}/patch/kernel",), CONV)
    yield Name("embeddings.patch_embeddings.projection.bias", (f"{here}/patch/bias",), SAME[1])
    yield from norm_rows("layernorm", f"{here}/norm")
    inner = {"q": "query", "k": "key", "v": "value"}
    attention = {name: f"attention.attention.{theirs}" for name, theirs in inner.items()}
    attention["o"] = "attention.output.dense"
    packed = c.activation == "swiglu"
    mlp = {"down": "mlp.weights_out"} if packed else {"up": "mlp.fc1", "down": "mlp.fc2"}
    norms = {"attention_norm": "norm1", "mlp_norm": "norm2"}
    for layer in range(c.layers):
        there, block, index = f"encoder.layer.{layer}", f"{here}/blocks", (layer,)
        yield from _vit_block(c, there, block, attention, mlp, norms, index)
        yield Name(f"{there}.layer_scale1.lambda1", (f"{block}/attention_scale",), SAME[1], index=index)
        yield Name(f"{there}.layer_scale2.lambda1", (f"{block}/mlp_scale",), SAME[1], index=index)
        if packed:
            gate, up, key = f"{block}/mlp/gate", f"{block}/mlp/up", f"{there}.mlp.weights_in"
            yield Name(f"{key}.weight", (f"{gate}/kernel", f"{up}/kernel"), "(s o) i -> s i o", {"s": 2}, index)
            yield Name(f"{key}.bias", (f"{gate}/bias", f"{up}/bias"), "(s o) -> s o", {"s": 2}, index)


def blip2_names(config: ModelConfig) -> Iterator[Name]:
    """Vision tower and Q-Former as `Blip2Model`; the published files hold them under `qformer`."""
    return _embedded(config, "qformer.", "encoders/blip2/")


def convnext_names(config: ModelConfig) -> Iterator[Name]:
    """timm's ConvNeXt; the published files hold it under `openclip_convnext_xxl`."""
    return _embedded(config, "openclip_convnext_xxl.", "encoders/convnext/")


def _embedded(config: ModelConfig, prefix: str, leaves: str) -> Iterator[Name]:
    for name in accessory_names(config):
        if name.leaves[0].startswith(leaves):
            yield dataclasses.replace(name, foreign=name.foreign.removeprefix(prefix))


def _vit_block(
    c: VitConfig,
    foreign: str,
    ours: str,
    attention: Mapping[str, str],
    mlp: Mapping[str, str],
    norms: Mapping[str, str],
    index: tuple[int, ...],
) -> Iterator[Name]:
    """The tables say ours -> theirs below a block."""
    for name, theirs in attention.items():
        path, patterns = f"{ours}/attention/{name}", FROM_HEADS if name == "o" else HEADS
        yield from _linear(f"{foreign}.{theirs}", f"{path}/kernel", f"{path}/bias", index, patterns, {"n": c.heads})
    for name, theirs in mlp.items():
        yield from _linear(f"{foreign}.{theirs}", f"{ours}/mlp/{name}/kernel", f"{ours}/mlp/{name}/bias", index)
    for name, theirs in norms.items():
        yield from norm_rows(f"{foreign}.{theirs}", f"{ours}/{name}", index)


def _linear(
    foreign: str,
    weight: str,
    bias: str | None,
    index: tuple[int, ...],
    patterns: Patterns = PLAIN,
    sizes: Mapping[str, int] | None = None,
) -> Iterator[Name]:
    for kind, leaf, pattern in zip(("weight", "bias"), (weight, bias), patterns, strict=True):
        if leaf is not None:
            named = {axis: size for axis, size in (sizes or {}).items() if axis in pattern}
            yield Name(f"{foreign}.{kind}", (leaf,), pattern, named, index)
