"""What trains a stage on a mesh: optimizer, compiled step and the layout of its state, before there are weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import optax
from jax.sharding import Mesh, NamedSharding

from sphinx_jax.checkpoint import store
from sphinx_jax.config import ConfigError, ModelConfig
from sphinx_jax.data.rows import Rows, Shape, Source
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.model.blueprint import Leaves, blueprint, matches
from sphinx_jax.model.layers import is_quantised
from sphinx_jax.sharding import abstract, partition_spec, row_sharding, row_ways
from sphinx_jax.train.optimizer import make_optimizer, state_shardings
from sphinx_jax.train.settings import TrainStage
from sphinx_jax.train.step import TrainState, make_step


class Program(NamedTuple):
    optimizer: optax.GradientTransformation
    step: Callable[..., Any]  # as `step.make_step` returns it
    parts: dict[str, int]  # that each kind of batch is cut into


def program(model: ModelConfig, name: str, s: TrainStage, mesh: Mesh) -> Program:
    """The program of stage `name`; stages that differ in schedule and data alone share one, and its compilation.

    Raises ConfigError where the rows of a batch do not divide over the mesh.
    """
    ways, parts = row_ways(mesh), {}
    for kind, size in s.rows().items():
        if size % (ways * s.accumulate):
            raise ConfigError(
                f"{name}: {size} {kind} rows do not divide over {ways} devices x {s.accumulate} accumulated parts"
            )
        parts[kind] = s.accumulate
        if s.device_rows:
            share = size // ways
            parts[kind] = next(n for n in range(1, share + 1) if share % n == 0 and share // n <= s.device_rows)
    settings = tuple(sorted(s.optimizer_settings.items()))
    weights = (("image", s.image_weight), ("text", s.text_weight))
    return _program(
        model, s.optimizer, settings, s.clip, s.weight_decay, s.frozen, weights, tuple(parts.items()), s.remat
    )


@functools.cache
def _program(
    model: ModelConfig,
    optimizer: str,
    settings: tuple,
    clip: float,
    decay: float,
    frozen: tuple[str, ...],
    weights: tuple[tuple[str, float], ...],
    parts: tuple[tuple[str, int], ...],
    remat: str,
) -> Program:
    plan = blueprint(model)
    trainable = {p: spec for p, spec in plan.specs.items() if not matches(p, frozen)}
    tx = make_optimizer(optimizer, trainable, clip=clip, weight_decay=decay, **dict(settings))
    step = make_step(plan, tx, weights=dict(weights), accumulate=dict(parts), remat=remat)
    return Program(tx, step, dict(parts))


def start(
    program: Program, model: ModelConfig, s: TrainStage, leaves: Leaves, mesh: Mesh, found: Path | None = None
) -> TrainState:
    """The state before the next step, which takes the leaves over: what is frozen goes into the compute dtype, or into
    fewer bits, and out of `leaves`.

    `found`: the stage's own checkpoint, that the leaves are from; without one the optimizer begins.
    """
    trainable = {p: x for p, x in leaves.items() if not matches(p, s.frozen)}
    with jax.set_mesh(mesh):
        # taken out one by one, so that none is there in two forms at once
        frozen = {p: _kept(p, leaves.pop(p), model, s.quantize) for p in list(leaves) if p not in trainable}
        return TrainState(trainable, slots(program.optimizer, trainable, mesh, found), frozen)


def slots(optimizer: optax.GradientTransformation, trainable: Leaves, mesh: Mesh, found: Path | None = None) -> Any:
    """The optimizer's state on a mesh: fresh, or that of the checkpoint `found`."""
    like = abstract_slots(optimizer, abstract(trainable), mesh)
    if found is not None:
        return store.restore_training(found, like)
    return jax.jit(optimizer.init, out_shardings=jax.tree.map(lambda slot: slot.sharding, like))(trainable)


def abstract_slots(optimizer: optax.GradientTransformation, trainable: Mapping[str, Any], mesh: Mesh) -> Any:
    """Shapes, dtypes and layout of the optimizer's state."""
    return jax.tree.map(
        lambda slot, sharding: jax.ShapeDtypeStruct(slot.shape, slot.dtype, sharding=sharding),
        jax.eval_shape(optimizer.init, trainable),
        state_shardings(optimizer, trainable, mesh),
    )


def _kept(path: str, leaf: Any, model: ModelConfig, quantize: str) -> Any:
    if quantize:
        from sphinx_jax.model import quantise

        if path in quantise.MATRICES:
            return leaf if is_quantised(leaf) else quantise.quantise(path, leaf, quantize)
    return leaf.astype(model.dtype)


def abstract_state(program: Program, model: ModelConfig, s: TrainStage, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and layout of that state."""
    leaves = blueprint(model).abstract(mesh)
    trainable = {p: x for p, x in leaves.items() if not matches(p, s.frozen)}
    frozen = abstract_kept(model, mesh, leaves.keys() - trainable.keys(), s.quantize)
    return TrainState(cast(Leaves, trainable), abstract_slots(program.optimizer, trainable, mesh), frozen)


def abstract_kept(model: ModelConfig, mesh: Mesh, paths: Iterable[str], quantize: str = "") -> dict[str, Any]:
    """Leaves that do not train as they are kept: in the compute dtype, some quantised."""
    plan = blueprint(model)

    def placed(path: str, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = partition_spec(plan.specs[path].axes, x.shape, mesh)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    kept = {}
    for path in paths:
        whole = jax.ShapeDtypeStruct(plan.specs[path].shape, plan.specs[path].dtype)
        parts = jax.eval_shape(lambda x, path=path: _kept(path, x, model, quantize), whole)
        kept[path] = jax.tree.map(functools.partial(placed, path), parts)
    return kept


def abstract_batches(
    s: TrainStage, shapes: dict[str, Shape], tokenizer: Tokenizer, mesh: Mesh
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """What a step takes: rows as the data stream makes them, of each kind as many as the stage asks for."""
    rows = row_sharding(mesh)
    batches = {}
    for kind, shape in shapes.items():
        row = Rows(Source(kind, ()), tokenizer, shape).masked(0)
        batches[kind] = {
            name: jax.ShapeDtypeStruct((s.rows()[kind], *value.shape), value.dtype, sharding=rows)
            for name, value in row.items()
            if name != "skipped"
        }
    return batches
