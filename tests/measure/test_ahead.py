"""Compiling ahead of time: what is compiled is what runs, and what is read from it is so."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ONE_STEP, ROOT, born, run_with_devices, tiny_config
from test_sharding import batches

from sphinx_jax.config import ConfigError, family
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.measure.ahead import needs, report
from sphinx_jax.measure.ahead.collectives import collectives
from sphinx_jax.measure.ahead.topologies import CHIPS, GIB, open_topology
from sphinx_jax.recipe.recipe import PLAYGROUND
from sphinx_jax.sharding import make_mesh
from sphinx_jax.train.program import abstract_batches, abstract_state, program, start
from sphinx_jax.train.settings import TrainStage, shapes

MODEL = tiny_config()
STAGE = TrainStage(**ONE_STEP, domains={"*": 1.0}, device_rows=4)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "muon"])
def test_what_is_compiled_ahead_is_what_runs(mesh, optimizer):
    stage = dataclasses.replace(STAGE, optimizer=optimizer)
    made = program(MODEL, "t", stage, mesh)
    tokenizer = load_tokenizer(PLAYGROUND / "tokenizer.model")
    state, rows = (
        abstract_state(made, MODEL, stage, mesh),
        abstract_batches(stage, shapes(MODEL, stage), tokenizer, mesh),
    )
    with jax.set_mesh(mesh):
        compiled = made.step.lower(state, rows, np.float32(0.1)).compile()
        real = start(made, MODEL, stage, born(MODEL), mesh)
        jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(f"{a} {b}"), state, real)
        _, metrics = compiled(real, batches(MODEL), np.float32(0.1))  # refuses other shapes, dtypes and layouts
    assert np.isfinite(metrics["loss"])


def test_collectives_are_counted_with_the_turns_of_their_loops():
    run_with_devices("""
        import jax, jax.numpy as jnp
        from jax.sharding import NamedSharding, PartitionSpec as P
        from sphinx_jax.sharding import make_mesh
        from sphinx_jax.measure.ahead.collectives import collectives, moved
        mesh = make_mesh(1, 4, 2, 1)
        def all_sums(x):
            def body(carry, _):
                return jax.lax.psum(carry, "fsdp") / 4 + jnp.float32(1), None
            carry, _ = jax.lax.scan(body, x, None, length=5)
            return carry
        spec = P("fsdp", "tensor")
        f = jax.jit(jax.shard_map(all_sums, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
        x = jax.ShapeDtypeStruct((8, 256), jnp.float32, sharding=NamedSharding(mesh, spec))
        found = collectives(f.lower(x).compile().as_text())
        share = 2 * 128 * 4  # bytes of a device's part of x
        assert found == [("all-reduce", 4, 5, 5 * int(share * 3 / 4 * 2))] and moved(found) == found[0].bytes, found
    """)


def test_collectives_of_a_tpu_are_written_where_they_start_and_where_they_end():
    text = """HloModule m

%done (p: bf16[8]) -> bf16[64] {
  %p = bf16[8]{0} parameter(0)
  ROOT %g = bf16[64]{0} all-gather(%p), channel_id=7, replica_groups=mesh['a'=8,'b'=2] {'a'}, dimensions={0}
}

%start (p.1: bf16[8]) -> bf16[64] {
  %p.1 = bf16[8]{0} parameter(0)
  ROOT %g.1 = bf16[64]{0} all-gather(%p.1), channel_id=7, replica_groups=mesh['a'=8,'b'=2] {'a'}, dimensions={0}
}

%cond (c: (s32[])) -> pred[] {
  %c = (s32[]) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %n = s32[]{:T(128)} constant(40)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (b: (s32[])) -> (s32[]) {
  %b = (s32[]) parameter(0)
  %s = bf16[64]{0} fusion(%b), kind=kCustom, calls=%start
  %d = bf16[64]{0} fusion(%s), kind=kCustom, calls=%done
  ROOT %t = (s32[]) tuple(%d)
}

ENTRY %main (x: f32[]) -> (s32[]) {
  %x = (s32[]) parameter(0)
  %r = f32[4,2]{1,0} all-reduce(%x), channel_id=9, replica_groups=[2,8]<=[16], to_apply=%add
  ROOT %w = (s32[]) while(%x), condition=%cond, body=%body
}
"""
    found = {c.kind: c[1:] for c in collectives(text)}
    assert found == {"all-gather": (8, 40, 40 * 112), "all-reduce": (8, 1, int(32 * 7 / 8 * 2))}


def test_arrays_that_travel_together_are_summed():
    text = """HloModule m

ENTRY %main (x: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %several = (f32[4,2]{1,0}, bf16[16]{0}) all-reduce(%x, %x), channel_id=1, replica_groups=[2,8]<=[16], to_apply=%add
  %gather = (bf16[8]{0}, bf16[64]{0}) all-gather-start(%x), channel_id=2, replica_groups=[2,8]<=[16], dimensions={0}
  %scatter = (bf16[64]{0}, bf16[8]{0}) reduce-scatter-start(%x), channel_id=3, replica_groups=[2,8]<=[16], to_apply=%add
  %all = (f32[2]{0}, f32[2]{0}) all-to-all(%x, %x), channel_id=4, replica_groups={{0,1}}
  %next = (f32[8]{0}, f32[8]{0}, u32[]) collective-permute-start(%x), channel_id=5, source_target_pairs={{0,1},{1,0}}
}
"""
    found = {c.kind: c.bytes for c in collectives(text)}
    assert found == {
        "all-reduce": (32 + 32) * 7 // 8 * 2,
        "all-gather": 128 * 7 // 8,
        "reduce-scatter": 16 * 7,
        "all-to-all": 8,
        "collective-permute": 32,
    }


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}", 3),
        ("replica_groups=[2,3]<=[3,2]T(1,0)", 3),
        ("replica_groups=mesh['a'=2,'b'=3] {'b'}", 3),
        ("replica_groups=mesh['a'=2,'b'=3], device_ids=([3,2]T(1,0)) {'a','b'}", 6),
        ("replica_groups=mesh['a'=2,'b'=3], device_ids=(0,2,4,1,3,5) {'b'}", 3),
        ("replica_groups=mesh['a'=4,'b'=3] {'a':(1)2,'b'}", 6),
        ("replica_groups={}", 6),
        ("to_apply=%add", 6),
    ],
)
def test_the_devices_of_a_group_are_read_in_every_spelling(groups, devices):
    text = f"""HloModule m, is_scheduled=true, num_partitions=6

ENTRY %main (x: f32[]) -> f32[60] {{
  %x = f32[60]{{0}} parameter(0)
  ROOT %r = f32[60]{{0}} all-reduce(%x), channel_id=1, {groups}, to_apply=%add
}}
"""
    assert collectives(text) == [("all-reduce", devices, 1, 240 * (devices - 1) // devices * 2)]


def test_a_reduction_of_which_each_device_keeps_its_slice_is_a_scatter():
    text = """HloModule m, num_partitions=4

%all-reduce-scatter.3.clone.1 (input: bf16[64]) -> bf16[16] {
  %input = bf16[64]{0} parameter(0)
  %all = bf16[64]{0} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %mine = bf16[16]{0} dynamic-slice(%all), dynamic_slice_sizes={16}
}

ENTRY %main (x: bf16[64]) -> bf16[16] {
  %x = bf16[64]{0} parameter(0)
  ROOT %f = bf16[16]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3.clone.1
}
"""
    assert collectives(text) == [("reduce-scatter", 4, 1, 128 * 3 // 4)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "topology", "devices", "rows", "cache"),
    [
        ("sphinx_1k", "v5e:1x1", 1, 1, ""),
        ("sphinx_1k", "v5e:1x1", 1, 8, ""),
        ("sphinx_1k", "v5e:1x1", 1, 8, "int8"),
        ("sphinx_1k", "v5e:2x4", 8, 1, ""),
        ("sphinx_tiny_1k", "v5e:2x4", 8, 1, ""),  # fewer key/value heads than devices
    ],
)
def test_a_token_takes_no_second_cache_and_lays_out_or_gathers_no_matrix_anew(
    recipe, topology, devices, rows, cache, tmp_path
):
    """Of the 13B and 1.1B decoders' widths, in the programs of the real compiler; 8 bits are read as 8 bits."""
    pytest.importorskip("libtpu")
    decoder = dataclasses.replace(family(recipe).decoder, layers=2)
    # few words: the compiler counts what it keeps on the chip twice, and that may be the output's matrix
    small = [f"--config.model.decoder.{name}" for name in ("layers=2", "vocab_size=1024", f"cache={cache}")]
    said = compile_ahead(recipe, topology, tmp_path, f"--serve={rows}", *small)
    whole, few = json.loads(said.splitlines()[-1])
    smallest = 2 * decoder.dim**2 // devices  # bytes of a matrix
    for need in (whole, few):
        assert need["fits"] and need["temporary_bytes"] < smallest < need["cache_bytes"]
        assert sum(c["bytes"] for c in need["collectives"]) < smallest / 10
    kv_width = decoder.num_kv_heads * decoder.head_dim
    weights = 2 * decoder.dim**2 + 2 * decoder.dim * kv_width + 3 * decoder.dim * decoder.ffn_dim
    saved = 2 * weights // devices  # a byte of two, of each weight
    # on one chip a single row's matrices pass through its fast memory, which counts them twice
    least = 0.95 if rows * devices > 1 else 0.3
    assert whole["accessed_bytes"] - few["accessed_bytes"] > least * saved


@pytest.mark.slow
def test_the_model_that_the_chat_notebook_names_fits_the_chip_that_colab_has(tmp_path):
    pytest.importorskip("libtpu")
    whole, few = json.loads(compile_ahead("sphinx_tiny_1k", "v5e:1x1", tmp_path, "--serve=1").splitlines()[-1])
    assert whole["fits"] and few["peak_bytes"] < whole["peak_bytes"] < 8 * 2**30


def compile_ahead(config, topology, folder, *arguments):
    """What the tool says, of a recipe on a topology; JSON in its last line."""
    command = [
        sys.executable,
        ROOT / "tools" / "compile_ahead.py",
        f"--config={ROOT / 'configs' / config}.py",
        "--json",
    ]
    done = subprocess.run(
        [*command, f"--topology={topology}", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "JAX_DISABLE_MOST_OPTIMIZATIONS")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_tool_compiles_the_steps_of_a_recipe_for_a_tpu(tmp_path):
    pytest.importorskip("libtpu")
    small = {
        "model.decoder": {"layers": 2, "dim": 512, "heads": 4},
        "model.clip": {"layers": 1},
        "model.dinov2": {"layers": 1},
        "model.blip2": {"layers": 1},
        "model.qformer": {"layers": 2},
        "model.convnext": {"depths": (1, 1, 1, 1)},
        "stage.finetune": {"batch": 8, "text_batch": 8, "device_rows": 1},
    }
    changes = [f"--config.{part}.{key}={value}" for part, values in small.items() for key, value in values.items()]
    found = json.loads(compile_ahead("sphinx_7b", "v5e:2x2", tmp_path, "--stage=finetune", *changes).splitlines()[-1])
    steps = found["steps"]
    assert found["fits"] and steps.keys() == {"train", "prefill", "decode"}
    assert found["hbm_bytes"] > found["peak_bytes"] == max(step["peak_bytes"] for step in steps.values())
    for step in steps.values():
        assert step["peak_bytes"] > step["parameter_bytes"] > 0 and 0 <= step["mfu_bound"] <= 1
    train = steps["train"]
    assert train["rows"] == {"image": 1, "text": 1} and train["parts"] == {"image": 2, "text": 2}
    assert train["largest_rows"] > 1 and train["optimizer_bytes"] > 0
    assert {"all-gather", "reduce-scatter"} <= {c["kind"] for c in train["collectives"]}


@pytest.mark.parametrize("fixed", [2.0, 10.0, 15.0])
@pytest.mark.parametrize("each", [0.3, 1.5, 5.0])
@pytest.mark.parametrize("rows", [1, 4])
def test_the_largest_batch_is_found_in_two_more_compilations(monkeypatch, fixed, each, rows, mesh):
    chip, compiled = CHIPS["v5e"], []

    def compile_train(model, name, s, mesh, chip):
        compiled.append(s.device_rows)
        peak = int((fixed + each * s.device_rows) * GIB)
        return needs.Need("train", peak <= chip.hbm, peak, 0, 0, 1.0, 1.0, 0.0, 0.0, 0.0, rows={"image": s.device_rows})

    monkeypatch.setattr(needs, "_compile_train", compile_train)
    known = compile_train(MODEL, "t", dataclasses.replace(STAGE, device_rows=rows), mesh, chip)
    found = needs.largest_rows(MODEL, "t", STAGE, mesh, chip, known)
    assert len(compiled) <= 3
    expected = int((chip.hbm / GIB - fixed) / each)
    assert found == max(0, expected)


def test_the_report_names_the_worst_stage_and_says_whether_all_fit():
    chip = CHIPS["v6e"]
    small, large = (
        needs.Need(f"train {n}", peak <= 31, int(peak * GIB), 1, 2, 3e12, 0.1, 0.2, 0.05, 0.5, rows={"image": 1})
        for n, peak in (("a", 4), ("b", 40))
    )
    found = json.loads(json.dumps(report.to_json(chip, [small, large], {"decode": small})))
    assert not found["fits"] and found["peak_bytes"] == 40 * GIB == found["steps"]["train"]["peak_bytes"]
    assert found["steps"]["decode"]["fits"] and found["steps"]["train"]["roofline_seconds"] == 0.2
    assert found["stages"].keys() == {"a", "b"} and found["hbm_bytes"] == int(31.25 * GIB)
    assert "DOES NOT FIT" in report.text(chip, large) and "at best 200.0 ms" in report.text(chip, large)


def test_an_unknown_topology_is_named():
    with pytest.raises(ConfigError, match="v5e:16x16"):
        open_topology("v5:16x16")
    assert needs._used("Used 20.5G of 15.75G hbm. Exceeded") == int(20.5 * 2**30)
    assert needs._used("required for HLO temporaries (20.77G) exceeds available HBM (15.75G).") == int(20.77 * 2**30)
    with pytest.raises(RuntimeError, match="another"):
        needs._used("another error")


def test_a_mesh_of_one_has_no_collectives():
    assert make_mesh(devices=jax.devices()[:1]).size == 1
    assert collectives(jax.jit(lambda x: x @ x).lower(np.ones((4, 4))).compile().as_text()) == []
