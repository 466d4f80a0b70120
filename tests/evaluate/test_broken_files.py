"""Files of benchmarks and predictions with a flaw: it is named, and what is whole is scored."""

import base64
import csv
import io
import json
import pickle
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from sphinx_jax.evaluate import card
from sphinx_jax.evaluate.benchmarks import BENCHMARKS, BadBenchmark
from sphinx_jax.evaluate.benchmarks.asking import ASKS
from sphinx_jax.evaluate.forms.pictures import Pictures
from sphinx_jax.evaluate.predictions import Scored, score_predictions

FIXTURES = Path(__file__).parents[1] / "fixtures" / "benchmarks"


def png(grey: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (3, 3), grey).save(file, "PNG")
    return file.getvalue()


def write_table(path: Path, rows: list[dict]) -> None:
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, rows[0], delimiter="\t")
        table.writeheader()
        table.writerows({"image": base64.b64encode(png()).decode()} | row for row in rows)


def score(tmp_path: Path, name: str, data: Path, said: dict, protocol: str = "official") -> Scored:
    lines = (json.dumps({"key": key, "prediction": text}) + "\n" for key, text in said.items())
    (tmp_path / "said.jsonl").write_text("".join(lines))
    return score_predictions(name, data, tmp_path / "said.jsonl", protocol)


def rows(answers: list, **more) -> list[dict]:
    choices = {"A": "one", "B": "two"}
    return [
        {"index": i, "question": "?", **choices, "answer": a, "category": "x", "image": ""} | more
        for i, a in enumerate(answers)
    ]


@pytest.mark.parametrize("name", ["mmbench", "scienceqa", "seed", "ai2d", "blink", "mmstar", "gqa"])
def test_a_blank_answer_is_none_and_its_question_is_missing(tmp_path, name):
    answers = ["A", "", "nan"]
    write_table(tmp_path / "a.tsv", rows(answers))
    found = score(tmp_path, name, tmp_path / "a.tsv", {0: "A", 1: "", 2: "nan"})
    assert found.score.items == [1] and found.score.score in (1, 100) and found.asked == 3
    assert [*map(int, found.missing)] == [1, 2]
    assert any("2 of 3 questions" in note and "no answer" in note for note in found.notes)


@pytest.mark.parametrize("name", ["mmbench", "scienceqa", "seed", "ai2d", "blink"])
def test_a_choice_needs_a_letter_that_it_has(tmp_path, name):
    write_table(tmp_path / "a.tsv", rows(["B", "C", "two", "b"]))
    found = score(tmp_path, name, tmp_path / "a.tsv", {0: "B", 1: "C", 2: "two", 3: "B"})
    assert found.score.items == [1, 1] and [*map(int, found.missing)] == [1, 2]


def test_a_table_without_any_answer_is_a_split_without_answers(tmp_path):
    write_table(tmp_path / "MMBench.tsv", rows(["", "", ""]))
    with pytest.raises(BadBenchmark, match="without answers"):
        score(tmp_path, "mmbench", tmp_path / "MMBench.tsv", {0: "I do not know."})


def test_parquet_without_a_number_of_the_right_choice(tmp_path):
    held = [
        {"question": "?", "choices": ["a", "b"], "answer": a, "hint": "", "subject": "s", "image": None}
        for a in (1, None, 2, 0)
    ]
    parquet.write_table(pa.Table.from_pylist(held), tmp_path / "test.parquet")
    found = score(tmp_path, "scienceqa", tmp_path / "test.parquet", dict.fromkeys(range(4), "B"))
    assert found.score.items == [1, 0] and list(found.missing) == [1, 2]


def test_an_answer_of_none_is_no_word(tmp_path):
    held = [{"imageId": "1", "question": "?", "answer": a} for a in ("yes", None)]
    parquet.write_table(pa.Table.from_pylist(held), tmp_path / "test.parquet")
    found = score(tmp_path, "gqa", tmp_path / "test.parquet", {0: "yes", 1: "none"})
    assert found.score.items == [1] and list(found.missing) == [1]


def test_several_tables_in_one_folder_are_named(tmp_path):
    for name in ("MMBench_DEV_EN.tsv", "MMBench_DEV_CN.tsv"):
        write_table(tmp_path / name, rows(["A"]))
    with pytest.raises(BadBenchmark, match="2 tables, MMBench_DEV_CN.tsv, MMBench_DEV_EN.tsv: give one"):
        BENCHMARKS["mmbench"].read(tmp_path)
    for name, table in (("pope", "POPE"), ("chartqa", "ChartQA_TEST")):
        folder = tmp_path / name
        for copy in "ab":
            (folder / copy).mkdir(parents=True)
            shutil.copy(FIXTURES / name / "data" / "tsv" / f"{table}.tsv", folder / copy / f"{copy}.tsv")
        with pytest.raises(BadBenchmark, match="a.tsv, b.tsv"):
            BENCHMARKS[name].read(folder)


