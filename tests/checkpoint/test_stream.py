"""Checkpoints by slice: read and written like Orbax's own, whatever happens on the way."""

import inspect
import json
import math
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp_v0
import pytest
import tensorstore as ts
from conftest import DATA, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from orbax.checkpoint import v1 as ocp

from sphinx_jax.checkpoint import store, stream
from sphinx_jax.config import ConfigError
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.model.blueprint import blueprint

TOKENIZER = load_tokenizer(DATA / "tokenizer.model")
CONFIG = tiny_config()
BF16 = np.dtype(ml_dtypes.bfloat16)


def odd_leaves() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "decoder/scale": np.float32(2.5).reshape(()),
        "decoder/blocks/q": random.normal(size=(3, 7, 11, 1)).astype(BF16),
        "decoder/blocks/k-1.0": random.normal(size=(5, 13)).astype(np.float16),
        "steps": np.arange(17, dtype=np.int32),
        "mask": np.array([[True], [False]]),
        "zeros": np.zeros((2, 3), np.float32),
    }


def equal(found, expected):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def write_all(folder: Path, leaves: dict[str, np.ndarray]) -> stream.Writer:
    writer = stream.Writer(folder, {path: (leaf.shape, leaf.dtype) for path, leaf in leaves.items()})
    for path, leaf in leaves.items():
        writer.write(path, ..., leaf)
    return writer


def values(path: str, shape: tuple[int, ...], row: int) -> np.ndarray:
    """A row of a large leaf, the same whoever asks and hard to compress."""
    return np.random.default_rng([row, len(path)]).random(shape, np.float32)


def test_a_written_checkpoint_is_restored_like_any_other(tmp_path, mesh):
    random = np.random.default_rng(0)
    leaves = {path: random.normal(size=s.shape).astype(s.dtype) for path, s in blueprint(CONFIG).specs.items()}
    writer = stream.Writer(tmp_path / "c", {path: (leaf.shape, leaf.dtype) for path, leaf in leaves.items()})
    for path, leaf in leaves.items():
        for row in reversed(range(leaf.shape[0])):
            writer.write(path, row, leaf[row])
    folder = writer.finish(CONFIG, TOKENIZER, {"made_by": "test"})

    assert store.read_config(folder) == CONFIG
    assert store.read_recipe(folder) == {"made_by": "test"}
    assert store.read_tokenizer(folder).encode("a cat") == TOKENIZER.encode("a cat")
    found = store.restore(folder, mesh)
    assert found.keys() == leaves.keys()
    for path, leaf in leaves.items():
        equal(found[path], leaf)


def test_a_saved_checkpoint_is_read(tmp_path):
    leaves = odd_leaves()
    folder = store.save(
        tmp_path / "c",
        {path: jnp.asarray(leaf) for path, leaf in leaves.items()},
        CONFIG,
        None,
        {},
        optimizer=(jnp.ones(3), ()),
    )
    (folder / "data").mkdir()
    reader = stream.Reader(folder)
    assert {path: info[:2] for path, info in reader.leaves.items()} == {
        path: (leaf.shape, leaf.dtype) for path, leaf in leaves.items()
    }
    for path, leaf in leaves.items():
        equal(reader.read(path), leaf)


def test_plain_orbax_reads_what_is_written_and_finds_its_own_files(tmp_path):
    leaves = odd_leaves()
    ours = write_all(tmp_path / "ours", leaves).finish(CONFIG, TOKENIZER, {})
    tree = store.unflatten({path: jnp.asarray(leaf) for path, leaf in leaves.items()})
    theirs = store.save(tmp_path / "theirs", store.flatten(tree), CONFIG, TOKENIZER, {})

    found = store.flatten(ocp.load_checkpointables(ours)["state"])
    assert found.keys() == leaves.keys()
    for path, leaf in leaves.items():
        equal(found[path], leaf)

    def files(folder):
        names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        return {name for name in names if "ocdbt.process_" not in name and "/d/" not in name}

    assert files(ours) == files(theirs)
    for name in ("state/_METADATA", "state/array_metadatas/process_0"):
        assert json.loads((ours / name).read_text()) == json.loads((theirs / name).read_text())
    shardings = [json.loads((folder / "state/_sharding").read_text()).keys() for folder in (ours, theirs)]
    assert shardings[0] == shardings[1]
    kinds = [json.loads((folder / "_CHECKPOINT_METADATA").read_text()) for folder in (ours, theirs)]
    assert kinds[0].keys() == kinds[1].keys() and kinds[0]["item_handlers"] == kinds[1]["item_handlers"]

    def arrays(folder):
        database = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/state/"}).result()
        keys = {key.decode() for key in database.list().result()}
        return keys, {
            key: re.sub(rb'"checksum":\w+,"level":\d', b"", database.read(key).result().value)
            for key in keys
            if key.endswith("zarr.json")
        }

    assert arrays(ours) == arrays(theirs)


