"""Dtypes that hold what they are given: which one holds several, and casts that tell what would be lost.

A cast rounds each value to the nearest that the dtype has.  Beyond that two things may happen.  A finite value may
*overflow* to infinity; that is refused always.  A value below the smallest normal one may lose more than rounding, down
to all of it (*underflow*).  Any matrix of a trained model has a few values so small that nothing depends on them, so
this is judged over the matrix: what underflow takes away, as a Euclidean norm, may be at most the dtype's `eps` of
the whole.  A matrix without underflow always stays within that.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from sphinx_jax.checkpoint.store import BadCheckpoint

NONFINITE, UNDERFLOW = "nonfinite", "underflow"
LOSSES = (NONFINITE, UNDERFLOW)  # what may be asked for by name
STEP = 2**20  # values that are looked at at a time
EXPONENT_BITS = {"float16": 0x7C00, "bfloat16": 0x7F80}  # all set: NaN or infinity


def common_dtype(dtypes: Iterable[np.dtype]) -> np.dtype:
    """The smallest dtype that holds every value of each: float32 for bfloat16 with float16."""
    return functools.reduce(_promoted, map(np.dtype, dtypes))


def common_dtypes(named: Iterable[tuple[str, np.dtype]]) -> dict[str, np.dtype]:
    """{name: what holds all dtypes that come with it}."""
    found: dict[str, np.dtype] = {}
    for name, dtype in named:
        found[name] = common_dtype([found.get(name, dtype), dtype])
    return found


def _promoted(a: np.dtype, b: np.dtype) -> np.dtype:
    try:
        return np.promote_types(a, b)
    except TypeError:  # numpy knows of no dtype for the two kinds of 16 bits
        return np.promote_types(np.promote_types(a, np.float32), np.promote_types(b, np.float32))


def place_of(path: str, index: Any = ()) -> str:
    """A leaf and the integers that an index begins with, as errors name them."""
    parts = index if isinstance(index, tuple) else (index,)
    return path + "".join(f"[{i}]" for i in itertools.takewhile(lambda part: isinstance(part, int), parts))


def is_finite(array: np.ndarray) -> bool:
    """Whether an array has neither NaN nor infinity; one of whole numbers has none."""
    mask = EXPONENT_BITS.get(array.dtype.name)
    if mask is not None:  # ml_dtypes' own test is many times slower
        return not any(((part.view(np.uint16) & mask) == mask).any() for part, _ in _pairs(array, array))
    return not _is_float(array.dtype) or all(np.isfinite(part).all() for part, _ in _pairs(array, array))


def finite(array: np.ndarray, what: str, allow: Collection[str] = ()) -> np.ndarray:
    """The array; BadCheckpoint if it holds NaN or infinity and `allow` does not name `nonfinite`."""
    if NONFINITE not in allow and not is_finite(array):
        raise BadCheckpoint(f"{what} holds NaN or infinity; --allow {NONFINITE} takes it as it is")
    return array


class Cast:
    """One matrix, or any array, piece by piece into a dtype; `check` at its end says what was lost."""

    def __init__(self, dtype: np.dtype, what: str, allow: Collection[str] = ()):
        self.dtype, self._what, self._allow = np.dtype(dtype), what, allow
        self._size = self._overflows = self._underflows = self._differing = 0
        self._largest = self._largest_small = self._lost = self._whole = 0.0

    def __call__(self, array: np.ndarray) -> np.ndarray:
        if array.dtype == self.dtype:
            return array
        with np.errstate(over="ignore", invalid="ignore"):
            made = array.astype(self.dtype)
        if not _is_held(array.dtype, self.dtype):
            self._size += array.size
            for given, cast in _pairs(array, made):
                self._look_for_edges(given, cast)
        return made

    def compare(self, source: np.ndarray, stored: np.ndarray) -> None:
        """Take in a piece and what became of it, in the dtype that it was cast to."""
        self._size += source.size
        exact = _is_held(source.dtype, self.dtype)
        for given, made in _pairs(source, stored):
            if exact:
                self._differing += not np.array_equal(given.astype(self.dtype), made, equal_nan=_is_float(self.dtype))
            else:
                self._look(given.astype(np.float64), made.astype(np.float64))

    def _look_for_edges(self, given: np.ndarray, made: np.ndarray) -> None:
        """As `_look` at what a cast has made: it is rounding alone but at the edges of the dtype."""
        limits = ml_dtypes.finfo(self.dtype)
        wide = given.astype(np.promote_types(np.float32, given.dtype), copy=False)
        size = np.abs(wide)
        if not size.max(initial=0) <= float(limits.max):  # or NaN
            self._look(given.astype(np.float64), made.astype(np.float64))
            return
        self._whole += float(wide @ wide)
        small = size < float(limits.smallest_normal)
        if np.count_nonzero(small) > size.size - np.count_nonzero(size):
            self._judge(given[small].astype(np.float64), made[small].astype(np.float64))

    def _look(self, given: np.ndarray, made: np.ndarray) -> None:
        finite = np.isfinite(given)
        if not finite.all():
            self._differing += not np.array_equal(given[~finite], made[~finite], equal_nan=True)
            given, made = given[finite], made[finite]
        if (beyond := np.isinf(made)).any():
            self._overflows += int(beyond.sum())
            self._largest = max(self._largest, float(np.abs(given[beyond]).max()))
            given, made = given[~beyond], made[~beyond]
        self._whole += float(given @ given)
        self._judge(given, made)

    def _judge(self, given: np.ndarray, made: np.ndarray) -> None:
        limits = ml_dtypes.finfo(self.dtype)
        size, lost = np.abs(given), np.abs(given - made)
        # a double rounding, as from float64 by float32, may exceed a half by little
        within = 0.501 * float(limits.eps) * size
        self._differing += int((~(lost <= within + 0.501 * float(limits.smallest_subnormal))).sum())  # or NaN
        small = (size < float(limits.smallest_normal)) & (lost > within)
        if small.any():
            self._underflows += int(small.sum())
            self._largest_small = max(self._largest_small, float(size[small].max()))
            self._lost += float(lost[small] @ lost[small])

    @property
    def differs(self) -> bool:
        """Whether something that was compared is further from its source than rounding takes it."""
        return self._differing > 0 or self._overflows > 0

    def check(self) -> None:
        """Raises BadCheckpoint: a value became infinite, or underflow took more than rounding does."""
        limits = ml_dtypes.finfo(self.dtype) if _is_float(self.dtype) else None
        if self._overflows:
            raise BadCheckpoint(
                f"{self._what}: {self._overflows} of {self._size} values overflow {self.dtype}, the largest is "
                f"{self._largest:.4g}, its limit {float(limits.max):.4g}; keep bfloat16 or float32"
            )
        if UNDERFLOW not in self._allow and self._lost > float(limits.eps if limits else 0) ** 2 * self._whole:
            raise BadCheckpoint(
                f"{self._what}: {self._underflows} of {self._size} values are too small for {self.dtype}, the largest "
                f"is {self._largest_small:.4g}; keep bfloat16 or float32, or --allow {UNDERFLOW}"
            )


def cast(array: np.ndarray, dtype: np.dtype, what: str, allow: Collection[str] = ()) -> np.ndarray:
    """An array in another dtype; BadCheckpoint as `Cast.check`, naming `what`."""
    casting = Cast(dtype, what, allow)
    made = casting(array)
    casting.check()
    return made


def _is_float(dtype: np.dtype) -> bool:
    return np.dtype(dtype).kind == "f" or np.dtype(dtype).name == "bfloat16"


def _is_held(source: np.dtype, target: np.dtype) -> bool:
    """Whether a dtype has all values of another; whole numbers are not looked at."""
    return not _is_float(source) or not _is_float(target) or common_dtype([source, target]) == target


def _pairs(array: np.ndarray, other: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Flat pieces of two arrays of one shape, in the order in which the first lies in memory."""
    axes = np.argsort([-abs(stride) for stride in array.strides], kind="stable")
    return zip(_parts(array.transpose(axes)), _parts(other.transpose(axes)), strict=True)


def _parts(array: np.ndarray) -> Iterator[np.ndarray]:
    """Flat pieces of an array, in an order that is the same for arrays of one shape."""
    if array.size <= STEP or array.ndim == 0:
        yield array.reshape(-1)
        return
    step = max(1, STEP * len(array) // array.size)
    for start in range(0, len(array), step):
        part = array[start : start + step]
        if step == 1 and part.size > STEP:
            yield from _parts(part[0])
        else:
            yield part.reshape(-1)
