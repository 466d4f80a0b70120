"""Full disks: told apart from other failures, and told in one line."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from sphinx_jax.paths import in_store

FULL = (errno.ENOSPC, errno.EDQUOT)
SAID = tuple(map(os.strerror, FULL))  # what is left of the number in errors of libraries written in C++


class DiskFull(ValueError):
    """There is no room for what is to be written; the message says where, and how the work goes on."""

    def __init__(self, folder: str | os.PathLike[str]):
        super().__init__(
            f"the disk of {folder} is too full to go on ({room_left(folder)}); make room there and run the same "
            "command again: what was complete is kept"
        )


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk or a spent quota is behind an error."""
    if error is None:
        return False
    if isinstance(error, DiskFull) or getattr(error, "errno", None) in FULL or any(s in str(error) for s in SAID):
        return True
    more = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return any(map(is_full, (*more, error.__cause__ or error.__context__)))


@contextlib.contextmanager
def told_when_full(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Raises DiskFull, naming `folder`, for any error within that a full disk is behind."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if is_full(error):
            raise DiskFull(folder) from error
        raise


@contextlib.contextmanager
def nothing_logged() -> Iterator[None]:
    """Within, libraries do not log the traceback of a full disk from their own threads: it is told where it is met."""

    def other(record: logging.LogRecord) -> bool:
        return not (record.exc_info and is_full(record.exc_info[1]))

    logger = logging.getLogger("absl")  # Orbax's
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def room_left(folder: str | os.PathLike[str]) -> str:
    """What is free on the disk of a folder that is there, or will be, in words."""
    there = next((path for path in (Path(folder), *Path(folder).parents) if path.exists()), None)
    if there is None or in_store(folder):
        return "how much is free it does not say"
    return f"{shutil.disk_usage(there).free / 2**30:.2f} GiB are free, or what a quota leaves of them"
