"""A mixture of experts in place of the FFN (Mixtral; Jiang et al. 2024): no token is dropped.

Tokens are sorted by expert and multiplied group by group.  A kernel for that exists on accelerators
(``jax.lax.ragged_dot``); on a CPU it costs as much as running every expert, so there the groups are padded to blocks,
each block one plain product with its expert's matrix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sphinx_jax.config import DecoderConfig
from sphinx_jax.model.layers import constant, contract, param

LARGEST_BLOCK = 128  # rows of a block on a CPU


class Groups(NamedTuple):
    """Rows brought together by expert."""

    rows: jax.Array  # (R, D) tokens, one for each expert that they chose, sorted by expert
    expert: jax.Array  # (R,) of each row
    dot: Callable[[jax.Array, jax.Array], jax.Array]  # (R, D), (E, D, F) -> (R, F), each row by its expert's matrix
    back: jax.Array  # (N, k) the row of each token's choices


class Moe(nnx.Module):
    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        c, m = config, config.moe
        self.config = config
        self.router = param(rngs, (c.dim, m.experts), ("embed", None), c.dim**-0.5)
        embed, ffn = ("embed", c.dim), ("ffn", c.ffn_dim)
        self.bias, self.lora = nnx.Dict({}), nnx.Dict({})
        for name, inner, outer in (("gate", embed, ffn), ("up", embed, ffn), ("down", ffn, embed)):
            axes, shape = ("expert", inner[0], outer[0]), (m.experts, inner[1], outer[1])
            setattr(self, name, param(rngs, shape, axes, inner[1] ** -0.5))
            if name in c.bias:
                self.bias[name] = constant(0.0, (m.experts, outer[1]), ("expert", outer[0]))
            if c.lora_rank:
                low = (m.experts, inner[1], c.lora_rank), (m.experts, c.lora_rank, outer[1])
                self.lora[name] = nnx.Dict(
                    a=param(rngs, low[0], ("expert", inner[0], None), inner[1] ** -0.5),
                    b=constant(0.0, low[1], ("expert", None, outer[0])),
                )

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x (B, T, D) -> (B, T, D), and the layer's load-balance loss, a float32 scalar."""
        m = self.config.moe
        tokens = x.reshape(-1, x.shape[-1])
        scores = contract(tokens, self.router[...])
        shares = jax.nn.softmax(scores if m.half_router else scores.astype(jnp.float32))
        weights, chosen = jax.lax.top_k(shares, m.per_token)  # (N, k)
        weights = (weights / weights.sum(-1, keepdims=True)).astype(x.dtype)
        groups = group(tokens, chosen, m.experts)
        hidden = jax.nn.silu(self.apply("gate", groups.rows, groups)) * self.apply("up", groups.rows, groups)
        out = self.apply("down", hidden, groups)[groups.back]  # (N, k, D)
        mixed = (out * weights[..., None]).sum(1)
        return mixed.reshape(x.shape), balance_loss(shares, chosen)

    def apply(self, name: str, x: jax.Array, groups: Groups) -> jax.Array:
        """x (R, inputs) -> (R, outputs) by each row's own expert."""
        y = groups.dot(x, getattr(self, name)[...].astype(x.dtype))
        if name in self.lora:
            low = self.lora[name]
            y = y + groups.dot(groups.dot(x, low["a"][...].astype(x.dtype)), low["b"][...].astype(x.dtype))
        return y + self.bias[name][...].astype(x.dtype)[groups.expert] if name in self.bias else y


def balance_loss(shares: jax.Array, chosen: jax.Array) -> jax.Array:
    """E/(N·k) · ⟨tokens of each expert, its mean share⟩: 1 where the load is even.

    shares (N, E), chosen (N, k); image positions and padding count, as in the reference.
    """
    count, experts = shares.shape
    load = jnp.zeros(experts).at[chosen.ravel()].add(1.0)
    return experts / (count * chosen.shape[1]) * (load * shares.astype(jnp.float32).mean(0)).sum()


def group(tokens: jax.Array, chosen: jax.Array, experts: int) -> Groups:
    """tokens (N, D), chosen (N, k) -> rows by expert, and how they are multiplied and brought back."""
    per_token = chosen.shape[1]
    expert = chosen.ravel()  # (M,), M = N · k
    order = jnp.argsort(expert, stable=True)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))  # of each choice among the sorted ones
    sizes = jnp.bincount(expert, length=experts)
    if jax.default_backend() != "cpu":
        dot = functools.partial(jax.lax.ragged_dot, group_sizes=sizes)
        return Groups(tokens[order // per_token], expert[order], dot, place.reshape(chosen.shape))
    block, blocks = block_shape(len(expert), experts)
    padded = -(-sizes // block) * block
    ends = jnp.cumsum(padded)
    slot = place + (ends - padded - (jnp.cumsum(sizes) - sizes))[expert]
    source = jnp.full(blocks * block, len(tokens)).at[slot].set(jnp.arange(len(expert)) // per_token)
    rows = tokens.at[source].get(mode="fill", fill_value=0)
    of_block = jnp.minimum(jnp.searchsorted(ends, jnp.arange(blocks) * block, side="right"), experts - 1)
    return Groups(
        rows, jnp.repeat(of_block, block), lambda x, w: blocked_dot(x, w, of_block), slot.reshape(chosen.shape)
    )


def block_shape(rows: int, experts: int) -> tuple[int, int]:
    """Rows of a block, and how many blocks hold ``rows`` whatever their experts."""
    block = min(LARGEST_BLOCK, 2 ** int(np.log2(max(1, rows // (2 * experts)))))
    return block, (rows + min(experts, rows) * (block - 1)) // block


@jax.custom_vjp
def blocked_dot(x: jax.Array, w: jax.Array, expert: jax.Array) -> jax.Array:
    """x (blocks · block, D), w (E, D, F), expert (blocks,) -> (blocks · block, F)."""
    parts = x.reshape(len(expert), -1, x.shape[-1])
    y = jax.lax.map(lambda part: part[0] @ w[part[1]], (parts, expert))
    return y.reshape(len(x), -1)


def _forward(x, w, expert):
    return blocked_dot(x, w, expert), (x, w, expert)


def _backward(saved, grad):
    # one buffer takes each block's share in place; a scan's own transpose adds a whole (E, D, F) for every block
    x, w, expert = saved

    def add(total, part):
        rows, above, e = part
        return total.at[e].add(rows.T @ above), above @ w[e].T

    parts = (a.reshape(len(expert), -1, a.shape[-1]) for a in (x, grad))
    of_w, of_x = jax.lax.scan(add, jnp.zeros_like(w), (*parts, expert))
    return of_x.reshape(x.shape), of_w, np.zeros(expert.shape, jax.dtypes.float0)


blocked_dot.defvjp(_forward, _backward)
