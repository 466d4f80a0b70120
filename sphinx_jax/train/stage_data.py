"""What a training stage takes of its data: pictures, texts or both, what it leaves out, and whether it can be used."""

from __future__ import annotations

import dataclasses
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import numpy as np

from sphinx_jax.command import shortened
from sphinx_jax.config import ConfigError, ModelConfig, unknown
from sphinx_jax.data.conversation import BadItem, Item
from sphinx_jax.data.image import BadImage, load_image
from sphinx_jax.data.joined import Joined, counted
from sphinx_jax.data.rows import Rows, Shape, Source
from sphinx_jax.data.sources import Data, some
from sphinx_jax.data.tasks import INSTRUCTIONS
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.distributed import first_checks
from sphinx_jax.settings import of_field
from sphinx_jax.train.settings import TrainStage

_log = logging.getLogger(__name__)

TRIED = 256  # items of each kind that are tried before a stage begins
LEAST = 4  # of each source
READERS = 16  # of their pictures, which may lie far away


def fitted(model: ModelConfig, s: TrainStage) -> TrainStage:
    """The stage without pictures where the model takes text alone.

    Raises ConfigError where that leaves nothing.
    """
    if model.has_vision or not s.domains:
        return s
    if s.text_batch == 0:
        raise ConfigError("the model takes text alone and text_batch is 0: nothing is left to train on; leave it out")
    if s.cache_features:
        raise ConfigError("cache_features is of pictures, and the model takes text alone; leave it out")
    return dataclasses.replace(s, domains={}, text_batch=s.batch if s.text_batch == "auto" else s.text_batch)


