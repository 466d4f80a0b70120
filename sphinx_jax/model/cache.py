"""Keys and values of the positions before: a row for each sequence that is being continued, and beginnings that
several of them have in common, held once."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from sphinx_jax.config import DecoderConfig
from sphinx_jax.sharding import constrain, platform

AXES = ("batch", "kv_heads", None, None)
COMMON_AXES = (None, "kv_heads", None, None)  # any row may have any of the beginnings


class Cache(NamedTuple):
    """Arrays (B, K, S, H), one a layer, S the most positions that a sequence may take.

    Layers lie apart, so that each is written in place; heads come before positions, so that the products of
    attention read them as they lie.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]

    @classmethod
    def empty(
        cls,
        config: DecoderConfig,
        batch: int,
        positions: int,
        dtype: DTypeLike,
        axes: tuple[str | None, ...] = AXES,
    ) -> Cache:
        shape = (batch, config.num_kv_heads, positions, config.head_dim)
        return cls(*(tuple(constrain(jnp.zeros(shape, dtype), *axes) for _ in range(config.layers)) for _ in range(2)))

    @property
    def rows(self) -> int:
        return len(self.keys[0])

    @property
    def positions(self) -> int:
        return self.keys[0].shape[2]


class Grouping(NamedTuple):
    """Which rows (B) have which beginning in common, in up to G groups of up to R; int32."""

    held: Any  # (B,) positions of each row that are its beginning's, and not in its own row
    rows: Any  # (G, R) of each group; B where there is none
    beginning: Any  # (G,) of each group
    count: Any  # () groups


class Common(NamedTuple):
    """Beginnings of sequences (P, K, C, H), and who has them."""

    cache: Cache
    groups: Grouping


def of_layers(common: Common | None, layers: int) -> list[tuple[Any, Grouping | None]]:
    """Of each layer its keys and values of beginnings, and who has them."""
    if common is None:
        return [(None, None)] * layers
    return [(layer, common.groups) for layer in zip(*common.cache, strict=True)]


def write(
    cache: Float[Array, "B K S H"], new: Float[Array, "B T K H"], start: Int[Array, " B"]
) -> Float[Array, "B K S H"]:
    """Put new (B, T, K, H) into cache (B, K, S, H), each row from its own position `start` (B,)."""
    new = new.swapaxes(1, 2)
    put = jax.vmap(lambda row, values, at: jax.lax.dynamic_update_slice(row, values, (0, at, 0)))
    return put(cache, new, start)


def pinned(written: Float[Array, "B K S H"]) -> Float[Array, "B K S H"]:
    """A layer's cache as it lies, in a loop over tokens.

    For a single row a TPU's compiler would have a second one there, in another layout and padded. Outside of a loop JAX
    refuses to give an array that was taken over another layout than none.
    """
    return with_layout_constraint(written, Layout((0, 1, 2, 3))) if platform() == "tpu" else written
