"""What an engine is asked, and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any, NamedTuple, TypedDict, get_args

import numpy as np

from sphinx_jax.config import ConfigError
from sphinx_jax.data.answer_grammar import TASKS, of_task
from sphinx_jax.data.image import ImageSource
from sphinx_jax.generate import arguments
from sphinx_jax.generate.batching.pictures import Detail, Picture


@dataclass(frozen=True)
class Request:
    """A prompt, taken verbatim (BOS is added), and how it is to be continued.

    Attributes:
      image: its picture.
      max_new_tokens: the most tokens that follow.
      temperature: 0 always takes the likeliest token.
      top_p: the share of the probability that tokens are chosen from, the likeliest first.
      top_k: the most likely tokens that are chosen from; 0: all.
      stop: texts that end the answer too, beside the template's own and the end of the sequence.
      n: answers; the i-th is the one that `seed + i` gives.
      detail: of a picture that is cut into crops, "high" is the overview and all of them, "auto" without those of a
        single colour, and "low" the overview alone. Positions count as if all were read.
      task: of `data.answer_grammar.TASKS`, to whose form the answer keeps. One box, a letter, yes or no come whole:
        fewer `max_new_tokens` than they may take are refused. Lists and poses end where the tokens do, perhaps
        within an item.
      grammar: to which the answer keeps, in Lark's form with a rule `answer`; `data.answer_grammar` writes some. An
        answer that spells the stop text ends there all the same, and one of `max_new_tokens` wherever it is.

    Raises:
      BadArgument: one line on what cannot be used.
    """

    prompt: str  # which may be empty beside a picture
    image: ImageSource | Picture | None = None
    max_new_tokens: int = 512
    temperature: float = 0.1
    top_p: float = 0.75
    top_k: int = 0
    seed: int = 0
    stop: Sequence[str] = ()
    n: int = 1
    detail: Detail = "high"
    task: str = ""
    grammar: str = ""

    def __post_init__(self):
        kinds = {"max_new_tokens": int, "temperature": float, "top_p": float, "top_k": int, "seed": int, "n": int}
        arguments.check_text("prompt", self.prompt)
        if self.image is None:
            arguments.check_filled("a prompt without a picture", self.prompt)
        given = arguments.check_sampling(**{name: getattr(self, name) for name in kinds})
        # of any kind of number, Python's own
        plain: dict[str, Any] = {name: kind(given[name]) for name, kind in kinds.items()}
        arguments.check_one_of("detail", self.detail, get_args(Detail))
        for name in ("task", "grammar"):
            arguments.check_text(name, getattr(self, name))
        if self.task:
            if self.grammar and self.grammar != TASKS.get(self.task):
                raise arguments.BadArgument("give task or grammar, not both")
            try:
                object.__setattr__(self, "grammar", of_task(self.task))
            except ConfigError as error:
                raise arguments.BadArgument(str(error)) from None
        for name, value in (plain | {"stop": tuple(arguments.check_stop(self.stop))}).items():
            object.__setattr__(self, name, value)


class Settings(TypedDict, total=False):
    """What a `Request` may say beside its prompt and its picture."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: Sequence[str]
    n: int
    detail: Detail
    task: str
    grammar: str


class Said(NamedTuple):
    """An answer with how it came about."""

    text: str
    tokens: list[int]  # the stop's included
    logprobs: list[float]  # natural logarithm of the probability that the model gives each, among those that fit
    ended: str  # why: stop, length (max_new_tokens), cancelled; "" where it goes on
    # of tokens that were chosen among those that fit a grammar, by their numbers: the likeliest of these, (K,) int32,
    # and the logarithms of their probabilities, (K,) float32
    others: Mapping[int, tuple[np.ndarray, np.ndarray]] = {}


def check_request(given: Any) -> None:
    if not isinstance(given, Request):
        raise arguments.BadArgument(f"an engine takes a Request, such as Request(prompt, image), not {short(given)}")
