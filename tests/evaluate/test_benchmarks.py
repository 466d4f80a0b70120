"""Scores of public benchmarks, in every form of their files, against those that independent code gave.

`fixtures/benchmarks` has small made-up data sets in the public formats; its README says how they were made.
"""

import json
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sphinx_jax.config import ConfigError
from sphinx_jax.data.formats.files import BadData
from sphinx_jax.evaluate.benchmarks import BENCHMARKS, BadBenchmark
from sphinx_jax.evaluate.predictions import PROTOCOLS, score_predictions
from sphinx_jax.evaluate.rules import captions, vqa_accuracy
from sphinx_jax.evaluate.rules.words import tokens
from sphinx_jax.recipe.stages.benchmarks import limited

FIXTURES = Path(__file__).parents[1] / "fixtures" / "benchmarks"
# what holds all questions of a benchmark; with a star: not all that scores are split by
FORMS = {
    "vqav2": ("vqav2", "hf", "annotations", "annotations/vqav2_val.json"),
    "okvqa": ("okvqa", "hf", "annotations"),
    "vizwiz": ("vizwiz", "vizwiz/val.json", "hf", "annotations", "tsv*"),
    "textvqa": ("textvqa", "annotations", "textvqa/TextVQA_0.5.1_val.json*", "hf*", "tsv*"),
    "gqa": ("GQA", "hf", "annotations*", "tsv*"),
    "ocrvqa": ("ocrvqa", "hf", "annotations", "tsv"),
    "scienceqa": ("scienceqa", "hf", "annotations", "tsv*"),
    "pope": ("pope", "hf", "hf/Full", "tsv"),
    "mme": ("hf", "annotations", "tsv"),
    "mmbench": ("hf", "tsv", "tsv/MMBench_DEV_EN_legacy.tsv"),
    "seed": ("SEED_Bench", "hf", "tsv", "annotations*"),
    "ai2d": ("ai2diagram", "hf", "annotations", "tsv"),
    "chartqa": ("chartqa", "hf", "annotations", "tsv"),
    "docvqa": ("docvqa", "hf", "annotations", "tsv"),
    "infovqa": ("infographicsvqa", "annotations", "hf*", "tsv*"),
    "mmmu": ("hf/lmms-lab", "hf", "tsv", "annotations"),
    "refcoco": ("refcoco", "hf", "annotations"),
    "refcoco+": ("refcoco+", "hf", "annotations"),
    "refcocog": ("refcocog", "hf", "annotations"),
    "coco_caption": ("coco/annotations", "coco/dataset_coco.json", "hf", "tsv"),
    "flickr30k_caption": ("flickr30k", "flickr30k/results_20130124.token", "hf"),
    "vsr": ("vsr", "hf", "annotations"),
    "coco_detection": ("coco",),
    "coco_keypoints": ("coco",),
}
# said of the numbers, and not by this package
UNSAID = {"source", "parts_source", "parsed", "predictions"}
JAVA = "METEOR"


def expected(name: str) -> dict:
    return json.loads((FIXTURES / name / "expected.json").read_text())["protocol"]


def predictions(name: str) -> Path:
    results = FIXTURES / name / "results.json"
    return results if results.exists() else FIXTURES / name / "predictions.jsonl"


CASES = [
    (name, form, protocol)
    for name, forms in FORMS.items()
    for form in ("", *forms)
    for protocol in PROTOCOLS
    if isinstance(expected(name).get(protocol), dict)
]


def check(found, wanted, path: str, partly: bool = False) -> None:
    """Equal to 1e-6; of parts, where not all are known, those that are."""
    if isinstance(wanted, dict):
        names = wanted.keys() - {JAVA}
        assert found.keys() == names or (partly and found.keys() < names), path
        for key in found:
            check(found[key], wanted[key], f"{path}.{key}", partly)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), path
        for number, (a, b) in enumerate(zip(found, wanted, strict=True)):
            check(a, b, f"{path}[{number}]")
    else:
        assert found == (pytest.approx(wanted, abs=1e-6) if isinstance(wanted, float) else wanted), path


@pytest.mark.parametrize(("name", "form", "protocol"), CASES)
def test_scores_are_those_of_independent_code(name: str, form: str, protocol: str):
    wanted = expected(name)[protocol]
    scored = score_predictions(name, FIXTURES / name / "data" / form.rstrip("*"), predictions(name), protocol)
    found = scored.as_json()
    assert not scored.missing
    for key in wanted.keys() - UNSAID:
        check(found[key], wanted[key], key, partly=key == "parts" and form.endswith("*"))


def test_every_benchmark_has_fixtures():
    made_up = {"nocaps", "tdiuc", "ocrbench", "hallusionbench", "mmstar", "realworldqa"}  # in test_more_benchmarks.py
    made_up |= {"blink", "iconqa", "mmvet", "llava_bench", "mathvista"}  # there too, and in test_judged.py
    assert set(FORMS) == set(BENCHMARKS) - {"ccbench", "mmbench_cn"} - made_up  # these are in the form of MMBench


