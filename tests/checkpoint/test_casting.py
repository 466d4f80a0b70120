"""Casts: what a dtype cannot hold is told, with numbers; what rounding does is not."""

import ml_dtypes
import numpy as np
import pytest

from sphinx_jax.checkpoint import casting
from sphinx_jax.checkpoint.casting import Cast, cast, common_dtype
from sphinx_jax.checkpoint.store import BadCheckpoint

BF16, F16, F32, F64 = (np.dtype(kind) for kind in (ml_dtypes.bfloat16, np.float16, np.float32, np.float64))


@pytest.mark.parametrize(
    ("dtypes", "wanted"),
    [((BF16, BF16), BF16), ((BF16, F16), F32), ((F16, F32, BF16), F32), ((BF16, F64), F64), ((F16, F64, BF16), F64)],
)
def test_the_common_dtype_holds_the_values_of_each(dtypes, wanted):
    assert common_dtype(dtypes) == common_dtype(reversed(dtypes)) == wanted


@pytest.mark.parametrize("dtype", [BF16, F16, F32, F64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_no_number_is_seen_wherever_it_lies(dtype, bad, monkeypatch):
    monkeypatch.setattr(casting, "STEP", 7)
    array = np.full((3, 5, 4), float(ml_dtypes.finfo(dtype).max)).astype(dtype)
    assert casting.is_finite(array) and casting.is_finite(array.T)
    for at in ((0, 0, 0), (1, 2, 3), (2, 4, 3)):
        worse = array.copy()
        worse[at] = bad
        assert not casting.is_finite(worse) and not casting.is_finite(worse.T)
    with pytest.raises(BadCheckpoint, match="^norm of here holds NaN or infinity; --allow nonfinite"):
        casting.finite(worse, "norm of here")
    assert casting.finite(worse, "norm of here", ["nonfinite"]) is worse
    assert np.isinf(cast(np.float32([np.inf]), F16, "a")[0]), "it was infinite before"


def test_an_overflow_names_leaf_count_and_largest_value():
    array = np.ones((4, 5), np.float32)
    array[1, 2], array[3, 4] = 1e5, -2e5
    with pytest.raises(BadCheckpoint, match="^up: 2 of 20 values overflow float16, the largest is 2e.05, its limit"):
        cast(array, F16, "up", ["underflow", "nonfinite"])
    np.testing.assert_array_equal(cast(array, BF16, "up"), array.astype(BF16))
    assert cast(np.float32([65504, 65519]), F16, "up").tolist() == [65504, 65504], "it rounds down"


def test_underflow_is_told_where_it_takes_more_than_rounding():
    rng = np.random.default_rng(0)
    trained = rng.normal(size=(400, 100)).astype(np.float32) * 0.02
    assert (np.abs(trained) < 6e-5).any()
    cast(trained, F16, "up")
    unused = trained.copy()
    unused[:300] *= 1e-9  # rows of tokens that never occur
    cast(unused, F16, "up")
    with pytest.raises(BadCheckpoint, match="^gamma: 40 of 40 values are too small for float16, the largest is 1e-08"):
        cast(np.full(40, 1e-8), F16, "gamma")
    assert not cast(np.full(40, 1e-8), F16, "gamma", ["underflow"]).any()
    whole = Cast(F16, "up")  # a matrix is judged as a whole, however it is cut
    for part in np.split(unused, 4):
        whole(part)
    whole.check()


@pytest.mark.parametrize(("source", "target"), [(F32, BF16), (F32, F16), (BF16, F16), (F64, BF16), (F64, F32)])
def test_a_stored_array_is_compared_with_its_source_within_rounding(source, target):
    given = np.random.default_rng(0).normal(size=(20, 30)).astype(source)
    given[3, 4] = np.nan
    made = given.astype(target)
    stored = Cast(target, "up")
    stored.compare(given, made)
    stored.check()
    assert not stored.differs
    for value in (float(made[2, 2]) * (1 + 2 * float(ml_dtypes.finfo(target).eps)), np.nan):
        wrong = made.copy()
        wrong[2, 2] = value
        other = Cast(target, "up")
        other.compare(given, wrong)
        assert other.differs
    lost = made.copy()
    lost[3, 4] = 0  # was NaN
    other = Cast(target, "up")
    other.compare(given, lost)
    assert other.differs


def test_what_became_infinite_is_no_rounding():
    stored = Cast(F16, "up")
    stored.compare(np.array([1e5, 1], BF16), np.array([np.inf, 1], F16))
    with pytest.raises(BadCheckpoint, match="1 of 2 values overflow float16"):
        stored.check()


def test_the_same_dtype_is_compared_bit_for_bit():
    given = np.arange(6, dtype=np.float32)
    other = Cast(F32, "up")
    other.compare(given, np.nextafter(given, np.float32(10)))
    assert other.differs
