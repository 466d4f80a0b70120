"""The stages that make the pre-trained parts: encoders against pictures and captions, and their assembly."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import grain
import jax
import numpy as np
from annotated_types import MinLen

from sphinx_jax.checkpoint import store
from sphinx_jax.data.conversation import Item
from sphinx_jax.data.image import load_image, padded_resize
from sphinx_jax.data.tasks import COCO_KEYPOINTS, DOMAINS, Box, parse_answer, parse_boxes
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.model.blueprint import Blueprint, blueprint
from sphinx_jax.model.flops import peak_flops
from sphinx_jax.model.views import normalise
from sphinx_jax.recipe.run import Run
from sphinx_jax.settings import Count, Name, NonNegative, Positive, Settings, Whole
from sphinx_jax.train import loop
from sphinx_jax.train.optimizer import check_optimizer, learning_rate, make_optimizer
from sphinx_jax.train.parts import Parts, PartsBatch
from sphinx_jax.train.program import slots
from sphinx_jax.train.step import TrainState, update

PHRASE_TOKENS, CAPTION_TOKENS, PHRASES = 6, 48, 8
KEYPOINT_SIDE = 0.08  # a keypoint counts as a box of this side around it


@dataclass(frozen=True)
class EncodersStage(Settings):
    steps: Count
    domains: Annotated[tuple[Name, ...], MinLen(1)] = DOMAINS
    batch: Count = 32
    optimizer: Name = "muon"
    rate: Positive = 8e-3
    adam_rate: Positive = 0.3  # relative to `rate`, for what is not a matrix
    warmup: Whole = 50
    weight_decay: NonNegative = 0.01
    clip: NonNegative = 1.0
    log_every: Count = 50
    save_every: Count = 1000

    def __post_init__(self):
        check_optimizer(self.optimizer, {}, clip=self.clip, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class AssembleStage(Settings):
    encoders: Name
    decoder: Name
    out: Name  # folder of the parts checkpoint; an older one there is replaced


def grounded_phrases(item: Item) -> list[tuple[str, Box]]:
    """Every phrase that the item's conversation ties to a box, each once."""
    found: dict[tuple[str, Box], None] = {}
    for task, (question, answer) in zip(item.tasks, item.turns, strict=True):
        if task in ("grounded_caption", "detection"):
            pairs = [(g.phrase, b) for g in parse_answer("grounded_caption", answer) for b in g.boxes]
        elif task == "text_spotting":
            pairs = [(r.text, r.box) for r in parse_answer(task, answer)]
        elif task == "layout":
            pairs = [(r.kind, r.box) for r in parse_answer(task, answer)]
        elif task == "reg":
            pairs = [(answer, box) for box in parse_boxes(question)[:1]]
        elif task == "pose":
            pose, half = parse_answer(task, answer), KEYPOINT_SIDE / 2
            named = zip(COCO_KEYPOINTS, pose.points if pose else (), strict=False)
            pairs = [
                (
                    n.replace("_", " "),
                    Box(max(p.x - half, 0), max(p.y - half, 0), min(p.x + half, 1), min(p.y + half, 1)),
                )
                for n, p in named
                if p is not None
            ]
        else:
            continue
        found.update(dict.fromkeys(pairs))
    return list(found)


def caption(item: Item) -> str:
    """What the item's conversation says of the picture as a whole."""
    by_task = {task: answer for task, (_, answer) in zip(item.tasks, item.turns, strict=True)}
    order = (
        "detailed_caption",
        "short_caption",
        "chart",
        "classification",
        "text_spotting",
        "grounded_caption",
    )
    chosen = next((by_task[t] for t in order if t in by_task), "")
    return chosen or next((a for _, a in item.turns), "")


