"""Choosing the next token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32, Key


def sample(
    logits: Float32[Array, "B V"], key: Key[Array, ""], temperature: Float[Array, ""], top_p: Float[Array, ""]
) -> Int32[Array, " B"]:
    """logits (B, V) -> (B,) int32.  Temperature 0 is greedy.

    Top-p keeps the tokens whose cumulated probability before them is at most `top_p` (the reference's rule, so the
    first one always stays).
    """

    def greedy() -> jax.Array:
        return logits.argmax(-1).astype(jnp.int32)

    # a vocabulary is sorted for those alone who sample
    return jax.lax.cond(temperature > 0, lambda: _sampled(logits, key, temperature, top_p), greedy)


def _sampled(logits: jax.Array, key: jax.Array, temperature: jax.Array, top_p: jax.Array) -> jax.Array:
    probabilities = jax.nn.softmax(logits / jnp.maximum(temperature, 1e-6))
    order = jnp.argsort(-probabilities, axis=-1)
    ranked = jnp.take_along_axis(probabilities, order, axis=-1)
    before = jnp.cumsum(ranked, axis=-1) - ranked
    kept = jnp.where(before <= top_p, ranked, 0)
    choice = jax.random.categorical(key, jnp.log(kept), axis=-1)
    return jnp.take_along_axis(order, choice[:, None], axis=-1)[:, 0].astype(jnp.int32)
