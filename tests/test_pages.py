"""Commands and Python of README and the pages.

A command of this package is parsed by the program that it calls, and a recipe's settings by the recipe.  It is run,
on a tiny model, where `RUN` names it; `NOT_RUN` says of all others why not.  A fenced Python block is run, with a tiny
model in the place of the quickstart's.  `<!-- not run: why -->` before a block leaves it out.
"""

import argparse
import itertools
import os
import re
import runpy
import shlex
import subprocess
import sys
from importlib import import_module

import pytest
import yaml
from absl import flags
from conftest import ROOT, tiny_config
from PIL import Image

import sphinx_jax.main  # noqa: F401 (whose flags are looked at)
from sphinx_jax.config import to_dict
from sphinx_jax.data.prepare.pipeline import InProcesses, Order, prepare
from sphinx_jax.recipe import runner

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- not run: (?P<why>[^>]+) -->\n+)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"(?<=\n\n)(?:    .*\n)+", re.M)
SHELL, PYTHON, DATA = ("sh", "bash", ""), ("python",), ("json", "yaml")

# by page, beginnings of commands that are run, and what makes them small
RUN = {"published.md": {"tools/convert_checkpoint.py --help": ""}}
# beginnings of the others, and why they are not run
NOT_RUN = {
    "main --config configs/quickstart.py": "a quarter of an hour; tests/recipe run its stages at small size",
    "main --config configs/benchmarks.py": "a trained model or published files; tests/recipe ask at small size",
    "main --config configs/finetune.py": "a converted folder, and minutes; tests/recipe fine-tune a tiny one",
    "main --config cats.py": "minutes; tests/recipe train on people's own lists",
    "main --config configs/playground_parts.py": "an hour",
    "main --config configs/sphinx_": "a pod, or minutes at nano size; tests/recipe have it smoke",
    "main --distributed": "a pod",
    "main --config.mesh": "no command, but a flag of one",
    "tools/benchmark.py": "minutes, or an accelerator; tests/measure have each of its parts",
    "tools/caption.py": "a trained model; tests/recipe/test_first_stage.py runs it",
    "tools/check_contamination.py": "files of a public benchmark; tests/evaluate",
    "tools/compile_ahead.py": "a compiler for TPUs or GPUs, and minutes; tests/measure/test_ahead.py",
    "tools/convert_checkpoint.py SPHINX-v2-1k": "published weights",
    "tools/convert_checkpoint.py sphinx_v2_1k": "published weights",
    "tools/convert_checkpoint.py cats_merged": "what the commands before it make; tests/checkpoint export",
    "tools/export_playground.py": "a quickstart's data; tests/recipe/test_first_stage.py runs it",
    "tools/mix_weights.py": "checkpoints of two stages; tests/weight_mix run each way to mix",
    "tools/prepare_data.py": "public data; tests/data run every format",
    "tools/score_card.py": "two runs of benchmarks",
    "tools/score_predictions.py": "files of a public benchmark; tests/evaluate",
    "tools/score_table.py": "a finished quickstart; tests/report",
}
# programs that are not this package's
OTHERS = {
    "git clone": "network",
    "cd": "no program",
    "python -m venv": "CI makes its own",
    ".": "CI makes its own",
    "pip install": "network; CI installs each extra",
    "python -m pytest": "runs this",
    "pre-commit install": "changes the clone",
    "lmms-eval": "an extra of its own; tests/evaluate/test_lmms_eval.py",
    "gcloud": "a pod",
    "case": "Slurm",
    "xprof": "serves until it is stopped",
    "export": "settings of a TPU's compiler",
}


def blocks(page, *kinds):
    return [b for b in BLOCK.finditer(page.read_text()) if b["kind"] in kinds and not b["why"]]


def simple(text):
    """The simple commands of a shell's text, as words; variables that it sets are in their places."""
    known, lines = {}, []
    for line in text.replace("\\\n", " ").splitlines():
        if lines and lines[-1].count('"') % 2:  # in a string
            lines[-1] += "\n" + line
        else:
            lines.append(line)
    for line in lines:
        for name, value in known.items():
            line = line.replace(f"${name}", value)
        if assigned := re.fullmatch(r'(\w+)="(.*)"(?:\s*#.*)?', line.strip()):
            known[assigned[1]] = assigned[2]
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&")
        lexer.whitespace_split = True
        for apart, words in itertools.groupby(lexer, lambda word: set(word) <= {*";&"}):
            if not apart and (kept := [w for w in words if not re.match(r"[A-Z_]+=", w) and w not in ("srun", "esac")]):
                yield kept


def told(text):
    """(command of this package, or None, the words) of a shell's text."""
    for words in simple(text):
        if words[:3] == ["python", "-m", "sphinx_jax.main"] or words[:1] == ["sphinx-jax"]:
            yield ["main", *words[3 if words[0] == "python" else 1 :]], words
        elif words[:1] == ["python"] and words[1].startswith("tools/"):
            yield words[1:], words
        elif words[0].startswith("--config."):
            yield ["main", *words], words
        else:
            yield None, words
            if "--command" in words:
                yield from told(words[words.index("--command") + 1])


def shells(page):
    texts = [block["text"] for block in blocks(page, *SHELL)]
    return [*texts, *INDENTED.findall(BLOCK.sub("", page.read_text()))]


def beginning(words, known):
    """The longest of the known beginnings that a command has."""
    line = " ".join(words)
    return max((start for start in known if line.startswith(start)), key=len, default=None)


def to_run(page, command):
    return beginning(command, RUN.get(page, ()))


