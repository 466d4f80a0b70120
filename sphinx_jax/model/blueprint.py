"""A model before it has weights: its structure and the shape, dtype and named axes of every leaf.

Everywhere outside `model` parameters are *leaves*: one flat dict from a path such as `decoder/blocks/attention/q`
to an array.  Freezing, mixing, checkpoints and optimizers then select by path, and jit takes the dict as it is.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from sphinx_jax.config import ConfigError, DecoderConfig, ModelConfig, family, need
from sphinx_jax.model.decoder import Block
from sphinx_jax.model.embedding_mix import Features
from sphinx_jax.model.layers import Flat, flat, is_quantised
from sphinx_jax.model.lora import BASE
from sphinx_jax.model.quantise import MATRICES, quantise, scales_outputs
from sphinx_jax.model.sphinx import Encoders, SphinxModel
from sphinx_jax.model.views import kept_views, normalise, padding_alone
from sphinx_jax.sharding import partition_spec, platform

Leaves = dict[str, jax.Array]
STACK = "decoder/blocks/"


@dataclass(frozen=True)
class LeafSpec:
    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[str | None, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def flatten(tree: Any, path: str = "") -> dict[str, Any]:
    """Nested dict -> {path: leaf}."""
    if not isinstance(tree, dict):
        return {path: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{path}/{key}" if path else str(key))
    return flat


def unflatten(leaves: dict[str, Any]) -> dict[str, Any]:
    """{path: leaf} -> nested dict of strings."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def apart(leaves: dict[str, Any]) -> dict[str, Any]:
    """Leaves as answering reads them: of each that is stacked over the decoder's layers, a tuple of one array a layer.

    Matrices are laid out as they are multiplied by (`layers.Flat`). The dict that is given is emptied on the way, so
    that no more than one leaf is held twice.
    """
    found: dict[str, Any] = {}
    for path in list(leaves):
        leaf = leaves.pop(path)
        if path.startswith(STACK) and not isinstance(leaf, tuple):
            dims = _flattens(path, leaf)
            leaf = _flat(leaf, dims, _turns(path)) if dims else _layers(leaf)
        found[path] = leaf
    return found


def _flattens(path: str, leaf: Any) -> int:
    """How many dimensions of a layer's matrix are inputs, where it is multiplied by as it is; else 0."""
    # an expert's matrices are multiplied elsewhere, those in 4 bits made whole
    if path not in MATRICES or (leaf.ndim > 3 and "/ffn/" in path) or (is_quantised(leaf) and not scales_outputs(leaf)):
        return 0
    return 2 if path.endswith("/o") else 1


def _turns(path: str) -> bool:
    """Whether a matrix is multiplied by the fastest with its outputs first.

    On one CPU all are; a TPU has those of queries, keys and values so, and would turn them for every few tokens.
    """
    if platform() == "cpu":
        return jax.device_count() == 1
    return path.endswith(("/q", "/k", "/v"))


@functools.partial(jax.jit, static_argnames=("dims", "turn"))
def _flat(leaf: Any, dims: int, turn: bool) -> tuple[Flat, ...]:
    return tuple(flat(layer, dims, turn) for layer in _layers(leaf))


@jax.jit
def _layers(leaf: Any) -> tuple[Any, ...]:
    """(L, …) -> L of (…), of a quantised leaf too."""
    arrays, structure = jax.tree.flatten(leaf)
    return tuple(jax.tree.unflatten(structure, layer) for layer in zip(*arrays, strict=True))


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a leaf's path matches one of the patterns (`*` also crosses `/`)."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def check_fit(patterns: Iterable[str], paths: Collection[str], known: Iterable[str] = ()) -> None:
    """ConfigError for a pattern that fits none of the leaves `paths` and is not among the `known` names.

    The patterns of what is usually frozen may be named though a model has no such leaf.
    """
    known = tuple(known)
    for pattern in patterns:
        if pattern in (*known, *FROZEN, *BASE) or any(matches(path, (pattern,)) for path in paths):
            continue
        folders = {f"{path[: end.start()]}/*" for path in paths for end in re.finditer("/", path)}
        near = difflib.get_close_matches(pattern, [*known, *paths, *sorted(folders)], n=2, cutoff=0)
        kind = " and is no kind of module" if known else ""
        raise ConfigError(f"pattern {pattern!r} fits no leaf{kind}; nearest are {' and '.join(near)}")


