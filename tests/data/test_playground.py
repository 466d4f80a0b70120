import collections
import hashlib
import io
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sphinx_jax.data.playground import make_picture, photos, workers
from sphinx_jax.data.playground.photos import MATERIAL, SPLITS
from sphinx_jax.data.playground.pictures import SCENES
from sphinx_jax.data.playground.questions import ask_all
from sphinx_jax.data.playground.scene import PLACES, overlap
from sphinx_jax.data.playground.things import COLOURS, NAMES, shape_mask
from sphinx_jax.data.tasks import DOMAINS, Box, PaddedSquare, format_answer, parse_answer, parse_boxes
from sphinx_jax.evaluate.metrics import METRICS

COUNT = 240


@pytest.fixture(scope="module")
def world():
    """Pictures by (domain, split)."""
    return {(d, s): [make_picture(0, s, d, i) for i in range(COUNT)] for d in DOMAINS for s in ("train", "test")}


def examples_of(world):
    return [example for examples in world.values() for example in examples]


def turns_of(world, task):
    return [(e, t) for e in examples_of(world) for t in e.turns if t.task == task]


def pixels(example):
    return np.asarray(Image.open(io.BytesIO(example.image)).convert("RGB"))


# --- splits


def test_splits_share_no_material():
    for piece in ("backgrounds", "textures", "sheets"):
        used = [name for split in SPLITS for name in getattr(MATERIAL[split], piece)]
        assert len(used) == len(set(used))
    everywhere = [n for s in SPLITS for n in (*MATERIAL[s].backgrounds, *MATERIAL[s].textures, *MATERIAL[s].sheets)]
    assert len(everywhere) == len(set(everywhere))
    assert not {"motorcycle_left.png", "motorcycle_right.png"} <= set(everywhere)


def test_splits_share_no_photograph_by_its_pixels():
    """Not by name: small equalised copies of photographs of different splits are far from each other."""
    prints = {}
    for split in SPLITS:
        for name in (*MATERIAL[split].backgrounds, *MATERIAL[split].textures):
            small = Image.fromarray(photos.photograph(name)).convert("L").resize((16, 16), Image.Resampling.BOX)
            values = np.asarray(small, float).ravel()
            prints[split, name] = (values - values.mean()) / values.std()
    for (a, first), x in prints.items():
        for (b, second), y in prints.items():
            if a != b:
                assert abs(np.dot(x, y)) / len(x) < 0.9, (first, second)


def test_splits_share_no_source_in_their_pictures(world):
    used = {s: {n for d in DOMAINS for e in world[d, s] for n in e.sources} for s in ("train", "test")}
    assert used["train"] and used["test"] and not used["train"] & used["test"]


def test_splits_share_no_digit_by_its_ink():
    digits, _ = photos._digits()
    seen = [{digits[i].tobytes() for i in range(*photos.DIGIT_BLOCKS[split])} for split in SPLITS]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert sorted(v for block in photos.DIGIT_BLOCKS.values() for v in block)[-1] == len(digits) == 1797


def test_no_two_pictures_are_equal(world):
    hashes = [hashlib.sha256(pixels(e).tobytes()).hexdigest() for e in examples_of(world)]
    assert len(hashes) == len(set(hashes))


# --- determinism


@given(st.integers(0, 2**31), st.sampled_from(SPLITS), st.sampled_from(DOMAINS), st.integers(0, 10**6))
@settings(max_examples=25)
def test_a_picture_depends_on_its_arguments_alone(seed, split, domain, index):
    first = make_picture(seed, split, domain, index)
    make_picture(seed, split, domain, index + 1)
    assert make_picture(seed, split, domain, index) == first
    assert make_picture(seed + 1, split, domain, index).image != first.image


def test_workers_make_the_same_pictures_in_order(monkeypatch):
    monkeypatch.setattr(workers, "FEWEST", 1)
    made = list(workers.pictures(3, "validation", "synthetic", 9, workers=2))
    assert made == [make_picture(3, "validation", "synthetic", i) for i in range(9)]


def test_pictures_come_without_workers_that_start(monkeypatch):
    monkeypatch.setattr(workers, "FEWEST", 1)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    made = list(workers.pictures(0, "test", "synthetic", 3, workers=2))
    assert [e.id for e in made] == [make_picture(0, "test", "synthetic", i).id for i in range(3)]


