"""Runs that go on: from nothing but their own checkpoint, alone in their workdir, and after a disk was full."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, born, tiny_config
from PIL import Image

from sphinx_jax import disk, lock
from sphinx_jax.checkpoint import store
from sphinx_jax.config import ConfigError, DecoderConfig, to_dict
from sphinx_jax.data.conversation import Item
from sphinx_jax.data.shares import Schedule, Shares
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.model.blueprint import FROZEN
from sphinx_jax.model.lora import BASE
from sphinx_jax.recipe import runner
from sphinx_jax.recipe.recipe import PLAYGROUND
from sphinx_jax.train import features

CONFIG = tiny_config(decoder=DecoderConfig(dim=32, layers=2, heads=2, kv_heads=1, vocab_size=1280, hidden_dim=64))
FULL = "RESOURCE_EXHAUSTED: Failed writing: /d/0: Failed to write 9 bytes to file 7: No space left on device"


@pytest.fixture
def start(tmp_path):
    tokenizer = load_tokenizer(PLAYGROUND / "tokenizer.model")
    return store.save(tmp_path / "start", born(CONFIG), CONFIG, tokenizer, {"made_by": "test"})


@pytest.fixture
def values(start, tmp_path):
    """Four steps on six pictures, with a checkpoint after each second one."""
    random, lines = np.random.default_rng(0), []
    for i in range(6):
        Image.fromarray(random.integers(0, 255, (40, 30, 3), np.uint8)).save(tmp_path / f"{i}.png")
        talk = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": f"a small red thing {i}"}]
        lines.append(json.dumps({"image": f"{i}.png", "conversations": talk}))
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    (tmp_path / "list.yaml").write_text(f"META:\n  - {{path: items.jsonl, root: {tmp_path}}}\n")
    stage = {
        "kind": "train",
        "start": str(start),
        "steps": 4,
        "batch": 2,
        "length": 64,
        "domains": {"*": 1.0},
        "rate": 1e-2,
        "warmup": 1,
        "log_every": 1,
        "save_every": 2,
        "keep": 9,
    }
    return {
        "model": to_dict(CONFIG),
        "tokenizer": str(start),
        "stage": {"tune": stage},
        "data": {"playground": None, "meta": {"train": str(tmp_path / "list.yaml")}},
    }


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "tune" / "history.jsonl").read_text().splitlines()]


def killed_after_two_steps(workdir, copy):
    shutil.copytree(workdir, copy)
    (copy / "tune" / "done.json").unlink()
    shutil.rmtree(copy / "tune" / "checkpoints" / "4")
    shutil.rmtree(copy / "features", ignore_errors=True)
    return copy


@pytest.fixture
def two_sets(values, tmp_path):
    """The same with two data sets of six pictures, one of which has no file, in equal shares."""
    lines = (tmp_path / "items.jsonl").read_text().replace('"5.png"', '"gone.png"')
    (tmp_path / "more.jsonl").write_text(lines)

    def listed(weights):
        entries = [{"path": f"{name}.jsonl", "root": str(tmp_path), "weight": w} for name, w in weights.items()]
        (tmp_path / "list.yaml").write_text(json.dumps({"META": entries}))
        return values

    values["stage"]["tune"] |= {"unusable": 0.5, "steps": 12, "save_every": 2}
    return listed


def seen(workdir, step):
    told = store.read_recipe(workdir / "tune" / "checkpoints" / str(step))
    return {name: (one["rows"], one["skipped"]) for name, one in told["seen"]["image"].items()}, told


def test_what_was_seen_goes_on_with_the_stage_and_shares_may_change_there(two_sets, tmp_path, capsys):
    runner.run(runner.parse(two_sets({"items": 1, "more": 1})), tmp_path / "w", quiet=True)
    counts, told = seen(tmp_path / "w", 12)
    assert sum(counts["items"]) == sum(counts["more"]) == 12 and counts["more"][1] == 2 and counts["items"][1] == 0
    (of_other,) = told["seen"]["image"]["more"]["tasks"].values()
    assert of_other["other"]["items"] == counts["more"][0] and of_other["other"]["tokens"] > 5 * counts["more"][0]
    last = json.loads((tmp_path / "w" / "tune" / "history.jsonl").read_text().splitlines()[-1])
    assert (tmp_path / "w" / "tune" / "seen.png").read_bytes().startswith(b"\x89PNG")
    assert (last["seen/items/rows"], last["seen/more/rows"]) == (12, counts["more"][0])

    def killed(name):
        shutil.copytree(tmp_path / "w", tmp_path / name)
        (tmp_path / name / "tune" / "done.json").unlink()
        for step in (6, 8, 10, 12):
            shutil.rmtree(tmp_path / name / "tune" / "checkpoints" / str(step))
        return tmp_path / name

    runner.run(runner.parse(two_sets({"items": 2, "more": 2})), killed("same"), quiet=True)
    again, told_again = seen(tmp_path / "same", 12)
    assert again == counts and told_again["shares"] == told["shares"]
    before, _ = seen(tmp_path / "w", 4)
    capsys.readouterr()
    runner.run(runner.parse(two_sets({"items": 1, "more": 7})), killed("other"))
    said = capsys.readouterr().out
    assert "tune: from image row 8 on the shares are items 12.5%, more 87.5%, they were items 50.0%, more 50.0%" in said
    other, told = seen(tmp_path / "other", 12)
    assert sum(other["items"]) - sum(before["items"]) in (1, 2, 3) and sum(map(sum, other.values())) == 24
    schedule = Schedule([Shares(**phase) for phase in told["shares"]["image"]], ["items", "more"])
    assert {name: sum(rows) for name, rows in other.items()} == schedule.given(24)
    # of each epoch of six the one without a file is skipped: nothing was left out or taken twice where shares changed
    assert other["more"][1] in (sum(other["more"]) // 6, sum(other["more"]) // 6 + 1)


def test_a_data_set_may_leave_or_join_a_stage_that_goes_on(two_sets, tmp_path):
    runner.run(runner.parse(two_sets({"items": 1, "more": 1})), tmp_path / "w", quiet=True)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "w", copy)
    (copy / "tune" / "done.json").unlink()
    for step in (6, 8, 10, 12):
        shutil.rmtree(copy / "tune" / "checkpoints" / str(step))
    (tmp_path / "third.jsonl").write_text((tmp_path / "items.jsonl").read_text())
    runner.run(runner.parse(two_sets({"third": 1, "items": 1})), copy, quiet=True)
    (before, _), (after, _) = seen(tmp_path / "w", 4), seen(copy, 12)
    assert after["more"] == before["more"] and sum(map(sum, after.values())) == 24
    assert sum(after["third"]) in (7, 8, 9)


@pytest.mark.parametrize(
    ("dtype", "quantize"),
    [
        ("float32", ""),
        ("bfloat16", "int8"),
        pytest.param("bfloat16", "nf4", marks=pytest.mark.slow),
        pytest.param("float32", "int8", marks=pytest.mark.slow),
    ],
)
def test_a_stage_goes_on_from_its_own_checkpoint_alone(values, start, tmp_path, dtype, quantize):
    values["model"]["dtype"] = dtype
    if quantize:
        values["model"]["decoder"]["lora_rank"] = 2
        values["stage"]["tune"] |= {"frozen": (*FROZEN, *BASE), "quantize": quantize}
    else:
        values["stage"]["tune"] |= {"cache_features": True}
    runner.run(runner.parse(values), tmp_path / "whole", quiet=True)
    broken = killed_after_two_steps(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(start)
    runner.run(runner.parse(values), broken, quiet=True)
    assert losses(broken) == losses(tmp_path / "whole") and len(losses(broken)) == 4
    runner.run(runner.parse(values), broken, quiet=True)  # a stage that is done needs it no more either
    with pytest.raises(ConfigError, match="start of stage tune: there is no .*start"):
        runner.run(runner.parse(values), tmp_path / "new", quiet=True)
    assert not (tmp_path / "new").exists()


def test_a_stage_may_be_added_to_what_was_made_and_none_taken_away(values, tmp_path):
    more = values | {"stage": values["stage"] | {"again": values["stage"]["tune"] | {"start": "tune", "steps": 1}}}
    runner.run(runner.parse(values), tmp_path / "w", quiet=True)
    runner.run(runner.parse(more), tmp_path / "w", quiet=True)
    assert store.newest(tmp_path / "w" / "again" / "checkpoints").name == "1"
    with pytest.raises(ConfigError, match="was made with "):
        runner.run(runner.parse(values), tmp_path / "w", quiet=True)


HOLDER = """
import sys, time
from pathlib import Path
from sphinx_jax.lock import locked
with locked(Path(sys.argv[1])):
    print(flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that works in `tmp_path / "w"`."""
    (tmp_path / "w").mkdir()
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "w")], env=env, stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def test_a_second_command_in_a_workdir_is_refused_while_the_first_lives(values, tmp_path, holder):
    workdir, nothing = tmp_path / "w", runner.parse(values | {"stages": ()})
    with pytest.raises(ConfigError) as error:
        runner.run(nothing, workdir, quiet=True)
    said = str(error.value)
    assert str(workdir) in said and f"process {holder.pid};" in said and "\n" not in said
    assert [path.name for path in workdir.iterdir()] == [lock.NAME]
    asking = runner.parse(values | {"stage": values["stage"] | {"chat": {"kind": "chat"}}})
    with pytest.raises(store.BadCheckpoint, match="holds no trained model yet"):  # a chat is not refused
        runner.run(asking, workdir, only="chat", quiet=True)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    for _ in "12":
        runner.run(nothing, workdir, quiet=True)
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_a_lock_that_was_taken_away_in_between_is_none(tmp_path, monkeypatch):
    flock = lock.fcntl.flock

    def late(file, how):
        monkeypatch.setattr(lock.fcntl, "flock", flock)
        (tmp_path / lock.NAME).unlink()  # the one before ends just here
        flock(file, how)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    with lock.locked(tmp_path):
        assert (tmp_path / lock.NAME).read_text().strip() == str(os.getpid())
        with pytest.raises(ConfigError, match="in use"), lock.locked(tmp_path):
            pass


def chained():
    error = RuntimeError("the writing failed")
    error.__cause__ = OSError(errno.EDQUOT, "spent")
    return error


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (ValueError(FULL), True),
        (chained(), True),
        (ExceptionGroup("all", [KeyError(1), OSError(errno.ENOSPC, "x")]), True),
        (OSError(errno.EACCES, "x"), False),
        (ValueError("RESOURCE_EXHAUSTED: out of memory"), False),
    ],
)
def test_a_full_disk_is_told_from_other_failures(error, full, tmp_path):
    with pytest.raises(disk.DiskFull if full else type(error)) as caught, disk.told_when_full(tmp_path / "not" / "yet"):
        raise error
    if full:
        said = str(caught.value)
        assert str(tmp_path / "not" / "yet") in said and "GiB are free" in said and "make room" in said


def test_a_checkpoint_that_found_no_room_leaves_none(tmp_path, monkeypatch):
    def full(*_):
        (tmp_path / "4.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
        raise ValueError(FULL)

    monkeypatch.setattr(store, "write_beside", full)
    with pytest.raises(disk.DiskFull, match=f"the disk of {tmp_path} is too full"):
        store.save(tmp_path / "4", born(CONFIG), CONFIG, None, {})
    assert not list(tmp_path.iterdir())


def test_features_that_found_no_room_are_made_again(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(features.os, "posix_fallocate", full)
    content = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(content, "PNG")
    items, folder = [Item(content.getvalue(), ())] * 3, tmp_path / "features"
    with pytest.raises(disk.DiskFull, match=f"the disk of {folder} is too full"):
        features.cache_features(folder, items, born(CONFIG), CONFIG, "encoding", batch=2)
    monkeypatch.undo()
    cache = features.cache_features(folder, items, born(CONFIG), CONFIG, "encoding", batch=2)
    assert len(cache) == 3 and np.abs(cache[2]["overview"]).min() > 0 and not cache.bad
