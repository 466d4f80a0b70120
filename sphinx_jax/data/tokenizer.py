"""Text to token ids and back, for the two kinds of tokenizer files that LLaMA-family checkpoints carry.

A tokenizer is its files: they are kept in memory as they were read, and `save` writes them back byte for
byte. So a checkpoint never depends on the folder that its tokenizer came from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, Protocol

from sphinx_jax.paths import as_path

Span = tuple[int, int]

_BLANK = "\u2581"  # as both kinds of files write it
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")

_SENTENCEPIECE_FILE = "tokenizer.model"
_JSON_FILE = "tokenizer.json"
_JSON_COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json")


class BadTokenizer(ValueError):
    """Tokenizer files that are missing or cannot be used; the message is one line that names them."""


class Tokenizer(Protocol):
    """What both kinds of tokenizer offer. Instances can be pickled, for data loading in several processes."""

    bos_id: int
    """Begin of sequence; the end-of-sequence id where the vocabulary has none, as in the reference."""
    eos_id: int
    eos_ids: tuple[int, ...]
    """All tokens that end an answer; `eos_id`, which ends a text that is learnt, is the first."""
    unk_id: int | None
    """Stands for what the vocabulary cannot spell; None where it spells everything."""
    vocab_size: int
    files: Mapping[str, bytes]
    """What it was made from."""

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """Token ids of `text`, with BOS before and EOS after where asked."""

    def encode_with_spans(self, text: str) -> tuple[list[int], list[Span]]:
        """Token ids of `text`, and the characters [start, end) of `text` that each of them came from.

        Starts never decrease. A blank that the tokenizer puts before the text by itself has an empty span.
        The several byte tokens of a character outside the vocabulary all have the span of that character.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; BOS and EOS leave no trace. Raises ValueError for an id outside the vocabulary."""

    def pieces(self) -> list[bytes]:
        """What each token adds to a text, in UTF-8; nothing for special tokens and the unknown one.

        The bytes of a sequence, one after the other, are its text; at the beginning of one there may be a blank that
        `decode` leaves out. A character of several tokens is whole only with the last of them.
        """

    def vocabulary(self) -> dict[int, str]:
        """The piece of every token id, as the files spell it; ids may leave gaps."""

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes the files that the tokenizer was made from, byte for byte; `load_tokenizer` reads them."""


def has_tokenizer(folder: str | PathLike[str]) -> bool:
    return any((as_path(folder) / name).is_file() for name in (_SENTENCEPIECE_FILE, _JSON_FILE))


def load_tokenizer(path: str | PathLike[str]) -> Tokenizer:
    """Loads a tokenizer from its folder or file.

    Args:
      path: a sentencepiece `tokenizer.model`, a Hugging Face `tokenizer.json`, or a folder with one of them.
        Where a folder has both, the sentencepiece file is taken, as in the reference.

    Raises:
      BadTokenizer: nothing there, or not a tokenizer.
    """
    path = as_path(path)
    if path.is_dir():
        for name in (_SENTENCEPIECE_FILE, _JSON_FILE):
            if (path / name).is_file():
                return load_tokenizer(path / name)
        raise BadTokenizer(f"{path} has no {_SENTENCEPIECE_FILE} or {_JSON_FILE}; copy the tokenizer's files there")
    if not path.is_file():
        raise BadTokenizer(f"tokenizer {path} does not exist; give a {_SENTENCEPIECE_FILE} or {_JSON_FILE}")
    if path.suffix != ".json":
        return SentencePieceTokenizer(path.read_bytes(), name=str(path))
    files = {_JSON_FILE: path.read_bytes()}
    for name in _JSON_COMPANIONS:
        if (path.parent / name).is_file():
            files[name] = (path.parent / name).read_bytes()
    return JsonTokenizer(files, name=str(path))


