"""The score card: scores with intervals, beside what was published."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sphinx_jax.config import ConfigError, need
from sphinx_jax.evaluate.intervals import Answered, bootstrap, compared, mme, mme_compared
from sphinx_jax.evaluate.question import Question, Score, mean, means_by, picture_as_json
from sphinx_jax.evaluate.rules import circular, yes_no

ITEMS = "items.jsonl"  # of a benchmark in a run

# of the paper and of the release's pages, in percent but for MME; SPHINX, 1k, 2k, Tiny, MoE
MODELS = ("sphinx", "sphinx_1k", "sphinx_2k", "sphinx_tiny", "sphinx_moe")
PUBLISHED: Mapping[tuple[str, str], tuple[float, ...]] = {
    ("pope", ""): (80.7, 90.8, 87.2, 82.2, 89.6),
    ("mme", "Perception"): (1476.1, 1560.2, 1470.6, 1261.2, 1485.3),
    ("mme", "Cognition"): (322.2, 310.0, 326.8, 242.1, 367.1),
    ("mmbench", ""): (66.9, 67.1, 65.9, 56.6, 71.3),
    ("seed", ""): (69.14, 71.62, 71.6, 17.1, 73.0),
    ("okvqa", ""): (62.08, 62.21, 62.6, 53.6, 62.7),
    ("vqav2", ""): (78.08, 80.2, 80.7, 74.7, 81.1),
    ("vizwiz", ""): (39.91, 46.75, 44.9, 49.2, 61.9),
    ("gqa", ""): (62.59, 62.88, 63.1, 58.0, 63.8),
    ("textvqa", ""): (51.63, 58.78, 61.2, 57.8, 68.0),
    ("ocrvqa", ""): (66.01, 70.01, 67.8, 60.3, 64.8),
    ("mmvet", ""): (36.0, 36.6, 40.2, 23.8, 40.9),
    ("refcoco", "val"): (89.15, 91.05, 91.10, 82.89, 90.64),
    ("refcoco", "testA"): (91.37, 92.65, 92.88, 86.89, 93.74),
    ("refcoco", "testB"): (85.13, 86.56, 87.07, 77.91, 86.85),
    ("refcoco+", "val"): (82.77, 86.64, 85.51, 71.34, 85.50),
    ("refcoco+", "testA"): (87.29, 91.08, 90.62, 78.49, 90.48),
    ("refcoco+", "testB"): (76.85, 80.35, 80.45, 63.71, 79.88),
    ("refcocog", "val"): (84.87, 88.19, 88.07, 78.50, 88.26),
    ("refcocog", "test"): (83.65, 88.35, 88.65, 78.86, 88.51),
}
ROUNDED = 0.005 + 1e-6  # by which a mean in percent may differ from its score: VQA's is of two decimals
FULL = {"Perception": 2000, "Cognition": 800}  # marks of MME, which has no mean over questions
PARTS = dict(zip(FULL, (yes_no.PERCEPTION, yes_no.COGNITION), strict=True))  # and the categories of each
KINDS = {"tdiuc": "question_type", "blink": "task"}  # whose score is the mean over kinds, and the label of these
OTHERWISE = {"coco_keypoints": "mean OKS"}  # what of each question is compared, where the score is no mean of it
CIDER = 1000  # the most that captions can get, on the card


@dataclass(frozen=True)
class Line:
    """One number of the card.

    Attributes:
      split: the part that the number is of; "" where it is of all.
      low, high: the interval of 95 % of a bootstrap over pictures; None where the number is neither MME's nor a mean
        over questions or over kinds of them.
      missing: questions that have no answer, over which the score is not.
      score: None where a judge has to find it.
      published: of the model that this one is of the form of; None where nothing was published.
      judge: the file beside the card that a judge takes.
      left_out: why the benchmark is not scored at all.
      without: files of it that are damaged, whose questions nobody counted.
    """

    benchmark: str
    split: str
    protocol: str
    metric: str
    count: int
    missing: int
    score: float | None
    low: float | None = None
    high: float | None = None
    published: float | None = None
    judge: str = ""
    left_out: str = ""
    without: str = ""

    @property
    def difference(self) -> float | None:
        return None if self.published is None or self.score is None else self.score - self.published

    @property
    def outside(self) -> bool:
        """Whether what was published lies outside the interval."""
        if self.published is None or self.low is None or self.high is None:
            return False
        return not self.low <= self.published <= self.high

    @property
    def share(self) -> float:
        """Of full marks, in percent: what benchmarks can be averaged by; 0 where there is no score."""
        return 100 * (self.score or 0.0) / (CIDER if "CIDEr" in self.metric else FULL.get(self.split, 100))

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"difference": self.difference, "outside": self.outside}


def lines(
    benchmark: str,
    protocol: str,
    score: Score,
    questions: Sequence[Question],
    missing: Sequence[Question] = (),
    model: str = "",
) -> list[Line]:
    """Lines of one benchmark: of all its questions where it has one number, else of each split, in percent.

    Args:
      questions: those that were answered.
      missing: those that were not.
      model: a name of the family, whose published numbers stand beside.
    """
    if benchmark == "mme":
        return _of_mme(protocol, score, questions, missing, model)
    asked, values = _counted(score, questions)
    pictures = [q.picture for q in asked]

    def line(
        split: str, value: float, lost: int, inside: Sequence[int] | None = None, scale: float = 100, count: int = 0
    ) -> Line:
        interval: tuple[float | None, float | None] = (None, None)
        if values is not None and inside is not None:
            kept = [i for i in inside if values[i] is not None]
            percent = [100 * (values[i] or 0.0) for i in kept]
            kinds, averaged = list[str](), percent
            if kind := KINDS.get(benchmark):
                kinds = [asked[i].labels[kind] for i in kept]
                averaged = [*means_by([asked[i] for i in kept], percent, kind).values()]
            if kept and math.isclose(mean(averaged), value * scale, abs_tol=ROUNDED):
                interval = bootstrap(percent, [pictures[i] for i in kept], kinds)
            count = len(kept)
        published = _published(benchmark, split, model)
        return Line(benchmark, split, protocol, score.metric, count, lost, value * scale, *interval, published)

    if score.score is not None:
        inside = range(len(asked)) if values is not None else None
        scale = 1 if "percent" in score.metric else 100
        return [line("", score.score, len(missing), inside, scale, len(asked))]
    of_split = {s: [i for i, q in enumerate(asked) if q.labels.get("split") == s] for s in score.parts}
    lost_in = {s: sum(q.labels.get("split") == s for q in missing) for s in score.parts}
    return [line(s, part, lost_in[s], of_split[s]) for s, part in score.parts.items()]


def _of_mme(
    protocol: str, score: Score, questions: Sequence[Question], missing: Sequence[Question], model: str
) -> list[Line]:
    found, values = list[Line](), need(_counted(score, questions)[1])
    for part, categories in PARTS.items():
        inside = [i for i, q in enumerate(questions) if q.labels["category"] in categories]
        lost = sum(q.labels.get("category") in categories for q in missing)
        own = [questions[i] for i in inside]
        right = [values[i] or 0.0 for i in inside]
        same, *interval = mme(Answered(right, [q.same for q in own], [q.labels["category"] for q in own]))
        low, high = interval if math.isclose(same, score.parts[part], abs_tol=ROUNDED) else (None, None)
        published = _published("mme", part, model)
        found.append(Line("mme", part, protocol, score.metric, len(own), lost, score.parts[part], low, high, published))
    return found


def for_judge(benchmark: str, protocol: str, count: int, missing: int, file: str, model: str = "") -> Line:
    """The line of a benchmark that needs a judge, which takes `file`."""
    published = _published(benchmark, "", model)
    return Line(benchmark, "", protocol, "needs a judge", count, missing, None, published=published, judge=file)


def left_out(benchmark: str, why: str) -> Line:
    """The line of a benchmark that cannot be asked or scored."""
    return Line(benchmark, "", "", "left out", 0, 0, None, left_out=why)


def _published(benchmark: str, split: str, model: str) -> float | None:
    known = PUBLISHED.get((benchmark, split))
    return known[MODELS.index(model)] if known and model in MODELS else None


def _counted(score: Score, questions: Sequence[Question]) -> tuple[Sequence[Question], list[float | None] | None]:
    """Questions, or the first of those that count together, and what each counts; None where that is unknown."""
    if score.items is None:
        return questions, None
    if "per_item_key" in score.more:
        first = {int(q.key) % circular.ROTATION: q for q in reversed(questions)}
        questions = [first[key] for key in score.more["per_item_key"]]
    labels = [isinstance(item, str) for item in score.items]
    if any(labels):
        items = zip(score.items, questions, strict=True)
        return questions, [float(item == q.answers[0].lower()) for item, q in items]
    return questions, list(score.items)


def items(score: Score, questions: Sequence[Question], texts: Mapping[int | str, str]) -> list[dict[str, Any]]:
    """What each question counts, as JSON: its key, picture, labels, the text and what was right.

    Of questions that count together the first stands for all; those that a protocol leaves out are not there.
    """
    asked, values = _counted(score, questions)
    counted = zip(asked, values or (), strict=False)
    return [item(question, texts[question.key], value) for question, value in counted if value is not None]


def item(question: Question, said: str, value: float | None) -> dict[str, Any]:
    """One question; `value` is None where a judge has to find it."""
    q = question
    return {
        "key": q.key,
        "picture": picture_as_json(q.picture),
        "same": None if q.same is None else repr(q.same),
        "labels": {name: label for name, label in q.labels.items() if name != "file"},
        "question": q.text,
        "choices": list(q.choices),
        "answers": list(q.answers),
        "box": q.box and list(q.box),
        "size": q.size and list(q.size),
        "prediction": said,
        "value": value,
    }


def compare(
    benchmark: str, first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The paired difference of two models on the questions that both answered, from their `items`, in percent; of MME
    in its points, a part each; of TDIUC and BLINK of their means over kinds.

    Raises ConfigError where there is none.
    """
    if benchmark != "mme":
        name = f"{benchmark} {OTHERWISE[benchmark]}" if benchmark in OTHERWISE else benchmark
        return {name: _compare(first, second, kind=KINDS.get(benchmark, ""))}
    found = {}
    for part, categories in PARTS.items():
        own, others = ([item for item in of if item["labels"]["category"] in categories] for of in (first, second))
        if own and others:
            found[f"{benchmark} {part}"] = _compare(own, others, points=True)
    if not found:
        raise ConfigError("the two runs have no question in common")
    return found


def _compare(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], points: bool = False, kind: str = ""
) -> dict[str, Any]:
    others = {item["key"]: item["value"] for item in second}
    both = [item for item in first if item["key"] in others]
    if not both:
        raise ConfigError("the two runs have no question in common")
    values = [item["value"] for item in both], [others[item["key"]] for item in both]
    if points:
        if not all(item.get("same") for item in both):
            raise ConfigError("MME was scored by an earlier version; run it again with --stage benchmarks")
        of = [item["same"] for item in both], [item["labels"]["category"] for item in both]
        found: Mapping[str, float | None] = mme_compared(*(Answered(own, *of) for own in values))
    else:
        percent = ([100 * value for value in own] for own in values)
        kinds = [item["labels"].get(kind, "") for item in both] if kind else []
        found = compared(*percent, [json.dumps(item["picture"]) for item in both], kinds)
    return {"count": len(both), "alone": len(first) + len(second) - 2 * len(both), **found}
