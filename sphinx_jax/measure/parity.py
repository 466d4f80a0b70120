"""Our numbers beside the reference's: every recorded quantity of a model, and how far we are from it at worst.

A record is a folder with `ckpt/` (a published checkpoint at tiny size), `expected.npz`, `info.json` and possibly
`grads_{img,text}.npz`, as the authors' PyTorch code gave them on a CPU in float32.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.checkpoint.foreign.foreign import Foreign, open_foreign
from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.config import ModelConfig
from sphinx_jax.generate.batching import programs
from sphinx_jax.generate.batching.pictures import Picture
from sphinx_jax.generate.engine import Engine
from sphinx_jax.generate.load import place
from sphinx_jax.generate.request import Request
from sphinx_jax.generate.sphinx import Sphinx
from sphinx_jax.model.blueprint import FROZEN, Leaves, blueprint, matches
from sphinx_jax.model.cache import Cache
from sphinx_jax.model.embedding_mix import Features, to_grid
from sphinx_jax.sharding import make_mesh
from sphinx_jax.train.step import Batch, cross_entropy

# quantity -> how far apart two right implementations may be; gradients relative to each leaf's largest
BOUNDS = {
    "clip features": 1e-5,
    "convnext features": 1e-5,
    "dinov2 features": 1e-5,
    "q-former features": 1e-5,
    "image tokens": 1e-5,
    "hidden": 1e-4,
    "logits": 1e-4,
    "decoding": 1e-4,
    "loss": 1e-5,
    "balance loss": 1e-5,
    "gradients": 1e-4,
    "greedy tokens": 0.0,
}

Rows = dict[str, dict[str, float]]  # record -> quantity -> largest difference


def measure(records: Path) -> Rows:
    """The largest difference of every quantity of every record below a folder; `images/` lies beside them."""
    folders = [path.parent for path in sorted(records.glob("*/expected.npz"))]
    if not folders:
        raise BadCheckpoint(f"{records} holds no record: no folder in it has an expected.npz")
    return {folder.name: worst(compare(folder, records / "images")) for folder in folders}


def worst(differences: Iterator[tuple[str, float]]) -> dict[str, float]:
    """The largest of each quantity."""
    found: dict[str, float] = {}
    for quantity, apart in differences:
        found[quantity] = max(apart, found.get(quantity, 0.0))
    return found


def over(rows: Rows) -> list[str]:
    """One line for every quantity that is further from its record than its bound."""
    return [
        f"{record}: {quantity} {apart:.1e} from the record, the bound is {BOUNDS[quantity]:.0e}"
        for record, row in rows.items()
        for quantity, apart in row.items()
        if apart > BOUNDS[quantity]
    ]


def table(rows: Rows) -> str:
    """Markdown, a line for every quantity; what is over its bound is bold."""
    lines = ["| quantity | bound | " + " | ".join(rows) + " |", "|---|--:|" + "--:|" * len(rows)]
    for quantity, bound in BOUNDS.items():
        if any(quantity in row for row in rows.values()):
            cells = [_cell(row.get(quantity), bound) for row in rows.values()]
            lines.append(f"| {quantity} | {bound:.0e} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(apart: float | None, bound: float) -> str:
    if apart is None:
        return ""
    return f"**{apart:.1e}**" if apart > bound else f"{apart:.1e}"


def compare(record: Path, images: Path) -> Iterator[tuple[str, float]]:
    """(quantity, largest absolute difference) of one record; `images` holds `pre_{S}.npz`.

    A difference is infinite where a number is NaN or a shape is another.
    """
    found = open_foreign([record / "ckpt"])
    leaves, config = place(found, make_mesh()), found.config
    expected, info = np.load(record / "expected.npz"), json.loads((record / "info.json").read_text())
    tokens, labels = expected["examples"], expected["labels"]
    cut = int(np.flatnonzero(labels.any(0)).max()) + 1  # the reference's loss sees no more
    features = None
    if config.has_vision:
        pixels = np.load(images / f"pre_{config.views.image_size}.npz")["image"].transpose(0, 2, 3, 1)
        features, mixed = _encode(config, leaves, pixels)
        yield from _features(config, features, expected)
        yield from _image_tokens(config, mixed, expected)
    for kind, seen in (("img", features), ("text", None)):
        if f"{kind}_loss" not in expected:
            continue
        hidden, logits = _decode(config, leaves, tokens, seen)
        yield "hidden", _apart(hidden[:, :cut], expected[f"{kind}__final_norm"][:, -cut:])
        yield "logits", _apart(logits, expected[f"{kind}_logits_full"])
        given = {} if seen is None else {key: x for key, x in seen._asdict().items() if x is not None}
        batch = {"tokens": tokens[:, :cut], "loss_mask": labels[:, :cut] > 0} | given
        loss, balance = _loss(config, leaves, batch)
        yield "loss", _apart(loss, expected[f"{kind}_loss"])
        if balance is not None:
            yield "balance loss", _apart(balance, expected[f"{kind}_addloss_load_balancing"])
        gradients = record / f"grads_{kind}.npz"
        if gradients.exists():
            yield "gradients", _gradients(found, leaves, batch, np.load(gradients))
        one = None if seen is None else jax.tree.map(lambda x: x[:1], seen)
        yield "decoding", _decoding(config, leaves, one, expected, kind)
        yield "greedy tokens", _greedy(found, leaves, seen, info["prompts"], info[f"{kind}_generate_tokens"])


@functools.partial(jax.jit, static_argnames="config")
def _encode(config: ModelConfig, leaves: Leaves, pixels: jax.Array) -> tuple[Features, jax.Array]:
    """Features, and the image positions (B, W, D) that the mix makes of them."""
    model = blueprint(config).bind(leaves)
    features = model.encode(pixels)
    return features, model.embedding_mix(features)


@functools.partial(jax.jit, static_argnames="config")
def _decode(config: ModelConfig, leaves: Leaves, tokens: jax.Array, features: Features | None):
    """Hidden states (B, T, D) after the last norm, and logits (B, T, V)."""
    model = blueprint(config).bind(leaves)
    hidden, _ = model.hidden(tokens, features)
    return hidden, model.decoder.logits(hidden)


@functools.partial(jax.jit, static_argnames="config")
def _loss(config: ModelConfig, leaves: Leaves, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
    """Cross-entropy, mean over the tokens learnt, and the load-balance loss."""
    losses, balance = cross_entropy(blueprint(config).bind(leaves), batch)
    return losses.sum() / batch["loss_mask"][:, 1:].sum(), balance


def _apart(ours: Any, theirs: Any) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        return np.inf
    # a NaN is greater than no bound, and would be lost among others
    return float(np.nan_to_num(np.abs(ours - theirs).max(), nan=np.inf))


def _features(
    config: ModelConfig, features: Features, expected: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, float]]:
    """Encoder by encoder, every view; the record's pictures come one view after the other."""
    views, at = config.views.views, 0
    ours = jnp.concatenate([features.overview, *([] if features.crops is None else [features.crops])], axis=1)
    for name, key, encoder in (
        ("clip features", "clip_feats", config.clip),
        ("convnext features", "convnext_out", config.convnext),
        ("dinov2 features", "dino_feats", config.dinov2),
    ):
        if encoder is None:
            continue
        theirs = jnp.asarray(expected[f"img__{key}"])
        if key == "convnext_out":
            theirs = to_grid(theirs.transpose(0, 2, 3, 1), config.grid)
        width = theirs.shape[-1]
        by_picture = einops.rearrange(theirs, "(v b) t d -> b v t d", v=views)
        yield name, _apart(ours[..., at : at + width], by_picture)
        at += width
    if features.queries is not None:
        theirs = einops.rearrange(expected["img__qformer_feats"], "(v b) t d -> b v t d", v=views)
        yield "q-former features", _apart(features.queries, theirs)


