"""Data configs: the lists of conversations that people train on, named in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from sphinx_jax.data.conversation import Item, Items, read_text
from sphinx_jax.data.formats.indexed_lines import open_list
from sphinx_jax.data.formats.prepared import MANIFEST, WORK, Prepared, open_prepared
from sphinx_jax.data.joined import Chosen, counted
from sphinx_jax.data.messages import short
from sphinx_jax.paths import joined, located, shortened


@dataclass(frozen=True)
class MetaEntry:
    """One line of a data config."""

    path: str
    type: str
    """A global batch holds one type."""
    root: str | None
    ratio: float
    items: Sequence[Item]
    """Sampled by `ratio` already; in the file's order. Of lists it has `skipped`, of prepared data `manifest`."""


def read_meta(path: str | PathLike[str], seed: int = 0) -> list[MetaEntry]:
    """Reads a data config of the published form and every file in it.

    A YAML file with a list `META` of `{path: x.json or x.jsonl, type: text, root: folder, ratio: 0.5}`, or of
    `{path: folder}` of prepared data.
    Optional are `type` (`image` if any item has a picture, else `text`), `root` and `ratio` (that share of
    the items, chosen by `seed`). Relative paths are taken from the working directory, as in the reference, or
    from the config's folder, or from the folder above: from the first where they exist.

    Raises:
      ValueError: a missing file, another form, or nothing usable in a file; one line that names file and
        entry.
    """
    import yaml

    path = located(path)
    name = f"data config {shortened(path)}"
    content = read_text(path, name)
    try:
        table = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not YAML: {shortened(' '.join(str(error).split()), 150)}") from None
    entries = table.get("META") if isinstance(table, Mapping) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{name} must hold a list named META")
    folders = (Path(), path.parent, path.parent.parent)
    return [_read_entry(raw, f"{shortened(path)}, META entry {i}", folders, seed) for i, raw in enumerate(entries)]


def _read_entry(raw: Any, name: str, folders: Sequence[Path], seed: int) -> MetaEntry:
    if not isinstance(raw, Mapping) or not isinstance(raw.get("path"), str):
        raise ValueError(f'{name} has no "path"')
    unknown = [key for key in raw if key not in ("path", "type", "root", "ratio")]
    if unknown:
        key = shortened(str(unknown[0]), 40)
        raise ValueError(f'{name} has an unknown key "{key}"; known are path, type, root, ratio')
    for key in ("type", "root"):
        if not isinstance(raw.get(key), str | None):
            raise ValueError(f"{name}: {key} must be a text, not {short(raw[key])}")
    ratio = raw.get("ratio", 1.0)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1:
        raise ValueError(f"{name}: ratio must be a number above 0 and at most 1, not {short(ratio)}")
    try:
        file, root = _found(raw["path"], folders), raw.get("root")
        root = None if root is None else str(_found(root, folders))
        prepared = any(_exists(joined(file, name)) for name in (MANIFEST, WORK))
        items = open_prepared(file) if prepared else open_list(file, root)
    except ValueError as error:
        raise type(error)(f"{name}: {shortened(str(error), 288 - len(name))}") from None
    if isinstance(items, Prepared):
        if ratio < 1 or root is not None:
            raise ValueError(f"{name}: prepared data has neither ratio nor root; prepare fewer files")
        kind = raw.get("type") or ("image" if items.manifest["pictures"] else "text")
        return MetaEntry(str(file), kind, None, 1.0, items)
    kind = raw.get("type") or ("image" if any(item.image for item, _ in counted(items)) else "text")
    if ratio < 1:
        count = max(1, int(len(items) * ratio))
        chosen = np.sort(np.random.default_rng(seed).permutation(len(items))[:count])
        whole = isinstance(items, Items)  # and those that were not chosen need not be kept
        items = Items([items[i] for i in chosen], items.skipped) if whole else Chosen(items, chosen)
    return MetaEntry(str(file), kind, root, float(ratio), items)


def _found(path: str, folders: Sequence[Path]) -> Path:
    return next((file for folder in folders if _exists(file := joined(folder, path))), located(path))


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except Exception:  # a name that is too long, a folder that is closed, a store without its client: reading says so
        return False
