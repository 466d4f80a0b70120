"""Benchmarks of which no scored files were at hand: small made-up ones, scored by hand."""

import base64
import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from sphinx_jax.evaluate import card
from sphinx_jax.evaluate.benchmarks import BENCHMARKS, BadBenchmark
from sphinx_jax.evaluate.benchmarks.asking import ASKS
from sphinx_jax.evaluate.forms.pictures import Pictures
from sphinx_jax.evaluate.predictions import score_predictions


def png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, "PNG")
    return file.getvalue()


def write_table(path, rows):
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, rows[0], delimiter="\t")
        table.writeheader()
        table.writerows(row | {"image": base64.b64encode(png()).decode()} for row in rows)


def write_parquet(path, rows):
    parquet.write_table(
        pa.Table.from_pylist([row | {"image": {"bytes": png(), "path": "a.png"}} for row in rows]), path
    )


def score(tmp_path, name, said):
    lines = (json.dumps({"key": key, "prediction": text}) + "\n" for key, text in said.items())
    (tmp_path / "said.jsonl").write_text("".join(lines))
    return score_predictions(name, tmp_path / "data", tmp_path / "said.jsonl", "official").score


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


STAR = [
    {"index": 0, "question": "What? Options: A: a cat, B: two dogs, C: none", "answer": "B", "category": "x"},
    {"index": 1, "question": "Why? Options: A: so, B: thus", "answer": "A", "category": "x"},
    {"index": 2, "question": "Who? Options: A: me, B: you", "answer": "A", "category": "y"},
]


@pytest.mark.parametrize("write", [write_table, write_parquet], ids=["table", "parquet"])
def test_mmstar(tmp_path, data, write):
    write(data / ("a.tsv" if write is write_table else "a.parquet"), [row | {"image": ""} for row in STAR])
    questions = BENCHMARKS["mmstar"].read(data).questions
    assert questions[0].choices == ("a cat", "two dogs", "none") and questions[0].text == "What?"
    assert Pictures(data).find(questions[2].picture) == png()
    asked = ASKS["official"]["mmstar"].text(questions[1])
    assert asked.startswith("Why?\nA. so\nB. thus\nAnswer with the option's letter")
    found = score(tmp_path, "mmstar", {0: "B", 1: "(A) so", 2: "Because"})
    assert found.items == [1, 1, 0] and found.parts == {"x": 1, "y": 0}


def test_realworldqa_takes_words_where_there_are_no_choices(tmp_path, data):
    rows = [
        {"question": "Which way?", "answer": "Left", "image_path": "1"},
        {"question": "How many?\nA. 1\nB. 2\nPlease answer with the letter.", "answer": "B", "image_path": "2"},
    ]
    write_parquet(data / "test.parquet", rows)
    assert score(tmp_path, "realworldqa", {0: "left.", 1: "B. 2"}).score == 1
    assert score(tmp_path, "realworldqa", {0: "right", 1: "A"}).score == 0


def hallusion(set_id, figure, question, right):
    named = {"category": "VD", "subcategory": "chart", "set_id": set_id, "figure_id": figure, "question_id": question}
    return named | {"question": "Is it so?", "gt_answer": right, "visual_input": "1", "filename": "a.png"}


def test_hallusionbench_counts_questions_figures_and_pairs(tmp_path, data):
    rows = [hallusion("0", "0", "0", "1"), hallusion("0", "1", "0", "0"), hallusion("0", "0", "1", "0")]
    without = hallusion("1", "0", "0", "1") | {"visual_input": "0", "filename": None}
    (data / "HallusionBench.json").write_text(json.dumps([*rows, without]))
    keys = [q.key for q in BENCHMARKS["hallusionbench"].read(data).questions]
    assert len(keys) == 3
    found = score(tmp_path, "hallusionbench", dict(zip(keys, ["Yes, it is.", "yes", "No."], strict=True)))
    # the second is wrong: figure 0 is right in both questions, question 0 not about both figures
    assert found.parts == pytest.approx({"aAcc": 2 / 3, "fAcc": 1 / 2, "qAcc": 1 / 2})


