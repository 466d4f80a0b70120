"""SPHINX as a model of lmms-eval: its requests, its frame of boxes, and where it is installed its own tasks."""

import json
import math
import os
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import DATA, ROOT, Parrot, born, tiny_config
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from sphinx_jax.checkpoint import store
from sphinx_jax.config import DecoderConfig
from sphinx_jax.data.conversation import SYSTEM, render
from sphinx_jax.data.grammar import format_boxes, parse_boxes
from sphinx_jax.data.tasks import Box, PaddedSquare
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.evaluate import lmms_eval
from sphinx_jax.evaluate.benchmarks import BENCHMARKS
from sphinx_jax.evaluate.benchmarks.asking import ASKS
from sphinx_jax.evaluate.hosted import Hosted, conversation, sampling, unpadded
from sphinx_jax.evaluate.rules import texts
from sphinx_jax.generate.arguments import BadArgument
from sphinx_jax.generate.request import Said

FIXTURES = Path(__file__).parents[1] / "fixtures" / "benchmarks"


@st.composite
def shown_boxes(draw) -> tuple[PaddedSquare, list[Box]]:
    """A picture's square, and boxes in hundredths of it that lie in the picture."""
    square = PaddedSquare(draw(st.integers(1, 2000)), draw(st.integers(1, 2000)))
    ranges = []
    for offset, length in zip(square.offset, (square.width, square.height), strict=True):
        low, high = math.ceil(100 * offset / square.side), math.floor(100 * (offset + length) / square.side)
        assume(low <= high)
        ranges.append(st.integers(low, high))
    boxes = []
    for _ in range(draw(st.integers(1, 3))):
        (x1, x2), (y1, y2) = (sorted((draw(numbers), draw(numbers))) for numbers in ranges)
        boxes.append(Box(x1 / 100, y1 / 100, x2 / 100, y2 / 100))
    return square, boxes


@given(shown_boxes())
def test_boxes_go_to_the_frame_of_the_picture_and_back(case):
    square, boxes = case
    moved = parse_boxes(unpadded(format_boxes(boxes), square))
    width, height = square.width, square.height
    pixels = [Box(b.x1 * width, b.y1 * height, b.x2 * width, b.y2 * height) for b in moved]
    assert format_boxes([square.from_pixels(box) for box in pixels]) == format_boxes(boxes)


@pytest.mark.parametrize(
    "text",
    [
        "yes",
        "[1, 0, 1, 0]",
        "[0.50, 0.24]",
        "[0.10, 0.20, 0.30",
        "<p>[0.10, 0.30, 0.30, 0.40]</p>",
        "[0.1, 0.2, 0.3, 4.5]",
    ],
)
def test_what_is_no_box_stays(text):
    assert unpadded(text, PaddedSquare(400, 200)) == text


def test_the_padding_is_cut_off_and_the_rest_of_the_answer_stays():
    square = PaddedSquare(400, 200)  # from 0.25 to 0.75 of the square's height
    said = "<p>a star</p>[0.10, 0.00, 0.30, 0.50], or [0.00,0.25,1.00,1.00;0.9,0.75,0.1,0.25]."
    moved = (
        "<p>a star</p>[0.1000, 0.0000, 0.3000, 0.5000], or [0.0000,0.0000,1.0000,1.0000;0.9000,1.0000,0.1000,0.0000]."
    )
    assert unpadded(said, square) == moved


def user(*parts) -> dict:
    shown = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": shown}


def picture(url="a.png") -> dict:
    return {"type": "image", "url": url}


def test_messages_become_turns_about_one_picture():
    talk = [
        {"role": "system", "content": "Be brief."},
        user(picture(), "<image>What is it?\n### Human: more"),
        {"role": "assistant", "content": "A star."},
        user("Which", "colour?"),
    ]
    turns, system, shown = conversation(talk)
    assert turns == [("What is it?\n ### Human: more", "A star."), ("Which\ncolour?", None)]
    assert (system, shown) == ("Be brief.", "a.png")
    assert conversation([user("Why?")]) == ([("Why?", None)], SYSTEM, None)


