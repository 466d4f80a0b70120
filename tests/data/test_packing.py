"""Packed rows: every token of every text, once an epoch, none of it padding, and no text sees another."""

import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import DATA, born, tiny_config

from sphinx_jax.config import ConfigError
from sphinx_jax.data.conversation import BadItem, Item, parse_item
from sphinx_jax.data.packing import PackedRows
from sphinx_jax.data.rows import Rows, Shape, Source
from sphinx_jax.data.task_mix import names, rows, task_mix
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.model.attention import attend, of_even_lengths, splash
from sphinx_jax.model.blueprint import blueprint
from sphinx_jax.recipe.recipe import PLAYGROUND

TOKENIZER = load_tokenizer(DATA / "tokenizer.model")
TALK = Item(None, (("Why?", "Because it is so."), ("And then?", "Nothing.")), id="talk")
TEXTS = ["one", "two words", "a longer text " * 9, TALK, Item(None, (), text="a document", id="doc"), "x " * 40]


def texts_in(tokens: np.ndarray) -> list[tuple[int, ...]]:
    """The texts of a stretch of tokens, each from its BOS on."""
    return [tuple(part.tolist()) for part in np.split(tokens, np.flatnonzero(tokens == TOKENIZER.bos_id)[1:])]


@pytest.mark.parametrize("length", [3, 16, 61, 500])
def test_an_epoch_is_every_token_once_and_nothing_else(length):
    source = Source("t", TEXTS)
    packed = PackedRows(source, TOKENIZER, Shape(length, packed=True), seed=3)
    alone = {n: packed.columns(n) for n in range(len(TEXTS))}
    assert packed.total == sum(len(columns["tokens"]) for columns in alone.values())
    count = -(-3 * packed.total // length)
    made = [packed[n] for n in range(count)]
    tokens, learnt = (np.concatenate([row[k] for row in made]) for k in ("tokens", "loss_mask"))
    assert all(len(row["tokens"]) == length for row in made)
    epochs = [texts_in(tokens[epoch * packed.total : (epoch + 1) * packed.total]) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(tuple(columns["tokens"].tolist()) for columns in alone.values())
    assert (tokens[: packed.total] != 0).all() and not learnt[tokens == TOKENIZER.bos_id].any()
    assert epochs[0] != epochs[1]
    again = pickle.loads(pickle.dumps(packed))
    np.testing.assert_array_equal(again[count - 1]["tokens"], made[-1]["tokens"])


def test_rows_name_their_texts_and_documents_count_from_one():
    source = Source("t", TEXTS)
    packed = PackedRows(source, TOKENIZER, Shape(64, packed=True), seed=0)
    for n in range(12):
        documents = packed[n]["documents"]
        assert documents[0] == 1 and set(np.diff(documents)) <= {0, 1}
        assert len(packed.names(n).split(" + ")) == documents[-1]
    stream, named = (of([source], TOKENIZER, Shape(64, packed=True), 0) for of in (rows, names))
    for n in range(4):
        assert len(named[n].split(" + ")) == stream[n]["documents"][-1]


@pytest.mark.parametrize("start", [0, 1, 7])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_position_is_the_whole_state(start, processes):
    mixed = [Source("a", TEXTS, 0.7), Source("b", TEXTS[:3], 0.3)]
    stream = rows(mixed, TOKENIZER, Shape(32, packed=True), 5)
    whole = [batch["text"]["tokens"] for batch in itertools.islice(task_mix({"text": (stream, 8)}), 10)]
    for process in range(processes):
        part = task_mix({"text": (stream, 8)}, start=start, process=process, processes=processes)
        for step in range(start, 10):
            np.testing.assert_array_equal(next(part)["text"]["tokens"], whole[step][process::processes])


def test_lengths_are_counted_once_and_again_where_texts_or_tokenizer_change(tmp_path, monkeypatch):
    counted = []

    def pack(texts, tokenizer=TOKENIZER):
        counted.clear()
        packed = PackedRows(Source("t", texts), tokenizer, Shape(16, packed=True), 0, tmp_path / "lengths")
        return packed, len(counted)

    measure = PackedRows._measure
    monkeypatch.setattr(PackedRows, "_measure", lambda self, n: counted.append(n) or measure(self, n))
    first, count = pack(TEXTS)
    again, recount = pack(TEXTS)
    assert (count, recount) == (len(TEXTS), 0)
    np.testing.assert_array_equal(again[7]["tokens"], first[7]["tokens"])
    assert pack([*TEXTS[1:], "another"])[1] == len(TEXTS)
    assert pack([*TEXTS[:-1], "x " * 41])[1] == len(TEXTS)
    assert pack(TEXTS, load_tokenizer(PLAYGROUND / "tokenizer.model"))[1] == len(TEXTS)
    for file in (tmp_path / "lengths").iterdir():
        np.save(file, np.load(file) + 1)
    with pytest.raises(ValueError, match=f"when it was measured; delete {tmp_path}/lengths/t-[0-9a-f]+.npy"):
        pack(TEXTS)[0][0]


def test_bad_texts_are_left_out_and_pictures_options_refused(caplog):
    bad = Item(None, (("Q", ""),), id="empty")
    broken = Item(None, (), id="none")
    packed = PackedRows(Source("t", [broken, "fine", bad]), TOKENIZER, Shape(8, packed=True), 0)
    assert packed.lengths.of(0)[0] == 0 and "t/none" in caplog.text
    with pytest.raises(ValueError, match="no text that can be used"):
        PackedRows(Source("t", [broken]), TOKENIZER, Shape(8, packed=True), 0)
    with pytest.raises(ConfigError, match="leave turns"):
        PackedRows(Source("t", TEXTS), TOKENIZER, Shape(8, turns=1, packed=True), 0)


def test_a_text_in_a_packed_row_is_read_as_if_alone():
    config = tiny_config()
    model, random = blueprint(config).bind(born(config)), np.random.default_rng(0)
    texts = [random.integers(3, 512, n).astype(np.int32) for n in (5, 1, 9)]
    row, documents = np.concatenate(texts)[None], np.repeat([1, 2, 3], [5, 1, 9])[None]
    packed = model.hidden(jnp.asarray(row), documents=jnp.asarray(documents))[0][0]
    alone = np.concatenate([model.hidden(jnp.asarray(text[None]))[0][0] for text in texts])
    np.testing.assert_allclose(packed, alone, atol=2e-5)


@pytest.mark.parametrize(("length", "heads", "shared", "width"), [(130, 4, 2, 16), (200, 2, 2, 128), (257, 2, 1, 64)])
@pytest.mark.parametrize("packed", [False, True])
def test_the_tpu_kernel_computes_what_the_matrices_do(length, heads, shared, width, packed):
    random = np.random.default_rng(0)
    q, k, v = (jnp.asarray(random.normal(size=(2, length, n, width)), jnp.float32) for n in (heads, shared, shared))
    documents = jnp.asarray(np.sort(random.integers(0, 4, (2, length)), axis=1), jnp.int32) if packed else None

    def by(attention):
        def loss(*x):
            y = attention(*x)
            return jnp.sin(y).sum(), y

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)

    found = by(lambda *x: splash(*x, documents, interpret=True))
    expected = by(lambda *x: attend(*x, causal=True, documents=documents))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), found, expected)


