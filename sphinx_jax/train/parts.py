"""Pre-training the parts: each encoder against pictures of the training split, in the spirit of its original.

* CLIP and ConvNeXt: pictures against captions (Radford et al. 2021), the class slot against the caption of its picture
  and, as in GLIP (Li et al. 2022), every patch against the phrases of grounded captions, with GLIP's localisation loss
  where a phrase covers the patch.
* DINOv2: no text; patches are masked and their pixels predicted from the rest (SimMIM, Xie et al. 2022, stands in for
  the original's masked self-distillation, which needs batches of thousands).
* BLIP-2: the vision tower as CLIP's; the Q-Former's queries against the phrases of the view and as the only thing a
  small text decoder sees of the picture when it writes the caption (image-grounded text generation, Li et al. 2023).

The text sides and prediction heads are thrown away.
"""

from __future__ import annotations

import functools
import operator
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from sphinx_jax.config import DecoderConfig, ModelConfig, need
from sphinx_jax.model.decoder import Decoder
from sphinx_jax.model.layers import LayerNorm, Linear, constant, param
from sphinx_jax.model.sphinx import Encoders
from sphinx_jax.model.views import nearest

MASKED = 0.5  # share of patches hidden from DINOv2


class PartsBatch(NamedTuple):
    pixels: jax.Array  # (B, S, S, 3) float32, CLIP-normalised
    boxes: jax.Array  # (B, K, 4) float32 x1 y1 x2 y2 in the padded square; zero where there is no phrase
    phrases: jax.Array  # (B, K) int32 number of the phrase in the table, 0 where there is none
    phrase_tokens: jax.Array  # (B, K, Lp) int32
    captions: jax.Array  # (B, Lc) int32, BOS … EOS, 0 after


class TextEncoder(nnx.Module):
    """Token lists (…, L) -> unit vectors (…, width): a residual MLP over position-aware tokens, then their mean."""

    def __init__(self, vocab: int, length: int, width: int, *, rngs: nnx.Rngs):
        self.embedding = param(rngs, (vocab, width), (None, None), 0.1)
        self.positions = param(rngs, (length, width), (None, None), 0.1)
        self.up = Linear({None: width}, {"ffn": 2 * width}, rngs=rngs)
        self.down = Linear({"ffn": 2 * width}, {None: width}, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embedding[...][tokens] + self.positions[...][: tokens.shape[-1]]
        there = (tokens > 0)[..., None]
        x = x + self.down(jax.nn.gelu(self.up(x)))
        x = (x * there).sum(-2) / jnp.maximum(there.sum(-2), 1)
        return unit(x)


class Contrast(nnx.Module):
    """Image features and texts in one space, compared by a scaled cosine (SigLIP's scale and bias)."""

    def __init__(self, width: int, space: int, *, rngs: nnx.Rngs):
        self.proj = Linear({None: width}, {"ffn": space}, rngs=rngs)
        self.scale = constant(2.3, (), ())
        self.bias = constant(-4.0, (), ())

    def __call__(self, features: jax.Array, texts: jax.Array) -> jax.Array:
        """(…, C) and (M, space) -> logits (…, M)."""
        return unit(self.proj(features)) @ texts.T * jnp.exp(self.scale[...]) + self.bias[...]


def unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)


def coverage(boxes: jax.Array, frame: jax.Array, grid: int) -> jax.Array:
    """How much of each patch of a view its picture's boxes cover.

    boxes (I, K, 4) and the view's frame (I, 4), both in the padded square -> (I, grid², K) in 0–1.
    """
    low, size = frame[:, None, :2], frame[:, None, 2:] - frame[:, None, :2]
    start, end = (boxes[..., :2] - low) / size * grid, (boxes[..., 2:] - low) / size * grid  # in patches
    cell = jnp.arange(grid, dtype=jnp.float32)
    overlap = jnp.clip(jnp.minimum(end[..., None], cell + 1) - jnp.maximum(start[..., None], cell), 0)  # (I, K, 2, G)
    return einops.rearrange(overlap[:, :, 1, :, None] * overlap[:, :, 0, None, :], "i k r c -> i (r c) k")


