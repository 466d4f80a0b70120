"""What people write into an item of a list: its keys, its pictures, who says what."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import Any

from sphinx_jax.data.image import BadImage, is_data_url, read_data_url
from sphinx_jax.paths import located, shortened

MARKER = "<image>"
"""Stands for the picture in a message."""

KNOWN = (
    "image",
    "images",
    "conversations",
    "messages",
    "text",
    "system",
    "task",
    "tasks",
    "kinds",
    "domain",
    "id",
)
_LISTS = ("conversations", "messages")
_PICTURES = ("image", "images")
# Without case, blanks and signs.
_OTHER_PICTURES = (
    "img",
    "imgs",
    "imagepath",
    "imagepaths",
    "imagefile",
    "imagefiles",
    "imageurl",
    "imageurls",
    "imgpath",
    "imgurl",
    "picture",
    "pictures",
    "pic",
    "photo",
    "photos",
)
_OTHER_MEDIA = ("video", "videos", "videopath", "videourl", "audio", "audios", "audiopath", "audiourl")
_OTHER_SYSTEM = ("systemprompt", "systemmessage", "sysprompt")

_MESSAGE = (("from", "role"), ("value", "content"))
_SPEAKERS = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "system": "system",
    "developer": "system",
}
_TEXT_PARTS = ("text", "input_text", "output_text")
_PICTURE_PARTS = ("image", "image_url", "input_image")


class BadItem(ValueError):
    """A conversation that cannot be used; the message is one line that names it."""


@dataclass
class Remarks:
    """What was noticed in the items of a list that are used all the same."""

    unused: Counter[str] = field(default_factory=Counter)
    """Keys that nothing reads, and in how many items."""
    escaped: int = 0
    """Items with a message that held the stop text of the template."""

    def lines(self) -> Iterator[str]:
        if self.unused:
            named = []
            for key, count in self.unused.most_common(6):
                meant = next((known for known in KNOWN if _one_edit(_bare(key), known)), None)
                named.append(f"{short(key)} in {count}" + (f' (is it "{meant}"?)' if meant else ""))
            more = len(self.unused) - len(named)
            yield f"keys that are not used: {', '.join(named)}{f' and {more} more' * (more > 0)}"
        if self.escaped:
            yield (
                f'items with a line that begins with "###": {self.escaped}; it would end the message in the template '
                "and gets a blank before it"
            )


@dataclass(frozen=True)
class Messages:
    """A list of messages, read."""

    system: str | None
    texts: tuple[str, ...]
    """Questions and answers in turn, as they came; parts of a message one to a line, `MARKER` for a picture."""
    pictures: tuple[str | bytes, ...]


def check_keys(item: Mapping[str, Any]) -> list[str]:
    """The keys of an item that nothing reads.

    Raises:
      BadItem: one without which the item would mean something else, such as another name for its picture.
    """
    unused = [key for key in item if key not in KNOWN and not _is_empty(item[key])]
    pictured = any(not _is_empty(item.get(key)) for key in _PICTURES)
    spoken = any(key in item for key in (*_LISTS, "text"))
    for key in unused:
        bare = _bare(key)
        if bare in _OTHER_MEDIA:
            raise BadItem(f"key {short(key)} cannot be used: one picture is what SPHINX takes")
        if any(_one_edit(bare, name) for name in _PICTURES) or (bare in _OTHER_PICTURES and not pictured):
            raise BadItem(f'key {short(key)} is not known; the picture is called "image"')
        if (_one_edit(bare, "system") or bare in _OTHER_SYSTEM) and "system" not in item:
            raise BadItem(f'key {short(key)} is not known; the system text is called "system"')
        meant = next((name for name in _LISTS if _one_edit(bare, name)), None)
        if meant and not spoken:
            raise BadItem(f'"conversations" is missing; key {short(key)} is not known: is it "{meant}"?')
    return unused


def read_pictures(item: Mapping[str, Any]) -> tuple[str | bytes, ...]:
    """Paths or bytes of the pictures under the keys `image` and `images`."""
    found: list[str | bytes] = []
    for key in _PICTURES:
        given = item.get(key)
        for picture in given if isinstance(given, list) else [] if given is None else [given]:
            found.append(_read_picture(picture, f'"{key}"'))
    return tuple(found)


def read_messages(item: Mapping[str, Any], unused: list[str]) -> Messages:
    """The messages of an item, under `conversations` or `messages`.

    A message is `{"from": …, "value": …}` or `{"role": …, "content": …}`. What it says is a text (a number or a truth
    value becomes one), or OpenAI's parts: `{"type": "text", "text": …}`,
    `{"type": "image_url", "image_url": {"url": …}}`.

    Args:
      unused: gets the keys of messages that nothing reads.

    Raises:
      BadItem: not of this form, or human and assistant do not take turns.
    """
    given = [key for key in _LISTS if item.get(key) is not None]
    if len(given) > 1:
        raise BadItem('give "conversations" or "messages", not both')
    messages = item[given[0]] if given else None
    if not isinstance(messages, list) or not messages:
        raise BadItem('"conversations" is missing or empty')
    system, texts, pictures = None, [], []
    for i, message in enumerate(messages):
        speaker, value = _read_message(message, i, unused)
        text, found = _read_value(value, f"message {i}")
        pictures += found
        if speaker == "system":
            if i:
                raise BadItem(f"message {i} is out of turn: a system text stands first")
            system = text
            continue
        if (speaker == "human") != (len(texts) % 2 == 0):
            raise BadItem(f"message {i} is out of turn: human and gpt must alternate, human first")
        texts.append(text)
    if not texts:
        raise BadItem("there is a system text and no question")
    if len(texts) % 2:
        raise BadItem("the last question has no answer")
    return Messages(system, tuple(texts), tuple(pictures))


def read_names(item: Mapping[str, Any], key: str, count: int) -> tuple[str, ...] | None:
    """One name for each of `count` turns, "" for null; None where the item has no such key."""
    names = item.get(key)
    if names is None:
        return None
    if not isinstance(names, list) or len(names) != count:
        raise BadItem(f'"{key}" must be a list with one name for each of the {count} turns')
    return tuple(read_name(name, key) for name in names)


def read_name(value: Any, key: str) -> str:
    """A name, or a number in place of one; "" for null."""
    if value is None:
        return ""
    return encodable(_read_scalar(value, f'"{key}"'), f'"{key}"')


def short(value: Any) -> str:
    """A value of any kind and size, for a message."""
    try:
        return shortened(reprlib.repr(value), 60)
    except ValueError:  # an integer that is too long to be written
        return f"a long {type(value).__name__}"


def encodable(text: str, what: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadItem(f"{what} holds half of a surrogate pair, which is no character") from None
    return text


def _read_message(message: Any, i: int, unused: list[str]) -> tuple[str, Any]:
    """Who speaks, and what is said as it came."""
    read = message if isinstance(message, Mapping) else {}
    speaker, value = (next((read[k] for k in keys if read.get(k) is not None), None) for keys in _MESSAGE)
    if speaker is None or value is None:
        raise BadItem(f'message {i} lacks "from" or "value" (or "role" or "content")')
    named = _SPEAKERS.get(speaker.lower()) if isinstance(speaker, str) else None
    if named is None:
        raise BadItem(f'message {i} is from {short(speaker)}; "from" must be human, user, gpt, assistant or system')
    for key in read:
        if any(key in keys for keys in _MESSAGE) or _is_empty(read[key]):
            continue
        if _bare(key) in (*_PICTURES, *_OTHER_PICTURES, *_OTHER_MEDIA):
            raise BadItem(f'message {i} has the key {short(key)}; the picture is the item\'s own "image"')
        unused.append(key)
    return named, value


def _read_value(value: Any, what: str) -> tuple[str, list[str | bytes]]:
    """What a message says, and the pictures that it shows."""
    if not isinstance(value, list | Mapping):
        return _read_scalar(value, what), []
    texts, pictures = [], []
    for part in [value] if isinstance(value, Mapping) else value:
        kind = part.get("type", next(iter(part), None)) if isinstance(part, Mapping) else None
        if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in _PICTURE_PARTS:
            source = next((part[key] for key in ("image_url", "image", "url", "path") if part.get(key)), None)
            source = source.get("url") if isinstance(source, Mapping) else source
            texts.append(MARKER)
            if source is not None:
                pictures.append(_read_picture(source, f"the picture of {what}"))
        else:
            raise BadItem(
                f'{what} must be a text, or a list of {{"type": "text", "text": …}} and '
                f'{{"type": "image_url", "image_url": …}}; it has {short(part)}'
            )
    return "\n".join(texts), pictures


def _read_scalar(value: Any, what: str) -> str:
    if not isinstance(value, str | int | float):
        raise BadItem(f"{what} must be a text, not {short(value)}")
    try:
        return str(value)
    except ValueError:
        raise BadItem(f"{what} is a number that is too long") from None


def _read_picture(given: Any, what: str) -> str | bytes:
    if not isinstance(given, str) or not given:
        raise BadItem(f"{what} must be a path, not {short(given)}")
    encodable(given, what)
    try:
        if is_data_url(given):
            return read_data_url(given)
        # Refuses web addresses.
        located(given)
    except (BadImage, ValueError) as error:
        raise BadItem(f"{what}: {error}") from None
    if "\0" in given:
        raise BadItem(f"{what} must be a path, not {shortened(given, 60)}")
    return given


def one_picture(pictures: Sequence[str | bytes]) -> str | bytes | None:
    """The picture of an item that may name it in several places.

    Raises:
      BadItem: they are several.
    """
    distinct = list(dict.fromkeys(pictures))
    if len(distinct) > 1:
        raise BadItem(f"the item has {len(distinct)} pictures; one picture is what SPHINX takes")
    return distinct[0] if distinct else None


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | Mapping) and not value)


def _bare(key: Any) -> str:
    return "".join(filter(str.isalnum, str(key).lower()))


def _one_edit(a: str, b: str) -> bool:
    """Whether one letter more, less or other, or two in each other's place, makes one word of the other; or none."""
    start = len(commonprefix([a, b]))
    a, b = a[start:], b[start:]
    end = len(commonprefix([a[::-1], b[::-1]]))
    a, b = a[: len(a) - end], b[: len(b) - end]
    return max(len(a), len(b)) <= 1 or (len(a) == 2 and a == b[::-1])
