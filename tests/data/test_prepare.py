"""Data that is prepared: what is kept, the same shards whatever carries it out, kills, and what is damaged."""

import collections
import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from conftest import DATA, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sphinx_jax.config import ConfigError
from sphinx_jax.data import open_prepared, task_mix
from sphinx_jax.data.conversation import Item
from sphinx_jax.data.formats.conversations import read_meta
from sphinx_jax.data.formats.files import BadData
from sphinx_jax.data.formats.found import Found, Source
from sphinx_jax.data.formats.prepared import Kept, decode, encode
from sphinx_jax.data.formats.table import FORMATS
from sphinx_jax.data.prepare.choose import Filters, Known, choose
from sphinx_jax.data.prepare.look import Look, words_in
from sphinx_jax.data.prepare.pipeline import InProcesses, OnBeam, Order, prepare
from sphinx_jax.data.rows import Shape
from sphinx_jax.data.rows import Source as Rows
from sphinx_jax.data.sources import Data, DataConfig
from sphinx_jax.data.tokenizer import load_tokenizer

HERE = InProcesses(1, quiet=True)
SAME = "same picture as another item"


def picture(number: int, size=(48, 40)) -> bytes:
    """Noise of its own for each number."""
    pixels = np.random.default_rng(number).integers(0, 255, (4, 4, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(stream, "PNG")
    return stream.getvalue()


def write_tar(file: Path, samples: dict[str, tuple[bytes, str, dict]]) -> None:
    with tarfile.open(file, "w") as tar:
        for key, (image, text, told) in samples.items():
            for ending, content in (("png", image), ("txt", text.encode()), ("json", json.dumps(told).encode())):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def tars(tmp_path_factory) -> list[Path]:
    """Three shards of 40 pairs: some pictures damaged, some that were there before, each with a score."""
    folder = tmp_path_factory.mktemp("tars")
    files = []
    for shard in range(3):
        samples = {}
        for i in range(shard * 40, shard * 40 + 40):
            image = picture(7) if i % 13 == 5 else picture(i)
            image = image[:60] if i % 11 == 3 else image
            samples[f"{i:09d}"] = image, f"a thing with number {i}", {"similarity": i / 120, "key": f"{i:09d}"}
        files.append(folder / f"{shard:05d}.tar")
        write_tar(files[-1], samples)
    return files


def order(tars, out, **changes) -> Order:
    return replace(Order("laion", tars, out, domain="real"), **changes)


def shards(folder: Path) -> dict[str, str]:
    return {p.name: sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("part-*"))}


def test_items_come_back_as_the_reader_found_them(tars, tmp_path):
    filters = Filters(at_least={"similarity": 0.25}, pictures=True)
    items = prepare(order(tars, tmp_path / "out", filters=filters), each=HERE)
    found = [one for file in tars for one in FORMATS["laion"].read(Source(file))]
    broken = [i for i in range(120) if i % 11 == 3]
    low = [i for i in range(120) if i % 11 != 3 and i / 120 < 0.25]
    # of equal pictures the first that is kept so far stays
    equal = [i for i in range(30, 120) if i % 11 != 3 and i % 13 == 5][1:]
    kept = sorted({*range(120)} - {*broken, *low, *equal})
    assert items.manifest["dropped"] == {
        "similarity is below 0.25": len(low), "picture is damaged": len(broken), SAME: len(equal)
    }  # fmt: skip
    assert len(items) == items.manifest["items"] == len(kept)
    for place, number in enumerate(kept):
        assert isinstance(found[number], Found)
        assert items[place] == replace(found[number].item, domain="real")
        assert items.kept(place).carried == found[number].carried
    assert items[-1] == items[len(kept) - 1] and items[3:9:2] == [items[i] for i in (3, 5, 7)]
    assert [one.id for one in items] == [found[i].item.id for i in kept]
    with pytest.raises(IndexError):
        items[len(kept)]
    assert pickle.loads(pickle.dumps(items))[5] == items[5]
    with ThreadPoolExecutor(8) as pool:
        places = random.Random(0).choices(range(len(items)), k=400)
        assert list(pool.map(lambda i: items[i].id, places)) == [items[i].id for i in places]


@pytest.mark.parametrize("each", [InProcesses(2, quiet=True), "beam"])
def test_any_number_of_workers_and_any_runner_write_the_same_bytes(tars, tmp_path, each):
    if each == "beam":
        pytest.importorskip("apache_beam")
        each = OnBeam()
    prepare(order(tars, tmp_path / "here"), each=HERE)
    prepare(order(tars, tmp_path / "there"), each=each)
    assert shards(tmp_path / "here") == shards(tmp_path / "there")
    told = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("here", "there")]
    assert told[0] == told[1]


