"""Rotary positions on interleaved pairs (x[2i], x[2i+1]), always in float32 (Su et al. 2021, as LLaMA)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Num

from sphinx_jax.sharding import platform

Rotation = tuple[Float[Array, "*P half"], Float[Array, "*P half"]]  # cosines and sines


def rotation(
    positions: Num[Array, "*P"],
    head_dim: int,
    theta: float,
    scaling: float | None = None,
    llama3: tuple[float, ...] | None = None,
) -> Rotation:
    """positions (…) int -> cosines and sines (…, H/2) float32.

    `scaling` multiplies positions; `llama3` slows the low frequencies down, see `stretch`.
    """
    # the reference's own order of operations: a last bit of a frequency is micro-radians at the end of a long text
    powers = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies: Any = 1 / np.float32(theta) ** powers
    if llama3 is not None:
        frequencies = stretch(frequencies, *llama3)
    positions = positions.astype(jnp.float32)
    angles = (positions if scaling is None else positions * scaling)[..., None] * frequencies
    if (
        platform() == "cpu"
    ):  # whose compiler works out the angles anew for each number that is turned, but not in a loop
        cos, sin = jax.lax.map(lambda i: jax.lax.cond(i == 0, jnp.cos, jnp.sin, angles), jnp.arange(2))
        return cos, sin
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B T N H"], by: tuple[Float[Array, "#B T half"], Float[Array, "#B T half"]]
) -> Float[Array, "B T N H"]:
    """x (B, T, N, H), by (B, T, H/2) -> (B, T, N, H)."""
    y = x.astype(jnp.float32)
    if platform() == "cpu":  # whose gradient takes a third of the time so
        pairs = y.reshape(*x.shape[:-1], -1, 2)
        cos, sin = (part[..., None, :] for part in by)
        even, odd = pairs[..., 0], pairs[..., 1]
        turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)
    else:  # for a dimension of pairs a TPU would lay out the matrices before it anew
        cos, sin = (jnp.repeat(part, 2, axis=-1)[..., None, :] for part in by)
        is_even = jnp.arange(x.shape[-1]) % 2 == 0
        turned = y * cos + jnp.where(is_even, -jnp.roll(y, -1, axis=-1), jnp.roll(y, 1, axis=-1)) * sin
    return turned.astype(x.dtype)


def stretch(
    frequencies: Float32[Array | np.ndarray, " half"], factor: float, low: float, high: float, length: float
) -> Float32[Array, " half"]:
    """LLaMA 3.1's long context: waves that fit the original `length` less than `low` times are `factor` slower.

    Those that fit more than `high` times stay, those between go over smoothly (Meta's `apply_scaling`).
    """
    fits = length * frequencies / (2 * jnp.pi)
    smooth = jnp.clip((fits - low) / (high - low), 0, 1)
    return jnp.asarray(frequencies) * (smooth + (1 - smooth) / factor)
