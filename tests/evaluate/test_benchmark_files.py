"""Folders as people have them: several splits side by side, relative paths, odd tables, parts that are missing."""

import base64
import csv
import io
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from sphinx_jax.data.image import BadImage
from sphinx_jax.evaluate.benchmarks import BENCHMARKS, BadBenchmark
from sphinx_jax.evaluate.forms.files import read_parquet, read_table
from sphinx_jax.evaluate.forms.pictures import Pictures, named_pictures
from sphinx_jax.evaluate.predictions import score_predictions
from sphinx_jax.recipe.stages.benchmarks import limited

FIXTURES = Path(__file__).parents[1] / "fixtures" / "benchmarks"


def png(grey: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (3, 3), grey).save(file, "PNG")
    return file.getvalue()


def test_a_relative_folder_has_each_question_s_own_picture(tmp_path, monkeypatch):
    problem = {"choices": ["a", "b"], "answer": 0, "hint": "", "image": "image.png", "subject": "s", "question": "?"}
    folder = tmp_path / "a" / "b" / "c" / "scienceqa"
    for number in (1, 2, 3):
        (folder / "images" / "test" / str(number)).mkdir(parents=True)
        (folder / "images" / "test" / str(number) / "image.png").write_bytes(png(number))
    (folder / "problems.json").write_text(json.dumps({str(n): problem for n in (1, 2, 3)}))
    (folder / "pid_splits.json").write_text(json.dumps({"test": ["1", "2", "3"]}))
    monkeypatch.chdir(tmp_path)
    path = Path("a/b/c/scienceqa")
    questions, pictures = BENCHMARKS["scienceqa"].read(path).questions, Pictures(path)
    assert [np.asarray(Image.open(pictures.find(q.picture)))[0, 0] for q in questions] == [1, 2, 3]
    with pytest.raises(BadImage, match="more than one picture image.png"):
        pictures.find("elsewhere/image.png")


def vqa(folder: Path, split: str, keys: range, questions: str = "") -> None:
    about = {"data_type": "mscoco", "data_subtype": f"{split}2014"}
    asked = [{"question_id": k, "image_id": 1, "question": split} for k in keys]
    told = [{"question_id": k, "image_id": 1, "answers": [{"answer": "x"}] * 10} for k in keys]
    name = questions or f"{split}2014"
    (folder / f"v2_OpenEnded_mscoco_{name}_questions.json").write_text(json.dumps(about | {"questions": asked}))
    if not questions:
        (folder / f"v2_mscoco_{split}2014_annotations.json").write_text(json.dumps(about | {"annotations": told}))


def test_the_held_out_split_is_read_whatever_lies_beside(tmp_path):
    vqa(tmp_path, "train", range(5))
    vqa(tmp_path, "val", range(10, 13))
    vqa(tmp_path, "test", range(20, 29), "test-dev2015")
    assert [q.key for q in BENCHMARKS["vqav2"].read(tmp_path).questions] == [10, 11, 12]


