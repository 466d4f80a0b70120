"""Answers beside transformers on PyTorch: the same weights and prompts, greedy, each side in a process of its own.

Times are those of reading prompts and of each token after them; requests that arrive together are answered by the
engine here, and there in padded batches, each of which runs until its longest answer ends.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sphinx_jax.config import DecoderConfig, ModelConfig
from sphinx_jax.measure.peers.sides import HEADER, OURS, SIDES, THEIRS, Pair, Side
from sphinx_jax.model.flops import best_seconds

# the shapes of SmolLM2-135M
DECODER = DecoderConfig(
    dim=576, layers=30, heads=9, kv_heads=3, vocab_size=49152, hidden_dim=1536, tied_embeddings=True
)
PAIRS = ((48, 1), (48, 8), (922, 4))  # positions of a prompt, rows
MORE = 16  # tokens whose time is taken
BATCHES = (8, 16, 32)  # of the peer, of which the fastest counts
PEER = "transformers, sdpa"
READ = 256 * 2**20  # bytes that are read to see how fast memory is


def measure(
    folder: Path, rounds: int, requests: int, decoder: DecoderConfig = DECODER, dtype: str = "float32"
) -> Iterator[str]:
    """Lines of the table; `folder` takes the weights, in our form and in theirs.

    `requests` arrive together, of prompts and answers of many lengths; both sides hold the weights, and compute, in
    `dtype`.
    """
    _make(folder, decoder)
    sides = {name: Side(answering, name, str(folder), dtype) for name in SIDES}
    try:
        yield from _compare(sides, rounds, requests, decoder.vocab_size)
    finally:
        for side in sides.values():
            side.end()


def _compare(sides: dict[str, Side], rounds: int, requests: int, vocab: int) -> Iterator[str]:
    rng = np.random.default_rng(0)
    yield f"on {_processor()}; best of {rounds} rounds"
    speed, size = (sides[OURS].ask(work) for work in ("read", "size"))
    yield HEADER
    for length, rows in PAIRS:
        prompts = rng.integers(3, vocab, (rows, length)).tolist()
        reads, steps = (Pair(f"{what} {length} x {rows}", [], [], PEER) for what in ("prefill", "a token after"))
        said: dict[str, list] = {}
        for round_ in range(rounds + 1):  # the first compiles
            for name, side in sides.items():
                side.ask("answer", prompts=prompts, most=1)  # a system may take memory back from who rests
                (short, _), (long, said[name]) = (side.ask("answer", prompts=prompts, most=n) for n in (1, 1 + MORE))
                if round_:
                    getattr(reads, name).append(short)
                    getattr(steps, name).append((long - short) / MORE)
        same = np.mean([a == b for a, b in zip(sum(said[OURS], []), sum(said[THEIRS], []), strict=True)])
        yield f"{reads.line()}; {same:.0%} of the tokens are the same"
        yield steps.line()
        if rows == 1:
            rate = size / min(steps.ours)
            yield f"{'':<28} weights at {rate / 1e9:.1f} GB/s, {rate / speed:.0%} of the {speed / 1e9:.1f} of a sum"
    if not requests:
        return
    asked = [
        {"prompt": rng.integers(3, vocab, rng.integers(16, 513)).tolist(), "most": int(rng.integers(4, 129))}
        for _ in range(requests)
    ]
    many, tokens = Pair(f"{requests} requests at once", [], [], PEER), sum(r["most"] for r in asked)
    for round_ in range(rounds + 1):
        for name, side in sides.items():
            seconds, _ = side.ask("many", requests=asked)
            if round_:
                getattr(many, name).append(seconds)
    yield f"{many.line()}; {tokens / min(many.ours):.0f} and {tokens / min(many.theirs):.0f} tokens/s"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "a processor that does not say its name"
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "an unknown processor"
    )


def _make(folder: Path, decoder: DecoderConfig) -> None:
    from sphinx_jax.checkpoint import store
    from sphinx_jax.checkpoint.foreign import convert
    from sphinx_jax.model.blueprint import blueprint
    from sphinx_jax.sharding import make_mesh

    if (folder / "theirs").exists():
        return
    model = ModelConfig("llama", decoder)
    saved = store.save(folder / "ours", blueprint(model).init(make_mesh()), model, None, {"made_by": "benchmark"})
    convert.from_checkpoint(saved, folder / "theirs", "hf", quiet=True)


class Ours:
    def __init__(self, folder: Path, dtype: str):
        from sphinx_jax import from_pretrained
        from sphinx_jax.generate.batching.batch import Batch
        from sphinx_jax.generate.batching.pictures import Pictures
        from sphinx_jax.generate.batching.sizes import Sizes
        from sphinx_jax.generate.batching.stops import Stops

        model = from_pretrained(folder / "ours", dtype=dtype)
        positions = model.config.decoder.max_positions
        self.leaves, self.stops = model.leaves, Stops(_Wordless(), ())
        pictures = Pictures(model.config, model.leaves)
        self.batches = {
            n: Batch(model.config, model.leaves, pictures, self.stops, model.mesh, Sizes.of(n, positions))
            for n in (1, 4, 8, 16)
        }

    def answer(self, prompts: Sequence[Sequence[int]], most: int) -> tuple[float, list[list[int]]]:
        return self._run(self.batches[len(prompts)], [{"prompt": p, "most": most} for p in prompts])

    def many(self, requests: Sequence[dict[str, Any]]) -> tuple[float, list[list[int]]]:
        return self._run(self.batches[16], requests)

    def _run(self, batch: Any, requests: Sequence[dict[str, Any]]) -> tuple[float, list[list[int]]]:
        from sphinx_jax.generate.batching.jobs import Job

        batch.forget()  # nothing is taken from the round before
        jobs = [Job(list(r["prompt"]), r["most"], self.stops) for r in requests]
        begun = time.perf_counter()
        batch.waiting.extend(jobs)
        while not all(job.done for job in jobs):
            batch.step()
        spent = time.perf_counter() - begun
        for job in jobs:
            if job.error is not None:
                raise job.error
        return spent, [job.tokens for job in jobs]

    def read(self) -> float:
        """Bytes a second that a sum reads."""
        import jax
        import jax.numpy as jnp

        array, total = jnp.ones(READ // 4, jnp.float32), jax.jit(jnp.sum)
        return READ / best_seconds(total, array, rounds=10)

    def size(self) -> int:
        """Bytes that a token reads."""
        import jax

        return sum(x.nbytes for x in jax.tree.leaves(self.leaves))


class Theirs:
    def __init__(self, folder: Path, dtype: str):
        import os

        import torch
        from transformers import LlamaForCausalLM

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.torch, self.batches = torch, BATCHES
        self.model = LlamaForCausalLM.from_pretrained(folder / "theirs", attn_implementation="sdpa", dtype=dtype)

    def answer(self, prompts: Sequence[Sequence[int]], most: int) -> tuple[float, list[list[int]]]:
        longest = max(map(len, prompts))
        padded = self.torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
        mask = self.torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        settings = {"max_new_tokens": most, "min_new_tokens": most, "do_sample": False, "pad_token_id": 0}
        begun = time.perf_counter()
        with self.torch.inference_mode():
            out = self.model.generate(input_ids=padded, attention_mask=mask, **settings)
        return time.perf_counter() - begun, out[:, longest:].tolist()

    def many(self, requests: Sequence[dict[str, Any]]) -> tuple[float, list[list[int]]]:
        found = []
        for size in self.batches:
            parts = [requests[at : at + size] for at in range(0, len(requests), size)]
            answers = [self.answer([r["prompt"] for r in part], max(r["most"] for r in part)) for part in parts]
            found.append((sum(seconds for seconds, _ in answers), size, [row for _, rows in answers for row in rows]))
        seconds, size, rows = min(found)
        self.batches = (size,)  # after the first round, which does not count
        return seconds, rows


class _Wordless:
    """A tokenizer of a model that has none: nothing ends an answer."""

    eos_ids = ()

    def pieces(self) -> list[bytes]:
        return []


def answering(side: str, folder: str, dtype: str) -> Ours | Theirs:
    return {OURS: Ours, THEIRS: Theirs}[side](Path(folder), dtype)
