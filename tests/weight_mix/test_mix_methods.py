"""The methods of the weight mix, against their formulas on whole matrices in float64, however the rows are sliced."""

import hashlib
import math
import tracemalloc
from collections.abc import Callable, Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mix_cases import mix

from sphinx_jax.config import ConfigError
from sphinx_jax.weight_mix.methods import METHODS, Slice, Unit, resolve
from sphinx_jax.weight_mix.statistics import BLOCK, First, column_gram, cuts, gram, magnitudes, random_bits

NAME = "decoder/blocks/attention/q 3"


def unit_of(base, sources: Sequence[np.ndarray], stops: Sequence[int] | None = None, name: str = NAME) -> Unit:
    """The arrays as a unit whose slices end before these rows and the last."""
    rows = len(sources[0])
    bounds = [0, *(range(1, rows) if stops is None else stops), rows]

    def slices():
        for start, stop in zip(bounds, bounds[1:], strict=False):
            yield Slice(start, None if base is None else base[start:stop], [x[start:stop] for x in sources])

    return Unit(name, sources[0].shape, slices)


def mixed(method: str, base, sources, stops: Sequence[int] | None = (), name: str = NAME, **parameters) -> np.ndarray:
    unit = unit_of(base, sources, stops, name)
    parts = [*mix(method, unit, parameters)]
    assert [x.shape for x in parts] == [s.sources[0].shape for s in unit.slices()]
    assert {x.dtype for x in parts} == {np.dtype(np.float32)}
    return np.concatenate(parts)


# The formulas.  Arrays are float64 and whole; v is the list of sources, d that of task vectors.


def unit_vector(x):
    return x / np.linalg.norm(x)


def arc(a, b, t):
    cosine = unit_vector(a).ravel() @ unit_vector(b).ravel()
    if 1 - cosine**2 < 1e-7:
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def nuslerp(v, weight, nuslerp_flatten=True, nuslerp_row_wise=False):
    t = weight[1] / sum(weight)
    if nuslerp_flatten or v[0].ndim == 1:
        return arc(*v, t)
    if nuslerp_row_wise:
        return np.stack([arc(a, b, t) for a, b in zip(v[0].T, v[1].T, strict=True)]).T
    return np.stack([arc(a, b, t) for a, b in zip(*v, strict=True)])


def karcher(v, max_iter=10, tol=1e-5):
    units = [unit_vector(x) for x in v]
    mean = unit_vector(sum(units))
    for _ in range(max_iter):
        angles = [math.acos(min(1, (u * mean).sum())) for u in units]
        parts = [a / math.sin(a) * (u - math.cos(a) * mean) for a, u in zip(angles, units, strict=True) if a > tol]
        tangent = sum(parts, np.zeros_like(mean)) / len(v)
        length = np.linalg.norm(tangent)
        if length < tol:
            break
        mean = math.cos(length) * mean + math.sin(length) * tangent / length
    return np.mean([np.linalg.norm(x) for x in v]) * mean


def multislerp(v, weight, normalize_weights=True):
    weight = np.array(weight) / (sum(weight) if normalize_weights else 1)
    units = [unit_vector(x) for x in v]
    mean = unit_vector(sum(w * u for w, u in zip(weight, units, strict=True)))
    tangent = sum(w * (u - (u * mean).sum() * mean) for w, u in zip(weight, units, strict=True))
    length = np.linalg.norm(tangent)
    return sum(w * np.linalg.norm(x) for w, x in zip(weight, v, strict=True)) * (
        math.cos(length) * mean + np.sinc(length / math.pi) * tangent
    )


def model_stock(d, filter_wise=False):
    if filter_wise and d[0].ndim > 1:
        return np.stack([model_stock(rows) for rows in zip(*d, strict=True)])
    n = len(d)
    cosine = np.mean([(unit_vector(d[i]) * unit_vector(d[j])).sum() for i in range(n) for j in range(i)])
    return n * cosine / (1 + (n - 1) * cosine) * np.mean(d, axis=0)


def ema(v, decay):
    mean = v[0]
    for x in v[1:]:
        mean = decay * mean + (1 - decay) * x
    return mean


