"""Checkpoints onto a mesh with the decoder in few bits, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.stream import Reader
from sphinx_jax.model.blueprint import Blueprint
from sphinx_jax.model.quantise import MATRICES, from_host, quantise, requantise


class _Layers:
    """A stored leaf, read a layer at a time."""

    def __init__(self, reader: Reader, path: str):
        self.reader, self.path = reader, path

    def __len__(self) -> int:
        return self.reader.leaves[self.path].shape[0]

    def __getitem__(self, part: slice) -> np.ndarray:
        return self.reader.read(self.path, (part,))


def restore_quantised(
    folder: Path, mesh: Mesh, plan: Blueprint, kind: str, dtypes: Mapping[str, Any]
) -> dict[str, Any]:
    """As `store.restore`: the matrices of the decoder's layers in `kind`, read layer by layer from a disk; from an
    object store they are whole on the devices first.

    Those that training had in `kind` come back as it had them.

    Raises BadCheckpoint where it holds another model than `plan`.
    """
    scales = store.read_scales(folder, kind)
    if not isinstance(folder, Path):
        leaves = store.restore(folder, mesh, plan, dtypes=dtypes)
        for path in MATRICES:  # taken out one by one, so that one at a time is there twice
            leaf, scale = leaves.pop(path), scales.get(path)
            leaves[path] = quantise(path, leaf, kind) if scale is None else requantise(leaf, scale, kind)
        return leaves
    reader = Reader(folder)
    store.check_leaves(folder, plan, {path: leaf.shape for path, leaf in reader.leaves.items()})
    stored = ((path, _Layers(reader, path) if path in MATRICES else reader.read(path)) for path in reader.leaves)
    return quantised(stored, mesh, plan, kind, dtypes, scales)


def quantised(
    stored: Iterable[tuple[str, np.ndarray | _Layers]],
    mesh: Mesh,
    plan: Blueprint,
    kind: str,
    dtypes: Mapping[str, Any],
    scales: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Leaves on a mesh, none of them there in more bits than it is kept in.

    Args:
      dtypes: of those that stay whole.
      scales: of those that were quantised before.
    """
    leaves, expected, scales = {}, plan.abstract(mesh, dtypes), scales or {}
    for path, leaf in stored:
        if path in MATRICES:
            layers = (leaf[i : i + 1] for i in range(len(leaf)))
            leaves[path] = from_host(path, layers, kind, plan.specs[path].axes, mesh, scales.get(path))
        else:
            leaves[path] = jax.device_put(leaf.astype(expected[path].dtype), expected[path].sharding)
    return leaves