def test_parquet_of_training_is_left_alone(tmp_path):
    whole = next((FIXTURES / "okvqa" / "data" / "hf").glob("*.parquet"))
    shutil.copy(whole, tmp_path / "val2014-00000-of-00001.parquet")
    shutil.copy(whole, tmp_path / "train-00000-of-00001.parquet")
    assert len(BENCHMARKS["okvqa"].read(tmp_path).questions) == 28
    shutil.copy(whole, tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(BadBenchmark, match="twice"):
        BENCHMARKS["okvqa"].read(tmp_path)


def mmbench(path: Path, rows: int = 3) -> None:
    with open(path, "w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["index", "question", "A", "B", "answer", "image"])
        for number in range(rows):
            for k in range(2):
                picture = base64.b64encode(png(10 * number + k)).decode() + "=" * 0
                table.writerow(
                    [number + k * 1_000_000, f'{number} 5" pipe\nor "so"', "a", "b", "AB"[k], picture.ljust(80)]
                )


def test_a_question_without_all_its_rotations_does_not_count(tmp_path):
    mmbench(tmp_path / "MMBench.tsv")
    lines = [{"key": n + k * 1_000_000, "prediction": "AB"[k]} for n in range(3) for k in range(2)]
    lines = [line for line in lines if line["key"] not in (1, 1_000_002)]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = score_predictions("mmbench", tmp_path / "MMBench.tsv", tmp_path / "said.jsonl", "official")
    assert found.score.items == [1.0, None, None] and found.score.score == 1 and len(found.missing) == 2


def test_a_limit_keeps_together_what_counts_together(tmp_path):
    mmbench(tmp_path / "MMBench.tsv")
    questions = BENCHMARKS["mmbench"].read(tmp_path).questions
    assert [q.key for q in limited(questions, 2)] == [0, 1_000_000, 1, 1_000_001]
    mme = BENCHMARKS["mme"].read(FIXTURES / "mme" / "data" / "annotations").questions
    assert len(limited(mme, 1, by_category=True)) == 14 * 2


def test_rows_of_a_table_have_their_own_pictures_whatever_is_in_its_cells(tmp_path):
    lines = ["index\tquestion\tanswer\timage\tcategory\timage_path"]
    for number in range(4):
        text = ("q", 'has a 5" pipe', '"quoted ""twice"""', '"two\nlines"')[number]
        lines.append(f"{number}\t{text}\tYes\t{base64.b64encode(png(number)).decode()}\tcount\tcount/{number}.jpg")
        lines.append("")
    (tmp_path / "MME.tsv").write_text("\n".join(lines) + "\n")
    questions = BENCHMARKS["mme"].read(tmp_path).questions
    found = [np.asarray(Image.open(io.BytesIO(Pictures(tmp_path).find(q.picture))))[0, 0] for q in questions]
    assert found == [0, 1, 2, 3] and questions[3].text == "two\nlines"


def test_pictures_of_many_files_of_one_name_are_all_looked_at():
    questions = BENCHMARKS["mmmu"].read(FIXTURES / "mmmu" / "data" / "hf").questions
    spread = [q for q in questions if q.picture]
    found, lost = named_pictures(spread, FIXTURES / "mmmu" / "data")
    assert len(found) == len({q.picture for q in spread}) and not lost


def test_mme_names_pictures_of_one_name_by_category(tmp_path):
    for category in ("OCR", "code_reasoning"):
        (tmp_path / category).mkdir()
        (tmp_path / category / "0001.txt").write_text("Is it? Please answer yes or no.\tYes\nNot?\tNo\n\n")
        (tmp_path / category / "0001.png").write_bytes(png(len(category)))
    questions = BENCHMARKS["mme"].read(tmp_path).questions
    assert [q.key for q in questions] == [f"{c}/0001:{n}" for c in ("OCR", "code_reasoning") for n in (0, 1)]
    shown = [np.asarray(Image.open(Pictures(tmp_path).find(q.picture)))[0, 0] for q in questions]
    assert shown == [3, 3, 14, 14]


def test_a_split_without_answers_is_told(tmp_path):
    rows = [{"questionId": "1", "question": "?", "answers": None, "image": {"bytes": png(0), "path": ""}}]
    schema = pa.schema([("questionId", pa.string()), ("question", pa.string()), ("answers", pa.list_(pa.string()))])
    table = pa.Table.from_pylist(
        rows, schema.append(pa.field("image", pa.struct({"bytes": pa.binary(), "path": pa.string()})))
    )
    parquet.write_table(table, tmp_path / "test.parquet")
    with pytest.raises(BadBenchmark, match="DocVQA"):
        BENCHMARKS["docvqa"].read(tmp_path)


@pytest.mark.parametrize("text", ["[]", "", "{", '{"key": [1], "prediction": "x"}', '{"key": 1}', "[1]"])
def test_predictions_that_are_none_are_one_line(tmp_path, text):
    (tmp_path / "said.jsonl").write_text(text)
    for name in ("vqav2", "coco_detection"):
        with pytest.raises(BadBenchmark, match="said.jsonl") as error:
            score_predictions(name, FIXTURES / name / "data", tmp_path / "said.jsonl", "official")
        assert "\n" not in str(error.value)


def test_all_that_there_is_of_each_item_has_the_order_of_the_predictions(tmp_path):
    name = "flickr30k_caption"
    lines = (FIXTURES / name / "predictions.jsonl").read_text().splitlines()
    whole = score_predictions(name, FIXTURES / name / "data", FIXTURES / name / "predictions.jsonl", "official").score
    (tmp_path / "said.jsonl").write_text("\n".join(reversed(lines)))
    found = score_predictions(name, FIXTURES / name / "data", tmp_path / "said.jsonl", "official").score
    assert found.items == whole.items[::-1]
    assert found.more["tokenised_predictions"] == whole.more["tokenised_predictions"][::-1]
    assert found.more["per_item_other"]["ROUGE_L"] == whole.more["per_item_other"]["ROUGE_L"][::-1]


def test_pictures_are_not_in_memory_while_questions_are_read(tmp_path):
    rng, size, rows = np.random.default_rng(0), 50_000, 400
    cells = [base64.b64encode(rng.bytes(size)).decode() for _ in range(rows)]
    with open(tmp_path / "MME.tsv", "w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["question", "answer", "category", "image"])
        table.writerows(["?", "Yes", "count", cell] for cell in cells)
    tracemalloc.start()
    found = read_table(tmp_path / "MME.tsv", ("question",))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len({row["image"] for row in found}) == rows and peak < 20 * size
    kept = [{"image": {"bytes": rng.bytes(size), "path": None}} for _ in range(rows)]
    parquet.write_table(pa.Table.from_pylist(kept), tmp_path / "a.parquet", row_group_size=50)
    del kept, cells
    tracemalloc.start()
    lengths = [row["content"] for row in read_parquet(tmp_path / "a.parquet", (), lambda cell: len(cell["bytes"]))]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lengths == [size] * rows and peak < 20 * size
