"""What is read of a picture: whole, without its empty parts or its overview alone, and by whom it is read ahead."""

import dataclasses
import re
import threading
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import DATA, born
from PIL import Image

from sphinx_jax import Engine, Request, Sphinx
from sphinx_jax.config import CLIP_MEAN, need
from sphinx_jax.data import read_ahead
from sphinx_jax.data.answer_grammar import of_regex
from sphinx_jax.data.image import PAD_COLOUR, BadImage
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.generate.arguments import BadArgument
from sphinx_jax.generate.batching.pictures import Picture, Pictures, holding
from sphinx_jax.model.blueprint import blueprint
from sphinx_jax.model.decoder import Seen
from sphinx_jax.model.embedding_mix import feature_shapes

TOKENIZER = load_tokenizer(DATA / "tokenizer.model")
PROMPTS = ("what is it", "a red star on the left of it and so on", "no")
HALF = (0, 1, 3)  # the overview, and the crops on the left
ALL = (0, 1, 2, 3, 4)


def half_empty(size: int = 32) -> Image.Image:
    pixels = np.full((size, size, 3), 200, np.uint8)
    pixels[:, : size // 2] = np.random.default_rng(0).integers(0, 255, (size, size // 2, 3))
    return Image.fromarray(pixels)


def full(size: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (size, size, 3), np.uint8))


@pytest.fixture(scope="module", params=[False, True], ids=["every view", "padded ones skipped"])
def model(request, tiny, mesh) -> Sphinx:
    config = dataclasses.replace(tiny, views=dataclasses.replace(tiny.views, skip_padded=request.param))
    return Sphinx(config, born(config), TOKENIZER, mesh)


@pytest.fixture(scope="module")
def by_hand(model):
    """Logits (T, V) with all positions where they are, and those of other views hidden from who follows."""
    bound = blueprint(model.config).bind(model.leaves)
    features = model.features([half_empty()])
    visual, read = bound.see(features)
    widths = [model.config.positions_of_view(v) for v in range(model.config.views.views)]

    def logits(views: tuple[int, ...], ids: list[int]) -> np.ndarray:
        shown = np.repeat(np.isin(np.arange(len(widths)), views), widths)[np.asarray(read[0])]
        x = bound.decoder.embed(jnp.array([ids]), jnp.float32)
        x = jnp.concatenate([x[:, :1], visual[:, read[0]], x[:, 1:]], axis=1)
        seen = np.ones(x.shape[1], bool)
        seen[1 : 1 + len(shown)] = shown
        mask = np.tril(np.ones((len(seen), len(seen)), bool)) & seen
        hidden, _ = bound.decoder(x, seen=Seen(mask=jnp.asarray(mask)[None, None]))
        return np.asarray(bound.decoder.logits(hidden)[0, len(shown) :])

    return logits


@pytest.mark.parametrize(("detail", "views"), [("low", (0,)), ("auto", HALF), ("high", (0, 1, 2, 3, 4))])
def test_what_is_left_out_is_hidden_and_keeps_its_place(model, by_hand, detail, views):
    """Of answers to questions about one picture in several details at once, kept to a grammar too, and of scores."""
    settings = {"max_new_tokens": 6, "temperature": 0.0}
    cases = [(p, d, v) for p in PROMPTS for d, v in ((detail, views), ("high", ALL))]
    asked = [Request(p, half_empty(), detail=d, **settings) for p, d, _ in cases]
    for (prompt, _, seen), (said,) in zip(cases, model.engine.map(asked), strict=True):
        ids = TOKENIZER.encode(prompt, bos=True)
        logits = by_hand(seen, ids + said.tokens[:-1])[len(ids) - 1 :]
        assert said.tokens == logits.argmax(-1).tolist()
        chances = jax.nn.log_softmax(logits)[np.arange(len(said.tokens)), said.tokens]
        np.testing.assert_allclose(said.logprobs, chances, atol=1e-4)
    ids = TOKENIZER.encode("what is it a star", bos=True)
    chances = jax.nn.log_softmax(by_hand(views, ids))
    begin = len(TOKENIZER.encode("what is it", bos=True))
    expected = sum(float(chances[i - 1, ids[i]]) for i in range(begin, len(ids)))
    assert model.score(["what is it"], [" a star"], [half_empty()], detail=detail) == [
        pytest.approx(expected, rel=1e-4)
    ]
    letters = Request(PROMPTS[0], half_empty(), detail=detail, grammar=of_regex("[a-z ]+"), **settings)
    ((said,),) = model.engine.map([letters])
    fitting = [token for token, piece in enumerate(TOKENIZER.pieces()) if re.fullmatch(rb"[a-z ]+", piece)]
    ids = TOKENIZER.encode(letters.prompt, bos=True)
    logits = by_hand(views, ids + said.tokens[:-1])[len(ids) - 1 :]
    assert said.tokens and (logits[np.arange(len(said.tokens)), said.tokens] >= logits[:, fitting].max(-1)).all()


