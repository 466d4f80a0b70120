"""What a config file says, with every key checked: the paper at one scale, as an ordered list of stages."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
from annotated_types import Ge, Lt
from jax.sharding import Mesh

from sphinx_jax import data
from sphinx_jax.config import ConfigError, ModelConfig
from sphinx_jax.data.sources import DataConfig
from sphinx_jax.settings import Seed, Settings
from sphinx_jax.sharding import make_mesh

PLAYGROUND = Path(data.__file__).parent / "playground"
PARTS = PLAYGROUND / "parts"

Axis = Annotated[int, Ge(-1), Lt(2**31)]


@dataclass(frozen=True)
class MeshConfig(Settings):
    """Sizes of the mesh's axes; one may be -1 and takes what is left."""

    data: Axis = 1
    fsdp: Axis = -1
    tensor: Axis = 1  # 0: the smallest that lets the rows of every stage divide over the other axes
    expert: Axis = 1  # 0: as many as divide both the devices and the model's experts

    def __post_init__(self):
        for axis in ("data", "fsdp"):
            if getattr(self, axis) == 0:
                raise ConfigError(f"{axis} must be at least 1, or -1 for what is left, not 0")
        left = [axis for axis, size in vars(self).items() if size == -1]
        if len(left) > 1:
            raise ConfigError(f"{left[1]} must be at least 0; only one axis, here {left[0]}, may be -1")


@dataclass(frozen=True)
class Recipe(Settings):
    """`stages` run in this order; `settings` holds each one's settings by name.  Stages outside the list (chat) run
    when asked for by name."""

    model: ModelConfig
    stages: tuple[str, ...]
    settings: dict[str, Any]
    data: DataConfig = DataConfig()
    mesh: MeshConfig = MeshConfig()
    title: str = "SPHINX"
    about: tuple[str, ...] = ()  # what the run will do, printed first
    seed: Seed = 0
    tokenizer: str = ""  # folder or file; default: the playground's


def mesh_of(recipe: Recipe, devices: Sequence[jax.Device], stages: Iterable[str] | None = None) -> Mesh:
    """The mesh that a recipe asks for, over these devices; `stages`: those whose rows count, by default all."""
    sizes, count = dataclasses.asdict(recipe.mesh), len(devices)
    if sizes["expert"] == 0:
        moe = recipe.model.decoder.moe
        sizes["expert"] = math.gcd(moe.experts, count) if moe else 1
    if sizes["tensor"] == 0:
        rows = [
            size
            for name in stages or recipe.settings
            if hasattr(recipe.settings[name], "rows")
            for size in recipe.settings[name].rows().values()
        ]
        fixed = math.prod(size for axis, size in sizes.items() if axis != "tensor" and size > 0)
        fitting = (
            t for t in range(1, count + 1) if count % (t * fixed) == 0 and not any(r % (count // t) for r in rows)
        )
        sizes["tensor"] = next(fitting, 1)
    return make_mesh(**sizes, devices=list(devices))
