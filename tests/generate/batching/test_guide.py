"""Answers that keep to grammars: whatever is chosen among what fits reads back; the engine chooses the likeliest."""

import dataclasses
import json
import math
import re

import jax
import numpy as np
import pytest
from conftest import DATA, born, compilations
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sphinx_jax import Engine, Request, Sphinx
from sphinx_jax.config import ConfigError, DecoderConfig, ModelConfig
from sphinx_jax.data.answer_grammar import LONGEST, TASKS, of_choices, of_regex, of_schema, of_task
from sphinx_jax.data.conversation import STOP
from sphinx_jax.data.tasks import Box, PaddedSquare, format_answer, parse_answer
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.generate.arguments import BadArgument
from sphinx_jax.generate.batching.guide import BadGrammar, Guide, Guides
from sphinx_jax.generate.batching.stops import Stops
from sphinx_jax.generate.located import places, question, weighed
from sphinx_jax.generate.request import Said
from sphinx_jax.recipe.recipe import PLAYGROUND

TOKENIZERS = {name: load_tokenizer(path) for name, path in {"letters": DATA, "numbers": PLAYGROUND}.items()}
GUIDES = {name: Guides(Stops(tokenizer, [STOP])) for name, tokenizer in TOKENIZERS.items()}


def walk(kind: str, grammar: str, choose, most: int = 500) -> str | None:
    """An answer of tokens that are chosen among those that fit; None where it grows too long."""
    guide, tokens = GUIDES[kind].guide(grammar), []
    tokens += guide.forced()
    while not guide.ended:
        allowed = np.flatnonzero(guide.allowed())
        assert len(allowed)
        token = int(choose(allowed))
        if token in TOKENIZERS[kind].eos_ids:
            break
        guide.take(token)
        tokens += [token, *guide.forced()]
        if len(tokens) > most:
            return None
    text = b"".join(TOKENIZERS[kind].pieces()[t] for t in tokens).decode()
    return text.split(STOP)[0].strip(" ")


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=8)
@given(seed=st.integers(0, 10**6))
def test_whatever_fits_is_what_the_task_would_write(kind, task, seed):
    rng = np.random.default_rng(seed)
    text = walk(kind, of_task(task), rng.choice)
    if text is None:
        return
    if task == "yes_no":
        assert text in ("yes", "no")
        return
    value = parse_answer(task, text)
    if task == "grounded_caption":
        assert value and all(format_answer(task, [one]) in text for one in value)
    else:
        assert format_answer(task, value) == text
    for corners in re.findall(",".join([r" ?([01]\.[0-9]{2})"] * 4), text):
        x1, y1, x2, y2 = map(float, corners)
        assert x1 <= x2 and y1 <= y2


def test_corners_come_in_order():
    """A model that wants the largest first gets as close as boxes allow."""
    pieces = TOKENIZERS["numbers"].pieces()
    wanted = iter([b"0.90", b"0.80", b"0.10", b"0.20"])

    def choose(allowed):
        if any(b"[" in pieces[t] for t in allowed):
            return next(t for t in allowed if b"[" in pieces[t])
        number = float(next(wanted))
        fitting = {float(pieces[t]): t for t in allowed if pieces[t][:1].isdigit() and len(pieces[t]) == 4}
        return fitting[min(fitting, key=lambda found: abs(found - number))]

    assert walk("numbers", of_task("rec"), choose) == "[0.90, 0.80, 0.90, 0.80]"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_other_grammars(kind):
    rng = np.random.default_rng(0)
    for _ in range(5):
        assert walk(kind, of_choices(["a cat", 'a "dog"', "a\\b"]), rng.choice) in ("a cat", 'a "dog"', "a\\b")
        text = walk(kind, of_regex(r"[0-9]{2}/[a-c]+x"), rng.choice)
        assert text is None or (text[2] == "/" and text.endswith("x"))
        schema = {"type": "object", "properties": {"a": {"enum": [1, 22]}, "b": {"type": "boolean"}}}
        schema |= {"required": ["a", "b"], "additionalProperties": False}
        assert json.loads(walk(kind, of_schema(schema), rng.choice)).keys() == {"a", "b"}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_what_begins_as_the_stop_is_not_the_end_yet(kind):
    rng = np.random.default_rng(0)
    rows = 'answer: ROW ("\\n" ROW)*\nROW: /[0-9][0-9]/'
    counts = {walk(kind, rows, rng.choice).count("\n") for _ in range(40)}
    assert len(counts) > 1
    assert {walk(kind, of_choices(["C", "C\nD"]), rng.choice) for _ in range(40)} == {"C", "C\nD"}
    assert walk(kind, of_regex(r"a\\/b\/"), rng.choice) == r"a\/b/"


