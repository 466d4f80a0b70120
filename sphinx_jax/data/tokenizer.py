"""Text to token ids and back, for the kinds of tokenizer files that LLaMA-family checkpoints carry.

A tokenizer is its files: they are kept in memory as they were read, and `save` writes them back byte for
byte. So a checkpoint never depends on the folder that its tokenizer came from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol

from sphinx_jax.data import tokenizer_files
from sphinx_jax.data.tokenizer_files import COMPANIONS, JSON_FILE, MODEL_FILE, BadTokenizer
from sphinx_jax.paths import as_path

if TYPE_CHECKING:
    import sentencepiece
    import tokenizers

Span = tuple[int, int]

_BLANK = "\u2581"  # as both kinds of files write it
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")

# a text on which a sentencepiece model of another form than LLaMA's differs from its copy
_SAMPLE = " Human: What is  in the image? [0.12, 0.30]\n### Assistant: 2 caf\u00e9s\tX"


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
    """What it was made from, and what lay beside it about conversations (chat template, generation config)."""

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

    def as_json(self) -> bytes:
        """The content of a Hugging Face `tokenizer.json` that is this tokenizer.

        Raises BadTokenizer for a sentencepiece model that is not of LLaMA's form.
        """

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes the files that the tokenizer was made from, byte for byte; `load_tokenizer` reads them."""


def has_tokenizer(folder: str | PathLike[str]) -> bool:
    return any((as_path(folder) / name).is_file() for name in (MODEL_FILE, JSON_FILE))


def load_tokenizer(path: str | PathLike[str]) -> Tokenizer:
    """Loads a tokenizer from its folder or file.

    Args:
      path: a `tokenizer.model` (sentencepiece, or LLaMA 3's list of ranks), taken alone; a Hugging Face
        `tokenizer.json` with what lies beside it; or a folder. Of a published folder (`consolidated.*.pth`) the
        `tokenizer.model` counts alone, as in the reference. Of any other the `tokenizer.json` counts before the
        `tokenizer.model`, with the tokens that other files add and the BOS and EOS that they name, as in transformers.

    Raises:
      BadTokenizer: nothing there, not a tokenizer, or files that contradict one another.
    """
    path = as_path(path)
    if path.is_dir():
        files = tokenizer_files.read_files(path)
        if not files:
            raise BadTokenizer(f"{path} has no {MODEL_FILE} or {JSON_FILE}; copy the tokenizer's files there")
        return from_files(files, str(path / (JSON_FILE if JSON_FILE in files else MODEL_FILE)))
    if not path.is_file():
        raise BadTokenizer(f"tokenizer {path} does not exist; give a {MODEL_FILE} or {JSON_FILE}")
    if path.suffix != ".json":
        return from_files({MODEL_FILE: path.read_bytes()}, str(path))
    beside = {name: path.parent / name for name in COMPANIONS}
    files = {name: file.read_bytes() for name, file in beside.items() if file.is_file()}
    return from_files({JSON_FILE: path.read_bytes()} | files, str(path))


def from_files(files: Mapping[str, bytes], name: str = "the tokenizer") -> Tokenizer:
    """The tokenizer of a folder's files, by their content; `name` is for messages.

    Raises:
      BadTokenizer: as `load_tokenizer`.
    """
    from sphinx_jax.data.tokenizer_models import is_tiktoken

    content = files.get(MODEL_FILE, b"")
    if JSON_FILE in files or is_tiktoken(content):
        return JsonTokenizer(files, name)
    last = max(tokenizer_files.added_tokens(files, name), default=-1)
    if last >= _sentencepiece(content, name).vocab_size():
        return JsonTokenizer(files, name)
    return SentencePieceTokenizer(content, name, files)


def check_fits(tokenizer: Tokenizer, rows: int) -> None:
    """Refuses a tokenizer with ids that have no row of the embedding; rows without a token (padding) are allowed.

    Raises:
      BadTokenizer: one line with both sizes and the fix.
    """
    if tokenizer.vocab_size > rows:
        raise BadTokenizer(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the embedding {rows} rows; give the model's own "
            "tokenizer (tokenizer=), take out the tokens added to it, or resize the embedding where they were added "
            "(transformers: resize_token_embeddings)"
        )


class _Shared:
    """What does not depend on the kind of files."""

    files: Mapping[str, bytes]
    bos_id: int
    eos_ids: tuple[int, ...]
    unk_id: int | None = None
    vocab_size: int

    @property
    def eos_id(self) -> int:
        return self.eos_ids[0]

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
        return from_files, (dict(self.files),)