@pytest.mark.parametrize(
    ("talk", "reason"),
    [
        ([user(picture(), picture("b.png"), "?")], "it has 2 pictures; one picture is what SPHINX takes"),
        ([user({"type": "video", "url": "a.mp4"}, "?")], "message 0 has a part of type video"),
        ([user("?"), user("?")], "message 1 is from user"),
        ([user("?"), {"role": "assistant", "content": "Well"}], "the last message must be the user's"),
    ],
)
def test_what_cannot_be_a_conversation_is_one_line(talk, reason):
    with pytest.raises(BadArgument, match=reason):
        conversation(talk)


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({}, {"max_new_tokens": 512, "stop": [], "temperature": 0.0}),
        ({"temperature": 0.7, "do_sample": False, "top_p": 0.5}, {"temperature": 0.0}),
        ({"temperature": 0, "top_p": 0}, {"temperature": 0.0}),
        ({"temperature": 0.7, "top_p": None}, {"temperature": 0.7, "top_p": 1.0, "top_k": 0}),
        ({"do_sample": True, "top_p": 0.9, "top_k": 5}, {"temperature": 1.0, "top_p": 0.9, "top_k": 5}),
        ({"until": "\n\n", "max_new_tokens": 3, "num_beams": 1}, {"stop": ["\n\n"], "max_new_tokens": 3}),
        ({"until": ["", "ASSISTANT:"]}, {"stop": ["ASSISTANT:"]}),
    ],
)
def test_settings_are_those_of_a_request(given, settings, caplog):
    assert sampling(given).items() >= settings.items() and not caplog.text


def test_settings_that_are_not_used_are_named(caplog):
    for _ in range(2):
        sampling({"num_beams": 5, "temperature": 0})
    assert caplog.text.count("num_beams") == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    tokenizer = load_tokenizer(DATA / "tokenizer.model")
    decoder = DecoderConfig(dim=32, layers=1, heads=2, kv_heads=1, vocab_size=tokenizer.vocab_size, multiple_of=16)
    config = tiny_config(decoder=decoder)
    return store.save(tmp_path_factory.mktemp("model") / "tiny", born(config), config, tokenizer, {"made_by": "test"})


DOCUMENTS = [
    {"image": Image.new("RGB", (40, 20 + 5 * i), (60 * i, 90, 0)), "question": f"What is number {i}?"} for i in range(3)
]


@pytest.fixture
def host(folder) -> Hosted:
    made = Hosted(str(folder), batch_size="2")
    made.task_dict = {"own": {"test": DOCUMENTS}}
    return made


def write(document) -> list[dict]:
    return [user(picture(document["image"]), document["question"])]


def asked(settings=None, write=write, number=0, task="own") -> SimpleNamespace:
    return SimpleNamespace(args=("", write, settings or {"max_new_tokens": 4}, number, task, "test"))


def test_answers_are_those_of_the_model_in_order(host):
    requests = [asked(number=i) for i in (2, 0, 1)]
    prompts = [render([(DOCUMENTS[i]["question"], None)])[0] for i in (2, 0, 1)]
    pictures = [DOCUMENTS[i]["image"] for i in (2, 0, 1)]
    expected = host.model.generate(prompts, pictures, max_new_tokens=4, temperature=0.0)
    assert host.generate_until(requests) == expected and any(expected)


def test_an_answer_that_is_drawn_again_is_another(host):
    first = host.generate_until([asked({"temperature": 1.0, "max_new_tokens": 8})] * 3)
    assert len(set(first)) == 3
    assert host.generate_until([asked({"temperature": 1.0, "max_new_tokens": 8})]) == first[:1]


