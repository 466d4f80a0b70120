"""A recipe in its workdir: what its stages read and write there, and how far they are."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jax
from jax.sharding import Mesh

from sphinx_jax.checkpoint import store
from sphinx_jax.data.conversation import Item
from sphinx_jax.data.conversation_form import as_trained
from sphinx_jax.data.sources import Data
from sphinx_jax.data.tokenizer import Tokenizer, check_fits, load_tokenizer
from sphinx_jax.model.blueprint import Leaves, blueprint
from sphinx_jax.paths import CACHE, as_path, located
from sphinx_jax.recipe.recipe import PARTS, PLAYGROUND, Recipe, mesh_of
from sphinx_jax.train.features import FeatureCache, cache_features
from sphinx_jax.train.number_tokens import order_numbers


@dataclass(frozen=True)
class Run:
    """A recipe in its workdir."""

    recipe: Recipe
    workdir: Path
    quiet: bool = False
    profile: range | None = None  # steps of each training stage that are traced

    def folder(self, stage: str) -> Path:
        return self.workdir / stage

    @property
    def local(self) -> Path:
        """A disk for what can be made again: the workdir, or a folder of this machine where that is in a store."""
        if isinstance(self.workdir, Path):
            return self.workdir
        return CACHE / hashlib.sha256(str(self.workdir).encode()).hexdigest()[:16]

    @functools.cached_property
    def mesh(self) -> Mesh:
        return mesh_of(self.recipe, jax.devices())

    @functools.cached_property
    def data(self) -> Data:
        return Data(self.recipe.data, self.local)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The recipe's; where that is gone, the one that every checkpoint of a stage holds."""
        given = self.recipe.tokenizer or PLAYGROUND / "tokenizer.model"
        if not located(given).exists():
            found = (store.newest(self.folder(name) / "checkpoints") for name in self.recipe.settings)
            given = next(filter(None, found), given)
        words = as_trained(load_tokenizer(given))
        check_fits(words, self.recipe.model.decoder.vocab_size)
        return words

    def checkpoint(self, start: str) -> Path:
        """The folder that `start` names: `parts`, a stage of this recipe, or a path, to a stage of another one too."""
        if start == "parts":
            return PARTS
        folder = store.chosen_in(self.folder(start) if start in self.recipe.settings else as_path(start))
        if not store.is_complete(folder):
            raise store.BadCheckpoint(f"there is no complete checkpoint of {start!r} yet; run that stage first")
        return folder

    def leaves(
        self, start: str, dtypes: Mapping[str, str] | None = None, quantize: str = "", mesh: Mesh | None = None
    ) -> Leaves:
        """The model to start from, some leaves in dtypes of their own, the decoder's matrices quantised where that is
        asked for and a checkpoint is read, on the recipe's mesh or another.

        `parts` holds encoders and decoder: projections and tags are born here, as LoRA is where the start has none.
        """
        model, mesh = self.recipe.model, mesh or self.mesh
        if start == "fresh":
            leaves = self._with_born({}, mesh)
            table = order_numbers(leaves["decoder/embedding"], self.tokenizer, self.recipe.seed)
            return leaves | {"decoder/embedding": table}
        folder = self.checkpoint(start)
        if start == "parts":
            return self._with_born(store.restore_parts(folder, mesh, model), mesh)
        return self.read(folder, dtypes, quantize, mesh)

    def read(
        self, folder: Path, dtypes: Mapping[str, str] | None = None, quantize: str = "", mesh: Mesh | None = None
    ) -> Leaves:
        """The model that a checkpoint holds; LoRA is born where it has none.  Arguments as those of `leaves`."""
        model, mesh = self.recipe.model, mesh or self.mesh
        lacks_lora = model.decoder.lora_rank and not store.read_config(folder).decoder.lora_rank
        decoder = dataclasses.replace(model.decoder, lora_rank=0) if lacks_lora else model.decoder
        stored = blueprint(dataclasses.replace(model, decoder=decoder))
        if quantize:
            from sphinx_jax.checkpoint.few_bits import restore_quantised

            leaves = restore_quantised(folder, mesh, stored, quantize, dtypes or {})
        else:
            leaves = store.restore(folder, mesh, stored, dtypes=dtypes)
        return self._with_born(leaves, mesh)

    def _with_born(self, leaves: Leaves, mesh: Mesh) -> Leaves:
        """These leaves, and fresh ones where the model has more."""
        plan = blueprint(self.recipe.model)
        born = plan.specs.keys() - leaves.keys()
        # to compile the birth of all takes as long as to compile a step
        return leaves | plan.init(mesh, self.recipe.seed, only=born) if born else leaves

    def features(
        self,
        leaves: Leaves,
        split: str,
        domain: str,
        only: Sequence[int] | None = None,
        items: Sequence[Item] | None = None,
    ) -> FeatureCache | None:
        """What the frozen encoders see in the pictures of one split and domain; made once and kept.

        Args:
          domain: or the name of a data set, whose `items` these are.
          only: the numbers of the items that are asked for; None, all.

        None in a run of several processes, whose steps take pixels: the cache is for small machines.
        """
        if jax.process_count() > 1:
            return None
        items = self.data.items(split, domain) if items is None else items
        chosen = "" if only is None else f"-{hashlib.sha256(str(list(only)).encode()).hexdigest()[:8]}"
        folder = self.local / "features" / f"{quote(domain, safe='*')}-{split}{chosen}"
        return cache_features(
            folder, items, leaves, self.recipe.model, f"encoding {domain} {split} pictures", only=only
        )


def seconds(this: Run) -> dict[str, float]:
    """Wall time of each finished stage, of the attempt that finished it."""
    times = {}
    for name in this.recipe.stages:
        path = this.folder(name) / "done.json"
        if path.exists():
            times[name] = json.loads(path.read_text())["seconds"]
    return times


def done(this: Run, name: str) -> bool:
    return (this.folder(name) / "done.json").exists()


def progress_of(workdir: Path) -> tuple[str, int] | None:
    """The stage that was written to last, and its newest step; None where nothing is kept yet."""
    found = (
        [(f, newest) for f in workdir.glob("*/checkpoints") if (newest := store.newest(f))] if workdir.exists() else []
    )
    if not found:
        return None

    def written(pair: tuple[Path, Path]) -> float:
        seen = (pair[1] / store.RECIPE).stat()
        return getattr(seen, "st_mtime", None) or seen.mtime

    folder, newest = max(found, key=written)
    return folder.parent.name, int(newest.name)
