"""The files of an Orbax checkpoint, for what goes to the arrays without Orbax.

Read in Orbax 0.12.8: `orbax/checkpoint/_src/metadata/{tree,array_metadata_store,sharding}.py` (what is written beside
the arrays) and `_src/serialization/tensorstore_utils.py` (how the arrays lie).  An array's name is its path joined by
dots.
"""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sphinx_jax.checkpoint.store import BadCheckpoint, missing

STATE = "state"
INDEX_CACHE = "ocdbt"
SEQUENCE_KEY, STRING_KEY = 1, 2  # Orbax's numbers for an index and a dict's key
ARRAYS = ("jax.Array", "np.ndarray", "scalar")
EMPTY = ("None", "List", "Tuple", "Dict")
# as the leaves of a one-device mesh; whoever restores onto a mesh gives their own
ONE_DEVICE = json.dumps(
    {
        "sharding_type": "NamedSharding",
        "shape": [1],
        "axis_names": ["data"],
        "axis_types": ["AxisType.Auto"],
        "partition_spec": [],
        "device_mesh": {"mesh": [{"id": 0}]},
    }
)


def find_state(folder: Path) -> Path:
    """The folder of arrays in a checkpoint: itself, its `state`, or the only one that it has."""
    if not folder.is_dir():
        raise missing(folder)
    found = sorted(metadata.parent for metadata in (*folder.glob("_METADATA"), *folder.glob("*/_METADATA")))
    for state in found:
        if state in (folder, folder / STATE) or len(found) == 1:
            return state
    if found:
        raise BadCheckpoint(f"{folder} has several parts; give one of {', '.join(map(str, found))}")
    raise BadCheckpoint(f"{folder} is no Orbax checkpoint (no _METADATA in it); of several steps give one's folder")


@dataclass(frozen=True)
class Tree:
    """What the paths of a checkpoint's leaves do not say of its tree.

    Args:
      sequences: paths of the nodes whose children are numbered: lists, and tuples, which Orbax restores as lists.
      kinds: {path: Orbax's word for the value}, of arrays, numbers and what holds neither (None, [], {}).
    """

    sequences: frozenset[str] = frozenset()
    kinds: Mapping[str, str] = field(default_factory=dict)

    def __or__(self, other: Tree) -> Tree:
        """Both trees in one; of a value, the kind that this one says.  A dict in either is a dict."""
        dicts = (self._nodes() - self.sequences) | (other._nodes() - other.sequences)
        return Tree((self.sequences | other.sequences) - dicts, {**other.kinds, **self.kinds})

    def _nodes(self) -> set[str]:
        return {node for path in self.kinds for node in _nodes(path)}

    def order(self, path: str) -> list[tuple[int, str]]:
        """A key to sort paths by: sequences come in the order of their numbers."""
        return [
            (int(key) if node in self.sequences else 0, key)
            for node, key in zip(_nodes(path), path.split("/"), strict=True)
        ]

    def without_arrays(self, leaves: Mapping[str, Any]) -> dict[str, str]:
        """{path: kind} of what holds no array beside these leaves; an item that a sequence lost is None there."""
        there = set(leaves).union(*map(_nodes, leaves))
        empty = {path: kind for path, kind in self.kinds.items() if kind in EMPTY and path not in there}
        there = there.union(empty, *map(_nodes, empty))
        steps = (zip(nodes, [*nodes[1:], path], strict=True) for path in self.kinds for nodes in [_nodes(path)])
        lost = {item for node, item in itertools.chain(*steps) if node in self.sequences and item not in there}
        return {item: "None" for item in lost if lost.isdisjoint(_nodes(item))} | empty


NESTED_DICTS = Tree()


def _nodes(path: str) -> list[str]:
    """The nodes that a path goes through: `a/b/c` -> `""`, `a`, `a/b`."""
    return ["", *itertools.accumulate(path.split("/")[:-1], "{}/{}".format)]


def read_metadata(state: Path) -> tuple[dict[str, dict[str, Any]], Tree]:
    """{leaf path: tensorstore spec} of all arrays and numbers, and the tree they stand in; strings are left out."""
    try:
        metadata = json.loads((state / "_METADATA").read_text())
        entries = [
            (
                [(str(key["key"]), key["key_type"]) for key in entry["key_metadata"]],
                entry["value_metadata"]["value_type"],
            )
            for entry in metadata["tree_metadata"].values()
        ]
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise BadCheckpoint(f"{state / '_METADATA'} is damaged: {error!r}") from None
    in_database = metadata.get("use_ocdbt")
    if in_database is None:
        in_database = (state / "manifest.ocdbt").exists()
    specs, sequences, kinds = {}, set(), {}
    for keys, kind in entries:
        path, name = (joint.join(key for key, _ in keys) for joint in "/.")
        kinds[path] = kind
        sequences |= {node for node, (_, type_) in zip(_nodes(path), keys, strict=True) if type_ == SEQUENCE_KEY}
        if kind not in ARRAYS:
            continue
        specs[path] = {
            "driver": "zarr3" if metadata.get("use_zarr3") else "zarr",
            "kvstore": database(state, name) if in_database else {"driver": "file", "path": f"{state / name}/"},
            # where Orbax stored zeros too, a missing chunk is damage
            "fill_missing_data_reads": not metadata.get("store_array_data_equal_to_fill_value", False),
        }
    return specs, Tree(frozenset(sequences), kinds)


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


def write_metadata(
    folder: Path, leaves: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], tree: Tree = NESTED_DICTS
) -> None:
    """What Orbax needs beside the arrays of `folder/state`, of {path: (shape, chunk shape)}."""
    state, now = folder / STATE, time.time_ns()
    kinds = {path: kind if (kind := tree.kinds.get(path)) in ARRAYS else "jax.Array" for path in leaves}
    kinds |= tree.without_arrays(leaves)
    entries, arrays, shardings = {}, [], {}
    for path in sorted(kinds, key=tree.order):
        keys, name = path.split("/"), path.replace("/", ".")
        types = [SEQUENCE_KEY if node in tree.sequences else STRING_KEY for node in _nodes(path)]
        value = {"value_type": kinds[path], "skip_deserialize": path not in leaves}
        entries[str(tuple(keys))] = {
            "key_metadata": [{"key": key, "key_type": type_} for key, type_ in zip(keys, types, strict=True)],
            "value_metadata": value,
        }
        if path not in leaves:
            continue
        shape, chunk_shape = leaves[path]
        value["write_shape"] = shape
        arrays.append({"param_name": name, "write_shape": shape, "chunk_shape": chunk_shape, "ext_metadata": None})
        shardings[base64.b64encode(name.encode()).decode()] = ONE_DEVICE
    (state / "array_metadatas").mkdir(exist_ok=True)
    arrays = {"array_metadatas": [{"array_metadata": array} for array in arrays]}
    (state / "array_metadatas" / "process_0").write_text(json.dumps(arrays))
    (state / "_sharding").write_text(json.dumps(shardings, separators=(",", ":")))
    metadata = {
        "tree_metadata": entries,
        "use_ocdbt": True,
        "use_zarr3": True,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    (state / "_METADATA").write_text(json.dumps(metadata))
    checkpoint = {
        "item_handlers": {STATE: "orbax.checkpoint.experimental.v1._src.handlers.pytree_handler.PyTreeHandler"},
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": now,
        "commit_timestamp_nsecs": now,
        "custom_metadata": {},
    }
    (folder / "_CHECKPOINT_METADATA").write_text(json.dumps(checkpoint))
    (folder / "commit_success.txt").write_text("Checkpoint commit was successful")
    (folder / "orbax.checkpoint").touch()
