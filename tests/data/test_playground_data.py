import collections
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sphinx_jax.data.conversation import Item
from sphinx_jax.data.playground import make_picture, text
from sphinx_jax.data.playground.photos import SPLITS


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    from sphinx_jax.data.playground import builder

    folder = tmp_path_factory.mktemp("data")
    return builder, folder, builder.open_playground(folder, "nano", "validation", "real")


def test_records_are_the_pictures(nano):
    _, _, source = nano
    assert len(source) == 32
    for index in (0, 7, 31, -1):
        made = make_picture(0, "validation", "real", index % 32)
        record = source[index]
        assert record["image"] == made.image and record["id"] == made.id and record["scene"] == made.scene
        assert record["labels"] == made.labels and record["sources"] == list(made.sources)
        assert [tuple(t[k] for k in ("task", "kind", "question", "answer")) for t in record["turns"]] == [
            (t.task, t.kind, t.question, t.answer) for t in made.turns
        ]
    with pytest.raises(IndexError):
        source[32]


def test_a_built_data_set_is_not_built_again(nano, monkeypatch):
    builder, folder, _ = nano
    monkeypatch.setattr(builder, "pictures", lambda *_: pytest.fail("made again"))
    assert len(builder.open_playground(folder, "nano", "train", "synthetic")) == 64


def test_unknown_config_is_named(tmp_path):
    from sphinx_jax.data.playground import builder

    with pytest.raises(ValueError, match="'huge'.*nano, quick, full"):
        builder.open_playground(tmp_path, "huge")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_leaves_no_valid_half(tmp_path, how):
    from sphinx_jax.data.playground import builder

    code = f"from sphinx_jax.data.playground import builder; builder.open_playground({str(tmp_path)!r}, 'full')"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.time() + 15
    while not list(tmp_path.rglob("*incomplete*")) and time.time() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(how)
    assert process.wait(20) != 0
    assert not (tmp_path / "playground" / "full" / "1.0.0").exists()
    assert len(builder.open_playground(tmp_path, "nano", "test", "synthetic")) == 32


# --- text


def test_prose_is_plain_and_split_by_document():
    documents = {split: text.prose(split) for split in SPLITS}
    assert sum(map(len, documents["train"])) > 100_000
    for split in SPLITS:
        assert len(documents[split]) > 5
        assert not any("###" in d or ">>>" in d or "----" in d for d in documents[split])
    paragraphs = [{p for d in documents[split] for p in d.split("\n")} for split in SPLITS]
    assert not (paragraphs[0] & paragraphs[1] or paragraphs[0] & paragraphs[2] or paragraphs[1] & paragraphs[2])


@given(st.integers(0, 1000), st.sampled_from(SPLITS), st.integers(0, 10**6))
@settings(max_examples=50)
def test_text_depends_on_its_arguments_alone(seed, split, index):
    pairs = text.dialogue(seed, split, index)
    assert pairs == text.dialogue(seed, split, index) and pairs
    assert text.descriptions(seed, split, index) == text.descriptions(seed, split, index)
    for question, answer in pairs:
        assert question.strip() == question and answer.strip() == answer and answer
        words = question.rstrip("?").split()
        if question.startswith("What is ") and "plus" in words:
            assert int(answer) == int(words[2]) + int(words[4])
        if question.startswith("Which is larger"):
            assert int(answer) == max(int(words[3].strip(",")), int(words[5]))
        if question.startswith("How many letters"):
            assert int(answer) == len(words[4])
        if question.startswith("Repeat: "):
            assert question == f"Repeat: {answer}"


def test_the_stream_holds_every_sort_of_text():
    stream = text.stream(0, "validation")
    assert len(stream) == 300
    sorts = collections.Counter(type(entry) for entry in stream)
    assert sorts[str] == 200 and sorts[Item] == 100
    item = stream[1 if isinstance(stream[1], Item) else 2]
    assert item.image is None and len(item.tasks) == len(item.turns)
    assert stream[-1] == stream[299]
    with pytest.raises(IndexError):
        stream[300]
