"""Ahead of time: the real steps of a recipe compiled for a machine that is not here, and what they would need of it.

What the compiler says (memory, collectives) is per device and exact.  Seconds are a roofline: no kernel is timed.  A
step cannot be faster than its FLOPs at the chip's peak, its bytes at the bandwidth of its memory, or what its
collectives move at that of its links, and MFU cannot be higher than the FLOPs of the model over the longest of these.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sphinx_jax.config import ModelConfig, unknown
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.generate.batching import programs
from sphinx_jax.generate.batching.sizes import Sizes
from sphinx_jax.measure.ahead.collectives import Collective, collectives, moved
from sphinx_jax.measure.ahead.topologies import Chip, lowering_for
from sphinx_jax.model import flops
from sphinx_jax.model.blueprint import STACK, Leaves, apart, blueprint
from sphinx_jax.model.cache import AXES, Cache
from sphinx_jax.model.views import normalise
from sphinx_jax.progress import compiling
from sphinx_jax.recipe.recipe import PLAYGROUND, Recipe, mesh_of
from sphinx_jax.sharding import device_bytes, partition_spec, row_ways, serving_mesh
from sphinx_jax.train.program import abstract_batches, abstract_kept, abstract_state, program
from sphinx_jax.train.settings import TrainStage, shapes, throughput

PROMPT, ANSWER = 512, 512  # text tokens of the prefill and decode steps


@dataclass
class Need:
    """What one step needs of each device."""

    what: str  # e.g. "train finetune"
    fits: bool
    peak_bytes: int
    parameter_bytes: int
    optimizer_bytes: int
    flops: float  # of the model, by our own count
    compute_seconds: float
    memory_seconds: float
    link_seconds: float
    mfu_bound: float
    collectives: list[Collective] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)  # that a device takes at a time
    parts: dict[str, int] = field(default_factory=dict)  # of a batch, one after the other
    largest: int | None = None  # rows of the first kind that a device could take at a time
    cache_bytes: int = 0  # of keys and values, which a program takes and gives back
    temporary_bytes: int = 0  # that the program itself takes
    read_bytes: float = 0  # that the step cannot do without, by our own count
    accessed_bytes: float = 0  # as the compiler counts them, copies between memories of a chip among them

    @property
    def roofline_seconds(self) -> float:
        return max(self.compute_seconds, self.memory_seconds, self.link_seconds)

    @property
    def activation_bytes(self) -> int:
        """Everything that is not state: activations, gradients, gathered weights, buffers of collectives."""
        return self.peak_bytes - self.parameter_bytes - self.optimizer_bytes - self.cache_bytes


def train_need(recipe: Recipe, name: str, devices: Sequence[jax.Device], chip: Chip) -> Need:
    """What a training stage needs, at the batch of its recipe."""
    return _compile_train(recipe.model, name, recipe.settings[name], mesh_of(recipe, devices), chip)


def find_largest(recipe: Recipe, name: str, devices: Sequence[jax.Device], chip: Chip, need: Need) -> None:
    """Add to what a training stage needs the largest batch that fits, by at most two more compilations."""
    need.largest = largest_rows(recipe.model, name, recipe.settings[name], mesh_of(recipe, devices), chip, need)


def largest_rows(model: ModelConfig, name: str, s: TrainStage, mesh: Mesh, chip: Chip, known: Need) -> int:
    """Rows of the stage's first kind that fit on a device at a time: memory grows by as much with each row.

    Takes at most two compilations beside the one known: one to learn what a row costs, one to be sure.
    """
    kind, rows = next(iter(known.rows.items()))

    def peak(count: int) -> int:
        ways, batch = _ways(mesh), "batch" if kind == "image" else "text_batch"
        # two parts of so many rows: with the sums of gradients that accumulation keeps
        tried = dataclasses.replace(s, **{batch: 2 * count * ways, "accumulate": 1, "device_rows": count})
        return _compile_train(model, name, tried, mesh, chip).peak_bytes

    other = rows * 2 if known.fits else max(1, rows // 2)
    if other == rows:
        return rows if known.fits else 0
    each = (peak(other) - known.peak_bytes) / (other - rows)
    fixed = known.peak_bytes - each * rows
    guess = max(1, int((chip.hbm - fixed) / each)) if each > 0 else max(rows, other)
    sure = {count for count, fits in ((rows, known.fits), (other, fixed + each * other <= chip.hbm)) if fits}
    if guess in sure or peak(guess) <= chip.hbm:
        return guess
    return max(sure, default=0)


def _compile_train(model: ModelConfig, name: str, s: TrainStage, mesh: Mesh, chip: Chip) -> Need:
    made = program(model, name, s, mesh)
    state = abstract_state(made, model, s, mesh)
    tokenizer = load_tokenizer(PLAYGROUND / "tokenizer.model")  # rows have the same shapes with any
    batches = abstract_batches(s, shapes(model, s), tokenizer, mesh)
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    parameters = device_bytes({**state.trainable, **state.frozen})
    slots = device_bytes(state.optimizer)
    worth = throughput(model, s).flops
    again = worth if s.remat == "none" else worth + _recomputed(model, s)
    passes = sum(made.parts.values()) * (3 if s.remat == "none" else 4)
    traffic = _gathered(state.trainable, mesh, model) * passes + 3 * slots + 4 * device_bytes(state.trainable)
    need = _compile(f"train {name}", lambda: made.step.lower(state, batches, rate), mesh, chip, worth, again, traffic)
    need.parameter_bytes, need.optimizer_bytes = parameters, slots
    need.parts = made.parts
    need.rows = {kind: size // _ways(mesh) // made.parts[kind] for kind, size in s.rows().items()}
    return need


def inference_needs(recipe: Recipe, devices: Sequence[jax.Device], chip: Chip) -> Iterator[Need]:
    """Prefill and one decode step, on the mesh that answering lays over these devices, of a batch with one prompt, and
    its picture, for each of its parts that rows are shared out to.

    Weights are in the compute dtype, the decoder's quantised where a stage has it so.  A prompt is taken whole, in one
    program with the encoders; the engine reads it in pieces, layer by layer, which needs less.
    """
    model, mesh = recipe.model, serving_mesh(recipe.model.decoder, list(devices))
    batch = _ways(mesh)
    kinds = {getattr(s, "quantize", "") for s in recipe.settings.values()} - {""}
    with jax.set_mesh(mesh):
        leaves = _apart(abstract_kept(model, mesh, blueprint(model).specs, next(iter(kinds), "")))
    positions = model.image_positions + PROMPT + ANSWER

    def array(shape: tuple[int, ...], dtype: Any, *axes: str | None) -> jax.ShapeDtypeStruct:
        spec = partition_spec(axes, shape, mesh)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def prefill(leaves: Leaves, pixels: jax.Array | None, tokens: jax.Array, cache: Cache, start: jax.Array):
        bound, visual = blueprint(model).bind(leaves), None
        if pixels is not None:
            visual, _ = bound.see(bound.encode(normalise(pixels)))
        return bound.extend(tokens, cache, start, visual)[1]

    state = cache, rows, *_ = _state(model, mesh, batch, positions)
    size = model.views.image_size if model.has_vision else 0
    pixels = array((batch, size, size, 3), jnp.uint8, "batch", None, None, None) if size else None
    sequence = model.image_positions + PROMPT
    prompt = array((batch, sequence), jnp.int32, "batch", None)
    worth = batch * (
        flops.decoder_forward(model.decoder, sequence, 1)
        + (flops.image_forward(model, False) if model.has_vision else 0)
    )
    weights = _gathered({p: x for p, x in leaves.items() if p.startswith("decoder/")}, mesh, model)
    known = {"parameter_bytes": device_bytes(leaves), "rows": {"image" if size else "text": 1}}
    jitted = jax.jit(prefill, donate_argnames="cache")
    lower = functools.partial(jitted.lower, leaves, pixels, prompt, cache, rows.position)
    yield dataclasses.replace(_compile("prefill", lower, mesh, chip, worth, worth, weights), **known)
    yield dataclasses.replace(_decode("decode", model, leaves, state, mesh, chip, weights), **known)


def serving_need(
    model: ModelConfig, devices: Sequence[jax.Device], chip: Chip, rows: int = 1, quantize: str = ""
) -> Need:
    """A token of so many answers at once, on the mesh that answering lays over these devices; encoders lie beside it.

    Args:
      quantize: `int8` or `nf4`, the decoder's matrices.
    """
    mesh = serving_mesh(model.decoder, list(devices))
    with jax.set_mesh(mesh):
        leaves = _apart(abstract_kept(model, mesh, blueprint(model).specs, quantize))
        sizes = Sizes.of(rows, model.decoder.max_positions)
    state = _state(model, mesh, rows, sizes.room(model.image_positions + PROMPT + ANSWER))
    # of the embedding a token reads a row
    read = {p: x for p, x in leaves.items() if p.startswith("decoder/") and p != "decoder/embedding"}
    if model.decoder.tied_embeddings:
        read["decoder/embedding"] = leaves["decoder/embedding"]
    name = f"token of {rows}{f' in {quantize}' if quantize else ''}"
    weights = device_bytes(read)
    if model.decoder.moe and quantize != "nf4":  # experts in 4 bits are made whole, all of them
        experts = {p: x for p, x in read.items() if p.startswith(f"{STACK}ffn/") and not p.endswith("/router")}
        chosen = min(1, rows * model.decoder.moe.per_token / model.decoder.moe.experts)
        weights -= int(device_bytes(experts) * (1 - chosen))
    need = _decode(name, model, leaves, state, mesh, chip, weights)
    need.parameter_bytes, need.cache_bytes = device_bytes(leaves), device_bytes(state[0])
    need.rows = {"image" if model.has_vision else "text": rows}
    return need


def _state(model: ModelConfig, mesh: Mesh, rows: int, positions: int) -> tuple[Any, ...]:
    """Abstractly, what `programs.decode` takes after the leaves: a cache of so many positions, rows, table, counts."""

    def array(shape: tuple[int, ...], dtype: Any, *axes: str | None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, partition_spec(axes, shape, mesh)))

    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda: Cache.empty(model.decoder, rows, positions, jnp.dtype(model.dtype)))
    cache = jax.tree.map(lambda x: array(x.shape, x.dtype, *AXES[: x.ndim]), shapes)
    state = jax.tree.map(lambda x: array(x.shape, x.dtype, "batch", *x.shape[1:] and (None,)), programs.idle(rows))
    count = array((), jnp.int32)
    return cache, state, array((2, model.decoder.vocab_size), jnp.int32, None, None), count, count


def _decode(
    what: str, model: ModelConfig, leaves: Leaves, state: tuple[Any, ...], mesh: Mesh, chip: Chip, weights: int
) -> Need:
    """A token of every row of a `_state`, for which so many bytes of weights are read."""
    cache: Cache = state[0]
    work = cache.rows * flops.decoder_token(model.decoder, cache.positions)
    lower = functools.partial(programs.decode.lower, model, leaves, *state)
    need = _compile(what, lower, mesh, chip, work, work, weights + device_bytes(cache))
    # a token does not touch the encoders, which stay where they are
    need.peak_bytes += device_bytes({p: x for p, x in leaves.items() if not p.startswith("decoder/")})
    need.fits &= need.peak_bytes <= chip.hbm
    return need


def _apart(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """What `blueprint.apart` makes of these."""
    shapes = jax.eval_shape(lambda leaves: apart(dict(leaves)), leaves)

    def layers(path: str) -> Any:
        """A layer's arrays, in the shards of the stack: of what becomes one dimension the first is split."""
        if not path.startswith(STACK):
            return leaves[path]
        found = []
        for stacked, of_layer in zip(jax.tree.leaves(leaves[path]), jax.tree.leaves(shapes[path][0]), strict=True):
            spec = [*stacked.sharding.spec[1:], *[None] * (stacked.ndim - len(stacked.sharding.spec))]
            if len(spec) > of_layer.ndim:
                spec = [spec[0], spec[2 if path.endswith("/o") else 1]]
            if getattr(shapes[path][0], "turned", False):
                spec.reverse()
            sharding = NamedSharding(stacked.sharding.mesh, PartitionSpec(*spec))
            found.append(jax.ShapeDtypeStruct(of_layer.shape, of_layer.dtype, sharding=sharding))
        one = jax.tree.unflatten(jax.tree.structure(shapes[path][0]), found)
        return (one,) * len(shapes[path])

    return {path: layers(path) for path in leaves}