@pytest.mark.parametrize(("length", "keys"), [(7, 7), (8, 8), (7, 10), (6, 9)])
@pytest.mark.parametrize("kind", ["causal", "all", "mask", "mask of keys", "causal mask"])
def test_lengths_made_even_change_nothing(length, keys, kind):
    random = np.random.default_rng(0)
    causal = "causal" in kind
    keys = length if causal else keys
    q, k, v = (jnp.asarray(random.normal(size=(2, n, 2, 8)), jnp.float32) for n in (length, keys, keys))
    shapes = dict.fromkeys(("mask", "causal mask"), (2, 1, length, keys)) | {"mask of keys": (2, 1, 1, keys)}
    mask = jnp.asarray(random.random(shapes[kind]) < 0.7).at[..., 0].set(True) if kind in shapes else None

    def by(attention):
        return jax.grad(lambda *x: jnp.sin(attention(*x)).sum(), argnums=(0, 1, 2))(q, k, v)

    found = by(lambda *x: of_even_lengths(*x, causal, mask, "xla"))
    expected = by(lambda *x: attend(*x, causal=causal, mask=mask))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_pairs_and_documents_are_read_whole(tmp_path):
    pair = parse_item({"image": "a.png", "text": "A lighthouse at dusk.", "domain": "real"})
    assert pair == Item("a.png", (), domain="real", text="A lighthouse at dusk.")
    made = Rows(Source("s", [pair]), TOKENIZER, Shape(24)).row(pair, 0, np.random.default_rng(0))
    tokens = [t for t in made["tokens"] if t]
    assert tokens == TOKENIZER.encode("A lighthouse at dusk.", bos=True, eos=True)
    np.testing.assert_array_equal(np.flatnonzero(made["loss_mask"]), np.arange(1, len(tokens)))
    assert (Source("s", [pair], task_weights={"vqa": 0.0}).eligible == [0]).all()
    for wrong in ({"text": ""}, {"text": 3}, {"image": 4, "text": "x"}, {"text": "\ud800"}):
        with pytest.raises(BadItem):
            parse_item(wrong)
