import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sphinx_jax.data.tasks import (
    ANSWERS,
    COCO_KEYPOINTS,
    COCO_SKELETON,
    INSTRUCTIONS,
    Box,
    GrammarError,
    Grounded,
    LayoutRegion,
    PaddedSquare,
    Point,
    Pose,
    TaskError,
    TextRegion,
    format_answer,
    format_boxes,
    format_point,
    format_pose,
    format_table,
    ground,
    instruct,
    parse_answer,
    parse_boxes,
    parse_grounded,
    parse_layout,
    parse_points,
    parse_poses,
    parse_table,
    parse_text_regions,
)
from sphinx_jax.evaluate.metrics import METRICS

LIST_PARSERS = (
    parse_boxes,
    parse_points,
    parse_grounded,
    parse_text_regions,
    parse_layout,
    parse_poses,
    parse_table,
)

unit = st.floats(0, 1)
boxes = st.tuples(unit, unit, unit, unit).map(
    lambda v: Box(min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3]))
)
points = st.builds(Point, unit, unit)
poses = st.lists(st.none() | points, min_size=17, max_size=17).map(lambda p: Pose(tuple(p)))
# Brackets, semicolons and numbers are in, for signs in pictures carry them.
phrases = (
    st.text(st.sampled_from("abcXYZ09 .,;:|[]()#<>/p'-éß漢"), min_size=1, max_size=20)
    .map(lambda text: " ".join(text.split()))
    .filter(lambda text: text and not re.search("</?p>|###", text))
)
grounded = st.builds(Grounded, phrases, st.lists(boxes, min_size=1, max_size=3).map(tuple))
cells = (
    st.text(st.sampled_from("abc 09.%-"), min_size=1, max_size=8).map(str.strip).filter(re.compile("[a-c0-9]").search)
)
VALUES = {
    "vqa": phrases,
    "multiple_choice": st.sampled_from("ABCDE"),
    "short_caption": phrases,
    "detailed_caption": phrases,
    "grounded_caption": st.lists(grounded, max_size=4),
    "rec": boxes,
    "reg": phrases,
    "detection": st.lists(boxes, max_size=4),
    "relation": boxes,
    "text_detection": st.lists(boxes, max_size=4),
    "text_spotting": st.lists(st.builds(TextRegion, phrases, boxes), max_size=4),
    "layout": st.lists(st.builds(LayoutRegion, phrases, boxes), max_size=4),
    "pose": poses,
    "classification": st.text("abc xyz", min_size=1, max_size=10).map(str.strip).filter(bool),
    "chart": st.lists(st.lists(cells, min_size=2, max_size=3).map(tuple), max_size=4),
}
LOCATED = (
    "grounded_caption",
    "rec",
    "detection",
    "relation",
    "text_detection",
    "text_spotting",
    "layout",
    "pose",
)


def rounded(value):
    """The value as its text can hold it: every coordinate to two decimals."""
    match value:
        case Box():
            return Box(round(value.x1, 2), round(value.y1, 2), round(value.x2, 2), round(value.y2, 2))
        case Point():
            return Point(round(value.x, 2), round(value.y, 2))
        case Pose():
            return Pose(tuple(point and rounded(point) for point in value.points))
        case Grounded():
            return Grounded(value.phrase, tuple(rounded(box) for box in value.boxes))
        case TextRegion():
            return TextRegion(value.text, rounded(value.box))
        case LayoutRegion():
            return LayoutRegion(value.kind, rounded(value.box))
        case list():
            return [rounded(item) for item in value]
    return value


def test_every_task_has_an_instruction_answers_and_a_metric():
    assert set(ANSWERS) == set(METRICS) == set(VALUES)
    assert set(ANSWERS) <= set(INSTRUCTIONS)


@pytest.mark.parametrize("task", VALUES)
@given(data=st.data())
def test_an_answer_reads_back_as_it_was_written(task, data):
    value = data.draw(VALUES[task])
    text = format_answer(task, value)
    assert parse_answer(task, text) == rounded(value)
    assert "\n###" not in text


