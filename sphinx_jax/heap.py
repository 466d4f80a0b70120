"""Whether glibc's heap keeps what is freed, or gives it back to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.util import find_spec

# of glibc's malloc.h
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
KEPT = 2**30  # bytes that a step's temporary memory may have, and more are not kept at once


def keep_on_cpu() -> None:
    """`keep`, where JAX has nothing but a CPU; to be called before JAX looks for devices."""
    if os.environ.get("JAX_PLATFORMS") == "cpu" or not any(map(find_spec, ("jax_plugins", "libtpu"))):
        keep()


def keep() -> None:
    """Memory that is freed stays with the process, in pieces of up to a gibibyte, to be had again.

    For the whole process, if no thread has a heap of its own yet: how many there are glibc settles with the first.
    XLA's CPU backend asks for the memory of a step anew at every step: from the system it comes page by page, which
    costs a small model a quarter of its time.
    """
    _set(KEPT)


def give_back() -> None:
    """Memory that is freed goes back to the system, in pieces of a mebibyte and more.

    For the whole process. Reading chunk by chunk, a program then has no more than the chunks in use: mixing two
    checkpoints peaks at two thirds of the memory, at the same speed.
    """
    _set(2**20)


def _set(kept: int) -> None:
    # one heap: the others, which threads get, grow to their largest pieces ever, and keep none above 64 MiB
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # musl has none
    if mallopt is not None:
        for name, value in ((ARENA_MAX, 1), (MMAP_THRESHOLD, kept), (TRIM_THRESHOLD, kept)):
            mallopt(name, value)