class SentencePieceTokenizer(_Shared):
    """A sentencepiece `tokenizer.model`, as LLaMA, TinyLlama and Mixtral carry."""

    def __init__(self, content: bytes, name: str = MODEL_FILE, files: Mapping[str, bytes] | None = None):
        """Takes the content of the file; `name` is for messages, `files` are those of its folder where there are
        more."""
        self._model = _sentencepiece(content, name)
        self.files = {**(files or {}), MODEL_FILE: content}
        self.vocab_size = self._model.vocab_size()
        self.unk_id = self._model.unk_id()
        own = self._model.bos_id(), (self._model.eos_id(),)
        self.bos_id, self.eos_ids = tokenizer_files.ends(self.files, name, self.vocab_size, self._id_of, own)

    def as_json(self) -> bytes:
        """The content of a `tokenizer.json` that is this tokenizer.

        Raises:
          BadTokenizer: a model that is not of LLaMA's form.
        """
        content = self.files[MODEL_FILE]
        return _converted(self._model, content, MODEL_FILE, self.bos_id, self.eos_id).to_str(pretty=True).encode()

    def _id_of(self, token: str) -> int | None:
        found = self._model.piece_to_id(token)
        return found if self._model.id_to_piece(found) == token else None

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
    """A tokenizer of the `tokenizers` library: a Hugging Face `tokenizer.json`, LLaMA 3's `tokenizer.model`, or a
    sentencepiece `tokenizer.model` to which tokens were added.

    As in transformers, a special token that is spelled out in a text becomes that token.
    """

    def __init__(self, files: Mapping[str, bytes], name: str = JSON_FILE):
        """Takes the contents of the folder's files by name; `name` is for messages."""
        from sphinx_jax.data.tokenizer_models import add_tokens

        self._model, own = _tokenizers_model(files, name)
        add_tokens(self._model, tokenizer_files.added_tokens(files, name), name)
        self._model.no_truncation()
        self._model.no_padding()
        self.files = dict(files)
        # The highest id counts, not the number of tokens: added tokens may leave gaps.
        self.vocab_size = max(self._model.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        unknown = getattr(self._model.model, "unk_token", None)
        self.unk_id = None if unknown is None else self._model.token_to_id(unknown)
        id_of = self._model.token_to_id
        self.bos_id, self.eos_ids = tokenizer_files.ends(files, name, self.vocab_size, id_of, own)

    def as_json(self) -> bytes:
        """The content of a `tokenizer.json` that is this tokenizer."""
        return self.files.get(JSON_FILE) or self._model.to_str(pretty=True).encode()

    def _ids(self, text: str) -> list[int]:
        return self._model.encode(text, add_special_tokens=False).ids

    def encode_with_spans(self, text: str) -> tuple[list[int], list[Span]]:
        encoding = self._model.encode(text, add_special_tokens=False)
        return encoding.ids, [tuple(span) for span in encoding.offsets]

    def decode(self, ids: Iterable[int]) -> str:
        return self._model.decode(self._checked(ids), skip_special_tokens=True)

    def pieces(self) -> list[bytes]:
        table = json.loads(self._model.to_str())
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


def _sentencepiece(content: bytes, name: str) -> sentencepiece.SentencePieceProcessor:
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=content) if content else None
    except (RuntimeError, OSError):
        model = None
    if model is None or not model.vocab_size():
        raise BadTokenizer(f"{name} is not a sentencepiece model (is the download complete?)")
    return model


def _converted(
    plain: sentencepiece.SentencePieceProcessor, content: bytes, name: str, bos_id: int, eos_id: int
) -> tokenizers.Tokenizer:
    """A sentencepiece model as the `tokenizers` library has it, where it can."""
    from sphinx_jax.data.tokenizer_models import from_sentencepiece

    model, _ = from_sentencepiece(content, bos_id, eos_id)
    if model.encode(_SAMPLE, add_special_tokens=False).ids != plain.encode(_SAMPLE):
        raise BadTokenizer(
            f"{name} is not of LLaMA's form (BPE, text as it stands); save the tokenizer again with its {JSON_FILE}"
        )
    return model


def _tokenizers_model(
    files: Mapping[str, bytes], name: str
) -> tuple[tokenizers.Tokenizer, tuple[int, tuple[int, ...]]]:
    """The vocabulary in the file that counts, and the BOS (-1: none) and EOS ids that it has by itself."""
    import tokenizers

    from sphinx_jax.data import tokenizer_models as made

    content = files.get(MODEL_FILE)
    ranks = content is not None and made.is_tiktoken(content)
    if ranks and JSON_FILE not in files:
        model = made.from_tiktoken(content, name)
        stops = made.END, made.END_OF_MESSAGE, made.END_OF_TURN
        return model, (model.token_to_id(made.BEGIN), tuple(map(model.token_to_id, stops)))
    plain = None if content is None or ranks else _sentencepiece(content, name)
    own = (-1, ()) if plain is None else (plain.bos_id(), (plain.eos_id(),))
    if JSON_FILE not in files:
        eos = max(plain.eos_id(), 0)
        return _converted(plain, content, name, eos if plain.bos_id() < 0 else plain.bos_id(), eos), own
    try:
        model = tokenizers.Tokenizer.from_buffer(files[JSON_FILE])
    except Exception as error:
        # The library raises bare Exception for every kind of bad file.
        raise BadTokenizer(f"{name} is not a tokenizer: {str(error).splitlines()[0]}") from None
    if plain is not None and plain.vocab_size() > model.get_vocab_size():
        raise BadTokenizer(
            f"{name} has {model.get_vocab_size()} tokens, the {MODEL_FILE} beside it {plain.vocab_size()}; remove the "
            "one that is not the model's"
        )
    return model, own


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
