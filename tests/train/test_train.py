"""Steps, resume and what survives a kill."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import DATA, born, tiny_config

from sphinx_jax.checkpoint import store
from sphinx_jax.config import ConfigError
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.model.blueprint import FROZEN, LeafSpec, blueprint, matches
from sphinx_jax.recipe.recipe import PLAYGROUND
from sphinx_jax.sharding import make_mesh
from sphinx_jax.train import loop
from sphinx_jax.train import step as step_module
from sphinx_jax.train.number_tokens import order_numbers
from sphinx_jax.train.optimizer import decays, learning_rate, make_optimizer, muon_dimensions
from sphinx_jax.train.settings import TrainStage
from sphinx_jax.train.step import TrainState, make_step

CONFIG = tiny_config()
PLAN = blueprint(CONFIG)


def batch(rows: int = 4, seed: int = 0, image: bool = True):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 500, (rows, 12)).astype(np.int32)
    made = {"tokens": tokens, "loss_mask": rng.random((rows, 12)) < 0.5, "group": np.full((rows, 12), 7, np.int32)}
    if image:
        made["pixels"] = rng.integers(0, 255, (rows, 32, 32, 3)).astype(np.uint8)
    return {k: jnp.asarray(v) for k, v in made.items()}


def state_of(optimizer, mesh):
    leaves = born(CONFIG)
    trainable = {p: x for p, x in leaves.items() if not matches(p, FROZEN)}
    return TrainState(trainable, optimizer.init(trainable), {p: x for p, x in leaves.items() if p not in trainable})


def trainable_specs():
    return {p: s for p, s in PLAN.specs.items() if not matches(p, FROZEN)}


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor", "lion", "sgd"])
def test_every_optimizer_learns_a_batch_and_leaves_the_encoders_alone(name, mesh):
    optimizer = make_optimizer(name, trainable_specs(), clip=1.0, weight_decay=0.0)
    step = make_step(PLAN, optimizer)
    state = state_of(optimizer, mesh)
    before = {p: np.asarray(x) for p, x in state.frozen.items()}
    rate = {"sgd": 0.3, "muon": 0.02, "lion": 3e-3}.get(name, 1e-2)
    losses = []
    for _ in range(12):
        state, metrics = step(state, {"image": batch(), "text": batch(image=False)}, np.float32(rate))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.3
    for path, leaf in state.frozen.items():
        np.testing.assert_array_equal(leaf, before[path])


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "lamb"])
def test_matrices_decay_and_norms_do_not(name):
    specs = {
        p: LeafSpec(shape, jnp.float32, (None,) * len(shape)) for p, shape in (("a/kernel", (4, 4)), ("a/scale", (4,)))
    }
    leaves = {p: jnp.ones(s.shape) for p, s in specs.items()}
    still = jax.tree.map(jnp.zeros_like, leaves)

    def moved(decay):
        optimizer = make_optimizer(name, specs, clip=1.0, weight_decay=decay)
        return optimizer.update(still, optimizer.init(leaves), leaves)[0]

    assert not any(np.any(x) for x in moved(0.0).values())
    assert np.all(np.asarray(moved(0.1)["a/kernel"]) < 0) and not np.any(moved(0.1)["a/scale"])


@pytest.mark.parametrize("name", ["sgd", "adafactor"])
def test_a_decay_that_would_do_nothing_is_refused(name):
    with pytest.raises(ConfigError, match=f"optimizer {name} does not take weight_decay 0.1"):
        make_optimizer(name, trainable_specs(), clip=1.0, weight_decay=0.1)


def test_epochs_of_packed_text_alone_are_refused():
    with pytest.raises(ConfigError, match="give steps"):
        TrainStage(start="fresh", epochs=1.0, text_batch=8, pack_text=True)


def test_optimizer_state_is_for_what_trains():
    optimizer = make_optimizer("adamw", trainable_specs(), clip=1.0, weight_decay=0.1)
    slots = jax.eval_shape(
        optimizer.init, {p: jax.ShapeDtypeStruct(s.shape, s.dtype) for p, s in trainable_specs().items()}
    )
    numbers = sum(x.size for x in jax.tree.leaves(slots))
    trainable = sum(s.size for s in trainable_specs().values())
    assert 2 * trainable <= numbers < 2 * trainable + 10


@pytest.mark.parametrize(
    ("name", "settings", "most"), [("adamw", {}, 8), ("adamw", {"mu_dtype": "bfloat16"}, 6), ("adafactor", {}, 0.1)]
)
def test_moments_take_the_bytes_that_they_are_given(name, settings, most):
    leaf = jax.ShapeDtypeStruct((2, 256, 256), jnp.float32)
    specs = {"a": LeafSpec(leaf.shape, leaf.dtype, ("layers", "embed", "ffn"))}
    optimizer = make_optimizer(name, specs, clip=1.0, weight_decay=0.0, **settings)
    slots = jax.tree.leaves(jax.eval_shape(optimizer.init, {"a": leaf}))
    assert sum(x.size * x.dtype.itemsize for x in slots) <= most * leaf.size + 8


def test_accumulated_step_equals_the_whole_batch(mesh):
    optimizer = make_optimizer("adamw", trainable_specs(), clip=1.0, weight_decay=0.1)
    results = []
    for accumulate in (1, 4):
        step = make_step(PLAN, optimizer, accumulate=accumulate)
        state, metrics = step(state_of(optimizer, mesh), {"image": batch()}, np.float32(1e-3))
        results.append((float(metrics["loss"]), state.trainable))
    for loss, leaves in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-5)
        for path, leaf in leaves.items():
            np.testing.assert_allclose(leaf, results[0][1][path], atol=2e-5, err_msg=path)


@pytest.mark.parametrize("limit", [1, 2**14, 2**15])
def test_logits_in_parts_give_the_same_losses_and_gradients(limit, monkeypatch):
    leaves, random = born(CONFIG), np.random.default_rng(0)
    hidden, table = random.standard_normal((2, 37, CONFIG.decoder.dim), np.float32), leaves["decoder/output"]
    labels = jnp.asarray(random.integers(0, CONFIG.decoder.vocab_size, (2, 37)))

    def mean(hidden, table):
        return -jnp.take_along_axis(jax.nn.log_softmax(hidden @ table), labels[..., None], -1).mean()

    def ours(hidden, table):
        decoder = PLAN.bind(leaves | {"decoder/output": table}).decoder
        return step_module.token_losses(decoder, hidden, labels).mean()

    monkeypatch.setattr(step_module, "LOGITS_BYTES", limit)
    expected, found = (jax.value_and_grad(f, argnums=(0, 1))(hidden, table) for f in (mean, ours))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)


def test_the_step_never_holds_all_logits(monkeypatch):
    config = dataclasses.replace(CONFIG, decoder=dataclasses.replace(CONFIG.decoder, vocab_size=2**15))
    decoder = blueprint(config)
    leaves = decoder.abstract(make_mesh(devices=jax.devices()[:1]))
    monkeypatch.setattr(step_module, "LOGITS_BYTES", 2**20)
    hidden = jax.ShapeDtypeStruct((4, 256, config.decoder.dim), jnp.float32)
    labels = jax.ShapeDtypeStruct((4, 256), jnp.int32)

    def loss(leaves, hidden, labels):
        return step_module.token_losses(decoder.bind(leaves).decoder, hidden, labels).sum()

    memory = jax.jit(jax.grad(loss, argnums=1)).lower(leaves, hidden, labels).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * 256 * 2**15 * 4 / 8


def test_the_text_batch_counts_by_its_weight(mesh):
    optimizer = make_optimizer("sgd", trainable_specs(), clip=0.0, weight_decay=0.0)
    image, text = batch(), batch(seed=1, image=False)
    loss = {
        weight: float(
            make_step(PLAN, optimizer, weights={"text": weight})(
                state_of(optimizer, mesh), {"image": image, "text": text}, np.float32(0)
            )[1]["loss"]
        )
        for weight in (0.0, 0.5, 1.0)
    }
    assert loss[0.5] == pytest.approx((loss[0.0] + loss[1.0]) / 2, rel=1e-5)
    assert loss[1.0] > loss[0.0]


def test_a_step_that_is_not_finite_changes_nothing_and_says_so(mesh):
    optimizer = make_optimizer("adamw", trainable_specs(), clip=1.0, weight_decay=0.0)
    state = state_of(optimizer, mesh)
    state.trainable["decoder/norm/scale"] = state.trainable["decoder/norm/scale"].at[0].set(jnp.inf)
    kept = {p: np.asarray(x) for p, x in state.trainable.items()}
    after, metrics = make_step(PLAN, optimizer)(state, {"image": batch()}, np.float32(1e-2))
    assert not metrics["finite"]
    for path, leaf in after.trainable.items():
        np.testing.assert_array_equal(leaf, kept[path])


@pytest.mark.parametrize(
    ("bad", "stopped"), [("..x.xx.xx..x", None), ("..x.xxx.....", 7), (".xxx.......", 4), ("...........x", None)]
)
def test_training_stops_at_bad_steps_in_a_row_wherever_log_lines_fall(bad, stopped, tmp_path, mesh, monkeypatch):
    fine = iter(mark == "." for mark in bad)
    monkeypatch.setattr(loop.store, "save_async", lambda folder, *_, **__: lambda: folder.mkdir(parents=True))
    batches = iter(lambda: {"image": {"tokens": np.zeros((1, 1), np.int32)}}, None)

    def step(state, batches, rate):
        return state, {"loss": 1.0, "norm": 1.0, "finite": next(fine)}

    def train():
        job = loop.TrainJob(
            "stage",
            tmp_path,
            loop.LoopSettings(len(bad), log_every=3, bad_steps=3),
            lambda found: TrainState({}, None, {}),
            step,
            lambda step: 0.1,
            lambda start: batches,
            CONFIG,
            None,
            mesh,
            recipe={},
            throughput=loop.Throughput(1, 1.0, 1.0),
            identify=lambda n: {"image": [f"row {n}"]},
            quiet=True,
        )
        loop.run(job)

    if stopped is None:
        return train()
    with pytest.raises(loop.TrainingStopped, match=f"the 3 steps up to {stopped} "):
        train()
    named = json.loads((tmp_path / "bad_steps.json").read_text())
    assert [b["step"] for b in named["steps"]] == [stopped - 2, stopped - 1, stopped]
    assert named["steps"][0]["batch"] == {"image": [f"row {stopped - 3}"]}


def test_slow_data_is_named_once_and_chosen_steps_are_traced(tmp_path, mesh, monkeypatch, caplog):
    monkeypatch.setattr(loop.store, "save_async", lambda folder, *_, **__: lambda: folder.mkdir(parents=True))

    def slow():
        time.sleep(0.02)
        return {"image": {"tokens": np.zeros((1, 1), np.int32)}}

    def step(state, batches, rate):
        return state, {"loss": 1.0, "norm": 1.0, "finite": True}

    job = loop.TrainJob(
        "stage",
        tmp_path,
        loop.LoopSettings(6, log_every=2),
        lambda found: TrainState({}, None, {}),
        step,
        lambda step: 0.1,
        lambda start: iter(slow, None),
        CONFIG,
        None,
        mesh,
        recipe={},
        throughput=loop.Throughput(1, 1.0, 1.0),
        profile=range(4, 9),
        quiet=True,
    )
    loop.run(job)
    assert sum("of the time steps wait for data" in record.message for record in caplog.records) == 1
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_batch_is_asked_for_when_few_steps_are_on_their_way(tmp_path, mesh, monkeypatch):
    monkeypatch.setattr(loop.store, "save_async", lambda folder, *_, **__: lambda: folder.mkdir(parents=True))
    losses, ahead = [], []
    matrix = jnp.full((256, 256), 1 / 256)

    def batches(start):
        for number in range(12):
            ahead.append(sum(not loss.is_ready() for loss in losses))
            if number == 6:
                time.sleep(0.5)  # far longer than the steps that are on their way
            yield {"image": {"tokens": np.full((1, 1), number, np.int32)}}

    @jax.jit
    def work(tokens):
        return jax.lax.fori_loop(0, 40, lambda _, x: x @ matrix, matrix + 0 * tokens.max()).mean()

    def step(state, batches, rate):
        losses.append(work(batches["image"]["tokens"]))
        return state, {"loss": losses[-1], "norm": losses[-1], "finite": losses[-1] > 0}

    settings, worth = loop.LoopSettings(12, log_every=12), loop.Throughput(1, 1.0, 1.0)
    begin = lambda found: TrainState({}, None, {})  # noqa: E731
    parts = (begin, step, lambda step: 0.1, batches, CONFIG, None, mesh)
    loop.run(loop.TrainJob("stage", tmp_path, settings, *parts, recipe={}, throughput=worth, quiet=True))
    (entry,) = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert len(losses) == 12 and max(ahead) < loop.AHEAD
    assert entry["data_wait"] * entry["seconds"] > 0.3


def test_devices_wait_for_data_from_the_end_of_their_last_step_on():
    now, on_its_way, ended = time.perf_counter(), Future(), Future()
    ended.set_result(now - 1)
    assert loop._idle(on_its_way, now - 5) == 0
    assert 1 <= loop._idle(ended, now - 5) < 4
    assert loop._idle(None, now - 3) >= 3 and 0 <= loop._idle(ended, time.perf_counter()) < 0.9


def test_rate_warms_up_and_falls_to_the_floor():
    rates = [learning_rate(s, peak=1.0, steps=100, warmup=10, floor=0.1) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0) and rates[9] == pytest.approx(1.0)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert learning_rate(100, peak=1.0, steps=100, warmup=10, floor=0.1) == pytest.approx(0.1)


def test_no_decay_on_norms_biases_and_tags():
    undecayed = {p for p in PLAN.specs if not decays(p)}
    assert {
        "decoder/norm/scale",
        "embedding_mix/visual_proj/linear/bias",
        "embedding_mix/tags/start",
    } <= undecayed
    assert "decoder/blocks/attention/q" not in undecayed and "embedding_mix/visual_proj/linear/kernel" not in undecayed


def test_muon_takes_each_layers_matrices():
    axes = {p: muon_dimensions(p, s) for p, s in trainable_specs().items()}
    assert axes["decoder/embedding"] is None and axes["decoder/norm/scale"] is None
    q, o, gate = (axes[f"decoder/blocks/{n}"] for n in ("attention/q", "attention/o", "ffn/gate"))
    assert (q.reduction_axis, q.output_axis) == ((1,), (2, 3))
    assert (o.reduction_axis, o.output_axis) == ((1, 2), (3,))
    assert (gate.reduction_axis, gate.output_axis) == ((1,), (2,))


def test_unknown_optimizer_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'adamw'"):
        make_optimizer("adanw", trainable_specs(), clip=1.0, weight_decay=0.0)


WORKER = """
import json, sys
from concurrent.futures import Future
from pathlib import Path
import numpy as np
from conftest import DATA
from test_task_mix import sources, TOKENIZER
from sphinx_jax.checkpoint import store
from sphinx_jax.config import ConfigError
from sphinx_jax.command import plain_errors
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.data.rows import Shape
from sphinx_jax.data.task_mix import rows, task_mix
from sphinx_jax.model.blueprint import FROZEN, matches
from sphinx_jax.sharding import make_mesh
from sphinx_jax.train import loop
from sphinx_jax.recipe.recipe import PLAYGROUND
from sphinx_jax.train import loop
from sphinx_jax.train.number_tokens import order_numbers
from sphinx_jax.train.optimizer import learning_rate, make_optimizer
from sphinx_jax.train.program import slots
from sphinx_jax.train.settings import TrainStage
from sphinx_jax.train.step import TrainState, make_step
from test_train import CONFIG, PLAN, trainable_specs
import jax
folder, steps, save_every = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
mesh = make_mesh()
optimizer = make_optimizer("adamw", trainable_specs(), clip=1.0, weight_decay=0.1)
def begin(found):
    leaves = PLAN.init(mesh) if found is None else store.restore(found, mesh, PLAN)
    trainable = {p: x for p, x in leaves.items() if not matches(p, FROZEN)}
    frozen = {p: x for p, x in leaves.items() if p not in trainable}
    return TrainState(trainable, slots(optimizer, trainable, mesh, found), frozen)
