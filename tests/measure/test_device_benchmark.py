"""The command for accelerators: what it keeps, shows and survives, with checks that are made up; sizes by memory."""

import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from sphinx_jax.config import ConfigError
from sphinx_jax.measure.device import checks as device
from sphinx_jax.measure.device.checks import Check
from sphinx_jax.measure.device.rows import Row, Setting

HERE = {"device": "Chip 9", "count": 1, "memory": None, "jax": "1.0", "jaxlib": "1.1", "driver": "driver 7"}
GIB = 2**30


def good(setting, deadline, mark):
    with open(mark, "a") as file:
        file.write("run\n")
    yield Row("a token", "3 ms | all", memory=1.25, numbers={"seconds": 0.003})


def wrong(setting, deadline):
    yield Row("logits", "far", ok=False)


def error(setting, deadline):
    yield Row("the first", "5 ms")
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nwhile trying")


def crash(setting, deadline):
    yield Row("the first", "6 ms")
    (Path(setting.scratch) / "half").write_text("written")
    os.write(2, b"F1234 the library says why\n")
    os.abort()


def hang(setting, deadline):
    (Path(setting.scratch) / "half").write_text("written")
    time.sleep(60)
    yield Row("never", "")


def check(name, *options, seconds=30):
    return Check(name, seconds, f"what {name} does", f"test_device_benchmark:{name}", options)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(device, "_identify", lambda setting: dict(HERE))
    monkeypatch.setattr(device, "_environment", lambda: None)


def run(out, *checks, **given):
    return list(device.run(Setting(), out, checks=checks, **given))


def test_what_is_there_is_not_run_again_and_the_table_is_whole(tmp_path):
    out, mark = tmp_path / "a" / "chip.jsonl", tmp_path / "mark"
    checks = (check("good", ("mark", str(mark))), check("wrong"))
    first = run(out, *checks, only=["good"])
    assert first[0] == f"1 x Chip 9, jax 1.0, jaxlib 1.1, driver 7: 1 of 1 checks to run; kept in {out}"
    assert first[1].startswith("[1/1] good: what good does, 30 s at most")
    (line,) = map(json.loads, out.read_text().splitlines())
    assert (line["check"], line["device"], line["rows"][0]["numbers"]) == ("good", "Chip 9", {"seconds": 0.003})

    with pytest.raises(device.Failed, match="^wrong: see the table"):
        run(out, *checks)
    assert mark.read_text() == "run\n"
    with pytest.raises(device.Failed):
        run(out, *checks)  # nothing is left to do
    assert len(out.read_text().splitlines()) == 2

    with pytest.raises(device.Failed):
        run(out, *checks, only=["good"], fresh=True)
    assert mark.read_text() == "run\nrun\n" and len(out.read_text().splitlines()) == 2
    table = list(device.table(device.read(out)))
    assert table[0].startswith("Chip 9, jax 1.0, jaxlib 1.1, driver 7, 20")
    assert set(table[4:]) == {"| good | a token | 3 ms / all | 1.2 GiB |", "| wrong | logits | far |  |"}


def test_a_check_that_fails_is_a_row_and_others_go_on(tmp_path):
    out, mark = tmp_path / "chip.jsonl", tmp_path / "mark"
    checks = (check("hang", seconds=2), check("error"), check("crash"), check("good", ("mark", str(mark))))
    with pytest.raises(device.Failed, match="^hang, error, crash: see the table; --fresh --only hang error crash"):
        run(out, *checks)
    rows = {line["check"]: [(r["what"], r["result"]) for r in line["rows"]] for line in device.read(out)}
    assert rows["error"] == [
        ("the first", "5 ms"),
        ("what error does", "failed: out of memory: RESOURCE_EXHAUSTED: Out of memory while trying"),
    ]
    assert rows["crash"][0] == ("the first", "6 ms")
    assert rows["crash"][1][1] == "failed: ended by SIGABRT: F1234 the library says why"
    assert rows["hang"][-1][1].startswith("failed: took longer than ")
    assert rows["good"] == [("a token", "3 ms | all")]
    assert {file.name for file in tmp_path.iterdir()} == {
        "chip.jsonl",
        "mark",
        "chip.error.log",
        "chip.crash.log",
        "chip.hang.log",
    }
    assert "Traceback" in (tmp_path / "chip.error.log").read_text()


def test_numbers_of_another_device_or_version_are_not_mixed_in(tmp_path, monkeypatch):
    out, mark = tmp_path / "chip.jsonl", tmp_path / "mark"
    one = check("good", ("mark", str(mark)))
    run(out, one)
    for changed in ({"jax": "2.0"}, {"device": "Chip 10"}, {"driver": ""}):
        monkeypatch.setattr(device, "_identify", lambda setting, changed=changed: HERE | changed)
        said = run(out, one)
        assert "1 of 1 checks to run" in said[0] and sum(line.startswith("| good") for line in said) == 1
    assert mark.read_text() == "run\n" * 4 == "run\n" * len(device.read(out))


