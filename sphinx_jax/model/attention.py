"""Attention, one function for every part of the model: the fastest that each platform has.

A CPU gets plain matrix products, a GPU cuDNN's flash attention and a TPU the splash kernel; neither of these two ever
holds the scores.  What a kernel does not do (masks that are data, float32), or a GPU before Ampere, XLA does.
"""

from __future__ import annotations

import itertools
from typing import Any, Literal, NamedTuple

import einops
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from sphinx_jax.model.cache import Grouping, Layer, Rounded
from sphinx_jax.sharding import has_cudnn_attention, partition_spec, platform

MASKED = -1e30  # finite, so that a row that sees nothing gives numbers and not NaN
LANES = 128  # width of a TPU's registers, to which the splash kernel's blocks keep
SPLASH_BLOCK = 512  # longest, in positions
KEY_BLOCK = 128  # positions whose scores a CPU holds at once
# attention on a CPU: parts at most; queries of a part, which meet no keys after it, at least, and from which length on
# rows are taken in parts where all keys are met
PARTS, QUERY_PART, LONG = 4, 48, 128

Implementation = Literal["xla", "cudnn"]  # of jax.nn.dot_product_attention


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    causal: bool = False,
    mask: Bool[Array, ...] | None = None,
    documents: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax(q·kᵀ/√H)·v with grouped key/value heads; the softmax runs in float32.

    q (B, T, N, H); k, v (B, S, K, H) with N a multiple of K; mask broadcasts to (B, 1, T, S), True where a key is seen.
    `documents` (B, T) int32, where T = S: only positions of the same number see each other.
    Returns (B, T, N, H).
    """
    where = platform()
    if where == "tpu" and causal and mask is None and q.shape[1] >= LANES:
        return _on_shards(q, k, v, documents)
    if documents is not None:
        same = documents[:, None, :, None] == documents[:, None, None, :]
        mask = same if mask is None else mask & same
    if where == "cpu":
        return _attend_before(q, k, v, mask) if causal else _attend_by_rows(q, k, v, mask)
    kernel_has = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0
    if where == "gpu" and kernel_has and has_cudnn_attention():
        return of_even_lengths(q, k, v, causal, mask, "cudnn")
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation="xla")


def attend_cached(
    q: Float[Array, "B T N H"],
    keys: Layer,
    values: Layer,
    positions: Int[Array, "B T"],
    common: tuple[Float[Array, "P K C H"] | Rounded, Float[Array, "P K C H"] | Rounded] | None = None,
    groups: Grouping | None = None,
) -> Float[Array, "B T N H"]:
    """Attention to a cache, whose positions beyond a query's own are not seen; the softmax runs in float32.

    Args:
      q: (B, T, N, H), at `positions` (B, T).
      keys, values: (B, K, S, H), as `model.cache` keeps them.
      common: keys and values (P, K, C, H) of beginnings that rows have in common; `groups` says who has which, and
        how many of a row's positions are there and not in `keys`. What rows see of one beginning is one product for
        all of them; the two parts of a row's softmax are merged by their sums (Hydragen, Juravsky et al. 2024).

    Returns:
      (B, T, N, H).
    """
    batch, length, heads, width = q.shape
    kv_heads = jax.tree.leaves(keys)[0].shape[1]
    dtype = q.dtype
    # of float16, shares times scales may round to nothing; a CPU has no small products in bfloat16
    if (isinstance(keys, Rounded) and dtype == jnp.float16) or (platform() == "cpu" and dtype == jnp.bfloat16):
        q = q.astype(jnp.float32)
    q = einops.rearrange(q * width**-0.5, "b t (k g) h -> b k (g t) h", k=kv_heads)
    nothing = jnp.zeros(q.shape[:3], jnp.float32)
    state = Attended(nothing + MASKED, nothing, jnp.zeros(q.shape, jnp.float32))
    if common is not None and groups is not None:
        state = _attend_common(q, *common, groups, state)
        positions = positions - groups.held[:, None]
    limits = jnp.tile(positions + 1, (1, heads // kv_heads))  # (B, G · T)
    state = _attend_some(q, keys, values, limits, state)
    out = (state.out / state.total[..., None]).astype(dtype)
    return einops.rearrange(out, "b k (g t) h -> b t (k g) h", t=length)


def _attend_common(q: jax.Array, keys: Layer, values: Layer, groups: Grouping, state: Attended) -> Attended:
    """Attention of queries (B, K, M, H) to what their rows have in common with others, group by group."""

    def one(number: jax.Array, state: Attended) -> Attended:
        rows = groups.rows[number]  # (R,)

        def together(x: jax.Array) -> jax.Array:
            """(B, K, M, …) -> (1, K, R · M, …)"""
            return einops.rearrange(x.at[rows].get(mode="fill", fill_value=0), "r k m ... -> 1 k (r m) ...")

        k, v = _part((keys, values), groups.beginning[number], 1, axis=0)
        limits = jnp.repeat(groups.held.at[rows].get(mode="fill", fill_value=0), q.shape[2])[None]
        found = _attend_some(together(q), k, v, limits, Attended(*map(together, state)))

        def apart(old: jax.Array, new: jax.Array) -> jax.Array:
            new = einops.rearrange(new, "1 k (r m) ... -> r k m ...", r=len(rows))
            return old.at[rows].set(new, mode="drop")

        return Attended(*map(apart, state, found))

    return jax.lax.fori_loop(0, groups.count, one, state)


def _attend_some(q: jax.Array, keys: Layer, values: Layer, limits: jax.Array, state: Attended) -> Attended:
    """What was attended to, and with it the first `limits` (B, M) of keys (B, K, S, H), by queries (B, K, M, H).

    A CPU takes the keys block by block, as flash attention does, and none beyond the largest limit: scores of all keys
    leave its caches.  Of an accelerator a loop would take more than it saves.
    """
    room = jax.tree.leaves(keys)[0].shape[2]
    block = min(KEY_BLOCK, room) if platform() == "cpu" else room

    def add(number: jax.Array | int, so_far: Attended) -> Attended:
        """Attention to one more block of keys."""
        first = number * block
        start = jnp.minimum(first, room - block)  # the last block may reach back into the one before
        k, v = _part((keys, values), start, block, axis=2)
        at = start + jnp.arange(block)
        seen = (at < limits[..., None]) & (at >= first)  # (B, M, S)
        scores = _scaled(jnp.einsum("bkmh,bksh->bkms", q, _whole(k, q.dtype)).astype(jnp.float32), k)
        scores = jnp.where(seen[:, None], scores, MASKED)
        highest = jnp.maximum(so_far.highest, scores.max(-1))
        exponents, kept = jnp.exp(scores - highest[..., None]), jnp.exp(so_far.highest - highest)
        out = jnp.einsum("bkms,bksh->bkmh", _scaled(exponents, v).astype(q.dtype), _whole(v, q.dtype))
        return Attended(
            highest,
            so_far.total * kept + exponents.sum(-1),
            so_far.out * kept[..., None] + out,
        )

    if block == room:
        return add(0, state)
    return jax.lax.fori_loop(0, (limits.max() + block - 1) // block, add, state)


def _part(of: Any, start: jax.Array, count: int, axis: int) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, count, axis), of)


def _whole(x: Layer, dtype: DTypeLike) -> jax.Array:
    return (x.steps if isinstance(x, Rounded) else x).astype(dtype)


def _scaled(by_position: jax.Array, x: Layer) -> jax.Array:
    """(B, K, M, S) times the scales of the positions: products with vectors in 8 bits are scaled, not the vectors."""
    return by_position * x.scale[:, :, None] if isinstance(x, Rounded) else by_position


class Attended(NamedTuple):
    """Attention to some keys: numerators and denominator of the softmax, both times exp(-highest).

    Of (B, K, G · T) queries.
    """

    highest: jax.Array  # score, float32
    total: jax.Array  # float32
    out: jax.Array  # (…, H) float32


def _on_shards(q: jax.Array, k: jax.Array, v: jax.Array, documents: jax.Array | None) -> jax.Array:
    """The splash kernel on every device's share of the batch and of the heads: XLA cannot split a kernel by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return splash(q, k, v, documents)
    query = partition_spec(("batch", None, "heads", None), q.shape, mesh)
    keys = partition_spec(("batch", None, "kv_heads", None), k.shape, mesh)
    if query != keys:  # too few key/value heads for every device: each query head gets its own copy
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    rows = PartitionSpec(query[0])
    specs = (query, query, query, None if documents is None else rows)
    return jax.shard_map(splash, mesh=mesh, in_specs=specs, out_specs=query, check_vma=False)(q, k, v, documents)


