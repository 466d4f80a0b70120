"""Answers that keep to a grammar: at each place the tokens that fit, and those that can be nothing else.

llguidance follows the grammar; what it does not know is that a box has its corners in order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from sphinx_jax.data.answer_grammar import has_boxes
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.generate.arguments import BadArgument
from sphinx_jax.generate.batching.stops import Stops

KEPT = 64  # grammars that are remembered
_LARGEST = "0.99"


class BadGrammar(BadArgument):
    """A grammar that is none, or one that an answer got stuck in."""


class Guides:
    """Grammars over the tokens of a tokenizer.

    Args:
      stops: what ends an answer: one text, or the end of the sequence.
    """

    def __init__(self, stops: Stops):
        import llguidance

        self.pieces, self.ends = stops.pieces, stops.ends
        (self.stop,) = stops.texts
        self.closing = self.pieces.index(b"]") if b"]" in self.pieces else -1
        vocabulary = llguidance.TokenizerWrapper(_Vocabulary(stops.tokenizer, self.pieces))
        self._tokens = llguidance.LLTokenizer(vocabulary, eos_token=list(stops.tokenizer.eos_ids))
        self._matcher = functools.lru_cache(KEPT)(self._compiled)
        self.most_tokens = functools.lru_cache(KEPT)(self._most_tokens)

    def guide(self, grammar: str) -> Guide:
        """A guide through one answer; `grammar` has a rule `answer`, in Lark's form.

        Raises:
          BadGrammar: in one line.
        """
        return Guide(self, self._matcher(grammar).deep_copy(), has_boxes(grammar))

    def _compiled(self, grammar: str) -> Any:
        import json

        import llguidance

        # the model says when an answer that could go on ends; the blank is the one that conversations have there
        whole = f'{grammar}\nstart: " "? answer {json.dumps(self.stop.decode())}?\n'
        try:
            read = llguidance.LLMatcher.grammar_from_lark(whole)
            matcher = llguidance.LLMatcher(self._tokens, read, log_level=0)
        except ValueError as error:
            raise BadGrammar(f"the grammar cannot be used: {_in_a_line(error)}") from None
        if matcher.is_error():
            raise BadGrammar(f"the grammar cannot be used: {_in_a_line(matcher.get_error())}")
        return matcher

    def _most_tokens(self, grammar: str, text: str) -> int:
        """As many as a text takes where each that is chosen is the shortest that fits, the blank before it included."""
        guide, rest, count = self.guide(grammar), b" " + text.encode(), 0
        while True:
            forced = guide.forced()
            count, rest = count + len(forced), rest[sum(len(self.pieces[t]) for t in forced) :]
            if guide.ended or not rest:
                return count
            fitting = guide.allowed()[: len(self.pieces)].nonzero()[0].tolist()
            token = min((t for t in fitting if rest.startswith(self.pieces[t])), key=lambda t: len(self.pieces[t]))
            guide.take(token)
            count, rest = count + 1, rest[len(self.pieces[token]) :]

    def fitting(self, matcher: Any) -> list[int]:
        """The tokens that may follow."""
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, bitorder="little")[: len(self.pieces)].nonzero()[0].tolist()


class Guide:
    """Where an answer is in its grammar."""

    def __init__(self, guides: Guides, matcher: Any, boxes: bool):
        self._guides, self._matcher, self._boxes = guides, matcher, boxes
        self._text = b""
        self._fits: list[int] | None = None  # the tokens that do, once they are asked for

    def restart(self, tokens: Sequence[int]) -> None:
        """Be where these tokens lead."""
        self._matcher.reset()
        self._text, self._fits = b"", None
        for token in tokens:
            self.take(token)

    def take(self, token: int) -> None:
        self._text += self._guides.pieces[token]
        self._matcher.consume_token(token)
        self._fits = None

    def whole(self, tokens: Sequence[int]) -> tuple[int, list[int]] | None:
        """How many of an answer's tokens, cut off, could be all of it, and what would close a list of boxes there.

        None: there is no such place.
        """
        self.restart(())
        found: tuple[int, list[int]] | None = None
        for count, token in enumerate(tokens):
            if self._matcher.is_accepting():
                found = count, []
            elif self._boxes and self._guides.closing in self._fitting:
                found = count, [self._guides.closing]
            self.take(token)
        return (len(tokens), []) if self._matcher.is_accepting() else found

    @property
    def error(self) -> BadGrammar | None:
        """What it got stuck in, if it did."""
        if not self._matcher.is_error():
            return None
        return BadGrammar(f"an answer got stuck in its grammar: {_in_a_line(self._matcher.get_error())}")

    def forced(self) -> list[int]:
        """The tokens that must follow, already taken."""
        found: list[int] = [] if self.ended else self._matcher.compute_ff_tokens()
        for token in found:
            self.take(token)
        return found

    @property
    def ended(self) -> bool:
        """Whether nothing may follow but the end."""
        if self._matcher.is_stopped():
            return True
        if not self._matcher.is_accepting():
            return False
        rest, pieces, ahead, fitting = self._guides.stop, self._guides.pieces, self._matcher, self._fitting
        while rest:
            more = [t for t in fitting if t not in self._guides.ends]
            if not all(rest.startswith(pieces[t]) for t in more):
                return False
            if not more:
                break
            # the shortest: what the answer may go on with instead fits after it
            step = min(more, key=lambda t: len(pieces[t]))
            ahead = ahead.deep_copy()
            ahead.consume_token(step)
            rest, fitting = rest[len(pieces[step]) :], self._guides.fitting(ahead)
        return True

    def allowed(self) -> np.ndarray:
        """(V,) bool: the tokens that may follow, at least one."""
        mask = np.zeros(len(self._guides.pieces), bool)
        fitting = self._fitting
        if self._boxes and b"]" not in self._text[self._text.rfind(b"[") :]:
            fitting = [t for t in fitting if _in_order(self._text, self._guides.pieces[t])] or fitting
        mask[fitting] = True
        return mask

    @property
    def _fitting(self) -> list[int]:
        if self._fits is None:
            self._fits = self._guides.fitting(self._matcher)
        return self._fits


class _Vocabulary:
    """A tokenizer as llguidance takes it."""

    def __init__(self, tokenizer: Tokenizer, pieces: Sequence[bytes]):
        self._tokenizer = tokenizer
        self._befores = [(text, tokenizer.encode(text)) for text in ("\n", "]", ",", "a")]
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self.special_token_ids = [i for i, piece in enumerate(pieces) if not piece]
        # what spells nothing must not be an empty text
        self.tokens = [piece or b"\xff<%d>" % i for i, piece in enumerate(pieces)]

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens of a text that something stands before: sentencepiece begins one with a blank of its own."""
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        for before, tokens in self._befores:
            whole = self._tokenizer.encode(before + text)
            if whole[: len(tokens)] == tokens:  # they did not merge
                return whole[len(tokens) :]
        return self._tokenizer.encode(text)


def _in_order(text: bytes, piece: bytes) -> bool:
    """Whether the corners of the box that a text is at, if it is at one, can still be in order with this piece."""
    begin = text.rfind(b"[") + 1
    if not begin or b"]" in text[begin:]:
        return True
    begin += text[begin:].rfind(b";") + 1
    numbers = (text + piece)[begin:].split(b"]")[0].split(b";")[0].split(b",")
    return all(_most(numbers[i]) >= float(numbers[i - 2]) for i in (2, 3) if i < len(numbers))


def _most(number: bytes) -> float:
    """The largest number of two decimals within 1 that begins like this."""
    text = number.decode(errors="replace").strip()
    if not text or text.startswith("1"):
        return 1.0
    try:
        return float(text + _LARGEST[len(text) :])
    except ValueError:
        return 1.0


def _in_a_line(error: Any) -> str:
    return " ".join(str(error).split())[:200]
