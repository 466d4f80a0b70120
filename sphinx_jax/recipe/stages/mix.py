"""The mix stage of a recipe: sweep β on validation data of both domains, write the best mix as a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import MinLen

from sphinx_jax.checkpoint import store
from sphinx_jax.distributed import barrier
from sphinx_jax.model.blueprint import FROZEN, Leaves, held_dtypes, matches
from sphinx_jax.paths import write_whole
from sphinx_jax.recipe.run import Run
from sphinx_jax.recipe.stages.mix_judges import Judged, judges
from sphinx_jax.settings import Name, Share
from sphinx_jax.weight_mix.compare import Described, check_alike
from sphinx_jax.weight_mix.interpolate import interpolate
from sphinx_jax.weight_mix.search import along, best, sweep
from sphinx_jax.weight_mix.settings import Mix, to_json
from sphinx_jax.weight_mix.write import write


@dataclass(frozen=True)
class MixStage(Judged):
    real: Name = field(kw_only=True)  # the stage, or checkpoint, whose weight in the mix is β
    synthetic: Name = field(kw_only=True)
    betas: Annotated[tuple[Share, ...], MinLen(1)] = tuple(i / 10 for i in range(11))


def mix(run: Run, name: str, settings: MixStage) -> None:
    """Write `beta.json` and the mix that is best on validation, by the mean of what judges it, as a checkpoint."""
    s, folder = settings, run.folder(name)
    if store.newest(folder / "checkpoints"):  # written last
        return
    check_models(run, {start: described(run.checkpoint(start)) for start in (s.real, s.synthetic)})
    dtypes = held_dtypes(run.recipe.model, FROZEN)
    trees, frozen = apart(run, [run.leaves(start, dtypes) for start in (s.real, s.synthetic)])
    judge, test = judges(run, s, trees, frozen)
    with jax.set_mesh(run.mesh):
        curve = sweep(judge, [s.betas], run.quiet)
        (chosen,) = best(curve)
        tested = {key: test(along([beta])) for key, beta in (("chosen", chosen), ("0", 0.0), ("1", 1.0))}
    points = [judge.told(found) for found in curve.values()]
    names = [name for name in points[0] if name != "mean"]
    result = {"values": list(s.betas), "metric": s.measure, "names": names, "chosen": chosen}
    result |= {name: [point[name] for point in points] for name in names}
    result["test"] = {key: test.told(found) for key, found in tested.items()}
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
        mean = [point["mean"] for point in points]
        print(
            f"{name}: β = {chosen:g} is best on validation, {s.measure} {mean[s.betas.index(chosen)]:.3f} "
            f"(β = {s.betas[0]:g}: {mean[0]:.3f}, β = {s.betas[-1]:g}: {mean[-1]:.3f})"
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


def apart(run: Run, models: Sequence[Leaves]) -> tuple[list[Leaves], Leaves]:
    """What differs between models of the recipe, of each; and the frozen encoders that they share.

    Raises:
      BadCheckpoint: the encoders differ.
    """
    frozen = {path: x for path, x in models[0].items() if matches(path, FROZEN)}
    for other in models[1:]:
        for path, same in _equal(frozen, {path: other[path] for path in frozen}).items():
            if not same:
                raise store.BadCheckpoint(f"frozen leaf {path} differs between models; a mix needs the same encoders")
    return [{path: x for path, x in leaves.items() if path not in frozen} for leaves in models], frozen


@jax.jit  # one program: one for each shape takes seconds to compile
def _equal(some: Leaves, others: Leaves) -> dict[str, jax.Array]:
    return {path: jnp.array_equal(x, others[path]) for path, x in some.items()}
