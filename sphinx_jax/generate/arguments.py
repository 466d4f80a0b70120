"""What people hand to the public API, checked before anything is compiled: one line on what cannot be used."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Integral, Real
from reprlib import repr as short
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.config import ModelConfig, need, unknown
from sphinx_jax.data.conversation import clean
from sphinx_jax.data.image import BadImage, ImageSource


class BadArgument(ValueError):
    """An argument that cannot be used; the message is one line that says what was given and what is expected."""


_SAMPLING = {
    "max_new_tokens": (Integral, lambda count: count >= 1, "an integer of at least 1"),
    "temperature": (Real, lambda value: value >= 0, "a number of at least 0 (which is greedy)"),
    "top_p": (Real, lambda share: 0 < share <= 1, "a number above 0 and at most 1"),
    "top_k": (Integral, lambda count: count >= 0, "an integer of at least 0 (which is all tokens)"),
    "n": (Integral, lambda count: count >= 1, "an integer of at least 1"),
    "seed": (Integral, lambda seed: -(2**63) <= seed < 2**63, "an integer of 64 bits"),
}
STOP_LENGTH = 128
_TURNS = "turns must be [[question, answer], …, [question, None]]"


def check_flag(name: str, given: Any) -> bool:
    if not isinstance(given, bool | np.bool_):
        raise BadArgument(f"{name} must be True or False, not {short(given)}")
    return bool(given)


def check_known(settings: Collection[str], known: Collection[str]) -> None:
    for name in settings:
        if name not in known:
            raise BadArgument(str(unknown("setting", name, known)))


def check_sampling(**settings: Any) -> dict[str, Any]:
    """The settings of `generate` as they came."""
    for name, value in settings.items():
        kind, fits, expected = _SAMPLING[name]
        if isinstance(value, bool) or not (isinstance(value, kind) and _is_finite(value) and fits(value)):
            raise BadArgument(f"{name} must be {expected}, not {short(value)}")
    return settings


def _is_finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False


def check_text(name: str, given: str) -> str:
    if not isinstance(given, str):
        raise BadArgument(f"{name} must be a string, not {short(given)}")
    try:
        given.encode()
    except UnicodeEncodeError:
        raise BadArgument(f"{name} holds half of a surrogate pair, which is no character") from None
    return given


def check_filled(name: str, given: str) -> str:
    if not given.strip():
        raise BadArgument(f"{name} must hold some text, not {short(given)}")
    return given


def check_one_of(name: str, given: Any, known: Sequence[str]) -> None:
    if given not in known:
        raise BadArgument(f"{name} must be {', '.join(known[:-1])} or {known[-1]}, not {short(given)}")


def check_texts(name: str, given: Sequence[str]) -> list[str]:
    return [check_text(f"{name}[{i}]", text) for i, text in enumerate(_listed(name, given, "strings"))]


def check_stop(given: Sequence[str]) -> list[str]:
    """Stop texts, none of them empty, and not so long that looking for them takes long."""
    texts = check_texts("stop", given)
    for i, text in enumerate(texts):
        if not text:
            raise BadArgument(f"stop[{i}] is empty; every text holds it from the start")
    if (length := sum(map(len, texts))) > STOP_LENGTH:
        raise BadArgument(f"stop holds {length} characters; {STOP_LENGTH} are the most, of all its texts")
    return texts


def check_pictures(config: ModelConfig, given: Sequence[ImageSource]) -> list[ImageSource]:
    """At least one picture; what a picture is, `load_image` checks."""
    check_vision(config)
    images = _listed("images", given, "pictures")
    if not images:
        raise BadArgument("images must hold at least one picture, not []")
    return images


def check_images(config: ModelConfig, given: Sequence[Any] | None, prompts: Sequence[str]) -> list[Any] | None:
    """One picture a prompt, or None for none at all."""
    if given is None:
        return None
    check_vision(config)
    images = _listed("images", given, "pictures")
    check_equally_many(prompts=prompts, images=images)
    if any(image is None for image in images):
        raise BadImage("an image must be a path, bytes or a PIL image, not NoneType")
    return images


def check_equally_many(**lists: Sequence[Any]) -> None:
    counts = [len(each) for each in lists.values()]
    if len(set(counts)) > 1:
        raise BadArgument(f"{' and '.join(lists)} must be equally many, not {' and '.join(map(str, counts))}")


def check_vision(config: ModelConfig) -> None:
    if not config.has_vision:
        raise BadArgument(f"{config.name} is a text-only model; it takes no pictures")


def check_turns(turns: Sequence[Sequence[str | None]]) -> None:
    if not isinstance(turns, list | tuple) or not turns:
        raise BadArgument(f"{_TURNS}, not {short(turns)}")
    for i, turn in enumerate(turns):
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise BadArgument(f"{_TURNS}; turns[{i}] is {short(turn)}")
        question, answer = turn
        check_text(f"turns[{i}][0]", question)
        if (answer is None) != (i == len(turns) - 1):
            raise BadArgument(f"{_TURNS}, None for the last answer alone; turns[{i}][1] is {short(answer)}")
        if answer is not None:
            check_text(f"turns[{i}][1]", answer)
    check_filled(f"turns[{len(turns) - 1}][0], the question,", clean(question))


def check_tokens(given: Any, vocab_size: int) -> np.ndarray:
    """(B, T) int32, from integers of any kind."""
    tokens = np.asarray(_array("tokens", given))
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer) or not tokens.size:
        raise BadArgument(f"tokens must be (B, T) integers, B and T at least 1, not {tokens.shape} {tokens.dtype}")
    wrong = np.argwhere((tokens < 0) | (tokens >= vocab_size))
    if len(wrong):
        row, column = map(int, wrong[0])
        raise BadArgument(f"tokens must be from 0 to {vocab_size - 1}; [{row}, {column}] is {tokens[row, column]}")
    return tokens.astype(np.int32)


def check_pixels(config: ModelConfig, given: Any, batch: int) -> np.ndarray | jax.Array | None:
    """(B, S, S, 3) of any float, or None."""
    if given is None:
        return None
    check_vision(config)
    pixels, side = _array("pixels", given), need(config.views).image_size
    if pixels.shape != (batch, side, side, 3) or not jnp.issubdtype(pixels.dtype, jnp.floating):
        raise BadArgument(
            f"pixels must be {(batch, side, side, 3)} floats as sphinx_jax.data.image.preprocess gives them, "
            f"not {pixels.shape} {pixels.dtype}"
        )
    return pixels


def _listed(name: str, given: Iterable[Any], of: str) -> list[Any]:
    # a string is a list of strings to Python, and a table one of its keys
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise BadArgument(f"{name} must be a list of {of}, not {short(given)}")
    return list(given)


def _array(name: str, given: Any) -> np.ndarray | jax.Array:
    try:
        return given if isinstance(given, jax.Array) else np.asarray(given)
    except ValueError:
        raise BadArgument(f"{name} must be one array; rows of these differ in length") from None
