"""Files of PyTorch without PyTorch: nothing but tensors comes out, byte for byte; bad files get one line."""

import os
import pickle
import pickletools
import re
import zipfile

import ml_dtypes
import numpy as np
import pytest
from conftest import DATA

from sphinx_jax.checkpoint.foreign.pth import STORAGES, PthWriter, read_pth
from sphinx_jax.checkpoint.store import BadCheckpoint

TORCH_FILE = DATA / "llama_text" / "ckpt_mp2" / "consolidated.00-of-02.model.pth"


def tensors() -> dict[str, np.ndarray]:
    normal = np.random.default_rng(0).normal
    return {
        "matrix": normal(size=(3, 4)).astype(np.float32),
        "scalar": np.array(2.5, np.float32),
        "transposed": normal(size=(2, 3, 4)).astype(ml_dtypes.bfloat16).swapaxes(1, 2),
        "counts": np.arange(5),
        "empty": np.zeros((0, 3), np.float16),
        "long": normal(size=70_001),
    }


@pytest.fixture
def written(tmp_path):
    with PthWriter(tmp_path / "a.pth") as file:
        for key, tensor in tensors().items():
            file.add(key, tensor)
    return tmp_path / "a.pth"


def assert_same(found: np.ndarray, expected: np.ndarray):
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)


def test_what_is_written_is_read(written):
    found = read_pth(written)
    assert list(found) == list(tensors())
    for key, tensor in tensors().items():
        assert_same(found[key].read(), tensor)


@pytest.mark.parametrize("rows", [(1, 3), (0, 0), (2, None), (1, 99)])
def test_rows_are_a_slice(written, rows):
    for key in ("matrix", "transposed", "counts"):
        assert_same(read_pth(written)[key].read(*rows), tensors()[key][slice(*rows)])


def test_torch_loads_what_is_written(written):
    torch = pytest.importorskip("torch")
    for mmap in (False, True):
        loaded = torch.load(written, weights_only=True, mmap=mmap)["model"]
        assert list(loaded) == list(tensors())
        for key, tensor in tensors().items():
            assert tuple(loaded[key].shape) == tensor.shape and loaded[key].is_contiguous()
            np.testing.assert_array_equal(loaded[key].double().numpy(), tensor.astype(np.float64))


def test_what_torch_writes_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(4, 6)
    saved = torch.nn.Linear(3, 2).state_dict()  # an OrderedDict with attributes
    saved |= {"view": base[1:3, ::2], "turned": base.T, "wide": base[:1].expand(3, 6), "half": base.bfloat16()}
    saved["parameter"] = torch.nn.Parameter(base)
    torch.save(saved, tmp_path / "flat.pth")
    found = read_pth(tmp_path / "flat.pth")
    assert found.keys() == saved.keys()
    for key, tensor in saved.items():
        np.testing.assert_array_equal(found[key].read().astype(np.float64), tensor.detach().double().numpy())


def test_storages_lie_aligned_and_as_they_are(written):
    with zipfile.ZipFile(written) as archive, open(written, "rb") as file:
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            content = archive.read(info)
            file.seek(info.header_offset + 26)
            begin = info.header_offset + 30 + sum(np.frombuffer(file.read(4), "<u2").tolist())
            file.seek(begin)
            assert file.read(len(content)) == content and begin % 64 == 0
        assert archive.read("a/version") == b"3\n" and archive.read("a/byteorder") == b"little"


def test_the_pickle_speaks_as_torchs_does(written):
    """Its opcodes are those of a file that torch wrote: torch's safe unpickler knows few others."""

    def opcodes(file):
        with zipfile.ZipFile(file) as archive:
            listing = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            return {op.name for op, _, _ in pickletools.genops(archive.read(listing))}

    larger = {"BININT", "TUPLE3"}  # a size beyond 16 bits and a third dimension, which that file lacks
    assert opcodes(written) - larger <= opcodes(TORCH_FILE)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def pth_of(file, content: bytes | object):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", content if isinstance(content, bytes) else pickle.dumps(content))
        archive.writestr("a/data/0", bytes(16))
    return file


def tensor_pickle(
    arguments: bytes, storage: bytes = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\4tQ"
):
    """{"x": _rebuild_tensor_v2(storage, *arguments)}"""
    return b"\x80\2}X\1\0\0\0xctorch._utils\n_rebuild_tensor_v2\n(" + storage + arguments + b"tRs."