def test_a_limit_beyond_the_context_cuts_no_prompt(host, caplog):
    def long(document):
        return [user("word " * (host.model.config.decoder.max_positions // 4))]

    parrot = host.engine = Parrot(9)
    parrot.as_completed = lambda requests: (
        (i, [Said(str(r.max_new_tokens), [], [], "")]) for i, r in enumerate(requests)
    )
    (most,) = host.generate_until([asked({"max_new_tokens": 10**6}, long)])
    prompt = render([(long(None)[0]["content"][0]["text"].strip(), None)])[0]
    assert int(most) + len(host.model.encode_prompt(prompt)) == host.model.config.decoder.max_positions


def test_a_document_that_cannot_be_asked_is_named(host):
    def several(document):
        return [user(picture(document["image"]), picture(document["image"]), "?")]

    with pytest.raises(BadArgument, match="^document 1 of task own cannot be asked: it has 2 pictures"):
        host.generate_until([asked(), asked(write=several, number=1)])
    missing = asked(write=lambda document: [user(picture("gone.png"), "?")])
    with pytest.raises(BadArgument, match="^document 0 of task own cannot be asked: image gone.png does not exist"):
        host.generate_until([missing])
    with pytest.raises(BadArgument, match="document 0 of task own cannot be asked: max_new_tokens must be"):
        host.generate_until([asked({"max_new_tokens": -1})])


def test_rounds_are_asked_until_the_task_has_enough(host):
    host.engine = Parrot(99)

    def rounds(document, round_idx=None, previous_output=None, previous_round_info=None):
        if round_idx is None:
            return write(document)
        assert len(previous_output) == round_idx and previous_round_info == (round_idx - 1 or None)
        if round_idx == 1 + DOCUMENTS.index(document):
            return None, True, None if round_idx < 3 else ["replaced"], None
        return [user(f"round {round_idx}")], False, previous_output, round_idx

    one, two, three = host.generate_until_multi_round([asked(write=rounds, number=i) for i in range(3)])
    assert len(one) == 1 and "number 0" in one[0]
    assert len(two) == 2 and "number 1" in two[0] and "round 1" in two[1]
    assert three == ["replaced"]


def test_likelihoods_are_those_of_the_model(host):
    def look(document):
        return [document["image"]]

    prompt = render([("Which?", None)])[0]
    (greedy,) = host.model.generate([prompt], [DOCUMENTS[0]["image"]], max_new_tokens=1, temperature=0.0)
    pairs = [(" yes", look, 0, "own", "test"), (lambda document: greedy, look, 0, "own", "test"), ("no",)]
    found = host.loglikelihood([SimpleNamespace(args=("Which?", *pair)) for pair in pairs])
    pictured = host.model.score([prompt] * 2, [" yes", f" {greedy}"], [DOCUMENTS[0]["image"]] * 2)
    alone = host.model.score([prompt], [" no"])
    assert [chance for chance, _ in found] == pytest.approx(pictured + alone, abs=1e-4)
    assert not found[0][1]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"boxes": "pixels"}, "boxes must be unpadded or padded"),
        ({"batch_size": "many"}, "batch_size must be an integer of at least 1, or auto"),
        ({"device": "cuda:0"}, "device cuda:0 is not for lmms-eval to choose"),
        ({"seed": 0.5}, "seed must be an integer"),
        ({"quantize": "int3"}, "int3"),
    ],
)
def test_wrong_options_are_one_line(folder, given, reason):
    with pytest.raises(ValueError, match=reason):
        Hosted(str(folder), **given)


def test_one_process_answers(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadArgument, match="without accelerate or torchrun"):
        Hosted(str(folder))


def test_it_is_found_without_being_imported_here():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    name, _, value = config["options.entry_points"]["lmms_eval.models"].strip().partition(" = ")
    point = EntryPoint(name, value, "lmms_eval.models")
    assert name == "sphinx_jax" and point.load() is lmms_eval.manifest
    code = f"import sys; import {point.module}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0, "any run of lmms-eval would import JAX"


