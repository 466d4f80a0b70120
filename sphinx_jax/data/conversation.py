"""Conversations: from the files that people have to tokens and labels.

The template, the labels and the files are those of the SPHINX release, but for one thing: labels are found by
position. The release takes the first place where an answer's text occurs, which a question that ends with the
answer steals.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, overload

import numpy as np

from sphinx_jax.data.messages import (
    MARKER,
    BadItem,
    Remarks,
    check_keys,
    encodable,
    one_picture,
    read_messages,
    read_name,
    read_names,
    read_pictures,
    short,
)
from sphinx_jax.data.tokenizer import Span, Tokenizer
from sphinx_jax.paths import joined, located, shortened

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
HUMAN, ASSISTANT = " Human:", " Assistant:"
STOP = "\n###"
"""Ends every message; a model that writes it has finished its answer."""
PREPARED_FIRST = (".tar", ".parquet", ".tsv", ".csv")  # no list, but of a format that can be prepared

PAD = 0
"""The token id of padding. It may be a real token's as well (`!` in LLaMA 3): masks, not ids, say what counts."""

Turn = tuple[str, str | None]

_log = logging.getLogger(__name__)


def render(turns: Sequence[Turn], system: str = SYSTEM) -> tuple[str, list[Span]]:
    """Writes a conversation in the template that SPHINX was trained with.

    Args:
      turns: (question, answer) pairs, verbatim. The last answer may be None: then the text is a prompt and
        ends in " Assistant:".
      system: what stands before the first turn.

    Returns:
      The text, and for each answer the characters [start, end) of it and of the `STOP` after it.

    Raises:
      BadItem: no turns, or an answer other than the last is None.
    """
    if not turns:
        raise BadItem("the conversation has no turns")
    text = system + "\n" + STOP
    spans = []
    for i, (question, answer) in enumerate(turns):
        text += f"{HUMAN} {question}{STOP}{ASSISTANT}"
        if answer is not None:
            spans.append((len(text) + 1, len(text) + 1 + len(answer) + len(STOP)))
            text += f" {answer}{STOP}"
        elif i < len(turns) - 1:
            raise BadItem(f"turn {i} of {len(turns)} has no answer; only the last may lack one")
    return text, spans


@dataclass(frozen=True)
class Encoded:
    """A conversation as arrays; T is its own length, or the static one after `pad`.

    The loss mask stands at a token's own position: shifting by one is the loss's business.
    """

    tokens: np.ndarray
    """(T,) int32: BOS, text, EOS; then `PAD`."""
    loss_mask: np.ndarray
    """(T,) bool: True where the token is learnt: it belongs to an answer or to the `STOP` after it."""
    mask: np.ndarray
    """(T,) bool: False on padding."""
    turn: np.ndarray
    """(T,) int32: index of the turn that a labelled token answers, elsewhere -1."""
    task: np.ndarray
    """(T,) int32: `task_ids` of that turn; -1 where there is none."""
    segment: np.ndarray
    """(T,) int32: 0 for what comes before the first turn, i + 1 for all of turn i, -1 on padding."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def labels(self) -> np.ndarray:
        """(T,) int32 as the release writes them: the token where it is learnt, 0 elsewhere (a token too in some)."""
        return np.where(self.loss_mask, self.tokens, 0)

    def cut(self, start: int, length: int) -> Encoded:
        """At most `length` positions from `start` on."""
        return Encoded(*(getattr(self, f.name)[start : start + length] for f in fields(self)))


def encode_conversation(
    turns: Sequence[Turn],
    tokenizer: Tokenizer,
    max_tokens: int,
    *,
    task_ids: Sequence[int] | None = None,
    system: str = SYSTEM,
) -> Encoded:
    """Tokens and labels of a conversation, cut to `max_tokens`.

    The unknown token and the last EOS are never learnt. An overlong conversation loses its end, as in the reference.

    Args:
      turns: (question, answer) pairs.
      tokenizer: of the decoder.
      max_tokens: room for text: the decoder's positions less those of the picture.
      task_ids: one small number per turn, to follow the loss by task.
      system: what stands before the first turn.

    Raises:
      BadItem: no turns, no answer, or no answer within `max_tokens`.
    """
    if task_ids is not None and len(task_ids) != len(turns):
        raise ValueError(f"{len(task_ids)} task_ids for {len(turns)} turns")
    text, answers = render(turns, system)
    ids, spans = tokenizer.encode_with_spans(text)
    tokens = np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], np.int32)
    # BOS and EOS get empty spans, which nothing overlaps.
    starts, ends = np.array([(0, 0), *spans, (0, 0)], np.int32).T
    turn = np.full(len(tokens), -1, np.int32)
    for i, (start, end) in enumerate(answers):
        # The blank before an answer is part of it: the prompt that the model will see ends at the colon.
        turn[(ends > start - 1) & (starts < end) & (starts < ends) & (tokens != tokenizer.unk_id)] = i
    if not answers:
        raise BadItem("the conversation has no answer to learn from")
    if not (turn[:max_tokens] >= 0).any():
        first = int(np.argmax(turn >= 0))
        raise BadItem(
            f"the first answer begins at token {first}, beyond the {max_tokens} that fit; "
            "shorten the question or raise the number of tokens"
        )
    task = np.full(len(tokens), -1, np.int32)
    if task_ids is not None:
        task = np.where(turn >= 0, np.asarray(task_ids, np.int32)[turn], task)
    mask = np.ones(len(tokens), bool)
    # a turn begins where the message before it ended
    begins = [len(system) + 1 + len(STOP), *(end for _, end in answers)]
    segment = np.searchsorted(begins[: len(turns)], starts, side="right").astype(np.int32)
    segment[-1] = segment[-2]
    return Encoded(*(array[:max_tokens] for array in (tokens, turn >= 0, mask, turn, task, segment)))


def pad(encoded: Encoded, length: int) -> Encoded:
    """Pads on the right to `length` positions.

    Raises:
      ValueError: longer than that already.
    """
    missing = length - len(encoded)
    if missing < 0:
        raise ValueError(f"a conversation of {len(encoded)} tokens does not fit into {length}; cut it first")
    fill = {"tokens": PAD, "loss_mask": False, "mask": False, "turn": -1, "task": -1, "segment": -1}
    return Encoded(**{k: np.pad(getattr(encoded, k), (0, missing), constant_values=value) for k, value in fill.items()})


@dataclass(frozen=True)
class Item:
    """One conversation of a data set, and its picture."""

    image: str | bytes | None
    """Path of the picture, or its encoded bytes; None for text alone."""
    turns: tuple[tuple[str, str], ...]
    """(question, answer) pairs."""
    tasks: tuple[str, ...] = ()
    """Name of each turn's task, "" where unknown."""
    kinds: tuple[str, ...] = ()
    """Kind of each turn's question within its task, for baselines per kind; empty where unknown."""
    domain: str = ""
    id: str = ""
    text: str = ""
    """In place of turns: a document, or what was found written beside a picture; learnt whole, without a template."""
    system: str | None = None
    """What stands before the first turn; None for `SYSTEM`."""


