"""Conversations that take turns: each is answered as if it were alone, and what was read of it is not read again."""

import dataclasses

import numpy as np
import pytest
from conftest import DATA, born, compilations
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sphinx_jax import Engine, Request, Sphinx
from sphinx_jax.config import DecoderConfig, ModelConfig
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.generate.batching import parked, programs

TOKENIZER = load_tokenizer(DATA / "tokenizer.model")
BEGIN = "one two three four five six seven eight nine ten " * 3


@pytest.fixture(scope="module")
def model(mesh) -> Sphinx:
    sizes = {"vocab_size": TOKENIZER.vocab_size, "hidden_dim": 64, "max_positions": 300}
    config = ModelConfig("text", DecoderConfig(32, 2, 4, kv_heads=2, **sizes))
    leaves = {path: 8 * leaf if path.endswith(("output", "embedding")) else leaf for path, leaf in born(config).items()}
    return Sphinx(config, leaves, TOKENIZER, mesh)


@pytest.fixture(scope="module")
def seeing(tiny, mesh) -> Sphinx:
    return Sphinx(tiny, born(tiny), TOKENIZER, mesh)


def answered(engine: Engine, prompt: str, picture=None, **changes) -> list[int]:
    (said,) = engine.submit(Request(prompt, picture, **{"max_new_tokens": 4, "temperature": 0.0} | changes)).wait()
    return said.tokens


@pytest.mark.parametrize(("conversations", "slots"), [(2, 2), (4, 8)])
def test_conversations_in_turn_read_only_what_is_new(model, monkeypatch, conversations, slots):
    if slots == 2:  # of few positions and rows there are few programs
        short = dataclasses.replace(model.config, decoder=dataclasses.replace(model.config.decoder, max_positions=220))
        model = Sphinx(short, dict(model.leaves), TOKENIZER, model.mesh)
    engine = Engine(model, slots=slots)
    if slots == 2:
        engine.warm_up(quiet=True)
    read, prefill, counted = [], programs.prefill, compilations()
    monkeypatch.setattr(programs, "prefill", lambda *a: read.append(a[3].size) or prefill(*a))
    texts = [f"{name} {BEGIN}" for name in ("first", "second", "third", "fourth")[:conversations]]
    first = 0
    for _ in range(3):
        for i, text in enumerate(texts):
            answered(engine, text)
            texts[i] += " and what else is there? "
        first = first or sum(read)
    assert sum(read) - first <= 2 * conversations * 32 < first
    assert slots > 2 or not counted, "rows that are held apart come in the sizes of others"


def test_a_row_that_goes_into_a_longer_one_keeps_what_it_has(model):
    engine, long = Engine(model, slots=4), BEGIN * 2
    expected = answered(Engine(model, slots=1), long, max_new_tokens=9)
    answered(engine, BEGIN)
    answered(engine, "what is the colour of the big thing " * 3)
    assert answered(engine, long, max_new_tokens=9) == expected


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_rows_and_those_that_are_held_are_as_many_as_slots(model, slots):
    engine, rng = Engine(model, slots=slots), np.random.default_rng(slots)
    held = engine._batch._slots
    for n in range(12):
        asked = [Request(f"{n} {i} {BEGIN}", max_new_tokens=int(rng.choice([3, 150]))) for i in range(1 + n % slots)]
        list(engine.map(asked))
        assert len(held) + len(held._parked) <= max(slots, len(held))


def test_who_came_back_last_is_held_longest(model):
    engine = Engine(model, slots=8)
    for name in "abcdaef":
        answered(engine, f"{name} {BEGIN}")
    held = [row.slot.ids[:3] for row in engine._batch._slots._parked]
    assert held == [TOKENIZER.encode(f"{name} {BEGIN}", bos=True)[:3] for name in "dae"]


def test_rows_that_are_held_are_few_and_leave_room_for_those_who_ask(model, monkeypatch):
    engine = Engine(model, slots=4)
    held = engine._batch._slots
    for n in range(6):
        answered(engine, f"{n} {BEGIN}")
        assert len(held._parked) == min(n, parked.MOST)
    list(engine.map([Request(f"{n} {BEGIN}", max_new_tokens=20) for n in range(4)]))
    assert len(held) + len(held._parked) <= 4
    monkeypatch.setattr("sphinx_jax.generate.batching.slots.has_room", lambda *given: False)
    list(engine.map([Request(f"{n} {BEGIN}", max_new_tokens=20) for n in range(2)]))
    answered(engine, BEGIN * 2, max_new_tokens=60)
    assert not held._parked


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    turns=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([2, 9]), st.booleans()), min_size=4, max_size=10),
    slots=st.sampled_from([1, 2, 4, 16]),
)
def test_turns_in_any_order_are_answered_as_alone(seeing, monkeypatch, turns, slots):
    """Conversations with a picture and without, several turns at once, held from 4 positions on."""
    monkeypatch.setattr(parked, "WORTH", 4)
    rng = np.random.default_rng(1)
    shown = [None, *(Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)) for _ in range(2)), None]
    texts, engine, going = [f"{n} what is the colour of" for n in range(4)], Engine(seeing, slots=slots), []
    for who, count, more in turns:
        texts[who] += " the big red star on the left"[: 7 * count]
        request = Request(texts[who], shown[who], count, temperature=0.0)
        going.append((request, engine.submit(request)))
        if not more:
            going[-1][1].wait()
    for request, answer in going:
        alone = Engine(seeing, slots=1).submit(request).wait()[0]
        (said,) = answer.wait()
        assert said.tokens == alone.tokens
        np.testing.assert_allclose(said.logprobs, alone.logprobs, atol=1e-4)
