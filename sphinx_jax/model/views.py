"""Scales and sub-images: one picture becomes an overview and its crops.

The reference resizes through float16 with bicubic a = −0.75 and no antialiasing; that rounding is part of the maths of
the released weights, so it is reproduced: input to float16, the four weights to float16 (the reference on the CPU; on
CUDA they stay float32), the sum in float32, the result to float16.
"""

from __future__ import annotations

import functools
import operator
from typing import Any, NamedTuple

import einops
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt8

from sphinx_jax.config import CLIP_MEAN, CLIP_STD, ViewsConfig


def normalise(pixels: UInt8[Array | np.ndarray, "*B 3"]) -> Float32[Array, "*B 3"]:
    """(…, 3) uint8 -> float32 with CLIP's statistics."""
    values = jnp.asarray(pixels).astype(jnp.float32) / 255
    return (values - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)


class Taps(NamedTuple):
    """The four source pixels of each target pixel along one axis, both (target, 4)."""

    pixels: np.ndarray  # int
    weights: np.ndarray  # float32


@functools.cache
def cubic_taps(target: int, source: int, scale: float | None = None, weights: str = "float32") -> Taps:
    """PyTorch's bicubic resize: a = −0.75, half-pixel centres, edges repeated; weights rounded to a dtype.

    `scale` is source pixels per target pixel; it defaults to source / target and sets the sampling grid.
    """
    step = np.float32(source / target if scale is None else scale)
    at = _fused(np.arange(target) + 0.5, step, -0.5)
    base = np.floor(at)
    t = at - base
    a = -0.75

    def near(x):
        return _fused(_fused(a + 2, x, -(a + 3)) * x, x, 1)

    def far(x):
        return _fused(_fused(_fused(a, x, -5 * a), x, 8 * a), x, -4 * a)

    rounded = np.stack([far(t + 1), near(t), near(1 - t), far(2 - t)], axis=1).astype(weights)
    pixels = base[:, None].astype(np.int64) + np.arange(-1, 3)
    return Taps(np.clip(pixels, 0, source - 1), rounded.astype(np.float32))


def _fused(a: Any, b: Any, c: float) -> Any:
    """a · b + c rounded once to float32: the multiply-add of the processors that the reference's numbers come from."""
    return (np.float64(a) * np.float64(b) + c).astype(np.float32)


def interpolate(images: Float[Array, "*B S S C"], taps: Taps) -> Float[Array, "*B target target C"]:
    """(…, S, S, C) -> (…, target, target, C), both axes by the same taps.

    Tap by tap, along the rows first: in the reference's order of sums no value of a float16 resize differs from it,
    compiled for a processor that fuses multiply-adds; otherwise a few fall on the other side of a tie.
    """
    for axis in (-2, -3):
        weights = np.expand_dims(taps.weights, tuple(range(1, -axis)))
        parts = (jnp.take(images, taps.pixels[:, i], axis) * weights[..., i] for i in range(4))
        images = functools.reduce(operator.add, parts)
    return images


def resize(images: Float[Array, "B S S C"], size: int, weights: str = "float16") -> Float[Array, "B {size} {size} C"]:
    """(B, S, S, C) -> (B, size, size, C) float32, every value a float16 one."""
    images = images.astype(jnp.float16).astype(jnp.float32)
    if images.shape[1] == size:
        return images
    images = interpolate(images, cubic_taps(size, images.shape[1], weights=weights))
    return images.astype(jnp.float16).astype(jnp.float32)


def nearest(images: Float[Array, "I S S C"], size: int) -> Float[Array, "I {size} {size} C"]:
    """(I, S, S, C) -> (I, size, size, C), source index floor(target · S / size), through float16 as the reference."""
    source = images.shape[1]
    if source == size:
        return images
    index = np.arange(size) * source // size
    return images[:, index][:, :, index].astype(jnp.float16).astype(jnp.float32)


def make_views(
    images: Float[Array, "B S S 3"], view_size: int, config: ViewsConfig
) -> Float[Array, "I {view_size} {view_size} 3"]:
    """(B, S, S, 3) -> (B · views, view_size, view_size, 3), overview first, then crops row by row."""
    half = config.half_resize
    if images.shape[1] == view_size and not config.half_overview:
        overview = images
    else:
        overview = resize(images, view_size, half)
    if not config.crops:
        return overview
    side = view_size * config.crops
    # crops at the picture's own size are raw slices, never rounded
    large = images if images.shape[1] == side else resize(images, side, half)
    crops = einops.rearrange(large, "b (r h) (c w) d -> b (r c) h w d", r=config.crops, c=config.crops)
    return einops.rearrange(jnp.concatenate([overview[:, None], crops], axis=1), "b v h w d -> (b v) h w d")


def padding_alone(images: Float[Array, "B S S 3"], config: ViewsConfig) -> Bool[Array, "B V"]:
    """(B, S, S, 3) CLIP-normalised -> (B, views) bool: the crops in which nothing but padding is to be seen."""
    colour = (np.floor(255 * np.array(CLIP_MEAN)) / 255 - CLIP_MEAN) / CLIP_STD
    same = abs(images - colour.astype(np.float32)) < 1e-3  # a step of eight-bit colour is ten times that
    crops = einops.rearrange(same, "b (r h) (c w) d -> b (r c) h w d", r=config.crops, c=config.crops)
    # a bicubic resize spreads the picture's edge over two pixels
    crops = crops[:, :, 2:-2, 2:-2].all((2, 3, 4))
    return jnp.pad(crops, ((0, 0), (1, 0)))  # the overview is never skipped


def kept_views(skipped: Bool[np.ndarray, "B V"]) -> Int32[np.ndarray, " K"]:
    """(B, views) bool -> (K,) int32 numbers of the views to encode, in rows of views.

    K is a multiple of B, so that few programs are compiled; a number beyond the last view fills it up.
    """
    kept = np.flatnonzero(~skipped)
    room = -(-len(kept) // len(skipped)) * len(skipped)
    return np.pad(kept, (0, room - len(kept)), constant_values=skipped.size).astype(np.int32)