def test_pictures_go_on_when_the_workers_die(monkeypatch):
    monkeypatch.setattr(workers, "FEWEST", 1)
    monkeypatch.setattr(workers, "_COMMAND", workers._COMMAND + "[:0]")
    made = list(workers.pictures(0, "test", "synthetic", 3, workers=2))
    assert made == [make_picture(0, "test", "synthetic", i) for i in range(3)]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0, "dev", "real", 0), "'dev'"),
        ((0, "train", "photo", 0), "'photo'"),
        ((0, "train", "real", -1), "-1"),
    ],
)
def test_bad_arguments_are_named_in_one_line(arguments, named):
    with pytest.raises(ValueError, match=named) as error:
        make_picture(*arguments)
    assert "\n" not in str(error.value)


# --- pictures


def test_pictures_have_their_size_and_format(world):
    for example in examples_of(world):
        image = Image.open(io.BytesIO(example.image))
        width, height = image.size
        assert (width, height) == (example.labels["width"], example.labels["height"])
        assert min(image.size) >= 128 and max(image.size) <= 192 and 0.74 <= width / height <= 1.34
        assert image.format == ("JPEG" if example.domain == "real" else "PNG")


def test_things_are_large_few_and_hardly_overlap(world):
    counts, areas = [], []
    for example in examples_of(world):
        if example.scene != "things":
            continue
        boxes = [Box(*thing["box"]) for thing in example.labels["things"]]
        counts.append(len(boxes))
        short, long = sorted((example.labels["width"], example.labels["height"]))
        areas += [box.area * long / short for box in boxes]
        for i, box in enumerate(boxes):
            assert max(box.x2 - box.x1, box.y2 - box.y1) > 0.22
            for other in boxes[:i]:
                assert overlap(box, other) < 0.15
    assert 2.0 < np.mean(counts) < 2.6 and set(counts) == {1, 2, 3, 4}
    assert np.median(areas) > 0.07


def test_median_rec_box_covers_a_twentieth_of_the_picture(world):
    areas = []
    for example, turn in turns_of(world, "rec"):
        short, long = sorted((example.labels["width"], example.labels["height"]))
        areas.append(parse_answer("rec", turn.answer).area * long / short)
    assert np.median(areas) > 0.05


def test_boxes_lie_in_the_picture_and_not_on_its_padding(world):
    for example in examples_of(world):
        width, height = example.labels["width"], example.labels["height"]
        square = PaddedSquare(width, height)
        for thing in example.labels["things"]:
            box = square.to_pixels(Box(*thing["box"]))
            assert box.x1 > -0.1 and box.y1 > -0.1 and box.x2 < width + 0.1 and box.y2 < height + 0.1


def test_boxes_are_where_the_colour_is(world):
    """Found from the pixels of drawn pictures, with no label but the colour's name."""
    checked = 0
    for example in world["synthetic", "train"]:
        things = example.labels["things"]
        colours = [thing["colour"] for thing in things]
        if example.scene not in ("things", "single"):
            continue
        image = pixels(example).astype(int)
        square = PaddedSquare(image.shape[1], image.shape[0])
        for thing in things:
            if colours.count(thing["colour"]) > 1:
                continue
            near = (np.abs(image - COLOURS[thing["colour"]]).max(2) < 12).nonzero()
            found = Box(near[1].min(), near[0].min(), near[1].max() + 1, near[0].max() + 1)
            box = square.to_pixels(Box(*thing["box"]))
            edges = [abs(getattr(box, e) - getattr(found, e)) for e in ("x1", "y1", "x2", "y2")]
            # another thing may lie on a part of it
            assert max(edges) < (3 if len(things) == 1 else 16)
            checked += 1
    assert checked > 100


@given(st.sampled_from(NAMES[:9]), st.floats(20, 120), st.floats(-0.2, 0.2))
@settings(max_examples=40)
def test_a_shape_is_as_large_as_asked(name, side, angle):
    mask = shape_mask(name, side, angle)
    assert abs(max(mask.shape) - side) < 2.5 + 0.25 * side * (name == "moon")
    assert mask.max() == 255


