"""SIGTERM, as a cluster sends before it takes machines away: save, then leave, all hosts at the same step.

So does Ctrl-C in a run of one process; the second one ends it at once.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Within it these signals are a request, seen by `due`, and not the end of the process.

    `signal` is the one that came, SIGTERM where JAX took it.
    """

    def __init__(self) -> None:
        self.signal = signal.SIGTERM
        self._asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Preemption:
        # with many processes JAX's own service takes the signal and agrees on a step; handlers are for main threads
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) != signal.SIG_IGN:  # as in the background of a shell
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._asked:
                raise KeyboardInterrupt
            print("\nsaving this step; Ctrl-C again ends at once", file=sys.stderr)
        self._asked, self.signal = True, signal.Signals(number)

    def due(self, step: int) -> bool:
        """Whether to save and leave after this step; every process asks at every step and gets the same answer."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
