"""The files of an Orbax checkpoint, for what goes to the arrays without Orbax.

Read in Orbax 0.12.8: ``orbax/checkpoint/_src/metadata/{tree,array_metadata_store,sharding}.py`` (what is written beside
the arrays) and ``_src/serialization/tensorstore_utils.py`` (how the arrays lie).  An array's name is its path joined by
dots.
"""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from sphinx_jax.checkpoint.store import BadCheckpoint

STATE = "state"
INDEX_CACHE = "ocdbt"
STRING_KEY = 2  # Orbax's number for a dict's key
# as the leaves of a one-device mesh; whoever restores onto a mesh gives their own
ONE_DEVICE = json.dumps({
    "sharding_type": "NamedSharding", "shape": [1], "axis_names": ["data"], "axis_types": ["AxisType.Auto"],
    "partition_spec": [], "device_mesh": {"mesh": [{"id": 0}]},
})  # fmt: skip


def find_state(folder: Path) -> Path:
    """The folder of arrays in a checkpoint: itself, its ``state``, or the only one that it has."""
    if not folder.is_dir():
        raise BadCheckpoint(f"{folder} does not exist; give a checkpoint's folder")
    found = sorted(metadata.parent for metadata in (*folder.glob("_METADATA"), *folder.glob("*/_METADATA")))
    for state in found:
        if state in (folder, folder / STATE) or len(found) == 1:
            return state
    if found:
        raise BadCheckpoint(f"{folder} has several parts; give one of {', '.join(map(str, found))}")
    raise BadCheckpoint(f"{folder} is no Orbax checkpoint (no _METADATA in it); of several steps give one's folder")


def array_specs(state: Path) -> dict[str, dict[str, Any]]:
    """{leaf path: tensorstore spec} of all arrays and numbers; other values (strings, None) are left out."""
    try:
        metadata = json.loads((state / "_METADATA").read_text())
        entries = [(e["key_metadata"], e["value_metadata"]["value_type"]) for e in metadata["tree_metadata"].values()]
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise BadCheckpoint(f"{state / '_METADATA'} is damaged: {error!r}") from None
    in_database = metadata.get("use_ocdbt")
    if in_database is None:
        in_database = (state / "manifest.ocdbt").exists()
    specs = {}
    for keys, kind in entries:
        if kind not in ("jax.Array", "np.ndarray", "scalar"):
            continue
        keys = [str(key["key"]) for key in keys]
        name = ".".join(keys)
        specs["/".join(keys)] = {
            "driver": "zarr3" if metadata.get("use_zarr3") else "zarr",
            "kvstore": database(state, name) if in_database else {"driver": "file", "path": f"{state / name}/"},
            # where Orbax stored zeros too, a missing chunk is damage
            "fill_missing_data_reads": not metadata.get("store_array_data_equal_to_fill_value", False),
        }
    return specs


def database(state: Path, name: str | None = None) -> dict[str, Any]:
    """The key-value store of all arrays, or of one."""
    spec = {
        "driver": "ocdbt",
        "base": {"driver": "file", "path": f"{state}/"},
        "cache_pool": f"cache_pool#{INDEX_CACHE}",
    }
    return spec if name is None else spec | {"path": f"{name}/"}


def new_array_spec(
    state: Path, path: str, shape: tuple[int, ...], dtype: np.dtype, chunk_shape: tuple[int, ...]
) -> dict[str, Any]:
    """An array as Orbax would lay it out, but for three settings.

    zstd level 1 stores bfloat16 weights in as many bytes as Orbax's 3 and in half the time; its checksum, which Orbax
    leaves out, tells damage.  Every commit rewrites a node of the index, and many commits make the store, so nodes are
    small.
    """
    config = {"max_inline_value_bytes": 1024, "max_decoded_node_bytes": 2**16, "manifest_kind": "single"}
    little, crc = {"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}
    sharding = {
        "chunk_shape": chunk_shape,
        "codecs": [little, {"name": "zstd", "configuration": {"level": 1, "checksum": True}}],
        "index_codecs": [little, crc],
        "index_location": "end",
    }
    return {
        "driver": "zarr3",
        "kvstore": database(state, path.replace("/", ".")) | {"config": config},
        "dtype": dtype.name,
        "metadata": {
            "shape": shape,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape}},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        },
        "store_data_equal_to_fill_value": True,
    }


def chunk_key(path: str, at: tuple[int, ...]) -> str:
    """Where the database keeps the chunk at a position of the grid."""
    return "/".join([path.replace("/", "."), "c", *map(str, at)])


def write_metadata(folder: Path, leaves: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    """What Orbax needs beside the arrays of ``folder/state``, of {path: (shape, chunk shape)}."""
    state, now = folder / STATE, time.time_ns()
    tree, arrays, shardings = {}, [], {}
    for path in sorted(leaves, key=lambda path: path.split("/")):
        keys, name = path.split("/"), path.replace("/", ".")
        shape, chunk_shape = leaves[path]
        tree[str(tuple(keys))] = {
            "key_metadata": [{"key": key, "key_type": STRING_KEY} for key in keys],
            "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False, "write_shape": shape},
        }
        arrays.append({"param_name": name, "write_shape": shape, "chunk_shape": chunk_shape, "ext_metadata": None})
        shardings[base64.b64encode(name.encode()).decode()] = ONE_DEVICE
    (state / "array_metadatas").mkdir(exist_ok=True)
    arrays = {"array_metadatas": [{"array_metadata": array} for array in arrays]}
    (state / "array_metadatas" / "process_0").write_text(json.dumps(arrays))
    (state / "_sharding").write_text(json.dumps(shardings, separators=(",", ":")))
    tree = {
        "tree_metadata": tree, "use_ocdbt": True, "use_zarr3": True, "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }  # fmt: skip
    (state / "_METADATA").write_text(json.dumps(tree))
    checkpoint = {
        "item_handlers": {STATE: "orbax.checkpoint.experimental.v1._src.handlers.pytree_handler.PyTreeHandler"},
        "metrics": {}, "performance_metrics": {}, "init_timestamp_nsecs": now, "commit_timestamp_nsecs": now,
        "custom_metadata": {},
    }  # fmt: skip
    (folder / "_CHECKPOINT_METADATA").write_text(json.dumps(checkpoint))
    (folder / "commit_success.txt").write_text("Checkpoint commit was successful")
    (folder / "orbax.checkpoint").touch()
