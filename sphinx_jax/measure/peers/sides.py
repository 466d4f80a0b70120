"""Two sides of a comparison, each in a process of its own.

Both processes live through the whole comparison and work in turn, a line of JSON each way.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

from sphinx_jax import heap
from sphinx_jax.config import ConfigError

OURS, THEIRS = SIDES = ("ours", "theirs")
REST = 0.3  # seconds before a side's turn, in which the other's threads stop spinning
HEADER = f"{'best of each':<28} {'sphinx_jax':>12}  {'PyTorch':>12}  faster by"


class Apart(ValueError):
    """The two sides do not compute the same; a ratio of their times would mean nothing."""


class Work(NamedTuple):
    """What one side does of a comparison."""

    name: str
    run: Callable[[], Any]  # returns when it is done
    how: str = ""  # by which of the side's ways


@dataclass(frozen=True)
class Pair:
    """Seconds of one piece of work, a round after the other, on each side."""

    name: str
    ours: list[float]
    theirs: list[float]
    peer: str

    def line(self) -> str:
        ours, theirs = min(self.ours), min(self.theirs)
        return f"{self.name:<28} {ours * 1e3:9.1f} ms  {theirs * 1e3:9.1f} ms  {theirs / ours:5.2f} x  ({self.peer})"


class Side:
    """A process that answers requests: `serve` with what the function `make` of a module gives for this side."""

    def __init__(self, make: Callable[..., Any], side: str, *given: Any):
        command = [sys.executable, "-c", f"from {__name__} import serve; serve()"]
        command += [make.__module__, make.__qualname__, side, json.dumps(given)]
        # on a GPU the other side needs memory too
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def ask(self, work: str, **what: Any) -> Any:
        """What the method `work` of the side returns.

        Raises:
          Apart, ConfigError: as it does; also where the process has ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        time.sleep(REST)
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"work": work, **what}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise ConfigError("a side of the comparison ended; what it said stands above")
        answer = json.loads(line)
        if "apart" in answer:
            raise Apart(answer["apart"])
        if "error" in answer:
            raise ConfigError(answer["error"])
        return answer["found"]

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


class Works:
    """A side that has one piece of work after the other."""

    def __init__(self, works: Iterator[Work]):
        self._works = works

    def next(self) -> tuple[str, str] | None:
        """Name of the next one, and how it is done; None where there is none."""
        self._work = next(self._works, None)
        if self._work is None:
            return None
        self._work.run()  # what it compiles does not count
        return self._work.name, self._work.how

    def run(self) -> float:
        """Seconds of a second time: a system may take memory back from who rests, and the first brings it again."""
        assert self._work is not None
        self._work.run()
        begun = time.perf_counter()
        self._work.run()
        return time.perf_counter() - begun


def pairs(make: Callable[..., Iterator[Work]], rounds: int, *given: Any) -> Iterator[Pair]:
    """The works of both sides, `make(side, *given)`, timed in turn.

    Raises:
      Apart: what they compute is not the same.
    """
    sides = {name: Side(make, name, *given) for name in SIDES}
    try:
        while all(found := [side.ask("next") for side in sides.values()]):
            seconds = {name: [] for name in SIDES}
            for _ in range(rounds):
                for name, side in sides.items():
                    seconds[name].append(side.ask("run"))
            yield Pair(found[0][0], *seconds.values(), found[1][1])
    finally:
        for side in sides.values():
            side.end()


def serve() -> None:
    """What a `Side` runs."""
    heap.keep_on_cpu()  # PyTorch takes a step's memory anew as XLA does
    module, make, side, given = sys.argv[1:]
    answers, made = os.fdopen(os.dup(1), "w"), None
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin:
        what = json.loads(line)
        try:
            if made is None:
                made = getattr(import_module(module), make)(side, *json.loads(given))
                made = Works(made) if isinstance(made, Iterator) else made
            answer = {"found": getattr(made, what.pop("work"))(**what)}
        except Apart as error:
            answer = {"apart": str(error)}
        except ConfigError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)
