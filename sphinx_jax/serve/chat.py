"""Chat in the terminal: ``--stage chat``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Le, Lt

from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.data.image import BadImage, load_image
from sphinx_jax.generate.load import from_pretrained, last_checkpoint
from sphinx_jax.generate.sphinx import Sphinx
from sphinx_jax.settings import Count, NonNegative, Settings

if TYPE_CHECKING:
    from sphinx_jax.recipe import Run

HELP = "Ask anything; /image PATH looks at another picture, /new starts over, /quit leaves."


@dataclass(frozen=True)
class ChatStage(Settings):
    start: str = ""  # a stage or a checkpoint folder; default: the last trained stage
    image: str = ""  # a picture to begin with
    question: str = ""  # ask this one question and leave
    max_new_tokens: Count = 128
    temperature: NonNegative = 0.0
    top_p: Annotated[float, Gt(0), Le(1)] = 0.75
    seed: Annotated[int, Ge(-(2**63)), Lt(2**63)] = 0


def chat(run: Run, name: str, settings: ChatStage) -> None:
    if not settings.start and last_checkpoint(run.workdir) is None:
        raise BadCheckpoint(f"{run.workdir} holds no trained model yet; run the recipe without --stage first")
    model = from_pretrained(run.checkpoint(settings.start) if settings.start else run.workdir, mesh=run.mesh)
    if settings.question:
        print(respond(model, [[settings.question, None]], settings.image or None, settings))
        return
    talk(model, settings)


def respond(model: Sphinx, turns: list[list[str | None]], image: str | None, s: ChatStage) -> str:
    return model.respond(
        turns,
        image=image,
        max_new_tokens=s.max_new_tokens,
        temperature=s.temperature,
        top_p=s.top_p,
        seed=s.seed,
    )


def talk(model: Sphinx, s: ChatStage) -> None:
    """Read questions from standard input until it ends."""
    print(HELP)
    image, turns = s.image or None, []
    while True:
        print("you> ", end="", flush=True)
        line = sys.stdin.readline()
        command, _, rest = line.strip().partition(" ")
        if not line or command == "/quit":
            print()
            return
        if command == "/new":
            turns = []
        elif command == "/image":
            try:
                load_image(rest.strip())
            except BadImage as error:
                print(error)
                continue
            image, turns = rest.strip(), []
        elif command.startswith("/"):
            print(HELP)
        elif command:
            turns.append([line.strip(), None])
            try:
                turns[-1][1] = respond(model, turns, image, s)
            except BadImage as error:
                print(error)
                turns.pop()
                continue
            print(f"sphinx> {turns[-1][1]}")
