"""A tokenizer and its conversation form as transformers reads them: ``tokenizer.json`` and a chat template."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tokenizers
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import AddedToken, Regex, decoders, models, normalizers, processors

from sphinx_jax.data.conversation import ASSISTANT, HUMAN, STOP, SYSTEM, render
from sphinx_jax.data.tokenizer import BadTokenizer, Tokenizer

# the published form (data/conversation.py); a first message of the system stands in place of ours
CHAT_TEMPLATE = (
    "{{ bos_token or eos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
    f"{{% else %}}{{{{ {json.dumps(SYSTEM)} }}}}{{% endif %}}"
    f"{{{{ {json.dumps(chr(10) + STOP)} }}}}"
    "{% for message in messages if message['role'] != 'system' %}"
    f"{{{{ {json.dumps(HUMAN)} if message['role'] == 'user' else {json.dumps(ASSISTANT)} }}}}"
    f"{{{{ ' ' + message['content'] | trim + {json.dumps(STOP)} }}}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ {json.dumps(ASSISTANT)} }}}}{{% endif %}}"
)
BLANK = "\u2581"  # sentencepiece's


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Writes the tokenizer's files, ``tokenizer.json`` beside a ``tokenizer.model``, and the chat template.

    Raises:
      BadTokenizer: a sentencepiece model that is not of LLaMA's form.
    """
    tokenizer.save(folder)
    config, model = folder / "tokenizer_config.json", folder / "tokenizer.model"
    table = json.loads(config.read_text()) if config.is_file() else {}
    table = {key: _content(value) for key, value in table.items()}
    if model.is_file():
        converted, named = from_sentencepiece(model.read_bytes(), tokenizer.bos_id, tokenizer.eos_id)
        text, _ = render([("What is in the image? [0.12, 0.30]", "2 cafés"), ("Where?", None)])
        if converted.encode(text, add_special_tokens=False).ids != tokenizer.encode(text):
            raise BadTokenizer(
                f"{model.name} is not of LLaMA's form (BPE, text as it stands); transformers cannot use it"
            )
        converted.save(str(folder / "tokenizer.json"))
        table = {**named, "clean_up_tokenization_spaces": False}
    # this class takes tokenizer.json as it stands, as we do
    table |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE}
    config.write_text(json.dumps(table, indent=2))


def _content(value: Any) -> Any:
    """A special token as its text, which every version of transformers takes."""
    return value["content"] if isinstance(value, dict) and "content" in value else value


def from_sentencepiece(content: bytes, bos_id: int, eos_id: int) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """A BPE ``tokenizer.model`` as the tokenizer of a ``tokenizer.json``, and the names of its special tokens."""
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
    made.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bos_id)]
    )
    return made, {"bos_token": bos, "eos_token": eos, "unk_token": unknown}


def _merges(scores: dict[str, float], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs that make a piece, those of the best score first."""
    best_first = sorted(scores, key=lambda piece: -scores[piece])
    cuts = ((piece[:cut], piece[cut:]) for piece in best_first for cut in range(1, len(piece)))
    return [(left, right) for left, right in cuts if left in vocab and right in vocab]
