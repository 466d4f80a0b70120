"""Conversions: what comes out holds what went in, and an interruption costs nothing."""

import dataclasses
import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from conftest import DATA, ROOT, born, tiny_config
from safetensors.numpy import load_file, save_file

import sphinx_jax
from sphinx_jax.checkpoint import store, stream
from sphinx_jax.checkpoint.foreign import accessory, assemble, convert
from sphinx_jax.checkpoint.foreign.foreign import open_foreign
from sphinx_jax.checkpoint.foreign.pth import read_pth
from sphinx_jax.checkpoint.foreign.verify import verify, verify_foreign
from sphinx_jax.config import FAMILY, ConfigError, ModelConfig
from sphinx_jax.model.blueprint import blueprint
from sphinx_jax.weight_mix.settings import Mix
from sphinx_jax.weight_mix.write import write as write_mix

SPHINX, MIXTRAL, LLAMA = DATA / "llama_ens5" / "ckpt", DATA / "mixtral_sparse" / "ckpt", DATA / "llama_text"
HUGGINGFACE = DATA / "huggingface"
TOOL = ROOT / "tools" / "convert_checkpoint.py"


def run_tool(*arguments, expect=0):
    env = os.environ | {"PYTHONPATH": str(TOOL.parents[1])}
    done = subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True, env=env)
    assert done.returncode == expect, done.stderr
    return done


@pytest.mark.parametrize(("source", "shards"), [(SPHINX, 2), (MIXTRAL, 4)])
def test_there_and_back_is_lossless(tmp_path, source, shards):
    found = open_foreign([source])
    convert.to_checkpoint(found, tmp_path / "ours", quiet=True)
    assert verify(found, tmp_path / "ours", quiet=True) == len(found.names)
    back = convert.from_checkpoint(tmp_path / "ours", tmp_path / "theirs", "accessory", shards=shards, quiet=True)
    again = accessory.open_folders([back])
    assert again.keys() == accessory.open_folders([source]).keys(), "unused keys take part"
    for key, tensor in found.tensors.items():
        np.testing.assert_array_equal(again[key].read(), tensor.read(), err_msg=key)
    assert accessory.read_config([back], 512) == found.config


def test_a_converted_checkpoint_answers_as_its_source(tmp_path):
    run_tool(MIXTRAL, tmp_path / "ours", "--verify", "--quiet")
    record = np.load(MIXTRAL.parent / "expected.npz")
    tokens, expected = record["examples"], record["text_logits"]
    run_tool(tmp_path / "ours", tmp_path / "hf", "--to", "hf", "--quiet")
    for folder in ("ours", "hf"):
        logits = sphinx_jax.from_pretrained(tmp_path / folder).logits(tokens)[:, ::16]
        np.testing.assert_allclose(logits, expected, atol=1e-4)
    recipe = store.read_recipe(tmp_path / "ours")
    assert [len(digest) for digest in recipe["sources"].values()] == [64]


def test_what_is_written_in_other_forms_is_verified_and_keeps_its_dtype(tmp_path):
    run_tool(LLAMA / "ckpt_mp2", tmp_path / "ours", "--dtype", "bf16", "--quiet")
    for form in ("accessory", "hf"):
        done = run_tool(tmp_path / "ours", tmp_path / form, "--to", form, "--verify", "--quiet")
        assert "tensors are the same" in done.stdout
        found = open_foreign([tmp_path / form])
        assert {str(tensor.dtype) for tensor in found.tensors.values()} == {"bfloat16"}
    shifted = stream.Reader(tmp_path / "ours").read
    with pytest.raises(store.BadCheckpoint, match="is not decoder/"):
        verify_foreign(lambda path, index: shifted(path, index) + 1, tmp_path / "hf", quiet=True)


def test_several_folders_are_one_model():
    base, difference = LLAMA / "ckpt_mp2", LLAMA / "ckpt_diff"
    tokens = np.array([[1, 50, 60, 70]])
    plain = sphinx_jax.from_pretrained(base).logits(tokens)
    moved = sphinx_jax.from_pretrained([base, difference]).logits(tokens)
    assert np.abs(moved - plain).max() > 1e-3
    key = "layers.1.attention.wq.weight"
    (file,) = difference.glob("*.pth")
    added = read_pth(file)[f"llma.{key}"].read()
    expected = accessory.open_folders([base])[key].read() + added
    np.testing.assert_array_equal(open_foreign([base, difference]).tensors[key].read(), expected)