TREE = {"params": {"a": [jnp.arange(12.0).reshape(3, 4), jnp.ones(2, jnp.bfloat16)], "none": None, "empty": {}}, "n": 3}


def save_v0(folder: Path, **options) -> Path:
    ocp_v0.PyTreeCheckpointer(**options).save(folder / "c", TREE | {"name": "hi"})
    return folder / "c"


def save_managed(folder: Path) -> Path:
    with ocp_v0.CheckpointManager(folder) as manager:
        manager.save(5, args=ocp_v0.args.StandardSave(TREE))
    return folder / "5"


def save_v1(folder: Path) -> Path:
    ocp.save(folder / "c", TREE)
    return folder / "c"


@pytest.mark.parametrize(
    "save",
    [
        save_v0,
        lambda folder: save_v0(folder, use_ocdbt=False),
        lambda folder: save_v0(folder, use_ocdbt=False, use_zarr3=True),
        save_managed,
        save_v1,
    ],
    ids=["v0", "v0 zarr", "v0 zarr3", "v0 manager", "v1"],
)
def test_any_orbax_layout_is_read(tmp_path, save):
    reader = stream.Reader(save(tmp_path))
    assert reader.leaves.keys() == {"params/a/0", "params/a/1", "n"}
    equal(reader.read("params/a/0", (slice(1, 3), 2)), np.array([6, 10], np.float32))
    equal(reader.read("params/a/1"), np.ones(2, BF16))
    assert reader.read("n") == 3


@st.composite
def leaf_and_slices(draw):
    """A leaf, how it is cut into slices along its leading axes, and an index to read."""
    shape = tuple(draw(st.lists(st.integers(1, 9), max_size=3)))
    index = []
    for size in shape[: draw(st.integers(0, len(shape)))]:
        start, stop = draw(st.integers(-size - 2, size + 2)), draw(st.integers(-size - 2, size + 2))
        index.append(draw(st.sampled_from([slice(start, stop), slice(None), start % size])))
    cuts = [()]
    for size in shape[: draw(st.integers(0, len(shape)))]:
        step = draw(st.integers(1, size))
        cuts = [(*cut, slice(at, at + step)) for cut in cuts for at in range(0, size, step)]
    return shape, draw(st.permutations(cuts)), tuple(index)


