"""What a training stage is told, and what follows from it: the shapes of its rows and the work of a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sphinx_jax.config import ConfigError, ModelConfig, need
from sphinx_jax.data.rows import Shape
from sphinx_jax.model import flops
from sphinx_jax.model.blueprint import FROZEN, matches
from sphinx_jax.model.layers import remat_policy
from sphinx_jax.settings import Count, Name, NonNegative, Plain, Positive, Settings, Share, Whole, of_field
from sphinx_jax.train.loop import Throughput
from sphinx_jax.train.optimizer import check_optimizer


@dataclass(frozen=True)
class TrainStage(Settings):
    """Settings of one training stage.  Defaults are the published stage 2 (SPHINX §"training recipes") where it has
    one."""

    start: Name  # parts | fresh | a stage | a checkpoint folder
    steps: Whole = 0
    epochs: NonNegative = 0.0  # in place of steps: how often all pictures (texts, where there are none) are seen
    split: Name = "train"  # of the data: with data.meta any list that is named there
    domains: Mapping[str, Positive] = dataclasses.field(default_factory=dict)  # domain (*: all) -> share; none: text
    tasks: Mapping[str, NonNegative] | None = None  # task -> weight, others 0; None: all alike
    # task -> how often pictures with it come, where others come once: of what is rare, or learnt slowly
    repeats: Mapping[Name, Count] = dataclasses.field(default_factory=dict)
    # data set of people's own list -> weight, others 0: of one domain, and of texts, among each other; None: the list's
    sets: Mapping[Name, NonNegative] | None = None
    batch: Count = 128  # pictures a step; pictures and texts where text_batch is auto
    turns: Count | None = None  # questions drawn for each picture; None: all of its conversation
    isolate_turns: bool = False  # turns about one picture do not see each other
    turn_power: NonNegative = 1.0  # an answer of n tokens counts as n to this power: 1 all tokens alike, 0 all answers
    length: Count = 512  # text positions of a picture's row
    # text-only rows a step; auto: of all of people's own list (domain *) the share of the batch that is text in it,
    # and epochs count every item; none of anything else
    text_batch: Whole | Literal["auto"] = "auto"
    text_length: Count = 512
    pack_text: bool = False  # rows of text without padding, several documents in each, which do not see each other
    image_weight: NonNegative = 1.0  # of the pictures' loss
    text_weight: NonNegative = 1.0  # of the text-only loss
    unusable: Share = 0.1  # share of a list that may be of no use (no picture, no room for the answer)
    optimizer: Name = "adamw"
    optimizer_settings: Mapping[str, Plain] = dataclasses.field(default_factory=dict)
    rate: Positive = 2e-5
    floor: NonNegative = 0.0
    warmup: Whole = 100
    warmup_epochs: NonNegative = 0.0  # in place of warmup, where epochs are given
    clip: NonNegative = 8.0
    weight_decay: NonNegative = 0.0
    accumulate: Count = 1  # parts that a batch is cut into; one after the other goes through the model
    device_rows: Whole = 0  # in place of accumulate: so many parts that a device has at most this many rows at a time
    remat: str = "none"
    frozen: tuple[Name, ...] = FROZEN  # patterns of leaves that do not train
    quantize: str = ""  # int8 or nf4: the layers' matrices of a decoder that is frozen but for LoRA
    cache_features: bool = False
    workers: Whole = 0
    log_every: Count = 20
    save_every: Count = 500
    # newest checkpoints of the stage that stay, and can be averaged or mixed; best: the newest, to go on from, and that
    # of the lowest held-out loss, which is what the stage made
    keep: Count | Literal["best"] = 1
    evaluate_every: Whole = 0  # steps between two looks at held-out data; 0: none
    held_out: Name = "validation"  # the split that is looked at: domains, tasks and texts are those of the stage
    held_out_items: Count = 256  # of each domain, and of texts

    def __post_init__(self):
        if bool(self.steps) == bool(self.epochs):
            both = (
                f": it has {self.steps} steps and {self.epochs:g} epochs, of which one must be 0" if self.steps else ""
            )
            raise ConfigError(f"a train stage needs either steps or epochs{both}")
        if self.floor > self.rate:
            raise ConfigError(f"floor must be at most the rate {self.rate:g}, not {self.floor:g}")
        if self.tasks and not any(self.tasks.values()):
            raise ConfigError("tasks must hold a weight above 0; all are 0")
        if self.sets is not None and not any(self.sets.values()):
            raise ConfigError("sets must hold a weight above 0; all are 0")
        if self.epochs and self.pack_text and not self.domains:
            raise ConfigError("how many rows an epoch of packed text has shows only once it is read; give steps")
        if self.device_rows and self.accumulate > 1:
            raise ConfigError("a train stage takes accumulate or device_rows, not both")
        if self.keep == "best" and not self.evaluate_every:
            raise ConfigError("keep='best' needs evaluate_every, the steps between two looks at held-out data")
        if not self.rows():
            raise ConfigError("a train stage needs domains, a text_batch, or both")
        if self.remat != "none":
            with of_field("remat"):
                remat_policy(self.remat)
        if self.quantize:
            from sphinx_jax.model.quantise import MATRICES, check_kind

            with of_field("quantize"):
                check_kind(self.quantize)
            if trained := [path for path in MATRICES if not matches(path, self.frozen)]:
                raise ConfigError(f"quantize is for what is frozen; {trained[0]} trains (LoRA does not need it to)")
        check_optimizer(self.optimizer, self.optimizer_settings, clip=self.clip, weight_decay=self.weight_decay)

    def rows(self) -> dict[str, int]:
        """Rows a step of each kind of batch, as far as they are known before the data is."""
        text = 0 if self.text_batch == "auto" else self.text_batch
        return {kind: size for kind, size in (("image", self.domains and self.batch), ("text", text)) if size}


def shapes(model: ModelConfig, s: TrainStage) -> dict[str, Shape]:
    """The static shape of each kind of row."""
    image = s.domains and Shape(s.length, need(model.views).image_size, s.turns, s.isolate_turns, s.turn_power)
    text = "text" in s.rows() and Shape(s.text_length, packed=s.pack_text)
    return {kind: shape for kind, shape in (("image", image), ("text", text)) if shape}


def throughput(model: ModelConfig, s: TrainStage) -> Throughput:
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
    if texts := s.rows().get("text"):
        tokens += texts * s.text_length
        total += texts * passes * flops.decoder_forward(model.decoder, s.text_length, s.text_length)
    return Throughput(int(tokens), total, flops.peak_flops())