def nearswap(base, x, t):
    near = np.abs(base - x) <= t
    return np.where(near, x, base + t * np.sign(x - base))


def ranks(x) -> np.ndarray:
    """0 for the entry of largest magnitude, the first in order among equals."""
    order = sorted(range(x.size), key=lambda i: (-abs(x.flat[i]), i))
    found = np.empty(x.size, int)
    found[order] = np.arange(x.size)
    return found.reshape(x.shape)


def with_norm(d, kept, rescale):
    return kept * (np.abs(d).sum() / np.abs(d * kept).sum() if rescale and (d * kept).any() else 1)


def largest(d, i, density, rescale):
    if density <= 0:
        return np.zeros(d.shape, bool)
    return with_norm(d, ranks(d) < max(1, int(density * d.size)), rescale)


def without_outliers(d, i, density, rescale, gamma=0.01):
    kept = int(density * d.size)
    first = min(int(gamma * d.size), d.size - kept)
    return with_norm(d, (ranks(d) >= first) & (ranks(d) < first + kept), rescale)


def draws(shape, i, seed) -> np.ndarray:
    """Numbers in [0, 1): the documented stream of source i, as 32-bit halves of Philox's words, drawn as a whole."""
    key = hashlib.blake2b(f"{seed} {i} {NAME}".encode(), digest_size=16).digest()
    words = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(math.prod(shape))
    halves = np.stack([words & np.uint64(2**32 - 1), words >> np.uint64(32)], axis=1).ravel()
    return (halves[: math.prod(shape)] / 2**32).reshape(shape)


def drawn(d, i, chance, seed, rescale):
    return (draws(d.shape, i, seed) < chance) / np.where(chance, chance, 1) ** rescale


def at_random(d, i, density, rescale, seed=0):
    return drawn(d, i, np.full(d.shape, density), seed, rescale)


def by_row_rank(d, i, density, rescale, epsilon=0.15, seed=0):
    if density in (0, 1):
        return np.full(d.shape, density == 1)
    rows = np.atleast_2d(d)
    places = np.stack([(1 - ranks(row) / (row.size - 1)) if row.size > 1 else np.array([0.5]) for row in rows])
    chance = density - epsilon + 2 * epsilon * places
    return drawn(d, i, chance.reshape(d.shape), seed, rescale)


def reconciled(keep: Callable, elect: bool, normalize: bool, rescale: bool):
    """The scheme of the sparse methods, with their defaults, entry by entry where a sign is elected."""

    def method(d, weight, density, normalize=normalize, rescale=rescale, lambda_=1.0, **options):
        options = [{k: v[i] if isinstance(v, list) else v for k, v in options.items()} for i in range(len(d))]
        sparse = [x * keep(x, i, density[i], rescale, **options[i]) for i, x in enumerate(d)]
        weighted = np.stack([w * s for w, s in zip(weight, sparse, strict=True)]).reshape(len(d), -1)
        if not elect:
            return lambda_ * weighted.sum(0).reshape(d[0].shape) / (sum(weight) if normalize else 1)
        found = []
        for entries in weighted.T:
            sign = 1 if entries.sum() >= 0 else -1
            agree = [i for i, entry in enumerate(entries) if np.sign(entry) == sign]
            divisor = sum(weight[i] for i in agree) if normalize else 1
            found.append(lambda_ * sum(entries[i] for i in agree) / (divisor or 1))
        return np.reshape(found, d[0].shape)

    return method


def sce(d, select_topk=1.0):
    variance = np.var(d, axis=0).astype(np.float32)
    kept = ranks(variance) < int(select_topk * np.count_nonzero(variance)) if select_topk < 1 else True
    d = [x * kept for x in d]
    squares = np.array([(x**2).mean() for x in d])
    share = squares / squares.sum() if squares.sum() > 1e-6 else np.ones(len(d)) / len(d)
    agree = [np.sign(x) == np.where(sum(d) >= 0, 1, -1) for x in d]
    return sum(s * x * a for s, x, a in zip(share, d, agree, strict=True)) / np.maximum(
        sum(s * a for s, a in zip(share, agree, strict=True)), 1e-6
    )


