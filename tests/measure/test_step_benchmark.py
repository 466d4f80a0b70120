"""The step of a recipe, timed with made-up rows."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT


def run(*arguments):
    command = [sys.executable, str(ROOT / "tools" / "benchmark.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_a_step_is_timed_and_its_rows_counted():
    said = run(
        "step",
        "--config=configs/sphinx_7b.py",
        "--stage=finetune",
        "--smoke",
        "--steps=2",
        "--config.stage.finetune.length=64",
    )
    assert said.returncode == 0, said.stderr[-2000:]
    head, times, rates = said.stdout.splitlines()
    assert head.startswith("finetune: 8 image rows in 2 parts, 8 text rows in 2 parts; 1 x")
    best, median = (float(ms.replace(",", "")) for ms in re.search(r"best (\S+) ms, median (\S+) ms", times).groups())
    assert 0 < best <= median
    # fresh weights know nothing: a mean of log(1280) for the pictures' text, and as much for the text alone
    assert float(rates.rpartition(" ")[2]) == pytest.approx(2 * 7.15, abs=0.3)


@pytest.mark.slow
def test_a_save_is_timed_beside_the_steps(tmp_path):
    given = ("--config=configs/sphinx_tiny_1k.py", "--stage=align", "--smoke", f"--folder={tmp_path / 'saves'}")
    said = run("saves", *given, "--steps=20", "--rounds=2", "--config.stage.align.length=64")
    assert said.returncode == 0, said.stderr[-2000:]
    head, cost = said.stdout.splitlines()
    size = float(re.search(r"a checkpoint of (\S+) GiB", head)[1])
    (kept,) = (tmp_path / "saves").iterdir()
    assert size == pytest.approx(sum(f.stat().st_size for f in kept.rglob("*") if f.is_file()) / 2**30, abs=0.005)
    waited, complete = (
        float(s) for s in re.search(r"wait (\S+) s for it; it is complete after (\S+) s", cost).groups()
    )
    assert 0 <= waited <= complete


def test_a_step_needs_a_stage_that_trains():
    said = run("step", "--config=configs/sphinx_7b.py", "--stage=mix")
    assert said.returncode == 1 and "unknown training stage 'mix'" in said.stderr, said.stderr
    said = run("step", "--config=configs/sphinx_7b.py")
    assert said.returncode == 1 and "give --config and --stage" in said.stderr, said.stderr
