"""Where an answer ends: stop texts, found in the text that tokens spell, and tokens that end a sequence.

A tokenizer may merge a stop text with what stands before it (`.\n` is one token of LLaMA 3's), so token sequences
cannot be compared. The bytes that tokens spell are followed instead, by the automaton of Aho and Corasick (1975): one
table of (state, token) -> state serves the loop on the device and the host alike.
"""

from __future__ import annotations

import codecs
import functools
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from sphinx_jax.data.tokenizer import Tokenizer


class Stops:
    """Ends of an answer: stop texts, and the tokenizer's end-of-sequence tokens.

    Args:
      tokenizer: of the model.
      texts: what ends an answer wherever the text spells it.
      pieces: the tokenizer's, where they are known.

    Raises:
      ValueError: a stop text is empty.
    """

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str], pieces: Sequence[bytes] | None = None):
        if not all(texts):
            raise ValueError("a stop text is empty; every text holds it from the start")
        self.tokenizer, self.pieces = tokenizer, tokenizer.pieces() if pieces is None else pieces
        self._tables: dict[int, np.ndarray] = {}
        self.ends = frozenset(tokenizer.eos_ids)
        self.texts = tuple(text.encode() for text in texts)
        # state = the longest end of the text so far that begins a stop text; the last state is reached by a whole one
        self._prefixes = sorted({b""} | {text[:n] for text in self.texts for n in range(len(text))}, key=len)

    def and_texts(self, texts: Sequence[str]) -> Stops:
        """These and more."""
        more = Stops(self.tokenizer, [*(text.decode() for text in self.texts), *texts], self.pieces)
        more._by_byte  # noqa: B018 (made here, not while others wait for a token)
        return more

    @property
    def stopped(self) -> int:
        """The state of a text that has ended; the state of an empty one is 0."""
        return len(self._prefixes)

    @functools.cached_property
    def _by_byte(self) -> np.ndarray:
        """(states, 256) -> state after one more byte."""
        number = {prefix: state for state, prefix in enumerate(self._prefixes)}
        longer = {text[:n]: number[text[:n]] for text in self.texts for n in range(1, len(text))}
        longer |= dict.fromkeys(self.texts, self.stopped)
        table = np.full((self.stopped + 1, 256), self.stopped, np.int32)
        table[0] = 0
        shorter = [0] * self.stopped  # the state of the longest end of a prefix that is another
        for prefix, state in number.items():  # shorter ones first
            if len(prefix) > 1:
                shorter[state] = int(table[shorter[number[prefix[:-1]]], prefix[-1]])
            if prefix:
                table[state] = table[shorter[state]]
            for byte in range(256):
                further = longer.get(prefix + bytes([byte]))
                if further is not None and table[state, byte] != self.stopped:  # a text that ends here is whole first
                    table[state, byte] = further
        return table

    def table(self, vocab_size: int) -> np.ndarray:
        """(states, V) int32: the state after one more token.

        Args:
          vocab_size: V, the rows of the embedding; tokens beyond the tokenizer's spell nothing.
        """
        if vocab_size in self._tables:
            return self._tables[vocab_size]
        pieces = [*self.pieces[:vocab_size], *[b""] * (vocab_size - len(self.pieces))]
        states = np.repeat(np.arange(self.stopped + 1, dtype=np.int32)[:, None], vocab_size, axis=1)
        open_ = np.array([i for i, piece in enumerate(pieces) if piece], np.int64)
        at = 0
        while len(open_):  # the tokens that have a byte at this place, all at once
            bytes_ = np.array([pieces[i][at] for i in open_])
            states[:, open_] = self._by_byte[states[:, open_], bytes_]
            at += 1
            open_ = open_[[len(pieces[i]) > at for i in open_]]
        states[:, [i for i in self.ends if i < vocab_size]] = self.stopped
        self._tables[vocab_size] = states
        return states

    def after(self, state: int, *tokens: int) -> int:
        """The state after more tokens, as the table has it."""
        for token in tokens:
            if token in self.ends:
                state = self.stopped
            for byte in self.pieces[token] if 0 <= token < len(self.pieces) else b"":
                state = int(self._by_byte[state, byte])
        return state

    def _before_ends(self, tokens: Iterable[int]) -> list[int]:
        """Tokens up to the first that ends a sequence, without those that the tokenizer does not have."""
        going = itertools.takewhile(lambda token: token not in self.ends, tokens)
        return [token for token in going if 0 <= token < len(self.pieces)]

    def _found(self, spelt: bytes) -> int | None:
        """Where the stop text begins that is whole first: of one that begins before it, the rest would come later."""
        found = ((at + len(text), at) for text in self.texts if (at := spelt.find(text)) >= 0)
        return min(found, default=(0, None))[1]

    def text(self, tokens: Iterable[int], whole: bool = True) -> str:
        """What tokens say before the first stop, without blanks around it.

        Args:
          tokens: of an answer, perhaps beyond its end.
          whole: no more tokens follow. Otherwise what may be the beginning of a stop text, or of a character of
            several bytes, is left out until it is known.
        """
        spelt = b"".join(self.pieces[token] for token in self._before_ends(tokens))
        if (found := self._found(spelt)) is not None:
            spelt, whole = spelt[:found], True
        elif not whole:
            held = max(len(prefix) for prefix in self._prefixes if spelt.endswith(prefix))
            spelt = spelt[: len(spelt) - held]
        return codecs.getincrementaldecoder("utf-8")("replace").decode(spelt, final=whole).strip()

    def cut(self, tokens: Iterable[int]) -> list[int]:
        """The tokens that lie before the first stop with all that they spell."""
        tokens = self._before_ends(tokens)
        found = self._found(b"".join(self.pieces[token] for token in tokens))
        if found is None:
            return tokens
        ends = itertools.accumulate(len(self.pieces[token]) for token in tokens)
        return [token for token, end in zip(tokens, ends, strict=True) if end <= found]