class _Rows(grain.transforms.RandomMap):
    """Item number -> one row of a PartsBatch, everything but pixels prepared beforehand."""

    def __init__(self, items: Sequence[Item], tokenizer: Tokenizer, size: int):
        self.images = np.stack([padded_resize(load_image(item.image), size) for item in items])
        self.phrases = [grounded_phrases(item) for item in items]
        texts = sorted({phrase for phrases in self.phrases for phrase, _ in phrases})
        self.number = {text: i + 1 for i, text in enumerate(texts)}
        self.table = np.zeros((len(texts) + 1, PHRASE_TOKENS), np.int32)
        for text, i in self.number.items():
            ids = tokenizer.encode(text)[:PHRASE_TOKENS]
            self.table[i, : len(ids)] = ids
        self.captions = np.zeros((len(items), CAPTION_TOKENS), np.int32)
        for row, item in zip(self.captions, items, strict=True):
            ids = tokenizer.encode(caption(item), bos=True, eos=True)[:CAPTION_TOKENS]
            row[: len(ids)] = ids

    def random_map(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        pairs = self.phrases[index]
        chosen = rng.permutation(len(pairs))[:PHRASES]
        boxes, phrases = np.zeros((PHRASES, 4), np.float32), np.zeros(PHRASES, np.int32)
        for row, i in enumerate(chosen):
            phrase, box = pairs[i]
            boxes[row], phrases[row] = (box.x1, box.y1, box.x2, box.y2), self.number[phrase]
        return {
            "pixels": self.images[index],
            "boxes": boxes,
            "phrases": phrases,
            "phrase_tokens": self.table[phrases],
            "captions": self.captions[index],
        }


def train_encoders(run: Run, name: str, settings: EncodersStage) -> None:
    s, model, mesh = settings, run.recipe.model, run.mesh
    plan = Blueprint(lambda rngs: Parts(model, PHRASE_TOKENS, CAPTION_TOKENS, rngs=rngs))
    optimizer = make_optimizer(
        s.optimizer,
        plan.specs,
        clip=s.clip,
        weight_decay=s.weight_decay,
        **({"adam_learning_rate": s.adam_rate} if s.optimizer == "muon" else {}),
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batches: dict[str, Any], inputs: tuple[jax.Array, jax.Array]):
        rate, seed = inputs
        batch = batches["image"]
        batch = PartsBatch(**(batch | {"pixels": normalise(batch["pixels"])}))
        grad = jax.value_and_grad(lambda leaves: plan.bind(leaves)(batch, jax.random.key(seed)), has_aux=True)
        (loss, losses), grads = grad(state.trainable)
        state, metrics = update(optimizer, state, loss, grads, rate)
        return state, metrics | {"losses": losses}

    items = [item for domain in s.domains for item in run.data.items("train", domain)]
    prepare = _Rows(items, run.tokenizer, model.views.image_size)
    stream = (
        grain.MapDataset.range(len(items)).seed(run.recipe.seed).shuffle().repeat().random_map(prepare).batch(s.batch)
    )
    named = stream.map(lambda batch: {"image": batch})
    rate = functools.partial(learning_rate, peak=s.rate, steps=s.steps, warmup=s.warmup)
    tokens = 2 * s.batch * (1 + model.grid**2)
    encoders = sum(spec.size for path, spec in plan.specs.items() if path.startswith("encoders/"))

    def begin(found: Path | None) -> TrainState:
        leaves = plan.init(mesh, run.recipe.seed) if found is None else store.restore(found, mesh, plan)
        with jax.set_mesh(mesh):
            return TrainState(leaves, slots(optimizer, leaves, mesh, found), {})

    job = loop.TrainJob(
        name,
        run.folder(name),
        loop.LoopSettings(s.steps, s.log_every, s.save_every),
        begin,
        step,
        rate=lambda step: (np.float32(rate(step)), np.uint32(step)),
        data=lambda step: iter(named[step:].to_iter_dataset()),
        config=model,
        tokenizer=run.tokenizer,
        mesh=mesh,
        recipe={"made_by": "encoders", "stage": name, "settings": asdict(s)},
        throughput=loop.Throughput(tokens, 6.0 * tokens * encoders, peak_flops()),
        quiet=run.quiet,
    )
    loop.run(job)


def assemble(run: Run, name: str, settings: AssembleStage) -> None:
    """One checkpoint of the encoders of one stage and the decoder of another; projections and tags are fresh."""
    s, plan = settings, blueprint(run.recipe.model)
    encoders = run.checkpoint(s.encoders)
    found = store.restore(
        encoders,
        run.mesh,
        Blueprint(lambda r: Parts(run.recipe.model, PHRASE_TOKENS, CAPTION_TOKENS, rngs=r)),
    )
    leaves = run.leaves(s.decoder) | {path: leaf for path, leaf in found.items() if path.startswith("encoders/")}
    out = Path(s.out)
    if out.exists():
        shutil.rmtree(out)
    recipe = {
        "made_by": "assemble",
        "parts": {n: store.read_recipe(run.checkpoint(n)) for n in (s.encoders, s.decoder)},
        "data": asdict(run.recipe.data),
    }
    store.save(out, {path: leaves[path] for path in plan.specs}, run.recipe.model, run.tokenizer, recipe)
    # Orbax's marker holds the folder it was written to; what is shipped should not name the machine that made it
    marker = out / "commit_success.txt"
    if marker.exists():
        marker.write_text("committed\n")
