"""The checkpoints of a stage while it trains: written beside the steps, pruned to the newest and the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from sphinx_jax.checkpoint import store
from sphinx_jax.config import ModelConfig
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.distributed import barrier, gather
from sphinx_jax.model.blueprint import Leaves
from sphinx_jax.train.step import TrainState


class Checkpoints:
    """The checkpoints of a stage; one at a time is being written beside the steps."""

    def __init__(
        self, folder: Path, keep: int | Literal["best"], config: ModelConfig, tokenizer: Tokenizer | None, recipe: dict
    ):
        self.folder, self.keep = folder, keep
        self.config, self.tokenizer, self.recipe = config, tokenizer, recipe
        self._wait: Callable[[], None] | None = None

    def is_best(self, loss: float) -> bool:
        """Whether no checkpoint that is kept has a lower held-out loss, as the first process sees it."""
        self.wait()
        first = jax.process_index() == 0 and loss <= store.held_out_loss(store.best(self.folder))
        return bool(gather(np.array([float(first)]))[0])

    def judge(self, checkpoint: Path, held_out: float) -> None:
        """Say of a checkpoint what its loss on held-out data is."""
        if jax.process_index() == 0 and math.isfinite(held_out):
            store.add_to_recipe(checkpoint, {store.HELD_OUT: held_out})
        barrier("judged")

    def save(
        self, step: int, state: TrainState, held_out: float | None = None, more: Mapping[str, Any] | None = None
    ) -> None:
        """Begin to write a checkpoint.

        Args:
          held_out: the loss on held-out data, by which the best is told.
          more: what its recipe says beside.
        """
        self.wait()
        recipe = self.recipe | {"step": step} | dict(more or {})
        if held_out is not None and math.isfinite(held_out):
            recipe |= {store.HELD_OUT: held_out}
        self._wait = store.save_async(
            self.folder / str(step),
            state.trainable | self._plain(state.frozen),
            self.config,
            self.tokenizer,
            recipe,
            optimizer=state.optimizer,
            scales=_scales(state.frozen),
        )

    def _plain(self, leaves: dict[str, Any]) -> Leaves:
        """Leaves as others read them: what is quantised as the numbers that training saw."""
        if all(isinstance(leaf, jax.Array) for leaf in leaves.values()):
            return leaves
        from sphinx_jax.model.layers import is_quantised
        from sphinx_jax.model.quantise import on_host, whole

        # a device that trains in few bits may have no room for more; of many each makes its share
        plain = on_host if jax.process_count() == 1 else whole
        return {path: plain(x, self.config.dtype) if is_quantised(x) else x for path, x in leaves.items()}

    def wait(self) -> None:
        if self._wait is not None:
            self._wait()
            self._wait = None
            if jax.process_index() == 0:
                best = store.best(self.folder) if self.keep == "best" else None
                store.keep_newest(self.folder, 1 if self.keep == "best" else self.keep, best)
            barrier("saved")  # none goes on before the first process has made it complete


def _scales(leaves: dict[str, Any]) -> dict[str, Leaves]:
    """Those of what is quantised, by its kind: a resumed run quantises as this one did."""
    found: dict[str, Leaves] = {}
    if not all(isinstance(leaf, jax.Array) for leaf in leaves.values()):
        from sphinx_jax.model.layers import is_quantised
        from sphinx_jax.model.quantise import kind_of

        for path, leaf in leaves.items():
            if is_quantised(leaf):
                found.setdefault(kind_of(leaf), {})[path] = leaf.scale
    return found