class Items(Sequence[Item]):
    """The usable conversations of a file, and one line about each of the others."""

    def __init__(self, items: Sequence[Item], skipped: Sequence[str] = ()):
        self._items = tuple(items)
        self.skipped = tuple(skipped)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Items: ...
    def __getitem__(self, index: int | slice) -> Item | Items:
        if isinstance(index, slice):
            return Items(self._items[index])
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)


def clean(value: Any) -> str:
    """A message as it enters the template: a string, without `<image>` and without blanks around it.

    A line that begins with `###` gets a blank before it: in the template it would end the message.
    """
    return _trimmed(value).replace(STOP, STOP.replace("#", " #", 1))


def _trimmed(value: Any) -> str:
    return str(value).replace(MARKER, "").strip()


def parse_item(raw: Any, remarks: Remarks | None = None) -> Item:
    """An item of the published form, as JSON gave it, or of OpenAI's.

    `{"image": path, "conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]}`, or
    `{"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}, …]}`, in which a content may be
    a list of parts. `image` may be absent, a list of one, and be called `images`. Speakers are human or user, gpt or
    assistant, and system at the beginning, in any case. Optional: `system`, `task` (one for all turns) or `tasks` (a
    list), `kinds` (a list), `domain`, `id`.

    For pre-training `{"image": path, "text": …}` is a picture and what was found written beside it, `{"text": …}`
    a document.

    Args:
      raw: of JSON's types.
      remarks: gets what is noticed on the way.

    Raises:
      BadItem: not of this form, or humans and assistants do not take turns.
    """
    if not isinstance(raw, Mapping):
        raise BadItem(f"an item must be an object, not {type(raw).__name__}")
    unused, pictures = check_keys(raw), read_pictures(raw)
    named = {key: read_name(raw.get(key), key) for key in ("domain", "id")}
    if raw.get("conversations") is None and raw.get("messages") is None and "text" in raw:
        text = raw["text"]
        if not isinstance(text, str) or not _trimmed(text):
            raise BadItem(f'"text" must be text that is not empty, not {short(text)}')
        item = Item(one_picture(pictures), (), text=encodable(_trimmed(text), "the text"), **named)
        texts = [text]
        unused += [key for key in ("system", "task", "tasks", "kinds") if raw.get(key)]
    else:
        unused += ["text"] * bool(raw.get("text"))
        messages = read_messages(raw, unused)
        texts = list(messages.texts)
        values = [encodable(clean(text), f"message {i}") for i, text in enumerate(texts)]
        turns = tuple(zip(values[::2], values[1::2], strict=True))
        tasks = read_names(raw, "tasks", len(turns)) or (read_name(raw.get("task"), "task"),) * len(turns)
        kinds = read_names(raw, "kinds", len(turns)) or ()
        image = one_picture([*pictures, *messages.pictures])
        item = Item(image, turns, tasks, kinds, **named, system=_system(raw.get("system"), messages.system))
    if item.image is None and any(MARKER in text for text in texts):
        raise BadItem(f'a text holds {MARKER} and the item has no picture; it is called "image"')
    if remarks is not None:
        remarks.unused.update(set(unused))
        remarks.escaped += bool(item.turns) and any(STOP in _trimmed(text) for text in texts)
    return item