class Case(NamedTuple):
    method: str
    sources: int
    base: bool
    parameters: dict
    formula: Callable  # (base, sources) -> the mixed matrix


def of_sources(method: str, count: int, formula: Callable, **parameters) -> Case:
    return Case(method, count, False, named(parameters), lambda base, v: formula(v, **parameters))


def of_vectors(method: str, count: int, formula: Callable, **parameters) -> Case:
    def whole(base, v):
        return base + formula([x - base for x in v], **parameters)

    return Case(method, count, True, named(parameters), whole)


def named(parameters: dict) -> dict:
    """As a mix names them: `lambda_` is Python's spelling."""
    return {name.rstrip("_"): value for name, value in parameters.items()}


def weighted(v, weight, normalize=False, lambda_=1.0):
    return lambda_ * sum(w * x for w, x in zip(weight, v, strict=True)) / (sum(weight) if normalize else 1)


WEIGHTS = [0.7, 0.4, -0.2]
SPARSE = {"weight": WEIGHTS, "density": [0.6, 0.35, 0.8]}
FAMILY = {
    "ties": (reconciled(largest, True, True, False), {}),
    "breadcrumbs": (reconciled(without_outliers, False, False, False), {"gamma": [0.01, 0.2, 0.5]}),
    "breadcrumbs_ties": (reconciled(without_outliers, True, False, False), {"gamma": 0.1}),
    "dare_linear": (reconciled(at_random, False, False, True), {"seed": 5}),
    "dare_ties": (reconciled(at_random, True, False, True), {}),
    "della": (reconciled(by_row_rank, True, True, True), {"epsilon": [0.3, 0.1, 0.05]}),
    "della_linear": (reconciled(by_row_rank, False, False, True), {"epsilon": 0.05, "seed": -1}),
}
CASES = [
    of_sources("linear", 3, weighted, weight=WEIGHTS),
    of_sources("linear", 1, weighted, weight=[0.5]),
    of_sources("linear", 3, weighted, weight=WEIGHTS, normalize=True),
    of_sources("average", 4, lambda v: np.mean(v, axis=0)),
    of_sources("ema", 4, ema, decay=0.8),
    of_sources("ema", 2, ema, decay=0.0),
    of_sources("slerp", 2, lambda v, t: arc(*v, t), t=0.3),
    Case("slerp", 1, True, {"t": 0.8}, lambda base, v: arc(base, *v, 0.8)),
    *(of_sources("nuslerp", 2, nuslerp, weight=[0.2, 0.5], nuslerp_flatten=f) for f in (False, True)),
    of_sources("nuslerp", 2, nuslerp, weight=[0.5, 0.5], nuslerp_flatten=False, nuslerp_row_wise=True),
    of_vectors("nuslerp", 2, nuslerp, weight=[0.2, 0.5]),
    of_sources("karcher", 3, karcher),
    of_sources("karcher", 4, karcher, max_iter=1),
    of_sources("multislerp", 3, multislerp, weight=[0.5, 1.0, 0.25]),
    of_vectors("multislerp", 2, multislerp, weight=[0.5, 1.0], normalize_weights=False),
    of_vectors("task_arithmetic", 3, weighted, weight=WEIGHTS, lambda_=0.5),
    of_vectors("task_arithmetic", 3, weighted, weight=WEIGHTS, normalize=True),
    of_vectors("model_stock", 2, model_stock),
    of_vectors("model_stock", 4, model_stock, filter_wise=True),
    *(of_vectors("sce", 3, sce, select_topk=k) for k in (0.0, 0.4, 1.0)),
    *(Case("nearswap", 1, True, {"t": t}, lambda base, v, t=t: nearswap(base, *v, t)) for t in (0.004, 0.3)),
    of_vectors("wise_ft", 1, lambda d, alpha: alpha * d[0], alpha=0.25),
    Case("delta_extract", 1, True, {}, lambda base, v: v[0] - base),
    Case("delta_apply", 2, True, {"weight": [0.5, -1.0]}, lambda base, v: base + 0.5 * v[0] - v[1]),
    Case("delta_apply", 2, True, {}, lambda base, v: base + v[0] + v[1]),
    *(of_vectors(name, 3, formula, **SPARSE, **options) for name, (formula, options) in FAMILY.items()),
    *(
        of_vectors(name, 3, formula, **SPARSE, normalize=True, rescale=rescale, lambda_=0.6)
        for name, (formula, _) in FAMILY.items()
        for rescale in (False, True)
    ),
    *(
        of_vectors(name, 2, formula, weight=[1.0, 0.5], density=[float(low), 1.0])
        for name, (formula, _) in FAMILY.items()
        for low in (0, 1)
    ),
]
IDS = [f"{case.method}-{i}" for i, case in enumerate(CASES)]


