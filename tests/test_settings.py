"""Settings: each has its type and range, and is refused by its full path before anything is made."""

import copy
import dataclasses
import importlib
import json
import typing

import numpy as np
import pytest
from annotated_types import BaseMetadata
from conftest import ROOT, tiny_config
from hypothesis import given
from hypothesis import strategies as st

from sphinx_jax import config
from sphinx_jax.config import FAMILY, ConfigError, from_dict, to_dict
from sphinx_jax.data.sources import PLAYGROUNDS, DataConfig
from sphinx_jax.recipe import runner
from sphinx_jax.recipe.recipe import MeshConfig, Recipe
from sphinx_jax.recipe.runner import STAGE_KINDS, parse
from sphinx_jax.settings import Settings
from sphinx_jax.train.settings import TrainStage

TRAIN = {"kind": "train", "start": "fresh", "steps": 4, "domains": {"real": 1.0}}
# one stage of each kind; nothing here is ever run
VALUES = {
    "model": to_dict(tiny_config()),
    "data": {"playground": "nano"},
    "mesh": {"data": 1},
    "stage": {
        "train": TRAIN,
        "encoders": {"kind": "encoders", "steps": 4},
        "parts": {"kind": "assemble", "encoders": "encoders", "decoder": "train", "out": "out"},
        "mix": {"kind": "mix", "real": "train", "synthetic": "train"},
        "evaluate": {"kind": "evaluate", "start": "train"},
        "benchmarks": {"kind": "benchmarks", "start": "train"},
        "show": {"kind": "show"},
        "chat": {"kind": "chat"},
    },
}
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
NAN, INF = float("nan"), float("inf")


def changed(path: str, value: object) -> dict:
    values = copy.deepcopy(VALUES)
    *parents, key = path.split(".")
    at = values
    for parent in parents:
        at = at[parent]
    at[key] = value
    return values


def refusal(values: dict) -> str:
    with pytest.raises(ConfigError) as error:
        parse(values)
    text = str(error.value)
    assert "\n" not in text and len(text) < 300
    return text


