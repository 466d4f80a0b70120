"""The methods of the weight mix: what happens to one matrix, slice by slice, in numpy and float32 or higher.

`Method.run` mixes a `Unit` by one of `METHODS`.  A method that needs norms, dot products or thresholds passes over
the slices before it yields; memory is a few slices, whatever the size of the matrix, and the result is bit for bit the
same however the rows are cut.

Here are the methods that add up whole matrices with coefficients; those that make task vectors sparse are in
`task_vectors`.  Where mergekit 0.1.5 has a method of the same name, definition, parameters and defaults are its
own, unless the docstring says otherwise.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from sphinx_jax.config import ConfigError, unknown
from sphinx_jax.weight_mix import task_vectors as mix_task_vectors
from sphinx_jax.weight_mix.statistics import Slice, Unit, column_gram, gram, row_gram, task_vectors
from sphinx_jax.weight_mix.task_vectors import Parameters, divisor

SHARES = ("density", "gamma", "epsilon", "select_topk", "decay")  # parameters within 0 and 1


@dataclass(frozen=True)
class Method:
    """What a method takes, and the function that does it.

    Args:
      run: (unit, parameters) -> the mixed rows, float32, slice by slice; the parameters complete, one value per source
        where `per_source` names them.
      base: whether the mix has a base beside its sources.
      sources: the least and the greatest number of sources; None, any number.
      parameters: defaults of those with one value; None, it must be given.
      per_source: defaults of those with one value per source.
      ends: the number of checkpoints in all, the base among them, where that is fixed.
      fixed: whether the result is a sum of the matrices with coefficients that no matrix has a say in.
    """

    run: Callable[[Unit, Parameters], Iterator[np.ndarray]]
    base: Literal["needed", "optional", "none"]
    sources: tuple[int, int | None]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    per_source: Mapping[str, Any] = field(default_factory=dict)
    ends: int | None = None
    fixed: bool = False


def resolve(method: str, parameters: Mapping[str, Any], *, sources: int, base: bool) -> dict[str, Any]:
    """The method's parameters, complete: defaults filled in, and a list of `sources` values for each per-source one.

    Raises:
      ConfigError: the method or a parameter is unknown, missing or impossible, or there is not the base or the number
        of sources that the method takes.  Nothing needs to be opened to know.
    """
    if method not in METHODS:
        raise unknown("method of the weight mix", method, METHODS)
    spec = METHODS[method]
    if spec.base == "needed" and not base:
        raise ConfigError(f"{method} needs a base")
    if spec.base == "none" and base:
        raise ConfigError(f"{method} takes no base; name that checkpoint as a source")
    least, most = spec.sources
    if not least <= sources <= (most or sources):
        wanted = least if most == least else f"at least {least}" if most is None else f"{least} to {most}"
        raise ConfigError(f"{method} mixes {wanted} source{'s' * (wanted != 1)}, not {sources}")
    if spec.ends and sources + base != spec.ends:
        raise ConfigError(
            f"{method} mixes a base with a source, or {spec.ends} sources, not {sources + base} checkpoints"
        )

    defaults = {**spec.parameters, **spec.per_source}
    for name in parameters:
        if name not in defaults:
            raise unknown(f"parameter of {method}", name, defaults)
    complete = {}
    for name, default in defaults.items():
        value = parameters.get(name, default)
        if value is None:
            raise ConfigError(f"{method} needs {name}" + (", one per source" if name in spec.per_source else ""))
        if name in spec.per_source:
            values = [value] * sources if isinstance(value, numbers.Number) else list(value)
            if len(values) != sources:
                raise ConfigError(f"{method}: {len(values)} values of {name} for {sources} sources")
            complete[name] = [_checked(method, name, one, default) for one in values]
        else:
            complete[name] = _checked(method, name, value, default)
    return complete


def coefficients(method: str, parameters: Mapping[str, Any], *, sources: int, base: bool) -> list[np.float32]:
    """What a `fixed` method multiplies each source by, and after them the base if there is one.

    Args:
      parameters: complete, as `resolve` gives them.
    """
    *ones, last = np.eye(sources + base, dtype=np.float32)
    only = Slice(0, last, ones) if base else Slice(0, None, [*ones, last])
    return list(next(METHODS[method].run(Unit(method, last.shape, lambda: iter([only])), parameters)))


def _checked(method: str, name: str, value: Any, default: Any) -> Any:
    kind = bool if isinstance(default, bool) else numbers.Integral if isinstance(default, int) else numbers.Real
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, kind) or not math.isfinite(value):
        wanted = {bool: "true or false", numbers.Integral: "a whole number", numbers.Real: "a number"}[kind]
        raise ConfigError(f"{method}: {name} is {wanted}, not {value!r}")
    if name in SHARES and not 0 <= value <= 1:
        raise ConfigError(f"{method}: {name} lies within 0 and 1, unlike {value!r}")
    return value


def linear(unit: Unit, p: Parameters) -> Iterator[np.ndarray]:
    """Σ_i w_i x_i, over Σ_i w_i if `normalize` is on (Wortsman et al., "Model soups", arXiv 2203.05482).

    It is off unless asked for, unlike mergekit's: weights mean what they say.
    """
    weights = np.array(p["weight"])
    yield from _combined(unit, weights / _sum("linear", weights) if p["normalize"] else weights)


def average(unit: Unit, p: Parameters) -> Iterator[np.ndarray]:
    """The mean of a run's checkpoints (Izmailov et al., "Averaging weights", arXiv 1803.05407)."""
    return (_added(s, [1 / len(s.sources)] * len(s.sources)) for s in unit.slices())


