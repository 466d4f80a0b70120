"""Items as people write them: other names, other forms, and what must not pass in silence."""

import base64
import json

import numpy as np
import pytest
from conftest import DATA
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sphinx_jax.data.conversation import SYSTEM, BadItem, Item, parse_item, read_items
from sphinx_jax.data.packing import PackedRows
from sphinx_jax.data.rows import Rows, Shape, Source
from sphinx_jax.data.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer(DATA / "tokenizer.model")
TALK = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "red"}]
TEXT = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
TURNS = (("What is it?", "red"),)
URL = "data:image/png;base64," + base64.b64encode(b"a picture").decode()


def openai(*contents, **more) -> dict:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)], **more}


def shown(url) -> list[dict]:
    return [{"type": "image_url", "image_url": url}, {"type": "text", "text": "What is it?"}]


@pytest.mark.parametrize(
    ("raw", "image"),
    [
        ({"image": "a.png", "conversations": TALK}, "a.png"),
        ({"image": ["a.png"], "conversations": TALK}, "a.png"),
        ({"images": ["a.png"], "conversations": TALK}, "a.png"),
        ({"images": "a.png", "conversations": TALK}, "a.png"),
        ({"image": "a.png", "images": ["a.png"], "conversations": TALK}, "a.png"),
        ({"image": "gs://bucket/a.png", "conversations": TALK}, "gs://bucket/a.png"),
        ({"image": URL, "conversations": TALK}, b"a picture"),
        ({"image": "a.png", "image_path": "/data/a.png", "video": "", "conversations": TALK}, "a.png"),
        (openai("<image>\nWhat is it?", "red", images=["a.png"]), "a.png"),
        (openai(shown({"url": "a.png", "detail": "high"}), "red"), "a.png"),
        (openai(shown({"url": URL}), [{"type": "text", "text": "red"}]), b"a picture"),
        (openai(shown("a.png"), "red", image="a.png"), "a.png"),
        (openai([{"type": "image"}, {"type": "text", "text": "What is it?"}], "red", images=["a.png"]), "a.png"),
        (openai([{"type": "image", "image": "a.png"}, {"type": "text", "text": "What is it?"}], "red"), "a.png"),
        (openai([{"image": "a.png"}, {"text": "What is it?"}], {"type": "text", "text": "red"}), "a.png"),
        (openai("What is it?", "red"), None),
        (openai("What is it?", "red", images=[], image=None), None),
        ({"messages": [{"from": "User", "value": "What is it?"}, {"from": "Assistant", "value": "red"}]}, None),
        ({"conversations": [{"role": "user", "content": "What is it?"}, {"role": "gpt", "content": "red"}]}, None),
    ],
)
def test_the_forms_that_people_have_are_read_alike(raw, image):
    assert parse_item(raw) == Item(image, TURNS, ("",))


def test_parts_of_a_message_are_its_lines():
    parts = [{"type": "text", "text": "A"}, {"type": "image_url", "image_url": "a.png"}, {"type": "text", "text": "B"}]
    assert parse_item(openai(parts, "x")).turns == (("A\n\nB", "x"),)
    assert parse_item(openai([], 3.5, True, "y")).turns == (("", "3.5"), ("True", "y"))


@pytest.mark.parametrize(
    "raw",
    [
        {"system": "Be brief.\n### Now", "conversations": TEXT},
        {"conversations": [{"from": "System", "value": " Be brief.\n### Now"}, *TEXT]},
        {"messages": [{"role": "developer", "content": [{"type": "text", "text": "Be brief.\n### Now"}]}, *TEXT]},
        {"system": "Be brief.\n### Now", "messages": [{"role": "system", "content": "Be brief.\n### Now"}, *TEXT]},
    ],
)
def test_a_system_text_is_what_stands_before_the_first_turn(raw):
    item, plain = parse_item(raw), parse_item({"conversations": TEXT})
    assert item.turns == plain.turns == (("Why?", "So."),)
    assert item.system == "Be brief.\n ### Now" and plain.system is None
    shape, rng = Shape(256), np.random.default_rng(0)

    def read(item):
        row = Rows(Source("s", [item]), TOKENIZER, shape).row(item, 0, rng)
        return TOKENIZER.decode([t for t in row["tokens"] if t]), row["tokens"][row["loss_mask"]]

    text, learnt = read(item)
    assert text.startswith("Be brief.\n ### Now\n\n### Human: Why?")
    assert TOKENIZER.decode(learnt) == "So.\n###"
    assert read(plain)[0].startswith(SYSTEM)


