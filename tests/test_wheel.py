"""The package as a wheel leaves it: installed, without the repository beside it.

Run with `-m wheel` by `.ci/run`, from a copy of this file alone, in an environment that holds the wheel and pytest.
"""

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sphinx_jax

pytestmark = pytest.mark.wheel

PACKAGE = Path(sphinx_jax.__file__).parent
PARTS = PACKAGE / "data" / "playground" / "parts"
OUTSIDE = ("configs", "tools", "tests", "colabs")  # folders of the repository, which no wheel has at its top
COMMANDS = {
    "script": [str(Path(sys.executable).with_name("sphinx-jax"))],
    "package": [sys.executable, "-m", "sphinx_jax"],
    "module": [sys.executable, "-m", "sphinx_jax.main"],
}
RECIPE = """
from ml_collections import ConfigDict
import beside  # found in the folder where the command runs
from sphinx_jax.config import family, to_dict

def get_config():
    c = ConfigDict()
    c.model = to_dict(family("sphinx_nano"))
    c.data = {"playground": None, "meta": {"train": "list.yaml"}}
    c.stages = ("finetune",)
    c.stage = {
        "finetune": {
            "kind": "train", "start": "parts", "domains": {"*": 1.0}, "steps": beside.STEPS, "batch": 2, "length": 144,
        },
        "chat": {"kind": "chat"},
    }
    return c
"""


def run(command: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [*COMMANDS[command], *arguments], capture_output=True, text=True, cwd=cwd, env=env, timeout=300
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """A folder with a recipe, its pictures and, in `w`, what the command made of them."""
    folder = tmp_path_factory.mktemp("elsewhere")
    talk = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "a red square"}]
    for i in range(2):
        Image.new("RGB", (40, 30), (200, 40 * i, 0)).save(folder / f"{i}.png")
    (folder / "list.json").write_text(json.dumps([{"image": f"{i}.png", "conversations": talk} for i in range(2)]))
    (folder / "list.yaml").write_text("META:\n  - {path: list.json, root: .}\n")
    (folder / "beside.py").write_text("STEPS = 2\n")
    (folder / "cats.py").write_text(RECIPE)
    done = run("script", "--config", "cats.py", "--workdir", "w", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_it_is_the_wheel_that_is_tested():
    assert "site-packages" in PACKAGE.parts
    assert [name for name in OUTSIDE if importlib.util.find_spec(name)] == []
    assert importlib.metadata.version("sphinx_jax") == sphinx_jax.__version__


def test_its_data_and_its_types_are_there():
    root = files("sphinx_jax")
    for name in ("py.typed", "data/playground/tokenizer.model"):
        assert root.joinpath(name).is_file(), name
    assert {"model.json", "recipe.json", "state"} <= {entry.name for entry in PARTS.iterdir()}
    assert sum(file.stat().st_size for file in (PARTS / "state").rglob("*") if file.is_file()) > 1_000_000


def modules() -> dict[str, Path]:
    """Every module of the package but its recipes, which import each other, by its dotted name."""
    found = {}
    for file in sorted(set(PACKAGE.rglob("*.py")) - set((PACKAGE / "configs").iterdir())):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = file
    return found


def reaches_outside(tree: ast.AST) -> list[str]:
    """What a module imports from the repository's other folders, by name or by path."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""] if not node.level else []
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
            "run_module",
            "find_spec",
        ):
            # of an f-string its constant beginning
            first = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
            names = [first.value] if isinstance(first, ast.Constant) else []
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
            names = [str(node.right.value).replace("/", ".")]  # Path(...) / "tools"
        else:
            continue
        found += [f"line {node.lineno}: {name}" for name in names if name.partition(".")[0] in OUTSIDE]
    return found


def test_no_module_reaches_into_the_repository():
    wrong = {name: lines for name, file in modules().items() if (lines := reaches_outside(ast.parse(file.read_text())))}
    assert wrong == {}


def test_every_module_can_be_imported_without_an_extra(tmp_path):
    of_beam = "sphinx_jax.generate.caption_handler"  # a class of Beam's, imported where Beam runs
    names = [name for name in modules() if not name.endswith("__main__") and name != of_beam]
    code = f"import importlib\nfor name in {names}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_parameters_are_counted_without_a_checkpoint():
    counts = sphinx_jax.count_parameters("sphinx_1k")
    assert counts["total"] > counts["trainable"] > counts["decoder"] > 13e9


def test_the_packaged_parts_load(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        sphinx_jax.from_pretrained(tmp_path / "nothing")
    model = sphinx_jax.from_pretrained(PARTS)
    assert isinstance(model, sphinx_jax.Sphinx)
    logits = model.logits(np.arange(3, 9, dtype=np.int32)[None])
    assert logits.shape == (1, 6, 1280) and logits.dtype == np.float32 and np.isfinite(logits).all()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_flags(command, tmp_path):
    done = run(command, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for flag in ("--config", "--workdir", "--stage", "--profile", "--[no]quiet"):
        assert flag in done.stdout
    assert "configs/quickstart.py" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_wrong_is_one_line(command, tmp_path):
    done = run(command, "--config", "there/is/none.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: there is no recipe there/is/none.py; check --config\n"


@pytest.mark.parametrize("name", ["quickstart", "sphinx_tiny_1k"])  # which takes from another recipe
def test_recipes_go_by_name_without_a_clone(name, tmp_path):
    done = run("script", "--config", name, "--config.stage.finetune.stepz=1", cwd=tmp_path)
    assert done.returncode == 1 and "key of stage.finetune 'stepz'; did you mean 'steps'" in done.stderr
    done = run("script", f"--config={name[:-1]}", cwd=tmp_path)
    assert done.returncode == 1 and f"unknown recipe {name[:-1]!r}; did you mean {name!r}" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_quickstart_trains_without_a_clone(tmp_path):
    words = ("--config", "quickstart", "--smoke", "--stage", "pretrain_real", "--workdir", "w")
    done = run("script", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "w" / "pretrain_real" / "done.json").is_file()


def test_the_readme_of_the_package_has_no_links_into_the_repository():
    text = importlib.metadata.metadata("sphinx_jax").json["description"]
    links = re.findall(r"\]\(([^)\s]+)", text)
    assert len(links) > 20 and [link for link in links if not link.startswith(("http", "#"))] == []


def test_a_recipe_of_ones_own_takes_from_the_packages(tmp_path):
    own = "from configs import quickstart\ndef get_config():\n    c = quickstart.get_config()\n"
    (tmp_path / "own.py").write_text(f"{own}    c.stage.evaluate.limitt = 3\n    return c\n")
    done = run("module", "--config", "own.py", cwd=tmp_path)
    assert done.returncode == 1 and "key of stage.evaluate 'limitt'; did you mean 'limit'" in done.stderr


def test_a_recipe_anywhere_trains_what_from_pretrained_loads(workdir):
    assert (workdir / "w" / "finetune" / "done.json").is_file()
    model = sphinx_jax.from_pretrained(workdir / "w")
    answer = model.respond([["What is it?", None]], image=workdir / "0.png", max_new_tokens=4, temperature=0.0)
    assert isinstance(answer, str)


def test_the_command_and_the_module_go_on_with_the_same_workdir(workdir):
    done = run("module", "--config", "cats.py", "--workdir", "w", cwd=workdir)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "All 1 stages are done" in done.stdout
