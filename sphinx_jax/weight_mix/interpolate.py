"""The mix of weights in memory: θ_mix = β·θ_real + (1 − β)·θ_syn (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from sphinx_jax.model.blueprint import Leaves


def interpolate(trees: Sequence[Leaves], coefficients: jax.Array | Sequence[float] | Leaves) -> Leaves:
    """Σ coefficients[i] · trees[i], leaf by leaf, in float32 or higher and back in the first tree's dtypes.

    A traced function: under jit the coefficients are inputs, so any number of mixes is evaluated with one compilation
    and none is written.  Sharded trees stay sharded.

    Args:
      trees: N trees of one structure.
      coefficients: (N,) for all leaves, or a tree of (N,) and (N, L), one for each of L layers along the first axis.
    """

    def mix(own: jax.Array, first: jax.Array, *others: jax.Array) -> jax.Array:
        dtype = jnp.promote_types(first.dtype, jnp.float32)
        own = own.reshape(*own.shape, *(1,) * (first.ndim + 1 - own.ndim))
        total = sum(c * x.astype(dtype) for c, x in zip(own, (first, *others), strict=True))
        return total.astype(first.dtype)

    if not isinstance(coefficients, Mapping):
        every = jnp.asarray(coefficients)
        coefficients = jax.tree.map(lambda _: every, trees[0])
    return jax.tree.map(mix, coefficients, *trees)