def test_hallusionbench_is_the_same_as_a_table(tmp_path, data):
    rows = [hallusion("0", "0", "0", "1"), hallusion("0", "1", "0", "0")]
    (data / "HallusionBench.json").write_text(json.dumps(rows))
    told = [(q.key, q.answers, q.labels["pair"]) for q in BENCHMARKS["hallusionbench"].read(data).questions]
    (data / "HallusionBench.json").unlink()
    table = [
        {
            "index": f"VD_chart_{row['set_id']}_{row['figure_id']}_{row['question_id']}",
            "question": row["question"],
            "answer": "Yes" if row["gt_answer"] == "1" else "No",
            "category": "VD",
            "l2-category": "chart",
            "image": "",
        }
        for row in rows
    ]
    write_table(data / "HallusionBench.tsv", table)
    assert told == [(q.key, q.answers, q.labels["pair"]) for q in BENCHMARKS["hallusionbench"].read(data).questions]


def test_ocrbench_looks_for_texts_and_reads_formulas_as_they_are(tmp_path, data):
    formula = "Handwritten Mathematical Expression Recognition"
    rows = [
        {"question": "Read.", "answer": ["Main St", "Main Street"], "question_type": "Regular Text Recognition"},
        {"question": "Write.", "answer": ["x ^ 2"], "question_type": formula},
        {"question": "Write.", "answer": ["X ^ 2"], "question_type": formula},
    ]
    write_parquet(data / "test.parquet", rows)
    found = score(tmp_path, "ocrbench", {0: "It says main street", 1: "it is x^2", 2: "it is x^2"})
    assert found.items == [1, 1, 0] and found.parts[formula] == 0.5


