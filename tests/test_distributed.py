"""Runs of several real processes over loopback: the same numbers as one, and what happens when one is gone."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, ROOT, born, tiny_config
from PIL import Image

from sphinx_jax import distributed
from sphinx_jax.checkpoint import store
from sphinx_jax.command import LOST
from sphinx_jax.config import ConfigError, DecoderConfig
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.train.history import read_history
from sphinx_jax.train.tally import seen_by

STEPS = 24
BROKEN = (7, 20, 33)  # of 40 pictures
RECIPE = """
from sphinx_jax.config import family, to_dict
from sphinx_jax.recipe.smoke import nano
from ml_collections import ConfigDict

def get_config():
    c = ConfigDict()
    c.model = to_dict(nano(family("sphinx_tiny_1k")))
    c.data = {"playground": None, "meta": {"train": "FOLDER/list.yaml"}}
    c.stages = ("tune",)
    c.mesh = {"tensor": 1}
    c.stage = {"tune": {
        "kind": "train", "start": "fresh", "steps": STEPS, "batch": 8, "length": 96, "domains": {"*": 1.0},
        "text_batch": 4, "text_length": 48, "pack_text": True, "rate": 1e-3, "log_every": 1, "save_every": 4, "keep": 9,
        "evaluate_every": 12, "held_out": "train", "held_out_items": 10,
    }, "judge": {"kind": "evaluate", "start": "tune", "split": "train", "domains": ("*",)}}
    return c
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    root = tmp_path_factory.mktemp("distributed")
    file = root / "recipe.py"
    file.write_text(RECIPE.replace("FOLDER", str(root)).replace("STEPS", str(STEPS)))
    random, items = np.random.default_rng(0), []
    for i in range(40):
        Image.fromarray(random.integers(0, 255, (40, 30, 3), np.uint8)).save(root / f"{i}.png")
        words = " ".join(random.choice(["red", "blue", "star", "square", "left", "of"], random.integers(2, 30)))
        talk = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": words}]
        items += [{"image": f"{i}.png", "conversations": talk, "task": "vqa"}, {"text": f"{words} again"}]
    for i in BROKEN:
        (root / f"{i}.png").write_bytes(b"no picture")
    (root / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    (root / "list.yaml").write_text(f"META:\n  - {{path: items.jsonl, root: {root}}}\n")
    return file


@pytest.fixture(scope="module")
def alone(recipe):
    """The losses of one process."""
    workdir = recipe.parent / "alone"
    (process,) = start(recipe, workdir, 1)
    assert finish(process) == 0, process.log.read_text()
    assert 12 <= sum(history(workdir, "skipped")) <= 15  # 192 rows: all 40 pictures four times, and 32 of them again
    return losses(workdir)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}


def start(recipe, workdir, count, *more, heartbeat=60):
    port, env = free_port(), environment()
    processes = []
    for i in range(count):
        flags = [
            f"--coordinator=localhost:{port}",
            f"--processes={count}",
            f"--process={i}",
            f"--heartbeat={heartbeat}",
        ]
        command = [sys.executable, "-m", "sphinx_jax.main", f"--config={recipe}", f"--workdir={workdir}", *more]
        log = recipe.parent / f"{workdir.name}-{i}.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                command + (flags if count > 1 else []), env=env, stdout=out, stderr=subprocess.STDOUT
            )
        process.log = log
        processes.append(process)
    return processes


def finish(process):
    return process.wait(timeout=900)


def history(workdir, name):
    """A number of every step."""
    lines = (workdir / "tune" / "history.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["step"] for entry in entries] == [*range(1, len(entries) + 1)]
    return [entry[name] for entry in entries]


def losses(workdir):
    return history(workdir, "loss")


def held_out(workdir):
    found = [(e["step"], e["held_out/loss"]) for e in read_history(workdir / "tune") if "held_out/loss" in e]
    assert [step for step, _ in found] == [12, 24]
    return [loss for _, loss in found]


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.log.read_text()
        time.sleep(0.02)


def children(process):
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "tensor"), [(2, 1), (4, 2)])
def test_several_processes_learn_as_one_does(recipe, alone, tmp_path, count, tensor):
    workdir = tmp_path / f"together{count}"
    processes = start(recipe, workdir, count, f"--config.mesh.tensor={tensor}")
    assert [finish(p) for p in processes] == [0] * count, processes[0].log.read_text()
    np.testing.assert_allclose(losses(workdir), alone, rtol=2e-4)
    assert history(workdir, "skipped") == history(recipe.parent / "alone", "skipped")
    assert seen_by(workdir / "tune") == seen_by(recipe.parent / "alone" / "tune") != {}
    np.testing.assert_allclose(held_out(workdir), held_out(recipe.parent / "alone"), rtol=2e-4)
    assert "tune 24/24" in processes[0].log.read_text() and "tune" not in processes[1].log.read_text()


