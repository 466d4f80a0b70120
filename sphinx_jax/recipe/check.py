"""What no setting shows by itself: whether a recipe's stages fit its model, its data and the devices."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sphinx_jax.config import ConfigError, unknown
from sphinx_jax.data.sources import SPLITS
from sphinx_jax.data.tasks import DOMAINS, INSTRUCTIONS
from sphinx_jax.model.blueprint import FROZEN, blueprint, check_fit, matches
from sphinx_jax.model.lora import BASE
from sphinx_jax.recipe.recipe import Recipe
from sphinx_jax.recipe.run import Run
from sphinx_jax.settings import of_field
from sphinx_jax.train.program import program


def check_names(recipe: Recipe, name: str, kind: str) -> None:
    """ConfigError, which begins with the setting, where a stage names what is not in its recipe's model or data."""
    stage, data = recipe.settings[name], recipe.data
    frozen = getattr(stage, "frozen", ())
    if not {*FROZEN, *BASE}.issuperset(frozen):
        leaves = blueprint(recipe.model).specs
        with of_field("frozen"):
            check_fit(frozen, leaves)
        if all(matches(path, frozen) for path in leaves):
            raise ConfigError("frozen: these patterns leave nothing to train")
    if kind == "benchmarks" and data.meta and name in recipe.stages:
        raise ConfigError("kind benchmarks asks data.benchmarks, a folder of them, or data.playground, not data.meta")
    split = getattr(stage, "split", None)
    if not data.playground:  # people's own data has domains and tasks of their own
        both = ("validation", "test") if kind == "mix" and not stage.benchmarks else ()
        needed = [("split", one) for one in ((split,) if split else both)]
        if kind == "train" and stage.evaluate_every:
            needed.append(("held_out", stage.held_out))
        for field, one in needed:
            if name in recipe.stages and one not in data.meta:
                raise ConfigError(f"{field} {one!r} is not in data.meta, which has {', '.join(data.meta)}")
        return
    if getattr(stage, "sets", None) is not None:
        raise ConfigError("sets: the playground has domains and no data sets; domains takes their shares")
    for field, known in (("tasks", INSTRUCTIONS), ("domains", DOMAINS), ("split", SPLITS), ("held_out", SPLITS)):
        given = getattr(stage, field, None) or ()
        for one in (given,) if isinstance(given, str) else given:
            if one not in known:
                with of_field(field):
                    raise unknown(field.removesuffix("s"), one, known)


def check_training(this: Run, todo: Sequence[str]) -> None:
    """ConfigError where the rows of a stage do not divide over the devices, or none has a step that is to be traced.

    `todo`: the training stages, all of them, so that the last one's mistake does not cost the work of the first.
    """
    reach = 0
    for name in todo:
        stage = this.recipe.settings[name]
        program(this.recipe.model, name, stage, this.mesh)
        reach = max(reach, stage.steps or sys.maxsize)  # how many steps epochs are shows once the data is read
    if todo and this.profile and this.profile.start >= reach:
        raise ConfigError(f"--profile {this.profile.start}:{this.profile.stop} begins after the last of {reach} steps")