class Killed(Exception):
    pass


class Until:
    """Carries out so many and is killed."""

    def __init__(self, count: int):
        self.left = count

    def __call__(self, function, given, title):
        for one in given:
            if not self.left:
                raise Killed
            self.left -= 1
            function(one)


@pytest.mark.parametrize("count", range(7))
def test_what_is_killed_between_files_goes_on(tars, tmp_path, count):
    prepare(order(tars, tmp_path / "whole"), each=HERE)
    try:
        prepare(order(tars, tmp_path / "cut"), each=Until(count))
        assert count == 6
    except Killed:
        with pytest.raises(BadData, match="not prepared to its end"):
            open_prepared(tmp_path / "cut")
    again = collections.Counter()

    def each(function, given, title):
        for one in given:
            before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cut").glob("part-*")}
            function(one)
            after = {p: p.stat().st_mtime_ns for p in (tmp_path / "cut").glob("part-*")}
            again["written"] += after != before

    prepare(order(tars, tmp_path / "cut"), each=each)
    assert shards(tmp_path / "cut") == shards(tmp_path / "whole")
    assert again["written"] == min(3, 6 - count)  # nothing is copied twice
    assert not (tmp_path / "cut" / ".work").exists()


@pytest.mark.slow
def test_a_command_that_is_killed_anywhere_ends_with_the_same_bytes(tmp_path):
    tars = []
    for shard in range(6):
        tars.append(tmp_path / f"{shard}.tar")
        pairs = {f"{shard}-{i}": (picture(1000 * shard + i, (400, 300)), f"thing {i}", {}) for i in range(120)}
        write_tar(tars[-1], pairs)
    prepare(order(tars, tmp_path / "whole"), each=HERE)
    command = [sys.executable, "tools/prepare_data.py", "--format", "laion", "--input", str(tmp_path / "*.tar")]
    command += ["--out", str(tmp_path / "cut"), "--domain", "real", "--quiet"]
    kills, code = 0, None
    while code != 0:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
        if kills < 5:
            end = time.time() + 2 + 0.7 * kills
            while process.poll() is None and time.time() < end:
                time.sleep(0.01)
            if process.poll() is None:
                os.killpg(process.pid, 9)
        code, kills = process.wait(), kills + 1
        assert kills < 9 and code in (0, -9)
    assert shards(tmp_path / "cut") == shards(tmp_path / "whole")
    left = {p.name for p in (tmp_path / "cut").iterdir() if not p.name.startswith("part-")}
    assert left == {"manifest.json", "told.json", "report.html"}


def test_items_are_chosen_by_words_that_files_carry(tmp_path):
    said = ["UNLIKELY", "NSFW", "Likely", "unsure", None, "a word of more than sixteen letters", 3]
    samples = {
        f"{i}": (
            picture(i),
            f"thing number {i}",
            {"LANGUAGE": ["en", "de"][i % 2], "CLEAN": not i % 2} | ({"NSFW": w} if w else {}),
        )
        for i, w in enumerate(said)
    }
    write_tar(tmp_path / "0.tar", samples)

    def kept(name, **words):
        items = prepare(order([tmp_path / "0.tar"], tmp_path / name, filters=Filters(**words)), each=HERE)
        return [int(item.id) for item in items], items.manifest["dropped"]

    unsafe = {"NSFW": ("NSFW", "likely")}
    assert kept("a", without=unsafe) == ([0, 3, 4, 5, 6], {"NSFW is NSFW or likely": 2})
    assert kept("b", only={"LANGUAGE": ("EN",)}, without=unsafe)[0] == [0, 4, 6]
    assert kept("c", only={"NSFW": ("unlikely", "unsure", "3")})[0] == [0, 3, 6]
    assert kept("e", without={"CLEAN": ("false",)})[0] == [0, 2, 4, 6] == kept("f", only={"CLEAN": ("1",)})[0]
    with pytest.raises(ConfigError, match="is longer than 16 letters"):
        Filters(without={"licence": ("Creative Commons Attribution",)})
    with pytest.raises(ConfigError, match="what its LANGAUGE is; did you mean LANGUAGE"):
        kept("g", only={"LANGAUGE": ("en",)})
    assert kept("g", only={"LANGUAGE": ("en",)})[0] == [0, 2, 4, 6]  # the folder is not lost
    # no number, though it is there
    assert kept("d", at_least={"NSFW": 2})[1] == {"has no NSFW": 6}


