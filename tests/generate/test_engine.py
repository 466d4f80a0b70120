"""The engine: what a request is answered does not depend on who else is answered, nor on when."""

import contextlib
import dataclasses
import gc
import threading
import time
import types
import weakref

import jax
import numpy as np
import pytest
from conftest import DATA, born, compilations, run_with_devices
from PIL import Image

from sphinx_jax import Engine, Request, Sphinx
from sphinx_jax.config import DecoderConfig, ModelConfig
from sphinx_jax.data.answer_grammar import of_choices
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.generate.arguments import BadArgument
from sphinx_jax.generate.batching import programs
from sphinx_jax.generate.batching.beginnings import grouping
from sphinx_jax.generate.batching.jobs import in_common
from sphinx_jax.generate.batching.sizes import Sizes
from sphinx_jax.generate.engine import Answer, QueueFull
from sphinx_jax.model.blueprint import apart, blueprint
from sphinx_jax.model.cache import Common
from sphinx_jax.model.views import normalise

TOKENIZER = load_tokenizer(DATA / "tokenizer.model")
WORDS = ["a", "red star", "what is the colour of the big thing on the left", "no", "one two three four five"]


def decoder(**changes) -> DecoderConfig:
    given = {"dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "vocab_size": TOKENIZER.vocab_size, "hidden_dim": 64}
    return DecoderConfig(**given | {"max_positions": 300} | changes)


@pytest.fixture(scope="module")
def model(mesh) -> Sphinx:
    config = ModelConfig("text", decoder())
    leaves = {path: 8 * leaf if path.endswith(("output", "embedding")) else leaf for path, leaf in born(config).items()}
    return Sphinx(config, leaves, TOKENIZER, mesh)


def by_hand(model: Sphinx, prompt: str, count: int) -> list[int]:
    """Greedy tokens of the whole text looked at anew for each, the stop included."""
    ids, said = TOKENIZER.encode(prompt, bos=True), []
    while len(said) < count and TOKENIZER.eos_id not in said:
        said.append(int(model.logits(np.array([ids + said]))[0, -1].argmax()))
    return said


def requests(count: int, **settings) -> list[Request]:
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        prompt = " ".join(rng.choice(WORDS, 1 + rng.integers(12)))
        chosen = {"temperature": float(i % 3), "top_p": 0.9, "top_k": i % 5, "seed": i} | settings
        found.append(Request(prompt, max_new_tokens=1 + int(rng.integers(24)), **chosen))
    return found


def test_greedy_answers_are_those_of_the_whole_text(model):
    asked = requests(12, temperature=0.0)
    for request, (said,) in zip(asked, Engine(model, slots=4).map(asked), strict=True):
        assert said.tokens == by_hand(model, request.prompt, request.max_new_tokens)
        ids = TOKENIZER.encode(request.prompt, bos=True) + said.tokens
        chances = jax.nn.log_softmax(model.logits(np.array([ids]))[0])
        expected = [float(chances[len(ids) - len(said.tokens) - 1 + i, t]) for i, t in enumerate(said.tokens)]
        np.testing.assert_allclose(said.logprobs, expected, atol=1e-4)


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_an_answer_does_not_depend_on_what_else_is_asked(model, slots):
    asked = requests(14)
    alone = [said for request in asked for said in Engine(model, slots=1).map([request])]
    together = list(Engine(model, slots=slots).map(asked))
    assert [[s.tokens for s in said] for said in together] == [[s.tokens for s in said] for said in alone]


def test_each_of_n_answers_is_that_of_its_seed(model):
    request = Request("a red star", max_new_tokens=8, temperature=2.0, top_p=1.0, seed=5, n=3)
    (said,) = Engine(model, slots=2).map([request])
    apart_ = [Engine(model).map([dataclasses.replace(request, seed=5 + i, n=1)]) for i in range(3)]
    assert [s.tokens for s in said] == [s.tokens for one in apart_ for (s,) in one]
    assert len({tuple(s.tokens) for s in said}) > 1
    texts = model.generate(["a red star"], max_new_tokens=8, temperature=2.0, top_p=1.0, seed=5, n=3)
    assert texts == [[s.text for s in said]]


def test_the_most_likely_of_one_is_greedy(model):
    greedy = model.generate(WORDS, max_new_tokens=9, temperature=0.0)
    assert model.generate(WORDS, max_new_tokens=9, temperature=3.0, top_p=1.0, top_k=1) == greedy
    assert model.generate(WORDS, max_new_tokens=9, temperature=3.0, top_p=1.0) != greedy


def test_a_stop_of_ones_own_ends_the_answer(model):
    (said,) = model.generate(["a red star"], max_new_tokens=20, temperature=0.0, logprobs=True)
    middle = said.text[len(said.text) // 2 :][:3]
    (other,) = model.generate(["a red star"], max_new_tokens=20, temperature=0.0, stop=[middle], logprobs=True)
    assert other.text == said.text[: said.text.index(middle)].strip() and other.ended == "stop"
    assert other.tokens == said.tokens[: len(other.tokens)]


def test_a_stream_only_grows_and_ends_as_the_whole(model):
    (whole,) = model.generate(["one two"], max_new_tokens=40, temperature=0.0)
    outside = jax.sharding.get_abstract_mesh()
    texts = []
    for text in model.stream("one two", max_new_tokens=40, temperature=0.0):
        assert jax.sharding.get_abstract_mesh() == outside
        texts.append(text)
    assert texts[-1] == whole and len(texts) > 3
    assert all(b.startswith(a.strip()) for a, b in zip(texts, texts[1:], strict=False))


def test_a_stream_with_logprobs_is_what_is_said_so_far(model):
    settings = {"max_new_tokens": 40, "temperature": 0.0}
    (whole,) = model.generate(["one two"], logprobs=True, **settings)
    *before, last = model.stream("one two", logprobs=True, **settings)
    assert last[:4] == whole[:4] and last.ended and len(before) > 2
    for said in before:
        assert said.ended == "" and said.tokens == whole.tokens[: len(said.tokens)] and len(said.text) < len(whole.text)
        assert said.logprobs == whole.logprobs[: len(said.tokens)]
    assert [said.text for said in before] + [last.text] == list(model.stream("one two", **settings))
    *_, both = model.stream("one two", logprobs=True, n=2, max_new_tokens=3)
    assert len(both) == 2 and all(said.tokens for said in both)


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda e: Request(""), "a prompt without a picture must hold some text, not ''"),
        (lambda e: Request(" \n"), "a prompt without a picture must hold some text"),
        (lambda e: e.submit("a"), "an engine takes a Request, such as Request.prompt, image., not 'a'"),
        (lambda e: list(e.map(["a"])), "an engine takes a Request"),
        (lambda e: Engine("x"), "model must be as from_pretrained gives it, not 'x'"),
    ],
)
def test_what_is_no_request_is_told(model, ask, told):
    with pytest.raises(BadArgument, match=told):
        ask(model.engine)


