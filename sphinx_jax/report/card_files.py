"""Score cards that runs have left."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sphinx_jax.config import ConfigError
from sphinx_jax.evaluate.card import ITEMS, Line, compare

STAGE = "benchmarks"
CARD, PAGE = "card.json", "card.html"  # of a stage: the numbers, and a page with answers too


def read_card(workdir: Path) -> list[Line]:
    """Raises ConfigError where there is none."""
    file = workdir / STAGE / CARD
    if not file.is_file():
        raise ConfigError(f"there is no {file}; run configs/benchmarks.py with this workdir first")
    return lines_of(json.loads(file.read_text()))


def lines_of(rows: Iterable[Mapping[str, Any]]) -> list[Line]:
    """What a file with a card holds, as its lines."""
    known = Line.__dataclass_fields__
    return [Line(**{key: value for key, value in row.items() if key in known}) for row in rows]


def differences(first: Path, second: Path) -> dict[str, dict[str, Any] | None]:
    """How the second model differs from the first, by benchmark; of MME by part; None of one that has no score of each
    question, as average precision has none.

    Raises ConfigError where they share none, or were asked one by different protocols.
    """
    found = dict[str, dict[str, Any] | None]()
    protocols = [
        {line.benchmark: line.protocol for line in read_card(workdir) if line.score is not None}
        for workdir in (first, second)
    ]
    for name in sorted(protocols[0].keys() & protocols[1].keys()):
        a, b = (of[name] for of in protocols)
        if a != b:
            raise ConfigError(f"{name} was asked by protocol {a} in {first} and by {b} in {second}")
        items, others = (_items(workdir / STAGE / name / ITEMS) for workdir in (first, second))
        found |= compare(name, items, others) if items and others else {name: None}
    if not found:
        raise ConfigError(f"{first} and {second} have no benchmark in common")
    return found


def _items(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().split("\n") if line]
