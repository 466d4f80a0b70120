"""The command line and the recipe's settings: what is wrong is told in one line, and nothing is left behind."""

import copy
import json
import os
import subprocess
import sys
import time

import pytest
from conftest import DATA, ROOT, tiny_config

from sphinx_jax.checkpoint import store
from sphinx_jax.config import from_dict, to_dict
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.model.blueprint import blueprint
from sphinx_jax.progress import compiling
from sphinx_jax.recipe import runner

# two stages over one model; nothing here is ever trained
VALUES = {
    "model": to_dict(tiny_config()),
    "data": {"playground": "nano"},
    "stages": ("first", "second"),
    "stage": {
        "first": {"kind": "train", "start": "fresh", "steps": 4, "domains": {"real": 1.0}},
        "second": {"kind": "train", "start": "first", "steps": 4, "domains": {"real": 1.0}},
        "chat": {"kind": "chat"},
    },
}
SIMPLE = """
from ml_collections import ConfigDict

def get_config():
    c = ConfigDict()
    c.seed = 0
    c.model = {"name": "m", "views": None, "dtype": "float32"}
    c.stages = ("first",)
    c.stage = {"first": {"kind": "train", "start": "fresh", "steps": 4, "text_batch": 2}}
    return c
"""


def with_stage(stage: str, **changes) -> dict:
    values = copy.deepcopy(VALUES)
    values["stage"][stage] |= changes
    return values


def one_line(error: pytest.ExceptionInfo) -> str:
    assert isinstance(error.value, ValueError)
    text = str(error.value)
    assert text and "\n" not in text
    return text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stage.second.stepz": 3}, "key of stage.second 'stepz'; did you mean 'steps'"),
        ({"stage.second.kind": "trian"}, "stage.second.kind: unknown kind of stage 'trian'; did you mean 'train'"),
        ({"stage.second.start": "frist"}, "start of stage second 'frist'; did you mean 'first'"),
        ({"stage.second.start": str(DATA)}, "is not a complete checkpoint"),
        ({"stage.second.steps": "many"}, "stage.second.steps must be int, not 'many'"),
        ({"stage.second.steps": True}, "stage.second.steps must be int, not True"),
        ({"stage.second.rate": "1e-3x"}, "stage.second.rate must be float, not '1e-3x'"),
        ({"stage.second.steps": -1}, "stage.second.steps must be at least 0, not -1"),
        ({"stage.second.domains": {}}, "needs domains, a text_batch, or both"),
        ({"stage.second.optimizer": "moun"}, "unknown optimizer 'moun'; did you mean 'muon'"),
        (
            {"stage.second.optimizer_settings": {"beta9": 0.1}},
            "optimizer_settings.beta9: unknown setting of adamw",
        ),
        ({"stage.second.tasks": {"vqaa": 1.0}}, "stage.second.tasks: unknown task 'vqaa'; did you mean 'vqa'"),
        ({"stage.second.tasks": ("vqa",)}, "stage.second.tasks must be"),
        ({"stages": ("first", "secnod")}, "stage 'secnod'; did you mean 'second'"),
        ({"model.decoder.widht": 3}, "key of config.model.decoder 'widht'"),
        ({"model.decoder.layers": 1.5}, "config.model.decoder.layers must be int, not 1.5"),
        ({"modle": 3}, "key of config 'modle'; did you mean 'model'"),
        ({"mesh": {"tesnor": 2}}, "key of config.mesh 'tesnor'; did you mean 'tensor'"),
        ({"data": {}, "data.playground": None}, "one of playground, meta and benchmarks"),
    ],
)
def test_wrong_settings_are_named(changes, says):
    values = copy.deepcopy(VALUES)
    for path, value in changes.items():
        *parents, key = path.split(".")
        at = values
        for parent in parents:
            at = at[parent]
        at[key] = value
    with pytest.raises(ValueError) as error:
        runner.parse(values)
    assert says in one_line(error)


@pytest.mark.parametrize(
    ("missing", "says"), [("start", "stage.first needs a value for 'start'"), ("steps", "needs either steps or epochs")]
)
def test_a_setting_without_a_default_is_asked_for(missing, says):
    values = copy.deepcopy(VALUES)
    del values["stage"]["first"][missing]
    with pytest.raises(ValueError) as error:
        runner.parse(values)
    assert says in one_line(error)


