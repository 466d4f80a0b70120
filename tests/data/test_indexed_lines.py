"""Large lists in lines: what is read at once and what is read in places are the same, and memory does not grow."""

import json
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from sphinx_jax.data import joined
from sphinx_jax.data.conversation import read_items
from sphinx_jax.data.formats import indexed_lines
from sphinx_jax.data.formats.conversations import read_meta
from sphinx_jax.data.formats.indexed_lines import Lines, open_list, places
from sphinx_jax.data.messages import BadItem
from sphinx_jax.data.rows import Source
from sphinx_jax.data.sources import Data, DataConfig


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    """Any list counts as large, and what cannot be kept beside it is kept here."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(indexed_lines, "LARGE", 0)
    monkeypatch.setattr(indexed_lines, "CACHE", folder)
    return folder


def talk(question: str, answer: str, **more) -> dict:
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": said} | more


def write(file: Path, items) -> Path:
    file.write_text("\n".join(map(json.dumps, items)))
    return file


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
USABLE = st.one_of(
    st.builds(talk, WORDS, WORDS, domain=st.sampled_from(["", "real"]), task=st.sampled_from(["", "vqa", "rec"])),
    st.builds(talk, WORDS, WORDS, image=st.sampled_from(["a.png", "folder/b.png", "/c.png"]), odd=st.just(1)),
    st.builds(lambda words: {"text": f"x{words}"}, WORDS),
)
UNUSABLE = st.sampled_from([{}, [], 3, None, talk("no answer", "")["conversations"][:1], {"text": ""}, {"image": 4}])
LINES = st.builds(
    lambda item, ascii_only, before, after: before + json.dumps(item, ensure_ascii=ascii_only) + after,
    st.one_of(USABLE, USABLE, UNUSABLE),
    st.booleans(),
    *[st.sampled_from(["", "", " ", "\t"])] * 2,
)
BLANK = st.sampled_from(["", " ", "\t\t", "\x0c", "\xa0"])
BREAKS = st.sampled_from(["\n", "\n", "\r\n", "\r"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.one_of(LINES, LINES, BLANK), BREAKS), max_size=9), st.booleans(), st.booleans(), st.data())
def test_a_list_read_in_places_is_the_list_read_whole(tmp_path_factory, lines, marked, ended, data):
    file = tmp_path_factory.mktemp("lists") / "a.jsonl"
    text = "".join(line + end for line, end in lines)
    text = text if ended else text.rstrip("\r\n")
    file.write_bytes(text.encode("utf-8-sig" if marked else "utf-8"))
    root = data.draw(st.sampled_from([None, "pictures"]))
    try:
        whole = read_items(file, root)
    except BadItem as error:
        with pytest.raises(BadItem) as other:
            open_list(file, root)
        assert str(other.value) == str(error)
        assert [path.name for path in file.parent.iterdir()] == ["a.jsonl"]
        return
    for found in (open_list(file, root), open_list(file, root), pickle.loads(pickle.dumps(open_list(file, root)))):
        assert isinstance(found, Lines) and list(found) == list(whole) and len(found) == len(whole)
        assert tuple(found.skipped) == whole.skipped and found.skipped[:1] == whole.skipped[:1]
        assert found[-1] == whole[-1] and found[::-2] == list(whole)[::-2]
        with pytest.raises(IndexError):
            found[len(whole)]
        with pytest.raises(IndexError):
            found.skipped[len(whole.skipped)]
        for wanted in (
            lambda item: item.image is not None,
            lambda item: bool(item.text),
            lambda item: item.domain == "real",
            lambda item: "vqa" in item.tasks,
        ):
            expected = [wanted(item) for item in whole]
            assert joined.mask_of(found, wanted).tolist() == expected
            both = joined.Joined([joined.Chosen(found, np.arange(len(whole))[::-1]), found, whole])
            assert joined.mask_of(both, wanted).tolist() == expected[::-1] + expected * 2
            assert sum(count for item, count in joined.counted(both) if wanted(item)) == 3 * sum(expected)


@pytest.mark.parametrize(
    "content", ['{"text": "a"}\n\n{"text": ', '{"text": "a"} {}', "[" * 10**5, "9" * 5000, "1\n\r\n{"]
)
def test_what_is_no_json_is_told_as_of_a_list_read_whole(tmp_path, content):
    (tmp_path / "a.jsonl").write_bytes(content.encode())
    with pytest.raises(ValueError) as whole:
        read_items(tmp_path / "a.jsonl")
    with pytest.raises(ValueError) as found:
        open_list(tmp_path / "a.jsonl")
    assert str(found.value) == str(whole.value)
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_what_is_no_text_is_told_by_its_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n\n{"text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"a.jsonl cannot be read: line 3 is not UTF-8"):
        open_list(tmp_path / "a.jsonl")


def test_what_was_noticed_is_said_at_every_opening(tmp_path, caplog):
    file = write(tmp_path / "a.jsonl", [talk("q", "a\n### b", odd=1), talk("q", "a", odd=1), {}])
    read_items(file)
    whole = [record.getMessage() for record in caplog.records]
    assert len(whole) == 3
    for _ in range(2):
        caplog.clear()
        open_list(file)
        assert [record.getMessage() for record in caplog.records] == whole


def test_pictures_are_looked_for_as_by_a_list_read_whole(tmp_path, monkeypatch):
    (tmp_path / "lists" / "pictures").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("lists/1.png", "lists/pictures/2.png", "3.png"):
        (tmp_path / name).touch()
    os.symlink("nowhere", tmp_path / "4.png")
    names = [None, "gone.png", "3.png", "pictures/2.png", "1.png", "4.png", "gs://bucket/x.png", "x" * 300]
    file = write(Path("lists/a.jsonl"), [talk("a", "b", image=name) for name in names])
    assert list(open_list(file)) == list(read_items(file))
    assert list(open_list(file, "lists")) == list(read_items(file, "lists"))


def test_small_lists_and_those_of_other_kinds_are_read_whole(tmp_path, monkeypatch):
    file = write(tmp_path / "a.jsonl", [{"text": "a"}])
    monkeypatch.setattr(indexed_lines, "LARGE", file.stat().st_size)
    assert not isinstance(open_list(file), Lines)
    monkeypatch.setattr(indexed_lines, "LARGE", file.stat().st_size - 1)
    assert isinstance(open_list(file), Lines)
    (tmp_path / "a.json").write_text('[{"text": "a"}]')
    assert not isinstance(open_list(tmp_path / "a.json"), Lines)
    with pytest.raises(ValueError, match=r"gone.jsonl does not exist"):
        open_list(tmp_path / "gone.jsonl")


def looked_at(monkeypatch) -> list[int]:
    """A list that grows by one for every line that is looked at to make an index."""
    lines, made = [], indexed_lines._lines

    def counting(*args):
        for line in made(*args):
            lines.append(line[0])
            yield line

    monkeypatch.setattr(indexed_lines, "_lines", counting)
    return lines


@pytest.mark.parametrize("change", ["appended", "rewritten", "middle"])
def test_a_list_that_changed_is_read_anew_and_never_mixed_up(tmp_path, monkeypatch, change):
    lines = looked_at(monkeypatch)
    file = write(tmp_path / "a.jsonl", [{"text": f"text {i} " + "x" * 5000} for i in range(50)])
    before = open_list(file)
    assert len(open_list(file)) == 50 == len(lines)  # the second time nothing is looked at
    copied = pickle.dumps(before)
    if change == "appended":
        with file.open("a") as more:
            more.write('\n{"text": "one more"}')
    elif change == "rewritten":
        write(file, [{"text": f"other {i}"} for i in range(30)])
    else:
        with file.open("r+b") as same_size:
            same_size.seek(file.stat().st_size // 2 + 2000)
            same_size.write(b"yyy")
    for touch in (lambda: before[3], lambda: pickle.loads(copied)):
        with pytest.raises(ValueError, match="has changed since it was opened; start again"):
            touch()
    assert list(open_list(file)) == list(read_items(file))
    assert len(lines) == 50 + {"appended": 51, "rewritten": 30, "middle": 50}[change]


def test_a_list_of_the_same_size_and_time_is_told_by_its_ends(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"text": "one"}])
    time_ = file.stat().st_mtime_ns
    assert open_list(file)[0].text == "one"
    file.write_text('{"text": "two"}')
    os.utime(file, ns=(time_, time_))
    assert open_list(file)[0].text == "two"


@pytest.mark.parametrize("size", [0, 1, 40, -30, -1])
def test_an_index_that_is_damaged_is_made_anew(tmp_path, size):
    file = write(tmp_path / "a.jsonl", [{"text": f"{i}"} for i in range(9)])
    open_list(file)
    index = places(file)[0]
    content = index.read_bytes()
    index.write_bytes(content[:size])
    assert len(open_list(file)) == 9 and index.read_bytes() == content
    index.write_bytes(b"\0" + content)
    assert len(open_list(file)) == 9 and index.read_bytes() == content


def test_where_nothing_can_be_written_beside_it_the_index_is_kept_elsewhere(tmp_path, monkeypatch, cache):
    lines = looked_at(monkeypatch)
    file = write(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b"}])
    whole = Path.open

    def refusing(self, mode="r", *args, **settings):
        if self.parent == tmp_path and mode == "xb":
            raise PermissionError(13, "Permission denied")
        return whole(self, mode, *args, **settings)

    monkeypatch.setattr(Path, "open", refusing)
    for _ in range(2):
        assert [item.text for item in open_list(file)] == ["a", "b"]
    assert len(lines) == 2 and os.listdir(tmp_path) == ["a.jsonl"] and places(file)[1].is_relative_to(cache)
    other = write(tmp_path / "b.jsonl", [{"text": "of another list"}])
    assert open_list(other)[0].text == "of another list" and len(open_list(file)) == 2


BUILD = """
import sys
from pathlib import Path
from sphinx_jax.data.formats import indexed_lines
indexed_lines.LARGE = 0
list_ = indexed_lines.open_list(Path(sys.argv[1]))
print(len(list_), list_[len(list_) // 2].text)
"""


def build(file: Path, **settings) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", BUILD, str(file)], cwd=ROOT, stdout=subprocess.PIPE, **settings)


def test_two_that_make_an_index_at_once_and_one_that_is_killed_do_no_harm(tmp_path, monkeypatch):
    count = 60_000
    file = write(tmp_path / "a.jsonl", [{"text": f"text {i}"} for i in range(count)])
    killed = build(file)
    while not (drafts := list(tmp_path.glob("*.draft"))):
        assert killed.poll() is None
        time.sleep(0.001)
    killed.kill()
    killed.wait()
    assert not places(file)[0].exists() and list(tmp_path.glob("*.draft")) == drafts
    at_once = [build(file) for _ in range(2)]
    for one in at_once:
        assert one.communicate()[0].split() == [b"%d" % count, b"text", b"%d" % (count // 2)]
    # what the killed one left is not in the way, and goes when surely nobody writes it any more
    os.utime(drafts[0], (1, 1))
    with file.open("a") as more:
        more.write('\n{"text": "more"}')
    assert len(open_list(file)) == count + 1
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "a.jsonl.sphinx_jax.index"]


MEMORY = """
import resource, sys
from pathlib import Path
from sphinx_jax.data.formats.indexed_lines import Lines
few = Lines(Path(sys.argv[2]))  # all that is imported on the way
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
items = Lines(Path(sys.argv[1]))
assert items[len(items) - 1].turns[0][0].startswith("What is")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_does_not_grow_with_the_list(tmp_path):
    with (tmp_path / "a.jsonl").open("w") as file:
        for i in range(300_000):
            file.write(json.dumps(talk(f"What is {i}?", f"It is number {i}.", task="vqa", domain="real")) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "a"}))

    command = [sys.executable, "-c", MEMORY, str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    for _ in range(2):  # the index is made, and found
        more = int(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
        # of the index, 24 bytes a line, pages are in memory as long as nobody else wants them; read whole it is 270 MB
        assert more < 24 * 300_000 + 6e6


def test_threads_read_one_list(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"text": f"{i} " + "x" * (i % 91)} for i in range(500)])
    items, numbers = open_list(file), np.random.default_rng(0).integers(0, 500, 4000)
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda i: items[int(i)].text, numbers))
    assert [int(text.split()[0]) for text in texts] == numbers.tolist()


