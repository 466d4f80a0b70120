"""One picture of the playground with its questions, from (seed, split, domain, index) alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sphinx_jax.data.playground import questions
from sphinx_jax.data.playground import questions_documents as documents
from sphinx_jax.data.playground.canvas import encode
from sphinx_jax.data.playground.photos import SPLITS
from sphinx_jax.data.playground.questions import Ask, Turn, ask_all
from sphinx_jax.data.playground.scene import Scene
from sphinx_jax.data.playground.scenes_page import chart_scene, page_scene
from sphinx_jax.data.playground.scenes_people import person_scene
from sphinx_jax.data.playground.scenes_text import text_scene
from sphinx_jax.data.playground.scenes_things import single_scene, things_scene
from sphinx_jax.data.tasks import DOMAINS, PaddedSquare


@dataclass(frozen=True)
class Kind:
    """A kind of scene: how it is drawn, what is asked about it, and its share of a domain's pictures."""

    name: str
    draw: Callable[[np.random.Generator, str, str], Scene]
    plan: Callable[[np.random.Generator], Sequence[Ask]]
    shares: tuple[float, float]  # real, synthetic


SCENES = (
    Kind("things", things_scene, questions.things_plan, (0.70, 0.68)),
    Kind("single", single_scene, questions.single_plan, (0.06, 0.06)),
    Kind("text", text_scene, documents.text_plan, (0.08, 0.09)),
    Kind("page", page_scene, documents.page_plan, (0.05, 0.05)),
    Kind("person", person_scene, documents.person_plan, (0.06, 0.06)),
    Kind("chart", chart_scene, documents.chart_plan, (0.05, 0.06)),
)


@dataclass(frozen=True)
class Example:
    """A picture (encoded bytes), what it was made of, its turns and its exact labels.

    labels: `width`, `height` in pixels, `things`, and by kind of scene `texts`, `layout`, `people`, `bars`;
    all coordinates relative to the padded square.
    """

    image: bytes
    id: str
    domain: str
    scene: str
    sources: tuple[str, ...]
    turns: tuple[Turn, ...]
    labels: dict[str, Any]


def make_picture(seed: int, split: str, domain: str, index: int) -> Example:
    """The picture `index` of a split and domain; every call with the same arguments gives the same bytes.

    Raises ValueError on an unknown split or domain, or a negative seed or index.
    """
    for value, known, what in ((split, SPLITS, "split"), (domain, DOMAINS, "domain")):
        if value not in known:
            raise ValueError(f"unknown playground {what} {value!r}: give one of {', '.join(known)}")
    if seed < 0 or index < 0:
        raise ValueError(f"playground seed {seed} and index {index}: give numbers from 0")
    key = [seed, SPLITS.index(split), DOMAINS.index(domain), index]
    drawing, asking = np.random.default_rng([*key, 0]), np.random.default_rng([*key, 1])
    shares = np.array([kind.shares[DOMAINS.index(domain)] for kind in SCENES])
    kind = SCENES[int(drawing.choice(len(SCENES), p=shares / shares.sum()))]
    scene = kind.draw(drawing, domain, split)
    turns = ask_all(scene, asking, kind.plan(asking))
    name = f"{domain}-{split}-{seed}-{index:06d}"
    return Example(encode(scene.pixels, domain), name, domain, kind.name, scene.sources, turns, labels(scene))


def labels(scene: Scene) -> dict[str, Any]:
    """Everything known about a scene as plain JSON values, relative to the padded square, 4 decimals."""
    square = PaddedSquare(scene.width, scene.height)

    def box(value) -> list[float]:
        relative = square.from_pixels(value)
        return [round(v, 4) for v in (relative.x1, relative.y1, relative.x2, relative.y2)]

    def points(pose) -> list[list[float] | None]:
        found = square.from_pixels(pose).points
        return [point and [round(point.x, 4), round(point.y, 4)] for point in found]

    known: dict[str, Any] = {"width": scene.width, "height": scene.height}
    known["things"] = [{"name": t.name, "colour": t.colour, "box": box(t.box)} for t in scene.things]
    if scene.texts:
        known["texts"] = [{"text": region.text, "box": box(region.box)} for region in scene.texts]
    if scene.layout:
        known["layout"] = [{"kind": region.kind, "box": box(region.box)} for region in scene.layout]
    if scene.people:
        known["people"] = [{"colour": p.colour, "box": box(p.box), "keypoints": points(p.pose)} for p in scene.people]
    if scene.bars:
        known["bars"] = [list(bar) for bar in scene.bars]
    return known
