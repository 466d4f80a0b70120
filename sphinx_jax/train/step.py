"""One training step: a batch of pictures and a batch of text, one update."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int

from sphinx_jax.config import need
from sphinx_jax.data.rows import DOMAIN_NUMBERS, GROUPS, TASKS
from sphinx_jax.model.blueprint import Blueprint, Leaves
from sphinx_jax.model.decoder import Decoder
from sphinx_jax.model.embedding_mix import Features
from sphinx_jax.model.sphinx import SphinxModel
from sphinx_jax.model.views import normalise
from sphinx_jax.sharding import constrain

LOGITS_BYTES = 2**28  # of float32 logits that a device holds at a time

Batch = dict[str, jax.Array]


class TrainState(NamedTuple):
    trainable: Leaves
    optimizer: Any
    frozen: dict[str, Any]


class Sums(NamedTuple):
    """Cross-entropy in nats summed by task and domain, (GROUPS,) each."""

    loss: jax.Array
    tokens: jax.Array


def features_of(model: SphinxModel, batch: Batch) -> Features | None:
    """The pictures of a batch as the frozen encoders see them: computed from pixels, or read from a cache."""
    if "pixels" in batch:
        return model.encode(normalise(batch["pixels"]))
    if "overview" in batch:
        dtype = model.config.dtype
        return Features(**{k: batch[k].astype(dtype) for k in Features._fields if batch.get(k) is not None})
    return None


def cross_entropy(model: SphinxModel, batch: Batch, remat: str = "none") -> tuple[jax.Array, jax.Array | None]:
    """(B, T − 1) losses of the tokens learnt, 0 elsewhere; and the load-balance loss of a mixture of experts."""
    features = features_of(model, batch)
    hidden, balance = model.hidden(batch["tokens"], features, batch.get("segments"), batch.get("documents"), remat)
    losses = token_losses(model.decoder, hidden[:, :-1], batch["tokens"][:, 1:])
    return jnp.where(batch["loss_mask"][:, 1:], losses, 0), balance


def loss_sums(model: SphinxModel, batch: Batch) -> Float32[Array, 2]:
    """(2,) float32: the losses of a batch summed, and how many tokens they are of."""
    return jnp.stack([cross_entropy(model, batch)[0].sum(), batch["loss_mask"][:, 1:].sum().astype(jnp.float32)])


def token_losses(decoder: Decoder, hidden: Float[Array, "B T D"], targets: Int[Array, "B T"]) -> Float32[Array, "B T"]:
    """(B, T, D), (B, T) int32 -> (B, T) float32 cross-entropies in nats.

    Where the logits (B, T, V) are many they are made, used and made again for the gradient in parts of T.
    """
    batch, length = targets.shape
    devices = max(1, jax.sharding.get_abstract_mesh().size)  # no mesh has size 0
    share = 4 * batch * length * decoder.config.vocab_size / devices
    parts = min(length, math.ceil(share / LOGITS_BYTES))

    def losses(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, ids = part
        # as rows: XLA turns logits of three dimensions around for their gradient
        return _cross_entropies(decoder.logits(x.reshape(-1, x.shape[-1])), ids.reshape(-1)).reshape(ids.shape)

    if parts <= 1:
        return losses((hidden, targets))
    size = -(-length // parts)

    def cut(x: jax.Array) -> jax.Array:  # (B, T, …) -> (parts, B, size, …)
        x = jnp.pad(x, ((0, 0), (0, parts * size - length), *((0, 0),) * (x.ndim - 2)))
        return einops.rearrange(x, "b (p t) ... -> p b t ...", p=parts)

    found = jax.lax.map(jax.checkpoint(losses), (cut(hidden), cut(targets)))
    return einops.rearrange(found, "p b t -> b (p t)")[:, :length]


@jax.custom_vjp
def _cross_entropies(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """(N, V) float32, (N,) int32 -> (N,) float32.

    The gradient takes the place of the logits, where that which JAX derives holds the exponents beside them.
    """
    return _with_logits(logits, ids)[0]


def _with_logits(logits: jax.Array, ids: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    total = jax.nn.logsumexp(logits, axis=-1)
    return total - jnp.take_along_axis(logits, ids[:, None], axis=-1)[:, 0], (logits, ids, total)


def _gradient_of_logits(kept: tuple[jax.Array, ...], above: jax.Array) -> tuple[jax.Array, None]:
    logits, ids, total = kept
    right = ids[:, None] == jnp.arange(logits.shape[-1])
    return (jnp.exp(logits - total[:, None]) - right) * above[:, None], None


_cross_entropies.defvjp(_with_logits, _gradient_of_logits)


def token_weights(batch: Batch) -> Float32[Array, "B T"]:
    """(B, T − 1) float32, what the loss of each token counts: 0 of one that is not learnt."""
    learnt = batch["loss_mask"][:, 1:].astype(jnp.float32)
    return learnt * batch["weights"][:, 1:] if "weights" in batch else learnt


def batch_sums(batch: Batch, losses: jax.Array) -> Sums:
    """(B, T − 1) losses summed by group, every token alike."""
    group = batch["group"][:, 1:].ravel()
    count = batch["loss_mask"][:, 1:].ravel().astype(jnp.float32)
    return Sums(*(jax.ops.segment_sum(values, group, GROUPS) for values in (losses.ravel(), count)))


def by_group(sums: Sums, prefix: str) -> dict[str, Any]:
    """Mean losses by task, and by domain of those that have one: `{prefix}task/vqa`, `{prefix}real`."""
    loss, count = (np.reshape(x, (len(TASKS), len(DOMAIN_NUMBERS))) for x in sums)
    entry = {}
    for i, task in enumerate(TASKS):
        if count[i].sum():
            entry[f"{prefix}task/{task}"] = float(loss[i].sum() / count[i].sum())
    for j, domain in enumerate(DOMAIN_NUMBERS):
        if count[2:, j].sum() and j:
            entry[f"{prefix}{domain}"] = float(loss[2:, j].sum() / count[2:, j].sum())
    return entry


def update(
    optimizer: optax.GradientTransformation, state: TrainState, loss: jax.Array, grads: Leaves, rate: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer update at `rate`, and its metrics.

    A step with a loss or gradient that is not finite leaves no trace but its count.
    """
    updates, optimizer_state = optimizer.update(grads, state.optimizer, state.trainable)
    trained = jax.tree.map(lambda p, u: p + rate * u, state.trainable, updates)
    norm = optax.global_norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    new = jax.tree.map(
        lambda a, b: jnp.where(finite, a, b), (trained, optimizer_state), (state.trainable, state.optimizer)
    )
    return TrainState(new[0], new[1], state.frozen), {"loss": loss, "norm": norm, "finite": finite}


