"""Linear maps of the decoder's layers, with the bias and the low-rank addition that tuning gives them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import jax
from flax import nnx

from sphinx_jax.config import DecoderConfig
from sphinx_jax.model.layers import constant, contract, param

Dims = dict[str | None, int]  # axis name -> size
# what stays as it is where LoRA, biases, norms and projections train (the reference's `llama_ens_peft`)
BASE = (
    "decoder/embedding",
    "decoder/output",
    *(f"decoder/blocks/attention/{name}" for name in "qkvo"),
    *(f"decoder/blocks/ffn/{name}" for name in ("gate", "up", "down", "router")),
)
FACTOR = re.compile(r"(decoder/blocks/.*)lora/([^/]+)/([ab])")


class Lora(nnx.Module):
    """B(A(x)), without a scale (Hu et al. 2022 with alpha = rank, as the reference); zero when it is born."""

    def __init__(self, inputs: Dims, outputs: Dims, rank: int, *, rngs: nnx.Rngs):
        self.a = param(rngs, (*inputs.values(), rank), (*inputs, None), math.prod(inputs.values()) ** -0.5)
        self.b = constant(0.0, (rank, *outputs.values()), (None, *outputs))


def split(path: str) -> tuple[str, str]:
    """The weight that a leaf is a low-rank factor of, and which: `…/lora/q/a` -> (`…/q`, `a`).

    Any other leaf is itself, and no factor: (path, "").
    """
    found = FACTOR.fullmatch(path)
    return ("".join(found.group(1, 2)), found[3]) if found else (path, "")


def factors_of(path: str) -> tuple[str, str]:
    """The leaves of a weight's low-rank addition, A and B: `…/q` -> (`…/lora/q/a`, `…/lora/q/b`)."""
    parent, name = path.rsplit("/", 1)
    return f"{parent}/lora/{name}/a", f"{parent}/lora/{name}/b"


class Maps(nnx.Module):
    """Named linear maps, each a leaf of its own: `q`, and `bias/q`, `lora/q/a`, `lora/q/b` where configured."""

    def __init__(self, maps: Mapping[str, tuple[Dims, Dims]], config: DecoderConfig, *, rngs: nnx.Rngs):
        self.contracted = {name: len(inputs) for name, (inputs, _) in maps.items()}
        for name, (inputs, outputs) in maps.items():
            shape, axes = (*inputs.values(), *outputs.values()), (*inputs, *outputs)
            setattr(self, name, param(rngs, shape, axes, math.prod(inputs.values()) ** -0.5))
        biased = [name for name in maps if name in config.bias]
        self.bias = nnx.Dict({n: constant(0.0, tuple(maps[n][1].values()), tuple(maps[n][1])) for n in biased})
        rank = config.lora_rank
        self.lora = nnx.Dict({n: Lora(*dims, rank, rngs=rngs) for n, dims in maps.items()} if rank else {})

    def apply(self, name: str, x: jax.Array) -> jax.Array:
        """x (…, *inputs) -> (…, *outputs)."""
        dims = self.contracted[name]
        y = contract(x, getattr(self, name).get_value(), dims)
        if name in self.lora:
            low = self.lora[name]
            y = y + contract(contract(x, low.a[...], dims), low.b[...])
        return y + self.bias[name][...].astype(y.dtype) if name in self.bias else y
