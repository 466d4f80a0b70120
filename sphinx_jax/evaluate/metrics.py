"""One metric for each task, between 0 and 1.

    score("rec", predictions, answers)    # mean over texts

Metrics compare texts: a prediction that does not read as an answer of its task scores 0 (for the list tasks:
it names nothing), an expected answer that does not read is an error.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

import numpy as np

from sphinx_jax.data.tasks import Box, Grounded, LayoutRegion, Pose, TaskError, TextRegion, parse_answer

_ARTICLES = frozenset({"a", "an", "the"})
# The number words that the official VQA evaluation maps to digits.
_NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}

# Words without content of their own: they would let any two English captions agree.
_FUNCTION_WORDS = _ARTICLES | frozenset(
    (
        "and",
        "are",
        "as",
        "at",
        "be",
        "by",
        "for",
        "from",
        "has",
        "have",
        "in",
        "into",
        "is",
        "it",
        "its",
        "of",
        "on",
    )
    + ("or", "that", "there", "this", "to", "was", "were", "which", "with")
)

# COCO's per-keypoint constants (cocoeval.Params.kpt_oks_sigmas), in the order of COCO_KEYPOINTS.
COCO_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035),
    *(0.079, 0.079, 0.072, 0.072, 0.062, 0.062),
    *(0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)


def normalise(text: str) -> str:
    """Lower case, number words as digits, without articles and without punctuation around words.

    After the official VQA evaluation; punctuation inside a word stays (`o'clock`, `12.5`), thousands lose
    their comma. What would become empty (an answer `The` or `?`) keeps its words.
    """
    words = re.sub(r"(?<=[0-9]),(?=[0-9])", "", text.lower()).split()
    bare = [word.strip(string.punctuation) for word in words]
    kept = [_NUMBER_WORDS.get(word, word) for word in bare if word and word not in _ARTICLES]
    return " ".join(kept or [word for word in bare if word] or words)


def exact_match(prediction: str, answer: str) -> float:
    """1.0 if both texts normalise to the same."""
    return float(normalise(prediction) == normalise(answer))


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes in one frame; 0.0 where the union has no area."""
    width = min(first.x2, second.x2) - max(first.x1, second.x1)
    height = min(first.y2, second.y2) - max(first.y1, second.y1)
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (first.area + second.area - shared)


def precision_at(prediction: Box | None, answer: Box, threshold: float = 0.5) -> float:
    """1.0 if the predicted box overlaps by at least `threshold` IoU (RefCOCO's measure: 0.5)."""
    return float(prediction is not None and iou(prediction, answer) >= threshold)


def _matched_f1(predictions: Sequence[Any], answers: Sequence[Any], fits: Callable[[Any, Any], bool]) -> float:
    """F1 of the largest one-to-one matching of pairs that fit; 1.0 if both are empty."""
    if not predictions and not answers:
        return 1.0
    if not predictions or not answers:
        return 0.0
    fitting = [[number for number, answer in enumerate(answers) if fits(p, answer)] for p in predictions]
    if all(len(numbers) <= 1 for numbers in fitting):  # nothing to choose, and building a graph takes longest
        matches = len({number for numbers in fitting for number in numbers})
    else:
        matches = _largest_matching(fitting, len(answers))
    return 2 * matches / (len(predictions) + len(answers))


