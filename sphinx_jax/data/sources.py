"""Where a recipe's examples come from: the playground, or the data lists that people have on disk."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sphinx_jax.config import ConfigError
from sphinx_jax.data.conversation import Item
from sphinx_jax.data.formats.conversations import read_meta
from sphinx_jax.data.rows import Source
from sphinx_jax.distributed import one_first
from sphinx_jax.settings import Name, Positive, Seed, Settings

SPLITS = ("train", "validation", "test")
PLAYGROUNDS = ("nano", "quick", "full")


@dataclass(frozen=True)
class DataConfig(Settings):
    """``playground`` names a size of the embedded world; ``meta`` a published data config per split instead."""

    playground: Literal[PLAYGROUNDS] | None = "quick"
    seed: Seed = 0
    told: Positive = 1.0  # share of pictures told in words beside the other texts
    meta: Mapping[str, Name] | None = None  # split -> YAML with a list META
    folder: Name | None = None  # where generated data is kept; default: data/ in the workdir

    def __post_init__(self):
        if bool(self.playground) == bool(self.meta):
            raise ConfigError("data: give either playground or meta")


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
        return [i for i in self._meta(split) if i.image is not None and domain in (i.domain or "other", "*")]

    @functools.cache  # noqa: B019
    def texts(self, split: str) -> list[Source]:
        """Text-only conversations and documents of one split, with their shares."""
        if not self.config.playground:
            return [Source("text", [i for i in self._meta(split) if i.image is None])]
        from sphinx_jax.data.playground import text, told

        pictures = [item for domain in ("real", "synthetic") for item in self.items(split, domain)]
        return [
            Source("text", text.stream(self.config.seed, split)),
            Source("told", told.told_all(pictures), self.config.told),
        ]

    @functools.cache  # noqa: B019
    def _meta(self, split: str) -> list[Item]:
        if split not in self.config.meta:
            raise ConfigError(f"data.meta has no {split!r} split")
        return [item for entry in read_meta(self.config.meta[split], self.config.seed) for item in entry.items]
