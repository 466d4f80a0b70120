"""Writes held-out questions of the playground in the files of public benchmarks, for configs/benchmarks.py; or its
pictures and texts as the web's are kept, for tools/prepare_data.py.

  python tools/export_playground.py benchmarks --data runs/quickstart/data
  python -m sphinx_jax.main --config configs/benchmarks.py:runs/quickstart/finetune --config.data=benchmarks \\
      --workdir runs/benchmarks

  python tools/export_playground.py web --web --split train
  python tools/prepare_data.py --format laion --input 'web/real/*.tar' --out data/real
  python tools/prepare_data.py --format laion-coco --input 'web/synthetic/*.tar' --out data/synthetic
  python tools/prepare_data.py --format documents --input 'web/texts/*.parquet' --out data/texts
"""

import argparse
from pathlib import Path

from sphinx_jax.command import plain_errors
from sphinx_jax.data.playground import builder, public, shards
from sphinx_jax.data.playground.text import stream
from sphinx_jax.data.sources import PLAYGROUNDS, SPLITS
from sphinx_jax.data.tasks import DOMAINS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder, which gets one for each benchmark")
    parser.add_argument("--size", choices=PLAYGROUNDS, default="quick", help="of the playground; default: quick")
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: test")
    parser.add_argument("--data", type=Path, help="where the playground lies or is made; default: OUT/playground")
    parser.add_argument("--web", action="store_true", help="tar shards of both domains and parquet of texts")
    given = parser.parse_args()
    folder = given.data or given.out / "playground"
    sources = [builder.open_playground(folder, given.size, given.split, domain) for domain in DOMAINS]
    items = (builder.as_item(source[i]) for source in sources for i in range(len(source)))
    if given.web:
        texts = (text for text in stream(0, given.split) if isinstance(text, str))
        for name, count in shards.write(items, texts, given.out).items():
            print(f"{given.out / name}: {count} {'documents' if name == 'texts' else 'pairs'}")
        return
    for name, count in public.write(items, given.out).items():
        print(f"{given.out / name}: {count} questions")


if __name__ == "__main__":
    with plain_errors():
        main()
