"""What runs on the device while answers are made: programs that read prompts, write tokens and move rows."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from sphinx_jax.config import ModelConfig
from sphinx_jax.generate.sampling import Rule, sample
from sphinx_jax.model.blueprint import Leaves, blueprint
from sphinx_jax.model.cache import AXES, Cache
from sphinx_jax.model.embedding_mix import Features
from sphinx_jax.sharding import constrain

NOTHING = -1  # where a row has ended: no token
STEPS = 32  # tokens a row that the device makes at most before the host looks


class Rows(NamedTuple):
    """The state of a batch beside its cache; every entry (B,), int32 unless said otherwise."""

    token: np.ndarray | jax.Array  # the last one, not in the cache yet
    position: np.ndarray | jax.Array  # where it belongs
    state: np.ndarray | jax.Array  # of the stop table
    said: np.ndarray | jax.Array  # tokens so far
    left: np.ndarray | jax.Array  # tokens that may follow; 0 where nothing is being said
    key: np.ndarray | jax.Array  # (B, 2) uint32, of each row's random numbers
    rule: Rule


def idle(rows: int) -> Rows:
    """Rows in which nothing is being said, on the host."""
    zero = functools.partial(np.zeros, rows, np.int32)
    rule = Rule(np.zeros(rows, np.float32), np.ones(rows, np.float32), zero())
    return Rows(zero(), zero(), zero(), zero(), zero(), np.zeros((rows, 2), np.uint32), rule)


def key_of(seed: int) -> np.ndarray:
    """(2,) uint32, as `Rows` holds it: `jax.random.key` of 32 bits, and all 64 of a longer seed."""
    return np.array([seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)


@functools.partial(jax.jit, static_argnames=("config", "rows", "positions"))
def empty(config: ModelConfig, rows: int, positions: int) -> Cache:
    return Cache.empty(config.decoder, rows, positions, jnp.dtype(config.dtype))


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("cache",))
def prefill(
    config: ModelConfig,
    leaves: Leaves,
    cache: Cache,
    tokens: Int32[Array, "P T"],
    start: Int32[Array, " P"],
    visual: tuple[Float[Array, "W D"], ...] | None,
) -> Cache:
    """Read tokens (P, T), pictures' positions among them (`SphinxModel.extend`), from position `start` (P,) on."""
    seen = None if visual is None else jnp.stack(visual)
    return blueprint(config).bind(leaves).extend(tokens, cache, start, seen)[1]


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("cache",))
def decode(
    config: ModelConfig,
    leaves: Leaves,
    cache: Cache,
    rows: Rows,
    table: Int32[Array, "states V"],
    steps: Int32[Array, ""],
    enough: Int32[Array, ""],
) -> tuple[Cache, Rows, Int32[Array, "B steps"], Float[Array, "B steps"]]:
    """Up to `steps` (at most `STEPS`) more tokens for every row, fewer if `enough` rows have ended or all have.

    Args:
      table: as `Stops.table` gives it.

    Returns:
      Cache and rows after them, the new tokens (B, STEPS), `NOTHING` where there is none, and their log-probabilities.
    """
    model = blueprint(config).bind(leaves)
    batch, stopped = len(rows.token), len(table) - 1
    begun = (jnp.asarray(rows.left) > 0).sum()

    def going(state):
        step, _, rows, *_ = state
        alive = (rows.left > 0).sum()
        return (step < steps) & (alive > 0) & (begun - alive < enough)

    def one(state):
        step, cache, rows, out, chances = state
        hidden, cache = model.extend(rows.token[:, None], cache, rows.position)
        logits = constrain(model.decoder.logits(hidden[:, 0]), "batch", None)
        keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(rows.key, impl="threefry2x32"), rows.said)
        new, chance = sample(logits, keys, rows.rule)
        alive = rows.left > 0
        reached = table[rows.state, new]
        rows = rows._replace(
            token=jnp.where(alive, new, rows.token),
            position=rows.position + alive,
            state=jnp.where(alive, reached, rows.state),
            said=rows.said + alive,
            left=jnp.where(alive & (reached != stopped), rows.left - 1, 0),
        )
        out = out.at[:, step].set(jnp.where(alive, new, NOTHING))
        return step + 1, cache, rows, out, chances.at[:, step].set(chance)

    rows = jax.tree.map(jnp.asarray, rows)
    nothing = jnp.full((batch, STEPS), NOTHING), jnp.zeros((batch, STEPS), jnp.float32)
    _, cache, rows, out, chances = jax.lax.while_loop(going, one, (jnp.int32(0), cache, rows, *nothing))
    # every process looks at all of them
    return cache, *jax.tree.map(lambda x: constrain(x, *(None,) * x.ndim), (rows, out, chances))


@functools.partial(jax.jit, donate_argnames=("into",))
def copy_row(into: Cache, of: Cache, row: Int32[Array, ""], to: Int32[Array, ""]) -> Cache:
    """Row `to` of one cache becomes `row` of another, as far as both have positions."""

    def one(into: jax.Array, of: jax.Array) -> jax.Array:
        held = jax.lax.dynamic_slice_in_dim(of, row, 1)[:, :, : into.shape[2]]
        return jax.lax.dynamic_update_slice(into, held, (to, 0, 0, 0))

    return jax.tree.map(one, into, of)


@functools.partial(jax.jit, static_argnames=("positions",))
def resized(cache: Cache, rows: Int32[Array, " B"], positions: int) -> Cache:
    """These rows of a cache, in this order, with room for so many positions."""

    def one(x: jax.Array) -> jax.Array:
        room = ((0, 0), (0, 0), (0, max(0, positions - x.shape[2])), (0, 0))
        return constrain(jnp.pad(x[rows, :, :positions], room), *AXES)

    return jax.tree.map(one, cache)


@functools.partial(jax.jit, static_argnames=("config",))
def see(config: ModelConfig, leaves: Leaves, features: Features) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Features of I pictures -> of each what the decoder reads (W, D), and which of it is read (I, W) bool."""
    visual, kept = blueprint(config).bind(leaves).see(features)
    return tuple(visual), constrain(kept, None, None)