class Blueprint:
    """Built by shape inference alone: the full 13B takes under a second and no memory."""

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module]):
        self._make = make
        # axis names are this package's own, whatever mesh the caller has in force
        nowhere = jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))
        with nowhere, nnx.use_eager_sharding(False):
            module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
        self._graphdef, state = nnx.split(module)
        self.specs: dict[str, LeafSpec] = {}
        for path, variable in state.flat_state():
            value = variable.get_value()
            axes = variable.get_metadata().get("out_sharding") or (None,) * len(value.shape)
            self.specs["/".join(map(str, path))] = LeafSpec(tuple(value.shape), value.dtype, tuple(axes))

    def bind(self, leaves: Leaves) -> Any:
        """The module with these leaves; cheap, made to be called under jit."""
        missing = sorted(self.specs.keys() - leaves.keys())
        if missing:
            raise ValueError(f"{len(missing)} leaves missing, the first is {missing[0]}")

        def keyed(tree):
            # nnx.List numbers its children
            return {int(k) if k.isdigit() else k: keyed(v) if isinstance(v, dict) else v for k, v in tree.items()}

        return nnx.merge(self._graphdef, keyed(unflatten({path: leaves[path] for path in self.specs})))

    def shardings(self, mesh: Mesh) -> dict[str, NamedSharding]:
        return {p: NamedSharding(mesh, partition_spec(s.axes, s.shape, mesh)) for p, s in self.specs.items()}

    def abstract(self, mesh: Mesh, dtypes: Mapping[str, Any] | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and layout; `dtypes` of leaves that are not in the dtype they train in."""
        shardings, dtypes = self.shardings(mesh), dtypes or {}
        return {
            p: jax.ShapeDtypeStruct(s.shape, dtypes.get(p, s.dtype), sharding=shardings[p])
            for p, s in self.specs.items()
        }

    def init(self, mesh: Mesh, seed: int = 0, only: Iterable[str] | None = None) -> Leaves:
        """Fresh leaves (all, or `only` these paths), born in their shards: no device ever holds a full replica."""
        chosen = list(self.specs if only is None else only)
        shardings = self.shardings(mesh)

        def init(key: jax.Array) -> Leaves:
            with nnx.use_eager_sharding(False):
                state = nnx.to_pure_dict(nnx.split(self._make(nnx.Rngs(key)))[1])
            leaves = flatten(state)
            return {path: leaves[path] for path in chosen}

        # threefry spends most of a small model's start-up compiling; rbg compiles to one instruction a leaf
        with jax.set_mesh(mesh):
            return jax.jit(init, out_shardings={path: shardings[path] for path in chosen})(
                jax.random.key(seed, impl="rbg")
            )


@functools.cache
def blueprint(config: ModelConfig) -> Blueprint:
    """The blueprint of a SPHINX model."""
    return Blueprint(lambda rngs: SphinxModel(config, rngs=rngs))


@functools.cache
def layer_blueprint(config: DecoderConfig) -> Blueprint:
    """The blueprint of one layer of the decoder, whose leaves are those of `layer_leaves`."""
    return Blueprint(lambda rngs: Block(config, rngs=rngs))


def layer_leaves(leaves: dict[str, Any], layer: int) -> dict[str, Any]:
    """Those of one layer of the decoder, of leaves that lie `apart`."""
    return {path.removeprefix(STACK): leaf[layer] for path, leaf in leaves.items() if path.startswith(STACK)}


def held_dtypes(config: ModelConfig, frozen: Iterable[str] = ("*",)) -> dict[str, str]:
    """The compute dtype, for each leaf that does not train (`frozen` patterns; by default none does).

    Nothing is lost by it but in what is computed in float32, norms and the resizing of position embeddings: their
    weights are rounded once more.
    """
    return {path: config.dtype for path in blueprint(config).specs if matches(path, frozen)}


@functools.cache
def make_encode(config: ModelConfig) -> Callable[[Leaves, np.ndarray], Features]:
    """(leaves of the encoders, pixels (B, S, S, 3) uint8) -> features; views that are skipped cost no time."""
    plan = Blueprint(lambda rngs: Encoders(config, rngs=rngs))

    @jax.jit
    def encode(leaves: Leaves, pixels: jax.Array, kept: jax.Array | None) -> Features:
        encoders = plan.bind({path.removeprefix("encoders/"): leaf for path, leaf in leaves.items()})
        return encoders(normalise(pixels), kept=kept)

    def call(leaves: Leaves, pixels: np.ndarray) -> Features:
        kept = None
        if (views := need(config.views)).skip_padded:
            kept = kept_views(np.asarray(padding_alone(normalise(pixels), views)))
        return encode(leaves, pixels, kept)

    return call


FROZEN = ("encoders/*",)

# component -> the leaves it consists of
COMPONENTS: dict[str, tuple[str, ...]] = {
    "decoder": ("decoder/*",),
    "clip": ("encoders/clip/*",),
    "convnext": ("encoders/convnext/*",),
    "dinov2": ("encoders/dinov2/*",),
    "blip2_vision": ("encoders/blip2/vision/*",),
    "qformer": ("encoders/blip2/qformer/*",),
    "qformer_proj": ("embedding_mix/qformer_proj/*",),
    "visual_proj": ("embedding_mix/visual_proj/*",),
    "tags": ("embedding_mix/tags/*",),
}


def count_parameters(model: str | ModelConfig) -> dict[str, int]:
    """Parameters by component, from the modules' abstract shapes: `count_parameters("sphinx_1k")`.

    `trainable` is the decoder, the projections and the tags; components a model lacks are absent.
    """
    specs = blueprint(model if isinstance(model, ModelConfig) else family(model)).specs
    counts = {
        name: sum(spec.size for path, spec in specs.items() if matches(path, patterns))
        for name, patterns in COMPONENTS.items()
    }
    counts = {name: count for name, count in counts.items() if count}
    counts["trainable"] = sum(spec.size for path, spec in specs.items() if not matches(path, FROZEN))
    counts["total"] = sum(spec.size for spec in specs.values())
    return counts


def held_bytes(model: str | ModelConfig, dtype: str | None = None, quantize: str | None = None) -> int:
    """Bytes of the weights that `from_pretrained` would hold, without allocating them.

    Args:
      dtype: of all weights; by default the model's own.
      quantize: int8 or nf4, of the matrices of the decoder's layers alone.
    """
    config = model if isinstance(model, ModelConfig) else family(model)
    bits = 0
    for path, spec in blueprint(config).specs.items():
        leaf = jax.ShapeDtypeStruct(spec.shape, dtype or config.dtype)
        few = quantize and path in MATRICES
        parts = jax.tree.leaves(quantise.eval_shape(path, leaf, quantize) if few else leaf)
        bits += sum(part.size * jax.dtypes.itemsize_bits(part.dtype) for part in parts)
    return -(-bits // 8)
