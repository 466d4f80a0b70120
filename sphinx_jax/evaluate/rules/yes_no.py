"""Yes or no: POPE (Li et al. 2023) and MME (Fu et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

from sphinx_jax.evaluate.question import BadBenchmark, Question, Score, mean
from sphinx_jax.evaluate.rules import texts

PERCEPTION = ["existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"]
COGNITION = ["commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"]
MME = (*PERCEPTION, *COGNITION)
PAIR = 2  # questions about each picture of MME


def pope(questions: Sequence[Question], said: Sequence[str]) -> Score:
    """No if one of the words of the first sentence denies; anything else is yes."""
    read = ["no" if _denies(texts.official(text)) else "yes" for text in said]
    right = [q.answers[0].lower() for q in questions]
    splits = [q.labels["split"] for q in questions]
    parts = {}
    for part in dict.fromkeys([*splits, "all"]):
        inside = [i for i, split in enumerate(splits) if part in ("all", split)]
        parts[part] = _binary([read[i] for i in inside], [right[i] for i in inside])
    metric = "accuracy over all questions (negation words)"
    return Score(metric, parts["all"]["accuracy"], read, parts, {"per_item_meaning": "label read from the prediction"})


def _denies(text: str) -> bool:
    return not {"No", "no", "not"}.isdisjoint(text.partition(".")[0].replace(",", "").split(" "))


def _binary(read: Sequence[str], right: Sequence[str]) -> dict[str, float]:
    pairs = list(zip(read, right, strict=True))
    hits, yes, positive = pairs.count(("yes", "yes")), read.count("yes"), right.count("yes")
    precision, recall = hits / yes if yes else 0.0, hits / positive if positive else 0.0
    return {
        "accuracy": mean([a == b for a, b in pairs]),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "yes_ratio": yes / len(pairs) if pairs else 0.0,
    }


def mme(questions: Sequence[Question], said: Sequence[str]) -> Score:
    """Accuracy, and the share of pictures of which both answers are right, each in percent, summed over categories."""
    read = [_label(texts.official(text).lower().strip().replace(".", ""), letters=True) for text in said]
    items = [float(a == q.answers[0].lower()) for a, q in zip(read, questions, strict=True)]
    parts = _mme(questions, items)
    return Score("MME score", parts["Perception"] + parts["Cognition"], items, parts, _halves(questions))


def mme_reference(questions: Sequence[Question], said: Sequence[str]) -> Score:
    """The same of the text as it is."""
    read = [_label(texts.reference(text).lower()) for text in said]
    items = [float(a == q.answers[0].lower()) for a, q in zip(read, questions, strict=True)]
    parts = _mme(questions, items)
    if missing := [name for name in MME if name not in parts]:
        raise BadBenchmark(f"protocol reference takes all 14 categories of MME, and {missing[0]} is missing")
    metric = "MME score (sum over categories of acc + acc_plus, each in percent)"
    more = {"per_item_meaning": "label parsed from the prediction"} | _halves(questions)
    return Score(metric, parts["Perception"] + parts["Cognition"], read, parts, more)


def _label(text: str, letters: bool = False) -> str:
    if text in ("yes", "no"):
        return text
    if letters and len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text, "other")
    return next((label for label in ("yes", "no") if label in text[:4]), "other")


def _pictures(questions: Sequence[Question], numbers: Sequence[int]) -> list[list[int]]:
    found: dict = {}
    for number in numbers:
        found.setdefault(questions[number].same, []).append(number)
    return list(found.values())


def _halves(questions: Sequence[Question]) -> dict[str, int]:
    """How many pictures have but one answer, if any: they count for accuracy alone."""
    halves = sum(len(picture) < PAIR for picture in _pictures(questions, range(len(questions))))
    return {"half_answered": halves} if halves else {}


def _mme(questions: Sequence[Question], items: Sequence[float]) -> dict[str, float]:
    scores = {}
    for category in MME:
        numbers = [i for i, q in enumerate(questions) if q.labels.get("category") == category]
        if numbers:
            whole = [picture for picture in _pictures(questions, numbers) if len(picture) >= PAIR]
            both = [float(all(items[i] for i in picture)) for picture in whole]
            scores[category] = 100 * mean([items[i] for i in numbers]) + 100 * mean(both)
    sums = {
        name: sum(scores.get(category, 0.0) for category in of)
        for name, of in (("Perception", PERCEPTION), ("Cognition", COGNITION))
    }
    return sums | scores
