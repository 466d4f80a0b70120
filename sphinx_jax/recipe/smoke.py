"""A recipe at nano size: the same stages, the same code, on the playground, in a minute or two on a laptop; on its own
data where all lists that it names are there.

For finding out that a recipe runs before machines are asked for.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sphinx_jax.config import (
    ConvNextConfig,
    DecoderConfig,
    ModelConfig,
    QFormerConfig,
    blip2_config,
    clip_config,
    dinov2_config,
    from_dict,
    to_dict,
)

ROWS = 8  # of a batch: they divide over a laptop's worth of devices
# settings of a stage that take time or name files -> what they become
SMALL: dict[str, dict[str, Any]] = {
    "train": {
        "steps": 4,
        "epochs": 0.0,
        "warmup": 1,
        "warmup_epochs": 0.0,
        "split": "train",
        "held_out": "validation",
        "held_out_items": ROWS,
        "length": 128,
        "text_length": 64,
        "workers": 0,
        "log_every": 2,
        "save_every": 2,
    },
    "mix": {"betas": (0.0, 0.5, 1.0), "batch": ROWS, "pictures": ROWS, "turns": 2},
    "evaluate": {"limit": ROWS},
    "benchmarks": {"limit": 2, "names": None},
}


def smoke(values: dict[str, Any]) -> dict[str, Any]:
    """The plain data of a recipe -> that of its nano form."""
    small = dict(values)
    small["model"] = to_dict(nano(from_dict(dict(values["model"]))))
    own = _own_data(values)
    small["data"] = dict(values["data"]) if own else {"playground": "nano"}
    small["tokenizer"] = ""
    small["title"] = f"{values.get('title', 'SPHINX')} (smoke)"
    small["stage"] = {name: _small_stage(dict(s), values["stage"], own) for name, s in values["stage"].items()}
    return small


def _own_data(values: dict[str, Any]) -> bool:
    """Whether the recipe's own lists are there."""
    data = values.get("data")
    lists = (data.get("meta") or {}).values() if isinstance(data, dict) else ()
    return bool(lists) and all(Path(file).is_file() for file in lists)


def _small_stage(stage: dict[str, Any], stages: dict[str, Any], own: bool) -> dict[str, Any]:
    kind = stage.get("kind")
    small = SMALL.get(kind, {})
    if own:  # its splits have names of their own; of packed texts all would be counted
        small = {name: value for name, value in small.items() if name not in ("split", "held_out")}
        stage.pop("pack_text", None)
    stage |= small
    if kind == "train":
        stage["start"] = stage["start"] if stage["start"] in stages else "fresh"
        stage |= {key: ROWS for key in ("batch", "text_batch") if stage.get(key) not in (None, 0, "auto")}
        if not own and "*" in stage.get("domains", ()):
            stage["domains"] = {"real": 1.0, "synthetic": 1.0}
    return stage


def nano(model: ModelConfig) -> ModelConfig:
    """The same encoders, views and kind of decoder, each as small as it gets: views of 2 × 2 patches."""
    d = model.decoder
    decoder = DecoderConfig(
        dim=64,
        layers=2,
        heads=4,
        kv_heads=d.kv_heads and 2,
        vocab_size=1280,
        multiple_of=32,
        norm_eps=d.norm_eps,
        rope_theta=d.rope_theta,
        tied_embeddings=d.tied_embeddings,
        moe=d.moe,
        bias=d.bias,
        lora_rank=min(d.lora_rank, 4),
    )
    if not model.has_vision:
        return dataclasses.replace(model, decoder=decoder)
    views = model.views
    # pictures of which a view is larger than the transformers' are resized for them here too
    view = 32 if views.image_size // max(views.crops, 1) > 224 else 16
    return dataclasses.replace(
        model,
        decoder=decoder,
        views=dataclasses.replace(views, image_size=view * max(views.crops, 1)),
        clip=model.clip and clip_config(16, 2, 2, patch=8, view_size=16),
        convnext=model.convnext and ConvNextConfig((1, 1, 1), (8, 8, 16), view_size=view, input_size=32),
        dinov2=model.dinov2 and dinov2_config(16, 2, 2, patch=8, view_size=16, position_grid=2),
        blip2=model.blip2 and blip2_config(16, 2, 2, 32, patch=8, view_size=16),
        qformer=model.qformer and QFormerConfig(16, 2, 2, 32, queries=2),
        pool_overview=min(model.pool_overview, 2),
        pool_crops=min(model.pool_crops, 2),
    )