@pytest.mark.parametrize("task", LOCATED)
@given(data=st.data())
def test_stray_text_around_an_answer_does_not_change_it(task, data):
    text = format_answer(task, data.draw(VALUES[task]))
    assert parse_answer(task, f"Sure, 2 of them: {text} [as far as I see].") == parse_answer(task, text)


def test_the_published_forms_to_the_letter():
    one, two = Box(0.12, 0.3, 0.45, 0.67), Box(0.5, 0.3, 0.9, 0.67)
    assert format_boxes([one]) == "[0.12, 0.30, 0.45, 0.67]"
    assert format_boxes([one, two]) == "[0.12,0.30,0.45,0.67;0.50,0.30,0.90,0.67]"
    assert format_point(Point(0.5, 0.24)) == "[0.50, 0.24]"
    assert ground("red  circle", [one]) == "<p>red circle</p>[0.12, 0.30, 0.45, 0.67]"
    assert format_answer("classification", "cat") == "This is a cat"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[0, 0, 1, 1]", [Box(0, 0, 1, 1)]),
        ("[.1,0.2 , 0.3,1.]", [Box(0.1, 0.2, 0.3, 1)]),
        ("[0.1 0.2 0.3 0.4]", [Box(0.1, 0.2, 0.3, 0.4)]),
        ("[[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.6, 0.6]]", [Box(0.1, 0.2, 0.3, 0.4), Box(0.5, 0.5, 0.6, 0.6)]),
        ("a <p>b [0, 0, 1, 1]</p>[0.1,0.2,0.3,0.4] c", [Box(0.1, 0.2, 0.3, 0.4)]),
        ("[0.3, 0.4, 0.1, 0.2]", [Box(0.1, 0.2, 0.3, 0.4)]),
        ("[-0.1, 0.2, 0.3, 1.2]", [Box(0, 0.2, 0.3, 1)]),
        ("[0, 0, 320, 200]", []),
        ("[0.1,0.2,0.3,0.4;0.5,0.5,0.6,0.6", [Box(0.1, 0.2, 0.3, 0.4)]),
        ("[0.1, 0.2, 0.3, 0.4", []),
        ("[0.1,0.2,0.3,x;0.5,0.5,0.6,0.6]", [Box(0.5, 0.5, 0.6, 0.6)]),
        ("[0.1, 0.2, 0.3]", []),
        ("[0.1, 0.2, nan, 0.4]", []),
        ("none", []),
        ("", []),
    ],
)
def test_boxes_of_what_models_write(text, expected):
    assert parse_boxes(text) == expected


@given(st.lists(boxes, min_size=2, max_size=5), st.data())
def test_a_cut_answer_gives_a_prefix_of_its_boxes(values, data):
    text = format_boxes(values)
    whole = parse_boxes(text)
    part = parse_boxes(text[: data.draw(st.integers(0, len(text) - 1))])
    assert len(part) < len(whole) and part == whole[: len(part)]


@given(poses, st.data())
def test_a_cut_pose_keeps_the_keypoints_reached(pose, data):
    text = format_pose(pose)
    whole = parse_poses(text)[0]
    for part in parse_poses(text[: data.draw(st.integers(0, len(text) - 1))]):
        reached = max(i for i, point in enumerate(part.points) if point) + 1
        assert part.points[:reached] == whole.points[:reached]


@given(st.lists(poses, min_size=2, max_size=3))
def test_several_persons_in_one_answer(values):
    text = ", ".join(f"<p>person</p>{format_pose(pose)}" for pose in values)
    assert parse_poses(text) == rounded(values)


def test_a_closed_pose_of_another_length_is_left_out():
    assert parse_poses("[" + ";".join(["0.5,0.5"] * 16) + "]") == []
    assert len(parse_poses("[" + ";".join(["0.5,0.5"] * 16 + ["-,-"]) + "]")) == 1


