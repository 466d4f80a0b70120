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
from sphinx_jax.evaluate.benchmarks import BENCHMARKS
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
