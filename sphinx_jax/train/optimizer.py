"""Optimizers by name, and the learning rate of a stage."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from optax.contrib import MuonDimensionNumbers

from sphinx_jax.config import ConfigError, unknown
from sphinx_jax.model.blueprint import LeafSpec


def learning_rate(step: int, *, peak: float, steps: int, warmup: int, floor: float = 0.0) -> float:
    """Linear warm-up to ``peak``, then a cosine down to ``floor`` at the last step."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def decays(path: str) -> bool:
    """Weight decay is for matrices: norms, biases and tags are left alone."""
    *_, parent, name = ("", *path.split("/"))
    return name not in ("scale", "bias") and parent != "tags"


def muon_dimensions(path: str, spec: LeafSpec) -> MuonDimensionNumbers | None:
    """How a leaf is a matrix, for Muon; None (AdamW takes it) for tables of tokens, norms, biases and tags.

    The layers' axis is a batch of matrices.  Head axes count with their width as one dimension.
    """
    axes = [i for i, name in enumerate(spec.axes) if name != "layers"]
    if "vocab" in spec.axes or len(axes) < 2 or not decays(path):
        return None
    ours = spec.axes[axes[0]]
    split = 1 if len(axes) == 2 or ours in ("embed", "channels") else len(axes) - 1
    return MuonDimensionNumbers(tuple(axes[:split]), tuple(axes[split:]))


def make_optimizer(
    name: str, specs: Mapping[str, LeafSpec], *, clip: float, weight_decay: float, **settings: Any
) -> optax.GradientTransformation:
    """Clipping by global norm, then any optax optimizer by name at learning rate 1: the step scales its updates.

    ``adamw`` takes b1, b2, eps, and ``mu_dtype``: with "bfloat16" its state is 6 bytes a parameter in place of 8.
    ``adafactor`` keeps rows and columns of the second moment alone, 0.03 bytes.  ``muon`` (optax.contrib) also takes
    ``adam_learning_rate``, relative to Muon's own, for what is not a matrix; other names are looked up in optax.  The
    rate comes from outside so that stages which differ in schedule share one compiled step.

    Raises ConfigError for an unknown name, or settings that the optimizer does not take.
    """
    try:
        rule = _rule(name, specs, weight_decay, settings)
    except TypeError as error:
        raise ConfigError(f"optimizer {name}: {str(error).partition('() ')[2] or error}") from None
    return optax.chain(optax.clip_by_global_norm(clip), rule) if clip else rule


def _rule(
    name: str, specs: Mapping[str, LeafSpec], weight_decay: float, settings: dict[str, Any]
) -> optax.GradientTransformation:
    mask = {path: decays(path) for path in specs}
    if name == "muon":
        dimensions = {path: muon_dimensions(path, spec) for path, spec in specs.items()}
        # its own decay has a mask for what Muon takes alone, and would reach the norms, which Adam takes
        rule = optax.contrib.muon(1.0, muon_weight_dimension_numbers=dimensions, **settings)
        return optax.chain(rule, optax.add_decayed_weights(-weight_decay, mask)) if weight_decay else rule
    if name == "adamw":
        return optax.adamw(1.0, weight_decay=weight_decay, mask=mask, **({"b1": 0.9, "b2": 0.95} | settings))
    make = getattr(optax, name, None) or getattr(optax.contrib, name, None)
    if make is None or not callable(make):
        raise unknown("optimizer", name, ["adamw", "muon", "adafactor", "lion", "sgd", "adam", "lamb", "sm3"])
    taken = inspect.signature(make).parameters
    for key, value in (("weight_decay", weight_decay), ("mask", mask)):
        if key in taken:
            settings = {key: value} | settings
    if weight_decay and "weight_decay" not in taken:
        raise ConfigError(f"optimizer {name} does not take weight_decay {weight_decay}; see its optimizer_settings")
    return make(1.0, **settings)


def state_shardings(
    optimizer: optax.GradientTransformation, leaves: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh
) -> Any:
    """The layout of an optimizer's state: what has the path and shape of a leaf lies as it does, the rest everywhere.

    ``leaves`` are abstract, with shardings.  Returns the state's tree with a sharding in the place of each array.
    """

    def place(path: tuple, slot: jax.ShapeDtypeStruct) -> NamedSharding:
        for key in path:
            leaf = leaves.get(getattr(key, "key", None))
            if leaf is not None and leaf.shape == slot.shape:
                return leaf.sharding
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, dict(leaves)))
