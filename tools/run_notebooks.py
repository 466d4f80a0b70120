"""Executes colabs/NAME.py, notebooks as text, and keeps what they print in colabs/NAME.ipynb.

All of them, as long as they take; one of them; all at small size, kept elsewhere:
  python tools/run_notebooks.py
  python tools/run_notebooks.py quickstart
  python tools/run_notebooks.py --scale 0.02 --out /tmp/notebooks

Each runs in a folder of its own, as on Colab: its first cell brings the package, here from this working tree.  A cell
fails that raises, whose command fails, or that prints a warning of deprecation.

Needs pip install 'sphinx_jax[colabs]'.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
DEPRECATED = re.compile(r".*(?:Deprecation|PendingDeprecation|Future)Warning.*")
# a command of a cell (`!…`) that fails is an error of the cell
STRICT = """
import subprocess
def system(command):
    done = subprocess.run(["bash", "-o", "pipefail", "-c", get_ipython().var_expand(command, depth=1)],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, end="")
    done.check_returncode()
get_ipython().system = system
"""


def working_tree(folder: Path) -> Path:
    """A repository that holds the files of this one as they are, for a first cell to clone."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    git = ["git", "-c", "user.name=notebooks", "-c", "user.email=", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A", "-f"], ["commit", "-q", "-m", "the working tree"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    return folder


def execute(name: str, source: Path, scale: float, timeout: int) -> nbformat.NotebookNode:
    """The notebook with what its cells printed.

    Raises:
      RuntimeError: a cell failed, or printed a warning of deprecation.
    """
    text = (ROOT / "colabs" / f"{name}.py").read_text()
    notebook = jupytext.reads(text, fmt="py:percent")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as settings:
        startup = Path(settings) / "profile_default" / "startup"
        startup.mkdir(parents=True)
        (startup / "strict.py").write_text(STRICT)
        os.environ |= {
            "SPHINX_JAX_SOURCE": f"file://{source}",
            "SPHINX_JAX_SCALE": str(scale),
            "IPYTHONDIR": settings,
        }
        client = NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        begun = time.monotonic()
        with tqdm(total=len(notebook.cells), desc=name, unit="cell") as bar:
            client.on_cell_executed = lambda **_: bar.update()
            try:
                client.execute()
            except CellExecutionError as error:
                raise RuntimeError(f"{name}: {error}") from None
        spent = time.monotonic() - begun
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each began and ended
        for output in cell.get("outputs", ()):
            if "text" in output:
                output["text"] = output["text"].replace(folder, "/content")  # where Colab is
            if warned := DEPRECATED.search(output.get("text", "")):
                raise RuntimeError(f"{name} prints {warned[0].strip()}")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{name}-{number}"  # else anew each time
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "colab": {"provenance": []},
        "accelerator": "TPU",
        "sphinx_jax": {"source": digest(text), "scale": scale, "seconds": round(spent)},
    }
    return notebook


def digest(text: str) -> str:
    """Of a notebook's text: says which text the outputs belong to."""
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> None:
    known = sorted(path.stem for path in (ROOT / "colabs").glob("*.py"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps to train (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "colabs", help="where .ipynb files go (default: colabs/)")
    parser.add_argument("--timeout", type=int, default=3600, help="seconds of a cell, at most (default: %(default)s)")
    args = parser.parse_args()
    if wrong := set(args.names) - set(known):
        parser.error(f"there is no notebook {min(wrong)}; there are {', '.join(known)}")
    args.out.mkdir(parents=True, exist_ok=True)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        source = working_tree(Path(folder))
        for name in args.names or known:
            try:
                nbformat.write(execute(name, source, args.scale, args.timeout), args.out / f"{name}.ipynb")
            except RuntimeError as error:
                failed.append(name)
                print(error, file=sys.stderr)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
