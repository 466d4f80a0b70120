"""Conversations: from the files that people have to tokens and labels.

The template, the labels and the files are those of the SPHINX release, but for one thing: labels are found by
position. The release takes the first place where an answer's text occurs, which a question that ends with the
answer steals.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, overload

import numpy as np

from sphinx_jax.data.tokenizer import Span, Tokenizer
from sphinx_jax.paths import joined, located

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
HUMAN, ASSISTANT = " Human:", " Assistant:"
STOP = "\n###"
"""Ends every message; a model that writes it has finished its answer."""

PAD = 0
"""The token id of padding. It may be a real token's as well (``!`` in LLaMA 3): masks, not ids, say what counts."""

Turn = tuple[str, str | None]

_log = logging.getLogger(__name__)


class BadItem(ValueError):
    """A conversation that cannot be used; the message is one line that names it."""


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
    """A message as it enters the template: a string, without `<image>` and without blanks around it."""
    return str(value).replace("<image>", "").strip()


def parse_item(raw: Any) -> Item:
    """An item of the published form, as JSON gave it.

    `{"image": path, "conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]}`.
    `image` may be absent. `from` is human, gpt or assistant in any case. Optional: `task` (one for all turns)
    or `tasks` (a list), `domain`, `id`.

    For pre-training `{"image": path, "text": …}` is a picture and what was found written beside it, `{"text": …}`
    a document.

    Raises:
      BadItem: not of this form, or humans and assistants do not take turns.
    """
    if not isinstance(raw, Mapping):
        raise BadItem(f"an item must be an object, not {type(raw).__name__}")
    image = raw.get("image")
    if image is not None and not (isinstance(image, str) and image):
        raise BadItem(f'"image" must be a path, not {image!r}')
    named = {"domain": str(raw.get("domain", "")), "id": str(raw.get("id", ""))}
    messages = raw.get("conversations")
    if messages is None and "text" in raw:
        text = raw["text"]
        if not isinstance(text, str) or not clean(text):
            raise BadItem(f'"text" must be text that is not empty, not {text!r}')
        return Item(image, (), text=_encodable(clean(text), "the text"), **named)
    if not isinstance(messages, list) or not messages:
        raise BadItem('"conversations" is missing or empty')
    values = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or "from" not in message or message.get("value") is None:
            raise BadItem(f'message {i} lacks "from" or "value"')
        speaker = str(message["from"]).lower()
        if speaker not in ("human", "gpt", "assistant"):
            raise BadItem(f'message {i} is from {message["from"]!r}; "from" must be human, gpt or assistant')
        if (speaker == "human") != (i % 2 == 0):
            raise BadItem(f"message {i} is out of turn: human and gpt must alternate, human first")
        values.append(_encodable(clean(message["value"]), f"message {i}"))
    if len(values) % 2:
        raise BadItem("the last question has no answer")
    turns = tuple(zip(values[::2], values[1::2], strict=True))
    tasks = raw.get("tasks", [raw.get("task", "")] * len(turns))
    if not isinstance(tasks, list) or len(tasks) != len(turns):
        raise BadItem(f'"tasks" must be a list with one name for each of the {len(turns)} turns')
    return Item(image, turns, tuple(map(str, tasks)), **named)