NO_HOOKS = b"\x89ccollections\nOrderedDict\n)R"


def test_the_hand_made_pickle_is_a_tensor(tmp_path):
    found = read_pth(pth_of(tmp_path / "a.pth", tensor_pickle(b"K\0K\2K\2\x86K\2K\1\x86" + NO_HOOKS)))
    assert_same(found["x"].read(), np.zeros((2, 2), np.float32))


@pytest.mark.parametrize("nested", [False, True])
def test_a_pickle_that_calls_is_refused_and_calls_nothing(tmp_path, nested):
    evil = Call(os.system, f"touch {tmp_path / 'called'}")
    content = {"model": {"x": {"y": [evil]}}} if nested else evil
    with pytest.raises(BadCheckpoint, match=re.escape(f"refuses to load {os.system.__module__}.system")):
        read_pth(pth_of(tmp_path / "a.pth", content))
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\x80\4\x8c\x05torch\x8c\x13_utils.os.system.ed\x93.", "torch._utils.os.system.ed"),
        (b"\x80\2ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", "_rebuild_tensor_v2.__globals__"),
        (b"\x80\2cbuiltins\neval\n(X\1\0\0\x001tR.", "builtins.eval"),
        (tensor_pickle(b"K\0cbuiltins\neval\n(X\4\0\0\x00(2,)tRK\1\x85" + NO_HOOKS), "builtins.eval"),
    ],
)
def test_a_global_within_is_refused(tmp_path, content, named):
    with pytest.raises(BadCheckpoint, match=re.escape(named)):
        read_pth(pth_of(tmp_path / "a.pth", content))


@pytest.mark.parametrize(
    "arguments",
    [
        b"K\0K\3K\2\x86K\2K\1\x86",  # six numbers of four
        b"K\1K\2K\2\x86K\2K\1\x86",  # offset
        b"K\0K\2K\2\x86M\xff\xffK\1\x86",  # strides
        b"J\xff\xff\xff\xffK\2K\2\x86K\2K\1\x86",  # before the storage
        b"K\1K\2K\2\x86J\xfe\xff\xff\xffK\1\x86",  # backwards out of it
        b"K\0K\2K\2\x86K\2\x85",  # fewer strides than dimensions
        b"K\0X\1\0\0\x001\x85K\1\x85",  # a text for a number
        b"K\0NN",
    ],
)
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, arguments):
    with pytest.raises(BadCheckpoint, match="x is damaged"):
        read_pth(pth_of(tmp_path / "a.pth", tensor_pickle(arguments + NO_HOOKS)))


@pytest.mark.parametrize("kept", [0.5, 0.99, 1 / 1000])
def test_a_truncated_file_gets_one_line(tmp_path, kept):
    whole = TORCH_FILE.read_bytes()
    (tmp_path / "a.pth").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(BadCheckpoint, match=r"^\S+a\.pth is cut short; is the download complete\?$"):
        read_pth(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "before 1.6"),
        (b"version https://git-lfs.github.com/spec/v1", "not a PyTorch checkpoint"),
        (b"", "not a PyTorch checkpoint"),
    ],
)
def test_other_files_are_told_apart(tmp_path, content, line):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=line):
        read_pth(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "line"),
    [({"model": {"epoch": 3}}, "epoch is not a tensor"), ([1], "no table"), (b"\x80\2}X", r"a\.pth: \S")],
)
def test_a_zip_of_something_else_is_refused(tmp_path, content, line):
    with pytest.raises(BadCheckpoint, match=line):
        read_pth(pth_of(tmp_path / "a.pth", content))


def test_a_zip_without_a_pickle_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a.txt", "")
    with pytest.raises(BadCheckpoint, match="without data.pkl"):
        read_pth(tmp_path / "a.pth")


def test_a_compressed_storage_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", tensor_pickle(b"K\0K\4\x85K\1\x85" + NO_HOOKS))
        archive.writestr("a/data/0", bytes(16))
    with pytest.raises(BadCheckpoint, match="compressed"):
        read_pth(tmp_path / "a.pth")


def test_a_dtype_without_a_storage_is_refused(tmp_path):
    with pytest.raises(BadCheckpoint, match="complex64"), PthWriter(tmp_path / "a.pth") as file:
        file.add("x", np.zeros(2, np.complex64))
    assert np.dtype(np.complex64) not in STORAGES.values()
