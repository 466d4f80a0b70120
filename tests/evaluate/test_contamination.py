"""A benchmark's pictures in a training list: found as they are, scaled, pressed or renamed; others are not."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from sphinx_jax.evaluate import contamination
from sphinx_jax.evaluate.benchmarks import BENCHMARKS
from sphinx_jax.evaluate.contamination import Pair, coco_number, look_at, pairs
from sphinx_jax.evaluate.forms.pictures import named_pictures

ROOT = Path(__file__).parents[2]


def picture(seed: int, size: int = 128) -> Image.Image:
    """Soft coloured patches, as a photograph's small copy has them."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
    return small.resize((size, size), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


CHANGES = {
    "pressed": lambda image: encoded(image, "JPEG", quality=70),
    "halved": lambda image: encoded(image.resize((64, 64))),
    "larger": lambda image: encoded(image.resize((300, 300), Image.Resampling.LANCZOS)),
    "darker": lambda image: encoded(image.point(lambda x: int(x * 0.9))),
    "softer": lambda image: encoded(image.filter(ImageFilter.GaussianBlur(1))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_among_others(change):
    benchmark, _ = look_at([(f"b{i}", encoded(picture(i))) for i in range(40)])
    trained, _ = look_at([(f"t{i}", CHANGES[change](picture(i))) for i in range(20, 80)])
    found = list(pairs(benchmark, trained))
    assert {(p.benchmark, p.trained) for p in found} == {(f"b{i}", f"t{i}") for i in range(20, 40)}
    assert {p.how for p in found} == {"look"}


def test_the_same_pixels_are_told_as_such_whatever_the_file(tmp_path):
    image = picture(1)
    image.save(tmp_path / "a.bmp")
    benchmark, _ = look_at([("b", encoded(image))])
    trained, _ = look_at([("t", tmp_path / "a.bmp"), ("other", encoded(picture(2)))])
    assert list(pairs(benchmark, trained)) == [Pair("b", "t", "content")]


def test_pictures_of_one_colour_look_like_nothing():
    plain = {name: encoded(Image.new("RGB", (32, 32), name)) for name in ("red", "blue", "white")}
    trained, _ = look_at(plain.items())
    assert not list(pairs(look_at([("grey", encoded(Image.new("RGB", (32, 32), "grey")))])[0], trained))


def test_numbers_of_coco_are_compared_across_its_years():
    assert coco_number("train2017/000000012046.jpg") == coco_number("COCO_train2014_000000012046.jpg") == 12046
    assert coco_number("12046.jpg") is None
    benchmark, _ = look_at([("COCO_train2014_000000000007.jpg", encoded(picture(3)))])
    trained, _ = look_at([("a/000000000007.jpg", encoded(picture(4))), ("a/000000000008.jpg", encoded(picture(5)))])
    assert [(p.how, p.trained) for p in pairs(benchmark, trained)] == [("number", "a/000000000007.jpg")]


def test_what_cannot_be_read_is_named():
    found, bad = look_at([("good", encoded(picture(0))), ("bad", b"no picture")])
    assert found.names == ["good", "bad"] and list(bad) == ["bad"]


def test_what_is_not_there_has_its_number_all_the_same():
    benchmark, _ = look_at([("a:0:image:0:COCO_val2014_000000000007", encoded(picture(3)))])
    trained, bad = look_at([("train2017/000000000007.jpg", Path("nowhere/000000000007.jpg"))])
    assert bad and list(pairs(benchmark, trained)) == [Pair(benchmark.names[0], trained.names[0], "number")]
    lost, _ = look_at([], unread=["COCO_train2014_000000000007_12.jpg"])
    assert [p.how for p in pairs(lost, trained)] == ["number"]


@pytest.mark.parametrize("benchmark", ["refcoco", "pope"])
def test_pictures_in_parquet_have_coco_s_numbers(benchmark):
    folder = ROOT / "tests" / "fixtures" / "benchmarks" / benchmark / "data" / "hf"
    path = folder if benchmark == "refcoco" else next(folder.glob("*.parquet"))
    named, lost = named_pictures(BENCHMARKS[benchmark].read(path).questions, folder)
    assert named and not lost and None not in map(coco_number, named)


def test_many_pictures_are_compared_part_by_part(monkeypatch):
    monkeypatch.setattr(contamination, "PART", 7)
    benchmark, _ = look_at([(f"b{i}", encoded(picture(i))) for i in range(20)])
    trained, _ = look_at([(f"t{i}", encoded(picture(i))) for i in range(15, 40)])
    assert {p.benchmark for p in pairs(benchmark, trained)} == {f"b{i}" for i in range(15, 20)}


def test_the_command_finds_what_a_list_shares(tmp_path):
    fixture = ROOT / "tests" / "fixtures" / "benchmarks" / "docvqa" / "data"
    shared = sorted(fixture.rglob("documents/*.png"))[0]
    picture(0).save(tmp_path / "own.png")
    items = [
        {"image": str(path), "conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]}
        for path in (shared, tmp_path / "own.png")
    ]
    (tmp_path / "list.json").write_text(json.dumps(items))
    (tmp_path / "list.yaml").write_text(f"META:\n  - path: {tmp_path / 'list.json'}\n")
    command = [sys.executable, "tools/check_contamination.py", "docvqa", str(fixture), str(tmp_path / "list.yaml")]
    said = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = json.loads(said)
    assert {(Path(p["benchmark"]).name, p["how"]) for p in found if p["how"] == "content"} == {(shared.name, "content")}
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "of the list" in said and "by content: 1 pairs" in said
