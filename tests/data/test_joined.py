"""Parts of sequences that are read where they lie."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sphinx_jax.data.joined import Chosen, Joined, edges_of, some_of_each, tasks_of
from sphinx_jax.data.order import Order


class InShards(list):
    """Numbers in place of items, in shards of these sizes."""

    def __init__(self, sizes, block=4, tasks=None):
        super().__init__(range(sum(sizes)))
        self.edges, self.block = np.unique(np.cumsum([0, *sizes])), block
        if tasks is not None:
            self.tasks = frozenset(tasks)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(any), st.data())
def test_some_of_each_shard_are_so_many_in_order_and_begin_with_a_block(sizes, data):
    items = InShards(sizes)
    count = data.draw(st.integers(1, len(items)))
    some = some_of_each(items, count, data.draw(st.integers(0, 99)))
    found = [some[i] for i in range(count)]
    assert len(some) == count and found == sorted(set(found)) and set(found) <= set(items)
    for begin, end in zip(items.edges[:-1], items.edges[1:], strict=True):
        of_shard = [n for n in found if begin <= n < end]
        assert abs(len(of_shard) - count * (end - begin) / len(items)) < 1
        assert of_shard == [*range(of_shard[0], of_shard[-1] + 1)] if of_shard else True
        assert not of_shard or (of_shard[0] - begin) % items.block == 0
    order = Order(edges_of(some), 0, some.block)
    assert sorted(order(i) for i in range(count)) == [*range(count)]


def test_seeds_choose_other_stretches():
    items = InShards([1000] * 8)
    one, two, again = (some_of_each(items, 800, seed) for seed in (0, 1, 0))
    assert list(one.begins) == list(again.begins) != list(two.begins)


def test_the_tasks_of_parts_are_those_of_their_whole():
    a, b, nothing = InShards([5], tasks=["rec", "text"]), InShards([7], tasks=["vqa"]), InShards([3])
    joined = Joined([some_of_each(a, 3, 0), Chosen(b, np.arange(2))])
    assert tasks_of(joined) == {"rec", "text", "vqa"} and tasks_of(Joined([a, nothing])) is None
