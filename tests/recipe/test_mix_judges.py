"""Mixes that public benchmarks judge, against the same numbers found on other ways."""

import dataclasses
import io
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from conftest import DATA, ROOT, born, tiny_config
from PIL import Image

import sphinx_jax
from sphinx_jax.checkpoint import store
from sphinx_jax.config import ConfigError, DecoderConfig, to_dict
from sphinx_jax.data.conversation import STOP, SYSTEM, render
from sphinx_jax.data.playground import builder, public
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.evaluate.benchmarks import BENCHMARKS
from sphinx_jax.evaluate.benchmarks.asking import ASKS, right
from sphinx_jax.evaluate.question import Question
from sphinx_jax.model.blueprint import FROZEN, matches
from sphinx_jax.recipe import runner
from sphinx_jax.recipe.stages import mix_choice
from sphinx_jax.recipe.stages.mix_judges import Judged, of_benchmarks
from sphinx_jax.weight_mix.write import write as write_mix

NAMES = ("vqav2", "refcoco")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two folders of benchmarks, of different pictures."""
    folder = tmp_path_factory.mktemp("benchmarks")
    found = []
    for split in ("validation", "test"):
        source = builder.open_playground(folder / "playground", "nano", split, "real")
        public.write((builder.as_item(source[i]) for i in range(16)), folder / split)
        found.append(folder / split)
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two checkpoints that share their frozen encoders."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = load_tokenizer(DATA / "tokenizer.model")
    decoder = DecoderConfig(dim=32, layers=1, heads=2, kv_heads=1, vocab_size=tokenizer.vocab_size, multiple_of=16)
    config = tiny_config(decoder=decoder)
    first = born(config)
    second = {
        p: x if matches(p, FROZEN) else x * 0.5 + 0.02 * (np.arange(x.size) % 7).reshape(x.shape)
        for p, x in first.items()
    }
    return [
        store.save(folder / name, leaves, config, tokenizer, {"made_by": "test"})
        for name, leaves in (("first", first), ("second", second))
    ]


def judged(files, **more):
    return {"benchmarks": tuple(map(str, files)), "names": NAMES, "limit": 6} | more


def test_the_loss_of_right_answers_is_their_likelihood(files, models):
    """As the engine has it, one answer after the other."""
    found = mix_choice.choose("sweep", models, None, judged=judged(files), grid=(0.0, 1.0), quiet=True)
    assert found.result["metric"] == "answer_loss" and found.result["domains"] == list(NAMES)
    choosing, reported = of_benchmarks(Judged(**judged(files)))
    for number, folder in enumerate(models):
        model = sphinx_jax.from_pretrained(folder)
        row = found.result["rows"][number]
        for split, parts in (("validation", choosing), ("test", reported)):
            losses = []
            for part in parts:
                prompts = [render([(part.how.text(q), None)], SYSTEM)[0] for q in part.questions]
                answers = [f" {right(q)}{STOP}" for q in part.questions]
                images = [part.pictures.find(q.picture) for q in part.questions]
                chances = model.score(prompts, answers, [str(image) for image in images])
                tokens = [
                    len(model.encode_prompt(p + a)) - len(model.encode_prompt(p))
                    for p, a in zip(prompts, answers, strict=True)
                ]
                losses.append(-sum(chances) / sum(tokens))
                if split == "test":
                    assert row["test"][part.name] == pytest.approx(losses[-1], rel=2e-3)  # features are float16
            assert row[split]["mean"] == pytest.approx(np.mean(losses), rel=2e-3)


@pytest.mark.slow
def test_the_score_of_a_mix_is_that_of_its_checkpoint(files, models, tmp_path, monkeypatch):
    """A run of the benchmarks stage on the mix that was written finds the same numbers."""
    # untrained models say nothing that is right: what is right is what the second one says to every other question
    said = {}
    for name in NAMES:
        monkeypatch.setitem(BENCHMARKS, name, dataclasses.replace(BENCHMARKS[name], rules={"official": agreeing(said)}))
    choose = lambda grid: mix_choice.choose(  # noqa: E731
        "sweep", models, None, judged=judged(files, judge="score", protocol="official"), grid=grid, quiet=True
    )
    said["taught"] = True
    choose((0.0,))
    said["taught"] = False
    found = choose((0.0, 0.5, 1.0))
    rows = {row["name"]: row for row in found.result["rows"]}
    assert rows["second alone"]["validation"]["mean"] == 100
    assert found.result["rows"][-1]["validation"]["mean"] == max(row["validation"]["mean"] for row in rows.values())
    half = next(point for point in found.result["curve"] if point["at"][0] == 0.5)
    mix = dataclasses.replace(found.mix, per_source=tuple({"weight": {"*": 0.5}} for _ in models))
    written = write_mix(mix, tmp_path / "half", quiet=True)
    values = {
        "model": to_dict(store.read_config(written)),
        "tokenizer": str(written),
        "data": str(files[0]),
        "stages": ("benchmarks",),
        "stage": {"benchmarks": {"kind": "benchmarks", "start": str(written), "names": NAMES, "protocol": "official"}},
    }
    chosen = {part.name: {q.key for q in part.questions} for part in of_benchmarks(Judged(**judged(files)))[0]}
    said["only"] = chosen
    runner.run(runner.parse(values), tmp_path / "run", quiet=True)
    card = json.loads((tmp_path / "run" / "benchmarks" / "card.json").read_text())
    assert {line["benchmark"]: line["score"] for line in card} == {name: pytest.approx(half[name]) for name in NAMES}


def agreeing(said):
    """A rule by which what one model said is right."""
    from sphinx_jax.evaluate.question import Score, mean

    def rule(questions, texts):
        pairs = [(q.text, t) for q, t in zip(questions, texts, strict=True)]
        only = {key for keys in said.get("only", {}).values() for key in keys}
        if said["taught"]:
            said.update(pairs)
        kept = [i for i, q in enumerate(questions) if not only or q.key in only]
        items = [float(said[pairs[i][0]] == pairs[i][1]) for i in kept]
        return Score("accuracy", mean(items), None)

    return rule


def test_halves_of_one_folder_share_no_picture(files):
    choosing, reported = of_benchmarks(Judged(benchmarks=(str(files[0]),), limit=1000))
    assert {part.name for part in choosing} >= {*NAMES}
    assert [part.name for part in choosing] == [part.name for part in reported]
    for one, other in zip(choosing, reported, strict=True):
        pictures = [{q.picture for q in part.questions} for part in (one, other)]
        assert all(pictures) and not pictures[0] & pictures[1]
        everything = BENCHMARKS[one.name].read(files[0] / one.name).questions
        assert len(one.questions) + len(other.questions) == len(everything)


def test_halves_of_a_table_that_repeats_a_picture_share_none(tmp_path):
    """As parquet copies do, which have it in each question's row."""
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema(
        [("question_id", pa.string()), ("question", pa.string()), ("answer", pa.string()), ("image", kind)]
    )
    rows = []
    for i in range(60):
        stream = io.BytesIO()
        Image.new("RGB", (4, 4), (i // 6, 0, 0)).save(stream, "PNG")
        picture = {"bytes": stream.getvalue(), "path": None}
        rows.append({"question_id": str(i), "question": "Is it?", "answer": "yes", "image": picture})
    (tmp_path / "pope").mkdir()
    table = pa.Table.from_pylist(rows, schema).append_column("category", pa.array(["random"] * 60))
    parquet.write_table(table, tmp_path / "pope" / "test-00000-of-00001.parquet")
    choosing, reported = of_benchmarks(Judged(benchmarks=(str(tmp_path),), limit=8))
    shown = [{one.pictures.find(q.picture) for q in one.questions} for one in (choosing[0], reported[0])]
    assert len(choosing[0].questions) == 8 and reported[0].questions and not shown[0] & shown[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benchmarks": ("nowhere",)}, "there is no"),
        ({"names": ("vqav3",)}, "did you mean 'vqav2'"),
        ({"judge": "likelihood"}, "judge"),
        ({"limit": 0}, "limit"),
    ],
)
def test_what_cannot_judge_is_told_in_a_line(files, models, changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        mix_choice.choose("sweep", models, None, judged=judged(files, **changes), quiet=True)
    assert "\n" not in str(error.value)


def test_learning_from_a_score_is_refused_at_once(files, models):
    with pytest.raises(ConfigError, match="gradient"):
        mix_choice.choose("learn", models, None, judged=judged(files, judge="score"), quiet=True)


def test_right_answers_in_words():
    assert right(Question(0, "?", answers=("a", "b", "b"))) == "b"
    assert right(Question(0, "?")) == ""
    # 200 x 100 pixels: 50 of padding above
    assert right(Question(0, "?", box=(0, 0, 100, 100), size=(200, 100))) == "[0.00, 0.25, 0.50, 0.75]"
    letters = Question(0, "?", answers=("B",), choices=("cat", "dog"))
    assert ASKS["reference"]["ai2d"].right(letters) == "dog" and ASKS["official"]["ai2d"].right(letters) == "B"


@pytest.mark.slow
def test_the_command_chooses_learns_and_draws(files, models, tmp_path):
    command = [sys.executable, "tools/mix_weights.py", "--learn", "--sources", *map(str, models)]
    command += ["--benchmarks", str(files[0]), "--names", *NAMES, "--limit", "8", "--grid", "0", "1", "--quiet"]
    command += ["--report", str(tmp_path / "found"), "--out", str(tmp_path / "mix")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "answer loss, lower is better" in done.stdout and "test refcoco" in done.stdout
    assert store.is_complete(tmp_path / "mix")
    assert {path.name for path in (tmp_path / "found").iterdir()} == {"learn.json", "learn.png"}
