"""The published checkpoints (LLaMA2-Accessory): folders of `consolidated.*.pth` files, one after the other.

A model is one folder or several: a base and what was trained on top of it, or a base and a difference to add.  Every
folder may be cut over any number of shards.  Nothing is read but what is asked for.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from sphinx_jax.checkpoint.foreign import shards
from sphinx_jax.checkpoint.foreign.accessory_config import TYPES, from_params, to_params
from sphinx_jax.checkpoint.foreign.names import UNUSED, Name, accessory_names, check_present
from sphinx_jax.checkpoint.foreign.pth import Stored, Tensor, read_pth
from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.config import FAMILY, ModelConfig, unknown
from sphinx_jax.model.blueprint import blueprint

PREFIX = "llma."
CONFIG, META, UNUSED_FILE = "config.json", "meta.json", "unused.safetensors"
PARAMS = "params.json"  # Meta's own folders
# Meta's own files number their shards, the others also say how many there are
FILE = re.compile(r"consolidated\.(\d+)(?:-of-(\d+)\.(model|model-diff))?\.pth")
COMPUTED = "rope.freqs"  # in Meta's files, follows from the config


@dataclass(frozen=True)
class Sum:
    """A tensor and the difference to add to it, in the tensor's own dtype."""

    base: Stored
    difference: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> np.dtype:
        return self.base.dtype

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return (self.base.read(start, stop) + self.difference.read(start, stop)).astype(self.dtype)


def open_folders(folders: Sequence[str | Path]) -> dict[str, Stored]:
    """{key without prefix: tensor} of published folders, reading no tensor.

    A later folder overrides an earlier one key by key; one of `*.model-diff.pth` files adds to what is there.
    """
    tensors: dict[str, Stored] = {}
    for folder in map(Path, folders):
        files, adds = _files(folder)
        parts = [_without_prefix(read_pth(file)) for file in files]
        experts, norm = _experts(tensors | parts[0]), parts[0].get("norm.weight")
        width = norm.shape[0] if norm else None
        for key in dict.fromkeys(key for part in parts for key in part):
            tensor = shards.join(key, [part.get(key) for part in parts], experts, width)
            tensors[key] = _added(folder, key, tensors.get(key), tensor) if adds else tensor
    return tensors


def _files(folder: Path) -> tuple[list[Path], bool]:
    """The shards of a folder in order, and whether they hold a difference."""
    found = {match: folder / match[0] for path in sorted(folder.glob("*.pth")) if (match := FILE.fullmatch(path.name))}
    if not found:
        raise BadCheckpoint(f"{folder} holds no consolidated.*.pth" if folder.is_dir() else f"{folder} is no folder")
    kinds = {(match[2], match[3]) for match in found}
    if len(kinds) > 1:
        raise BadCheckpoint(f"{folder} holds more than one checkpoint: {', '.join(p.name for p in found.values())}")
    ((of, kind),) = kinds
    count = int(of or len(found))
    missing = sorted(set(range(count)) - {int(match[1]) for match in found})
    if missing:
        raise BadCheckpoint(f"{folder} lacks shards {missing} of {count}")
    return list(found.values()), kind == "model-diff"


def _without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
    plain.pop(COMPUTED, None)
    return plain


def _experts(tensors: Mapping[str, Stored]) -> int:
    return next((t.shape[0] for key, t in tensors.items() if key.endswith("feed_forward.gate.weight")), 0)


def _added(folder: Path, key: str, base: Stored | None, difference: Stored) -> Stored:
    if base is None:
        raise BadCheckpoint(f"{folder} has a difference for {key}, which no folder before it has")
    if base.shape != difference.shape:
        raise BadCheckpoint(f"{folder}: the difference for {key} is {difference.shape}, the tensor {base.shape}")
    return Sum(base, difference)


def last_with(folders: Sequence[str | Path], *names: str) -> Path | None:
    """The last folder that has one of these files: where the configuration and the tokenizer come from."""
    found = [Path(folder) for folder in folders if any((Path(folder) / name).is_file() for name in names)]
    return found[-1] if found else None


def read_config(
    folders: Sequence[str | Path],
    vocab_size: int,
    *,
    model: str | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    quick_gelu: bool | None = None,
) -> ModelConfig:
    """The model of published folders.

    A folder of Meta's own, which has a `params.json` and no `meta.json`, is a `llama`.  Early folders lack
    `meta.json` and `config.json`; then `model` is the `llama_type` or a name of the family, which brings its
    sizes along, and `config` the content of `config.json` or its path.  Both go before what the folders say.
    `quick_gelu` is CLIP's activation, which differs by release date; the default is the erf GELU.
    """
    params = config if isinstance(config, Mapping) else _json(folders, CONFIG, config) or _json(folders, PARAMS)
    if model is None:
        meta = _json(folders, META)
        if meta is None and len(folders) == 1 and last_with(folders, PARAMS):
            meta = {"llama_type": "llama"}
        if "llama_type" not in (meta or {}):
            raise BadCheckpoint(f"{_listed(folders)}: no {META} says which model this is; give model=, as 'llama_ens5'")
        model = meta["llama_type"]
    elif model in FAMILY:
        model, usual = to_params(FAMILY[model])
        params = usual if params is None else params
    elif model not in TYPES:
        raise unknown("model", model, [*TYPES, *FAMILY])
    if params is None:
        raise BadCheckpoint(
            f"{_listed(folders)}: no {CONFIG} says the model's sizes; give config=, or a model= by name"
        )
    found = from_params(model, params, vocab_size)
    if quick_gelu is None or found.clip is None:
        return found
    clip = dataclasses.replace(found.clip, activation="quick_gelu" if quick_gelu else "gelu")
    return dataclasses.replace(found, clip=clip)


def _json(folders: Sequence[str | Path], name: str, file: str | Path | None = None) -> dict[str, Any] | None:
    folder = last_with(folders, name)
    file = file or (folder and folder / name)
    if file is None:
        return None
    try:
        table = json.loads(Path(file).read_text())
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{file} is not a table of JSON ({error})") from None
    if not isinstance(table, dict):
        raise BadCheckpoint(f"{file} is not a table of JSON")
    return table


def _listed(folders: Sequence[str | Path]) -> str:
    return ", ".join(map(str, folders))


def checked_names(tensors: Mapping[str, Stored], config: ModelConfig, allow_missing: Iterable[str] = ()) -> list[Name]:
    """The published names of the model, in whichever layout of experts the tensors have, checked."""
    dense_experts = any(shards.EXPERT.fullmatch(key) for key in tensors)
    names = accessory_names(config, dense_experts)
    return check_present(names, tensors, blueprint(config).specs, UNUSED, allow_missing, f"the model {config.name!r}")


def unused(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors that the published files hold and no model reads, kept for the way back."""
    return {key: tensors[key] for key in UNUSED if key in tensors}


def write_unused(folder: str | Path, tensors: Mapping[str, Stored]) -> None:
    """Put `unused` tensors beside a checkpoint's `model.json`."""
    if tensors:
        arrays = {key: np.asarray(tensor.read(), order="C") for key, tensor in tensors.items()}
        save_file(arrays, Path(folder) / UNUSED_FILE)


def read_unused(folder: str | Path) -> dict[str, np.ndarray]:
    """What `write_unused` put into a folder; nothing if it did not."""
    file = Path(folder) / UNUSED_FILE
    return load_file(file) if file.is_file() else {}