data = lambda start: task_mix({"image": (rows(sources(), TOKENIZER, Shape(160, 32, 2, True), 0), 4)}, start=start)
settings = loop.LoopSettings(steps, log_every=1, save_every=save_every)
with plain_errors():
    loop.run(loop.TrainJob("t", folder, settings, begin, make_step(PLAN, optimizer),
             lambda s: np.float32(learning_rate(s, peak=1e-3, steps=steps, warmup=2)), data, CONFIG, TOKENIZER, mesh,
             recipe={"made_by": "test"}, throughput=loop.Throughput(1, 1.0, 1.0), quiet=True))
"""


def start(folder: Path, steps: int, save_every: int) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), str(steps), str(save_every)],
        env=env,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in the background of a shell
    )


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "history.jsonl").read_text().splitlines()
    return [(e["step"], e["loss"]) for e in map(json.loads, lines)]


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.time() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.time() < deadline, "it took too long"
        time.sleep(0.005)


@pytest.mark.slow
def test_stopped_and_killed_training_resumes_with_the_same_losses(tmp_path):
    """SIGTERM, Ctrl-C, kill -9 in a step, then in the middle of a save: the losses are those of a whole run."""
    steps, every = 14, 4
    whole = start(tmp_path / "whole", steps, every)
    assert whole.wait(300) == 0, whole.stderr.read()
    broken = tmp_path / "broken"
    history = broken / "history.jsonl"

    process = start(broken, steps, every)
    wait_for(lambda: history.exists() and history.read_text().endswith("\n"), process)
    process.terminate()
    assert process.wait(100) == 128 + signal.SIGTERM
    stopped = store.newest(broken / "checkpoints").name
    assert f"stopped by SIGTERM; step {stopped} is saved" in process.stderr.read()
    assert losses(broken)[-1][0] == int(stopped) < 4

    process = start(broken, steps, every)
    wait_for(lambda: len(history.read_text().splitlines()) > int(stopped), process)
    process.send_signal(signal.SIGINT)
    assert process.wait(100) == 128 + signal.SIGINT
    stopped = store.newest(broken / "checkpoints").name
    said = process.stderr.read()
    assert "Ctrl-C again ends at once" in said and f"stopped by SIGINT; step {stopped} is saved" in said

    process = start(broken, steps, every)
    wait_for(lambda: len(history.read_text().splitlines()) >= int(stopped) + 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert store.newest(broken / "checkpoints").name in (stopped, "4")

    process = start(broken, steps, every)

    # Orbax or our own files are being written, and the checkpoint is not complete
    def saving():
        return any(p.name.startswith("8") and not store.is_complete(p) for p in (broken / "checkpoints").iterdir())

    wait_for(saving, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert store.newest(broken / "checkpoints").name in (stopped, "4", "8")

    process = start(broken, steps, every)
    assert process.wait(300) == 0, process.stderr.read()
    assert losses(broken) == losses(tmp_path / "whole")
    ours, theirs = (store.newest(tmp_path / n / "checkpoints") for n in ("broken", "whole"))
    mesh_ = __import__("sphinx_jax.sharding", fromlist=["make_mesh"]).make_mesh()
    a, b = store.restore(ours, mesh_), store.restore(theirs, mesh_)
    for path, leaf in a.items():
        np.testing.assert_array_equal(leaf, b[path], err_msg=path)


def test_clipping_bounds_the_update(mesh):
    optimizer = make_optimizer("sgd", trainable_specs(), clip=0.5, weight_decay=0.0)
    state = state_of(optimizer, mesh)
    before = {p: np.asarray(x) for p, x in state.trainable.items()}
    state, metrics = make_step(PLAN, optimizer)(state, {"image": batch()}, np.float32(1.0))
    moved = {p: np.asarray(x) - before[p] for p, x in state.trainable.items()}
    assert float(metrics["norm"]) > 0.5
    assert float(optax.global_norm(moved)) == pytest.approx(0.5, rel=1e-4)


def test_numbers_that_are_near_start_near():
    tokenizer = load_tokenizer(PLAYGROUND / "tokenizer.model")
    table = jax.random.normal(jax.random.key(0), (tokenizer.vocab_size, 64)) * 0.02
    ordered = np.asarray(order_numbers(table, tokenizer, seed=0))
    pieces = [tokenizer.encode(f"[{i / 100:.2f}]")[1] for i in range(101)]
    numbers = ordered[pieces] / np.linalg.norm(ordered[pieces], axis=1, keepdims=True)
    alike = numbers @ numbers.T
    for i in range(101):
        # ever less alike up to 0.2 away, and hardly alike beyond
        near = [alike[i, j].mean() for j in (abs(np.arange(101) - i) == d for d in (0, 2, 5, 10, 20))]
        assert all(a > b for a, b in zip(near, near[1:], strict=False)), i
        assert np.abs(alike[i, abs(np.arange(101) - i) > 30]).mean() < 0.25
    others = np.delete(np.arange(len(ordered)), pieces)
    np.testing.assert_array_equal(ordered[others], np.asarray(table)[others])


def test_a_tokenizer_without_numbers_changes_no_start():
    tokenizer = load_tokenizer(DATA / "tokenizer.model")
    table = jnp.ones((tokenizer.vocab_size, 4))
    assert order_numbers(table, tokenizer, seed=0) is table
