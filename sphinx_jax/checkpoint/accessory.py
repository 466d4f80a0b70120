"""The published checkpoints: folders of ``consolidated.*.pth`` files, read without torch.

A ``.pth`` is a zip that stores every tensor uncompressed beside one pickle of their shapes.  Only the tensor skeleton
is unpickled, any other global is refused, and each tensor is read by byte range when it is asked for.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from sphinx_jax.checkpoint.names import UNUSED, accessory_names
from sphinx_jax.config import (
    ConvNextConfig,
    DecoderConfig,
    ModelConfig,
    QFormerConfig,
    ViewsConfig,
    blip2_config,
    clip_config,
    dinov2_config,
    unknown,
)  # fmt: skip

DTYPES = {
    "FloatStorage": np.dtype(np.float32), "HalfStorage": np.dtype(np.float16), "DoubleStorage": np.dtype(np.float64),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16), "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies; ``read`` fetches it."""

    file: Path
    member: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self) -> np.ndarray:
        count = (
            1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)) if 0 not in self.shape else 0
        )
        with zipfile.ZipFile(self.file) as archive, archive.open(self.member) as stored:
            stored.seek(self.offset * self.dtype.itemsize)
            flat = np.frombuffer(stored.read(count * self.dtype.itemsize), self.dtype)
        steps = [s * self.dtype.itemsize for s in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)


class _Skeleton(pickle.Unpickler):
    """Unpickles tensors as ``Tensor`` records and refuses everything that is not one."""

    def __init__(self, stream, file: Path, prefix: str):
        super().__init__(stream)
        self.file, self.prefix = file, prefix

    def find_class(self, module: str, name: str):
        if module == "torch" and name in DTYPES:
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        raise pickle.UnpicklingError(f"{self.file}: refuses to load {module}.{name}; a checkpoint holds tensors alone")

    def persistent_load(self, key):
        _, storage, member, _, _ = key
        return storage, f"{self.prefix}/data/{member}"

    def rebuild(self, storage, offset, shape, strides, *_) -> Tensor:
        kind, member = storage
        return Tensor(self.file, member, DTYPES[kind], offset, tuple(shape), tuple(strides))


def read_pth(file: Path) -> dict[str, Tensor]:
    """{key: tensor} of a ``.pth`` file, reading no tensor."""
    try:
        with zipfile.ZipFile(file) as archive:
            listing = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            with archive.open(listing) as stream:
                content = _Skeleton(stream, Path(file), listing.rsplit("/", 1)[0]).load()
    except (zipfile.BadZipFile, StopIteration) as error:
        raise ValueError(f"{file} is not a PyTorch checkpoint ({error})") from None
    return content.get("model", content)


VIEWS = {
    "llama_ens": ViewsConfig(224),
    "llama_ens5": ViewsConfig(448, crops=2),
    "llama_ens5p2": ViewsConfig(448, crops=2),
    "llama_ens10": ViewsConfig(672, crops=3),
    "llama_ens_light": ViewsConfig(512, half_overview=True),
    "llama_ens5_light": ViewsConfig(1024, crops=2),
}


def read_config(folder: Path, vocab_size: int) -> ModelConfig:
    """The model of a published folder, from its ``meta.json`` and ``config.json``; full encoder sizes by default."""
    kind = json.loads((folder / "meta.json").read_text())["llama_type"]
    params = json.loads((folder / "config.json").read_text())
    decoder = DecoderConfig(
        dim=params["dim"], layers=params["n_layers"], heads=params["n_heads"], kv_heads=params.get("n_kv_heads"),
        vocab_size=params["vocab_size"] if params.get("vocab_size", -1) > 0 else vocab_size,
        multiple_of=params.get("multiple_of", 256), ffn_multiplier=params.get("ffn_dim_multiplier"),
        norm_eps=params.get("norm_eps", 1e-5), rope_theta=params.get("rope_theta", 10000.0),
        rope_scaling=params.get("rope_scaling"),
    )  # fmt: skip
    if kind == "llama":
        return ModelConfig(name=kind, decoder=decoder)
    if kind not in VIEWS:
        raise unknown("llama_type", kind, ["llama", *VIEWS])
    vision, light = params.get("vision", {}), kind.endswith("light")
    convnext = {k: tuple(v) for k, v in vision.get("convnext", {}).items()}
    convnext |= {"view_size": 512, "input_size": 512} if light else {}
    parts = {"convnext": ConvNextConfig(**convnext), "dinov2": dinov2_config(**vision.get("dinov2", {}))}
    if not light:
        parts["clip"] = clip_config(**vision.get("clip", {}))
        parts["blip2"] = blip2_config(**vision.get("blip2_vision", {}))
        parts["qformer"] = QFormerConfig(**vision.get("qformer", {}))
    return ModelConfig(
        name=kind, decoder=decoder, views=VIEWS[kind], pool_crops=2 if kind == "llama_ens5p2" else 1, **parts
    )


def read_leaves(file: Path, config: ModelConfig) -> dict[str, np.ndarray]:
    """All leaves of a one-file checkpoint.  A missing, unexpected or mis-shaped key is an error that lists the keys."""
    tensors = {key.removeprefix("llma."): tensor for key, tensor in read_pth(file).items()}
    names = list(accessory_names(config))
    missing = [n.foreign for n in names if n.foreign not in tensors]
    unexpected = sorted(tensors.keys() - {n.foreign for n in names} - set(UNUSED))
    if missing or unexpected:
        raise ValueError(f"{file}: missing keys {missing}; unexpected keys {unexpected}")
    leaves, layers = {}, {}
    for name in names:
        for path, array in zip(name.leaves, name.ours(tensors[name.foreign].read()), strict=True):
            if name.layer is None:
                leaves[path] = array
            else:
                layers.setdefault(path, {})[name.layer] = array
    return leaves | {path: np.stack([rows[i] for i in range(len(rows))]) for path, rows in layers.items()}
