"""Choosing the next token, each row by its own rule and its own random numbers."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, Key


class Rule(NamedTuple):
    """How a row chooses; every entry (B,)."""

    temperature: jax.Array | np.ndarray  # float32; 0 is greedy
    top_p: jax.Array | np.ndarray  # float32
    top_k: jax.Array | np.ndarray  # int32; 0 leaves all tokens


def sample(
    logits: Float32[Array, "B V"], keys: Key[Array, " B"], rule: Rule
) -> tuple[Int32[Array, " B"], Float32[Array, " B"]]:
    """logits (B, V) -> tokens (B,) and the log-probability (B,) that the model itself gives each.

    Top-p keeps the tokens whose cumulated probability before them is at most `top_p` (the reference's rule, so the
    first one always stays). A row's choice depends on nothing but its own logits, key and rule.
    """

    def greedy() -> jax.Array:
        return logits.argmax(-1).astype(jnp.int32)

    def mixed() -> jax.Array:
        return jnp.where(rule.temperature > 0, _sampled(logits, keys, rule), greedy())

    # a vocabulary is sorted for those alone who sample
    chosen = jax.lax.cond((rule.temperature > 0).any(), mixed, greedy)
    of_chosen = jnp.take_along_axis(logits, chosen[:, None], axis=-1)[:, 0]
    return chosen, of_chosen - jax.nn.logsumexp(logits, axis=-1)


def _sampled(logits: jax.Array, keys: jax.Array, rule: Rule) -> jax.Array:
    probabilities = jax.nn.softmax(logits / jnp.maximum(rule.temperature, 1e-6)[:, None])
    order = jnp.argsort(-probabilities, axis=-1)
    ranked = jnp.take_along_axis(probabilities, order, axis=-1)
    before = jnp.cumsum(ranked, axis=-1) - ranked
    most = jnp.where(rule.top_k > 0, rule.top_k, logits.shape[-1])
    kept = (before <= rule.top_p[:, None]) & (jnp.arange(logits.shape[-1]) < most[:, None])
    choice = jax.vmap(jax.random.categorical)(keys, jnp.where(kept, jnp.log(ranked), -jnp.inf))
    return jnp.take_along_axis(order, choice[:, None], axis=-1)[:, 0].astype(jnp.int32)
