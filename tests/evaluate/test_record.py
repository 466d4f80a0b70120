"""An evaluation that is killed at any moment goes on: nothing is lost, nothing on record is asked again."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import Parrot
from hypothesis import given, settings
from hypothesis import strategies as st

from sphinx_jax.config import ConfigError
from sphinx_jax.evaluate.record import Record
from sphinx_jax.model.blueprint import blueprint
from sphinx_jax.recipe.stages.evaluate import EvaluateStage, Question, answer, check_room, key, share

ABOUT = {"questions": "a", "checkpoint": "b"}
TEXTS = {
    f"seen {i}": text for i, text in enumerate(["yes", "", 'a "quoted"\nline', "]", "\u2028", "[0.1, 0.2]", "[0.3]"])
}


@settings(max_examples=60)
@given(st.data())
def test_a_file_that_is_cut_anywhere_keeps_what_was_whole(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("record")
    file = folder / "answers-0.jsonl"
    record = Record(folder, ABOUT)
    for name, text in TEXTS.items():
        record.add(name, text)
    record.close()
    whole = file.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    file.write_bytes(whole[:cut])
    again = Record(folder, ABOUT)
    lines = whole[:cut].decode(errors="ignore").split("\n")
    # a line that lacks nothing but its end is whole
    assert again.texts.items() <= TEXTS.items() and len(again.texts) >= len(lines) - 2
    for name in TEXTS.keys() - again.texts.keys():
        again.add(name, TEXTS[name])
    again.close()
    assert Record(folder, ABOUT).texts == TEXTS


def test_answers_to_something_else_are_thrown_away(tmp_path):
    record = Record(tmp_path, ABOUT)
    record.add("seen 0", "yes")
    record.close()
    assert Record(tmp_path, ABOUT | {"checkpoint": "c"}).texts == {}
    assert Record(tmp_path, ABOUT).texts == {}, "the file is that of the other checkpoint now"


def test_what_other_processes_wrote_is_known_and_left_to_them(tmp_path):
    """Also where there are fewer now; a file of before is cleared away."""
    (tmp_path / "answers.jsonl").write_text('{"questions": "a"}\n["seen 9", "old"]\n')
    for process in range(3):
        record = Record(tmp_path, ABOUT, process)
        record.add(f"seen {process}", f"by {process}")
        record.close()
    again = Record(tmp_path, ABOUT, 1)
    assert again.texts == {"seen 0": "by 0", "seen 1": "by 1", "seen 2": "by 2"}
    again.add("seen 5", "more")
    again.close()
    assert (tmp_path / "answers-1.jsonl").read_text().count("\n") == 3
    assert Record(tmp_path, ABOUT | {"checkpoint": "c"}).texts == {}
    Record(tmp_path, ABOUT).remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("until", [0, 1, 5, 9, 10])
def test_a_killed_evaluation_asks_nothing_twice(tmp_path, until):
    asked = [Question("real", i, "vqa", "", f"what is {i}", "x") for i in range(10)]
    asked = dict(enumerate(asked))
    run, file, engines = SimpleNamespace(quiet=True), tmp_path / "answers-0.jsonl", [Parrot(until), Parrot(99)]
    how = EvaluateStage(start="fresh")

    def go(engine: Parrot) -> Record:
        record = Record(tmp_path, ABOUT)
        answer(run, how, engine, asked, None, record)
        return record

    if until < len(asked):
        with pytest.raises(KeyboardInterrupt):
            go(engines[0])
    else:
        go(engines[0])
    found = go(engines[1]).texts
    assert all(f"what is {i}" in found[key(i, blind=True)] for i in asked) and len(found) == len(asked)
    both = engines[0].asked + engines[1].asked
    assert len(both) == len(set(both)) == len(asked)
    assert len(file.read_text().splitlines()) == 1 + len(asked) and json.loads(file.read_text().split("\n")[0]) == ABOUT


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_processes_share_the_pictures_out(count):
    asked = [Question(d, p, "vqa", "", f"{d} {p} {n}", "x") for d in "ab" for p in range(9) for n in range(1 + p % 4)]
    shares = [share(asked, process, count) for process in range(count)]
    assert sorted(n for each in shares for n in each) == list(range(len(asked)))
    of = [{(q.domain, q.picture) for q in each.values()} for each in shares]
    sizes = list(map(len, shares))
    assert sum(map(len, of)) == 18 and max(sizes) - min(sizes) <= 4


def test_a_model_that_a_process_has_no_room_for_is_told(tiny, mesh):
    leaves = blueprint(tiny).abstract(mesh, None)
    size = sum(np.prod(x.shape) * x.dtype.itemsize for x in leaves.values())
    check_room(leaves, SimpleNamespace(memory_stats=lambda: {"bytes_limit": size}))
    check_room(leaves, SimpleNamespace(memory_stats=lambda: None))  # a CPU says nothing
    with pytest.raises(ConfigError, match="GiB of each device of this process"):
        check_room(leaves, SimpleNamespace(memory_stats=lambda: {"bytes_limit": size - 1}))
