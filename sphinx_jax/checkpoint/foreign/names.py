"""The one table from foreign parameter names to our leaves.

A row says: this foreign tensor is that leaf (or, packed along its first axis, those leaves), rearranged so.  The einops
pattern reads foreign -> ours and works both ways; `index` is the place in the leading axes of a stacked leaf.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import einops
import numpy as np

from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.config import ConvNextConfig, DecoderConfig, ModelConfig, VitConfig
from sphinx_jax.model.blueprint import matches

Index = tuple[int, ...]
LISTED = 20  # keys of a kind that an error names


@dataclass(frozen=True)
class Name:
    foreign: str
    leaves: tuple[str, ...]
    pattern: str  # einops, foreign -> ours; with several leaves ours starts with the axis they are packed along
    sizes: dict[str, int] = field(default_factory=dict)
    index: Index = ()  # of the leaf's layers, and of its experts where the foreign tensor is one expert's

    def ours(self, tensor: np.ndarray) -> list[np.ndarray]:
        """The foreign tensor as its leaves (at `index`)."""
        arrays = einops.rearrange(tensor, self.pattern, **self.sizes)
        return list(arrays) if len(self.leaves) > 1 else [arrays]

    def theirs(self, arrays: list[np.ndarray]) -> np.ndarray:
        """The leaves (at `index`) as the foreign tensor."""
        return self._back(np.stack(arrays) if len(arrays) > 1 else arrays[0])

    def blank(self, leaf: tuple[int, ...]) -> np.ndarray:
        """Zeros of the foreign tensor's shape that take no memory; `leaf` is the shape of (each of) its leaves."""
        packed = (len(self.leaves),) if len(self.leaves) > 1 else ()
        return self._back(np.broadcast_to(np.int8(0), packed + leaf[len(self.index) :]))

    def _back(self, array: np.ndarray) -> np.ndarray:
        left, right = self.pattern.split("->")
        return einops.rearrange(array, f"{right} -> {left}", **self.sizes)


def check_present(
    names: Iterable[Name],
    tensors: Mapping[str, Any],
    specs: Mapping[str, Any],
    unused: Iterable[str] = (),
    allow_missing: Iterable[str] = (),
    what: str = "the model",
) -> list[Name]:
    """The names that are to be read from `tensors` into leaves of `specs`.

    `unused` are patterns (with `*`) of keys that may be there for nothing, `allow_missing` of keys that may be
    absent, each leaf as a whole.

    Raises:
      BadCheckpoint: a key is missing, unexpected or mis-shaped; lists the keys.
    """
    names, allowed = list(names), list(allow_missing)
    present = [name for name in names if name.foreign in tensors]
    begun = {leaf for name in present for leaf in name.leaves}
    missing = [
        name.foreign
        for name in names
        if name.foreign not in tensors and not (matches(name.foreign, allowed) and begun.isdisjoint(name.leaves))
    ]
    spare = tensors.keys() - {name.foreign for name in names}
    unexpected = sorted(key for key in spare if not matches(key, unused))
    expected = {name.foreign: name.blank(specs[name.leaves[0]].shape).shape for name in present}
    mis_shaped = [
        f"{key} {tensors[key].shape} for {shape}" for key, shape in expected.items() if tensors[key].shape != shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "mis-shaped": mis_shaped}
    if problems := [f"{len(keys)} {kind}: {_some(keys)}" for kind, keys in kinds.items() if keys]:
        raise BadCheckpoint(f"the files do not fit {what}; {'; '.join(problems)}")
    return present


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:LISTED]) + (f" and {len(keys) - LISTED} more" if len(keys) > LISTED else "")


SAME = {1: "a -> a", 2: "a b -> a b", 4: "a b c d -> a b c d"}
LINEAR = "o i -> i o"
FFN = {"gate": "w1", "up": "w3", "down": "w2"}
CONV = "o i h w -> h w i o"
# present in the published files, unused by the model
UNUSED = (
    "clip.positional_embedding",
    "clip.text_projection",
    "clip.logit_scale",
    "clip.token_embedding.weight",
    "clip.ln_final.weight",
    "clip.ln_final.bias",
    "clip.visual.proj",
    "dinov2_vitg14.mask_token",
)


