"""What the files of a tokenizer's folder say: added tokens, ends of a text, LLaMA 3's ranks, contradictions."""

import base64
import json
import pickle
import random
from pathlib import Path

import pytest
from conftest import DATA
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from test_tokenizer import TEXTS, byte_level_json, llama_json

from sphinx_jax.data.conversation_form import as_trained, is_of_our_form
from sphinx_jax.data.tokenizer import BadTokenizer, JsonTokenizer, SentencePieceTokenizer, check_fits, load_tokenizer
from sphinx_jax.data.tokenizer_models import WORDS

ADDED = {"<|im_end|>": 512, "<|im_start|>": 513}
DECODER = {str(i): {"content": token, "special": True} for token, i in ADDED.items()}


def write_json(folder: Path, **files) -> Path:
    """Files by name (`_json` stands for `.json`) with their content."""
    folder.mkdir(exist_ok=True)
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


def sentencepiece(folder: Path, **files) -> Path:
    write_json(folder, **files)
    (folder / "tokenizer.model").write_bytes((DATA / "tokenizer.model").read_bytes())
    return folder


@pytest.mark.parametrize("way", ["tokenizer.json", "added_tokens.json", "added_tokens_decoder"])
def test_added_tokens_and_the_named_end_count_beside_a_tokenizer_model(way, tmp_path):
    config = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    if way == "added_tokens_decoder":
        config["added_tokens_decoder"] = DECODER
    folder = sentencepiece(tmp_path / "m", tokenizer_config=config)
    if way != "added_tokens_decoder":
        write_json(folder, added_tokens=ADDED)
    if way == "tokenizer.json":
        llama_json(folder, **config)
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.eos_ids) == (514, 1, 512, (512,))
    plain = load_tokenizer(DATA / "tokenizer.model")
    assert tokenizer.encode("<|im_start|>") == [513]
    assert tokenizer.encode("a red box") == plain.encode("a red box")
    assert tokenizer.decode([513, *plain.encode("a red box"), 512]).strip() == "a red box"
    tokenizer.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").files == tokenizer.files
    assert pickle.loads(pickle.dumps(tokenizer)).encode("<|im_end|>", eos=True) == [512, 512]


@settings(max_examples=100)
@given(text=TEXTS)
def test_a_sentencepiece_model_with_added_tokens_spells_all_else_as_before(with_added, text):
    plain, tokenizer = with_added
    assert tokenizer.encode_with_spans(text) == plain.encode_with_spans(text)


@pytest.fixture(scope="module")
def with_added(tmp_path_factory):
    folder = sentencepiece(tmp_path_factory.mktemp("added"), added_tokens=ADDED)
    return load_tokenizer(DATA / "tokenizer.model"), load_tokenizer(folder)


def test_a_companion_that_adds_nothing_leaves_sentencepiece_with_the_end_that_it_names(tmp_path):
    base = {"0": {"content": "<unk>"}, "1": {"content": "<s>"}, "2": {"content": "</s>"}}
    config = {"eos_token": {"content": "<unk>"}, "bos_token": None, "added_tokens_decoder": base}
    tokenizer = load_tokenizer(sentencepiece(tmp_path, tokenizer_config=config))
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids) == (512, 1, (0,))
    assert "tokenizer_config.json" in tokenizer.files