def test_a_prompt_that_is_too_long_is_cut_and_told_once(model, caplog):
    asked = Request("no " * 400, max_new_tokens=3, temperature=0.0)
    ((said,),) = model.engine.map([asked])
    assert said.tokens == model.engine.submit(dataclasses.replace(asked, prompt="no " * 500)).wait()[0].tokens
    assert [record.getMessage().split(" was ")[1] for record in caplog.records] == ["cut to its last 296"] * 2


def test_what_is_cancelled_or_left_alone_frees_its_slot(model):
    engine = Engine(model, slots=1)
    left = engine.submit(Request("a", max_new_tokens=200, temperature=0.0))
    next(iter(left))
    waits = engine.submit(Request("no", max_new_tokens=200, temperature=0.0))
    waits.cancel()
    del left
    gc.collect()
    answer = engine.submit(Request("red star", max_new_tokens=5, temperature=0.0))
    (said,) = answer.wait()
    assert said.tokens == by_hand(model, "red star", 5)
    assert [s.ended for s in waits.wait()] == ["cancelled"]


def test_a_full_queue_is_told(model):
    engine = Engine(model, slots=1, queue=2)
    kept = [engine.submit(Request("a", max_new_tokens=3)) for _ in range(2)]
    with pytest.raises(QueueFull, match="^2 requests wait already"):
        engine.submit(Request("a"))
    assert all(answer.wait() for answer in kept)
    assert engine.submit(Request("a", max_new_tokens=3)).wait()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"stop": [""]}, r"stop\[0\] is empty"),
        ({"stop": "x"}, "stop must be a list of strings, not 'x'"),
        ({"n": 0}, "n must be an integer of at least 1, not 0"),
        ({"top_k": -1}, "top_k must be an integer of at least 0"),
        ({"max_new_tokens": 299}, "max_new_tokens 299 leaves no room for a prompt in 300 positions"),
    ],
)
def test_what_cannot_be_asked_is_told_and_the_engine_lives_on(model, settings, told):
    engine = Engine(model, slots=2)
    with pytest.raises(BadArgument, match=told):
        engine.submit(Request("a", **settings))
    assert engine.submit(Request("a", max_new_tokens=2)).wait()


def test_prompts_that_begin_alike_are_read_once(model, monkeypatch):
    read, prefill = [], programs.prefill
    monkeypatch.setattr(programs, "prefill", lambda *a: read.append(a[3].size) or prefill(*a))
    engine, turns = Engine(model, slots=1), "one two three four five six seven eight nine ten " * 3
    said = [engine.submit(Request(turns, max_new_tokens=4, temperature=0.0)).wait()[0]]
    first = sum(read)
    for _ in range(3):
        turns += said[-1].text + " and what else is there? "
        said.append(engine.submit(Request(turns, max_new_tokens=4, temperature=0.0)).wait()[0])
        assert said[-1].tokens == by_hand(model, turns, 4)
    assert sum(read) - first <= 3 * 32 <= first


