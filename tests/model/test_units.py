"""The smallest pieces against the reference's own numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import DATA
from flax import nnx

from sphinx_jax.config import dinov2_config
from sphinx_jax.data.image import load_image, preprocess
from sphinx_jax.model import views
from sphinx_jax.model.embedding_mix import pool_patches
from sphinx_jax.model.encoders.vit import Vit
from sphinx_jax.model.layers import RMSNorm, contract, flat
from sphinx_jax.model.rope import rotate, rotation


@pytest.fixture(scope="module")
def units():
    return np.load(DATA / "units.npz")


def picture(size: int) -> np.ndarray:
    return preprocess(load_image(DATA / "images" / "img0.png"), size)[None]


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1).astype(np.float32)


def with_values(make, **values) -> nnx.Module:
    with nnx.use_eager_sharding(False):
        module = make()
    for name, value in values.items():
        getattr(module, name).set_value(jnp.asarray(value))
    return module


@pytest.mark.parametrize(
    ("source", "target"), [(448, 224), (672, 224), (512, 224), (1024, 224), (1024, 448), (1024, 512)]
)
def test_resizes_are_the_references(units, source, target):
    ours = np.asarray(jax.jit(lambda x: views.resize(x, target))(picture(source)))
    expected = channels_last(units[f"bicubic_half_{source}_{target}"])
    # to the digit, as the processor has a fused multiply-add: without one a few sums fall on the other side of a tie
    np.testing.assert_array_equal(ours, expected)


def test_the_nearest_resize_is_the_references(units):
    expected = channels_last(units["nearest_half_224_256"])
    np.testing.assert_array_equal(views.nearest(jnp.asarray(picture(224)), 256), expected)
    # exact in float16, so that every pixel says where it was
    where = jnp.broadcast_to(jnp.arange(224.0)[:, None, None], (224, 224, 1))[None]
    np.testing.assert_array_equal(views.nearest(where, 256)[0, :, 0, 0], units["nearest_src_index_224_256"])


@pytest.mark.parametrize("grid", [16, 32])
def test_position_embeddings_are_resized_as_the_references(units, grid):
    config = dinov2_config(48, 1, 3, view_size=14 * grid)
    vit = with_values(lambda: Vit(config, rngs=nnx.Rngs(0)), position_embedding=units["dino_pos_embed"][0])
    ours = nnx.jit(lambda vit: vit.positions())(vit)
    np.testing.assert_allclose(ours, units[f"dino_pos_embed_{grid}x{grid}"][0], atol=5e-7)


def test_pooling_is_a_bilinear_half(units):
    patches = np.moveaxis(units["bilinear_in"], 1, -1).reshape(2, 256, 5)
    pooled = pool_patches(jnp.concatenate([patches[:, :1], patches], axis=1), 2)
    expected = np.moveaxis(units["bilinear_half_scale"], 1, -1).reshape(2, 64, 5)
    np.testing.assert_allclose(pooled[:, 1:], expected, atol=1e-6)


def test_rotations_are_the_references(units, monkeypatch):
    positions = jnp.arange(64)
    for suffix, theta, scaling in (("", 1e4, None), ("_t1e6_s025", 1e6, 0.25)):
        cos, sin = rotation(positions, 16, theta, scaling)
        np.testing.assert_allclose(cos, units[f"rope_cos{suffix}"], atol=1e-6)
        np.testing.assert_allclose(sin, units[f"rope_sin{suffix}"], atol=1e-6)
    by = rotation(3 + jnp.arange(7)[None], 16, 1e4)
    for where in ("cpu", "tpu"):  # two ways to the same
        monkeypatch.setattr("sphinx_jax.model.rope.platform", lambda where=where: where)
        for name in "qk":
            turned = rotate(jnp.asarray(units[f"rope_{name}"]), by)
            np.testing.assert_allclose(turned, units[f"rope_{name}_out_pos3"], atol=1e-6)


def test_a_cpu_works_out_the_angles_once_for_all_layers():
    """Its compiler would do so where they are used: four times here, and for every head."""

    def layers(x: jax.Array, positions: jax.Array) -> jax.Array:
        by = rotation(positions, 8, 1e4)
        for _ in range(2):
            q, k = (rotate((x @ matrix).reshape(2, 40, 4, 8), by) for matrix in maps)
            x = jnp.einsum("btnh,bsnh,bsd->btd", q, k, x)
        return x

    maps = jnp.ones((2, 32, 32))
    compiled = jax.jit(layers).lower(jnp.ones((2, 40, 32)), jnp.ones((2, 40), jnp.int32)).compile()
    assert compiled.as_text().count(" cosine(") == 1


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 65])
@pytest.mark.parametrize("turn", [False, True])
def test_products_in_bfloat16_are_summed_up_in_more(rows, turn):
    rng = np.random.default_rng(rows)
    x, kernel = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((rows, 1, 96), (96, 4, 9)))
    exact = np.einsum("bti,iho->btho", *(np.asarray(a, np.float64) for a in (x, kernel)))
    for given in (kernel, flat(kernel, 1, turn)):
        found = jax.jit(contract)(x, given)
        assert found.dtype == jnp.bfloat16 and found.shape == exact.shape
        # each is off by its own rounding to bfloat16 alone, whatever was added up
        np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize(("dtype", "key"), [("float32", "rms_y"), ("bfloat16", "rms_y_bf16")])
def test_rms_norm_is_the_references(units, dtype, key):
    norm = with_values(lambda: RMSNorm(16, 1e-5), scale=units["rms_w"])
    ours = norm(jnp.asarray(units["rms_x"], dtype)).astype(jnp.float32)
    np.testing.assert_allclose(ours, units[key], rtol=1e-6)
