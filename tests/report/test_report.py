import html.parser
import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops

from sphinx_jax.data.tasks import (
    Box,
    LayoutRegion,
    PaddedSquare,
    Point,
    Pose,
    TextRegion,
    format_answer,
    format_box,
    format_grounded,
    ground,
)
from sphinx_jax.evaluate.card import Line
from sphinx_jax.report.card import Card
from sphinx_jax.report.drawing import EXPECTED, PREDICTED, annotate, grid, readable, verdict, wrap
from sphinx_jax.report.page import Beside, ReportError, Sample, duration, format_table, markdown_table, write_report
from sphinx_jax.report.plots import beta_figure, curves, loss_figure, score_figure, smooth
from sphinx_jax.report.score_table import NOT_BETTER, Cell, score_rows

BOX = "[0.12, 0.30, 0.45, 0.67]"


def entry(value, majority, blind, count=100, metric=None, **domains):
    scored = {"value": value, "baseline_majority": majority, "baseline_blind": blind, "count": count}
    return ({"metric": metric} if metric else {}) | scored | domains


def made_scores():
    return {
        "tasks": {
            "vqa": entry(
                0.712,
                0.331,
                0.352,
                900,
                "exact_match",
                real=entry(0.655, 0.3, 0.31),
                synthetic=entry(0.769, 0.36, 0.39),
            ),
            "rec": entry(
                0.523,
                0.111,
                0.092,
                600,
                "precision_at_0.5",
                real=entry(0.101, 0.12, 0.14),
                synthetic=entry(0.6, 0.1, 0.1),
            ),
            "chart": entry(0.345, 0.07, 0.08, 50, "cell_accuracy", real=None, synthetic=entry(0.345, 0.07, 0.08, 50)),
        },
        "vqa_kinds": {"colour": entry(0.851, 0.4, 0.3), "read": entry(0.2, 0.3, 0.1)},
        "beta": {
            "values": [0, 0.5, 1],
            "metric": "caption_loss",
            "real": [3.0, 1.5, 1.0],
            "synthetic": [1.0, 1.4, 2.9],
            "chosen": 0.5,
            "test": {
                "chosen": {"real": 1.512, "synthetic": 1.413, "mean": 1.463},
                "0": {"real": 3.0, "synthetic": 1.0, "mean": 2.0},
                "1": {"real": 1.0, "synthetic": 2.9, "mean": 1.95},
            },
        },
        "seconds": 12.0,
    }


def made_history(keys=("loss", "loss/real", "loss/synthetic"), length=60):
    rng = np.random.default_rng(0)
    return [
        {"step": 10 * step, "seconds": 0.5 * step, "tokens_per_second": 1234.0}
        | {key: 4 * math.exp(-step / 15) + 1 + 0.1 * rng.normal() for key in keys}
        for step in range(1, length + 1)
    ]


def made_picture(width=128, height=96):
    return Image.new("RGB", (width, height), "#777777")


def made_samples():
    boxes = [Box(0.1, 0.2, 0.4, 0.5), Box(0.5, 0.5, 0.9, 0.8)]
    pose = Pose(tuple(None if i == 3 else Point(0.3 + 0.02 * i, 0.25 + 0.03 * i) for i in range(17)))
    caption = f"A {ground('red circle', boxes[:1])}"
    answers = {
        "vqa": ("cat", "dog", 0.0),
        "rec": (BOX, "no box here [0.5, ", 0.0),
        "detection": (format_answer("detection", boxes), format_answer("detection", boxes[:1]), 2 / 3),
        "grounded_caption": (caption, caption, 1.0),
        "text_spotting": (format_answer("text_spotting", [TextRegion("EXIT", boxes[0])]), "<p>", 0.0),
        "layout": (format_answer("layout", [LayoutRegion("title", boxes[0])]), "", 0.0),
        "pose": (format_answer("pose", pose), "[0.1;0.2", 0.0),
        "chart": ("a | 1\nb | 2", "a | 1\nb | 3", 0.5),
        "marks": ("unknown tasks are text", "[0.50, 0.24]", math.nan),
    }
    return [
        Sample(made_picture(), task, ("real", "synthetic")[i % 2], f"About {task}: {BOX}?", *texts)
        for i, (task, texts) in enumerate(answers.items())
    ]