def test_boxes_of_people_are_read_from_text():
    wanted = expected("coco_detection")["official_people_from_text"]
    folder = FIXTURES / "coco_detection"
    found = score_predictions("coco_detection", folder / "data", folder / "predictions.jsonl", "official").as_json()
    for key in ("metric", "score", "parts"):
        check(found[key], wanted[key], key)


def test_key_points_of_given_people_are_read_from_words(tmp_path: Path):
    """As COCO's own results that say the same."""
    data = FIXTURES / "coco_keypoints" / "data"
    questions = BENCHMARKS["coco_keypoints"].read(data).questions
    assert len(questions) == 9, "of eleven people one is a crowd, and one has no point"
    lines, results = [], []
    for number, question in enumerate(questions):
        row, (width, height) = question.source, question.size
        side = max(width, height)
        corner = (side - width) // 2, (side - height) // 2
        points, numbers = [], []
        for at in range(0, 51, 3):
            x, y, there = row["keypoints"][at : at + 3]
            x = round((x + number + corner[0]) / side, 2)  # each further from what is right
            y = round((y + corner[1]) / side, 2)
            x = min(x, 1.0)
            points.append(f"{x:.2f},{y:.2f}" if there else "-")
            numbers += [x * side - corner[0], y * side - corner[1], 1] if there else [0, 0, 0]
        lines.append({"key": question.key, "prediction": f"[{';'.join(points)}]" if number else "I see nobody"})
        if number:
            ids = {"image_id": row["image_id"], "category_id": 1}
            results.append(ids | {"keypoints": numbers, "score": 1.0})
    words = score_predictions("coco_keypoints", data, written(tmp_path, lines), "official")
    assert not words.missing and words.score.items[0] == 0 < words.score.items[1] <= 1
    theirs = score_predictions("coco_keypoints", data, written(tmp_path, results), "official")
    assert 0 < words.score.score < 1 and words.score.parts == theirs.score.parts
    best = [{"key": q.key, "prediction": q.answers[0]} for q in questions]
    assert score_predictions("coco_keypoints", data, written(tmp_path, best), "official").score.score > 0.9


def test_people_of_pictures_that_were_not_asked_about_are_not_missed(tmp_path: Path):
    data = FIXTURES / "coco_keypoints" / "data"
    questions = BENCHMARKS["coco_keypoints"].read(data).questions
    first = limited(questions, 1)
    assert {q.source["image_id"] for q in first} == {questions[0].source["image_id"]}
    assert len(first) < len(questions)
    rule = BENCHMARKS["coco_keypoints"].rules["official"]
    assert rule(first, [q.answers[0] for q in first]).score > 0.9


def test_original_release_of_mme_is_scored_by_names_of_its_pictures(tmp_path: Path):
    folder = FIXTURES / "mme" / "data"
    keys = {
        q.text + str(q.same[1]): q.key
        for q in BENCHMARKS["mme"].read(folder / "MME_Benchmark_release_version").questions
    }
    said = [json.loads(line) for line in predictions("mme").read_text().splitlines()]
    asked = BENCHMARKS["mme"].read(folder / "annotations").questions
    lines = [
        {"key": keys[q.text + Path(q.same[1]).stem], "prediction": given["prediction"]}
        for q, given in zip(asked, said, strict=True)
    ]
    written = tmp_path / "predictions.jsonl"
    written.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = score_predictions("mme", folder / "MME_Benchmark_release_version", written, "official").as_json()
    check(found["parts"], expected("mme")["official"]["parts"], "parts")
    check(found["per_item"], expected("mme")["official"]["per_item"], "per_item")


def written(tmp_path: Path, lines) -> Path:
    path = tmp_path / "given.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def said(name: str) -> list[dict]:
    return [json.loads(line) for line in predictions(name).read_text().splitlines()]


def test_order_of_predictions_is_that_of_the_items(tmp_path: Path):
    lines = said("gqa")
    wanted = dict(zip([line["key"] for line in lines], expected("gqa")["official"]["per_item"], strict=True))
    random.Random(0).shuffle(lines)
    found = score_predictions("gqa", FIXTURES / "gqa" / "data", written(tmp_path, lines), "official")
    assert found.score.items == [wanted[line["key"]] for line in lines]
    assert found.score.score == pytest.approx(expected("gqa")["official"]["score"])


def test_unanswered_questions_are_named(tmp_path: Path):
    found = score_predictions("vqav2", FIXTURES / "vqav2" / "data", written(tmp_path, said("vqav2")[:-2]), "official")
    keys = [line["key"] for line in said("vqav2")[-2:]]
    assert list(found.missing) == keys
    assert any("2 of 30 questions" in note and str(keys[0]) in note for note in found.notes)