def checkpoints(shape, count: int, seed: int = 0) -> list[np.ndarray]:
    """A base and sources near it, as float32."""
    random = np.random.default_rng(seed)
    base = random.normal(scale=0.5, size=shape)
    return [x.astype(np.float32) for x in (base, *(base + random.normal(scale=0.3, size=(count, *shape))))]


def test_every_method_has_a_case():
    assert {case.method for case in CASES} == set(METHODS)


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("shape", [(5, 8), (9, 3), (1, 13), (17,)], ids=str)
def test_is_the_formula(case, shape):
    base, *sources = checkpoints(shape, case.sources)
    expected = case.formula(base.astype(np.float64), [x.astype(np.float64) for x in sources])
    whole = mixed(case.method, base if case.base else None, sources, **case.parameters)
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=2e-6)
    for stops in (None, (3,) if shape[0] > 3 else (), (1, 2, 7) if shape[0] > 7 else ()):
        sliced = mixed(case.method, base if case.base else None, sources, stops, **case.parameters)
        np.testing.assert_array_equal(sliced, whole)


@pytest.mark.parametrize("case", [c for c in CASES if c.method != "delta_apply"], ids=lambda case: case.method)
def test_slicing_does_not_matter_in_a_matrix_of_several_blocks(case):
    base, *sources = checkpoints((331, 257), case.sources)
    assert base.size > 2 * BLOCK
    arguments = (case.method, base if case.base else None, sources)
    whole = mixed(*arguments, **case.parameters)
    assert np.isfinite(whole).all()
    for stops in (None, (1, 100, 101, 330)):
        np.testing.assert_array_equal(mixed(*arguments, stops, **case.parameters), whole)


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "breadcrumbs_ties", "sce"])
def test_equal_magnitudes_are_taken_in_order(method):
    """Magnitudes of bfloat16 checkpoints are of few values; with these weights no sum is rounded."""
    sources = [x.astype(ml_dtypes.bfloat16).astype(np.float32) for x in checkpoints((40, 30), 2, seed=2)]
    sources = [np.round(x * 16) / 16 for x in sources]
    assert len(np.unique(np.abs(sources[0]))) < 40
    formula, options = FAMILY.get(method, (sce, {}))
    parameters = {"select_topk": 0.37} if method == "sce" else SPARSE | options | {"weight": [1, 0.5, -0.25]}
    expected = formula([x.astype(np.float64) for x in sources], **parameters)
    for stops in ((), None, (7, 8)):
        found = mixed(method, np.zeros_like(sources[0]), sources, stops, **parameters)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0000001, 2**-149, 3e38, -3e38, 65536.0]), min_size=1),
    data=st.data(),
)
@settings(max_examples=60)
def test_a_cut_takes_exactly_so_many_the_largest_and_of_equals_the_first(values, data):
    count = data.draw(st.integers(0, len(values)))
    stop = data.draw(st.integers(0, len(values)))
    x = np.array(values, np.float32)
    parts = [part for part in (x[:stop], x[stop:]) if part.size]
    ((cut,),) = cuts(lambda: ([magnitudes(part)] for part in parts), [[count]])
    first = First(cut)
    np.testing.assert_array_equal(np.concatenate([first(magnitudes(part)) for part in parts]), ranks(x) < count)


