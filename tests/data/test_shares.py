"""Shares of data sets: exact counts, even gaps, and changes on the way, all functions of the row alone."""

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sphinx_jax.data.shares import Schedule, Shares

WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.floats(1e-3, 1e3), min_size=1, max_size=5)
PHASES = st.lists(st.tuples(st.integers(0, 300), WEIGHTS), min_size=1, max_size=4)


def schedule(parts) -> Schedule:
    begin, phases = 0, []
    for rows, of in parts:
        phases.append(Shares(begin, of))
        begin += rows
    return Schedule(phases, list(phases[-1].of))


@given(PHASES)
def test_every_data_set_is_taken_row_by_row_whatever_shares_it_has(parts):
    made, taken = schedule(parts), collections.Counter()
    for row in range(700):
        number, place = made[row]
        name = made.names[number]
        assert place == taken[name]
        assert made.given(row) == {name: taken[name] for name in made.names}
        taken[name] += 1


@given(WEIGHTS, st.integers(0, 10**12))
def test_a_share_holds_over_any_stretch_to_a_few_rows(of, begin):
    made, total = Schedule([Shares(0, of)], list(of)), sum(of.values())
    for rows in (10, 1000, 10**9):
        before, after = made.given(begin), made.given(begin + rows)
        assert sum(after.values()) == begin + rows
        for name, weight in of.items():
            # the multiples of the golden ratio lie even to the logarithm of their number
            assert abs(after[name] - before[name] - rows * weight / total) < 12


def test_the_order_in_which_data_sets_are_named_changes_their_numbers_alone():
    one, two = (Schedule([Shares(0, of)], list(of)) for of in ({"a": 1, "b": 3}, {"b": 3, "a": 1}))
    assert [one.names[one[n][0]] for n in range(100)] == [two.names[two[n][0]] for n in range(100)]


@pytest.mark.parametrize(
    ("phases", "names"),
    [
        ([], []),
        ([Shares(3, {"a": 1})], ["a"]),
        ([Shares(0, {"a": 1}), Shares(9, {"a": 1}), Shares(5, {"a": 1})], ["a"]),
        ([Shares(0, {"a": 0.0})], ["a"]),
        ([Shares(0, {"a": 1}), Shares(5, {"b": 1})], ["a"]),
    ],
)
def test_shares_that_make_no_stream_are_refused(phases, names):
    with pytest.raises(ValueError):
        Schedule(phases, names)
