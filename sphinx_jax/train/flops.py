"""Model FLOPs by our own count, and the peak of the device, for MFU.

MFU = model FLOPs of a step / (step seconds · devices · peak).  Model FLOPs are the matrix products of forward and
backward (3 × forward; frozen encoders forward only), causal attention counted once per pair that is seen, nothing
recomputed.
"""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp

from sphinx_jax.config import DecoderConfig, ModelConfig
from sphinx_jax.model.blueprint import count_parameters

# bf16 dense FLOP/s of one device as jax counts devices, from the vendors' data sheets
PEAKS = {
    "TPU v4": 275e12 / 2, "TPU v5 lite": 197e12, "TPU v5": 459e12, "TPU v6 lite": 918e12,
    "NVIDIA H100": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100": 312e12,
}  # fmt: skip


def decoder_forward(config: DecoderConfig, positions: int, labelled: int) -> float:
    """FLOPs of one sequence of ``positions``, of which ``labelled`` go through the output matrix."""
    c = config
    block = c.dim * c.head_dim * 2 * (c.heads + c.num_kv_heads) + 3 * c.dim * c.ffn_dim
    attention = 2 * 2 * c.heads * c.head_dim * positions * (positions + 1) / 2
    return c.layers * (2 * block * positions + attention) + 2 * c.dim * c.vocab_size * labelled


def image_forward(config: ModelConfig, cached: bool) -> float:
    """FLOPs of one picture before the decoder: encoders (unless their features are cached) by parameters × tokens."""
    counts = count_parameters(config)
    tokens = config.views.views * (1 + config.grid**2)
    mixed = config.image_positions * (counts["visual_proj"] + counts.get("qformer_proj", 0))
    if cached:
        return 2.0 * mixed
    encoders = sum(counts.get(name, 0) for name in ("clip", "convnext", "dinov2", "blip2_vision"))
    return 2.0 * (mixed + tokens * encoders)


@functools.cache
def peak_flops() -> float:
    """Peak FLOP/s of one device: the data sheet's, or on a CPU what a large float32 matmul reaches here."""
    device = jax.devices()[0]
    for name, peak in PEAKS.items():
        if device.device_kind.startswith(name):
            return peak
    size = 1024
    a = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(lambda a: a @ a)
    multiply(a).block_until_ready()
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        multiply(a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