def _encodable(text: str, what: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadItem(f"{what} holds half of a surrogate pair, which is no character") from None
    return text


def read_items(path: str | PathLike[str], root: str | PathLike[str] | None = None) -> Items:
    """Reads a `.json` (a list) or `.jsonl` (one object a line) file of conversations.

    Items that cannot be used are left out, logged and listed in `.skipped`.

    Args:
      path: the file.
      root: folder of the pictures. Without it relative paths are taken from the working directory, as in the
        reference, or from the file's own folder: from the one of the two that has the first picture.

    Raises:
      ValueError: no such file, not JSON, or nothing usable in it (BadItem); one line that names file and
        place.
    """
    path = located(path)
    items, skipped = [], []
    for i, raw in enumerate(_read_raw(path)):
        try:
            items.append(parse_item(raw))
        except BadItem as error:
            skipped.append(f"{path}, item {i}: {error}")
    if not items:
        raise BadItem(skipped[0] if skipped else f"{path} has no items")
    if skipped:
        _log.warning("%d of %d items left out; %s", len(skipped), len(items) + len(skipped), skipped[0])
    if root is None:
        root = _image_root(items, path.parent)
    if root is not None:
        items = [replace(item, image=str(joined(root, item.image))) if item.image else item for item in items]
    return Items(items, skipped)


def _read_raw(path: Path) -> list[Any]:
    if path.suffix not in (".json", ".jsonl"):
        raise ValueError(f"{path} is neither .json nor .jsonl")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; check the path in the data config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    # Not splitlines(): it also breaks at U+2028 and others that JSON strings may hold.
    lines = enumerate(content.split("\n"), 1) if path.suffix == ".jsonl" else [(0, content)]
    values, line = [], 0
    try:
        for line, text in lines:
            if text.strip() or not line:
                values.append(json.loads(text))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {line or error.lineno}: not JSON ({error.msg}); is it complete?") from None
    if path.suffix == ".jsonl":
        return values
    if not isinstance(values[0], list):
        raise ValueError(f"{path} must hold a list of items, not {type(values[0]).__name__}")
    return values[0]


def _image_root(items: Sequence[Item], beside: Path) -> Path | None:
    first = next((item.image for item in items if isinstance(item.image, str)), None)
    if first is None or located(first).exists() or not joined(beside, first).exists():
        return None
    return beside


@dataclass(frozen=True)
class MetaEntry:
    """One line of a data config."""

    path: str
    type: str
    """A global batch holds one type."""
    root: str | None
    ratio: float
    items: Items
    """Sampled by `ratio` already; in the file's order."""


def read_meta(path: str | PathLike[str], seed: int = 0) -> list[MetaEntry]:
    """Reads a data config of the published form and every file in it.

    A YAML file with a list `META` of `{path: x.json or x.jsonl, type: text, root: folder, ratio: 0.5}`.
    Optional are `type` (`image` if any item has a picture, else `text`), `root` and `ratio` (that share of
    the items, chosen by `seed`). Relative paths are taken from the working directory, as in the reference, or
    from the config's folder, or from the folder above: from the first where they exist.

    Raises:
      ValueError: a missing file, another form, or nothing usable in a file; one line that names file and
        entry.
    """
    import yaml

    path = located(path)
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"data config {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"data config {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"data config {path} is not YAML: {' '.join(str(error).split())}") from None
    entries = table.get("META") if isinstance(table, Mapping) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"data config {path} must hold a list named META")
    folders = (Path(), path.parent, path.parent.parent)
    return [_read_entry(raw, f"{path}, META entry {i}", folders, seed) for i, raw in enumerate(entries)]


def _read_entry(raw: Any, name: str, folders: Sequence[Path], seed: int) -> MetaEntry:
    if not isinstance(raw, Mapping) or not isinstance(raw.get("path"), str):
        raise ValueError(f'{name} has no "path"')
    unknown = sorted(set(raw) - {"path", "type", "root", "ratio"})
    if unknown:
        raise ValueError(f'{name} has an unknown key "{unknown[0]}"; known are path, type, root, ratio')
    ratio = raw.get("ratio", 1.0)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1:
        raise ValueError(f"{name}: ratio must be a number above 0 and at most 1, not {ratio!r}")
    file, root = _found(raw["path"], folders), raw.get("root")
    if root is not None:
        root = str(_found(str(root), folders))
    try:
        items = read_items(file, root)
    except ValueError as error:
        raise type(error)(f"{name}: {error}") from None
    kind = raw.get("type", "image" if any(item.image for item in items) else "text")
    if ratio < 1:
        count = max(1, int(len(items) * ratio))
        chosen = np.sort(np.random.default_rng(seed).permutation(len(items))[:count])
        items = Items([items[i] for i in chosen], items.skipped)
    return MetaEntry(str(file), str(kind), root, float(ratio), items)


def _found(path: str, folders: Sequence[Path]) -> Path:
    return next((file for folder in folders if (file := joined(folder, path)).exists()), located(path))
