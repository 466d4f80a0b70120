"""Progress bars, live on a terminal, a rare line where output goes to a file; and what is compiled, said before."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sphinx_jax.paths import PROGRAMS, write_whole

COMPILED = 1.0  # seconds; what takes less was found compiled
EVERY = 5  # seconds between two lines of a log
STILL = 20.0  # and of what is being compiled
# seconds that the program of a first hour takes to compile on two cores, where nothing is known of the machine yet
FIRST = {"a step of sphinx_nano": 15, "encoders of sphinx_nano": 4, "first answers of sphinx_nano": 8}


_compiled: set[str] = set()  # by this process


class _Log:
    """A log has lines, where a terminal is written over."""

    def write(self, text: str) -> None:
        if line := text.replace("\r", "").strip():
            print(line, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def progress(over: Iterable[Any] | None = None, **settings: Any) -> tqdm:
    """A tqdm bar that disappears when it is full; in a log it prints every few seconds."""
    terminal = sys.stderr.isatty()
    if terminal:
        return tqdm(over, leave=False, mininterval=0.2, **settings)
    return tqdm(over, leave=False, mininterval=EVERY, delay=EVERY, file=_Log(), **settings)


@contextlib.contextmanager
def compiling(what: str, quiet: bool = False, guess: str = "") -> Iterator[None]:
    """Say that `what` is compiled, how long that took here where nothing was found compiled, and now and then that it
    goes on.

    Args:
      what: `stage, program of model`, or the program alone where stages share it: that is said once.
      guess: how long it takes, where nothing is known.
    """
    if quiet or what in _compiled:
        yield
        return
    file = _folder() / "compile_seconds.json"
    known = _seconds(file)
    first = FIRST.get(what.rpartition(", ")[2])
    guess = f"some {first} s on two cores" if first else guess
    last = f"it took {known[what]:.0f} s before" if what in known else guess
    print(f"{what}: compiling{f'; {last}' * bool(last)}", file=sys.stderr, flush=True)
    begun, over = time.perf_counter(), threading.Event()

    def tell() -> None:
        while not over.wait(STILL):
            print(f"{what}: compiling, {time.perf_counter() - begun:.0f} s so far", file=sys.stderr, flush=True)

    teller = threading.Thread(target=tell, daemon=True)
    try:
        teller.start()
        yield
    finally:
        over.set()
        if teller.is_alive():
            teller.join()
    _compiled.add(what)
    if (spent := time.perf_counter() - begun) > COMPILED:
        with contextlib.suppress(OSError):  # it is a help, and no more
            file.parent.mkdir(parents=True, exist_ok=True)
            known = _seconds(file)  # others have written meanwhile
            write_whole(file, json.dumps(known | {what: max(round(spent, 1), known.get(what, 0))}).encode())


def _seconds(file: Path) -> dict[str, float]:
    """What was compiled here before, and how long each took."""
    try:
        return {name: float(seconds) for name, seconds in json.loads(file.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _folder() -> Path:
    """Where compiled programs are kept, as far as that is a folder here."""
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    return Path(given) if given and "://" not in given else PROGRAMS
