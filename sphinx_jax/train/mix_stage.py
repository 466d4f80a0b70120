"""The mix stage of a recipe: sweep β on validation data of both domains, write the best mix as a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.checkpoint import store, weight_mix
from sphinx_jax.data.task_mix import Rows, Shape, Source
from sphinx_jax.data.tasks import INSTRUCTIONS
from sphinx_jax.model.blueprint import FROZEN, blueprint, matches
from sphinx_jax.progress import progress
from sphinx_jax.train.step import cross_entropy

if TYPE_CHECKING:
    from sphinx_jax.recipe import Run


@dataclass(frozen=True)
class MixStage:
    real: str  # the stage, or checkpoint, whose weight in the mix is β
    synthetic: str
    betas: tuple[float, ...] = tuple(i / 10 for i in range(11))
    tasks: Mapping[str, float] = field(default_factory=dict)  # what the held-out loss is taken over; empty: all
    metric: str = "loss"
    turns: int = 4
    length: int = 160
    batch: int = 32
    pictures: int = 256  # per domain and split


def mix(run: Run, name: str, settings: MixStage) -> None:
    """Write ``beta.json`` and the mix that is best on validation, by the mean of both domains, as a checkpoint."""
    s, plan, folder = settings, blueprint(run.recipe.model), run.folder(name)
    if store.newest(folder / "checkpoints"):  # written last
        return
    real, synthetic = run.leaves(s.real), run.leaves(s.synthetic)
    frozen = {p: x for p, x in real.items() if matches(p, FROZEN)}
    ends = [{p: x for p, x in leaves.items() if p not in frozen} for leaves in (real, synthetic)]

    def loss(leaves: Any, batch: Any) -> jax.Array:
        losses, _ = cross_entropy(plan.bind(leaves | frozen), batch)
        return jnp.stack([losses.sum(), (batch["labels"][:, 1:] > 0).sum()])

    domains = ("real", "synthetic")
    batches = {(split, d): batches_of(run, s, frozen, split, d) for split in ("validation", "test") for d in domains}
    betas = progress(s.betas, desc="β", disable=run.quiet)
    both = [*batches["validation", "real"], *batches["validation", "synthetic"]]
    with jax.set_mesh(run.mesh):
        at = weight_mix.make_mixed(loss)
        table = np.array([[at(beta, *ends, batch) for batch in both] for beta in betas])  # (β, batch, 2)
        cut = len(batches["validation", "real"])
        curves = {"real": table[:, :cut].sum(1), "synthetic": table[:, cut:].sum(1)}
        curves = {d: (c[:, 0] / c[:, 1]).tolist() for d, c in curves.items()}
        mean = np.mean([curves[d] for d in domains], axis=0)
        chosen = float(s.betas[int(mean.argmin())])
        test = {}
        for key, beta in (("chosen", chosen), ("0", 0.0), ("1", 1.0)):
            sums = {d: np.sum([at(beta, *ends, b) for b in batches["test", d]], axis=0) for d in domains}
            values = {d: float(v[0] / v[1]) for d, v in sums.items()}
            test[key] = values | {"mean": float(np.mean(list(values.values())))}
        mixed = jax.jit(weight_mix.interpolate)(ends, jnp.array([chosen, 1 - chosen], jnp.float32))
    folder.mkdir(parents=True, exist_ok=True)
    result = {"values": list(s.betas), "metric": s.metric, **curves, "chosen": chosen, "test": test}
    (folder / "beta.json").write_text(json.dumps(result, indent=2))
    sources = {d: str(run.checkpoint(getattr(s, d))) for d in domains}
    recipe = {"made_by": "mix", "method": "linear", "beta": chosen, "sources": sources, "settings": asdict(s)}
    store.save(folder / "checkpoints" / "0", mixed | frozen, run.recipe.model, run.tokenizer, recipe)
    if not run.quiet:
        print(
            f"{name}: β = {chosen:g} is best on validation, {s.metric} {mean.min():.3f} "
            f"(β = 0: {mean[0]:.3f}, β = 1: {mean[-1]:.3f})"
        )


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
    rows += [empty] * (-len(rows) % s.batch)
    batches = [rows[i : i + s.batch] for i in range(0, len(rows), s.batch)]
    return [{k: np.stack([r[k] for r in batch]) for k in batch[0] if k != "skipped"} for batch in batches]