def test_there_is_a_stage_of_each_kind_to_change_and_all_are_right():
    assert parse(VALUES).settings.keys() == VALUES["stage"].keys()
    assert {stage["kind"] for stage in VALUES["stage"].values()} == STAGE_KINDS.keys()


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("stage.train.rate", -1, "stage.train.rate must be above 0, not -1"),
        ("stage.train.rate", NAN, "stage.train.rate must be finite, not nan"),
        ("stage.train.rate", INF, "stage.train.rate must be finite, not inf"),
        ("stage.train.rate", None, "stage.train.rate must be float, not None"),
        ("stage.train.rate", "1", "stage.train.rate must be float, not '1'"),
        ("stage.train.rate", True, "stage.train.rate must be float, not True"),
        ("stage.train.floor", 1.0, "stage.train.floor must be at most the rate 2e-05, not 1"),
        ("stage.train.batch", 0, "stage.train.batch must be at least 1, not 0"),
        ("stage.train.batch", 2.0, "stage.train.batch must be int, not 2.0"),
        ("stage.train.batch", 2**31, "stage.train.batch must be below 2147483648"),
        ("stage.train.turns", 0, "stage.train.turns must be at least 1, not 0"),
        ("stage.train.workers", -2, "stage.train.workers must be at least 0, not -2"),
        ("stage.train.keep", 0, "stage.train.keep must be at least 1, not 0"),
        ("stage.train.clip", -1.0, "stage.train.clip must be at least 0, not -1"),
        ("stage.train.weight_decay", -0.1, "stage.train.weight_decay must be at least 0, not -0.1"),
        ("stage.train.epochs", 1.0, "stage.train: a train stage needs either steps or epochs"),
        ("stage.train.start", "", "stage.train.start must not be empty"),
        ("stage.train.domains", {"real": -1.0}, "stage.train.domains.real must be above 0, not -1"),
        ("stage.train.domains", {"real": "1"}, "stage.train.domains.real must be float, not '1'"),
        ("stage.train.domains", ["real"], "stage.train.domains must be a mapping, not ['real']"),
        ("stage.train.domains", {"raal": 1.0}, "stage.train.domains: unknown domain 'raal'; did you mean 'real'?"),
        ("stage.train.tasks", {"vqa": -1}, "stage.train.tasks.vqa must be at least 0, not -1"),
        ("stage.train.tasks", {"vqa": 0}, "stage.train.tasks must hold a weight above 0"),
        ("stage.train.tasks", {"vqqa": 1}, "stage.train.tasks: unknown task 'vqqa'; did you mean 'vqa'?"),
        ("stage.train.split", "tarin", "stage.train.split: unknown split 'tarin'; did you mean 'train'?"),
        ("stage.train.remat", "ful", "stage.train.remat: unknown remat 'ful'; did you mean 'full'?"),
        ("stage.train.quantize", "int5", "stage.train.quantize: unknown kind of quantisation 'int5'"),
        ("stage.train.frozen", "encoders/*", "stage.train.frozen must be a list, not 'encoders/*'"),
        ("stage.train.frozen", ["encoders/*", 3], "stage.train.frozen[1] must be str, not 3"),
        ("stage.train.frozen", ["encoder/*"], "stage.train.frozen: pattern 'encoder/*' fits no leaf; nearest are enc"),
        ("stage.train.frozen", ["*"], "stage.train.frozen: these patterns leave nothing to train"),
        ("stage.train.optimizer", "adamww", "stage.train.optimizer: unknown optimizer 'adamww'; did you mean 'adamw'?"),
        ("stage.train.optimizer", "lbfgs", "stage.train.optimizer: lbfgs cannot step"),
        ("stage.train.optimizer", "chain", "stage.train.optimizer: chain cannot step"),
        ("stage.train.optimizer_settings", [], "stage.train.optimizer_settings must be a mapping, not []"),
        ("stage.train.optimizer_settings", {"b3": 0.1}, "stage.train.optimizer_settings.b3: unknown setting of adamw"),
        ("stage.train.optimizer_settings", {"mask": 1}, "optimizer_settings.mask: unknown setting of adamw"),
        ("stage.train.optimizer_settings", {"b1": 1.5}, "stage.train.optimizer_settings.b1 must be at least 0 and"),
        ("stage.train.optimizer_settings", {"b1": "x"}, "stage.train.optimizer_settings.b1 must be float, not 'x'"),
        ("stage.train.optimizer_settings", {"b1": {}}, "stage.train.optimizer_settings.b1 must be float or int or"),
        ("stage.train.optimizer_settings", {"eps": NAN}, "stage.train.optimizer_settings.eps must be"),
        ("stage.train.optimizer_settings", {"nesterov": 1}, "train.optimizer_settings.nesterov must be bool, not 1"),
        ("stage.train.optimizer_settings", {"mu_dtype": "f17"}, "adamw: data type 'f17' not understood"),
        ("stage.train", [], "stage.train must be a mapping, not []"),
        ("stage.train.stop", np.arange, "stage.train.stop must be plain data"),
        ("stage.encoders.steps", 0, "stage.encoders.steps must be at least 1, not 0"),
        ("stage.encoders.adam_rate", 0, "stage.encoders.adam_rate must be above 0, not 0"),
        ("stage.encoders.optimizer", "mun", "stage.encoders.optimizer: unknown optimizer 'mun'; did you mean 'muon'?"),
        ("stage.encoders.domains", [], "stage.encoders.domains must not be empty"),
        ("stage.parts.out", None, "stage.parts.out must be str, not None"),
        ("stage.mix.betas", [0, 0.5, 1.5], "stage.mix.betas[2] must be at most 1, not 1.5"),
        ("stage.mix.betas", (0, "x"), "stage.mix.betas[1] must be float, not 'x'"),
        ("stage.mix.betas", [], "stage.mix.betas must not be empty"),
        ("stage.mix.betas", [-1, 2, 3], "stage.mix.betas[0] must be at least 0, not -1 (and 2 more)"),
        ("stage.mix.pictures", 0, "stage.mix.pictures must be at least 1, not 0"),
        ("stage.evaluate.batch", 0, "stage.evaluate.batch must be at least 1, not 0"),
        ("stage.evaluate.limit", 0, "stage.evaluate.limit must be at least 1, not 0"),
        ("stage.evaluate.tasks", ["vqaa"], "stage.evaluate.tasks: unknown task 'vqaa'; did you mean 'vqa'?"),
        ("stage.show.samples", -1, "stage.show.samples must be at least 1, not -1"),
        ("stage.chat.temperature", -0.1, "stage.chat.temperature must be at least 0, not -0.1"),
        ("stage.chat.top_p", 0, "stage.chat.top_p must be above 0, not 0"),
        ("stage.chat.top_p", 1.1, "stage.chat.top_p must be at most 1, not 1.1"),
        ("stage.chat.max_new_tokens", 0, "stage.chat.max_new_tokens must be at least 1, not 0"),
        ("stage.chat.seed", 2**63, "stage.chat.seed must be below 9223372036854775808"),
        ("stage.chat.kind", ["chat"], "stage.chat.kind: unknown kind of stage"),
        ("stage.a/b", {"kind": "chat"}, "stage.a/b: the name of a stage must do for a folder"),
        ("stage", ["train"], "stage must be a mapping, not ['train']"),
        ("stages", "train", "config.stages must be a list, not 'train'"),
        ("stages", ["trian"], "unknown stage 'trian'; did you mean 'train'?"),
        ("settings", {}, "unknown key of config 'settings'"),
        ("seed", -1, "config.seed must be at least 0, not -1"),
        ("seed", 2**31, "config.seed must be below 2147483648"),
        ("about", "words", "config.about must be a list, not 'words'"),
        ("data.playground", "nono", "config.data.playground: unknown playground 'nono'; did you mean 'nano'?"),
        ("data.seed", -1, "config.data.seed must be at least 0, not -1"),
        ("data.told", 0, "config.data.told must be above 0, not 0"),
        ("data.meta", {"train": 3}, "config.data.meta.train must be str, not 3"),
        ("mesh.data", 0, "config.mesh.data must be at least 1, or -1 for what is left, not 0"),
        ("mesh.tensor", -2, "config.mesh.tensor must be at least -1, not -2"),
        ("mesh.tensor", -1, "config.mesh.tensor must be at least 0; only one axis, here fsdp, may be -1"),
        ("model", [], "config.model must be a mapping, not []"),
        ("model.dtype", "float33", "config.model.dtype: unknown dtype 'float33'; did you mean 'float32'?"),
        ("model.decoder.heads", 3, "config.model.decoder: dim 32 over 3 heads is not an even head width"),
        ("model.decoder.heads", 0, "config.model.decoder.heads must be at least 1, not 0"),
        ("model.decoder.kv_heads", 3, "config.model.decoder: 2 heads do not share 3 key/value heads evenly"),
        ("model.decoder.norm_eps", 0, "config.model.decoder.norm_eps must be above 0, not 0"),
        ("model.decoder.rope_llama3", [8, 1, 4], "config.model.decoder.rope_llama3 must have 4 values, not 3"),
        ("model.decoder.rope_llama3", [8, 1, 4, 5, 6], "config.model.decoder.rope_llama3 must have 4 values, not 5"),
        ("model.decoder.bias", ["q", "kk"], "config.model.decoder.bias[1]: unknown"),
        ("model.decoder.moe", {"experts": 2, "per_token": 3}, "config.model.decoder.moe: 3 of 2 experts per token"),
        ("model.clip.heads", 3, "config.model.clip: width 16 does not divide over 3 heads"),
        ("model.clip.activation", "gellu", "config.model.clip.activation: unknown activation 'gellu'; did you mean"),
        ("model.convnext.dims", [8, 16, 32], "config.model.convnext: 2 depths for 3 dims"),
        ("model.convnext.dims", [8, "16"], "config.model.convnext.dims[1] must be int, not '16'"),
        ("model.qformer.heads", 3, "config.model.qformer: width 16 does not divide over 3 heads"),
        ("model.qformer", None, "config.model.blip2 (the vision tower) and qformer come together"),
        ("model.views.crops", -1, "config.model.views.crops must be at least 0, not -1"),
        ("model.views.half_resize", "half", "config.model.views.half_resize: unknown half_resize 'half'"),
        ("model.views", {"crops": 3, "image_size": 32, "skip_padded": True}, "model.views.skip_padded needs crops"),
        ("model.pool_crops", 0, "config.model.pool_crops must be at least 1, not 0"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_by_its_path(path, value, says):
    assert says in refusal(changed(path, value))


def test_a_misspelt_key_is_told_before_what_it_was_meant_for():
    stage = {key.replace("start", "strat"): value for key, value in TRAIN.items()}
    assert refusal(changed("stage.train", stage)) == (
        "unknown key of stage.train 'strat'; did you mean 'start'? (and 1 more)"
    )


def test_a_value_however_long_is_cut():
    assert "..." in refusal(changed("stage.train.steps", "9" * 1000))


def test_splits_of_ones_own_data_are_looked_up_before_the_run():
    values = changed("data", {"playground": None, "meta": {"train": "list.yaml", "test": "list.yaml"}})
    values["stages"] = ("train", "mix")
    assert refusal(values) == "stage.mix.split 'validation' is not in data.meta, which has train, test"
    values["stages"] = ("train",)
    values["stage"]["train"] = TRAIN | {"domains": {"mine": 1.0}, "tasks": {"my_task": 1.0}}
    assert parse(values).settings["train"].domains == {"mine": 1.0}


def test_what_is_usually_frozen_may_be_named_in_a_model_without_it():
    text_only = {key: None for key in ("views", "clip", "convnext", "dinov2", "blip2", "qformer")}
    values = changed("model", VALUES["model"] | text_only)
    values["stage"] = {"train": TRAIN | {"domains": {}, "text_batch": 2}}
    assert parse(values).settings["train"].frozen == ("encoders/*",)
    values["stage"]["train"]["frozen"] = ["encoders/clip/*"]
    assert "stage.train.frozen: pattern 'encoders/clip/*' fits no leaf" in refusal(values)


def test_every_batch_is_cut_before_the_first_stage_begins(tmp_path):
    values = changed("stage.train.text_batch", 3)
    values["stage"] = {"first": TRAIN, "second": values["stage"]["train"] | {"accumulate": 2}}
    with pytest.raises(ConfigError, match="second: 3 text rows do not divide over 1 devices x 2 accumulated parts"):
        runner.run(parse(values), tmp_path / "w", quiet=True)
    assert {p.name for p in (tmp_path / "w").iterdir()} == {"config.json"}


def test_a_profile_that_no_stage_reaches_is_refused(tmp_path):
    values = VALUES | {"stages": ("train",)}
    with pytest.raises(ConfigError, match=r"--profile 4:6 begins after the last of 4 steps"):
        runner.run(parse(values), tmp_path / "w", quiet=True, profile=range(4, 6))


def test_what_stands_for_another_type_becomes_it():
    stage = parse(changed("stage.train.rate", 1)).settings["train"]
    assert isinstance(stage.rate, float) and stage.rate == 1
    settings = {"b1": np.float32(0.5), "nesterov": True, "mu_dtype": "bfloat16"}
    stage = parse(changed("stage.train.optimizer_settings", settings)).settings["train"]
    assert stage.optimizer_settings == settings and type(stage.optimizer_settings["b1"]) is float
    muon = TRAIN | {"optimizer": "muon", "optimizer_settings": {"ns_coeffs": [3.0, -4.0, 2.0], "ns_steps": 5}}
    found = parse(changed("stage.train", muon)).settings["train"].optimizer_settings
    assert found == {"ns_coeffs": (3.0, -4.0, 2.0), "ns_steps": 5} and type(found["ns_steps"]) is int


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_numbers_come_through_to_the_last_bit(rate):
    assert from_dict({"encoders": "a", "decoder": "b", "out": "c"}, *_of("assemble")).out == "c"
    assert from_dict({"steps": 1, "rate": rate}, *_of("encoders")).rate == rate


def _of(kind: str) -> tuple[type, str]:
    return STAGE_KINDS[kind].settings, f"stage.{kind}"


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("published",)])
def test_every_recipe_parses_and_comes_back_from_json(name):
    what = {"finetune": ("sphinx_1k,lora=16,nf4",), "benchmarks": ("sphinx_1k",)}.get(name, ())
    values = importlib.import_module(f"configs.{name}").get_config(*what).to_dict()
    made = parse(values, origins=False)
    kinds = {name: stage["kind"] for name, stage in values["stage"].items()}
    again = json.loads(json.dumps(dataclasses.asdict(made)))
    again["stage"] = {name: {"kind": kinds[name], **stage} for name, stage in again.pop("settings").items()}
    assert parse(again, origins=False) == made