# of lmms-eval's own tasks, with their questions and metrics, but for where the files are
TASKS = {
    "own_pope": ("pope/pope.yaml", "pope/data/hf/test-00000-of-00001.parquet", "test"),
    "own_refcoco": ("refcoco/refcoco_bbox_rec_val.yaml", "refcoco/data/hf/val-00000-of-00001.parquet", "val"),
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A folder of tasks; lmms-eval, which it skips without, finds its caches in a new place."""
    made = tmp_path_factory.mktemp("tasks")
    os.environ |= {"HF_HOME": str(made / "cache"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    installed = pytest.importorskip("lmms_eval")
    for name, (of, data, split) in TASKS.items():
        (made / f"{name}.yaml").write_text(
            f"include: {Path(installed.__path__[0]) / 'tasks' / of}\n"
            f"task: {name}\n"
            "dataset_path: parquet\n"
            f"dataset_kwargs: {{data_files: {{{split}: {FIXTURES / data}}}}}\n"
        )
    return made


class Scripted(Parrot):
    """An engine that knows the answers."""

    def __init__(self, answers: list[str]):
        super().__init__(len(answers))
        self.answers = answers

    def as_completed(self, requests):
        for number, ((request,), answer) in enumerate(zip(zip(requests, strict=True), self.answers, strict=True)):
            self.asked.append(request.prompt)
            yield number, [Said(answer, [], [], "stop")]


@pytest.mark.parametrize(
    ("name", "metric"), [("own_pope", "pope_accuracy,none"), ("own_refcoco", "refcoco_ACC@0.5,none")]
)
def test_its_metrics_agree_with_ours(tasks, folder, name, metric):
    evaluator, found = pytest.importorskip("lmms_eval.evaluator"), pytest.importorskip("lmms_eval.tasks")
    benchmark = name.removeprefix("own_")
    split = "val:" if benchmark == "refcoco" else ""
    lines = map(json.loads, (FIXTURES / benchmark / "predictions.jsonl").read_text().splitlines())
    said = {line["key"]: texts.official(line["prediction"]) for line in lines if line["key"].startswith(split)}
    questions = [q for q in BENCHMARKS[benchmark].read(FIXTURES / TASKS[name][1]).questions if q.key in said]
    model = lmms_eval.SphinxJax(pretrained=str(folder))
    model.engine = Scripted([said[q.key] for q in questions])
    manager = found.TaskManager("ERROR", include_path=str(tasks), include_defaults=False, model_name="sphinx_jax")
    results = evaluator.simple_evaluate(model, tasks=[name], task_manager=manager, bootstrap_iters=0)
    ask = ASKS["official"][benchmark]
    assert model.engine.asked == [render([(ask.text(q), None)])[0] for q in questions]
    expected = json.loads((FIXTURES / benchmark / "expected.json").read_text())["protocol"]
    # of POPE our official rule is its authors', which reads more than the words yes and no
    right = expected["official"]["parts"]["val"] if split else expected["lmms_eval"]["score"]
    assert results["results"][name][metric] == pytest.approx(right)


def test_its_command_runs_a_model(tasks, folder, tmp_path):
    command = [sys.executable, "-m", "lmms_eval", "--model", "sphinx_jax", "--model_args", f"pretrained={folder}"]
    command += ["--tasks", ",".join(TASKS), "--include_path", str(tasks), "--batch_size", "8"]
    command += ["--gen_kwargs", "max_new_tokens=8", "--output_path", str(tmp_path), "--log_samples"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600)
    print(done.stdout[-3000:])
    # it ends with 0 whatever happens
    results = next(tmp_path.rglob("*_results.json"), None)
    assert results is not None, done.stderr[-3000:]
    scores = json.loads(results.read_text())["results"]
    assert scores["own_pope"]["pope_accuracy,none"] >= 0 and scores["own_refcoco"]["refcoco_IoU,none"] >= 0
    samples = {
        p.stem.partition("_samples_")[2]: p.read_text().splitlines() for p in tmp_path.rglob("*_samples_*.jsonl")
    }
    assert {name: len(lines) for name, lines in samples.items()} == {"own_pope": 48, "own_refcoco": 17}
