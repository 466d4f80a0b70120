"""SPHINX under another evaluator: its requests, answered through the engine, and boxes in its frame.

The evaluator is lmms-eval, of whose package nothing is imported here; `evaluate.lmms_eval` joins the two.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, get_args

from sphinx_jax.data.conversation import SYSTEM, Turn, clean, render
from sphinx_jax.data.image import BadImage, ImageSource, load_image
from sphinx_jax.data.read_ahead import read_ahead
from sphinx_jax.data.tasks import PaddedSquare, Point
from sphinx_jax.generate import arguments
from sphinx_jax.generate.arguments import BadArgument
from sphinx_jax.generate.batching.pictures import Picture
from sphinx_jax.generate.engine import SLOTS, Engine
from sphinx_jax.generate.load import from_pretrained
from sphinx_jax.generate.request import Request, Settings
from sphinx_jax.progress import progress

_log = logging.getLogger(__name__)

Frame = Literal["unpadded", "padded"]
MOST = 512  # tokens of an answer where a task sets no limit
LEAST = 16  # tokens that an answer is left, though its prompt be cut for them
SCORED = 256  # continuations that are scored at a time, whose pictures are in memory together
USED = ("until", "do_sample", "temperature", "top_p", "top_k", "max_new_tokens")
NEUTRAL = (None, False, 1)  # values of others that change nothing: one beam, no penalty

_LIST = re.compile(r"<p>.*?</p>|\[([^\[\]]*)\]", re.DOTALL)
_FOUR = re.compile(",".join([r"\s*(?:0?\.\d+|1\.0*)\s*"] * 4))
_DECIMALS = 4  # the model has two, of a longer side; what it said can be read back from these


class HostRequest(Protocol):
    """What is used of lmms-eval's `Instance`."""

    @property
    def args(self) -> tuple[Any, ...]: ...


class Asked(NamedTuple):
    """A question as a task puts it."""

    name: str  # in messages of errors
    messages: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]  # lmms-eval's `generation_kwargs`
    before: int = 0  # times that it was asked already


class Shown(NamedTuple):
    """A prompt with its picture, which lay in this square of the model's."""

    prompt: str
    picture: Picture | None
    square: PaddedSquare | None


