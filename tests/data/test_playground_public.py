"""The playground in the files of public benchmarks: right answers to them score all there is, wrong ones nothing."""

import json
from pathlib import Path

import pytest

from sphinx_jax.data.image import load_image
from sphinx_jax.data.playground import builder, public
from sphinx_jax.data.tasks import Box, PaddedSquare, format_answer
from sphinx_jax.evaluate.benchmarks import BENCHMARKS
from sphinx_jax.evaluate.forms.pictures import Pictures
from sphinx_jax.evaluate.predictions import score_predictions

# so few pictures may have no chart
NAMES = ("vqav2", "pope", "docvqa", "mmbench", "refcoco", "coco_caption", "coco_detection", "coco_keypoints")
MOST = {"vqav2": 100, "pope": 1, "docvqa": 1, "mmbench": 1, "coco_detection": 1, "coco_keypoints": 1}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("public")
    sources = [builder.open_playground(folder / "playground", "nano", "test", d) for d in ("real", "synthetic")]
    items = [builder.as_item(source[i]) for source in sources for i in range(len(source))]
    return folder, items, public.write(items, folder)


def right(question) -> str:
    if "person" in question.labels:  # all of them that the picture has
        held = json.loads(Path(question.labels["file"]).read_text())
        found = [row["bbox"] for row in held["annotations"] if row["image_id"] == question.key]
        frame = PaddedSquare(*question.size)
        return format_answer("detection", [frame.from_pixels(Box(x, y, x + w, y + h)) for x, y, w, h in found])
    if question.box is None:
        return question.answers[0]
    return format_answer("rec", PaddedSquare(*question.size).from_pixels(Box(*question.box)))


def score(folder, name, tmp_path, say):
    questions = BENCHMARKS[name].read(folder / name).questions
    lines = (json.dumps({"key": q.key, "prediction": say(q)}) + "\n" for q in questions)
    (tmp_path / "said.jsonl").write_text("".join(lines))
    scored = score_predictions(name, folder / name, tmp_path / "said.jsonl", "official")
    assert not scored.missing
    return scored.score.parts["val"] if name == "refcoco" else scored.score.score


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_score_all_and_wrong_ones_nothing(written, tmp_path, name):
    folder, _, counts = written
    most = score(folder, name, tmp_path, right)
    if name in MOST or name == "refcoco":
        assert most == MOST.get(name, 1)
    wrong = score(folder, name, tmp_path, lambda q: "no" if name == "pope" and q.answers == ("yes",) else "yes, or so")
    assert wrong < (5 if name == "vqav2" else 0.05) < most
    assert counts[name] > 0


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_those_of_the_questions(written, name):
    folder, items, _ = written
    questions = BENCHMARKS[name].read(folder / name).questions
    find, shown = Pictures(folder / name).find, {}
    for item in items:
        for question, answer in item.turns:
            shown.setdefault(load_image(item.image).tobytes(), []).append((question, answer))
    for question in questions[:40]:
        turns = shown[load_image(find(question.picture)).tobytes()]
        assert any(question.text in asked for asked, _ in turns), question
