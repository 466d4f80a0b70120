"""Keys and values of the positions before: a row for each sequence that is being continued, and beginnings that
several of them have in common, held once."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int, Int8

from sphinx_jax.config import DecoderConfig
from sphinx_jax.sharding import constrain, partition_spec, platform

AXES = ("batch", "kv_heads", None, None)
COMMON_AXES = (None, "kv_heads", None, None)  # any row may have any of the beginnings


class Rounded(NamedTuple):
    """Vectors in 8 bits, each with its scale."""

    steps: Int8[Array, "B K S H"]
    scale: Float32[Array, "B K S"]


Layer = Float[Array, "B K S H"] | Rounded  # keys or values of one


class Cache(NamedTuple):
    """Arrays (B, K, S, H), one a layer, or `Rounded`; S the most positions that a sequence may take.

    Layers lie apart, so that each is written in place; heads come before positions, so that the products of
    attention read them as they lie.  On a mesh there may be copies of a head (`heads_held`).
    """

    keys: tuple[Layer, ...]
    values: tuple[Layer, ...]

    @classmethod
    def empty(
        cls,
        config: DecoderConfig,
        batch: int,
        positions: int,
        dtype: DTypeLike,
        axes: tuple[str | None, ...] = AXES,
    ) -> Cache:
        shape = (batch, heads_held(config), positions, config.head_dim)

        def layer() -> Layer:
            if config.cache != "int8":
                return constrain(jnp.zeros(shape, dtype), *axes)
            steps, scale = jnp.zeros(shape, jnp.int8), jnp.zeros(shape[:3], jnp.float32)
            return Rounded(constrain(steps, *axes), constrain(scale, *axes[:3]))

        return cls(*(tuple(layer() for _ in range(config.layers)) for _ in range(2)))

    @property
    def rows(self) -> int:
        return len(jax.tree.leaves(self)[0])

    @property
    def positions(self) -> int:
        return jax.tree.leaves(self)[0].shape[2]


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
    cache: Float[Array, "B held S H"] | Rounded, new: Float[Array, "B T K H"], start: Int[Array, " B"]
) -> Float[Array, "B held S H"] | Rounded:
    """Put new (B, T, K, H) into cache (B, `heads_held`, S, H), each row from its own position `start`
    (B,); of heads that are held several times copies follow each other.
    """
    heads = jax.tree.leaves(cache)[0].shape[1]
    new = constrain(jnp.repeat(new.swapaxes(1, 2), heads // new.shape[2], axis=1), *AXES)

    def put(row: jax.Array, values: jax.Array, at: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(row, values, (0, at, 0)[: row.ndim])

    into = rounded(new) if isinstance(cache, Rounded) else new
    return jax.tree.map(lambda cache, new: jax.vmap(put)(cache, new, start), cache, into)


def rounded(x: Float[Array, "B K S H"]) -> Rounded:
    """Each vector (H,) in steps of a 127th of its largest number."""
    x = x.astype(jnp.float32)
    largest = jnp.abs(x).max(-1)
    scale = jnp.where(largest > 0, largest, 1) / 127
    return Rounded(jnp.round(x / scale[..., None]).astype(jnp.int8), scale)


def heads_held(config: DecoderConfig) -> int:
    """Key/value heads of a cache: where a mesh has more devices along `tensor`, each has a copy of the one it needs."""
    devices = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
    shared_out = devices % config.num_kv_heads == config.heads % devices == 0
    return max(config.num_kv_heads, devices) if shared_out else config.num_kv_heads


def pinned(written: Layer) -> Layer:
    """A layer's cache as it lies, in a loop over tokens.

    For a single row a TPU's compiler would have a second one there, in another layout and padded. Outside of a loop JAX
    refuses to give an array that was taken over another layout than none.
    """
    if platform() != "tpu":
        return written
    mesh = jax.sharding.get_abstract_mesh()

    def pin(x: jax.Array) -> jax.Array:
        return with_layout_constraint(x, Layout(tuple(range(x.ndim))))

    def on_shards(x: jax.Array) -> jax.Array:
        if mesh.empty or mesh.size == 1:
            return pin(x)
        # of all of it at once XLA would gather the shards first
        spec = partition_spec(AXES[: x.ndim], x.shape, mesh)
        return jax.shard_map(pin, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(x)

    return jax.tree.map(on_shards, written)
