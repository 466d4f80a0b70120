import functools
import hashlib
import json
import pickle
from pathlib import Path

import pytest
import sentencepiece
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st

from sphinx_jax.data.tokenizer import BadTokenizer, JsonTokenizer, SentencePieceTokenizer, load_tokenizer

HELPERS = json.loads((DATA / "dialog" / "dialog.json").read_text())["tokenizer_helpers"]

TEXTS = st.text(
    st.one_of(
        st.sampled_from("the cat looks at red box 0123.,[]#\n ▁"),
        st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"),
    ),
    max_size=40,
)


def llama_json(folder: Path, **config) -> Path:
    """The fixture's sentencepiece model as a `tokenizer.json` of LLaMA's form, from its pieces and ranks."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(DATA / "tokenizer.model"))
    vocab = {model.id_to_piece(i): i for i in range(model.vocab_size())}
    merges = [
        [piece[:cut], piece[cut:]]
        for piece, _ in sorted(vocab.items(), key=lambda entry: -model.get_score(entry[1]))
        for cut in range(1, len(piece))
        if len(piece) > 1 and piece[:cut] in vocab and piece[cut:] in vocab and not piece.startswith("<")
    ]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    table = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": c, **special} for i, c in enumerate(("<unk>", "<s>", "</s>"))],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(table))
    config = config or {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def byte_level_json(folder: Path) -> Path:
    """A small tokenizer of GPT-2's form: blanks belong to the next word, no blank of its own, no BOS."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    model.train_from_iterator(["the cat looks at the red box", "a ### b\n### Human: x\n### Assistant: y"], trainer)
    folder.mkdir()
    model.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": None, "eos_token": "<|end|>"}))
    return folder


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {
        "sentencepiece": load_tokenizer(DATA / "tokenizer.model"),
        "llama": load_tokenizer(llama_json(root / "llama")),
        "byte_level": load_tokenizer(byte_level_json(root / "byte_level")),
    }


@functools.cache
def pieces_of(tokenizer):
    return tokenizer.pieces()


KINDS = pytest.mark.parametrize("kind", ["sentencepiece", "llama", "byte_level"])


@pytest.mark.parametrize("text", HELPERS)
@pytest.mark.parametrize("kind", ["sentencepiece", "llama"])
def test_encodes_as_the_reference(kinds, kind, text):
    reference, tokenizer = HELPERS[text], kinds[kind]
    assert tokenizer.encode(text) == reference["encode"]
    assert tokenizer.encode(text, bos=True, eos=True) == [1, *reference["encode"], 2]
    assert tokenizer.decode(reference["encode"]) == reference["decode_roundtrip"]


@KINDS
@settings(max_examples=300)
@given(ids=st.lists(st.integers(3, 10_000), max_size=12), text=TEXTS)
def test_pieces_spell_what_is_decoded(kinds, kind, ids, text):
    """Token by token as a whole, but for blanks that a decoder takes from the beginning."""
    tokenizer = kinds[kind]
    pieces = pieces_of(tokenizer)
    assert len(pieces) == tokenizer.vocab_size
    special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id}
    for tokens in (tokenizer.encode(text), [3 + i % (tokenizer.vocab_size - 3) for i in ids]):
        tokens = [token for token in tokens if token not in special]
        spelt = b"".join(pieces[i] for i in tokens)
        try:
            assert tokenizer.decode(tokens).lstrip(" ") == spelt.decode().lstrip(" ")
        except UnicodeDecodeError:  # half a character: how many marks stand for it is each decoder's own affair
            assert "\ufffd" in tokenizer.decode(tokens)


@KINDS
def test_special_tokens_spell_nothing(kinds, kind):
    tokenizer = kinds[kind]
    pieces = tokenizer.pieces()
    assert pieces[tokenizer.bos_id] == pieces[tokenizer.eos_id] == b""
    assert tokenizer.unk_id is None or pieces[tokenizer.unk_id] == b""


@KINDS
@settings(max_examples=150)
@given(text=TEXTS)
def test_spans_cover_the_text_in_order(kinds, kind, text):
    tokenizer = kinds[kind]
    ids, spans = tokenizer.encode_with_spans(text)
    assert ids == tokenizer.encode(text)
    assert len(spans) == len(ids)
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)
    assert set().union(*(range(start, end) for start, end in spans)) == set(range(len(text)))
    # Only the tokenizer's own first blank comes from no character.
    assert all(start < end for start, end in spans[1:])


@KINDS
@settings(max_examples=150)
@given(text=TEXTS.filter(lambda text: "▁" not in text))
def test_text_survives_the_round_trip(kinds, kind, text):
    tokenizer = kinds[kind]
    assert tokenizer.decode(tokenizer.encode(text, bos=True, eos=True)) == text


