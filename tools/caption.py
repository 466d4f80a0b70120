"""Writes what a model says about the pictures of some data: captions for the synthetic domain, as prepared data.

  python tools/caption.py runs/quickstart/finetune --format laion --input 'laion400m/*.tar' --out data/captions
  python tools/caption.py SPHINX --format prepared --input data/laion --tasks short_caption detailed_caption \\
      --out data/captions --max-new-tokens 200

MODEL is what sphinx_jax.from_pretrained takes.  Answers are on disk as they come: the same command goes on where it was
stopped.  Each item carries the likelihood of its answer, by which tools/prepare_data.py can choose among them
(--format prepared --at-least likelihood=-1).

With --runner Apache Beam hands the files to workers (the shards, where prepared data is read); each machine loads the
model once.  The shards that are written are the same.
"""

import argparse
import functools
import shlex
from pathlib import Path

from sphinx_jax.command import plain_errors
from sphinx_jax.data.formats.table import FORMATS
from sphinx_jax.data.tasks import INSTRUCTIONS
from sphinx_jax.paths import matching

TASKS = [name for name, instruction in INSTRUCTIONS.items() if not instruction.fields]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint, published folder or workdir")
    parser.add_argument("--format", required=True, choices=FORMATS, metavar="NAME", help=", ".join(FORMATS))
    parser.add_argument("--input", required=True, nargs="+", metavar="GLOB", help="files, or folders of data")
    parser.add_argument(
        "--root", type=Path, metavar="FOLDER", help="where paths of pictures begin (default: by the file)"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=["short_caption"], metavar="TASK", help=", ".join(TASKS)
    )
    parser.add_argument("--domain", default="synthetic", help="of what is written (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, takes the likeliest words")
    parser.add_argument("--top-p", type=float, default=0.75, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--batch", type=int, default=16, help="answers that are made side by side (default: %(default)s)"
    )
    parser.add_argument("--quantize", choices=("int8", "nf4"))
    parser.add_argument(
        "--runner", help="Apache Beam's, whose workers see all paths, MODEL too: FnApiRunner is this machine"
    )
    parser.add_argument("--runner-options", default="", metavar="TEXT", help='of Beam: "--project=a --region=b"')
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    return parser.parse_args()


def run(given: argparse.Namespace) -> None:
    from sphinx_jax.data.prepare.pipeline import OnBeam
    from sphinx_jax.generate.caption import ByRunInference, Each, Here, caption, engine_of
    from sphinx_jax.generate.caption_piece import Captions
    from sphinx_jax.generate.load import check_holds_model
    from sphinx_jax.report.prepared_page import write_page

    inputs = matching(given.input)
    root = given.root and given.root.absolute()
    names = ("max_new_tokens", "temperature", "top_p", "seed")
    sampling = {name: getattr(given, name) for name in names}
    model, out = Path(given.model).absolute(), given.out.absolute()
    what = Captions(given.format, inputs, out, model, given.tasks, root, given.domain, sampling, given.quantize)
    load = functools.partial(engine_of, model, given.quantize, given.batch)
    each: Each
    if given.runner:
        each = ByRunInference(load, OnBeam(given.runner, shlex.split(given.runner_options)))
        check_holds_model(model)  # which the workers load
    else:
        each = Here(load(), given.quiet)
    items = caption(what, each)
    print(f"{given.out}: {len(items)} items in {len(items.manifest['shards'])} shards")
    for reason, count in items.manifest["dropped"].items():
        print(f"  {count} dropped: {reason}")
    print(write_page(given.out))


if __name__ == "__main__":
    with plain_errors():
        run(arguments())
