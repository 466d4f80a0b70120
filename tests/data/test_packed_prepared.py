"""Token lengths that are recorded with prepared data, and rows that are packed by them without counting anything."""

import functools
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, ROOT

from sphinx_jax.data import open_prepared, packing
from sphinx_jax.data.conversation import Item, encode_conversation
from sphinx_jax.data.formats.files import BadData
from sphinx_jax.data.formats.prepared import Kept, Prepared
from sphinx_jax.data.joined import Chosen, Joined
from sphinx_jax.data.lengths import digest_of
from sphinx_jax.data.order import Order as NearOrder
from sphinx_jax.data.packing import PackedRows
from sphinx_jax.data.prepare import copy, count
from sphinx_jax.data.prepare.pipeline import InProcesses, OnBeam, Order, prepare
from sphinx_jax.data.rows import Shape, Source, system_of
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.recipe.recipe import PLAYGROUND

HERE = InProcesses(1, quiet=True)
FILE = DATA / "tokenizer.model"
TOKENIZER = load_tokenizer(FILE)
OTHER = PLAYGROUND / "tokenizer.model"
SHAPE = Shape(61, packed=True)


@pytest.fixture(scope="module")
def lists(tmp_path_factory) -> list[Path]:
    """Documents and conversations, with system texts and without."""
    folder, files = tmp_path_factory.mktemp("lists"), []
    for n in range(3):
        lines = []
        for i in range(60):
            said = [("human", f"question {n} {i}"), ("gpt", f"answer {'so ' * (i % 7)}{i}")] * (1 + i % 2)
            talk = [{"from": who, "value": value} for who, value in said]
            document = {"text": f"text {n} {i} " + "word " * (i * 7 % 40)}
            lines.append(document if i % 3 else {"conversations": talk, "system": "Say it." * (i % 2)})
        files.append(folder / f"{n}.jsonl")
        files[-1].write_text("\n".join(map(json.dumps, lines)))
    return files


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(copy, "SHARD", 7)


def order(lists, out: Path, tokenizer: Path | None = FILE) -> Order:
    return Order("chats", lists, out, tokenizer=tokenizer)


