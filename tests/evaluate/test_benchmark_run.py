"""Benchmarks asked through the engine: prompts, pictures, a run that is killed, and the card."""

import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, ROOT, Parrot, born, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sphinx_jax import paths
from sphinx_jax.checkpoint import store
from sphinx_jax.config import ConfigError, DecoderConfig, to_dict
from sphinx_jax.data.conversation import SYSTEM, render
from sphinx_jax.data.playground import public
from sphinx_jax.data.sources import Data, DataConfig
from sphinx_jax.data.tasks import DOMAINS
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.evaluate import card
from sphinx_jax.evaluate.answers import FILE, OLD, Answers
from sphinx_jax.evaluate.asked import SAMPLING, ask, in_files, worded
from sphinx_jax.evaluate.benchmarks import BENCHMARKS
from sphinx_jax.evaluate.benchmarks.asking import ASKS
from sphinx_jax.evaluate.forms.pictures import Pictures
from sphinx_jax.evaluate.question import Question, Score
from sphinx_jax.recipe import runner
from sphinx_jax.report.card import markdown
from sphinx_jax.report.card_files import differences, read_card

FIXTURES = Path(__file__).parents[1] / "fixtures" / "benchmarks"
NAMES = sorted(name for name in BENCHMARKS if (FIXTURES / name).is_dir())
ABOUT = {"checkpoint": "a"}


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_those_of_the_two_harnesses(name: str):
    expected = json.loads((FIXTURES / name / "expected.json").read_text())
    for form in sorted((FIXTURES / name / "data").iterdir()):
        try:
            question = BENCHMARKS[name].read(form).questions[0]
        except ConfigError:
            continue  # a folder of pictures
        # which has no such evaluation of detection
        if expected["prompt"] and name != "coco_detection":
            how = ASKS["reference"][name]
            assert render([(how.text(question), None)], SYSTEM)[0] + how.begin == expected["prompt"], form
        if expected.get("prompt_official"):
            mark = "<image 1> "  # which the reference's list of MMMU leaves out
            asked = ASKS["official"][name].text(question).removeprefix(mark)
            assert asked == expected["prompt_official"].removeprefix(mark), form


@pytest.mark.parametrize("name", NAMES)
def test_all_forms_have_the_same_pictures(name: str):
    """Those of a file of many are found in it, and are of the question that they stand with."""
    shown = []
    for form in sorted((FIXTURES / name / "data").iterdir()):
        try:
            questions = BENCHMARKS[name].read(form).questions
        except ConfigError:
            continue
        if name == "vsr" or (name == "mme" and form.name.startswith("MME")):
            continue  # parquet files without pictures; questions in another order
        pictures = Pictures(FIXTURES / name / "data")
        shown.append([pixels(pictures.find(question.picture)) for question in questions])
    for other in shown[1:]:
        assert len(other) == len(shown[0])
        for a, b in zip(shown[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_links_to_folders_are_followed_and_circles_end(tmp_path):
    (tmp_path / "gqa").mkdir()
    for part in ("GQA", "annotations"):
        (tmp_path / "gqa" / part).symlink_to(FIXTURES / "gqa" / "data" / part)
    (tmp_path / "gqa" / "again").symlink_to(tmp_path)
    questions = BENCHMARKS["gqa"].read(tmp_path / "gqa").questions
    assert len(questions) == 24
    for question in questions:
        pixels(Pictures(tmp_path / "gqa").find(question.picture))


def pixels(found: Path | bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(found) if isinstance(found, bytes) else found).convert("RGB"))


TEXTS = {7: "yes", "7": "", "val:0": 'a "quoted"\nline', 1000003: "\u2028", "x.jpg": "[0.1, 0.2]"}


@settings(max_examples=60)
@given(st.data())
def test_a_file_that_is_cut_anywhere_keeps_what_was_whole(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("answers")
    answers = Answers(folder, ABOUT)
    for key, text in TEXTS.items():
        answers.add(key, text)
    answers.close()
    whole = (folder / FILE).read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    (folder / FILE).write_bytes(whole[:cut])
    again = Answers(folder, ABOUT)
    assert again.texts.items() <= TEXTS.items() and len(again.texts) >= whole[:cut].count(b"\n")
    for key in TEXTS.keys() - again.texts.keys():
        again.add(key, TEXTS[key])
    again.close()
    assert Answers(folder, ABOUT).texts == TEXTS
    assert Answers(folder, {"checkpoint": "b"}).texts == {}


@settings(max_examples=60)
@given(st.data())
def test_processes_that_are_killed_and_others_in_their_place_lose_nothing(tmp_path_factory, data):
    folder, kept = tmp_path_factory.mktemp("answers"), {}
    for count in data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)):
        together = [Answers(folder, ABOUT, process) for process in range(count)]
        for answers in together:
            assert kept.items() <= answers.texts.items()
        for number, key in enumerate(TEXTS):
            answers = together[number % count]
            if key not in answers.texts and data.draw(st.booleans()):
                answers.add(key, TEXTS[key])
                kept[key] = TEXTS[key]
        assert all(answers.texts.items() <= TEXTS.items() for answers in together)
        for answers in together:
            answers.close()
    together = [Answers(folder, ABOUT, process) for process in range(count)]
    for answers in together:
        answers.close()
    together[0].gather(count)
    assert together[0].texts == kept == Answers(folder, ABOUT).texts
    assert sorted(path.name for path in folder.iterdir()) == ["about.json", FILE]


