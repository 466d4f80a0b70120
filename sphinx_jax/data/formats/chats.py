"""Conversations: LLaVA-150k and its kin, ShareGPT, OpenAI's messages.

A `.json` file is one list and is held whole; of `.jsonl` a line is. The form is that of `parse_item`, read more
leniently: an item of ShareGPT may begin with messages of the assistant, the rest of a longer conversation that was cut
into parts, and may end with a question. Both go, and the rest is kept: an answer without its question, and a question
without answer, teach nothing. That ShareGPT has such items, and system texts, is from memory. An item whose speakers
still do not take turns, and one with an empty answer, is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from sphinx_jax.data.conversation import parse_item
from sphinx_jax.data.formats.files import BadData, read_json
from sphinx_jax.data.formats.found import Dropped, Format, Found, Source
from sphinx_jax.data.formats.tables import Row, carried, json_rows, picture_at, text_of
from sphinx_jax.data.messages import KNOWN, BadItem

HUMAN, ASSISTANT, SYSTEM = ("human", "user"), ("gpt", "assistant"), ("system", "developer")
LISTS = ("conversations", "messages")


def read(source: Source) -> Iterator[Found | Dropped]:
    """An item a conversation, its picture by path.  Raises BadData: no list, or none of its items is a conversation."""
    path = source.file
    known = number = 0
    for number, raw in json_rows(path) if path.suffix == ".jsonl" else _list(source):
        name = f"{path.name}/{number}"
        known += not isinstance(raw, Dropped) and any(key in raw for key in (*LISTS, "text"))
        yield raw if isinstance(raw, Dropped) else _found(name, raw, source)
    if number and not known:
        raise BadData(f"{path} holds no conversations: expected a list named conversations or messages in every item")


def _list(source: Source) -> Iterator[Row]:
    raw = read_json(source.file)
    if not isinstance(raw, list):
        raise BadData(f"{source.file} holds no conversations: expected a list, not {type(raw).__name__}")
    for number, item in enumerate(raw, 1):
        name = f"{source.file.name}/{number}"
        yield number, item if isinstance(item, dict) else Dropped(name, "item is not an object")


def _found(name: str, raw: dict[str, Any], source: Source) -> Found | Dropped:
    key = next((key for key in LISTS if raw.get(key)), None)
    if key:
        messages = _between(raw[key])
        if fault := _fault(messages):
            return Dropped(name, fault)
        raw = raw | {key: messages}
    elif not text_of(raw.get("text")):
        return Dropped(name, "text is missing" if "text" in raw else "conversation is missing")
    if any(isinstance(raw.get(key), list) and len(raw[key]) > 1 for key in ("image", "images")):
        return Dropped(name, "item has several pictures")
    try:
        item = parse_item(raw)
    except (BadItem, RecursionError):
        return Dropped(name, "item cannot be used")
    if any(not answer for _, answer in item.turns):
        return Dropped(name, "answer is missing")
    if isinstance(item.image, str):
        item = replace(item, image=picture_at(source, item.image))
        if item.image is None:
            return Dropped(name, "picture is missing")
    return Found(item, carried(raw, KNOWN))


def _between(messages: Any) -> Any:
    """From the first question to the last answer, with the system text before it."""
    if not isinstance(messages, list):
        return messages
    begin = next((i for i, message in enumerate(messages) if _speaker(message) not in SYSTEM), 0)
    first = next((i for i, m in enumerate(messages) if i >= begin and _speaker(m) not in ASSISTANT), len(messages))
    end = len(messages)
    while end > first and _speaker(messages[end - 1]) in HUMAN:
        end -= 1
    return messages[:begin] + messages[first:end]


def _fault(messages: Any) -> str:
    speakers = [_speaker(message) for message in messages] if isinstance(messages, list) else []
    if any(speaker not in HUMAN + ASSISTANT + SYSTEM for speaker in speakers):
        return "speaker is unknown"
    said = speakers[1:] if speakers and speakers[0] in SYSTEM else speakers
    if not said:
        return "conversation is missing"
    in_turn = all(speaker in (ASSISTANT if i % 2 else HUMAN) for i, speaker in enumerate(said))
    return "" if in_turn and len(said) % 2 == 0 else "speakers are out of turn"


def _speaker(message: Any) -> str:
    speaker = (message.get("from") or message.get("role")) if isinstance(message, Mapping) else None
    return speaker.lower() if isinstance(speaker, str) else ""


CHATS = Format(
    "LLaVA-150k, ShareGPT and other conversations",
    "llava_instruct_150k.json, conversations.jsonl; --root is the folder of the pictures",
    read,
)