@given(start=st.integers(0, 10**12), count=st.integers(1, 40), skipped=st.integers(0, 39))
@settings(max_examples=40)
def test_random_bits_belong_to_positions(start, count, skipped):
    bits = random_bits("a stream", start, skipped + count)
    np.testing.assert_array_equal(random_bits("a stream", start + skipped, count), bits[skipped:])


@pytest.mark.parametrize("method,joint", [("dare_linear", 0.09), ("della_linear", 0.09 + 0.15**2 / 3)])
def test_random_draws(method, joint):
    """`joint`: the mean square of the probabilities, so how often two draws that know nothing of each other agree."""
    base, sources = (
        np.zeros((200, 500), np.float32),
        [np.linspace(0.5, 1.5, 10**5, dtype=np.float32).reshape(200, 500)] * 2,
    )

    def kept(i, **parameters):
        weight = [float(i == 0), float(i == 1)]
        return mixed(method, base, sources, weight=weight, density=0.3, **parameters) != 0

    drawn = [kept(0), kept(1), kept(0, seed=1), kept(0, name="decoder/blocks/attention/k 3")]
    for mask in drawn:
        assert abs(mask.mean() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / mask.size)
    for i, mask in enumerate(drawn):
        for other in drawn[:i]:
            assert abs((mask & other).mean() - joint) < 5 * math.sqrt(joint / mask.size)
    np.testing.assert_array_equal(kept(0), drawn[0])
    total = mixed(method, base, sources, weight=[1.0, 0.0], density=0.3).sum(dtype=np.float64)
    assert total == pytest.approx(sources[0].sum(dtype=np.float64), rel=0.03)  # in expectation the same


def test_della_keeps_large_entries_more_often():
    rows = np.tile(np.arange(1, 101, dtype=np.float32), (2000, 1))
    kept = mixed("della_linear", np.zeros_like(rows), [rows], weight=1.0, density=0.5, epsilon=0.4) != 0
    expected = 0.1 + 0.8 * np.arange(100) / 99
    np.testing.assert_allclose(kept.mean(axis=0), expected, atol=5 * math.sqrt(0.25 / 2000))


def finite_case_ids():
    return sorted({case.method: i for i, case in reversed([*enumerate(CASES)])}.values())


@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["zeros", "sources equal the base", "identical sources", "opposite sources", "far"])
@pytest.mark.parametrize("index", finite_case_ids(), ids=lambda i: CASES[i].method)
def test_degenerate_matrices_give_numbers(index, kind, density):
    case = CASES[index]
    base, x, *_ = checkpoints((4, 6), 1)
    base, sources = {
        "zeros": (base * 0, [base * 0] * 4),
        "sources equal the base": (base, [base] * 4),
        "identical sources": (base, [x] * 4),
        "opposite sources": (base * 0, [x, -x, x, -x]),
        "far": (base, [x * np.float32(1e15), x, x * np.float32(-1e15), x]),
    }[kind]
    parameters = dict(case.parameters)
    if "density" in parameters:
        parameters["density"] = density
    found = mixed(case.method, base if case.base else None, sources[: case.sources], **parameters)
    assert np.isfinite(found).all()
    if kind == "sources equal the base" and case.base and not case.method.startswith("delta"):
        np.testing.assert_allclose(found, base, rtol=1e-6, atol=0)
    summed = case.method == "linear" or case.method.startswith("delta")
    if kind == "identical sources" and not case.base and not summed:
        np.testing.assert_allclose(found, x, rtol=2e-6, atol=0)


@pytest.mark.parametrize("index", finite_case_ids(), ids=lambda i: CASES[i].method)
def test_one_source_of_zeros(index):
    case = CASES[index]
    base, *sources = checkpoints((4, 6), case.sources)
    sources[-1] = base if case.base else sources[-1] * 0
    assert np.isfinite(mixed(case.method, base if case.base else None, sources, **case.parameters)).all()


