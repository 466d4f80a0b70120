"""A mixture of experts in place of the FFN (Mixtral; Jiang et al. 2024): no token is dropped.

Tokens are sorted by expert and multiplied group by group.  A kernel for that exists on accelerators
(`jax.lax.ragged_dot`); on a CPU it costs as much as running every expert, so there the groups are padded to blocks,
each block one plain product with its expert's matrix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from sphinx_jax.config import DecoderConfig, need
from sphinx_jax.model.layers import constant, contract, is_quantised, param
from sphinx_jax.sharding import partition_spec, platform

LARGEST_BLOCK = 128  # rows of a block on a CPU


class Groups(NamedTuple):
    """Rows brought together by expert."""

    rows: jax.Array  # (R, D) tokens, one for each expert that they chose, sorted by expert
    expert: jax.Array  # (R,) of each row
    # (R, D), (E, D, F) -> (R, F), each row by its expert's matrix; in float32 by those in 8 bits
    dot: Callable[[jax.Array, jax.Array], jax.Array]
    place: jax.Array  # (M,) the row of each token that was given


class Moe(nnx.Module):
    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        c, m = config, need(config.moe)
        self.config = config
        self.router = param(rngs, (c.dim, m.experts), ("embed", None), c.dim**-0.5)
        embed, ffn = ("embed", c.dim), ("ffn", c.ffn_dim)
        self.bias: nnx.Dict = nnx.Dict({})
        self.lora: nnx.Dict = nnx.Dict({})
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
        run = functools.partial(mixture, self.config)
        maps = {n: Map(*_apart(getattr(self, n).get_value()), *self.additions(n)) for n in ("gate", "up", "down")}
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return run(x, self.router[...], maps)
        # sorting is local: under automatic sharding it would gather all tokens, and the product all experts
        there = partition_spec(("batch", None, None), x.shape, mesh)
        held = {n: self.held(n, map_, mesh) for n, map_ in maps.items()}
        axes = there[0] or ()
        run = functools.partial(
            run,
            batch_axes=(axes,) if isinstance(axes, str) else axes,
            split=held["gate"].w[0] == "expert",
            partial_sums=held["down"].w[1] == "tensor",
        )
        specs = (there, PartitionSpec(), held)
        return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=(there, PartitionSpec()), check_vma=False)(
            x, self.router[...], maps
        )

    def additions(self, name: str) -> tuple[jax.Array | None, ...]:
        """Bias and the two low-rank factors of a map, None where it has none."""
        low = self.lora.get(name, {"a": None, "b": None})
        return tuple(None if v is None else v[...] for v in (self.bias.get(name), low["a"], low["b"]))

    def held(self, name: str, map_: Map, mesh) -> Map:
        """How the parts of a map lie while they multiply: by expert and over `tensor`, whole along `embed`."""
        inner, outer = (None, "ffn") if name != "down" else ("ffn", None)
        of_outputs = ("expert", outer)
        axes = Map(("expert", inner, outer), of_outputs, of_outputs, ("expert", inner, None), ("expert", None, outer))
        return Map(*(None if v is None else partition_spec(a, v.shape, mesh) for a, v in zip(axes, map_, strict=True)))


def _apart(matrices: Any) -> tuple[jax.Array, jax.Array | None]:
    """Matrices (E, inputs, outputs), and the scales (E, outputs) of those in 8 bits."""
    return (matrices.qvalue, matrices.scale[:, 0]) if is_quantised(matrices) else (matrices, None)


class Map(NamedTuple):
    """A linear map of every expert."""

    w: Any  # (E, inputs, outputs), perhaps in 8 bits
    scale: Any = None  # (E, outputs), of what such a matrix makes
    bias: Any = None  # (E, outputs)
    a: Any = None  # (E, inputs, rank)
    b: Any = None  # (E, rank, outputs)

    def __call__(self, x: jax.Array, groups: Groups) -> jax.Array:
        """x (R, inputs) -> (R, outputs), each row by its own expert."""
        y = groups.dot(x, self.w)
        if self.scale is not None:
            y = (y * self.scale[groups.expert]).astype(x.dtype)
        if self.a is not None:
            y = y + groups.dot(groups.dot(x, self.a), self.b)
        return y if self.bias is None else y + self.bias.astype(x.dtype)[groups.expert]


def mixture(
    config: DecoderConfig,
    x: Float[Array, "B T D"],
    router: Float[Array, "D E"],
    maps: dict[str, Map],
    *,
    batch_axes: tuple[str, ...] = (),
    split: bool = False,
    partial_sums: bool = False,
) -> tuple[Float[Array, "B T D"], Float[Array, ""]]:
    """x (B, T, D) -> (B, T, D) and the load-balance loss; under `shard_map` B is this device's share.

    `batch_axes` are the mesh axes that share the batch; with `split` each device along `expert` holds its own
    experts; with `partial_sums` each along `tensor` holds a part of every FFN.
    """
    m = need(config.moe)
    tokens = x.reshape(-1, x.shape[-1])
    scores = contract(tokens, router)
    shares = jax.nn.softmax(scores if m.half_router else scores.astype(jnp.float32))
    weights, chosen = jax.lax.top_k(shares, m.per_token)  # (N, k)
    weights = (weights / weights.sum(-1, keepdims=True)).astype(x.dtype)
    rows = jnp.repeat(tokens, m.per_token, axis=0)  # (M, D), M = N · k
    work = functools.partial(run_experts, maps, partial_sums=partial_sums)
    out = exchange(work, rows, chosen.ravel(), m.experts) if split else work(rows, chosen.ravel())
    mixed = (out.reshape(*chosen.shape, -1) * weights[..., None]).sum(1)
    return mixed.reshape(x.shape), balance_loss(shares, chosen, batch_axes)


def run_experts(maps: dict[str, Map], rows: jax.Array, expert: jax.Array, *, partial_sums: bool) -> jax.Array:
    """rows (M, D), each through the FFN of its expert (M,); rows of an expert that is not here come back as 0."""
    groups = group(rows, expert, len(maps["gate"].w))
    hidden = jax.nn.silu(maps["gate"](groups.rows, groups)) * maps["up"](groups.rows, groups)
    down = maps["down"]
    if partial_sums:
        bias, down = down.bias, down._replace(bias=None)
        out = jax.lax.psum(down(hidden, groups), "tensor")
        out = out if bias is None else out + bias.astype(out.dtype)[groups.expert]
    else:
        out = down(hidden, groups)
    here = expert < len(maps["gate"].w)
    return jnp.where(here[:, None], out[groups.place], 0)


def exchange(work: Callable, rows: jax.Array, expert: jax.Array, experts: int) -> jax.Array:
    """`work(rows, expert)` where the experts are: rows (M, D) go there by an all-to-all and come back by another.

    Nothing is dropped, so each device keeps room for all rows of every other one.
    """
    devices = jax.lax.axis_size("expert")
    each = experts // devices
    order = jnp.argsort(expert, stable=True)
    owner = (expert // each)[order]
    counts = jnp.bincount(owner, length=devices)
    column = jnp.arange(len(order)) - (jnp.cumsum(counts) - counts)[owner]
    send = jnp.zeros((devices, *rows.shape), rows.dtype).at[owner, column].set(rows[order])
    # an expert beyond those of the receiver marks an empty place
    label = jnp.full((devices, len(rows)), each).at[owner, column].set((expert % each)[order])
    swap = functools.partial(jax.lax.all_to_all, axis_name="expert", split_axis=0, concat_axis=0, tiled=True)
    found = work(swap(send).reshape(-1, rows.shape[-1]), swap(label).ravel())
    back = swap(found.reshape(send.shape))[owner, column]
    return jnp.zeros_like(rows).at[order].set(back)


def balance_loss(
    shares: Float[Array, "N E"], chosen: Int[Array, "N k"], batch_axes: tuple[str, ...] = ()
) -> Float[Array, ""]:
    """E/(N·k) · ⟨tokens of each expert, its mean share⟩: 1 where the load is even.

    shares (N, E), chosen (N, k); image positions and padding count, as in the reference.
    """
    count, experts = shares.shape
    load = jnp.zeros(experts).at[chosen.ravel()].add(1.0) / (count * chosen.shape[1])
    mean = shares.astype(jnp.float32).mean(0)
    if batch_axes:
        load, mean = (jax.lax.pmean(value, batch_axes) for value in (load, mean))
    return experts * (load * mean).sum()


def group(rows: Float[Array, "M D"], expert: Int[Array, " M"], experts: int) -> Groups:
    """rows (M, D) and the expert (M,) of each -> rows sorted by expert, those of no expert last."""
    order = jnp.argsort(expert, stable=True)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
    sizes = jnp.bincount(expert, length=experts + 1)[:experts]
    if platform() != "cpu":
        dot = functools.partial(dot_groups, sizes=sizes)
        if len(expert) < experts:  # it would read those that nobody chose
            dot = functools.partial(dot_each, expert=jnp.minimum(expert[order], experts - 1))
        return Groups(rows[order], expert[order], dot, place)
    block, blocks = block_shape(len(expert), experts)
    padded = -(-sizes // block) * block
    ends = jnp.cumsum(padded)
    shift = ends - padded - (jnp.cumsum(sizes) - sizes)
    slot = jnp.where(expert < experts, place + shift[jnp.minimum(expert, experts - 1)], blocks * block)
    gathered = jnp.zeros((blocks * block, rows.shape[1]), rows.dtype).at[slot].set(rows, mode="drop")
    of_block = jnp.minimum(jnp.searchsorted(ends, jnp.arange(blocks) * block, side="right"), experts - 1)
    return Groups(gathered, jnp.repeat(of_block, block), lambda x, w: blocked_dot(x, w, of_block), slot)


def block_shape(rows: int, experts: int) -> tuple[int, int]:
    """Rows of a block, and how many blocks hold `rows` whatever their experts."""
    block = min(LARGEST_BLOCK, 2 ** int(np.log2(max(1, rows // (2 * experts)))))
    return block, (rows + min(experts, rows) * (block - 1)) // block


def dot_groups(x: Float[Array, "M D"], w: Num[Array, "E D F"], sizes: Int[Array, " E"]) -> Float[Array, "M F"]:
    """Rows (M, D), so many for each expert, by the matrices (E, D, F) -> (M, F)."""
    return jax.lax.ragged_dot(x, w.astype(x.dtype), sizes, preferred_element_type=_product(x, w))


def dot_each(x: Float[Array, "M D"], w: Num[Array, "E D F"], expert: Int[Array, " M"]) -> Float[Array, "M F"]:
    """Few rows (M, D), each by its own expert's matrix of (E, D, F), which alone is read -> (M, F)."""
    return jnp.concatenate([_dot(x[i : i + 1], w, expert[i]) for i in range(len(expert))])