def test_mmbench_is_asked_in_chinese_too(tmp_path):
    write_table(tmp_path / "MMBench_DEV_CN.tsv", rows(["A"], question="哪个?"))
    (question,) = BENCHMARKS["mmbench_cn"].read(tmp_path).questions
    asked = ASKS["official"]["mmbench_cn"].text(question)
    assert asked == "哪个? 有如下几个选项：\nA. one\nB. two\n\n请直接使用所提供的选项字母作为答案回答。"
    found = score(tmp_path, "mmbench_cn", tmp_path, {0: "A"})
    (line,) = card.lines("mmbench_cn", "official", found.score, [question], model="sphinx")
    assert line.score == 100 and line.published is None  # of MMBench's own number


def vqa(tmp_path: Path, count: int) -> Path:
    about = {"data_type": "mscoco", "data_subtype": "val2014"}
    asked = [{"question_id": k, "image_id": 1, "question": "?"} for k in range(count)]
    told = [{"question_id": k, "image_id": 1, "answers": [{"answer": "x"}] * 10} for k in range(count)]
    (tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps(about | {"questions": asked}))
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text(json.dumps(about | {"annotations": told}))
    return tmp_path


def given(tmp_path: Path, content: bytes, count: int) -> Scored:
    (tmp_path / "said.jsonl").write_bytes(content)
    return score_predictions("vqav2", vqa(tmp_path, count), tmp_path / "said.jsonl", "official")


def line(key: int, text: str = "x") -> bytes:
    return json.dumps({"key": key, "prediction": text}, ensure_ascii=False).encode() + b"\n"


@pytest.mark.parametrize("mark", ["\u2028", "\u0085"])
def test_marks_that_part_lines_elsewhere_stand_inside_of_predictions(tmp_path, mark):
    found = given(tmp_path, line(0, f"a{mark}b") + line(1), 2)
    assert found.score.items == [0, 1] and not any("passed over" in note for note in found.notes)


def test_a_byte_order_mark_is_no_part_of_predictions(tmp_path):
    assert given(tmp_path, b"\xef\xbb\xbf" + line(0), 1).score.items == [1]
    listed = json.dumps([{"key": 0, "prediction": "x"}]).encode()
    assert given(tmp_path, b"\xef\xbb\xbf" + listed, 1).score.items == [1]


@pytest.mark.parametrize(
    "bad", [b"null", b"3", b'{"key": 1}', b'{"key": 1, "predic', b'{"key": 1, "prediction": "\xff"}']
)
def test_a_line_that_is_no_prediction_is_named_and_passed_over(tmp_path, bad):
    found = given(tmp_path, line(0) + bad + b"\n" + line(2) + bad, 3)
    assert found.score.items == [1, 1] and list(found.missing) == [1]
    (note,) = [note for note in found.notes if "passed over" in note]
    assert f"{tmp_path / 'said.jsonl'}:2 is not" in note and "1 more" in note and "said.jsonl:4" in note


def test_a_list_with_an_entry_that_is_no_prediction(tmp_path):
    listed = json.dumps([None, {"key": 0, "prediction": "x"}]).encode()
    found = given(tmp_path, listed, 1)
    assert found.score.items == [1] and any("said.jsonl, entry 1 is not" in note for note in found.notes)


def test_keys_that_come_twice_are_counted(tmp_path):
    found = given(tmp_path, line(0, "no") + line(1) + line(0) + line(0), 2)
    assert found.score.items == [1, 1] and any("1 keys come more than once" in note for note in found.notes)


RESULT = {"image_id": 250910, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("name", "flaw", "said"),
    [
        ("coco_detection", {"score": None}, "result 2 has no score"),
        ("coco_detection", {"bbox": [1, 2]}, "result 2 has no bbox of four"),
        ("coco_detection", {"category_id": 999}, "result 2 has category_id 999"),
        ("coco_detection", {"image_id": -1}, "result 2 has image_id -1"),
        ("coco_keypoints", {"keypoints": [1, 2, 2] * 10}, "result 2 has no keypoints of 51"),
        ("coco_keypoints", {"score": "sure"}, "result 2 has no score"),
    ],
)
def test_a_result_that_is_not_in_coco_s_form_is_named(tmp_path, name, flaw, said):
    results = json.loads((FIXTURES / name / "results.json").read_text())[:3]
    results[1] = {key: value for key, value in (results[1] | flaw).items() if value is not None}
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(BadBenchmark, match=said) as error:
        score_predictions(name, FIXTURES / name / "data", tmp_path / "results.json", "official")
    assert "\n" not in str(error.value)


