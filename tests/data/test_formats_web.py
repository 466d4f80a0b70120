"""Readers of pairs, texts, classes and conversations, on small files of the forms that people have."""

import io
import json
import os
import random
import tarfile
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sphinx_jax.data.formats.chats import CHATS
from sphinx_jax.data.formats.files import BadData
from sphinx_jax.data.formats.found import Dropped, Source
from sphinx_jax.data.formats.image_folders import IMAGENET
from sphinx_jax.data.formats.pair_tables import CC3M, CC12M, PAIRS
from sphinx_jax.data.formats.tar_shards import LAION, LAION_COCO
from sphinx_jax.data.formats.texts import DOCUMENTS
from sphinx_jax.data.image import load_image


def jpeg(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (seed * 40 % 256, 90, 20)).save(stream, "JPEG")
    return stream.getvalue()


def shard(*members: tuple[str, object]) -> bytes:
    """Contents of members; a TarInfo stands for itself, and what is no text is JSON."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            if not isinstance(content, bytes):
                content = (content if isinstance(content, str) else json.dumps(content)).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def pair(key: str, caption: str = "a cat", **about) -> list[tuple[str, object]]:
    about = {"url": f"https://x.org/{key}.jpg", "caption": caption, "key": key, "status": "success"} | about
    return [(f"{key}.jpg", jpeg(len(key))), (f"{key}.json", about), (f"{key}.txt", caption)]


def read(form, file, root=None):
    """Items found with what they carry, and the reasons of what is dropped by its name."""
    every = list(form.read(Source(file, root)))
    dropped = [each for each in every if isinstance(each, Dropped)]
    return [each for each in every if not isinstance(each, Dropped)], dict(dropped)


@pytest.fixture
def tar(tmp_path):
    def write(*members, form=LAION):
        (tmp_path / "00000.tar").write_bytes(shard(*members))
        return read(form, tmp_path / "00000.tar")

    return write


@pytest.fixture
def write(tmp_path):
    def to_file(name, content):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            pyarrow.parquet.write_table(pyarrow.table(content), file, row_group_size=2)
        elif isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file.write_text(content, encoding="utf-8")
        return file

    return to_file


def lines(*values) -> str:
    return "".join((value if isinstance(value, str) else json.dumps(value)) + "\n" for value in values)


def test_a_shard_of_img2dataset_becomes_pairs_with_what_it_says_of_them(tar):
    found, dropped = tar(
        *pair("000000001", " Ein Kätzchen 🐈\n", similarity=0.31, width=8, error_message=None, exif="{}")
    )
    (one,) = found
    assert not dropped
    assert (one.item.text, one.item.turns, one.item.domain, one.item.id) == ("Ein Kätzchen 🐈", (), "real", "000000001")
    assert load_image(one.item.image).size == (8, 6)
    assert one.carried == {
        "url": "https://x.org/000000001.jpg",
        "key": "000000001",
        "status": "success",
        "similarity": 0.31,
        "width": 8,
        "exif": "{}",
    }


def test_the_caption_of_laion_coco_is_the_synthetic_one_and_never_what_stood_in_the_web(tar):
    scores = {"all_captions": ["a cat", "cat"], "all_similarities": [0.3, 0.2]}
    members = [
        *pair("1", "IMG 203.jpg", top_caption="a cat on a mat", **scores),
        *pair("2", "buy now"),
        ("3.jpg", jpeg()),
    ]
    (one,), dropped = tar(*members, form=LAION_COCO)
    assert (one.item.text, one.item.domain) == ("a cat on a mat", "synthetic")
    assert one.carried["caption"] == "IMG 203.jpg"
    assert {key: one.carried[key] for key in scores} == scores
    assert dropped == {"00000.tar/2": "caption is missing", "00000.tar/3": "caption is missing"}
    assert tar(*members)[0][0].item.text == "IMG 203.jpg"


@pytest.mark.parametrize("name", ["caption", "text", "TEXT"])
def test_a_caption_that_has_no_file_is_taken_from_the_json(tar, name):
    found, _ = tar(("1.webp", b"picture"), ("1.json", {name: "a dog"}), ("2.png", b"picture"), ("2.txt", "alone"))
    assert [(each.item.text, each.item.image) for each in found] == [("a dog", b"picture"), ("alone", b"picture")]


def test_datacomp_names_its_pairs_by_uid(tar):
    (one,), _ = tar(*pair("00000012", uid="a3f", face_bboxes=[[0.1, 0.2, 0.3, 0.4]]))
    assert one.item.id == one.carried["uid"] == "a3f"
    assert "face_bboxes" not in one.carried


def test_faults_cost_their_own_pair_alone(tar):
    link, device = tarfile.TarInfo("link.jpg"), tarfile.TarInfo("device.jpg")
    link.type, link.linkname, device.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.CHRTYPE
    found, dropped = tar(
        *pair("first"),
        ("textless.jpg", jpeg()),
        ("blank.jpg", jpeg()),
        ("blank.txt", " \n"),
        ("pictureless.txt", "a cat"),
        ("empty.jpg", b""),
        ("empty.txt", "a cat"),
        ("broken.jpg", jpeg()),
        ("broken.json", '{"url": '),
        ("broken.txt", "a cat"),
        ("list.jpg", jpeg()),
        ("list.json", "[]"),
        ("latin.jpg", jpeg()),
        ("latin.txt", "caf\xe9".encode("latin-1")),
        ("link.jpg", link),
        ("link.txt", "a cat"),
        ("device.jpg", device),
        *pair("../../out"),
        *pair("/absolute"),
        *pair("twice"),
        *pair("twice"),
        *pair("last"),
    )
    assert [each.item.id for each in found] == ["first", "last"]
    assert dropped == {
        f"00000.tar/{key}": reason
        for key, reason in {
            "textless": "caption is missing",
            "blank": "caption is missing",
            "pictureless": "picture is missing",
            "empty": "picture is missing",
            "broken": "json is damaged",
            "list": "json is damaged",
            "latin": "caption is not UTF-8",
            "link": "member is no file",
            "device": "member is no file",
            "../../out": "name leads out of the shard",
            "/absolute": "name leads out of the shard",
            "twice": "member is there twice",
        }.items()
    }


def test_a_key_ends_at_the_first_dot_of_the_file(tar):
    long = "käse und brot " + "x" * 200
    folder = tarfile.TarInfo("a.b")
    folder.type = tarfile.DIRTYPE
    found, dropped = tar(
        ("a.b", folder),
        *pair("a.b/0001"),
        *pair("./0002"),
        *pair(long),
        ("README", "text"),
        (".DS_Store", "x"),
        ("0003.JPG", jpeg()),
        ("0003.txt", "capitals"),
        ("0004.5.jpg", jpeg()),
        ("0004.5.txt", "a dot"),
    )
    assert [each.item.id for each in found] == ["a.b/0001", "0002", long, "0003"]
    assert dropped == {"00000.tar/0004": "picture is missing"}


def test_half_an_emoji_at_the_end_of_a_caption_is_left_out(tar):
    (one,), _ = tar(("1.jpg", jpeg()), ("1.json", '{"caption": "a cat \\ud83d", "similarity": NaN}'))
    assert one.item.text == "a cat"
    assert one.carried == {}


WHOLE = shard(*pair("0"), *pair("1", "b" * 700), *pair("long" * 40), *pair("3"), ("4.jpg", jpeg()), ("4.txt", "last"))


@given(st.integers(0, len(WHOLE)))
def test_a_shard_that_is_cut_off_gives_what_stands_before(tmp_path_factory, length):
    file = tmp_path_factory.getbasetemp() / "cut.tar"
    file.write_bytes(WHOLE)
    whole, _ = read(LAION, file)
    end = next(i for i in range(0, len(WHOLE), 512) if not any(WHOLE[i:])) + 512  # one empty block is an end
    file.write_bytes(WHOLE[:length])
    found, dropped = read(LAION, file)
    assert found == whole[: len(found)]
    assert dropped == ({} if length >= end else {"cut.tar": "tar is cut off"})
    if length >= end:
        assert found == whole
    # all but the last one that has begun
    begun = sum(WHOLE.index(name) < length for name in (b"0.jpg", b"1.jpg", b"longlong", b"3.jpg", b"4.jpg"))
    assert len(found) >= begun - 1


def test_a_shard_goes_on_after_its_end_or_is_overwritten_in_its_middle(tmp_path):
    file = tmp_path / "x.tar"
    file.write_bytes(shard(*pair("1")) + shard(*pair("2")))
    found, dropped = read(LAION, file)
    assert [each.item.id for each in found] == ["1"]
    assert dropped == {"x.tar": "tar goes on after its end"}
    content = bytearray(shard(*pair("1"), *pair("2")))
    at = content.index(b"2.jpg")
    content[at : at + 512] = b"\xff" * 512
    file.write_bytes(content)
    found, dropped = read(LAION, file)
    assert [each.item.id for each in found] == ["1"]
    assert dropped == {"x.tar": "tar is damaged"}


def test_bytes_that_are_changed_anywhere_in_a_shard_raise_nothing(tmp_path):
    rng, file = random.Random(0), tmp_path / "x.tar"
    for _ in range(300):
        content = bytearray(WHOLE)
        for _ in range(rng.randrange(1, 40)):
            content[rng.randrange(512, len(content))] = rng.choice(b"\0\xff-9x")
        file.write_bytes(content)
        read(LAION, file)


def test_a_shard_takes_the_memory_of_one_pair(tmp_path):
    file = tmp_path / "x.tar"
    file.write_bytes(
        shard(*(part for i in range(600) for part in ((f"{i}.jpg", b"x" * 20_000), (f"{i}.txt", "a cat"))))
    )
    tracemalloc.start()
    try:
        assert sum(1 for _ in LAION.read(Source(file))) == 600
        assert tracemalloc.get_traced_memory()[1] < 500_000  # of 12 MB; what tarfile keeps of members takes 1 MB
    finally:
        tracemalloc.stop()


def test_parquet_with_pictures_as_bytes_as_structs_and_by_path(write, tmp_path):
    write("pictures/a.jpg", jpeg())
    images = [
        {"bytes": jpeg(), "path": "x.jpg"},
        {"bytes": None, "path": "a.jpg"},
        {"bytes": None, "path": "b.jpg"},
        None,
    ]
    table = {"image": [*images, images[0]], "TEXT": [" one ", "two", "three", "four", None], "similarity": [0.5] * 5}
    found, dropped = read(PAIRS, write("p.parquet", table), tmp_path / "pictures")
    assert [each.item.image for each in found] == [jpeg(), str(tmp_path / "pictures" / "a.jpg")]
    assert [(each.item.text, each.item.domain, each.item.id) for each in found] == [
        ("one", "real", "p/0"),
        ("two", "real", "p/1"),
    ]
    assert found[0].carried == {"similarity": 0.5}
    missing = "picture is missing"
    assert dropped == {"p.parquet/2": missing, "p.parquet/3": missing, "p.parquet/4": "caption is missing"}


def test_parquet_of_img2dataset_holds_pictures_or_lies_beside_them(write):
    table = {
        "jpg": [b"1", b"2", None],
        "key": ["01", "02", "03"],
        "caption": ["web"] * 3,
        "top_caption": ["a", None, "c"],
    }
    found, dropped = read(PAIRS, write("held.parquet", table))
    assert [(e.item.id, e.item.text, e.item.domain, e.carried["caption"]) for e in found] == [
        ("01", "a", "synthetic", "web")
    ]
    assert dropped == {"held.parquet/1": "caption is missing", "held.parquet/2": "picture is missing"}
    del table["jpg"]
    file = write("00000.parquet", table)
    with pytest.raises(BadData, match="00000.parquet holds no pictures"):
        read(PAIRS, file)
    picture = write("00000/01.png", jpeg())
    found, dropped = read(PAIRS, file)
    assert [each.item.image for each in found] == [str(picture)]
    assert dropped["00000.parquet/1"] == "picture is missing"


def test_a_row_or_row_group_that_is_damaged_costs_itself(write, tmp_path):
    texts = pyarrow.array([b"one", b"caf\xe9", b"three", b"four", b"five"]).view(pyarrow.string())
    file = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), file, row_group_size=2, compression="gzip")
    found, dropped = read(DOCUMENTS, file)
    assert [each.item.text for each in found] == ["one", "three", "four", "five"]
    assert dropped == {"t.parquet row 1": "row is damaged"}
    where = pyarrow.parquet.ParquetFile(file).metadata.row_group(1).column(0)
    content = bytearray(file.read_bytes())
    begin = where.dictionary_page_offset or where.data_page_offset
    content[begin : begin + where.total_compressed_size] = b"\xff" * where.total_compressed_size
    file.write_bytes(content)
    found, dropped = read(DOCUMENTS, file)
    assert [(each.item.text, each.item.id) for each in found] == [("one", "t/0"), ("five", "t/4")]
    assert dropped["t.parquet row group 1"] == "row group is damaged"


def test_lists_of_captions_and_paths(write, tmp_path):
    picture = str(write("pics/1 käse.jpg", jpeg()))
    content = '"quoted cat\t1 käse.jpg\r\nno picture\t2.jpg\nalone\n\n \t1 käse.jpg\nfar\thttps://x.org/1.jpg\n'
    file = write("train.tsv", content.encode() + b"caf\xe9\t1.jpg\n")
    found, dropped = read(CC3M, file, tmp_path / "pics")
    assert [(each.item.image, each.item.text, each.item.id) for each in found] == [(picture, '"quoted cat', "train/1")]
    assert dropped == {
        "train.tsv/2": "picture is missing",
        "train.tsv/3": "cell is missing",
        "train.tsv/5": "caption is missing",
        "train.tsv/6": "picture is a web address",
        "train.tsv/7": "line is not UTF-8",
    }
    (one,), _ = read(CC12M, write("cc12m.tsv", "pics/1 käse.jpg\ta cat\n"))
    assert (one.item.image, one.item.text) == (picture, "a cat")
    for form in (CC3M, CC12M):
        (one,), _ = read(form, write("open.tsv", "\ufefftitle\tscore\tfilepath\na cat\t1\tpics/1 käse.jpg\n"))
        assert (one.item.image, one.item.text) == (picture, "a cat")


def test_documents_of_parquet_and_of_lines(write):
    times = pyarrow.array([0, 1], pyarrow.timestamp("s"))
    table = {
        "content": [" RefinedWeb. ", ""],
        "url": ["x.org"] * 2,
        "timestamp": times,
        "image_urls": [[["a", "b"]], []],
    }
    (one,), dropped = read(DOCUMENTS, write("refined.parquet", table))
    assert (one.item.image, one.item.turns, one.item.text) == (None, (), "RefinedWeb.")
    assert one.carried == {"url": "x.org", "timestamp": "1970-01-01T00:00:00"}
    assert dropped == {"refined.parquet/1": "text is missing"}
    (one,), _ = read(DOCUMENTS, write("fine.parquet", {"text": ["FineWeb."], "id": ["<urn:1>"], "token_count": [3]}))
    assert (one.item.text, one.item.id, one.carried) == ("FineWeb.", "<urn:1>", {"token_count": 3})
    content = lines(
        {"text": "Line\u2028one."}, '{"text": ', [], {"text": None}, "", {"text": "Line six.", "lang": "en"}
    )
    found, dropped = read(DOCUMENTS, write("lines.jsonl", "\ufeff" + content))
    assert [(each.item.text, each.item.id) for each in found] == [
        ("Line\u2028one.", "lines/1"),
        ("Line six.", "lines/6"),
    ]
    assert found[1].carried == {"lang": "en"}
    assert list(dropped.values()) == ["json is damaged", "item is not an object", "text is missing"]


MAPPING = "n01440764 tench, Tinca tinca\nn01484850 great white shark, white shark\n"
INDEX = json.dumps({"0": ["n01440764", "tench"], "1": ["n01484850", "great_white_shark"]})


@pytest.mark.parametrize(
    "name, content",
    [
        ("LOC_synset_mapping.txt", MAPPING),
        ("ILSVRC/Data/CLS-LOC/synset_words.txt", MAPPING),
        ("ILSVRC/Data/CLS-LOC/train/imagenet_class_index.json", INDEX),
    ],
)
def test_classes_of_imagenet_get_their_first_name(write, tmp_path, name, content):
    folder = tmp_path / "ILSVRC/Data/CLS-LOC/train"
    first = write(folder / "n01440764/n01440764_10.JPEG", jpeg())
    write(folder / "n01484850/n01484850_7.JPEG", jpeg())
    write(folder / "n01484850/notes.csv", "x")
    with pytest.raises(BadData, match=r"n01440764 is not named in one of LOC_synset_mapping\.txt, synset_words\.txt"):
        read(IMAGENET, folder)
    write(name, content)
    found, dropped = read(IMAGENET, folder)
    assert [each.item.turns for each in found] == [
        (("Classify the image.", "This is a tench"),),
        (("Classify the image.", "This is a great white shark"),),
    ]
    assert (found[0].item.image, found[0].item.id) == (str(first), "n01440764/n01440764_10")
    assert (found[0].item.tasks, found[0].carried) == (("classification",), {"class": "n01440764"})
    assert dropped == {"n01484850/notes.csv": "file is not a picture"}


def test_folders_may_be_named_by_the_class(write, tmp_path, monkeypatch):
    write("train/golden_retriever/1.png", jpeg())
    (tmp_path / "train/golden_retriever" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(jpeg())
    (tmp_path / "train/empty").mkdir()
    monkeypatch.chdir(tmp_path)
    (one,), dropped = read(IMAGENET, (tmp_path / "train").relative_to(tmp_path))
    assert one.item.turns[0][1] == "This is a golden retriever"
    assert one.item.image == str(tmp_path / "train/golden_retriever/1.png")
    assert sorted(dropped.values()) == ["name is not UTF-8", "picture is missing"]
    for name in dropped:
        name.encode()


def said(*messages: str, **more) -> dict:
    """A conversation of messages such as "human: Hello."."""
    parts = (message.split(": ", 1) for message in messages)
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in parts], **more}


QUESTION, ANSWER = "human: Who?", "gpt: Me."

CONVERSATIONS = {
    "picture": said("human: <image>\nWho?", ANSWER, id="a", image="pics/1.jpg", model="v1"),
    "text": said(QUESTION, ANSWER),
    "system": said("system: Be kind.", "gpt: Left over.", QUESTION, ANSWER),
    "begun": said("gpt: Left over.", "gpt: And more.", QUESTION, ANSWER, "human: Then?"),
    "openai": {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]},
}
UNUSABLE = {
    "speakers are out of turn": said(QUESTION, "human: Again?", ANSWER),
    "speaker is unknown": said(QUESTION, "bing: Me."),
    "conversation is missing": said("gpt: Left over."),
    "answer is missing": said(QUESTION, "gpt:  "),
    "item has several pictures": said(QUESTION, ANSWER, image=["pics/1.jpg", "pics/2.jpg"]),
    "picture is missing": said(QUESTION, ANSWER, image="pics/2.jpg"),
    "item cannot be used": said("human: <image> Who?", ANSWER),
    "text is missing": {"text": " "},
}


@pytest.mark.parametrize("name", ["list.json", "lines.jsonl"])
def test_conversations_of_llava_and_sharegpt(write, name):
    picture = str(write("pics/1.jpg", jpeg()))
    items = [*CONVERSATIONS.values(), *UNUSABLE.values(), {"id": 1}, 3]
    file = write(name, json.dumps(items) if name == "list.json" else lines(*items, '{"id": '))
    found, dropped = read(CHATS, file)
    assert [each.item.turns for each in found] == [(("Who?", "Me."),)] * len(CONVERSATIONS)
    assert [each.item.system for each in found] == [None, None, "Be kind.", None, None]
    assert (found[0].item.image, found[0].item.id, found[0].carried) == (picture, "a", {"model": "v1"})
    assert found[1].item.image is None
    expected = [*UNUSABLE, "conversation is missing", "item is not an object"]
    assert list(dropped.values()) == [*expected, "json is damaged"] if name == "lines.jsonl" else expected


@pytest.mark.parametrize(
    "form, name, content, expected",
    [
        (LAION, "x.tar", json.dumps(["x" * 600]), "uncompressed shard"),
        (LAION, "absent.tar", None, "No such file"),
        (PAIRS, "x.parquet", "text", "cannot be read as parquet"),
        (PAIRS, "x.parquet", {"image": [b"x"]}, "has no captions"),
        (PAIRS, "x.parquet", {"URL": ["https://x.org"], "TEXT": ["a cat"]}, "holds no pictures"),
        (CC3M, "x.tsv", "a cat,1.jpg\n", "parted by a tab"),
        (CC3M, "x.tsv", "a cat\thttp://x.org/1.jpg\n", "lists web addresses"),
        (CC12M, "x.tsv", "url\tcaption\nhttp://x.org/1.jpg\ta cat\n", "lists web addresses"),
        (DOCUMENTS, "x.parquet", {"URL": ["https://x.org"]}, "expected 'text' or 'content'"),
        (DOCUMENTS, "x.jsonl", lines({"messages": []}, {"caption": "a cat"}), "expected 'text' or 'content'"),
        (DOCUMENTS, "x.jsonl", "[\n]", "one object a line"),
        (CHATS, "x.json", "{}", "expected a list"),
        (CHATS, "x.json", "words", "is not JSON"),
        (CHATS, "x.json", json.dumps([{"image": "1.jpg", "caption": "a cat"}]), "holds no conversations"),
        (CHATS, "x.jsonl", lines({"caption": "a cat"}), "holds no conversations"),
        (IMAGENET, "x.txt", "words", "as a folder of classes"),
        (IMAGENET, "val", None, "as a folder of classes"),
    ],
)
def test_a_file_of_another_format_is_named_in_one_line(write, tmp_path, form, name, content, expected):
    file = tmp_path / name if content is None else write(name, content)
    with pytest.raises(BadData) as caught:
        read(form, file)
    assert expected in str(caught.value) and str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_above_the_classes_is_not_taken_for_one_of_classes(write, tmp_path):
    write("train/cat/1.jpg", jpeg())
    with pytest.raises(BadData, match="no folders with pictures"):
        read(IMAGENET, tmp_path)