def _system(own: Any, first: str | None) -> str | None:
    """The system text of an item's own key, or of its first message."""
    own = clean(read_name(own, "system"))
    first = encodable(clean(first or ""), "the system text")
    if own and first and own != first:
        raise BadItem('"system" and the first message are two system texts; give one')
    return own or first or None


def read_items(path: str | PathLike[str], root: str | PathLike[str] | None = None) -> Items:
    """Reads a `.json` (a list) or `.jsonl` (one object a line) file of conversations.

    Items that cannot be used are left out, logged and listed in `.skipped`. Keys that nothing reads are logged.

    Args:
      path: the file.
      root: folder of the pictures. Without it each relative path is taken from the working directory if the picture
        is there, as in the reference, and else from the file's own folder.

    Raises:
      ValueError: no such file, not JSON, or nothing usable in it (BadItem); one line that names file and
        place.
    """
    path = located(path)
    items, skipped, remarks, name = [], [], Remarks(), shortened(path)
    for i, raw in enumerate(_read_raw(path)):
        try:
            items.append(parse_item(raw, remarks))
        except BadItem as error:
            skipped.append(why_left_out(name, i, error))
    tell(name, len(items), skipped, list(remarks.lines()))
    names = functools.cache(_names)

    def is_there(image: str) -> bool:
        return os.path.basename(image) in names(os.path.dirname(image))

    return Items([with_picture(item, path.parent, root, is_there) for item in items], skipped)


def why_left_out(name: str, number: int, error: BadItem) -> str:
    """The line about an item of a list that cannot be used."""
    return f"{name}, item {number}: {shortened(str(error), 270 - len(name))}"


def tell(name: str, usable: int, skipped: Sequence[str], remarks: Sequence[str]) -> None:
    """Logs what was noticed in a list.  BadItem where nothing in it can be used."""
    if not usable:
        raise BadItem(skipped[0] if skipped else f"{name} has no items")
    if skipped:
        _log.warning("%d of %d items left out; %s", len(skipped), usable + len(skipped), skipped[0])
    for line in remarks:
        _log.warning("%s: %s", name, line)


def with_picture(item: Item, beside: Path, root: str | PathLike[str] | None, is_there: Callable[[str], bool]) -> Item:
    """The item with the whole path of its picture, as `read_items` says."""
    image = item.image
    if not isinstance(image, str):
        return item
    if root is not None:
        return replace(item, image=str(joined(root, image)))
    return item if is_there(image) else replace(item, image=str(joined(beside, image)))


def _names(folder: str) -> frozenset[str]:
    """What a folder holds; listing it once is quicker than asking for every picture."""
    try:
        return frozenset(os.listdir(folder or "."))
    except (OSError, ValueError):
        return frozenset()


def read_text(path: Path, name: str, fix: str = "") -> str:
    """The text of a file; ValueError, which calls it `name`, where there is none (`fix` ends the message)."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{name} does not exist{fix}") from None
    except Exception as error:
        # Clients of object stores raise what they like; an operating system's own reason needs no second path.
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{name} cannot be read: {shortened(reason, 120)}") from None


def _read_raw(path: Path) -> list[Any]:
    name = shortened(path)
    if path.suffix.lower() not in (".json", ".jsonl"):
        hint = "; tools/prepare_data.py makes of it what a list can name" if path.suffix in PREPARED_FIRST else ""
        raise ValueError(f"{name} is neither .json nor .jsonl, nor a folder of prepared data that is there{hint}")
    content = read_text(path, name, "; check the path in the data config")
    if path.suffix.lower() == ".jsonl":
        # Not splitlines(): it also breaks at U+2028 and others that JSON strings may hold.
        lines = enumerate(content.split("\n"), 1)
        return [parse_json(text, name, line) for line, text in lines if text.strip()]
    values = parse_json(content, name)
    if not isinstance(values, list):
        raise ValueError(f"{name} must hold a list of items, not {type(values).__name__}")
    return values


def parse_json(text: str, name: str, line: int = 0) -> Any:
    """What the file called `name`, or a line of it, says; ValueError names it and the line where that is not JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        hint = "one object a line is .jsonl" if error.msg == "Extra data" and not line else "is it complete?"
        raise ValueError(f"{name}, line {line or error.lineno}: not JSON ({error.msg}); {hint}") from None
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
        raise ValueError(f"{name}{f', line {line}' if line else ''}: {why}") from None