def test_items_are_chosen_by_the_language_that_their_text_is_in(tmp_path):
    said = [
        "two people riding a horse on the beach",
        "Zwei Hunde spielen zusammen im Schnee",
        "un chat noir qui dort sur le canapé",
        "1920 x 1080",
        "老人在公园里散步",
    ]
    write_tar(tmp_path / "0.tar", {f"{i}": (picture(i), text, {}) for i, text in enumerate(said)})

    def kept(name, *language):
        items = prepare(order([tmp_path / "0.tar"], tmp_path / name, filters=Filters(language=language)), each=HERE)
        return [int(item.id) for item in items], items.manifest["dropped"]

    assert kept("all")[0] == [0, 1, 2, 3, 4]
    assert kept("en", "en") == ([0], {"language is not en": 4})
    assert words_in("two  words") == 2 and words_in("在公园") == 3 and words_in("iPhone 手机 6") == 4
    assert kept("two", "zh", "de") == ([1, 4], {"language is not zh or de": 3})
    with pytest.raises(ConfigError, match="unknown language 'english'.*, en, "):
        Filters(language=("english",))


def test_a_second_run_does_nothing_and_another_one_is_refused(tars, tmp_path):
    out = tmp_path / "out"
    prepare(order(tars, out), each=HERE)
    before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    prepare(order(tars, out), each=Until(0))
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == before
    for changes, name in (({"domain": "synthetic"}, "domain"), ({"filters": Filters(basic=True)}, "filter basic")):
        with pytest.raises(ConfigError, match=f"was prepared with {name} = "):
            prepare(order(tars, out, **changes), each=HERE)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("")
    with pytest.raises(ConfigError, match=r"holds other files \(thesis.txt\)"):
        prepare(order(tars, tmp_path / "other"), each=HERE)


def test_a_shard_that_was_lost_or_cut_since_is_named(tars, tmp_path):
    out = tmp_path / "out"
    shard = out / prepare(order(tars, out), each=HERE).manifest["shards"][1]["name"]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(BadData, match=f"{shard.name} has {len(whole) - 1} bytes, manifest.json says {len(whole)}"):
        prepare(order(tars, out), each=HERE)
    shard.unlink()
    with pytest.raises(BadData, match=f"{shard.name} is not there"):
        prepare(order(tars, out), each=HERE)
    middle = len(whole) // 2
    shard.write_bytes(whole[:middle] + bytes(b ^ 255 for b in whole[middle : middle + 64]) + whole[middle + 64 :])
    kept = open_prepared(out)
    with pytest.raises(BadData, match=f"{shard.name} is damaged at block"):
        [kept[i] for i in range(len(kept))]
    (out / "manifest.json").write_text("{")
    with pytest.raises(BadData, match="manifest.json is damaged"):
        prepare(order(tars, out), each=HERE)


def test_which_file_is_another_is_said(tars, tmp_path):
    out = tmp_path / "out"
    prepare(order(tars[:2], out), each=HERE)
    for files, message in (
        (tars[:1], f"{tars[1].name} is not among them any more"),
        (tars[:3], f"{tars[2].name} is new"),
        (tars[1::-1], "their order is another"),
    ):
        with pytest.raises(ConfigError, match=message):
            prepare(order(files, out), each=HERE)


def test_prepared_data_without_items_is_named_by_the_list_that_names_it(tars, tmp_path):
    prepare(order(tars[:1], tmp_path / "none", filters=Filters(at_least={"similarity": 2})), each=HERE)
    (tmp_path / "list.yaml").write_text("META: [{path: none}]")
    with pytest.raises(ValueError, match="META entry 0: .*none has no items: all were dropped when it was prepared"):
        read_meta(tmp_path / "list.yaml")


