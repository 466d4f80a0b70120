"""Attention, one function for every part of the model."""

from __future__ import annotations

import einops
import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a row that sees nothing gives numbers and not NaN


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool = False, mask: jax.Array | None = None
) -> jax.Array:
    """Softmax(q·kᵀ/√H)·v with grouped key/value heads; the softmax runs in float32.

    q (B, T, N, H); k, v (B, S, K, H) with N a multiple of K; mask broadcasts to (B, 1, T, S), True where a key is seen.
    Returns (B, T, N, H).
    """
    if jax.default_backend() == "cpu":
        return _attend_matrices(q, k, v, causal, mask)
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation="xla")


def _attend_matrices(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool, mask: jax.Array | None) -> jax.Array:
    """The same as plain matrix products, which XLA's CPU backend differentiates in two thirds of the time."""
    batch, length, heads, width = q.shape
    shared = heads // k.shape[2]
    q = einops.rearrange(q, "b t (k g) h -> (b k) (g t) h", g=shared)
    k, v = (einops.rearrange(x, "b s k h -> (b k) s h") for x in (k, v))
    scores = jnp.einsum("bth,bsh->bts", q * width**-0.5, k).astype(jnp.float32)
    if causal:
        mask = jnp.tril(jnp.ones((length, k.shape[1]), bool))[None, None]
    if mask is not None:
        bias = jnp.where(mask, 0.0, MASKED)  # (B | 1, 1, T, S)
        bias = jnp.broadcast_to(bias, (batch, heads // shared, length, k.shape[1])).reshape(-1, 1, length, k.shape[1])
        grouped = scores.reshape(-1, shared, length, k.shape[1])
        scores = (grouped + bias).reshape(scores.shape)
    exponents = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    out = jnp.einsum("bts,bsh->bth", exponents.astype(v.dtype), v) / exponents.sum(-1, keepdims=True).astype(v.dtype)
    return einops.rearrange(out, "(b k) (g t) h -> b t (k g) h", b=batch, g=shared)