@pytest.mark.slow
def test_several_processes_answer_as_one_does_and_go_on_where_they_were_killed(recipe, alone, tmp_path):
    found = []
    for count in (1, 2, 3):
        workdir = tmp_path / f"judged{count}"
        shutil.copytree(recipe.parent / "alone", workdir)
        if count == 3:
            killed = start(recipe, workdir, count, "--stage=judge")
            answers = workdir / "judge" / "answers" / "seen" / "predictions-1.jsonl"
            while not answers.exists() or answers.read_text().count("\n") < 4:
                assert killed[1].poll() is None, killed[1].log.read_text()
                time.sleep(0.02)
            for process in killed:
                for child in children(process):
                    os.kill(child, signal.SIGKILL)
            assert [finish(p) for p in killed] == [LOST] * count
            count = 2
        processes = start(recipe, workdir, count, "--stage=judge")
        assert [finish(p) for p in processes] == [0] * count, processes[0].log.read_text()
        lines = (workdir / "judge" / "predictions.jsonl").read_text().splitlines()
        found.append([json.loads(line) for line in lines])
        assert {path.suffix for path in (workdir / "judge").iterdir()} == {".json", ".jsonl"}, "no folder of answers"
        told = [line for p in processes for line in p.log.read_text().splitlines() if "is not asked" in line]
        assert len(told) == len(BROKEN), told
    assert len(found[0]) == 40 - len(BROKEN) and found[0] == found[1] == found[2]


BENCHMARKS = """
from configs import benchmarks

def get_config():
    c = benchmarks.get_config("FOLDER/tiny")
    c.data = "FOLDER/data"
    c.stage.benchmarks.batch = 1
    return c
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A recipe that asks a small model three benchmarks, one of which lacks a picture."""
    root = tmp_path_factory.mktemp("asked")
    file = root / "recipe.py"
    file.write_text(BENCHMARKS.replace("FOLDER", str(root)))
    words = load_tokenizer(DATA / "tokenizer.model")
    decoder = DecoderConfig(dim=32, layers=1, heads=2, kv_heads=1, vocab_size=words.vocab_size, multiple_of=16)
    config = tiny_config(decoder=decoder)
    store.save(root / "tiny", born(config), config, words, {"made_by": "test"})
    for name in ("vqav2", "refcoco", "mmbench"):
        shutil.copytree(ROOT / "tests" / "fixtures" / "benchmarks" / name / "data", root / "data" / name)
    next((root / "data" / "vqav2").rglob("*.jpg")).write_bytes(b"no picture")
    (root / "data" / "gqa").mkdir()
    return file


