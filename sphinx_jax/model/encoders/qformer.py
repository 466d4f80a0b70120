"""BLIP-2 (Li et al. 2023): a vision tower read by a Q-Former's few learned queries."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from sphinx_jax.config import QFormerConfig, VitConfig, need
from sphinx_jax.model.encoders.vit import Mlp, SelfAttention, Vit
from sphinx_jax.model.layers import LayerNorm, param, run_stack, stack


class Layer(nnx.Module):
    """Post-norm, as BERT."""

    def __init__(self, config: QFormerConfig, vision_width: int | None, *, rngs: nnx.Rngs):
        c = config
        self.attention = SelfAttention(c.width, c.heads, rngs=rngs)
        self.attention_norm = LayerNorm(c.width, c.norm_eps)
        self.cross = SelfAttention(c.width, c.heads, context_width=vision_width, rngs=rngs) if vision_width else None
        self.cross_norm = LayerNorm(c.width, c.norm_eps) if vision_width else None
        self.mlp = Mlp(c.width, c.mlp_width, "gelu", rngs=rngs)
        self.mlp_norm = LayerNorm(c.width, c.norm_eps)

    def __call__(self, x: jax.Array, vision: jax.Array) -> jax.Array:
        x = self.attention_norm(x + self.attention(x))
        if self.cross is not None:
            x = need(self.cross_norm)(x + self.cross(x, vision))
        return self.mlp_norm(x + self.mlp(x))


class Pair(nnx.Module):
    """Two layers, of which the first looks at the picture: what the stack repeats."""

    def __init__(self, config: QFormerConfig, vision_width: int, *, rngs: nnx.Rngs):
        self.even = Layer(config, vision_width, rngs=rngs)
        self.odd = Layer(config, None, rngs=rngs)

    def __call__(self, x: jax.Array, vision: jax.Array) -> jax.Array:
        return self.odd(self.even(x, vision), vision)


class QFormer(nnx.Module):
    """(I, 1 + P, C) vision features -> (I, Q, width) query features; no final norm."""

    def __init__(self, config: QFormerConfig, vision_width: int, *, rngs: nnx.Rngs):
        c = config
        self.queries = param(rngs, (c.queries, c.width), (None, None))
        self.norm = LayerNorm(c.width, c.norm_eps)
        self.pairs = stack(lambda r: Pair(c, vision_width, rngs=r), c.layers // 2, rngs)

    def __call__(self, vision: jax.Array) -> jax.Array:
        x = self.norm(self.queries[...]).astype(vision.dtype)
        x = jnp.broadcast_to(x, (len(vision), *x.shape))
        x, _ = run_stack(self.pairs, x, lambda pair, x, _: (pair(x, vision), None))
        return x


class Blip2(nnx.Module):
    """(I, S, S, 3) views -> (I, Q, width)."""

    def __init__(self, vision: VitConfig, qformer: QFormerConfig, *, rngs: nnx.Rngs):
        self.vision = Vit(vision, rngs=rngs)
        self.qformer = QFormer(qformer, vision.width, rngs=rngs)

    def __call__(self, views: jax.Array) -> jax.Array:
        return self.qformer(self.vision(views))