@pytest.mark.parametrize("name", FAMILY)
def test_every_published_model_is_within_its_ranges(name):
    assert from_dict(json.loads(json.dumps(to_dict(FAMILY[name])))) == FAMILY[name]


def _classes() -> list[type]:
    models = [one for one in vars(config).values() if isinstance(one, type) and issubclass(one, Settings)]
    return [one for one in models if dataclasses.is_dataclass(one)] + [
        MeshConfig,
        DataConfig,
        Recipe,
        *(_of(kind)[0] for kind in STAGE_KINDS),
    ]


def _unbounded(hint: object) -> list[str]:
    """The numbers in a type that have no range."""
    if typing.get_origin(hint) is typing.Annotated:
        inner, *marks = typing.get_args(hint)
        bounded = any(isinstance(mark, BaseMetadata) for mark in marks)
        return [] if bounded and inner in (int, float) else _unbounded(inner)
    if hint in (int, float):
        return [hint.__name__]
    return [found for inner in typing.get_args(hint) for found in _unbounded(inner)]


@pytest.mark.parametrize("cls", _classes(), ids=lambda cls: cls.__name__)
def test_each_number_among_the_settings_has_a_range(cls):
    assert issubclass(cls, Settings) and dataclasses.is_dataclass(cls)
    hints = typing.get_type_hints(cls, include_extras=True)
    # what an optimizer takes is checked by the optimizer
    fields = [f.name for f in dataclasses.fields(cls) if f.name != "optimizer_settings"]
    assert {name: _unbounded(hints[name]) for name in fields if _unbounded(hints[name])} == {}
    assert all(hints[name] is not typing.Any for name in fields)


def test_the_check_for_ranges_finds_a_number_without_one():
    assert _unbounded(typing.Mapping[str, tuple[int, ...] | None]) == ["int"]
    assert _unbounded(typing.get_type_hints(TrainStage, include_extras=True)["turns"]) == []


def test_the_playgrounds_are_those_that_can_be_made():
    from sphinx_jax.data.playground.builder import CONFIGS

    assert tuple(made.name for made in CONFIGS) == PLAYGROUNDS