def said(workdir, name):
    lines = (workdir / "benchmarks" / name / "predictions.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    texts = {row["key"]: row["prediction"] for row in found}
    assert len(texts) == len(found), "nothing stands there twice"
    return texts


@pytest.mark.slow
def test_several_processes_ask_benchmarks_as_one_does(asked, tmp_path):
    names = ("vqav2", "refcoco", "mmbench")
    for count in (1, 2):
        processes = start(asked, tmp_path / f"{count}", count)
        assert [finish(p) for p in processes] == [0] * count, processes[0].log.read_text()
        told = [line for p in processes for line in p.log.read_text().splitlines() if "is not asked" in line]
        assert len(told) == len(set(told)) > 0, "each by the process whose question it is"
        assert not list((tmp_path / f"{count}").rglob("predictions-*"))
    for name in names:
        assert said(tmp_path / "1", name) == said(tmp_path / "2", name)
    folders = [tmp_path / str(count) / "benchmarks" for count in (1, 2)]
    for file in ("card.json", "card.md", *(f"{name}/items.jsonl" for name in names)):
        first, second = ((folder / file).read_text() for folder in folders)
        assert first == second, file


@pytest.mark.slow
@pytest.mark.parametrize("later", [1, 3])
def test_benchmarks_go_on_in_fewer_or_more_processes(asked, tmp_path, later):
    folder = tmp_path / "run" / "benchmarks" / "vqav2"
    files = [folder / "predictions.jsonl", folder / "predictions-1.jsonl"]
    killed = start(asked, tmp_path / "run", 2, "--config.stage.benchmarks.names=('vqav2',)")
    while not all(file.exists() and file.read_text().count("\n") > 3 for file in files):
        assert killed[0].poll() is None, killed[0].log.read_text()
        time.sleep(0.002)
    for process in killed:
        for child in children(process):
            os.kill(child, signal.SIGKILL)
    assert [finish(p) for p in killed] == [LOST] * 2
    kept = {}
    for file in files:
        *whole, cut = file.read_text().split("\n")
        rows = [json.loads(line) for line in whole]
        # other words than the model's show what is asked again
        for row in rows:
            if "key" in row:
                kept[row["key"]] = row["prediction"] = f"{file.name} {row['key']}"
        file.write_text("".join(json.dumps(row, sort_keys="key" not in row) + "\n" for row in rows) + cut)
    processes = start(asked, tmp_path / "run", later, "--config.stage.benchmarks.names=('vqav2',)")
    assert [finish(p) for p in processes] == [0] * later, processes[0].log.read_text()
    found = said(tmp_path / "run", "vqav2")
    assert kept.items() <= found.items() and 6 < len(kept) < len(found)
    (line,) = json.loads((tmp_path / "run" / "benchmarks" / "card.json").read_text())
    assert line["count"] == len(found) and line["count"] + line["missing"] == 30
    assert sorted(path.name for path in folder.iterdir()) == ["about.json", "items.jsonl", "predictions.jsonl"]


ANSWERING = """
import json, sys
import jax

port, count, index, folder, out = sys.argv[1:]
if count != "1":
    jax.distributed.initialize(f"localhost:{port}", int(count), int(index))
import sphinx_jax
from sphinx_jax import Engine, Request

model = sphinx_jax.from_pretrained(f"{folder}/tiny")
assert dict(model.mesh.shape)["tensor"] == len(jax.devices()) == int(count)
picture = f"{folder}/picture.png"
asked = [
    Request("What is it?", max_new_tokens=6),
    Request("Where is the red star?", max_new_tokens=9, temperature=1.0, seed=3),
    *(Request(question, max_new_tokens=5, image=picture) for question in ("What?", "How many?", "Where?")),
]
said = [answers[0].tokens for answers in Engine(model, slots=2).map(asked)]
json.dump([said, list(model.stream("What?", image=picture, max_new_tokens=4))], open(out, "w"))
"""


@pytest.mark.slow
def test_a_model_that_lies_on_devices_of_two_processes_answers_as_on_one(tmp_path):
    words = load_tokenizer(DATA / "tokenizer.model")
    config = tiny_config(decoder=DecoderConfig(dim=32, layers=2, heads=2, vocab_size=512, multiple_of=16))
    store.save(tmp_path / "tiny", born(config), config, words, {"made_by": "test"})
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)).save(tmp_path / "picture.png")
    script = tmp_path / "answer.py"
    script.write_text(ANSWERING)
    said = []
    for count in (1, 2):
        port, files = free_port(), [tmp_path / f"{count}-{index}.json" for index in range(count)]
        commands = [
            [sys.executable, script, str(port), str(count), str(index), tmp_path, file]
            for index, file in enumerate(files)
        ]
        processes = [subprocess.Popen(command, env=environment()) for command in commands]
        assert [process.wait(timeout=300) for process in processes] == [0] * count
        said += [json.loads(file.read_text()) for file in files]
    assert said[0] == said[1] == said[2] and all(said[0][0])


