"""Several pictures of one question are shown as one, side by side; each is still looked at for itself."""

import base64
import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sphinx_jax.data.image import PAD_COLOUR, load_image
from sphinx_jax.evaluate.asked import tell_of_joined
from sphinx_jax.evaluate.benchmarks import BENCHMARKS
from sphinx_jax.evaluate.forms.pictures import BETWEEN, LONGEST, Pictures, named_pictures, side_by_side
from sphinx_jax.evaluate.question import InTable, Joined, joined, picture_as_json, picture_of_json

FIXTURE = Path(__file__).parents[1] / "fixtures" / "benchmarks" / "mmmu" / "data"


def png(colour, size=(5, 4)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=2, max_size=7))
def test_heights_are_equal_and_the_order_is_kept(sizes):
    colours = [(10 + 30 * n, 200 - 20 * n, 5 * n) for n in range(len(sizes))]
    whole = side_by_side([Image.new("RGB", size, colour) for size, colour in zip(sizes, colours, strict=True)])
    pixels = np.asarray(whole)
    assert (pixels == pixels[:1]).all(), "every picture fills the height"
    between = max(1, whole.height // BETWEEN)
    wanted = []
    for (width, height), colour in zip(sizes, colours, strict=True):
        wanted += [colour] * max(1, round(width * whole.height / height)) + [PAD_COLOUR] * between
    np.testing.assert_array_equal(pixels[0], wanted[: len(wanted) - between])
    # a height of whole pixels: of one more the whole would be too long
    higher = sum(round(width * (whole.height + 1) / height) for width, height in sizes)
    assert whole.height == max(height for _, height in sizes) or higher > 0.99 * LONGEST


def test_pictures_of_one_height_keep_their_pixels():
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 256, (100, width, 3), np.uint8) for width in (60, 130, 7)]
    pixels = np.asarray(side_by_side([Image.fromarray(part) for part in parts]))
    space = np.full((100, 2, 3), PAD_COLOUR, np.uint8)
    np.testing.assert_array_equal(pixels, np.hstack([parts[0], space, parts[1], space, parts[2]]))


def test_large_pictures_have_room_and_long_ones_are_no_error():
    whole = side_by_side([Image.new("L", (6000, 5000)).convert("RGB")] * 4)
    assert 0.98 * LONGEST < whole.width <= 1.02 * LONGEST
    assert side_by_side([Image.new("RGB", (1, 6000)), Image.new("RGB", (6000, 1))]).size == (6002, 1)


@pytest.mark.parametrize(
    "picture",
    [
        None,
        "a.png",
        InTable("a.parquet", 3, "image_2"),
        Joined((InTable("a.tsv", 3), InTable("a.tsv", 3, "image", 1), "b")),
    ],
)
def test_a_picture_is_the_same_after_json(picture):
    assert picture_of_json(json.loads(json.dumps(picture_as_json(picture)))) == picture


def test_one_picture_stays_what_it_was():
    assert joined([None, "a.png", None]) == "a.png" and joined([None]) is None


COLOURS = ("red", "lime", "blue", "yellow")


def shown(folder, question) -> list[tuple[int, ...]]:
    """The colours of the parts."""
    row = np.asarray(load_image(Pictures(folder).find(question.picture)))[0]
    return [tuple(map(int, pixel)) for pixel in row[2::6]]  # five pixels wide, one between


RGB = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}


def mmmu_row(number: int, count: int) -> dict:
    pictures = {f"image_{n + 1}": {"bytes": png(COLOURS[n]), "path": "a.png"} if n < count else None for n in range(7)}
    told = {"id": f"validation_Art_{number}", "question": "<image 1> or <image 2>?", "options": "['x', 'y']"}
    return told | {"answer": "A"} | pictures


def test_mmmu_shows_all_pictures_and_logs_how_many(tmp_path, caplog):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    fields = [pa.field(name, pa.string()) for name in ("id", "question", "options", "answer")]
    schema = pa.schema([*fields, *(pa.field(f"image_{n}", kind) for n in range(1, 8))])
    rows = [mmmu_row(number, count) for number, count in enumerate((1, 2, 4))]
    parquet.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "validation.parquet", row_group_size=2)
    questions = BENCHMARKS["mmmu"].read(tmp_path).questions
    assert [shown(tmp_path, q) for q in questions] == [[RGB[c] for c in COLOURS[:n]] for n in (1, 2, 4)]
    # a picture alone is the file's own bytes
    assert Pictures(tmp_path).find(questions[0].picture) == png("red")
    named, lost = named_pictures(questions, tmp_path)
    assert len(named) == 1 + 2 + 4 and not lost and set(named.values()) == {png(colour) for colour in COLOURS}
    tell_of_joined(questions)
    told = [record.getMessage() for record in caplog.records if "side by side" in record.getMessage()]
    assert len(told) == 1 and told[0].startswith("2 of 3 questions")


def test_a_cell_of_a_table_may_hold_several(tmp_path):
    cells = [[base64.b64encode(png(colour)).decode() for colour in COLOURS[:count]] for count in (1, 3)]
    with open(tmp_path / "MMMU.tsv", "w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["index", "id", "question", "A", "B", "answer", "image"])
        for number, pictures in enumerate([cells[0][0], str(cells[1]), "1"]):  # the last has those of row 1
            table.writerow([number, f"validation_Art_{number}", "?", "x", "y", "A", pictures])
    questions = BENCHMARKS["mmmu"].read(tmp_path).questions
    assert [shown(tmp_path, q) for q in questions] == [[RGB[c] for c in COLOURS[:n]] for n in (1, 3, 3)]
    assert len(named_pictures(questions, tmp_path)[0]) == 1 + 3


@pytest.mark.parametrize("form", ["hf", "tsv", "annotations"])
def test_questions_of_one_picture_are_asked_as_before(form):
    for question in BENCHMARKS["mmmu"].read(FIXTURE / form).questions:
        assert isinstance(question.picture, str | InTable)
        assert isinstance(Pictures(FIXTURE).find(question.picture), Path | bytes)