class Parts(nnx.Module):
    """The encoders and the heads they are trained with."""

    def __init__(
        self, config: ModelConfig, phrase_length: int, caption_length: int, *, space: int = 64, rngs: nnx.Rngs
    ):
        self.config = c = config
        vocab = c.decoder.vocab_size
        self.encoders = Encoders(c, rngs=rngs)
        self.phrases = TextEncoder(vocab, phrase_length, space, rngs=rngs)
        self.captions = TextEncoder(vocab, caption_length, space, rngs=rngs)
        qformer, dinov2 = need(c.qformer), need(c.dinov2)
        widths = {"clip": need(c.clip).width, "convnext": need(c.convnext).dims[-1], "blip2": need(c.blip2).width}
        self.patch_heads = nnx.Dict({k: Contrast(w, space, rngs=rngs) for k, w in widths.items()})
        self.class_heads = nnx.Dict({k: Contrast(w, space, rngs=rngs) for k, w in widths.items()})
        self.box_heads = nnx.Dict({k: Linear({None: w}, {None: 4}, rngs=rngs) for k, w in widths.items()})
        self.query_head = Contrast(qformer.width * qformer.queries, space, rngs=rngs)
        self.mask_token = param(rngs, (dinov2.width,), (None,))
        self.pixels = Linear({None: dinov2.width}, {"ffn": 3 * dinov2.patch**2}, rngs=rngs)
        width = qformer.width
        self.prefix_norm = LayerNorm(width, 1e-5)
        self.writer = Decoder(
            DecoderConfig(width, 2, 2, vocab_size=vocab, multiple_of=32, tied_embeddings=True), rngs=rngs
        )

    def __call__(self, batch: PartsBatch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The sum of all losses, and each of them."""
        c = self.config
        size = need(c.clip).view_size
        crop_key, mask_key = jax.random.split(key)
        views, frames = two_views(self.encoders, batch.pixels, size, crop_key, need(c.views).crops)
        count = len(batch.pixels)
        boxes, phrases = (jnp.concatenate([x, x]) for x in (batch.boxes, batch.phrases))
        covered = coverage(boxes, frames, c.grid)  # (I, P, K)
        visible = covered.sum(1) / c.grid**2 * jnp.square(frames[:, 2] - frames[:, 0])[:, None]
        area = jnp.prod(boxes[..., 2:] - boxes[..., :2], axis=-1)
        there = (phrases > 0) & (visible > 0.5 * area)  # (I, K) a thing counts where half of it is in the view
        names = batch.phrases.ravel()
        same = (phrases[:, :, None] == names) & (phrases > 0)[:, :, None]  # (I, K, M)
        patch_target = jnp.clip(jnp.einsum("ipk,ikm->ipm", covered, same.astype(jnp.float32)), 0, 1)
        view_target = (same & there[:, :, None]).any(1).astype(jnp.float32)
        real = (names > 0).astype(jnp.float32)
        texts = self.phrases(einops.rearrange(batch.phrase_tokens, "b k l -> (b k) l"))
        captions = self.captions(batch.captions)
        best = covered.argmax(-1)[..., None]  # (I, P, 1) the thing that each patch shows most of
        shown = jnp.take_along_axis(covered, best, axis=-1) > 0.3
        local = jnp.clip(
            (boxes - jnp.tile(frames[:, None, :2], 2)) / (frames[:, None, 2:3] - frames[:, None, :1]), 0, 1
        )
        box_target = jnp.take_along_axis(local, best, axis=1)  # (I, P, 4) in the view's own frame
        losses = {}

        def against_text(name: str, tokens: jax.Array) -> None:
            """(I, 1 + P, C) class slot and patches."""
            patch_logits, view_logits = (
                self.patch_heads[name](tokens[:, 1:], texts),
                self.class_heads[name](tokens[:, 0], texts),
            )
            losses[f"{name}/patches"] = 20 * _bce(patch_logits, patch_target, real)
            losses[f"{name}/phrases"] = 5 * _bce(view_logits, view_target, real)
            scores = self.class_heads[name](tokens[:count, 0], captions)
            losses[f"{name}/captions"] = 0.2 * _info_nce(scores)
            error = jnp.abs(self.box_heads[name](tokens[:, 1:]) - box_target).mean(-1, keepdims=True)
            losses[f"{name}/boxes"] = 4 * (error * shown).sum() / jnp.maximum(shown.sum(), 1)

        against_text("clip", need(self.encoders.clip)(views))
        maps = need(self.encoders.convnext)(nearest(views, need(c.convnext).input_size))
        cells = einops.rearrange(maps, "i h w c -> i (h w) c")
        against_text("convnext", jnp.concatenate([cells.mean(1, keepdims=True), cells], axis=1))
        blip2 = need(self.encoders.blip2)
        seen = blip2.vision(views)
        against_text("blip2", seen)
        queries = blip2.qformer(seen)
        losses["qformer/phrases"] = 5 * _bce(
            self.query_head(queries.reshape(len(queries), -1), texts), view_target, real
        )
        losses["qformer/writes"] = self.write(queries[:count], batch.captions)
        losses["dinov2/masked"] = 2 * self.masked(views, mask_key)
        return functools.reduce(operator.add, losses.values()), losses

    def write(self, queries: jax.Array, captions: jax.Array) -> jax.Array:
        """Cross-entropy of captions (B, L) of which the writer sees the queries (B, Q, C) alone."""
        prefix = self.prefix_norm(queries)
        x = jnp.concatenate([prefix, self.writer.embed(captions[:, :-1], prefix.dtype)], axis=1)
        hidden = self.writer(x).hidden
        logits = self.writer.logits(hidden[:, prefix.shape[1] :])
        labels = captions[:, 1:]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.where(labels > 0, losses, 0).sum() / jnp.maximum((labels > 0).sum(), 1)

    def masked(self, views: jax.Array, key: jax.Array) -> jax.Array:
        """Mean absolute error of the pixels of the hidden patches, each patch normalised by its own deviation."""
        vit = need(self.encoders.dinov2)
        tokens = vit.embed(views)
        hidden = jax.random.bernoulli(key, MASKED, (len(views), tokens.shape[1] - 1, 1))
        with_mask = jnp.where(hidden, self.mask_token[...] + vit.positions()[1:], tokens[:, 1:])
        out = vit.encode(jnp.concatenate([tokens[:, :1], with_mask], axis=1))
        p = vit.config.patch
        target = einops.rearrange(views, "i (r p) (s q) d -> i (r s) (p q d)", p=p, q=p)
        error = jnp.abs(self.pixels(out[:, 1:]) - target).mean(-1, keepdims=True)
        return (error * hidden).sum() / jnp.maximum(hidden.sum(), 1)


def two_views(
    encoders: Encoders, pixels: jax.Array, size: int, key: jax.Array, crops: int
) -> tuple[jax.Array, jax.Array]:
    """The overview and one random crop of each picture, (2B, size, size, 3), and their frames (2B, 4)."""
    views = einops.rearrange(encoders.views(pixels, size), "(b v) h w d -> b v h w d", b=len(pixels))
    which = jax.random.randint(key, (len(pixels),), 0, crops**2)
    chosen = jnp.take_along_axis(views, (1 + which)[:, None, None, None, None], axis=1)[:, 0]
    corner = jnp.stack([which % crops, which // crops], axis=1) / crops
    whole = jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0, 1.0]), (len(pixels), 4))
    frames = jnp.concatenate([whole, jnp.concatenate([corner, corner + 1 / crops], axis=1)])
    return jnp.concatenate([views[:, 0], chosen]), frames


def _bce(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean over texts that exist (weights (M,)) of the sigmoid loss of (…, M)."""
    losses = optax.sigmoid_binary_cross_entropy(logits, targets)
    return (losses * weights).sum() / (weights.sum() * np.prod(logits.shape[:-1]))


def _info_nce(scores: jax.Array) -> jax.Array:
    """Symmetric cross-entropy of (B, B) scores, matches on the diagonal."""
    index = jnp.arange(len(scores))
    forward = optax.softmax_cross_entropy_with_integer_labels(scores, index)
    backward = optax.softmax_cross_entropy_with_integer_labels(scores.T, index)
    return (forward.mean() + backward.mean()) / 2
