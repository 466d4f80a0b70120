"""The vision transformer behind CLIP, DINOv2 and the BLIP-2 tower."""

from __future__ import annotations

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from sphinx_jax.config import VitConfig
from sphinx_jax.model.attention import attend
from sphinx_jax.model.layers import ACTIVATIONS, LayerNorm, Linear, constant, contract, param, run_stack, stack
from sphinx_jax.model.views import cubic_taps, interpolate

# DINOv2 resizes its position grid by scale factor (grid + 0.1) / stored grid: its `interpolate_offset`.
INTERPOLATE_OFFSET = 0.1


class SelfAttention(nnx.Module):
    """Attention of an encoder: queries from x, keys and values from `context` (x itself by default)."""

    def __init__(self, width: int, heads: int, *, context_width: int | None = None, rngs: nnx.Rngs):
        heads_out = {"heads": heads, None: width // heads}
        context = {"channels": context_width or width}
        self.q = Linear({"channels": width}, heads_out, rngs=rngs)
        self.k = Linear(context, heads_out, rngs=rngs)
        self.v = Linear(context, heads_out, rngs=rngs)
        self.o = Linear(heads_out, {"channels": width}, rngs=rngs)

    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        context = x if context is None else context
        return self.o(attend(self.q(x), self.k(context), self.v(context)))


class Mlp(nnx.Module):
    def __init__(self, width: int, hidden: int, activation: str, *, rngs: nnx.Rngs):
        self.activation = activation
        wide, narrow = {"ffn": hidden}, {"channels": width}
        self.gate = Linear(narrow, wide, rngs=rngs) if activation == "swiglu" else None
        self.up = Linear(narrow, wide, rngs=rngs)
        self.down = Linear(wide, narrow, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.gate is not None:
            return self.down(jax.nn.silu(self.gate(x)) * self.up(x))
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class Block(nnx.Module):
    def __init__(self, config: VitConfig, *, rngs: nnx.Rngs):
        c = config
        self.attention_norm = LayerNorm(c.width, c.norm_eps)
        self.attention = SelfAttention(c.width, c.heads, rngs=rngs)
        self.mlp_norm = LayerNorm(c.width, c.norm_eps)
        self.mlp = Mlp(c.width, c.mlp_width, c.activation, rngs=rngs)
        self.attention_scale = constant(1.0, (c.width,), (None,)) if c.layer_scale else None
        self.mlp_scale = constant(1.0, (c.width,), (None,)) if c.layer_scale else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.attention(self.attention_norm(x))
        x = x + (y if self.attention_scale is None else y * self.attention_scale[...].astype(y.dtype))
        y = self.mlp(self.mlp_norm(x))
        return x + (y if self.mlp_scale is None else y * self.mlp_scale[...].astype(y.dtype))


class PatchEmbedding(nnx.Module):
    """A strided convolution written as the matmul it is.  (I, S, S, 3) -> (I, P, C)."""

    def __init__(self, config: VitConfig, *, rngs: nnx.Rngs):
        p = config.patch
        self.size = p
        self.kernel = param(rngs, (p, p, 3, config.width), (None, None, None, "channels"), (3 * p * p) ** -0.5)
        self.bias = constant(0.0, (config.width,), ("channels",)) if config.patch_bias else None

    def __call__(self, views: jax.Array) -> jax.Array:
        patches = einops.rearrange(views, "i (r p) (s q) d -> i (r s) (p q d)", p=self.size, q=self.size)
        kernel = self.kernel[...]
        out = contract(patches, kernel.reshape(-1, kernel.shape[-1]))
        return out if self.bias is None else out + self.bias[...].astype(views.dtype)


class Vit(nnx.Module):
    """(I, S, S, 3) views -> (I, 1 + P, C): the class token and the patches, row by row, after the final norm."""

    def __init__(self, config: VitConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        self.patch = PatchEmbedding(c, rngs=rngs)
        self.class_embedding = param(rngs, (c.width,), (None,))
        grid = c.position_grid or c.grid
        self.position_embedding = param(rngs, (1 + grid**2, c.width), (None, None))
        self.norm_before = LayerNorm(c.width, c.norm_eps) if c.norm_before else None
        self.blocks = stack(lambda r: Block(c, rngs=r), c.layers, rngs)
        self.norm = LayerNorm(c.width, c.norm_eps)

    def positions(self) -> jax.Array:
        """(1 + P, C) position embedding; a stored grid of another size is resized bicubically, the class slot kept."""
        stored = self.position_embedding[...].astype(jnp.float32)
        config = self.config
        if config.position_grid in (None, config.grid):
            return stored
        scale = config.position_grid / (config.grid + INTERPOLATE_OFFSET)
        taps = cubic_taps(config.grid, config.position_grid, scale)
        grid = interpolate(einops.rearrange(stored[1:], "(h w) c -> h w c", h=config.position_grid), taps)
        return jnp.concatenate([stored[:1], einops.rearrange(grid, "h w c -> (h w) c")])

    def embed(self, views: jax.Array) -> jax.Array:
        """(I, S, S, 3) -> (I, 1 + P, C): patches and class token with their positions."""
        patches = self.patch(views)
        first = jnp.broadcast_to(self.class_embedding[...].astype(patches.dtype), (len(views), 1, patches.shape[-1]))
        return jnp.concatenate([first, patches], axis=1) + self.positions().astype(patches.dtype)

    def encode(self, x: jax.Array) -> jax.Array:
        """(I, 1 + P, C) embedded tokens -> (I, 1 + P, C) features."""
        if self.norm_before is not None:
            x = self.norm_before(x)
        x, _ = run_stack(self.blocks, x, lambda block, x, _: (block(x), None))
        return self.norm(x)

    def __call__(self, views: jax.Array) -> jax.Array:
        return self.encode(self.embed(views))
