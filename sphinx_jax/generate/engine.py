"""Prompts to tokens: prefill, then a loop on the device until every row has stopped."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.config import ModelConfig
from sphinx_jax.data.conversation import STOP
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.generate.sampling import sample
from sphinx_jax.generate.stops import Stops
from sphinx_jax.model.blueprint import Leaves, blueprint
from sphinx_jax.model.cache import Cache
from sphinx_jax.model.embedding_mix import Features

BUCKET = 32  # text lengths and budgets are rounded up to this, so few programs are compiled
NOTHING = -1  # where an answer has ended: no token


def round_up(number: int, step: int = BUCKET) -> int:
    return -(-number // step) * step


def pad_prompts(prompts: Sequence[Sequence[int]], length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Token lists -> right-padded (B, T) int32, and their lengths (B,)."""
    lengths = np.array([len(p) for p in prompts], np.int32)
    tokens = np.zeros((len(prompts), length or round_up(int(lengths.max()))), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return tokens, lengths


@functools.partial(jax.jit, static_argnames=("config", "steps"))
def generate_tokens(
    config: ModelConfig,
    leaves: Leaves,
    tokens: jax.Array,
    lengths: jax.Array,
    features: Features | None,
    stops: jax.Array,
    key: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    *,
    steps: int,
) -> jax.Array:
    """Right-padded prompts (B, T) -> (B, steps) int32 new tokens, those of the stop included, `NOTHING` after it.

    `stops`: (states, V) int32 as `Stops.table` gives it.
    """
    model = blueprint(config).bind(leaves)
    batch = len(tokens)
    offset = config.image_positions if features is not None else 0
    cache = Cache.empty(config.decoder, batch, offset + tokens.shape[1] + steps, jnp.dtype(config.dtype))
    logits, next_position, cache = model.prefill(tokens, lengths, features, cache)
    out = jnp.full((batch, steps), NOTHING)
    stopped = len(stops) - 1

    def going(state):
        step, at, *_ = state
        return (step < steps) & (at != stopped).any()

    def one(state):
        step, at, logits, cache, out = state
        new = sample(logits, jax.random.fold_in(key, step), temperature, top_p)
        out = out.at[:, step].set(jnp.where(at == stopped, NOTHING, new))
        logits, cache = model.decode(new, next_position + step, cache)
        return step + 1, stops[at, new], logits, cache, out

    state = (jnp.int32(0), jnp.zeros(batch, jnp.int32), logits, cache, out)
    return jax.lax.while_loop(going, one, state)[4]


def generate(
    config: ModelConfig,
    leaves: Leaves,
    prompts: Sequence[Sequence[int]],
    features: Features | None,
    *,
    stops: Stops,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    length: int | None = None,
) -> list[list[int]]:
    """Token lists in, the new tokens of each out, those of the stop included."""
    tokens, lengths = pad_prompts(prompts, length)
    steps = round_up(max_new_tokens, 8)
    out = generate_tokens(
        config,
        leaves,
        tokens,
        lengths,
        features,
        stops.table(config.decoder.vocab_size),
        jax.random.key(seed),
        jnp.float32(temperature),
        jnp.float32(top_p),
        steps=steps,
    )
    return [[token for token in row if token != NOTHING] for row in np.asarray(out)[:, :max_new_tokens].tolist()]


def stop_tokens(tokenizer: Tokenizer) -> Stops:
    """What ends an answer: the template's stop text, and EOS."""
    return Stops(tokenizer, [STOP])


def stream(
    config: ModelConfig,
    leaves: Leaves,
    prompt: Sequence[int],
    features: Features | None,
    *,
    stops: Stops,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[list[int]]:
    """Yields the new tokens so far after each one, those of the stop included."""
    tokens, lengths = pad_prompts([prompt])
    offset = config.image_positions if features is not None else 0
    positions = round_up(offset + tokens.shape[1] + max_new_tokens)
    logits, next_position, cache = prefill(config, leaves, tokens, lengths, features, positions)
    key, new, at = jax.random.key(seed), [], 0
    table = stops.table(config.decoder.vocab_size)
    for step in range(max_new_tokens):
        token = _sample(logits, jax.random.fold_in(key, step), temperature, top_p)
        new.append(int(token[0]))
        yield new
        at = table[at, new[-1]]
        if at == stops.stopped:
            return
        logits, cache = decode(config, leaves, token, next_position + step, cache)


@functools.partial(jax.jit, static_argnames=("config", "positions"))
def prefill(config, leaves, tokens, lengths, features, positions):
    cache = Cache.empty(config.decoder, len(tokens), positions, jnp.dtype(config.dtype))
    return blueprint(config).bind(leaves).prefill(tokens, lengths, features, cache)


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("cache",))
def decode(config, leaves, token, positions, cache):
    return blueprint(config).bind(leaves).decode(token, positions, cache)


_sample = jax.jit(sample)
