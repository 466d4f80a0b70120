"""Where a recipe's examples come from: the playground, or the data lists that people have on disk."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sphinx_jax.config import ConfigError, unknown
from sphinx_jax.data.conversation import Item, Items
from sphinx_jax.data.formats.conversations import MetaEntry, read_meta
from sphinx_jax.data.formats.prepared import Prepared
from sphinx_jax.data.joined import Chosen, Joined, Ranges, counted, mask_of
from sphinx_jax.data.rows import Source
from sphinx_jax.data.tasks import DOMAINS
from sphinx_jax.distributed import one_first
from sphinx_jax.paths import remove
from sphinx_jax.settings import Name, Positive, Seed, Settings

SPLITS = ("train", "validation", "test")
PLAYGROUNDS = ("nano", "quick", "full")
HELD_OUT = SPLITS[-1]  # whose questions are in the files of public benchmarks
OTHER = "other"  # the domain of items that name none


@dataclass(frozen=True)
class DataConfig(Settings):
    """`playground` names a size of the embedded world; `meta` a published data config per split instead; `benchmarks`
    a folder of public benchmarks, which are asked and never trained on: of the playground they are made."""

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
            raise self._none(split, domain)
        return found

    def pictures(self, split: str, domain: str = "*") -> Sequence[Item]:
        """Items with pictures of people's own list; empty where none is of that domain."""
        return _one([items for _, items in self._pictures(split, domain)])

    def sets(self, split: str, domain: str, own: Mapping[str, float] | None = None) -> list[Source]:
        """The data sets with pictures of one split and domain: the playground is one, and so is each entry of people's
        own list.  Their weights are of one domain, among each other.

        Args:
          own: weights of a stage in place of the list's, 0 of what it does not name.

        Raises ConfigError where there is none.
        """
        if self.config.playground:
            return [Source(domain, self.items(split, domain))]
        if not (found := self._pictures(split, domain)):
            raise self._none(split, domain)
        within = "" if domain == "*" else f"{domain}/"
        return [Source(within + entry.name, items, _share(entry, items, own)) for entry, items in found]

    def weighted(self, split: str) -> bool:
        """Whether people's own list gives its data sets weights; else each item counts alike."""
        return not self.config.playground and self._read(split)[0].weight is not None

    def _none(self, split: str, domain: str) -> ConfigError:
        domains = sorted(self.domains(split))
        return ConfigError(
            f"no picture of data.meta.{split} is of domain {domain!r}; its domains are {some(domains)}, '*' is all"
            if domains
            else f"data.meta.{split} has no pictures; its {len(self.listed(split))} items are text alone"
        )

    @functools.cache  # noqa: B019
    def _pictures(self, split: str, domain: str) -> list[tuple[MetaEntry, Sequence[Item]]]:
        def wanted(item: Item) -> bool:
            return item.image is not None and domain in (item.domain or OTHER, "*")

        def count(told: Mapping[str, Any]) -> int | None:
            names = {name or OTHER for name in told["domains"]}
            if not told["pictures"] or domain not in (*names, "*"):
                return 0
            return told["pictures"] if domain == "*" or len(names) == 1 else None

        return self._chosen(split, wanted, count)

    @functools.cached_property
    def benchmarks(self) -> Path:
        """The folder of public benchmarks; of the playground, its test split in their files, written when first asked
        for.

        Raises ConfigError where the data is people's own list.
        """
        if self.config.benchmarks:
            return Path(self.config.benchmarks).absolute()
        size = self.config.playground
        if size is None:
            raise ConfigError(
                "data.meta has no public benchmarks; give data.benchmarks, a folder of them, in its place"
            )
        folder = self.folder.absolute() / "benchmarks" / size
        with one_first(f"benchmarks of the playground {size}"):
            if not folder.exists():
                from sphinx_jax.data.playground import public

                draft = folder.with_name(f"{size}.draft")
                remove(draft)  # what a killed process left
                public.write((item for domain in DOMAINS for item in self.items(HELD_OUT, domain)), draft)
                draft.rename(folder)
        return folder

    def domains(self, split: str) -> Mapping[str, int]:
        """How many pictures of people's own list each domain has."""
        found: collections.Counter[str] = collections.Counter()
        for entry in self._read(split):
            told = _manifest(entry.items)
            if told and len(told["domains"]) == 1 and told["pictures"] == told["items"]:
                found[next(iter(told["domains"])) or OTHER] += len(entry.items)
            elif told and isinstance(entry.items, Prepared) and told["pictures"] == told["items"]:
                found.update({name or OTHER: n for name, n in told["domains"].items()})
            else:
                for item, count in counted(entry.items):
                    found.update({item.domain or OTHER: count} if item.image is not None else {})
        return found

    def _chosen(
        self, split: str, wanted: Callable[[Item], bool], count: Callable[[Mapping[str, Any]], int | None]
    ) -> list[tuple[MetaEntry, Sequence[Item]]]:
        """Items that are wanted, of each entry that has some.

        Args:
          count: how many prepared data with such a manifest has, None where that is not said there; of none and of all
            not one is looked at.
        """
        found: list[tuple[MetaEntry, Sequence[Item]]] = []
        for entry in self._read(split):
            items, told = entry.items, _manifest(entry.items)
            if isinstance(items, Items):
                found.append((entry, [item for item in items if wanted(item)]))
                continue
            there = count(told) if told else None
            if there == 0:
                continue
            if told and there == told["items"]:
                found.append((entry, items))
                continue
            mask = mask_of(items, wanted)
            found.append((entry, items if mask.all() else Chosen(items, np.flatnonzero(mask))))
        return [(entry, items) for entry, items in found if len(items)]

    def texts(self, split: str, own: Mapping[str, float] | None = None) -> list[Source]:
        """The data sets of text-only conversations and documents of one split; their weights, `own` as in `sets`, are
        among each other."""
        if self.config.playground:
            return self._playground_texts(split)
        return [Source(entry.name, items, _share(entry, items, own)) for entry, items in self._texts(split)]

    @functools.cache  # noqa: B019
    def _texts(self, split: str) -> list[tuple[MetaEntry, Sequence[Item]]]:
        return self._chosen(split, lambda i: i.image is None, lambda told: told["items"] - told["pictures"])

    @functools.cache  # noqa: B019
    def _playground_texts(self, split: str) -> list[Source]:
        from sphinx_jax.data.playground import text, told

        pictures = [item for domain in DOMAINS for item in self.items(split, domain)]
        return [
            Source("text", text.stream(self.config.seed, split)),
            Source("told", told.told_all(pictures), self.config.told),
        ]

    def names(self, split: str) -> list[str]:
        """What the data sets of people's own list are called."""
        return [entry.name for entry in self._read(split)]

    def listed(self, split: str) -> Sequence[Item]:
        """All items of people's own list that can be read."""
        return Joined([entry.items for entry in self._read(split)])

    def unreadable(self, split: str) -> Sequence[str]:
        """One line about each of the others."""
        return Joined([getattr(entry.items, "skipped", ()) for entry in self._read(split)])

    @functools.cache  # noqa: B019
    def _read(self, split: str) -> list[MetaEntry]:
        if split not in self.config.meta:
            raise unknown("split of data.meta", split, self.config.meta)
        return read_meta(self.config.meta[split], self.config.seed)


def _one(parts: list[Sequence[Item]]) -> Sequence[Item]:
    return parts[0] if len(parts) == 1 else Joined(parts)


def _manifest(items: Sequence[Item]) -> Mapping[str, Any]:
    """Of prepared data, be it a part of it; what it says of all holds for the part."""
    whole = items.items if isinstance(items, Ranges) else items
    return whole.manifest if isinstance(whole, Prepared) else {}


def _share(entry: MetaEntry, items: Sequence[Item], own: Mapping[str, float] | None = None) -> float:
    """The part of an entry's weight that is of these items of it."""
    weight = entry.weight if own is None else own.get(entry.name, 0.0)
    return len(items) if weight is None else weight * len(items) / len(entry.items)


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few of many names, for a message."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