def test_prompts_that_enter_together_take_over_what_was_there(model):
    """Of a prefix that one slot holds all of them have a copy, whichever slots they come to."""
    begin = "one two three four five six seven eight nine ten " * 3
    asked = [Request(begin + end, max_new_tokens=6, temperature=0.0) for end in ("a", "red star", "no", "what is")]
    alone = [said for request in asked for (said,) in Engine(model, slots=1).map([request])]
    engine = Engine(model, slots=8)
    before = [Request(f"{word} " * 9, max_new_tokens=6 + 3 * i) for i, word in enumerate("xyz")]
    list(engine.map([*before, Request(begin + "end", max_new_tokens=30)]))
    for said, (together,) in zip(alone, engine.map(asked), strict=True):
        assert together.tokens == said.tokens
        np.testing.assert_allclose(together.logprobs, said.logprobs, atol=1e-4)


def interrupted(monkeypatch, name: str, numbers: tuple[int, ...]) -> list[int]:
    """These calls of a program, from 1, are interrupted; a list that grows with each."""
    program, calls = getattr(programs, name), []

    def call(*given):
        calls.append(1)
        if len(calls) in numbers:
            raise KeyboardInterrupt
        return program(*given)

    monkeypatch.setattr(programs, name, call)
    return calls


def waited(engine: Engine, asked: list[Request]) -> list[list[int]]:
    """Tokens of the answers, through all interruptions."""
    answers = [engine.submit(request) for request in asked]
    for answer in answers:
        while not answer.done:
            with contextlib.suppress(KeyboardInterrupt):
                answer.wait()
    return [answer.wait()[0].tokens for answer in answers]


def test_an_interrupted_step_is_taken_again(model, monkeypatch):
    asked = requests(5)
    expected = [s.tokens for (s,) in Engine(model, slots=2).map(asked)]
    calls = interrupted(monkeypatch, "decode", (2, 4))
    assert waited(Engine(model, slots=2), asked) == expected and len(calls) > 4


def test_an_interruption_while_a_picture_is_read_loses_nobody(seeing, monkeypatch):
    asked = [Request(word, pictures(40)[0], 4, temperature=0.0) for word in WORDS[:3]]
    expected = [s.tokens for (s,) in Engine(seeing, slots=2).map(asked)]
    engine = Engine(seeing, slots=2)
    interrupted(monkeypatch, "prefill", (1, 3))
    gone = engine.submit(asked[0])
    with pytest.raises(KeyboardInterrupt):
        gone.wait()
    gone.cancel()  # the only one who asked for the picture
    assert waited(engine, asked) == expected


def test_an_error_of_the_device_ends_those_on_their_way_alone(model, monkeypatch):
    engine, decode = Engine(model, slots=1), programs.decode
    monkeypatch.setattr(programs, "decode", lambda *given: 1 / 0)
    first, second = (engine.submit(Request(word, max_new_tokens=4, temperature=0.0)) for word in ("a", "no"))
    with pytest.raises(ZeroDivisionError):
        first.wait()
    monkeypatch.setattr(programs, "decode", decode)
    assert second.wait()[0].tokens == by_hand(model, "no", 4)


def test_threads_share_an_engine(model):
    asked = requests(40)
    expected = [s.tokens for (s,) in Engine(model, slots=4).map(asked)]
    engine, found = Engine(model, slots=4), {}

    def ask(i: int) -> None:
        answer = engine.submit(asked[i])
        if i % 7 == 6:
            next(iter(answer))  # and away
            return
        with pytest.raises(BadArgument):
            engine.submit(Request("a", max_new_tokens=10_000))
        found[i] = answer.wait()[0].tokens

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: tokens for i, tokens in enumerate(expected) if i % 7 != 6}


