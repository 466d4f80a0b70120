"""The mixture of experts: sorted, blocked and exchanged, it gives what a plain loop over experts gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import run_with_devices
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from sphinx_jax.config import ConfigError, DecoderConfig, MoeConfig
from sphinx_jax.model import moe
from sphinx_jax.model.moe import Moe, balance_loss, block_shape
from sphinx_jax.model.quantise import quantise, whole


def mixture(experts: int, per_token: int, **changes) -> tuple:
    config = DecoderConfig(dim=32, heads=2, multiple_of=16, moe=MoeConfig(experts, per_token), **changes)
    with nnx.use_eager_sharding(False):
        graphdef, state = nnx.split(Moe(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(1)
    return graphdef, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.2, jnp.float32), state)


def in_few_bits(state) -> tuple:
    """The same with matrices in 8 bits, and with those made whole."""
    few, made = nnx.State(dict(state)), nnx.State(dict(state))
    for name in ("gate", "up", "down"):
        held = quantise(f"decoder/blocks/ffn/{name}", state[name].get_value()[None], "int8")
        held = jax.tree.map(lambda x: x[0], held)
        few[name], made[name] = state[name].replace(held), state[name].replace(whole(held, jnp.float32))
    return few, made


def loop_over_experts(module: Moe, x: np.ndarray) -> jax.Array:
    """Every expert on every token, weighted by the router."""
    tokens, m = x.reshape(-1, x.shape[-1]), module.config.moe
    shares = jax.nn.softmax(tokens @ module.router[...])
    cut = jnp.sort(shares, axis=-1)[:, -m.per_token, None]
    kept = jnp.where(shares >= cut, shares, 0)
    kept = kept / kept.sum(-1, keepdims=True)

    def apply(name, e, x):
        y = x @ getattr(module, name)[...][e]
        if name in module.lora:
            y = y + x @ module.lora[name]["a"][...][e] @ module.lora[name]["b"][...][e]
        return y + module.bias[name][...][e] if name in module.bias else y

    def expert(e):
        return apply("down", e, jax.nn.silu(apply("gate", e, tokens)) * apply("up", e, tokens))

    return sum(kept[:, e, None] * expert(e) for e in range(m.experts)).reshape(x.shape)


@pytest.mark.parametrize(
    ("tokens", "experts", "per_token", "changes"),
    [(1, 4, 2, {}), (3, 8, 2, {}), (300, 8, 2, {}), (41, 3, 3, {"lora_rank": 2, "bias": ("gate", "up", "down")})],
)
@pytest.mark.parametrize("where", ["cpu", "tpu"])
def test_values_and_gradients_are_those_of_a_loop_over_experts(tokens, experts, per_token, changes, where, monkeypatch):
    monkeypatch.setattr(moe, "platform", lambda: where)
    graphdef, state = mixture(experts, per_token, **changes)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, tokens, 32)), jnp.float32)
    fast = jax.jit(jax.value_and_grad(lambda s, x: (nnx.merge(graphdef, s)(x)[0] ** 2).sum(), (0, 1)))
    slow = jax.value_and_grad(lambda s, x: (loop_over_experts(nnx.merge(graphdef, s), x) ** 2).sum(), (0, 1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4), fast(state, x), slow(state, x))


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("where", ["cpu", "tpu"])
def test_matrices_in_8_bits_give_what_they_stand_for(tokens, where, monkeypatch):
    monkeypatch.setattr(moe, "platform", lambda: where)
    graphdef, state = mixture(4, 2, lora_rank=2, bias=("gate", "down"))
    few, made = in_few_bits(state)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, tokens, 32)), jnp.float32)

    def run(state, x, lora):
        return (nnx.merge(graphdef, nnx.State({**state, "lora": lora}))(x)[0] ** 2).sum()

    found, expected = (jax.jit(jax.value_and_grad(run, (1, 2)))(s, x, state["lora"]) for s in (few, made))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4), found, expected)
    # in float16, which has no place for the products before they are scaled
    groups = moe.group(jnp.full((tokens, 32), 100, jnp.float16), jnp.arange(tokens) % 4, 4)
    half, true = (moe.Map(*moe._apart(s["gate"].get_value()))(groups.rows, groups) for s in (few, made))
    assert half.dtype == jnp.float16 and np.isfinite(half).all()
    np.testing.assert_allclose(half, true, rtol=0.02, atol=2)


@given(st.integers(1, 5000), st.integers(1, 64))
@settings(max_examples=200)
def test_blocks_hold_the_rows_however_they_fall(rows, experts):
    block, blocks = block_shape(rows, experts)
    used = min(experts, rows)
    # the worst case: every expert in use but one has a single row more than whole blocks
    worst = [1] * (used - 1) + [rows - used + 1]
    assert sum(-(-n // block) for n in worst) <= blocks


def test_balance_is_one_when_even_and_experts_over_k_when_one_takes_all():
    even = jnp.full((8, 4), 0.25)
    spread = jnp.array([[0, 1], [2, 3]] * 4)
    assert balance_loss(even, spread) == pytest.approx(1.0)
    alone = jnp.tile(jnp.array([1.0, 0, 0, 0]), (8, 1))
    assert balance_loss(alone, jnp.zeros((8, 1), jnp.int32)) == pytest.approx(4.0)


def test_more_experts_per_token_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="3 of 2 experts"):
        MoeConfig(2, 3)


def test_every_mesh_gives_what_one_device_gives():
    """On eight virtual devices; experts over devices are reached by an all-to-all, never gathered."""
    run_with_devices("""
        import jax, jax.numpy as jnp, numpy as np
        from flax import nnx
        from sphinx_jax.sharding import make_mesh
        from test_moe import in_few_bits, mixture
        graphdef, state = mixture(4, 2, lora_rank=2, bias=("gate", "down"))
        x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 5, 32)), jnp.float32)
        def loss(s, x):
            y, balance = nnx.merge(graphdef, s)(x)
            return (y ** 2).sum() + 10 * balance
        step = jax.value_and_grad(loss, (0, 1))
        with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
            alone = jax.jit(step)(state, x)
        for shape in (dict(fsdp=8), dict(data=2, fsdp=2, tensor=2), dict(fsdp=2, expert=4), dict(tensor=2, expert=4)):
            mesh = make_mesh(**({"fsdp": 1} | shape))
            with jax.set_mesh(mesh):
                compiled = jax.jit(step).lower(state, x).compile()
                found = compiled(state, x)
            for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(found), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=str(shape))
            assert ("all-to-all" in compiled.as_text()) == ("expert" in shape), shape
            few, made = in_few_bits(state)
            with jax.set_mesh(mesh):
                run = jax.jit(lambda s, x: nnx.merge(graphdef, s)(x)[0])
                np.testing.assert_allclose(run(few, x), run(made, x), rtol=1e-4, atol=1e-4, err_msg=str(shape))
    """)
