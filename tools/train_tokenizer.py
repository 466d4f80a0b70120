"""Trains the playground's tokenizer on its training split, and writes OUT/tokenizer.model.

python tools/train_tokenizer.py tokenizer
"""

import argparse
import itertools
from pathlib import Path

from sphinx_jax.command import plain_errors
from sphinx_jax.data.playground import prose, text
from sphinx_jax.data.playground.pictures import make_picture
from sphinx_jax.data.playground.vocabulary import VOCABULARY, train_tokenizer
from sphinx_jax.data.tasks import DOMAINS


def texts(pictures: int):
    for domain, index in itertools.product(DOMAINS, range(pictures)):
        for turn in make_picture(0, "train", domain, index).turns:
            yield turn.question
            yield turn.answer
    for entry in text.stream(0, "train"):
        yield from (entry,) if isinstance(entry, str) else itertools.chain.from_iterable(entry.turns)
    yield from prose.prose("train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for tokenizer.model")
    parser.add_argument("--size", type=int, default=VOCABULARY, help="pieces (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=3000, help="pictures per domain to read (default: %(default)s)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "tokenizer.model").write_bytes(train_tokenizer(texts(arguments.pictures), arguments.size))


if __name__ == "__main__":
    with plain_errors():
        main()
