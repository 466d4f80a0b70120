"""PyTorch's `.pth` files without torch: a zip that stores every tensor as it is, beside one pickle of their shapes.

Only the tensor skeleton is unpickled, any other global is refused, and each tensor is read by byte range when it is
asked for; a memory-mapped file's touched pages would count as resident.
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from sphinx_jax.checkpoint.store import BadCheckpoint

STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "DoubleStorage": np.dtype(np.float64),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
}
STORAGE_OF = {dtype: storage for storage, dtype in STORAGES.items()}
ALIGNMENT = 64  # bytes, of a storage within the file
LOCAL_HEADER = 30  # bytes before a zip member's name
ZIP64_FIELD = 20  # bytes of the extra field of a member that is too large for 32-bit sizes


class Stored(Protocol):
    """A tensor at rest, in one place or put together from several."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows `start` to `stop` of the first axis; the whole tensor by default."""


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies; `read` fetches it."""

    file: Path
    header: int  # byte at which the zip member of its storage begins
    dtype: np.dtype
    offset: int  # in elements, as the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        shape, offset, size = self.shape, self.offset, self.dtype.itemsize
        if shape:
            start, stop, _ = slice(start, stop).indices(shape[0])
            shape, offset = (max(0, stop - start), *shape[1:]), offset + start * self.strides[0]
        with open(self.file, "rb") as file:
            # the name and the padding differ in length from what the zip's directory says
            file.seek(self.header + LOCAL_HEADER - 4)
            begin = self.header + LOCAL_HEADER + sum(struct.unpack("<HH", file.read(4)))
            file.seek(begin + offset * size)
            raw = np.fromfile(file, np.uint8, _extent(shape, self.strides) * size)
        if len(raw) < _extent(shape, self.strides) * size:
            raise BadCheckpoint(f"{self.file} ends within a tensor; is the download complete?")
        steps = [stride * size for stride in self.strides]
        return np.lib.stride_tricks.as_strided(raw.view(self.dtype), shape, steps, writeable=False)


def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last of a strided tensor."""
    return 0 if 0 in shape else 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))


class _Raw(NamedTuple):
    """What the pickle says of a tensor, unchecked."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


class _Skeleton(pickle.Unpickler):
    """Unpickles tensors as `_Raw` records and refuses everything that is not one."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return name
        if module == "torch._utils" and name in REBUILDS:
            return REBUILDS[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"refuses to load {module}.{name}, a checkpoint holds tensors alone")

    def persistent_load(self, key: Any) -> Any:
        return key


REBUILDS = {
    "_rebuild_tensor_v2": lambda storage, offset, shape, strides, *_: _Raw(storage, offset, shape, strides),
    "_rebuild_parameter": lambda tensor, *_: tensor,
}


def read_pth(file: str | Path) -> dict[str, Tensor]:
    """{key: tensor} of a `.pth` file, reading no tensor; the table `model` if it has one."""
    file = Path(file)
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            listing = next((name for name in members if name.endswith("/data.pkl")), None)
            if listing is None:
                raise BadCheckpoint(f"{file} is a zip without data.pkl, not a PyTorch checkpoint")
            with archive.open(listing) as stream:
                content = _unpickle(file, stream)
    except zipfile.BadZipFile:
        raise BadCheckpoint(_why_no_zip(file)) from None
    content = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{file} holds no table of tensors")
    folder = listing.removesuffix("data.pkl") + "data/"
    return {key: _placed(file, key, raw, members, folder) for key, raw in content.items()}


def _unpickle(file: Path, stream: Any) -> Any:
    try:
        return _Skeleton(stream).load()
    except Exception as error:  # a damaged pickle may raise anything
        raise BadCheckpoint(f"{file}: {error}") from None


def _why_no_zip(file: Path) -> str:
    with open(file, "rb") as stream:
        first = stream.read(2)
    if first[:1] == pickle.PROTO:
        return f"{file} has the format of PyTorch before 1.6; load it and save it again with a current PyTorch"
    if first == b"PK":
        return f"{file} is cut short; is the download complete?"
    return f"{file} is not a PyTorch checkpoint"


