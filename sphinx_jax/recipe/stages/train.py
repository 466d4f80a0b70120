"""The training stage of a recipe: its settings, data and optimizer, handed to the loop."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sphinx_jax.checkpoint import store
from sphinx_jax.data.rows import Source
from sphinx_jax.data.task_mix import names, rows, task_mix
from sphinx_jax.model.blueprint import Leaves, held_dtypes
from sphinx_jax.paths import write_whole
from sphinx_jax.recipe.run import Run
from sphinx_jax.report.seen_figure import seen_figure, told
from sphinx_jax.sharding import row_share, row_ways
from sphinx_jax.train import held_out, loop
from sphinx_jax.train.optimizer import learning_rate
from sphinx_jax.train.program import program, start
from sphinx_jax.train.resumed import place
from sphinx_jax.train.settings import TrainStage, shapes, throughput
from sphinx_jax.train.stage_data import (
    check_features,
    check_usable,
    fitted,
    held_out_sources,
    sources_of,
    trains_on,
    with_rows,
    with_steps,
)
from sphinx_jax.train.tally import seen_by


def train(run: Run, name: str, settings: TrainStage) -> None:
    model, mesh, folder = run.recipe.model, run.mesh, run.folder(name)
    s = fitted(model, settings)
    ways = row_ways(mesh)
    s = with_rows(s, run.data, ways * s.accumulate)
    made = program(model, name, s, mesh)
    dtypes, found = held_dtypes(model, s.frozen), store.newest(folder / "checkpoints")
    # what has begun needs nothing but its own checkpoint, which holds what does not train too
    held = [run.leaves(s.start, dtypes, s.quantize) if found is None else run.read(found, dtypes, s.quantize)]
    sources = sources_of(s, run.data)
    s = with_steps(s, sources, every=settings.text_batch == "auto")
    sizes, shaped = s.rows(), shapes(model, s)
    check_usable(name, s, run.data, sources, shaped, run.tokenizer)
    held_sources = held_out_sources(name, s, run.data, shaped, run.tokenizer) if s.evaluate_every else {}
    if s.cache_features and s.domains:
        for of_split, split, most in ((sources, s.split, None), (held_sources, s.held_out, s.held_out_items)):
            pictures = of_split.get("image", ())
            of_split["image"] = [with_features(run, name, s, split, source, held[0], most) for source in pictures]
    # what counts for nothing is looked at all the same, where nothing else is held out
    weights = {"image": max(s.image_weight, 1e-9), "text": max(s.text_weight, 1e-9)}
    looked_at = [
        held_out.HeldOut(
            source,
            run.tokenizer,
            shaped[kind],
            sizes[kind] // made.parts[kind],
            s.held_out_items,
            weights[kind] / len(of_kind),
        )
        for kind, of_kind in held_sources.items()
        for source in of_kind
    ]
    if not (run.quiet or run.data.config.playground):
        print(trains_on(name, s, sources), flush=True)
    at = place(found, sources, sizes)
    for line in at.changed() if not run.quiet else ():
        print(f"{name}: {line}", flush=True)
    seeds = {"image": run.recipe.seed, "text": run.recipe.seed + 1}

    def stream(of: Callable[..., Sequence], kind: str) -> Sequence:
        kept = run.workdir / "lengths"
        return of(sources[kind], run.tokenizer, shaped[kind], seeds[kind], kept, at.phases[kind])

    streams = {kind: (stream(rows, kind), size) for kind, size in sizes.items()}
    named = functools.cache(functools.partial(stream, names))

    def identify(step: int) -> dict[str, list[str]]:
        """What the rows of a batch are made of."""
        begins = at.at(step)
        return {k: [named(k)[begins[k] + i] for i in range(size)] for k, size in sizes.items()}

    process, processes = row_share(mesh)
    look = functools.partial(held_out.look, looked_at, held_out.make_sums(model), process, processes)

    def data(step: int) -> Iterator[Any]:
        return task_mix(streams, start=at.at(step), process=process, processes=processes, workers=s.workers)

    job = loop.TrainJob(
        name,
        folder,
        loop.LoopSettings(s.steps, s.log_every, s.save_every, s.keep, s.evaluate_every),
        begin=lambda found: start(made, model, s, held.pop(), mesh, found),
        step=made.step,
        rate=lambda n: np.float32(learning_rate(n, peak=s.rate, steps=s.steps, warmup=s.warmup, floor=s.floor)),
        data=data,
        config=model,
        tokenizer=run.tokenizer,
        mesh=mesh,
        recipe={"made_by": "train", "stage": name, "start": s.start, "settings": dataclasses.asdict(s)},
        throughput=throughput(model, s),
        place=at.told,
        sets={kind: [one.name for one in of_kind] for kind, of_kind in sources.items()},
        held_out=look,
        identify=identify,
        profile=run.profile,
        quiet=run.quiet,
    )
    loop.run(job)
    if jax.process_index() == 0 and (seen := seen_by(folder)):
        if not run.quiet:
            print(f"{name}: {told(seen)}", flush=True)
        if (figure := seen_figure({name: seen})) is not None:
            write_whole(folder / "seen.png", figure)


def with_features(
    run: Run, name: str, s: TrainStage, split: str, source: Source, leaves: Leaves, most: int | None
) -> Source:
    """A source of pictures with what the encoders see in them, or in the `most` that are looked at."""
    only = None if most is None else [int(source.eligible[n]) for n in source.spread(most)]
    features = run.features(leaves, split, source.name, only, source.items)
    if features is not None and not run.data.config.playground:
        check_features(name, s, features.bad, len(features))
    return dataclasses.replace(source, features=features)