def test_verify_sees_a_single_wrong_value(tmp_path):
    found = open_foreign([LLAMA / "ckpt_mp2"])
    specs = blueprint(found.config).specs
    writer = stream.Writer(tmp_path / "ours", {path: (spec.shape, np.float32) for path, spec in specs.items()})
    for path, leaf in found.leaves():
        if path == "decoder/blocks/ffn/down":
            leaf = leaf.copy()
            leaf[1, 3, 5] += 1e-6
        writer.write(path, (), leaf)
    writer.finish(found.config, None, {})
    with pytest.raises(store.BadCheckpoint, match=r"decoder/blocks/ffn/down\[1\] is not layers.1.feed_forward.w2"):
        verify(found, tmp_path / "ours", quiet=True)


def test_an_interrupted_conversion_goes_on_and_reads_nothing_twice(tmp_path, monkeypatch):
    found = open_foreign([MIXTRAL])
    kind, read = type(next(iter(found.tensors.values()))), []
    whole = kind.read

    def counting(self, *rows):
        if len(read) == 12:
            raise KeyboardInterrupt
        read.append(self)
        return whole(self, *rows)

    write = stream.Writer.write
    monkeypatch.setattr(stream.Writer, "write", lambda self, *given: (write(self, *given), self.flush()))
    monkeypatch.setattr(kind, "read", counting)
    with pytest.raises(KeyboardInterrupt):
        convert.to_checkpoint(found, tmp_path / "ours", quiet=True)
    with pytest.raises(store.BadCheckpoint):
        store.read_config(tmp_path / "ours")
    first = list(read)
    read[:] = [None] * 13  # past the interruption
    convert.to_checkpoint(found, tmp_path / "ours", quiet=True)
    again = [tensor for tensor in read[13:] if any(tensor is before for before in first)]
    # leaves that share a chunk with what was not written yet are read once more
    assert len(again) < len(first) and len(read) - 13 < len(found.names)
    monkeypatch.undo()
    assert verify(found, tmp_path / "ours", quiet=True) == len(found.names)


def test_a_checkpoint_cut_for_a_mesh_has_whole_chunks_on_each_device(tmp_path):
    found = open_foreign([MIXTRAL])
    out = convert.to_checkpoint(
        found, tmp_path / "ours", dtype=convert.known_dtype("bf16"), mesh={"fsdp": 4}, quiet=True
    )
    leaf = stream.Reader(out).leaves["decoder/blocks/ffn/up"]
    assert str(leaf.dtype) == "bfloat16" and leaf.shape[2] // 4 % leaf.chunk_shape[2] == 0
    with pytest.raises(ConfigError, match="did you mean 'fsdp'"):
        convert.shard_chunks(found.config, {"fsdb": 2}, {})


def test_what_may_be_missing_is_born_and_what_may_not_is_listed(tmp_path):
    config = json.loads((LLAMA / "ckpt_mp2" / "config.json").read_text()) | {"lora_rank": 2}
    given = {"model": "llama_peft", "config": config}
    with pytest.raises(store.BadCheckpoint, match="missing: layers.0.attention.wq.*lora_a.*more"):
        open_foreign([LLAMA / "ckpt_mp2"], **given)
    found = open_foreign([LLAMA / "ckpt_mp2"], **given, allow_missing=["*lora*", "*bias"])
    assert found.missing and all("/lora/" in path or "/bias/" in path for path in found.missing)
    out = convert.to_checkpoint(found, tmp_path / "ours", quiet=True)
    assert store.read_recipe(out)["born_fresh"] == found.missing
    # what is born changes nothing yet
    tokens = np.array([[1, 50, 60, 70]])
    plain = sphinx_jax.from_pretrained(LLAMA / "ckpt_mp2").logits(tokens)
    np.testing.assert_allclose(sphinx_jax.from_pretrained(out).logits(tokens), plain, atol=1e-5)


def test_a_dry_run_names_every_key_of_the_full_files_and_reads_none():
    for listing, model in (
        ("llama_ens_13b", "sphinx_1k"),
        ("llama_ens_light", "sphinx_tiny"),
        ("mixtral_sparse_ens", "sphinx_moe"),
    ):
        file = DATA / "published" / f"full_keys_{listing}.json"
        keys = {key for key, *_ in json.loads(file.read_text())}
        found = open_foreign([file], model=model)
        *lines, last = convert.describe(found)
        assert {line.split()[0] for line in lines} == keys
        assert not found.missing and last.startswith(found.config.name)
    with pytest.raises(store.BadCheckpoint, match="holds no arrays"):
        next(found.leaves())