def test_several_phrases_of_one_caption():
    text = "A <p>cat</p>[0,0,.5,.5] and </p> two <p>dogs</p> [0,0,1,1;.5,.5,1,1], <p>no box</p>, <p>cut</p>[0.1, 0.2"
    assert parse_grounded(text) == [
        Grounded("cat", (Box(0, 0, 0.5, 0.5),)),
        Grounded("dogs", (Box(0, 0, 1, 1), Box(0.5, 0.5, 1, 1))),
    ]


@given(st.text(st.sampled_from("[]<>/p;,.- 0123456789|\n#e+a")) | st.text())
def test_parsers_never_raise(text):
    for parse in LIST_PARSERS:
        assert isinstance(parse(text), list)
    for task in ANSWERS:
        parse_answer(task, text)


@pytest.mark.parametrize(
    "piece", ["[", "<p>", "1", " ", "1,", "[1,", "<p>a</p>", "<p>a</p> ", "|", "0.1;", "[0.1,0.2;"]
)
def test_parsers_take_long_rubbish_in_linear_time(piece):
    start = time.perf_counter()
    for parse in LIST_PARSERS:
        for text in (piece * 20_000, "[" + piece * 20_000 + "x]"):
            assert isinstance(parse(text), list)
    # Linear parsers take about 0.2 s on an idle machine, quadratic ones minutes.
    assert time.perf_counter() - start < 60


def test_markdown_tables_read_too():
    assert parse_table("Here it is:\n| a | b |\n|---|:-:|\n| c | 3 |\n") == [("a", "b"), ("c", "3")]
    assert format_table([("cats", 3), ("dogs", 0.5)]) == "cats | 3\ndogs | 0.5"


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: format_boxes([Box(0, 0, 12, 20)]), "12"),
        (lambda: format_point(Point(float("nan"), 0)), "nan"),
        (lambda: Box(0.5, 0, 0.1, 1), "0.5"),
        (lambda: Box(float("nan"), 0, 0.1, 1), "nan"),
        (lambda: Pose((None,) * 16), "16"),
        (lambda: ground("cat", []), "cat"),
        (lambda: ground("a</p>", [Box(0, 0, 1, 1)]), "a</p>"),
        (lambda: ground(" ", [Box(0, 0, 1, 1)]), "phrase"),
        (lambda: format_table([("a|b", 3)]), "a|b"),
        (lambda: format_table([("alone",)]), "alone"),
        (lambda: format_table([("a", "b\n### Human: c")]), "Human"),
    ],
)
def test_values_that_would_not_read_back_are_refused_in_one_line(make, names):
    with pytest.raises(GrammarError) as error:
        make()
    assert names in str(error.value) and "\n" not in str(error.value)


sides = st.integers(1, 5000)


def corners(box: Box) -> list[float]:
    return [box.x1, box.y1, box.x2, box.y2]


@given(sides, sides, st.data())
def test_frames_go_there_and_back(width, height, data):
    square = PaddedSquare(width, height)
    x = st.floats(0, width)
    y = st.floats(0, height)
    (x1, x2), (y1, y2) = sorted([data.draw(x), data.draw(x)]), sorted([data.draw(y), data.draw(y)])
    box = Box(x1, y1, x2, y2)
    relative = square.from_pixels(box)
    assert all(0 <= value <= 1 for value in corners(relative))
    for clip in (False, True):
        assert corners(square.to_pixels(relative, clip)) == pytest.approx([x1, y1, x2, y2], abs=1e-6)
    region = square.from_pixels(Grounded("it", (box,)))
    assert region == Grounded("it", (relative,))
    pose = square.from_pixels(Pose((Point(x1, y1),) + (None,) * 16))
    assert pose.points == (Point(relative.x1, relative.y1),) + (None,) * 16


def test_the_frame_is_where_the_padding_puts_the_image():
    assert PaddedSquare(100, 51).from_pixels(Box(0, 0, 100, 51)) == Box(0, 0.24, 1, 0.75)
    assert PaddedSquare(50, 100).from_pixels(Point(0, 0)) == Point(0.25, 0)
    wide = PaddedSquare(100, 50)
    assert wide.to_pixels(Box(0, 0, 1, 1)) == Box(0, -25, 100, 75)
    assert wide.to_pixels(Box(0, 0, 1, 1), clip=True) == Box(0, 0, 100, 50)