def _placed(file: Path, key: str, raw: Any, members: dict[str, zipfile.ZipInfo], folder: str) -> Tensor:
    """The tensor that a record of the pickle tells of, once the file is seen to hold it."""
    if not isinstance(raw, _Raw):
        raise BadCheckpoint(f"{file}: {key} is not a tensor")
    try:
        _, kind, name, _, _ = raw.storage
        dtype, member = STORAGES[kind], members[f"{folder}{name}"]
        numbers = (raw.offset, *raw.shape, *raw.strides)
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError("its shape is not of whole numbers")
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError("it is compressed; PyTorch stores tensors as they are")
        if (raw.offset + _extent(raw.shape, raw.strides)) * dtype.itemsize > member.file_size:
            raise ValueError("its storage is too small for its shape")
    except (KeyError, TypeError, ValueError) as error:
        raise BadCheckpoint(f"{file}: {key} is damaged ({error})") from None
    return Tensor(file, member.header_offset, dtype, raw.offset, tuple(raw.shape), tuple(raw.strides))


class PthWriter:
    """Writes {"model": {key: tensor}} tensor by tensor, as `torch.save` lays it out; a context manager."""

    def __init__(self, file: Path):
        self._stem, self._records = file.stem, b""
        self._file = open(file, "xb")  # noqa: SIM115  closed by __exit__
        self._zip = zipfile.ZipFile(self._file, "w")
        self._count = 0

    def add(self, key: str, tensor: np.ndarray) -> None:
        if tensor.dtype not in STORAGE_OF:
            raise BadCheckpoint(f"{key} is {tensor.dtype}; a .pth file holds {', '.join(map(str, STORAGE_OF))}")
        self._records += _record(key, tensor, self._count)
        self._member(f"data/{self._count}", tensor.reshape(-1).view(np.uint8).data)
        self._count += 1

    def _member(self, name: str, content: bytes | memoryview) -> None:
        info = zipfile.ZipInfo(f"{self._stem}/{name}")
        large = len(content) > zipfile.ZIP64_LIMIT
        header = LOCAL_HEADER + len(info.filename) + (ZIP64_FIELD if large else 0)
        padding = -(self._file.tell() + header + 4) % ALIGNMENT
        info.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)  # the field PyTorch pads with
        with self._zip.open(info, "w", force_zip64=large) as stream:
            stream.write(content)

    def __enter__(self) -> PthWriter:
        return self

    def __exit__(self, kind, *_) -> None:
        with self._file, self._zip:
            if kind is None:
                table = _plain("model") + pickle.EMPTY_DICT + pickle.MARK + self._records + pickle.SETITEMS
                self._member("data.pkl", PROTOCOL_2 + pickle.EMPTY_DICT + table + pickle.SETITEM + pickle.STOP)
                self._member("byteorder", b"little")
                self._member("version", b"3\n")


PROTOCOL_2 = pickle.PROTO + b"\x02"


def _plain(value: Any) -> bytes:
    """The opcodes that leave a plain value on the stack."""
    return pickle.dumps(value, 2).removeprefix(PROTOCOL_2).removesuffix(pickle.STOP)


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _call(function: bytes, *arguments: bytes) -> bytes:
    return function + pickle.MARK + b"".join(arguments) + pickle.TUPLE + pickle.REDUCE


def _record(key: str, tensor: np.ndarray, number: int) -> bytes:
    """The opcodes of key and tensor; without torch to import, no pickler can name its functions."""
    kind = _global("torch", STORAGE_OF[tensor.dtype])
    storage = _plain("storage"), kind, _plain(str(number)), _plain("cpu"), _plain(tensor.size)
    strides = tuple(math.prod(tensor.shape[axis + 1 :]) for axis in range(tensor.ndim))
    return _plain(key) + _call(
        _global("torch._utils", "_rebuild_tensor_v2"),
        pickle.MARK + b"".join(storage) + pickle.TUPLE + pickle.BINPERSID,
        _plain(0),
        _plain(tensor.shape),
        _plain(strides),
        pickle.NEWFALSE,
        _call(_global("collections", "OrderedDict")),
    )
