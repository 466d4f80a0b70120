"""Coefficients found on held-out data, against problems whose answer is known."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax.model.blueprint import LeafSpec
from sphinx_jax.weight_mix.search import LossJudge, along, best, greedy, groups, learn, sweep, uniform

SPECS = {
    "decoder/blocks/attention/q": LeafSpec((3, 4, 5), jnp.float32, ("layers", "embed", "heads")),
    "decoder/blocks/attention/k": LeafSpec((3, 4, 5), jnp.float32, ("layers", "embed", "heads")),
    "decoder/blocks/ffn/up": LeafSpec((3, 4, 6), jnp.float32, ("layers", "embed", "ffn")),
    "decoder/embedding": LeafSpec((7, 4), jnp.float32, ("vocab", "embed")),
}


def trees(count: int, seed: int = 0):
    random = np.random.default_rng(seed)
    return [{p: jnp.asarray(random.normal(size=s.shape), jnp.float32) for p, s in SPECS.items()} for _ in range(count)]


def judge_for(models, targets, traces=None):
    """The squared distance of a mix from each domain's target: a loss whose minimum is known."""

    def loss(leaves, target):
        if traces is not None:
            traces.append(1)
        return jnp.stack([sum(((leaves[p] - target[p]) ** 2).sum() for p in leaves), 2.0])

    return LossJudge(loss, models, {domain: [target] for domain, target in targets.items()})


def distance(mixed, target):
    return sum(float(((np.float64(mixed[p]) - target[p]) ** 2).sum()) for p in mixed) / 2


@pytest.mark.parametrize("count", [2, 3])
def test_a_sweep_is_the_loss_of_every_mix_in_one_program(count):
    models, (target,) = trees(count), trees(1, seed=9)
    traces = []
    judge = judge_for(models, {"real": target, "synthetic": models[0]}, traces)
    grid = np.linspace(0, 1, 4)
    curve = sweep(judge, [grid] * (count - 1))
    assert [*curve] == [tuple(map(float, point)) for point in itertools.product(grid, repeat=count - 1)]
    assert len(traces) == 1
    for point, losses in curve.items():
        weights = [*point, 1 - sum(point)]
        mixed = {p: sum(w * np.float64(m[p]) for w, m in zip(weights, models, strict=True)) for p in SPECS}
        for domain, wanted in (("real", target), ("synthetic", models[0])):
            assert losses[domain] == pytest.approx(distance(mixed, wanted), rel=1e-5)
    means = {point: np.mean([*losses.values()]) for point, losses in curve.items()}
    assert means[best(curve)] == min(means.values())


@pytest.mark.parametrize("seed", range(4))
def test_the_greedy_soup_adds_what_does_not_hurt(seed):
    models = trees(4, seed)
    # near the mean of the first two, so that the others may help or hurt
    target = {p: (models[0][p] + models[1][p]) / 2 + 0.3 * models[2][p] for p in SPECS}
    judge = judge_for(models, {"real": target})
    weights, order = greedy(judge)

    def loss_of(kept):
        return distance({p: np.mean([np.float64(models[i][p]) for i in kept], axis=0) for p in SPECS}, target)

    singles = [loss_of([i]) for i in range(4)]
    assert order == sorted(range(4), key=singles.__getitem__)
    kept = order[:1]
    for i in order[1:]:
        if loss_of([*kept, i]) <= loss_of(kept):
            kept.append(i)
    np.testing.assert_allclose(weights, np.isin(range(4), kept) / len(kept), rtol=1e-6)
    assert judge.mean(weights) <= min(singles) * (1 + 1e-6)
    assert judge.mean(uniform(4)) == pytest.approx(loss_of(range(4)), rel=1e-5)


def test_learning_finds_the_coefficients_of_every_group_and_layer():
    models = trees(3)
    found = groups(SPECS)
    assert {g.pattern: (set(g.paths), g.layers) for g in found} == {
        "decoder/blocks/attention/*": ({"decoder/blocks/attention/q", "decoder/blocks/attention/k"}, 3),
        "decoder/blocks/ffn/*": ({"decoder/blocks/ffn/up"}, 3),
        "decoder/embedding": ({"decoder/embedding"}, None),
    }
    random = np.random.default_rng(5)
    wanted = {}
    for group in found:
        free = random.uniform(0, 0.5, (2, group.layers or 1))
        whole = np.concatenate([free, 1 - free.sum(0, keepdims=True)])
        wanted[group.pattern] = whole if group.layers else whole[:, 0]
    target = {}
    for group in found:
        for path in group.paths:
            own = wanted[group.pattern]
            own = own.reshape(*own.shape, *(1,) * (len(SPECS[path].shape) + 1 - own.ndim))
            target[path] = sum(c * m[path] for c, m in zip(own, models, strict=True))
    judge = judge_for(models, {"real": target, "synthetic": target})
    learnt = learn(judge, judge, found, along([0.3, 0.3]), epochs=300, rate=0.02, quiet=True)
    for pattern, own in wanted.items():
        np.testing.assert_allclose(learnt[pattern], own, atol=0.01)


def test_learning_never_ends_worse_than_it_began():
    models, (other,) = trees(2), trees(1, seed=3)
    chooser = judge_for(models, {"real": models[0]})
    learnt = learn(judge_for(models, {"real": other}), chooser, groups(SPECS), along([1.0]), epochs=5, quiet=True)
    for own in learnt.values():
        np.testing.assert_array_equal(own[0], np.ones_like(own[0]))


def test_a_mix_that_gives_no_number_is_never_chosen():
    models, (target,) = trees(2), trees(1, seed=9)

    def loss(leaves, target):
        far = sum(((leaves[p] - models[0][p]) ** 2).sum() for p in leaves)
        found = sum(((leaves[p] - target[p]) ** 2).sum() for p in leaves)
        return jnp.stack([jnp.where(far < 1e-3, jnp.nan, found), 2.0])

    judge = LossJudge(loss, models, {"real": [target]})
    _, order = greedy(judge)
    assert order == [1, 0]
    assert best(sweep(judge, [[0.0, 1.0]])) == (0.0,)
    with pytest.raises(ValueError, match="no mix has a finite loss"):
        best(sweep(judge, [[1.0]]))