def test_frames_refuse_what_has_no_place():
    with pytest.raises(TaskError, match="str"):
        PaddedSquare(10, 10).from_pixels("box")
    with pytest.raises(TaskError, match="0 x 10"):
        PaddedSquare(0, 10)


@pytest.mark.parametrize(
    ("task", "fields", "expected"),
    [
        ("vqa", {"question": "What?"}, "What?\nAnswer the question using a single word or phrase."),
        (
            "multiple_choice",
            {"question": "Which {one}?", "choices": ["red", "blue"], "context": "Paint."},
            "Context: Paint.\nQuestion: Which {one}?\nChoices:\nA. red\nB. blue\n"
            "Answer with the option's letter from the given choices directly.",
        ),
        (
            "multiple_choice",
            {"question": "Which?", "choices": ["red"]},
            "Question: Which?\nChoices:\nA. red\nAnswer with the option's letter from the given choices directly.",
        ),
        (
            "rec",
            {"phrase": "a {red} car."},
            "Please provide the bounding box coordinate of the region this sentence describes: a {red} car.",
        ),
        (
            "relation",
            {"phrase": "people on car"},
            "Please provide the bounding box coordinate of the region this sentence describes : people on car.",
        ),
        ("detection", {"phrase": "people"}, "Detect all people shown in the image."),
        (
            "pose",
            {"box": Box(0.1, 0.2, 0.3, 0.4)},
            "Detect the key points of the person in the region [0.10, 0.20, 0.30, 0.40].",
        ),
        (
            "marks",
            {"marks": [Point(0.56, 0.24), Point(1, 0)]},
            "Provide a detailed description for each of the marks I've offered: "
            "<Mark 1> [0.56, 0.24], <Mark 2> [1.00, 0.00].",
        ),
        ("chart", {}, "Convert this chart to a table."),
    ],
)
def test_instructions_to_the_letter(task, fields, expected):
    assert instruct(task, **fields) == expected


@pytest.mark.parametrize(
    ("task", "fields", "says"),
    [
        ("detect", {}, "did you mean 'detection'"),
        ("rec", {}, "phrase"),
        ("rec", {"phrase": "a", "boxx": 1}, "boxx"),
        ("chart", {"phrase": "a"}, "takes none"),
        ("multiple_choice", {"question": "a", "choices": "ab"}, "list"),
        ("multiple_choice", {"question": "a", "choices": []}, "list"),
    ],
)
def test_a_wrong_call_is_named_with_its_fix(task, fields, says):
    with pytest.raises(TaskError, match=says):
        instruct(task, **fields)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("B. a cat", "B"),
        (" b ", "B"),
        ("The answer is C.", "C"),
        ("A cat", "A cat"),
    ],
)
def test_the_letter_of_an_option(text, letter):
    assert parse_answer("multiple_choice", text) == letter


@pytest.mark.parametrize("text", ["This is a cat.", "this is a cat", "cat", "This is an cat"])
def test_the_class_of_a_sentence(text):
    assert parse_answer("classification", text) == "cat"


def test_the_skeleton_is_of_the_keypoints():
    assert len(COCO_KEYPOINTS) == len(set(COCO_KEYPOINTS)) == 17
    assert len({frozenset(edge) for edge in COCO_SKELETON}) == 19
    assert {i for edge in COCO_SKELETON for i in edge} == set(range(17))


def test_a_place_is_printed_as_one_reads_it():
    box = Box(1 / 3, 12.5, 4032.123456, 20, confidence=0.98765432, expected=Box(0.0, 0.25, 0.5, 1.0))
    expected = "Box(x1=0.0, y1=0.25, x2=0.5, y2=1.0)"
    assert repr(box) == f"Box(x1=0.3333, y1=12.5, x2=4032.1235, y2=20, confidence=0.9877, expected={expected})"
    assert eval(expected) == Box(0, 0.25, 0.5, 1)
    assert repr(Point(2 / 3, 1.0)) == "Point(x=0.6667, y=1.0)"
