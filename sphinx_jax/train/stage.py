"""The training stage of a recipe: its settings, data and optimizer, handed to the loop."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sphinx_jax.config import ConfigError, ModelConfig
from sphinx_jax.data.rows import Shape, Source
from sphinx_jax.data.task_mix import names, rows, task_mix
from sphinx_jax.model.blueprint import FROZEN, Leaves, blueprint, matches
from sphinx_jax.model.layers import remat_policy
from sphinx_jax.sharding import RULES, row_share
from sphinx_jax.train import flops, loop
from sphinx_jax.train.optimizer import learning_rate, make_optimizer
from sphinx_jax.train.program import frozen_dtypes, program, start
from sphinx_jax.train.stage_data import check, check_features, describe, fitted, sources_of, with_rows, with_steps

if TYPE_CHECKING:
    from sphinx_jax.recipe import Run


@dataclass(frozen=True)
class TrainStage:
    """Settings of one training stage.  Defaults are the published stage 2 (SPHINX §"training recipes") where it has
    one."""

    start: str  # parts | fresh | a stage | a checkpoint folder
    steps: int = 0
    epochs: float = 0.0  # in place of steps: how often all pictures (texts, where there are none) are seen
    split: str = "train"  # of the data: with data.meta any list that is named there
    domains: Mapping[str, float] = dataclasses.field(default_factory=dict)  # domain (*: all) -> share; none: text only
    tasks: Mapping[str, float] | None = None  # task -> weight, others 0; None: all alike
    batch: int = 128  # pictures a step; pictures and texts where text_batch is None
    turns: int | None = None  # questions drawn for each picture; None: all of its conversation
    isolate_turns: bool = False  # turns about one picture do not see each other
    turn_power: float = 1.0  # an answer of n tokens counts as n to this power: 1 all tokens alike, 0 all answers
    length: int = 512  # text positions of a picture's row
    # text-only rows a step; None: of all of people's own list (domain *) as many of the batch as there are texts in it,
    # and epochs count every item; of anything else none
    text_batch: int | None = None
    text_length: int = 512
    pack_text: bool = False  # rows of text without padding, several documents in each, which do not see each other
    image_weight: float = 1.0  # of the pictures' loss
    text_weight: float = 1.0  # of the text-only loss
    unusable: float = (
        0.1  # share of a list that may be of no use (no picture, no room for the answer); more is an error
    )
    optimizer: str = "adamw"
    optimizer_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rate: float = 2e-5
    floor: float = 0.0
    warmup: int = 100
    warmup_epochs: float = 0.0  # in place of warmup, where epochs are given
    clip: float = 8.0
    weight_decay: float = 0.0
    accumulate: int = 1  # parts that a batch is cut into; one after the other goes through the model
    device_rows: int = 0  # in place of accumulate: so many parts that a device has at most this many rows at a time
    remat: str = "none"
    frozen: tuple[str, ...] = FROZEN  # patterns of leaves that do not train
    quantize: str = ""  # int8 or nf4: the layers' matrices of a decoder that is frozen but for LoRA
    cache_features: bool = False
    workers: int = 0
    log_every: int = 20
    save_every: int = 500
    keep: int = 1  # newest checkpoints of the stage that stay; several can be averaged or mixed

    def __post_init__(self):
        if bool(self.steps) == bool(self.epochs):
            raise ConfigError("a train stage needs either steps or epochs")
        if self.steps < 0 or self.epochs < 0:
            raise ConfigError(f"steps of a train stage must be at least 1, not {self.steps or self.epochs}")
        for name in ("batch", "length", "text_length", "accumulate", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of a train stage must be at least 1, not {getattr(self, name)}")
        if self.epochs and self.pack_text and not self.domains:
            raise ConfigError("how many rows an epoch of packed text has shows only once it is read; give steps")
        if not 0 <= self.unusable <= 1:
            raise ConfigError(f"unusable of a train stage is a share from 0 to 1, not {self.unusable:g}")
        if self.device_rows and self.accumulate > 1:
            raise ConfigError("a train stage takes accumulate or device_rows, not both")
        if not self.domains and not self.text_batch:
            raise ConfigError("a train stage needs domains, a text_batch, or both")
        if self.remat != "none":
            remat_policy(self.remat)
        if self.quantize:
            from sphinx_jax.model.quantise import MATRICES, check_kind

            check_kind(self.quantize)
            if trained := [path for path in MATRICES if not matches(path, self.frozen)]:
                raise ConfigError(f"quantize is for what is frozen; {trained[0]} trains (LoRA does not need it to)")
        make_optimizer(self.optimizer, {}, clip=self.clip, weight_decay=self.weight_decay, **self.optimizer_settings)

    def rows(self) -> dict[str, int]:
        """Rows a step of each kind of batch."""
        return {
            name: size for name, size in (("image", self.domains and self.batch), ("text", self.text_batch)) if size
        }


def train(run: Run, name: str, settings: TrainStage) -> None:
    model, mesh, folder = run.recipe.model, run.mesh, run.folder(name)
    s = fitted(model, settings)
    program(model, name, s, mesh)  # a batch that cannot be cut is told before data is read
    ways = math.prod(mesh.shape[axis] for axis in RULES["batch"])
    s = with_rows(s, run.data, ways * s.accumulate)
    made = program(model, name, s, mesh)
    held = [run.leaves(s.start, frozen_dtypes(model, s), s.quantize)]
    sources = sources_of(s, run.data)
    s = with_steps(s, sources, every=settings.text_batch is None)
    sizes, shaped = s.rows(), shapes(model, s)
    check(name, s, run.data, sources, shaped, run.tokenizer)
    if s.cache_features and s.domains:
        sources["image"] = [with_features(run, name, s, source, held[0]) for source in sources["image"]]
    if not (run.quiet or run.data.config.playground):
        print(describe(name, s, sources), flush=True)
    seeds = {"image": run.recipe.seed, "text": run.recipe.seed + 1}

    def stream(of: Callable[..., Sequence], kind: str) -> Sequence:
        return of(sources[kind], run.tokenizer, shaped[kind], seeds[kind], run.workdir / "lengths")

    streams = {kind: (stream(rows, kind), size) for kind, size in sizes.items()}
    named = functools.cache(functools.partial(stream, names))

    def identify(step: int) -> dict[str, list[str]]:
        """What the rows of a batch are made of; step n takes the n-th batch of the global stream."""
        return {k: [named(k)[i] for i in range(step * size, (step + 1) * size)] for k, size in sizes.items()}

    process, processes = row_share(mesh)

    def data(step: int) -> Iterator[Any]:
        return task_mix(streams, start=step, process=process, processes=processes, workers=s.workers)

    loop.run(
        folder, name, loop.LoopSettings(s.steps, s.log_every, s.save_every, s.keep),
        lambda: start(made, model, s, held.pop(), mesh), made.step,
        lambda step: np.float32(learning_rate(step, peak=s.rate, steps=s.steps, warmup=s.warmup, floor=s.floor)), data,
        plan=blueprint(model), config=model, tokenizer=run.tokenizer, mesh=mesh,
        recipe={"made_by": "train", "stage": name, "start": s.start, "settings": dataclasses.asdict(s)},
        throughput=throughput(model, s), identify=identify, profile=run.profile, quiet=run.quiet,
    )  # fmt: skip


def shapes(model: ModelConfig, s: TrainStage) -> dict[str, Shape]:
    """The static shape of each kind of row."""
    image = s.domains and Shape(s.length, model.views.image_size, s.turns, s.isolate_turns, s.turn_power)
    text = s.text_batch and Shape(s.text_length, packed=s.pack_text)
    return {kind: shape for kind, shape in (("image", image), ("text", text)) if shape}


def with_features(run: Run, name: str, s: TrainStage, source: Source, leaves: Leaves) -> Source:
    features = run.features(leaves, s.split, source.name)
    if features is not None and not run.data.config.playground:
        check_features(name, s, features.bad, len(source.items))
    return dataclasses.replace(source, features=features)


def throughput(model: ModelConfig, s: TrainStage) -> loop.Throughput:
    """Positions and model FLOPs of a step, padding not discounted."""
    tokens = total = 0.0
    # forward, back to the activations, and back to the weights where they train
    passes = 2 if matches("decoder/blocks/attention/q", s.frozen) else 3
    if s.domains:
        positions = model.image_positions + s.length
        tokens += s.batch * positions
        per_picture = passes * flops.decoder_forward(model.decoder, positions, s.length)
        total += s.batch * (per_picture + 3 * flops.image_forward(model, True))
        if not s.cache_features:
            total += s.batch * (flops.image_forward(model, False) - flops.image_forward(model, True))
    if s.text_batch:
        tokens += s.text_batch * s.text_length
        total += s.text_batch * passes * flops.decoder_forward(model.decoder, s.text_length, s.text_length)
    return loop.Throughput(int(tokens), total, flops.peak_flops())
