"""The methods of the weight mix against mergekit's of the same name, where it is installed."""

import numpy as np
import pytest
from mix_cases import mix

from sphinx_jax.weight_mix import statistics as mix_statistics
from sphinx_jax.weight_mix.methods import METHODS, Slice, Unit

torch = pytest.importorskip("torch")
registry = pytest.importorskip("mergekit.merge_methods.registry")
from mergekit.merge_methods.base import TensorGroup  # noqa: E402

pytestmark = pytest.mark.peers
WEIGHTS = [0.7, 0.4, -0.2]
SPARSE = {"weight": WEIGHTS, "density": [0.6, 0.35, 0.8]}
SPARSE_OPTIONS = [{}, {"normalize": True}, {"normalize": False}, {"rescale": True, "lambda": 0.7}, {"rescale": False}]
CASES = {
    # name: (number of sources, whether with a base, parameters)
    "linear": [
        (3, False, {"weight": WEIGHTS, "normalize": False}),
        (3, False, {"weight": WEIGHTS, "normalize": True}),
    ],
    "slerp": [(1, True, {"t": t}) for t in (0.0, 0.3, 1.0)],
    "nuslerp": [
        (2, base, {"weight": [0.6, 0.3], "nuslerp_flatten": flat, "nuslerp_row_wise": row})
        for base in (False, True)
        for flat, row in ((True, False), (False, False), (False, True))
    ],
    "karcher": [(2, False, {}), (4, False, {"max_iter": 3, "tol": 1e-4})],
    "multislerp": [
        (3, base, {"weight": [0.6, 0.3, 0.5], "normalize_weights": normalize})
        for base in (False, True)
        for normalize in (False, True)
    ],
    "task_arithmetic": [(3, True, {"weight": WEIGHTS, "normalize": n, "lambda": 0.7}) for n in (False, True)],
    "model_stock": [(n, True, {"filter_wise": f}) for n in (2, 4) for f in (False, True)],
    "nearswap": [(1, True, {"t": t}) for t in (0.001, 0.02)],
    "sce": [(3, True, {"select_topk": k}) for k in (0.0, 0.3, 1.0)],
    "ties": [(3, True, SPARSE | options) for options in SPARSE_OPTIONS],
    "breadcrumbs": [(3, True, SPARSE | {"gamma": [0.01, 0.2, 0.5]} | options) for options in SPARSE_OPTIONS],
    "breadcrumbs_ties": [(3, True, SPARSE | {"gamma": [0.01, 0.2, 0.5]} | options) for options in SPARSE_OPTIONS],
    # rescaled, what is drawn differs on purpose
    "dare_linear": [(3, True, SPARSE | options | {"rescale": False}) for options in SPARSE_OPTIONS],
    "dare_ties": [(3, True, SPARSE | options | {"rescale": False}) for options in SPARSE_OPTIONS],
    "della": [(3, True, SPARSE | options | {"rescale": False}) for options in SPARSE_OPTIONS],
    "della_linear": [
        (3, True, SPARSE | {"epsilon": [0.1, 0.3, 0.05]} | options | {"rescale": False}) for options in SPARSE_OPTIONS
    ],
}


def test_every_shared_method_is_compared():
    shared = set(METHODS) & {method.spec.name for method in registry.registered_methods()}
    assert shared == set(CASES)


@pytest.fixture
def same_draws(monkeypatch):
    """mergekit draws our bits: a call for each sparse source in turn, so that all but the draws is compared."""
    sources = iter(range(100))

    def bernoulli(probabilities):
        bits = mix_statistics.random_bits(f"0 {next(sources)} layer", 0, probabilities.numel())
        drawn = torch.from_numpy(bits / 2**32).reshape(probabilities.shape) < probabilities
        return drawn.to(probabilities.dtype)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)


@pytest.mark.parametrize("shape,distance", [((40, 300), 0.02), ((301,), 0.0003)], ids=["matrix", "near vector"])
@pytest.mark.parametrize("method,case", [(name, i) for name in CASES for i in range(len(CASES[name]))])
def test_agrees_with_mergekit(method, case, shape, distance, same_draws):
    count, with_base, parameters = CASES[method][case]
    random = np.random.default_rng(7)
    base = random.normal(scale=0.05, size=shape).astype(np.float32)
    sources = [base + random.normal(scale=distance, size=shape).astype(np.float32) for _ in range(count)]
    tensors = [torch.from_numpy(x.copy()) for x in ([base] if with_base else []) + sources]
    group = TensorGroup.from_tensors(tensors, base_index=0 if with_base else None)
    (expected,) = registry.get(method)([group], parameters=parameters)

    def slices():
        for start in range(0, shape[0], 7):
            rows = slice(start, start + 7)
            yield Slice(start, base[rows] if with_base else None, [x[rows] for x in sources])

    found = np.concatenate([*mix(method, Unit("layer", shape, slices), parameters)])
    difference = np.abs(found - expected.numpy()).max() / np.abs(expected.numpy()).max()
    assert difference < 1e-5
