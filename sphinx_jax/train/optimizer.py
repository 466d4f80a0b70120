"""Optimizers by name, and the learning rate of a stage."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from reprlib import repr as short
from textwrap import shorten
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from optax.contrib import MuonDimensionNumbers

from sphinx_jax.config import ConfigError, unknown
from sphinx_jax.model.blueprint import LeafSpec


def learning_rate(step: int, *, peak: float, steps: int, warmup: int, floor: float = 0.0) -> float:
    """Linear warm-up to `peak`, then a cosine down to `floor` at the last step."""
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

    `adamw` takes b1, b2, eps, and `mu_dtype`: with "bfloat16" its state is 6 bytes a parameter in place of 8.
    `adafactor` keeps rows and columns of the second moment alone, 0.03 bytes.  `muon` (optax.contrib) also takes
    `adam_learning_rate`, relative to Muon's own, for what is not a matrix; other names are looked up in optax.  The
    rate comes from outside so that stages which differ in schedule share one compiled step.

    Raises ConfigError for an unknown name, or settings that the optimizer does not take.
    """
    try:
        rule = _rule(name, specs, weight_decay, settings)
    except TypeError as error:
        raise ConfigError(f"optimizer {name}: {str(error).partition('() ')[2] or error}") from None
    return optax.chain(optax.clip_by_global_norm(clip), rule) if clip else rule


# arguments that do not come from the settings
GIVEN = ("learning_rate", "weight_decay", "mask", "weight_decay_mask", "muon_weight_dimension_numbers")
AVERAGES = ("b1", "b2", "b3", "beta", "momentum", "decay_rate")  # names, or the ends of names, of what must be below 1
SOME_LEAF = {"decoder/blocks/ffn/up": LeafSpec((1, 2, 2), np.float32, ("layers", "embed", "ffn"))}


def check_optimizer(name: str, settings: Mapping[str, Any], *, clip: float, weight_decay: float) -> None:
    """What `make_optimizer` checks, and settings: names by the optimizer's signature, values by a step on shapes.

    Raises ConfigError, which begins with `optimizer` or `optimizer_settings` and the setting's name.
    """
    make = _by_name(name)
    known = {} if make is None else inspect.signature(make).parameters
    for key, value in settings.items() if known else ():
        path, free = f"optimizer_settings.{key}", known.keys() - set(GIVEN)
        if key not in free:
            raise ConfigError(f"{path}: {unknown(f'setting of {name}', key, free)}")
        _check_setting(path, value, known[key].default)
    leaves = {path: jax.ShapeDtypeStruct(spec.shape, spec.dtype) for path, spec in SOME_LEAF.items()}
    try:
        optimizer = make_optimizer(name, SOME_LEAF, clip=clip, weight_decay=weight_decay, **settings)
        jax.eval_shape(lambda x: optimizer.update(x, optimizer.init(x), x), leaves)
    except ConfigError as error:
        raise ConfigError(f"optimizer: {str(error).removeprefix('optimizer ')}") from None
    except Exception as error:  # whatever an optimizer makes of its settings, or of being no optimizer
        asked = f" with optimizer_settings {short(dict(settings))}" if settings else ""
        raise ConfigError(f"optimizer: {name} cannot step{asked}: {shorten(str(error), 120)}") from None


def _check_setting(path: str, value: Any, default: Any) -> None:
    for wanted, kinds in (("bool", bool), ("float", int | float)):
        if isinstance(default, kinds):
            if not isinstance(value, kinds) or isinstance(value, bool) != (wanted == "bool"):
                raise ConfigError(f"{path} must be {wanted}, not {short(value)}")
            break
    if isinstance(value, int | float):
        key = path.rpartition(".")[2]
        if key.endswith(AVERAGES) and not 0 <= value < 1:
            raise ConfigError(f"{path} must be at least 0 and below 1, not {short(value)}")
        if ("eps" in key or key.endswith("rate")) and value < 0:
            raise ConfigError(f"{path} must be at least 0, not {short(value)}")


def _by_name(name: str) -> Callable[..., Any] | None:
    make = getattr(optax, name, None) or getattr(optax.contrib, name, None)
    return make if callable(make) else None


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
    make = _by_name(name)
    if make is None:
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

    `leaves` are abstract, with shardings.  Returns the state's tree with a sharding in the place of each array.
    """

    def place(path: tuple, slot: jax.ShapeDtypeStruct) -> NamedSharding:
        for key in path:
            leaf = leaves.get(getattr(key, "key", ""))
            if leaf is not None and leaf.shape == slot.shape:
                return leaf.sharding
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, dict(leaves)))
