"""Keys and values that are held: in 8 bits, and as many copies of a head as a mesh wants."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import DATA, born, run_with_devices
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sphinx_jax import Engine, Request, Sphinx, from_pretrained
from sphinx_jax.config import DecoderConfig
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.generate.arguments import BadArgument
from sphinx_jax.generate.batching.beginnings import grouping
from sphinx_jax.model.attention import attend_cached
from sphinx_jax.model.cache import Cache, Rounded, rounded, write

TOKENIZER = load_tokenizer(DATA / "tokenizer.model")


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([1e-30, 1e-3, 1.0, 1e4]))
def test_a_number_in_8_bits_is_near_and_no_vector_hurts_another(seed, size):
    x = size * np.random.default_rng(seed).normal(size=(2, 3, 5, 8)).astype(np.float32)
    x[0, 1, 2] *= 1e3
    x[1, 0, 0] = 0
    found = rounded(jnp.asarray(x))
    assert found.steps.dtype == jnp.int8
    back = np.asarray(found.steps, np.float32) * np.asarray(found.scale)[..., None]
    assert (np.abs(back - x) <= np.abs(x).max(-1, keepdims=True) / 127 * 0.501).all()


def test_attention_to_8_bits_is_that_to_the_numbers_they_stand_for():
    """With beginnings in common, of several rows and queries."""
    rng = np.random.default_rng(0)
    q = rng.normal(size=(3, 2, 4, 8)).astype(np.float32)
    of_rows, of_all = (
        [rounded(jnp.asarray(rng.normal(size=(n, 2, s, 8)), jnp.float32)) for _ in range(2)]
        for n, s in ((3, 9), (2, 200))
    )

    def plain(x: Rounded) -> jax.Array:
        return x.steps * x.scale[..., None]

    positions = np.array([[3, 4], [7, 8], [150, 151]], np.int32) + np.array([[200], [0], [0]], np.int32)
    groups = grouping([200, 0, 148], {0: 1, 2: 0})
    attend = jax.jit(attend_cached)
    expected = attend(q, *map(plain, of_rows), positions, tuple(map(plain, of_all)), groups)
    np.testing.assert_allclose(attend(q, *of_rows, positions, tuple(of_all), groups), expected, atol=3e-6)


@pytest.mark.parametrize("cache", ["", "int8"])
def test_what_is_written_lies_at_its_positions_in_every_copy_of_its_head(cache):
    config = DecoderConfig(dim=32, layers=1, heads=4, kv_heads=2, cache=cache)
    held = Cache.empty(config, 2, 10, jnp.float32).keys[0]
    held = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=1), held)
    new = np.random.default_rng(0).normal(size=(2, 3, 2, 8)).astype(np.float32)
    found = write(held, jnp.asarray(new), jnp.array([1, 6]))
    if cache:
        found = found.steps * found.scale[..., None]
    found = np.asarray(found)
    for row, start in enumerate((1, 6)):
        for head in range(4):
            np.testing.assert_allclose(found[row, head, start : start + 3], new[row, :, head // 2], atol=0.02)
            assert not found[row, head, :start].any() and not found[row, head, start + 3 :].any()


def test_answers_in_8_bits_do_not_depend_on_others_and_are_near_the_whole_ones(tiny, mesh):
    """About pictures, whose beginnings are held in 8 bits too, free and kept to a form; the cache is as small."""
    few = dataclasses.replace(tiny, decoder=dataclasses.replace(tiny.decoder, cache="int8"))
    whole, model = (Sphinx(config, born(tiny), TOKENIZER, mesh) for config in (tiny, few))
    pixels = np.random.default_rng(0).integers(0, 255, (2, 40, 40, 3), np.uint8)
    shown = [None, *map(Image.fromarray, pixels)]
    asked = [
        Request("what is it " * n, shown[n % 3], 5, temperature=n % 2, task="yes_no" if n % 4 == 3 else "")
        for n in (1, 5, 2, 3, 4, 7)
    ]
    engine = Engine(model, slots=4)
    together = [said.tokens for (said,) in engine.map(asked)]
    assert together == [said.tokens for r in asked for (said,) in Engine(model, slots=1).map([r])]
    sizes = {x.dtype for x in jax.tree.leaves((engine._batch._slots.cache, engine._batch.beginnings._cache))}
    assert sizes == {jnp.dtype(jnp.int8), jnp.dtype(jnp.float32)}
    prompts, ends, images = ["what is it", "no " * 30], [" a star", " and so on"], shown[1:]
    np.testing.assert_allclose(model.score(prompts, ends, images), whole.score(prompts, ends, images), atol=0.02)
    assert model.score(prompts, ends, images) != whole.score(prompts, ends, images)
    with pytest.raises(BadArgument, match="cache must be int8 or whole, not 'int4'"):
        from_pretrained(DATA, cache="int4")


def test_each_device_holds_the_head_that_it_needs_and_no_more():
    run_with_devices("""
        import jax, jax.numpy as jnp
        from sphinx_jax.config import DecoderConfig
        from sphinx_jax.generate.batching import programs
        from sphinx_jax.sharding import make_mesh
        from conftest import tiny_config
        for heads, kv_heads, tensor, held in ((8, 2, 8, 8), (8, 8, 4, 8), (8, 4, 2, 4), (6, 3, 2, 3), (8, 1, 4, 4)):
            decoder = DecoderConfig(dim=8 * heads, layers=1, heads=heads, kv_heads=kv_heads, vocab_size=512)
            with jax.set_mesh(make_mesh(8 // tensor, 1, tensor, 1)):
                keys = programs.empty(tiny_config(decoder=decoder), 8, 16).keys[0]
            assert keys.shape == (8, held, 16, 8), keys.shape
            of_device = keys.sharding.shard_shape(keys.shape)
            assert of_device[1] == (1 if held == tensor else held // tensor if held % tensor == 0 else held), of_device
    """)