def test_one_direction_of_multislerp_alone():
    _, a, b = checkpoints((3, 5), 2)
    found = mixed("multislerp", None, [a, b, a * 0], weight=[0.5, 1.0, 2.0], normalize_weights=False)
    np.testing.assert_allclose(found, multislerp([a, b], [0.5, 1.0], False), rtol=1e-5, atol=1e-6)


def test_karcher_is_not_pulled_by_what_is_opposite():
    """The third source is opposite to the mean of the others but for rounding, which gives its pull no direction."""
    _, a, b = checkpoints((40, 30), 2)
    between = unit_vector(unit_vector(a) + unit_vector(b))
    sources = [a, b, (-between).astype(np.float32)]
    found = mixed("karcher", None, sources)
    np.testing.assert_allclose(found, between * np.mean([np.linalg.norm(x) for x in sources]), rtol=1e-4, atol=1e-5)


def test_nuslerp_with_weights_that_cancel_is_half_way():
    sources = checkpoints((3, 5), 1)
    halves = mixed("nuslerp", None, sources, weight=[1.0, 1.0])
    np.testing.assert_array_equal(mixed("nuslerp", None, sources, weight=[1.0, -1.0]), halves)


def test_ties_keeps_one_entry_at_least():
    x = np.array([[0, 2, -3]], np.float32)
    np.testing.assert_array_equal(mixed("ties", x * 0, [x], weight=1.0, density=0.01), [[0, 0, -3]])


@pytest.mark.parametrize("distance", [2e-4, 2e-3])
def test_sce_of_sources_near_the_base(distance):
    random = np.random.default_rng(0)
    base = np.zeros((9, 11), np.float32)
    sources = [(i * distance * random.normal(size=base.shape)).astype(np.float32) for i in (1, 2)]
    expected = sce([x.astype(np.float64) for x in sources])
    np.testing.assert_allclose(mixed("sce", base, sources), expected, rtol=1e-5, atol=1e-9)


def test_dot_products_do_not_depend_on_slices():
    sources = checkpoints((331, 257), 2)
    whole, by_row = (gram(unit_of(None, sources, stops)) for stops in ((), None))
    np.testing.assert_array_equal(by_row, whole)
    np.testing.assert_allclose(whole, [[np.vdot(x.astype(float), y) for y in sources] for x in sources], rtol=1e-12)
    np.testing.assert_array_equal(column_gram(unit_of(None, sources)), column_gram(unit_of(None, sources, ())))


def test_directions_that_cancel_are_added_up():
    a, b = checkpoints((3, 5), 1)
    sources = [a, b, -a, -b]
    np.testing.assert_allclose(mixed("multislerp", None, sources, weight=1.0), np.zeros((3, 5)), atol=1e-6)
    np.testing.assert_allclose(mixed("multislerp", a, [a, a, a], weight=[1.0, 2.0, 3.0]), a)


def test_delta_extract_and_apply_are_inverse():
    base, x = checkpoints((6, 7), 1)
    delta = mixed("delta_extract", base, [x])
    np.testing.assert_allclose(mixed("delta_apply", base, [delta]), x, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("index", finite_case_ids(), ids=lambda i: CASES[i].method)
def test_slices_may_be_views_of_any_stride(index):
    case = CASES[index]
    base, *sources = checkpoints((30, 20), case.sources)
    base = base if case.base else None
    found = mixed(case.method, base, sources, (11,), **case.parameters)
    strided = [None if x is None else np.asfortranarray(x) for x in (base, *sources)]
    np.testing.assert_array_equal(mixed(case.method, strided[0], strided[1:], (11,), **case.parameters), found)


@pytest.mark.parametrize("index", finite_case_ids(), ids=lambda i: CASES[i].method)
def test_memory_does_not_grow_with_the_matrix(index):
    case, rows, columns = CASES[index], 10, 500

    def peak(slice_count: int) -> int:
        def slices():
            for start in range(0, rows * slice_count, rows):
                random = np.random.default_rng(start)
                arrays = [random.random((rows, columns), dtype=np.float32) for _ in range(case.sources + 1)]
                yield Slice(start, arrays[0] if case.base else None, arrays[1:])

        tracemalloc.start()
        try:
            for found in mix(case.method, Unit(NAME, (rows * slice_count, columns), slices), case.parameters):
                assert found.shape == (rows, columns)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)  # what is loaded and cached at a first call
    assert peak(40) - peak(10) < 50_000  # where one source grows by 600,000 bytes, its mask by 150,000


