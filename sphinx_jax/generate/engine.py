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
from sphinx_jax.model.blueprint import Leaves, blueprint
from sphinx_jax.model.cache import Cache
from sphinx_jax.model.embedding_mix import Features

BUCKET = 32  # text lengths and budgets are rounded up to this, so few programs are compiled


def round_up(number: int, step: int = BUCKET) -> int:
    return -(-number // step) * step


def pad_prompts(prompts: Sequence[Sequence[int]], length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Token lists -> right-padded (B, T) int32, and their lengths (B,)."""
    lengths = np.array([len(p) for p in prompts], np.int32)
    tokens = np.zeros((len(prompts), length or round_up(int(lengths.max()))), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return tokens, lengths


def pad_stops(stops: Sequence[Sequence[int]]) -> np.ndarray:
    """Stop sequences -> left-padded (S, longest) int32, −1 where there is nothing to compare."""
    table = np.full((len(stops), max(map(len, stops))), -1, np.int32)
    for row, stop in zip(table, stops, strict=True):
        row[len(row) - len(stop) :] = stop
    return table


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
    """Right-padded prompts (B, T) -> (B, steps) int32 new tokens, the stop sequence included, 0 after it."""
    model = blueprint(config).bind(leaves)
    batch = len(tokens)
    offset = config.image_positions if features is not None else 0
    cache = Cache.empty(config.decoder, batch, offset + tokens.shape[1] + steps, jnp.dtype(config.dtype))
    logits, next_position, cache = model.prefill(tokens, lengths, features, cache)
    out = jnp.zeros((batch, steps), jnp.int32)
    width = stops.shape[1]
    recent = jnp.full((batch, width), -2, jnp.int32)

    def going(state):
        step, done, *_ = state
        return (step < steps) & ~done.all()

    def one(state):
        step, done, logits, cache, out, recent = state
        new = sample(logits, jax.random.fold_in(key, step), temperature, top_p)
        new = jnp.where(done, 0, new)
        out = out.at[:, step].set(new)
        recent = jnp.concatenate([recent[:, 1:], new[:, None]], axis=1)
        stopped = ((recent[:, None] == stops[None]) | (stops[None] < 0)).all(-1).any(-1)
        logits, cache = model.decode(new, next_position + step, cache)
        return step + 1, done | stopped, logits, cache, out, recent

    state = (jnp.int32(0), jnp.zeros(batch, bool), logits, cache, out, recent)
    return jax.lax.while_loop(going, one, state)[4]


def generate(
    config: ModelConfig,
    leaves: Leaves,
    prompts: Sequence[Sequence[int]],
    features: Features | None,
    *,
    stops: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    length: int | None = None,
) -> list[list[int]]:
    """Token lists in, the new tokens of each out, cut before the first stop sequence."""
    tokens, lengths = pad_prompts(prompts, length)
    steps = round_up(max_new_tokens, 8)
    out = generate_tokens(
        config, leaves, tokens, lengths, features, pad_stops(stops), jax.random.key(seed),
        jnp.float32(temperature), jnp.float32(top_p), steps=steps,
    )  # fmt: skip
    return [cut(row.tolist()[:max_new_tokens], stops) for row in np.asarray(out)]


def stop_tokens(tokenizer: Tokenizer) -> list[list[int]]:
    """What ends an answer: the template's stop text, in each of its segmentations, and EOS."""
    return [*tokenizer.stop_sequences(STOP), [tokenizer.eos_id]]


def decode_answer(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Text of generated tokens; padding, and ids that a padded vocabulary has beyond the tokenizer's, are left out."""
    return tokenizer.decode(t for t in tokens if 0 < t < tokenizer.vocab_size).strip()


def cut(tokens: list[int], stops: Sequence[Sequence[int]]) -> list[int]:
    """Tokens before the first stop sequence."""
    for end in range(1, len(tokens) + 1):
        for stop in stops:
            if tokens[max(0, end - len(stop)) : end] == list(stop):
                return tokens[: end - len(stop)]
    return tokens


def stream(
    config: ModelConfig,
    leaves: Leaves,
    prompt: Sequence[int],
    features: Features | None,
    *,
    stops: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[list[int]]:
    """Yields the new tokens so far after each one."""
    tokens, lengths = pad_prompts([prompt])
    offset = config.image_positions if features is not None else 0
    positions = round_up(offset + tokens.shape[1] + max_new_tokens)
    logits, next_position, cache = prefill(config, leaves, tokens, lengths, features, positions)
    key, new, table = jax.random.key(seed), [], pad_stops(stops)
    for step in range(max_new_tokens):
        token = _sample(logits, jax.random.fold_in(key, step), temperature, top_p)
        new.append(int(token[0]))
        if len(cut(new, stops)) < len(new):
            break
        # what may be the beginning of a stop sequence is held back until it is known not to be
        held = max((n for stop in table for n in _overlaps(new, [t for t in stop.tolist() if t >= 0])), default=0)
        yield new[: len(new) - held]
        logits, cache = decode(config, leaves, token, next_position + step, cache)
    yield cut(new, stops)


def _overlaps(tokens: list[int], stop: list[int]) -> Iterator[int]:
    return (n for n in range(1, min(len(stop), len(tokens) + 1)) if tokens[-n:] == stop[:n])


@functools.partial(jax.jit, static_argnames=("config", "positions"))
def prefill(config, leaves, tokens, lengths, features, positions):
    cache = Cache.empty(config.decoder, len(tokens), positions, jnp.dtype(config.dtype))
    return blueprint(config).bind(leaves).prefill(tokens, lengths, features, cache)


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("cache",))
def decode(config, leaves, token, positions, cache):
    return blueprint(config).bind(leaves).decode(token, positions, cache)


_sample = jax.jit(sample)
