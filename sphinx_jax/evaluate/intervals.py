"""How sure a number is: intervals of a bootstrap over pictures, and what two models' difference would be by chance."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from sphinx_jax.evaluate.rules.yes_no import PAIR

DRAWN = 2000  # samples of a bootstrap
LEVEL = 0.95


def _numbered(clusters: Sequence[Hashable]) -> list[int]:
    """Which of the clusters each is, in the order in which they come."""
    number = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    return [number[cluster] for cluster in clusters]


def _summed(
    values: Sequence[float], clusters: Sequence[Hashable], kinds: Sequence[Hashable]
) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts of the values, (clusters, kinds); all are of one kind where none are given."""
    at, kind = _numbered(clusters), _numbered(kinds or [""] * len(values))
    shape = max(at) + 1, max(kind) + 1
    cells = np.array(at) * shape[1] + kind
    sums, counts = np.bincount(cells, np.array(values, float), np.prod(shape)), np.bincount(cells, None, np.prod(shape))
    return sums.reshape(shape), counts.reshape(shape)


def bootstrap(
    values: Sequence[float], clusters: Sequence[Hashable], kinds: Sequence[Hashable] = ()
) -> tuple[float | None, float | None]:
    """The interval of a mean over questions whose pictures are drawn anew, all questions about one together; with the
    kind of each, of the mean over the kinds that were drawn of their means.

    (None, None) of no question.
    """
    if not len(values):
        return None, None
    sums, counts = _summed(values, clusters, kinds)
    rng = np.random.default_rng(zlib.crc32(sums.tobytes()))
    means = np.empty(DRAWN)
    for draw in range(DRAWN):
        chosen = np.bincount(rng.integers(0, len(sums), len(sums)), minlength=len(sums))
        asked = chosen @ counts
        means[draw] = np.mean((chosen @ sums)[asked > 0] / asked[asked > 0])
    return _middle(means)


def compared(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[Hashable], kinds: Sequence[Hashable] = ()
) -> dict[str, float | None]:
    """The paired difference of two models on the same questions, of their means or of those over kinds, its interval,
    and a p-value.

    The p-value is the share of random changes of sign, picture by picture, whose mean difference is as large.
    """
    differences = [b - a for a, b in zip(first, second, strict=True)]
    low, high = bootstrap(differences, clusters, kinds)
    sums, counts = _summed(differences, clusters, kinds)
    of_pictures = (sums / counts.sum(0)).mean(1)
    return {"difference": float(of_pictures.sum()), "low": low, "high": high, "p": _by_chance(of_pictures)}


def _middle(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _by_chance(sums: np.ndarray) -> float:
    """The share of random changes of sign whose sum is as large."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (DRAWN, len(sums)))
    as_large = np.abs(signs @ sums) >= abs(sums.sum()) - 1e-12
    return float((as_large.sum() + 1) / (DRAWN + 1))


class Answered(NamedTuple):
    """Questions of MME: whether each is answered rightly, 1.0 or 0.0, and what each is of."""

    right: Sequence[float]
    pictures: Sequence[Hashable]
    categories: Sequence[str]


class _Category(NamedTuple):
    """Pictures of one category, each (P,): right answers, questions, 1.0 where both are answered, and where both are
    right."""

    right: np.ndarray
    asked: np.ndarray
    paired: np.ndarray
    whole: np.ndarray

    def points(self, times: np.ndarray) -> np.ndarray:
        """Accuracy and accuracy+ in percent, each picture counted so often: (…, P) -> (…,)."""
        paired = np.maximum(times @ self.paired, 1)  # of none, none is right
        return 100 * (times @ self.right) / (times @ self.asked) + 100 * (times @ self.whole) / paired

    def drawn(self, rng: np.random.Generator) -> np.ndarray:
        """How often each picture is there when as many are drawn anew: (DRAWN, P)."""
        count = len(self.right)
        return rng.multinomial(count, np.full(count, 1 / count), DRAWN)


def _categories(answered: Answered) -> list[_Category]:
    found = []
    for category in dict.fromkeys(answered.categories):
        inside = [i for i, one in enumerate(answered.categories) if one == category]
        at = _numbered([answered.pictures[i] for i in inside])
        asked = np.bincount(at)
        right = np.bincount(at, [answered.right[i] for i in inside])
        paired = (asked >= PAIR).astype(float)
        found.append(_Category(right, asked, paired, paired * (right == asked)))
    return found


def mme(answered: Answered) -> tuple[float, float | None, float | None]:
    """The sum over categories of accuracy and accuracy+ in percent, and its interval: pictures are drawn anew within
    their category, and the sum is taken anew each time.

    The interval is (None, None) of no question.
    """
    categories = _categories(answered)
    if not categories:
        return 0.0, None, None
    score = sum(float(one.points(np.ones(len(one.right)))) for one in categories)
    rng = np.random.default_rng(zlib.crc32(b"".join(one.right.tobytes() for one in categories)))
    return score, *_middle(np.sum([one.points(one.drawn(rng)) for one in categories], 0))


def mme_compared(first: Answered, second: Answered) -> dict[str, float]:
    """The paired difference of two models' scores on the same questions, in the same order; as `compared`."""
    rng, pairs = np.random.default_rng(0), list(zip(_categories(first), _categories(second), strict=True))
    draws, parts = np.zeros(DRAWN), []
    for a, b in pairs:
        times = a.drawn(rng)
        draws += b.points(times) - a.points(times)
        parts.append(100 * ((b.right - a.right) / a.asked.sum() + (b.whole - a.whole) / max(a.paired.sum(), 1)))
    of_pictures = np.concatenate(parts)
    low, high = _middle(draws)
    return {"difference": float(of_pictures.sum()), "low": low, "high": high, "p": _by_chance(of_pictures)}