def test_what_cannot_be_run_or_read_is_told_in_a_line(tmp_path):
    with pytest.raises(ConfigError, match="unknown check 'goood'; did you mean 'good'"):
        run(tmp_path / "x.jsonl", check("good"), only=["goood"])
    for text in ("no json", '{"check": "good"}', "[1]", '"words"'):
        (tmp_path / "x.jsonl").write_text(text + "\n")
        with pytest.raises(ConfigError, match="line 1 of .*x.jsonl is not of this command; give another --out"):
            run(tmp_path / "x.jsonl", check("good"))
        assert (tmp_path / "x.jsonl").read_text() == text + "\n"


def test_every_check_is_there_and_all_are_within_nine_minutes():
    assert sum(c.seconds for c in device.CHECKS) + device.START < 540
    for each in device.CHECKS:
        assert callable(device._function(each))


@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", 3352e9),
        ("NVIDIA H100 PCIe", 2000e9),
        ("NVIDIA H200", 4800e9),
        ("NVIDIA A100-SXM4-80GB", 2039e9),
        ("NVIDIA A100-SXM4-40GB", 1555e9),
        ("TPU v5 lite", 819e9),
        ("TPU v5", 2765e9),
        ("TPU v6 lite", 1640e9),
        ("Tesla T4", 320e9),
        ("NVIDIA L4", 300e9),
        ("NVIDIA L40", None),
        ("NVIDIA A10G", None),
        ("cpu", None),
    ],
)
def test_the_bandwidth_is_that_of_the_device_named(kind, rate):
    from sphinx_jax.measure.device.hardware import known_bandwidth

    assert known_bandwidth(kind) == rate


@pytest.mark.parametrize("said", [None, {}, {"bytes_limit": -1, "peak_bytes_in_use": -1}, RuntimeError("unsupported")])
def test_a_device_that_says_nothing_of_its_memory_has_none(monkeypatch, said):
    from sphinx_jax.measure.device import hardware

    class Device:
        device_kind = "Chip 9"

        def memory_stats(self):
            if isinstance(said, Exception):
                raise said
            return said

    monkeypatch.setattr(hardware.jax, "local_devices", lambda: [Device()])
    monkeypatch.setattr(hardware.jax, "devices", lambda: [Device()])
    monkeypatch.setattr(hardware, "platform", lambda: "gpu")
    monkeypatch.setattr(hardware, "_nvidia", lambda what: "")
    assert hardware.device_memory() is None and hardware.peak_gib() is None
    monkeypatch.setattr(hardware, "_nvidia", lambda what: "1000 MiB")
    assert hardware.device_memory() == 900 * 2**20


def recipes():
    return {name: import_module(f"configs.{name}").get_config().to_dict() for name in ("sphinx_1k", "sphinx_tiny_1k")}


def test_layers_and_rows_are_chosen_by_memory():
    from sphinx_jax.measure.device.step import largest

    assert largest(recipes(), 75 * GIB, 1)[::2] == ("sphinx_1k", 5)
    found = [largest(recipes(), gib * GIB, 1).layers for gib in (60, 75, 130, 4000)]
    assert found == sorted(set(found)) and found[-1] == 40
    assert largest(recipes(), 75 * GIB, 8).layers > found[1]
    assert largest(recipes(), 14 * GIB, 1).name == "sphinx_tiny_1k"
    with pytest.raises(ConfigError, match="4.0 GiB of memory hold no 2 layers"):
        largest(recipes(), 4 * GIB, 1)


def test_fewer_layers_are_tried_where_memory_is_out_after_all(monkeypatch):
    import jax

    from sphinx_jax.measure.device import step as device_step
    from sphinx_jax.measure.step import StepTimes
    from sphinx_jax.train.loop import Throughput

    tried = []

    def time_steps(recipe, stage, steps):
        tried.append(recipe.model.decoder.layers)
        if len(tried) < 3:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return StepTimes([9.0, 1.0, 2.0, 2.0], 1.0, Throughput(1000, 5e12, 1e13), None, {})

    monkeypatch.setattr(device_step, "time_steps", time_steps)
    monkeypatch.setattr(device_step.hardware, "device_memory", lambda: 75 * GIB)
    (row,) = device_step.check(Setting(recipes=recipes()), time.time() + 1000)
    assert tried[0] > tried[1] > tried[2] >= 2 and f", {tried[2]} of 40 layers" in row.what
    devices = len(jax.devices())
    assert row.numbers["mfu"] == pytest.approx(5e12 / 2 / 1e13 / devices) and "with all 40 layers" in row.result
    monkeypatch.setattr(device_step, "time_steps", lambda *args: exec("raise TypeError('no')"))
    with pytest.raises(TypeError):
        list(device_step.check(Setting(recipes=recipes()), time.time() + 1000))