def files_of(folder: Path) -> dict[str, str]:
    return {p.name: sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


def tokens_of(item: Item, tokenizer=TOKENIZER) -> list[int]:
    """Without packing's own functions."""
    if item.text:
        return tokenizer.encode(item.text, bos=True, eos=True)
    return encode_conversation(item.turns, tokenizer, 10**9, system=system_of(item)).tokens.tolist()


def nothing_counted(monkeypatch):
    def never(*_):
        raise AssertionError("a text was counted")

    monkeypatch.setattr(PackedRows, "_count", never)
    monkeypatch.setattr(PackedRows, "_digest", never)


def epoch(packed: PackedRows, number: int) -> np.ndarray:
    """The tokens of an epoch."""
    begin, end = number * packed.total, (number + 1) * packed.total
    length = packed.rows.shape.length
    rows = range(begin // length, -(-end // length))
    tokens = np.concatenate([packed[n]["tokens"] for n in rows])
    return tokens[begin - rows[0] * length :][: packed.total]


def texts_in(tokens: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(part.tolist()) for part in np.split(tokens, np.flatnonzero(tokens == TOKENIZER.bos_id)[1:])]


def test_each_shard_has_the_tokens_of_its_items_and_the_manifest_their_sums(lists, tmp_path, small_shards):
    items = prepare(order(lists, tmp_path / "out"), each=HERE)
    digest = digest_of(TOKENIZER)
    expected = [len(tokens_of(item)) for item in items]
    assert len(items) == 180 and items.manifest["tokens"] == {digest: sum(expected)}
    begin = 0
    for shard in items.manifest["shards"]:
        stem = shard["name"].removesuffix(".array_record")
        found = np.fromfile(tmp_path / "out" / f"{stem}.{digest}.lengths", "<u4")
        own = expected[begin : begin + shard["items"]]
        assert found.tolist() == own and shard["tokens"] == {digest: sum(own)}
        begin += shard["items"]
    assert len(items.manifest["shards"]) == 27 and not (tmp_path / "out" / ".work").exists()


@pytest.mark.parametrize("each", [InProcesses(3, quiet=True), "beam"])
def test_any_number_of_workers_and_any_runner_write_the_same_bytes(lists, tmp_path, each):
    if each == "beam":
        pytest.importorskip("apache_beam")
        each = OnBeam()
    prepare(order(lists, tmp_path / "here"), each=HERE)
    prepare(order(lists, tmp_path / "there"), each=each)
    assert files_of(tmp_path / "here") == files_of(tmp_path / "there")
    assert len([name for name in files_of(tmp_path / "here") if name.endswith(".lengths")]) == 3


class Killed(Exception):
    pass


@pytest.mark.parametrize("left", [0, 1, 26])
def test_what_is_killed_goes_on_and_a_tokenizer_may_be_added_later(lists, tmp_path, small_shards, monkeypatch, left):
    prepare(order(lists, tmp_path / "whole"), each=HERE)
    prepare(order(lists, tmp_path / "cut", None), each=HERE)
    assert "tokens" not in open_prepared(tmp_path / "cut").manifest

    def cut_off(self, target):
        raise Killed

    def killed(function, given, title):
        for one in given[:left]:
            function(one)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", cut_off)  # what was written is not in its place yet
            function(given[left])

    with pytest.raises(Killed):
        prepare(order(lists, tmp_path / "cut"), each=killed)
    assert "tokens" not in open_prepared(tmp_path / "cut").manifest  # it has all of them or says nothing
    done = []
    prepare(order(lists, tmp_path / "cut"), each=lambda function, given, title: done.extend(map(function, given)))
    assert len(done) == 27 - left
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")
    assert not (tmp_path / "cut" / ".work").exists()
    # nothing is left to do; another tokenizer stands beside the first
    prepare(order(lists, tmp_path / "cut"), each=killed)
    items = prepare(order(lists, tmp_path / "cut", OTHER), each=HERE)
    other = load_tokenizer(OTHER)
    total = sum(len(tokens_of(item, other)) for item in items)
    first = open_prepared(tmp_path / "whole").manifest["tokens"]
    assert items.manifest["tokens"] == first | {digest_of(other): total}


def test_data_that_was_prepared_from_it_is_not_out_of_date_when_tokens_are_added(lists, tmp_path):
    prepare(order(lists, tmp_path / "first", None), each=HERE)
    again = Order("prepared", [tmp_path / "first"], tmp_path / "second")
    prepare(again, each=HERE)
    prepare(order(lists, tmp_path / "first"), each=HERE)
    assert len(prepare(again, each=HERE)) == 180


def test_a_tokenizer_that_is_none_is_told_before_anything_is_done(lists, tmp_path):
    command = [sys.executable, "tools/prepare_data.py", "--format", "chats", "--input", *map(str, lists), "--quiet"]
    command += ["--workers", "1", "--out", str(tmp_path / "out"), "--tokenizer"]
    done = subprocess.run([*command, str(tmp_path / "none")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "Traceback" not in done.stderr and str(tmp_path / "none") in done.stderr
    assert os.listdir(tmp_path) == []
    done = subprocess.run([*command, str(FILE)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"tokens of tokenizer {digest_of(TOKENIZER)}" in done.stdout


@pytest.mark.parametrize("parts", [1, 3])
def test_an_epoch_is_every_text_once_by_recorded_lengths(lists, tmp_path, small_shards, monkeypatch, parts):
    nothing_counted(monkeypatch)
    monkeypatch.setattr(packing, "WINDOWS", 1)
    monkeypatch.setattr(packing, "Order", functools.partial(NearOrder, window=3))
    cut = [lists] if parts == 1 else [[file] for file in lists]
    folders = [prepare(order(some, tmp_path / str(i)), each=HERE) for i, some in enumerate(cut)]
    items = folders[0] if parts == 1 else Joined(folders)
    packed = PackedRows(Source("texts", items), TOKENIZER, SHAPE, seed=3)
    expected = sorted(tuple(tokens_of(item)) for item in items)
    epochs = [texts_in(epoch(packed, number)) for number in (0, 1, 7)]
    for texts in epochs:
        assert sorted(texts) == expected
    assert epochs[0] != epochs[1] != epochs[2]
    # any row is found by itself, in any process, whatever was read before
    again = pickle.loads(pickle.dumps(packed))
    numbers = np.random.default_rng(0).permutation(300)[:40].tolist()
    for n in numbers:
        row = again[n]
        np.testing.assert_array_equal(row["tokens"], packed[n]["tokens"])
        np.testing.assert_array_equal(row["documents"], packed[n]["documents"])
        assert len(again.names(n).split(" + ")) == row["documents"][-1]
    # and is what it is where lengths are counted
    monkeypatch.undo()
    monkeypatch.setattr(copy, "SHARD", 7)
    monkeypatch.setattr(packing, "recorded", lambda *_: None)
    monkeypatch.setattr(packing, "Order", functools.partial(NearOrder, window=3))
    counted = PackedRows(Source("texts", items), TOKENIZER, SHAPE, seed=3)
    for n in numbers[:10]:
        np.testing.assert_array_equal(counted[n]["tokens"], packed[n]["tokens"])


def test_texts_are_read_near_in_the_files(lists, tmp_path, small_shards, monkeypatch):
    """What the first rows of an epoch are made of lies in one window of shards."""
    monkeypatch.setattr(packing, "Order", functools.partial(NearOrder, window=2))
    items = prepare(order(lists, tmp_path / "out"), each=HERE)
    packed = PackedRows(Source("texts", items), TOKENIZER, SHAPE, seed=0)
    texts = list(dict.fromkeys(number for n in range(60) for number, *_ in packed.pieces(n)))
    shards = np.searchsorted(items.edges, texts, side="right").tolist()
    assert len(set(shards[:8])) == 2 and sorted(shards[:8]) != shards[:8]
    assert len(set(shards[:28])) <= 5


def test_another_tokenizer_counts_and_says_how_not_to(lists, tmp_path, monkeypatch, caplog):
    items = prepare(order(lists[:1], tmp_path / "out"), each=HERE)
    other, measured = load_tokenizer(OTHER), []
    measure = PackedRows._measure
    monkeypatch.setattr(PackedRows, "_measure", lambda self, n: measured.append(n) or measure(self, n))
    packed = PackedRows(Source("texts", items), other, SHAPE, 0, tmp_path / "kept")
    assert len(measured) == 60 and packed.total == sum(len(tokens_of(item, other)) for item in items)
    assert not caplog.records
    with monkeypatch.context() as patched:
        patched.setattr(Prepared, "kept", None)  # what was counted is found again, and no text is read for it
        again = PackedRows(Source("texts", items), other, SHAPE, 0, tmp_path / "kept")
        assert again.total == packed.total and len(measured) == 60
        PackedRows(Source("texts", Joined([items])), other, SHAPE, 0, tmp_path / "kept")
        assert len(measured) == 60
    for some in (Chosen(items, np.arange(5)), Chosen(items, np.arange(5) + 1), Joined([items, items])):
        measured.clear()
        for _ in range(2):
            PackedRows(Source("texts", some), other, SHAPE, 0, tmp_path / "kept")
        assert len(measured) == len(some)
    measured.clear()
    monkeypatch.setattr(packing, "MANY", 59)
    PackedRows(Source("texts", items), other, SHAPE, 0)
    assert "the tokens of 60 texts are counted; tools/prepare_data.py --tokenizer" in caplog.text


@pytest.mark.parametrize("damage", ["gone", "cut off", "of another sum", "in another order"])
def test_lengths_that_are_not_true_are_named_and_made_anew(lists, tmp_path, damage):
    items = prepare(order(lists, tmp_path / "out"), each=HERE)
    file = sorted((tmp_path / "out").glob("*.lengths"))[1]
    content = file.read_bytes()
    lengths = np.frombuffer(content, "<u4")
    if damage == "gone":
        file.unlink()
    else:
        changed = {"cut off": lengths[:-1], "of another sum": lengths + 1, "in another order": lengths[::-1]}[damage]
        file.write_bytes(changed.tobytes())
    with pytest.raises(ValueError, match=rf"delete {file.name} and give tools/prepare_data.py the same --tokenizer"):
        packed = PackedRows(Source("texts", items), TOKENIZER, SHAPE, 0)
        for n in range(packed.total // 61):
            packed[n]
    file.unlink(missing_ok=True)
    items = prepare(order(lists, tmp_path / "out"), each=HERE)
    assert file.read_bytes() == content
    assert len(texts_in(epoch(PackedRows(Source("texts", items), TOKENIZER, SHAPE, 0), 0))) == 180


def test_items_that_cannot_be_used_have_no_tokens(tmp_path, caplog):
    folder = tmp_path / "out"
    folder.mkdir()
    kept = [Kept(Item(None, (), text=text), {}) for text in ("one", "two words", "three of them")]
    kept.insert(1, Kept(Item(None, (("question", ""),)), {}))
    kept.insert(1, Kept(Item(None, ()), {}))
    shards = copy.write_shards(folder, 0, iter(kept))
    manifest = {"version": 1, "items": 5, "block": copy.BLOCK, "shards": shards, "pictures": 0}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    count.count_all(folder, FILE, HERE)
    assert "item 1: packed rows leave it out: the conversation has no turns" in caplog.text
    packed = PackedRows(Source("texts", open_prepared(folder)), TOKENIZER, Shape(5, packed=True), 0)
    lengths = packed.lengths.of(0).tolist()
    assert lengths[0] and not lengths[1] and packed.total == sum(lengths)
    assert sorted(texts_in(epoch(packed, 2))) == sorted(
        tuple(tokens_of(one.item)) for one, length in zip(kept, lengths, strict=True) if length
    )
    with pytest.raises(BadData, match="bytes"):
        (folder / shards[0]["name"]).write_bytes(b"")
        next(folder.glob("*.lengths")).unlink()
        count.count_all(folder, FILE, HERE)


def test_memory_has_a_number_a_shard_and_not_one_a_text(tmp_path, monkeypatch):
    """Thirty million texts, in shards that are links to one on disk."""
    nothing_counted(monkeypatch)
    folder, digest, many = tmp_path / "out", digest_of(TOKENIZER), 3700
    folder.mkdir()
    texts = (Kept(Item(None, (), text=f"text {i}"), {}) for i in range(copy.SHARD))
    (shard,) = copy.write_shards(folder, 0, texts)
    shard = {name: shard[name] for name in ("name", "items", "bytes")}
    manifest = {"version": 1, "items": copy.SHARD, "block": copy.BLOCK, "shards": [shard], "pictures": 0}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    count.count_all(folder, FILE, HERE)
    one = open_prepared(folder).manifest
    (first,) = one["shards"]
    for i in range(1, many):
        for ending in ("array_record", f"{digest}.lengths"):
            os.link(folder / f"part-00000-000.{ending}", folder / f"part-{i:05d}-000.{ending}")
    shards = [first | {"name": f"part-{i:05d}-000.array_record"} for i in range(many)]
    (folder / "manifest.json").write_text(json.dumps(one | {"items": many * copy.SHARD, "shards": shards}))
    items = open_prepared(folder)
    assert len(items) > 30_000_000
    tracemalloc.start()
    packed = PackedRows(Source("texts", items), TOKENIZER, Shape(512, packed=True), 0)
    assert packed.total == many * first["tokens"][digest]
    for n in (0, packed.total // 512 * 3, 10**9):
        assert (packed[n]["tokens"] > 0).all()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6  # of which a window of the order, which is as large whatever the data, takes the most
