"""Our step beside the same decoder in transformers and PyTorch, on the same machine, each side in a process of its own.

Both take the same weights, tokens and number of threads, and must first agree on the loss and the length of its
gradient.  On a GPU both compute in bfloat16 from float32 weights, PyTorch by its autocast; on a CPU in float32.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.foreign import convert
from sphinx_jax.config import ConfigError, DecoderConfig, ModelConfig
from sphinx_jax.measure.peers.sides import OURS, Apart, Work
from sphinx_jax.model.blueprint import Leaves, blueprint
from sphinx_jax.sharding import make_mesh, platform
from sphinx_jax.train.optimizer import make_optimizer
from sphinx_jax.train.step import TrainState, token_losses, update

GRADIENT, STEP = "forward + backward", "whole step, AdamW"
PRODUCT = 2048  # rows, columns and depth of it


class Torch:
    """PyTorch on the device that JAX has, with as many threads as XLA takes.

    Raises ConfigError where it is not installed, or sees no GPU where JAX does.
    """

    def __init__(self):
        try:
            import torch
            import transformers  # noqa: F401 (whose models the comparison is with)
        except ImportError:
            raise ConfigError(
                "the comparison needs PyTorch and transformers: pip install 'sphinx_jax[torch]'"
            ) from None
        self.gpu = platform() == "gpu"
        if self.gpu and not torch.cuda.is_available():
            raise ConfigError("JAX has a GPU and PyTorch sees none; install PyTorch for CUDA, or set JAX_PLATFORMS=cpu")
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.module, self.device = torch, "cuda" if self.gpu else "cpu"
        self.dtype = "bfloat16" if self.gpu else "float32"

    def half(self):
        """A context: bfloat16 autocast on a GPU, nothing on a CPU."""
        return self.module.autocast(self.device, self.module.bfloat16, enabled=self.gpu)

    def wait(self) -> None:
        if self.gpu:
            self.module.cuda.synchronize()


def product(side: str, size: int = PRODUCT) -> Iterator[Work]:
    """One product of square matrices, whose rate bounds that of all other work."""
    name = f"a product of {2e-9 * size**3:.1f} GFLOP"
    matrix = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    if side == OURS:
        placed = jnp.asarray(matrix, jnp.bfloat16 if platform() == "gpu" else jnp.float32)
        multiply = jax.jit(jnp.matmul)
        yield Work(name, lambda: jax.block_until_ready(multiply(placed, placed)))
        return
    peer = Torch()
    given = peer.module.from_numpy(matrix).to(peer.device, getattr(peer.module, peer.dtype))

    def their_product() -> Any:
        found = given @ given
        peer.wait()
        return found

    yield Work(name, their_product)


def decoder(side: str, config: dict[str, Any], batch: int, length: int) -> Iterator[Work]:
    """Forward and backward of the loss over (batch, length) tokens, and the same with an update by AdamW.

    Args:
      config: of the decoder, `DecoderConfig`'s.

    Raises:
      Apart: losses differ by more than 1e-4, or gradients' lengths by more than 0.1 %; in bfloat16 1e-2 and 2 %.
    """
    dtype = "bfloat16" if platform() == "gpu" else "float32"
    model = ModelConfig("llama", DecoderConfig(**config), dtype=dtype)
    leaves = blueprint(model).init(make_mesh())
    tokens = np.random.default_rng(0).integers(3, model.decoder.vocab_size, (batch, length)).astype(np.int32)

    def loss_of(leaves: Leaves, tokens: jax.Array) -> jax.Array:
        bound = blueprint(model).bind(leaves)
        return token_losses(bound.decoder, bound.hidden(tokens)[0][:, :-1], tokens[:, 1:]).mean()

    gradient = jax.jit(jax.value_and_grad(loss_of))
    if side == OURS:
        # leaves are given away by the first step, so the gradient is timed before
        yield Work(GRADIENT, lambda: jax.block_until_ready(gradient(leaves, tokens)))
        yield Work(STEP, _our_step(loss_of, leaves, tokens, model))
        return
    peer = Torch()
    torch = peer.module
    theirs, how = compiled(torch, _same_weights(model, leaves).to(peer.device), "sdpa")
    words = torch.from_numpy(tokens.astype(np.int64)).to(peer.device)

    def their_gradient() -> Any:
        theirs.zero_grad(set_to_none=True)
        with peer.half():
            loss = theirs(input_ids=words, labels=words).loss
        loss.backward()
        peer.wait()
        return loss

    value, grads = gradient(leaves, tokens)
    norm = float(jnp.sqrt(sum(jnp.vdot(g, g) for g in grads.values())))
    their_loss = float(their_gradient().detach())
    their_norm = float(sum((p.grad**2).sum() for p in theirs.parameters()) ** 0.5)
    near, share = (1e-2, 2e-2) if peer.gpu else (1e-4, 1e-3)
    if abs(float(value) - their_loss) > near or abs(norm - their_norm) > share * norm:
        raise Apart(f"loss {float(value):.6f} and {their_loss:.6f}, gradient {norm:.5f} and {their_norm:.5f}")
    del grads
    adamw = torch.optim.AdamW(theirs.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1)

    def their_step() -> None:
        their_gradient()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        adamw.step()
        peer.wait()

    yield Work(GRADIENT, their_gradient, how)
    yield Work(STEP, their_step, how)


def _our_step(loss_of: Callable, leaves: Leaves, tokens: np.ndarray, model: ModelConfig) -> Callable[[], None]:
    optimizer = make_optimizer("adamw", blueprint(model).specs, clip=1.0, weight_decay=0.1)

    def whole(state: TrainState, tokens: jax.Array) -> TrainState:
        value, grads = jax.value_and_grad(loss_of)(state.trainable, tokens)
        return update(optimizer, state, value, grads, jnp.float32(1e-5))[0]

    step = jax.jit(whole, donate_argnums=0)
    state = TrainState(dict(leaves), jax.jit(optimizer.init)(leaves), {})

    def run() -> None:
        nonlocal state
        state = step(state, tokens)
        jax.block_until_ready(state)

    return run


def _same_weights(model: ModelConfig, leaves: Leaves):
    """Our decoder as transformers reads it, through the files that both know."""
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()

    with tempfile.TemporaryDirectory() as root:
        saved = store.save(Path(root) / "ours", leaves, model, None, {"made_by": "benchmark"})
        convert.from_checkpoint(saved, Path(root) / "theirs", "hf", quiet=True)
        return LlamaForCausalLM.from_pretrained(Path(root) / "theirs", attn_implementation="sdpa", dtype="float32")


def compiled(torch, work: Callable, attention: str) -> tuple[Callable, str]:
    """Compiled where PyTorch can (it needs a C++ compiler), else as it is; and what it is, with its `attention`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compile(lambda x: x + 1)(torch.ones(2))
        return torch.compile(work), ", ".join(filter(None, ("torch.compile", attention)))
    except Exception as error:
        why = f"torch.compile failed here: {str(error).splitlines()[0][:60]}"
        return work, f"{', '.join(filter(None, ('not compiled', attention)))}; {why}"
