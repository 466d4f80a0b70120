"""Model FLOPs by our own count, and the peak of the device, for MFU.

MFU = model FLOPs of a step / (step seconds · devices · peak).  Model FLOPs are the matrix products of forward and
backward (3 × forward; frozen encoders forward only), causal attention counted once per pair that is seen, nothing
recomputed.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sphinx_jax.config import DecoderConfig, ModelConfig, need
from sphinx_jax.model.blueprint import count_parameters

# bf16 dense FLOP/s of one device as jax counts devices, from the vendors' data sheets
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA A100": 312e12,
    "NVIDIA A10": 125e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "Tesla T4": 65e12,
    "Tesla V100": 125e12,
}


def decoder_forward(config: DecoderConfig, positions: int, labelled: int) -> float:
    """FLOPs of one sequence of `positions`, of which `labelled` go through the output matrix."""
    c = config
    attention = 2 * 2 * c.heads * c.head_dim * positions * (positions + 1) / 2
    return c.layers * (2 * _block(c) * positions + attention) + 2 * c.dim * c.vocab_size * labelled


def _block(config: DecoderConfig) -> int:
    """Parameters of a layer that each token is multiplied by."""
    c = config
    chosen = c.moe.per_token if c.moe else 1
    return c.dim * c.head_dim * 2 * (c.heads + c.num_kv_heads) + 3 * c.dim * c.ffn_dim * chosen


def decoder_token(config: DecoderConfig, before: int) -> float:
    """FLOPs of one token that follows `before` others, logits included."""
    return 2 * (config.layers * _block(config) + config.dim * config.vocab_size) + (
        4 * config.layers * config.heads * config.head_dim * before
    )


def image_forward(config: ModelConfig, cached: bool) -> float:
    """FLOPs of one picture before the decoder: projections, and encoders unless their features are cached."""
    counts = count_parameters(config)
    mixed = config.image_positions * (counts["visual_proj"] + counts.get("qformer_proj", 0))
    if cached:
        return 2.0 * mixed
    encoded = 0
    for name, vit in (("clip", config.clip), ("dinov2", config.dinov2), ("blip2_vision", config.blip2)):
        encoded += counts.get(name, 0) * (1 + vit.grid**2) if vit else 0
    if config.convnext:
        c = config.convnext
        for i, (depth, width) in enumerate(zip(c.depths, c.dims, strict=True)):
            positions = (c.input_size // (4 * 2**i)) ** 2
            encoded += depth * positions * (49 * width + 8 * width**2)  # depthwise 7 × 7, then up and down
    return 2.0 * (mixed + need(config.views).views * encoded)


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
    return 2 * size**3 / best_seconds(multiply, a)


def best_seconds(function: Callable[[jax.Array], jax.Array], x: jax.Array, rounds: int = 5) -> float:
    """The least time that a compiled function takes, of several."""
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        function(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return best