def test_what_was_dropped_is_named(tmp_path):
    write_tar(tmp_path / "0.tar", {"good": (picture(1), "a thing", {}), "bad": (b"no picture", "a thing", {})})
    command = [sys.executable, "tools/prepare_data.py", "--format", "laion", "--input", str(tmp_path / "0.tar")]
    command += ["--out", str(tmp_path / "out"), "--quiet", "--workers", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "1 dropped: picture is damaged, such as bad" in done.stdout
    assert "<b>bad</b>" in (tmp_path / "out" / "report.html").read_text()


def test_two_runs_do_not_work_in_one_folder(tars, tmp_path):
    def each(function, given, title):
        code = "from pathlib import Path\nfrom sphinx_jax.data.prepare.pipeline import *\n"
        code += f"prepare(Order('laion', [Path({str(tars[0])!r})], Path({str(tmp_path / 'out')!r})))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert "is in use by process" in done.stderr
        raise Killed

    with pytest.raises(Killed):
        prepare(order(tars, tmp_path / "out"), each=each)


def test_a_file_that_changed_is_looked_at_again(tars, tmp_path):
    file = tmp_path / "x.tar"
    file.write_bytes(tars[0].read_bytes())
    with pytest.raises(Killed):
        prepare(order([file], tmp_path / "out"), each=Until(1))
    file.write_bytes(tars[1].read_bytes())
    os.utime(file, (1, 1))
    items = prepare(order([file], tmp_path / "out"), each=HERE)
    assert {one.id for one in items} <= {f"{i:09d}" for i in range(40, 80)}

    def each(function, given, title):
        if title == "copying":
            write_tar(file, {"one": (picture(1), "a", {})})
        HERE(function, given, title)

    with pytest.raises(BadData, match="has changed since it was looked at"):
        prepare(order([file], tmp_path / "other"), each=each)
    assert len(prepare(order([file], tmp_path / "other"), each=HERE)) == 1


@pytest.mark.parametrize("size", [0, 1, 65536, 100_000])
def test_a_shard_that_is_cut_off_is_named(tars, tmp_path, size):
    items = prepare(order(tars, tmp_path / "out"), each=HERE)
    shard = tmp_path / "out" / items.manifest["shards"][1]["name"]
    shard.write_bytes(shard.read_bytes()[:size])
    items = open_prepared(tmp_path / "out")  # opening reads no shard
    assert items[0].id
    with pytest.raises(BadData, match=shard.name):
        items[len(items) // 2]
    shard.unlink()
    with pytest.raises(BadData, match="is not there"):
        open_prepared(tmp_path / "out")[len(items) // 2]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 9, "shards": [], "items": 0}', '{"version": 1}'])
def test_a_damaged_manifest_is_named_in_a_line(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(BadData, match="manifest.json") as error:
        open_prepared(tmp_path)
    assert "\n" not in str(error.value)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=50), TEXTS, st.lists(st.tuples(TEXTS, TEXTS), max_size=3)), min_size=1))
def test_a_block_gives_back_what_was_put_in(parts):
    kept = []
    for i, (image, text, turns) in enumerate(parts):
        tasks = tuple("vqa" for _ in turns)
        item = Item(image or None, tuple(turns), tasks, tasks, "real", str(i), text, None if i % 2 else "system")
        kept.append(Kept(item, {"score": i, "list": [1.5, "x"]}))
    block = encode(kept)
    assert [decode(block, i) for i in range(len(kept))] == kept


LOOKS = st.builds(
    Look,
    name=st.just(""),
    reason=st.sampled_from(["", "", "", "picture is damaged"]),
    picture=st.booleans(),
    width=st.sampled_from([150, 200, 300, 601]),
    height=st.sampled_from([150, 200, 300, 601]),
    content=st.sampled_from([b"a" * 8, b"b" * 8, b"c" * 8, b"d" * 8]),
    whole=st.sampled_from([b"A" * 8, b"B" * 8, b"C" * 8]),
    look=st.sampled_from([-1, 0, 1, -2, 2**62]),
    characters=st.integers(3, 9),
    words=st.integers(1, 5),
    carried=st.sampled_from(["{}", '{"s": 0.1}', '{"s": 0.5}', '{"s": 0.9}']),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(LOOKS, max_size=9), min_size=1, max_size=3), *[st.booleans()] * 4)
