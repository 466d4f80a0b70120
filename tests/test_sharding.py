"""On eight virtual devices every mesh computes what one device computes, and no layout is a surprise to XLA."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from conftest import ONE_STEP, born, run_with_devices, tiny_config

from sphinx_jax.config import FAMILY, ConfigError, DecoderConfig, MoeConfig
from sphinx_jax.model.blueprint import FROZEN, blueprint
from sphinx_jax.model.lora import BASE
from sphinx_jax.recipe.recipe import mesh_of
from sphinx_jax.recipe.runner import parse
from sphinx_jax.sharding import make_mesh, serving_sizes
from sphinx_jax.train.program import program, start
from sphinx_jax.train.settings import TrainStage

DENSE = tiny_config()
MODELS = {
    "dense": DENSE,
    "tied": dataclasses.replace(DENSE, decoder=dataclasses.replace(DENSE.decoder, tied_embeddings=True)),
    "lora": dataclasses.replace(DENSE, decoder=dataclasses.replace(DENSE.decoder, lora_rank=2, bias=("q", "gate"))),
    "moe": tiny_config(
        decoder=DecoderConfig(
            dim=32, layers=2, heads=4, kv_heads=2, vocab_size=512, hidden_dim=32, moe=MoeConfig(4, 2, 0.1)
        ),
    ),
}
MIXED = (1, 4, 2, 1)
SHAPES = [(8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 2, 1), (1, 1, 8, 1), (2, 1, 4, 1)]
EXPERTS = [(1, 2, 1, 4), (1, 1, 2, 4), (2, 2, 1, 2), (1, 8, 1, 1)]


def one_step(name, mesh, device_rows=0):
    """Loss, and leaves less their gradients, of a step of SGD."""
    model = MODELS[name]
    settings = TrainStage(
        **ONE_STEP,
        optimizer="sgd",
        clip=0.0,
        domains={"real": 1.0},
        device_rows=device_rows,
        remat="full",
        **({"frozen": (*FROZEN, *BASE)} if name == "lora" else {}),
    )
    made = program(model, name, settings, mesh)
    placed = {p: jax.device_put(x, blueprint(model).shardings(mesh)[p]) for p, x in leaves(model).items()}
    state = start(made, model, settings, placed, mesh)
    with jax.set_mesh(mesh):
        state, metrics = made.step(state, batches(model), np.float32(1.0))
    return float(metrics["loss"]), {p: np.asarray(x) for p, x in state.trainable.items()}


def leaves(model):
    """The zero factor of LoRA would hide the gradient of the other."""
    random = np.random.default_rng(1)
    return {
        p: random.normal(size=x.shape).astype(np.float32) / 8 if p.endswith("/b") else x for p, x in born(model).items()
    }


def batches(model):
    random = np.random.default_rng(0)
    size, made = model.views.image_size, {}
    for kind, length in (("image", 12), ("text", 16)):
        tokens = random.integers(3, model.decoder.vocab_size, (8, length)).astype(np.int32)
        made[kind] = {"tokens": tokens, "loss_mask": np.ones_like(tokens, bool), "group": np.zeros_like(tokens)}
    made["image"]["pixels"] = random.integers(0, 255, (8, size, size, 3)).astype(np.uint8)
    made["text"]["documents"] = np.repeat([[1] * 5 + [2] * 11], 8, axis=0).astype(np.int32)
    return made


def compare(name, shapes):
    loss, expected = one_step(name, make_mesh(devices=jax.devices()[:1]))
    for shape, rows in shapes:
        found, updated = one_step(name, make_mesh(*shape), rows)
        np.testing.assert_allclose(found, loss, rtol=1e-5, err_msg=f"{name} {shape}")
        for path, leaf in updated.items():
            np.testing.assert_allclose(leaf, expected[path], rtol=1e-3, atol=2e-5, err_msg=f"{name} {shape} {path}")
        assert any(np.abs(leaf - np.asarray(leaves(MODELS[name])[p])).max() > 1e-4 for p, leaf in updated.items())


CASES = [("dense", [(MIXED, 0)])]
# what tables, LoRA and experts add to the dense model's is laid out along `fsdp`, `tensor` and `expert`
SWEEP = [
    ("dense", [(shape, 0) for shape in SHAPES]),
    *((name, [(shape, 0) for shape in (MIXED, (1, 1, 8, 1))]) for name in ("tied", "lora")),
    ("dense", [((1, 2, 2, 2), 1), ((2, 1, 4, 1), 2), ((1, 1, 8, 1), 4)]),
    ("moe", [(shape, 0) for shape in (MIXED, *EXPERTS)]),
]


@pytest.mark.parametrize(("name", "shapes"), [*CASES, *(pytest.param(*c, marks=pytest.mark.slow) for c in SWEEP)])
def test_a_mesh_computes_what_one_device_computes(name, shapes):
    said = run_with_devices(f"from test_sharding import compare\ncompare({name!r}, {shapes!r})")
    assert "full rematerialization" not in said, re.findall(r".*rematerialization.*", said)[:3]


@pytest.mark.slow
def test_answers_are_the_same_on_a_mesh():
    said = run_with_devices("""
        import jax, numpy as np
        from PIL import Image
        from test_sharding import DENSE, MODELS
        from conftest import DATA, born
        from sphinx_jax import Engine, Request, Sphinx
        from sphinx_jax.data.tokenizer import load_tokenizer
        from sphinx_jax.model.blueprint import blueprint
        from sphinx_jax.sharding import make_mesh, serving_mesh
        tokenizer = load_tokenizer(DATA / "tokenizer.model")
        for name, mixed in (("dense", make_mesh(1, 4, 2, 1)), ("moe", make_mesh(1, 2, 1, 4))):
            model, found = MODELS[name], []
            for mesh in (make_mesh(devices=jax.devices()[:1]), mixed, serving_mesh(model.decoder)):
                leaves = {p: jax.device_put(x, blueprint(model).shardings(mesh)[p]) for p, x in born(model).items()}
                pixels = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), np.uint8)
                shown = [None, *map(Image.fromarray, pixels)] if model.has_vision else [None]
                asked = [
                    Request("a red star " * n, shown[n % len(shown)], max_new_tokens=8, temperature=n % 2)
                    for n in (3, 9, 4, 7)
                ]
                engine = Engine(Sphinx(model, leaves, tokenizer, mesh), slots=4)
                found.append([said.tokens for (said,) in engine.map(asked)])
            assert all(tokens == found[0] for tokens in found), name
    """)
    assert "full rematerialization" not in said


@pytest.mark.slow
def test_a_checkpoint_goes_from_any_mesh_to_any_other(tmp_path):
    run_with_devices(f"""
        import jax, numpy as np
        from pathlib import Path
        from test_sharding import DENSE, leaves
        from sphinx_jax.checkpoint import store
        from sphinx_jax.model.blueprint import blueprint
        from sphinx_jax.sharding import make_mesh
        meshes = [make_mesh(devices=jax.devices()[:1]), make_mesh(1, 8, 1, 1), make_mesh(2, 1, 4, 1)]
        plan, before = blueprint(DENSE), leaves(DENSE)
        for i, mesh in enumerate(meshes):
            placed = {{p: jax.device_put(x, plan.shardings(mesh)[p]) for p, x in before.items()}}
            folder = store.save(Path({str(tmp_path)!r}) / str(i), placed, DENSE, None, {{}}, optimizer=dict(placed))
            for other in meshes:
                found = store.restore(folder, other)
                like = {{p: jax.device_put(np.zeros_like(x), plan.shardings(other)[p]) for p, x in before.items()}}
                slots = store.restore_training(folder, like)
                for path, x in before.items():
                    assert found[path].sharding == plan.shardings(other)[path] == slots[path].sharding
                    np.testing.assert_array_equal(found[path], x)
                    np.testing.assert_array_equal(slots[path], x)
    """)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"data": -1, "fsdp": -1}, "only one axis may be -1"),
        ({"fsdp": 3}, "does not cover 1 devices"),
        ({"fsdp": 0}, "fsdp must be at least 1, or -1 for what is left"),
        ({"tensor": -2}, "tensor must be at least 1, or -1 for what is left"),
        ({"fsdp": -1, "tensor": 2}, "tensor 2 does not divide 1 devices"),
    ],
)
def test_impossible_meshes_are_refused(sizes, says):
    with pytest.raises(ConfigError, match=says):
        make_mesh(**sizes, devices=jax.devices()[:1])


@pytest.mark.parametrize(
    ("name", "count", "found"),
    [
        ("sphinx_1k", 1, {}),
        ("sphinx_1k", 8, {"tensor": 8}),
        ("sphinx_1k", 256, {"data": 32, "tensor": 8}),  # of 40 heads
        ("sphinx_tiny_1k", 8, {"tensor": 8}),
        ("sphinx_moe_1k", 8, {"tensor": 8}),
        ("sphinx_moe_1k", 128, {"tensor": 32, "expert": 4}),
        ("sphinx_1k", 3, {"data": 3}),
    ],
)
def test_a_mesh_for_answering_cuts_every_weight(name, count, found):
    assert serving_sizes(FAMILY[name].decoder, count) == {"data": 1, "fsdp": 1, "tensor": 1, "expert": 1} | found


@pytest.mark.parametrize(
    ("count", "experts", "found"), [(1, None, (1, 1)), (4, None, (4, 1)), (48, None, (16, 3)), (64, 8, (4, 2))]
)
def test_a_mesh_is_found_for_the_devices_and_rows(count, experts, found):
    """(fsdp, tensor) for batches of 128 and 32 rows."""
    model = DENSE if experts is None else MODELS["moe"]
    if experts:
        moe = dataclasses.replace(model.decoder, moe=MoeConfig(experts, 2))
        model = dataclasses.replace(model, decoder=moe)
    recipe = parse(
        {
            "model": dataclasses.asdict(model),
            "data": {"playground": "nano"},
            "mesh": {"tensor": 0, "expert": 0},
            "stage": {
                "a": {
                    "kind": "train",
                    "start": "fresh",
                    "steps": 1,
                    "batch": 128,
                    "domains": {"real": 1.0},
                    "text_batch": 32,
                }
            },
        }
    )
    mesh = mesh_of(recipe, [object() for _ in range(count)])
    assert (mesh.shape["fsdp"], mesh.shape["tensor"]) == found
    assert mesh.shape["expert"] == (experts or 1) and mesh.size == count
