import json
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st

from sphinx_jax.data import conversation as talk
from sphinx_jax.data.formats.conversations import read_meta
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.paths import shortened

REFERENCE = json.loads((DATA / "dialog" / "dialog.json").read_text())
TOKENIZER = load_tokenizer(DATA / "tokenizer.model")
TEXT_TOKENS = REFERENCE["max_words_text"]

MESSAGES = st.text(st.sampled_from("the cat 12 é你.\n#:[],HA"), max_size=12).map(talk.clean)
TURNS = st.lists(st.tuples(MESSAGES, MESSAGES), min_size=1, max_size=4)


def items(name: str) -> talk.Items:
    (entry,) = read_meta(DATA / "dialog" / f"{name}.yaml")
    return entry.items


def write(path: Path, value) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def conversation(*values) -> dict:
    return {"conversations": [{"from": ("human", "gpt")[i % 2], "value": v} for i, v in enumerate(values)]}


@pytest.mark.parametrize(
    "name",
    [
        "text_single",
        "text_multi",
        "image_single",
        "image_multi_unicode",
        "overlong_image",
        "overlong_text",
        "empty_answer",
    ],
)
def test_tokens_labels_and_mask_equal_the_reference(name):
    (item,) = items(name)
    text, spans = talk.render(item.turns)
    assert text == REFERENCE["items"][f"{name}/0"]["conversation"]
    assert [text[start:end] for start, end in spans] == REFERENCE["items"][f"{name}/0"]["to_predict"]
    encoded = talk.pad(talk.encode_conversation(item.turns, TOKENIZER, TEXT_TOKENS), TEXT_TOKENS)
    with np.load(DATA / "dialog" / "dialog.npz") as arrays:
        for ours in ("tokens", "labels", "mask"):
            np.testing.assert_array_equal(getattr(encoded, ours), arrays[f"{name}/0/{ours}"], err_msg=ours)
    assert encoded.tokens.dtype == encoded.labels.dtype == np.int32


def test_an_answer_that_ends_the_question_keeps_its_label():
    encoded = talk.encode_conversation([("Say 12\n### ok", "12")], TOKENIZER, TEXT_TOKENS)
    with np.load(DATA / "dialog" / "dialog.npz") as arrays:
        tokens = arrays["repeat_answer_in_question/0/tokens"]
        stolen = np.flatnonzero(arrays["repeat_answer_in_question/0/labels"])
    np.testing.assert_array_equal(encoded.tokens, tokens[: len(encoded)])
    learnt = np.flatnonzero(encoded.labels)
    assert TOKENIZER.decode(encoded.tokens[learnt].tolist()) == "12\n###"
    np.testing.assert_array_equal(tokens[learnt], tokens[stolen])
    # The last six before EOS, not the six in the question.
    np.testing.assert_array_equal(learnt, np.arange(len(encoded) - 7, len(encoded) - 1))
    assert stolen[-1] < learnt[0]


def test_a_conversation_without_a_label_left_is_refused():
    long, short = items("all_zero")
    with pytest.raises(talk.BadItem, match="first answer begins at token .*, beyond the 512"):
        talk.encode_conversation(long.turns, TOKENIZER, TEXT_TOKENS)
    encoded = talk.pad(talk.encode_conversation(short.turns, TOKENIZER, TEXT_TOKENS), TEXT_TOKENS)
    with np.load(DATA / "dialog" / "dialog.npz") as arrays:
        np.testing.assert_array_equal(encoded.tokens, arrays["all_zero/0/tokens"])
        np.testing.assert_array_equal(encoded.labels, arrays["all_zero/0/labels"])


def test_template_equals_the_reference():
    reference = REFERENCE["templates"]["default"]
    text, spans = talk.render([("Q1", "A1"), ("Q2", None)])
    assert text == reference["prompt"]
    assert [text[start:end] for start, end in spans] == ["A1\n###"]
    assert talk.render([("Q1", "A1"), ("Q2", "A2")])[0] == reference["full"]["conv"]
    assert reference["end"] == talk.STOP


