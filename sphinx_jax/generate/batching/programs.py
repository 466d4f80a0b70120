"""What runs on the device while answers are made: programs that read prompts, write tokens and move rows."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from sphinx_jax.config import ModelConfig
from sphinx_jax.generate.batching.sampling import Rule, sample
from sphinx_jax.model.blueprint import Leaves, blueprint, layer_blueprint, layer_leaves
from sphinx_jax.model.cache import AXES, Cache, Common, Grouping, of_layers
from sphinx_jax.model.decoder import Held
from sphinx_jax.model.embedding_mix import Features
from sphinx_jax.model.layers import Axes, ready
from sphinx_jax.model.rope import Rotation
from sphinx_jax.sharding import constrain

NOTHING = -1  # where a row has ended: no token
JUDGED = 16  # positions of each prompt whose logits are there at once
OTHERS = 16  # of the likeliest tokens that one was chosen among
STEPS = 32  # tokens a row that the device makes at most before the host looks


class Rows(NamedTuple):
    """The state of a batch beside its cache; every entry (B,), int32 unless said otherwise."""

    token: np.ndarray | jax.Array  # the last one, not in the cache yet
    position: np.ndarray | jax.Array  # where it belongs
    left_out: np.ndarray | jax.Array  # positions before it that are counted, and not in the cache
    state: np.ndarray | jax.Array  # of the stop table
    said: np.ndarray | jax.Array  # tokens so far
    left: np.ndarray | jax.Array  # tokens that may follow; 0 where nothing is being said
    key: np.ndarray | jax.Array  # (B, 2) uint32, of each row's random numbers
    rule: Rule


def idle(rows: int) -> Rows:
    """Rows in which nothing is being said, on the host."""
    zero = functools.partial(np.zeros, rows, np.int32)
    rule = Rule(np.zeros(rows, np.float32), np.ones(rows, np.float32), zero())
    return Rows(zero(), zero(), zero(), zero(), zero(), zero(), np.zeros((rows, 2), np.uint32), rule)


class Chosen(NamedTuple):
    """Tokens that P rows go on with."""

    tokens: jax.Array  # (P,) int32; `NOTHING` where a row has ended
    chances: jax.Array  # (P,) float32, log-probabilities
    # (P, K) the likeliest, up to OTHERS, in order, and theirs, where tokens are chosen among some
    others: tuple[jax.Array, jax.Array] | None = None


class Piece(NamedTuple):
    """What is read at once of each of P prompts, as `prefill` takes it."""

    tokens: np.ndarray  # (P, T) int32
    start: np.ndarray  # (P,) int32
    turned: np.ndarray  # (P, T) int32


def nothing_read(rows: int, length: int) -> Piece:
    zeros = functools.partial(np.zeros, dtype=np.int32)
    return Piece(zeros((rows, length)), zeros(rows), zeros((rows, length)))


def key_of(seed: int) -> np.ndarray:
    """(2,) uint32, as `Rows` holds it: `jax.random.key` of 32 bits, and all 64 of a longer seed."""
    return np.array([seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)


@functools.partial(jax.jit, static_argnames=("config", "rows", "positions", "axes"))
def empty(config: ModelConfig, rows: int, positions: int, axes: Axes = AXES) -> Cache:
    return Cache.empty(config.decoder, rows, positions, jnp.dtype(config.dtype), axes)


def prefill(
    config: ModelConfig,
    leaves: Leaves,
    cache: Cache,
    tokens: Int32[np.ndarray, "P T"],
    start: Int32[np.ndarray, " P"],
    turned: Int32[np.ndarray, "P T"],
    visual: tuple[Float[Array, "W D"], ...] | None,
    common: Common | None = None,
) -> tuple[Cache, Float[Array, "P T D"]]:
    """Read tokens (P, T), pictures' positions among them (`SphinxModel.extend`), from position `start` (P,) on, turned
    as if they stood at `turned` (P, T).

    Of the positions before, `common` may hold some. Takes the cache over. Returns it with the new ones, and what the
    last layer makes of them (P, T, D).

    One program for all layers, called for each: a whole prompt's would take as many times longer to compile.
    """
    x, positions, by = _enter(config, leaves, tokens, start, turned, visual)
    layers = []
    for number, (keys, values, shared) in enumerate(zip(*cache, of_layers(common, len(cache.keys)), strict=True)):
        x, *layer = _through(config, layer_leaves(leaves, number), x, keys, values, positions, by, shared)
        layers.append(layer)
    return Cache(*zip(*layers, strict=True)), x


@functools.partial(jax.jit, static_argnames=("config",))
def _enter(
    config: ModelConfig, leaves: Leaves, tokens: jax.Array, start: jax.Array, turned: jax.Array, visual: Any
) -> Any:
    model = blueprint(config).bind(leaves)
    positions, by = model.decoder.places(start, tokens.shape[1], turned)
    return model.read(tokens, None if visual is None else jnp.stack(visual)), positions, by


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("x", "keys", "values"))
def _through(
    config: ModelConfig,
    leaves: Leaves,
    x: jax.Array,
    keys: Any,
    values: Any,
    positions: jax.Array,
    by: Rotation,
    common: tuple[Any, Grouping | None],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    block: Any = ready(layer_blueprint(config.decoder).bind(leaves), x.dtype)
    held = Held(keys, values, positions, *common)
    x, ((keys, values), _) = block(constrain(x, "batch", None, None), by, held=held)
    return x, keys, values


@functools.partial(jax.jit, static_argnames=("config",))
def begin(
    config: ModelConfig,
    leaves: Leaves,
    hidden: Float[Array, "P T D"],
    last: Int32[Array, " P"],
    rows: Rows,
    table: Int32[Array, "states V"],
    allowed: Bool[Array, "P V"] | None = None,
) -> tuple[Rows, Chosen]:
    """The first token of each answer, from what the last layer made of its prompt (`prefill`) at `last` (P,).

    `allowed` are those that it is chosen among, and of which its log-probability is.

    Returns the rows after it, and what was chosen.
    """
    decoder = blueprint(config).bind(leaves).decoder
    at_last = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    found = _choose(decoder, decoder.norm(at_last), jax.tree.map(jnp.asarray, rows), table, allowed)
    return jax.tree.map(lambda x: constrain(x, *(None,) * x.ndim), found)


@functools.partial(jax.jit, static_argnames=("config",))
def judge(
    config: ModelConfig, leaves: Leaves, hidden: Float[Array, "P T D"], following: Int32[Array, "P T"]
) -> Float[Array, "P T"]:
    """Log-probabilities of the tokens that follow each position, from what the last layer made of it (`prefill`)."""
    decoder = blueprint(config).bind(leaves).decoder

    def one(at: tuple[jax.Array, jax.Array]) -> jax.Array:
        logits = decoder.logits(decoder.norm(at[0]))
        return jnp.take_along_axis(logits, at[1][:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)

    # logits of all positions at once would be the largest array there is
    chances = jax.lax.map(one, (hidden.swapaxes(0, 1), following.T), batch_size=JUDGED).T
    return constrain(chances, None, None)


def _choose(
    decoder: Any, hidden: jax.Array, rows: Rows, table: jax.Array, allowed: jax.Array | None = None
) -> tuple[Rows, Chosen]:
    """Hidden states (B, D) -> the rows with a token more, and the token."""
    logits, others = constrain(decoder.logits(hidden), "batch", None), None
    if allowed is not None:
        logits = jnp.where(allowed, logits, -jnp.inf)
        chances, likeliest = jax.lax.top_k(logits, min(OTHERS, logits.shape[-1]))
        others = likeliest, chances - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(jnp.asarray(rows.key), impl="threefry2x32"), rows.said)
    new, chance = sample(logits, keys, rows.rule)
    alive, reached = rows.left > 0, table[rows.state, new]
    rows = rows._replace(
        token=jnp.where(alive, new, rows.token),
        position=rows.position + alive,
        state=jnp.where(alive, reached, rows.state),
        said=rows.said + alive,
        left=jnp.where(alive & (reached != len(table) - 1), rows.left - 1, 0),
    )
    return rows, Chosen(jnp.where(alive, new, NOTHING), chance, others)


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("cache",))
def decode(
    config: ModelConfig,
    leaves: Leaves,
    cache: Cache,
    rows: Rows,
    table: Int32[Array, "states V"],
    steps: Int32[Array, ""],
    enough: Int32[Array, ""],
    common: Common | None = None,
) -> tuple[Cache, Rows, Int32[Array, "B steps"], Float[Array, "B steps"]]:
    """Up to `steps` (at most `STEPS`) more tokens for every row, fewer if `enough` rows have ended or all have.

    Args:
      table: as `Stops.table` gives it.
      common: what of the rows' positions is held once for several.

    Returns:
      Cache and rows after them, the new tokens (B, STEPS), `NOTHING` where there is none, and their log-probabilities.
    """
    model = blueprint(config).bind(leaves)
    batch = len(rows.token)
    begun = (jnp.asarray(rows.left) > 0).sum()

    def going(state):
        step, _, rows, *_ = state
        alive = (rows.left > 0).sum()
        return (step < steps) & (alive > 0) & (begun - alive < enough)

    def one(state):
        step, cache, rows, out, chances = state
        turned = (rows.position + rows.left_out)[:, None]
        hidden, cache = model.extend(rows.token[:, None], cache, rows.position, None, common, True, turned)
        rows, new = _choose(model.decoder, hidden[:, 0], rows, table)
        return step + 1, cache, rows, out.at[:, step].set(new.tokens), chances.at[:, step].set(new.chances)

    rows = jax.tree.map(jnp.asarray, rows)
    nothing = jnp.full((batch, STEPS), NOTHING), jnp.zeros((batch, STEPS), jnp.float32)
    _, cache, rows, out, chances = jax.lax.while_loop(going, one, (jnp.int32(0), cache, rows, *nothing))
    # every process looks at all of them
    return cache, *jax.tree.map(lambda x: constrain(x, *(None,) * x.ndim), (rows, out, chances))


def copy_row(into: Cache, of: Cache, row: int, to: int) -> Cache:
    """Row `to` of one cache, which is taken over, becomes `row` of another, as far as both have positions."""
    return jax.tree.map(lambda into, of: _copy_row(into, of, np.int32(row), np.int32(to)), into, of)


@functools.partial(jax.jit, donate_argnames=("into",))
def _copy_row(into: jax.Array, of: jax.Array, row: jax.Array, to: jax.Array) -> jax.Array:
    held = jax.lax.dynamic_slice_in_dim(of, row, 1)[:, :, : into.shape[2]]
    return jax.lax.dynamic_update_slice(into, held, (to, 0, 0, 0)[: into.ndim])


def resized(cache: Cache, rows: Sequence[int], positions: int, axes: Axes = AXES) -> Cache:
    """These rows of a cache, in this order, with room for so many positions."""
    return jax.tree.map(lambda x: _resized(x, np.array(rows, np.int32), positions, axes), cache)


@functools.partial(jax.jit, static_argnames=("positions", "axes"))
def _resized(x: jax.Array, rows: jax.Array, positions: int, axes: Axes) -> jax.Array:
    room = ((0, 0), (0, 0), (0, max(0, positions - x.shape[2])), (0, 0))
    return constrain(jnp.pad(x[rows, :, :positions], room[: x.ndim]), *axes[: x.ndim])


@functools.partial(jax.jit, static_argnames=("config",))
def see(config: ModelConfig, leaves: Leaves, features: Features) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Features of I pictures -> of each what the decoder reads (W, D), and which of it is read (I, W) bool."""
    visual, kept = blueprint(config).bind(leaves).see(features)
    return tuple(visual), constrain(kept, None, None)