def test_key_that_comes_twice_counts_once(tmp_path: Path):
    lines = said("vqav2")
    found = score_predictions(
        "vqav2",
        FIXTURES / "vqav2" / "data",
        written(tmp_path, [lines[0] | {"prediction": "nonsense"}, *lines]),
        "official",
    )
    assert found.score.score == expected("vqav2")["official"]["score"]


def test_other_number_of_questions_than_the_paper_is_said():
    found = score_predictions("refcoco", FIXTURES / "refcoco" / "data", predictions("refcoco"), "official")
    assert any("17 val" in note and "10834 val" in note for note in found.notes)


class Hostile:
    def __reduce__(self):
        return print, ("a pickle ran a program",)


def test_hostile_pickle_runs_nothing(tmp_path: Path, capsys):
    shutil.copytree(FIXTURES / "refcoco" / "data" / "refcoco", tmp_path / "refcoco")
    (tmp_path / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps([Hostile()], protocol=2))
    with pytest.raises(BadData, match="print"):
        BENCHMARKS["refcoco"].read(tmp_path)
    assert "a pickle ran" not in capsys.readouterr().out


@pytest.mark.parametrize("size", (0, 100, 3000))
def test_truncated_parquet_is_named(tmp_path: Path, size: int):
    whole = next((FIXTURES / "okvqa" / "data" / "hf").glob("*.parquet")).read_bytes()
    (tmp_path / "val-00000-of-00001.parquet").write_bytes(whole[:size])
    with pytest.raises(BadBenchmark, match="val-00000-of-00001.parquet"):
        BENCHMARKS["okvqa"].read(tmp_path)


def test_table_with_another_separator_is_named(tmp_path: Path):
    table = (FIXTURES / "mme" / "data" / "tsv" / "MME.tsv").read_text().replace("\t", ",")
    (tmp_path / "MME.tsv").write_text(table)
    with pytest.raises(BadBenchmark, match="separated by tabs"):
        BENCHMARKS["mme"].read(tmp_path)


def test_predictions_of_another_benchmark_are_named():
    with pytest.raises(BadBenchmark, match="another split"):
        score_predictions("vqav2", FIXTURES / "vqav2" / "data", predictions("okvqa"), "official")


def test_answers_of_another_split_are_named(tmp_path: Path):
    shutil.copytree(FIXTURES / "vqav2" / "data" / "vqav2", tmp_path / "vqav2")
    annotations = tmp_path / "vqav2" / "v2_mscoco_val2014_annotations.json"
    held = json.loads(annotations.read_text())
    held["annotations"] = held["annotations"][1:]
    annotations.write_text(json.dumps(held))
    with pytest.raises(BadBenchmark, match="another split"):
        BENCHMARKS["vqav2"].read(tmp_path)


def test_unknown_benchmark_names_the_nearest():
    with pytest.raises(ConfigError, match="vqav2"):
        score_predictions("vqa2", FIXTURES, predictions("vqav2"), "official")


def test_command_prints_one_json_object():
    ran = subprocess.run(
        [
            sys.executable,
            "tools/score_predictions.py",
            "docvqa",
            str(FIXTURES / "docvqa" / "data"),
            str(predictions("docvqa")),
        ]
        + ["--protocol", "reference", "--json"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = expected("docvqa")["reference"]
    found = json.loads(ran.stdout)
    assert found["metric"] == wanted["metric"]
    check(found["per_item"], wanted["per_item"], "per_item")


def test_caption_that_is_one_of_its_references_scores_most():
    rng = random.Random(0)
    words = ["a", "red", "star", "on", "the", "left", "of", "two", "dogs", "near", "some", "old", "wooden", "boats"]
    right = [[rng.sample(words, rng.randint(4, 9)) for _ in range(3)] for _ in range(20)]
    own = captions.cider([answers[0] for answers in right], right)
    others = captions.cider([rng.sample(words, 6) for _ in right], right)
    assert all(a > b for a, b in zip(own, others, strict=True))
    assert captions.cider([answers[0] for answers in right], [[answers[0]] for answers in right]) == pytest.approx(
        [10] * 20
    )


def test_captions_are_cut_into_words_as_the_java_tokenizer_does_it():
    """477 texts and what pycocoevalcap 1.2 (Stanford's PTBTokenizer) made of them."""
    pairs = json.loads((FIXTURES.parent / "caption_tokens.json").read_text())
    assert len(pairs) > 400
    for text, words in pairs:
        assert " ".join(tokens(text)) == words, text


def test_order_of_annotators_does_not_matter():
    rng = random.Random(0)
    for _ in range(50):
        answers = [rng.choice(["two", "2", "A dog.", "dog", "dont", "1,000"]) for _ in range(10)]
        shuffled = rng.sample(answers, 10)
        said = rng.choice(answers)
        for rule in (vqa_accuracy._in_eval_ai, vqa_accuracy._in_public_script):
            assert rule(said, answers) == pytest.approx(rule(said, shuffled))
