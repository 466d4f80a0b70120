"""Shared by all tests: a tiny model, and the fixtures that the reference produced."""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

# Tests compile much and compute little: what the compiler would make faster takes longer to compile than it saves.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import BeartypeConf, beartype
from hypothesis import settings
from jaxtyping import install_import_hook

# how long an example takes says how busy the machine is
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# shapes and dtypes that are annotated are checked in every call of a test; an int does for a float
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
MODULES = ("attention", "cache", "decoder", "embedding_mix", "encoders", "layers", "moe", "rope", "sphinx", "views")
CHECKED = [
    *(f"sphinx_jax.model.{name}" for name in MODULES),
    "sphinx_jax.train.step",
    "sphinx_jax.generate.batching.sampling",
]
install_import_hook(CHECKED, "conftest.check")

from sphinx_jax.config import (  # noqa: E402 (after the hook)
    ConvNextConfig,
    DecoderConfig,
    ModelConfig,
    QFormerConfig,
    ViewsConfig,
    blip2_config,
    clip_config,
    dinov2_config,
)

DATA = Path(__file__).parent / "fixtures"
ROOT = Path(__file__).parents[1]


def pytest_configure(config):
    """What is compiled is kept for the run: worker processes, and commands that they start, inherit the folder."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="sphinx_jax_tests_")
        jax.config.update("jax_compilation_cache_dir", folder)
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


# settings of one training step of both kinds of rows, text packed
ONE_STEP = {
    "start": "fresh",
    "steps": 1,
    "batch": 8,
    "length": 12,
    "text_batch": 8,
    "text_length": 16,
    "pack_text": True,
}


def tiny_config(**changes) -> ModelConfig:
    """All four encoders and five views, as small as they get: 16-pixel views of 2 × 2 patches."""
    values = {
        "name": "tiny",
        "decoder": DecoderConfig(dim=32, layers=2, heads=2, kv_heads=1, vocab_size=512, multiple_of=16),
        "views": ViewsConfig(32, crops=2),
        "clip": clip_config(16, 2, 2, patch=8, view_size=16),
        "convnext": ConvNextConfig((1, 1), (8, 16), view_size=16, input_size=16),
        "dinov2": dinov2_config(16, 2, 2, patch=8, view_size=16, position_grid=2),
        "blip2": blip2_config(16, 2, 2, 32, patch=8, view_size=16),
        "qformer": QFormerConfig(16, 2, 2, 32, queries=2),
    }
    return ModelConfig(**(values | changes))


class Parrot:
    """An engine that answers with the prompt, the last first, and is killed after so many."""

    def __init__(self, until: int):
        self.until, self.asked, self.pictures = until, [], self

    def picture(self, found):
        return None

    def room(self, with_picture, new_tokens):
        return []

    def as_completed(self, requests):
        from sphinx_jax.generate.request import Said

        for number, request in reversed(list(enumerate(requests))):
            if len(self.asked) == self.until:
                raise KeyboardInterrupt
            self.asked.append(request.prompt)
            yield number, [Said(request.prompt, [], [], "stop")]


# they take minutes: begun last, one of them would keep a single process busy at the end
LONG = (
    "train",
    "model",
    "recipe",
    "weight_mix",
    "quantise",
    "sharding",
    "moe",
    "convert",
    "resume",
    "packing",
    "ahead",
)


def pytest_collection_modifyitems(items):
    for item in items:
        if "importorskip" in item.function.__code__.co_names:
            item.add_marker("peers")
    order = {f"test_{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))


MAPS = 30_000  # of the 65,530 pieces of memory that Linux lets a process have by default


@pytest.fixture(autouse=True, scope="module")
def _room_for_programs():
    """Each compiled program takes some pieces of memory; where no more are to be had, LLVM ends the process."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPS:
        jax.clear_caches()


@functools.cache
def _born(config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    from sphinx_jax.model.blueprint import blueprint
    from sphinx_jax.sharding import make_mesh

    leaves = blueprint(config).init(make_mesh(devices=jax.devices()[:1]), seed)
    return {path: np.asarray(leaf) for path, leaf in leaves.items()}


def born(config: ModelConfig, seed: int = 0) -> dict[str, jax.Array]:
    """Fresh leaves of a model, compiled once per test run; copies, so that a step may donate them."""
    return {path: jnp.array(leaf) for path, leaf in _born(config, seed).items()}


def read_published(tensors, config: ModelConfig, allow_missing=()) -> dict[str, np.ndarray]:
    """All leaves of a published model, whole in memory and in the files' dtypes; `allow_missing` as `check_present`."""
    from sphinx_jax.checkpoint.foreign.accessory import checked_names
    from sphinx_jax.model.blueprint import blueprint

    leaves, rows = {}, {}
    for name in checked_names(tensors, config, allow_missing):
        for path, array in zip(name.leaves, name.ours(tensors[name.foreign].read()), strict=True):
            if name.index:
                rows.setdefault(path, {})[name.index] = array
            else:
                leaves[path] = array
    specs = blueprint(config).specs
    while rows:
        path, of = rows.popitem()
        leaves[path] = np.stack([of[index] for index in sorted(of)]).reshape(specs[path].shape)
    return leaves


def compilations() -> list[str]:
    """A list that has an entry for each compilation from now on."""
    counted: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: counted.append(name) if name == "/jax/core/compile/backend_compile_duration" else None
    )
    return counted


def run_with_devices(code: str, devices: int = 8, **settings: str) -> str:
    """Run a script in a process with that many virtual CPU devices; it can import from the tests.

    `settings`: of its environment.  Returns stderr.
    """
    env = (
        os.environ
        | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        }
        | settings
    )
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def carried_out(*words, cwd) -> str:
    """What a command of Python's prints."""
    there = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=cwd, env=os.environ | there)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def tiny() -> ModelConfig:
    return tiny_config()


@pytest.fixture(scope="session")
def mesh():
    from sphinx_jax.sharding import make_mesh

    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three checkpoints of one model, the last in bfloat16."""
    from sphinx_jax.checkpoint import store
    from sphinx_jax.data.tokenizer import load_tokenizer

    config, root = tiny_config(), tmp_path_factory.mktemp("mix")
    made = []
    for seed in range(3):
        leaves = born(config, seed)
        if seed == 2:
            leaves = {path: leaf.astype("bfloat16") for path, leaf in leaves.items()}
        tokenizer = load_tokenizer(DATA / "tokenizer.model") if seed == 0 else None
        made.append(store.save(root / str(seed), leaves, config, tokenizer, {"made_by": "test"}))
    return made
