"""How a command ends that could not do its work."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from sphinx_jax.disk import DiskFull, is_full, nothing_logged

LONGEST = 300  # characters of a message
LOST = 75  # exit status of a run that lost one of its processes: EX_TEMPFAIL, another attempt may do


class Stopped(Exception):
    """Work that a signal asked to end early and that did so in good order; the message says how it goes on."""

    def __init__(self, message: str, by: signal.Signals = signal.SIGTERM):
        super().__init__(message)
        self.by = by


@contextlib.contextmanager
def plain_errors(*more: type[Exception], stopped: str = "stopped; the same command goes on") -> Iterator[None]:
    """Errors that a person can mend (ValueError, OSError, a full disk and `more`) are one line; others keep their
    traceback.

    All keep it where `SPHINX_JAX_TRACEBACK` is set.  Work that SIGTERM stopped ends with 143 (Ctrl-C: 130), as a
    shell counts signals: a scheduler that took the end for success would not start it again.
    """
    whole = bool(os.environ.get("SPHINX_JAX_TRACEBACK"))
    try:
        with contextlib.nullcontext() if whole else nothing_logged():
            yield
    except Stopped as end:
        print(end, file=sys.stderr)
        sys.exit(128 + end.by)
    except KeyboardInterrupt:
        sys.exit(stopped)
    except Exception as error:
        full = is_full(error)
        if whole or not (full or isinstance(error, (ValueError, OSError, *more))):
            raise
        if full and not isinstance(error, ValueError):  # which say more
            error = DiskFull(Path(getattr(error, "filename", None) or "here").absolute().parent)
        sys.exit(shortened(f"error: {error}"))


def shortened(message: str, most: int = LONGEST) -> str:
    """A message on one line of at most so many characters: its middle goes, the fix at its end stays."""
    line = " ".join(message.split())
    if len(line) <= most:
        return line
    fix = line.rfind("; ")
    kept = len(line) - fix if fix > 0 else 0
    if not 0 < kept <= most // 2:  # what a message ends in tells more than its middle
        kept = most // 3
    return f"{line[: most - kept - 3].rstrip()} … {line[-kept:].lstrip()}"[:most]
