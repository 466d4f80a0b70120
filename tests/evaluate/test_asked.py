"""Held-out questions asked through the engine: killed at any moment, shared out, about pictures that cannot be read."""

import collections
import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import Parrot

from sphinx_jax.config import ConfigError
from sphinx_jax.data.conversation import SYSTEM, Item
from sphinx_jax.data.image import BadImage
from sphinx_jax.evaluate import asked
from sphinx_jax.evaluate.answers import FILE, Answers
from sphinx_jax.evaluate.asked import TOLD, ask, own
from sphinx_jax.evaluate.question import Question
from sphinx_jax.model.blueprint import blueprint
from sphinx_jax.recipe.stages.evaluate import EvaluateStage, check_room, questions, worded

ABOUT = {"questions": "a", "checkpoint": "b"}
HOW = EvaluateStage(start="fresh", domains=("real",))


def held_out(pictures: int, turns: int = 1, system: str | None = None) -> list[Question]:
    """Of a data set whose pictures have so many turns each."""
    items = [
        Item(b"", tuple((f"what is {i} {n}", "x") for n in range(turns)), ("vqa",) * turns, system=system)
        for i in range(pictures)
    ]
    return questions(SimpleNamespace(data=SimpleNamespace(items=lambda split, domain: items)), HOW)


@pytest.mark.parametrize("until", [0, 1, 5, 9, 10])
def test_a_killed_evaluation_asks_nothing_twice(tmp_path, until):
    asked, engines = held_out(10), [Parrot(until), Parrot(99)]

    def go(engine: Parrot) -> Answers:
        answers = Answers(tmp_path, ABOUT)
        ask(engine, asked, worded(HOW), None, answers)
        return answers

    if until < len(asked):
        with pytest.raises(KeyboardInterrupt):
            go(engines[0])
    else:
        go(engines[0])
    found = go(engines[1]).texts
    assert all(q.text in found[q.key] for q in asked) and len(found) == len(asked)
    both = engines[0].asked + engines[1].asked
    assert len(both) == len(set(both)) == len(asked)
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert {line["key"]: line["prediction"] for line in lines} == found and len(lines) == len(asked)


@pytest.mark.parametrize("lost", [0, 3, TOLD + 4])
def test_a_picture_is_looked_at_once_and_one_that_cannot_be_read_is_named(tmp_path, caplog, lost):
    asked, looked = held_out(TOLD + 6, turns=3), collections.Counter()
    answers = Answers(tmp_path, ABOUT)

    def look(question: Question) -> None:
        looked[question.picture] += 1
        if question.source["picture"] < lost:
            raise BadImage(f"no picture {question.source['picture']}")

    ask(Parrot(999), asked, worded(HOW), look, answers)
    assert looked == collections.Counter(q.picture for q in asked[::3])
    assert answers.texts.keys() == {q.key for q in asked if q.source["picture"] >= lost}
    told = [record.getMessage() for record in caplog.records]
    named = [f"question real/{i}:0 is not asked, nor are 2 more about its picture: no picture {i}" for i in range(lost)]
    assert told[: min(lost, TOLD)] == named[:TOLD]
    assert told[TOLD:] == ([f"so are 12 more, question real/{lost - 1}:2 the last"] if lost > TOLD else [])


def test_a_conversations_own_system_text_is_before_its_questions(tmp_path):
    engine = Parrot(9)
    for system in ("Be a pirate.", "", None):
        ask(engine, held_out(1, system=system), worded(HOW), None, Answers(tmp_path / str(system), ABOUT))
    own_text, none, usual = engine.asked
    assert own_text == "Be a pirate." + none and usual == SYSTEM + none and "what is 0 0" in none


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_processes_share_the_pictures_out(count):
    asked = [Question(f"{d} {p} {n}", "", f"{d} {p}") for d in "ab" for p in range(9) for n in range(1 + p % 4)]
    shares = [own(asked, process, count) for process in range(count)]
    assert sorted(q.key for each in shares for q in each) == sorted(q.key for q in asked)
    of = [{q.picture for q in each} for each in shares]
    sizes = list(map(len, shares))
    assert sum(map(len, of)) == 18 and max(sizes) - min(sizes) <= 4


@pytest.mark.parametrize(("where", "size", "slots"), [("cpu", 2**24, 1), ("cpu", 2**24 + 1, 64), ("tpu", 4, 64)])
def test_one_at_a_time_where_a_processors_caches_hold_the_model(where, size, slots, monkeypatch):
    monkeypatch.setattr(asked, "platform", lambda: where)
    leaves = {"a": np.zeros(size // 2, np.uint8), "b": {"c": np.zeros(size - size // 2, np.uint8)}}
    assert asked.slots_for(SimpleNamespace(leaves=leaves), 64) == slots


def test_a_model_that_a_process_has_no_room_for_is_told(tiny, mesh):
    leaves = blueprint(tiny).abstract(mesh, None)
    size = sum(np.prod(x.shape) * x.dtype.itemsize for x in leaves.values())
    check_room(leaves, SimpleNamespace(memory_stats=lambda: {"bytes_limit": size}))
    check_room(leaves, SimpleNamespace(memory_stats=lambda: None))  # a CPU says nothing
    with pytest.raises(ConfigError, match="GiB of each device of this process"):
        check_room(leaves, SimpleNamespace(memory_stats=lambda: {"bytes_limit": size - 1}))