def _largest_matching(fitting: Sequence[Sequence[int]], columns: int) -> int:
    """How many rows can each have a column of its own among the numbers that fit it."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    pairs = csr_array([[number in numbers for number in range(columns)] for numbers in fitting])
    return int((maximum_bipartite_matching(pairs) >= 0).sum())


def f1_boxes(predictions: Sequence[Box], answers: Sequence[Box], threshold: float = 0.5) -> float:
    """F1 of the largest one-to-one matching of boxes at `threshold` IoU; 1.0 if both are empty."""
    return _matched_f1(predictions, answers, lambda p, a: iou(p, a) >= threshold)


Named = tuple[str, Box]


def _named_grounded(items: Sequence[Grounded]) -> list[Named]:
    return [(normalise(item.phrase), box) for item in items for box in item.boxes]


def _named_text(items: Sequence[TextRegion]) -> list[Named]:
    # Digits and articles are content here: "The" and "0" are texts of their own.
    return [(" ".join(item.text.lower().split()), item.box) for item in items]


def _named_layout(items: Sequence[LayoutRegion]) -> list[Named]:
    return [(normalise(item.kind), item.box) for item in items]


def f1_named(predictions: Sequence[Named], answers: Sequence[Named], threshold: float = 0.5) -> float:
    """F1 over named boxes: the same name and IoU of at least `threshold`, one to one."""
    return _matched_f1(predictions, answers, lambda p, a: p[0] == a[0] and iou(p[1], a[1]) >= threshold)


def token_f1(prediction: str, answer: str) -> float:
    """F1 of the content words of two texts, counted with repetition; function words (`of`) are left out."""
    return _f1_words(_content_words(prediction), _content_words(answer))


def _content_words(text: str) -> Counter[str]:
    words = normalise(text).split()
    return Counter([word for word in words if word not in _FUNCTION_WORDS] or words)


def _f1_words(prediction: Counter[str], answer: Counter[str]) -> float:
    total = prediction.total() + answer.total()
    return 2 * sum(min(count, answer[word]) for word, count in prediction.items()) / total if total else 1.0


def oks(prediction: Pose, answer: Pose, area: float) -> float:
    """COCO's object keypoint similarity of two poses in one frame.

    area: of the person in the same units squared (COCO: of its segment; here of its box). Averaged over the
    keypoints of `answer` that are there; one that the prediction lacks counts 0. ValueError if `answer` has
    none or area is not positive.
    """
    labelled = [i for i, point in enumerate(answer.points) if point]
    if not labelled or not area > 0:
        raise TaskError(f"oks of {len(labelled)} keypoints in area {area}: give at least one and a positive area")
    total = 0.0
    for i in labelled:
        found, expected = prediction.points[i], answer.points[i]
        if found:
            distance = (found.x - expected.x) ** 2 + (found.y - expected.y) ** 2
            total += exp(-distance / (2 * area * (2 * COCO_SIGMAS[i]) ** 2))
    return total / len(labelled)


def pose_area(pose: Pose) -> float:
    """The area of the box around the keypoints there are, each side at least 0.01 (one step of the text)."""
    xs = [point.x for point in pose.points if point]
    ys = [point.y for point in pose.points if point]
    return max(max(xs) - min(xs), 0.01) * max(max(ys) - min(ys), 0.01) if xs else 0.0


def edit_distance(first: str, second: str) -> int:
    """Levenshtein's: insertions, deletions and substitutions of characters."""
    previous = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        current = [i]
        for j, b in enumerate(second, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (a != b)))
        previous = current
    return previous[-1]


def text_accuracy(prediction: str, answer: str) -> float:
    """1 − character error rate (edit distance over the length of the answer), not below 0; case counts."""
    prediction, answer = prediction.strip(), answer.strip()
    if not answer:
        return float(not prediction)
    return max(0.0, 1 - edit_distance(prediction, answer) / len(answer))


def cell_accuracy(prediction: Sequence[Sequence[str]], answer: Sequence[Sequence[str]]) -> float:
    """Correct cells over the cells of the larger of the two tables; 1.0 if both are empty.

    A row is named by its first cell; its other cells are right where they stand in the same place of the row
    of that name, equal as text or, if numbers, within 5 % (ChartQA's relaxed accuracy). The first cells
    themselves don't count.
    """
    expected, found = _by_name(answer), _by_name(prediction)
    right = sum(
        _same_cell(a, b) for name in expected.keys() & found for a, b in zip(found[name], expected[name], strict=False)
    )
    cells = max(sum(len(row) - 1 for row in answer), sum(len(row) - 1 for row in prediction))
    return right / cells if cells else 1.0


def _by_name(rows: Sequence[Sequence[str]]) -> dict[str, Sequence[str]]:
    return {normalise(row[0]): row[1:] for row in rows}


def _same_cell(prediction: str, answer: str) -> bool:
    if normalise(prediction) == normalise(answer):
        return True
    try:
        found, expected = float(prediction), float(answer)
    except ValueError:
        return False
    return abs(found - expected) <= 0.05 * abs(expected)


