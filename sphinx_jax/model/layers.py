"""Layers every part shares: linear maps with named axes, norms, stacks of blocks run by scan."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sphinx_jax.config import unknown
from sphinx_jax.sharding import constrain, platform

Axes = tuple[str | None, ...]

REMAT_NAMES = ("qkv", "attended", "ffn")  # what the decoder's blocks call their results
FEW_ROWS = 64  # up to which a CPU is faster with outputs first
UNROLLED = 4  # stacks of up to this many layers are unrolled


def param(rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes, std: float = 0.02) -> nnx.Param:
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32), out_sharding=axes)


def constant(value: float, shape: tuple[int, ...], axes: Axes) -> nnx.Param:
    return nnx.Param(jnp.full(shape, value, jnp.float32), out_sharding=axes)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["matrix"], meta_fields=["outputs", "turned"])
@dataclass(frozen=True)
class Flat:
    """A kernel as a matrix, which an accelerator need not lay out anew for every product.

    `matrix` (inputs, outputs), each flat, perhaps in 8 bits; `outputs`: the shape of what comes out. `turned`: with its
    outputs first, by which a CPU multiplies a few rows at up to twice the speed.
    """

    matrix: Any
    outputs: tuple[int, ...]
    turned: bool


def flat(kernel: Any, dims: int, turn: bool) -> Flat:
    """A kernel (*inputs, *outputs) with `dims` input dimensions, turned if it is to be; one in 8 bits never is."""
    if is_quantised(kernel):
        values, scale = kernel.qvalue, kernel.scale
        matrix = kernel.replace(qvalue=_matrix(values, dims), scale=scale.reshape(1, -1))
        return Flat(matrix, values.shape[dims:], False)
    matrix = _matrix(kernel, dims)
    return Flat(matrix.T if turn else matrix, kernel.shape[dims:], turn)


def _matrix(kernel: jax.Array, dims: int) -> jax.Array:
    return kernel.reshape(math.prod(kernel.shape[:dims]), -1)


def is_quantised(leaf: Any) -> bool:
    return hasattr(leaf, "qvalue")  # asked of every leaf of every model: qwix takes long to import


def product(x: jax.Array, matrix: jax.Array, of: int = 0) -> jax.Array:
    """x (M, K) · matrix (K, N) -> (M, N), or · matrix (N, K)ᵀ with `of` 1, in the dtype of x."""
    if _is_bfloat16_on_cpu(x):  # two to ten times as fast where it may sum up in float32
        return in_float32(x, matrix, of).astype(x.dtype)
    return jax.lax.dot_general(x, matrix, (((1,), (of,)), ((), ())))


def in_float32(x: jax.Array, matrix: jax.Array, of: int = 0) -> jax.Array:
    """The same, in float32 whatever is multiplied."""
    # a CPU has fast kernels in bfloat16 for two rows and more
    rows = jnp.broadcast_to(x, (2, x.shape[1])) if len(x) == 1 and _is_bfloat16_on_cpu(x) else x
    return jax.lax.dot_general(rows, matrix, (((1,), (of,)), ((), ())), preferred_element_type=jnp.float32)[: len(x)]


def _is_bfloat16_on_cpu(x: jax.Array) -> bool:
    return x.dtype == jnp.bfloat16 and platform() == "cpu"


def by_rows(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """x (M, inputs) · matrix (outputs, inputs)ᵀ -> (M, outputs)."""
    if len(x) > FEW_ROWS or _is_bfloat16_on_cpu(x) or platform() != "cpu":
        return product(x, matrix, of=1)
    # without the barrier XLA would turn the product around again
    return jax.lax.optimization_barrier(matrix @ x.T).T


def contract(x: jax.Array, kernel: Any, dims: int = 1) -> jax.Array:
    """x (…, *inputs) · kernel (*inputs, *outputs) -> (…, *outputs), over `dims` dimensions.

    As one product of two matrices: the gradients of a contraction over more dimensions run at half the speed on a CPU.
    Of a kernel in 8 bits the products are scaled, an output each, and not the matrix, which is read as it is.
    """
    if is_quantised(kernel):
        matrix, outputs = _matrix(kernel.qvalue.astype(x.dtype), dims), kernel.qvalue.shape[dims:]
        # in float32: before they are scaled, products may be larger than float16 goes
        y = in_float32(x.reshape(-1, len(matrix)), matrix)
        return (y * kernel.scale.reshape(1, -1)).astype(x.dtype).reshape(*x.shape[: x.ndim - dims], *outputs)
    if isinstance(kernel, Flat):
        rows = x.reshape(-1, math.prod(x.shape[x.ndim - dims :]))
        y = by_rows(rows, kernel.matrix.astype(x.dtype)) if kernel.turned else contract(rows, kernel.matrix)
        return y.reshape(*x.shape[: x.ndim - dims], *kernel.outputs)
    matrix = _matrix(kernel.astype(x.dtype), dims)
    y = product(x.reshape(-1, len(matrix)), matrix)
    return y.reshape(*x.shape[: x.ndim - dims], *kernel.shape[dims:])


class Linear(nnx.Module):
    """y = x · kernel + bias over the last `len(inputs)` dimensions of x.

    `inputs` and `outputs` map axis names to sizes, e.g. `{"embed": D}` -> `{"heads": N, None: H}` gives a
    kernel (D, N, H).  Weights are cast to x's dtype; the product accumulates as the backend does for that dtype.
    """

    def __init__(self, inputs: dict, outputs: dict, *, bias: bool = True, std: float | None = None, rngs: nnx.Rngs):
        self.contracted = len(inputs)
        fan_in = 1
        for size in inputs.values():
            fan_in *= size
        std = fan_in**-0.5 if std is None else std
        self.kernel = param(rngs, (*inputs.values(), *outputs.values()), (*inputs, *outputs), std)
        self.bias = constant(0.0, tuple(outputs.values()), tuple(outputs)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = contract(x, self.kernel[...], self.contracted)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Normalises in float32 whatever the dtype of x."""

    def __init__(self, width: int, eps: float, axis: str | None = None):
        self.eps = eps
        self.scale = constant(1.0, (width,), (axis,))
        self.bias = constant(0.0, (width,), (axis,))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        mean = y.mean(-1, keepdims=True)
        # the two-pass variance: E[x²] − E[x]² loses the digits that parity needs
        variance = jnp.square(y - mean).mean(-1, keepdims=True)
        y = (y - mean) * jax.lax.rsqrt(variance + self.eps)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """LLaMA's: normalise in float32, cast back, then scale."""

    def __init__(self, width: int, eps: float):
        self.eps = eps
        self.scale = constant(1.0, (width,), (None,))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return y.astype(x.dtype) * self.scale[...].astype(x.dtype)


def quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": quick_gelu,
    "silu": jax.nn.silu,
}


def stack(make: Callable[[nnx.Rngs], nnx.Module], layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """`layers` blocks whose parameters carry a leading axis named `layers`."""

    @nnx.split_rngs(splits=layers)
    @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
    def build(rngs: nnx.Rngs) -> nnx.Module:
        return make(rngs)

    return build(rngs)


def remat_policy(remat: str) -> Callable | None:
    """What a block keeps for its backward pass, by name (`run_stack`).  Raises ConfigError for an unknown one."""
    policies = jax.checkpoint_policies
    if remat in ("full", "dots"):
        return None if remat == "full" else policies.checkpoint_dots
    for name in remat.split("+"):
        if name not in REMAT_NAMES:
            raise unknown("remat", name, ("none", "full", "dots", *REMAT_NAMES))
    return policies.save_only_these_names(*remat.split("+"))


def _ready(params: nnx.State, dtype: jnp.dtype) -> nnx.State:
    """A layer's matrices in the compute dtype, still in their shards; those in 8 bits as they are.

    So they are gathered, and their gradients summed and scattered, at the width of that dtype.
    """

    def one(variable: nnx.Variable) -> nnx.Variable:
        value, axes = variable.get_value(), variable.get_metadata().get("out_sharding")
        if isinstance(value, Flat):
            return variable
        if is_quantised(value):
            from sphinx_jax.model.quantise import scales_outputs, whole

            if axes and scales_outputs(value):
                return variable.replace(value.replace(qvalue=constrain(value.qvalue, *axes[-value.qvalue.ndim :])))
            value = whole(value, dtype)
        if value.ndim < 2 or not axes:
            return variable
        return variable.replace(constrain(value.astype(dtype), *axes[-value.ndim :]))

    return jax.tree.map(one, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def ready(block: nnx.Module, dtype: jnp.dtype) -> nnx.Module:
    """A block whose matrices are in the compute dtype, as `run_stack` has it."""
    graphdef, params = nnx.split(block)
    return nnx.merge(graphdef, _ready(params, dtype))


def run_stack(
    blocks: nnx.Module, x: Any, call: Callable, per_layer: Sequence[Any] | None = None, remat: str = "none"
) -> tuple[Any, Any]:
    """Run `x, y = call(block, x, extra)` through a stack; `remat` names the checkpoint policy.

    A stack is scanned, and the y's of its layers are stacked too. One whose layers lie apart (`blueprint.apart`), or
    which is given something for each layer (`per_layer`, its `extra`), is unrolled: nothing is copied into or out of
    a stack then. With `per_layer` the y's are a list.

    `none` keeps every activation for the backward pass, `full` the block's input alone, `dots` also the results
    of matrix products, and names joined by + (`attended+qkv`) what is called so (`REMAT_NAMES`) beside the input.
    """
    graphdef, stacked = nnx.split(blocks)
    values = [variable.get_value() for _, variable in stacked.flat_state()]
    layers = len(values[0] if isinstance(values[0], tuple) else jax.tree.leaves(values[0])[0])

    def body(x, slices):
        params, extra = slices
        # without this XLA may give every device the whole batch, and a part of the channels
        x = constrain(x, "batch", *(None,) * (x.ndim - 1))
        return call(nnx.merge(graphdef, _ready(params, x.dtype)), x, extra)

    if remat != "none":
        body = jax.checkpoint(body, prevent_cse=False, policy=remat_policy(remat))
    if per_layer is not None or isinstance(values[0], tuple):
        found = []
        for layer in range(layers):
            x, y = body(x, (_layer(stacked, layer), None if per_layer is None else per_layer[layer]))
            found.append(y)
        return x, found if per_layer is not None else jax.tree.map(lambda *ys: jnp.stack(ys), *found)
    # a few small layers compile quickly unrolled, and run without copies into and out of the stack
    return jax.lax.scan(body, x, (stacked, None), unroll=layers if layers <= UNROLLED else 1)


def _layer(stacked: nnx.State, layer: int) -> nnx.State:
    """The parameters of one layer of a stack, in one piece or apart."""

    def one(variable: nnx.Variable) -> nnx.Variable:
        value = variable.get_value()
        of_layer = value[layer] if isinstance(value, tuple) else jax.tree.map(lambda x: x[layer], value)
        return variable.replace(of_layer)

    return jax.tree.map(one, stacked, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