@settings(max_examples=15)
@given(leaf_and_slices())
def test_slices_are_those_of_numpy(example):
    shape, cuts, index = example
    leaf = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(stream, "CHUNK_BYTES", 64)
        patch.setattr(stream, "ROW_BYTES", 16)
        patch.setattr(stream, "IN_FLIGHT_BYTES", 100)
        writer = stream.Writer(folder, {"x": (shape, np.float32)})
        for n, cut in enumerate(cuts):
            assert not writer.is_done("x")
            if n == len(cuts) // 2:
                with pytest.raises(store.BadCheckpoint, match="not written in full, the first is x"):
                    writer.finish(CONFIG, None, {})
            writer.write("x", cut, leaf[cut])
        writer.finish(CONFIG, None, {})
        reader = stream.Reader(folder)
        equal(reader.read("x", index), leaf[index])
        rebuilt = np.full_like(leaf, -1)
        for chunk in reader.leaves["x"].chunks():
            assert (rebuilt[chunk] == -1).all()
            rebuilt[chunk] = reader.read("x", chunk)
        equal(rebuilt, leaf)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize(
    "shape", [(40, 5120, 13824), (24, 1024, 16, 64), (32000, 5120), (40, 5120), (32, 8, 4096, 14336), (9973, 5119), ()]
)
def test_chunks_are_small_contiguous_and_end_with_large_rows(shape, itemsize):
    chunk = stream.choose_chunk_shape(shape, itemsize)
    assert math.prod(chunk) * itemsize <= 8 * 2**20
    split = next((axis for axis, n in enumerate(chunk) if n > 1), len(shape))
    assert chunk[split + 1 :] == shape[split + 1 :]
    count = math.prod(-(-size // n) for size, n in zip(shape, chunk, strict=True))
    assert count <= 2 + math.prod(shape) * itemsize / 2**20
    if shape and math.prod(shape[1:]) * itemsize >= 2**20:
        assert chunk[0] == 1


def test_leaves_are_cast_and_a_readers_chunks_kept(tmp_path):
    leaf = np.linspace(-3, 3, 60, dtype=np.float32).reshape(6, 10)
    info = stream.LeafInfo((6, 10), BF16, (3, 4))
    writer = stream.Writer(tmp_path / "c", {"x": info})
    writer.write("x", ..., leaf)
    writer.finish(CONFIG, None, {})
    reader = stream.Reader(tmp_path / "c")
    assert reader.leaves == {"x": info}
    equal(reader.read("x"), leaf.astype(BF16))


def test_an_array_is_the_callers_again_and_chunks_on_disk_stay(tmp_path):
    leaf = values("x", (2, 1024, 1024), 0)
    writer = stream.Writer(tmp_path / "c", {"x": (leaf.shape, leaf.dtype)})
    buffer = leaf.copy()
    writer.write("x", ..., buffer)
    buffer[:] = 0
    writer.flush()
    writer.write("x", ..., buffer)
    writer.finish(CONFIG, None, {})
    equal(stream.Reader(tmp_path / "c").read("x"), leaf)


SHAPE = (48, 256, 256)
CHILD = f"""
import sys, time
import numpy as np
from sphinx_jax.checkpoint import stream
{inspect.getsource(values)}
folder, path, first, last = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:5])
stream.CHUNK_BYTES = 2**18
writer = stream.Writer(folder, {{p: ({SHAPE}, np.float32) for p in ("x", "yy")}}, origin="child")
for row in range(first, last):
    writer.write(path, row, values(path, {SHAPE[1:]}, row))
    if row == 11:
        writer.flush()
        print("some", flush=True)
    if row > 11:
        time.sleep(0.01)
writer.flush()
"""


def child(code: str, *arguments, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], text=True, **options)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_is_taken_up_where_it_was(tmp_path, how, monkeypatch):
    monkeypatch.setattr(stream, "CHUNK_BYTES", 2**18)
    folder = tmp_path / "c"
    with child(CHILD, folder, "x", 0, 48, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == "some\n"
        process.send_signal(how)
    assert process.returncode != 0
    assert not store.is_complete(folder)
    with pytest.raises(store.BadCheckpoint, match="unfinished"):
        stream.Reader(folder)
    with pytest.raises(store.BadCheckpoint, match="other sources"):
        stream.Writer(folder, {"x": (SHAPE, np.float32), "yy": (SHAPE, np.float32)}, origin="another")

    writer = stream.Writer(folder, {"x": (SHAPE, np.float32), "yy": (SHAPE, np.float32)}, origin="child")
    todo = [(path, row) for path in ("x", "yy") for row in range(48) if not writer.is_done(path, row)]
    assert 48 < len(todo) <= 84 and ("x", 11) not in todo
    for path, row in todo:
        writer.write(path, row, values(path, SHAPE[1:], row))
    writer.finish(CONFIG, None, {})
    reader = stream.Reader(folder)
    for path in ("x", "yy"):
        equal(reader.read(path), np.stack([values(path, SHAPE[1:], row) for row in range(48)]))
    assert not [left.name for left in folder.rglob("*") if "lock" in left.name or "unfinished" in left.name]


def test_processes_write_one_checkpoint_together(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "CHUNK_BYTES", 2**18)
    folder = tmp_path / "c"
    parts = [child(CHILD, folder, *part, stdout=subprocess.DEVNULL) for part in (("x", 0, 30), ("yy", 0, 48))]
    writer = stream.Writer(folder, {"x": (SHAPE, np.float32), "yy": (SHAPE, np.float32)}, origin="child")
    for row in range(30, 48):
        writer.write("x", row, values("x", SHAPE[1:], row))
    assert [part.wait() for part in parts] == [0, 0]
    writer.finish(CONFIG, None, {})
    reader = stream.Reader(folder)
    for path in ("x", "yy"):
        equal(reader.read(path), np.stack([values(path, SHAPE[1:], row) for row in range(48)]))


MEMORY = """
import sys
import ml_dtypes, numpy as np
from sphinx_jax.checkpoint import stream

def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024

writer = stream.Writer(sys.argv[1], {"x": ((25, 2048, 4096), ml_dtypes.bfloat16)})
block = np.random.default_rng(0).standard_normal((256, 4096), np.float32)
before = peak()
for row in range(25):
    for start in range(0, 2048, 256):
        writer.write("x", (row, slice(start, start + 256)), block)
writer.flush()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_400_mb_leaf_is_written_in_little_memory(tmp_path):
    with child(MEMORY, tmp_path / "c", stdout=subprocess.PIPE) as process:
        grown = float(process.stdout.read())
    assert process.returncode == 0 and 0 < grown < 100
    shutil.rmtree(tmp_path / "c")


def test_a_full_disk_is_one_clear_line_and_the_run_goes_on_later(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "IN_FLIGHT_BYTES", 2**20)
    leaves = {"x": ((4, 512, 512), np.float32)}
    rows = [values("x", (512, 512), row) for row in range(4)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = stream.Writer(tmp_path / "c", leaves)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, limits[1]))
    try:
        with pytest.raises(stream.WriteFailed, match="^cannot write x to .*: File too large; .* run again to go on$"):
            for row, array in enumerate(rows):
                writer.write("x", row, array)
            writer.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    writer = stream.Writer(tmp_path / "c", leaves)
    for row, array in enumerate(rows):
        writer.write("x", row, array)
    writer.finish(CONFIG, None, {})
    equal(stream.Reader(tmp_path / "c").read("x"), np.stack(rows))


def test_what_cannot_be_written_is_refused(tmp_path):
    folder = write_all(tmp_path / "c", odd_leaves()).finish(CONFIG, None, {})
    with pytest.raises(store.BadCheckpoint, match="already holds a checkpoint"):
        stream.Writer(folder, {"x": ((3,), np.float32)})
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("…")
    with pytest.raises(store.BadCheckpoint, match="in use by something else"):
        stream.Writer(tmp_path / "thesis", {"x": ((3,), np.float32)})
    with pytest.raises(store.BadCheckpoint, match="x .* has no elements"):
        stream.Writer(tmp_path / "new", {"x": ((3, 0), np.float32)})
    writer = stream.Writer(tmp_path / "new", {"decoder/norm": ((3, 4), np.float32)})
    with pytest.raises(ValueError, match=r"decoder/norm: the slice is \(4,\), the array given \(3,\)"):
        writer.write("decoder/norm", 1, np.zeros(3))
    with pytest.raises(ConfigError, match="did you mean 'decoder/norm'"):
        writer.write("decoder/nrom", 1, np.zeros(3))
    for index in (3, (0, 0, 0), slice(0, 3, 2)):
        with pytest.raises(IndexError, match="decoder/norm"):
            writer.write("decoder/norm", index, np.zeros(3))


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(store.BadCheckpoint, match="does not exist"):
        stream.Reader(tmp_path / "none")
    with pytest.raises(store.BadCheckpoint, match="no Orbax checkpoint"):
        stream.Reader(tmp_path)
    ocp.save_checkpointables(tmp_path / "two", {"a": {"x": jnp.ones(2)}, "b": {"x": jnp.zeros(3)}})
    with pytest.raises(store.BadCheckpoint, match="several parts; give one of .*two/a, .*two/b"):
        stream.Reader(tmp_path / "two")
    assert stream.Reader(tmp_path / "two" / "b").leaves["x"].shape == (3,)

    big = {"x": values("x", (512, 512), 0)}
    folder = write_all(tmp_path / "c", big).finish(CONFIG, None, {})
    reader = stream.Reader(folder)
    with pytest.raises(ConfigError, match="unknown leaf 'y'"):
        reader.read("y")
    data = max((folder / "state" / "d").iterdir(), key=lambda file: file.stat().st_size)
    with data.open("r+b") as file:
        file.seek(data.stat().st_size // 2)
        file.write(bytes(range(256)))
    with pytest.raises(store.BadCheckpoint, match=rf"^cannot read x of {folder}: [^\n]*$"):
        stream.Reader(folder).read("x")
    state = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/state/"}).result()
    state.delete_range(ts.KvStore.KeyRange("x/c", "x/d")).result()
    with pytest.raises(store.BadCheckpoint, match=rf"x of {folder}: [^\n]*$"):
        stream.Reader(folder).read("x")