def _compile(what: str, lower: Any, mesh: Mesh, chip: Chip, worth: float, work: float, traffic: float) -> Need:
    """Lower and compile; `worth` and `work`: FLOPs of all devices, of the model and with what is computed again."""
    devices = mesh.size
    named = f"{what} for {devices} x {chip.kind}, {worth / 1e12:.3g} TFLOP"
    said = compiling(named, guess="one to ten minutes on two cores for a step of a large model, seconds for a token")
    with said, jax.set_mesh(mesh), lowering_for(mesh):
        lowered = lower()
        try:
            try:
                compiled = lowered.compile()
            except jax.errors.JaxRuntimeError as error:
                # XLA for GPUs, of some products of integers, where there is no GPU to tune Triton's kernels on
                if "Reshape input and output shapes must be the same" not in str(error):
                    raise
                compiled = lowered.compile({"xla_gpu_enable_triton_gemm": False})
            memory, found = compiled.memory_analysis(), collectives(compiled.as_text())
            peak, fits, temporary = _peak(memory), True, memory.temp_size_in_bytes
            accessed = (compiled.cost_analysis() or {}).get("bytes accessed", 0)  # GPUs' has none
        except jax.errors.JaxRuntimeError as error:
            peak, fits, temporary, accessed, found = _used(str(error)), False, 0, 0, []
    compute = work / devices / chip.flops
    need = Need(
        what,
        fits and peak <= chip.hbm,
        peak,
        0,
        0,
        worth / devices,
        compute,
        traffic / chip.bandwidth,
        moved(found) / chip.links,
        0.0,
        found,
        temporary_bytes=temporary,
        read_bytes=traffic,
        accessed_bytes=accessed,
    )
    need.mfu_bound = need.flops / chip.flops / need.roofline_seconds
    return need


