"""Encoders of a new SPHINX from the folders that their authors publish.

`clip` is a `CLIPVisionModel` (or the vision side of a `CLIPModel`), `dinov2` a `Dinov2Model`, `blip2` the
vision tower and Q-Former of a `Blip2Model`, `convnext` the ConvNeXt of timm or of an open_clip model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sphinx_jax.checkpoint.foreign.huggingface import Tensor, open_folder
from sphinx_jax.checkpoint.foreign.huggingface_config import complete, read_json, require
from sphinx_jax.checkpoint.foreign.huggingface_names import blip2_names, clip_names, convnext_names, dinov2_names
from sphinx_jax.checkpoint.foreign.names import Name, check_present
from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.config import CLIP_MEAN, CLIP_STD, ConvNextConfig, ModelConfig, QFormerConfig, VitConfig, unknown
from sphinx_jax.model.blueprint import blueprint


@dataclass(frozen=True)
class Source:
    """How one kind of encoder lies in its folder."""

    read_config: Callable[[Path, int | None], dict[str, Any]]
    names: Callable[[ModelConfig], Iterable[Name]]
    prefixes: tuple[str, ...]  # its keys begin with the first of these that occurs
    unused: tuple[str, ...] = ()  # patterns of keys behind the prefix that the encoder does without


def read_encoder_config(kind: str, folder: str | Path, view_size: int | None = None) -> dict[str, Any]:
    """The fields of `ModelConfig` that describe an encoder (`blip2` has two, itself and `qformer`).

    Args:
      kind: clip, dinov2, blip2 or convnext.
      view_size: side in pixels of the views that it will see; that of its pre-training by default. DINOv2 resizes its
        positions to it, ConvNeXt its views from it; the others take no other size.

    Raises:
      BadCheckpoint: something that our encoder does not do, by name.
    """
    return _source(kind).read_config(Path(folder), view_size)


def open_encoder(kind: str, folder: str | Path, config: ModelConfig) -> tuple[list[Name], dict[str, Tensor]]:
    """The names and tensors of an encoder of `config`, checked, reading no tensor.

    Raises:
      BadCheckpoint: keys are missing, unexpected or of another shape; lists them.
    """
    source = _source(kind)
    tensors = _behind(source.prefixes, open_folder(folder))
    names = check_present(
        source.names(config), tensors, blueprint(config).specs, source.unused, what=f"the encoder {kind}"
    )
    return names, tensors


def _source(kind: str) -> Source:
    if kind not in SOURCES:
        raise unknown("kind of encoder", kind, SOURCES)
    return SOURCES[kind]


def _behind(prefixes: Iterable[str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose keys begin with the first prefix that occurs, without it."""
    prefix = next((p for p in prefixes if any(key.startswith(p) for key in tensors)), "")
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _open(folder: Path, *model_types: str) -> tuple[Path, dict[str, Any]]:
    file = folder / "config.json"
    values = read_json(file)
    require(file, values, model_type=model_types)
    return file, values


def _trained_at(file: Path, values: Mapping[str, Any], view_size: int | None) -> int:
    size = values.get("image_size", 224)
    if view_size not in (None, size):
        raise BadCheckpoint(f"{file}: the encoder knows positions of {size}-pixel views alone, not of {view_size}")
    return size


def _clip(folder: Path, view_size: int | None) -> dict[str, Any]:
    file, values = _open(folder, "clip", "clip_vision_model")
    values = values.get("vision_config", values)
    require(file, values, hidden_act=("quick_gelu", "gelu"))
    with complete(file):
        vit = VitConfig(
            width=values["hidden_size"],
            layers=values["num_hidden_layers"],
            heads=values["num_attention_heads"],
            mlp_width=values["intermediate_size"],
            patch=values["patch_size"],
            view_size=_trained_at(file, values, view_size),
            patch_bias=False,
            norm_before=True,
            activation=values.get("hidden_act", "quick_gelu"),
            norm_eps=values.get("layer_norm_eps", 1e-5),
        )
    return {"clip": vit}


