"""The modules against the reference's own numbers, and the properties that hold at any size."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import DATA, born, read_published, run_with_devices, tiny_config
from PIL import Image

import sphinx_jax
from sphinx_jax.checkpoint.foreign import accessory
from sphinx_jax.config import FAMILY, ConfigError, ViewsConfig, family, from_dict, to_dict
from sphinx_jax.data.image import padded_resize
from sphinx_jax.model import views
from sphinx_jax.model.blueprint import Blueprint, blueprint, count_parameters, flatten, make_encode, matches, unflatten
from sphinx_jax.model.cache import Cache
from sphinx_jax.model.encoders.convnext import depthwise
from sphinx_jax.model.sphinx import SphinxModel, isolate
from sphinx_jax.model.views import normalise

REFERENCE = DATA / "llama_ens5"


@functools.cache
def reference():
    config = accessory.read_config([REFERENCE / "ckpt"], vocab_size=512)
    arrays = read_published(accessory.open_folders([REFERENCE / "ckpt"]), config)
    plan = blueprint(config)
    return (
        config,
        plan.bind({path: jnp.asarray(a) for path, a in arrays.items()}),
        np.load(REFERENCE / "expected.npz"),
    )


@functools.cache
def reference_features():
    config, model, _ = reference()
    pixels = np.load(DATA / "images" / "pre_448.npz")["image"].transpose(0, 2, 3, 1)
    return jax.jit(model.encode)(jnp.asarray(pixels))


def test_encoders_agree_with_the_reference():
    config, _, expected = reference()
    overview, crops, queries, _ = reference_features()
    patches = np.concatenate([overview, crops], axis=1)
    clip, dino = patches[..., : config.clip.width], patches[..., -config.dinov2.width :]
    for ours, name in ((clip, "clip"), (dino, "dino"), (np.asarray(queries), "qformer")):
        by_view = np.moveaxis(ours, 1, 0).reshape(-1, *ours.shape[2:])
        np.testing.assert_allclose(by_view, expected[f"img__{name}_feats"], atol=1e-5)


@pytest.mark.parametrize("kind", ["img", "text"])
def test_logits_and_loss_agree_with_the_reference(kind):
    _, model, expected = reference()
    tokens = jnp.asarray(expected["examples"])
    features = reference_features() if kind == "img" else None
    logits = jax.jit(lambda features: model.decoder.logits(model.hidden(tokens, features)[0]))(features)
    np.testing.assert_allclose(logits, expected[f"{kind}_logits_full"], atol=1e-4)
    labels = expected["labels"][:, 1:]
    chosen = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits))[:, :-1], labels[..., None], -1)[..., 0]
    assert -chosen[labels > 0].mean() == pytest.approx(expected[f"{kind}_loss"], abs=1e-5)


def test_cached_decoding_gives_the_references_tokens_and_logits():
    config, model, expected = reference()
    features = jax.tree.map(lambda x: x[:1], reference_features())
    prompt, tokens = expected["img_gen_prompt"], expected["img_gen_tokens"]
    visual, kept = model.see(features)
    assert kept.all() and visual.shape[1] == config.image_positions
    ids = [prompt[0], *(-1 - w for w in range(config.image_positions)), *prompt[1:]]
    cache = Cache.empty(config.decoder, 1, len(ids) + len(tokens), jnp.float32)
    extend = jax.jit(model.extend)
    # the prompt in two pieces, cut in the picture
    for start, end in ((0, 40), (40, len(ids))):
        hidden, cache = extend(jnp.array([ids[start:end]], jnp.int32), cache, jnp.array([start]), visual)
    for step, token in enumerate(tokens):
        logits = model.decoder.logits(hidden[:, -1])
        np.testing.assert_allclose(logits[0], expected["img_gen_logits"][step], atol=1e-4)
        assert int(logits.argmax()) == token
        hidden, cache = extend(jnp.array([[token]], jnp.int32), cache, jnp.array([len(ids) + step]))


def test_published_folder_answers_through_the_public_api():
    model = sphinx_jax.from_pretrained(REFERENCE / "ckpt")
    expected = np.load(REFERENCE / "expected.npz")
    tokens = expected["examples"][:, :77]  # a length that is no bucket's
    np.testing.assert_allclose(model.logits(tokens), expected["text_logits_full"][:, :77], atol=1e-4)


def test_full_size_parameter_counts_are_the_published_ones():
    # SPHINX.md §2 less what the files hold unused: CLIP's text side and output projection, DINOv2's mask token
    full = count_parameters("sphinx_1k")
    assert full["decoder"] == 13_015_864_320
    assert full["clip"] == 303_966_208 - 1024 * 768
    assert full["convnext"] == 843_398_016
    assert full["dinov2"] == 1_136_480_768 - 1536
    assert full["blip2_vision"] == 985_952_256
    assert full["qformer"] == 105_137_664 + 24_576
    assert (full["visual_proj"], full["qformer_proj"], full["tags"]) == (28_851_200, 3_947_520, 10_240)
    assert full["trainable"] == 13_048_673_280
    light = count_parameters("sphinx_tiny_1k")
    assert light["decoder"] == 1_100_048_384
    assert (light["visual_proj"], light["tags"], "clip" in light) == (9_443_328, 4_096, False)


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        ("sphinx", 291),
        ("sphinx_1k", 1455),
        ("sphinx_2k", 2910),
        ("sphinx_1k_pooled", 687),
        ("sphinx_tiny", 259),
        ("sphinx_tiny_1k", 1295),
    ],
)
def test_image_positions_are_the_published_ones(name, positions):
    assert family(name).image_positions == positions


@pytest.mark.parametrize("name", FAMILY)
def test_configs_survive_json(name):
    import json

    assert from_dict(json.loads(json.dumps(to_dict(family(name))))) == family(name)


def test_unknown_config_key_names_the_nearest():
    values = to_dict(family("sphinx"))
    values["decoder"]["layer"] = 3
    with pytest.raises(ConfigError, match=re.escape("unknown key of model.decoder 'layer'; did you mean 'layers'?")):
        from_dict(values)


def test_embedding_places_pictures_right_after_bos(tiny):
    model = blueprint(tiny).bind(born(tiny))
    pixels = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    tokens = jnp.array([[1, 5, 6], [1, 7, 8]])
    x = jax.jit(lambda: model.embed(tokens, model.encode(pixels)))()
    assert x.shape == (2, 3 + tiny.image_positions, 32)
    table = model.decoder.embedding[...]
    np.testing.assert_array_equal(x[:, 0], table[tokens[:, 0]])
    np.testing.assert_array_equal(x[:, -2:], table[tokens[:, 1:]])
    view = tiny.image_positions // 5
    tags = model.embedding_mix.tags
    for number in range(5):
        np.testing.assert_array_equal(x[0, 1 + number * view], tags.start[...])
        np.testing.assert_array_equal(x[0, (number + 1) * view], tags.end[...])


def test_one_picture_of_a_batch_does_not_see_another(tiny):
    logits = jax.jit(lambda leaves, *inputs: blueprint(tiny).bind(leaves).logits(*inputs))
    pixels = jax.random.normal(jax.random.key(0), (3, 32, 32, 3))
    tokens = jnp.ones((3, 4), jnp.int32)
    together, alone = logits(born(tiny), tokens, pixels), logits(born(tiny), tokens[1:2], pixels[1:2])
    np.testing.assert_allclose(together[1:2], alone, atol=1e-5)


def test_pooled_crops_keep_the_class_slot():
    pixels = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))

    def features(pool):
        config = tiny_config(pool_crops=pool)
        encode = jax.jit(lambda leaves: blueprint(config).bind(leaves).encode(pixels))
        return encode(born(tiny_config()))  # pooling has no parameters

    whole, pooled = features(1), features(2)
    assert whole.crops.shape[2] == 5 and pooled.crops.shape[2] == 2
    np.testing.assert_allclose(pooled.overview, whole.overview, atol=1e-6)
    np.testing.assert_allclose(pooled.crops[:, :, 0], whole.crops[:, :, 0], atol=1e-6)
    np.testing.assert_allclose(pooled.crops[:, :, 1], whole.crops[:, :, 1:].mean(2), atol=1e-6)


def test_views_are_the_overview_and_the_raw_crops():
    image = jax.random.uniform(jax.random.key(1), (1, 8, 8, 3))
    made = views.make_views(image, 4, ViewsConfig(8, crops=2))
    assert made.shape == (5, 4, 4, 3)
    for number, (row, column) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        np.testing.assert_array_equal(made[1 + number], image[0, row : row + 4, column : column + 4])
    half = np.asarray(made[0]).astype(np.float16)
    np.testing.assert_array_equal(made[0], half)  # every value of the resized overview is a float16 one


@pytest.mark.parametrize(("target", "source"), [(4, 8), (7, 16), (16, 37), (9, 5)])
def test_cubic_weights_sum_to_one_and_keep_straight_lines(target, source):
    taps = views.cubic_taps(target, source)
    np.testing.assert_allclose(taps.weights.sum(1), 1, atol=1e-6)
    line = (taps.weights * taps.pixels).sum(1)
    at = (np.arange(target) + 0.5) * source / target - 0.5
    inside = (at > 1) & (at < source - 2)
    # a cubic kernel with a = -0.75 is interpolating, and symmetric about the middle between two samples
    np.testing.assert_allclose(line[inside], at[inside], atol=0.15)


@pytest.mark.parametrize("side", [1, 5, 8, 17])
def test_depthwise_paths_agree_with_a_plain_loop(side):
    rng = np.random.default_rng(side)
    x, kernel = (
        rng.normal(size=(2, side, side, 3)).astype(np.float32),
        rng.normal(size=(7, 7, 3)).astype(np.float32),
    )
    padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    expected = sum(padded[:, i : i + side, j : j + side] * kernel[i, j] for i in range(7) for j in range(7))
    np.testing.assert_allclose(depthwise(jnp.asarray(x), jnp.asarray(kernel)), expected, atol=1e-4)
    # it is linear in each of the two: the gradient of a weighted sum is the sum with the other argument's shifts
    above = rng.normal(size=x.shape).astype(np.float32)
    of_x, of_kernel = jax.grad(lambda x, k: (depthwise(x, k) * above).sum(), argnums=(0, 1))(
        jnp.asarray(x), jnp.asarray(kernel)
    )
    turned = np.pad(above, ((0, 0), (3, 3), (3, 3), (0, 0)))
    shifts = [(i, j) for i in range(7) for j in range(7)]
    want_x = sum(turned[:, i : i + side, j : j + side] * kernel[6 - i, 6 - j] for i, j in shifts)
    want = [(padded[:, i : i + side, j : j + side] * above).sum((0, 1, 2)) for i, j in shifts]
    np.testing.assert_allclose(of_x, want_x, atol=1e-4)
    np.testing.assert_allclose(of_kernel, np.reshape(want, kernel.shape), atol=1e-3)


def test_isolated_turns_answer_as_if_alone(tiny):
    """Two turns behind one picture give the logits that each gives in a conversation of its own."""
    model = blueprint(tiny).bind(born(tiny))
    features = jax.jit(model.encode)(jax.random.normal(jax.random.key(0), (1, 32, 32, 3)))
    logits = jax.jit(lambda *given: model.decoder.logits(model.hidden(*given)[0]))
    prefix, first, second = [1, 9, 8], [20, 21, 22, 23], [30, 31, 32]
    both = jnp.array([prefix + first + second + [0]])
    segments = jnp.array([[0] * 3 + [1] * 4 + [2] * 3 + [-1]])
    packed = logits(both, features, segments)
    for turn, at in ((first, 3), (second, 7)):
        alone = logits(jnp.array([prefix + turn]), features)
        np.testing.assert_allclose(packed[0, at : at + len(turn)], alone[0, 3:], atol=1e-5)


def test_isolation_shares_the_prefix_and_nothing_else():
    positions, seen = isolate(jnp.array([[0, 0, 0, 0, 1, 1, 2, 2, 2, -1]]))
    np.testing.assert_array_equal(positions[0, :9], [0, 1, 2, 3, 4, 5, 4, 5, 6])
    seen = np.asarray(seen.mask[0, 0])
    assert seen[8, :4].all() and not seen[8, 4:6].any() and seen[8, 6:9].all()
    assert not np.triu(seen, 1).any()


def skipping() -> tuple:
    """A model with three by three crops that skips padding, and one that does not, with the same leaves."""
    views = ViewsConfig(48, crops=3)
    plain = tiny_config(views=views)
    config = dataclasses.replace(plain, views=dataclasses.replace(views, skip_padded=True))
    leaves = born(config)
    leaves["embedding_mix/tags/skip"] = jnp.linspace(-1, 1, 32)
    return plain, config, leaves


def flat_picture(width: int, height: int) -> np.ndarray:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    return padded_resize(picture, 48)[None]


def test_a_picture_without_padding_is_as_if_nothing_were_skipped():
    plain, config, leaves = skipping()
    pixels, tokens = flat_picture(60, 60), jnp.array([[1, 5, 6, 7]])
    encoders = {p: x for p, x in leaves.items() if p.startswith("encoders/")}
    features = make_encode(config)(encoders, pixels)
    assert not features.padding.any()
    logits = jax.jit(blueprint(config).bind(leaves).hidden)(tokens, features)[0]
    expected = jax.jit(blueprint(plain).bind(leaves).hidden)(tokens, features._replace(padding=None))[0]
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_a_skipped_crop_is_one_position_and_none_of_the_encoders_work():
    """A wide picture pads its upper and lower crops: the decoder reads what an explicit sequence spells out."""
    _, config, leaves = skipping()
    pixels, tokens = flat_picture(90, 28), jnp.array([[1, 5, 6, 7]])
    encoders = {p: x for p, x in leaves.items() if p.startswith("encoders/")}
    features = make_encode(config)(encoders, pixels)
    np.testing.assert_array_equal(features.padding[0], [0, 1, 1, 1, 0, 0, 0, 1, 1, 1])
    assert not np.asarray(features.crops)[0, [0, 1, 2, 6, 7, 8]].any(), "skipped crops were encoded"
    model = blueprint(config).bind(leaves)
    np.testing.assert_allclose(
        jax.jit(model.encode)(normalise(pixels)).crops[0, 3:6], features.crops[0, 3:6], atol=1e-5
    )
    x = model.embed(tokens, features)[0]
    width = config.positions_of_view(1)
    skip = leaves["embedding_mix/tags/skip"][None]
    by_hand = [x[: 1 + width], skip, skip, skip, x[1 + 4 * width : 1 + 7 * width], skip, skip, skip, x[-3:]]
    hidden = model.decoder(jnp.concatenate(by_hand)[None]).hidden[0]
    np.testing.assert_allclose(model.hidden(tokens, features)[0][0], hidden[-4:], atol=1e-5)
    # a row without padding in the same batch stays as it is, and generation goes on at the right position
    both = make_encode(config)(encoders, np.concatenate([pixels, flat_picture(50, 50)]))
    visual, kept = model.see(both)
    np.testing.assert_array_equal(kept.sum(1), [4 * width + 6, 10 * width])
    longer = jnp.array([[1, 5, 6, 7, 9]] * 2)
    whole = model.hidden(longer, both)[0][:, -1]
    for row in range(2):
        ids = [1, *(-1 - np.flatnonzero(kept[row])), 5, 6, 7, 9]
        cache = Cache.empty(config.decoder, 1, 200, jnp.float32)
        alone, _ = model.extend(jnp.array([ids], jnp.int32), cache, jnp.array([0]), visual[row : row + 1])
        np.testing.assert_allclose(alone[0, -1], whole[row], atol=1e-4)


def test_leaf_paths_are_clean_and_flatten_round_trips(tiny):
    plan = blueprint(tiny)
    assert "decoder/blocks/attention/q" in plan.specs
    assert plan.specs["decoder/blocks/attention/q"].axes == ("layers", "embed", "heads", None)
    assert flatten(unflatten(plan.specs)) == plan.specs
    assert matches("encoders/clip/norm/scale", ["encoders/*"]) and not matches("decoder/output", ["encoders/*"])


def test_bind_names_a_missing_leaf(tiny):
    plan = blueprint(tiny)
    leaves = born(tiny)
    del leaves["decoder/norm/scale"]
    with pytest.raises(ValueError, match="decoder/norm/scale"):
        plan.bind(leaves)


def test_born_in_shards_equals_born_whole():
    """The same leaves whatever the mesh."""
    run_with_devices("""
        import numpy as np, jax
        from conftest import tiny_config
        from sphinx_jax.model.blueprint import blueprint
        from sphinx_jax.sharding import make_mesh
        plan = blueprint(tiny_config())
        whole = plan.init(make_mesh(devices=jax.devices()[:1]))
        parts = plan.init(make_mesh(data=1, fsdp=4, tensor=2))
        for path, leaf in whole.items():
            np.testing.assert_array_equal(leaf, parts[path], err_msg=path)
        q = parts["decoder/blocks/attention/q"]
        assert q.sharding.shard_shape(q.shape) == (2, 8, 1, 16), q.sharding
        kv = parts["decoder/blocks/attention/k"]  # one key/value head does not divide by two
        assert kv.sharding.shard_shape(kv.shape) == (2, 8, 1, 16), kv.sharding
        pixels, tokens = jax.numpy.ones((1, 32, 32, 3)), jax.numpy.ones((1, 4), int)
        a = jax.jit(lambda p: plan.bind(p).logits(tokens, pixels))(whole)
        with jax.set_mesh(make_mesh(data=1, fsdp=4, tensor=2)):
            placed = {k: jax.device_put(np.asarray(v), parts[k].sharding) for k, v in whole.items()}
            b = jax.jit(lambda p: plan.bind(p).logits(tokens, pixels))(placed)
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5)
    """)


def test_a_blueprint_is_the_same_whatever_mesh_is_in_force(mesh):
    outside = Blueprint(lambda rngs: SphinxModel(tiny_config(), rngs=rngs))
    with jax.set_mesh(mesh):
        inside = Blueprint(lambda rngs: SphinxModel(tiny_config(), rngs=rngs))
    assert inside.specs == outside.specs