def test_what_is_chosen_is_what_a_plain_loop_chooses(tmp_path_factory, files, basic, same, one, alike):
    folder = tmp_path_factory.mktemp("looks")
    kinds = {str: pyarrow.string(), bool: pyarrow.bool_(), int: pyarrow.int64(), bytes: pyarrow.binary()}
    schema = pyarrow.schema([(name, kinds[type(value)]) for name, value in asdict(Look("")).items()])
    for i, looks in enumerate(files):
        table = pyarrow.Table.from_pylist([asdict(look) for look in looks], schema)
        parquet.write_table(table, folder / f"{i}", row_group_size=4)
    filters = Filters(basic, {"s": 0.3}, {"s": 0.8}, same, one, alike)
    known = Known({b"d" * 8}, np.array([2**62 + 1], np.uint64), ())
    rows, sidecars = [look for looks in files for look in looks], [folder / f"{i}" for i in range(len(files))]
    usable = [look for look in rows if not look.reason]
    if usable and all("s" not in json.loads(look.carried) for look in rows):
        with pytest.raises(ConfigError, match="say of no item what its s is"):
            choose(sidecars, filters, known)
        return
    choice = choose(sidecars, filters, known)
    kept = []
    for look in rows:
        score = json.loads(look.carried).get("s")
        small, large = sorted((look.width, look.height))
        good = not look.reason and score is not None and 0.3 <= score <= 0.8
        if basic:
            good &= look.words > 2 and look.characters > 5
            good &= not look.picture or (small >= 200 and large <= 3 * small)
        if look.picture:
            good &= look.content != b"d" * 8 and (
                look.look == -1 or ((look.look ^ (2**62 + 1)) & (2**64 - 1)).bit_count() > 4
            )
        kept.append(good)
    for wanted, key in (
        (same, lambda look: look.whole),
        (one, lambda look: look.content if look.picture else -1),
        (alike, lambda look: look.look),
    ):
        seen = set()
        for i, look in enumerate(rows):
            if wanted and kept[i] and key(look) != -1:
                kept[i] = key(look) not in seen
                seen.add(key(look))
    codes = np.concatenate(choice.codes)
    assert [bool(code == 0) for code in codes] == kept
    assert sum(choice.counts().values()) == len(rows) - sum(kept)


