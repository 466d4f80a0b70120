"""Constant baselines: for each kind of question the one answer that scores best on the training answers.

A model that has learned to look must beat them, so they are made strong: besides answers that occur, they
include boxes found by search and the mean pose. Nothing but training answers is seen.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from sphinx_jax.data.tasks import (
    Box,
    Grounded,
    LayoutRegion,
    Point,
    Pose,
    TaskError,
    TextRegion,
    format_answer,
    parse_answer,
)
from sphinx_jax.evaluate.metrics import METRICS, Metric

FREQUENT = 64
RANDOM = 64
SAMPLE = 500
# A first round on few answers leaves the candidates that are worth all of the sample.
FIRST_ROUND = 100
FINALISTS = 16
# Searched answers: the names that are tried, the boxes an answer may hold, the boxes that its searches see.
NAMES = 8
ITEMS = 6
BOXES = 2400

Named = tuple[str, Box]


def best_constant(task: str, kinds: Sequence[Hashable], answers: Sequence[str], seed: int = 0) -> dict[Hashable, str]:
    """The best constant answer text of each kind in `kinds`, the kind of each training answer in `answers`.

    Candidates: the 64 most frequent answers, 64 random ones, for tasks with boxes one composed by search, for
    pose the mean pose; scored on at most 500 different answers, drawn by `seed`. TaskError on an unknown
    task, on lists of different lengths and on an answer that cannot be read.
    """
    if task not in METRICS:
        raise TaskError(f"no metric for task {task!r}: give one of {', '.join(METRICS)}")
    if len(kinds) != len(answers) or not answers:
        raise TaskError(f"{len(kinds)} kinds for {len(answers)} training answers: give as many of each, at least one")
    by_kind: dict[Hashable, list[str]] = {}
    for kind, answer in zip(kinds, answers, strict=True):
        by_kind.setdefault(kind, []).append(answer)
    return {kind: _best(task, texts, np.random.default_rng(seed)) for kind, texts in by_kind.items()}


def _best(task: str, answers: list[str], rng: np.random.Generator) -> str:
    metric = METRICS[task]
    counts = Counter(answers)
    if len(counts) > SAMPLE:
        counts = Counter(answers[i] for i in rng.choice(len(answers), SAMPLE, replace=False))
    expected = [(metric.expected(answer), count) for answer, count in counts.items()]
    order = rng.permutation(len(expected))
    expected = [expected[i] for i in order]

    candidates = _occurring(answers, rng)
    if task in _LOCATED:
        candidates.append(_compose(task, metric, answers, expected[:FIRST_ROUND], rng))
    if task == "pose":
        candidates.append(format_answer("pose", mean_pose([parse_answer("pose", answer) for answer in answers])))
    finalists = _ranked(metric, candidates, expected[:FIRST_ROUND])[:FINALISTS]
    return _ranked(metric, finalists, expected)[0]


def _occurring(answers: list[str], rng: np.random.Generator) -> list[str]:
    ranked = [text for text, _ in Counter(answers).most_common()]
    rest = ranked[FREQUENT:]
    drawn = rng.choice(len(rest), min(RANDOM, len(rest)), replace=False) if rest else []
    return ranked[:FREQUENT] + [rest[i] for i in drawn]


def _ranked(metric: Metric, candidates: list[str], expected: list[tuple[object, int]]) -> list[str]:
    """Candidates by their score, best first, earlier ones before equals."""
    return sorted(candidates, key=lambda text: -_total(metric, text, expected))


def _total(metric: Metric, candidate: str, expected: list[tuple[object, int]]) -> float:
    prediction = metric.read(candidate)
    return sum(count * metric.between(prediction, answer) for answer, count in expected)


def mean_pose(poses: Sequence[Pose]) -> Pose:
    """Each keypoint at its mean over the poses that have it, if at least half of them do."""
    points: list[Point | None] = []
    for column in zip(*(pose.points for pose in poses), strict=True):
        there = [point for point in column if point]
        mean = Point(float(np.mean([p.x for p in there])), float(np.mean([p.y for p in there]))) if there else None
        points.append(mean if 2 * len(there) >= len(column) else None)
    return Pose(tuple(points))


@dataclass(frozen=True)
class _Located:
    """A task whose answers are boxes, `most` at most, each with a name ("" where the task has none)."""

    read: Callable[[str], list[Named]]
    write: Callable[[list[Named]], str]
    most: int = ITEMS


def _read_boxes(task: str) -> Callable[[str], list[Named]]:
    return lambda text: [("", box) for box in parse_answer(task, text)]


def _read_one(task: str) -> Callable[[str], list[Named]]:
    return lambda text: [("", parse_answer(task, text))]


def _write_boxes(task: str) -> Callable[[list[Named]], str]:
    return lambda items: format_answer(task, [box for _, box in items])


def _write_one(task: str) -> Callable[[list[Named]], str]:
    return lambda items: format_answer(task, items[0][1])


_LOCATED = {
    "rec": _Located(_read_one("rec"), _write_one("rec"), most=1),
    "relation": _Located(_read_one("relation"), _write_one("relation"), most=1),
    "detection": _Located(_read_boxes("detection"), _write_boxes("detection")),
    "text_detection": _Located(_read_boxes("text_detection"), _write_boxes("text_detection")),
    "grounded_caption": _Located(
        lambda text: [(item.phrase, box) for item in parse_answer("grounded_caption", text) for box in item.boxes],
        lambda items: format_answer("grounded_caption", [Grounded(name, (box,)) for name, box in items]),
    ),
    "text_spotting": _Located(
        lambda text: [(region.text, region.box) for region in parse_answer("text_spotting", text)],
        lambda items: format_answer("text_spotting", [TextRegion(name, box) for name, box in items]),
    ),
    "layout": _Located(
        lambda text: [(region.kind, region.box) for region in parse_answer("layout", text)],
        lambda items: format_answer("layout", [LayoutRegion(name, box) for name, box in items]),
    ),
}


def _compose(
    task: str,
    metric: Metric,
    answers: list[str],
    expected: list[tuple[object, int]],
    rng: np.random.Generator,
) -> str:
    """An answer put together greedily: again and again the name and box that raise the score most."""
    located = _LOCATED[task]
    items = [item for answer in answers for item in located.read(answer)]
    if not items:
        return answers[0]
    left = {}
    for name, _ in Counter(name for name, _ in items).most_common(NAMES):
        boxes = np.array([(box.x1, box.y1, box.x2, box.y2) for other, box in items if other == name])
        left[name] = rng.permutation(boxes)[: BOXES // located.most]
    best_boxes = {name: best_box(boxes) for name, boxes in left.items()}

    chosen: list[Named] = []
    reached = -1.0
    while best_boxes and len(chosen) < located.most:
        totals = {
            name: _total(metric, located.write([*chosen, (name, box)]), expected) for name, box in best_boxes.items()
        }
        name = max(totals, key=totals.__getitem__)
        if totals[name] <= reached:
            break
        reached = totals[name]
        box = best_boxes.pop(name)
        chosen.append((name, box))
        left[name] = left[name][_ious(np.array([(box.x1, box.y1, box.x2, box.y2)]), left[name])[0] < 0.5]
        if len(left[name]):
            best_boxes[name] = best_box(left[name])
    return located.write(chosen)


def best_box(boxes: np.ndarray) -> Box:
    """The box with at least 0.5 IoU with as many relative `boxes` (N, 4) as can be; ties go by mean IoU.

    A grid of step 0.1, then two finer ones around its best.
    """
    edges = np.linspace(0, 1, 11)
    low, high = np.triu_indices(len(edges), 1)
    spans = np.stack([edges[low], edges[high]], axis=1)
    x, y = np.meshgrid(np.arange(len(spans)), np.arange(len(spans)), indexing="ij")
    grid = np.concatenate([spans[x.ravel()], spans[y.ravel()]], axis=1)[:, [0, 2, 1, 3]]
    best = grid[np.argmax(_worth(grid, boxes))]
    for step in (0.05, 0.02):
        offsets = np.stack(np.meshgrid(*[np.arange(-2, 3) * step] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
        # The first row keeps the best so far, so that rounding to whole steps never loses it.
        near = np.clip(np.concatenate([best[None], best + offsets]), 0, 1).round(2)
        near = near[(near[:, 0] < near[:, 2]) & (near[:, 1] < near[:, 3])]
        best = near[np.argmax(_worth(near, boxes))]
    return Box(*(float(value) for value in best))


def _worth(candidates: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    overlaps = _ious(candidates, boxes)
    return (overlaps >= 0.5).mean(axis=1) + 1e-3 * overlaps.mean(axis=1)


def _ious(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU of every pair of boxes, (M, 4) and (N, 4) to (M, N)."""
    first, second = first[:, None].astype(np.float32), second[None].astype(np.float32)
    low, high = np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(axis=-1) for boxes in (first, second)]
    union = areas[0] + areas[1] - shared
    return np.where(union > 0, shared / np.maximum(union, 1e-12), 0)
