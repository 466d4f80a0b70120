"""Pictures made by several processes, in order.

The workers are plain subprocesses that write to their standard output, so they need no `__main__` guard in
the program that asks for pictures, whatever the way it was started.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator

from sphinx_jax.data.playground.pictures import Example, make_picture

_COMMAND = "import sys; from sphinx_jax.data.playground.workers import main; main(sys.argv[1:])"
FEWEST = 200
"""Pictures below which starting processes takes longer than it saves."""


def pictures(seed: int, split: str, domain: str, count: int, workers: int | None = None) -> Iterator[Example]:
    """`make_picture` of the indices 0 to count - 1, in order, by `workers` processes (default: one a core).

    Falls back to this process where none can be started or one of them dies: the pictures are the same.
    """
    workers = workers or os.cpu_count() or 1
    done = 0
    if workers > 1 and count >= FEWEST:
        with contextlib.closing(_from_workers(seed, split, domain, count, workers)) as examples:
            try:
                for example in examples:
                    yield example
                    done += 1
            except (OSError, EOFError, pickle.UnpicklingError):
                pass
    for index in range(done, count):
        yield make_picture(seed, split, domain, index)


def _from_workers(seed: int, split: str, domain: str, count: int, workers: int) -> Iterator[Example]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", _COMMAND, str(seed), split, domain, str(count), str(workers)]
    processes: list[subprocess.Popen] = []
    try:
        for number in range(workers):
            processes.append(
                subprocess.Popen(
                    [*command, str(number)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    stdin=subprocess.DEVNULL,
                    env=environment,
                )
            )
        for index in range(count):
            yield pickle.load(processes[index % workers].stdout)
    finally:
        for process in processes:
            process.kill()
            process.stdout.close()
            process.wait()


def main(arguments: list[str]) -> None:
    """One worker: the arguments are seed, split, domain, count, workers and its own number."""
    seed, split, domain, count, workers, number = arguments
    for index in range(int(number), int(count), int(workers)):
        pickle.dump(make_picture(int(seed), split, domain, index), sys.stdout.buffer)
        sys.stdout.buffer.flush()