@pytest.mark.slow
def test_two_thousand_requests_good_bad_and_cancelled_from_many_threads(seeing, model):
    """About pictures, held to grammars, sampled: each good one is answered as it is alone, and all slots end free.

    The queue is too short for all: who is refused comes again.
    """
    rng, shown = np.random.default_rng(3), [*pictures(40), None]
    good = [
        dataclasses.replace(
            request,
            image=shown[n % 4],
            max_new_tokens=1 + n % 9,
            grammar=of_choices(["a red star", "no", "one two three"]) if n % 5 == 0 else "",
        )
        for n, request in enumerate(requests(40))
    ]
    alone = [[s.tokens for s in said] for r in good for said in Engine(seeing, slots=1).map([r])]
    long = Request("one two three " * 400, shown[0], max_new_tokens=3, temperature=0.0)
    (of_long,) = ([s.tokens for s in said] for said in Engine(seeing, slots=1).map([long]))
    bad = [{"max_new_tokens": 100_000}, {"stop": [""]}, {"grammar": "answer: nowhere"}, {"n": 0}, {"top_p": "most"}]
    engine, blind = Engine(seeing, slots=8, queue=12), Engine(model, slots=1)
    wrong, refused, kinds = [], [], rng.integers(0, 12, 2000)

    def submitted(request: Request) -> Answer:
        while True:
            try:
                return engine.submit(request)
            except QueueFull:
                refused.append(1)
                time.sleep(0.01)

    def ask(numbers: range) -> None:
        for i in numbers:
            which = i % len(good)
            try:
                if kinds[i] == 0:
                    with pytest.raises(BadArgument):
                        submitted(Request("a", **bad[i % len(bad)]))
                    continue
                if kinds[i] == 10:
                    with pytest.raises(BadArgument, match="text-only"):
                        blind.submit(Request("a", shown[i % 3]))
                    continue
                if kinds[i] == 11:
                    if [said.tokens for said in submitted(long).wait()] != of_long:
                        wrong.append(i)
                    continue
                answer = submitted(good[which])
                if kinds[i] == 1:
                    answer.cancel()
                elif kinds[i] == 2:
                    next(iter(answer))  # and away
                elif [said.tokens for said in answer.wait()] != alone[which]:
                    wrong.append(i)
            except BaseException as error:  # of a thread, nobody hears
                wrong.append((i, error))

    threads = [threading.Thread(target=ask, args=(range(first, 2000, 16),)) for first in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and refused
    gc.collect()
    assert engine.submit(good[0]).wait() and engine.submit(good[1]).wait()
    for batch in (engine._batch, engine._guided):
        batch.step()
        assert not batch.waiting and not batch.active and all(slot.sequence is None for slot in batch._slots)


def pictures(size: int) -> list[Image.Image]:
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 255, (size, size, 3), np.uint8)) for _ in range(3)]


@pytest.fixture(scope="module")
def seeing(tiny, mesh) -> Sphinx:
    return Sphinx(tiny, born(tiny), TOKENIZER, mesh)


def test_questions_about_a_picture_look_at_it_once(seeing, monkeypatch):
    asked = ["what is it", "where is it", "how many are there"]
    shown = pictures(40)[:2]
    alone = {}
    for i, picture in enumerate(shown):
        for question in asked:
            engine = Engine(seeing, slots=1)
            alone[i, question] = engine.submit(Request(question, picture, 6, temperature=0.0)).wait()[0].tokens
    engine, looked = Engine(seeing, slots=4), []
    monkeypatch.setattr(
        engine.pictures,
        "features",
        lambda pixels, old=engine.pictures.features: looked.append(len(pixels)) or old(pixels),
    )
    mixed = [(i, question) for question in asked for i in range(2)] * 2
    answers = engine.map(Request(question, shown[i], 6, temperature=0.0) for i, question in mixed)
    assert [said.tokens for (said,) in answers] == [alone[key] for key in mixed]
    assert sum(looked) == 2
    texts = seeing.respond_many(shown[0], asked, max_new_tokens=6, temperature=0.0)
    assert texts == [seeing.respond([[q, None]], shown[0], max_new_tokens=6, temperature=0.0) for q in asked]


def test_questions_that_come_together_read_their_picture_once(seeing, monkeypatch):
    read, prefill = [], programs.prefill
    monkeypatch.setattr(programs, "prefill", lambda *a: read.append(a[3].copy()) or prefill(*a))
    asked = [f"what is {word}" for word in ("it", "there", "on", "left", "new", "red")]
    picture, other, _ = pictures(40)
    fresh = Sphinx(seeing.config, dict(seeing.leaves), TOKENIZER, seeing.mesh)
    texts = fresh.respond_many(picture, asked, max_new_tokens=4, temperature=0.0)
    assert sum((piece == -1).sum() for piece in read) == 1, "position 0 of the picture"
    assert texts == fresh.respond_many(picture, asked, max_new_tokens=4, temperature=0.0)
    assert sum((piece == -1).sum() for piece in read) == 1
    assert texts == [seeing.respond([[q, None]], picture, max_new_tokens=4, temperature=0.0) for q in asked]
    read.clear()
    mixed = [Request(question, shown, 4, temperature=0.0) for question in asked for shown in (picture, other)]
    engine = Engine(seeing, slots=16)
    together = [said.tokens for (said,) in engine.map(mixed)]
    assert sum((piece == -1).sum() for piece in read) == 2
    assert together == [said.tokens for request in mixed for (said,) in Engine(seeing, slots=1).map([request])]


@pytest.mark.parametrize("alike", ["", "what is", "what is the colour of the big thing on the left of"])
def test_questions_that_begin_a_little_alike_are_read_together(seeing, monkeypatch, alike):
    read, prefill = [], programs.prefill
    monkeypatch.setattr(programs, "prefill", lambda *a: read.append(len(a[3])) or prefill(*a))
    picture = pictures(40)[0]
    asked = [Request(f"{alike} {n}", picture, 2) for n in (1, 25, 397, 4999, 82, 61, 7, 53)]
    list(Engine(seeing, slots=8).map(asked))
    assert len(read) <= 5, "the picture, perhaps one question, and the others together"