def _dinov2(folder: Path, view_size: int | None) -> dict[str, Any]:
    file, values = _open(folder, "dinov2")
    require(file, values, hidden_act=("gelu",))
    with complete(file):
        width, packed = values["hidden_size"], values.get("use_swiglu_ffn", False)
        hidden = int(width * values.get("mlp_ratio", 4))
        vit = VitConfig(
            width=width,
            layers=values["num_hidden_layers"],
            heads=values["num_attention_heads"],
            mlp_width=(int(hidden * 2 / 3) + 7) // 8 * 8 if packed else hidden,
            patch=values["patch_size"],
            view_size=view_size or values["image_size"],
            activation="swiglu" if packed else "gelu",
            layer_scale=True,
            norm_eps=values.get("layer_norm_eps", 1e-6),
            position_grid=values["image_size"] // values["patch_size"],
            imagenet_normalised=True,
        )
    return {"dinov2": vit}


def _blip2(folder: Path, view_size: int | None) -> dict[str, Any]:
    """Published configs leave out what is the default of `Blip2Config`."""
    file, values = _open(folder, "blip-2")
    vision, queries = values.get("vision_config") or {}, values.get("qformer_config") or {}
    require(file, vision, hidden_act=("gelu",), qkv_bias=(True,))
    require(file, queries, hidden_act=("gelu",), cross_attention_frequency=(2,), use_qformer_text_input=(False,))
    vit = VitConfig(
        width=vision.get("hidden_size", 1408),
        layers=vision.get("num_hidden_layers", 39),
        heads=vision.get("num_attention_heads", 16),
        mlp_width=vision.get("intermediate_size", 6144),
        patch=vision.get("patch_size", 14),
        view_size=_trained_at(file, vision, view_size),
        norm_eps=vision.get("layer_norm_eps", 1e-6),
    )
    qformer = QFormerConfig(
        width=queries.get("hidden_size", 768),
        layers=queries.get("num_hidden_layers", 12),
        heads=queries.get("num_attention_heads", 12),
        mlp_width=queries.get("intermediate_size", 3072),
        queries=values.get("num_query_tokens", 32),
        norm_eps=queries.get("layer_norm_eps", 1e-12),
    )
    return {"blip2": vit, "qformer": qformer}


def _convnext(folder: Path, view_size: int | None) -> dict[str, Any]:
    """Depths and widths are those of the tensors: no config of open_clip has them."""
    tensors = _behind(SOURCES["convnext"].prefixes, open_folder(folder))
    widths = {}
    for key, tensor in tensors.items():
        if found := re.fullmatch(r"stages\.(\d+)\.blocks\.(\d+)\.gamma", key):
            widths.setdefault(int(found[1]), []).extend(tensor.shape)
    if not widths:
        raise BadCheckpoint(f"{folder} has no key stages.0.blocks.0.gamma: it holds no ConvNeXt of timm's layout")
    name, trained = _timm_model(folder)
    stages = [widths[stage] for stage in sorted(widths)]
    convnext = ConvNextConfig(
        depths=tuple(map(len, stages)),
        dims=tuple(stage[0] for stage in stages),
        view_size=view_size or trained,
        # as published: 224-pixel views are brought to the 256 of its pre-training, 512-pixel ones stay
        input_size=max(view_size or 0, trained),
        norm_eps=1e-5 if name.startswith("convnext_xxlarge") else 1e-6,  # as timm builds them
    )
    return {"convnext": convnext}


def _timm_model(folder: Path) -> tuple[str, int]:
    """timm's name of the model and the size of its pictures, from the config of open_clip or of timm."""
    open_clip = (folder / "open_clip_config.json").is_file()
    file = folder / ("open_clip_config.json" if open_clip else "config.json")
    values = read_json(file)
    with complete(file):
        if open_clip:
            vision, pixels = values["model_cfg"]["vision_cfg"], values.get("preprocess_cfg", {})
            name, size = vision["timm_model_name"], vision["image_size"]
        else:
            pixels = values["pretrained_cfg"]
            name, size = values["architecture"], pixels["input_size"][-1]
    require(file, pixels, mean=(list(CLIP_MEAN),), std=(list(CLIP_STD),))
    return name, size


SOURCES = {
    "clip": Source(_clip, lambda c: clip_names(c.clip), ("vision_model.", ""), ("embeddings.position_ids",)),
    "dinov2": Source(_dinov2, lambda c: dinov2_names(c.dinov2), ("dinov2.", ""), ("embeddings.mask_token",)),
    "blip2": Source(_blip2, blip2_names, ("",), ("language_model.*", "language_projection.*", "*.position_ids")),
    "convnext": Source(_convnext, convnext_names, ("visual.trunk.", ""), ("head.fc.*",)),
}