def accessory_names(config: ModelConfig, dense_experts: bool = False) -> Iterator[Name]:
    """Names of the published checkpoints (without the prefix `llma.`).

    A mixture of experts is stored in two layouts: one matrix of all experts (`mixtral_sparse*`), or one of each
    (`dense_experts`: `mixtral`, `mixtral_peft`).
    """
    yield from _decoder(config.decoder, dense_experts)
    if not config.has_vision:
        return
    yield Name("start_img", ("embedding_mix/tags/start",), "1 1 d -> d")
    yield Name("end_img", ("embedding_mix/tags/end",), "1 1 d -> d")
    for ours, there in (("visual_proj", True), ("qformer_proj", config.qformer)):
        if there:
            yield from _linear(f"{ours}.0", f"embedding_mix/{ours}/linear")
            yield from norm_rows(f"{ours}.1", f"embedding_mix/{ours}/norm")
    if config.clip:
        yield from _clip(config.clip)
    if config.convnext:
        yield from _convnext(config.convnext)
    if config.dinov2:
        yield from _dinov2(config.dinov2)
    if config.blip2:
        yield from _blip2(config)


def norm_rows(foreign: str, ours: str, index: Index = ()) -> Iterator[Name]:
    yield Name(f"{foreign}.weight", (f"{ours}/scale",), SAME[1], index=index)
    yield Name(f"{foreign}.bias", (f"{ours}/bias",), SAME[1], index=index)


def _linear(foreign: str, ours: str, index: Index = ()) -> Iterator[Name]:
    yield Name(f"{foreign}.weight", (f"{ours}/kernel",), LINEAR, index=index)
    yield Name(f"{foreign}.bias", (f"{ours}/bias",), SAME[1], index=index)


def _decoder(c: DecoderConfig, dense_experts: bool) -> Iterator[Name]:
    yield Name("tok_embeddings.weight", ("decoder/embedding",), SAME[2])
    for layer in range(c.layers):
        there, here = f"layers.{layer}", "decoder/blocks"
        for name, heads in (("q", c.heads), ("k", c.num_kv_heads), ("v", c.num_kv_heads)):
            yield from _map(
                f"{there}.attention.w{name}", f"{here}/attention", name, c, (layer,), out="(n h)", heads=heads
            )
        yield from _map(f"{there}.attention.wo", f"{here}/attention", "o", c, (layer,), into="(n h)", heads=c.heads)
        yield from _ffn(c, layer, dense_experts)
        for norm in ("attention_norm", "ffn_norm"):
            yield Name(f"{there}.{norm}.weight", (f"{here}/{norm}/scale",), SAME[1], index=(layer,))
    yield Name("norm.weight", ("decoder/norm/scale",), SAME[1])
    if not c.tied_embeddings:
        yield Name("output.weight", ("decoder/output",), LINEAR)


def _map(
    foreign: str, ours: str, name: str, c: DecoderConfig, index: Index, *, into="i", out="o", heads=0
) -> Iterator[Name]:
    """One linear map of the decoder's layers, with its bias and its low-rank addition."""

    def row(suffix: str, leaf: str, pattern: str) -> Name:
        return Name(f"{foreign}.{suffix}", (f"{ours}/{leaf}",), pattern, {"n": heads} if "n" in pattern else {}, index)

    inputs, outputs = into.strip("()"), out.strip("()")
    yield row("weight", name, f"{out} {into} -> {inputs} {outputs}")
    if name in c.bias:
        yield row("bias", f"bias/{name}", f"{out} -> {outputs}")
    if c.lora_rank:
        yield row("lora_a.weight", f"lora/{name}/a", f"r {into} -> {inputs} r")
        yield row("lora_b.weight", f"lora/{name}/b", f"{out} r -> r {outputs}")


def _ffn(c: DecoderConfig, layer: int, dense_experts: bool) -> Iterator[Name]:
    there, here = f"layers.{layer}.feed_forward", "decoder/blocks/ffn"
    if c.moe:
        yield Name(f"{there}.gate.weight", (f"{here}/router",), LINEAR, index=(layer,))
    for ours, theirs in FFN.items():
        if not c.moe:
            yield from _map(f"{there}.{theirs}", here, ours, c, (layer,))
        elif dense_experts:
            for e in range(c.moe.experts):
                yield from _map(f"{there}.experts.{e}.{theirs}", here, ours, c, (layer, e))
        else:
            # all are stored (expert · hidden, dim): w2 transposed
            pattern = "(e f) d -> e f d" if ours == "down" else "(e f) d -> e d f"
            yield Name(f"{there}.{theirs}", (f"{here}/{ours}",), pattern, {"e": c.moe.experts}, (layer,))


