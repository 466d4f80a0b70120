"""What a tokenizer's files say beside its vocabulary: added tokens, and the ids that begin and end a text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

MODEL_FILE, JSON_FILE = "tokenizer.model", "tokenizer.json"
CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"
# transformers' own; all of them travel with the model
COMPANIONS = (CONFIG, SPECIAL, ADDED, GENERATION, TEMPLATE, "chat_template.json", "vocab.json", "merges.txt")


class BadTokenizer(ValueError):
    """Tokenizer files that are missing or cannot be used; the message is one line that names them."""


def read_files(folder: Path) -> dict[str, bytes]:
    """The tokenizer's files of a folder by name; none where it has no tokenizer.

    Beside `consolidated.*.pth` a `tokenizer.model` is all there is, as in the reference; any other folder is as
    transformers reads it.
    """
    published = any(folder.glob("consolidated.*.pth")) and not any(folder.glob("*.safetensors"))
    if published and (folder / MODEL_FILE).is_file():
        return {MODEL_FILE: (folder / MODEL_FILE).read_bytes()}
    names = (MODEL_FILE, JSON_FILE, *COMPANIONS)
    files = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    return files if MODEL_FILE in files or JSON_FILE in files else {}


def table(files: Mapping[str, bytes], file: str, name: str) -> dict[str, Any]:
    """The content of a JSON file; empty where there is none.

    Raises:
      BadTokenizer: it is no table; `name` is that of the tokenizer.
    """
    try:
        found = json.loads(files.get(file, b"{}"))
    except ValueError as error:
        raise BadTokenizer(f"{file} beside {name} is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadTokenizer(f"{file} beside {name} is not a table of JSON")
    return found


def special_tokens(files: Mapping[str, bytes], name: str) -> dict[str, tuple[str, str]]:
    """`bos_token` and `eos_token` as (token, file that names it); the first file that does wins."""
    named: dict[str, tuple[str, str]] = {}
    for file in (CONFIG, SPECIAL):
        found = table(files, file, name)
        for key in ("bos_token", "eos_token"):
            value = found.get(key)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str) and text:
                named.setdefault(key, (text, file))
    return named


def added_tokens(files: Mapping[str, bytes], name: str) -> dict[int, tuple[str, dict[str, bool]]]:
    """{id: (token, its switches)} of the tokens that were added to the vocabulary.

    Raises:
      BadTokenizer: two files give an id to different tokens.
    """
    found: dict[int, tuple[str, dict[str, bool]]] = {}
    switches = ("lstrip", "rstrip", "normalized", "single_word", "special")
    config, beside = table(files, CONFIG, name), table(files, ADDED, name)
    try:
        for key, value in (config.get("added_tokens_decoder") or {}).items():
            found[int(key)] = value["content"], {s: bool(value[s]) for s in switches if s in value}
        listed = {int(i): token for token, i in beside.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BadTokenizer(f"the added tokens beside {name} are not of transformers' form: token and id") from None
    for i, token in listed.items():
        if found.setdefault(i, (token, {}))[0] != token:
            raise BadTokenizer(
                f"{CONFIG} beside {name} gives id {i} to {found[i][0]!r}, {ADDED} to {token!r}; remove the wrong one"
            )
    return dict(sorted(found.items()))


def ends(
    files: Mapping[str, bytes],
    name: str,
    size: int,
    id_of: Callable[[str], int | None],
    own: tuple[int, Sequence[int]] = (-1, ()),
) -> tuple[int, tuple[int, ...]]:
    """The id that begins a text and those that end one, the tokenizer's own first.

    The tokenizer's is that of `tokenizer_config.json`, or of `special_tokens_map.json`, or of the vocabulary itself
    (`own`: its BOS and EOS, -1: none), or of the generation config, all of whose EOS end a text.  Without a BOS the
    EOS takes its place, as in the reference.

    Raises:
      BadTokenizer: no EOS, or one that the vocabulary of `size` tokens does not have.
    """
    named, found = special_tokens(files, name), {}
    for key, (token, file) in named.items():
        found[key] = id_of(token)
        if found[key] is None:
            raise BadTokenizer(f"{file} beside {name} has {key} {token!r}, which is no token of {name}; correct it")
    generation = table(files, GENERATION, name)
    listed = {key: _ids(generation.get(f"{key}_id"), key, name, size) for key in ("bos_token", "eos_token")}
    first = [found["eos_token"]] if "eos_token" in found else [i for i in own[1] if i >= 0]
    stops = tuple(dict.fromkeys([*first, *listed["eos_token"]]))
    if not stops:
        raise BadTokenizer(f"{name} has no end-of-sequence token; put the model's {CONFIG} beside it")
    begins = [found["bos_token"]] if "bos_token" in found else [own[0]] if own[0] >= 0 else listed["bos_token"]
    return next(iter(begins), stops[0]), stops


def _ids(value: Any, key: str, name: str, size: int) -> list[int]:
    """Ids that are one number, a list, or none (-1 is transformers' way to say that no token is meant)."""
    ids = [i for i in (value if isinstance(value, list) else [value]) if i not in (None, -1)]
    for i in ids:
        if not isinstance(i, int) or not 0 <= i < size:
            raise BadTokenizer(
                f"{name} has {size} tokens, the model's {GENERATION} or config.json names {key}_id {i!r}; correct it"
            )
    return ids
