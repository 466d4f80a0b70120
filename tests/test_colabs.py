"""The notebooks in the repository are what their texts made when they ran; `tools/run_notebooks.py` makes them anew."""

import hashlib
import json
import os
import re
import runpy
import subprocess
import sys

import pytest
from conftest import ROOT

TEXTS = sorted((ROOT / "colabs").glob("*.py"))
NAMES = ("chat", "finetune", "mix_weights", "quickstart", "scale")


def notebook(path):
    return json.loads(path.with_suffix(".ipynb").read_text())


def test_there_is_a_notebook_for_each_text():
    assert tuple(path.stem for path in TEXTS) == NAMES
    assert sorted((ROOT / "colabs").glob("*.ipynb")) == [path.with_suffix(".ipynb") for path in TEXTS]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_its_outputs_belong_to_the_text_and_none_is_an_error(path):
    found = notebook(path)
    assert found["metadata"]["sphinx_jax"]["source"] == hashlib.sha256(path.read_text().encode()).hexdigest(), (
        f"colabs/{path.name} has changed since it ran: python tools/run_notebooks.py {path.stem}"
    )
    assert found["metadata"]["sphinx_jax"]["scale"] == 1
    cells = [cell for cell in found["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs and all(output["output_type"] != "error" for output in outputs)
    text = json.dumps(outputs)
    assert not re.search(r"Warning\b|Traceback", text)
    assert not re.search(r"/(?:home|root|tmp|work)/", text)  # where it was made is nobody's business


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_the_badge_opens_it(path):
    first = "".join(notebook(path)["cells"][0]["source"])
    assert f"colab.research.google.com/github/sphinx-jax/sphinx_jax/blob/main/colabs/{path.stem}.ipynb" in first


def test_all_bring_the_package_by_the_same_cell():
    cells = {path.read_text().split("# %%\n")[1].split("\n# %%")[0] for path in TEXTS}
    assert len(cells) == 1


def test_deprecations_of_this_package_are_seen_and_others_are_not(tmp_path):
    runner = runpy.run_path(str(ROOT / "tools" / "run_notebooks.py"))
    for name in ("sphinx_jax", "elsewhere", "sphinx_jax_extras"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "old.py").write_text(
            f"import warnings\nwarnings.warn('of {name}', DeprecationWarning, stacklevel=1)\n"
        )
    (tmp_path / "deprecated.pth").write_text(runner["SHOWN"])
    code = "import site; site.addsitedir('.'); import elsewhere.old, sphinx_jax_extras.old, sphinx_jax.old"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = runner["DEPRECATED"].findall(done.stderr)
    assert [line for line in found if "stacklevel" not in line and not line.endswith(": of sphinx_jax")] == []
    assert found
    assert runner["DEPRECATED"].search("DEPRECATION: Legacy editable install of x is deprecated")
