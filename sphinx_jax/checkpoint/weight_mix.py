"""The mix of weights: θ_mix = β·θ_real + (1 − β)·θ_syn (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sphinx_jax.model.blueprint import Leaves


def interpolate(trees: Sequence[Leaves], coefficients: jax.Array) -> Leaves:
    """Σ coefficients[i] · trees[i], leaf by leaf, in float32 or higher and back in the first tree's dtypes.

    A traced function: under jit the coefficients are inputs, so any number of mixes is evaluated with one compilation
    and none is written.  Sharded trees stay sharded.
    """

    def mix(first: jax.Array, *others: jax.Array) -> jax.Array:
        dtype = jnp.promote_types(first.dtype, jnp.float32)
        total = sum(c * x.astype(dtype) for c, x in zip(coefficients, (first, *others), strict=True))
        return total.astype(first.dtype)

    return jax.tree.map(mix, *trees)


def make_mixed(
    evaluate: Callable[[Leaves, Any], jax.Array],
) -> Callable[[float, Leaves, Leaves, Any], jax.Array]:
    """(β, θ_real, θ_syn, batch) -> ``evaluate(β·θ_real + (1 − β)·θ_syn, batch)``: one program for every β."""

    @jax.jit
    def at(beta: jax.Array, real: Leaves, synthetic: Leaves, batch: Any) -> jax.Array:
        return evaluate(interpolate([real, synthetic], jnp.stack([beta, 1 - beta])), batch)

    return lambda beta, real, synthetic, batch: at(jnp.float32(beta), real, synthetic, batch)