@pytest.fixture(scope="module")
def model(mesh) -> Sphinx:
    tokenizer = TOKENIZERS["letters"]
    given = {"dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "vocab_size": tokenizer.vocab_size, "hidden_dim": 64}
    config = ModelConfig("text", DecoderConfig(**given, max_positions=300))
    leaves = {path: 8 * leaf if path.endswith(("output", "embedding")) else leaf for path, leaf in born(config).items()}
    return Sphinx(config, leaves, tokenizer, mesh)


def by_hand(model: Sphinx, prompt: str, grammar: str, most: int) -> tuple[list[int], list[float]]:
    """The likeliest token of those that fit, of the whole text looked at anew for each; and their probabilities."""
    ids, guide = TOKENIZERS["letters"].encode(prompt, bos=True), GUIDES["letters"].guide(grammar)
    said = guide.forced()
    chances = [0.0] * len(said)
    while len(said) < most and not guide.ended:
        logits = np.where(guide.allowed(), model.logits(np.array([ids + said]))[0, -1], -np.inf)
        token = int(logits.argmax())
        chances.append(float(jax.nn.log_softmax(logits)[token]))
        said.append(token)
        guide.take(token)
        if token in TOKENIZERS["letters"].eos_ids:
            break
        forced = guide.forced()
        said += forced
        chances += [0.0] * len(forced)
    return said[:most], chances[:most]


def test_the_likeliest_that_fits_is_chosen_whoever_else_is_answered(model):
    grammars = [of_task("rec"), of_task("pose"), of_choices(["red star", "red moon", "no"]), of_task("layout")]
    asked = [
        Request("one two three " * (1 + i), max_new_tokens=20 + 7 * i, temperature=0.0, grammar=grammars[i % 4])
        for i in range(9)
    ]
    free = [Request("red star", max_new_tokens=9, temperature=0.0) for _ in range(3)]
    engine = Engine(model, slots=4)
    found = list(engine.map([r for pair in zip(asked, [*free, *asked[:6]], strict=True) for r in pair]))
    (alone,) = Engine(model).map(free[:1])
    assert [said[0].tokens for said in found[1:6:2]] == [alone[0].tokens] * 3
    for request, (said,) in zip(asked, found[::2], strict=True):
        tokens, chances = by_hand(model, request.prompt, request.grammar, request.max_new_tokens)
        assert said.tokens == tokens
        np.testing.assert_allclose(said.logprobs, chances, atol=2e-4)


def test_answers_of_a_grammar_are_streamed_sampled_and_cancelled(model):
    engine = Engine(model, slots=2)
    asked = Request("a", task="rec", max_new_tokens=60, temperature=2.0, seed=3)
    texts = list(engine.submit(asked))
    assert format_answer("rec", parse_answer("rec", texts[-1])) == texts[-1]
    assert all(b.startswith(a.strip()) for a, b in zip(texts, texts[1:], strict=False)) and len(texts) > 2
    (again,) = engine.submit(asked).wait()
    assert again.text == texts[-1] and again.ended == "stop"
    several = engine.submit(Request("a", task="rec", max_new_tokens=60, temperature=3.0, top_p=1.0, n=3)).wait()
    assert len({said.text for said in several}) > 1
    left = engine.submit(Request("a", task="pose", max_new_tokens=250, temperature=0.0))
    next(iter(left))
    assert [said.ended for said in left.wait()] == ["cancelled"]
    assert engine.submit(Request("a", max_new_tokens=60, grammar=of_choices(["only"]))).wait()[0].text == "only"


@pytest.mark.slow
def test_nothing_is_compiled_after_warm_up(mesh, tiny):
    """With pictures too, one and several at a time, in a model that sees."""
    tiny = dataclasses.replace(tiny, decoder=dataclasses.replace(tiny.decoder, max_positions=200))
    seeing = Sphinx(tiny, born(tiny), TOKENIZERS["letters"], mesh)
    engine = Engine(seeing, slots=2, pictures=1)
    engine.warm_up(quiet=True, grammars=True)
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)) for _ in range(3)]
    counted = compilations()
    for n, task in enumerate(["rec", "layout", "yes_no"]):
        engine.submit(Request("what " * (1 + 9 * n), pictures[n], 30 + n, task=task, n=1 + n)).wait()
        engine.submit(Request("what " * (1 + 9 * n), pictures[0], 30 + n)).wait()
        list(engine.map(Request("what", shown, 9) for shown in [None, *pictures]))
        engine.submit(Request("", pictures[n], 9)).wait()
        engine.score([[1, 5, 6]], [1], [engine.pictures.picture(pictures[n])])
        engine.submit(Request("what", None, 9)).wait()
    assert not counted


