"""Writes a contact sheet of playground pictures with some of their questions.

python tools/contact_sheet.py sheet.png --domain real --split train --count 24
"""

import argparse
import io
import itertools
import textwrap

from PIL import Image, ImageDraw

from sphinx_jax.command import plain_errors
from sphinx_jax.data.playground import Example, make_picture
from sphinx_jax.data.playground.photos import SPLITS
from sphinx_jax.data.playground.pictures import SCENES
from sphinx_jax.data.playground.things import PLAIN_FACE, font
from sphinx_jax.data.tasks import DOMAINS

CELL, TEXT_HEIGHT, COLUMNS, LINES = 200, 150, 6, 12


def cell(example: Example) -> Image.Image:
    """A picture above the first lines of its turns."""
    tile = Image.new("RGB", (CELL, CELL + TEXT_HEIGHT), "white")
    picture = Image.open(io.BytesIO(example.image))
    tile.paste(picture, ((CELL - picture.width) // 2, (CELL - picture.height) // 2))
    lines = [f"{example.id} ({example.scene})"]
    for turn in example.turns:
        question = turn.question.split("\n")[0]
        lines += textwrap.wrap(f"{turn.kind}: {question} > {turn.answer}", 42)
    draw = ImageDraw.Draw(tile)
    draw.multiline_text((2, CELL + 2), "\n".join(lines[:LINES]), fill="black", font=font(PLAIN_FACE, 9), spacing=2)
    return tile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="picture to write; its ending says the form")
    parser.add_argument("--domain", default="real", choices=DOMAINS, help="default: %(default)s")
    parser.add_argument("--split", default="train", choices=SPLITS, help="default: %(default)s")
    parser.add_argument("--count", type=int, default=24, help="pictures to draw (default: %(default)s)")
    parser.add_argument("--start", type=int, default=0, help="number of the first (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the playground (default: %(default)s)")
    parser.add_argument("--scene", choices=[kind.name for kind in SCENES], help="pictures of this kind alone")
    options = parser.parse_args()
    tiles = []
    for index in itertools.count(options.start):
        example = make_picture(options.seed, options.split, options.domain, index)
        if options.scene in (None, example.scene):
            tiles.append(cell(example))
        if len(tiles) == options.count:
            break
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL, rows * (CELL + TEXT_HEIGHT)), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % COLUMNS * CELL, number // COLUMNS * (CELL + TEXT_HEIGHT)))
    sheet.save(options.output)


if __name__ == "__main__":
    with plain_errors():
        main()
