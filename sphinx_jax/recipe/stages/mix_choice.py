"""A mix of weights chosen on the held-out data of a recipe: by a sweep, as a greedy soup, or learnt by gradient."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.foreign.foreign import is_foreign, open_foreign
from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.config import ConfigError, from_dict
from sphinx_jax.data.tasks import DOMAINS
from sphinx_jax.generate.load import place
from sphinx_jax.model.blueprint import Leaves, blueprint
from sphinx_jax.recipe.recipe import Recipe
from sphinx_jax.recipe.run import Run
from sphinx_jax.recipe.stages.mix import MixStage, apart, as_mix, check_models, described, judge_of, with_mean
from sphinx_jax.report import mix_figures
from sphinx_jax.report.score_table import number
from sphinx_jax.weight_mix import search as mix_search
from sphinx_jax.weight_mix.compare import Described
from sphinx_jax.weight_mix.search import Judge
from sphinx_jax.weight_mix.settings import Mix, check_allowances
from sphinx_jax.weight_mix.sources import short_names

GRID = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class Choice:
    """A mix, how it and its rivals score, and the picture of the search."""

    mix: Mix
    result: Mapping[str, Any]
    figure: bytes | None

    def lines(self) -> list[str]:
        """The scores as a table, the best of each column marked by a star."""
        domains = self.result["domains"]
        columns = ["validation", *(f"test {domain}" for domain in domains), "test"]
        rows = [
            [row["validation"]["mean"], *(row["test"][domain] for domain in domains), row["test"]["mean"]]
            for row in self.result["rows"]
        ]
        lowest = np.min(rows, axis=0)
        width = max(len(row["name"]) for row in self.result["rows"])
        lines = [f"{self.result['metric'].replace('_', ' ')}, lower is better"]
        lines.append(" ".join([" " * width, *(f"{name:>15}" for name in columns)]))
        for row, values in zip(self.result["rows"], rows, strict=True):
            cells = [f"{number(v)}{'*' if v == low else ' '}" for v, low in zip(values, lowest, strict=True)]
            lines.append(" ".join([f"{row['name']:<{width}}", *(f"{cell:>15}" for cell in cells)]))
        return lines

    def save(self, folder: Path) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{self.result['way']}.json"]
        files[0].write_text(json.dumps(self.result, indent=2))
        if self.figure:
            files.append(folder / f"{self.result['way']}.png")
            files[1].write_bytes(self.figure)
        return files


def choose(
    way: str,
    folders: Sequence[str],
    workdir: str | Path,
    *,
    grid: Sequence[float] = GRID,
    epochs: int = 12,
    allow: Sequence[str] = (),
    quiet: bool = False,
) -> Choice:
    """Find the mix of checkpoints that is best on the validation data of a recipe.

    No mix is written; the features of the held-out pictures are kept in the workdir.

    Args:
      way: `sweep` (a grid over the coefficients of two or three checkpoints), `greedy` (a soup of any number) or
        `learn` (a coefficient for every module and layer).
      folders: N checkpoints of the recipe's model, a base last.  Their coefficients sum to 1.
      workdir: where the recipe was run; its `mix` stage says what the loss is taken over.
      grid: values of each coefficient of a sweep.
      allow: as in `Mix`, fields that may differ between the models.

    Raises:
      ConfigError, BadCheckpoint: one line on what does not fit.
    """
    if len(folders) < 2:
        raise ConfigError("a choice needs two checkpoints at least")
    if way == "sweep" and len(folders) > 3:
        raise ConfigError(
            f"a sweep is over two or three checkpoints, not {len(folders)}; --greedy and --learn take more"
        )
    check_allowances(allow)
    run, stage = open_workdir(Path(workdir), quiet)
    # absolute, so that none is taken for a stage or for the recipe's own parts
    folders = [str(store.chosen_in(Path(folder)).resolve()) for folder in folders]
    check_models(run, {folder: _described(Path(folder)) for folder in folders}, allow)
    trees, frozen = apart(run, [_leaves(run, Path(folder)) for folder in folders])
    domains = DOMAINS if run.recipe.data.playground else ("*",)
    names = short_names(folders)
    with jax.set_mesh(run.mesh):
        judge, test = (judge_of(run, stage, trees, frozen, split, domains) for split in ("validation", "test"))
        rivals: dict[str, Any] = {f"{name} alone": row for name, row in zip(names, np.eye(len(names)), strict=True)}
        rivals["uniform average"] = mix_search.uniform(len(names))
        result: dict[str, Any] = {}
        validation: dict[str, Mapping[str, float]] = {}  # of rivals that are judged already
        if way == "learn":
            learning, choosing = _split(judge)  # what cannot be learnt is told before the sweep
        if way == "sweep" or len(folders) == 2:
            curve = mix_search.sweep(judge, [sorted(set(grid))] * (len(folders) - 1), quiet)
            result["curve"] = [{"at": point, **losses} for point, losses in curve.items()]
            at = mix_search.best(curve)
            chosen = mix_search.along(at)
            rivals[f"best of the sweep, {', '.join(f'{x:g}' for x in at)}"] = chosen
        if way == "greedy":
            chosen, result["order"] = mix_search.greedy(judge)
            rivals["greedy soup"] = chosen
        if way == "learn":
            over = mix_search.groups({path: blueprint(run.recipe.model).specs[path] for path in trees[0]})
            validation = {name: judge(own) for name, own in rivals.items()}
            start = mix_search.best({tuple(rivals[name][:-1]): losses for name, losses in validation.items()})
            learnt = mix_search.learn(learning, choosing, over, mix_search.along(start), epochs=epochs, quiet=quiet)
            rivals["learnt"] = {path: learnt[group.pattern] for group in over for path in group.paths}
            result["coefficients"] = {pattern: own.tolist() for pattern, own in learnt.items()}
        rows = [
            {"name": n, "validation": with_mean(validation.get(n) or judge(own)), "test": with_mean(test(own))}
            for n, own in rivals.items()
        ]
    weights = list(learnt.items()) if way == "learn" else [("*", chosen)]
    result = {"way": way, "metric": stage.metric, "domains": domains, "sources": folders, "rows": rows} | result
    return Choice(
        replace(as_mix(folders, weights), allow=tuple(allow)), result, mix_figures.search_figure(result, names)
    )


def open_workdir(workdir: Path, quiet: bool) -> tuple[Run, MixStage]:
    """The recipe that a workdir was made with, and the settings of its first mix stage."""
    try:
        known = json.loads((workdir / "config.json").read_text())
        stages = [values for values in known["settings"].values() if "betas" in values]
    except (OSError, ValueError, LookupError, TypeError):
        raise ConfigError(f"{workdir} is no workdir of a recipe; --workdir names one, e.g. runs/quickstart") from None
    if not stages:
        raise ConfigError(f"the recipe of {workdir} has no mix stage that says what a mix is judged by")
    recipe = from_dict(known | {"stages": (), "settings": {}}, Recipe, "config")
    return Run(recipe, workdir, quiet), from_dict(stages[0], MixStage, "stage.mix")


def _described(folder: Path) -> Described:
    if not is_foreign(folder):
        return described(folder)
    found = open_foreign([folder])
    return Described(found.config, found.tokenizer, folder)


def _leaves(run: Run, folder: Path) -> Leaves:
    if not is_foreign(folder):
        return run.leaves(str(folder))
    found = open_foreign([folder])
    wanted, there = ({p: s.shape for p, s in blueprint(c).specs.items()} for c in (run.recipe.model, found.config))
    for path in sorted(wanted.keys() | there.keys()):
        if wanted.get(path) != there.get(path):
            raise BadCheckpoint(
                f"{folder} holds another model than the recipe: {path} is {there.get(path, 'missing')}, "
                f"of the recipe's model {wanted.get(path, 'missing')}"
            )
    return place(found, run.mesh)


def _split(judge: Judge) -> tuple[Judge, Judge]:
    """What coefficients are learnt on, and a quarter of the batches, on which the best of them are chosen."""
    cuts = {domain: len(batches) * 3 // 4 for domain, batches in judge.batches.items()}
    if not all(cuts.values()):
        raise ConfigError("learning needs two batches of held-out data at least in each domain")
    learning = {domain: batches[: cuts[domain]] for domain, batches in judge.batches.items()}
    choosing = {domain: batches[cuts[domain] :] for domain, batches in judge.batches.items()}
    return replace(judge, batches=learning), replace(judge, batches=choosing)