@pytest.mark.parametrize(
    ("settings", "kind", "told"),
    [
        ({"task": "recc"}, BadArgument, "unknown task with a grammar 'recc'; did you mean 'rec'?"),
        ({"task": "rec", "grammar": "answer: box"}, BadArgument, "give task or grammar, not both"),
        ({"grammar": "answer: nowhere"}, BadGrammar, "the grammar cannot be used: .*nowhere"),
        ({"grammar": "gibberish"}, BadGrammar, "the grammar cannot be used"),
        ({"grammar": 3}, BadArgument, "grammar must be a string, not 3"),
    ],
)
def test_a_grammar_that_is_none_is_told_and_the_engine_lives_on(model, settings, kind, told):
    engine = Engine(model, slots=2)
    with pytest.raises(kind, match=told) as error:
        engine.submit(Request("a", max_new_tokens=60, **settings))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    assert engine.submit(Request("a", max_new_tokens=60, task="rec")).wait()


def test_confidence_is_of_the_tokens_that_were_chosen():
    tokenizer = TOKENIZERS["numbers"]
    text = "<p>red</p>[0.10, 0.20, 0.30, 0.40], <p>blue</p>[0.10,0.20,0.30,0.40;0.50,0.60,0.70,0.80]"
    tokens = tokenizer.encode("\n" + text)[len(tokenizer.encode("\n")) :]
    pieces = tokenizer.pieces()
    halves = iter([0.5] * 4 + [0.9] * 4 + [1 / 4, 1, 1 / 4, 1])
    chances = [math.log(next(halves)) if pieces[t][:1] == b"0" else 0.0 for t in tokens]
    found = [each.confidence for each in weighed(Said(text, tokens, chances, "stop"), pieces)]
    assert len(list(weighed(Said(text, tokens[:-1], chances[:-1], "length"), pieces))) == 3
    assert found == pytest.approx([0.5, 0.9, 1 / 4])  # a certain choice looks as one that was forced


def test_an_answer_knows_what_could_have_stood_in_the_place_of_each_choice(model):
    (said,) = model.generate(["where"], max_new_tokens=60, temperature=0.0, task="rec", logprobs=True)
    assert said.others and all(said.logprobs[i] == 0 for i in range(len(said.tokens)) if i not in said.others)
    for number, (tokens, chances) in said.others.items():
        assert tokens[0] == said.tokens[number] and chances[0] == pytest.approx(said.logprobs[number], abs=1e-5)
        assert sum(np.exp(chances)) < 1.001 and (np.diff(chances) <= 0).all()
    (found,) = weighed(said, TOKENIZERS["letters"].pieces())
    (box,), e = parse_answer("detection", said.text), found.expected
    apart = np.abs([e.x1 - box.x1, e.y1 - box.y1, e.x2 - box.x2, e.y2 - box.y2])
    assert 0 < apart.max() < 0.1  # the last digit of each


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_expected_box_is_the_mean_of_those_nearby_that_the_last_tokens_could_have_made(kind):
    tokenizer = TOKENIZERS[kind]
    pieces = tokenizer.pieces()
    tokens = tokenizer.encode("\n[0.15, 0.20, 0.35, 1.00]")[len(tokenizer.encode("\n")) :]
    ends = np.cumsum([len(pieces[t]) for t in tokens])
    chances, others = [0.0] * len(tokens), {}
    # of the first number, beside those nearby: one of another thing where a token is a number, else a blank
    after = next(i for i, end in enumerate(ends) if end >= len("[0.15"))
    spelled = pieces[tokens[after]].decode()
    other = "0.80" if kind == "numbers" else " "
    likely = {spelled: 0.5, spelled.replace("5", "4"): 0.3, spelled.replace("5", "7"): 0.1, other: 0.1}
    ids = {piece: i for i, piece in reversed(list(enumerate(pieces)))}
    others[after] = np.array([ids[p.encode()] for p in likely]), np.log(list(likely.values())).astype(np.float32)
    chances[after] = math.log(0.5)
    (found,) = weighed(Said("", tokens, chances, "stop", others), pieces)
    mean = (0.5 * 0.15 + 0.3 * 0.14 + 0.1 * 0.17) / 0.9
    e = found.expected
    assert (e.x1, e.y1, e.x2, e.y2) == pytest.approx((mean, 0.20, 0.35, 1.00))
    assert found.confidence == pytest.approx(0.5)


