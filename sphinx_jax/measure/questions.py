"""Sixteen questions about one picture: all at once, beside one after the other with nothing kept between them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import numpy as np
from PIL import Image

from sphinx_jax.config import (
    DECODERS,
    FAMILY,
    ModelConfig,
    QFormerConfig,
    blip2_config,
    clip_config,
    dinov2_config,
)
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.generate.engine import Engine
from sphinx_jax.generate.request import Request
from sphinx_jax.generate.sphinx import Sphinx
from sphinx_jax.measure.peers.sides import Pair
from sphinx_jax.model.blueprint import blueprint
from sphinx_jax.recipe.recipe import PLAYGROUND
from sphinx_jax.sharding import make_mesh

QUESTIONS = 16
ANSWER = 16  # tokens, or fewer where the model says so


def config(layers: int = 4) -> ModelConfig:
    """SPHINX-1k's five views, 1,455 positions, before a decoder of SPHINX-Tiny's widths; encoders that cost little."""
    return dataclasses.replace(
        FAMILY["sphinx_1k"],
        name="questions",
        decoder=dataclasses.replace(DECODERS["tiny"], layers=layers),
        clip=clip_config(64, 1, 1),
        convnext=None,
        dinov2=dinov2_config(64, 1, 1),
        blip2=blip2_config(64, 1, 1, 64),
        qformer=QFormerConfig(64, 2, 1, 64),
        dtype="float32",
    )


def measure(model: ModelConfig, rounds: int) -> Iterator[str]:
    """Lines of the table, of a model with random weights."""
    mesh = make_mesh()
    sphinx = Sphinx(model, blueprint(model).init(mesh), load_tokenizer(PLAYGROUND / "tokenizer.model"), mesh)
    pixels = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
    picture = Image.fromarray(pixels)
    asked = [
        Request(
            f"Question {n}: what is {n * 7} to the left of the red star, and why?", picture, ANSWER, temperature=0.0
        )
        for n in range(QUESTIONS)
    ]
    pair = Pair(f"{QUESTIONS} questions, a picture", [], [], "one after the other, nothing kept")
    for round_ in range(rounds + 1):  # the first compiles
        begun = time.perf_counter()
        together = [said.tokens for (said,) in Engine(sphinx).map(asked)]
        between = time.perf_counter()
        singly = [said.tokens for request in asked for (said,) in Engine(sphinx, slots=1).map([request])]
        if round_:
            pair.ours.append(between - begun)
            pair.theirs.append(time.perf_counter() - between)
    same = np.mean([a == b for a, b in zip(together, singly, strict=True)])
    yield f"{model.image_positions} positions of the picture, {model.decoder.layers} layers of {model.decoder.dim}"
    yield f"{pair.line()}; {same:.0%} of the answers are the same"