def with_rows(s: TrainStage, data: Data, unit: int) -> TrainStage:
    """The stage with its rows of each kind, where `text_batch` leaves them to the data.

    With all of people's own list (the domain *) that is the batch in the proportion of pictures and texts, in multiples
    of `unit`, at least one of each kind there is; a row of either counts as its items do.  Anything else is pictures.
    """
    if s.text_batch != "auto":
        return s
    if data.config.playground or "*" not in s.domains:
        return dataclasses.replace(s, text_batch=0)
    pictures, texts = (sum(one.weight for one in sets) for sets in (_own(s, data), data.texts(s.split, s.sets)))
    if not texts:
        return dataclasses.replace(s, text_batch=0)
    if not pictures:
        return dataclasses.replace(s, domains={}, text_batch=s.batch)
    units, share = max(2, s.batch // unit), texts / (pictures + texts)
    rows = unit * min(max(1, round(units * share)), units - 1)
    return dataclasses.replace(
        s,
        batch=units * unit - rows,
        text_batch=rows,
        image_weight=s.image_weight * (1 - share),
        text_weight=s.text_weight * share,
    )


def _own(s: TrainStage, data: Data) -> Sequence[Source]:
    """The data sets of people's own list that have pictures."""
    return data.sets(s.split, "*", s.sets) if data.pictures(s.split) else ()


def with_steps(s: TrainStage, sources: Mapping[str, Sequence[Source]], every: bool = False) -> TrainStage:
    """Epochs as steps, now that the data is known: of the pictures (the texts, where there are none), or of whichever
    takes longer where `every` item counts."""
    if s.steps:
        return s
    counted = list(s.rows().items())
    epoch = max(
        sum(len(source.epoch) for source in sources[kind]) / rows
        for kind, rows in (counted if every and not s.pack_text else counted[:1])
    )
    warmup = round(s.warmup_epochs * epoch) if s.warmup_epochs else s.warmup
    return dataclasses.replace(s, steps=max(1, math.ceil(s.epochs * epoch)), epochs=0.0, warmup=warmup)


def sources_of(s: TrainStage, data: Data) -> dict[str, list[Source]]:
    """The data sets of each kind of batch, with their shares of it.

    Raises ConfigError where nothing is of a kind, a domain, the data sets or the tasks that the stage asks for.
    """
    found: dict[str, list[Source]] = {}
    if s.sets is not None:
        known = data.names(s.split)
        for name in s.sets.keys() - set(known):
            with of_field("sets"):
                raise unknown("data set", name, known)
    if s.domains:
        weights = {} if s.tasks is None else dict.fromkeys(INSTRUCTIONS, 0.0) | dict(s.tasks)
        # people's own data may have tasks of their own
        for task in (weights.keys() | s.repeats.keys()) - INSTRUCTIONS.keys():
            if not any(task in one.tasks for domain in s.domains for one, _ in counted(data.items(s.split, domain))):
                raise unknown("task", task, INSTRUCTIONS)
        found["image"] = [
            one for domain, share in s.domains.items() for one in _of_domain(s, data, domain, share, weights)
        ]
    if s.text_batch:
        found["text"] = [one for one in data.texts(s.split, s.sets) if one.weight > 0 and len(one.items)]
        if not found["text"]:
            others = [one.name for one in data.texts(s.split)]
            lacks = f"; sets names none of {some(others)}, which has some" if others else "; leave it out"
            raise ConfigError(f"text_batch: data.meta.{s.split} has no text alone that the stage takes{lacks}")
    return found


def _of_domain(s: TrainStage, data: Data, domain: str, share: float, weights: Mapping[str, float]) -> list[Source]:
    """The data sets of one domain, whose shares sum to the domain's."""
    sets = [
        dataclasses.replace(one, task_weights=weights, repeats=s.repeats) for one in data.sets(s.split, domain, s.sets)
    ]
    if not any(len(one.eligible) for one in sets):
        tasks = sorted({task or "none" for one, _ in counted(data.items(s.split, domain)) for task in one.tasks})
        raise ConfigError(f"tasks: no picture of domain {domain!r} has one of them; its tasks are {some(tasks)}")
    if s.sets is None and not data.weighted(s.split):  # each item counts alike, of those that have one of the tasks
        sets = [dataclasses.replace(one, weight=float(len(one.epoch))) for one in sets]
    kept = [one for one in sets if one.weight > 0 and len(one.eligible)]
    if not kept:
        raise ConfigError(f"sets: none of these data sets has pictures of domain {domain!r} with one of the tasks")
    total = sum(one.weight for one in kept)
    return [dataclasses.replace(one, weight=share * one.weight / total) for one in kept]


def whole(sources: Mapping[str, Sequence[Source]], s: TrainStage, data: Data) -> dict[str, list[Source]]:
    """The data sets of people's own list put together: one for each domain, and one of texts."""
    found: dict[str, list[Source]] = {}
    if images := sources.get("image"):
        weights = images[0].task_weights
        found["image"] = [Source(d, data.items(s.split, d), share, weights) for d, share in s.domains.items()]
    if texts := sources.get("text"):
        found["text"] = [Source("text", Joined([cast(Sequence[Item], one.items) for one in texts]))]
    return found


def held_out_sources(
    name: str, s: TrainStage, data: Data, shapes: Mapping[str, Shape], tokenizer: Tokenizer
) -> dict[str, list[Source]]:
    """What a stage looks at while it trains: its domains and texts, of the held-out split.

    People's own list may hold out pictures or texts alone.  Raises ConfigError where it holds out neither, or where a
    larger share of it than `unusable` is of no use.
    """
    with of_field(f"stage.{name}.held_out"):
        texts = bool(s.text_batch) and any(len(source.items) for source in data.texts(s.held_out))
        pictures = s.domains if data.config.playground or data.pictures(s.held_out) else {}
        if not (texts or pictures):
            raise ConfigError(f"data.meta.{s.held_out} has nothing of what the stage trains on")
        if not data.config.playground:
            first_checks(lambda: _readable(name, s, data, s.held_out))
        held = {task for domain in pictures for one, _ in counted(data.items(s.held_out, domain)) for task in one.tasks}
        # a list may hold out some of the tasks that are trained
        tasks = None if s.tasks is None else {t: w for t, w in s.tasks.items() if t in held or t in INSTRUCTIONS}
        asked = dataclasses.replace(
            s, split=s.held_out, domains=pictures, tasks=tasks, repeats={}, text_batch=s.text_batch if texts else 0
        )
        found = sources_of(dataclasses.replace(asked, sets=None), data)
        if not data.config.playground:
            found = whole(found, asked, data)
            first_checks(lambda: _tried(name, s, found, shapes, tokenizer, "held out"))
    return found


def _readable(name: str, s: TrainStage, data: Data, split: str) -> None:
    """ConfigError where too much of a split's lists cannot be read."""
    unreadable = data.unreadable(split)
    total = len(unreadable) + len(data.listed(split))
    _enough(name, s, total, len(unreadable), f"of data.meta.{split}", next(iter(unreadable), ""))


class Tried(NamedTuple):
    """What became of the first look at a source."""

    items: int
    unusable: int
    first: str  # why the first of them is
    cut: int  # items of which a part of the answers does not fit


def tried(source: Source, tokenizer: Tokenizer, shape: Shape, most: int = TRIED) -> Tried:
    """Try at most so many items from all over a source as rows are made of them; pictures are read, but not encoded."""
    indices = [int(source.eligible[n]) for n in source.spread(most)]
    rows = Rows(source, tokenizer, shape)
    whole = Rows(source, tokenizer, dataclasses.replace(shape, length=sys.maxsize))

    def attempt(index: int) -> tuple[str, bool]:
        item = source.items[index]
        try:
            if shape.image_size is not None and not isinstance(item, str):
                load_image(item.image or b"")
            if isinstance(item, str) or item.text:
                return "", False
            if not shape.packed:
                rows.conversation(item, np.random.default_rng(index))
            learnt = whole.conversation(item, np.random.default_rng(index)).loss_mask
        except (BadItem, BadImage) as error:
            return f"{source.name}/{getattr(item, 'id', '') or index}: {error}", False
        return "", not shape.packed and bool(learnt[shape.length :].any())

    with ThreadPoolExecutor(READERS) as pool:
        results = list(pool.map(attempt, indices))
    reasons = [why for why, _ in results if why]
    return Tried(len(indices), len(reasons), next(iter(reasons), ""), sum(cut for _, cut in results))


def check_usable(
    name: str,
    s: TrainStage,
    data: Data,
    sources: Mapping[str, Sequence[Source]],
    shapes: Mapping[str, Shape],
    tokenizer: Tokenizer,
) -> None:
    """Say what of people's own list a stage does not use, and look whether it can use the rest.

    Raises ConfigError, in every process of a run, where a larger share than `unusable` is of no use.
    """
    if data.config.playground:
        return

    def look() -> None:
        _readable(name, s, data, s.split)
        remarks = left_out(s, data, sources)
        for kind, source, found in _tried(name, s, sources, shapes, tokenizer, "tried"):
            if found.cut:
                setting = "length" if kind == "image" else "text_length"
                remarks.append(
                    f"of {found.items} items tried of {source.name!r} {found.cut} have answers beyond "
                    f"{setting} = {shapes[kind].length}, which are cut"
                )
        for remark in remarks:
            _log.warning("%s: %s", name, remark)

    first_checks(look)


def _tried(
    name: str,
    s: TrainStage,
    sources: Mapping[str, Sequence[Source]],
    shapes: Mapping[str, Shape],
    tokenizer: Tokenizer,
    how: str,
) -> list[tuple[str, Source, Tried]]:
    """The first look at each source, with its kind.  Raises ConfigError where too much of one is of no use."""
    looks = []
    for kind, of_kind in sources.items():
        most = max(LEAST, TRIED // len(of_kind))
        found = [(kind, source, tried(source, tokenizer, shapes[kind], most)) for source in of_kind]
        # of many sets a few items each: what cannot be used is judged of all together
        _, worst, first = max(found, key=lambda one: one[2].unusable)
        of = f"{how} of {worst.name!r}" + (f" and {len(found) - 1} more data sets" if len(found) > 1 else "")
        total, unusable = (sum(counts) for counts in zip(*(one[:2] for *_, one in found), strict=True))
        _enough(name, s, total, unusable, of, first.first)
        looks += found
    return looks


def check_features(name: str, s: TrainStage, bad: Mapping[int, str], total: int) -> None:
    """The same of a cache of features, which knows of all its pictures those that could not be read."""
    _enough(name, s, total, len(bad), "with pictures", next(iter(bad.values()), ""))


def _enough(name: str, s: TrainStage, total: int, unusable: int, of: str, first: str) -> None:
    if unusable > s.unusable * total:
        allowed = min(1.0, math.ceil(10 * unusable / total) / 10)
        raise ConfigError(
            f"{name}: {unusable} of {total} items {of} cannot be used ({shortened(first, 110)}); mend the list or its "
            f"root, or let it be with --config.stage.{name}.unusable={allowed:g}"
        )


def left_out(s: TrainStage, data: Data, sources: Mapping[str, Sequence[Source]]) -> list[str]:
    """What a stage does not take of a list, one line for each reason."""
    listed, pictures = data.listed(s.split), data.pictures(s.split)
    found, texts = [], len(listed) - len(pictures)
    if texts and not s.text_batch:
        found.append(f"{texts} of {len(listed)} items are text alone, which it leaves out; text_batch takes them")
    if pictures and not s.domains:
        found.append(f"{len(pictures)} of {len(listed)} items have pictures, which it leaves out: it takes text alone")
    if s.domains and "*" not in s.domains:
        others = {domain: count for domain, count in data.domains(s.split).items() if domain not in s.domains}
        if others:
            count = sum(others.values())
            found.append(f"{count} of {len(pictures)} pictures are of other domains ({some(sorted(others))})")
    if unused := [name for name in data.names(s.split) if s.sets is not None and not s.sets.get(name)]:
        found.append(f"{len(unused)} of its data sets are not in the mix ({some(unused)})")
    for source in sources.get("image", ()):
        if rest := len(source.items) - len(source.eligible):
            found.append(f"{rest} of {len(source.items)} pictures of {source.name!r} have none of its tasks")
    return found


def trains_on(name: str, s: TrainStage, sources: Mapping[str, Sequence[Source]]) -> str:
    """The line that says what a stage trains on."""
    words: dict[str, Any] = {"image": "pictures", "text": "texts"}
    parts = [
        f"{rows} of {sum(len(source.eligible) for source in sources[kind])} {words[kind]}"
        for kind, rows in s.rows().items()
    ]
    return f"{name}: {s.steps} steps, each of {' and '.join(parts)}"
