"""LLaMA2: attention, FFN, block, stack (Touvron et al. 2023)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from sphinx_jax.config import DecoderConfig
from sphinx_jax.model.attention import attend, attend_cached
from sphinx_jax.model.cache import Cache, Common, Grouping, Layer, of_layers, pinned, write
from sphinx_jax.model.layers import RMSNorm, by_rows, contract, param, run_stack, stack
from sphinx_jax.model.lora import Dims, Maps
from sphinx_jax.model.moe import Moe
from sphinx_jax.model.rope import Rotation, rotate, rotation
from sphinx_jax.sharding import constrain


class Seen(NamedTuple):
    """What a position sees: all before it, of these what `mask` (B, 1, T, T) shows, and of its own document alone."""

    mask: jax.Array | None = None
    documents: jax.Array | None = None  # (B, T) int32


BEFORE = Seen()


class Held(NamedTuple):
    """What a layer holds of the positions before, and where new ones belong."""

    keys: Layer
    values: Layer
    positions: jax.Array  # (B, T) int32, of the new ones
    common: tuple[Layer, Layer] | None = None  # the layer's keys and values of beginnings, each (P, K, C, H)
    groups: Grouping | None = None
    looped: bool = False  # whether the program goes on with what it wrote


class Attention(Maps):
    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        c = config
        embed: Dims = {"embed": c.dim}
        query: Dims = {"heads": c.heads, None: c.head_dim}
        shared: Dims = {"kv_heads": c.num_kv_heads, None: c.head_dim}
        maps = {"q": (embed, query), "k": (embed, shared), "v": (embed, shared), "o": (query, embed)}
        super().__init__(maps, c, rngs=rngs)

    def __call__(self, x: jax.Array, by: Rotation, seen: Seen = BEFORE, held: Held | None = None):
        """x (B, T, D) -> (B, T, D), and the layer's (keys, values) with them if it holds some."""
        q, k, v = (self.apply(name, x) for name in "qkv")
        q, k, v = (checkpoint_name(y, "qkv") for y in (rotate(q, by), rotate(k, by), v))
        cache = None
        if held is None:
            y = attend(q, k, v, causal=True, mask=seen.mask, documents=seen.documents)
        else:
            start = held.positions[:, 0]
            start = start if held.groups is None else start - held.groups.held
            cache = write(held.keys, k, start), write(held.values, v, start)
            cache = (pinned(cache[0]), pinned(cache[1])) if held.looped else cache
            y = attend_cached(q, *cache, held.positions, held.common, held.groups)
        return self.apply("o", checkpoint_name(y, "attended")), cache


class FeedForward(Maps):
    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        embed: Dims = {"embed": config.dim}
        ffn: Dims = {"ffn": config.ffn_dim}
        super().__init__({"gate": (embed, ffn), "up": (embed, ffn), "down": (ffn, embed)}, config, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = (checkpoint_name(self.apply(name, x), "ffn") for name in ("gate", "up"))
        return self.apply("down", jax.nn.silu(gate) * up)


class Block(nnx.Module):
    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config, rngs=rngs)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = (Moe if config.moe else FeedForward)(config, rngs=rngs)

    def __call__(self, x: jax.Array, by: Rotation, seen: Seen = BEFORE, held: Held | None = None):
        """x (B, T, D) -> (B, T, D), and the layer's cache and load-balance loss, each None where there is none."""
        y, cache = self.attention(self.attention_norm(x), by, seen, held)
        x = constrain(x + y, "batch", None, None)
        y, balance = self.ffn(self.ffn_norm(x)), None
        if isinstance(self.ffn, Moe):
            y, balance = y
        return constrain(x + y, "batch", None, None), (cache, balance)


class Decoded(NamedTuple):
    hidden: jax.Array  # (B, T, D) after the final norm
    balance: jax.Array | None  # mean load-balance loss of the layers, float32; None without experts


class Decoder(nnx.Module):
    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        self.embedding = param(rngs, (c.vocab_size, c.dim), ("vocab", "embed"))
        self.blocks = stack(lambda r: Block(c, rngs=r), c.layers, rngs)
        self.norm = RMSNorm(c.dim, c.norm_eps)
        self.output = None if c.tied_embeddings else param(rngs, (c.dim, c.vocab_size), ("embed", "vocab"))

    def embed(self, tokens: Int[Array, "B T"], dtype: DTypeLike) -> Float[Array, "B T D"]:
        """(B, T) int32 -> (B, T, D)."""
        # the embed axis is replicated first: of a gather from a table sharded in two dimensions XLA gathers the batch
        table = constrain(self.embedding[...].astype(dtype), "vocab", None)
        if tokens.size == 1:  # a GPU's compiler makes a slice of it, and gathers the table to have one
            return constrain(table[jnp.stack([tokens, tokens])][0], "batch", None, None)
        return constrain(table[tokens], "batch", None, None)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        positions: Int[Array, "#B T"] | None = None,
        seen: Seen = BEFORE,
        remat: str = "none",
    ) -> Decoded:
        """x (B, T, D) embedded positions through all layers.

        `seen` says what positions see, and `positions` (B, T) default to 0, 1, …
        """
        by = self._rotation(jnp.arange(x.shape[1])[None] if positions is None else positions)
        x = constrain(x, "batch", None, None)
        x, (_, balance) = run_stack(self.blocks, x, lambda block, x, _: block(x, by, seen), remat=remat)
        return Decoded(self.norm(x), None if balance is None else balance.mean())

    def extend(
        self,
        x: Float[Array, "B T D"],
        cache: Cache,
        start: Int[Array, " B"],
        common: Common | None = None,
        looped: bool = False,
        turned: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """x (B, T, D), what follows the first `start` (B,) positions of each row of a cache -> (B, T, D) after the
        final norm, and the cache with them: a prompt, a part of one, or a token.

        What a row holds from `start` on is written over, and positions beyond start + T are not looked at. A row's
        start + T is at most S, and what it has in `common` with others beside it. `looped`: in a loop over tokens.
        `turned`: as `places` has it.
        """
        positions, by = self.places(start, x.shape[1], turned)
        x, layers = run_stack(
            self.blocks,
            constrain(x, "batch", None, None),
            lambda block, x, held: block(x, by, held=held),
            per_layer=[
                Held(keys, values, positions, *shared, looped)
                for keys, values, shared in zip(*cache, of_layers(common, len(cache.keys)), strict=True)
            ],
        )
        return self.norm(x), Cache(*zip(*(layer for layer, _ in layers), strict=True))

    def places(
        self, start: Int[Array, " B"], length: int, turned: Int[Array, "B T"] | None = None
    ) -> tuple[Int[Array, "B T"], Rotation]:
        """Positions (B, T) from `start` (B,) on, and what turns queries and keys there.

        `turned` (B, T): by which positions they are turned, where some that lie before were left out of the cache.
        """
        positions = start[:, None] + jnp.arange(length)
        return positions, self._rotation(positions if turned is None else turned)

    def _rotation(self, positions: jax.Array) -> Rotation:
        c = self.config
        return rotation(positions, c.head_dim, c.rope_theta, c.rope_scaling, c.rope_llama3)

    def logits(self, hidden: Float[Array, "*B D"]) -> Float32[Array, "*B V"]:
        """(…, D) -> (…, V) float32."""
        if self.output is None:
            table, rows = self.embedding[...].astype(hidden.dtype), hidden.reshape(-1, hidden.shape[-1])
            return by_rows(rows, table).reshape(*hidden.shape[:-1], -1).astype(jnp.float32)
        return contract(hidden, self.output[...]).astype(jnp.float32)