def test_tdiuc_means_over_kinds(tmp_path, data):
    kinds = ["color", "color", "color", "counting"]
    asked = [{"image_id": 1, "question_id": i, "question": "?"} for i in range(4)]
    told = [
        {"image_id": 1, "question_id": i, "question_type": kind, "answers": [{"answer": "two", "answer_id": 1}]}
        for i, kind in enumerate(kinds)
    ]
    about = {"data_type": "mscoco", "data_subtype": "val2014"}
    (data / "OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps(about | {"questions": asked}))
    (data / "mscoco_val2014_annotations.json").write_text(json.dumps(about | {"annotations": told}))
    found = score(tmp_path, "tdiuc", {0: "2", 1: "2", 2: "red", 3: "Two."})
    assert found.score == pytest.approx((2 / 3 + 1) / 2)
    assert found.parts["harmonic"] == pytest.approx(2 / (1 / (2 / 3) + 1))
    assert found.parts["over questions"] == pytest.approx(3 / 4)


def test_nocaps_has_the_domains_of_its_pictures(tmp_path, data):
    images = [
        {"id": i, "file_name": f"{i}.jpg", "domain": domain} for i, domain in enumerate(["in-domain", "out-domain"])
    ]
    told = [{"id": i, "image_id": i % 2, "caption": caption} for i, caption in enumerate(["a dog runs", "the sea"] * 2)]
    (data / "nocaps_val_4500_captions.json").write_text(json.dumps({"images": images, "annotations": told}))
    questions = BENCHMARKS["nocaps"].read(data).questions
    assert [q.labels["split"] for q in questions] == ["in-domain", "out-domain"]
    found = score(tmp_path, "nocaps", {0: "A dog runs.", 1: "a tree"})
    assert found.items[0] == pytest.approx(7.5) and found.items[1] == 0  # no 4-gram in three words


def blink(number, task, answer, pictures):
    told = {"idx": f"val_{task}_{number}", "sub_task": task, "question": "Which?", "answer": answer, "explanation": ""}
    prompt = "Which of the two is it?\nSelect from the following choices.\n(A) the one\n(B) the other\n"
    shown = {f"image_{n}": {"bytes": png(), "path": "a.png"} if n <= pictures else None for n in range(1, 5)}
    return told | {"choices": ["the one", "the other"], "prompt": prompt} | shown


def test_blink_asks_of_all_pictures_and_means_over_tasks(tmp_path, data):
    rows = [blink(1, "Jigsaw", "(A)", 2), blink(2, "Jigsaw", "(B)", 4), blink(1, "IQ_Test", "(B)", 1)]
    (data / "Jigsaw").mkdir()
    parquet.write_table(pa.Table.from_pylist(rows), data / "Jigsaw" / "val-00000-of-00001.parquet")
    hidden = [blink(1, "Jigsaw", "hidden", 2) | {"idx": "test_Jigsaw_1"}]
    parquet.write_table(pa.Table.from_pylist(hidden), data / "Jigsaw" / "test-00000-of-00001.parquet")
    questions = BENCHMARKS["blink"].read(data).questions
    assert [q.answers for q in questions] == [("A",), ("B",), ("B",)]
    assert [len(getattr(q.picture, "pictures", [1])) for q in questions] == [2, 4, 1]
    assert ASKS["official"]["blink"].text(questions[0]) == (
        "Note: You only need to respond with A, B without providing any additional information.\n"
        + rows[0]["prompt"].strip()
    )
    found = score(tmp_path, "blink", dict(zip([q.key for q in questions], ["(A)", "A", "B. the other"], strict=True)))
    assert found.items == [1, 0, 1] and found.score == pytest.approx(3 / 4)
    assert found.parts == pytest.approx({"Jigsaw": 1 / 2, "IQ_Test": 1, "over questions": 2 / 3})
    (line,) = card.lines("blink", "official", found, questions)
    assert line.score == 75 and line.low is not None and line.low < 75 < line.high
    (data / "Jigsaw" / "val-00000-of-00001.parquet").unlink()
    with pytest.raises(BadBenchmark, match="no answer"):
        BENCHMARKS["blink"].read(data)


def test_blink_is_the_same_as_a_table(data):
    rows = [{"index": 7, "question": "Which of the two is it?", "A": "the one", "B": "the other", "answer": "B"}]
    write_table(data / "BLINK.tsv", [row | {"category": "Jigsaw", "image": ""} for row in rows])
    (question,) = BENCHMARKS["blink"].read(data).questions
    assert question.labels == {"task": "Jigsaw"} and question.answers == ("B",)
    assert (
        ASKS["official"]["blink"]
        .text(question)
        .endswith("it?\nSelect from the following choices.\n(A) the one\n(B) the other")
    )


ICONS = {
    "10": {"question": "Is it even", "choices": ["no", "yes"], "answer": 1, "ques_type": "choose_txt"},
    "11": {"question": "Which is it", "choices": ["a.png", "b.png"], "answer": 0, "ques_type": "choose_img"},
    "12": {"question": "How many", "choices": None, "answer": "12", "ques_type": "fill_in_blank"},
    "13": {"question": "Not of the split", "choices": None, "answer": "1", "ques_type": "fill_in_blank"},
}


def test_iconqa_chooses_texts_and_fills_blanks(tmp_path, data):
    (data / "problems.json").write_text(json.dumps(ICONS))
    (data / "pid_splits.json").write_text(json.dumps({"train": ["13"], "test": ["10", "11", "12"]}))
    for name in ("10", "12"):
        folder = data / "iconqa" / "test" / ICONS[name]["ques_type"] / name
        folder.mkdir(parents=True)
        (folder / "image.png").write_bytes(png("red" if name == "10" else "blue"))
    questions = BENCHMARKS["iconqa"].read(data).questions
    assert [q.key for q in questions] == ["10", "12"]
    assert [Pictures(data).find(q.picture).read_bytes() for q in questions] == [png("red"), png("blue")]
    asked = [ASKS["official"]["iconqa"].text(q) for q in questions]
    assert "Question: Is it even.\nOptions:\nA. no\nB. yes\n" in asked[0] and asked[1].endswith(
        "single word or phrase."
    )
    found = score(tmp_path, "iconqa", {"10": "B. yes", "12": "12."})
    assert found.score == 1 and found.parts == {"choose_txt": 1, "fill_in_blank": 1}
    assert score(tmp_path, "iconqa", {"10": "yes", "12": "2"}).items == [0, 0]


def test_iconqa_is_the_same_as_parquet(data):
    picture = {"bytes": png(), "path": "a.png"}
    rows = [
        {
            "question_id": "10",
            "question": "Is it even",
            "choices": "no,yes",
            "answer": "yes",
            "ques_type": "choose_txt",
        },
        {"question_id": "11", "question": "Which is it", "choices": "", "answer": "0", "ques_type": "choose_img"},
        {"question_id": "12", "question": "How many", "choices": "", "answer": "12", "ques_type": "fill_in_blank"},
    ]
    rows = [row | {"query_image": picture, "choice_image_0": None if n != 1 else picture} for n, row in enumerate(rows)]
    parquet.write_table(pa.Table.from_pylist(rows), data / "test-00000-of-00001.parquet")
    questions = BENCHMARKS["iconqa"].read(data).questions
    assert [(q.key, q.answers, q.choices) for q in questions] == [("10", ("B",), ("no", "yes")), ("12", ("12",), ())]
    assert Pictures(data).find(questions[1].picture) == png()