class _Shared:
    """What does not depend on the kind of files."""

    files: Mapping[str, bytes]
    bos_id: int
    eos_id: int
    unk_id: int | None = None
    vocab_size: int

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return (self.eos_id,)

    def _ids(self, text: str) -> list[int]:
        raise NotImplementedError

    def encode_with_spans(self, text: str) -> tuple[list[int], list[Span]]:
        raise NotImplementedError

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        return [self.bos_id] * bos + self._ids(text) + [self.eos_id] * eos

    def pieces(self) -> list[bytes]:
        """What each token adds to a text, in UTF-8; nothing for special tokens and the unknown one.

        The bytes of a sequence, one after the other, are its text; at the beginning of one there may be a blank that
        `decode` leaves out. A character of several tokens is whole only with the last of them.
        """

    def save(self, folder: str | PathLike[str]) -> None:
        folder = as_path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    def _checked(self, ids: Iterable[int]) -> list[int]:
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i} is outside the tokenizer's vocabulary of {self.vocab_size}")
        return ids

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._rebuild, (dict(self.files),)

    @classmethod
    def _rebuild(cls, files: dict[str, bytes]) -> _Shared:
        raise NotImplementedError


class SentencePieceTokenizer(_Shared):
    """A sentencepiece `tokenizer.model`, as LLaMA, TinyLlama and Mixtral carry."""

    def __init__(self, content: bytes, name: str = _SENTENCEPIECE_FILE):
        """Takes the content of the file; `name` is for messages."""
        import sentencepiece

        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=content) if content else None
        except (RuntimeError, OSError):
            self._model = None
        if self._model is None or not self._model.vocab_size():
            raise BadTokenizer(f"{name} is not a sentencepiece model (is the download complete?)")
        self.files = {_SENTENCEPIECE_FILE: content}
        self.vocab_size = self._model.vocab_size()
        self.unk_id = self._model.unk_id()
        self.eos_id = self._model.eos_id()
        if self.eos_id < 0:
            raise BadTokenizer(f"{name} has no end-of-sequence token; SPHINX needs one to end an answer")
        self.bos_id = self._model.bos_id() if self._model.bos_id() >= 0 else self.eos_id

    @classmethod
    def _rebuild(cls, files: dict[str, bytes]) -> SentencePieceTokenizer:
        return cls(files[_SENTENCEPIECE_FILE])

    def _ids(self, text: str) -> list[int]:
        return self._model.encode(text)

    def encode_with_spans(self, text: str) -> tuple[list[int], list[Span]]:
        if not text:
            return [], []
        mapping = self._model.encode(text, return_type="offset_mapping")
        ids, spans = list(mapping["ids"]), [tuple(span) for span in mapping["offsets"]]
        own_blank = int(mapping["pieces"][0] == _BLANK and spans[0] == (0, 0))
        return ids, spans[:own_blank] + _widened(spans[own_blank:])

    def decode(self, ids: Iterable[int]) -> str:
        return self._model.decode(self._checked(ids))

    def pieces(self) -> list[bytes]:
        return [self._piece(i) for i in range(self.vocab_size)]

    def _piece(self, i: int) -> bytes:
        if self._model.is_control(i) or self._model.is_unknown(i) or self._model.is_unused(i):
            return b""
        piece = self._model.id_to_piece(i)
        return bytes([int(piece[1:-1], 16)]) if self._model.is_byte(i) else piece.replace(_BLANK, " ").encode()

    def vocabulary(self) -> dict[int, str]:
        return dict(enumerate(self._model.id_to_piece(list(range(self.vocab_size)))))


