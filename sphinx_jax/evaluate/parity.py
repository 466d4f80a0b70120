"""Our numbers beside the reference's: every recorded quantity of a model, and how far we are from it at worst.

A record is a folder with ``ckpt/`` (a published checkpoint at tiny size), ``expected.npz``, ``info.json`` and possibly
``grads_{img,text}.npz``, as the authors' PyTorch code gave them on a CPU in float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.checkpoint.foreign import Foreign, open_foreign
from sphinx_jax.generate import engine
from sphinx_jax.generate.load import place
from sphinx_jax.model.blueprint import Leaves, blueprint, matches
from sphinx_jax.model.embedding_mix import Features, to_grid
from sphinx_jax.sharding import make_mesh
from sphinx_jax.train.step import cross_entropy

# quantity -> how far apart two right implementations may be; gradients relative to each leaf's largest
BOUNDS = {
    "clip features": 1e-5, "convnext features": 1e-5, "dinov2 features": 1e-5, "q-former features": 1e-5,
    "image tokens": 1e-4, "hidden": 1e-4, "logits": 1e-4, "decoding": 1e-4, "loss": 1e-5, "balance loss": 1e-5,
    "gradients": 1e-4, "greedy tokens": 0.0,
}  # fmt: skip
RESIZED = 1e-4  # of features whose input was resized 512 -> 224: one float16 tie moves them by 6e-5


def compare(record: Path, images: Path) -> Iterator[tuple[str, float]]:
    """(quantity, largest absolute difference) of one record; ``images`` holds ``pre_{S}.npz``."""
    found = open_foreign([record / "ckpt"])
    leaves, config = place(found, make_mesh()), found.config
    expected, info = np.load(record / "expected.npz"), json.loads((record / "info.json").read_text())
    tokens, labels = expected["examples"], expected["labels"]
    cut = int(np.flatnonzero(labels.any(0)).max()) + 1  # the reference's loss sees no more
    model = blueprint(config).bind(leaves)
    pixels = features = None
    if config.has_vision:
        pixels = jnp.asarray(np.load(images / f"pre_{config.views.image_size}.npz")["image"].transpose(0, 2, 3, 1))
        features = jax.jit(model.encode)(pixels)
        yield from _features(found, features, expected)
    for kind, seen in (("img", features), ("text", None)):
        if f"{kind}_loss" not in expected:
            continue
        hidden, _ = jax.jit(model.hidden)(tokens[:, :cut], seen)
        yield "hidden", _apart(hidden, expected[f"{kind}__final_norm"][:, -cut:])
        logits = jax.jit(lambda seen: model.decoder.logits(model.hidden(tokens, seen)[0]))(seen)
        yield "logits", _apart(logits, expected[f"{kind}_logits_full"])
        yield from _losses(found, leaves, tokens[:, :cut], labels[:, :cut], seen, expected, kind)
        gradients = record / f"grads_{kind}.npz"
        if gradients.exists():
            yield "gradients", _gradients(found, leaves, tokens[:, :cut], labels[:, :cut], seen, np.load(gradients))
        one = None if seen is None else jax.tree.map(lambda x: x[:1], seen)
        yield "decoding", _decoding(found, leaves, one, expected, kind)
        yield "greedy tokens", _greedy(found, leaves, seen, info["prompts"], info[f"{kind}_generate_tokens"])


def _apart(ours: Any, theirs: Any) -> float:
    return float(np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)).max())


def _features(found: Foreign, features: Features, expected: Any) -> Iterator[tuple[str, float]]:
    """Encoder by encoder, every view; the record's pictures come one view after the other."""
    c, views = found.config, found.config.views.views
    at = 0
    ours = jnp.concatenate([features.overview, *([] if features.crops is None else [features.crops])], axis=1)
    for name, key, config in (
        ("clip features", "clip_feats", c.clip), ("convnext features", "convnext_out", c.convnext),
        ("dinov2 features", "dino_feats", c.dinov2),
    ):  # fmt: skip
        if config is None:
            continue
        theirs = jnp.asarray(expected[f"img__{key}"])
        if key == "convnext_out":
            theirs = to_grid(theirs.transpose(0, 2, 3, 1), c.grid)
        width = theirs.shape[-1]
        by_picture = einops.rearrange(theirs, "(v b) t d -> b v t d", v=views)
        yield name, _apart(ours[..., at : at + width], by_picture)
        at += width
    if features.queries is not None:
        theirs = einops.rearrange(expected["img__qformer_feats"], "(v b) t d -> b v t d", v=views)
        yield "q-former features", _apart(features.queries, theirs)