def write(folder, **changes):
    made = {
        "title": "A run",
        "intro": ["What it is.", "How it was made.", "config:\n  width = 64"],
        "histories": {"align": made_history(), "finetune": made_history(("loss",), 5)},
        "scores": made_scores(),
        "samples": made_samples(),
        "timings": {"align": 61.0, "finetune": 5.25},
    }
    path = write_report(folder, **made | changes)
    return path.read_text()


class Reader(html.parser.HTMLParser):
    """Checks that tags nest, and keeps the text that a reader sees."""

    VOID = {"meta", "img", "source", "br"}

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.tags = [], [], []
        self.feed(page)
        assert not self.open
        self.text = " ".join(" ".join(self.seen).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.seen.append(data)


def is_drawn(data):
    """Whether PNG bytes decode to a picture that is more than one colour."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return image.width > 300 and any(low != high for low, high in image.getextrema())


def test_report_has_the_numbers_and_stands_alone(tmp_path):
    page = write(tmp_path / "made" / "here")
    text = Reader(page).text
    for number in ("0.712", "0.331", "0.352", "0.523", "0.655", "0.769", "0.345", "0.851", "1.463", "1.950"):
        assert number in text
    for told in (
        "A run",
        "What it is.",
        "How it was made.",
        "width = 64",
        "1 min 01 s",
        "1,234",
        "[0.50, 0.24]",
    ):
        assert told in text
    # the headline numbers come first
    assert text.index("0.712") < text.index("The mix of weights") < text.index("Held-out pictures")
    assert not re.findall(r'(?:src|srcset|href)="(?!data:image/)', page)
    names = {path.name for path in (tmp_path / "made" / "here").iterdir()}
    assert names == {"report.html", "loss.png", "beta.png", "scores.png", "grid.png"}
    for name in names - {"report.html"}:
        assert is_drawn((tmp_path / "made" / "here" / name).read_bytes())


def test_a_card_of_benchmarks_is_a_section_with_what_it_has(tmp_path):
    lines = [
        Line("vqav2", "", "reference", "accuracy", 60, 4, 64.1, 52.2, 75.9),
        Line("coco_detection", "", "official", "average precision", 32, 0, 82.9),
    ]
    page = Reader(write(tmp_path, beside=Beside(card=Card(lines, "benchmarks/card.html"))))
    assert "score 95 % vqav2 60 (4 missing) reference 64.1 52.2 to 75.9 coco detection 32 official 82.9" in page.text
    assert "published" not in page.text.partition("Score card")[2].partition("Losses")[0]
    published = [replace(lines[0], published=80.2)]
    text = Reader(write(tmp_path, beside=Beside(card=Card(published, "benchmarks/card.html")))).text
    assert "published difference vqav2 60 (4 missing) reference 64.1 52.2 to 75.9 80.2 -16.1 ▼" in text
    for none in (None, Card([], "benchmarks/card.html")):
        assert "Score card" not in write(tmp_path, beside=Beside(card=none))


def test_report_escapes_everything(tmp_path):
    evil = "<script>alert('x')</script>&amp;\"q\""
    scores = {"tasks": {evil: entry(0.5, 0.1, 0.1, 3, evil)}, "vqa_kinds": None}
    scores["beta"] = made_scores()["beta"] | {"metric": evil}
    page = write(
        tmp_path,
        title=evil,
        intro=[evil, evil, evil + "\n" + evil],
        scores=scores,
        histories={evil: made_history()},
        timings={evil: 1.0},
        samples=[Sample(made_picture(), evil, evil, evil, evil, evil, 0.5)],
    )
    reader = Reader(page)
    assert "script" not in reader.tags
    assert reader.text.count(evil) >= 10
    # a quote cannot end an attribute
    assert 'title="&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&amp;amp;&quot;q&quot;"' in page


def test_scores_below_a_baseline_are_marked(tmp_path):
    page = write(tmp_path)
    marked = re.findall(r'<td class="group score bad">([0-9.]+)', page)
    assert marked == ["0.200", "0.101"]
    good = made_scores()
    good["tasks"].pop("rec")
    good["vqa_kinds"].pop("read")
    assert not re.findall(r'score bad">', write(tmp_path, scores=good))
    assert NOT_BETTER not in format_table(good) + markdown_table(good)


@given(
    value=st.floats(-5, 5),
    majority=st.none() | st.floats(-5, 5),
    blind=st.none() | st.floats(-5, 5),
)
def test_losses_mirror_scores(value, majority, blind):
    def negative(number):
        return None if number is None else -number

    as_score = Cell(value, majority, blind, 1)
    as_loss = Cell(-value, negative(majority), negative(blind), 1, lower_is_better=True)
    assert as_loss.beats_baseline == as_score.beats_baseline
    assert as_score.beats_baseline == all(value > known for known in (majority, blind) if known is not None)


def test_absent_data_leave_no_section_and_no_stale_picture(tmp_path):
    write(tmp_path)
    scores = {"tasks": made_scores()["tasks"], "beta": None}
    page = write(tmp_path, scores=scores, samples=[], histories={"align": []}, intro=[], timings={})
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "scores.png"}
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == ["Scores against baselines"]
    assert Reader(write(tmp_path, scores={"tasks": {}}, samples=[], histories={})).text.startswith("A run")


@pytest.mark.parametrize(
    "scores, named", [({}, "'tasks'"), ({"tasks": {"rec": {"metric": "m"}}}, "'rec' have no 'value'")]
)
def test_unreadable_scores_name_the_fix_and_keep_the_last_report(tmp_path, scores, named):
    before = write(tmp_path)
    with pytest.raises(ReportError, match=named + ".*evaluate stage") as caught:
        write(tmp_path, scores=scores, title="another")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "report.html").read_text() == before


def test_scores_that_json_kept_as_nan_or_null_are_dashes(tmp_path):
    scores = json.loads('{"tasks": {"vqa": {"metric": "exact_match", "value": NaN, "baseline_majority": null}}}')
    assert re.search(r"vqa +exact_match +– +– +– +–", format_table(scores))
    assert "nan" not in Reader(write(tmp_path, scores=scores)).text.lower()


def test_table_is_aligned_and_fits_the_width():
    wide, narrow = format_table(made_scores()), format_table(made_scores(), width=80)
    lines = wide.splitlines()
    assert lines[1].split() == ["task", "metric", "n"] + ["score", "maj.", "blind"] * 3
    vqa = next(line for line in lines if line.startswith("vqa"))
    cells = "exact_match 900 0.712 0.331 0.352 0.655 0.300 0.310 0.769 0.360 0.390"
    assert vqa.split()[1:] == cells.split()
    body = lines[2 : lines.index("")]
    # a score stands in the columns of its heading in every line
    for match in re.finditer("score|blind", lines[1]):
        for line in body:
            assert re.fullmatch(r"[0-9.]{5}| {4}–", line[match.start() : match.end()])
    assert max(map(len, narrow.splitlines())) <= 80
    assert {"0.655", "0.769", "0.101"} <= set(re.findall(r"[0-9]\.[0-9]{3}", narrow))
    assert "  real" in narrow and "  colour" in narrow


@pytest.mark.parametrize("width", [80, 120])
def test_colour_changes_nothing_but_colour(width):
    plain, coloured = (format_table(made_scores(), colour, width) for colour in (False, True))
    stripped = "\n".join(line.rstrip() for line in re.sub(r"\x1b\[[0-9]*m", "", coloured).split("\n"))
    assert stripped == plain
    assert f"\x1b[31m0.101{NOT_BETTER}\x1b[0m" in coloured
    assert "\x1b[31m0.712" not in coloured


def test_markdown_table_has_the_same_columns_in_every_line():
    scores = made_scores()
    scores["tasks"]["odd|name\n"] = entry(0.5, 0.1, 0.1, 3, "m")
    scores_table = markdown_table(scores).split("\n\n")[0]
    rows = scores_table.splitlines()
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7}
    assert "| vqa | exact_match | 900 | **0.712** / 0.331 / 0.352 |" in scores_table
    assert f"**0.101** {NOT_BETTER} / 0.120 / 0.140" in scores_table
    assert "| chosen mix | 0.50 | 1.512 | 1.413 | **1.463** |" in markdown_table(scores)


def test_figures_of_nothing_are_none():
    assert loss_figure({}) is None
    assert loss_figure({"align": [{"step": 1}, {"step": 2, "loss": math.nan}]}) is None
    assert beta_figure(None) is None
    assert beta_figure({}) is None
    assert score_figure([]) is None
    losses = {"tasks": {"caption": entry(2.0, 3.0, 3.0, 5, "caption_loss")}}
    assert score_figure(score_rows(losses)) is None


@pytest.mark.parametrize("dark", [False, True])
def test_figures_are_drawn_from_little(dark):
    assert is_drawn(loss_figure({"align": [{"step": 1, "loss": 2.0}]}, dark))
    rows = [{"step": i, "loss/real": math.inf if i % 3 else 2.0} for i in range(50)]
    assert is_drawn(loss_figure({"a": rows, "b": made_history(), "c": made_history(("loss/synthetic",))}, dark))
    assert is_drawn(beta_figure({"values": [1, 0], "real": [1.0, None], "synthetic": [2.0]}, dark))
    assert is_drawn(score_figure(score_rows({"tasks": {"rec": entry(0.2, None, None, None, "iou")}}), dark))


def test_curves_are_those_of_the_domains_if_logged():
    assert list(curves(made_history())) == ["real", "synthetic"]
    assert list(curves(made_history(("loss", "loss/real")))) == ["real"]
    assert list(curves(made_history(("loss",)))) == ["all"]
    steps, losses = curves([{"step": 1, "loss": 3.0}, {"step": 2}, {"step": 4, "loss": math.inf}])["all"]
    np.testing.assert_array_equal(steps, [1, 4])
    np.testing.assert_array_equal(losses, [3.0, np.nan])


@given(st.lists(st.floats(0.1, 9) | st.just(math.nan), min_size=1, max_size=200))
def test_smoothing_stays_within_its_window(values):
    values = np.array(values)
    smoothed = smooth(values)
    half = max(1, len(values) // 50)
    for i, value in enumerate(smoothed):
        near = values[max(0, i - half) : i + half + 1]
        near = near[np.isfinite(near)]
        if len(values) < 20:
            np.testing.assert_equal(value, values[i])
        elif near.size:
            assert value == pytest.approx(near.mean())
        else:
            assert math.isnan(value)


def coloured(image, colour):
    """The bounds (left, top, right, bottom) of pixels close to a colour; None if there are none."""
    flat = Image.new("RGB", image.size, colour)
    distance = np.asarray(ImageChops.difference(image, flat)).astype(int).sum(axis=2)
    rows, columns = np.nonzero(distance < 60)
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None


@given(
    size=st.tuples(st.integers(60, 300), st.integers(60, 300)),
    corner=st.tuples(st.floats(0.1, 0.4), st.floats(0.1, 0.4)),
    extent=st.tuples(st.floats(0.3, 0.5), st.floats(0.3, 0.5)),
    which=st.sampled_from(["answer", "prediction"]),
)
def test_boxes_are_drawn_where_they_are(size, corner, extent, which):
    """A box in pixels, written as text of the padded square, is drawn around the same part of the picture."""
    width, height = size
    box = Box(
        corner[0] * width,
        corner[1] * height,
        (corner[0] + extent[0]) * width,
        (corner[1] + extent[1]) * height,
    )
    text = format_box(PaddedSquare(width, height).from_pixels(box))
    texts = {"answer": "", "prediction": ""} | {which: text}
    sample = Sample(made_picture(width, height), "rec", "real", "Where?", **texts, score=0.0)
    drawn = annotate(sample, side=300)
    assert max(drawn.size) == 300
    found = coloured(drawn, {"answer": EXPECTED, "prediction": PREDICTED}[which])
    scale = 300 / max(size)
    # two decimals are 1.5 pixels of 300, the dashes and the thickness of a line the rest
    expected = np.array([box.x1, box.y1, box.x2, box.y2]) * scale
    np.testing.assert_allclose(found, expected, atol=8 if which == "answer" else 4)


@pytest.mark.parametrize("task", [sample.task for sample in made_samples()])
def test_every_task_draws_its_places(task):
    sample = next(sample for sample in made_samples() if sample.task == task)
    seen = annotate(sample)
    for colour, text in ((EXPECTED, sample.answer), (PREDICTED, sample.prediction)):
        has_place = bool(re.search(r"\[[0-9.,; -]+\]", text))
        assert (coloured(seen, colour) is not None) == has_place


@given(text=st.text(max_size=80), task=st.sampled_from(["rec", "detection", "pose", "chart", "vqa", "layout"]))
def test_any_prediction_is_drawn(text, task):
    assert annotate(Sample(made_picture(20, 90), task, "real", text, text, text, 0.0), side=60).size == (
        13,
        60,
    )


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_pictures_of_any_mode_are_drawn(mode):
    sample = Sample(made_picture(300, 1).convert(mode), "rec", "real", "?", BOX, BOX, 1.0)
    assert grid([sample]).mode == "RGB"


def test_grid_holds_every_sample_in_order():
    colours = ["#FF0000", "#00FF00", "#0000FF", "#FFFF00", "#00FFFF"]
    samples = [
        Sample(Image.new("RGB", (64, 64), colour), "vqa", "real", "q " * 200, "a", "b", 0.0) for colour in colours
    ]
    sheet = grid(samples, columns=3)
    places = [coloured(sheet, colour) for colour in colours]
    assert [(top, left) for left, top, *_ in places] == sorted((top, left) for left, top, *_ in places)
    assert len({top for _, top, *_ in places}) == 2


def test_verdicts_and_descriptions():
    assert [verdict(score) for score in (1.0, 0.7, 0.5, 0.49, 0.0, math.nan)] == list("✓≈≈✗✗✗")
    pose = next(sample for sample in made_samples() if sample.task == "pose")
    assert readable("pose", pose.answer).startswith("16 of 17 keypoints")
    assert readable("pose", " not a pose ") == "not a pose"
    assert readable("vqa", " cat\n") == "cat"


@given(text=st.text(alphabet="abW i\n", max_size=120), width=st.integers(20, 200), most=st.integers(1, 6))
def test_wrapped_text_fits_and_keeps_its_letters(text, width, most):
    from PIL import ImageFont

    font = ImageFont.load_default(14)
    lines = wrap(text, font, width, most)
    assert 1 <= len(lines) <= most
    assert all(font.getlength(line) <= width for line in lines)
    whole = "".join("".join(wrap(text, font, width, 10_000)).split())
    assert whole == "".join(text.split())
    kept = "".join("".join(lines).split())
    assert kept == whole or (kept.endswith("…") and whole.startswith(kept[:-1]))


def test_durations():
    assert [duration(s) for s in (0.04, 59.9, 60, 185.4, 3599.7, 7800)] == [
        *("0.0 s", "59.9 s", "1 min 00 s", "3 min 05 s"),
        *("1 h 00 min", "2 h 10 min"),
    ]


def test_formatting_a_grounded_list_draws_its_phrases():
    from sphinx_jax.data.tasks import Grounded

    text = format_grounded([Grounded("red circle", (Box(0.2, 0.3, 0.6, 0.7),))])
    sample = Sample(made_picture(), "grounded_caption", "real", "?", "", text, 0.0)
    unlabelled = Sample(made_picture(), "rec", "real", "?", "", "[0.20, 0.30, 0.60, 0.70]", 0.0)
    # the label stands above the box
    assert coloured(annotate(sample), PREDICTED)[1] < coloured(annotate(unlabelled), PREDICTED)[1] - 5