def test_the_decoder_is_the_largest_that_fits():
    from sphinx_jax.measure.device.decode import fitting

    sizes = {75: "13B", 20: "7B", 8: "1.1B", 1: "nano"}
    assert {gib: fitting(gib * GIB)[0] for gib in sizes} == sizes
    assert fitting(None)[0] == "nano" and fitting(75 * GIB)[1].dtype == "bfloat16"


@pytest.mark.parametrize(("kind", "share"), [("", 4.0), ("int8", 1.05625), ("nf4", 0.56875)])
def test_random_weights_are_those_that_inference_keeps(kind, share):
    import jax

    from sphinx_jax.config import DecoderConfig, ModelConfig
    from sphinx_jax.measure.device.decode import born, weight_bytes
    from sphinx_jax.model.blueprint import blueprint
    from sphinx_jax.model.quantise import MATRICES, quantise

    model = ModelConfig("llama", DecoderConfig(dim=64, layers=2, heads=2, vocab_size=32, hidden_dim=128))
    leaves, specs = born(model, kind), blueprint(model).specs
    assert leaves.keys() == specs.keys()
    for path, spec in specs.items():
        true = jax.ShapeDtypeStruct(spec.shape, spec.dtype)
        if kind and path in MATRICES:
            true = jax.eval_shape(lambda x, path=path: quantise(path, x, kind), true)
        assert jax.tree.structure(leaves[path]) == jax.tree.structure(true)
        for ours, theirs in zip(jax.tree.leaves(leaves[path]), jax.tree.leaves(true), strict=True):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    values = leaves[MATRICES[0]].qvalue if kind else leaves[MATRICES[0]]
    assert len(np.unique(np.asarray(values[0]).astype(np.float32))) > 8
    size, few = weight_bytes(leaves), sum(specs[path].size for path in MATRICES)
    # bytes a weight, with scales of 4: 576 of a layer's 40,960 weights in int8 (one an output), 704 in nf4 (one for 64
    # inputs, 32 of o); a token reads a row of the embedding, the output and the norms whole
    assert size["rest"] == 4 * 32 * 64
    assert size["read"] == pytest.approx(share * few + 4 * (32 * 64 + 5 * 64))


def test_parity_is_held_to_its_bound():
    from sphinx_jax.measure.device.parity import BFLOAT16, judge

    theirs = np.random.default_rng(0).normal(size=(2, 50, 8)).astype(np.float32)
    one = np.zeros_like(theirs)
    one[0, 0, 0] = 1

    def ok(ours, dtype, experts=False):
        return judge("x", np.asarray(ours, np.float32), theirs, dtype, experts).ok

    assert ok(theirs + 5e-5 * one, "float32") and not ok(theirs + 0.01 * one, "float32")
    assert not ok(theirs + np.nan * one, "float32") and not ok(theirs + np.nan * one, "bfloat16")
    assert ok(theirs * (1 + 0.9 * BFLOAT16), "bfloat16") and not ok(theirs * (1 + 1.1 * BFLOAT16), "bfloat16")
    # a few positions that went to other experts
    moved = theirs.copy()
    moved[:, :4] *= -1
    assert ok(moved, "bfloat16", experts=True) and not ok(moved, "bfloat16")
    assert not ok(-theirs, "bfloat16", experts=True)
    assert judge("x", theirs + 0.01 * one, theirs, "float32", False).result.startswith("**at most")


def test_a_device_says_what_it_is_and_every_check_has_its_function():
    here = device._identify(Setting())
    assert set(device.IDENTITY) <= set(here) and here["count"] >= 1
    for check in device.CHECKS:
        assert callable(device._function(check))


@pytest.mark.slow
def test_the_whole_command_on_a_cpu(tmp_path):
    out = tmp_path / "cpu.jsonl"
    command = [sys.executable, str(ROOT / "tools" / "benchmark.py"), "device", f"--out={out}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert said.returncode == 0, said.stdout + said.stderr[-2000:]
    lines = device.read(out)
    assert [line["check"] for line in lines] == [c.name for c in device.CHECKS]
    rows = {line["check"]: line["rows"] for line in lines}
    assert {row["what"].split()[0] for row in rows["parity"]} == {"float32", "bfloat16"}
    for name in ("decode", "int8", "nf4", "step"):
        assert rows[name][0]["numbers"]["seconds"] > 0
    assert rows["nf4"][0]["numbers"]["weights"] < rows["int8"][0]["numbers"]["weights"]
    assert rows["int8"][0]["numbers"]["weights"] < rows["decode"][0]["numbers"]["weights"]
    assert rows["saves"][0]["numbers"]["size"] > 0 and [f.name for f in tmp_path.iterdir()] == ["cpu.jsonl"]
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert again.returncode == 0 and "0 of 6 checks to run" in again.stdout, again.stderr[-2000:]
    assert again.stdout.split("\n\n", 1)[1] == said.stdout.split("\n\n", 1)[1]