@pytest.mark.parametrize(
    "method,passes,parameters",
    [
        ("linear", 1, {"weight": 0.5}),
        ("wise_ft", 1, {"alpha": 0.5}),
        ("karcher", 2, {}),
        ("dare_ties", 1, {"weight": 0.5, "density": 0.5}),
        ("ties", 3, {"weight": 0.5, "density": 0.5}),
        ("ties", 1, {"weight": 0.5}),
    ],
)
def test_the_matrix_is_read_no_more_often_than_needed(method, passes, parameters):
    base, x, y = checkpoints((8, 5), 2)
    read = []

    def slices():
        for start in range(8):
            read.append(start)
            rows = slice(start, start + 1)
            yield Slice(start, base[rows] if METHODS[method].base == "needed" else None, [x[rows], y[rows]][:count])

    count = METHODS[method].sources[1] or 2
    list(mix(method, Unit(NAME, (8, 5), slices), parameters))
    assert read == [*range(8)] * passes


def test_no_rows_make_no_rows():
    assert [*mix("linear", Unit(NAME, (0, 5), lambda: iter(())), {"weight": 1.0})] == []


@pytest.mark.parametrize(
    "method,parameters,sources,base,message",
    [
        ("ties2", {}, 2, True, "unknown method of the weight mix 'ties2'; did you mean 'ties'?"),
        ("ties", {"weights": 1.0}, 2, True, "unknown parameter of ties 'weights'; did you mean 'weight'?"),
        ("linear", {}, 2, False, "linear needs weight, one per source"),
        ("slerp", {}, 2, False, "slerp needs t"),
        ("linear", {"weight": [1.0, 2.0, 3.0]}, 2, False, "linear: 3 values of weight for 2 sources"),
        ("linear", {"weight": [1.0, "2"]}, 2, False, "linear: weight is a number, not '2'"),
        ("linear", {"weight": math.nan}, 2, False, "linear: weight is a number, not nan"),
        ("linear", {"weight": 1.0, "normalize": 1}, 2, False, "linear: normalize is true or false, not 1"),
        ("ties", {"weight": 1.0, "density": 30}, 2, True, "ties: density lies within 0 and 1, unlike 30"),
        ("karcher", {"max_iter": 2.5}, 2, False, "karcher: max_iter is a whole number, not 2.5"),
        ("ties", {"weight": 1.0}, 2, False, "ties needs a base"),
        ("linear", {"weight": 1.0}, 2, True, "linear takes no base; name that checkpoint as a source"),
        ("nearswap", {"t": 1.0}, 2, True, "nearswap mixes 1 source, not 2"),
        ("model_stock", {}, 1, True, "model_stock mixes at least 2 sources, not 1"),
        ("slerp", {"t": 0.5}, 3, False, "slerp mixes 1 to 2 sources, not 3"),
        ("slerp", {"t": 0.5}, 2, True, "slerp mixes a base with a source, or 2 sources, not 3 checkpoints"),
        ("linear", {"weight": [1.0, -1.0], "normalize": True}, 2, False, "linear: weights [1.0, -1.0] sum to 0"),
        ("della", {"weight": 1.0, "density": 0.1}, 2, True, "della: density 0.1 ± epsilon 0.15 leaves (0, 1)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_mixes_are_one_clear_line(method, parameters, sources, base, message):
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ConfigError) as error:
        mixed(method, x if base else None, [x] * sources, **parameters)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_parameters_are_completed():
    assert resolve("breadcrumbs", {"weight": (1, 0.5), "density": 0.3}, sources=2, base=True) == {
        "normalize": False,
        "lambda": 1.0,
        "rescale": False,
        "weight": [1, 0.5],
        "density": [0.3, 0.3],
        "gamma": [0.01, 0.01],
    }