def test_whole_numbers_and_lists_stand_for_floats_and_tuples():
    stage = runner.parse(with_stage("first", rate=1, frozen=["encoders/*"])).settings["first"]
    assert stage.rate == 1 and stage.frozen == ("encoders/*",)
    model = tiny_config()
    assert from_dict(json.loads(json.dumps(to_dict(model)))) == model


def test_an_unknown_stage_makes_no_workdir(tmp_path):
    with pytest.raises(ValueError) as error:
        runner.run(runner.parse(VALUES), tmp_path / "w", only="secnd", quiet=True)
    assert "unknown stage 'secnd'; did you mean 'second'" in one_line(error)
    assert not (tmp_path / "w").exists()


def test_a_workdir_that_cannot_be_made_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(ValueError) as error:
        runner.run(runner.parse(VALUES), file / "w", quiet=True)
    assert str(file / "w") in one_line(error) and "--workdir" in one_line(error)
    assert file.read_text() == "kept"


def test_chat_without_a_model_says_what_to_run_and_makes_nothing(tmp_path):
    with pytest.raises(ValueError) as error:
        runner.run(runner.parse(VALUES), tmp_path / "w", only="chat", quiet=True)
    assert "holds no trained model yet" in one_line(error)
    assert not (tmp_path / "w").exists()


def settle(values: dict, workdir) -> None:
    """What a run does with its config, with no stage to carry out."""
    runner.run(runner.parse(values | {"stages": ()}), workdir, quiet=True)


def test_settings_may_change_until_their_stage_has_begun(tmp_path):
    settle(VALUES, tmp_path)
    settle(with_stage("first", steps=5), tmp_path)  # nothing was made yet
    (tmp_path / "first").mkdir()
    settle(with_stage("first", steps=5) | {"title": "SPHINX"}, tmp_path)
    changed = with_stage("second", steps=7)
    changed["stage"]["first"]["steps"] = 5
    settle(changed, tmp_path)
    kept = (tmp_path / "config.json").read_text()
    assert json.loads(kept)["settings"]["second"]["steps"] == 7
    for other, says in (
        (with_stage("first", steps=6), "settings.first.steps = 5, now it is 6"),
        (changed | {"seed": 9}, "seed = 0, now it is 9"),
    ):
        with pytest.raises(ValueError) as error:
            settle(other, tmp_path)
        assert says in one_line(error) and "--workdir" in one_line(error)
        assert (tmp_path / "config.json").read_text() == kept


def test_a_checkpoint_of_another_model_is_refused_before_anything_is_made(tmp_path, mesh):
    other = tiny_config(clip=None)
    leaves = blueprint(other).init(mesh, 0)
    tokenizer = load_tokenizer(DATA / "tokenizer.model")
    folder = store.save(tmp_path / "other", leaves, other, tokenizer, {"made_by": "test"})
    with pytest.raises(ValueError) as error:
        runner.run(runner.parse(with_stage("first", start=str(folder))), tmp_path / "w", quiet=True)
    assert "holds another model" in one_line(error) and str(folder) in one_line(error)
    assert [p.name for p in (tmp_path / "w").iterdir()] == ["config.json"]
    # and the same workdir takes the recipe once it is mended
    settle(VALUES, tmp_path / "w")


def python(*arguments: str, cwd=None) -> subprocess.CompletedProcess:
    # the package is found from any folder, installed or not
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=env, timeout=100)


def test_recipes_go_by_name_outside_the_clone(tmp_path):
    own = "from configs import quickstart\ndef get_config():\n    return quickstart.get_config()\n"
    (tmp_path / "own.py").write_text(own)
    for given in ("quickstart", "own.py"):
        out = python("-m", "sphinx_jax.main", "--config", given, "--config.stage.finetune.stepz=1", cwd=tmp_path)
        assert out.returncode == 1 and "did you mean 'steps'" in out.stderr