def ema(unit: Unit, p: Parameters) -> Iterator[np.ndarray]:
    """Exponential average of a run's checkpoints x_1 … x_n in time order (Polyak and Juditsky, 1992):
    m_1 = x_1, m_k = decay · m_{k-1} + (1 - decay) · x_k; the result is m_n.
    """
    for s in unit.slices():
        mean = s.sources[0]
        for x in s.sources[1:]:
            mean = np.float32(p["decay"]) * mean + np.float32(1 - p["decay"]) * x
        yield mean


def slerp(unit: Unit, p: Parameters) -> Iterator[np.ndarray]:
    """Spherical interpolation (Shoemake, SIGGRAPH 1985) from a, at t = 0, to b, at t = 1, of angle θ:
    (sin((1 - t) θ) a + sin(t θ) b) / sin θ, or (1 - t) a + t b where |cos θ| > 0.9995.

    a and b are the base and the source, as in mergekit, or two sources.
    """
    ends = unit.map(lambda s: s if s.base is None else Slice(s.start, None, [s.base, *s.sources]))
    cosine = _cosine(gram(ends), 1e-8)
    yield from _combined(ends, _on_arc(cosine, np.abs(cosine) > 0.9995, p["t"]))


def nuslerp(unit: Unit, p: Parameters) -> Iterator[np.ndarray]:
    """NuSLERP (mergekit): `slerp` with t = w_2 / (w_1 + w_2), or 1/2 where that sum is less than 1e-6; of the task
    vectors if there is a base.

    A matrix is one vector (`nuslerp_flatten`), or else every row is one, or with `nuslerp_row_wise` (mergekit's
    name) every column.  Vectors count as parallel where 1 - cos² θ is at most 1e-7, about what float32 can tell.
    """
    unit = task_vectors(unit)
    first, second = p["weight"]
    t = 0.5 if abs(first + second) < 1e-6 else second / (first + second)

    def coefficients(products: np.ndarray) -> list[np.ndarray]:
        cosine = _cosine(products, 1e-7)
        return _on_arc(cosine, 1 - cosine**2 <= 1e-7, t)

    if p["nuslerp_flatten"] or len(unit.shape) == 1:
        yield from _combined(unit, coefficients(gram(unit)))
    elif p["nuslerp_row_wise"]:
        yield from _combined(unit, coefficients(column_gram(unit)))
    else:
        yield from _combined_by_row(unit, coefficients)


def karcher(unit: Unit, p: Parameters) -> Iterator[np.ndarray]:
    """The Karcher mean of the directions u_i = x_i / |x_i| on the unit sphere (Karcher 1977; mergekit), times the mean
    of the norms.

    From m = the normalised mean of the u_i, repeat: v = Σ_i θ_i / sin θ_i · (u_i - cos θ_i · m) / n with θ_i the angle
    between u_i and m, and m = cos |v| · m + sin |v| · v / |v|, until |v| < `tol` or `max_iter` times.  Sources of
    a norm up to `tol` have no direction, and one opposite to m pulls nowhere.  As everything is a sum of the u_i, it
    is their coefficients that are iterated, in float64.
    """
    products, tol = gram(unit), p["tol"]
    norms = np.sqrt(np.diag(products))
    valid = np.flatnonzero(norms > tol)
    coefficients = np.zeros(len(norms))
    if len(valid):
        cosines = products[np.ix_(valid, valid)] / np.outer(norms[valid], norms[valid])
        coefficients[valid] = norms.mean() * _karcher_mean(cosines, p["max_iter"], tol) / norms[valid]
    yield from _combined(unit, coefficients)


