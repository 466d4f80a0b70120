"""Reading ahead: what is asked next is read from disk while the device answers what came before."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

READERS = min(16, os.cpu_count() or 1)  # threads
Given = TypeVar("Given")
Found = TypeVar("Found")


def read_ahead(
    read: Callable[[Given], Found],
    given: Iterable[Given],
    by_threads: Callable[[Given], bool] = lambda one: True,
    readers: int | None = None,
) -> Iterator[Future[Found]]:
    """What `read` makes of each, in their order, by threads and a few ahead of their turn.

    What nothing has to be waited for comes out at once.  An error of `given` is raised after all that came before it.

    Args:
      by_threads: whether one may be read by another thread than this.
      readers: threads, and how many are read ahead; None: `READERS`.
    """
    readers = readers or READERS
    pool, taken = ThreadPoolExecutor(readers, "reading"), deque[Future[Found]]()
    rest, failed = iter(given), None
    try:
        while True:
            try:
                one = next(rest)
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001 (raised below)
                failed = error
                break
            taken.append(pool.submit(read, one) if by_threads(one) else _here(read, one))
            while taken and (taken[0].done() or len(taken) > readers):
                yield taken.popleft()
        while taken:
            yield taken.popleft()
        if failed is not None:
            raise failed
    finally:
        pool.shutdown(cancel_futures=True)


def _here(read: Callable[[Given], Found], one: Given) -> Future[Found]:
    done: Future[Found] = Future()
    try:
        done.set_result(read(one))
    except Exception as error:  # noqa: BLE001 (whoever asks for the result meets it)
        done.set_exception(error)
    return done