def test_a_row_with_a_cell_too_many_is_left_out(tmp_path):
    write_table(tmp_path / "a.tsv", rows(["A", "B", "A"]))
    lines = (tmp_path / "a.tsv").read_bytes().split(b"\r\n")
    lines[2] += b"\tmore"
    (tmp_path / "a.tsv").write_bytes(b"\r\n".join(lines))
    found = score(tmp_path, "scienceqa", tmp_path / "a.tsv", {0: "A", 1: "B", 2: "B"})
    assert found.score.items == [1, 0] and list(found.missing) == [1]
    assert any("row 2 has not as many cells" in note for note in found.notes)
    lines[1:4] = [line + b"\tmore" * (number != 1) for number, line in enumerate(lines[1:4])]
    (tmp_path / "a.tsv").write_bytes(b"\r\n".join(lines))
    with pytest.raises(BadBenchmark, match="row 1 has not as many cells"):
        BENCHMARKS["scienceqa"].read(tmp_path / "a.tsv")


@pytest.mark.parametrize(("name", "table"), [("pope", "POPE"), ("chartqa", "ChartQA_TEST")])
def test_a_row_with_a_cell_too_many_keeps_the_numbers_of_the_others(tmp_path, name, table):
    whole = (FIXTURES / name / "data" / "tsv" / f"{table}.tsv").read_text()
    keys = [q.key for q in BENCHMARKS[name].read(FIXTURES / name / "data" / "tsv").questions]
    first, second, rest = whole.split("\n", 2)
    (tmp_path / "a.tsv").write_text("\n".join([first, second.rstrip("\r") + "\tmore", rest]))
    read = BENCHMARKS[name].read(tmp_path)
    assert read.unfit and {q.key for q in read.unfit} == set(keys) - {q.key for q in read.questions}


def test_a_phrase_without_a_box_is_left_out(tmp_path):
    shutil.copytree(FIXTURES / "refcoco" / "data" / "refcoco", tmp_path / "refcoco")
    whole = BENCHMARKS["refcoco"].read(tmp_path).questions
    (refs,) = tmp_path.rglob("refs(unc).p")
    (gone, *_) = [ref for ref in pickle.loads(refs.read_bytes()) if ref["split"] == "val"]
    beside = refs.parent / "instances.json"
    held = json.loads(beside.read_text())
    held["annotations"] = [a for a in held["annotations"] if a["id"] != gone["ann_id"]]
    beside.write_text(json.dumps(held))
    read = BENCHMARKS["refcoco"].read(tmp_path)
    lost = {q.key for q in read.unfit}
    assert len(lost) >= len(gone["sentences"])
    assert [(q.key, q.text, q.box) for q in read.questions] == [
        (q.key, q.text, q.box) for q in whole if q.key not in lost
    ]
    assert any("has no box" in note for note in read.notes)


@pytest.mark.parametrize(
    "written",
    [
        lambda text: f"data:image/png;base64,{text}",
        lambda text: "\n".join(text[at : at + 76] for at in range(0, len(text), 76)),
    ],
    ids=["data URL", "lines"],
)
def test_base64_is_read_however_it_is_written(tmp_path, written):
    table = [row | {"image": written(base64.b64encode(png(i)).decode())} for i, row in enumerate(rows(["A", "B"]))]
    write_table(tmp_path / "a.tsv", table)
    questions = BENCHMARKS["scienceqa"].read(tmp_path / "a.tsv").questions
    assert [Pictures(tmp_path).find(q.picture) for q in questions] == [png(0), png(1)]


def test_ai2d_without_its_list_of_test_pictures_is_said(tmp_path):
    whole = BENCHMARKS["ai2d"].read(FIXTURES / "ai2d" / "data" / "ai2diagram")
    assert not any("ai2d_test_ids" in note for note in whole.notes)
    shutil.copytree(FIXTURES / "ai2d" / "data" / "ai2diagram", tmp_path / "ai2d")
    (tmp_path / "ai2d" / "ai2d_test_ids.csv").unlink()
    assert any("no ai2d_test_ids.csv" in note for note in BENCHMARKS["ai2d"].read(tmp_path / "ai2d").notes)


@pytest.mark.parametrize("protocol", ["reference", "official"])
def test_a_picture_of_mme_with_one_answer_leaves_accuracy_plus_alone(tmp_path, protocol):
    data = FIXTURES / "mme" / "data" / "annotations"
    questions = BENCHMARKS["mme"].read(data).questions
    said = {q.key: q.answers[0] for q in questions}
    first, second = questions[0].key, questions[1].key
    right = score(tmp_path, "mme", data, said, protocol).score
    lacking = score(tmp_path, "mme", data, {key: text for key, text in said.items() if key != first}, protocol)
    assert lacking.score.parts == right.parts and list(lacking.missing) == [first]
    assert any("1 pictures have one answer" in note for note in lacking.notes)
    # its other half counts for accuracy: one of the others in its category is wrong, and no pair is
    wrong = {key: text for key, text in said.items() if key != first} | {second: "maybe"}
    category = questions[0].labels["category"]
    count = sum(q.labels["category"] == category for q in questions) - 1
    found = score(tmp_path, "mme", data, wrong, protocol).score.parts
    assert found[category] == pytest.approx(100 * (count - 1) / count + 100)