def test_a_picture_is_held_once_whoever_asks(seeing):
    """A row of the cache holds what is a question's own; pictures that nobody asks about make room for others."""
    asked = [f"what is {word}" for word in ("it", "there", "on", "left", "new", "red")]
    shown = pictures(40)
    engine = Engine(seeing, slots=8, pictures=1)
    held = engine._batch.beginnings

    def answer(requests: list[Request]) -> list[list[int]]:
        expected = [said.tokens for r in requests for (said,) in Engine(seeing, slots=1).map([r])]
        assert [said.tokens for (said,) in engine.map(requests)] == expected

    answer([Request(question, shown[0], 9, temperature=0.0) for question in asked])
    assert held.places == 1 and {slot.held for slot in engine._batch._slots} <= {0, 1 + seeing.config.image_positions}
    # an empty question is about all of the picture but its last position, which begins the answer
    answer([Request(question, shown[1], 9, temperature=0.0) for question in ("", *asked[:3], "")])
    assert held.places == 1
    answer([Request(question, picture, 9, temperature=0.0) for question in asked[:2] for picture in shown])
    assert held.places == 4
    answer([Request(asked[0], None, 9, temperature=0.0)])
    assert engine._batch.beginnings.places == 1, "one row, one picture"


def test_answers_with_a_grammar_and_without_read_a_picture_once(seeing, monkeypatch):
    read, prefill = [], programs.prefill
    monkeypatch.setattr(programs, "prefill", lambda *a: read.append(a[3].copy()) or prefill(*a))
    choice, shown = of_choices(["red star", "one", "no"]), pictures(40)
    engine = Engine(seeing, slots=2, pictures=1)
    for n, picture in enumerate(shown):
        for grammar in ("", choice)[:: 1 - 2 * (n % 2)]:  # either comes first
            engine.submit(Request("what is it", picture, 9, grammar=grammar)).wait()
    assert sum((piece == -1).sum() for piece in read) == len(shown), "position 0 of each picture"


@pytest.mark.parametrize(("slots", "held"), [(2, 1), (4, 1), (4, 2), (16, 1)])
def test_pictures_that_answers_with_a_grammar_and_without_share_come_and_go(seeing, slots, held):
    """However many ask about whichever pictures: what one kind of answers has is no place for the other to rely on."""
    grammars, shown = ("", of_choices(["red star", "one", "no"])), pictures(40)
    every = [(i, g) for i in range(len(shown)) for g in range(2)]
    asked = {(i, g): Request("what is it", shown[i], 5, temperature=0.0, grammar=grammars[g]) for i, g in every}
    alone = {key: Engine(seeing, slots=1).submit(r).wait()[0].tokens for key, r in asked.items()}
    engine, rng = Engine(seeing, slots=slots, pictures=held), np.random.default_rng(slots + held)
    groups = [[(1, 1), (2, 1)], [(0, 0), (1, 0), (2, 0), (2, 0)]]  # the first of those who come is new, others are not
    groups += [[every[n] for n in rng.integers(len(every), size=rng.integers(1, 7))] for _ in range(20)]
    for group in groups:
        answers = [said.tokens for (said,) in engine.map(asked[key] for key in group)]
        assert answers == [alone[key] for key in group]


def test_an_engine_that_is_let_go_leaves_nothing_behind(seeing):
    engine = Engine(seeing, slots=1)
    engine.submit(Request("what is it", pictures(40)[0], 2)).wait()
    batches = [weakref.ref(engine._batch), weakref.ref(engine._guided)]
    gc.disable()  # what the device holds does not wait for it
    try:
        del engine
        assert [batch() for batch in batches] == [None, None]
    finally:
        gc.enable()


