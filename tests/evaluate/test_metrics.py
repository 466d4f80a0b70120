import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sphinx_jax.data.tasks import Box, Grounded, LayoutRegion, Point, Pose, TaskError, TextRegion, format_answer
from sphinx_jax.evaluate.baseline import best_box, best_constant, mean_pose
from sphinx_jax.evaluate.metrics import (
    METRICS,
    cell_accuracy,
    count_error,
    edit_distance,
    exact_match,
    f1_boxes,
    f1_named,
    iou,
    normalise,
    oks,
    pose_area,
    precision_at,
    score,
    text_accuracy,
    token_f1,
)

cell = st.integers(0, 12)


def to_box(v):
    return Box(min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3]))


grid_boxes = st.tuples(cell, cell, cell, cell).map(to_box)
SAMPLES = {
    "vqa": ["red", "two"],
    "multiple_choice": ["A", "C"],
    "short_caption": ["A red circle.", "Two cats."],
    "detailed_caption": ["A red circle on a photo.", "Two cats sit left of a dog."],
    "grounded_caption": ["A <p>cat</p>[0.10, 0.20, 0.30, 0.40].", "none"],
    "rec": ["[0.10, 0.20, 0.30, 0.40]", "[0.50, 0.50, 0.90, 0.80]"],
    "reg": ["red circle", "blue square"],
    "detection": ["[0.10, 0.20, 0.30, 0.40]", "none"],
    "relation": ["[0.10, 0.20, 0.30, 0.40]", "[0.50, 0.50, 0.90, 0.80]"],
    "text_detection": ["[0.10,0.20,0.30,0.40;0.50,0.50,0.90,0.80]", "none"],
    "text_spotting": ["<p>The</p>[0.10, 0.20, 0.30, 0.40]", "<p>0</p>[0.10, 0.20, 0.30, 0.40]"],
    "layout": ["<p>title</p>[0.10, 0.20, 0.30, 0.40]", "<p>table</p>[0.10, 0.20, 0.30, 0.40]"],
    "pose": [
        "[" + ";".join(["0.20,0.20"] * 8 + ["0.30,0.30"] * 9) + "]",
        "[" + ";".join(["0.80,0.80"] * 16 + ["-"]) + "]",
    ],
    "classification": ["This is a cat", "This is a dog"],
    "chart": ["cats | 3\ndogs | 5", "cats | 4\nbirds | 9"],
}


@pytest.mark.parametrize("task", METRICS)
def test_the_answer_itself_scores_one_and_another_less(task):
    first, second = SAMPLES[task]
    assert score(task, [first, second], [first, second]) == 1.0
    assert score(task, [second], [first]) < 0.5
    assert METRICS[task].fn("", first) == METRICS[task].fn("rubbish [", first) == 0.0


@pytest.mark.parametrize("task", METRICS)
@given(prediction=st.text(st.sampled_from("<p>/[];,.0123 |\nabA-")))
def test_scores_are_between_zero_and_one(task, prediction):
    assert all(0 <= METRICS[task].fn(prediction, answer) <= 1 for answer in SAMPLES[task])


@given(grid_boxes, grid_boxes)
def test_iou_counts_pixels(first, second):
    def pixels(box):
        xs = range(int(box.x1), int(box.x2))
        return set(itertools.product(xs, range(int(box.y1), int(box.y2))))

    shared, union = pixels(first) & pixels(second), pixels(first) | pixels(second)
    assert iou(first, second) == pytest.approx(len(shared) / len(union) if union else 0.0)


@given(st.lists(grid_boxes, max_size=4), st.lists(grid_boxes, max_size=4), st.sampled_from([0.1, 0.3, 0.5]))
def test_box_f1_is_of_the_best_matching(predictions, answers, threshold):
    short, long = sorted([predictions, answers], key=len)
    matches = max(
        sum(iou(a, b) >= threshold for a, b in zip(short, chosen, strict=True))
        for chosen in itertools.permutations(long, len(short))
    )
    total = len(predictions) + len(answers)
    assert f1_boxes(predictions, answers, threshold) == pytest.approx(2 * matches / total if total else 1.0)