def test_packed_rows_have_the_system_text_and_measure_anew_where_it_changes(tmp_path):
    items = [parse_item({"system": text, "conversations": TEXT}) for text in ("Be brief.", "Be very brief.")]
    first, other = (PackedRows(Source("s", [item]), TOKENIZER, Shape(40, packed=True), 0, tmp_path) for item in items)
    assert TOKENIZER.decode(first[0]["tokens"].tolist()).startswith("Be brief.\n\n### Human")
    assert TOKENIZER.decode(other[0]["tokens"].tolist()).startswith("Be very brief.\n\n### Human")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"images": ["a.png", "b.png"], "conversations": TALK}, "2 pictures; one picture is what SPHINX takes"),
        ({"image": "a.png", "images": ["b.png"], "conversations": TALK}, "one picture is what SPHINX takes"),
        (openai(shown("a.png"), "red", *2 * [shown("b.png"), "red"]), "one picture is what SPHINX takes"),
        ({"image": [["a.png"]], "conversations": TALK}, '"image" must be a path'),
        ({"image": {"url": "a.png"}, "conversations": TALK}, '"image" must be a path'),
        ({"image": "https://example.org/a.png", "conversations": TALK}, "is a web address; download it"),
        (openai(shown("HTTP://example.org/a.png"), "red"), "is a web address; download it"),
        ({"image": "foo://a.png", "conversations": TALK}, "no known object store"),
        ({"image": "data:image/png;base64,???", "conversations": TALK}, "is not base64"),
        ({"image": "\ud800.png", "conversations": TALK}, "surrogate"),
        ({"image": "a\0.png", "conversations": TALK}, r"not a\x00.png"),
        ({"conversations": TALK}, 'holds <image> and the item has no picture; it is called "image"'),
        ({"text": "<image> A lighthouse."}, "holds <image> and the item has no picture"),
        ({"img": "a.png", "conversations": TEXT}, "key 'img' is not known; the picture is called \"image\""),
        ({"imgae": "a.png", "conversations": TEXT}, "key 'imgae' is not known"),
        ({"Image": "a.png", "conversations": TEXT}, "key 'Image' is not known"),
        ({"image_path": "a.png", "conversations": TEXT}, "key 'image_path' is not known"),
        ({"picture": "a.png", "text": "A lighthouse."}, "key 'picture' is not known"),
        ({"image": "a.png", "image2": "b.png", "conversations": TALK}, "key 'image2' is not known"),
        ({"video": "a.mp4", "conversations": TEXT}, "key 'video' cannot be used"),
        ({"system_prompt": "Be brief.", "conversations": TEXT}, 'the system text is called "system"'),
        ({"conversation": TEXT}, "key 'conversation' is not known: is it \"conversations\"?"),
        ({"Messages": TEXT}, 'is it "messages"?'),
        ({"conversations": TEXT, "messages": TEXT}, 'give "conversations" or "messages", not both'),
        ({"conversations": [TEXT[0] | {"image": "a.png"}, TEXT[1]]}, "message 0 has the key 'image'"),
        ({"conversations": [TEXT[0], {"from": "system", "value": "x"}, TEXT[1]]}, "a system text stands first"),
        ({"system": "a", "messages": [{"role": "system", "content": "b"}, *TEXT]}, "two system texts"),
        ({"system": {"a": 1}, "conversations": TEXT}, '"system" must be a text'),
        (openai("a", {"answer": "b"}), "message 1 must be a text, or a list of"),
        (openai("a", ["b"]), "it has 'b'"),
        (openai("a", [{"type": "audio", "audio": "b"}]), "message 1 must be a text"),
        (openai("a", [{"type": "text", "text": 3}]), "message 1 must be a text"),
        ({"conversations": TEXT, "task": ["a"]}, '"task" must be a text'),
        ({"conversations": TEXT, "tasks": [{}]}, '"tasks" must be a text'),
        ({"conversations": TEXT, "kinds": ["a", "b"]}, '"kinds" must be a list with one name for each of the 1'),
        ({"conversations": TEXT, "id": 10**5000}, '"id" is a number that is too long'),
        ({"conversations": TEXT, "domain": "\udc00"}, '"domain" holds half of a surrogate pair'),
    ],
)
def test_what_would_mean_something_else_is_refused_by_name(raw, reason):
    with pytest.raises(BadItem) as caught:
        parse_item(raw)
    assert reason in str(caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200


def test_null_names_are_none():
    item = parse_item({"conversations": TEXT, "task": None, "id": None, "domain": None, "image": None})
    assert item == Item(None, (("Why?", "So."),), ("",))
    assert parse_item({"conversations": TEXT, "tasks": [None], "kinds": ["why"]}).kinds == ("why",)


def test_keys_that_nothing_reads_are_said_once(tmp_path, caplog):
    raw = [{"source": "web", "width": 3, "conversations": TEXT}] * 3
    raw += [{"width": 3, "idx": 0, "image_id": 7, "text": "a", "conversations": [TEXT[0] | {"loss": 1}, TEXT[1]]}]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(raw))
    assert len(read_items(file)) == 4
    (record,) = caplog.records
    line = record.getMessage()
    assert line.startswith(f"{file}: keys that are not used: 'width' in 4, 'source' in 3, ")
    for said in ("'idx' in 1 (is it \"id\"?)", "'loss' in 1", "'text' in 1"):
        assert said in line
    caplog.clear()
    file.write_text(json.dumps([{f"key {i} " + "x" * 500: 1 for i in range(50)} | {"conversations": TEXT}]))
    read_items(file)
    (record,) = caplog.records
    assert "and 44 more" in record.getMessage() and len(record.getMessage()) < 400
    caplog.clear()
    file.write_text(json.dumps([{"image": "a.png", "conversations": TALK, "tasks": ["vqa"], "kinds": [""], "id": 1}]))
    read_items(file)
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b"", "not JSON"),
        ("a.json", b"\xff\xfe[\0]\0", "cannot be read"),
        ("a.json", b'{"image": 1}', "must hold a list of items, not dict"),
        ("a.json", b"{}\n{}", "one object a line is .jsonl"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.jsonl", b"{}\n" + b"1" * 5000, "line 2: a number is too long"),
        ("a.json", b"[NaN]", "item 0: an item must be an object, not float"),
        ("a.jsonl", b"\n\n", "has no items"),
        ("a.json", None, "Is a directory"),
        ("a\0.json", None, r"a\x00.json cannot be read"),
        ("x" * 5000 + ".json", None, "cannot be read"),
        ("\ud800.json", None, r"\ud800.json cannot be read"),
        ("https://example.org/a.json", None, "is a web address"),
    ],
)
def test_files_that_cannot_be_read_are_named_in_one_line(tmp_path, monkeypatch, name, content, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").mkdir() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_items(name)
    assert reason in str(caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


def test_a_byte_order_mark_and_another_case_are_no_matter(tmp_path):
    (tmp_path / "A.JSON").write_text(json.dumps([{"conversations": TEXT}]), encoding="utf-8-sig")
    assert len(read_items(tmp_path / "A.JSON")) == 1


WORDS = st.sampled_from(
    [
        "image",
        "images",
        "img",
        "video",
        "conversations",
        "messages",
        "from",
        "value",
        "role",
        "content",
        "human",
        "gpt",
        "system",
        "text",
        "type",
        "image_url",
        "url",
        "task",
        "tasks",
        "kinds",
        "domain",
        "id",
        "a.png",
        "gs://b/x",
        "https://x.org/a.png",
        "data:,x",
        "data:;base64,Zm9v",
        "foo://x",
        "<image>",
        "\n###",
        "\ud800",
        "\0",
    ]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | WORDS
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(), inner, max_size=5)
)
MESSAGE = st.fixed_dictionaries(
    {"from": st.sampled_from(["human", "gpt", "system", 3]), "value": JSON}, optional={"role": JSON, "image": JSON}
)
ITEMS = JSON | st.fixed_dictionaries(
    {"conversations": st.lists(MESSAGE, max_size=4)},
    optional={k: JSON for k in ("image", "images", "system", "tasks", "task", "id", "messages", "kinds")},
)


def usable(item: Item) -> bool:
    """Whether the model's side can work with it."""
    texts = [item.text, item.system or "", item.domain, item.id, *item.tasks, *item.kinds, *sum(item.turns, ())]
    "".join(texts).encode()
    return isinstance(item.image, str | bytes | None) and len(item.tasks) == len(item.turns) and "<image>" not in texts


@settings(max_examples=200)
@given(ITEMS)
def test_any_json_is_an_item_or_one_short_line(raw):
    try:
        assert usable(parse_item(raw))
    except BadItem as error:
        assert str(error).isprintable() and len(str(error)) < 300


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ITEMS, max_size=3) | JSON)
def test_any_list_is_read_or_one_short_line(tmp_path, caplog, raw):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(raw))
    caplog.clear()
    try:
        items = read_items(file)
        assert items and all(map(usable, items))
        said = [*items.skipped, *(record.getMessage() for record in caplog.records)]
    except ValueError as error:
        said = [str(error)]
    for line in said:
        assert line.isprintable() and len(line) < 400