def test_what_could_not_have_ended_a_number_does_not_count():
    """Neither what stood before a token that was forced, nor what a phrase spells."""
    pieces = [b"<p>a;0.10,0.20,0.30,0.40;b</p>[", b"1", b".00", b"0.99", b",0.20,1.00,0.30]"]
    said = Said("", [0, 1, 2, 4], [0.0, -0.1, 0.0, 0.0], "stop", {1: (np.array([1, 3]), np.log([0.9, 0.1]))})
    (found,) = weighed(said, pieces)
    assert found.expected == Box(1.0, 0.2, 1.0, 0.3) and found.confidence == pytest.approx(math.exp(-0.1))


def test_places_are_those_of_the_picture():
    picture = Image.new("RGB", (200, 100))
    asked, _ = question("rec", picture, "pixels", phrase="red star")
    tokenizer = TOKENIZERS["numbers"]
    tokens = tokenizer.encode("[0.10, 0.30, 0.55, 0.95]")
    said = Said("[0.10, 0.30, 0.55, 0.95]", tokens, [0.0] * len(tokens), "stop")
    (box,) = places(asked, said, tokenizer.pieces())
    assert (box.x1, box.y1, box.x2, box.y2) == pytest.approx((20, 10, 110, 100)) and box.confidence == 1
    assert box.expected == box
    padded, _ = question("rec", picture, "padded", phrase="red star")
    assert places(padded, said, tokenizer.pieces()) == [Box(0.10, 0.30, 0.55, 0.95)]
    inside, _ = question("pose", picture, "pixels", box=PaddedSquare(200, 100).to_pixels(Box(0.25, 0.5, 0.5, 0.75)))
    assert "[0.25, 0.50, 0.50, 0.75]" in inside.text
    assert places(asked, Said("[0.1", tokens[:3], [0.0] * 3, "length"), tokenizer.pieces()) == []
    with pytest.raises(BadArgument, match="frame must be pixels .* or padded"):
        question("rec", picture, "inches", phrase="x")


WIDE = Image.new("RGB", (200, 100))
NO_TEXT = "phrase, which follows the image, must be a string, not "


@pytest.mark.parametrize(
    ("task", "image", "frame", "fields", "told"),
    [
        ("rec", WIDE, "pixels", {"phrase": " "}, "phrase, which follows the image, must hold some text, not ' '"),
        ("rec", WIDE, "pixels", {"phrase": None}, NO_TEXT + "None"),
        ("detection", "the red star", "pixels", {"phrase": 5}, NO_TEXT + "5"),
        ("pose", WIDE, "pixels", {"box": "left"}, "box must be a Box or four numbers, .*, not 'left'"),
        ("pose", WIDE, "pixels", {"box": (1, 2, 3)}, "box must be a Box or four numbers"),
        ("pose", WIDE, "pixels", {"box": (1, 2, 3, True)}, "box must be a Box or four numbers"),
        ("pose", WIDE, "pixels", {"box": (5, 1, 2, 3)}, "give x1 <= x2"),
        ("pose", WIDE, "pixels", {"box": (0, 0, 10, 900)}, "is not within the picture's 200 x 100 pixels"),
        ("pose", WIDE, "padded", {"box": Box(10, 0, 20, 50)}, "is not within the picture's square, 0 to 1"),
    ],
)
def test_what_no_place_can_be_asked_of_is_told_in_one_line(task, image, frame, fields, told):
    with pytest.raises(BadArgument, match=told) as refused:
        question(task, image, frame, **fields)
    assert "\n" not in str(refused.value)