@given(st.lists(st.tuples(st.sampled_from("ab"), grid_boxes), max_size=5), st.lists(grid_boxes, max_size=3))
def test_named_f1_needs_the_name_too(items, others):
    """Names split the matching: it is what box matching gives for each name alone."""
    predictions = [("a", box) for box in others]
    answers = [box for name, box in items if name == "a"]
    alone = f1_boxes(others, answers)
    expected = alone * (len(others) + len(answers)) / max(len(others) + len(items), 1) if items or others else 1.0
    assert f1_named(predictions, items) == pytest.approx(expected)


def test_precision_needs_half_of_the_union():
    assert precision_at(Box(0, 0, 1, 0.5), Box(0, 0, 1, 1)) == 1.0
    assert precision_at(Box(0, 0, 1, 0.49), Box(0, 0, 1, 1)) == 0.0
    assert precision_at(Box(0, 0, 1, 0.49), Box(0, 0, 1, 1), threshold=0.4) == 1.0
    assert precision_at(None, Box(0, 0, 1, 1)) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Red circle.", "red circle"),
        ("Two", "2"),
        ("1,000", "1000"),
        ("12.5", "12.5"),
        ("o'clock!", "o'clock"),
        ("A", "a"),
        ("the.", "the"),
        ("?", "?"),
        ("", ""),
    ],
)
def test_normalised_text(text, expected):
    assert normalise(text) == expected


@given(st.text())
def test_normalising_changes_case_and_blanks_only_once(text):
    assert exact_match(f"  {text} ", text) == 1.0


def test_token_f1_by_hand():
    assert token_f1("a red circle on the left", "red square") == pytest.approx(2 * 1 / (3 + 2))
    assert token_f1("red red", "red") == pytest.approx(2 / 3)
    assert token_f1("of the", "with it") == 0.0


def pose_of(points):
    return Pose(tuple(points.get(i) for i in range(17)))


def test_oks_by_hand():
    answer = pose_of({0: Point(0.5, 0.5), 11: Point(0.4, 0.6)})
    found = pose_of({0: Point(0.5, 0.51), 11: Point(0.4, 0.65), 3: Point(0, 0)})
    nose = math.exp(-(0.01**2) / (2 * 0.1 * (2 * 0.026) ** 2))
    hip = math.exp(-(0.05**2) / (2 * 0.1 * (2 * 0.107) ** 2))
    assert oks(found, answer, area=0.1) == pytest.approx((nose + hip) / 2)
    assert oks(pose_of({0: Point(0.5, 0.5)}), answer, area=0.1) == pytest.approx(0.5)
    assert pose_area(answer) == pytest.approx(0.1 * 0.1)
    for pose, area in ((pose_of({}), 0.1), (answer, 0.0), (answer, float("nan"))):
        with pytest.raises(TaskError):
            oks(found, pose, area)


@given(st.integers(1, 4))
def test_oks_does_not_depend_on_the_scale(scale):
    answer = pose_of({0: Point(5, 5), 5: Point(4, 6)})
    found = pose_of({0: Point(5, 5.1), 5: Point(4.2, 6)})

    def scaled(pose):
        return Pose(tuple(p and Point(p.x * scale, p.y * scale) for p in pose.points))

    assert oks(scaled(found), scaled(answer), 3 * scale**2) == pytest.approx(oks(found, answer, 3))


words = st.text("ab", max_size=5)