def test_all_ends_of_a_generation_config_end_a_text_and_the_tokenizers_is_the_first(tmp_path):
    folder = write_json(llama_json(tmp_path), generation_config={"bos_token_id": 1, "eos_token_id": [7, 2, 9]})
    assert load_tokenizer(folder).eos_ids == (2, 7, 9)
    write_json(folder, generation_config={"eos_token_id": 7}, tokenizer_config={})
    assert (load_tokenizer(folder).eos_ids, load_tokenizer(folder).bos_id) == ((7,), 7)
    write_json(folder, generation_config={"eos_token_id": -1}, tokenizer_config={"eos_token": "</s>"})
    assert load_tokenizer(folder).eos_ids == (2,)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"generation_config": {"eos_token_id": [2, 600]}}, "512 tokens, the model's .* names eos_token_id 600"),
        ({"generation_config": {"bos_token_id": 512}}, "names bos_token_id 512"),
        ({"tokenizer_config": {"eos_token": "<|eot|>"}}, "has eos_token '<|eot|>', which is no token"),
        ({"added_tokens": {"<|x|>": 700}}, r"has '<\|x\|>' as id 512, the added tokens beside it as 700"),
        ({"added_tokens": {"</s>": 513}}, "has '</s>' as id 2"),
        ({"added_tokens": ["<|x|>"]}, "added_tokens.json beside .* is not a table"),
        ({"added_tokens": {"<|x|>": "last"}}, "not of transformers' form"),
        (
            {"added_tokens": {"<|x|>": 512}, "tokenizer_config": {"added_tokens_decoder": {"512": {"content": "<y>"}}}},
            "gives id 512 to '<y>', added_tokens.json to '<|x|>'",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["json", "sentencepiece"])
def test_files_that_contradict_one_another_are_refused_in_one_line(kind, files, told, tmp_path):
    folder = llama_json(tmp_path) if kind == "json" else sentencepiece(tmp_path)
    with pytest.raises(BadTokenizer, match=told.replace("<|", r"<\|").replace("|>", r"\|>").replace("\\\\", "\\")) as e:
        load_tokenizer(write_json(folder, **files))
    assert "\n" not in str(e.value)


def test_a_json_smaller_than_the_model_beside_it_is_refused(tmp_path):
    folder = sentencepiece(byte_level_json(tmp_path / "m"))
    with pytest.raises(BadTokenizer, match=r"has \d+ tokens, the tokenizer\.model beside it 512; remove the one"):
        load_tokenizer(folder)


def test_a_tokenizer_may_have_fewer_tokens_than_the_embedding_rows_but_not_more():
    tokenizer = load_tokenizer(DATA / "tokenizer.model")
    check_fits(tokenizer, 512)
    check_fits(tokenizer, 576)
    with pytest.raises(BadTokenizer, match="has 512 tokens, the embedding 511 rows; give .* or resize"):
        check_fits(tokenizer, 511)


def test_training_leaves_nothing_of_another_form_of_conversation(tmp_path):
    folder = write_json(
        llama_json(tmp_path, bos_token="<s>", eos_token="</s>", chat_template="{{ messages }}"),
        generation_config={"eos_token_id": [2, 7], "temperature": 0.6},
    )
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    before = load_tokenizer(folder)
    after = as_trained(before)
    assert (is_of_our_form(before.files), is_of_our_form(after.files)) == (False, True)
    assert after.eos_ids == (2, 7) and after.encode("a red box") == before.encode("a red box")
    assert json.loads(after.files["generation_config.json"])["stop_strings"] == ["\n###"]
    assert "chat_template" not in str(after.files)
    assert as_trained(after) is after


# LLaMA 3's ranks