def make_step(
    blueprint: Blueprint,
    optimizer: optax.GradientTransformation,
    *,
    weights: Mapping[str, float] | None = None,
    accumulate: int | Mapping[str, int] = 1,
    remat: str = "none",
) -> Callable[[TrainState, dict[str, Batch], jax.Array], tuple[TrainState, dict[str, Any]]]:
    """The jitted step: (state, {name: batch}, rate) -> (state, metrics).

    Each named batch contributes its mean loss per token learnt (rows may weigh their tokens), and the load-balance
    loss of a mixture of experts, times its own weight.
    `accumulate`: parts that a batch (of one name, or every one) is cut into along its rows, one after the other
    through the model; the update is that of the whole.
    """
    weights = weights or {}
    parts_of = accumulate if isinstance(accumulate, Mapping) else collections.defaultdict(lambda: accumulate)

    def loss_of(trainable: Leaves, frozen: dict[str, Any], batches: dict[str, Batch], counts: dict[str, jax.Array]):
        model = blueprint.bind(trainable | frozen)
        total: Any = 0.0
        sums = []
        for name, batch in batches.items():
            losses, balance = cross_entropy(model, batch, remat)
            sums.append(batch_sums(batch, losses))
            loss = (losses * token_weights(batch)).sum() / counts[name]
            if balance is not None:
                loss += need(model.config.decoder.moe).balance_weight * balance / parts_of[name]
            total += weights.get(name, 1.0) * loss
        return total, jax.tree.map(lambda *s: sum(s), *sums)

    def gradient(state: TrainState, batches: dict[str, Batch], counts: dict[str, jax.Array]):
        value, grads = jax.value_and_grad(loss_of, has_aux=True)(state.trainable, state.frozen, batches, counts)
        # laid out as the leaves are, a gradient is summed over devices straight into its shards
        return value, {path: constrain(g, *blueprint.specs[path].axes) for path, g in grads.items()}

    def gradient_by_parts(state: TrainState, name: str, batch: Batch, counts: dict[str, jax.Array], so_far: Any):
        # rows i, i + parts, …: each device keeps the rows that it has
        cut = jax.tree.map(lambda x: einops.rearrange(x, "(b p) ... -> p b ...", p=parts_of[name]), batch)

        def add(total, part):
            part = {key: constrain(x, "batch", *(None,) * (x.ndim - 1)) for key, x in part.items()}
            return jax.tree.map(jnp.add, total, gradient(state, {name: part}, counts)), None

        if so_far is None:
            shapes = jax.eval_shape(lambda: gradient(state, {name: jax.tree.map(lambda x: x[0], cut)}, counts))
            so_far = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(add, so_far, cut)[0]

    def step(state: TrainState, batches: dict[str, Batch], rate: jax.Array):
        # the denominators are known beforehand, so parts add up to exactly the mean over the whole batch
        counts = {n: jnp.maximum(token_weights(b).sum(), 1e-6) for n, b in batches.items()}
        whole = {name: batch for name, batch in batches.items() if parts_of[name] == 1}
        total: Any = gradient(state, whole, counts) if whole else None
        for name, batch in batches.items():
            if name not in whole:  # into the gradients so far: a second tree of them would cost a copy of the weights
                total = gradient_by_parts(state, name, batch, counts, total)
        (loss, sums), grads = total
        state, metrics = update(optimizer, state, loss, grads, rate)
        return state, metrics | {"sums": sums}

    return jax.jit(step, donate_argnums=0)
