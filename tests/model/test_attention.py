"""Attention of a whole text and to a cache, beside the softmax of all scores in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sphinx_jax.generate.batching.beginnings import grouping
from sphinx_jax.model.attention import KEY_BLOCK, LONG, PARTS, QUERY_PART, attend, attend_cached


def whole(q, keys, values, positions):
    """In float64, a query at a time."""
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(q.shape[:3]):
        k = n // (q.shape[2] // keys.shape[1])
        length = positions[b, t] + 1
        scores = keys[b, k, :length].astype(np.float64) @ q[b, t, n] / np.sqrt(q.shape[3])
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights @ values[b, k, :length] / weights.sum()
    return out


@pytest.mark.parametrize("length", [1, 2 * QUERY_PART - 1, 2 * QUERY_PART, PARTS * QUERY_PART + 77])
@pytest.mark.parametrize("kind", ["alone", "mask", "documents", "both"])
def test_a_position_sees_what_is_before_it_and_shown(length, kind):
    """Whatever parts the queries are taken in; what comes later has no share in the gradient either."""
    rng = np.random.default_rng(length)
    shapes = (2, length, 4, 8), (2, length, 2, 8), (2, length, 2, 8)
    q, k, v = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    mask = rng.random((2, 1, length, length)) < 0.5 if kind in ("mask", "both") else np.ones((2, 1, 1, length), bool)
    mask[..., 0] = True
    documents = np.zeros((2, length), np.int32)
    if kind in ("documents", "both"):
        documents = np.sort(rng.integers(0, 3, (2, length)), axis=1)
        mask = mask | np.eye(length, dtype=bool)  # who sees nothing of his document has no answer
    same = documents[:, None, :, None] == documents[:, None, None, :]
    seen = np.tril(np.ones((length, length), bool)) & mask & same

    expected = np.zeros(q.shape)
    for b, t, n in np.ndindex(q.shape[:3]):
        there = seen[b, 0, t]
        scores = k[b, there, n // 2].astype(np.float64) @ q[b, t, n] / np.sqrt(8)
        weights = np.exp(scores - scores.max())
        expected[b, t, n] = weights @ v[b, there, n // 2] / weights.sum()
    shown = {} if kind in ("alone", "documents") else {"mask": jnp.asarray(mask)}
    shown |= {"documents": jnp.asarray(documents)} if kind in ("documents", "both") else {}
    q, k, v = map(jnp.asarray, (q, k, v))
    found = jax.jit(lambda *x: attend(*x, causal=True, **shown))(q, k, v)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    middle = length // 2
    of_early = jax.jit(jax.grad(lambda k, v: attend(q, k, v, causal=True, **shown)[:, : middle + 1].sum(), (0, 1)))
    for gradient in of_early(k, v):
        assert np.isfinite(gradient).all() and not gradient[:, middle + 1 :].any()


@pytest.mark.parametrize("masked", [None, "all alike", "each its own"])
@pytest.mark.parametrize("rows", [1, PARTS - 1, PARTS + 1])
def test_a_position_sees_all_others_of_its_row(rows, masked):
    """Whatever rows are taken together, also where a row's keys are not as many as its queries."""
    rng = np.random.default_rng(rows)
    q, k, v = (rng.normal(size=(rows, n, heads, 8)).astype(np.float32) for n, heads in ((LONG, 4), (20, 2), (20, 2)))
    mask = np.ones((1, 1, LONG, 20), bool)
    if masked:
        mask = rng.random((1 if masked == "all alike" else rows, 1, LONG, 20)) < 0.5
        mask[..., 3] = True
    scores = np.einsum("btnh,bsnh->bnts", q, k.repeat(2, axis=2), dtype=np.float64) / np.sqrt(8)
    weights = np.where(mask, np.exp(scores), 0)
    expected = np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v.repeat(2, axis=2))
    found = jax.jit(lambda *x: attend(*x, mask=jnp.asarray(mask) if masked else None))(q, k, v)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@settings(max_examples=30)
@given(
    st.sampled_from([1, 60, KEY_BLOCK, KEY_BLOCK + 1, 2 * KEY_BLOCK, 300, 3 * KEY_BLOCK - 1]),
    st.integers(1, 5),
    st.data(),
)
def test_keys_are_all_seen_once_and_none_beyond_a_position(room, length, data):
    length = min(length, room)
    start = np.array(data.draw(st.lists(st.integers(0, room - length), min_size=2, max_size=2)))
    rng = np.random.default_rng(room + length)
    q, keys, values = (
        rng.normal(size=(2, *shape)).astype(np.float32) for shape in ((length, 4, 8), *[(2, room, 8)] * 2)
    )
    positions = start[:, None] + np.arange(length)
    for b, at in enumerate(start):  # what an earlier sequence left there is not seen, whatever it is
        keys[b, :, at + length :] = values[b, :, at + length :] = 1e4
    found = jax.jit(attend_cached)(*map(jnp.asarray, (q, keys, values, positions)))
    np.testing.assert_allclose(found, whole(q, keys, values, positions), atol=2e-6)


def test_a_row_does_not_depend_on_how_far_others_are():
    """To the last bit: sampled answers are the same whatever else is answered."""
    rng = np.random.default_rng(0)
    q, keys, values = (
        jnp.asarray(rng.normal(size=(2, *s)), jnp.float32) for s in ((1, 4, 8), (2, 1000, 8), (2, 1000, 8))
    )
    cached = jax.jit(attend_cached)
    near = cached(q, keys, values, jnp.array([[40], [41]]))
    far = cached(q, keys, values, jnp.array([[40], [999]]))
    np.testing.assert_array_equal(near[0], far[0])


@settings(max_examples=30)
@given(st.sampled_from([7, KEY_BLOCK + 40]), st.integers(1, 19), st.integers(1, 3), st.data())
def test_what_rows_have_in_common_is_attended_to_as_if_each_had_it(room, batch, length, data):
    """Any number of rows about any number of beginnings, whole or in part, and rows without one among them."""
    draw, own, places = data.draw, 12, 4
    of = draw(st.lists(st.sampled_from([None, 0, 1, 3]), min_size=batch, max_size=batch))
    held = [0 if place is None else draw(st.integers(1, room)) for place in of]
    start = np.array([draw(st.integers(0, own - length)) for _ in of])
    rng = np.random.default_rng(batch)
    q = rng.normal(size=(batch, length, 4, 8)).astype(np.float32)
    keys, values = rng.normal(size=(2, batch, 2, own, 8)).astype(np.float32)
    beginnings = rng.normal(size=(2, places, 2, room, 8)).astype(np.float32)
    positions = np.array(held)[:, None] + start[:, None] + np.arange(length)
    having = {row: place for row, place in enumerate(of) if place is not None}
    found = jax.jit(attend_cached)(q, keys, values, positions, tuple(beginnings), grouping(held, having))
    for row, place in enumerate(of):
        of_row = [
            np.concatenate([beginnings[i, place or 0, :, : held[row]], own_part[row]], axis=1)[None]
            for i, own_part in enumerate((keys, values))
        ]
        expected = whole(q[row : row + 1], *of_row, positions[row : row + 1])
        np.testing.assert_allclose(found[row : row + 1], expected, atol=2e-6)