def accounted(page, command, words):
    """What says that a command is run, or why not; None, nothing does."""
    if command:
        return to_run(page, command) or beginning(command, NOT_RUN)
    return next((other for other in OTHERS if words[: len(other.split())] == other.split()), None)


TOLD = [(page.name, command, words) for page in PAGES for text in shells(page) for command, words in told(text)]
ALL = [(page, command) for page, command, _ in TOLD if command]


def test_there_are_commands_and_blocks():
    assert len(ALL) > 35 and len({page for page, _ in ALL}) > 8
    assert sum(len(blocks(page, *PYTHON)) for page in PAGES) > 5


def test_every_block_is_run_or_it_is_said_why_not():
    for page in PAGES:
        kinds = {block["kind"] for block in BLOCK.finditer(page.read_text())}
        assert kinds <= {*SHELL, *PYTHON, *DATA}, page.name
    assert [(page, " ".join(words)) for page, command, words in TOLD if accounted(page, command, words) is None] == []


def test_the_tables_name_what_pages_have():
    named = {*NOT_RUN, *OTHERS, *(start for starts in RUN.values() for start in starts)}
    assert sorted(named - {accounted(*one) for one in TOLD}) == []


@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{page}: {' '.join(c)[:60]}" for page, c in ALL])
def test_a_command_is_one_that_its_program_takes(page, command, monkeypatch):
    program, *words = command
    source = ROOT / program
    if program == "main" or "app.run(" in source.read_text():
        more = () if program == "main" else re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source.read_text())
        check_flags(words, {*flags.FLAGS, *more})
    else:
        check_arguments(source, words, monkeypatch)


def check_flags(words, known):
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    given = {}
    for name, value in itertools.pairwise([*words, "--"]):
        if name.startswith("--"):
            flag = name[2:]
            assert flag.startswith("config.") or {flag, flag.removeprefix("no")} & {*known}, (
                f"there is no flag --{flag}"
            )
            given[flag] = value
    if "config" not in given:
        return
    file, _, what = given["config"].partition(":")
    name = re.sub(r"^configs/|\.py$", "", file)
    if not (ROOT / "configs" / f"{name}.py").exists():
        assert name != file and not file.startswith("configs/"), f"there is no recipe {file}"
        return  # one of the reader's
    # a member of the family where a folder would be, and without OPTIONS, which stands for some
    options = [option for option in what.split(",")[1:] if not option.isupper()]
    arguments = [",".join(["sphinx_1k", *options])] if what else []
    values = import_module(f"configs.{name}").get_config(*arguments).to_dict()
    for flag, value in given.items():
        *path, last = flag.split(".")
        if path[:1] == ["config"]:
            place = values
            for key in path[1:]:
                place = place[key]
            place[last] = yaml.safe_load(value)
    recipe = runner.parse(values, origins=False)
    assert given.get("stage", recipe.stages[0]) in recipe.settings


def check_arguments(source, words, monkeypatch):
    parse, depth = argparse.ArgumentParser.parse_known_args, []

    class Parsed(BaseException):
        pass

    def parsed(self, *given):
        depth.append(self)
        found = parse(self, *given)
        depth.pop()
        if depth:  # of a part of the command
            return found
        raise Parsed(found[1])

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parsed)
    monkeypatch.setattr("sys.argv", [str(source), *words])
    try:
        runpy.run_path(str(source), run_name="__main__")
    except Parsed as end:
        check_flags(end.args[0], ("config", "stage"))  # of the recipe that a benchmark takes
    except SystemExit as end:
        assert end.code == 0 and "--help" in words


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with `runs/quickstart`, of a tiny model that has hardly been trained, a picture and prepared data."""
    root = tmp_path_factory.mktemp("reader")
    model = to_dict(tiny_config())
    model["decoder"]["vocab_size"] = 1280
    stage = {"kind": "train", "start": "fresh", "steps": 1, "batch": 2, "length": 160, "domains": {"real": 1.0}}
    values = {
        "model": model,
        "data": {"playground": "nano"},
        "stages": ("finetune",),
        "stage": {"finetune": stage | {"text_batch": 0}},
    }
    runner.run(runner.parse(values), root / "runs" / "quickstart", quiet=True)
    (root / "texts.jsonl").write_text('{"text": "a document"}')
    prepare(Order("documents", [root / "texts.jsonl"], root / "data" / "laion"), each=InProcesses(1, quiet=True))
    for picture in ("photo.jpg", "runs/quickstart/example.png"):
        Image.linear_gradient("L").convert("RGB").resize((60, 40)).save(root / picture)
    return root


def run_command(page, command, folder):
    program, *words = command
    start = ["-m", "sphinx_jax.main"] if program == "main" else [str(ROOT / program)]
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
    more = shlex.split(RUN[page][to_run(page, command)])
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *start, *words, *more], cwd=folder, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]


def runs(page):
    return blocks(page, *PYTHON) or page.name in RUN


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runs(page)], ids=lambda page: page.stem)
def test_it_runs_as_it_stands(page, folder, monkeypatch):
    """From top to bottom."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sphinx_jax.Engine, "warm_up", lambda self: None)  # minutes of compilation, tested elsewhere
    names = {}
    for block in blocks(page, *SHELL, *PYTHON):
        if block["kind"] in PYTHON:
            exec(compile(block["text"], page.name, "exec"), names)
            if "get_config" in block["text"]:
                runner.parse(names["get_config"]().to_dict(), origins=False)
        elif block["kind"] in SHELL:
            for command, _ in told(block["text"]):
                if command and to_run(page.name, command):
                    run_command(page.name, command, folder)
