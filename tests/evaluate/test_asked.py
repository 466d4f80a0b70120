"""Held-out questions asked through the engine: killed at any moment, shared out, about pictures that cannot be read."""

import collections
import io
import json
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import Parrot
from tqdm import tqdm

from sphinx_jax.config import ConfigError
from sphinx_jax.data.conversation import SYSTEM, Item
from sphinx_jax.data.image import BadImage
from sphinx_jax.evaluate import asked
from sphinx_jax.evaluate.answers import FILE, OLD, Answers
from sphinx_jax.evaluate.asked import TOLD, ask, ask_blind, own
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


@pytest.mark.parametrize("until", [2, 99])
def test_without_pictures_what_many_ask_is_answered_once_for_all(tmp_path, until):
    asked = [replace(q, text=f"what is {n % 4}") for n, q in enumerate(held_out(6, turns=3))]
    engine = Parrot(until)
    if until < 4:  # killed with the first half, it goes on with the other
        with pytest.raises(KeyboardInterrupt):
            ask_blind(engine, asked, worded(HOW), Answers(tmp_path, ABOUT))
    answers, going_on = Answers(tmp_path, ABOUT), Parrot(99)
    ask_blind(going_on, asked, worded(HOW), answers)
    assert all(q.text in answers.texts[q.key] for q in asked) and len(answers.texts) == len(asked)
    assert len(engine.asked) + len(going_on.asked) == 4


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


def test_questions_about_one_picture_look_at_it_once_wherever_they_stand(tmp_path):
    asked = sorted(held_out(100, turns=3), key=lambda q: str(q.key)[-1])  # as POPE has its pictures, three times
    looked, engine = collections.Counter(), Parrot(999)
    ask(engine, asked, worded(HOW), lambda q: looked.update([q.picture]), Answers(tmp_path, ABOUT))
    assert looked == collections.Counter(q.picture for q in asked[:100]) and set(looked.values()) == {1}
    assert len(engine.asked) == 300


def test_an_answer_is_kept_as_long_as_its_own_question_is_the_same(tmp_path, caplog):
    def go(of: dict, process: int = 0, **about) -> Answers:
        answers = Answers(tmp_path, {"checkpoint": "a"} | about, process, of)
        before = dict(answers.texts)
        for key in of.keys() - before.keys():
            answers.add(key, f"{of[key]} said")
        answers.close()
        return before

    assert go({1: "x", 2: "y"}) == {}
    assert go({1: "x", 2: "y", "3": "z"}) == {1: "x said", 2: "y said"} and not caplog.records
    assert go({1: "x", 2: "new", "3": "z"}) == {1: "x said", "3": "z said"}
    assert f"1 answers are put aside in {tmp_path / OLD}, as these have changed: their questions" in caplog.text
    assert go({1: "x", 2: "new"}, process=1) == {1: "x said", 2: "new said"}
    assert go({1: "x"}, checkpoint="b") == {}
    assert f"3 answers are put aside in {tmp_path / OLD}, as these have changed: checkpoint" in caplog.text
    kept = [json.loads(line)["prediction"] for line in (tmp_path / OLD).read_text().splitlines()]
    assert sorted(kept) == ["new said", "x said", "y said", "z said"]


def test_answers_of_an_earlier_version_are_put_aside_with_a_line(tmp_path, caplog):
    (tmp_path / "about.json").write_text('{"checkpoint": "a", "questions": "of the whole list"}')
    (tmp_path / FILE).write_text('{"key": 1, "prediction": "x"}\n')
    assert Answers(tmp_path, {"checkpoint": "a"}, asked={1: "x"}).texts == {}
    assert "1 answers are put aside" in caplog.text and json.loads((tmp_path / OLD).read_text())["prediction"] == "x"


def test_processes_that_were_asked_other_questions_are_told(tmp_path):
    first, second = (Answers(tmp_path, {"checkpoint": "a"}, n, {1: "x", 2: "yz"[n]}) for n in range(2))
    for answers in (first, second):
        answers.close()
    with pytest.raises(ConfigError, match="no answers of process 1 to these questions"):
        first.gather(2)


def test_the_bar_has_rates_by_the_second(tmp_path, monkeypatch):
    bars = []
    monkeypatch.setattr(asked, "progress", lambda **how: bars.append(tqdm(file=io.StringIO(), **how)) or bars[0])
    ask(Parrot(99), held_out(4, turns=2), worded(HOW), lambda q: time.sleep(0.3), Answers(tmp_path, ABOUT), "vqav2")
    shown = bars[0].format_meter(**bars[0].format_dict | {"elapsed": 80.0, "rate": 0.1})
    assert "0.10 questions/s" in shown and "pictures/s" in shown and "s/ q" not in shown


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
