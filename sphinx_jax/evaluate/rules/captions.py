"""Captions against several others: CIDEr-D (Vedantam et al. 2015), BLEU and ROUGE-L as COCO's server has them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from sphinx_jax.evaluate.question import Question, Score, mean
from sphinx_jax.evaluate.rules import texts
from sphinx_jax.evaluate.rules.words import tokens

LONGEST = 4  # of n-grams, in words
SIGMA = 6.0  # of lengths that differ, in pairs of words
BETA = 1.2  # of recall against precision
TINY, SMALL = 1e-15, 1e-9  # that keep BLEU of one sentence from 0 / 0

Words = Sequence[str]
Counts = Counter[tuple[str, ...]]


def official(questions: Sequence[Question], said: Sequence[str]) -> Score:
    """Document frequencies are those of the pictures at hand."""
    found = [tokens(texts.official(text)) for text in said]
    right = [[tokens(answer) for answer in q.answers] for q in questions]
    items, (bleus, by_item) = cider(found, right), bleu(found, right)
    rouges = [rouge(words, answers) for words, answers in zip(found, right, strict=True)]
    parts = {f"Bleu_{n + 1}": value for n, value in enumerate(bleus)} | {"ROUGE_L": mean(rouges), "CIDEr": mean(items)}
    others = {f"Bleu_{n + 1}": values for n, values in enumerate(by_item)} | {"ROUGE_L": rouges}
    more = {"per_item_other": others, "tokenised_predictions": [" ".join(words) for words in found]}
    return Score("CIDEr (x100 in papers)", mean(items), items, parts, more)


def _counted(words: Words) -> list[Counts]:
    """n-grams of each length, from 1 on."""
    return [Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for n in range(1, LONGEST + 1)]


def cider(found: Sequence[Words], right: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each text against its own, times 10."""
    counted = [[_counted(answer) for answer in answers] for answers in right]
    frequency: Counter = Counter()
    for answers in counted:
        frequency.update({gram for grams in answers for of_length in grams for gram in of_length})
    pictures = math.log(len(right)) if right else 0.0

    def weighed(grams: list[Counts]) -> tuple[list[dict], list[float], int]:
        vectors = [
            {gram: n * (pictures - math.log(max(1.0, frequency[gram]))) for gram, n in of_length.items()}
            for of_length in grams
        ]
        norms = [math.sqrt(sum(x * x for x in vector.values())) for vector in vectors]
        return vectors, norms, sum(grams[1].values())

    def alike(a: tuple, b: tuple) -> float:
        total = 0.0
        for of_a, of_b, norm_a, norm_b in zip(a[0], b[0], a[1], b[1], strict=True):
            both = sum(min(x, of_b.get(gram, 0.0)) * of_b.get(gram, 0.0) for gram, x in of_a.items())
            total += both / (norm_a * norm_b) if norm_a and norm_b else both
        return total / LONGEST * math.exp(-((a[2] - b[2]) ** 2) / (2 * SIGMA**2))

    return [
        10 * mean([alike(weighed(_counted(words)), weighed(grams)) for grams in answers])
        for words, answers in zip(found, counted, strict=True)
    ]


def bleu(found: Sequence[Words], right: Sequence[Sequence[Words]]) -> tuple[list[float], list[list[float]]]:
    """BLEU-1 to 4 of all texts together, and of each; of its references the one of the closest length counts."""
    sums, items = [0.0] * (2 * LONGEST + 2), []
    for words, answers in zip(found, right, strict=True):
        closest = min(map(len, answers), key=lambda n: (abs(n - len(words)), n))
        grams = _counted(words)
        most: list[Counts] = [Counter() for _ in grams]
        for answer in answers:
            most = [a | b for a, b in zip(most, _counted(answer), strict=True)]
        correct = [sum((a & b).values()) for a, b in zip(grams, most, strict=True)]
        guessed = [max(0, len(words) - n) for n in range(LONGEST)]
        one = [len(words), closest, *correct, *guessed]
        items.append(_bleu(one))
        sums = [a + b for a, b in zip(sums, one, strict=True)]
    return _bleu(sums), [list(of_n) for of_n in zip(*items, strict=True)]


def _bleu(counts: Sequence[float]) -> list[float]:
    length, closest, *rest = counts
    product, found = 1.0, []
    ratio = (length + TINY) / (closest + SMALL)
    short = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    for n, (correct, guessed) in enumerate(zip(rest[:LONGEST], rest[LONGEST:], strict=True), 1):
        product *= (correct + TINY) / (guessed + SMALL)
        found.append(product ** (1 / n) * short)
    return found


def rouge(words: Words, answers: Sequence[Words]) -> float:
    """ROUGE-L, of precision and recall the best over the references."""
    common = [(_in_order(words, answer), len(answer)) for answer in answers]
    # an empty text counts as one empty word there
    precision = max(n / max(1, len(words)) for n, _ in common)
    recall = max(n / max(1, length) for n, length in common)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _in_order(a: Words, b: Words) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for i, other in enumerate(b, 1):
            row[i], before = (before + 1 if word == other else max(row[i], row[i - 1])), row[i]
    return row[-1]