def test_help_names_the_flags():
    out = python("-m", "sphinx_jax.main", "--help")
    assert out.returncode == 0
    for flag in ("--config", "--workdir", "--stage", "--profile", "--[no]quiet"):
        assert flag in out.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no recipe; give one"),
        (["--config", "there/is/none.py"], "there is no recipe there/is/none.py"),
        (["--config", "simple.py", "--wrokdir", "w"], "Did you mean: workdir"),
        (["--config", "quickstrat"], "unknown recipe 'quickstrat'"),
        (["--config", "mine", "--config.stage.first.stepz=3"], "did you mean 'steps'"),
        (["--config=mine", "--config.stage.first.stepz=3"], "did you mean 'steps'"),
        (["--config", "broken.py"], "broken.py, line 2: "),
        (["--config", "simple.py", "--profile", "7"], "--profile 7 is not of the form FIRST:END"),
        (["--config", "simple.py", "w"], "unexpected argument 'w'"),
        (["--config", "simple.py", "--config.stage.frist.steps=3"], 'Did you mean "first"'),
        (["--config", "simple.py", "--config.stage.first.steps=few"], "steps=few"),
        (["--config", "simple.py", "--config.stage.first.stepz=3"], "did you mean 'steps'"),
        (["--config", "simple.py", "--config.model.dtype=float33"], "unknown dtype 'float33'; did you mean 'float32'"),
        (["--config", "refusing.py"], "error: this recipe wants a folder\n"),
        (["--config", "simple.py", "--config.model.views=3"], "model.views is None in the recipe; give it there"),
    ],
    ids=[
        "no config",
        "no file",
        "flag",
        "recipe by name",
        "own by name",
        "own by name, one word",
        "broken file",
        "profile",
        "argument",
        "stage",
        "value",
        "key",
        "dtype",
        "refusing",
        "none",
    ],
)
def test_a_wrong_command_line_is_one_line(tmp_path, arguments, says):
    (tmp_path / "simple.py").write_text(SIMPLE)
    (tmp_path / "refusing.py").write_text(
        "import configs.published\n\ndef get_config():\n    raise ValueError('this recipe wants a folder')"
    )
    (tmp_path / "broken.py").write_text("def get_config():\n    return (\n")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text(SIMPLE)
    out = python("-m", "sphinx_jax.main", *arguments, cwd=tmp_path)
    assert out.returncode == 1 and out.stdout == ""
    assert out.stderr.startswith("error: ") and out.stderr.count("\n") == 1 and says in out.stderr
    assert not (tmp_path / "runs").exists()


def test_results_that_do_not_exist_yet_are_asked_for_by_stage(tmp_path):
    values = copy.deepcopy(VALUES)
    values["stage"]["show"] = {"kind": "show", "evaluate": "second", "mix": None}
    with pytest.raises(ValueError) as error:
        runner.run(runner.parse(values), tmp_path / "w", only="show", quiet=True)
    assert "scores.json yet; run stage second first" in one_line(error)


def test_a_batch_that_cannot_be_cut_is_told_before_any_data_is_made(tmp_path):
    with pytest.raises(ValueError) as error:
        runner.run(runner.parse(with_stage("first", batch=4, accumulate=3)), tmp_path / "w", quiet=True)
    assert "first: 4 image rows do not divide over 1 devices x 3 accumulated parts" in one_line(error)
    assert {p.name for p in (tmp_path / "w").iterdir()} == {"config.json"}


def test_what_is_compiled_is_said_before_with_what_it_took(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    monkeypatch.setattr("sphinx_jax.progress.COMPILED", 0.0)
    said = []
    for _ in range(2):
        monkeypatch.setattr("sphinx_jax.progress._compiled", set())  # as another process
        with compiling("a step", guess="minutes"):
            said.append(capsys.readouterr().err)
    assert said == ["a step: compiling; minutes\n", "a step: compiling; it took 0 s before\n"]
    (tmp_path / "xla" / "compile_seconds.json").write_text("[1")
    with compiling("a step"), compiling("another", quiet=True):
        assert capsys.readouterr().err == "", "this process has it"
    monkeypatch.setattr("sphinx_jax.progress.STILL", 0.01)
    with compiling("another"):
        time.sleep(0.2)
    first, *going = capsys.readouterr().err.splitlines()
    assert first == "another: compiling" and going and all("another: compiling, " in line for line in going)


HEAVY = ("jax", "flax", "orbax", "grain", "tensorflow_datasets", "transformers", "matplotlib", "sklearn", "skimage")


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, sphinx_jax; print(sphinx_jax.__version__, [m for m in {HEAVY} if m in sys.modules])"
    out = python("-c", code)
    assert out.returncode == 0, out.stderr
    assert out.stdout.endswith(" []\n")