def splash(q: jax.Array, k: jax.Array, v: jax.Array, documents: jax.Array | None, interpret: bool = False) -> jax.Array:
    """Causal attention by the TPU kernel of JAX; shapes as in `attend`.

    Positions are padded to whole blocks (what follows a position is never seen) and heads to whole registers.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    length, width = q.shape[1], q.shape[3]
    padded = -(-length // LANES) * LANES
    block = next(b for b in range(SPLASH_BLOCK, 0, -LANES) if padded % b == 0)
    pad = ((0, 0), (0, 0), (0, padded - length), (0, -width % LANES))
    q, k, v = (jnp.pad(einops.rearrange(x, "b t n h -> b n t h"), pad) for x in (q * width**-0.5, k, v))
    seen = kernels.MultiHeadMask([kernels.CausalMask((padded, padded))] * q.shape[1])
    sizes = kernels.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, use_fused_bwd_kernel=True
    )
    kernel = kernels.make_splash_mha(seen, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)
    if documents is None:
        out = jax.vmap(kernel)(q, k, v)
    else:
        documents = jnp.pad(documents, ((0, 0), (0, padded - length)), constant_values=-1)
        out = jax.vmap(lambda q, k, v, d: kernel(q, k, v, kernels.SegmentIds(d, d)))(q, k, v, documents)
    return einops.rearrange(out, "b n t h -> b t n h")[:, :length, :, :width]


def of_even_lengths(
    q: jax.Array, k: jax.Array, v: jax.Array, causal: bool, mask: jax.Array | None, implementation: Implementation
) -> jax.Array:
    """JAX's own attention, shapes as in `attend`, odd lengths padded: cuDNN has a gradient for even ones alone."""
    length, keys = q.shape[1], k.shape[1]
    if length % 2 == keys % 2 == 0 or length == 1:  # one token, of an answer, has no gradient
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation=implementation)
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    lengths: dict[str, Any] = {}
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], length, keys))
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, length % 2), (0, keys % 2)))
    elif not causal:  # causality hides what is padded
        whole = jnp.full(len(q), 1, jnp.int32)
        lengths = {"query_seq_lengths": whole * length, "key_value_seq_lengths": whole * keys}
    out = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation=implementation, **lengths)
    return out[:, :length]


