"""The playground's tokenizer: a small sentencepiece BPE with byte fallback, trained on its training split.

Positions are what a nano model on two cores can least afford, so the conversation template, the fixed words of every
instruction and all two-decimal numbers are single pieces.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

from sphinx_jax.data.conversation import ASSISTANT, HUMAN, STOP, SYSTEM
from sphinx_jax.data.tasks import INSTRUCTIONS

VOCABULARY = 1280
BLANK = "▁"  # how sentencepiece writes a space
# fixed words of an instruction shorter than this are left to the merges
SHORTEST = 12


def fixed_pieces() -> list[str]:
    """Texts that are always one piece."""
    pieces = [
        SYSTEM,
        "\n" + STOP,
        STOP,
        HUMAN,
        ASSISTANT,
        " [",
        " <p>",
        "</p>[",
        "<p>",
        "</p>",
        "[",
        "]",
        ", ",
        ",",
        ";",
    ]
    pieces += [f"{i / 100:.2f}" for i in range(101)]
    for instruction in INSTRUCTIONS.values():
        for number, words in enumerate(re.split(r"\{\w+\}", instruction.template)):
            # a blank before a field belongs to the field's first word, one before the instruction to the instruction
            words = words.rstrip(" ")
            if len(words) >= SHORTEST:
                pieces.append(words if number or words.startswith("\n") else " " + words)
    return list(dict.fromkeys(pieces))


def train_tokenizer(texts: Iterable[str], size: int = VOCABULARY) -> bytes:
    """The content of a `tokenizer.model`: unk 0, bos 1, eos 2, fixed pieces, bytes, merges."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=size,
        model_type="bpe",
        byte_fallback=True,
        user_defined_symbols=[piece.replace(" ", BLANK) for piece in fixed_pieces()],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        character_coverage=0.9999,
        num_threads=1,
        max_sentence_length=100_000,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    return model.getvalue()
