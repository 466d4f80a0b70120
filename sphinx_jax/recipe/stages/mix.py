"""The mix stage of a recipe: sweep β on validation data of both domains, write the best mix as a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import MinLen

from sphinx_jax.checkpoint import store
from sphinx_jax.config import ConfigError
from sphinx_jax.data.rows import Rows, Shape, Source
from sphinx_jax.data.tasks import DOMAINS, INSTRUCTIONS
from sphinx_jax.distributed import barrier
from sphinx_jax.model.blueprint import FROZEN, Leaves, blueprint, held_dtypes, matches
from sphinx_jax.paths import write_whole
from sphinx_jax.recipe.run import Run
from sphinx_jax.settings import Count, Name, NonNegative, Settings, Share
from sphinx_jax.sharding import row_ways
from sphinx_jax.train.step import loss_sums
from sphinx_jax.weight_mix.compare import Described, check_alike
from sphinx_jax.weight_mix.interpolate import interpolate
from sphinx_jax.weight_mix.search import Judge, along, best, sweep
from sphinx_jax.weight_mix.settings import Mix, to_json
from sphinx_jax.weight_mix.write import write


@dataclass(frozen=True)
class MixStage(Settings):
    real: Name  # the stage, or checkpoint, whose weight in the mix is β
    synthetic: Name
    betas: Annotated[tuple[Share, ...], MinLen(1)] = tuple(i / 10 for i in range(11))
    tasks: Mapping[str, NonNegative] = field(default_factory=dict)  # what the held-out loss is taken over; empty: all
    metric: Name = "loss"
    turns: Count = 4
    length: Count = 160
    batch: Count = 32
    pictures: Count = 256  # per domain and split


def mix(run: Run, name: str, settings: MixStage) -> None:
    """Write `beta.json` and the mix that is best on validation, by the mean of both domains, as a checkpoint."""
    s, folder = settings, run.folder(name)
    if store.newest(folder / "checkpoints"):  # written last
        return
    check_models(run, {start: described(run.checkpoint(start)) for start in (s.real, s.synthetic)})
    dtypes = held_dtypes(run.recipe.model, FROZEN)
    trees, frozen = apart(run, [run.leaves(start, dtypes) for start in (s.real, s.synthetic)])
    judge, test = (judge_of(run, s, trees, frozen, split) for split in ("validation", "test"))
    with jax.set_mesh(run.mesh):
        curve = sweep(judge, [s.betas], run.quiet)
        (chosen,) = best(curve)
        tested = {key: test(along([beta])) for key, beta in (("chosen", chosen), ("0", 0.0), ("1", 1.0))}
    curves = {domain: [losses[domain] for losses in curve.values()] for domain in DOMAINS}
    tested = {key: with_mean(losses) for key, losses in tested.items()}
    result = {"values": list(s.betas), "metric": s.metric, **curves, "chosen": chosen, "test": tested}
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "beta.json", json.dumps(result, indent=2).encode())
    barrier("judged")
    sources = [str(run.checkpoint(start)) for start in (s.real, s.synthetic)]
    made, out = as_mix(sources, [("*", np.array([chosen, 1 - chosen]))]), folder / "checkpoints" / "0"
    if isinstance(out, Path):
        write(made, out, quiet=True, process=jax.process_index(), processes=jax.process_count())
    else:  # a store takes whole objects, as Orbax writes them
        mixed = jax.jit(interpolate)(trees, along([chosen]))
        store.save(out, mixed | frozen, run.recipe.model, run.tokenizer, to_json(made))
    barrier("mixed")
    if not run.quiet:
        mean = np.mean([curves[domain] for domain in DOMAINS], axis=0)
        print(
            f"{name}: β = {chosen:g} is best on validation, {s.metric} {mean.min():.3f} "
            f"(β = 0: {mean[0]:.3f}, β = 1: {mean[-1]:.3f})"
        )


def as_mix(folders: Sequence[str], weights: Sequence[tuple[str, np.ndarray]]) -> Mix:
    """The mix to write: what is frozen is the same in all, and is taken from the first."""
    own = tuple(
        {"weight": dict.fromkeys(FROZEN, float(i == 0)) | {pattern: values[i].tolist() for pattern, values in weights}}
        for i in range(len(folders))
    )
    return Mix("linear", tuple(folders), per_source=own)


def check_models(run: Run, models: Mapping[str, Described], allow: Collection[str] = ()) -> None:
    """BadCheckpoint where the models do not belong together or to the recipe, whose held-out data judge their mix."""
    check_alike({"the recipe": Described(run.recipe.model, run.tokenizer)} | dict(models), allow)


def described(checkpoint: Path) -> Described:
    return Described(store.read_config(checkpoint), store.read_tokenizer(checkpoint))


def with_mean(losses: Mapping[str, float]) -> dict[str, float]:
    """The losses by domain, and their `mean`: what mixes are ranked by."""
    return dict(losses) | {"mean": float(np.mean(list(losses.values())))}


def apart(run: Run, models: Sequence[Leaves]) -> tuple[list[Leaves], Leaves]:
    """What differs between models of the recipe, of each; and the frozen encoders that they share.

    Raises:
      BadCheckpoint: the encoders differ.
    """
    frozen = {path: x for path, x in models[0].items() if matches(path, FROZEN)}
    for other in models[1:]:
        for path, x in frozen.items():
            if not jnp.array_equal(x, other[path]):
                raise store.BadCheckpoint(f"frozen leaf {path} differs between models; a mix needs the same encoders")
    return [{path: x for path, x in leaves.items() if path not in frozen} for leaves in models], frozen


def judge_of(
    run: Run, s: MixStage, trees: Sequence[Leaves], frozen: Leaves, split: str, domains: Sequence[str] = DOMAINS
) -> Judge:
    """The loss of the stage's tasks on one split of the domains."""
    if run.recipe.model.decoder.lora_rank:
        raise ConfigError("held-out data cannot choose a mix of LoRA models; mix them with given weights")
    plan = blueprint(run.recipe.model)

    def loss(leaves: Leaves, batch: Any) -> jax.Array:
        return loss_sums(plan.bind(leaves), batch)

    return Judge(loss, trees, {domain: batches_of(run, s, frozen, split, domain) for domain in domains}, frozen)


def batches_of(run: Run, s: MixStage, frozen: Any, split: str, domain: str) -> list[dict[str, np.ndarray]]:
    """The same rows at every β: the first pictures of the split, each with turns of the tasks."""
    weights = dict.fromkeys(INSTRUCTIONS, 0.0) | dict(s.tasks) if s.tasks else {}
    source = Source(domain, run.data.items(split, domain), 1.0, weights, run.features(frozen, split, domain))
    shape = Shape(s.length, run.recipe.model.views.image_size, s.turns, isolate_turns=True)
    mapping = Rows(source, run.tokenizer, shape)
    numbers = range(min(len(source.eligible), s.pictures))
    rows = [mapping.random_map(i, np.random.default_rng(i)) for i in numbers]
    if not rows:
        raise ValueError(f"{split} data of {domain} has no picture with one of {', '.join(s.tasks)}")
    empty = mapping.masked(0)
    ways = row_ways(run.mesh)
    # of a few pictures two batches, so that something can be learnt on one and chosen on the other
    size = min(s.batch, max(ways, len(rows) // 2 // ways * ways))
    rows += [empty] * (-len(rows) % size)
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [{k: np.stack([r[k] for r in batch]) for k in batch[0] if k != "skipped"} for batch in batches]