def count_error(prediction: str, answer: str) -> float:
    """Absolute error of a count, in digits or words up to ten; a prediction without a number counts as 0."""
    return abs(_count(prediction) - _count(answer))


def _count(text: str) -> float:
    number = re.search(r"[0-9]+(?:\.[0-9]+)?", normalise(text))
    return float(number[0]) if number else 0.0


@dataclass(frozen=True)
class Metric:
    """How one task is scored: texts are read once, then compared.

    name: what score cards print; read: text to what is compared, None if it does not read;
    compare: (prediction, answer), both as read, to a score in [0, 1].
    """

    name: str
    read: Callable[[str], Any]
    compare: Callable[[Any, Any], float]

    def fn(self, prediction: str, answer: str) -> float:
        """The score of one predicted text; TaskError if the expected answer does not read."""
        return self.between(self.read(prediction), self.expected(answer))

    def expected(self, answer: str) -> Any:
        value = self.read(answer)
        if value is None:
            raise TaskError(f"expected answer {answer!r} cannot be read for {self.name}: mend the data")
        return value

    def between(self, prediction: Any, answer: Any) -> float:
        """The score of a prediction and an answer, both as read."""
        return 0.0 if prediction is None else self.compare(prediction, answer)


def _reader(task: str, then: Callable[[Any], Any]) -> Callable[[str], Any]:
    return lambda text: then(parse_answer(task, text))


def _equal(prediction: Hashable, answer: Hashable) -> float:
    return float(prediction == answer)


def _pose_oks(prediction: Pose, answer: Pose) -> float:
    return oks(prediction, answer, pose_area(answer))


def _labelled_pose(text: str) -> Pose | None:
    pose = parse_answer("pose", text)
    return pose if pose and any(pose.points) else None


def _exact(task: str) -> Metric:
    return Metric("exact_match", _reader(task, normalise), _equal)


_TOKEN_F1 = Metric("token_f1", _content_words, _f1_words)

METRICS: dict[str, Metric] = {
    "vqa": _exact("vqa"),
    "multiple_choice": _exact("multiple_choice"),
    "short_caption": _TOKEN_F1,
    "detailed_caption": _TOKEN_F1,
    "grounded_caption": Metric("grounded_f1", _reader("grounded_caption", _named_grounded), f1_named),
    "rec": Metric("precision_at_0.5", _reader("rec", lambda box: box), precision_at),
    "reg": _TOKEN_F1,
    "detection": Metric("box_f1", _reader("detection", list), f1_boxes),
    "relation": Metric("precision_at_0.5", _reader("relation", lambda box: box), precision_at),
    "text_detection": Metric("box_f1", _reader("text_detection", list), f1_boxes),
    "text_spotting": Metric("spotting_f1", _reader("text_spotting", _named_text), f1_named),
    "layout": Metric("layout_f1", _reader("layout", _named_layout), f1_named),
    "pose": Metric("oks", _labelled_pose, _pose_oks),
    "classification": _exact("classification"),
    "chart": Metric("cell_accuracy", _reader("chart", list), cell_accuracy),
}
"""The metric of each task by its name; for pose, a person's area is that of the box around its keypoints."""

KIND_METRICS: dict[str, Callable[[str, str], float]] = {"count": count_error, "read": text_accuracy}
"""What tells more than the exact match for some kinds of VQA questions."""


def _metric(task: str) -> Metric:
    if task not in METRICS:
        raise TaskError(f"no metric for task {task!r}: give one of {', '.join(METRICS)}")
    return METRICS[task]


def _pairs(predictions: Sequence[str], answers: Sequence[str]) -> list[tuple[str, str]]:
    if len(predictions) != len(answers) or not answers:
        raise TaskError(
            f"{len(predictions)} predictions for {len(answers)} answers: give as many of each, at least one"
        )
    return list(zip(predictions, answers, strict=True))


def score(task: str, predictions: Sequence[str], answers: Sequence[str]) -> float:
    """The mean score of predicted texts, in [0, 1]."""
    metric = _metric(task)
    return float(np.mean([metric.fn(p, a) for p, a in _pairs(predictions, answers)]))
