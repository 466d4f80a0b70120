"""Numbers of charts, and texts of documents by edit distance."""

from __future__ import annotations

from collections.abc import Sequence

from sphinx_jax.evaluate.question import Question, Score, mean, means_by
from sphinx_jax.evaluate.rules import exact, texts

RELAXED = 0.05  # of a number (ChartQA, Masry et al. 2022)
SIMILAR = 0.5  # below it a text counts nothing (Biten et al. 2019)


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _relaxed(text: str, right: str) -> float:
    """Whether a text is within 5 % of another that is a number, or else the same."""
    a, b = _number(text), _number(right)
    if a is not None and b:
        return float(abs(a - b) / abs(b) <= RELAXED)
    return float(text.lower() == right.lower())


def chart(questions: Sequence[Question], said: Sequence[str]) -> Score:
    items = [_relaxed(texts.official(text), q.answers[0]) for q, text in zip(questions, said, strict=True)]
    return Score("relaxed accuracy", mean(items), items, means_by(questions, items, "split"))


def chart_reference(questions: Sequence[Question], said: Sequence[str]) -> Score:
    """As the authors' evaluation does it: the two the wrong way round, so 5 % are those of the prediction."""
    keeps = exact.kept(questions)
    items = [
        _relaxed(q.answers[0], texts.reference(text).strip()) if keep else None
        for q, text, keep in zip(questions, said, keeps, strict=True)
    ]
    return Score(
        "relaxed accuracy",
        None,
        items,
        means_by(questions, items, "split"),
        {"dropped_repeats": by_split(questions, keeps)},
    )


def by_split(questions: Sequence[Question], keeps: Sequence[bool]) -> dict[str, list[int]]:
    """Numbers, within each split, of those that are left out."""
    found: dict[str, list[bool]] = {}
    for question, keep in zip(questions, keeps, strict=True):
        found.setdefault(question.labels["split"], []).append(keep)
    return {split: exact.dropped(of_split) for split, of_split in found.items()}


def similarity(text: str, right: Sequence[str]) -> float:
    """1 - edit distance / length of the most similar of the right texts; 0 below one half."""
    from rapidfuzz.distance import Levenshtein

    def distance(answer: str) -> float:
        longest = max(len(answer), len(text))
        return Levenshtein.distance(_blank(answer), _blank(text)) / longest if longest else 0.0

    best = 1 - min(map(distance, right))
    return best if best >= SIMILAR else 0.0


def _blank(text: str) -> str:
    return " ".join(text.lower().strip().split())


def anls(questions: Sequence[Question], said: Sequence[str]) -> Score:
    items = [similarity(texts.official(text), q.answers) for q, text in zip(questions, said, strict=True)]
    parts = {
        kind: by_kind
        for kind in ("answer_types", "evidence_types", "operation_types")
        if (by_kind := means_by(questions, items, kind))
    }
    return Score("ANLS (threshold 0.5)", mean(items), items, parts)


def anls_reference(questions: Sequence[Question], said: Sequence[str]) -> Score:
    items = [similarity(texts.reference(text), q.answers) for q, text in zip(questions, said, strict=True)]
    return Score("ANLS (threshold 0.5)", mean(items), items)
