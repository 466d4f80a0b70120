"""Where answers end, whatever a tokenizer merges: the table of the device and the text of the host say the same."""

import functools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_tokenizer import KINDS, TEXTS, kinds  # noqa: F401  (a fixture)

from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.generate.batching.stops import Stops


class Merging:
    """Every piece is a token: what byte-level tokenizers merge, in small. The last one ends a sequence."""

    spelt = [b"!", b"#", b"##", b"###", b"\n", b".\n", b".\n#", b"a", b"a\n###", b"\n###b", b" ", "é".encode()[:1]]
    spelt += ["é".encode()[1:], b"\n\n", b"b\n##", b""]
    eos_ids = (15,)

    def pieces(self) -> list[bytes]:
        return self.spelt


TOKENS = st.lists(st.integers(0, 15), max_size=14)
STOPS = st.lists(st.sampled_from(["\n###", "##", "a\n", "é", "#\n#", "b"]), max_size=3)


def ends_by_hand(tokens: list[int], texts: list[str]) -> int | None:
    """How many tokens until the answer has ended."""
    for n in range(1, len(tokens) + 1):
        spelt = b"".join(Merging.spelt[t] for t in tokens[:n])
        if tokens[n - 1] == 15 or any(text.encode() in spelt for text in texts):
            return n
    return None


def walked(stops: Stops, tokens: list[int], vocab_size: int) -> int | None:
    """The same by the table that the device follows."""
    table, at = stops.table(vocab_size), 0
    for n, token in enumerate(tokens, 1):
        at = table[at, token]
        if at == stops.stopped:
            return n
    return None


@settings(max_examples=400)
@given(TOKENS, STOPS)
def test_the_table_ends_where_the_text_does(tokens, texts):
    assert walked(Stops(Merging(), texts), tokens, 20) == ends_by_hand(tokens, texts)


@settings(max_examples=400)
@given(TOKENS, STOPS)
@example([4, 2, 1], ["\n###", "##"])  # the one that begins later is whole before
def test_streamed_text_only_grows_and_ends_as_the_whole(tokens, texts):
    stops = Stops(Merging(), texts)
    whole = stops.text(tokens)
    said = [stops.text(tokens[:n], whole=False) for n in range(len(tokens) + 1)]
    assert all(b.startswith(a) for a, b in zip(said, [*said[1:], whole], strict=True))
    assert not any("\ufffd" in text for text in said if "\ufffd" not in whole)
    assert not any(text in whole for text in texts)
    end = ends_by_hand(tokens, texts)
    assert whole == stops.text(tokens[:end])
    assert stops.cut(tokens) == stops.cut(tokens[:end]) == tokens[: len(stops.cut(tokens))]
    assert whole.startswith(stops.text(stops.cut(tokens)).rstrip("\ufffd"))


@functools.cache
def stops_of(tokenizer: Tokenizer) -> Stops:
    return Stops(tokenizer, ["\n###"])


@KINDS
@settings(max_examples=100)
@given(before=TEXTS, after=TEXTS)
def test_a_stop_in_a_text_is_found_however_it_is_cut_into_tokens(kinds, kind, before, after):  # noqa: F811
    tokenizer = kinds[kind]
    stops = stops_of(tokenizer)
    tokens = tokenizer.encode(f"{before}\n###{after}")
    assert walked(stops, tokens, tokenizer.vocab_size) is not None
    spelt = b"".join(stops.pieces[t] for t in tokens)
    assert stops.text(tokens) == spelt[: spelt.find(b"\n###")].decode().strip()
    calm = f"{before}{after}"
    if "\n###" not in calm:
        assert walked(stops, tokenizer.encode(calm), tokenizer.vocab_size) is None


@KINDS
def test_rows_beyond_the_tokenizer_spell_nothing(kinds, kind):  # noqa: F811
    tokenizer = kinds[kind]
    stops = Stops(tokenizer, ["ab"])
    table = stops.table(tokenizer.vocab_size + 5)
    np.testing.assert_array_equal(table[:, -5:], np.arange(len(table))[:, None].repeat(5, 1))
    assert stops.text([*tokenizer.encode("cat"), tokenizer.vocab_size + 2]) == "cat"


def test_all_ends_of_a_sequence_count():
    many = Merging()
    many.eos_ids = (15, 7)
    stops = Stops(many, [])
    assert walked(stops, [0, 7, 1], 16) == 2 and stops.text([0, 7, 1]) == "!"


def test_an_empty_stop_is_refused():
    with pytest.raises(ValueError, match="a stop text is empty"):
        Stops(Merging(), ["###", ""])
