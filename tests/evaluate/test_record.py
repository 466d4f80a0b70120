"""An evaluation that is killed at any moment goes on: nothing is lost, nothing on record is asked again."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sphinx_jax.evaluate.record import Record
from sphinx_jax.generate.engine import Said
from sphinx_jax.recipe.stages.evaluate import Question, answer

ABOUT = {"questions": "a", "checkpoint": "b"}
TEXTS = {
    f"seen {i}": text for i, text in enumerate(["yes", "", 'a "quoted"\nline', "]", "\u2028", "[0.1, 0.2]", "[0.3]"])
}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_file_that_is_cut_anywhere_keeps_what_was_whole(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("record") / "answers.jsonl"
    record = Record(file, ABOUT)
    for key, text in TEXTS.items():
        record.add(key, text)
    record.close()
    whole = file.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    file.write_bytes(whole[:cut])
    again = Record(file, ABOUT)
    lines = whole[:cut].decode(errors="ignore").split("\n")
    # a line that lacks nothing but its end is whole
    assert again.texts.items() <= TEXTS.items() and len(again.texts) >= len(lines) - 2
    for key in TEXTS.keys() - again.texts.keys():
        again.add(key, TEXTS[key])
    again.close()
    assert Record(file, ABOUT).texts == TEXTS


def test_answers_to_something_else_are_thrown_away(tmp_path):
    file = tmp_path / "answers.jsonl"
    record = Record(file, ABOUT)
    record.add("seen 0", "yes")
    record.close()
    assert Record(file, ABOUT | {"checkpoint": "c"}).texts == {}
    assert Record(file, ABOUT).texts == {}, "the file is that of the other checkpoint now"


class Parrot:
    """An engine that answers with the prompt, the last first, and is killed after so many."""

    def __init__(self, until: int):
        self.until, self.asked = until, []

    def as_completed(self, requests):
        for number, request in reversed(list(enumerate(requests))):
            if len(self.asked) == self.until:
                raise KeyboardInterrupt
            self.asked.append(request.prompt)
            yield number, [Said(request.prompt, [], [], "stop")]


@pytest.mark.parametrize("until", [0, 1, 5, 9, 10])
def test_a_killed_evaluation_asks_nothing_twice(tmp_path, until):
    asked = [Question("real", i, "vqa", "", f"what is {i}", "x") for i in range(10)]
    run, file, engines = SimpleNamespace(quiet=True), tmp_path / "answers.jsonl", [Parrot(until), Parrot(99)]
    if until < len(asked):
        with pytest.raises(KeyboardInterrupt):
            answer(run, engines[0], asked, None, Record(file, ABOUT), "answering")
    else:
        answer(run, engines[0], asked, None, Record(file, ABOUT), "answering")
    found = answer(run, engines[1], asked, None, Record(file, ABOUT), "answering")
    assert all(f"what is {i}" in text for i, text in enumerate(found)) and len(found) == len(asked)
    both = engines[0].asked + engines[1].asked
    assert len(both) == len(set(both)) == len(asked)
    assert len(file.read_text().splitlines()) == 1 + len(asked) and json.loads(file.read_text().split("\n")[0]) == ABOUT
