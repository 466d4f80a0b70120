"""The mix of visual embeddings: encoders that differ in architecture, pre-training and granularity, as one sequence.

Patch encoders are concatenated by channel and projected; the Q-Former's queries are projected on their own; the two are
concatenated along the sequence between the tags of the view (paper, section 3.3).
"""

from __future__ import annotations

from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Num

from sphinx_jax.config import ModelConfig, need
from sphinx_jax.model.layers import LayerNorm, Linear, param


class Features(NamedTuple):
    """What the frozen encoders say about a batch of pictures, all that the mix needs to know of them."""

    overview: jax.Array  # (B, 1, 1 + P, C) class slot and patches, channels of all patch encoders
    crops: jax.Array | None = None  # (B, crops, 1 + P', C)
    queries: jax.Array | None = None  # (B, views, Q, width of the Q-Former)
    padding: jax.Array | None = None  # (B, views) 1 where a view is padding alone, if such views are skipped


def feature_shapes(config: ModelConfig) -> dict[str, tuple[int, ...] | None]:
    """The shapes of one picture's features, without the axis of the batch; None for what the model has none of."""
    views, channels = need(config.views), config.mixed_channels
    overview, crops = (1 + (config.grid // pool) ** 2 for pool in (config.pool_overview, config.pool_crops))
    return {
        "overview": (1, overview, channels),
        "crops": (views.crops**2, crops, channels) if views.crops else None,
        "queries": (views.views, config.qformer.queries, config.qformer.width) if config.qformer else None,
        "padding": (views.views,) if views.skip_padded else None,
    }


class Projection(nnx.Module):
    """Linear + LayerNorm(1e-5) into the decoder's width."""

    def __init__(self, channels: int, dim: int, *, rngs: nnx.Rngs):
        self.linear = Linear({"channels": channels}, {"embed": dim}, rngs=rngs)
        self.norm = LayerNorm(dim, 1e-5)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.linear(x))


class Tags(nnx.Module):
    """The learned start and end of a view, one pair for all views, and what stands for a skipped one."""

    def __init__(self, dim: int, skip: bool, *, rngs: nnx.Rngs):
        self.start = param(rngs, (dim,), ("embed",))
        self.end = param(rngs, (dim,), ("embed",))
        self.skip = param(rngs, (dim,), ("embed",)) if skip else None


def to_grid(patches: Float[Array, "I G G C"], grid: int) -> Float[Array, "I {1+grid**2} C"]:
    """(I, G, G, C) map -> (I, 1 + grid², C): each cell repeated to the grid, its mean in the class slot (ConvNeXt)."""
    repeat = grid // patches.shape[1]
    mean = patches.mean((1, 2))[:, None]
    cells = einops.repeat(patches, "i h w c -> i (h r) (w s) c", r=repeat, s=repeat)
    return jnp.concatenate([mean, einops.rearrange(cells, "i h w c -> i (h w) c")], axis=1)


def pool_patches(tokens: Float[Array, "*B P C"], pool: int) -> Float[Array, "*B pooled C"]:
    """(…, 1 + P, C) -> (…, 1 + P / pool², C): squares of patches averaged, the class slot kept (`llama_ens5p2`)."""
    if pool == 1:
        return tokens
    first, patches = tokens[..., :1, :], tokens[..., 1:, :]
    side = round(patches.shape[-2] ** 0.5)
    patches = einops.reduce(
        patches, "... (h p w q) c -> ... (h w) c", "mean", h=side // pool, w=side // pool, p=pool, q=pool
    )
    return jnp.concatenate([first, patches], axis=-2)


class EmbeddingMix(nnx.Module):
    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        dim = config.decoder.dim
        self.visual_proj = Projection(config.mixed_channels, dim, rngs=rngs)
        self.qformer_proj = Projection(config.qformer.width, dim, rngs=rngs) if config.qformer else None
        self.tags = Tags(dim, need(config.views).skip_padded, rngs=rngs)

    def __call__(self, features: Features) -> Float[Array, "B W D"]:
        """Features of a batch -> (B, image positions, D), overview first.

        A skipped view has the skip token at its first position; `kept` says which of the others are to go.
        """
        overview, crops, queries, padding = features
        parts = [self.view(overview, None if queries is None else queries[:, :1])]
        if crops is not None:
            parts.append(self.view(crops, None if queries is None else queries[:, 1:]))
        mixed = jnp.concatenate(parts, axis=1)
        if padding is None:
            return mixed
        hidden = jnp.repeat(padding > 0, self.widths, axis=1, total_repeat_length=mixed.shape[1])
        return jnp.where(hidden[..., None], need(self.tags.skip)[...].astype(mixed.dtype), mixed)

    @property
    def widths(self) -> np.ndarray:
        """Positions of each view."""
        return np.array([self.config.positions_of_view(view) for view in range(need(self.config.views).views)])

    def kept(self, padding: Num[Array, "B V"]) -> Bool[Array, "B W"]:
        """(B, views) -> (B, image positions) bool: of a skipped view the first position alone."""
        first = np.zeros(self.widths.sum(), bool)
        first[np.cumsum(self.widths) - self.widths] = True
        return jnp.asarray(first) | ~jnp.repeat(padding > 0, self.widths, axis=1, total_repeat_length=len(first))

    def view(self, patches: jax.Array, queries: jax.Array | None) -> jax.Array:
        """Views of one size, (B, v, 1 + P, C) and (B, v, Q, width) -> (B, their positions, D)."""
        mixed = self.visual_proj(patches)
        if self.qformer_proj is not None:
            mixed = jnp.concatenate([self.qformer_proj(need(queries)), mixed], axis=2)
        tags = (tag[...].astype(mixed.dtype) for tag in (self.tags.start, self.tags.end))
        start, end = (jnp.broadcast_to(tag, (*mixed.shape[:2], 1, mixed.shape[-1])) for tag in tags)
        mixed = jnp.concatenate([start, mixed, end], axis=2)
        return einops.rearrange(mixed, "b v t d -> b (v t) d")