def _dot(x: jax.Array, w: jax.Array, expert: jax.Array) -> jax.Array:
    # chosen before it is cast: of matrices in 8 bits nothing else is read
    return jnp.matmul(x, w[expert].astype(x.dtype), preferred_element_type=_product(x, w))


def _product(x: jax.Array, w: jax.Array) -> DTypeLike:
    """Products with integers may be larger than float16 goes, before they are scaled."""
    return x.dtype if jnp.issubdtype(w.dtype, jnp.floating) else jnp.float32


@jax.custom_vjp
def blocked_dot(x: jax.Array, w: jax.Array, expert: jax.Array) -> jax.Array:
    """x (blocks · block, D), w (E, D, F), expert (blocks,) -> (blocks · block, F)."""
    parts = x.reshape(len(expert), -1, x.shape[-1])
    y = jax.lax.map(lambda part: _dot(part[0], w, part[1]), (parts, expert))
    return y.reshape(len(x), -1)


def _forward(x, w, expert):
    return blocked_dot(x, w, expert), (x, w, expert)


def _backward(saved, grad):
    # one buffer takes each block's share in place; a scan's own transpose adds a whole (E, D, F) for every block
    x, w, expert = saved
    trains = jnp.issubdtype(w.dtype, jnp.floating)

    def add(total, part):
        rows, above, e = part
        of_rows = (above @ w[e].astype(above.dtype).T).astype(rows.dtype)
        return total.at[e].add(rows.T @ above) if trains else total, of_rows

    parts = (a.reshape(len(expert), -1, a.shape[-1]) for a in (x, grad))
    of_w, of_x = jax.lax.scan(add, jnp.zeros_like(w) if trains else None, (*parts, expert))
    nothing = np.zeros(w.shape, jax.dtypes.float0)
    return of_x.reshape(x.shape), of_w if trains else nothing, np.zeros(expert.shape, jax.dtypes.float0)


blocked_dot.defvjp(_forward, _backward)
