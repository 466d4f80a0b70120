"""The published training step on this device, with as many layers as its memory holds, and what a checkpoint costs."""

from __future__ import annotations

import copy
import dataclasses
import gc
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sphinx_jax.config import ConfigError, DecoderConfig
from sphinx_jax.measure.device import hardware
from sphinx_jax.measure.device.rows import Row, Setting, size_text
from sphinx_jax.measure.step import time_saves, time_steps
from sphinx_jax.model.blueprint import blueprint, matches
from sphinx_jax.recipe.recipe import Recipe
from sphinx_jax.recipe.runner import parse
from sphinx_jax.recipe.smoke import smoke
from sphinx_jax.train.settings import throughput

STAGE, STEPS, FEWEST = "finetune", 8, 2  # a stage of every recipe, steps that are timed, layers worth timing
TRAINED, KEPT = 16, 2  # bytes of a parameter: float32 with its gradient and AdamW's two slots; frozen, in bfloat16
# bytes of activations and of buffers a position takes, for each channel of the decoder: 230 for sphinx_1k compiled for
# an H100, and some for what kernels need for themselves
WORKING = 260
# a checkpoint of 1.2 GB, with its optimizer
SAVED = DecoderConfig(dim=1024, layers=8, heads=16, vocab_size=1280)
WINDOW = 6.0  # seconds of steps that a checkpoint is written beside


class Size(NamedTuple):
    name: str  # of the recipe
    layers: int
    rows: int  # of each kind, a device


def check(setting: Setting, deadline: float) -> Iterator[Row]:
    """The step of the largest recipe of which a few layers fit, with fewer of them where memory is out after all."""
    memory, devices = hardware.device_memory(), len(jax.devices())
    if memory is None:
        recipe = nano(setting.recipes)
        yield _row(recipe, recipe, f"{recipe.title}, {recipe.model.decoder.layers} layers", 3)
        return
    size = largest(setting.recipes, memory, devices)
    while True:
        recipe = cut(setting.recipes[size.name], size, devices)
        layers = f"{size.layers} of {setting.recipes[size.name]['model']['decoder']['layers']} layers"
        try:
            yield _row(recipe, parse(setting.recipes[size.name], origins=False), f"{size.name}, {layers}", STEPS)
            return
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or size.layers <= FEWEST or time.time() > deadline - 60:
                raise
        size = size._replace(layers=max(FEWEST, size.layers * 2 // 3))
        gc.collect()  # arrays that the error's frames held


def _row(recipe: Recipe, full: Recipe, what: str, steps: int) -> Row:
    times = time_steps(recipe, STAGE, steps)
    usual, devices, worth = statistics.median(times.seconds[2:]), len(jax.devices()), times.worth
    rate = worth.flops / usual / devices
    mfu, tokens = rate / worth.peak, worth.tokens / usual / devices
    result = f"{usual * 1e3:,.1f} ms, {tokens:,.0f} tokens/s a device, {rate / 1e12:,.2f} TFLOP/s, MFU {mfu:.1%}"
    numbers = {
        "seconds": usual,
        "first": times.seconds[0],
        "devices": devices,
        "tokens": worth.tokens,
        "flops": worth.flops,
        "peak": worth.peak,
        "mfu": mfu,
        "layers": recipe.model.decoder.layers,
    }
    if (layers := full.model.decoder.layers) != recipe.model.decoder.layers:
        whole = throughput(full.model, full.settings[STAGE])
        numbers["tokens_whole"] = rate / whole.flops * whole.tokens
        result += f"; at this rate {numbers['tokens_whole']:,.0f} tokens/s with all {layers} layers"
    rows = ", ".join(f"{size} {kind} rows" for kind, size in recipe.settings[STAGE].rows().items())
    return Row(f"training step of {what}: {rows}", result, math.isfinite(times.loss), hardware.peak_gib(), numbers)


def largest(recipes: dict[str, dict[str, Any]], memory: int, devices: int) -> Size:
    """The recipe, its decoder's layers and the rows a device takes, for `memory` bytes on each.

    Raises ConfigError where not even the smallest recipe has a few layers' room.
    """
    for name, values in recipes.items():
        for rows in (values["stage"][STAGE]["device_rows"], 1):
            layers = fitting_layers(parse(values, origins=False), rows, memory, devices)
            if layers >= FEWEST:
                return Size(name, layers, rows)
    raise ConfigError(f"{memory / 2**30:.1f} GiB of memory hold no {FEWEST} layers of {', '.join(recipes)}")


def fitting_layers(recipe: Recipe, rows: int, memory: int, devices: int) -> int:
    """Layers of a recipe's decoder that train in `memory` bytes on each device, all else whole."""
    s, model = recipe.settings[STAGE], recipe.model
    layer = rest = 0
    for path, spec in blueprint(model).specs.items():
        size = spec.size * (KEPT if matches(path, s.frozen) else TRAINED)
        if path.startswith("decoder/blocks/"):
            layer += size // model.decoder.layers
        else:
            rest += size
    positions = rows * (model.image_positions + s.length + (s.text_length if "text" in s.rows() else 0))
    left = memory - rest / devices - WORKING * model.decoder.dim * positions
    # the backward pass keeps what goes into a layer
    each = layer / devices + 2 * model.decoder.dim * positions
    return max(0, min(model.decoder.layers, int(left / each)))


def cut(values: dict[str, Any], size: Size, devices: int) -> Recipe:
    """A recipe at that size."""
    values = copy.deepcopy(values)
    values["model"]["decoder"]["layers"] = size.layers
    batch = size.rows * devices
    values["stage"][STAGE] |= {"batch": batch, "text_batch": batch, "device_rows": size.rows}
    return parse(values, origins=False)


def nano(recipes: dict[str, dict[str, Any]], decoder: DecoderConfig | None = None) -> Recipe:
    """The smallest recipe at nano size, for a CPU; `decoder`: with another one."""
    values = smoke(copy.deepcopy(list(recipes.values())[-1]))
    if decoder is not None:
        values["model"]["decoder"] = dataclasses.asdict(decoder)
    values["stage"][STAGE] |= {"length": 64, "device_rows": 8}
    return parse(values)


def check_saves(setting: Setting, deadline: float) -> Iterator[Row]:
    """Steps with a checkpoint that is written beside them, and without: windows that outlast it, found by trying."""
    small = hardware.device_memory() is None
    recipe = nano(setting.recipes, None if small else SAVED)
    usual = statistics.median(time_steps(recipe, STAGE, 3).seconds[2:])
    window = 1.0 if small else WINDOW
    while True:
        steps = max(2, math.ceil(window / usual))
        with tempfile.TemporaryDirectory(dir=setting.scratch) as folder:
            try:
                found = time_saves(recipe, STAGE, steps, 1, Path(folder) / "saves")
                break
            except ConfigError:
                # a longer window, if there is time for the three of it
                window *= 3
                if time.time() + 4 * window > deadline:
                    raise
    result = (
        f"steps wait {found.waited:.2f} s, it is complete after {found.written:.1f} s; {found.without:.1f} s of steps "
        f"take {found.cost:+.2f} s with one, {max(0.0, found.cost) / 120:.1%} of two minutes"
    )
    numbers = found._asdict() | {"steps": steps}
    yield Row(f"checkpoint of {size_text(found.size)} beside the steps", result, True, hardware.peak_gib(), numbers)
