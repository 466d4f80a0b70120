"""The score card of a run of configs/benchmarks.py, and how another model differs from it.

As Markdown:
  python tools/score_card.py runs/benchmarks

Two models on the questions that both answered: paired difference, interval and p-value of each benchmark:
  python tools/score_card.py runs/benchmarks --compare runs/other
"""

import argparse
from pathlib import Path

from sphinx_jax.command import plain_errors
from sphinx_jax.report.card import markdown, markdown_differences
from sphinx_jax.report.card_files import differences, read_card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path, help="where the benchmarks were run")
    parser.add_argument("--compare", type=Path, help="the workdir of another model")
    given = parser.parse_args()
    print(
        markdown_differences(differences(given.workdir, given.compare))
        if given.compare
        else markdown(read_card(given.workdir)),
        end="",
    )


if __name__ == "__main__":
    with plain_errors():
        main()