def test_four_numbers_are_a_box_of_the_frame():
    for box in ((50, 0, 100, 50), np.array([50, 0, 100, 50]), Box(50, 0, 100, 50)):
        asked, _ = question("pose", WIDE, "pixels", box=box)
        assert "[0.25, 0.25, 0.50, 0.50]" in asked.text
    asked, _ = question("pose", WIDE, "padded", box=[0.25, 0.25, 0.5, 0.5])
    assert "[0.25, 0.25, 0.50, 0.50]" in asked.text


def test_places_are_looked_for_in_the_detail_that_is_asked_for(tiny, mesh, monkeypatch):
    seeing, details = Sphinx(tiny, {}, TOKENIZERS["letters"], mesh), []
    said = Said("", [], [], "stop")
    monkeypatch.setattr(Engine, "map", lambda self, requests: [details.append(r.detail) or [said] for r in requests])
    for ask in (seeing.ground, seeing.detect, seeing.read, seeing.layout, seeing.pose):
        given = {seeing.pose: [(0, 0, 9, 9)], seeing.ground: ["star"], seeing.detect: ["stars"]}.get(ask, [])
        assert ask(WIDE, *given, detail="low") == [] and details[-1] == "low"


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda: of_choices("yes"), "choices must be a list of texts, not 'yes'"),
        (lambda: of_choices(None), "choices must be a list of texts, not None"),
        (lambda: of_choices([1, 2]), r"choices\[0\] must be a text without blanks around it, not 1"),
        (lambda: of_choices(["a", " b "]), r"choices\[1\] must be a text without blanks around it, not ' b '"),
        (lambda: of_choices([]), "choices must be texts, at least one"),
        (lambda: of_regex(None), "pattern must be a regular expression as text, not None"),
        (lambda: of_schema(None), "schema must be a table of JSON Schema, or True for any JSON, not None"),
        (lambda: of_schema("{}"), "schema must be a table of JSON Schema"),
        (lambda: of_schema(False), "schema must be a table of JSON Schema"),
        (lambda: of_schema({"enum": {1}}), "schema cannot be written as JSON"),
    ],
)
def test_what_no_grammar_can_be_made_of_is_told(write, told):
    with pytest.raises(ConfigError, match=told):
        write()


def test_any_json_keeps_to_the_schema_true():
    guide = GUIDES["letters"].guide(of_schema(True))
    for token in TOKENIZERS["letters"].encode("\n[1,2]")[1:]:
        if TOKENIZERS["letters"].pieces()[token].strip():
            guide.take(token)
    assert guide.error is None


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("task", LONGEST)
def test_an_answer_of_so_many_characters_takes_no_more_tokens_than_is_asked_for(kind, task):
    """However short the tokens are that are chosen."""
    pieces, most = TOKENIZERS[kind].pieces(), GUIDES[kind].most_tokens(of_task(task), LONGEST[task])
    rng = np.random.default_rng(0)

    def short(allowed):
        by_length = sorted(allowed, key=lambda t: len(pieces[t]) or 99)
        return by_length[0] if rng.random() < 0.8 else rng.choice(allowed)

    for choose in (short, rng.choice) * 3:
        assert walk(kind, of_task(task), choose, most) is not None


def test_a_limit_that_may_cut_off_an_answer_of_one_form_is_refused(model):
    most = GUIDES["letters"].most_tokens(of_task("rec"), LONGEST["rec"])
    asked = {"task": "rec", "temperature": 9.0, "top_p": 1.0, "n": 3}
    with pytest.raises(BadArgument, match=f"may cut off an answer of task 'rec'; give {most} or more"):
        model.engine.submit(Request("a", max_new_tokens=most - 1, **asked))
    for said in model.engine.submit(dataclasses.replace(Request("a", max_new_tokens=most, **asked), seed=4)).wait():
        assert said.ended == "stop" and format_answer("rec", parse_answer("rec", said.text)) == said.text


