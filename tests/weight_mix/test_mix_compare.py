"""Models that do not belong together are not mixed, whatever opens them; what is harmless is a warning."""

import dataclasses
import json
import logging
import random
import types

import numpy as np
import pytest
from conftest import DATA, born
from mix_cases import CONFIG, TEXT, leaves_of, linear
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.store import BadCheckpoint
from sphinx_jax.config import ConfigError, MoeConfig
from sphinx_jax.data.tokenizer import JsonTokenizer, SentencePieceTokenizer
from sphinx_jax.recipe.stages.mix import check_models
from sphinx_jax.weight_mix import compare as mix_compare
from sphinx_jax.weight_mix import interference
from sphinx_jax.weight_mix.compare import Described, check_alike
from sphinx_jax.weight_mix.settings import Mix, from_json, to_json
from sphinx_jax.weight_mix.write import write as write_mix

MODEL = (DATA / "tokenizer.model").read_bytes()


def changed(config, part=None, **fields):
    if part is None:
        return dataclasses.replace(config, **fields)
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **fields)})


def words(change=None, content=MODEL):
    """The tokenizer of the tests, its pieces changed."""
    model = ModelProto.FromString(content)
    if change:
        change(model.pieces)
    return SentencePieceTokenizer(model.SerializeToString())


def shuffled(pieces):
    texts = [piece.piece for piece in pieces[300:]]
    random.Random(0).shuffle(texts)
    for piece, text in zip(pieces[300:], texts, strict=True):
        piece.piece = text


def longer(pieces):
    new = pieces.add()
    new.CopyFrom(pieces[len(pieces) - 2])
    new.piece = "<|more|>"


MOE = changed(CONFIG, "decoder", moe=MoeConfig(4, 2))


@pytest.mark.parametrize(
    ("one", "field", "other"),
    [
        (CONFIG, "decoder.rope_theta", changed(CONFIG, "decoder", rope_theta=5e5)),
        (CONFIG, "decoder.rope_scaling", changed(CONFIG, "decoder", rope_scaling=0.25)),
        (CONFIG, "decoder.rope_llama3", changed(CONFIG, "decoder", rope_llama3=(8.0, 1.0, 4.0, 8192.0))),
        (CONFIG, "decoder.norm_eps", changed(CONFIG, "decoder", norm_eps=1e-6)),
        (CONFIG, "decoder.heads", changed(CONFIG, "decoder", heads=4, head_width=16)),
        (CONFIG, "clip.activation", changed(CONFIG, "clip", activation="quick_gelu")),
        (CONFIG, "dinov2.norm_eps", changed(CONFIG, "dinov2", norm_eps=1e-5)),
        (CONFIG, "views.crops", changed(CONFIG, "views", crops=1)),
        (CONFIG, "pool_crops", changed(CONFIG, pool_crops=2)),
        (MOE, "decoder.moe.per_token", changed(CONFIG, "decoder", moe=MoeConfig(4, 1))),
    ],
)
def test_what_arrays_do_not_show_is_compared(one, field, other):
    models = {"/a/b": Described(one, None), "/a/c": Described(other, None)}
    for order in (models, dict(reversed(models.items()))):
        with pytest.raises(BadCheckpoint) as refused:
            check_alike(order)
        said = str(refused.value)
        assert said.startswith(f"{field} is ") and f"--allow {field} " in said and len(said) < 300
        assert all(f"in {name}" in said for name in models)
        check_alike(order, [field])
        check_alike(order, [field.rpartition(".")[2]])


@pytest.mark.parametrize(
    "other",
    [
        changed(CONFIG, name="another", dtype="bfloat16"),
        changed(CONFIG, "decoder", rope_scaling=1.0, head_width=16, hidden_dim=CONFIG.decoder.ffn_dim),
        changed(CONFIG, "decoder", tied_embeddings=True, lora_rank=4, bias=("q",)),
        changed(CONFIG, "clip", position_grid=2),
        TEXT,
        changed(TEXT, pool_crops=2),
    ],
)
def test_what_means_the_same_is_not_told_apart(other, caplog):
    check_alike({"a": Described(CONFIG, None), "b": Described(other, None)})
    assert not caplog.messages


def test_what_is_harmless_is_a_warning(tmp_path, caplog):
    folders = [tmp_path / name for name in "ab"]
    for folder, template in zip(folders, ("{{ one }}", "{{ two }}"), strict=True):
        folder.mkdir()
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    configs = (TEXT, changed(TEXT, "decoder", max_positions=64))
    with caplog.at_level(logging.WARNING):
        check_alike({str(f): Described(c, None, f) for f, c in zip(folders, configs, strict=True)})
    assert len(caplog.messages) == 2
    assert caplog.messages[0] == f"decoder.max_positions is 4096 in {folders[0]}, 64 in {folders[1]}"
    assert caplog.messages[1].startswith(f"the chat templates of {folders[0]} and {folders[1]} differ")


