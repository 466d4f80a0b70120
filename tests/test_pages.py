"""Commands and Python of README and the pages.

A command of this package is parsed by the program that it calls, and a recipe's settings by the recipe; a fenced Python
block is run, with a tiny model in the place of the quickstart's.  `<!-- not run: why -->` before a block leaves it out.
"""

import argparse
import itertools
import re
import runpy
import shlex
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
INDENTED = re.compile(r"^    (python (?:.*\\\n)*.*)$", re.M)


def blocks(page, *kinds):
    return [b for b in BLOCK.finditer(page.read_text()) if b["kind"] in kinds and not b["why"]]


def commands(page):
    """The commands of a page that call this package, as words."""
    found, known = [], {}
    texts = [block["text"] for block in blocks(page, "sh", "bash", "")]
    for text in (*texts, "\n".join(INDENTED.findall(BLOCK.sub("", page.read_text())))):
        for line in text.replace("\\\n", " ").splitlines():
            for name, value in known.items():
                line = line.replace(f"${name}", value)
            if assigned := re.fullmatch(r'(\w+)="(.*)"', line.strip()):
                known[assigned[1]] = assigned[2]
                continue
            for part in re.split(r"&&|;", line.replace("srun ", "")):
                words = [word for word in shlex.split(part, comments=True) if not re.match(r"[A-Z_]+=", word)]
                if words[:3] == ["python", "-m", "sphinx_jax.main"] or words[:1] == ["sphinx-jax"]:
                    found.append(["main", *words[3 if words[0] == "python" else 1 :]])
                elif words[:1] == ["python"] and words[1].startswith("tools/"):
                    found.append(words[1:])
    return found


ALL = [(page.name, command) for page in PAGES for command in commands(page)]


def test_there_are_commands_and_blocks():
    assert len(ALL) > 35 and len({page for page, _ in ALL}) > 8
    assert sum(len(blocks(page, "python")) for page in PAGES) > 5


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
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")  # set, so that no process starts itself again
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


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_runs_as_it_stands(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sphinx_jax.Engine, "warm_up", lambda self: None)  # minutes of compilation, tested elsewhere
    names = {}
    for block in blocks(page, "python"):
        exec(compile(block["text"], page.name, "exec"), names)
    if "get_config" in names:
        runner.parse(names["get_config"]().to_dict(), origins=False)