@pytest.mark.parametrize(
    ("task", "limit", "some"),
    [("detection", 60, True), ("detection", 75, True), ("layout", 250, True), ("layout", 20, False)],
)
def test_a_list_that_its_limit_cuts_off_is_what_was_whole(model, task, limit, some):
    asked = Request("a", max_new_tokens=limit, task=task, temperature=9.0, top_p=1.0, n=6, seed=2)
    cut = [said for said in model.engine.submit(asked).wait() if said.ended == "length"]
    streamed = list(model.engine.submit(asked).so_far())[-1]
    shown = [said for said in streamed if said.ended == "length"]
    assert len(cut) == len(shown) > 0
    kept = False
    for said, whole in zip(cut, shown, strict=True):
        assert len(whole.tokens) == limit and len(said.tokens) == len(said.logprobs) <= limit
        assert whole.text.startswith(said.text.removesuffix("]"))
        if len(said.tokens) < limit:
            assert format_answer(task, parse_answer(task, said.text)) == said.text
            kept = True
    assert kept == some


def test_an_answer_that_is_cut_off_has_ended_once_it_is_whole(model, monkeypatch):
    """Another thread may look at it at any time."""
    whole, found = Guide.whole, []
    monkeypatch.setattr(Guide, "whole", lambda self, tokens: found.append(answer.done) or whole(self, tokens))
    for seed in range(6):
        asked = Request("a", max_new_tokens=60, task="detection", temperature=9.0, top_p=1.0, seed=seed)
        answer = model.engine.submit(asked)
        answer.wait()
    assert found and not any(found)


def test_an_answer_that_is_interrupted_as_it_is_cut_off_stays_so(model):
    asked = Request("a", max_new_tokens=60, task="detection", temperature=9.0, top_p=1.0, n=6, seed=2)
    answer = model.engine.submit(asked)
    cut = [(job, said) for job, said in zip(answer.jobs, answer.wait(), strict=True) if len(said.tokens) < 60]
    cut = [(job, said) for job, said in cut if said.ended == "length"]
    for job, said in cut:
        job.ended = ""  # what is written last was not yet
        job.settle()
        assert (job.tokens, job.ended) == (said.tokens, "length")
    assert cut


def test_a_pose_for_which_there_is_no_room_is_told(tiny, mesh):
    picture = Image.new("RGB", (40, 40), "red")
    for positions, told in ((90, "an answer of 17. tokens may be needed"), (20, "leave 0 of the model's")):
        room = tiny.image_positions + positions
        config = dataclasses.replace(tiny, decoder=dataclasses.replace(tiny.decoder, max_positions=room))
        with pytest.raises(BadArgument, match=told):
            Sphinx(config, {}, TOKENIZERS["letters"], mesh).pose(picture, (0, 0, 40, 40))  # before it is looked at


def test_an_answer_that_could_end_nowhere_is_left_as_it_is(model):
    schema = of_schema({"type": "array", "items": {"type": "integer"}, "minItems": 50})
    (said,) = model.engine.submit(Request("a", max_new_tokens=20, grammar=schema)).wait()
    assert said.ended == "length" and len(said.tokens) == 20 and said.text.startswith("[")


@pytest.mark.parametrize("task", ["layout", "text_spotting", "grounded_caption"])
def test_a_phrase_ends_though_a_model_would_go_on(task):
    """One that says `a` wherever it may, then closes its box."""
    pieces, kind = TOKENIZERS["letters"].pieces(), "letters"
    wanted, blank = (pieces.index(b"a"), pieces.index(b"]")), pieces.index(b" ")

    def choose(allowed):
        return next((t for t in wanted if t in allowed), next(t for t in allowed if t != blank))

    guide, said = GUIDES[kind].guide(of_task(task)), b""
    for _ in range(600):
        if b"]" in said:
            break
        forced = guide.forced()
        token = choose(np.flatnonzero(guide.allowed())) if not forced else None
        if token is not None:
            guide.take(token)
        said += b"".join(pieces[t] for t in (forced if token is None else [token]))
    assert parse_answer(task, said.decode()) and b"a" * 120 in said and len(said) < 500
