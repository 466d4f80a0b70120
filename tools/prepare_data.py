"""Prepares data that people have on disk for training: looks at every item, chooses, and copies into shards.

  python tools/prepare_data.py --format laion --input 'laion400m/*.tar' --out data/laion --domain real \\
      --basic --language en --at-least similarity=0.3 --one-a-picture
  python tools/prepare_data.py --format coco-instances --input annotations/instances_train2017.json --root coco \\
      --out data/coco --benchmarks benchmarks

OUT gets shards, manifest.json (counts, what was dropped and why, hashes) and report.html, which shows it.  The same
command goes on where it was stopped.  With --tokenizer the tokens of each item are recorded, now or later, and packing
need not count them.  `sphinx_jax.data.open_prepared(OUT)` is a sequence of the items.

Formats:
{formats}
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

from sphinx_jax.command import plain_errors
from sphinx_jax.config import ConfigError
from sphinx_jax.data.formats.table import FORMATS
from sphinx_jax.data.prepare.choose import Filters, Known
from sphinx_jax.data.prepare.pipeline import Each, InProcesses, OnBeam, Order, prepare
from sphinx_jax.data.prepare.told import TOLD
from sphinx_jax.data.seen import coco_number
from sphinx_jax.paths import matching
from sphinx_jax.progress import progress


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.replace("{formats}", "\n".join(f"  {n:<18}{f.title}" for n, f in FORMATS.items())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--format", required=True, metavar="NAME", help="of those below")
    parser.add_argument(
        "--input", required=True, nargs="+", metavar="GLOB", help="files, or folders that are a data set"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    parser.add_argument(
        "--root", type=Path, metavar="FOLDER", help="where paths of pictures begin; default: by each file"
    )
    parser.add_argument("--domain", default="", help="of the items, e.g. real or synthetic")
    parser.add_argument("--basic", action="store_true", help="DataComp's basic filter, but for its language")
    parser.add_argument(
        "--language", nargs="+", default=[], metavar="en", help="keep texts in these languages, found out by py3langid"
    )
    for name, what in (("at-least", "drop items whose number NAME is below"), ("at-most", "… above")):
        parser.add_argument(f"--{name}", nargs="+", action="extend", default=[], metavar="NAME=NUMBER", help=what)
    for name, what in (
        ("only", "keep items whose NAME is one of these, such as LANGUAGE=en"),
        ("without", "drop them"),
    ):
        parser.add_argument(f"--{name}", nargs="+", action="extend", default=[], metavar="NAME=WORD", help=what)
    parser.add_argument("--keep-same", action="store_true", help="keep items that are the same, picture and text")
    parser.add_argument("--one-a-picture", action="store_true", help="keep the first of all items about a picture")
    parser.add_argument("--drop-alike", action="store_true", help="drop pictures that look like another")
    parser.add_argument(
        "--benchmarks", type=Path, metavar="FOLDER", help="drop pictures of the benchmarks there (docs/benchmarks.md)"
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FOLDER",
        help="or a checkpoint's, a stage's: count the tokens of each item, for packed rows",
    )
    parser.add_argument("--workers", type=int, default=0, help="processes on this machine; default: one a core")
    parser.add_argument("--runner", help="Apache Beam's, whose workers see all paths: FnApiRunner is this machine")
    parser.add_argument("--runner-options", default="", metavar="TEXT", help='of Beam: "--project=a --region=b"')
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    return parser.parse_args()


def run(given: argparse.Namespace) -> None:
    from sphinx_jax.report.prepared_page import write_page

    filters = Filters(
        basic=given.basic,
        at_least=bounds(given.at_least),
        at_most=bounds(given.at_most),
        only=words(given.only),
        without=words(given.without),
        language=tuple(given.language),
        same=not given.keep_same,
        pictures=given.one_a_picture,
        alike=given.drop_alike,
    )
    inputs = matching(given.input)
    root, benchmarks = given.root and given.root.absolute(), given.benchmarks and given.benchmarks.absolute()
    tokenizer = given.tokenizer and tokenizer_in(given.tokenizer.absolute())
    order = Order(given.format, inputs, given.out.absolute(), root, given.domain, filters, benchmarks, tokenizer)
    each: Each = InProcesses(given.workers, given.quiet)
    if given.runner:
        each = OnBeam(given.runner, shlex.split(given.runner_options))
    items = prepare(order, lambda: known(benchmarks), each)
    total = len(items) + sum(items.manifest["dropped"].values())
    print(f"{given.out}: {len(items)} of {total} items in {len(items.manifest['shards'])} shards")
    some = json.loads((given.out / TOLD).read_text())["samples"]
    for reason, count in items.manifest["dropped"].items():
        name = next((one["name"] for one in some.get(reason, ()) if one.get("name")), "")
        print(f"  {count} dropped: {reason}" + (f", such as {name}" if name else ""))
    for digest, tokens in items.manifest.get("tokens", {}).items():
        print(f"  {tokens:,} tokens of tokenizer {digest}")
    print(write_page(given.out))


def bounds(given: list[str]) -> dict[str, float]:
    found = {}
    for text in given:
        name, equals, value = text.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise ConfigError(f"{text} is not NAME=NUMBER")
    return found


def words(given: list[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for text in given:
        name, _, word = text.rpartition("=")
        if not name or not word:
            raise ConfigError(f"{text} is not NAME=WORD")
        found[name] = (*found.get(name, ()), word)
    return found


def tokenizer_in(folder: Path) -> Path:
    """A tokenizer's folder: of a stage, its chosen checkpoint."""
    from sphinx_jax.checkpoint.store import chosen_in

    return chosen_in(folder)


def known(folder: Path | None) -> Known:
    """The pictures of the benchmarks in a folder."""
    if folder is None:
        return Known()
    from sphinx_jax.evaluate.benchmarks import BENCHMARKS
    from sphinx_jax.evaluate.contamination import look_at
    from sphinx_jax.evaluate.forms.pictures import named_pictures

    pictures, lost = {}, {}
    there = [name for name in BENCHMARKS if (folder / name).is_dir()]
    if not there:
        raise ConfigError(f"--benchmarks: {folder} has no folder named as a benchmark is: {', '.join(BENCHMARKS)}")
    for name in there:
        found, gone = named_pictures(BENCHMARKS[name].read(folder / name).questions, folder / name)
        pictures |= {f"{name} {key}": picture for key, picture in found.items()}
        lost |= gone
    with progress(total=len(pictures), desc="benchmarks", unit=" pictures") as bar:
        seen, bad = look_at(pictures.items(), bar)
    for name, why in (lost | bad).items():
        print(f"not looked at: {name}: {why}", file=sys.stderr)
    numbers = {number for name in (*pictures, *lost) if (number := coco_number(name)) is not None}
    return Known({bytes.fromhex(content)[:8] for content in seen.contents}, seen.looks, numbers)


if __name__ == "__main__":
    with plain_errors():
        run(arguments())
