"""Measures this implementation beside something else on the same machine, in turn.

A mix of two checkpoints of 0.7 GB beside a copy of the same bytes, from a cold cache:
  python tools/benchmark.py mix --folder /tmp/bench
"""

import argparse
from pathlib import Path

from sphinx_jax.checkpoint import mix_benchmark
from sphinx_jax.command import plain_errors


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    mix = kinds.add_parser("mix", help="tools/mix_weights.py beside cp")
    mix.add_argument("--folder", type=Path, required=True, help="where the checkpoints are made, and kept")
    mix.add_argument("--layers", type=int, default=10, help="69 MB each (default: %(default)s)")
    mix.add_argument("--sources", type=int, default=2, help="how many checkpoints (default: %(default)s)")
    mix.add_argument("--rounds", type=int, default=3, help="of which the best counts (default: %(default)s)")
    mix.add_argument("--method", default="linear", help="one with weights alone (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    with plain_errors():
        args = arguments()
        found = mix_benchmark.measure(
            args.folder, layers=args.layers, sources=args.sources, rounds=args.rounds, method=args.method
        )
        print("\n".join(found.lines()))