def test_colours_stay_apart_in_real_pictures(world):
    """The mean colour inside a painted shape is nearest to the colour that it is called."""
    palette = np.array(list(COLOURS.values()), float)
    hits = []
    for example in world["real", "train"] + world["real", "test"]:
        things = example.labels["things"]
        if example.scene != "things" or len(things) != 1 or things[0]["name"] not in ("circle", "square", "heart"):
            continue
        image = pixels(example)
        box = PaddedSquare(image.shape[1], image.shape[0]).to_pixels(Box(*things[0]["box"]))
        x, y = (box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2
        reach = 0.2 * (box.x2 - box.x1)
        middle = image[round(y - reach) : round(y + reach), round(x - reach) : round(x + reach)].mean((0, 1))
        nearest = list(COLOURS)[int(np.argmin(np.abs(palette - middle).sum(1)))]
        hits.append(nearest == things[0]["colour"])
    assert len(hits) > 8 and np.mean(hits) > 0.95


# --- questions and answers


def test_every_task_and_kind_occurs_in_both_domains(world):
    kinds = {"what", "colour", "count", "where", "yes_no", "read"}
    for domain in DOMAINS:
        turns = [t for split in ("train", "test") for e in world[domain, split] for t in e.turns]
        assert {t.task for t in turns} == set(METRICS)
        assert {t.kind for t in turns if t.task == "vqa"} == kinds
        assert {e.scene for e in world[domain, "train"]} == {kind.name for kind in SCENES}


def test_a_test_split_asks_enough(world):
    for domain in DOMAINS:
        turns = [t for e in world[domain, "test"] for t in e.turns]
        assert len(turns) >= 500 and sum(t.task == "vqa" for t in turns) >= 300


def test_turns_are_some_and_different(world):
    for example in examples_of(world):
        asked = [turn.question for turn in example.turns]
        assert 6 <= len(asked) <= 12 and len(asked) == len(set(asked))


def test_every_answer_reads_back_as_it_was_written(world):
    for example in examples_of(world):
        for turn in example.turns:
            value = parse_answer(turn.task, turn.answer)
            assert value not in (None, "", [])
            if turn.task not in ("grounded_caption",):
                assert format_answer(turn.task, value) == turn.answer
            assert turn.answer == turn.answer.strip() and "###" not in turn.question + turn.answer


def named(example):
    return {(t["colour"], t["name"]): t["box"] for t in example.labels["things"]}


def pointed_at(example, phrase):
    """The things of a picture that a phrase fits, read from the phrase alone."""
    look, _, place = re.fullmatch(r"(.+?)( (?:at|in|on) the (.+))?", phrase).groups()
    fitting = []
    for thing in example.labels["things"]:
        whole = f"{thing['colour']} {thing['name']}".strip()
        if look in (whole, thing["name"], f"{thing['colour']} thing", "thing"):
            fitting.append(thing)
    if place is None:
        return fitting
    x = {id(t): (t["box"][0] + t["box"][2]) / 2 for t in fitting}
    y = {id(t): (t["box"][1] + t["box"][3]) / 2 for t in fitting}
    if place in ("left", "right"):
        end = min if place == "left" else max
        return [end(fitting, key=lambda t: x[id(t)])]
    sides = {"left": lambda t: x[id(t)] < 0.5, "right": lambda t: x[id(t)] > 0.5}
    sides |= {"top": lambda t: y[id(t)] < 0.5, "bottom": lambda t: y[id(t)] > 0.5}
    sides |= {"centre": lambda t: abs(x[id(t)] - 0.5) < 0.1 and abs(y[id(t)] - 0.5) < 0.1}
    return [t for t in fitting if all(sides[word](t) for word in place.split())]


def test_rec_and_reg_name_what_is_in_the_box(world):
    asked = collections.Counter()
    for example, turn in turns_of(world, "rec"):
        phrase = turn.question.split(": ")[1].removesuffix(".")
        answer = parse_answer("rec", turn.answer)
        fitting = pointed_at(example, phrase)
        right = [t for t in fitting if np.allclose([answer.x1, answer.y1, answer.x2, answer.y2], t["box"], atol=0.0051)]
        assert right, (phrase, example.id)
        placed = re.search(" (at|in|on) the ", phrase)
        # a thing near the middle line lies on one side of it, but nobody would say that it is at that corner
        assert placed or len(fitting) == 1, (phrase, example.id)
        asked["by place" if placed else "by look"] += 1
    assert asked["by place"] > 100 and asked["by look"] > 200
    for example, turn in turns_of(world, "reg"):
        (box,) = parse_boxes(turn.question)
        boxes = [t["box"] for t in example.labels["things"] if f"{t['colour']} {t['name']}".strip() == turn.answer]
        assert any(np.allclose([box.x1, box.y1, box.x2, box.y2], b, atol=0.0051) for b in boxes)


def test_counts_and_colours_are_true(world):
    for example, turn in turns_of(world, "vqa"):
        things = example.labels["things"]
        question = turn.question.split("\n")[0]
        if question == "How many things are there?":
            assert int(turn.answer) == len(things)
        if turn.kind == "count" and " things are" in question and question.split()[2] in COLOURS:
            assert int(turn.answer) == sum(t["colour"] == question.split()[2] for t in things)
        if question.startswith("What colour is the ") and " thing " not in question and example.scene == "things":
            name = question.removeprefix("What colour is the ").removesuffix("?")
            assert [t["colour"] for t in things if t["name"] == name] == [turn.answer]


def test_presence_questions_are_true_and_false_ones_are_near(world):
    near = []
    for example, turn in turns_of(world, "vqa"):
        question = turn.question.split("\n")[0]
        if turn.kind != "yes_no" or not question.startswith("Is there a") or example.scene != "things":
            continue
        colour, name = question.removesuffix("?").split(maxsplit=3)[3].split(maxsplit=1)
        assert ((colour, name) in named(example)) == (turn.answer == "yes")
        if turn.answer == "no":
            near.append(any(colour == c or name == n for c, n in named(example)))
    assert len(near) > 30 and all(near)


def test_letters_point_to_the_right_choice(world):
    """The chosen text is what the same question gets as vqa: checked against the labels."""
    letters = collections.Counter()
    for example, turn in turns_of(world, "multiple_choice"):
        lines = turn.question.split("\n")
        choices = dict(line.split(". ", 1) for line in lines if line[1:3] == ". ")
        assert len(set(choices.values())) == 4
        value = choices[turn.answer]
        letters[turn.answer] += 1
        things = example.labels["things"]
        if "What colour" in lines[0]:
            assert value in {t["colour"] for t in things}
        elif "What is" in lines[0]:
            assert value in {t["name"] for t in things}
        else:
            assert value in PLACES
    assert min(letters.values()) > 0.17 * sum(letters.values())


def test_poses_lie_in_their_boxes(world):
    for _, turn in turns_of(world, "pose"):
        (box,) = parse_boxes(turn.question)
        points = parse_answer("pose", turn.answer).points
        assert all(points)
        assert all(box.x1 - 0.02 <= p.x <= box.x2 + 0.02 and box.y1 - 0.02 <= p.y <= box.y2 + 0.02 for p in points)
        # seen from the front: the person's left is on the viewer's right
        assert points[5].x > points[6].x and points[11].x > points[12].x


def test_bars_are_as_high_as_their_values(world):
    for example in examples_of(world):
        if example.scene == "chart":
            heights = [t["box"][3] - t["box"][1] for t in example.labels["things"]]
            values = [value for _, value in example.labels["bars"]]
            unit = sum(heights) / sum(values)
            assert np.allclose(heights, np.array(values) * unit, atol=0.35 * unit + 0.01)


# --- balance


def shares(answers):
    return {k: v / len(answers) for k, v in collections.Counter(answers).items()}


@pytest.mark.parametrize("domain", DOMAINS)
def test_answers_are_balanced(world, domain):
    turns = [t for split in ("train", "test") for e in world[domain, split] for t in e.turns if t.task == "vqa"]
    assert np.mean([t.kind == "yes_no" for t in turns]) < 0.3
    most = {"yes_no": 0.6, "count": 0.45, "where": 0.36, "colour": 0.22, "what": 0.15, "read": 0.2}
    for kind, limit in most.items():
        found = shares([t.answer for t in turns if t.kind == kind])
        assert max(found.values()) < limit, (kind, found)


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_question_alone_does_not_give_the_answer(world, domain):
    """The most frequent training answer of each wording, on the questions of the test split."""
    known = collections.defaultdict(collections.Counter)
    kinds = collections.defaultdict(collections.Counter)
    for example in world[domain, "train"]:
        for turn in example.turns:
            if turn.task == "vqa":
                known[turn.question][turn.answer] += 1
                kinds[turn.kind][turn.answer] += 1
    hits = []
    for example in world[domain, "test"]:
        for turn in example.turns:
            if turn.task == "vqa":
                guess = (known[turn.question] or kinds[turn.kind]).most_common(1)[0][0]
                hits.append(guess == turn.answer)
    assert np.mean(hits) < 0.36


def test_asking_again_with_another_seed_asks_something_else():
    kind = SCENES[0]
    scene = kind.draw(np.random.default_rng(0), "synthetic", "train")
    asked = [ask_all(scene, np.random.default_rng(s), kind.plan(np.random.default_rng(s))) for s in range(4)]
    assert len(set(asked)) > 1
