"""The order of large data: every item once an epoch, whatever the sizes, and near in the files."""

import functools
import pickle

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sphinx_jax.data.order import Order, even

SIZES = {"run": st.integers(1, 7), "window": st.integers(1, 5), "group": st.integers(1, 6)}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 2**31), st.fixed_dictionaries(SIZES))
def test_an_epoch_has_every_item_once(shards, seed, sizes):
    edges, count = np.cumsum([0, *shards]), sum(shards)
    order = Order(edges, seed, **sizes)
    epochs = [[order(epoch * count + at) for at in range(count)] for epoch in (0, 1, 5)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(count))
    # any position is found by itself, in any process
    again = pickle.loads(pickle.dumps(order))
    for at in np.random.default_rng(seed).integers(0, count, 20):
        assert again(int(5 * count + at)) == epochs[2][at]


def test_epochs_and_seeds_differ():
    first, other = Order(even(1000), 0, 16), Order(even(1000), 1, 16)
    one = [first(i) for i in range(1000)]
    assert one != [first(1000 + i) for i in range(1000)] and one != [other(i) for i in range(1000)]


def test_few_places_are_read_at_a_time():
    """Of a million items in shards of 8,192: the next thousand lie in 64 blocks, the next 100,000 in 32 shards."""
    order = Order(even(1_000_000), 3, 16)
    items = np.array([order(i) for i in range(100_000)])
    assert len(set(items[:1024] // 16)) <= 66
    assert len(set(items // 8192)) <= 32
    # but they are mixed: neighbours in the order are not neighbours in the file
    assert np.mean(np.abs(np.diff(items)) < 16) < 0.05
    # and runs of a window come from all of it
    assert len(set(items[:1024] // 8192)) > 20


def test_half_a_billion_items_take_little_memory():
    import tracemalloc

    tracemalloc.start()
    order = Order(even(500_000_000), 0, 16)
    assert 0 <= order(499_999_999) < 500_000_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6


def test_blocks_of_shards_of_any_size_are_read_once():
    """Of shards that end within a block too: with a cache of 64 blocks hardly one is read again."""
    rng = np.random.default_rng(0)
    edges = np.cumsum([0, *rng.integers(1, 9000, 40)])
    order = Order(edges, 1, 16)
    read = functools.lru_cache(64)(lambda shard, block: None)
    for position in range(40_000):
        item = order(position)
        shard = int(np.searchsorted(edges, item, side="right")) - 1
        read(shard, (item - int(edges[shard])) // 16)
    blocks = sum(-(-size // 16) for size in np.diff(edges))
    share = 40_000 / edges[-1]
    assert read.cache_info().misses < 1.1 * share * blocks
