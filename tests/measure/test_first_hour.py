"""Two versions' quickstarts, one after the other."""

import subprocess

import pytest

from sphinx_jax.measure.first_hour import measure

MAIN = """
import json, os, pathlib, sys
assert os.environ["JAX_COMPILATION_CACHE_DIR"] and sys.argv[1:3] == ["--config", "configs/quickstart.py"]
folder = pathlib.Path(sys.argv[sys.argv.index("--workdir") + 1])
(folder / "finetune").mkdir(parents=True)
(folder / "finetune" / "done.json").write_text(json.dumps({"seconds": SECONDS}))
(folder / "scores.json").write_text(json.dumps({"tasks": {"vqa": {"value": 1 - SCORE}, "rec": {"value": SCORE}}}))
"""


@pytest.fixture
def repository(tmp_path):
    """One whose quickstart was slower, and better at one of two tasks."""
    made = tmp_path / "repository"
    (made / "sphinx_jax").mkdir(parents=True)
    (made / "sphinx_jax" / "__init__.py").touch()
    main = made / "sphinx_jax" / "main.py"
    main.write_text(MAIN.replace("SECONDS", "70").replace("SCORE", "0.5"))
    git = ["git", "-c", "user.name=a", "-c", "user.email=", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "old"], ["tag", "before"]):
        subprocess.run([*git, *command], cwd=made, check=True)
    main.write_text(MAIN.replace("SECONDS", "30").replace("SCORE", "0.75"))
    return made


def test_each_version_runs_its_own_and_once(repository, tmp_path):
    old, now, both, worse = measure(repository, "before", tmp_path / "runs")
    assert old.startswith("before: ") and old.endswith("mean score 0.5000; seconds of stages: finetune 70")
    assert now.startswith("now: ") and now.endswith("mean score 0.5000; seconds of stages: finetune 30")
    assert both.endswith(" x the time, scores +0.0000")
    assert worse == "vqa: 0.500 before, 0.250 now"
    assert list(measure(repository, "before", tmp_path / "runs")) == [old, now, both, worse]
    listed = subprocess.run(["git", "worktree", "list"], cwd=repository, capture_output=True, text=True).stdout
    assert len(listed.splitlines()) == 1, "nothing is left in the repository"


def test_what_fails_is_told(repository, tmp_path):
    with pytest.raises(ValueError, match="revision nothing: "):
        list(measure(repository, "nothing", tmp_path / "runs"))
    (repository / "sphinx_jax" / "main.py").write_text("raise SystemExit(1)")
    with pytest.raises(ValueError, match="failed; see .*log"):
        list(measure(repository, "before", tmp_path / "runs"))
