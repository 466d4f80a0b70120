"""Files of a benchmark that are damaged in part: what is whole is asked, and what is not is named."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from conftest import Parrot
from test_joined_pictures import png

from sphinx_jax.data.image import BadImage, load_image
from sphinx_jax.evaluate.answers import Answers
from sphinx_jax.evaluate.asked import SAMPLING, ask, in_files, worded
from sphinx_jax.evaluate.benchmarks import BENCHMARKS, BadBenchmark
from sphinx_jax.evaluate.benchmarks.asking import ASKS
from sphinx_jax.evaluate.forms.pictures import Pictures

COLOURS = ("red", "lime", "blue", "yellow")


def pope(file: Path, keys: range) -> None:
    """A parquet file whose rows are in groups of two."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "question_id": str(key),
            "question": f"Is it {key}?",
            "answer": "yes",
            "category": "random",
            "image": {"bytes": png(COLOURS[key % 4]), "path": f"COCO_val2014_{key:012d}.jpg"},
        }
        for key in keys
    ]
    parquet.write_table(pa.Table.from_pylist(rows), file, row_group_size=2)


def damage(file: Path, group: int, column: str) -> None:
    """Overwrite the pages of a column in a group of rows; the footer stays whole."""
    with parquet.ParquetFile(file) as held:
        of_group = held.metadata.row_group(group)
        parts = [of_group.column(i) for i in range(of_group.num_columns)]
    part = next(part for part in parts if part.path_in_schema == column)
    content = bytearray(file.read_bytes())
    begin = part.dictionary_page_offset or part.data_page_offset
    content[begin : begin + part.total_compressed_size] = b"\xff" * part.total_compressed_size
    file.write_bytes(content)


def test_pictures_in_damaged_pages_are_named_and_all_others_asked(tmp_path, caplog):
    file = tmp_path / "pope" / "test-00000-of-00001.parquet"
    pope(file, range(6))
    damage(file, 1, "image.bytes")
    questions, engine = BENCHMARKS["pope"].read(file.parent).questions, Parrot(99)
    answers, look = Answers(tmp_path / "said", {}), in_files(engine, Pictures(file.parent))
    ask(engine, questions, worded(ASKS["official"]["pope"], SAMPLING["official"]), look, answers)
    assert set(answers.texts) == {questions[i].key for i in (0, 1, 4, 5)}
    for row in (2, 3):
        assert f"question random:{row} is not asked: row {row} of {file} cannot be read" in caplog.text
    with pytest.raises(BadImage, match="row 2 of"):
        Pictures(file.parent).find(questions[2].picture)
    assert load_image(Pictures(file.parent).find(questions[4].picture)).getpixel((0, 0)) == (255, 0, 0)


def test_whole_files_are_read_where_others_are_damaged_and_rows_counted_where_the_footer_has_them(tmp_path):
    shards = [tmp_path / f"test-0000{i}-of-00003.parquet" for i in range(3)]
    for number, shard in enumerate(shards):
        pope(shard, range(4 * number, 4 * number + 4))
    shards[1].write_bytes(shards[1].read_bytes()[:-20])
    damage(shards[2], 0, "question")
    with pytest.raises(BadBenchmark, match="test-00001-of-00003.parquet cannot be read as parquet"):
        BENCHMARKS["pope"].read(tmp_path)
    read = BENCHMARKS["pope"].read(tmp_path, in_part=True)
    assert [q.key for q in read.questions] == [f"random:{i}" for i in range(4)]
    assert [(one.file, one.rows) for one in read.without] == [(shards[1].name, None), (shards[2].name, 4)]
    shards[0].write_bytes(b"nothing")
    with pytest.raises(BadBenchmark, match="test-00000-of-00003.parquet cannot be read as parquet"):
        BENCHMARKS["pope"].read(tmp_path, in_part=True)


def test_a_box_in_a_picture_that_cannot_be_read_is_a_question_that_is_not_asked(tmp_path):
    def row(number: int, content: bytes) -> dict:
        name = f"COCO_train2014_{number:012d}_1.jpg"
        picture = {"bytes": content, "path": name}
        return {"image": picture, "answer": ["a cup"], "bbox": [1.0, 1.0, 2.0, 2.0], "file_name": name}

    rows = [row(number, png("red") if number % 3 else b"none") for number in range(6)]
    file = tmp_path / "val-00000-of-00001.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), file, row_group_size=3)
    damage(file, 1, "image.bytes")
    found = BENCHMARKS["refcoco"].read(tmp_path).questions
    assert [q.size for q in found] == [None, (5, 4), (5, 4), None, None, None]