def test_what_others_said_of_something_else_is_not_counted(tmp_path):
    for process in range(2):
        answers = Answers(tmp_path, ABOUT, process)
        answers.add(process, "old")
        answers.close()
    first = Answers(tmp_path, {"checkpoint": "b"})
    assert not first.texts
    first.close()
    with pytest.raises(ConfigError, match="answers of process 1"):
        first.gather(2)
    first.gather(1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["about.json", FILE, OLD]
    assert Answers(tmp_path, ABOUT).texts == {}
    assert [json.loads(line)["key"] for line in lines_of(tmp_path / OLD)] == [0, 1]


def test_in_a_store_whose_files_do_not_grow_answers_are_written_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "in_store", lambda name: str(tmp_path) in os.fspath(name))
    folder = paths.located(tmp_path) / "run"
    assert not isinstance(folder, Path)
    first, second = Answers(folder, ABOUT), Answers(folder, ABOUT, 1)
    first.add("a", "yes")
    second.add("b", "no")
    assert Answers(folder, ABOUT, 2).texts == {}
    for answers in (first, second):
        answers.close()
    first.gather(2)
    assert Answers(folder, ABOUT).texts == {"a": "yes", "b": "no"}


@pytest.mark.parametrize("until", [0, 1, 7, 29, 30])
def test_a_killed_run_asks_nothing_twice(tmp_path, until):
    folder = FIXTURES / "vqav2" / "data"
    questions = BENCHMARKS["vqav2"].read(folder).questions
    engines = [Parrot(until), Parrot(99)]
    for engine in engines:
        answers, look = Answers(tmp_path, ABOUT), in_files(engine, Pictures(folder))
        try:
            ask(engine, questions, worded(ASKS["official"]["vqav2"], SAMPLING["official"]), look, answers)
        except KeyboardInterrupt:
            assert engine is engines[0]
    both = engines[0].asked + engines[1].asked
    assert len(engines[0].asked) == until and len(both) == len(questions)
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert {line["key"] for line in lines} == {q.key for q in questions}
    for line in lines:
        text = next(q.text for q in questions if q.key == line["key"])
        assert text in line["prediction"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = load_tokenizer(DATA / "tokenizer.model")
    decoder = DecoderConfig(dim=32, layers=1, heads=2, kv_heads=1, vocab_size=tokenizer.vocab_size, multiple_of=16)
    config = tiny_config(decoder=decoder)
    return store.save(folder / "tiny", born(config), config, tokenizer, {"made_by": "test"})


def test_the_stage_leaves_predictions_that_score_the_same(tmp_path, model, caplog):
    from sphinx_jax.evaluate.predictions import score_predictions

    data = tmp_path / "data"
    for name in ("vqav2", "refcoco", "mmbench"):
        shutil.copytree(FIXTURES / name / "data", data / name)
    next((data / "vqav2").rglob("*.jpg")).write_bytes(b"no picture")
    (data / "gqa").mkdir()
    (shard,) = (FIXTURES / "pope" / "data" / "hf").glob("*.parquet")
    (data / "pope").mkdir()
    shutil.copy(shard, data / "pope" / "test-00000-of-00002.parquet")
    (data / "pope" / "test-00001-of-00002.parquet").write_bytes(shard.read_bytes()[:-100])
    values = {
        "model": to_dict(store.read_config(model)),
        "tokenizer": str(model),
        "data": str(data),
        "stages": ("benchmarks",),
        "stage": {"benchmarks": {"kind": "benchmarks", "start": str(model), "batch": 2}},
    }
    runner.run(runner.parse(values), tmp_path / "run", quiet=True)
    folder = tmp_path / "run" / "benchmarks"
    made = json.loads((folder / "card.json").read_text())
    assert "gqa is left out" in caplog.text
    lines = {(line["benchmark"], line["split"]): line for line in made}
    alone = {(name, "") for name in ("vqav2", "mmbench", "pope", "gqa")}
    assert set(lines) == alone | {("refcoco", s) for s in ("val", "testA", "testB")}
    assert lines["gqa", ""]["left_out"].startswith("gqa does not hold GQA") and lines["gqa", ""]["score"] is None
    assert lines["pope", ""]["count"] == 48 and lines["pope", ""]["without"] == "test-00001-of-00002.parquet"
    assert "test-00001-of-00002.parquet cannot be read as parquet" in caplog.text
    told = (folder / "card.md").read_text()
    assert "| left out: gqa does not hold GQA" in told and "48 (without test-00001-of-00002.parquet)" in told
    vqa = lines["vqav2", ""]
    assert vqa["missing"] > 0 and vqa["count"] + vqa["missing"] == 30
    scored = score_predictions("vqav2", data / "vqav2", folder / "vqav2" / FILE, "reference")
    assert len(scored.missing) == vqa["missing"] and scored.score.score == pytest.approx(vqa["score"])
    assert scored.score.metric == vqa["metric"]
    page = (folder / "card.html").read_text()
    assert page.count("<figure") >= 3 * 12 and "data:image/jpeg" in page and "no picture" not in page
    assert markdown(read_card(tmp_path / "run")) == (folder / "card.md").read_text()
    # the same answers differ in nothing; better ones to some questions do
    (found,) = (differences(tmp_path / "run", tmp_path / "run")[n] for n in ["vqav2"])
    assert found["difference"] == 0 and found["p"] == 1 and found["count"] == vqa["count"]
    shutil.copytree(folder, tmp_path / "other" / "benchmarks")
    better = [json.loads(line) | {"value": 1.0} for line in (folder / "vqav2" / card.ITEMS).read_text().splitlines()]
    written = "".join(json.dumps(item) + "\n" for item in better[1:])
    (tmp_path / "other" / "benchmarks" / "vqav2" / card.ITEMS).write_text(written)
    found = differences(tmp_path / "run", tmp_path / "other")["vqav2"]
    assert found["low"] > 50 and found["p"] < 0.1 and found["count"] == vqa["count"] - 1 and found["alone"] == 1
    for name in ("refcoco", "mmbench"):
        assert not score_predictions(name, data / name, folder / name / FILE, "official").missing


def test_a_folder_without_benchmarks_is_told(tmp_path, model):
    values = {
        "model": to_dict(store.read_config(model)),
        "data": str(tmp_path),
        "stages": ("benchmarks",),
        "stage": {"benchmarks": {"kind": "benchmarks", "start": str(model)}},
    }
    with pytest.raises(ConfigError, match="no folder named as a benchmark"):
        runner.run(runner.parse(values), tmp_path / "run", quiet=True)
    values["stage"]["benchmarks"]["names"] = ("vqa2",)
    with pytest.raises(ConfigError, match="did you mean 'vqav2'"):
        runner.run(runner.parse(values), tmp_path / "other", quiet=True)
    with pytest.raises(ConfigError, match=r"stage.benchmarks.kind benchmarks asks data.benchmarks.* not data.meta"):
        runner.parse(values | {"data": {"playground": None, "meta": {"test": "list.yaml"}}})
    with pytest.raises(ConfigError, match="data.meta has no public benchmarks"):
        Data(DataConfig(None, meta={"test": "list.yaml"}), tmp_path).benchmarks  # noqa: B018 (asked for)


def test_a_playground_whose_benchmarks_were_half_written_is_written_anew(tmp_path, monkeypatch):
    write = public.write

    def killed(items, folder):
        write(itertools.islice(items, 3), folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(public, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        Data(DataConfig("nano"), tmp_path).benchmarks  # noqa: B018 (written when it is asked for)
    monkeypatch.setattr(public, "write", write)
    data = Data(DataConfig("nano"), tmp_path)
    folder = data.benchmarks
    assert [path.name for path in folder.parent.iterdir()] == ["nano"]
    asked = [BENCHMARKS[name].read(folder / name).questions for name in ("vqav2", "refcoco")]
    turns = [task for domain in DOMAINS for item in data.items("test", domain) for task in item.tasks]
    assert list(map(len, asked)) == [turns.count("vqa"), turns.count("rec")]
    before = folder.stat().st_mtime_ns
    assert Data(DataConfig("nano"), tmp_path).benchmarks == folder and folder.stat().st_mtime_ns == before


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Pictures of five questions that share their luck: an interval over questions alone would be too narrow."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(60), 5)
    inside, alone = 0, 0
    for _ in range(100):
        values = np.repeat(rng.random(60) < 0.4, 5).astype(float)
        low, high = card.bootstrap(values, clusters)
        inside += low <= 0.4 <= high
        low, high = card.bootstrap(values, range(len(values)))
        alone += low <= 0.4 <= high
    assert inside >= 88 and alone < 75


def test_a_difference_is_told_from_none():
    rng = np.random.default_rng(0)
    clusters = list(range(300))
    first = (rng.random(300) < 0.5).astype(float)
    better = np.where(rng.random(300) < 0.2, 1.0, first)
    found = card.compared(first, better, clusters)
    assert found["low"] > 0 and found["p"] < 0.01 and found["difference"] == pytest.approx((better - first).mean())
    same = card.compared(first, rng.permutation(first), clusters)
    assert same["low"] < 0 < same["high"] and same["p"] > 0.05


def test_what_was_published_stands_beside_and_is_marked_where_it_lies_outside():
    questions = [Question(i, "", f"{i}.jpg", ("yes",)) for i in range(400)]
    items = [1.0] * 300 + [0.0] * 100
    lost = [Question(1000 + i, "", "") for i in range(3)]
    (line,) = card.lines("gqa", "reference", Score("accuracy", 0.75, items), questions, lost, "sphinx_1k")
    assert line.published == 62.88 and line.outside and line.difference == pytest.approx(75 - 62.88)
    assert line.low < 75 < line.high and line.high - line.low < 10
    text = markdown([line])
    assert "| 75.0 |" in text and "+12.1 ▲" in text and "3 missing" in text
    (line,) = card.lines("gqa", "reference", Score("accuracy", 0.75, items), questions, model="my_model")
    assert line.published is None and not line.outside


def test_a_mean_that_is_rounded_has_an_interval_and_a_number_that_is_none_has_not():
    questions = [Question(i, "", f"{i}.jpg", ("yes",)) for i in range(300)]
    items = [1.0] * 100 + [0.0] * 200
    (line,) = card.lines("vqav2", "reference", Score("percent, 2 decimals", 33.33, items), questions)
    assert line.low is not None and line.low < 33.33 < line.high
    (line,) = card.lines("mmbench", "official", Score("accuracy", 0.33, items), questions)
    assert line.low is None and line.high is None


@pytest.mark.slow
def test_a_command_that_is_killed_again_and_again_asks_everything_once(tmp_path, model):
    data, written = tmp_path / "data", tmp_path / "run" / "benchmarks" / "gqa" / FILE
    shutil.copytree(FIXTURES / "gqa" / "data", data / "gqa")
    command = [sys.executable, "-m", "sphinx_jax.main", "--config", f"configs/benchmarks.py:{model}"]
    command += [f"--config.data={data}", "--workdir", str(tmp_path / "run"), "--config.stage.benchmarks.batch=1"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"), "JAX_PLATFORMS": "cpu"}
    kills, seen, whole = 0, [], False
    while not whole:
        before = lines_of(written)
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            if kills < 4 and len(lines_of(written)) >= len(before) + 3:
                process.kill()
            time.sleep(0.002)
        now = lines_of(written)
        assert now[: len(before)] == before, "what was said stays"
        seen.append(len(now))
        whole, kills = process.returncode == 0, kills + 1
        assert kills < 9 and process.returncode in (0, -9)
    keys = [json.loads(line)["key"] for line in lines_of(written)]
    assert sorted(keys) == [q.key for q in BENCHMARKS["gqa"].read(data / "gqa").questions]
    assert kills > 2 and seen == sorted(seen)


def lines_of(file: Path) -> list[str]:
    """Those that are whole."""
    return file.read_text().split("\n")[:-1] if file.exists() else []
