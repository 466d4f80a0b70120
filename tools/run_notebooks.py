"""Executes colabs/NAME.py, notebooks as text, and keeps what they print in colabs/NAME.ipynb.

All of them, as long as they take; one of them; all at small size, kept elsewhere; one whose prose alone has changed:
  python tools/run_notebooks.py
  python tools/run_notebooks.py quickstart
  python tools/run_notebooks.py --scale 0.02 --out /tmp/notebooks
  python tools/run_notebooks.py quickstart --prose

Each runs in a folder of its own and all in an environment that holds what a kernel needs: the first cell brings the
package, here from this working tree.  A cell fails that raises, whose command fails, or that prints a warning of
deprecation.  Needs pip install -e '.[colabs]'.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:  # an extra, which --help does without
    import nbformat

ROOT = Path(__file__).parents[1]
KERNEL = "colab"
DEPRECATED = re.compile(r".*(?:(?:Deprecation|PendingDeprecation|Future)Warning|DEPRECATION:).*")  # pip's the last
# Python hides warnings of deprecation but in __main__; those that other packages cause stay hidden.  A line that Python
# runs as it begins: PYTHONWARNINGS takes whole names of modules alone.
SHOWN = "import warnings; " + "; ".join(
    f"warnings.filterwarnings('default', '', {kind}, r'(sphinx_jax|configs|tools)(\\.|$)')"
    for kind in ("DeprecationWarning", "PendingDeprecationWarning")
)
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


def working_tree(folder: Path) -> None:
    """A repository that holds the files of this one as they are, for a first cell to clone."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    known = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True)
    # what git does not know is an archive, which holds nothing else
    names = [str(file.relative_to(ROOT)) for file in ROOT.rglob("*")] if known.returncode else known.stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    git = ["git", "-c", "user.name=notebooks", "-c", "user.email=", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A", "-f"], ["commit", "-q", "-m", "the working tree"]):
        subprocess.run([*git, *command], cwd=folder, check=True)


def environment(folder: Path) -> None:
    """An environment with a kernel, named colab, whose commands come first on the PATH."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    for command in (
        ["pip", "install", "-q", "ipykernel"],
        ["ipykernel", "install", "--prefix", folder, "--name", KERNEL],
    ):
        subprocess.run([python, "-m", *command], check=True, stdout=subprocess.DEVNULL)
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(where, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    Path(packages, "deprecated.pth").write_text(SHOWN)
    os.environ |= {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(folder),
        "JUPYTER_PATH": str(folder / "share" / "jupyter"),
    }
    os.environ.pop("PYTHONPATH", None)


def execute(name: str, source: Path, scale: float, timeout: int) -> nbformat.NotebookNode:
    """The notebook with what its cells printed.

    Raises:
      RuntimeError: a cell failed, or printed a warning of deprecation.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook, digest = read(name)
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
            kernel_name=KERNEL,
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
        "sphinx_jax": {"source": digest, "scale": scale, "seconds": round(spent)},
    }
    return notebook


def with_prose(name: str, file: Path) -> nbformat.NotebookNode:
    """The notebook as it ran, with the prose of its text as that is now.

    Raises:
      RuntimeError: its code has changed too.
    """
    import nbformat

    ran, (now, source) = nbformat.read(file, as_version=4), read(name)
    code, code_now = (
        [(cell.cell_type, cell.cell_type == "code" and cell.source) for cell in each.cells] for each in (ran, now)
    )
    if code != code_now:
        raise RuntimeError(f"{name}: its code has changed, or cells have come and gone; run it again")
    for cell, new in zip(ran.cells, now.cells, strict=True):
        cell.source = new.source
    ran.metadata["sphinx_jax"]["source"] = source
    return ran


def read(name: str) -> tuple[nbformat.NotebookNode, str]:
    """The notebook that a text is of, without outputs, and a hash that says which text outputs belong to."""
    import jupytext

    text = (ROOT / "colabs" / f"{name}.py").read_text()
    return jupytext.reads(text, fmt="py:percent"), hashlib.sha256(text.encode()).hexdigest()


def main() -> None:
    known = sorted(path.stem for path in (ROOT / "colabs").glob("*.py"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps to train (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "colabs", help="where .ipynb files go (default: colabs/)")
    parser.add_argument("--prose", action="store_true", help="run nothing: the text between the cells has changed")
    parser.add_argument("--timeout", type=int, default=3600, help="seconds of a cell, at most (default: %(default)s)")
    args = parser.parse_args()
    if wrong := set(args.names) - set(known):
        parser.error(f"there is no notebook {min(wrong)}; there are {', '.join(known)}")
    try:
        import nbformat
    except ImportError:
        sys.exit("error: this needs pip install -e '.[colabs]'")
    args.out.mkdir(parents=True, exist_ok=True)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        if not args.prose:
            working_tree(source)
            environment(Path(folder) / "environment")
        for name in args.names or known:
            try:
                file = args.out / f"{name}.ipynb"
                made = with_prose(name, file) if args.prose else execute(name, source, args.scale, args.timeout)
                nbformat.write(made, file)
            except RuntimeError as error:
                failed.append(name)
                print(error, file=sys.stderr)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
