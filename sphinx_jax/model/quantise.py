"""Matrices of the decoder's layers in 8 or 4 bits, for when they do not train (qwix does the arithmetic).

A quantised leaf is a pair of arrays, values and scales, in the place of one.  Matrices in 8 bits are multiplied as they
are, and the products scaled (`layers.contract`, `moe.Map`; where an accelerator sends many rows to experts, theirs are
cast first). Those in 4 bits `run_stack` makes whole where the layer is computed, so one layer at a time is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from sphinx_jax.config import ATTENTION_MAPS, FFN_MAPS, unknown
from sphinx_jax.sharding import partition_spec

if TYPE_CHECKING:
    import qwix

QTYPES = ("int8", "nf4")
GROUP = 64  # values that share a scale in nf4 (Dettmers et al. 2023)
MATRICES = tuple(f"decoder/blocks/attention/{name}" for name in ATTENTION_MAPS) + tuple(
    f"decoder/blocks/ffn/{name}" for name in FFN_MAPS
)


def check_kind(kind: str) -> None:
    """Raises ConfigError for a kind that is not known."""
    if kind not in QTYPES:
        raise unknown("kind of quantisation", kind, QTYPES)


@functools.partial(jax.jit, static_argnames=("path", "kind"))
def quantise(path: str, leaf: jax.Array, kind: str) -> qwix.QArray:
    """Layers of a leaf of `MATRICES` in `kind`: int8 with a scale for each output, nf4 for each 64 inputs of one.

    leaf (L, [E,] *inputs, *outputs) float -> values of that shape, and scales of 1, or inputs / 64, along the inputs.
    """
    import qwix  # takes long to import, and most models have no leaf in few bits

    # the two axes that `o` takes, heads and their width, are inputs of one output
    first = leaf.ndim - 3 if path.endswith("/o") else leaf.ndim - 2 if "/ffn/" in path else 1
    inputs = (first, first + 1) if path.endswith("/o") else (first,)
    scaled = tuple(axis for axis in range(leaf.ndim) if axis not in inputs)
    if kind == "int8":
        return qwix.quantize(leaf.astype(jnp.float32), jnp.int8, channelwise_axes=scaled)
    # of two input axes the inner one is cut
    tiles = {inputs[-1]: math.gcd(leaf.shape[inputs[-1]], GROUP)}
    channels = tuple(axis for axis in range(leaf.ndim) if axis != inputs[-1])
    return qwix.quantize(leaf.astype(jnp.float32), "nf4", channelwise_axes=channels, tiled_axes=tiles)


@functools.partial(jax.jit, static_argnames="kind")
def requantise(leaf: jax.Array, scale: jax.Array, kind: str) -> qwix.QArray:
    """The quantised leaf of this scale that `leaf` was made whole of: `quantise` would choose scales anew, for int8
    other ones.

    leaf (L, …) in the dtype that it was made whole in, scale of as many dimensions, as `quantise` gives both.
    """
    import qwix

    of_each = scale.astype(leaf.dtype).astype(jnp.float32)
    for axis, (size, scales) in enumerate(zip(leaf.shape, scale.shape, strict=True)):
        if scales > 1:
            of_each = jnp.repeat(of_each, size // scales, axis)
    name, most = (jnp.int8, 127.5) if kind == "int8" else (kind, 1)
    unit = qwix.quantize(leaf.astype(jnp.float32) / of_each, name, calibration_method=f"fixed,{-most},{most}")
    return unit.replace(scale=scale)


def kind_of(leaf: qwix.QArray) -> str:
    return leaf.qtype if leaf.qtype in QTYPES else "int8"


def scales_outputs(leaf: qwix.QArray) -> bool:
    """Whether every output has one scale: products can be scaled then in place of the matrix."""
    return kind_of(leaf) == "int8"


def whole(leaf: qwix.QArray, dtype: Any) -> jax.Array:
    """The array that a quantised leaf stands for."""
    import qwix

    return qwix.dequantize(leaf.replace(scale=leaf.scale.astype(dtype)))


def on_host(leaf: qwix.QArray, dtype: Any) -> jax.Array:
    """The same in the host's memory; a device makes one layer of it at a time."""
    layers = [np.asarray(_whole_layer(leaf, np.int32(number), dtype)) for number in range(len(leaf.qvalue))]
    return jax.device_put(np.concatenate(layers), jax.local_devices(backend="cpu")[0])


@functools.partial(jax.jit, static_argnames="dtype")
def _whole_layer(leaf: qwix.QArray, number: jax.Array, dtype: Any) -> jax.Array:
    return whole(jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number), leaf), dtype)


def from_host(
    path: str,
    layers: Iterable[np.ndarray],
    kind: str,
    axes: Sequence[str | None],
    mesh: Mesh,
    scale: np.ndarray | None = None,
) -> qwix.QArray:
    """A leaf whose `layers`, each (1, …), come one at a time; the whole of it is only ever held in its few bits.

    `scale` of all layers, where they were quantised before (`requantise`).
    """
    cpu = jax.local_devices(backend="cpu")[0]
    parts = []
    for number, layer in enumerate(layers):
        layer = jax.device_put(layer, cpu)
        if scale is None:
            made = quantise(path, layer, kind)
        else:
            made = requantise(layer, jax.device_put(scale[number : number + 1], cpu), kind)
        parts.append(jax.tree.map(np.asarray, made))
    return jax.tree.map(
        lambda *xs: jax.device_put(
            np.concatenate(xs), NamedSharding(mesh, partition_spec(tuple(axes), (len(xs), *xs[0].shape[1:]), mesh))
        ),
        *parts,
    )