def _image_tokens(
    config: ModelConfig, mixed: jax.Array, expected: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, float]]:
    """The projected tokens of the views that are on record, between their tags."""
    at = 0
    for view in range(config.views.views):
        end = at + config.positions_of_view(view)
        if (key := f"img__image_tokens_view{view}") in expected:
            yield "image tokens", _apart(mixed[:, at + 1 : end - 1], expected[key])
        at = end


def _gradients(found: Foreign, leaves: Leaves, batch: Batch, recorded: Mapping[str, np.ndarray]) -> float:
    """The largest difference of any recorded gradient, relative to the largest value of that gradient."""
    trainable = {path: leaf for path, leaf in leaves.items() if not matches(path, FROZEN)}
    moe = found.config.decoder.moe

    def total(trainable):
        loss, balance = _loss(found.config, leaves | trainable, batch)
        return loss if balance is None else loss + moe.balance_weight * balance

    grads = jax.jit(jax.grad(total))(trainable)
    names = {f"llma.{name.foreign}": name for name in found.names}
    return max(
        _apart(grads[path][names[key].index], theirs) / float(np.abs(theirs).max())
        for key, gradient in recorded.items()
        for path, theirs in zip(names[key].leaves, names[key].ours(gradient), strict=True)
    )


def _decoding(
    config: ModelConfig, leaves: Leaves, features: Features | None, expected: Mapping[str, np.ndarray], kind: str
) -> float:
    """Logits of each step with the cache, along the record's own tokens."""
    prompt, tokens = expected[f"{kind}_gen_prompt"], expected[f"{kind}_gen_tokens"]
    visual, given = None, prompt.tolist()
    if features is not None:
        (visual, *_), read = programs.see(config, leaves, features)
        given[1:1] = [-1 - position for position in np.flatnonzero(read[0]).tolist()]
    cache, start, steps = programs.empty(config, 1, len(given) + len(tokens)), 0, []
    for step, token in enumerate(tokens):
        seen = None if visual is None or step else visual[None]
        logits, cache = _extended(config, leaves, jnp.array([given], jnp.int32), cache, jnp.array([start]), seen)
        steps.append(_apart(logits[0], expected[f"{kind}_gen_logits"][step]))
        start, given = start + len(given), [int(token)]
    return max(steps)


