"""How a mix is asked for: values that depend on the place, mergekit's recipes, flags, names."""

import re
import runpy

import pytest
import yaml
from conftest import born
from mix_cases import CONFIG, TOOL, linear, run_tool

from sphinx_jax.config import ConfigError
from sphinx_jax.weight_mix import settings as mix_settings
from sphinx_jax.weight_mix.mixer import Mixer
from sphinx_jax.weight_mix.settings import Mix, Place
from sphinx_jax.weight_mix.sources import short_names


def test_a_value_may_depend_on_the_place():
    inside, outside = Place("decoder/blocks/attention/q", "model.layers.1.self_attn.q_proj.weight", 0.25), Place("a")
    assert inside.value([0, 1, 3]) == 0.5 and outside.value([0.4, 1]) == 0.4
    table = {"decoder/blocks/attention/q": 1, "attention": [0, 4], "decoder/**": 3, "*": 4}
    assert inside.value(table) == 1
    assert Place("decoder/blocks/attention/k", "", 0.5).value(table) == 2
    assert Place("decoder/norm/scale").value(table) == 3 and outside.value(table) == 4
    rules = [{"filter": "mlp", "value": 1}, {"filter": "self_attn", "value": [0, 1]}, {"value": 7}]
    assert inside.value(rules) == 0.25 and outside.value(rules) == 7
    with pytest.raises(ConfigError, match="no pattern"):
        outside.value({"decoder/**": 1})


MERGEKIT = """
merge_method: ties
base_model: base
models:
  - model: base
  - model: one
    parameters: {weight: 0.5, density: [0.2, 0.8]}
  - model: two
    parameters:
      weight:
        - filter: mlp
          value: 0.3
        - value: 0.1
parameters: {density: 0.5, normalize: true}
dtype: bfloat16
"""


def test_mergekits_recipes_are_read_as_they_are(tmp_path):
    (tmp_path / "merge.yaml").write_text(MERGEKIT)
    mix = mix_settings.read_recipe(tmp_path / "merge.yaml")
    assert (mix.method, mix.base, mix.sources, mix.dtype) == ("ties", "base", ("one", "two"), "bfloat16")
    at = mix.at(Place("decoder/blocks/ffn/up", "model.layers.0.mlp.up_proj.weight", 0.5))
    assert at == {"normalize": True, "weight": [0.5, 0.3], "density": [0.5, 0.5]}
    plain = mix_settings.from_mergekit(
        {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1}}]}
    )
    assert plain.parameters == {"normalize": True}
    slerp = yaml.safe_load("{merge_method: slerp, base_model: b, models: [a, b], parameters: {t: 0.5}}")
    assert mix_settings.from_mergekit(slerp).sources == ("b", "a")
    with pytest.raises(ConfigError, match="slices"):
        mix_settings.from_mergekit({"merge_method": "linear", "slices": []})


def test_the_dry_run_reads_nothing_and_says_all(folders):
    done = run_tool("--sources", *folders[:2], "--weights", 0.5, 0.5, "--dtype", "bf16", "--dry-run")
    lines = done.stdout.splitlines()
    assert len([line for line in lines if "linear" in line]) == len(born(CONFIG, 0))
    assert "decoder/blocks/attention/q  (2, 32, 2, 16)  float32 -> bfloat16  2 x linear" in lines
    for arguments, said in (
        (["--method", "lineer", "--sources", "a"], "did you mean 'linear'"),
        (["--sources", *folders[:2]], "linear needs weight"),
        (["--sources", *folders[:2], "--weights", "0.5"], "1 weights for 2 sources"),
        (["--method", "ties", "--sources", folders[0], "--weights", "1"], "ties needs a base"),
    ):
        refused = run_tool(*arguments, "--dry-run", expect=1)
        assert said in refused.stderr and len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sweep": True, "method": "ties"}, "--sweep finds weights of linear; leave out --method"),
        ({"greedy": True, "missing": "take"}, "--greedy finds weights of linear; leave out --missing"),
        ({"learn": True, "sources": ["a", "b"], "base": "c", "grid": [0.5]}, "--learn .*; leave out --grid"),
        ({"learn": True, "merge_lora": True}, "--learn .*; leave out --merge-lora"),
        ({"sweep": True, "recipe": "r.yaml"}, "--sweep .*; leave out --recipe"),
        ({"recipe": "r.yaml", "base": "b"}, "--recipe names methods, sources and weights; leave out --base"),
        ({"recipe": "r.yaml", "settings": ["t=1"]}, "--recipe .*; leave out --set"),
        ({"interference": True, "workdir": "w"}, "--interference mixes nothing; leave out --workdir"),
        ({"interference": True, "merge_lora": True}, "--interference mixes nothing; leave out --merge-lora"),
        ({"sources": ["a"], "report": "r"}, "nothing is searched; leave out --report"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        mix_settings.way_of(given)


def test_the_flags_say_which_way_the_command_is_used():
    assert mix_settings.way_of({"learn": True, "sources": ["a", "b"], "grid": [0.5], "dtype": "bf16"}) == "learn"
    assert mix_settings.way_of({"recipe": "r.yaml", "merge_lora": True, "out": "o"}) == "recipe"
    assert mix_settings.way_of({"sources": ["a"], "weights": ["1"], "settings": ["normalize=true"]}) == "flags"


def test_a_search_refuses_a_folder_that_exists_before_it_begins(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sys.argv",
        [str(TOOL), "--sweep", "--sources", *map(str, folders[:2]), "--workdir", "nowhere", "--out", str(tmp_path)],
    )
    with pytest.raises(SystemExit, match="exists already"):
        runpy.run_path(str(TOOL), run_name="__main__")


def test_the_default_is_told_from_the_same_value_given(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", [str(TOOL), "--recipe", "r.yaml", "--method", "linear", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="--recipe .*; leave out --method"):
        runpy.run_path(str(TOOL), run_name="__main__")


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [("atention", "attention"), ("decoder/block/**", "decoder/"), ("decoder/norm/scal", "decoder/norm/scale")],
)
def test_a_pattern_that_fits_no_leaf_is_named_with_the_nearest(pattern, nearest):
    paths = ["decoder/blocks/attention/q", "decoder/norm/scale"]
    mix = Mix("linear", ("a", "b"), per_source=({"weight": {"*": {pattern: 0.5, "ffn": 1}}}, {"weight": 1}))
    with pytest.raises(ConfigError, match=f"{re.escape(repr(pattern))} fits no leaf.*{nearest}"):
        mix_settings.check_patterns(mix, paths)


def test_patterns_that_fit_are_taken_and_misspelt_ones_refused_before_reading(folders, tmp_path):
    weight = {"encoders/*": 1, "decoder/blocks/**": [0, 1], "norms": 0.5, "*": 0.2}
    assert Mixer(linear(folders[:2], (weight, 1)), tmp_path).paths
    with pytest.raises(ConfigError, match="'decoder/blokcs/"):
        Mixer(linear(folders[:2], (weight | {"decoder/blokcs/*": 1}, 1)), tmp_path)


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["/r/real/checkpoints/4", "/r/synthetic/checkpoints/2"], ["real/4", "synthetic/2"]),
        (["/r/a/x", "/r/b/x"], ["a", "b"]),
        (["/r/m", "/r/m/m"], ["m", "m/m"]),
        (["/r/m", "/r/m"], ["m", "m"]),
    ],
)
def test_short_names_tell_folders_apart(folders, names):
    assert short_names(folders) == names