def test_of_conversations_about_one_picture_all_are_kept_and_copies_are_not(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "copy.png").write_bytes(picture(1))
    lines = [("a.png", "What?", "A"), ("a.png", "Why?", "B"), ("copy.png", "What?", "A"), ("a.png", "What?", "B")]
    talks = [
        {"image": name, "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
        for name, q, a in lines
    ]
    (tmp_path / "talks.json").write_text(json.dumps(talks))
    chats = Order("chats", [tmp_path / "talks.json"], tmp_path / "out")
    items = prepare(chats, each=HERE)
    assert [item.turns for item in items] == [(turn,) for turn in (("What?", "A"), ("Why?", "B"), ("What?", "B"))]
    assert items.manifest["dropped"] == {"same as another item": 1}
    one = prepare(replace(chats, out=tmp_path / "one", filters=Filters(pictures=True)), each=HERE)
    assert len(one) == 1


def test_what_vanishes_between_looking_and_copying_is_told_and_looked_at_anew(tmp_path):
    """Of a reader that looks for pictures itself, and of one that leaves that to others."""
    talks = []
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
        talks.append(
            {"image": f"{i}.png", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a"}]}
        )
    (tmp_path / "talks.json").write_text(json.dumps(talks))
    images = [{"id": i, "file_name": f"{i}.png", "width": 48, "height": 40} for i in range(3)]
    told = {"images": images, "annotations": [{"id": i, "image_id": i, "caption": "a"} for i in range(3)]}
    (tmp_path / "captions_train2017.json").write_text(json.dumps(told))
    for form, file in (("chats", "talks.json"), ("coco-captions", "captions_train2017.json")):
        whole = Order(form, [tmp_path / file], tmp_path / form, root=tmp_path)

        def each(function, given, title):
            if title == "copying":
                (tmp_path / "1.png").unlink()
            HERE(function, given, title)

        with pytest.raises(BadData, match="has changed since it was looked at; run the same command again"):
            prepare(whole, each=each)
        items = prepare(whole, each=HERE)
        assert len(items) == 2 and items.manifest["dropped"] == {"picture is missing": 1}
        (tmp_path / "1.png").write_bytes(picture(1))


def test_of_prepared_data_that_is_not_whole_nothing_is_prepared(tars, tmp_path):
    items = prepare(order(tars, tmp_path / "first"), each=HERE)
    again = Order("prepared", [tmp_path / "first"], tmp_path / "second")
    shard = tmp_path / "first" / items.manifest["shards"][1]["name"]
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(BadData, match=shard.name):
        prepare(again, each=HERE)
    shard.write_bytes(content)
    second = prepare(again, each=HERE)
    assert [*second] == [*items]
    (tmp_path / "first" / "report.html").write_text("")  # what else changes there is nothing to the data
    assert len(prepare(again, each=Until(0))) == len(items)


def test_prepared_data_is_prepared_anew_shard_by_shard(tars, tmp_path):
    items = prepare(order(tars, tmp_path / "first"), each=HERE)
    again = Order("prepared", [tmp_path / "first"], tmp_path / "second", filters=Filters(at_least={"similarity": 0.5}))
    given = collections.Counter()

    def each(function, tasks, title):
        given[title] += len(tasks)
        HERE(function, tasks, title)

    second = prepare(again, each=each)
    assert given == {"looking": 3, "copying": 3}
    assert [*second] == [one for i, one in enumerate(items) if items.kept(i).carried["similarity"] >= 0.5] != []
    prepare(replace(again, out=tmp_path / "third"), each=InProcesses(3, quiet=True))
    assert shards(tmp_path / "second") == shards(tmp_path / "third")
    # a shard may be given by itself
    one = tmp_path / "first" / items.manifest["shards"][2]["name"]
    some = prepare(Order("prepared", [one], tmp_path / "fourth"), each=HERE)
    assert [*some] == items[int(items.starts[2]) :]
    (tmp_path / "first" / "other").write_text("")
    for name, says in (("first/other", "is no shard that manifest.json beside it names"), ("own", "has no manifest")):
        (tmp_path / name).write_text("")
        with pytest.raises(BadData, match=says):
            prepare(Order("prepared", [tmp_path / name], tmp_path / "fifth"), each=HERE)
        shutil.rmtree(tmp_path / "fifth")


def test_one_item_a_picture_leaves_talks_without_pictures(tmp_path):
    turns = [[{"from": "human", "value": f"Is {i} odd?"}, {"from": "gpt", "value": "Yes."}] for i in range(5)]
    (tmp_path / "talks.json").write_text(json.dumps([{"conversations": turn} for turn in turns]))
    talks = Order("chats", [tmp_path / "talks.json"], tmp_path / "out", filters=Filters(pictures=True, alike=True))
    assert len(prepare(talks, each=HERE)) == 5


def test_a_file_that_is_replaced_by_another_of_as_many_items_is_looked_at_anew(tars, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in ("a", "a", "b")))

    def each(function, given, title):
        if title == "copying":
            file.write_text("\n".join(json.dumps({"text": text}) for text in ("b", "b", "b")))
            os.utime(file, (1, 1))
        HERE(function, given, title)

    with pytest.raises(BadData, match="has changed since it was looked at"):
        prepare(Order("documents", [file], tmp_path / "out"), each=each)
    assert [item.text for item in prepare(Order("documents", [file], tmp_path / "out"), each=HERE)] == ["b"]


def test_a_changed_file_under_a_manifest_is_named(tars, tmp_path):
    file = tmp_path / "x.tar"
    file.write_bytes(tars[0].read_bytes())
    prepare(order([file], tmp_path / "out"), each=HERE)
    file.write_bytes(tars[1].read_bytes())
    os.utime(file, (1, 1))
    with pytest.raises(ConfigError, match=r"x\.tar has changed since"):
        prepare(order([file], tmp_path / "out"), each=HERE)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_boxes_of_a_picture_that_is_turned_are_not_learnt(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros((100, 200, 3), np.uint8)).save(tmp_path / "1.jpg", exif=exif)
    told = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 200, "height": 100}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 20], "iscrowd": 0}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "instances_train2017.json").write_text(json.dumps(told))
    whole = Order("coco-instances", [tmp_path / "instances_train2017.json"], tmp_path / "out", root=tmp_path)
    dropped = prepare(whole, each=HERE).manifest["dropped"]
    assert dropped == ({"picture is not of the annotated shape": 1} if orientation == 6 else {})