def _attend_before(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Causal attention, part by part of the queries: of two parts the first has half of the keys to meet."""
    length, keys = q.shape[1], k.shape[1]
    before = jnp.tril(jnp.ones((length, keys), bool))[None, None]
    mask = before if mask is None else mask & before
    parts = max(1, min(PARTS, length // QUERY_PART))
    cuts = [length * part // parts for part in range(parts + 1)]
    found = [
        _attend_matrices(q[:, begin:end], k[:, :end], v[:, :end], mask[:, :, begin:end, :end])
        for begin, end in itertools.pairwise(cuts)
    ]
    return jnp.concatenate(found, axis=1)


def _attend_by_rows(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Attention of a share of the rows at a time.

    XLA's CPU backend gives all products of a batch that have few queries to one thread, but carries out several such
    at once; and the scores of a share stay in its caches.
    """
    batch, mesh = len(q), jax.sharding.get_abstract_mesh()
    # on a mesh a share of the rows would have to be moved
    parts = min(PARTS, batch) if q.shape[1] >= LONG and (mesh.empty or mesh.size == 1) else 1
    masks: list[jax.Array | None] = [None] * parts
    if mask is not None:
        masks[:] = jnp.array_split(jnp.broadcast_to(mask, (batch, *mask.shape[1:])), parts)
    shares = zip(*(jnp.array_split(x, parts) for x in (q, k, v)), masks, strict=True)
    return jnp.concatenate([_attend_matrices(*share) for share in shares])


def _attend_matrices(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Attention as plain matrix products, which XLA's CPU backend differentiates in two thirds of the time."""
    batch, length, heads, width = q.shape
    shared = heads // k.shape[2]
    q = einops.rearrange(q, "b t (k g) h -> (b k) (g t) h", g=shared)
    k, v = (einops.rearrange(x, "b s k h -> (b k) s h") for x in (k, v))
    scores = jnp.einsum("bth,bsh->bts", q * width**-0.5, k, preferred_element_type=jnp.float32)
    if mask is not None:
        bias = jnp.where(mask, 0.0, MASKED)  # (B | 1, 1, T, S)
        bias = jnp.broadcast_to(bias, (batch, heads // shared, length, k.shape[1])).reshape(-1, 1, length, k.shape[1])
        grouped = scores.reshape(-1, shared, length, k.shape[1])
        scores = (grouped + bias).reshape(scores.shape)
    exponents = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    out = jnp.einsum("bts,bsh->bth", exponents.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out = (out / exponents.sum(-1, keepdims=True)).astype(v.dtype)
    return einops.rearrange(out, "(b k) (g t) h -> b t (k g) h", b=batch, g=shared)