def _losses(found, leaves, tokens, labels, features, expected, kind) -> Iterator[tuple[str, float]]:
    loss, balance = _loss(found, leaves, tokens, labels, features)
    yield "loss", _apart(loss, expected[f"{kind}_loss"])
    if balance is not None:
        yield "balance loss", _apart(balance, expected[f"{kind}_addloss_load_balancing"])


def _loss(found: Foreign, leaves: Leaves, tokens, labels, features) -> tuple[jax.Array, jax.Array | None]:
    """Cross-entropy, mean over the labelled tokens, and the load-balance loss."""

    @jax.jit
    def loss(leaves, features):
        batch = {"tokens": jnp.asarray(tokens), "labels": jnp.asarray(labels)}
        if features is not None:
            batch |= features._asdict()
        losses, balance = cross_entropy(blueprint(found.config).bind(leaves), batch)
        return losses.sum() / (labels[:, 1:] > 0).sum(), balance

    return loss(leaves, features)


def _gradients(found: Foreign, leaves: Leaves, tokens, labels, features, recorded) -> float:
    """The largest difference of any gradient, relative to the largest value of that gradient."""
    trainable = {path: leaf for path, leaf in leaves.items() if not matches(path, ["encoders/*"])}
    moe = found.config.decoder.moe

    def total(trainable):
        loss, balance = _loss(found, leaves | trainable, tokens, labels, features)
        return loss if balance is None else loss + moe.balance_weight * balance

    grads = jax.jit(jax.grad(total))(trainable)
    worst = 0.0
    for name in found.names:
        if f"llma.{name.foreign}" not in recorded:
            continue
        theirs = name.ours(recorded[f"llma.{name.foreign}"])
        for path, array in zip(name.leaves, theirs, strict=True):
            worst = max(worst, _apart(grads[path][name.index], array) / float(np.abs(array).max()))
    return worst


def _decoding(found: Foreign, leaves: Leaves, features: Features | None, expected: Any, kind: str) -> float:
    """Logits of each step with the cache, along the record's own tokens."""
    prompt, tokens = expected[f"{kind}_gen_prompt"], expected[f"{kind}_gen_tokens"]
    padded, lengths = engine.pad_prompts([prompt.tolist()])
    room = found.config.image_positions + padded.shape[1] + len(tokens)
    logits, position, cache = engine.prefill(found.config, leaves, padded, lengths, features, room)
    worst = 0.0
    for step, token in enumerate(tokens):
        worst = max(worst, _apart(logits[0], expected[f"{kind}_gen_logits"][step]))
        logits, cache = engine.decode(found.config, leaves, jnp.array([token]), position + step, cache)
    return worst


def _greedy(found: Foreign, leaves: Leaves, features: Features | None, prompts: list[str], recorded: list) -> float:
    """Share of wrong tokens, the prompts in one batch and each alone."""
    prompts = [found.tokenizer.encode(prompt, bos=True) for prompt in prompts]
    settings = {"stops": engine.stop_tokens(found.tokenizer), "max_new_tokens": max(map(len, recorded))}
    answers = engine.generate(found.config, leaves, prompts, features, **settings)
    for i, prompt in enumerate(prompts):
        one = None if features is None else jax.tree.map(lambda x, i=i: x[i : i + 1], features)
        answers += engine.generate(found.config, leaves, [prompt], one, **settings)
    pairs = [
        (a, b) for ours, theirs in zip(answers, recorded * 2, strict=True) for a, b in zip(ours, theirs, strict=False)
    ]
    return float(np.mean([a != b for a, b in pairs]))


def bound(quantity: str, image_size: int | None) -> float:
    resized = quantity.endswith("features") and image_size not in (None, 224, 448, 672)
    return RESIZED if resized else BOUNDS[quantity]


def table(records: Path) -> str:
    """The worst difference of every quantity of every record below a folder, as Markdown."""
    folders = [path.parent for path in sorted(records.glob("*/expected.npz"))]
    rows = {}
    for folder in folders:
        rows[folder.name] = {}
        for quantity, apart in compare(folder, records / "images"):
            rows[folder.name][quantity] = max(apart, rows[folder.name].get(quantity, 0.0))
    quantities = [q for q in BOUNDS if any(q in row for row in rows.values())]
    lines = ["| quantity | bound | " + " | ".join(rows) + " |", "|---|--:|" + "--:|" * len(rows)]
    for quantity in quantities:
        cells = [f"{row[quantity]:.1e}" if quantity in row else "" for row in rows.values()]
        lines.append(f"| {quantity} | {BOUNDS[quantity]:.0e} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
