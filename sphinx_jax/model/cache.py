"""The key/value cache of generation."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from sphinx_jax.config import DecoderConfig
from sphinx_jax.sharding import constrain


class Cache(NamedTuple):
    """Keys and values of every layer, each (L, B, S, K, H), S the most positions a sequence may take."""

    keys: jax.Array
    values: jax.Array

    @classmethod
    def empty(cls, config: DecoderConfig, batch: int, positions: int, dtype: DTypeLike) -> Cache:
        shape = (config.layers, batch, positions, config.num_kv_heads, config.head_dim)
        axes = ("layers", "batch", None, "kv_heads", None)
        return cls(*(constrain(jnp.zeros(shape, dtype), *axes) for _ in cls._fields))


def write(
    cache: Float[Array, "B S K H"], new: Float[Array, "B T K H"], start: Int[Array, " B"]
) -> Float[Array, "B S K H"]:
    """Put new (B, T, K, H) into cache (B, S, K, H), each row from its own position `start` (B,)."""
    return jax.vmap(lambda row, values, at: jax.lax.dynamic_update_slice(row, values, (at, 0, 0)))(cache, new, start)