def test_nothing_is_left_out_of_what_is_full(model):
    pictures = Pictures(model.config, model.leaves)
    seen = pictures.picture(full())
    assert pictures.in_detail(seen, "auto").as_read == seen.as_read
    low = pictures.in_detail(seen, "low")
    assert low.as_read != seen.as_read and pictures.in_detail(low, "high") is low
    (short,) = pictures.see([low])
    assert len(short.ids) == model.config.positions_of_view(0) and short.left_out


def test_text_only_and_single_views_have_one_detail(tiny, mesh):
    config = dataclasses.replace(tiny, views=dataclasses.replace(tiny.views, crops=0))
    pictures = Pictures(config, born(config))
    seen = pictures.picture(half_empty())
    assert all(pictures.in_detail(seen, detail) is seen for detail in ("low", "auto", "high"))
    with pytest.raises(BadArgument, match="detail must be low, auto or high, not 'medium'"):
        Request("a", detail="medium")


@pytest.mark.parametrize("crops", [1, 2, 3])
def test_a_crop_holds_something_where_there_are_two_colours(crops):
    size = 45
    pixels = np.full((size, size, 3), np.floor(255 * np.array(CLIP_MEAN)), np.uint8)
    pixels += np.random.default_rng(0).integers(0, 8, pixels.shape, np.uint8)  # a JPEG file's noise
    assert holding(pixels, crops) == []
    edges = [n * size // crops for n in range(crops + 1)]
    for number in range(crops**2):
        row, column = divmod(number, crops)
        for y, x in ((edges[row], edges[column]), (edges[row + 1] - 1, edges[column + 1] - 1)):  # also at its edges
            one = pixels.copy()
            one[y, x] = 255
            assert holding(one, crops) == [number]


def test_what_a_model_has_a_token_for_is_read(model):
    """A crop of padding, of one position then, is no empty one; with `low` it is left out all the same."""
    wide = Image.fromarray(np.random.default_rng(2).integers(0, 255, (8, 32, 3), np.uint8))
    pictures = Pictures(model.config, model.leaves)
    pixels = np.asarray(pictures.picture(wide).pixels).copy()
    pixels[:16] = PAD_COLOUR
    seen = Picture("a", pixels)
    found = pictures.in_detail(seen, "auto")
    skips = model.config.views.skip_padded
    assert found.views == (None if skips else (0, 3, 4)) and found.full == skips
    assert pictures.in_detail(seen, "low").views == (0,)
    assert pictures.in_detail(found, "auto") is found


def test_a_picture_that_is_read_when_it_is_looked_at_serves_many_requests(model, tmp_path):
    file = tmp_path / "large.png"
    full(300).save(file)
    with Image.open(file) as lazy:
        answers = list(model.engine.map(Request("a", lazy, 2, temperature=0.0) for _ in range(12)))
    (alone,) = model.engine.map([Request("a", file, 2, temperature=0.0)])
    assert all(said[0].tokens == alone[0].tokens for said in answers)


def test_pictures_are_read_ahead_by_threads_and_refused_in_their_turn(model, monkeypatch, tmp_path):
    file = tmp_path / "broken.png"
    file.write_bytes(b"no picture")
    engine, readers = Engine(model, slots=2), set()
    read = engine.pictures.picture
    monkeypatch.setattr(engine.pictures, "picture", lambda image: readers.add(threading.get_ident()) or read(image))
    monkeypatch.setattr(read_ahead, "READERS", 2)
    shown = [tmp_path / f"{n}.png" for n in range(3)]
    for path, image in zip(shown, (half_empty(), full(), half_empty(40)), strict=True):
        image.save(path)
    shown += [file, shown[0]]
    told = []
    with pytest.raises(BadImage, match=r"broken\.png"):
        for said in engine.map(Request("a", image, 2, temperature=0.0) for image in shown):
            told.append(said)
    assert threading.get_ident() not in readers
    assert threading.active_count() < 8
    assert len(list(engine.map(Request("a", image, 2) for image in shown[:3]))) == 3


def test_pictures_without_a_name_are_each_their_own(model):
    """Of pixels and of features alone, which an answer about one of another picture must not read."""
    settings = {"max_new_tokens": 4, "temperature": 0.0}
    shown = [np.asarray(need(model.engine.pictures.picture(image).pixels)) for image in (half_empty(), full())]
    rows = [jax.tree.map(lambda seen: seen[0], model.features([image])) for image in (half_empty(), full())]
    for engine in (Engine(model, slots=1), Engine(model, slots=2)):
        for image, pixels, row in zip((half_empty(), full()), shown, rows, strict=True):
            (expected,) = Engine(model, slots=1).submit(Request(PROMPTS[0], image, **settings)).wait()
            for nameless in (Picture("", pixels), Picture(None, pixels), Picture("", features=row)):
                (said,) = engine.submit(Request(PROMPTS[0], nameless, **settings)).wait()
                np.testing.assert_allclose(said.logprobs, expected.logprobs, atol=1e-4)
    asked = [Request(PROMPTS[0], Picture("", features=row), **settings) for row in rows * 2]
    chances = [said.logprobs for (said,) in model.engine.map(asked)]
    np.testing.assert_allclose(chances[:2], chances[2:], atol=1e-4)
    assert not np.allclose(chances[0], chances[1], atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"features": None}, "a Picture must have pixels or features"),
        ({}, 'detail "auto" looks at pixels, and the Picture has none'),
        ({"features": ()}, "features of a Picture must be Features, not tuple"),
        (
            {"queries": np.zeros((5, 2, 8))},
            "features.queries .* must be .5, 2, 16. in this model, not .5, 2, 8",
        ),
        ({"overview": None}, r"features.overview of a Picture must be \(1, .*\) in this model, not NoneType"),
        ({"overview": np.zeros((1, 3, 4))}, r"features.overview .* must be .*, not \(1, 3, 4\) float64"),
        ({"pixels": np.zeros((8, 8, 3), np.uint8)}, r"pixels of a Picture must be .* uint8, not \(8, 8, 3\) uint8"),
        ({"pixels": np.zeros((96, 96, 3), np.float32)}, r"pixels of a Picture must be .* uint8, not .* float32"),
        ({"pixels": [[0]]}, "pixels of a Picture must be .* uint8, not list"),
    ],
)
def test_a_picture_that_cannot_be_looked_at_is_refused_alone(model, changes, told):
    features = jax.tree.map(lambda seen: seen[0], model.features([full()]))
    of_features = {name: value for name, value in changes.items() if name in features._fields}
    given = {"features": features._replace(**of_features)} | {k: v for k, v in changes.items() if k not in of_features}
    going = model.engine.submit(Request("a", full(), 4))
    with pytest.raises(BadArgument, match=told):
        model.engine.submit(Request("a", Picture("a", **given), detail="auto"))
    assert going.wait()