def test_an_error_while_a_picture_is_read_is_told_to_all_who_wait_for_it(seeing, monkeypatch):
    engine, prefill = Engine(seeing, slots=2), programs.prefill
    picture, other, _ = pictures(40)
    waiting = [engine.submit(Request(question, picture, 4, temperature=0.0)) for question in WORDS]
    later = engine.submit(Request("a", other, 4, temperature=0.0))

    def broken(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(programs, "prefill", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        waiting[0].wait()
    monkeypatch.setattr(programs, "prefill", prefill)
    for answer in waiting:
        with pytest.raises(RuntimeError, match="out of memory"):
            answer.wait()
    (said,) = later.wait()
    assert said.tokens == Engine(seeing).submit(Request("a", other, 4, temperature=0.0)).wait()[0].tokens


def test_answers_to_one_question_read_it_once(model, monkeypatch):
    read, prefill = [], programs.prefill
    monkeypatch.setattr(programs, "prefill", lambda *a: read.append(a[3].size) or prefill(*a))
    question = "one two three four five six seven eight nine ten " * 3
    request = Request(question, max_new_tokens=8, temperature=2.0, top_p=1.0, n=6)
    (said,) = Engine(model, slots=8).map([request])
    assert sum(read) < 1.6 * len(TOKENIZER.encode(question, bos=True))
    alone = [Engine(model).map([dataclasses.replace(request, seed=i, n=1)]) for i in range(6)]
    assert [s.tokens for s in said] == [s.tokens for one in alone for (s,) in one]


def test_scores_are_those_of_the_whole_text(model, seeing):
    """Of any lengths, beside answers, and of many ends of one beginning."""
    begin = "one two three four five six seven eight nine ten " * 3
    prompts = [begin] * 5 + WORDS + ["no " * 80]
    ends = [" a", " red star", " no", " what is it", " x"] + [" and so on " * n for n in range(1, 7)]
    answer = model.engine.submit(Request("a", max_new_tokens=30, temperature=0.0))
    found = model.score(prompts, ends)
    assert answer.wait()[0].tokens == by_hand(model, "a", 30)
    for prompt, end, score in zip(prompts, ends, found, strict=True):
        start, ids = (TOKENIZER.encode(text, bos=True) for text in (prompt, prompt + end))
        assert ids[: len(start)] == start
        chances = jax.nn.log_softmax(model.logits(np.array([ids]))[0])
        expected = sum(float(chances[i - 1, ids[i]]) for i in range(len(start), len(ids)))
        assert score == pytest.approx(expected, rel=1e-4)
    shown = pictures(40)[:2]
    several = seeing.score(WORDS[:4], [" star", " it", " a b c", " d"], [*shown, *shown])
    assert several == [
        pytest.approx(seeing.score([prompt], [end], [image])[0], rel=1e-5)
        for prompt, end, image in zip(WORDS, (" star", " it", " a b c", " d"), [*shown, *shown], strict=False)
    ]
    prompts, ends = ["", *WORDS[:2]], [" star and so on", " it", " a b c"]  # of an empty one the picture says the first
    for prompt, end, score in zip(prompts, ends, seeing.score(prompts, ends, [shown[0]] * 3), strict=True):
        pixels = np.asarray(normalise(seeing.engine.pictures.picture(shown[0]).pixels[None]))
        start, ids = (TOKENIZER.encode(text, bos=True) for text in (prompt, prompt + end))
        chances = jax.nn.log_softmax(seeing.logits(np.array([ids]), pixels)[0])
        expected = sum(float(chances[i - 1, ids[i]]) for i in range(len(start), len(ids)))
        assert score == pytest.approx(expected, rel=1e-4)
    with pytest.raises(BadArgument, match="prompt 1 and its continuation take 4.. positions of 300"):
        model.score(["a", "no " * 140], [" b", " b"])


def test_a_step_is_short_also_where_answers_are(model):
    engine = Engine(model, slots=2)
    answers = [engine.submit(Request(word, max_new_tokens=1)) for word in WORDS * 3]
    engine._batch.step()
    assert 1 <= sum(answer.done for answer in answers) <= 2
    assert all(answer.wait() for answer in answers)


@pytest.mark.parametrize("grammar", ["", of_choices(["red star", "one", "no"])])
def test_prompts_of_others_hold_up_nobody_who_reads_along(seeing, model, monkeypatch, grammar):
    """Between two looks at a stream little is read of them, and one picture is looked at, here and beside it."""
    for of, shown in ((model, [None]), (seeing, pictures(40))):
        engine, since, most, prefill = Engine(of, slots=16), [0, 0], [0, 0], programs.prefill
        features = engine.pictures.features

        def read(*given, since=since, prefill=prefill):
            since[0] += given[3].size if given[3].shape[1] > 16 else 0  # others are tokens of answers
            return prefill(*given)

        def look(pixels, since=since, features=features):
            since[1] += len(pixels)
            return features(pixels)

        stream = iter(engine.submit(Request("a star", max_new_tokens=60, temperature=1.0)))
        next(stream)
        monkeypatch.setattr(programs, "prefill", read)
        monkeypatch.setattr(engine.pictures, "features", look)
        asked = [Request(f"{n} no " * 30, shown[n % len(shown)], 9, grammar=grammar) for n in range(12)]
        answers = [engine.submit(request) for request in asked]
        for _ in stream:
            most[:] = np.maximum(most, since)
            since[:] = 0, 0
        assert most[0] <= 2 * engine._batch.sizes.between + seeing.config.image_positions and most[1] <= 1
        monkeypatch.setattr(programs, "prefill", prefill)
        alone = [Engine(of, slots=1).submit(request).wait()[0].text for request in asked[:3]]
        assert [answer.wait()[0].text for answer in answers[:3]] == alone


def test_a_picture_that_takes_long_to_read_holds_up_nobody(seeing, tmp_path, monkeypatch):
    engine, answered = Engine(seeing, slots=2), threading.Event()
    pictures(40)[0].save(tmp_path / "far.png")
    picture = engine.pictures.picture

    def read(image):
        assert not isinstance(image, str) or answered.wait(60)
        return picture(image)

    monkeypatch.setattr(engine.pictures, "picture", read)
    asked = [Request("a", pictures(40)[1], 3), Request("a", str(tmp_path / "far.png"), 3), Request("no", None, 3)]
    completed = engine.as_completed(asked)
    assert next(completed)[0] == 0
    answered.set()
    assert {number for number, _ in completed} == {1, 2}


def test_processes_that_share_a_mesh_take_pictures_at_the_same_step(seeing, tmp_path, monkeypatch):
    """Which are read at different times in each: none goes on before the next is there."""
    engine, there = Engine(seeing, slots=2), threading.Event()
    pictures(40)[0].save(tmp_path / "far.png")
    picture = engine.pictures.picture

    def read(image):
        if isinstance(image, str):
            time.sleep(0.5)
            there.set()
        return picture(image)

    monkeypatch.setattr(engine.pictures, "picture", read)
    monkeypatch.setattr(engine, "mesh", types.SimpleNamespace(is_multi_process=True))
    asked = [Request("a", pictures(40)[1], 3), Request("a", str(tmp_path / "far.png"), 3)]
    for _ in engine.as_completed(asked):
        assert there.is_set()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (([[1, 5, 6]], [0], [None]), "must be from 1 to 2, before the end of its text, not 0"),
        (([[1, 5, 6]], [3], [None]), "must be from 1 to 2"),
        (([[1, 5, 6], [1, 5]], [1], [None] * 2), "must be equally many, not 2 and 1 and 2"),
        (([[1, 5, 6], [1, 5]], [1, 1], [None]), "must be equally many, not 2 and 2 and 1"),
    ],
)
def test_what_cannot_be_scored_is_told(model, given, told):
    with pytest.raises(BadArgument, match=told):
        model.engine.score(*given)


