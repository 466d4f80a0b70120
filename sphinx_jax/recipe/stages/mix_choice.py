"""A mix of weights chosen on held-out data of a recipe or on benchmarks: by a sweep, as a greedy soup, or learnt by
gradient."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.foreign.foreign import is_foreign, open_foreign
from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.config import ConfigError, from_dict
from sphinx_jax.data.sources import DataConfig
from sphinx_jax.data.tasks import DOMAINS
from sphinx_jax.generate.load import place
from sphinx_jax.model.blueprint import Leaves, blueprint
from sphinx_jax.recipe.recipe import Recipe
from sphinx_jax.recipe.run import Run
from sphinx_jax.recipe.stages.mix import MixStage, apart, as_mix, check_models, described
from sphinx_jax.recipe.stages.mix_judges import judges
from sphinx_jax.report import mix_figures
from sphinx_jax.report.score_table import lower_is_better, metric_words, number
from sphinx_jax.weight_mix import search as mix_search
from sphinx_jax.weight_mix.compare import Described
from sphinx_jax.weight_mix.search import Judge, LossJudge
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
        domains, metric = self.result["domains"], self.result["metric"]
        columns = ["validation", *(f"test {domain}" for domain in domains), "test"]
        rows = [
            [row["validation"]["mean"], *(row["test"][domain] for domain in domains), row["test"]["mean"]]
            for row in self.result["rows"]
        ]
        top = (np.min if lower_is_better(metric) else np.max)(rows, axis=0)
        widths = [max(15, len(column) + 1) for column in columns]
        width = max(len(row["name"]) for row in self.result["rows"])
        lines = [metric_words(metric)]
        lines.append(" ".join([" " * width, *(f"{name:>{w}}" for name, w in zip(columns, widths, strict=True))]))
        for row, values in zip(self.result["rows"], rows, strict=True):
            cells = [f"{number(v)}{'*' if v == best else ' '}" for v, best in zip(values, top, strict=True)]
            lines.append(
                " ".join([f"{row['name']:<{width}}", *(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))])
            )
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
    workdir: str | Path | None,
    *,
    judged: Mapping[str, Any] | None = None,
    grid: Sequence[float] = GRID,
    epochs: int = 12,
    allow: Sequence[str] = (),
    quiet: bool = False,
) -> Choice:
    """Find the mix of checkpoints that is best on the validation data of a recipe, or on benchmarks.

    No mix is written; the features of the held-out pictures are kept in the workdir, where there is one.

    Args:
      way: `sweep` (a grid over the coefficients of two or three checkpoints), `greedy` (a soup of any number) or
        `learn` (a coefficient for every module and layer).
      folders: N checkpoints of the recipe's model, a base last.  Their coefficients sum to 1.
      workdir: where the recipe was run; its `mix` stage says what the loss is taken over.  None: benchmarks judge.
      judged: settings of `Judged` in place of the stage's.
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
    # absolute, so that none is taken for a stage or for the recipe's own parts
    folders = [str(store.chosen_in(Path(folder)).resolve()) for folder in folders]
    with tempfile.TemporaryDirectory() as kept:
        run, stage = open_workdir(Path(workdir), quiet) if workdir else _without_recipe(folders[0], Path(kept), quiet)
        stage = from_dict(asdict(stage) | dict(judged or {}), MixStage, "mix")
        if way == "learn" and stage.benchmarks and stage.judge == "score":
            raise ConfigError("learning takes a loss, which has a gradient, and not a score: --judge loss")
        return _choose(way, folders, run, stage, grid, epochs, allow)


def _choose(
    way: str,
    folders: Sequence[str],
    run: Run,
    stage: MixStage,
    grid: Sequence[float],
    epochs: int,
    allow: Sequence[str],
) -> Choice:
    quiet = run.quiet
    check_models(run, {folder: _described(Path(folder)) for folder in folders}, allow)
    trees, frozen = apart(run, [_leaves(run, Path(folder)) for folder in folders])
    domains = DOMAINS if run.recipe.data.playground else ("*",)
    names = short_names(folders)
    with jax.set_mesh(run.mesh):
        judge, test = judges(run, stage, trees, frozen, domains)
        rivals: dict[str, Any] = {f"{name} alone": row for name, row in zip(names, np.eye(len(names)), strict=True)}
        rivals["uniform average"] = mix_search.uniform(len(names))
        result: dict[str, Any] = {}
        validation: dict[str, Mapping[str, float]] = {}  # of rivals that are judged already
        if way == "learn":
            learning, choosing = _split(judge)  # what cannot be learnt is told before the sweep
        if way == "sweep" or len(folders) == 2:
            curve = mix_search.sweep(judge, [sorted(set(grid))] * (len(folders) - 1), quiet)
            result["curve"] = [{"at": point} | judge.told(losses) for point, losses in curve.items()]
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
            {"name": n, "validation": judge.told(validation.get(n) or judge(own)), "test": test.told(test(own))}
            for n, own in rivals.items()
        ]
    weights = list(learnt.items()) if way == "learn" else [("*", chosen)]
    domains = [domain for domain in rows[0]["test"] if domain != "mean"]
    result = {"way": way, "metric": stage.measure, "domains": domains, "sources": folders, "rows": rows} | result
    return Choice(
        replace(as_mix(folders, weights), allow=tuple(allow)), result, mix_figures.search_figure(result, names)
    )


def open_workdir(workdir: Path, quiet: bool) -> tuple[Run, MixStage]:
    """The recipe that a workdir was made with, and the settings of its first mix stage."""
    run, stages = opened(workdir, quiet, "betas")
    if not stages:
        raise ConfigError(f"the recipe of {workdir} has no mix stage that says what a mix is judged by")
    return run, from_dict(stages[0], MixStage, "stage.mix")


def opened(workdir: Path, quiet: bool, setting: str) -> tuple[Run, list[dict[str, Any]]]:
    """The recipe that a workdir was made with, and the settings of its stages of the kind that has this setting."""
    try:
        known = json.loads((workdir / "config.json").read_text())
        stages = [values for values in known["settings"].values() if setting in values]
    except (OSError, ValueError, LookupError, TypeError):
        raise ConfigError(f"{workdir} is no workdir of a recipe; --workdir names one, e.g. runs/quickstart") from None
    recipe = from_dict(known | {"stages": (), "settings": {}}, Recipe, "config")
    return Run(recipe, workdir, quiet), stages


def _without_recipe(folder: str, kept: Path, quiet: bool) -> tuple[Run, MixStage]:
    """A recipe of the model that a checkpoint holds."""
    if is_foreign(Path(folder)):
        found = open_foreign([Path(folder)])
        model = found.config
    else:
        model = store.read_config(Path(folder))
    recipe = Recipe(model, (), {}, DataConfig(None, benchmarks="of the command"), tokenizer=folder)
    return Run(recipe, kept, quiet), MixStage(real=folder, synthetic=folder)


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


def _split(judge: Judge) -> tuple[LossJudge, LossJudge]:
    """What coefficients are learnt on, and a quarter of the batches, on which the best of them are chosen."""
    assert isinstance(judge, LossJudge)
    cuts = {domain: len(batches) * 3 // 4 for domain, batches in judge.batches.items()}
    if not all(cuts.values()):
        raise ConfigError("learning needs two batches of held-out data at least in each domain")
    learning = {domain: batches[: cuts[domain]] for domain, batches in judge.batches.items()}
    choosing = {domain: batches[cuts[domain] :] for domain, batches in judge.batches.items()}
    return replace(judge, batches=learning), replace(judge, batches=choosing)
