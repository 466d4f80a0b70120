"""`from_pretrained`: whatever holds a model becomes one to talk to."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.few_bits import quantised, restore_quantised
from sphinx_jax.checkpoint.foreign.convert import known_dtype
from sphinx_jax.checkpoint.foreign.foreign import Foreign, is_foreign, open_foreign
from sphinx_jax.config import ModelConfig
from sphinx_jax.data.tokenizer import check_fits, load_tokenizer
from sphinx_jax.generate import arguments
from sphinx_jax.generate.arguments import BadArgument
from sphinx_jax.generate.sphinx import Sphinx
from sphinx_jax.model.blueprint import apart, blueprint, held_dtypes
from sphinx_jax.model.quantise import MATRICES, check_kind
from sphinx_jax.paths import located
from sphinx_jax.sharding import serving_mesh


def from_pretrained(
    folder: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    mesh: Mesh | None = None,
    dtype: str | None = None,
    model: str | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    tokenizer: str | Path | None = None,
    quick_gelu: bool | None = None,
    quantize: str | None = None,
    cache: Literal["int8", "whole"] | None = None,
) -> Sphinx:
    """Load a model.

    Args:
      folder: one of our checkpoints; a recipe's workdir (its last trained stage) or the folder of one of its training
        stages; a published folder or a list of them, later ones on top of earlier ones; a Hugging Face folder.
      mesh: where it lies; default: all devices, as `serving_mesh` lays them out.
      dtype: what it computes in and what its weights are held in, as `bfloat16` or `bf16`; default: as the
        checkpoint says, float32 for the files of others.
      model: of a published folder without `meta.json`, a `llama_type` or a name of the family (`sphinx_1k`).
      config: of one without `config.json`, that file or its content.
      tokenizer: file or folder, in place of the folder's own.
      quick_gelu: CLIP's activation of a published folder, which differs by release date.
      quantize: `int8` or `nf4`: the matrices of the decoder's layers in so many bits, all else in the compute
        dtype, which is bfloat16 by default then (float32 on a CPU).
      cache: `int8`: keys and values of what was read and said in 8 bits, each vector with a scale of its own; `whole`:
        as they are computed; default: as the checkpoint says, which is whole where training said nothing.

    Raises:
      BadArgument, BadCheckpoint, ConfigError: one line on what is missing or does not fit.
    """
    if cache is not None:
        arguments.check_one_of("cache", cache, ("int8", "whole"))
    folders, compute = _folders(folder), known_dtype(dtype)
    if quantize is not None:
        check_kind(quantize)
        compute = compute or known_dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")
    if len(folders) > 1 or is_foreign(folders[0]):
        foreign = open_foreign(folders, model=model, config=config, tokenizer=tokenizer, quick_gelu=quick_gelu)
        held = _held(foreign.config, compute, cache)
        mesh = mesh or serving_mesh(held.decoder)
        dtypes = held_dtypes(held)
        if quantize is None:
            return Sphinx(held, apart(place(foreign, mesh, dtypes)), foreign.tokenizer, mesh)
        whole = {path: dtype for path, dtype in dtypes.items() if path not in MATRICES}
        leaves = quantised(foreign.leaves(whole), mesh, blueprint(held), quantize, whole)
        return Sphinx(held, apart(leaves), foreign.tokenizer, mesh)
    given = {"model": model, "config": config, "quick_gelu": quick_gelu}
    if named := [key for key, value in given.items() if value is not None]:
        raise ValueError(
            f"{named[0]}= applies to published folders; {folders[0]} stores its own config: leave {named[0]} out"
        )
    found = _checkpoint(folders[0])
    words = store.read_tokenizer(found) if tokenizer is None else load_tokenizer(tokenizer)
    held = _held(store.read_config(found), compute, cache)
    mesh = mesh or serving_mesh(held.decoder)
    if words is not None:
        check_fits(words, held.decoder.vocab_size)
    plan, dtypes = blueprint(held), held_dtypes(held)
    if quantize is None:
        return Sphinx(held, apart(store.restore(found, mesh, plan, dtypes=dtypes)), words, mesh)
    return Sphinx(held, apart(restore_quantised(found, mesh, plan, quantize, dtypes)), words, mesh)


def check_holds_model(folder: str | os.PathLike) -> None:
    """Raises BadCheckpoint, in one line, where `from_pretrained` would find no model; loads none."""
    (found,) = _folders(folder)
    if not is_foreign(found):
        _checkpoint(found)


def _checkpoint(folder: Path) -> Path:
    found = folder if store.is_complete(folder) else last_checkpoint(folder)
    if found is None:
        raise store.BadCheckpoint(
            f"{folder} holds no model: no checkpoint, workdir with one, consolidated.*.pth or safetensors"
        )
    return found


def place(found: Foreign, mesh: Mesh, dtypes: Mapping[str, str] | None = None) -> dict[str, jax.Array]:
    """Read a foreign model leaf by leaf onto a mesh, in these `dtypes`; default: the files' own."""
    shardings = blueprint(found.config).shardings(mesh)
    return {path: jax.device_put(array, shardings[path]) for path, array in found.leaves(dtypes)}


def _folders(given: Any) -> list[Path]:
    """The folders given, all of them there; of a training stage's its checkpoint."""
    paths = [given] if isinstance(given, str | os.PathLike) else given
    if not isinstance(paths, Sequence) or not paths or not all(isinstance(each, str | os.PathLike) for each in paths):
        raise BadArgument(f"folder must be a path, or a list of one path or more, not {short(given)}")
    folders = [located(each) for each in paths]
    for folder in folders:
        if not folder.exists():
            raise store.BadCheckpoint(f"{folder} does not exist{_nearest(folder)}")
        if not folder.is_dir():
            raise store.missing(folder)
    return [store.chosen_in(folder) for folder in folders]


def _nearest(missing: Path) -> str:
    """The end of a message that names the path meant, if one is alike."""
    # the first part of the path that is not there may be the one that is misspelt
    first = next(path for path in [*reversed(missing.parents), missing] if not path.exists())
    near = difflib.get_close_matches(first.name, [path.name for path in first.parent.glob("*/")], n=1)
    return f"; did you mean {first.parent / near[0] / missing.relative_to(first)}?" if near else ""


def _held(config: ModelConfig, dtype: np.dtype | None, cache: Literal["int8", "whole"] | None) -> ModelConfig:
    """The config with what is chosen where a model is loaded."""
    decoder = config.decoder
    if cache is not None:
        decoder = dataclasses.replace(decoder, cache="" if cache == "whole" else cache)
    return dataclasses.replace(config, decoder=decoder, dtype=config.dtype if dtype is None else str(dtype))


def last_checkpoint(workdir: Path) -> Path | None:
    """The checkpoint of the last stage of the recipe that has one: its newest, or its best where it keeps that."""
    config = workdir / "config.json"
    if not config.is_file():
        return None
    found = (store.chosen(workdir / stage / "checkpoints") for stage in reversed(read_stages(config)))
    return next(filter(None, found), None)


def trained_checkpoint(workdir: Path) -> Path:
    """That checkpoint.  Raises BadCheckpoint where there is none yet."""
    found = last_checkpoint(workdir)
    if found is None:
        raise store.BadCheckpoint(f"{workdir} has no checkpoint yet; run its recipe first")
    return found


def read_stages(config: Path) -> list[str]:
    try:
        return json.loads(config.read_text())["stages"]
    except (ValueError, LookupError, TypeError):
        raise store.BadCheckpoint(f"{config} is not the config of a workdir") from None
