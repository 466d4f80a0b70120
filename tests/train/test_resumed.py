"""Where the data of a stage goes on: kinds that join and leave, other sizes, checkpoints of earlier versions."""

import json

import pytest

from sphinx_jax.checkpoint import store
from sphinx_jax.data.rows import Source
from sphinx_jax.train.resumed import place


def source(name: str, weight: float = 1.0) -> Source:
    return Source(name, ["a text"], weight)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of a step whose recipe says this."""

    def save(step, told):
        folder = tmp_path / str(step)
        folder.mkdir()
        (folder / store.RECIPE).write_text(json.dumps(told))
        return folder

    return save


def test_rows_go_on_where_they_were_whatever_the_size_of_a_step(saved):
    first = place(None, {"image": [source("a")]}, {"image": 4})
    assert first.at(0) == {"image": 0} and first.at(10) == {"image": 40}
    second = place(saved(10, first.told(10)), {"image": [source("a")]}, {"image": 6})
    assert second.at(10) == {"image": 40} and second.at(15) == {"image": 70} and not second.changed()
    third = place(saved(15, second.told(15)), {"image": [source("a"), source("b")]}, {"image": 6})
    assert third.at(15) == {"image": 70}
    assert third.changed() == ["from image row 70 on the shares are a 50.0%, b 50.0%, they were a 100.0%"]
    assert [(phase.begin, dict(phase.of)) for phase in third.phases["image"]] == [
        (0, {"a": 1.0}), (70, {"a": 1.0, "b": 1.0})
    ]  # fmt: skip


def test_a_kind_that_joins_begins_and_one_that_left_goes_on_when_it_is_back(saved):
    first = place(None, {"image": [source("a")]}, {"image": 4})
    both = {"image": [source("a")], "text": [source("t")]}
    second = place(saved(10, first.told(10)), both, {"image": 4, "text": 2})
    assert second.at(10) == {"image": 40, "text": 0} and second.at(20) == {"image": 80, "text": 20}
    third = place(saved(20, second.told(20)), {"text": [source("t")]}, {"text": 2})
    assert third.at(30) == {"text": 40}
    fourth = place(saved(30, third.told(30)), both, {"image": 4, "text": 2})
    assert fourth.at(30) == {"image": 80, "text": 40} and not fourth.changed()


def test_a_checkpoint_of_an_earlier_version_is_told_of_and_its_rows_are_those_of_its_steps(saved):
    alone = place(saved(90, {"made_by": "train"}), {"image": [source("a")]}, {"image": 4})
    assert alone.at(90) == {"image": 360} and not alone.changed()
    first = place(saved(100, {"made_by": "train"}), {"image": [source("a"), source("b")]}, {"image": 4})
    assert first.at(100) == {"image": 400} and "of an earlier version" in first.changed()[0]
    second = place(saved(110, first.told(110)), {"image": [source("b"), source("a")]}, {"image": 4})
    assert second.at(110) == {"image": 440} and not second.changed()
