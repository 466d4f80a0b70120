"""What a perfectly trained model is heard to say: labels, answers and streams agree, whatever tokens merge."""

import numpy as np
import pytest
from conftest import DATA
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from sphinx_jax import Sphinx
from sphinx_jax.config import DecoderConfig, ModelConfig
from sphinx_jax.data.conversation import encode_conversation, render
from sphinx_jax.data.tokenizer import JsonTokenizer, load_tokenizer
from sphinx_jax.model.blueprint import blueprint

# as LLaMA 3's tokenizer.json cuts words: a full stop and the line break after it are one
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level() -> JsonTokenizer:
    """A small tokenizer of LLaMA 3's kind, whose token 0 is "!"."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(
        ["A red cat sits here.\n###", "no! it is\n###", " Human: Wow!\n### Assistant: A star.\n###"] * 40, trainer
    )
    made.add_special_tokens([AddedToken("<|begin|>"), AddedToken("<|end|>")])
    names = b'{"bos_token": "<|begin|>", "eos_token": "<|end|>"}'
    return JsonTokenizer({"tokenizer.json": made.to_str().encode(), "tokenizer_config.json": names})


TOKENIZERS = {"byte_level": byte_level(), "sentencepiece": load_tokenizer(DATA / "tokenizer.model")}


def scripted(tokenizer, chain) -> Sphinx:
    """A model that after token chain[i] says chain[i + 1]: the output alone does anything."""
    vocab = tokenizer.vocab_size + 3  # an embedding may have more rows than the tokenizer has tokens
    width = vocab + -vocab % 4
    decoder = DecoderConfig(dim=width, layers=1, heads=2, kv_heads=1, vocab_size=vocab, hidden_dim=8)
    config = ModelConfig(name="scripted", decoder=decoder)
    leaves = {path: np.zeros(spec.shape, np.float32) for path, spec in blueprint(config).specs.items()}
    leaves["decoder/norm/scale"][:] = 1
    leaves["decoder/embedding"][np.arange(vocab), np.arange(vocab)] = 1
    for now, then in zip(chain, chain[1:], strict=False):
        leaves["decoder/output"][now, then] = 10
    return Sphinx(config, leaves, tokenizer)


def learnt_of(kind: str, answer: str) -> tuple[int, list[int]]:
    """The token before an answer, and what is learnt of it."""
    encoded = encode_conversation([("what", answer)], TOKENIZERS[kind], 400)
    first = int(np.argmax(encoded.loss_mask))
    return int(encoded.tokens[first - 1]), encoded.tokens[encoded.loss_mask].tolist()


def scriptable(kind: str, answer: str) -> bool:
    """Whether no token comes twice, which the model below could not say."""
    before, learnt = learnt_of(kind, answer)
    return len({before, *learnt}) == 1 + len(learnt)


ANSWERS = ["A cat", "A cat.", "no! it", "Wow!", "a \U0001f408 b", "#1.", ""]
SCRIPTS = [(kind, answer) for kind in TOKENIZERS for answer in ANSWERS if scriptable(kind, answer)]


@pytest.mark.parametrize(("kind", "answer"), SCRIPTS)
def test_what_is_learnt_is_what_is_said(kind, answer):
    tokenizer = TOKENIZERS[kind]
    before, learnt = learnt_of(kind, answer)
    assert b"".join(tokenizer.pieces()[t] for t in learnt).decode().strip() == f"{answer}\n###".strip()
    chain = [before, *learnt]
    chain += [t for t in range(100, 140) if t not in chain]  # a model that is not stopped runs on
    model = scripted(tokenizer, chain)
    assert model.respond([["what", None]], max_new_tokens=24, temperature=0.0) == answer
    prompt, _ = render([("what", None)])
    said = list(model.stream(prompt, max_new_tokens=24, temperature=0.0))
    assert said[-1] == answer and len(set(said)) == len(said)
    assert all("\ufffd" not in text and answer.startswith(text) for text in said)


def test_the_cases_that_went_wrong_are_among_the_scripts():
    assert {("byte_level", "A cat."), ("byte_level", "no! it"), ("sentencepiece", "a \U0001f408 b")} <= {*SCRIPTS}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_an_answer_that_is_cut_off_keeps_what_may_have_been_a_stop(kind):
    tokenizer = TOKENIZERS[kind]
    prompt, _ = render([("what", None)])
    start = tokenizer.encode(prompt)[-1]
    model = scripted(tokenizer, [start, *tokenizer.encode(" A\n#")])
    count = len(tokenizer.encode(" A\n#"))
    assert model.generate([prompt], max_new_tokens=count, temperature=0.0) == ["A\n#"]
    assert list(model.stream(prompt, max_new_tokens=count, temperature=0.0))[-1] == "A\n#"
