"""Checkpoints from one form into another, one tensor in memory at a time.

Forms: `orbax` (ours), `accessory` (the published folders), `hf` (the decoder as Hugging Face keeps it).
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import math
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from sphinx_jax.checkpoint import store, stream
from sphinx_jax.checkpoint.casting import LOSSES, common_dtype, finite, is_finite, place_of
from sphinx_jax.checkpoint.foreign import accessory, accessory_write, assemble, huggingface_write
from sphinx_jax.checkpoint.foreign.foreign import Foreign
from sphinx_jax.checkpoint.foreign.huggingface_names import huggingface_names
from sphinx_jax.checkpoint.foreign.names import Index, Name
from sphinx_jax.checkpoint.foreign.pth import Stored
from sphinx_jax.config import ConfigError, ModelConfig, to_dict, unknown
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.model.blueprint import blueprint
from sphinx_jax.progress import progress
from sphinx_jax.sharding import MESH_AXES, make_mesh, partition_spec

FORMS = ("orbax", "accessory", "hf")
DTYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def known_dtype(name: str | None) -> np.dtype | None:
    """A dtype by its name or usual abbreviation; None is each tensor's own."""
    name = SHORT.get(name, name)
    if name is not None and name not in DTYPES:
        raise unknown("dtype", name, [*DTYPES, *SHORT])
    return DTYPES.get(name)


def known_losses(names: Iterable[str]) -> tuple[str, ...]:
    """What `--allow` names of a conversion: `nonfinite`, `underflow` (see `casting`)."""
    for name in names:
        if name not in LOSSES:
            raise unknown("thing to allow", name, LOSSES)
    return tuple(names)


def parse_mesh(text: str | None) -> dict[str, int]:
    """`fsdp=4,tensor=2` -> axis sizes."""
    try:
        return {axis: int(size) for axis, size in (part.split("=") for part in text.split(","))} if text else {}
    except ValueError:
        raise ConfigError(f"mesh {text!r} is not of the form fsdp=4,tensor=2") from None


def size_of(tensor: Stored | stream.LeafInfo, dtype: np.dtype | None) -> int:
    return math.prod(tensor.shape) * (dtype or tensor.dtype).itemsize


def describe(found: Foreign, dtype: np.dtype | None = None) -> Iterator[str]:
    """A line for every tensor of a foreign model that says where it goes, reading none, and the sum."""
    total = 0
    for name in found.names:
        tensor = found.tensors[name.foreign]
        total += size_of(tensor, dtype)
        place = "".join(f"[{i}]" for i in name.index)
        leaves = ", ".join(f"{leaf}{place}" for leaf in name.leaves)
        yield f"{name.foreign}  {tuple(tensor.shape)}  {size_of(tensor, dtype):,} B  ->  {leaves}"
    for key, tensor in found.unused.items():
        yield f"{key}  {tuple(tensor.shape)}  {size_of(tensor, None):,} B  ->  (unused; kept aside)"
    for path in found.missing:
        yield f"(nothing)  ->  {path}, born fresh"
    leaves = {leaf for name in found.names for leaf in name.leaves}
    yield f"{found.config.name}: {len(found.names)} tensors, {len(leaves)} leaves, {total:,} B"


def write(
    found: Foreign,
    out: str | Path,
    form: str,
    *,
    shards: int = 1,
    dtype: np.dtype | None = None,
    mesh: Mapping[str, int] | None = None,
    allow: Collection[str] = (),
    quiet: bool = False,
) -> Path:
    """A foreign model in any form; arguments and errors as of `to_checkpoint` and `write_form`."""
    if form == "orbax":
        return to_checkpoint(found, out, dtype=dtype, mesh=mesh, allow=allow, quiet=quiet)
    if found.missing:
        raise store.BadCheckpoint(f"{len(found.missing)} leaves are missing, the first is {found.missing[0]}")
    unused = {key: tensor.read() for key, tensor in found.unused.items()}
    return write_form(
        out,
        form,
        lambda path, index: read_rows(found, found.by_row[path, index], allow)[path],
        found.config,
        found.tokenizer,
        unused,
        shards=shards,
        dtype=dtype,
        own=found.dtypes,
        allow=allow,
        quiet=quiet,
    )


