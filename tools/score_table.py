"""The scores of a run as Markdown, as README.md and docs/playground.md have them.

python tools/score_table.py runs/quickstart
"""

import argparse
import json
from pathlib import Path

from sphinx_jax.command import plain_errors
from sphinx_jax.config import ConfigError
from sphinx_jax.report.score_table import markdown_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path, help="where a recipe with a show stage was run")
    file = parser.parse_args().workdir / "scores.json"
    if not file.is_file():
        raise ConfigError(f"there is no {file}; run the recipe's show stage first")
    print(markdown_table(json.loads(file.read_text())))


if __name__ == "__main__":
    with plain_errors():
        main()
