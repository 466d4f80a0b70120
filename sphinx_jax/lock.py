"""One command at a time works in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from sphinx_jax.config import ConfigError

NAME = ".lock"  # holds the number of the process that works in the folder
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(folder: Path, option: str = "--workdir") -> Iterator[None]:
    """Nobody else works in `folder` within.  The system's lock ends with its process, however that ends.

    `option`: what names the folder on the command line.

    Raises ConfigError where another process does.
    """
    file = _taken(folder, option)
    try:
        yield
    finally:
        (folder / NAME).unlink(missing_ok=True)
        os.close(file)


def _taken(folder: Path, option: str) -> int:
    """The locked file, which is in its place."""
    while True:
        file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 20).decode().strip()
            os.close(file)
            by = f"process {holder}" if holder else "another process"
            raise ConfigError(
                f"{folder} is in use by {by}; wait until that ends, stop it, or give another {option}"
            ) from None
        except OSError as error:  # some network disks have no locks
            _log.warning("%s cannot be locked (%s); run one command at a time in it", folder, error.strerror)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(folder / NAME)):
                os.ftruncate(file, 0)
                os.write(file, f"{os.getpid()}\n".encode())
                return file
        os.close(file)  # whoever had it before took it away
