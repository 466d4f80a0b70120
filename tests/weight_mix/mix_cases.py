"""What the tests of the weight mix share: three checkpoints of one model, and the tool as a process."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from conftest import ROOT, tiny_config

from sphinx_jax.checkpoint import stream
from sphinx_jax.config import ModelConfig
from sphinx_jax.weight_mix.methods import METHODS, Unit, resolve
from sphinx_jax.weight_mix.settings import Mix

TOOL = ROOT / "tools" / "mix_weights.py"
CONFIG = tiny_config()
TEXT = ModelConfig("llama", CONFIG.decoder)


def leaves_of(folder):
    reader = stream.Reader(folder)
    return {path: reader.read(path) for path in reader.leaves}


def linear(sources, weights, **more):
    own = tuple({"weight": weight} for weight in weights)
    return Mix("linear", tuple(map(str, sources)), per_source=own, **more)


def run_tool(*arguments, expect=0, wait=True):
    env = os.environ | {"PYTHONPATH": str(TOOL.parents[1])}
    command = [sys.executable, TOOL, *map(str, arguments)]
    if not wait:
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == expect, done.stderr
    return done


def mix(method: str, unit: Unit, parameters: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """The mixed rows of a unit, float32, one array for each of its slices, read no more often than needed."""
    opened = unit.slices()
    first = next(opened, None)
    if first is None:
        return iter(())
    complete = resolve(method, parameters, sources=len(first.sources), base=first.base is not None)
    begun = [itertools.chain([first], opened)]  # the first pass goes on from here: no slice is read for the check alone
    again = unit.slices
    return METHODS[method].run(replace(unit, slices=lambda: begun.pop() if begun else again()), complete)
