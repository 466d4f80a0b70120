"""Data configs: the lists of conversations that people train on, named in one file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from sphinx_jax.data.conversation import Item, Items, read_text
from sphinx_jax.data.formats.indexed_lines import open_list
from sphinx_jax.data.formats.prepared import MANIFEST, WORK, Prepared, open_prepared
from sphinx_jax.data.joined import Chosen, counted, some_of_each
from sphinx_jax.data.messages import short
from sphinx_jax.paths import joined, located, shortened

LONGEST = 100  # letters of a name
MOST = 1e15  # of any number
LISTS = (".json", ".jsonl")
KEYS = ("path", "type", "root", "ratio", "count", "name", "weight")


@dataclass(frozen=True)
class MetaEntry:
    """One line of a data config."""

    path: str
    type: str
    """A global batch holds one type."""
    root: str | None
    ratio: float
    items: Sequence[Item]
    """Sampled by `ratio` or `count` already; in the file's order. Lists have `skipped`, prepared data `manifest`."""
    name: str
    """What the data set is called; no other of the config is called so."""
    weight: float | None = None
    """Its share of the stream among those of the others; None, each item counts alike."""


def read_meta(path: str | PathLike[str], seed: int = 0) -> list[MetaEntry]:
    """Reads a data config of the published form and every file in it; or one such file, or prepared data, alone.

    A YAML file with a list `META` of `{path: x.json or x.jsonl, type: text, root: folder, ratio: 0.5}`, or of
    `{path: folder}` of prepared data.
    Optional are `type` (`image` if any item has a picture, else `text`), `root`, `ratio` (that share of
    the items, chosen by `seed`) or `count` (so many of them), `name` (what the data set is called, by default as its
    file or folder) and `weight` (its share of the stream: all entries have one, or none). Relative paths are taken
    from the working directory, as in the reference, or from the config's folder, or from the folder above: from the
    first where they exist.

    Raises:
      ValueError: a missing file, another form, or nothing usable in a file; weights of some entries alone; two data
        sets of one name; one line that names file and entry.
    """
    import yaml

    path = located(path)
    if path.suffix in LISTS or _is_prepared(path):
        return [_read_entry({"path": str(path)}, shortened(path), (Path(),), seed)]
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
    found = [_read_entry(raw, f"{shortened(path)}, META entry {i}", folders, seed) for i, raw in enumerate(entries)]
    without = [i for i, entry in enumerate(found) if entry.weight is None]
    if 0 < len(without) < len(found):
        raise ValueError(f"{name}: entry {without[0]} has no weight, and others have; give it to all or to none")
    return _told_apart(found, entries, name)


def _told_apart(found: list[MetaEntry], entries: Sequence[Mapping[str, Any]], name: str) -> list[MetaEntry]:
    """The entries, each with a name of its own: those that no key names, and that would be called alike, are told
    apart by their folders, or else by a number.

    Raises ValueError where two are given one name.
    """
    taken = [raw["name"] for raw in entries if "name" in raw]
    alike = [entry.name for entry in found]
    if twice := [one for one in taken if taken.count(one) > 1]:
        raise ValueError(f'{name}: two data sets have the name "{shortened(twice[0], 60)}"')
    named = []
    for entry, raw in zip(found, entries, strict=True):
        given, number = entry.name, 1
        if "name" not in raw and alike.count(given) > 1:
            given = _called(f"{Path(entry.path).parent.name}-{given}")
        first = given
        while "name" not in raw and given in taken:
            number += 1
            given = f"{first}-{number}"
        taken.append(given)
        named.append(dataclasses.replace(entry, name=given))
    return named