@settings(max_examples=150)
@given(text=TEXTS)
def test_both_kinds_of_file_agree(kinds, text):
    ours, theirs = (kinds[kind].encode_with_spans(text) for kind in ("sentencepiece", "llama"))
    assert ours[0] == theirs[0]


def test_bytes_of_a_character_have_its_span(kinds):
    for kind in ("sentencepiece", "llama"):
        ids, spans = kinds[kind].encode_with_spans("a你b")
        assert spans == [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)], kind
        assert len(ids) == 5


def test_ids_of_the_fixture(kinds):
    for kind in ("sentencepiece", "llama"):
        tokenizer = kinds[kind]
        assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (512, 1, 2)


def test_without_bos_the_eos_takes_its_place(kinds):
    assert kinds["byte_level"].bos_id == kinds["byte_level"].eos_id == 0


def test_special_tokens_are_text_for_sentencepiece_and_tokens_for_json(kinds):
    assert 2 not in kinds["sentencepiece"].encode("a</s>b")
    assert 2 in kinds["llama"].encode("a</s>b")


@KINDS
def test_ids_outside_the_vocabulary_are_named(kinds, kind):
    tokenizer = kinds[kind]
    for bad in (tokenizer.vocab_size, -1):
        with pytest.raises(ValueError, match=f"token id {bad} is outside.* {tokenizer.vocab_size}"):
            tokenizer.decode([5, bad])


@KINDS
def test_save_writes_the_same_bytes_and_loads_again(kinds, kind, tmp_path):
    tokenizer = kinds[kind]
    tokenizer.save(tmp_path / "checkpoint" / "tokenizer")
    folder = tmp_path / "checkpoint" / "tokenizer"
    again = load_tokenizer(folder)
    assert again.encode("the cat\n###") == tokenizer.encode("the cat\n###")
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == dict(tokenizer.files)
    assert again.files == tokenizer.files
    if kind == "sentencepiece":
        original = (DATA / "tokenizer.model").read_bytes()
        saved = (folder / "tokenizer.model").read_bytes()
        assert hashlib.sha256(saved).digest() == hashlib.sha256(original).digest()


@KINDS
def test_pickles_for_worker_processes(kinds, kind):
    tokenizer = kinds[kind]
    again = pickle.loads(pickle.dumps(tokenizer))
    assert type(again) is type(tokenizer)
    assert again.encode_with_spans("café\n###") == tokenizer.encode_with_spans("café\n###")


def test_of_both_files_the_json_counts_but_in_a_published_folder(tmp_path):
    folder = llama_json(tmp_path)
    assert isinstance(load_tokenizer(folder), JsonTokenizer)
    (folder / "tokenizer.model").write_bytes((DATA / "tokenizer.model").read_bytes())
    assert isinstance(load_tokenizer(folder), JsonTokenizer)
    assert isinstance(load_tokenizer(folder / "tokenizer.model"), SentencePieceTokenizer)
    assert isinstance(load_tokenizer(str(folder / "tokenizer.json")), JsonTokenizer)
    (folder / "consolidated.00-of-01.model.pth").touch()
    published = load_tokenizer(folder)
    assert isinstance(published, SentencePieceTokenizer) and published.files.keys() == {"tokenizer.model"}


def test_special_tokens_map_serves_where_the_config_is_silent(tmp_path):
    folder = llama_json(tmp_path, model_max_length=4096)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "<s>"}))
    assert (load_tokenizer(folder).bos_id, load_tokenizer(folder).eos_id) == (1, 2)


def test_bad_files_are_named_in_one_line(tmp_path):
    with pytest.raises(BadTokenizer, match=r"gone does not exist"):
        load_tokenizer(tmp_path / "gone")
    with pytest.raises(BadTokenizer, match=r"has no tokenizer\.model or tokenizer\.json"):
        load_tokenizer(tmp_path)
    for content in (b"", b"version https://git-lfs.github.com/spec/v1"):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(BadTokenizer, match=r"tokenizer\.model is not a sentencepiece model") as caught:
            load_tokenizer(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "tokenizer.model").unlink()
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadTokenizer, match=r"tokenizer\.json is not a tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_json_without_eos_or_with_a_broken_config_is_named(tmp_path):
    folder = llama_json(tmp_path, bos_token="<s>")
    with pytest.raises(BadTokenizer, match="end-of-sequence"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(BadTokenizer, match=r"tokenizer_config\.json beside .* is not valid JSON"):
        load_tokenizer(folder)