class Hosted:
    """What lmms-eval asks of a model: one half of such a model, whose other half is its class `lmms`.

    A question that cannot be asked ends the evaluation, for there is no answer that says so: one line names its task,
    its document and what is wrong.

    Args:
      pretrained: a folder, as `from_pretrained` takes it.
      quantize: `int8` or `nf4`: the decoder in few bits.
      seed: of answers whose tokens are drawn; one that is asked for again has the next.
      boxes: what those in answers are relative to: the picture, as lmms-eval has them ("unpadded"), or the square that
        it is padded to, as the model says them ("padded").
      batch_size: answers at once; `auto` for as many as the engine has without being told, or `max_batch_size`.
      device: none, for JAX chooses it.

    Raises:
      BadArgument, BadCheckpoint: one line on what cannot be used.
    """

    is_simple = False
    task_dict: Mapping[str, Mapping[str, Sequence[Any]]]  # documents by task and split; lmms-eval puts them here

    def __init__(
        self,
        pretrained: str,
        quantize: str | None = None,
        seed: int = 0,
        boxes: Frame = "unpadded",
        batch_size: int | str = SLOTS,
        max_batch_size: int | None = None,
        device: str | None = None,
    ):
        super().__init__()
        arguments.check_one_of("boxes", boxes, get_args(Frame))
        arguments.check_sampling(seed=seed)
        if device is not None:
            raise BadArgument(f"device {device} is not for lmms-eval to choose; JAX takes what JAX_PLATFORMS says")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise BadArgument("one process answers with all devices; start lmms-eval without accelerate or torchrun")
        slots = _slots(batch_size, max_batch_size)
        self.boxes, self.seed = boxes, seed
        self.model = from_pretrained(str(pretrained), quantize=quantize)
        self.engine = self.model.engine = Engine(self.model, slots)

    def generate_until(self, requests: Sequence[HostRequest]) -> list[str]:
        """The answer to each request."""

        def asked() -> Iterator[Asked]:
            before: Counter[tuple[Any, ...]] = Counter()
            for request in requests:
                _, write, settings, number, task, split = request.args
                question = task, split, number
                yield Asked(_name(task, number), write(self._document(*question)), settings, before[question])
                before[question] += 1

        return self._answers(asked(), len(requests))

    def generate_until_multi_round(self, requests: Sequence[HostRequest]) -> list[list[str]]:
        """The answers to each request, one a round.

        What a round asks the task writes anew, from the answers so far; it says too when there are enough.
        """
        said: list[list[str]] = [[] for _ in requests]
        told: list[Any] = [None] * len(requests)  # by the round before
        going: Sequence[int] = range(len(requests))
        for round_ in itertools.count():
            asked_of: list[int] = []

            def asked(round_: int = round_, left: Sequence[int] = going, kept: list[int] = asked_of) -> Iterator[Asked]:
                for i in left:
                    _, write, settings, number, task, split = requests[i].args
                    document = self._document(task, split, number)
                    if round_ == 0:
                        messages, ended = write(document), False
                    else:
                        so_far = {"previous_output": list(said[i]), "previous_round_info": told[i]}
                        messages, ended, answers, told[i] = write(document, round_idx=round_, **so_far)
                        said[i] = said[i] if answers is None else list(answers)
                    if not ended:
                        kept.append(i)
                        yield Asked(_name(task, number), messages, settings)

            for i, answer in zip(asked_of, self._answers(asked(), len(going)), strict=False):
                said[i].append(answer)
            going = asked_of
            if not going:
                break
        return said

    def loglikelihood(self, requests: Sequence[HostRequest]) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation, and whether it is what the likeliest tokens say."""
        found: list[tuple[float, bool]] = []
        for begin in range(0, len(requests), SCORED):
            choices = [self._choice(request.args) for request in requests[begin : begin + SCORED]]
            chances = [0.0] * len(choices)
            for pictured in (True, False):
                rows = [i for i, (shown, _) in enumerate(choices) if (shown.picture is not None) is pictured]
                prompts, texts = [choices[i][0].prompt for i in rows], [f" {choices[i][1]}" for i in rows]
                pictures = [picture for i in rows if (picture := choices[i][0].picture)]
                for i, chance in zip(rows, self.model.score(prompts, texts, pictures or None), strict=True):
                    chances[i] = chance
            likeliest = self.engine.map(self._as_long(*choice) for choice in choices)
            for chance, (_, text), (said,) in zip(chances, choices, likeliest, strict=True):
                found.append((chance, said.text == text))
        return found

    def _document(self, task: str, split: str, number: int) -> Any:
        return self.task_dict[task][split][number]

    def _answers(self, asked: Iterable[Asked], at_most: int) -> list[str]:
        """Answers in the order of the questions.

        Tasks write these one after the other, as their code may know no threads; pictures are read by some.
        """
        texts: dict[int, str] = {}
        squares: list[PaddedSquare | None] = []

        def look(one: Asked) -> tuple[Asked, Shown]:
            with _named(one.name):
                return one, self._shown(*conversation(one.messages))

        def requests() -> Iterator[Request]:
            for looked in read_ahead(look, asked):
                one, shown = looked.result()
                squares.append(shown.square)
                with _named(one.name):
                    request = self._request(one, shown)
                yield request

        with progress(total=at_most, desc="lmms-eval", unit="q") as bar:
            for number, (said,) in self.engine.as_completed(requests()):
                square = squares[number] if self.boxes == "unpadded" else None
                texts[number] = said.text if square is None else unpadded(said.text, square)
                bar.update()
        return [texts[number] for number in range(len(texts))]

    def _shown(self, turns: Sequence[Turn], system: str, source: ImageSource | None) -> Shown:
        prompt, _ = render(turns, system)
        if source is None:
            return Shown(prompt, None, None)
        arguments.check_vision(self.model.config)
        image = load_image(source)
        return Shown(prompt, self.engine.pictures.picture(image), PaddedSquare(*image.size))

    def _request(self, asked: Asked, shown: Shown) -> Request:
        settings, config = sampling(asked.settings) | {"seed": self.seed + asked.before}, self.model.config
        positions = config.decoder.max_positions - (config.image_positions if shown.picture else 0)
        # limits are those of models with longer contexts, and the engine would cut the prompt to make room for them
        room = max(positions - len(self.model.encode_prompt(shown.prompt)), LEAST)
        settings["max_new_tokens"] = min(settings["max_new_tokens"], room)
        request = Request(shown.prompt, shown.picture, **settings)
        self.engine.room(shown.picture is not None, request.max_new_tokens)
        return request

    def _choice(self, args: tuple[Any, ...]) -> tuple[Shown, str]:
        """A prompt and its continuation, of what requests for log-likelihoods hold; some have no document."""
        context, continuation, *of_document = args
        if not of_document:
            return self._shown([(clean(context), None)], SYSTEM, None), continuation.strip()
        look, number, task, split = of_document
        document = self._document(task, split, number)
        pictures = (look(document) if look else None) or []
        with _named(_name(task, number)):
            shown = self._shown([(clean(context), None)], SYSTEM, _one(pictures))
        return shown, (continuation if isinstance(continuation, str) else continuation(document)).strip()

    def _as_long(self, shown: Shown, text: str) -> Request:
        """The likeliest answer of as many tokens as a text."""
        before, whole = (len(self.model.encode_prompt(shown.prompt + end)) for end in ("", f" {text}"))
        return Request(shown.prompt, shown.picture, max_new_tokens=max(whole - before, 1), temperature=0.0)


def conversation(messages: Sequence[Mapping[str, Any]]) -> tuple[list[Turn], str, ImageSource | None]:
    """Turns, system text and picture of messages `{"role": …, "content": text or parts}`, the last of them the user's.

    Raises:
      BadArgument: other speakers, something that is neither text nor picture, several pictures.
    """
    system, texts, pictures = SYSTEM, list[str](), list[ImageSource]()
    for number, message in enumerate(messages):
        role, content = message["role"], message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if others := [part["type"] for part in parts if part["type"] not in ("text", "image")]:
            raise BadArgument(f"message {number} has a part of type {others[0]}; SPHINX takes text and a picture")
        pictures += [part["url"] for part in parts if part["type"] == "image"]
        text = clean("\n".join(part["text"] for part in parts if part["type"] == "text"))
        if role == "system" and number == 0:
            system = text
            continue
        if role != ("assistant" if len(texts) % 2 else "user"):
            raise BadArgument(f"message {number} is from {role}; user and assistant must take turns")
        texts.append(text)
    if len(texts) % 2 == 0:
        raise BadArgument("the last message must be the user's")
    return list(zip(texts[::2], [*texts[1::2], None], strict=True)), system, _one(pictures)


def sampling(given: Mapping[str, Any]) -> Settings:
    """How tokens are chosen and where an answer ends, of settings that are named as those of transformers' `generate`.

    The likeliest tokens are taken unless `do_sample` or a temperature says otherwise. The log names what is not used.
    """
    unused = [name for name, value in given.items() if name not in USED and value not in NEUTRAL]
    if unused:
        _warn(", ".join(sorted(unused)))
    until, most = given.get("until") or (), given.get("max_new_tokens")
    stop = [until] if isinstance(until, str) else list(until)
    settings: Settings = {"max_new_tokens": MOST if most is None else most, "stop": [text for text in stop if text]}
    temperature, drawn = given.get("temperature"), given.get("do_sample")
    if not (bool(temperature) if drawn is None else drawn):
        return settings | {"temperature": 0.0}
    return settings | {
        "temperature": 1.0 if temperature is None else temperature,
        "top_p": 1.0 if given.get("top_p") is None else given["top_p"],
        "top_k": given.get("top_k") or 0,
    }


def unpadded(text: str, square: PaddedSquare) -> str:
    """An answer with its boxes relative to the picture, no more to the square that it is padded to; all else as it is.

    A box is a list of four decimal fractions, as SPHINX writes it; a list of integers is none. What of it lies on the
    padding is cut off: some tasks take numbers for thousandths where one of them is above 1.
    """

    def moved(found: re.Match[str]) -> str:
        items = (found[1] or "").split(";")
        if not all(map(_FOUR.fullmatch, items)):
            return found[0]
        comma = ", " if len(items) == 1 else ","
        return f"[{';'.join(comma.join(edges(item)) for item in items)}]"

    def edges(box: str) -> Iterator[str]:
        x1, y1, x2, y2 = map(float, box.split(","))
        for corner in (Point(x1, y1), Point(x2, y2)):
            at = square.to_pixels(corner, clip=True)
            yield f"{at.x / square.width:.{_DECIMALS}f}"
            yield f"{at.y / square.height:.{_DECIMALS}f}"

    return _LIST.sub(moved, text)


def _one(pictures: Sequence[ImageSource]) -> ImageSource | None:
    if len(pictures) > 1:
        raise BadArgument(f"it has {len(pictures)} pictures; one picture is what SPHINX takes")
    return pictures[0] if pictures else None


def _slots(batch_size: int | str, most: int | None) -> int:
    if str(batch_size).partition(":")[0] == "auto":
        return SLOTS if most is None else most
    if not str(batch_size).isdecimal():
        raise BadArgument(f"batch_size must be an integer of at least 1, or auto, not {batch_size!r}")
    return int(batch_size)


def _name(task: str, number: int) -> str:
    return f"document {number} of task {task}"


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except (BadArgument, BadImage) as error:
        raise BadArgument(f"{name} cannot be asked: {error}") from None


@functools.cache  # once
def _warn(names: str) -> None:
    _log.warning("settings of a task that are not used: %s", names)