def _read_entry(raw: Any, name: str, folders: Sequence[Path], seed: int) -> MetaEntry:
    if not isinstance(raw, Mapping) or not isinstance(raw.get("path"), str):
        raise ValueError(f'{name} has no "path"')
    unknown = [key for key in raw if key not in KEYS]
    if unknown:
        key = shortened(str(unknown[0]), 40)
        raise ValueError(f'{name} has an unknown key "{key}"; known are {", ".join(KEYS)}')
    for key in ("type", "root", "name"):
        if not isinstance(raw.get(key), str | None):
            raise ValueError(f"{name}: {key} must be a text, not {short(raw[key])}")
    if "name" in raw and (not raw["name"] or _called(raw["name"]) != raw["name"]):
        raise ValueError(
            f"{name}: name must be a text of at most {LONGEST} letters without slash and dot, not {short(raw['name'])}"
        )
    ratio, count, weight = raw.get("ratio", 1.0), raw.get("count"), raw.get("weight")
    if not _is_number(ratio) or not 0 < ratio <= 1:
        raise ValueError(f"{name}: ratio must be a number above 0 and at most 1, not {short(ratio)}")
    if "count" in raw and "ratio" in raw:
        raise ValueError(f"{name} has a count and a ratio; give one of them")
    if "count" in raw and (not _is_number(count) or count != int(count) or count < 1):
        raise ValueError(f"{name}: count must be a whole number above 0, not {short(count)}")
    if "weight" in raw and (not _is_number(weight) or not weight > 0):
        raise ValueError(f"{name}: weight must be a number above 0, not {short(weight)}")
    try:
        file, root = _found(raw["path"], folders), raw.get("root")
        root = None if root is None else str(_found(root, folders))
        items = open_prepared(file) if _is_prepared(file) else open_list(file, root)
    except ValueError as error:
        raise type(error)(f"{name}: {shortened(str(error), 288 - len(name))}") from None
    if isinstance(items, Prepared) and root is not None:
        raise ValueError(f"{name}: prepared data holds its pictures and has no root")
    if not len(items) and isinstance(items, Prepared):
        raise ValueError(f"{name}: {shortened(file)} has no items: all were dropped when it was prepared")
    if isinstance(items, Prepared):
        kind = raw.get("type") or ("image" if items.manifest["pictures"] else "text")
    else:
        kind = raw.get("type") or ("image" if any(item.image for item, _ in counted(items)) else "text")
    most = len(items) if count is None else int(count)
    if most > len(items):
        raise ValueError(f"{name}: count is {most}, and there are {len(items)} items")
    most = max(1, int(most * ratio))
    stem = file.name.removesuffix(file.suffix) if file.suffix in LISTS else file.name
    called = raw.get("name") or _called(stem or str(file))
    chosen = items if most == len(items) else _some(items, most, seed)
    return MetaEntry(str(file), kind, root, float(ratio), chosen, called, None if weight is None else float(weight))


def _some(items: Sequence[Item], count: int, seed: int) -> Sequence[Item]:
    """So many of the items, in their order."""
    if isinstance(items, Prepared):
        return some_of_each(items, count, seed)
    numbers = np.sort(np.random.default_rng(seed).permutation(len(items))[:count])
    if isinstance(items, Items):  # and those that were not chosen need not be kept
        return Items([items[i] for i in numbers], items.skipped[: _part(items, count)])
    chosen = Chosen(items, numbers)
    if (part := _part(items, count)) < len(chosen.skipped):
        chosen.skipped = chosen.skipped[:part]
    return chosen


def _part(items: Sequence[Item], count: int) -> int:
    """How many of the items that cannot be used go with so many of those that can."""
    return math.ceil(len(getattr(items, "skipped", ())) * count / len(items))


def _called(text: str) -> str:
    """A name for a data set: settings have no dots in their names, and a slash parts a domain from a data set."""
    return text.replace("/", "_").replace(".", "_")[:LONGEST]


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST


def _found(path: str, folders: Sequence[Path]) -> Path:
    return next((file for folder in folders if _exists(file := joined(folder, path))), located(path))


def _is_prepared(folder: Path) -> bool:
    return any(_exists(joined(folder, name)) for name in (MANIFEST, WORK))


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except Exception:  # a name that is too long, a folder that is closed, a store without its client: reading says so
        return False
