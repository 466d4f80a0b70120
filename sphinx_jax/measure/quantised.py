"""What fewer bits cost: the held-out loss of a workdir's model, whole and with its decoder quantised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.checkpoint import store
from sphinx_jax.data.tasks import DOMAINS
from sphinx_jax.generate.load import trained_checkpoint
from sphinx_jax.model.blueprint import FROZEN, blueprint, matches
from sphinx_jax.model.quantise import MATRICES, QTYPES, quantise
from sphinx_jax.recipe.stages.mix_choice import open_workdir
from sphinx_jax.recipe.stages.mix_judges import batches_of
from sphinx_jax.train.step import loss_sums


def losses(workdir: Path, split: str = "test") -> Iterator[tuple[str, float, float]]:
    """Of float32, int8 and nf4: nats per token learnt over both domains, and the MiB of the decoder's matrices.

    Raises:
      ConfigError, BadCheckpoint: the workdir has no recipe with a mix stage, or no checkpoint yet.
    """
    run, stage = open_workdir(workdir, quiet=True)
    plan, leaves = blueprint(run.recipe.model), store.restore(trained_checkpoint(workdir), run.mesh)
    frozen = {path: x for path, x in leaves.items() if matches(path, FROZEN)}
    batches = [b for domain in DOMAINS for b in batches_of(run, stage, frozen, split, domain)]

    @jax.jit
    def sums(leaves, batch):
        return loss_sums(plan.bind(leaves), batch)

    with jax.set_mesh(run.mesh):
        for kind in ("float32", *QTYPES):
            few = {p: quantise(p, x, kind) if p in MATRICES and kind in QTYPES else x for p, x in leaves.items()}
            total, count = sum(np.asarray(sums(few, batch)) for batch in batches)
            parts = [x for p in MATRICES for x in jax.tree.leaves(few[p])]
            bits = sum(x.size * (4 if x.dtype == jnp.uint4 else 8 * x.dtype.itemsize) for x in parts)
            yield kind, float(total / count), bits / 8 / 2**20
