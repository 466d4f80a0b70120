"""Wrong arguments of the public API: one line each, before anything is compiled."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import DATA, tiny_config
from PIL import Image

import sphinx_jax
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.generate import arguments
from sphinx_jax.generate.engine import Engine
from sphinx_jax.generate.request import Said

PICTURE = Image.new("RGB", (20, 30))
PIXELS = np.zeros((1, 32, 32, 3), np.float32)
LLAMA = DATA / "llama_text"


def without_leaves(config, mesh):
    """What gets past the checks of this model has nothing to compute with."""
    return sphinx_jax.Sphinx(config, {}, load_tokenizer(DATA / "tokenizer.model"), mesh)


@pytest.fixture(scope="module")
def model(tiny, mesh):
    return without_leaves(tiny, mesh)


@pytest.fixture(scope="module")
def text_model(mesh):
    return without_leaves(tiny_config(views=None), mesh)


def floats(given):
    return f"pixels must be (1, 32, 32, 3) floats as sphinx_jax.data.image.preprocess gives them, not {given}"


TURNS = "turns must be [[question, answer], …, [question, None]]"
COUNTS = "tokens must be (B, T) integers, B and T at least 1, not "
NO_IMAGE = "an image must be a path, bytes or a PIL image, not "


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda m: m.generate("Hi"), "prompts must be a list of strings, not 'Hi'"),
        (lambda m: m.generate(None), "prompts must be a list of strings, not None"),
        (lambda m: m.generate({"Hi": 1}), "prompts must be a list of strings, not {'Hi': 1}"),
        (lambda m: m.generate(["Hi", 3]), "prompts[1] must be a string, not 3"),
        (lambda m: m.generate(["\ud800"]), "prompts[0] holds half of a surrogate pair, which is no character"),
        (lambda m: m.generate(["a", "b"], [PICTURE]), "prompts and images must be equally many, not 2 and 1"),
        (lambda m: m.generate([], [PICTURE]), "prompts and images must be equally many, not 0 and 1"),
        (lambda m: m.generate(["a"], "a.png"), "images must be a list of pictures, not 'a.png'"),
        (lambda m: m.generate(["a"], b"\x89PNG"), "images must be a list of pictures, not b'\\x89PNG'"),
        (lambda m: m.generate(["a"], [None]), NO_IMAGE + "NoneType"),
        (lambda m: m.generate(["a"], PIXELS), NO_IMAGE + "ndarray"),
        (lambda m: m.generate(["a"], max_new_tokens=0), "max_new_tokens must be an integer of at least 1, not 0"),
        (lambda m: m.generate(["a"], max_new_tokens=4.0), "max_new_tokens must be an integer of at least 1, not 4.0"),
        (
            lambda m: m.generate(["a"], [PICTURE], max_new_tokens=4060),
            "max_new_tokens 4060 leaves no room for a prompt in 4051 positions beside the picture",
        ),
        (
            lambda m: m.generate(["a"], temperature=-0.1),
            "temperature must be a number of at least 0 (which is greedy), not -0.1",
        ),
        (
            lambda m: m.generate(["a"], temperature=float("nan")),
            "temperature must be a number of at least 0 (which is greedy), not nan",
        ),
        (lambda m: m.generate(["a"], top_p=0), "top_p must be a number above 0 and at most 1, not 0"),
        (lambda m: m.generate(["a"], top_p=1.01), "top_p must be a number above 0 and at most 1, not 1.01"),
        (lambda m: m.generate(["a"], top_p="0.5"), "top_p must be a number above 0 and at most 1, not '0.5'"),
        (lambda m: m.generate(["a"], seed=0.5), "seed must be an integer of 64 bits, not 0.5"),
        (lambda m: m.generate(["a"], seed=2**63), "seed must be an integer of 64 bits, not 9223372036854775808"),
        (lambda m: m.respond("Hi"), TURNS + ", not 'Hi'"),
        (lambda m: m.respond([]), TURNS + ", not []"),
        (lambda m: m.respond(["ab"]), TURNS + "; turns[0] is 'ab'"),
        (lambda m: m.respond([["a", "b"], ["c"]]), TURNS + "; turns[1] is ['c']"),
        (lambda m: m.respond([["a", "b"]]), TURNS + ", None for the last answer alone; turns[0][1] is 'b'"),
        (
            lambda m: m.respond([["a", None], ["b", None]]),
            TURNS + ", None for the last answer alone; turns[0][1] is None",
        ),
        (lambda m: m.respond([[None, None]]), "turns[0][0] must be a string, not None"),
        (lambda m: m.respond([["a", 3], ["b", None]]), "turns[0][1] must be a string, not 3"),
        (lambda m: m.respond([["a", None]], [PICTURE]), NO_IMAGE + "list"),
        (
            lambda m: m.respond([["a", "b"], [" <image>", None]]),
            "turns[1][0], the question, must hold some text, not ''",
        ),
        (lambda m: m.respond([["", None]], PICTURE), "turns[0][0], the question, must hold some text, not ''"),
        (lambda m: m.respond([["a", None]], images=[PICTURE]), "unknown setting 'images'; did you mean 'image'?"),
        (lambda m: m.respond([["a", None]], image=""), "image cannot be read: its path is empty"),
        (lambda m: m.respond([["a", None]], logprobs="yes"), "logprobs must be True or False, not 'yes'"),
        (lambda m: m.stream("a", logprobs=1), "logprobs must be True or False, not 1"),
        (lambda m: m.respond_many(PICTURE, ["a", ""]), "questions[1] must hold some text, not ''"),
        (lambda m: m.generate(["a", ""]), "prompts[1] must hold some text, not ''"),
        (lambda m: m.respond([["a", None]], top_p=2), "top_p must be a number above 0 and at most 1, not 2"),
        (lambda m: m.logits([[1.0, 2.0]]), COUNTS + "(1, 2) float64"),
        (lambda m: m.logits([[True, False]]), COUNTS + "(1, 2) bool"),
        (lambda m: m.logits([1, 2]), COUNTS + "(2,) int64"),
        (lambda m: m.logits("Hi"), COUNTS + "() <U2"),
        (lambda m: m.logits(np.zeros((1, 0), int)), COUNTS + "(1, 0) int64"),
        (lambda m: m.logits(np.zeros((0, 4), int)), COUNTS + "(0, 4) int64"),
        (lambda m: m.logits([[1, 2], [3]]), "tokens must be one array; rows of these differ in length"),
        (lambda m: m.logits([[1, 2], [3, 512]]), "tokens must be from 0 to 511; [1, 1] is 512"),
        (lambda m: m.logits(jnp.array([[1, -1]])), "tokens must be from 0 to 511; [0, 1] is -1"),
        (lambda m: m.logits([[1]], PIXELS[:, :16]), floats("(1, 16, 32, 3) float32")),
        (lambda m: m.logits([[1]], PIXELS.transpose(0, 3, 1, 2)), floats("(1, 3, 32, 32) float32")),
        (lambda m: m.logits([[1]], PIXELS[0]), floats("(32, 32, 3) float32")),
        (lambda m: m.logits([[1]], np.concatenate([PIXELS] * 2)), floats("(2, 32, 32, 3) float32")),
        (lambda m: m.logits([[1]], PIXELS.astype(np.uint8)), floats("(1, 32, 32, 3) uint8")),
        (lambda m: m.logits([[1]], PICTURE), floats("(30, 20, 3) uint8")),
        (lambda m: m.score(["a", "b"], ["c"]), "prompts and continuations must be equally many, not 2 and 1"),
        (lambda m: m.score("a", ["b"]), "prompts must be a list of strings, not 'a'"),
        (lambda m: m.score(["a"], "b"), "continuations must be a list of strings, not 'b'"),
        (lambda m: m.score(["a", "b"], ["c", ""]), "continuations[1] '' adds no token to its prompt"),
        (lambda m: m.score(["a"], ["b"], [PICTURE] * 2), "prompts and images must be equally many, not 1 and 2"),
        (lambda m: m.features([]), "images must hold at least one picture, not []"),
        (lambda m: m.features("cat.jpg"), "images must be a list of pictures, not 'cat.jpg'"),
        (lambda m: m.features(None), "images must be a list of pictures, not None"),
        # at the call: nobody asks for what these would yield
        (lambda m: m.stream(["a"]), "prompt must be a string, not ['a']"),
        (lambda m: m.stream("a", 3), NO_IMAGE + "int"),
        (
            lambda m: m.respond([["a", None]], max_tokens=5),
            "unknown setting 'max_tokens'; did you mean 'max_new_tokens'?",
        ),
        (
            lambda m: m.stream("a", temperature=None),
            "temperature must be a number of at least 0 (which is greedy), not None",
        ),
        (
            lambda m: m.stream("a", max_new_tokens=5000),
            "max_new_tokens 5000 leaves no room for a prompt in 4096 positions",
        ),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(model, call, told):
    with pytest.raises(ValueError) as refused:
        call(model)
    assert str(refused.value) == told


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.generate(["a"], [PICTURE]),
        lambda m: m.respond([["a", None]], PICTURE),
        lambda m: m.stream("a", PICTURE),
        lambda m: m.score(["a"], ["b"], [PICTURE]),
        lambda m: m.logits([[1]], PIXELS),
        lambda m: m.features([PICTURE]),
    ],
)
def test_a_text_only_model_refuses_pictures(text_model, call):
    with pytest.raises(arguments.BadArgument, match="^tiny is a text-only model; it takes no pictures$"):
        call(text_model)


def test_nothing_asked_is_nothing_answered(model):
    assert model.generate([]) == model.generate([], []) == model.score([], []) == []


def test_settings_at_their_limits_arrive_as_they_are(text_model, monkeypatch):
    seen = []
    said = Said("a", [], [], "stop")
    monkeypatch.setattr(Engine, "map", lambda self, requests: [seen.append(r) or [said] for r in requests])
    limits = {"max_new_tokens": 1, "temperature": 0, "top_p": 1, "seed": -(2**63)}
    of_numpy = {
        "max_new_tokens": np.int32(3),
        "temperature": np.float32(2),
        "top_p": np.float64(0.5),
        "seed": np.int64(7),
    }
    for settings in (limits, of_numpy):
        assert text_model.generate(("a",), **settings) == [text_model.respond((("a", None),), **settings)]
        for request in seen[-2:]:
            assert {name: getattr(request, name) for name in settings} == settings


def test_arrays_of_every_kind_of_number_are_taken(tiny):
    for tokens in ([[0, 511]], np.array([[0, 511]], np.uint16), jnp.array([[0, 511]])):
        checked = arguments.check_tokens(tokens, 512)
        assert checked.dtype == np.int32 and checked.tolist() == [[0, 511]]
    for dtype in (np.float16, np.float64, jnp.bfloat16):
        assert arguments.check_pixels(tiny, PIXELS.astype(dtype), 1).shape == PIXELS.shape
    assert arguments.check_pixels(tiny, None, 1) is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "folder must be a path, or a list of one path or more, not []"),
        (None, "folder must be a path, or a list of one path or more, not None"),
        ([3], "folder must be a path, or a list of one path or more, not [3]"),
        ("model", "model does not exist"),
        ("runs/quikstart", "runs/quikstart does not exist; did you mean runs/quickstart?"),
        ("rums/quickstart/a", "rums/quickstart/a does not exist; did you mean runs/quickstart/a?"),
        (["runs", "runs/quick"], "runs/quick does not exist; did you mean runs/quickstart?"),
        (
            "runs/quickstart/consolidated.00-of-02.model.pth",
            "runs/quickstart/consolidated.00-of-02.model.pth is a file; give the folder that holds it, runs/quickstart",
        ),
    ],
)
def test_what_is_no_folder_is_told_in_one_line(tmp_path, monkeypatch, given, told):
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    (tmp_path / "runs" / "quickstart" / "consolidated.00-of-02.model.pth").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as refused:
        sphinx_jax.from_pretrained(given)
    assert str(refused.value) == told


@pytest.mark.parametrize(
    ("dtype", "told"),
    [
        ("int8", "unknown dtype 'int8'; known: bf16, bfloat16, float16, float32, fp16, fp32"),
        ("bloat16", "unknown dtype 'bloat16'; did you mean 'bfloat16'?"),
        (np.float32, "unknown dtype <class 'numpy.float32'>; did you mean 'float32'?"),
    ],
)
def test_a_dtype_that_is_none_is_refused_before_the_folder_is_opened(tmp_path, dtype, told):
    with pytest.raises(ValueError) as refused:
        sphinx_jax.from_pretrained(tmp_path, dtype=dtype)
    assert str(refused.value) == told


@pytest.mark.parametrize(("given", "used"), [("bf16", "bfloat16"), ("fp16", "float16"), ("float32", "float32")])
def test_a_dtype_has_a_short_and_a_long_name(mesh, given, used):
    assert sphinx_jax.from_pretrained(LLAMA / "ckpt_mp2", mesh=mesh, dtype=given).config.dtype == used


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sphynx_1k", "unknown model 'sphynx_1k'; did you mean 'sphinx_1k'?"),
        ("nope", "unknown model 'nope'; did you mean 'sphinx_peft'?"),
        (3, "unknown model 3; known: sphinx, sphinx_1k, "),
    ],
)
def test_parameters_of_an_unknown_model_are_not_counted(name, told):
    with pytest.raises(ValueError) as refused:
        sphinx_jax.count_parameters(name)
    assert str(refused.value).startswith(told)
