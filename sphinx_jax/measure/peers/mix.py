"""How long a mix takes beside a plain copy, from a cold cache, and how much memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import ml_dtypes
import numpy as np

from sphinx_jax.checkpoint.stream import Writer
from sphinx_jax.progress import progress

# A process counts what its parent held when it was forked, so the mix is started by an interpreter that holds nothing.
_PEAK = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
WIDTH, HIDDEN = 2048, 5632  # of a 1.1B decoder: a layer's FFN matrices are 23 MB each in bfloat16


@dataclass(frozen=True)
class Measured:
    seconds: dict[str, list[float]]  # by what was done, a round after the other
    peak_bytes: int  # the mixes' largest resident set
    read_bytes: int
    written_bytes: int

    def lines(self) -> list[str]:
        best = {name: min(found) for name, found in self.seconds.items()}
        copied = best["copy"]
        lines = [f"{self.read_bytes / 1e9:.2f} GB read, {self.written_bytes / 1e9:.2f} GB written, best of each"]
        for name, seconds in best.items():
            spread = ", ".join(f"{s:.1f}" for s in self.seconds[name])
            lines.append(
                f"{name:<6} {seconds:6.1f} s  {seconds / copied:5.2f} x copy  (rounds {spread}; mean "
                f"{mean(self.seconds[name]):.1f})"
            )
        return [*lines, f"peak memory of a mix {self.peak_bytes / 2**20:,.0f} MiB"]


def measure(
    folder: Path, tool: Path, *, layers: int = 10, sources: int = 2, rounds: int = 3, method: str = "linear"
) -> Measured:
    """Mix checkpoints of random bfloat16 weights and copy the same bytes, in turn.

    `copy` is `cp -r` of every source and of one more for the output, and a sync: what a person would compare with.
    `stream` reads the sources and writes the output's bytes, the least that any tool must do.

    Args:
      tool: the command that mixes, `tools/mix_weights.py`.
      folder: new; the checkpoints stay there.
      layers: 69 MB each, in each source.
    """
    made = [folder / f"source{i}" for i in range(sources)]
    for seed, source in enumerate(progress(made, desc="making checkpoints")):
        if not (source / "state").exists():
            _make(source, layers, seed)
    size = _bytes(made[0])
    seconds: dict[str, list[float]] = {"mix": [], "copy": [], "stream": []}
    peak = 0
    for _ in progress(range(rounds), desc="rounds"):
        for name, found in seconds.items():
            out = folder / f"{name}.out"
            subprocess.run(["rm", "-rf", out], check=True)
            _forget(made)
            begun = time.perf_counter()
            if name == "mix":
                peak = max(peak, _mix(tool, made, out, method))
            elif name == "copy":
                out.mkdir()
                for i, source in enumerate([*made, made[0]]):
                    subprocess.run(["cp", "-r", source, out / str(i)], check=True)
            else:
                _stream(made, out)
            _sync(out)
            found.append(time.perf_counter() - begun)
            subprocess.run(["rm", "-rf", out], check=True)
    return Measured(seconds, peak, size * sources, size)


def _make(folder: Path, layers: int, seed: int) -> None:
    shapes = {"up": (layers, WIDTH, HIDDEN), "gate": (layers, WIDTH, HIDDEN), "down": (layers, HIDDEN, WIDTH)}
    random = np.random.default_rng(seed)
    writer = Writer(folder, {f"ffn/{name}": (shape, ml_dtypes.bfloat16) for name, shape in shapes.items()})
    for name, shape in shapes.items():
        for layer in range(layers):
            writer.write(f"ffn/{name}", (layer,), random.standard_normal(shape[1:], np.float32) * 0.02)
    writer.finish(None, None, {})


def _mix(tool: Path, sources: list[Path], out: Path, method: str) -> int:
    """A mix in a process of its own -> its peak memory in bytes."""
    weights = [str(1 / len(sources))] * len(sources)
    command = [sys.executable, str(tool), "--quiet", "--method", method, "--sources", *map(str, sources)]
    measured = [sys.executable, "-ISc", _PEAK, *command, "--weights", *weights, "--out", str(out)]
    done = subprocess.run(measured, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError("the mix failed; its message is above")
    return int(done.stdout) * 1024


def _stream(sources: list[Path], out: Path) -> None:
    out.mkdir()
    for number, source in enumerate(sources):
        for i, file in enumerate(_files(source)):
            with file.open("rb") as reading, (out / f"{i}").open("wb") as writing:
                while block := reading.read(2**23):
                    if number == 0:
                        writing.write(block)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in _files(folder))


def _forget(folders: list[Path]) -> None:
    """Drops files from the page cache."""
    for folder in folders:
        for path in _files(folder):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _sync(folder: Path) -> None:
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