def _packed_attention(foreign: str, bias: str, ours: str, heads: int, index: Index) -> Iterator[Name]:
    """qkv in one matrix, q first."""
    names = [f"{ours}/{n}" for n in "qkv"]
    sizes = {"s": 3, "n": heads}
    yield Name(foreign, tuple(f"{n}/kernel" for n in names), "(s n h) c -> s c n h", sizes, index)
    yield Name(bias, tuple(f"{n}/bias" for n in names), "(s n h) -> s n h", sizes, index)


def _attention_out(foreign: str, ours: str, heads: int, index: Index) -> Iterator[Name]:
    yield Name(f"{foreign}.weight", (f"{ours}/o/kernel",), "c (n h) -> n h c", {"n": heads}, index)
    yield Name(f"{foreign}.bias", (f"{ours}/o/bias",), SAME[1], index=index)


def _clip(c: VitConfig) -> Iterator[Name]:
    there, here = "clip.visual", "encoders/clip"
    yield Name(f"{there}.class_embedding", (f"{here}/class_embedding",), SAME[1])
    yield Name(f"{there}.positional_embedding", (f"{here}/position_embedding",), SAME[2])
    yield Name(f"{there}.conv1.weight", (f"{here}/patch/kernel",), CONV)
    yield from norm_rows(f"{there}.ln_pre", f"{here}/norm_before")
    yield from norm_rows(f"{there}.ln_post", f"{here}/norm")
    for layer in range(c.layers):
        at = (layer,)
        block, ours = f"{there}.transformer.resblocks.{layer}", f"{here}/blocks"
        yield from _packed_attention(
            f"{block}.attn.in_proj_weight", f"{block}.attn.in_proj_bias", f"{ours}/attention", c.heads, at
        )
        yield from _attention_out(f"{block}.attn.out_proj", f"{ours}/attention", c.heads, at)
        yield from norm_rows(f"{block}.ln_1", f"{ours}/attention_norm", at)
        yield from norm_rows(f"{block}.ln_2", f"{ours}/mlp_norm", at)
        yield from _linear(f"{block}.mlp.c_fc", f"{ours}/mlp/up", at)
        yield from _linear(f"{block}.mlp.c_proj", f"{ours}/mlp/down", at)


def _convnext(c: ConvNextConfig) -> Iterator[Name]:
    there, here = "openclip_convnext_xxl", "encoders/convnext"
    yield Name(f"{there}.stem.0.weight", (f"{here}/stem/kernel",), CONV)
    yield Name(f"{there}.stem.0.bias", (f"{here}/stem/bias",), SAME[1])
    yield from norm_rows(f"{there}.stem.1", f"{here}/stem_norm")
    for stage, depth in enumerate(c.depths):
        theirs, ours = f"{there}.stages.{stage}", f"{here}/stages/{stage}"
        if stage:
            yield from norm_rows(f"{theirs}.downsample.0", f"{ours}/norm")
            yield Name(f"{theirs}.downsample.1.weight", (f"{ours}/downsample/kernel",), CONV)
            yield Name(f"{theirs}.downsample.1.bias", (f"{ours}/downsample/bias",), SAME[1])
        for layer in range(depth):
            at = (layer,)
            block, mine = f"{theirs}.blocks.{layer}", f"{ours}/blocks"
            yield Name(f"{block}.gamma", (f"{mine}/scale",), SAME[1], index=at)
            yield Name(f"{block}.conv_dw.weight", (f"{mine}/depthwise_kernel",), "c 1 h w -> h w c", index=at)
            yield Name(f"{block}.conv_dw.bias", (f"{mine}/depthwise_bias",), SAME[1], index=at)
            yield from norm_rows(f"{block}.norm", f"{mine}/norm", at)
            yield from _linear(f"{block}.mlp.fc1", f"{mine}/mlp/up", at)
            yield from _linear(f"{block}.mlp.fc2", f"{mine}/mlp/down", at)
    yield from norm_rows(f"{there}.head.norm", f"{here}/norm")


def _vit_ends(there: str, here: str, first: str, positions: str, patch: str, norm: str) -> Iterator[Name]:
    """What stands before and after the blocks of a ViT, by the names of its class slot, positions, patches and norm."""
    yield Name(f"{there}.{first}", (f"{here}/class_embedding",), "1 1 c -> c")
    yield Name(f"{there}.{positions}", (f"{here}/position_embedding",), "1 p c -> p c")
    yield Name(f"{there}.{patch}.weight", (f"{here}/patch/kernel",), CONV)
    yield Name(f"{there}.{patch}.bias", (f"{here}/patch/bias",), SAME[1])
    yield from norm_rows(f"{there}.{norm}", f"{here}/norm")