@pytest.mark.slow
def test_a_run_that_lost_a_process_says_so_and_goes_on_with_fewer_or_more(recipe, alone, tmp_path):
    workdir = tmp_path / "lost"
    processes = start(recipe, workdir, 2, heartbeat=10)
    wait_for(workdir / "tune" / "checkpoints" / "4" / "recipe.json", processes[0])
    (victim,) = children(processes[1])
    os.kill(victim, signal.SIGKILL)
    assert [finish(p) for p in processes] == [LOST] * 2
    for process in processes:
        said = process.log.read_text().splitlines()[-1]
        assert said.startswith("error: this process ") and "goes on from step " in said and " of tune" in said
    shutil.copytree(workdir, tmp_path / "more")
    for again, count in ((workdir, 1), (tmp_path / "more", 4)):
        processes = start(recipe, again, count)
        assert [finish(p) for p in processes] == [0] * count, processes[0].log.read_text()
        np.testing.assert_allclose(losses(again), alone, rtol=2e-4)
        assert seen_by(again / "tune") == seen_by(recipe.parent / "alone" / "tune")


@pytest.mark.slow
def test_a_signal_to_one_process_ends_all_at_the_same_saved_step(recipe, alone, tmp_path):
    workdir = tmp_path / "stopped"
    processes = start(recipe, workdir, 2)
    wait_for(workdir / "tune" / "checkpoints" / "4" / "recipe.json", processes[0])
    processes[1].terminate()
    assert [finish(p) for p in processes] == [128 + signal.SIGTERM] * 2, processes[0].log.read_text()
    saved = max(int(p.name) for p in (workdir / "tune" / "checkpoints").iterdir())
    for process in processes:
        assert f"step {saved} is saved" in process.log.read_text()
    (process,) = start(recipe, workdir, 1)
    assert finish(process) == 0
    np.testing.assert_allclose(losses(workdir), alone, rtol=2e-4)


@pytest.mark.slow
def test_settings_that_are_refused_end_every_process_at_once(recipe, alone, tmp_path):
    workdir = tmp_path / "settled"
    (process,) = start(recipe, workdir, 1)
    assert finish(process) == 0
    begun = time.perf_counter()
    processes = start(recipe, workdir, 2, "--config.stage.tune.rate=0.5")
    assert [finish(p) for p in processes] == [1, 1], processes[0].log.read_text()
    assert time.perf_counter() - begun < 60  # nobody waits for the others
    assert "was made with settings.tune.rate" in processes[0].log.read_text()
    assert "its own message says why" in processes[1].log.read_text()


@pytest.mark.slow
def test_nothing_goes_on_without_the_process_that_people_see(recipe, tmp_path):
    processes = start(recipe, tmp_path / "orphans", 2, heartbeat=10)
    wait_for(tmp_path / "orphans" / "tune" / "checkpoints" / "4" / "recipe.json", processes[0])
    left = [pid for process in processes for pid in children(process)]
    for process in processes:
        process.kill()
        process.wait()
    ended = time.perf_counter() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in left):
        assert time.perf_counter() < ended
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_STEP_NUM_TASKS": "4"}, distributed.Cluster()),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, distributed.Cluster()),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, distributed.Cluster()),
        ({"TPU_WORKER_HOSTNAMES": "a"}, None),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"},
            distributed.Cluster("a:1", 3, 2),
        ),
    ],
)
def test_the_environment_says_whether_there_are_others(environment, found):
    assert distributed.find_cluster(None, None, None, None, environment) == found
    assert distributed.find_cluster(None, None, None, False, environment) is None
    assert distributed.find_cluster(None, None, None, True, environment) is not None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("a:1", 2, None), "go together"),
        (("a", 2, 0), "--coordinator a has no port"),
        (("a:1", 2, 2), "--process 2 of 2: they are numbered 0 to 1"),
    ],
)
def test_half_of_an_address_is_refused(given, says):
    with pytest.raises(ConfigError, match=says):
        distributed.find_cluster(*given, None, {})
    with pytest.raises(ConfigError, match="JAX_NUM_PROCESSES"):
        distributed.find_cluster(None, None, None, None, {"JAX_COORDINATOR_ADDRESS": "a:1"})