def multislerp(unit: Unit, p: Parameters) -> Iterator[np.ndarray]:
    """Multi-SLERP (mergekit; Goddard 2025): Σ_i w_i |x_i| · m, with m the normalised Σ_i w_i x_i / |x_i|; of the task
    vectors if there is a base.  `normalize_weights`: the w_i are divided by their sum.

    The published method then goes along the sphere from m by the mean Σ_i w_i (u_i - (u_i · m) m) of tangent vectors,
    which is 0 for every input.  Where the directions cancel, Σ_i w_i x_i for any number of sources; mergekit knows this
    for two only and else refuses.
    """
    unit = task_vectors(unit)
    weights = np.array(p["weight"])
    if p["normalize_weights"]:
        weights = weights / _sum("multislerp", weights)
    products = gram(unit)
    norms = np.sqrt(np.diag(products))
    directions = weights / np.where(norms > 0, norms, 1)
    length = _norm(directions, products)
    yield from _combined(unit, weights if length < 1e-7 else (weights @ norms) / length * directions)


def task_arithmetic(unit: Unit, p: Parameters) -> Iterator[np.ndarray]:
    """base + lambda · Σ_i w_i (x_i - base), the sum over Σ_i w_i if `normalize` is on (Ilharco et al., arXiv
    2212.04089).
    """
    weights = np.array(p["weight"])
    yield from _combined(task_vectors(unit), p["lambda"] * weights / (divisor(weights.sum()) if p["normalize"] else 1))


def model_stock(unit: Unit, p: Parameters) -> Iterator[np.ndarray]:
    """Model Stock (Jang et al., arXiv 2403.19522): t · mean(x_i) + (1 - t) · base of n sources, with
    t = n cos θ / (1 + (n - 1) cos θ) and cos θ the mean cosine of two task vectors; 0 where that has no value.

    `filter_wise`: each row has its own t.
    """
    unit = task_vectors(unit)

    def coefficients(products: np.ndarray) -> list[np.ndarray]:
        count = products.shape[-1]
        first, second = np.triu_indices(count, 1)
        norms = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
        cosines = products[..., first, second] / np.maximum(norms[..., first] * norms[..., second], 1e-6)
        cosine = np.clip(cosines, -1, 1).mean(axis=-1)
        below = 1 + (count - 1) * cosine
        singular = np.abs(below) < 1e-6
        return [np.where(singular, 0, cosine / np.where(singular, 1, below))] * count

    if p["filter_wise"] and len(unit.shape) > 1:
        yield from _combined_by_row(unit, coefficients)
    else:
        yield from _combined(unit, coefficients(gram(unit)))


def nearswap(unit: Unit, p: Parameters) -> Iterator[np.ndarray]:
    """(1 - w) base + w x with w = t / |base - x|, at most 1: entries nearer than t are swapped (alchemonaut,
    QuartetAnemoi-70B; mergekit).
    """
    for s in unit.slices():
        (x,) = s.sources
        w = np.clip(np.float32(p["t"]) / np.maximum(np.abs(s.base - x), np.float32(1e-6)), 0, 1)
        yield w * x + (1 - w) * s.base


def wise_ft(unit: Unit, p: Parameters) -> Iterator[np.ndarray]:
    """base + alpha (x - base) (Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv 2109.01903)."""
    yield from _combined(task_vectors(unit), [p["alpha"]])


def delta_extract(unit: Unit, p: Parameters) -> Iterator[np.ndarray]:
    """x - base, the task vector itself (Ilharco et al., arXiv 2212.04089)."""
    return (s.sources[0] for s in task_vectors(unit).slices())


def delta_apply(unit: Unit, p: Parameters) -> Iterator[np.ndarray]:
    """base + Σ_i w_i x_i, for sources that are task vectors such as `delta_extract` makes (arXiv 2212.04089)."""
    yield from _combined(unit, p["weight"])


def _combined(unit: Unit, coefficients: Sequence[float | np.ndarray]) -> Iterator[np.ndarray]:
    """The base, if there is one, + Σ_i c_i x_i; a coefficient is a number, or one per column."""
    return (_added(s, coefficients) for s in unit.slices())


def _combined_by_row(unit: Unit, of_row: Callable[[np.ndarray], Sequence[np.ndarray]]) -> Iterator[np.ndarray]:
    """`_combined` with coefficients of each row, made from its dot products."""
    for s in unit.slices():
        tail = (1,) * (len(unit.shape) - 1)
        yield _added(s, [c.reshape(-1, *tail) for c in of_row(row_gram(s.sources))])


def _added(s: Slice, coefficients: Sequence[float | np.ndarray]) -> np.ndarray:
    terms = (np.asarray(c, np.float32) * x for c, x in zip(coefficients, s.sources, strict=True))
    total = next(terms)
    for term in terms:
        total += term
    return total if s.base is None else s.base + total


def _sum(method: str, weights: np.ndarray) -> float:
    if not (total := weights.sum()):
        raise ConfigError(f"{method}: weights {weights.tolist()} sum to 0 and cannot be normalised")
    return total


