"""Attention, one function for every part of the model."""

from __future__ import annotations

import jax


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool = False, mask: jax.Array | None = None
) -> jax.Array:
    """Softmax(q·kᵀ/√H)·v with grouped key/value heads; the softmax runs in float32.

    q (B, T, N, H); k, v (B, S, K, H) with N a multiple of K; mask broadcasts to (B, 1, T, S), True where a key is seen.
    Returns (B, T, N, H).
    """
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation="xla")