@functools.partial(jax.jit, static_argnames="config")
def _extended(
    config: ModelConfig, leaves: Leaves, tokens: jax.Array, cache: Cache, start: jax.Array, visual: jax.Array | None
) -> tuple[jax.Array, Cache]:
    """Logits (B, V) after the last of these tokens."""
    model = blueprint(config).bind(leaves)
    hidden, cache = model.extend(tokens, cache, start, visual)
    return model.decoder.logits(hidden[:, -1]), cache


def _greedy(found: Foreign, leaves: Leaves, features: Features | None, prompts: list[str], recorded: list) -> float:
    """Share of wrong tokens, the prompts in one batch and each alone."""
    engine = Engine(Sphinx(found.config, leaves, found.tokenizer))
    requests = [Request(prompt, max_new_tokens=max(map(len, recorded)), temperature=0.0) for prompt in prompts]
    if features is not None:
        rows = [jax.tree.map(lambda x, i=i: np.asarray(x[i]), features) for i in range(len(prompts))]
        pictures = [Picture(f"{i}", features=row) for i, row in enumerate(rows)]
        requests = [dataclasses.replace(r, image=picture) for r, picture in zip(requests, pictures, strict=True)]
    together = [said.tokens for (said,) in engine.map(requests)]
    answers = together + [said.tokens for request in requests for (said,) in engine.map([request])]
    # the reference's budget counts from the end of the shortest prompt, so longer ones have fewer tokens on record
    pairs = [
        pair
        for ours, theirs in zip(map(engine.stops.cut, answers), recorded * 2, strict=True)
        for pair in itertools.zip_longest(ours[: len(theirs)], theirs)
    ]
    return float(np.mean([ours != theirs for ours, theirs in pairs]))