def test_a_new_sphinx_from_public_parts_answers(tmp_path, monkeypatch):
    encoders = {kind: HUGGINGFACE / kind for kind in assemble.ENCODERS}
    small = tiny_config(views=sphinx_jax.config.ViewsConfig(32, crops=2))
    monkeypatch.setitem(FAMILY, "small", small)
    found = assemble.open_parts("small", HUGGINGFACE / "llama", encoders)
    out = convert.to_checkpoint(found, tmp_path / "new", quiet=True)
    assert all(path.startswith("embedding_mix/") for path in store.read_recipe(out)["born_fresh"])
    model = sphinx_jax.from_pretrained(out)
    pixels = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    assert np.isfinite(model.logits([[1, 5, 6]], pixels)).all()
    with pytest.raises(ConfigError, match="small has a clip: give --clip DIR"):
        assemble.open_parts("small", HUGGINGFACE / "llama", {k: v for k, v in encoders.items() if k != "clip"})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nowhere", "out"), "nowhere is no folder"),
        ((SPHINX, "out", "--dtype", "bf61"), "unknown dtype 'bf61'; did you mean 'bf16'?"),
        ((SPHINX, "out", "--mesh", "8"), "mesh '8' is not of the form fsdp=4,tensor=2"),
        ((SPHINX,), "give a source and where to write: SOURCE OUT"),
        (("assemble", "out", "--model", "sphinx"), "assemble needs --model NAME and --decoder DIR"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    done = run_tool(*arguments, expect=1)
    assert done.stderr == f"error: {told}\n" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("source", "to", "given", "says"),
    [
        ("a checkpoint of ours", "accessory", ["mesh"], "--mesh does nothing for writing --to accessory"),
        ("a checkpoint of ours", "hf", ["model"], "--model does nothing for reading a checkpoint of ours"),
        ("published files", "orbax", ["shards"], "--shards does nothing for writing --to orbax"),
        ("published files", "orbax", ["clip"], "--clip does nothing for reading published files"),
        ("assemble", "orbax", ["quick_gelu"], "--quick-gelu does nothing for reading assemble"),
        ("published files", "hf", ["verify", "dry_run"], "--verify does nothing for a --dry-run"),
        ("published files", "hf", ["allow", "dry_run"], "--allow does nothing for a --dry-run"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(source, to, given, says):
    with pytest.raises(ConfigError) as refused:
        convert.check_options(source, to, given)
    assert says in str(refused.value)
    convert.check_options("published files", "accessory", ["shards", "dtype", "verify", "model", "allow_missing"])


def test_the_tool_tells_given_options_from_defaults(tmp_path):
    done = run_tool(SPHINX, tmp_path / "out", "--shards", "1", "--quiet", expect=1)
    assert done.stderr == "error: --shards does nothing for writing --to orbax; leave it out\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", [SPHINX, MIXTRAL])
def test_a_dry_run_of_a_checkpoint_names_what_would_be_written(tmp_path, source):
    ours = convert.to_checkpoint(open_foreign([source]), tmp_path / "ours", quiet=True)
    for form in ("accessory", "hf"):
        written = open_foreign([convert.from_checkpoint(ours, tmp_path / form, form, quiet=True)])
        *lines, last = convert.plan_lines(ours, form)
        shapes = {key: tuple(tensor.shape) for key, tensor in written.tensors.items() if key not in written.unused}
        assert {line.partition("->  ")[2] for line in lines} == {f"{k}  {s}" for k, s in shapes.items()}
        assert f"{len(shapes)} tensors" in last
    with pytest.raises(store.BadCheckpoint, match="does not divide over 3 shards"):
        list(convert.plan_lines(ours, "accessory", shards=3))


def test_a_file_in_place_of_a_folder_is_called_a_file(tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"")
    with pytest.raises(store.BadCheckpoint, match="weights.pth is a file; give the folder that holds it"):
        write_mix(Mix("linear", (str(file), str(file)), per_source=({"weight": 1}, {"weight": 0})), tmp_path / "o")


def llama(folder, change=lambda leaves: leaves, config=None):
    """A tiny decoder as Hugging Face keeps it, some of its tensors changed."""
    config = config or ModelConfig("llama", tiny_config().decoder)
    ours = store.save(folder / "ours", born(config), config, None, {})
    done = convert.from_checkpoint(ours, folder / "hf", "hf", quiet=True)
    save_file(change(load_file(done / "model.safetensors")), done / "model.safetensors")
    return done


DOWN = "model.layers.1.mlp.down_proj.weight"


def with_value(value, dtype):
    def change(tensors):
        tensors[DOWN][3, 4] = value
        return {key: tensor.astype(dtype) for key, tensor in tensors.items()}

    return change


@pytest.mark.parametrize("form", convert.FORMS)
def test_what_the_dtype_cannot_hold_is_refused_and_nothing_is_left(tmp_path, form):
    source = llama(tmp_path, with_value(1e5, ml_dtypes.bfloat16))
    ours = convert.to_checkpoint(open_foreign([source]), tmp_path / "whole", quiet=True)
    before = sorted(tmp_path.iterdir())
    said = r"decoder/blocks/ffn/down\[1\].*: 1 of \d+ values overflow float16, the largest is 9.984e.04"
    ways = [
        lambda: convert.write(open_foreign([source]), tmp_path / "out", form, dtype=np.dtype(np.float16), quiet=True)
    ]
    if form != "orbax":
        ways.append(
            lambda: convert.from_checkpoint(ours, tmp_path / "out", form, dtype=np.dtype(np.float16), quiet=True)
        )
    mix = Mix("linear", (str(source),), per_source=({"weight": 1.0},), dtype="fp16")
    ways.append(lambda: write_mix(mix, tmp_path / "out", form=form, quiet=True))
    for way in ways:
        with pytest.raises(store.BadCheckpoint, match=said) as refused:
            way()
        assert len(str(refused.value)) < 300
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_source_with_nan_or_infinity_is_named_unless_it_is_asked_for(tmp_path, value):
    source = llama(tmp_path, with_value(value, np.float32))
    found = open_foreign([source])
    said = rf"decoder/blocks/ffn/down\[1\]: {DOWN} of .*model.safetensors holds NaN or infinity; --allow nonfinite"
    for form in ("orbax", "hf"):
        with pytest.raises(store.BadCheckpoint, match=said):
            convert.write(found, tmp_path / "out", form, quiet=True)
        assert not (tmp_path / "out").exists()
    done = run_tool(source, tmp_path / "ours2", "--allow", "nonfinite", "--dtype", "bf16", "--verify", "--quiet")
    assert "tensors are the same" in done.stdout
    with pytest.raises(store.BadCheckpoint, match=r"down\[1\] of .*ours2 holds NaN or infinity"):
        convert.from_checkpoint(tmp_path / "ours2", tmp_path / "out", "accessory", quiet=True)
    mix = Mix("linear", (str(source),), per_source=({"weight": 1.0},))
    with pytest.raises(store.BadCheckpoint, match="holds NaN or infinity"):
        write_mix(mix, tmp_path / "out", quiet=True)
    allowed = dataclasses.replace(mix, allow=("nonfinite",))
    leaf = stream.Reader(write_mix(allowed, tmp_path / "out", quiet=True)).read("decoder/blocks/ffn/down")
    assert np.argwhere(~np.isfinite(leaf)).tolist() == [[1, 4, 3]]


def test_what_the_dtype_flushes_is_refused_unless_it_is_asked_for(tmp_path):
    source = llama(tmp_path, lambda tensors: tensors | {DOWN: tensors[DOWN] * 1e-8})
    done = run_tool(source, tmp_path / "out", "--dtype", "fp16", "--quiet", expect=1)
    assert "decoder/blocks/ffn/down[1]: " in done.stderr and "too small for float16" in done.stderr
    run_tool(source, tmp_path / "out", "--dtype", "fp16", "--allow", "underflow", "--verify", "--quiet")
    found = open_foreign([source])
    with pytest.raises(store.BadCheckpoint, match="too small for float16"):
        verify(found, tmp_path / "out", quiet=True)
    done = run_tool(source, tmp_path / "more", "--allow", "overflow", expect=1)
    assert done.stderr.startswith("error: unknown thing to allow 'overflow'; did you mean 'underflow'?")


def test_verify_compares_with_the_source_itself(tmp_path):
    """The stored infinity is what a cast of the source would be."""
    found = open_foreign([llama(tmp_path, with_value(1e5, np.float32))])
    specs = blueprint(found.config).specs
    writer = stream.Writer(tmp_path / "made", {path: (spec.shape, np.float16) for path, spec in specs.items()})
    for path, leaf in found.leaves():
        with np.errstate(over="ignore"):
            writer.write(path, (), leaf.astype(np.float16))
    writer.finish(found.config, None, {})
    with pytest.raises(store.BadCheckpoint, match=r"down\[1\]: 1 of \d+ values overflow float16"):
        verify(found, tmp_path / "made", quiet=True)


@pytest.mark.parametrize(
    ("first", "last", "wanted"),
    [("float32", "bfloat16", "float32"), ("bfloat16", "float32", "float32"), ("bfloat16", "float16", "float32")],
)
def test_a_leaf_has_a_dtype_that_holds_all_its_layers(tmp_path, first, last, wanted):
    def change(tensors):
        kinds = {"model.layers.0": first, "model.layers.1": last}
        return {
            key: t.astype(kinds.get(key[:14], "float32" if first == "float32" else first)) for key, t in tensors.items()
        }

    source = llama(tmp_path, change)
    found = open_foreign([source])
    key, path = "model.layers.{}.mlp.down_proj.weight", "decoder/blocks/ffn/down"
    rows = np.stack([found.tensors[key.format(i)].read().T.astype(np.float32) for i in range(2)])
    converted = convert.to_checkpoint(found, tmp_path / "converted", quiet=True)
    assert verify(found, converted, quiet=True)
    mix = Mix("linear", (str(source),), per_source=({"weight": 1.0},))
    mixed = write_mix(mix, tmp_path / "mixed", quiet=True)
    exported = convert.from_checkpoint(converted, tmp_path / "exported", "hf", quiet=True)
    again = convert.write(found, tmp_path / "again", "hf", quiet=True)
    leaves = [dict(found.leaves())[path], stream.Reader(converted).read(path), stream.Reader(mixed).read(path)]
    leaves += [dict(open_foreign([folder]).leaves())[path] for folder in (exported, again)]
    for leaf in leaves:
        assert leaf.dtype == wanted
        np.testing.assert_array_equal(leaf, rows)
    for folder in (exported, again):
        assert json.loads((folder / "config.json").read_text())["torch_dtype"] == wanted


@pytest.mark.parametrize("narrow", ["norm", "proj"])
def test_an_export_holds_every_leaf_whatever_dtype_the_norm_has(tmp_path, narrow):
    """Norms in float32 beside matrices in bfloat16, and the other way round."""
    source = llama(
        tmp_path,
        lambda tensors: {k: t.astype(ml_dtypes.bfloat16 if narrow in k else "float32") for k, t in tensors.items()},
    )
    found = open_foreign([source])
    converted = convert.to_checkpoint(found, tmp_path / "converted", quiet=True)
    for out in (
        convert.from_checkpoint(converted, tmp_path / "exported", "hf", quiet=True),
        write_mix(Mix("linear", (str(source),), per_source=({"weight": 1.0},)), tmp_path / "m", form="hf", quiet=True),
    ):
        for key, tensor in open_foreign([out]).tensors.items():
            np.testing.assert_array_equal(tensor.read(), found.tensors[key].read().astype(np.float32))
        assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float32"


@pytest.mark.parametrize("fields", [{"lora_rank": 2}, {"bias": ("q", "down")}])
def test_an_export_that_merges_or_fills_up_is_verified(tmp_path, fields):
    config = ModelConfig("llama", dataclasses.replace(tiny_config().decoder, **fields))
    leaves = {path: leaf + 0.1 for path, leaf in born(config).items()}
    ours = store.save(tmp_path / "ours", leaves, config, None, {})
    done = run_tool(ours, tmp_path / "hf", "--to", "hf", "--dtype", "bf16", "--verify", "--quiet")
    assert "tensors are the same" in done.stdout
    other = {path: leaf + 0.1 * ("lora" in path or "bias/q" in path) for path, leaf in leaves.items()}
    with pytest.raises(store.BadCheckpoint, match="is not decoder/"):
        verify_foreign(lambda path, index: np.asarray(other[path])[index], tmp_path / "hf", config, quiet=True)