@settings(max_examples=200)
@given(TURNS)
def test_labels_are_exactly_the_answers(turns):
    """What is learnt of each turn reads as its answer, whatever else in the conversation reads the same."""
    encoded = talk.encode_conversation(turns, TOKENIZER, 10_000)
    assert encoded.tokens[0] == TOKENIZER.bos_id and encoded.tokens[-1] == TOKENIZER.eos_id
    np.testing.assert_array_equal(encoded.loss_mask, encoded.turn >= 0)
    np.testing.assert_array_equal(encoded.labels, encoded.tokens * encoded.loss_mask)
    for i, (_, answer) in enumerate(turns):
        where = np.flatnonzero(encoded.turn == i)
        np.testing.assert_array_equal(np.diff(where), 1)
        assert TOKENIZER.decode(encoded.labels[where].tolist()) == answer + talk.STOP
        # Up to there stands what a prompt for this very answer holds.
        prompt, _ = talk.render([*turns[:i], (turns[i][0], None)])
        assert TOKENIZER.encode(prompt, bos=True) == encoded.tokens[: where[0]].tolist()


@settings(max_examples=100)
@given(TURNS, st.integers(1, 260))
def test_cutting_only_drops_the_end(turns, room):
    whole = talk.encode_conversation(turns, TOKENIZER, 10_000)
    if not whole.loss_mask[:room].any():
        with pytest.raises(talk.BadItem):
            talk.encode_conversation(turns, TOKENIZER, room)
        return
    cut = talk.encode_conversation(turns, TOKENIZER, room)
    assert len(cut) == min(room, len(whole))
    padded = talk.pad(cut, 300 + len(cut))
    for name, fill in (("tokens", 0), ("loss_mask", False), ("mask", False), ("turn", -1), ("task", -1)):
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name)[:room])
        np.testing.assert_array_equal(getattr(padded, name)[: len(cut)], getattr(cut, name))
        assert (getattr(padded, name)[len(cut) :] == fill).all()
        assert getattr(padded, name).dtype == getattr(whole, name).dtype


def test_task_ids_follow_the_turns():
    turns = [("a", "the cat"), ("b", "the box"), ("c", "red")]
    encoded = talk.encode_conversation(turns, TOKENIZER, 500, task_ids=[7, 3, 7])
    for turn, task in ((0, 7), (1, 3), (2, 7), (-1, -1)):
        assert set(encoded.task[encoded.turn == turn]) == {task}
    with pytest.raises(ValueError, match="2 task_ids for 3 turns"):
        talk.encode_conversation(turns, TOKENIZER, 500, task_ids=[1, 2])


class ZeroTokenizer:
    """Character codes, with the letter z as token 0: a vocabulary whose id 0 is ordinary text."""

    bos_id, eos_id, unk_id, vocab_size = 1, 2, None, 0x110000

    def encode_with_spans(self, text):
        return [0 if c == "z" else ord(c) for c in text], [(i, i + 1) for i in range(len(text))]


@pytest.mark.parametrize("unknown", [None, 0])
def test_token_zero_is_learnt_unless_it_stands_for_the_unknown(unknown, monkeypatch):
    monkeypatch.setattr(ZeroTokenizer, "unk_id", unknown)
    encoded = talk.encode_conversation([("q", "xzy")], ZeroTokenizer(), 1000)
    learnt = [chr(c) if c else "z" for c in encoded.tokens[encoded.loss_mask]]
    assert learnt == [" ", "x", *["z"] * (unknown is None), "y", "\n", "#", "#", "#"]
    np.testing.assert_array_equal(encoded.turn >= 0, encoded.loss_mask)
    assert encoded.mask.all()
    assert (encoded.tokens == 0).sum() == 1