@given(words, words)
def test_edit_distance_is_the_shortest_path(first, second):
    def slow(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    assert edit_distance(first, second) == slow(first, second)


def test_text_accuracy_by_hand():
    assert text_accuracy("SALE", "SALT") == 0.75
    assert text_accuracy(" SALT ", "SALT") == 1.0
    assert text_accuracy("a much longer text", "SALT") == 0.0
    assert (text_accuracy("", ""), text_accuracy("x", "")) == (1.0, 0.0)


def test_cell_accuracy_by_hand():
    answer = [("cats", "100", "red"), ("dogs", "5", "blue")]
    assert cell_accuracy([("Dogs", "five", "Blue"), ("cats", "104", "green")], answer) == 3 / 4
    assert cell_accuracy([("cats", "106")], answer) == 0.0
    assert cell_accuracy([*answer, ("birds", "1", "x")], answer) == 4 / 6
    assert cell_accuracy([("cats", "100", "red")] * 2, answer) == 2 / 4
    assert cell_accuracy([], answer) == 0.0


def test_count_error_by_hand():
    assert [count_error(*pair) for pair in (("3", "5"), ("two", "2"), ("many", "4"))] == [2, 0, 4]


def test_bad_calls_say_what_is_wrong():
    with pytest.raises(TaskError, match="poses"):
        score("poses", ["a"], ["a"])
    with pytest.raises(TaskError, match="1 predictions for 2 answers"):
        score("vqa", ["a"], ["a", "b"])
    with pytest.raises(TaskError, match="at least one"):
        score("vqa", [], [])
    with pytest.raises(TaskError, match="left of it"):
        score("rec", ["[0,0,1,1]"], ["left of it"])
    with pytest.raises(TaskError, match="1 kinds for 2"):
        best_constant("vqa", ["a"], ["a", "b"])


def random_answers(task, count, seed=0):
    rng = np.random.default_rng(seed)

    def box():
        corner, side = rng.normal(0.4, 0.1, 2).clip(0, 1), rng.uniform(0.1, 0.4, 2)
        return Box(*map(float, [*corner, *np.minimum(corner + side, 1)]))

    def pose():
        at = rng.normal(0.5, 0.05, (17, 2)).clip(0, 1)
        return Pose(tuple(Point(float(x), float(y)) if rng.random() < 0.9 else None for x, y in at))

    several = range(3)
    make = {
        "rec": box,
        "detection": lambda: [box() for _ in several],
        "layout": lambda: [LayoutRegion(str(rng.choice(["title", "text", "table"])), box()) for _ in several],
        "text_spotting": lambda: [TextRegion(str(rng.integers(10)), box()) for _ in several],
        "grounded_caption": lambda: [Grounded(str(rng.choice(["cat", "dog"])), (box(),)) for _ in several],
        "pose": pose,
    }[task]
    return [format_answer(task, make()) for _ in range(count)]


@pytest.mark.parametrize("task", ["rec", "detection", "layout", "text_spotting", "grounded_caption", "pose"])
def test_the_best_constant_beats_the_answers_that_occur(task):
    answers = random_answers(task, 400)
    constant = best_constant(task, ["all"] * len(answers), answers)["all"]
    reached = score(task, [constant] * len(answers), answers)
    occurring = [score(task, [answer] * len(answers), answers) for answer in answers[::40]]
    assert reached > np.mean(occurring) and reached >= 0.98 * max(occurring)


def test_each_kind_gets_its_most_frequent_answer():
    kinds = ["colour"] * 6 + ["count"] * 5
    answers = ["red", "Red.", "the red", "blue", "blue", "green", "1", "2", "two", "2", "3"]
    constants = best_constant("vqa", kinds, answers)
    assert normalise(constants["colour"]) == "red"
    assert constants["count"] in ("2", "two")


def test_the_choice_repeats_with_its_seed():
    answers = random_answers("layout", 100)
    first, again = (best_constant("layout", ["x"] * 100, answers, seed=3) for _ in range(2))
    assert first == again


def test_answers_without_a_box_are_a_constant_too():
    assert best_constant("detection", ["x"] * 3, ["none"] * 3) == {"x": "none"}


def test_the_best_box_covers_the_crowd():
    crowd = np.tile([0.2, 0.3, 0.6, 0.7], (20, 1)) + np.random.default_rng(0).normal(0, 0.01, (20, 4))
    boxes = np.concatenate([crowd, [[0.0, 0.0, 0.1, 0.1]] * 15])
    found = best_box(boxes)
    assert sum(iou(found, Box(*row)) >= 0.5 for row in boxes) == 20
    assert np.mean([iou(found, Box(*row)) for row in crowd]) > 0.9


def test_the_mean_pose_has_the_keypoints_of_half_the_poses():
    poses = [pose_of({0: Point(0.2, 0.4), 1: Point(0, 0)}), pose_of({0: Point(0.4, 0.4)}), pose_of({})]
    mean = mean_pose(poses)
    assert (mean.points[0].x, mean.points[0].y) == pytest.approx((0.3, 0.4))
    assert mean.points[1:] == (None,) * 16


def test_more_answers_than_are_sampled_are_no_more_work(monkeypatch):
    def compared(count: int) -> int:
        answers, calls = random_answers("layout", count), []
        metric = METRICS["layout"]
        counting = dataclasses.replace(metric, compare=lambda *pair: calls.append(1) or metric.compare(*pair))
        with monkeypatch.context() as patch:
            patch.setitem(METRICS, "layout", counting)
            best_constant("layout", ["x"] * len(answers), answers)
        return len(calls)

    assert 100 < compared(4000) < 1.3 * compared(1000)
