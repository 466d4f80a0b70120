"""A model in somebody else's files: published folders or Hugging Face's, opened but not read."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sphinx_jax.checkpoint.casting import common_dtypes
from sphinx_jax.checkpoint.foreign import accessory, huggingface
from sphinx_jax.checkpoint.foreign.names import Index, Name
from sphinx_jax.checkpoint.foreign.pth import Stored
from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.config import ModelConfig
from sphinx_jax.data.conversation import STOP
from sphinx_jax.data.conversation_form import STOPS, dumped
from sphinx_jax.data.tokenizer import Tokenizer, check_fits, from_files, has_tokenizer, load_tokenizer
from sphinx_jax.data.tokenizer_files import GENERATION, MODEL_FILE, read_files, special_tokens
from sphinx_jax.model.blueprint import blueprint


@dataclass(frozen=True)
class Foreign:
    folders: tuple[Path, ...]
    config: ModelConfig
    names: tuple[Name, ...]  # of the tensors that are there
    tensors: Mapping[str, Stored]
    tokenizer: Tokenizer | None
    unused: Mapping[str, Stored] = field(default_factory=dict)  # kept for the way back

    @property
    def missing(self) -> list[str]:
        """Leaves of the model that the files lack."""
        return sorted(blueprint(self.config).specs.keys() - {leaf for name in self.names for leaf in name.leaves})

    @functools.cached_property
    def dtypes(self) -> dict[str, np.dtype]:
        """Of each leaf: what holds all its rows, whose tensors may differ."""
        return common_dtypes((path, self.tensors[name.foreign].dtype) for name in self.names for path in name.leaves)

    def row(self, path: str, index: Index) -> np.ndarray:
        """The leaf at a place in its leading axes."""
        name = self.by_row[path, index]
        return name.ours(self.tensors[name.foreign].read())[name.leaves.index(path)]

    @functools.cached_property
    def by_row(self) -> dict[tuple[str, Index], Name]:
        """The tensor that holds a leaf at a place in its leading axes."""
        return {(path, name.index): name for name in self.names for path in name.leaves}

    def leaves(self, dtypes: Mapping[str, Any] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """Whole leaves, those that lie packed together at once.

        `dtypes`: of leaves that are wanted in another dtype than the files'; each tensor is cast as it is read.
        """
        specs = blueprint(self.config).specs
        groups: dict[tuple[str, ...], list[Name]] = {}
        for name in self.names:
            groups.setdefault(name.leaves, []).append(name)
        for paths, names in groups.items():
            whole = [
                np.empty(specs[path].shape, (dtypes or self.dtypes).get(path, self.dtypes[path])) for path in paths
            ]
            for name in names:
                for leaf, array in zip(whole, name.ours(self.tensors[name.foreign].read()), strict=True):
                    leaf[name.index] = array
            yield from zip(paths, whole, strict=True)


def is_foreign(folder: Path) -> bool:
    return any(folder.glob("consolidated.*.pth")) or huggingface.is_folder(folder)


def open_foreign(
    folders: Sequence[str | Path],
    *,
    model: str | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    tokenizer: str | Path | None = None,
    quick_gelu: bool | None = None,
    allow_missing: Iterable[str] = (),
) -> Foreign:
    """Open a published model (one folder, or several in order) or a Hugging Face folder, reading no array.

    `model` (a `llama_type` or a name of the family), `config` (`config.json` or its content) and `tokenizer`
    (a file or folder) replace what early folders lack; `quick_gelu` is CLIP's activation, which differs by release.
    """
    folders = tuple(map(Path, folders))
    listing = folders[0] if len(folders) == 1 and folders[0].suffix == ".json" else None
    for folder in folders:
        if folder == listing:
            continue
        if not folder.is_dir():
            raise BadCheckpoint(f"{folder} is no folder")
        if not is_foreign(folder):
            raise BadCheckpoint(f"{folder} holds neither consolidated.*.pth nor .safetensors with their config.json")
    words = find_tokenizer(folders, tokenizer)
    if len(folders) == 1 and huggingface.is_folder(folders[0]):
        return _huggingface(folders[0], words)
    tensors = read_listing(listing) if listing else accessory.open_folders(folders)
    if "tok_embeddings.weight" in tensors:
        vocabulary = tensors["tok_embeddings.weight"].shape[0]
    else:
        vocabulary = 32000 if words is None else words.vocab_size
    found = accessory.read_config(folders, vocabulary, model=model, config=config, quick_gelu=quick_gelu)
    if words is not None:
        check_fits(words, found.decoder.vocab_size)
    names = accessory.checked_names(tensors, found, allow_missing)
    return Foreign(folders, found, tuple(names), tensors, words, accessory.unused(tensors))


def _huggingface(folder: Path, words: Tokenizer | None) -> Foreign:
    config, tensors = huggingface.read_config(folder), huggingface.open_folder(folder)
    if config.decoder.tied_embeddings:
        tensors = huggingface.shared(tensors)
    if words is not None:
        check_fits(words, config.decoder.vocab_size)
    names = huggingface.checked_names(tensors, config)
    return Foreign((folder,), config, tuple(names), tensors, words)


@dataclass(frozen=True)
class Listed:
    """A tensor of which no more than the shape is known."""

    shape: tuple[int, ...]
    dtype: np.dtype = np.dtype(ml_dtypes.bfloat16)  # as the released files

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        raise BadCheckpoint("a listing of keys holds no arrays; it serves --dry-run alone")


def read_listing(file: Path) -> dict[str, Stored]:
    """{key: tensor} of a JSON list of [key, shape], with or without the prefix of the published files."""
    try:
        listed = {
            key.removeprefix(accessory.PREFIX): Listed(tuple(shape)) for key, shape, *_ in json.loads(file.read_text())
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BadCheckpoint(f"{file} is not a list of [key, shape] ({error})") from None
    return {key: tensor for key, tensor in listed.items() if key != accessory.COMPUTED}


def find_tokenizer(folders: Sequence[Path], given: str | Path | None) -> Tokenizer | None:
    """The tokenizer given, or that of the last folder that has one; None where none has.

    A Hugging Face folder without a `generation_config.json` may name what ends a text in its `config.json`: several
    ids count, as in transformers; one, which may be no more than a default, where the tokenizer knows none.
    """
    if given is None:
        given = next((folder for folder in reversed(folders) if has_tokenizer(folder)), None)
    folder = None if given is None else Path(given)
    if folder is None or not folder.is_dir():
        return None if folder is None else load_tokenizer(given)
    files, named = read_files(folder), huggingface.named_ends(folder)
    known = MODEL_FILE in files or "eos_token" in special_tokens(files, str(folder))
    if not files or GENERATION in files or not named or (known and not isinstance(named["eos_token_id"], list)):
        return load_tokenizer(folder)
    return from_files(files | {GENERATION: dumped(named | {STOPS: [STOP]})}, str(folder))
