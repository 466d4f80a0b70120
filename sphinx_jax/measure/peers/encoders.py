"""Our frozen encoders beside those of transformers and PyTorch, forward alone, on the same machine, each side in a
process of its own.

Both sides have the same weights, random ones in the files of transformers, and must first see the same in a picture.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sphinx_jax.checkpoint.foreign.foreign import Foreign
from sphinx_jax.checkpoint.foreign.huggingface_encoders import open_encoder, read_encoder_config
from sphinx_jax.config import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    DecoderConfig,
    ModelConfig,
    ViewsConfig,
    clip_config,
)
from sphinx_jax.measure.peers.sides import OURS, Apart, Work
from sphinx_jax.measure.peers.train import Torch, compiled
from sphinx_jax.model.blueprint import Blueprint
from sphinx_jax.model.encoders import Blip2, Clip, ConvNext, DinoV2
from sphinx_jax.sharding import make_mesh

MODULES: dict[str, Callable[[ModelConfig, nnx.Rngs], nnx.Module]] = {
    "clip": lambda c, rngs: Clip(c.clip, rngs=rngs),
    "dinov2": lambda c, rngs: DinoV2(c.dinov2, rngs=rngs),
    "blip2": lambda c, rngs: Blip2(c.blip2, c.qformer, rngs=rngs),
    "convnext": lambda c, rngs: ConvNext(c.convnext, rngs=rngs),
}
# transformers' keys of a ConvNeXt -> timm's, in which it is published for us
TO_TIMM = (
    (r"^embeddings\.patch_embeddings", "stem.0"),
    (r"^embeddings\.layernorm", "stem.1"),
    (r"^layernorm", "head.norm"),
    (r"^encoder\.", ""),
    (r"\.layers\.", ".blocks."),
    ("downsampling_layer", "downsample"),
    ("dwconv", "conv_dw"),
    ("layernorm", "norm"),
    ("pwconv", "mlp.fc"),
    ("layer_scale_parameter", "gamma"),
)


@dataclass(frozen=True)
class Theirs:
    """An encoder of transformers: its module, what it sees in pixels (I, 3, S, S), and where its files are."""

    name: str
    kind: str
    side: int
    module: Any
    features: Callable[[Any], Any]


def encoders(side: str, images: int, width: int = 256, layers: int = 6) -> Iterator[Work]:
    """Encoders over `images` views, smaller than the published ones: ViTs of `width` and `layers`, ConvNeXt-T.

    Raises:
      Apart: features differ by more than a thousandth of their mean size, in bfloat16 by more than a tenth.
    """
    peer = Torch()
    torch = peer.module
    torch.manual_seed(0)  # both sides make the same
    for theirs in _models(width, layers):
        name, module = f"{theirs.name}, {images} views", theirs.module.eval()
        with tempfile.TemporaryDirectory() as folder:
            _save(theirs, Path(folder))
            plan, leaves = _ours(theirs.kind, Path(folder), peer.dtype)
        views = np.random.default_rng(0).normal(size=(images, theirs.side, theirs.side, 3)).astype(np.float32)
        placed = jax.device_put(jnp.asarray(views, peer.dtype))
        run = jax.jit(lambda leaves, views, plan=plan: plan.bind(leaves)(views))

        def our_forward(run=run, leaves=leaves, placed=placed) -> jax.Array:
            return jax.block_until_ready(run(leaves, placed))

        if side == OURS:
            yield Work(name, our_forward)
            continue
        if theirs.kind == "dinov2":  # ours takes pixels of CLIP's statistics
            views = (views * CLIP_STD + CLIP_MEAN - IMAGENET_MEAN) / IMAGENET_STD
        given = torch.from_numpy(np.ascontiguousarray(views.transpose(0, 3, 1, 2)))
        given = given.to(peer.device, getattr(torch, peer.dtype))
        module.to(peer.device, getattr(torch, peer.dtype))
        attention = "" if theirs.kind == "convnext" else module.config._attn_implementation
        forward, how = compiled(torch, theirs.features, attention)

        def their_forward(forward=forward, given=given) -> Any:
            with torch.inference_mode():
                seen = forward(given)
            peer.wait()
            return seen

        ours, seen = np.asarray(our_forward(), np.float32), their_forward().float().cpu().numpy()
        apart = np.abs(ours - seen.reshape(ours.shape)).mean() / np.abs(seen).mean()
        if apart > (0.1 if peer.gpu else 1e-3):
            raise Apart(f"{theirs.name}: features differ by {apart:.1e} of their mean size")
        yield Work(name, their_forward, how)


def _models(width: int, layers: int) -> Iterator[Theirs]:
    import transformers as hf

    hf.utils.logging.disable_progress_bar()
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64}
    vit = sizes | {"image_size": 224, "patch_size": 14}
    clip = hf.CLIPVisionModel(hf.CLIPVisionConfig(**vit, intermediate_size=4 * width))
    yield Theirs("CLIP", "clip", 224, clip, lambda x: clip.post_layernorm(clip(x).last_hidden_state))
    dinov2 = hf.Dinov2Model(hf.Dinov2Config(**vit, use_swiglu_ffn=True))
    yield Theirs("DINOv2", "dinov2", 224, dinov2, lambda x: dinov2(x).last_hidden_state)
    few = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8}
    text = few | {"model_type": "opt", "word_embed_proj_dim": 8, "ffn_dim": 8}
    blip2 = hf.Blip2Model(
        hf.Blip2Config(
            vision_config=vit | {"intermediate_size": 4 * width},
            text_config=text,
            num_query_tokens=32,
            qformer_config=sizes | {"intermediate_size": 4 * width, "encoder_hidden_size": width},
        )
    )

    def queried(x):
        seen = blip2.vision_model(x).last_hidden_state
        queries = blip2.query_tokens.expand(len(x), -1, -1)
        return blip2.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state

    yield Theirs("BLIP-2, 32 queries", "blip2", 224, blip2, queried)
    convnext = hf.ConvNextModel(hf.ConvNextConfig(depths=[3, 3, 9, 3], hidden_sizes=[96, 192, 384, 768]))
    yield Theirs(
        "ConvNeXt", "convnext", 256, convnext, lambda x: convnext.layernorm(convnext(x).last_hidden_state.movedim(1, 3))
    )


def _save(theirs: Theirs, folder: Path) -> None:
    if theirs.kind != "convnext":
        theirs.module.save_pretrained(folder)
        return
    from safetensors.torch import save_file

    tensors = {}
    for key, tensor in theirs.module.state_dict().items():
        for pattern, name in TO_TIMM:
            key = re.sub(pattern, name, key)
        tensors[key] = tensor
    save_file(tensors, folder / "model.safetensors")
    pixels = {"input_size": [3, theirs.side, theirs.side], "mean": CLIP_MEAN, "std": CLIP_STD}
    (folder / "config.json").write_text(json.dumps({"architecture": "convnext_tiny", "pretrained_cfg": pixels}))


def _ours(kind: str, folder: Path, dtype: str) -> tuple[Blueprint, dict[str, jax.Array]]:
    # the names are those of a whole model, with a decoder and an encoder of patches
    fields = {"clip": clip_config(64, 1, 1)} | read_encoder_config(kind, folder)
    config = ModelConfig("encoder", DecoderConfig(dim=64, layers=1, heads=1), ViewsConfig(), **fields)
    names, tensors = open_encoder(kind, folder, config)
    plan = Blueprint(lambda rngs: MODULES[kind](config, rngs))
    shardings = plan.shardings(make_mesh())
    leaves = {}
    for path, leaf in Foreign((), config, tuple(names), tensors, None).leaves():
        inner = path.split("/", 2)[2]  # encoders/<kind>/
        leaves[inner] = jax.device_put(leaf.astype(dtype), shardings[inner])
    return plan, leaves