def test_a_model_has_one_engine_whoever_asks_first(model, monkeypatch):
    fresh, made = Sphinx(model.config, dict(model.leaves), TOKENIZER, model.mesh), []

    def slowly(self, *given, make=Engine.__init__):
        time.sleep(0.05)
        make(self, *given)

    monkeypatch.setattr(Engine, "__init__", slowly)
    threads = [threading.Thread(target=lambda: made.append(fresh.engine)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(engine) for engine in made}) == 1 and fresh.engine is made[0]


def test_prompts_of_all_lengths_end_where_they_end(model):
    """Read together, in pieces: the first tokens come when each has been read, not all."""
    lengths = [1, 2, 5, 15, 16, 17, 30, 47, 60, 90]
    asked = [Request(" ".join(["no"] * n), max_new_tokens=1 + n % 3, temperature=0.0) for n in lengths]
    together = [said for (said,) in Engine(model, slots=16).map(asked)]
    for request, said in zip(asked, together, strict=True):
        assert said.tokens == by_hand(model, request.prompt, request.max_new_tokens)


def test_another_picture_is_another_answer_whatever_it_is_called(seeing, tmp_path):
    engine, file = Engine(seeing, slots=1), tmp_path / "same.png"
    pixels = np.array(pictures(40)[0])
    names = set()
    for _ in range(3):
        Image.fromarray(pixels).save(file)
        names.add(engine.pictures.picture(file).name)
        request = Request("what is it " * 6, str(file), 4, temperature=0.0)
        fresh = Engine(seeing, slots=1).submit(request).wait()[0]
        np.testing.assert_allclose(engine.submit(request).wait()[0].logprobs, fresh.logprobs, atol=1e-4)
        pixels[20, 20] ^= 255  # one pixel
        pixels[5:9] //= 2
    assert len(names) == 3
    for slot in engine._batch._slots:
        assert (
            in_common(slot.ids, slot.named, slot.ids, None) <= 1 < in_common(slot.ids, slot.named, slot.ids, slot.named)
        )


def test_numbers_of_any_kind_and_what_is_abandoned_hurt_nobody(model):
    engine = Engine(model, slots=2, queue=6)
    kept = engine.submit(Request("a", max_new_tokens=5, temperature=0.0))
    odd = engine.submit(
        Request("a", max_new_tokens=np.int8(3), top_k=2**40, seed=np.uint8(5), temperature=np.float16(1))
    )
    assert kept.wait()[0].tokens == by_hand(model, "a", 5) and len(odd.wait()[0].tokens) <= 3
    for _ in range(5):
        engine.submit(Request("no", max_new_tokens=50, n=2))  # and nobody holds the answer
    gc.collect()
    assert len(list(engine.map([Request("a", max_new_tokens=2, n=3)] * 7))) == 7
    with pytest.raises(BadArgument, match="n 7 is more than the 6"):
        engine.submit(Request("a", n=7))
    with pytest.raises(BadArgument, match="slots must be an integer of at least 1, not 0"):
        Engine(model, slots=0)
    with pytest.raises(BadArgument, match="stop holds 300 characters"):
        Request("a", stop=["x" * 300])
    assert Request("a", stop=(text for text in ("x", "y"))).stop == ("x", "y")


