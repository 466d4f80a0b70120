"""The step of a recipe's stage on the devices that are here, with made-up rows: what it takes, and what a save adds.

The same program as training runs, less the data: for sizing a run, and for finding out what a setting costs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from sphinx_jax.checkpoint import store
from sphinx_jax.config import ConfigError, ModelConfig
from sphinx_jax.data.tokenizer import Tokenizer, load_tokenizer
from sphinx_jax.measure.ahead.needs import train_stages
from sphinx_jax.model.blueprint import blueprint
from sphinx_jax.recipe.recipe import PLAYGROUND, Recipe, mesh_of
from sphinx_jax.sharding import row_sharding
from sphinx_jax.train.checkpoints import Checkpoints
from sphinx_jax.train.loop import Throughput, peak_memory
from sphinx_jax.train.program import Program, abstract_batches, program, start
from sphinx_jax.train.settings import TrainStage, shapes, throughput
from sphinx_jax.train.step import TrainState


class StepTimes(NamedTuple):
    seconds: list[float]  # of each step; the first two are not worth counting
    loss: float
    worth: Throughput
    mesh: Mesh
    parts: dict[str, int]  # that each kind of batch is cut into


class SaveTimes(NamedTuple):
    """Seconds, medians of some windows of steps."""

    without: float
    beside: float  # with a checkpoint that is written meanwhile
    waited: float  # by the steps, for it
    written: float  # until it was complete
    size: int  # bytes of it

    @property
    def cost(self) -> float:
        return self.beside - self.without


def measure(recipe: Recipe, stage: str, steps: int) -> Iterator[str]:
    """Lines about `steps` steps of a stage that starts from fresh weights, the first two not counted.

    Raises ConfigError for a stage that does not train.
    """
    times = time_steps(recipe, stage, steps)
    seconds, worth = times.seconds, times.worth
    best, usual = min(seconds[2:]), statistics.median(seconds[2:])
    devices, rows = len(jax.devices()), recipe.settings[stage].rows()
    parts = ", ".join(f"{size} {kind} rows in {times.parts[kind]} parts" for kind, size in rows.items())
    yield f"{stage}: {parts}; {devices} x {jax.devices()[0].device_kind}, mesh {dict(times.mesh.shape)}"
    yield f"  first step {seconds[0]:.1f} s, compiled; best {best * 1e3:,.1f} ms, median {usual * 1e3:,.1f} ms"
    yield (
        f"  {worth.tokens / usual / devices:,.0f} tokens/s and {worth.flops / usual / devices / 1e12:,.2f} TFLOP/s a "
        f"device, MFU {worth.flops / usual / devices / worth.peak:.1%}; loss {times.loss:.3f}"
    )
    for size in peak_memory().values():
        yield f"  {size:.2f} GiB at most on a device"


def time_steps(recipe: Recipe, stage: str, steps: int) -> StepTimes:
    """What `measure` says, as numbers."""
    s, model, mesh, made, state, batches, _ = _prepare(recipe, stage)
    seconds = []
    with jax.set_mesh(mesh):
        for _ in range(steps + 2):
            begun = time.perf_counter()
            state, metrics = made.step(state, batches, np.float32(s.rate))
            loss = float(metrics["loss"])
            seconds.append(time.perf_counter() - begun)
    return StepTimes(seconds, loss, throughput(model, s), mesh, made.parts)


def measure_saves(recipe: Recipe, stage: str, steps: int, rounds: int, folder: Path) -> Iterator[str]:
    """Lines about what a checkpoint costs: `steps` steps with one that is written beside them and as many without, in
    turn.

    Raises ConfigError for a stage that does not train.
    """
    found = time_saves(recipe, stage, steps, rounds, folder)
    yield (
        f"{stage}: {steps} steps in {found.without:.1f} s, with a checkpoint of {found.size / 2**30:.2f} GiB in "
        f"{found.beside:.1f} s (medians of {rounds})"
    )
    yield (
        f"  steps wait {found.waited:.2f} s for it; it is complete after {found.written:.1f} s; "
        f"in all {found.cost:.2f} s, {found.cost / 120:.1%} of two minutes, {found.cost / 300:.1%} of five"
    )


def time_saves(recipe: Recipe, stage: str, steps: int, rounds: int, folder: Path) -> SaveTimes:
    """What `measure_saves` says, as numbers.

    Raises ConfigError where the steps were over before the checkpoint was complete.
    """
    s, model, mesh, made, state, batches, tokenizer = _prepare(recipe, stage)
    checkpoints = Checkpoints(folder, 1, model, tokenizer, {"made_by": "benchmark"})
    without, beside, blocked, written = [], [], [], []

    def window(number: int | None = None) -> float:
        """Seconds of the steps, with the checkpoint of this number beside them or with none."""
        nonlocal state
        begun, complete = time.perf_counter(), number is None
        if number is not None:
            checkpoints.save(number, state)
            blocked.append(time.perf_counter() - begun)
        for _ in range(steps):
            state, metrics = made.step(state, batches, np.float32(s.rate))
            jax.block_until_ready(metrics)
            if not complete and store.is_complete(folder / str(number)):
                complete = True
                written.append(time.perf_counter() - begun)
        seconds = time.perf_counter() - begun
        checkpoints.wait()
        if not complete:
            raise ConfigError(f"{steps} steps took {seconds:.1f} s and the checkpoint longer; give more --steps")
        return seconds

    with jax.set_mesh(mesh):
        window()  # compiles
        for number in range(rounds):
            beside.append(window(number))
            without.append(window())
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    medians = (statistics.median(x) for x in (without, beside, blocked, written))
    return SaveTimes(*medians, size)


class _Prepared(NamedTuple):
    settings: TrainStage
    model: ModelConfig
    mesh: Mesh
    program: Program
    state: TrainState
    batches: dict[str, dict[str, jax.Array]]
    tokenizer: Tokenizer


def _prepare(recipe: Recipe, stage: str) -> _Prepared:
    next(train_stages(recipe, stage))
    s, model, mesh = recipe.settings[stage], recipe.model, mesh_of(recipe, jax.devices(), [stage])
    made = program(model, stage, s, mesh)
    state = start(made, model, s, blueprint(model).init(mesh, recipe.seed), mesh)
    tokenizer = load_tokenizer(PLAYGROUND / "tokenizer.model")  # rows have the same shapes with any
    rows = row_sharding(mesh)
    random = np.random.default_rng(recipe.seed)
    batches = {
        kind: {
            name: jax.device_put(_made_up(name, x.shape, x.dtype, model.decoder.vocab_size, random), rows)
            for name, x in batch.items()
        }
        for kind, batch in abstract_batches(s, shapes(model, s), tokenizer, mesh).items()
    }
    return _Prepared(s, model, mesh, made, state, batches, tokenizer)


def _made_up(name: str, shape: tuple[int, ...], dtype: np.dtype, words: int, random: np.random.Generator) -> np.ndarray:
    """Rows without padding: every position a word, every word learnt, one document."""
    if name == "tokens":
        return random.integers(3, words, shape).astype(dtype)
    if name == "pixels":
        return random.integers(0, 255, shape).astype(dtype)
    return np.ones(shape, dtype) if name in ("weights", "loss_mask") else np.zeros(shape, dtype)
