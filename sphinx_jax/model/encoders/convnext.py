"""ConvNeXt (language-supervised, convolutional; Liu et al. 2022, timm layout)."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from sphinx_jax.config import ConvNextConfig, need
from sphinx_jax.model.encoders.vit import Mlp
from sphinx_jax.model.layers import LayerNorm, constant, contract, param, run_stack, stack
from sphinx_jax.sharding import constrain, platform

KERNEL = 7
# On a CPU, up to this many positions, the gradient of a depthwise convolution is that of one small matmul per channel
DENSE_POSITIONS = 256


def depthwise(x: Float[Array, "I H W C"], kernel: Float[Array, "7 7 C"]) -> Float[Array, "I H W C"]:
    """(I, H, W, C) * (7, 7, C) -> (I, H, W, C), zero padding."""
    return _by_taps(x, kernel) if platform() == "cpu" else _by_convolution(x, kernel)


def _by_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@jax.custom_vjp
def _by_taps(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The sum of the shifted pictures, one loop over all taps: XLA's convolution takes 7 to 100 times as long on a CPU.

    Its own gradient would be 49 loops; the other forms give it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:  # a loop over pictures would gather those of all devices
        return _sum_of_taps(x, kernel)
    # picture by picture: beside what follows XLA cuts the sum into a dozen loops, which take twice as long
    return jax.lax.map(lambda picture: _sum_of_taps(picture, kernel), x)


def _sum_of_taps(x: jax.Array, kernel: jax.Array) -> jax.Array:
    height, width, _ = x.shape[-3:]
    pad = KERNEL // 2
    padded = jnp.pad(x, (*((0, 0),) * (x.ndim - 3), (pad, pad), (pad, pad), (0, 0)))
    taps = ((i, j) for i in range(KERNEL) for j in range(KERNEL))
    shifted = (padded[..., i : i + height, j : j + width, :] * kernel[i, j] for i, j in taps)
    return functools.reduce(operator.add, shifted)


def _with_gradient(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Callable]:
    dense = x.shape[1] * x.shape[2] <= DENSE_POSITIONS
    return jax.vjp(_by_matrices if dense else _by_convolution, x, kernel)


_by_taps.defvjp(_with_gradient, lambda pull, above: pull(above))


def _by_matrices(x: jax.Array, kernel: jax.Array) -> jax.Array:
    _, height, width, _ = x.shape
    rows, columns = (_taps(size).astype(kernel.dtype) for size in (height, width))
    matrix = jnp.einsum("ioh,jpw,ijc->cophw", rows, columns, kernel)
    matrix = einops.rearrange(matrix, "c o p h w -> c (o p) (h w)")
    out = jnp.einsum("cqs,isc->iqc", matrix, einops.rearrange(x, "i h w c -> i (h w) c"))
    return einops.rearrange(out, "i (h w) c -> i h w c", h=height)


def _taps(size: int) -> np.ndarray:
    """(7, size, size) float32: tap i of output o reads input o + i − 3, where there is one."""
    tap, out, source = np.ogrid[:KERNEL, :size, :size]
    return (source == out + tap - KERNEL // 2).astype(np.float32)


class Block(nnx.Module):
    def __init__(self, width: int, eps: float, *, rngs: nnx.Rngs):
        self.depthwise_kernel = param(rngs, (KERNEL, KERNEL, width), (None, None, "channels"), 1 / KERNEL)
        self.depthwise_bias = constant(0.0, (width,), ("channels",))
        self.norm = LayerNorm(width, eps)
        self.mlp = Mlp(width, 4 * width, "gelu", rngs=rngs)
        self.scale = constant(1.0, (width,), (None,))

    def __call__(self, x: jax.Array) -> jax.Array:
        # kept whole: else XLA sends the pictures to where the channels are, and back
        kernel = constrain(self.depthwise_kernel[...].astype(x.dtype), None, None, None)
        y = constrain(depthwise(x, kernel), "batch", None, None, None) + self.depthwise_bias[...].astype(x.dtype)
        return x + self.mlp(self.norm(y)) * self.scale[...].astype(x.dtype)


class Patchify(nnx.Module):
    """A strided convolution without overlap.  (I, H, W, C) -> (I, H/size, W/size, width)."""

    def __init__(self, size: int, channels: int, width: int, *, rngs: nnx.Rngs):
        self.size = size
        std = (size * size * channels) ** -0.5
        self.kernel = param(rngs, (size, size, channels, width), (None, None, None, "channels"), std)
        self.bias = constant(0.0, (width,), ("channels",))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = einops.rearrange(x, "i (h p) (w q) c -> i h w (p q c)", p=self.size, q=self.size)
        kernel = self.kernel[...]
        return contract(x, kernel.reshape(-1, kernel.shape[-1])) + self.bias[...].astype(x.dtype)


class Stage(nnx.Module):
    def __init__(self, depth: int, before: int, width: int, first: bool, eps: float, *, rngs: nnx.Rngs):
        self.norm = None if first else LayerNorm(before, eps)
        self.downsample = None if first else Patchify(2, before, width, rngs=rngs)
        self.blocks = stack(lambda r: Block(width, eps, rngs=r), depth, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.downsample is not None:
            x = self.downsample(need(self.norm)(x))
        x, _ = run_stack(self.blocks, x, lambda block, x, _: (block(x), None))
        return x


class ConvNext(nnx.Module):
    """(I, S, S, 3) views -> (I, G, G, C) map after the head's norm, which the reference does apply."""

    def __init__(self, config: ConvNextConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        self.stem = Patchify(4, 3, c.dims[0], rngs=rngs)
        self.stem_norm = LayerNorm(c.dims[0], c.norm_eps)
        befores = (c.dims[0], *c.dims[:-1])
        self.stages = nnx.List(
            Stage(depth, before, width, i == 0, c.norm_eps, rngs=rngs)
            for i, (depth, before, width) in enumerate(zip(c.depths, befores, c.dims, strict=True))
        )
        self.norm = LayerNorm(c.dims[-1], c.norm_eps)

    def __call__(self, views: jax.Array) -> jax.Array:
        x = self.stem_norm(self.stem(views))
        for stage in self.stages:
            x = stage(x)
        return self.norm(x)