def test_a_recipe_finds_what_it_finds_in_a_list_read_whole(tmp_path, monkeypatch):
    """Domains, pictures, texts, shares, what cannot be used, tasks: with no line parsed but those asked for."""
    kinds = [{"image": f"{i}.png", "domain": d, "task": t} for i, d in enumerate(("real", "")) for t in ("vqa", "rec")]
    items = [talk(f"question {i}", "answer", **kinds[i % 4]) for i in range(40)]
    items[3:3] = [{}, {"text": "a document"}, talk("text", "alone")]
    write(tmp_path / "a.jsonl", items)

    def found(ratio: float) -> list:
        (tmp_path / "list.yaml").write_text(json.dumps({"META": [{"path": "a.jsonl", "ratio": ratio}]}))
        (entry,) = read_meta(tmp_path / "list.yaml", 5)
        data = Data(DataConfig(None, meta={"train": str(tmp_path / "list.yaml")}), tmp_path)
        parts = [data.pictures("train", domain) for domain in ("*", "real", "other")] + [data.texts("train")[0].items]
        sources = [Source("s", part, task_weights={"vqa": 0.0}) for part in parts]
        eligible = [np.asarray(source.eligible).tolist() for source in sources]
        told = [entry.type, data.domains("train"), list(data.unreadable("train")), len(data.listed("train")), eligible]
        parsed.clear()
        return [*told, [list(part) for part in parts], list(data.listed("train"))]

    parsed, parse = [], indexed_lines.parse_item
    for ratio in (1.0, 0.5):
        monkeypatch.setattr(indexed_lines, "LARGE", 10**9)
        whole = found(ratio)
        monkeypatch.setattr(indexed_lines, "LARGE", 0)
        assert found(ratio) == whole
    monkeypatch.setattr(indexed_lines, "parse_item", lambda *args: parsed.append(0) or parse(*args))
    data = Data(DataConfig(None, meta={"train": str(tmp_path / "list.yaml")}), tmp_path)
    pictures = data.pictures("train", "real")
    assert len(Source("s", pictures, task_weights={"vqa": 0.0}).eligible) and data.domains("train")["real"]
    assert data.texts("train") and len(data.unreadable("train")) == 1
    assert len(parsed) == 1  # the line of the log names what is left out first
    assert pictures[0].domain == "real" and len(parsed) == 2