def ranks(seed=0) -> dict[bytes, int]:
    """A vocabulary as tiktoken's: single bytes in an order of their own, then pairs of what is there."""
    rnd = random.Random(seed)
    tokens = [bytes([byte]) for byte in range(256)]
    rnd.shuffle(tokens)
    text = " the cat looks at red box 0123.,[]#\n café 你 Human: Assistant: it's aaaaa    \n\n".encode()
    found = set(tokens)
    for length in range(2, 9):
        places = {text[i : i + length] for i in range(len(text) - length + 1)}
        for whole in rnd.sample(sorted(places), len(places) // 2 + 1):
            if any(whole[:i] in found and whole[i:] in found for i in range(1, length)):
                tokens.append(whole)
                found.add(whole)
    return {token: i for i, token in enumerate(tokens)}


def listed(table: dict[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in table.items())


def oracle(table: dict[bytes, int], text: str) -> list[int]:
    """As tiktoken: of a word's neighbours those are merged first whose whole has the lowest rank."""
    regex, ids = pytest.importorskip("regex"), []
    for word in regex.findall(WORDS, text):
        parts = [bytes([b]) for b in word.encode()]
        while len(parts) > 1 and b"".join(parts) not in table:
            pairs = [(table.get(a + b, 10**9), i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False))]
            rank, i = min(pairs)
            if rank == 10**9:
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [table[b"".join(parts)]] if b"".join(parts) in table else [table[part] for part in parts]
    return ids


@pytest.fixture(scope="module")
def llama3(tmp_path_factory):
    folder, table = tmp_path_factory.mktemp("llama3"), ranks()
    (folder / "tokenizer.model").write_bytes(listed(table))
    return folder, table, load_tokenizer(folder)


@settings(max_examples=300)
@given(text=st.one_of(TEXTS, st.text("a catsredox'é\n ", max_size=30), st.text("a", max_size=12)))
@example(text="aaaaaaaaaa it's   the cat\n\n 012345")
def test_ranks_are_merged_as_tiktoken_does(llama3, text):
    assume("<|" not in text)
    _, table, tokenizer = llama3
    ids, spans = tokenizer.encode_with_spans(text)
    assert ids == tokenizer.encode(text) == oracle(table, text)
    assert tokenizer.decode(ids) == text
    assert set().union(*(range(start, end) for start, end in spans)) == set(range(len(text)))


def test_ranks_agree_with_the_installed_tiktoken(llama3):
    tiktoken = pytest.importorskip("tiktoken")
    _, table, tokenizer = llama3
    theirs = tiktoken.Encoding("llama3", pat_str=WORDS, mergeable_ranks=table, special_tokens={})
    for text in ("the cat's  box\n\n###", "aaaaaaa 12345 café 你"):
        assert tokenizer.encode(text) == theirs.encode(text)


def test_special_tokens_come_after_the_ranks_under_metas_names(llama3):
    folder, table, tokenizer = llama3
    n = len(table)
    assert isinstance(tokenizer, JsonTokenizer) and tokenizer.vocab_size == n + 256
    named = {"<|begin_of_text|>": 0, "<|end_of_text|>": 1, "<|start_header_id|>": 6, "<|eom_id|>": 8, "<|eot_id|>": 9}
    named |= {"<|python_tag|>": 10, "<|reserved_special_token_2|>": 11, "<|reserved_special_token_246|>": 255}
    for token, place in named.items():
        assert tokenizer.encode(token) == [n + place], token
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (n, (n + 1, n + 8, n + 9))
    assert tokenizer.decode([n, *tokenizer.encode("the cat"), n + 9]) == "the cat"


def test_ranks_are_saved_as_they_were_and_are_a_tokenizer_json(llama3, tmp_path):
    folder, _, tokenizer = llama3
    tokenizer.save(tmp_path / "saved")
    original = (folder / "tokenizer.model").read_bytes()
    assert {f.name: f.read_bytes() for f in (tmp_path / "saved").iterdir()} == {"tokenizer.model": original}
    assert pickle.loads(pickle.dumps(tokenizer)).encode("the cat") == tokenizer.encode("the cat")
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.as_json())
    write_json(tmp_path, tokenizer_config={"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"})
    again = load_tokenizer(tmp_path)
    assert again.encode("it's the cat<|eot_id|>") == tokenizer.encode("it's the cat<|eot_id|>")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda lines: lines[:-2] + lines[-1:], "lacks some of its"),
        (lambda lines: [*lines, b"YQ==YQ== 9"], "not a list of tiktoken ranks"),
        (lambda lines: lines[:200], "has no token for 56 of the 256 bytes"),
    ],
)
def test_damaged_ranks_are_named_in_one_line(change, told, tmp_path):
    lines = change(listed(ranks()).splitlines())
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join(lines))
    with pytest.raises(BadTokenizer, match=told) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
