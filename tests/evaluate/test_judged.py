"""Benchmarks that a judge scores: asked, their answers written as the judge's program takes them, and no number."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from conftest import DATA, born, tiny_config
from PIL import Image

from sphinx_jax.checkpoint import store
from sphinx_jax.config import ConfigError, DecoderConfig, to_dict
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.evaluate.answers import FILE
from sphinx_jax.evaluate.benchmarks import BENCHMARKS
from sphinx_jax.evaluate.benchmarks.asking import ASKS, Ask
from sphinx_jax.evaluate.card import for_judge
from sphinx_jax.evaluate.forms.pictures import Pictures
from sphinx_jax.evaluate.predictions import score_predictions
from sphinx_jax.recipe import runner
from sphinx_jax.report.card import markdown
from sphinx_jax.report.card_files import differences, read_card

ROOT = Path(__file__).parents[2]
VET = {
    "v1_0": {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1<AND>-5", "capability": ["ocr", "math"]},
    "v1_1": {"imagename": "v1_1.png", "question": "Who is it?", "answer": "Ann", "capability": ["rec"]},
}
WILD = [
    {"question_id": 0, "image": "001.png", "text": "Describe it.", "category": "detail"},
    {"question_id": 1, "image": "001.png", "text": "What is it?", "category": "conv"},
    {"question_id": 2, "image": "002.png", "text": "Why?", "category": "complex"},
]
VISTA = {
    "1": {
        "question": "How long?",
        "image": "images/1.png",
        "choices": None,
        "unit": "cm",
        "precision": 1.0,
        "answer": "1.2",
        "question_type": "free_form",
        "answer_type": "float",
        "metadata": {"split": "testmini", "skills": ["arithmetic"]},
        "query": "Hint: Please answer.\nQuestion: How long? (Unit: cm)",
    },
    "2": {
        "question": "Which?",
        "image": "images/2.png",
        "choices": ["3/11", "8/11"],
        "unit": None,
        "precision": None,
        "answer": "8/11",
        "question_type": "multi_choice",
        "answer_type": "text",
        "metadata": {"split": "testmini", "skills": ["geometry"]},
        "query": "Hint: Please answer.\nQuestion: Which?\nChoices:\n(A) 3/11\n(B) 8/11",
    },
}
PICTURES = {"mmvet": ("v1_0", "v1_1"), "llava_bench": ("001", "002"), "mathvista": ("1", "2")}


def png(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (shade, 90, 10)).save(file, "PNG")
    return file.getvalue()


def release(folder: Path) -> Path:
    """The three, as their authors publish them."""
    for name, pictures in PICTURES.items():
        (folder / name / "images").mkdir(parents=True)
        for shade, picture in enumerate(pictures):
            (folder / name / "images" / f"{picture}.png").write_bytes(png(shade))
    (folder / "mmvet" / "mm-vet.json").write_text(json.dumps(VET))
    wild = folder / "llava_bench"
    (wild / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in WILD))
    (wild / "answers_gpt4.jsonl").write_text(json.dumps({"question_id": 0, "text": "A dog."}) + "\n")
    (wild / "context.jsonl").write_text(json.dumps({"id": "001", "image": "001.png", "caption": "a dog"}) + "\n")
    (folder / "mathvista" / "testmini.json").write_text(json.dumps(VISTA))
    return folder


def copies(folder: Path) -> Path:
    """The three as parquet."""
    picture = {"image": {"bytes": png(), "path": "a.png"}}
    vet = [
        {"question_id": key, "question": row["question"], "answer": row["answer"], "capability": "ocr"} | picture
        for key, row in VET.items()
    ]
    wild = [{"question_id": r["question_id"], "question": r["text"], "category": r["category"]} | picture for r in WILD]
    vista = [{"pid": key} | row | {"decoded_image": picture["image"]} for key, row in VISTA.items()]
    without = [row | {"answer": None} for row in vista]
    tables = {"mmvet/test": vet, "llava_bench/train": wild, "mathvista/testmini-0": vista, "mathvista/test-0": without}
    for name, rows in tables.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    return folder


@pytest.mark.parametrize("write", [release, copies])
def test_questions_are_verbatim_and_have_their_pictures(tmp_path, write):
    wanted = {
        "mmvet": {key: row["question"] for key, row in VET.items()},
        "llava_bench": {row["question_id"]: row["text"] for row in WILD},
        "mathvista": {key: row["query"] for key, row in VISTA.items()},
    }
    folder = write(tmp_path)
    for name, texts in wanted.items():
        questions = BENCHMARKS[name].read(folder / name).questions
        how = ASKS["official"][name]
        assert {q.key: how.text(q) for q in questions} == texts and how.most == 512
        found = [Pictures(folder / name).find(q.picture) for q in questions]
        assert all(isinstance(one, bytes) or one.read_bytes() for one in found)


def judged(folder: Path, name: str, said: dict) -> bytes:
    """What the judge gets of answers."""
    judge = BENCHMARKS[name].for_judge
    return judge.write(BENCHMARKS[name].read(folder / name).questions, said, "sphinx")


@pytest.mark.parametrize("write", [release, copies])
def test_mm_vet_s_judge_gets_answers_by_name(tmp_path, write):
    made = json.loads(judged(write(tmp_path), "mmvet", {"v1_0": " x = -1 ### Human", "v1_1": 'say "Ann"\nor not'}))
    assert made == {"v1_0": "x = -1", "v1_1": 'say "Ann"\nor not'}
    assert json.loads(judged(tmp_path, "mmvet", {"v1_1": "Ann"})) == {"v1_1": "Ann"}


@pytest.mark.parametrize("write", [release, copies])
def test_llava_bench_s_judge_gets_a_line_for_every_question(tmp_path, write):
    """It pairs them by their number with questions and with the answers that they are compared to."""
    made = [
        json.loads(line)
        for line in judged(write(tmp_path), "llava_bench", {2: "As it is.", 0: "A\u2028dog."}).splitlines()
    ]
    assert [list(line) for line in made] == [["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]] * 3
    assert [line["question_id"] for line in made] == [0, 1, 2]
    assert [line["prompt"] for line in made] == [row["text"] for row in WILD]
    assert [line["text"] for line in made] == ["A\u2028dog.", "", "As it is."]
    assert {line["model_id"] for line in made} == {"sphinx"} and all(line["metadata"] == {} for line in made)
    assert len({line["answer_id"] for line in made}) == 3


def test_mathvista_s_judge_gets_problems_with_responses(tmp_path):
    folder = release(tmp_path / "a")
    made = json.loads(judged(folder, "mathvista", {"1": "1.2 cm", "2": "(B)"}))
    assert made == {
        key: row | {"pid": key, "response": text}
        for (key, row), text in zip(VISTA.items(), ("1.2 cm", "(B)"), strict=True)
    }
    # the other form says the same, and its pictures do not go along
    assert json.loads(judged(copies(tmp_path / "b"), "mathvista", {"1": "1.2 cm", "2": "(B)"})) == made


def test_queries_of_mathvista_may_lie_in_a_file_of_their_own(tmp_path):
    folder = release(tmp_path) / "mathvista"
    bare = {key: {name: value for name, value in row.items() if name != "query"} for key, row in VISTA.items()}
    (folder / "testmini.json").write_text(json.dumps(bare))
    with pytest.raises(ConfigError, match="MathVista"):
        BENCHMARKS["mathvista"].read(folder)
    (folder / "query.json").write_text(json.dumps({key: row["query"] for key, row in VISTA.items()}))
    assert [q.text for q in BENCHMARKS["mathvista"].read(folder).questions] == [r["query"] for r in VISTA.values()]


def test_the_card_has_no_number_for_them_but_what_was_published():
    line = for_judge("mmvet", "official", 218, 0, "mmvet/mm-vet_answers.json", "sphinx_2k")
    assert line.score is None and line.published == 40.2 and line.difference is None and not line.outside
    assert "| 218 | official | needs a judge: mmvet/mm-vet_answers.json |  | 40.2 |  |" in markdown([line])
    assert for_judge("mathvista", "official", 1000, 0, "a", "sphinx_2k").published is None


def test_predictions_of_them_have_no_score(tmp_path):
    folder, said = release(tmp_path) / "mmvet", tmp_path / "said.jsonl"
    said.write_text(json.dumps({"key": "v1_1", "prediction": "Ann"}) + "\n")
    for protocol in ("official", "reference"):
        found = score_predictions("mmvet", folder, said, protocol).as_json()
        assert found["score"] is None and found["per_item"] is None and found["parts"] == {}
        assert found["missing"] == ["v1_0"] and "mm-vet_answers.json" in found["notes"][-1]
    command = [sys.executable, "tools/score_predictions.py", "mmvet", str(folder), str(said)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("needs a judge: no number ") and "needs a judge" in ran.stderr


def test_the_stage_writes_what_judges_take(tmp_path, monkeypatch):
    for name in PICTURES:
        monkeypatch.setitem(ASKS["official"], name, Ask(ASKS["official"][name].text, 3))
    tokenizer = load_tokenizer(DATA / "tokenizer.model")
    decoder = DecoderConfig(dim=32, layers=1, heads=2, kv_heads=1, vocab_size=tokenizer.vocab_size, multiple_of=16)
    few = dict.fromkeys(("convnext", "dinov2", "blip2", "qformer"))  # which compile in a second or two
    config = tiny_config(decoder=decoder, name="sphinx_2k", **few)
    model = store.save(tmp_path / "tiny", born(config), config, tokenizer, {"made_by": "test"})
    data, folder = release(tmp_path / "data"), tmp_path / "run" / "benchmarks"
    (data / "llava_bench" / "images" / "002.png").unlink()
    values = {
        "model": to_dict(config),
        "tokenizer": str(model),
        "data": str(data),
        "stages": ("benchmarks",),
        "stage": {"benchmarks": {"kind": "benchmarks", "start": str(model), "batch": 4}},
    }
    runner.run(runner.parse(values), tmp_path / "run", quiet=True)
    lines = {line.benchmark: line for line in read_card(tmp_path / "run")}
    assert {name: (line.score, line.protocol) for name, line in lines.items()} == dict.fromkeys(
        PICTURES, (None, "official")
    )
    assert lines["mmvet"].published == 40.2 and lines["llava_bench"].missing == 1
    for name, line in lines.items():
        said = {
            row["key"]: row["prediction"] for row in map(json.loads, (folder / name / FILE).read_text().splitlines())
        }
        judge = BENCHMARKS[name].for_judge
        assert line.judge == f"{name}/{judge.file}"
        wanted = judge.write(BENCHMARKS[name].read(data / name).questions, said, "sphinx_2k")
        assert (folder / line.judge).read_bytes() == wanted
    page = (folder / "card.html").read_text()
    assert "needs a judge: mathvista/responses.json" in page and "counts" not in page and "no picture" not in page
    assert page.count("<figure") == 2 + 2 + 2
    with pytest.raises(ConfigError, match="no benchmark in common"):
        differences(tmp_path / "run", tmp_path / "run")
