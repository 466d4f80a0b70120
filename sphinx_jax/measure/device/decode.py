"""A token of the published decoders on this device: milliseconds, and how fast their weights are read.

Weights are random: the largest of the 13B, 7B and 1.1B shapes that the device has room for.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.config import DECODERS, FAMILY, DecoderConfig, ModelConfig
from sphinx_jax.generate.batching import programs
from sphinx_jax.generate.batching.programs import STEPS
from sphinx_jax.measure.device import hardware
from sphinx_jax.measure.device.rows import Row, Setting, reason, size_text
from sphinx_jax.model.blueprint import Leaves, apart, blueprint
from sphinx_jax.sharding import make_mesh
from sphinx_jax.train.program import abstract_kept

POSITIONS = 256  # of the cache; all of them are read for every token
BATCHES = {"": (1, 8, 64), "int8": (1, 8), "nf4": (1, 8)}
ROUNDS, ROUND = 5, 0.5  # rounds, of which the middle one counts, and about how many seconds each takes
SPARE = 1.5 * 2**30  # bytes for what is neither weights nor cache


def check(setting: Setting, deadline: float, quantize: str = "") -> Iterator[Row]:
    """A row for each batch: ms a token, GB/s of weights and the share of the memory's bandwidth."""
    name, model = fitting(hardware.device_memory())
    leaves = born(model, quantize)
    size = weight_bytes(leaves)
    leaves = apart(leaves)
    peak, origin = hardware.bandwidth()
    for batch in BATCHES[quantize] if hardware.device_memory() else (1,):
        what = f"{name} decoder, {quantize or model.dtype}, {size_text(sum(size.values()))}: batch {batch}"
        needed = sum(size.values()) + room(model, batch)
        if needed > (hardware.device_memory() or needed):
            yield Row(what, f"left out: takes {size_text(needed)}")
            continue
        try:
            seconds = seconds_of_token(model, leaves, batch, deadline)
        except RuntimeError as error:
            yield Row(what, reason(error), ok=False)
            continue
        rate = size["read"] / seconds
        result = (
            f"{seconds * 1e3:.2f} ms a token, {batch / seconds:,.0f} tokens/s; weights at {rate / 1e9:,.1f} GB/s, "
            f"{rate / peak:.0%} of {peak / 1e9:,.1f} ({origin})"
        )
        numbers = {
            "seconds": seconds,
            "batch": batch,
            "positions": POSITIONS,
            "weights": sum(size.values()),
            "read": size["read"],
            "cache": cache_bytes(model, batch),
            "bandwidth": peak,
            "bandwidth_from": origin,
        }
        yield Row(what, result, True, hardware.peak_gib(), numbers)


def fitting(memory: int | None) -> tuple[str, ModelConfig]:
    """The largest published decoder in bfloat16 that fits with a cache of one row, or a nano one on a CPU."""
    nano = FAMILY["sphinx_nano"].decoder
    if memory is None:
        return "nano", _text(nano, "float32")
    for name in ("13b", "7b", "tiny"):
        model = _text(DECODERS[name], "bfloat16")
        weights = 2 * sum(spec.size for spec in blueprint(model).specs.values())
        if weights + room(model, 1) <= memory:
            return {"tiny": "1.1B"}.get(name, name.upper()), model
    return "nano", _text(nano, "bfloat16")


def room(model: ModelConfig, batch: int) -> int:
    """Bytes beside the weights: the cache, old and new, and what a token takes."""
    return int(2.1 * cache_bytes(model, batch) + SPARE)


def cache_bytes(model: ModelConfig, batch: int) -> int:
    c = model.decoder
    return 2 * c.layers * batch * POSITIONS * c.num_kv_heads * c.head_dim * jnp.dtype(model.dtype).itemsize


def born(model: ModelConfig, quantize: str) -> Leaves:
    """Random leaves as inference keeps them, a layer at a time: in the compute dtype, the matrices in few bits."""
    mesh = make_mesh(devices=jax.devices()[:1])
    plan = abstract_kept(model, mesh, blueprint(model).specs, quantize)
    shapes, structure = jax.tree.flatten(plan)
    keys = jax.random.split(jax.random.key(0, impl="rbg"), len(shapes))
    return jax.tree.unflatten(structure, [_draw(key, x.shape, x.dtype) for key, x in zip(keys, shapes, strict=True)])


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _draw(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    if jnp.issubdtype(dtype, jnp.floating):
        if len(shape) < 3:
            return (0.02 * jax.random.normal(key, shape, jnp.float32)).astype(dtype)
        return jax.lax.map(lambda key: _draw(key, shape[1:], dtype), jax.random.split(key, shape[0]))
    # four bits of these are an nf4 code, seven an int8
    drawn = jax.random.bits(key, shape, jnp.uint8)
    return (drawn & 15).astype(dtype) if jax.dtypes.itemsize_bits(dtype) == 4 else (drawn & 127).astype(dtype)


def weight_bytes(leaves: Leaves) -> dict[str, int]:
    """Bytes of weights that every token reads, and of the rest: of the embedding it reads a row."""
    size = {"read": 0, "rest": 0}
    for path, leaf in leaves.items():
        bits = sum(math.prod(x.shape) * jax.dtypes.itemsize_bits(x.dtype) for x in jax.tree.leaves(leaf))
        size["rest" if path == "decoder/embedding" and "decoder/output" in leaves else "read"] += bits // 8
    return size


def seconds_of_token(model: ModelConfig, leaves: Leaves, batch: int, deadline: float) -> float:
    """The middle of some rounds of `programs.decode`, at the end of the cache.

    Raises RuntimeError where logits are not finite: such numbers are not worth a time.
    """
    cache = programs.empty(model, batch, POSITIONS)
    whole = functools.partial(np.full, batch, dtype=np.int32)
    rows = programs.idle(batch)._replace(token=whole(1), position=whole(POSITIONS - STEPS), left=whole(STEPS))
    endless = np.zeros((2, model.decoder.vocab_size), np.int32)

    def tokens(count: int) -> float:
        nonlocal cache
        begun = time.perf_counter()
        for _ in range(count):
            cache, *_, chances = programs.decode(model, leaves, cache, rows, endless, np.int32(STEPS), np.int32(batch))
        finite = bool(jnp.isfinite(chances).all())  # waits
        if not finite:
            raise RuntimeError("logits are not finite")
        return (time.perf_counter() - begun) / count / STEPS

    tokens(1)  # compiles
    count = max(1, min(64, int(ROUND / STEPS / tokens(1))))
    found = []
    while len(found) < ROUNDS and (not found or time.time() + count * STEPS * found[-1] < deadline):
        found.append(tokens(count))
    return statistics.median(found)


def _text(decoder: DecoderConfig, dtype: str) -> ModelConfig:
    return ModelConfig("llama", decoder, dtype=dtype)
