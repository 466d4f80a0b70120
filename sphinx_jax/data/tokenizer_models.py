"""Vocabularies in other people's forms as models of the `tokenizers` library."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from sphinx_jax.data.tokenizer_files import BadTokenizer

BLANK = "\u2581"  # sentencepiece's
# what LLaMA 3's tokenizer does not merge across, and its special tokens (llama-models, llama3/tokenizer.py)
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BEGIN, END, END_OF_MESSAGE, END_OF_TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"
NAMED = (
    BEGIN,
    END,
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    END_OF_MESSAGE,
    END_OF_TURN,
    "<|python_tag|>",
)
RESERVED = 256  # special tokens, named or not
RANK = re.compile(rb"[A-Za-z0-9+/]+=* \d+")


def from_sentencepiece(content: bytes, bos_id: int, eos_id: int) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """A BPE `tokenizer.model` as the tokenizer of a `tokenizer.json`, and the names of its special tokens."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    pieces = ModelProto.FromString(content).pieces
    vocab, kinds = {piece.piece: i for i, piece in enumerate(pieces)}, ModelProto.SentencePiece.Type
    special = [piece.piece for piece in pieces if piece.type in (kinds.UNKNOWN, kinds.CONTROL)]
    whole = [piece.piece for piece in pieces if piece.type == kinds.USER_DEFINED]
    unknown = next(piece.piece for piece in pieces if piece.type == kinds.UNKNOWN)
    merges = _merges({piece.piece: piece.score for piece in pieces if piece.type == kinds.NORMAL}, vocab)
    bpe = models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    made = tokenizers.Tokenizer(bpe)
    # a text gets a blank of its own; the pieces that are found whole in it are normalised too, and must
    # not: so a text that is one of them and nothing else gets none either
    alone = "|".join(re.escape(piece) for piece in whole)
    made.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(rf"\A(?!(?:{alone})\z)"), BLANK), normalizers.Replace(" ", BLANK)]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([AddedToken(piece, normalized=False) for piece in special])
    made.add_tokens([AddedToken(piece, normalized=True) for piece in whole])
    bos, eos = pieces[bos_id].piece, pieces[eos_id].piece
    made.post_processor = _begins_with(bos, bos_id)
    return made, {"bos_token": bos, "eos_token": eos, "unk_token": unknown}


def _merges(scores: dict[str, float], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs that make a piece, those of the best score first."""
    return list(_pairs(sorted(scores, key=lambda piece: -scores[piece]), vocab))


def _pairs(best_first: Iterable[str], vocab: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    cuts = ((piece[:cut], piece[cut:]) for piece in best_first for cut in range(1, len(piece)))
    return ((left, right) for left, right in cuts if left in vocab and right in vocab)


def _begins_with(bos: str, bos_id: int) -> processors.PostProcessor:
    return processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bos_id)])


def is_tiktoken(content: bytes) -> bool:
    """Whether a `tokenizer.model` is tiktoken's list of ranks and no sentencepiece model."""
    return RANK.fullmatch(content.partition(b"\n")[0].rstrip()) is not None


def from_tiktoken(content: bytes, name: str) -> tokenizers.Tokenizer:
    """LLaMA 3's `tokenizer.model`: lines of a token's bytes in base64 and its rank; special tokens come after them.

    Raises:
      BadTokenizer: a line of another form, a rank or a single byte that is missing.
    """
    try:
        rows = [line.split() for line in content.splitlines() if line.strip()]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in rows}
    except ValueError:
        raise BadTokenizer(f"{name} is not a list of tiktoken ranks (is the download complete?)") from None
    if sorted(ranks.values()) != list(range(len(rows))):
        raise BadTokenizer(f"{name} lacks some of its {len(rows)} tiktoken ranks (is the download complete?)")
    lost = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if lost:
        raise BadTokenizer(f"{name} has no token for {len(lost)} of the 256 bytes, the first is {lost[0]}")
    letters = _byte_letters()
    vocab = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
    # of the pairs that make a token any may be merged, tokens of a low rank first
    merges = list(_pairs(sorted(vocab, key=vocab.__getitem__), vocab))
    made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    unnamed = [f"<|reserved_special_token_{2 + i}|>" for i in range(RESERVED - len(NAMED))]
    made.add_special_tokens([AddedToken(token, normalized=False) for token in (*NAMED, *unnamed)])
    made.post_processor = _begins_with(BEGIN, len(vocab))
    return made


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary: its own where that can be seen (GPT-2)."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (byte for byte in range(256) if byte not in seen)
    letters = {byte: chr(256 + i) for i, byte in enumerate(others)} | {byte: chr(byte) for byte in seen}
    return [letters[byte] for byte in range(256)]


def add_tokens(
    model: tokenizers.Tokenizer, added: Mapping[int, tuple[str, Mapping[str, bool]]], name: str
) -> tokenizers.Tokenizer:
    """The tokens of `added_tokens` that the model lacks, at their ids.

    Raises:
      BadTokenizer: a token has another id already, or there is a gap before its id.
    """
    for i, (token, switches) in added.items():
        there = model.token_to_id(token)
        if there is None:
            # as transformers: a token is added at the end, its switches are off where a file says but its id
            made = AddedToken(token, **({"normalized": False, "special": True} | dict(switches)))
            (model.add_special_tokens if made.special else model.add_tokens)([made])
            there = model.token_to_id(token)
        if there != i:
            raise BadTokenizer(
                f"{name} has {token!r} as id {there}, the added tokens beside it as {i}; remove the file that is not "
                "the model's"
            )
    return model