def test_what_was_long_does_not_hold_up_what_is_short(seeing):
    """With a picture or without: its positions are not among those of the row."""
    engine = Engine(seeing, slots=2)
    for picture in (None, pictures(40)[0]):
        engine.submit(Request("one two three " * 60, max_new_tokens=300)).wait()
        assert engine._batch._slots.positions == 1024
        engine.submit(Request("no", picture, max_new_tokens=3)).wait()
        assert engine._batch._slots.positions == 256
    held = engine._batch.beginnings
    assert held._cache.positions == 1 + seeing.config.image_positions


@pytest.mark.parametrize("length", [1, 15, 16, 17, 48, 60, 100, 256, 257, 922, 5000])
@pytest.mark.parametrize("rows", [1, 4])
def test_pieces_cover_a_prompt_without_much_waste(length, rows):
    sizes, left, read = Sizes.of(16, 8192), length, 0
    while left > 0:
        size = sizes.piece(left, rows, 8192)
        assert size in sizes.pieces
        left, read = left - size, read + size
    assert read < length + max(16, length // 2)


@pytest.mark.parametrize(("slots", "positions"), [(1, 12), (1, 40), (16, 4096), (5, 300), (64, 256)])
def test_sizes_are_few_and_hold_everything(slots, positions):
    sizes = Sizes.of(slots, positions)
    assert (
        sizes.rows[-1] == slots
        and sizes.positions[-1] == positions
        and len(sizes.positions) <= 5
        and sizes.pieces[0] <= positions
    )
    assert all(sizes.room(n) >= n for n in range(1, positions + 1))


def test_nothing_is_compiled_after_the_first_answers(model):
    """A chat that grows, asked for answers of many lengths."""
    engine = Engine(model, slots=2)
    engine.warm_up()
    counted = compilations()
    text = ""
    for turn in range(30):
        text += " and then?"
        engine.submit(Request(text, max_new_tokens=1 + turn * 5 % 37, temperature=turn % 2, n=1 + turn % 3)).wait()
    assert not counted
    jax.jit(lambda x: x + 1)(np.zeros(7))
    assert counted


WARMED = """
import collections, sys
import jax
from conftest import DATA, born
from sphinx_jax import Engine, Request, Sphinx
from sphinx_jax.config import DecoderConfig, ModelConfig
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.sharding import make_mesh

found = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: found.update([name.rpartition("/")[2]]))
words = load_tokenizer(DATA / "tokenizer.model")
config = ModelConfig("text", DecoderConfig(32, 2, 4, vocab_size=words.vocab_size, hidden_dim=64, max_positions=40))
engine = Engine(Sphinx(config, born(config), words, make_mesh()), slots=1)
found.clear()
engine.warm_up(quiet=True)
warm = dict(found)
found.clear()
engine.submit(Request("what is it?", max_new_tokens=9)).wait()
names = "cache_misses", "cache_hits"
print("COUNTED", *(counts.get(name, 0) for counts in (warm, found) for name in names), file=sys.stderr)
"""


def test_a_second_process_finds_what_was_compiled(tmp_path):
    kept = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    counts = []
    for _ in range(2):
        (line,) = (s for s in run_with_devices(WARMED, 1, **kept).splitlines() if s.startswith("COUNTED"))
        counts.append([int(count) for count in line.split()[1:]])
    first, second = counts
    assert first[0] > 5 and second[0] == 0 and second[1] >= first[0], "all of it is found"
    assert first[2:] == second[2:] == [0, 0], "and no request asks for more"


def test_the_cache_is_written_in_place():
    config = ModelConfig("text", decoder(max_positions=4096))
    leaves = {path: jax.ShapeDtypeStruct(s.shape, s.dtype) for path, s in blueprint(config).specs.items()}
    layers = jax.eval_shape(lambda leaves: apart(dict(leaves)), leaves)
    cache = jax.eval_shape(lambda: programs.empty(config, 8, 4096))
    rows = programs.idle(8)
    table = np.zeros((2, config.decoder.vocab_size), np.int32)
    common = Common(cache, grouping([100] * 8, {row: row % 2 for row in range(8)}))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
    for held in (None, common):
        steps = np.int32(8), np.int32(8)
        memory = programs.decode.lower(config, layers, cache, rows, table, *steps, held).compile().memory_analysis()
        assert memory.alias_size_in_bytes >= size and memory.temp_size_in_bytes < size / 4