def test_a_turn_that_is_not_answered_is_refused_unless_last():
    with pytest.raises(talk.BadItem, match="turn 0 of 2 has no answer"):
        talk.render([("a", None), ("b", "c")])
    with pytest.raises(talk.BadItem, match="no turns"):
        talk.render([])
    with pytest.raises(talk.BadItem, match="no answer to learn from"):
        talk.encode_conversation([("a", None)], TOKENIZER, 500)
    with pytest.raises(ValueError, match="does not fit into 5"):
        talk.pad(talk.encode_conversation([("a", "b")], TOKENIZER, 500), 5)


def test_values_are_cleaned_as_the_reference_does():
    assert items("image_multi_unicode")[0].turns == (
        ("Describe café 你好", "你好! A bird — 12 apples."),
        ("x = 3", "7"),
    )
    assert items("text_multi")[0].turns[1] == ("Count 3 white cups.", "1, 2, 3")
    assert items("empty_answer")[0].turns == (("Say", ""), ("Hi", "two  spaces"))


def test_a_message_cannot_hold_what_ends_it():
    """Only a line's beginning counts: a message begins behind a colon and a blank."""
    for text, cleaned in (
        ("red\n### star\nblue", "red\n ### star\nblue"),
        ("a\r\n###b", "a\r\n ###b"),
        ("a\n<image>###\n\n####", "a\n ###\n\n ####"),
        ("a\n#<image>##", "a\n ###"),
        ("### a ###\n## b", "### a ###\n## b"),
        ("\n### a\n ### b\n", "### a\n ### b"),
    ):
        assert talk.clean(text) == cleaned == talk.clean(cleaned)
    raw = conversation("q", "red\n### star\nblue") | {"text": None}
    assert talk.parse_item(raw).turns == (("q", "red\n ### star\nblue"),)
    # a document stands in no template
    assert talk.parse_item({"text": "a\n### b"}).text == "a\n### b"


def test_reading_says_once_how_many_items_held_the_stop_text(tmp_path, caplog):
    raw = [conversation("q", "a\n### b"), conversation("q", "### b"), {"text": "a\n###"}]
    talk.read_items(write(tmp_path / "a.json", raw))
    (record,) = caplog.records
    assert 'a.json: items with a line that begins with "###": 1;' in record.getMessage()


def test_json_and_jsonl_hold_the_same_items(tmp_path):
    raw = [conversation("a", "b") | {"id": 3, "domain": "real"}, conversation("c", "x\u2028y", "e", 5)]
    raw[1]["tasks"] = ["rec", "vqa"]
    raw[0]["task"] = "reg"
    one = talk.read_items(write(tmp_path / "a.json", raw))
    lines = "\n".join(json.dumps(r, ensure_ascii=False) for r in raw)
    other = talk.read_items(write(tmp_path / "a.jsonl", lines + "\n\n"))
    assert list(one) == list(other)
    assert one[0] == talk.Item(None, (("a", "b"),), ("reg",), domain="real", id="3")
    assert one[1] == talk.Item(None, (("c", "x\u2028y"), ("e", "5")), ("rec", "vqa"))
    assert len(one[1:]) == 1 and one.skipped == ()


