"""The page with answers to benchmarks."""

import base64
import io
import re

from PIL import Image, ImageColor

from sphinx_jax.evaluate.card import item
from sphinx_jax.evaluate.question import Question
from sphinx_jax.report.benchmark_page import SAID, Shown, write_page


def test_answers_that_find_people_are_shown_with_their_boxes_though_none_counts_for_itself():
    file = io.BytesIO()
    Image.new("RGB", (200, 200), "white").save(file, "PNG")
    rows = [item(Question(7, "", "a.png"), "[0.10,0.10,0.40,0.40;0.60,0.60,0.90,0.90]", None)]
    page = write_page("card", [], [Shown("coco_detection", rows, lambda picture: file.getvalue())])
    (shown,) = re.findall('data:image/jpeg;base64,([^"]+)', page)
    drawn = Image.open(io.BytesIO(base64.b64decode(shown))).convert("RGB")
    colour = ImageColor.getrgb(SAID)
    for at in (25, 95, 145, 215):  # in the lines, which are three pixels wide, of a picture of 240
        near = drawn.getpixel((at, at))
        assert all(abs(a - b) < 60 for a, b in zip(near, colour, strict=True)), at
    assert "<p>right:" not in page
