"""Checkpoints of any form and size -> the checkpoint of their mix.

A matrix is read, mixed and written in slices of a few rows, so that memory stays the same for any model.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from sphinx_jax.checkpoint import store, stream
from sphinx_jax.checkpoint.foreign import accessory, convert
from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.progress import progress
from sphinx_jax.weight_mix.mixer import Mixer
from sphinx_jax.weight_mix.settings import Mix, to_json
from sphinx_jax.weight_mix.sources import MixSource, content_hash


def write(
    mix: Mix,
    out: str | Path,
    *,
    form: str = "orbax",
    shards: int = 1,
    process: int = 0,
    processes: int = 1,
    expected: Mapping[str, str] | None = None,
    quiet: bool = False,
) -> Path:
    """Mixes checkpoints into one; `out` appears when it is complete.

    Called again after an interruption it goes on, passing over what is done (in the form `orbax`).

    Args:
      form: `orbax` (ours; of plain Orbax checkpoints, a plain one), `accessory` or `hf`.
      shards: files of a published folder.
      process: this one of `processes` that share the work, each with the same arguments; 0 waits for the others and
        finishes.
      expected: {source: content hash}, as `recipe.json` holds them; another content is refused.

    Raises:
      BadCheckpoint: a source is incomplete, does not fit, is a model of another kind, or holds NaN or infinity; or the
        dtype cannot hold what comes out.
      WriteFailed: the disk is full; run again to go on.
    """
    out = new_folder(out, (*mix.sources, *filter(None, [mix.base])))
    scratch = out.with_name(f"{out.name}.scratch-{os.getpid()}")
    try:
        mixer = Mixer(mix, scratch)
        mixer.check_config()
        if expected is not None:
            for name, found in _hashes(mixer).items():
                if expected.get(name) != found:
                    raise BadCheckpoint(f"{name} has changed since the recipe was written")
        with ThreadPoolExecutor(1) as pool:
            hashes = pool.submit(lambda: expected or _hashes(mixer)) if process == 0 else None
            if form == "orbax":
                return _write_orbax(mixer, out, process, processes, hashes, quiet)
            if mixer.config is None:
                raise BadCheckpoint(f"checkpoints of other programs have no form {form!r}; leave out --to")
            if processes > 1:
                raise BadCheckpoint(f"several processes write the form orbax; convert that to {form} afterwards")
            done = convert.write_form(
                out,
                form,
                mixer.whole,
                mixer.config,
                mixer.tokenizer(),
                mixer.sources[0].unused(),
                shards=shards,
                dtype=convert.known_dtype(mix.dtype),
                allow=mix.allow,
                quiet=quiet,
                own={path: leaf.dtype for path, leaf in mixer.leaves.items()},
            )
            (done / store.RECIPE).write_text(json.dumps(to_json(mix) | {"hashes": hashes.result()}, indent=2))
            return done
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def new_folder(out: str | Path, sources: Iterable[str]) -> Path:
    """The absolute path of a folder to write; BadCheckpoint if it exists or lies in a source."""
    out = Path(out).resolve()
    if out.exists():
        raise BadCheckpoint(f"{out} exists already; give a new folder")
    if any(out.is_relative_to(Path(source).resolve()) for source in sources):
        raise BadCheckpoint(f"{out} lies in a source; sources are never touched")
    return out


def _hashes(mixer: Mixer) -> dict[str, str]:
    """{source as the recipe names it: content hash}."""
    named = [*mixer.mix.sources, *filter(None, [mixer.mix.base])]
    opened = [*mixer.sources, *filter(None, [mixer.base])]
    return {name: content_hash(s.files(), s.folder) for name, s in zip(named, opened, strict=True)}


def _write_orbax(
    mixer: Mixer, out: Path, process: int, processes: int, hashes: Future[dict[str, str]] | None, quiet: bool
) -> Path:
    begun = out.with_name(f"{out.name}.unfinished")
    same = to_json(dataclasses.replace(mixer.mix, sources=("",) * len(mixer.sources), base=None))
    origin = same | {"files": {name: _stamps(source) for name, source in mixer.named.items()}}
    writer = stream.Writer(begun, mixer.leaves, origin, mixer.mix.allow)
    mine = mixer.paths[process::processes]
    try:
        with progress(total=sum(map(mixer.size, mine)), desc="mixing", unit="B", unit_scale=True, disable=quiet) as bar:
            for path in mine:
                count = math.prod(mixer.leaves[path].shape[: mixer.stacked(path)])
                for index in mixer.matrices(path):
                    if not writer.is_done(path, index):
                        for place, part in mixer.rows(path, index):
                            writer.write(path, (*index, *place), part)
                    bar.update(mixer.size(path) / count)
    except BadCheckpoint:
        if processes == 1:  # going on would meet the same source again
            writer.flush()
            shutil.rmtree(begun)
        raise
    writer.flush()
    if process:
        return begun
    while processes > 1 and writer.unwritten():  # by the others
        time.sleep(0.5)
    accessory.write_unused(begun, mixer.sources[0].unused())
    recipe = to_json(mixer.mix) | {"hashes": hashes.result()}
    writer.finish(mixer.config, mixer.tokenizer(), recipe, mixer.tree())
    return begun.rename(out)


def _stamps(source: MixSource) -> list[list]:
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in source.files()]
