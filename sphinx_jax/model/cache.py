"""Keys and values of the positions before, a row for each sequence that is being continued."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from sphinx_jax.config import DecoderConfig
from sphinx_jax.sharding import constrain

AXES = ("batch", "kv_heads", None, None)


class Cache(NamedTuple):
    """Arrays (B, K, S, H), one a layer, S the most positions that a sequence may take.

    Layers lie apart, so that each is written in place; heads come before positions, so that the products of
    attention read them as they lie.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]

    @classmethod
    def empty(cls, config: DecoderConfig, batch: int, positions: int, dtype: DTypeLike) -> Cache:
        shape = (batch, config.num_kv_heads, positions, config.head_dim)
        return cls(*(tuple(constrain(jnp.zeros(shape, dtype), *AXES) for _ in range(config.layers)) for _ in range(2)))

    @property
    def rows(self) -> int:
        return len(self.keys[0])

    @property
    def positions(self) -> int:
        return self.keys[0].shape[2]


def write(
    cache: Float[Array, "B K S H"], new: Float[Array, "B T K H"], start: Int[Array, " B"]
) -> Float[Array, "B K S H"]:
    """Put new (B, T, K, H) into cache (B, K, S, H), each row from its own position `start` (B,)."""
    new = new.swapaxes(1, 2)
    return jax.vmap(lambda row, values, at: jax.lax.dynamic_update_slice(row, values, (0, at, 0)))(cache, new, start)