def test_features_have_the_shapes_that_are_asked_for(model):
    features = model.features([full()])
    shapes = {name: None if x is None else x.shape[1:] for name, x in features._asdict().items()}
    assert feature_shapes(model.config) == shapes


def test_a_picture_is_what_it_was_when_it_was_asked_about(model):
    """Whoever gives pixels may use their place again."""
    pixels = np.array(model.engine.pictures.picture(full()).pixels)
    settings = {"max_new_tokens": 4, "temperature": 0.0}
    for name in ("", "frame"):
        engine = Engine(model, slots=1)
        (expected,) = (
            Engine(model, slots=1).submit(Request(PROMPTS[0], Picture(name, pixels.copy()), **settings)).wait()
        )
        answer = engine.submit(Request(PROMPTS[0], Picture(name, given := pixels.copy()), **settings))
        view = (base := pixels.copy())[:]
        view.setflags(write=False)
        seen = engine.submit(Request(PROMPTS[0], Picture(name, view), **settings))
        given[:] = base[:] = 0
        for each in (answer, seen):
            np.testing.assert_allclose(each.wait()[0].logprobs, expected.logprobs, atol=1e-4)
    named = engine.pictures.named(Picture("", pixels))
    assert engine.pictures.named(named).pixels is named.pixels, "many requests about one have it once"


def test_pictures_that_are_scored_are_read_ahead_by_threads_and_let_go(model, monkeypatch, tmp_path):
    shown = [tmp_path / f"{n}.png" for n in range(30)]
    for n, path in enumerate(shown):
        full(20 + n).save(path)
    engine, read, readers, before, held = Engine(model, slots=1), [], set(), [], []
    picture, advance = engine.pictures.picture, engine.advance
    monkeypatch.setattr(read_ahead, "READERS", 2)

    def look(image):
        readers.add(threading.get_ident())
        found = picture(image)
        read.append(weakref.ref(found.pixels))
        return found

    def step(jobs):
        before.append(len(read))
        advance(jobs)
        held.append(sum(pixels() is not None for pixels in read))

    monkeypatch.setattr(engine.pictures, "picture", look)
    monkeypatch.setattr(engine, "advance", step)
    ids = TOKENIZER.encode("a star", bos=True)
    found = engine.score([ids] * 30, [2] * 30, shown)
    assert before[0] < 12 and max(held) < 15 and len(read) == 30 and threading.get_ident() not in readers
    assert found[7] == pytest.approx(model.engine.score([ids], [2], [shown[7]])[0], rel=1e-4)
