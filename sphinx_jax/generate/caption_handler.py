"""The engine as Apache Beam's RunInference knows models.  Needs the extra `scale`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from apache_beam.ml.inference.base import ModelHandler

from sphinx_jax.generate.caption_piece import Captions, Piece, say
from sphinx_jax.generate.engine import Engine


class Captioner:
    """An engine that is asked about one piece after another, whichever threads and processes bring them.

    So its batches are those of a run without Beam, and so are its answers, to the byte.
    """

    def __init__(self, engine: Engine, what: Captions):
        self._engine, self._what, self._lock = engine, what, threading.Lock()

    def say(self, piece: Piece) -> str:
        """The name of the file that tells what was written."""
        with self._lock:
            return str(say(self._what, piece, self._engine))


class Handler(ModelHandler):
    """Pieces in, names of the files that tell of them out.

    The engine takes all devices of its machine: it is loaded once there, and shared by Beam's processes.
    """

    def __init__(self, load: Callable[[], Engine], what: Captions):
        super().__init__()
        self._load, self._what = load, what

    def load_model(self) -> Captioner:
        return Captioner(self._load(), self._what)

    def run_inference(
        self, batch: Sequence[Piece], model: Captioner, inference_args: Mapping[str, Any] | None = None
    ) -> Iterator[str]:
        return map(model.say, batch)

    def batch_elements_kwargs(self) -> Mapping[str, int]:
        # a piece takes long enough, and what fails is tried again alone
        return {"min_batch_size": 1, "max_batch_size": 1}

    def share_model_across_processes(self) -> bool:
        return True

    def get_metrics_namespace(self) -> str:
        return "captions"