def test_unusable_items_are_left_out_and_told(tmp_path, caplog):
    raw = [conversation("a", "b"), conversation("no answer"), conversation("c", "d"), "text"]
    read = talk.read_items(write(tmp_path / "mixed.json", raw))
    assert [item.turns[0][0] for item in read] == ["a", "c"]
    assert len(read.skipped) == 2
    assert "mixed.json, item 1: the last question has no answer" in read.skipped[0]
    assert "mixed.json, item 3: an item must be an object, not str" in read.skipped[1]
    assert "2 of 4 items left out" in caplog.text


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({}, '"conversations" is missing'),
        ({"conversations": []}, "missing or empty"),
        ({"conversations": [{"from": "human"}]}, 'message 0 lacks "from" or "value"'),
        (conversation("a", None), "message 1 lacks"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "message 0 is out of turn"),
        ({"conversations": [{"from": "system", "value": "a"}]}, "a system text and no question"),
        ({"conversations": [{"from": "tool", "value": "a"}]}, "from 'tool'"),
        (conversation("a", "b", "c"), "last question has no answer"),
        (conversation("a", "b") | {"image": 3}, '"image" must be a path'),
        (conversation("a", "b") | {"tasks": ["x", "y"]}, "each of the 1 turns"),
        (conversation("a\ud83d", "b"), "surrogate"),
    ],
)
def test_bad_items_say_why_and_where(tmp_path, raw, reason):
    path = write(tmp_path / "bad.json", [raw])
    with pytest.raises(talk.BadItem) as caught:
        talk.read_items(path)
    assert reason in str(caught.value) and f"{shortened(path)}, item 0: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("speaker", ["gpt", "GPT", "assistant", "Assistant"])
def test_speakers_in_any_case(speaker):
    messages = [{"from": "Human", "value": "a"}, {"from": speaker, "value": "b"}]
    assert talk.parse_item({"conversations": messages}).turns == (("a", "b"),)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.json does not exist"):
        talk.read_items(tmp_path / "gone.json")
    with pytest.raises(ValueError, match=r"a\.csv is neither \.json nor \.jsonl"):
        talk.read_items(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"cut\.json, line 1: not JSON"):
        talk.read_items(write(tmp_path / "cut.json", '[{"conversations": ['))
    good = json.dumps(conversation("a", "b"))
    with pytest.raises(ValueError, match=r"cut\.jsonl, line 3: not JSON"):
        talk.read_items(write(tmp_path / "cut.jsonl", f"{good}\n{good}\n{good[:-5]}"))
    with pytest.raises(ValueError, match="must hold a list of items, not dict"):
        talk.read_items(write(tmp_path / "one.json", conversation("a", "b")))
    for name, content in (("empty.json", "[]"), ("empty.jsonl", "")):
        with pytest.raises(ValueError, match=f"{name} has no items"):
            talk.read_items(write(tmp_path / name, content))


def test_pictures_are_found_beside_the_file_or_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "x.png").touch()
    path = write(tmp_path / "beside" / "a.json", [conversation("a", "b") | {"image": "x.png"}])
    assert talk.read_items(path)[0].image == str(tmp_path / "beside" / "x.png")
    assert talk.read_items(path, root="elsewhere")[0].image == str(Path("elsewhere", "x.png"))
    (tmp_path / "x.png").touch()
    monkeypatch.chdir(tmp_path)
    assert talk.read_items(path)[0].image == "x.png"
    absolute = str(tmp_path / "x.png")
    write(path, [conversation("a", "b") | {"image": absolute}])
    assert talk.read_items(path, root="elsewhere")[0].image == absolute


def test_each_picture_is_looked_for_on_its_own(tmp_path, monkeypatch):
    """Whether the others are there, or some are in another place, or texts come first, tells nothing about one."""
    (tmp_path / "lists" / "pictures").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("lists/1.png", "lists/pictures/2.png", "3.png"):
        (tmp_path / name).touch()
    names = [None, "gone.png", "3.png", "pictures/2.png", "1.png", "no/folder.png", "gs://bucket/x.png", "x" * 300]
    raw = [conversation("a", "b") | {"image": name} for name in names]
    items = talk.read_items(write(Path("lists/a.json"), raw))
    assert [item.image for item in items] == [
        None,
        "lists/gone.png",
        "3.png",
        "lists/pictures/2.png",
        "lists/1.png",
        "lists/no/folder.png",
        "gs://bucket/x.png",
        "lists/" + "x" * 300,
    ]