class JsonTokenizer(_Shared):
    """A Hugging Face `tokenizer.json`; which tokens are BOS and EOS stands in the `tokenizer_config.json`
    beside it.

    As in transformers, a special token that is spelled out in a text becomes that token.
    """

    def __init__(self, files: Mapping[str, bytes], name: str = _JSON_FILE):
        """Takes the content of `tokenizer.json` and of its companions, by name; `name` is for messages."""
        import tokenizers

        try:
            self._model = tokenizers.Tokenizer.from_buffer(files[_JSON_FILE])
        except Exception as error:
            # The library raises bare Exception for every kind of bad file.
            raise BadTokenizer(f"{name} is not a tokenizer: {str(error).splitlines()[0]}") from None
        self._model.no_truncation()
        self._model.no_padding()
        self.files = dict(files)
        # The highest id counts, not the number of tokens: added tokens may leave gaps.
        self.vocab_size = max(self._model.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        named = _special_tokens(files, name)
        eos = self._model.token_to_id(named["eos_token"]) if "eos_token" in named else None
        if eos is None:
            raise BadTokenizer(f"{name} has no end-of-sequence token; put the model's tokenizer_config.json beside it")
        bos = self._model.token_to_id(named["bos_token"]) if "bos_token" in named else None
        unknown = getattr(self._model.model, "unk_token", None)
        self.unk_id = None if unknown is None else self._model.token_to_id(unknown)
        self.eos_id = eos
        self.bos_id = eos if bos is None else bos

    @classmethod
    def _rebuild(cls, files: dict[str, bytes]) -> JsonTokenizer:
        return cls(files)

    def _ids(self, text: str) -> list[int]:
        return self._model.encode(text, add_special_tokens=False).ids

    def encode_with_spans(self, text: str) -> tuple[list[int], list[Span]]:
        encoding = self._model.encode(text, add_special_tokens=False)
        return encoding.ids, [tuple(span) for span in encoding.offsets]

    def decode(self, ids: Iterable[int]) -> str:
        return self._model.decode(self._checked(ids), skip_special_tokens=True)

    def pieces(self) -> list[bytes]:
        table = json.loads(self.files[_JSON_FILE])
        added = {token["id"]: b"" if token["special"] else token["content"].encode() for token in table["added_tokens"]}
        vocabulary = self._model.get_vocab(with_added_tokens=True)
        spell = self._speller(table.get("decoder"))
        spelt = {i: spell(token, i) for token, i in vocabulary.items() if i not in added} | added
        if self.unk_id is not None:
            spelt[self.unk_id] = b""
        return [spelt.get(i, b"") for i in range(self.vocab_size)]

    def _speller(self, decoder: Any) -> Callable[[str, int], bytes]:
        """What turns a token of the vocabulary into bytes: the decoder of the file, taken a token at a time."""
        steps = decoder["decoders"] if decoder and decoder["type"] == "Sequence" else [decoder] * bool(decoder)
        kinds = {step["type"]: step for step in steps}
        if "ByteLevel" in kinds:
            return lambda token, _: b"".join(_BYTES.get(c) or c.encode() for c in token)
        blank = kinds.get("Metaspace", {}).get("replacement") or _BLANK
        if {"ByteFallback", "Metaspace"} & kinds.keys():

            def spell(token: str, _: int) -> bytes:
                if "ByteFallback" in kinds and _BYTE_TOKEN.fullmatch(token):
                    return bytes([int(token[1:-1], 16)])
                return token.replace(blank, " ").encode()

            return spell
        # of other decoders: what the token adds to one that stands before it
        first = min(self._model.get_vocab(with_added_tokens=False).values())
        before = self._model.decode([first])
        return lambda _, i: self._model.decode([first, i]).removeprefix(before).encode()

    def vocabulary(self) -> dict[int, str]:
        return {i: piece for piece, i in self._model.get_vocab(with_added_tokens=True).items()}


def _byte_characters() -> dict[str, bytes]:
    """The characters that byte-level tokenizers write bytes as (GPT-2): printable ones as they are."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(256 + n): bytes([byte]) for n, byte in enumerate(others)}
    return {chr(byte): bytes([byte]) for byte in printable} | shifted


_BYTES = _byte_characters()


def _special_tokens(files: Mapping[str, bytes], name: str) -> dict[str, str]:
    """`bos_token` and `eos_token` as the companions of `tokenizer.json` name them; the first that does
    wins."""
    named: dict[str, str] = {}
    for companion in _JSON_COMPANIONS:
        if companion not in files:
            continue
        try:
            table = json.loads(files[companion])
        except ValueError as error:
            raise BadTokenizer(f"{companion} beside {name} is not valid JSON: {error}") from None
        for key in ("bos_token", "eos_token"):
            value = table.get(key)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                named.setdefault(key, text)
    return named


def _widened(spans: Sequence[Span]) -> list[Span]:
    """Gives empty spans the end of the next wider one.

    sentencepiece books all of a character on the last of its byte tokens and leaves the others empty.
    """
    widened = list(spans)
    following = None
    for i in range(len(widened) - 1, -1, -1):
        start, end = widened[i]
        if start == end and following is not None and following[0] == start:
            widened[i] = following
        following = widened[i]
    return widened
