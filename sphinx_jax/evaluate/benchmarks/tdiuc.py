"""TDIUC (Kafle and Kanan 2017): one answer, in the files of VQA; means over the kinds of questions."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import harmonic_mean

from sphinx_jax.evaluate.benchmarks.vqa import release
from sphinx_jax.evaluate.forms.reading import Benchmark
from sphinx_jax.evaluate.question import Question, Score, mean, means_by
from sphinx_jax.evaluate.rules import texts
from sphinx_jax.evaluate.rules.vqa_accuracy import normal


def official(questions: Sequence[Question], said: Sequence[str]) -> Score:
    """The arithmetic mean of the accuracies of the kinds; the harmonic one, and that over questions, are parts."""
    items = [
        float(normal(texts.official(text)) == normal(q.answers[0])) for q, text in zip(questions, said, strict=True)
    ]
    by_kind = means_by(questions, items, "question_type")
    arithmetic, values = mean(list(by_kind.values())), list(by_kind.values())
    parts = by_kind | {"harmonic": harmonic_mean(values) if values else 0.0, "over questions": mean(items)}
    return Score("mean accuracy over kinds of questions", arithmetic, items, parts)


TDIUC = Benchmark(
    "TDIUC",
    {"release": release("OpenEnded_mscoco_val2014*", "mscoco_val2014*", "tdiuc*")},
    {"official": official},
    counts={"val": 538543},
)