def _dinov2(c: VitConfig) -> Iterator[Name]:
    there, here = "dinov2_vitg14", "encoders/dinov2"
    yield from _vit_ends(there, here, "cls_token", "pos_embed", "patch_embed.proj", "norm")
    for layer in range(c.layers):
        at = (layer,)
        block, ours = f"{there}.blocks.{layer}", f"{here}/blocks"
        yield from norm_rows(f"{block}.norm1", f"{ours}/attention_norm", at)
        yield from norm_rows(f"{block}.norm2", f"{ours}/mlp_norm", at)
        yield from _packed_attention(
            f"{block}.attn.qkv.weight", f"{block}.attn.qkv.bias", f"{ours}/attention", c.heads, at
        )
        yield from _attention_out(f"{block}.attn.proj", f"{ours}/attention", c.heads, at)
        yield Name(f"{block}.ls1.gamma", (f"{ours}/attention_scale",), SAME[1], index=at)
        yield Name(f"{block}.ls2.gamma", (f"{ours}/mlp_scale",), SAME[1], index=at)
        gate_up = (f"{ours}/mlp/gate", f"{ours}/mlp/up")
        yield Name(
            f"{block}.mlp.w12.weight",
            tuple(f"{n}/kernel" for n in gate_up),
            "(s o) i -> s i o",
            {"s": 2},
            at,
        )
        yield Name(f"{block}.mlp.w12.bias", tuple(f"{n}/bias" for n in gate_up), "(s o) -> s o", {"s": 2}, at)
        yield from _linear(f"{block}.mlp.w3", f"{ours}/mlp/down", at)


def _blip2(config: ModelConfig) -> Iterator[Name]:
    v, q = config.blip2, config.qformer
    there, here = "qformer.vision_model", "encoders/blip2/vision"
    of = (f"embeddings.{part}_embedding" for part in ("class", "position", "patch"))
    yield from _vit_ends(there, here, *of, "post_layernorm")
    for layer in range(v.layers):
        at = (layer,)
        block, ours = f"{there}.encoder.layers.{layer}", f"{here}/blocks"
        yield from _packed_attention(
            f"{block}.self_attn.qkv.weight",
            f"{block}.self_attn.qkv.bias",
            f"{ours}/attention",
            v.heads,
            at,
        )
        yield from _attention_out(f"{block}.self_attn.projection", f"{ours}/attention", v.heads, at)
        yield from norm_rows(f"{block}.layer_norm1", f"{ours}/attention_norm", at)
        yield from norm_rows(f"{block}.layer_norm2", f"{ours}/mlp_norm", at)
        yield from _linear(f"{block}.mlp.fc1", f"{ours}/mlp/up", at)
        yield from _linear(f"{block}.mlp.fc2", f"{ours}/mlp/down", at)
    yield Name("qformer.query_tokens", ("encoders/blip2/qformer/queries",), "1 q c -> q c")
    yield from norm_rows("qformer.qformer.layernorm", "encoders/blip2/qformer/norm")
    for layer in range(q.layers):
        block = f"qformer.qformer.encoder.layer.{layer}"
        at = (layer // 2,)
        ours = f"encoders/blip2/qformer/pairs/{'odd' if layer % 2 else 'even'}"
        for theirs, mine in (("attention", "attention"), ("crossattention", "cross")):
            if theirs == "crossattention" and layer % 2:
                continue
            for foreign, name in (("query", "q"), ("key", "k"), ("value", "v")):
                yield Name(
                    f"{block}.{theirs}.attention.{foreign}.weight",
                    (f"{ours}/{mine}/{name}/kernel",),
                    "(n h) c -> c n h",
                    {"n": q.heads},
                    at,
                )
                yield Name(
                    f"{block}.{theirs}.attention.{foreign}.bias",
                    (f"{ours}/{mine}/{name}/bias",),
                    "(n h) -> n h",
                    {"n": q.heads},
                    at,
                )
            yield from _attention_out(f"{block}.{theirs}.output.dense", f"{ours}/{mine}", q.heads, at)
            yield from norm_rows(f"{block}.{theirs}.output.LayerNorm", f"{ours}/{mine}_norm", at)
        yield from _linear(f"{block}.intermediate_query.dense", f"{ours}/mlp/up", at)
        yield from _linear(f"{block}.output_query.dense", f"{ours}/mlp/down", at)
        yield from norm_rows(f"{block}.output_query.LayerNorm", f"{ours}/mlp_norm", at)
