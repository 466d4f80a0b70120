"""Whether pictures of a benchmark are in a training list: the same pixels, the same look, or the same number in COCO.

  python tools/check_contamination.py refcoco benchmarks/refcoco data/finetune.yaml

Prints how many pictures of the benchmark are in the list, and the pairs; --json prints them as JSON.
"""

import argparse
import collections
import dataclasses
import json
import sys
from pathlib import Path

from sphinx_jax.command import plain_errors
from sphinx_jax.data.formats.conversations import read_meta
from sphinx_jax.evaluate import contamination
from sphinx_jax.evaluate.benchmarks import BENCHMARKS
from sphinx_jax.evaluate.forms.pictures import named_pictures
from sphinx_jax.progress import progress

SHOWN = 20  # pairs that are printed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=BENCHMARKS, metavar="benchmark", help=", ".join(BENCHMARKS))
    parser.add_argument("path", type=Path, help="a file or folder of the benchmark, in any of its forms")
    parser.add_argument("list", type=Path, help="a training list: YAML with META, as config.data.meta takes it")
    parser.add_argument("--bits", type=int, default=contamination.ALIKE, help="of 64 that may differ; default: 4")
    parser.add_argument("--json", action="store_true", help="print all pairs as JSON")
    given = parser.parse_args()
    asked, lost = named_pictures(BENCHMARKS[given.benchmark].read(given.path).questions, given.path)
    items = [item for entry in read_meta(given.list) for item in entry.items if item.image is not None]
    listed = {str(item.image): item.image for item in items}
    known = []
    for what, pictures, gone in ((given.benchmark, asked, [*lost]), (given.list.name, listed, [])):
        with progress(total=len(pictures), desc=what, unit=" pictures") as bar:
            found, bad = contamination.look_at(pictures.items(), bar, gone)
        known.append(found)
        lost = lost | bad
    pairs = list(contamination.pairs(*known, given.bits))
    for name, why in lost.items():
        print(f"not looked at: {name}: {why}", file=sys.stderr)
    if given.json:
        print(json.dumps([dataclasses.asdict(pair) for pair in pairs]))
        return
    hit = len({pair.benchmark for pair in pairs})
    print(
        f"{hit} of {len(known[0].names)} pictures of {given.benchmark} are among the {len(known[1].names)} of the list"
    )
    for how, count in collections.Counter(pair.how for pair in pairs).items():
        print(f"  by {how}: {count} pairs")
    for pair in pairs[:SHOWN]:
        print(f"  {pair.benchmark} = {pair.trained} ({pair.how}{f', {pair.bits} bits apart' if pair.bits else ''})")
    if len(pairs) > SHOWN:
        print(f"  and {len(pairs) - SHOWN} more; --json prints all")


if __name__ == "__main__":
    with plain_errors():
        main()
