"""How a command ends that could not do its work."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def plain_errors(*more: type[Exception], stopped: str = "stopped; the same command goes on") -> Iterator[None]:
    """Errors that a person can mend (ValueError, OSError and ``more``) are one line; others keep their traceback.

    All keep it where ``SPHINX_JAX_TRACEBACK`` is set.
    """
    try:
        yield
    except (ValueError, OSError, *more) as error:
        if os.environ.get("SPHINX_JAX_TRACEBACK"):
            raise
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit(stopped)