def test_one_number_must_be_one_piece(caplog):
    models = {"a": Described(None, words()), "b": Described(None, words(shuffled))}
    with pytest.raises(BadCheckpoint, match=r"^tokenizer: token \d+ is '.*' in a, '.*' in b \(\d+ differ\)"):
        check_alike(models)
    check_alike(models, ["tokenizer"])
    check_alike({"a": models["a"], "b": Described(None, words())})
    assert not caplog.messages


def test_a_file_of_another_kind_with_the_same_pieces_is_the_same_tokenizer(caplog):
    pieces = words().vocabulary()
    text = json.dumps({"model": {"type": "BPE", "vocab": {p: i for i, p in pieces.items()}, "merges": []}})
    named = json.dumps({"bos_token": "<s>", "eos_token": "</s>"})
    other = JsonTokenizer({"tokenizer.json": text.encode(), "tokenizer_config.json": named.encode()})
    check_alike({"a": Described(None, words()), "b": Described(None, other)})
    assert not caplog.messages


def test_more_tokens_or_no_tokenizer_are_a_warning_and_the_mix_has_most(tmp_path, caplog):
    """Of the second are the most tokens; the rows are there in all."""
    assert words(longer).vocab_size == words().vocab_size + 1
    config = changed(TEXT, "decoder", vocab_size=words().vocab_size + 8)
    sources = [
        store.save(tmp_path / str(i), born(config, i), config, tokenizer, {})
        for i, tokenizer in enumerate((words(), words(longer), None))
    ]
    with caplog.at_level(logging.WARNING):
        out = write_mix(linear(sources, (0.5, 0.25, 0.25)), tmp_path / "out", quiet=True)
    assert store.read_tokenizer(out).vocabulary() == words(longer).vocabulary()
    lacks, more = [message for message in caplog.messages if "tokenizer" in message]
    assert lacks == f"{sources[2]} has no tokenizer; it is taken to be that of {sources[0]}"
    assert f"the tokenizer of {sources[1]} has tokens that {sources[0]} lacks, the first is 512 '<|more|>'" in more


@pytest.fixture
def strangers(tmp_path):
    other = changed(TEXT, "decoder", rope_theta=5e5)
    return [
        store.save(tmp_path / c.name, born(TEXT, i), c, None, {})
        for i, c in enumerate((changed(TEXT, name="a"), changed(other, name="b")))
    ]


def test_nothing_that_opens_several_as_one_passes_it_over(strangers, tmp_path):
    a, b = map(str, strangers)
    with pytest.raises(BadCheckpoint, match=r"decoder.rope_theta is 10000.0 in .*/a, 500000.0 in .*/b"):
        write_mix(linear((a, b), (0.5, 0.5)), tmp_path / "out", quiet=True)
    with pytest.raises(BadCheckpoint, match="decoder.rope_theta"):
        write_mix(Mix("ties", (a, a), b, {}, ({"weight": 1.0},) * 2), tmp_path / "out", quiet=True)
    with pytest.raises(BadCheckpoint, match="decoder.rope_theta"):
        interference.measure([a, a], b, tmp_path / "scratch", quiet=True)
    interference.measure([a, a], b, tmp_path / "scratch", allow=["rope_theta"], quiet=True)
    run = types.SimpleNamespace(recipe=types.SimpleNamespace(model=TEXT), tokenizer=words())
    with pytest.raises(BadCheckpoint, match="decoder.rope_theta is 10000.0 in the recipe, 500000.0 in b"):
        check_models(run, {"b": Described(store.read_config(b), None)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_user_who_knows_better_says_so_and_the_recipe_keeps_it(strangers, tmp_path):
    mix = linear(strangers, (0.5, 0.5), allow=("rope_theta",))
    assert from_json(to_json(mix)) == mix
    out = write_mix(mix, tmp_path / "out", quiet=True)
    assert store.read_config(out) == store.read_config(strangers[0])
    a, b, mixed = (leaves_of(folder)["decoder/norm/scale"] for folder in (*strangers, out))
    np.testing.assert_allclose(mixed, (a + b) / 2)
    with pytest.raises(ConfigError, match="unknown thing to allow 'rope_teta'; did you mean 'rope_theta'"):
        linear(strangers, (0.5, 0.5), allow=("rope_teta",))
    assert {"tokenizer", "rope_theta", "decoder.moe.per_token"} <= mix_compare.differing_fields()
