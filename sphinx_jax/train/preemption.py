"""SIGTERM, as a cluster sends before it takes machines away: save, then leave, all hosts at the same step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Within it SIGTERM is a request, seen by ``due``, and not the end of the process."""

    def __init__(self) -> None:
        self._asked = False
        self._before = None

    def __enter__(self) -> Preemption:
        # with many processes JAX's own service takes the signal and agrees on a step; handlers are for main threads
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def due(self, step: int) -> bool:
        """Whether to save and leave after this step; every process asks at every step and gets the same answer."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
