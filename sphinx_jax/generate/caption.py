"""What a model says about every picture of some data, as prepared data: the paper's synthetic domain is made so."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sphinx_jax.config import ConfigError
from sphinx_jax.data.formats.prepared import Prepared
from sphinx_jax.data.prepare.pipeline import OnBeam, finish, making
from sphinx_jax.generate.caption_piece import EDGES, Captions, Piece, pieces, say
from sphinx_jax.generate.engine import Engine
from sphinx_jax.generate.load import from_pretrained
from sphinx_jax.progress import progress


class Each(Protocol):
    """Has each of some pieces said, anywhere and in any order; `caption_piece.say` does one."""

    def __call__(self, what: Captions, given: Sequence[Piece]) -> None: ...


def caption(what: Captions, each: Each) -> Prepared:
    """Ask about every picture and write what is said; killed anywhere, the same call goes on with the next picture.

    Items carry what their source carried, and of each task `likelihood`, by which `tools/prepare_data.py` can choose.

    Raises:
      ConfigError: the folder was made otherwise; BadData: a file changed under way; DiskFull.
    """
    if not what.inputs:
        raise ConfigError("no file to read pictures from: the patterns of --input match nothing")
    made_from = what.as_json()
    with making(what.out, made_from) as to_do:
        if to_do:
            _caption(what, made_from, each)
    return Prepared(what.out)


def _caption(what: Captions, made_from: Mapping[str, Any], each: Each) -> None:
    given = pieces(what)
    if left := [piece for piece in given if not what.done(piece).exists()]:
        each(what, left)
    done = [what.done(piece) for piece in given]
    dropped: collections.Counter[str] = collections.Counter()
    bars = np.zeros(len(EDGES) - 1, int)
    for told in map(_read, done):
        dropped.update(told["dropped"])
        bars += told["likelihoods"]
    drawn = {"likelihood, nats a token": {"edges": EDGES, "kept": bars.tolist(), "dropped": [0] * len(bars)}}
    finish(what.out, made_from, map(_read, done), dict(dropped.most_common()), what.domain, drawn)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def engine_of(folder: str | Path, quantize: str | None, slots: int) -> Engine:
    """The engine that asks, with `functools.partial` a thing that workers can be sent."""
    return Engine(from_pretrained(folder, quantize=quantize), slots=slots)


class Here:
    """Each in this process."""

    def __init__(self, engine: Engine, quiet: bool = False):
        self.engine, self.quiet = engine, quiet

    def __call__(self, what: Captions, given: Sequence[Piece]) -> None:
        with progress(desc="captions", unit="answer", disable=self.quiet) as bar:
            for piece in given:
                say(what, piece, self.engine, bar.update)


class ByRunInference:
    """Each by Apache Beam's RunInference, on machines that all see the model, the files and the folder that is made
    under the same paths.

    Only names of files, and numbers of their shards, travel: pictures and answers are read and written by the workers.

    Args:
      load: gives the engine, one a machine; it is sent to the workers.
    """

    def __init__(self, load: Callable[[], Engine], on: OnBeam):
        self.load, self.on = load, on

    def __call__(self, what: Captions, given: Sequence[Piece]) -> None:
        from apache_beam.ml.inference.base import RunInference

        from sphinx_jax.generate.caption_handler import Handler

        handler = Handler(self.load, dataclasses.replace(what, inputs=()))
        self.on.apply(RunInference(handler), given, "captions")
