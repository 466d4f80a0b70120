"""Chat in the terminal: `--stage chat`."""

from __future__ import annotations

import io
import os
import shlex
import sys
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.data.image import load_image
from sphinx_jax.generate.arguments import check_vision
from sphinx_jax.generate.load import from_pretrained, last_checkpoint
from sphinx_jax.generate.sphinx import Sphinx
from sphinx_jax.recipe.run import Run
from sphinx_jax.settings import Count, NonNegative, Settings

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
    model = from_pretrained(run.checkpoint(settings.start) if settings.start else run.workdir)
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
    """Read questions from standard input until it ends.

    What cannot be used or answered is one line, and the conversation goes on where it was; so does Ctrl-C during an
    answer.
    """
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            # names of files are bytes, and a terminal may lack a letter
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdin else "replace")
    print(HELP)
    image, turns = None, []
    if s.image:
        image = seen(model, s.image)
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
            if not rest.strip():
                print("/image PATH looks at a picture, e.g. /image ~/photo.jpg")
            elif found := seen(model, unquoted(rest.strip())):
                image, turns = found, []
        elif command.startswith("/"):
            print(HELP)
        elif command:
            turns = answered(model, turns, line.strip(), image, s)


def seen(model: Sphinx, path: str) -> str | None:
    """The path, if the model can look at it; else it says why not."""
    try:
        check_vision(model.config)
        load_image(path)
    except ValueError as error:
        tell(error)
        return None
    return path


def answered(
    model: Sphinx, turns: list[list[str | None]], question: str, image: str | None, s: ChatStage
) -> list[list[str | None]]:
    """The conversation with one more turn, or as it was if there is no answer."""
    try:
        answer = respond(model, [*turns, [question, None]], image, s)
    except ValueError as error:
        tell(error)
    except KeyboardInterrupt:
        print("\nstopped")
    else:
        print(f"sphinx> {answer}")
        return [*turns, [question, answer]]
    return turns


def tell(error: ValueError) -> None:
    print(" ".join(str(error).split()))


def unquoted(name: str) -> str:
    """A path as it is written or dropped into a terminal: in quotes, with escaped blanks, from ~ on."""
    try:
        words = shlex.split(name)
    except ValueError:  # an apostrophe
        words = []
    return os.path.expanduser(words[0] if len(words) == 1 else name)
