"""Our step beside the same decoder in transformers and PyTorch, on the same machine, in turn.

Both take the same weights, tokens and number of threads, and must first agree on the loss and the length of its
gradient.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.checkpoint import convert, store
from sphinx_jax.config import ConfigError, DecoderConfig, ModelConfig, clip_config, dinov2_config
from sphinx_jax.model.blueprint import Blueprint, Leaves, blueprint
from sphinx_jax.model.encoders import Clip, DinoV2
from sphinx_jax.sharding import make_mesh
from sphinx_jax.train.optimizer import make_optimizer
from sphinx_jax.train.step import TrainState, token_losses, update


class Apart(ValueError):
    """The two sides do not compute the same; a ratio of their times would mean nothing."""


@dataclass(frozen=True)
class Pair:
    """Seconds of one piece of work, a round after the other, on each side."""

    name: str
    ours: list[float]
    theirs: list[float]
    peer: str

    def line(self) -> str:
        ours, theirs = min(self.ours), min(self.theirs)
        return f"{self.name:<28} {ours * 1e3:9.1f} ms  {theirs * 1e3:9.1f} ms  {theirs / ours:5.2f} x  ({self.peer})"


HEADER = f"{'best of each':<28} {'sphinx_jax':>12}  {'PyTorch':>12}  faster by"


def torch_module():
    """PyTorch, with as many threads as XLA takes.  Raises ConfigError where it is not installed."""
    try:
        import torch
    except ImportError:
        raise ConfigError("the comparison needs PyTorch: pip install 'sphinx_jax[torch]'") from None
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch


def decoder(config: DecoderConfig, batch: int, length: int, rounds: int) -> list[Pair]:
    """Forward and backward of the loss over (batch, length) tokens, and the same with an update by AdamW.

    Raises:
      Apart: losses differ by more than 1e-4, or gradients' lengths by more than 0.1 %.
    """
    torch = torch_module()
    model = ModelConfig("llama", config)
    leaves = blueprint(model).init(make_mesh())
    tokens = np.random.default_rng(0).integers(3, config.vocab_size, (batch, length)).astype(np.int32)
    theirs, how = _compiled(torch, _same_weights(model, leaves))
    words = torch.from_numpy(tokens.astype(np.int64))

    def loss_of(leaves: Leaves, tokens: jax.Array) -> jax.Array:
        bound = blueprint(model).bind(leaves)
        return token_losses(bound.decoder, bound.hidden(tokens)[0][:, :-1], tokens[:, 1:]).mean()

    gradient = jax.jit(jax.value_and_grad(loss_of))

    def their_gradient() -> Any:
        theirs.zero_grad(set_to_none=True)
        loss = theirs(input_ids=words, labels=words).loss
        loss.backward()
        return loss

    value, grads = gradient(leaves, tokens)
    norm = float(jnp.sqrt(sum(jnp.vdot(g, g) for g in grads.values())))
    their_loss = float(their_gradient().detach())
    their_norm = float(sum((p.grad**2).sum() for p in theirs.parameters()) ** 0.5)
    if abs(float(value) - their_loss) > 1e-4 or abs(norm - their_norm) > 1e-3 * norm:
        raise Apart(f"loss {float(value):.6f} and {their_loss:.6f}, gradient {norm:.5f} and {their_norm:.5f}")
    optimizer = make_optimizer("adamw", blueprint(model).specs, clip=1.0, weight_decay=0.1)
    adamw = torch.optim.AdamW(theirs.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1)

    def whole(state: TrainState, tokens: jax.Array) -> TrainState:
        value, grads = jax.value_and_grad(loss_of)(state.trainable, tokens)
        return update(optimizer, state, value, grads, jnp.float32(1e-5))[0]

    step = jax.jit(whole, donate_argnums=0)
    state = TrainState(dict(leaves), jax.jit(optimizer.init)(leaves), {})

    def our_step() -> None:
        nonlocal state
        state = step(state, tokens)
        jax.block_until_ready(state)

    def their_step() -> None:
        their_gradient()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        adamw.step()

    # leaves are given away by the first step, so the gradient is timed before
    pairs = [_timed("forward + backward", lambda: jax.block_until_ready(gradient(leaves, tokens)), their_gradient,
                    rounds, how)]  # fmt: skip
    return [*pairs, _timed("whole step, AdamW", our_step, their_step, rounds, how)]


def encoders(images: int, rounds: int, width: int = 256, layers: int = 6) -> list[Pair]:
    """The frozen transformers over ``images`` views of 224 pixels: forward alone, smaller than the published ones.

    Weights are random on both sides: of the same shapes, not the same.
    """
    torch = torch_module()
    from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model

    heads = width // 64
    views = np.random.default_rng(0).normal(size=(images, 224, 224, 3)).astype(np.float32)
    given = torch.from_numpy(np.ascontiguousarray(views.transpose(0, 3, 1, 2)))
    ours = {
        "CLIP": (Clip, clip_config(width, layers, heads)),
        "DINOv2": (DinoV2, dinov2_config(width, layers, heads, position_grid=16)),
    }
    shared = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "image_size": 224}
    theirs = {
        "CLIP": CLIPVisionModel(CLIPVisionConfig(**shared, patch_size=14, intermediate_size=4 * width)),
        "DINOv2": Dinov2Model(Dinov2Config(**shared, patch_size=14, use_swiglu_ffn=True)),
    }
    pairs = []
    for name, (cls, config) in ours.items():
        plan = Blueprint(lambda rngs, cls=cls, config=config: cls(config, rngs=rngs))
        leaves = plan.init(make_mesh())
        run = jax.jit(lambda leaves, views, plan=plan: plan.bind(leaves)(views))
        model, how = _compiled(torch, theirs[name].eval())

        def forward(model=model) -> None:
            with torch.inference_mode():
                model(pixel_values=given)

        pairs.append(
            _timed(
                f"{name}, {images} views", lambda run=run, leaves=leaves: jax.block_until_ready(run(leaves, views)),
                forward, rounds, how,
            )
        )  # fmt: skip
    return pairs


def _same_weights(model: ModelConfig, leaves: Leaves):
    """Our decoder as transformers reads it, through the files that both know."""
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()

    with tempfile.TemporaryDirectory() as root:
        saved = store.save(Path(root) / "ours", leaves, model, None, {"made_by": "benchmark"})
        convert.from_checkpoint(saved, Path(root) / "theirs", "hf", quiet=True)
        return LlamaForCausalLM.from_pretrained(Path(root) / "theirs", attn_implementation="sdpa", dtype="float32")


def _compiled(torch, module) -> tuple[Callable, str]:
    """Compiled where PyTorch can (it needs a C++ compiler), else as it is; and which."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compile(lambda x: x + 1)(torch.ones(2))
        return torch.compile(module), "torch.compile, sdpa"
    except Exception as error:
        return module, f"eager, sdpa; torch.compile failed here: {str(error).splitlines()[0][:60]}"


def _timed(name: str, ours: Callable, theirs: Callable, rounds: int, peer: str) -> Pair:
    """Both once to compile, then one after the other."""
    ours(), theirs()
    seconds = ([], [])
    for _ in range(rounds):
        for work, found in zip((ours, theirs), seconds, strict=True):
            begun = time.perf_counter()
            work()
            found.append(time.perf_counter() - begun)
    return Pair(name, *seconds, peer)
