"""Where a recipe's examples come from: the playground, or the data lists that people have on disk."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sphinx_jax.config import ConfigError, unknown
from sphinx_jax.data.conversation import Item
from sphinx_jax.data.formats.conversations import read_meta
from sphinx_jax.data.rows import Source
from sphinx_jax.data.tasks import DOMAINS
from sphinx_jax.distributed import one_first
from sphinx_jax.settings import Name, Positive, Seed, Settings

SPLITS = ("train", "validation", "test")
PLAYGROUNDS = ("nano", "quick", "full")
OTHER = "other"  # the domain of items that name none


@dataclass(frozen=True)
class DataConfig(Settings):
    """`playground` names a size of the embedded world; `meta` a published data config per split instead; `benchmarks`
    a folder of public benchmarks, which are asked and never trained on."""

    playground: Literal[PLAYGROUNDS] | None = "quick"
    seed: Seed = 0
    told: Positive = 1.0  # share of pictures told in words beside the other texts
    meta: Mapping[str, Name] | None = None  # split -> YAML with a list META
    folder: Name | None = None  # where generated data is kept; default: data/ in the workdir
    benchmarks: Name | None = None

    def __post_init__(self):
        if sum(map(bool, (self.playground, self.meta, self.benchmarks))) != 1:
            raise ConfigError("data: give one of playground, meta and benchmarks")


class Data:
    """Splits of a recipe's data, opened when first asked for."""

    def __init__(self, config: DataConfig, workdir: Path):
        self.config = config
        self.folder = Path(config.folder) if config.folder else workdir / "data"

    @functools.cache  # noqa: B019 (one per run)
    def items(self, split: str, domain: str) -> Sequence[Item]:
        """Items with pictures of one split and domain."""
        if self.config.playground:
            from sphinx_jax.data.playground import builder

            with one_first(f"playground {split} {domain}"):
                source = builder.open_playground(self.folder, self.config.playground, split, domain)
            return [builder.as_item(source[i]) for i in range(len(source))]
        if not (found := self.pictures(split, domain)):
            listed = self.pictures(split)
            domains = sorted({i.domain or OTHER for i in listed})
            raise ConfigError(
                f"no picture of data.meta.{split} is of domain {domain!r}; its domains are {some(domains)}, '*' is all"
                if listed
                else f"data.meta.{split} has no pictures; its {len(self.listed(split))} items are text alone"
            )
        return found

    def pictures(self, split: str, domain: str = "*") -> list[Item]:
        """Items with pictures of people's own list; empty where none is of that domain."""
        return [i for i in self.listed(split) if i.image is not None and domain in (i.domain or OTHER, "*")]

    @functools.cache  # noqa: B019
    def texts(self, split: str) -> list[Source]:
        """Text-only conversations and documents of one split, with their shares."""
        if not self.config.playground:
            return [Source("text", [i for i in self.listed(split) if i.image is None])]
        from sphinx_jax.data.playground import text, told

        pictures = [item for domain in DOMAINS for item in self.items(split, domain)]
        return [
            Source("text", text.stream(self.config.seed, split)),
            Source("told", told.told_all(pictures), self.config.told),
        ]

    def listed(self, split: str) -> list[Item]:
        """All items of people's own list that can be read."""
        return self._read(split)[0]

    def unreadable(self, split: str) -> list[str]:
        """One line about each of the others."""
        return self._read(split)[1]

    @functools.cache  # noqa: B019
    def _read(self, split: str) -> tuple[list[Item], list[str]]:
        if split not in self.config.meta:
            raise unknown("split of data.meta", split, self.config.meta)
        entries = read_meta(self.config.meta[split], self.config.seed)
        return [item for e in entries for item in e.items], [line for e in entries for line in e.items.skipped]


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few of many names, for a message."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