def test_numbers_that_no_float_holds_cost_nothing(tmp_path):
    for name, value in (("hash", -7013487129871263417), ("big", 10**400), ("other", 2**62)):
        write_tar(tmp_path / f"{name}.tar", {name: (picture(len(name)), "a", {name: value})})
        assert len(prepare(order([tmp_path / f"{name}.tar"], tmp_path / name), each=HERE)) == 1


def test_of_many_files_one_of_another_format_is_counted_and_the_others_kept(tars, tmp_path, caplog):
    (tmp_path / "x.tar").write_bytes(b"nope" * 1000)
    items = prepare(order([*tars[:1], tmp_path / "x.tar", *tars[1:]], tmp_path / "out"), each=HERE)
    assert items.manifest["dropped"]["file is of another format"] == 1 and "x.tar is no tar" in caplog.text
    assert [*items] == [*prepare(order(tars, tmp_path / "whole"), each=HERE)]
    with pytest.raises(BadData, match="x.tar is no tar"):
        prepare(order([tmp_path / "x.tar"], tmp_path / "none"), each=HERE)


def test_benchmark_pictures_are_left_out_by_the_command(tars, tmp_path):
    """As COCO has them, one of which is in a shard."""
    folder = tmp_path / "benchmarks" / "coco_caption"
    (folder / "val2014").mkdir(parents=True)
    (folder / "val2014" / "COCO_val2014_000000000001.png").write_bytes(picture(60))
    told = {
        "images": [{"id": 1, "file_name": "COCO_val2014_000000000001.png"}],
        "annotations": [{"id": 1, "image_id": 1, "caption": "a"}],
    }
    (folder / "captions_val2014.json").write_text(json.dumps(told))
    command = [sys.executable, "tools/prepare_data.py", "--format", "laion", "--input", *map(str, tars)]
    command += ["--out", str(tmp_path / "out"), "--benchmarks", str(tmp_path / "benchmarks"), "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 dropped: picture of a benchmark" in done.stdout
    assert "000000060" not in {one.id for one in open_prepared(tmp_path / "out")}
    assert (tmp_path / "out" / "report.html").read_text().count("data:image/jpeg") > 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "laoin", "--input", "x"], "unknown format 'laoin'; did you mean 'laion'?"),
        (["--format", "laion", "--input", "nothing*.tar"], "match nothing"),
        (["--format", "coco-captions", "--input", __file__], "not JSON"),
        (["--format", "laion", "--input", __file__, "--at-least", "similarity"], "NAME=NUMBER"),
        (["--format", "laion", "--input", __file__, "--only", "NSFW"], "NAME=WORD"),
        (["--format", "laion", "--input", __file__, "--benchmarks", "nowhere"], "no folder named as a benchmark"),
    ],
)
def test_what_cannot_be_prepared_is_one_line(tmp_path, arguments, message):
    command = [sys.executable, "tools/prepare_data.py", *arguments, "--out", str(tmp_path / "out"), "--quiet"]
    done = subprocess.run([*command, "--workers", "1"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr


def test_training_data_names_prepared_folders_beside_lists(tars, tmp_path):
    prepare(order(tars[:1], tmp_path / "real"), each=HERE)
    prepare(order(tars[1:2], tmp_path / "synthetic", domain="synthetic"), each=HERE)
    documents = tmp_path / "documents.jsonl"
    documents.write_text("\n".join(json.dumps({"text": f"text {i}"}) for i in range(5)))
    prepare(Order("documents", [documents], tmp_path / "texts"), each=HERE)
    (tmp_path / "own.jsonl").write_text(json.dumps({"text": "my own"}))
    paths = ("real", "synthetic", "texts", "own.jsonl")
    (tmp_path / "list.yaml").write_text(json.dumps({"META": [{"path": path} for path in paths]}))
    data = Data(DataConfig(None, meta={"train": str(tmp_path / "list.yaml")}), tmp_path / "work")
    counts = data.domains("train")
    assert counts == {name: len(open_prepared(tmp_path / name)) for name in ("real", "synthetic")}
    assert {item.domain for item in data.items("train", "real")} == {"real"}
    assert len(data.items("train", "*")) == sum(counts.values()) == len(data.pictures("train"))
    texts = {one.name: [item.text for item in one.items] for one in data.texts("train")}
    assert texts == {"texts": [f"text {i}" for i in range(5)], "own": ["my own"]}
    assert len(data.listed("train")) == sum(counts.values()) + 6


def test_a_part_of_prepared_data_is_a_data_set_and_one_alone_needs_no_list(tars, tmp_path, monkeypatch):
    whole = prepare(order(tars, tmp_path / "out"), each=HERE)
    (tmp_path / "list.yaml").write_text(json.dumps({"META": [{"path": "out", "count": 20, "weight": 2}]}))
    data = Data(DataConfig(None, meta={"train": str(tmp_path / "list.yaml")}), tmp_path / "work")
    monkeypatch.setattr(type(whole), "__iter__", None)  # neither domains nor tasks ask for the items
    (part,) = data.sets("train", "real")
    assert (part.name, part.weight, len(part.items)) == ("real/out", 2.0, 20)
    ids = [item.id for item in part.items]
    assert len(set(ids)) == 20 and set(ids) <= {whole[i].id for i in range(len(whole))}
    assert data.domains("train") == {"real": 20}
    assert len(replace(part, task_weights={"vqa": 0.0, "rec": 1.0}).eligible) == 20  # pairs have no task to leave out
    alone = Data(DataConfig(None, meta={"train": str(tmp_path / "out")}), tmp_path / "work")
    assert alone.names("train") == ["out"] and len(alone.items("train", "*")) == len(whole)


def test_prepared_data_of_several_domains_and_kinds_is_parted_by_item(tmp_path):
    lines = [{"text": f"text {i}", "domain": "real"} for i in range(3)]
    for i, domain in enumerate(["real", "synthetic", "", "real"]):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
        lines.append({"image": f"{i}.png", "text": "a thing", "domain": domain})
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, lines)))
    prepare(Order("chats", [tmp_path / "mixed.jsonl"], tmp_path / "mixed"), each=HERE)
    for name in ("mixed", "mixed.jsonl"):
        (tmp_path / "list.yaml").write_text(json.dumps({"META": [{"path": name, "type": "image"}]}))
        data = Data(DataConfig(None, meta={"train": str(tmp_path / "list.yaml")}), tmp_path / "work")
        assert data.domains("train") == {"real": 2, "synthetic": 1, "other": 1}
        for domain, count in (("real", 2), ("synthetic", 1), ("other", 1), ("*", 4)):
            assert len(data.items("train", domain)) == count
        (texts,) = data.texts("train")
        assert [item.text for item in texts.items] == ["text 0", "text 1", "text 2"]
        with pytest.raises(ConfigError, match="its domains are other, real, synthetic"):
            data.items("train", "reel")


def test_a_stream_of_prepared_data_has_every_item_once_an_epoch(tars, tmp_path):
    items = prepare(order(tars, tmp_path / "out"), each=HERE)
    tokenizer = load_tokenizer(DATA / "tokenizer.model")
    shape = Shape(32, 16)
    stream = task_mix.rows([Rows("out", items)], tokenizer, shape, seed=3)
    names = task_mix.names([Rows("out", items)], tokenizer, shape, seed=3)
    epochs = [[names[e * len(items) + i] for i in range(len(items))] for e in range(2)]
    assert epochs[0] != epochs[1]
    for epoch in epochs:
        assert sorted(epoch) == sorted(f"out/{item.id}" for item in items)
    row = stream[1]
    assert row["pixels"].shape == (16, 16, 3) and not row["skipped"]
    words = tokenizer.decode([int(t) for t in row["tokens"][1:] if t])
    assert words.startswith(next(i.text for i in items if f"out/{i.id}" == epochs[0][1])[:12])