def _peak(memory: Any) -> int:
    """Bytes on a device while a program runs: arguments, results that are not written over them, and the rest."""
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes


def _used(error: str) -> int:
    """Bytes that a program would have needed, from the compiler's refusal.  Raises RuntimeError for any other error."""
    found = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm|required for [^(]*\(([\d.]+)([KMGT])\)", error)
    if not found:
        raise RuntimeError(error)
    number, unit = filter(None, found.groups())
    return int(float(number) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[unit])


def _ways(mesh: Mesh) -> int:
    return row_ways(mesh)


def _recomputed(model: ModelConfig, s: TrainStage) -> float:
    """FLOPs of the decoder's forward pass, which rematerialisation repeats."""
    total = 0.0
    for kind, size in s.rows().items():
        positions = s.text_length if kind == "text" else model.image_positions + s.length
        total += size * flops.decoder_forward(model.decoder, positions, 0)
    return total


def _gathered(leaves: Leaves, mesh: Mesh, model: ModelConfig) -> int:
    """Bytes of leaves in the compute dtype on one device, as the layers multiply by them: whole along `fsdp`."""
    specs = blueprint(model).specs
    width = jnp.dtype(model.dtype).itemsize

    def size(path: str) -> int:
        ways = mesh.shape["tensor"] * (mesh.shape["expert"] if "expert" in specs[path].axes else 1)
        # what is in 8 bits is read so, but for experts that many rows are sent to
        few = any(x.dtype == jnp.int8 for x in jax.tree.leaves(leaves[path])) and "expert" not in specs[path].axes
        return specs[path].size // ways * (1 if few else width)

    return sum(map(size, leaves))


def train_stages(recipe: Recipe, only: str | None = None) -> Iterator[str]:
    """Names of a recipe's training stages."""
    names = [name for name, s in recipe.settings.items() if isinstance(s, TrainStage)]
    if only is not None and only not in names:
        raise unknown("training stage", only, names)
    yield from names if only is None else [only]