@pytest.mark.parametrize("name", sorted(path.stem for path in (DATA / "dialog").glob("*.yaml")))
def test_the_references_configs_read_as_they_are(name):
    (entry,) = read_meta(DATA / "dialog" / f"{name}.yaml")
    has_image = "image" in name
    assert entry.type == ("image" if has_image else "text")
    assert Path(entry.path).is_file() and entry.ratio == 1
    for item in entry.items:
        assert (item.image is not None) == has_image
        assert not has_image or Path(item.image).is_file()


def meta(folder: Path, **entry) -> Path:
    return write(folder / "data.yaml", {"META": [entry]})


def test_ratio_draws_a_seeded_sample_in_order(tmp_path):
    write(tmp_path / "a.json", [conversation(i, i) for i in range(100)])
    config = meta(tmp_path, path="a.json", ratio=0.3)

    def drawn(seed):
        return [int(item.turns[0][0]) for item in read_meta(config, seed)[0].items]

    assert len(drawn(0)) == 30 == len(set(drawn(0)))
    assert drawn(0) == sorted(drawn(0)) == drawn(0)
    assert drawn(0) != drawn(1)


def test_type_is_told_by_the_pictures_where_it_is_not_given(tmp_path):
    write(tmp_path / "a.json", [conversation("a", "b")])
    write(tmp_path / "b.json", [conversation("a", "b") | {"image": "x.png"}])
    assert read_meta(meta(tmp_path, path="a.json"))[0].type == "text"
    assert read_meta(meta(tmp_path, path="b.json"))[0].type == "image"


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"type": "text"}, 'has no "path"'),
        ({"path": "gone.json"}, r"gone\.json does not exist"),
        ({"path": "a.json", "ratio": 0}, "ratio must be a number above 0"),
        ({"path": "a.json", "ratio": "half"}, "not 'half'"),
        ({"path": "a.json", "ratio": 0.5, "count": 1}, "has a count and a ratio"),
        ({"path": "gone"}, "nor a folder of prepared data that is there"),
        ({"path": "00000.tar"}, "tools/prepare_data.py makes of it what a list can name"),
        ({"path": "a.json", "roots": "x"}, 'unknown key "roots"'),
        ({"path": "a.json", "root": 3}, "root must be a text, not 3"),
        ({"path": "a.json", "type": ["text"]}, "type must be a text"),
        ({"path": "https://example.org/a.json"}, "is a web address"),
        ({"path": "x" * 5000 + ".json"}, "cannot be read"),
        ({"path": "a\0.json"}, "cannot be read"),
        ({"path": "folder.json"}, "Is a directory"),
        ({"path": "unusable.json"}, "has no items"),
    ],
)
def test_bad_entries_name_config_and_entry(tmp_path, entry, reason):
    write(tmp_path / "a.json", [conversation("a", "b")])
    write(tmp_path / "unusable.json", [])
    (tmp_path / "folder.json").mkdir()
    config = meta(tmp_path, **entry)
    with pytest.raises(ValueError, match=reason) as caught:
        read_meta(config)
    assert f"{shortened(config)}, META entry 0" in str(caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


def test_bad_configs_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.yaml does not exist"):
        read_meta(tmp_path / "gone.yaml")
    with pytest.raises(ValueError, match="must hold a list named META"):
        read_meta(write(tmp_path / "a.yaml", {"DATA": []}))
    with pytest.raises(ValueError, match="is not YAML") as caught:
        read_meta(write(tmp_path / "b.yaml", "META: [\n- a: {"))
    assert "\n" not in str(caught.value)
    for content in (
        "META: " + "[" * 5000,
        "META: 2001-99-99",
        "META: [{1: 2, a: 3, path: x}]",
        "\0",
        "META: &a [*a]",
        "META: [{path: a.json, ratio: .nan}]",
    ):
        with pytest.raises(ValueError, match=r"c\.yaml") as caught:
            read_meta(write(tmp_path / "c.yaml", content))
        assert str(caught.value).isprintable() and len(str(caught.value)) < 300