def to_checkpoint(
    found: Foreign,
    out: str | Path,
    *,
    dtype: np.dtype | None = None,
    mesh: Mapping[str, int] | None = None,
    allow: Collection[str] = (),
    quiet: bool = False,
) -> Path:
    """A foreign model as one of our checkpoints; what it lacks (see `allow_missing`) is born fresh.

    Run again after an interruption it goes on.  `mesh` (axis sizes) cuts every leaf along that mesh's shards, so that
    each device later reads whole chunks.

    Args:
      dtype: of every leaf; by default the one that holds all of its rows, whose tensors may differ.
      allow: `nonfinite` takes NaN and infinity as they are, `underflow` what is too small for the dtype.

    Raises:
      BadCheckpoint: a tensor holds NaN or infinity, or its values do not fit into the dtype; nothing is left.
    """
    specs = blueprint(found.config).specs
    missing = found.missing
    dtypes = {path: dtype or found.dtypes.get(path, np.dtype(np.float32)) for path in specs}
    chunks = shard_chunks(found.config, mesh, dtypes) if mesh else {}
    leaves = {path: (spec.shape, dtypes[path], *chunks.get(path, ())) for path, spec in specs.items()}
    files = source_files(found.folders)
    origin = {"files": [[str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]}
    origin |= {"dtype": str(dtype), "config": to_dict(found.config)}
    total = sum(size_of(found.tensors[name.foreign], dtype) for name in found.names)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        # the files' pages are in memory while their tensors are read
        digests = pool.submit(lambda: {f"{f.parent.name}/{f.name}": digest(f) for f in files})
        writer = stream.Writer(out, leaves, origin, allow)
        with progress(total=total, desc="converting", unit="B", unit_scale=True, disable=quiet) as bar:
            try:
                for name in found.names:
                    if not all(writer.is_done(path, name.index) for path in name.leaves):
                        for path, array in read_rows(found, name, allow).items():
                            writer.write(path, name.index, array)
                    bar.update(size_of(found.tensors[name.foreign], dtype))
            except store.BadCheckpoint:  # going on would meet the same tensor again
                writer.flush()
                shutil.rmtree(writer.folder)
                raise
        if missing:
            fresh = blueprint(found.config).init(make_mesh(devices=jax.devices()[:1]), only=missing)
            for path, leaf in fresh.items():
                writer.write(path, (), np.asarray(leaf))
        accessory.write_unused(writer.folder, found.unused)
        recipe = {"made_by": "convert", "sources": digests.result(), "dtype": str(dtype) if dtype else None}
        return writer.finish(found.config, found.tokenizer, recipe | {"born_fresh": missing})


def read_rows(found: Foreign, name: Name, allow: Collection[str] = ()) -> dict[str, np.ndarray]:
    """{leaf: its row} of a tensor; BadCheckpoint if it holds NaN or infinity (unless `allow` has `nonfinite`)."""
    tensor = found.tensors[name.foreign]
    array = tensor.read()
    if not is_finite(array):
        finite(array, f"{place_of(name.leaves[0], name.index)}: {name.foreign} of {_file_of(tensor)}", allow)
    return dict(zip(name.leaves, name.ours(array), strict=True))


def _file_of(tensor: Stored) -> Path:
    """The file that a tensor is in, or of its parts the first with NaN or infinity."""
    parts = [getattr(tensor, name) for name in ("base", "difference") if hasattr(tensor, name)]
    parts += getattr(tensor, "parts", ())
    bad = (part for part in parts if not is_finite(part.read()))
    return _file_of(next(bad, parts[0])) if parts else tensor.file


def shard_chunks(
    config: ModelConfig, mesh: Mapping[str, int], dtypes: Mapping[str, np.dtype]
) -> dict[str, tuple[tuple[int, ...]]]:
    """(chunk shape,) of each leaf, at most the shard that a device of the mesh holds."""
    sizes = dict.fromkeys(MESH_AXES, 1)
    for axis, size in mesh.items():
        if axis not in sizes:
            raise unknown("mesh axis", axis, sizes)
        if size < 1:
            raise ConfigError(f"mesh axis {axis} must have a size of 1 or more, not {size}")
        sizes[axis] = size
    abstract = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
    chunks = {}
    for path, spec in blueprint(config).specs.items():
        sharding = jax.sharding.NamedSharding(abstract, partition_spec(spec.axes, spec.shape, abstract))
        chunks[path] = (stream.choose_chunk_shape(sharding.shard_shape(spec.shape), dtypes[path].itemsize),)
    return chunks


def source_files(folders: Sequence[Path]) -> list[Path]:
    """The files that hold a foreign model's tensors."""
    return [file for folder in folders for file in sorted([*folder.glob("*.pth"), *folder.glob("*.safetensors")])]


def digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


# what is read -> the options that mean nothing there
IGNORED = {
    "assemble": {"config", "tokenizer", "quick_gelu", "allow_missing"},
    "a checkpoint of ours": {
        "mesh",
        "model",
        "config",
        "tokenizer",
        "quick_gelu",
        "allow_missing",
        "decoder",
        *assemble.ENCODERS,
    },
    "published files": {"decoder", *assemble.ENCODERS},
}


def check_options(source: str, form: str, given: Iterable[str]) -> None:
    """Refuse options that would do nothing: `given` are those on the command line, `source` a key of `IGNORED`.

    Raises:
      ConfigError: names the first of them.
    """
    reasons = dict.fromkeys(IGNORED[source], f"reading {source}")
    if form != "accessory":
        reasons["shards"] = f"writing --to {form}"
    if form != "orbax":
        reasons["mesh"] = f"writing --to {form}"
    if "dry_run" in given:
        reasons |= dict.fromkeys(("verify", "allow"), "a --dry-run")
    for name in given:
        if name in reasons:
            raise ConfigError(f"--{name.replace('_', '-')} does nothing for {reasons[name]}; leave it out")


def plan_lines(source: str | Path, form: str, shards: int = 1) -> Iterator[str]:
    """A line for every tensor that `from_checkpoint` would write, reading none; refused where that would be."""
    config = store.read_config(source)
    if form == "accessory":
        names, files = accessory_write.tensor_names(config, shards), f"{shards} file(s)"
    else:
        config = huggingface_write.plain_config(config)
        huggingface_write.transformers_config(config.decoder, "float32")
        names, files = list(huggingface_names(config)), "files of up to 5 GB"
    specs = blueprint(config).specs
    for name in names:
        place = "".join(f"[{i}]" for i in name.index)
        shape = name.blank(specs[name.leaves[0]].shape).shape
        yield f"{', '.join(f'{leaf}{place}' for leaf in name.leaves)}  ->  {name.foreign}  {tuple(shape)}"
    yield f"{config.name}: {len(names)} tensors in {files}"


def leaf_lines(source: str | Path) -> Iterator[str]:
    """A line for every leaf of one of our checkpoints, reading none."""
    total = 0
    for path, leaf in stream.Reader(source).leaves.items():
        size = size_of(leaf, None)
        total += size
        yield f"{path}  {tuple(leaf.shape)}  {leaf.dtype}  {size:,} B"
    yield f"{store.read_config(source).name}: {total:,} B"


def from_checkpoint(
    source: str | Path,
    out: str | Path,
    form: str,
    *,
    shards: int = 1,
    dtype: np.dtype | None = None,
    allow: Collection[str] = (),
    quiet: bool = False,
) -> Path:
    """One of our checkpoints as a published folder (`accessory`), or its decoder as a Hugging Face one (`hf`)."""
    if form == "orbax":
        raise ValueError(f"{source} is a checkpoint already; give --to accessory or --to hf")
    reader = stream.Reader(source)

    def read(path: str, index: Index) -> np.ndarray:
        return finite(reader.read(path, index), f"{place_of(path, index)} of {source}", allow)

    return write_form(
        out,
        form,
        read,
        store.read_config(source),
        store.read_tokenizer(source),
        accessory.read_unused(source),
        shards=shards,
        dtype=dtype,
        own={path: leaf.dtype for path, leaf in reader.leaves.items()},
        allow=allow,
        quiet=quiet,
    )


def write_form(
    out: str | Path,
    form: str,
    read: Callable[[str, Index], np.ndarray],
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    unused: Mapping[str, np.ndarray],
    *,
    shards: int,
    dtype: np.dtype | None,
    own: Mapping[str, np.dtype],
    allow: Collection[str] = (),
    quiet: bool = False,
) -> Path:
    """A model whose leaves `read` gives, in the form `accessory` or `hf`.

    Args:
      dtype: of all tensors; by default each has its own in the form `accessory`, and in the form `hf`, where a
        config names one, all have that which holds every one.
      own: dtypes of the leaves.
      allow: `underflow` takes values that are too small for the dtype.

    Raises:
      BadCheckpoint: values do not fit into the dtype.
    """
    total = sum(spec.size for spec in blueprint(config).specs.values())
    with progress(total=total, desc="writing", unit="value", unit_scale=True, disable=quiet) as bar:

        def counted(path: str, index: Index) -> np.ndarray:
            array = read(path, index)
            bar.update(array.size)
            return array

        if form == "accessory":
            return accessory_write.write_folder(
                out,
                counted,
                config,
                shards=shards,
                tokenizer=tokenizer,
                unused=unused,
                dtype=dtype and str(dtype),
                allow=allow,
            )
        dtype = dtype or common_dtype(kind for path, kind in own.items() if path.startswith("decoder/"))
        return huggingface_write.write(out, counted, config, tokenizer, dtype=str(dtype), allow=allow)