def _cosine(products: np.ndarray, least: float) -> np.ndarray:
    """(..., 2, 2) dot products -> (...) cosine of the angle, with norms of at least `least`."""
    norms = np.maximum(np.sqrt(np.diagonal(products, axis1=-2, axis2=-1)), least)
    return np.clip(products[..., 0, 1] / norms.prod(axis=-1), -1, 1)


def _on_arc(cosine: np.ndarray, straight: np.ndarray, t: float) -> list[np.ndarray]:
    """The coefficients of the two ends at `t` of the arc, or where it is `straight` of the line."""
    angle = np.arccos(np.where(straight, 0, cosine))
    return [np.where(straight, part, np.sin(part * angle) / np.sin(angle)) for part in (1 - t, t)]


def _norm(coefficients: np.ndarray, products: np.ndarray) -> float:
    """|Σ_i c_i x_i|, from the dot products of the x_i."""
    return math.sqrt(max(0.0, coefficients @ products @ coefficients))


def _karcher_mean(cosines: np.ndarray, max_iter: int, tol: float) -> np.ndarray:
    """The coefficients of the Karcher mean of unit vectors."""
    count = len(cosines)
    mean = np.full(count, 1 / count)
    length = _norm(mean, cosines)
    mean = np.eye(count)[0] if length < tol else mean / length
    for _ in range(max_iter):
        along = np.clip(cosines @ mean, -1, 1)
        angles = np.arccos(along)
        pulling = np.sin(angles) >= tol
        pull = np.where(pulling, angles / np.where(pulling, np.sin(angles), 1), 0) / count
        tangent = pull - (pull @ along) * mean
        length = _norm(tangent, cosines)
        if length < tol:
            break
        mean = math.cos(length) * mean + math.sin(length) / length * tangent
        mean /= _norm(mean, cosines)
    return mean


_TASK_ARITHMETIC = {"normalize": False, "lambda": 1.0}
_DRAWN = _TASK_ARITHMETIC | {"rescale": True, "seed": 0}
_RANKED = _TASK_ARITHMETIC | {"rescale": False}
_SPARSE = {"weight": None, "density": 1.0}

METHODS: dict[str, Method] = {
    "linear": Method(linear, "none", (1, None), {"normalize": False}, {"weight": None}, fixed=True),
    "average": Method(average, "none", (1, None), fixed=True),
    "ema": Method(ema, "none", (1, None), {"decay": None}, fixed=True),
    "slerp": Method(slerp, "optional", (1, 2), {"t": None}, ends=2),
    "nuslerp": Method(
        nuslerp, "optional", (2, 2), {"nuslerp_flatten": True, "nuslerp_row_wise": False}, {"weight": None}
    ),
    "karcher": Method(karcher, "none", (2, None), {"max_iter": 10, "tol": 1e-5}),
    "multislerp": Method(multislerp, "optional", (2, None), {"normalize_weights": True}, {"weight": None}),
    "task_arithmetic": Method(task_arithmetic, "needed", (1, None), _TASK_ARITHMETIC, {"weight": None}, fixed=True),
    "ties": Method(mix_task_vectors.ties, "needed", (1, None), _RANKED | {"normalize": True}, _SPARSE),
    "dare_linear": Method(mix_task_vectors.dare_linear, "needed", (1, None), _DRAWN, _SPARSE),
    "dare_ties": Method(mix_task_vectors.dare_ties, "needed", (1, None), _DRAWN, _SPARSE),
    "della": Method(
        mix_task_vectors.della, "needed", (1, None), _DRAWN | {"normalize": True}, _SPARSE | {"epsilon": 0.15}
    ),
    "della_linear": Method(mix_task_vectors.della_linear, "needed", (1, None), _DRAWN, _SPARSE | {"epsilon": 0.15}),
    "breadcrumbs": Method(mix_task_vectors.breadcrumbs, "needed", (1, None), _RANKED, _SPARSE | {"gamma": 0.01}),
    "breadcrumbs_ties": Method(
        mix_task_vectors.breadcrumbs_ties, "needed", (1, None), _RANKED, _SPARSE | {"gamma": 0.01}
    ),
    "sce": Method(mix_task_vectors.sce, "needed", (1, None), {"select_topk": 1.0}),
    "model_stock": Method(model_stock, "needed", (2, None), {"filter_wise": False}),
    "nearswap": Method(nearswap, "needed", (1, 1), {"t": None}),
    "wise_ft": Method(wise_ft, "needed", (1, 1), {"alpha": None}, fixed=True),
    "delta_extract": Method(delta_extract, "needed", (1, 1), fixed=True),
    "delta_apply": Method(delta_apply, "needed", (1, None), {}, {"weight": 1.0}, fixed=True),
}
