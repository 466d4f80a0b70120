"""One recipe end to end at the smallest size, through the same code as the quickstart."""

import copy
import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT, carried_out, tiny_config

import sphinx_jax
from configs.finetune import get_config
from sphinx_jax.checkpoint import store
from sphinx_jax.config import to_dict
from sphinx_jax.data.answer_grammar import TASKS
from sphinx_jax.data.image import load_image
from sphinx_jax.data.tasks import DOMAINS
from sphinx_jax.evaluate.benchmarks import BENCHMARKS
from sphinx_jax.evaluate.forms.pictures import Pictures
from sphinx_jax.generate.engine import Engine
from sphinx_jax.generate.load import last_checkpoint
from sphinx_jax.measure import answering
from sphinx_jax.recipe import runner
from sphinx_jax.recipe.run import Run
from sphinx_jax.recipe.stages import benchmarks, mix_choice
from sphinx_jax.recipe.suggest import things_to_try
from sphinx_jax.report.card_files import read_card
from sphinx_jax.train.tally import seen_by
from sphinx_jax.weight_mix.write import write as write_mix

SHARED = {
    "kind": "train",
    "batch": 4,
    "turns": 2,
    "isolate_turns": True,
    "length": 160,
    "text_batch": 2,
    "text_length": 48,
    "optimizer": "muon",
    "rate": 1e-2,
    "warmup": 1,
    "clip": 1.0,
    "log_every": 2,
    "cache_features": True,
}
CAPTIONS = {"short_caption": 1.0, "grounded_caption": 1.0}


def values() -> dict:
    model = to_dict(tiny_config())
    model["decoder"]["vocab_size"] = 1280
    return {
        "model": model,
        "data": {"playground": "nano"},
        "stages": ("real", "synthetic", "mix", "finetune", "evaluate", "benchmarks", "show"),
        "stage": {
            "real": SHARED | {"start": "fresh", "steps": 4, "domains": {"real": 1.0}, "tasks": CAPTIONS},
            "synthetic": SHARED | {"start": "real", "steps": 2, "domains": {"synthetic": 1.0}, "tasks": CAPTIONS},
            "mix": {
                "kind": "mix",
                "real": "real",
                "synthetic": "synthetic",
                "tasks": CAPTIONS,
                "metric": "caption_loss",
                "pictures": 8,
                "batch": 4,
            },
            "finetune": SHARED
            | {"start": "mix", "steps": 4, "domains": {"real": 1.0, "synthetic": 1.0}}
            | {"evaluate_every": 2, "held_out_items": 6, "keep": "best"},
            "evaluate": {"kind": "evaluate", "start": "finetune", "limit": 2, "batch": 16},
            "benchmarks": {"kind": "benchmarks", "start": "finetune", "names": ("pope", "mmbench"), "limit": 2},
            "show": {"kind": "show", "samples": 4, "card": "benchmarks"},
            "chat": {"kind": "chat", "question": "What is the red thing?", "max_new_tokens": 4},
        },
    }


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    runner.run(runner.parse(values()), folder, quiet=True)
    return folder


def test_a_list_whose_pictures_are_nowhere_is_no_success(tmp_path, caplog):
    talk = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "a red thing"}]
    items = [json.dumps({"image": f"{i}.png", "conversations": talk}) for i in range(8)]
    (tmp_path / "items.jsonl").write_text("\n".join(items))
    (tmp_path / "list.yaml").write_text("META:\n  - {path: items.jsonl, root: picturs}\n")
    wrong = values() | {
        "data": {"playground": None, "meta": {"train": str(tmp_path / "list.yaml")}},
        "stages": ("real",),
    }
    wrong["stage"]["real"] |= {
        "domains": {"*": 1.0},
        "tasks": None,
        "cache_features": False,
        "steps": 40,
        "batch": 4,
        "text_batch": 0,
        "log_every": 20,
    }
    with pytest.raises(ValueError, match=r"real: 8 of 8 items tried of 'items' .*picturs/0.png does not exist"):
        runner.run(runner.parse(wrong), tmp_path / "start", quiet=True)
    assert not (tmp_path / "start" / "real").exists()
    wrong["stage"]["real"]["unusable"] = 1.0  # whoever lets it be is told by the steps
    with pytest.raises(ValueError, match=r"real: none of the \d+ image rows up to step 20 could be used.*list's root"):
        runner.run(runner.parse(wrong), tmp_path / "w", quiet=True)
    assert "image picturs/3.png does not exist" in caplog.text
    assert not (tmp_path / "w" / "real" / "done.json").exists()


def test_the_results_are_there_and_of_the_documented_form(workdir):
    assert (workdir / "report.html").stat().st_size > 10_000
    pngs = {"beta.png", "grid.png", "loss.png", "scores.png", "seen.png", "example.png"}
    assert {p.name for p in workdir.glob("*.png")} == pngs
    seen = {name: seen_by(workdir / name) for name in ("real", "synthetic", "finetune")}
    rows = {
        name: {n: one["rows"] + one["skipped"] for of_kind in found.values() for n, one in of_kind.items()}
        for name, found in seen.items()
    }
    # a step has four pictures and two texts; each in its data sets' shares
    assert rows["real"]["real"] == 16 and rows["synthetic"]["synthetic"] == 8 and "real" not in rows["synthetic"]
    assert rows["finetune"]["real"] + rows["finetune"]["synthetic"] == 16 and rows["finetune"]["real"] in (7, 8, 9)
    assert rows["finetune"]["text"] + rows["finetune"]["told"] == 8
    assert set(seen["real"]["image"]["real"]["tasks"]) <= CAPTIONS.keys()
    scores = json.loads((workdir / "scores.json").read_text())
    assert {"vqa", "rec", "short_caption", "detection"} <= scores["tasks"].keys()
    four = {"metric", "value", "baseline_majority", "baseline_blind"}
    for entry in scores["tasks"].values():
        assert four <= entry.keys() and 0 <= entry["value"] <= 1
        for domain in ("real", "synthetic"):
            assert entry[domain] is None or four <= entry[domain].keys()
    beta = scores["beta"]
    assert beta["values"][0] == 0 and beta["values"][-1] == 1 and len(beta["values"]) >= 9
    assert beta["values"] == sorted(beta["values"])
    mean = np.mean([beta["real"], beta["synthetic"]], axis=0)
    assert beta["chosen"] == beta["values"][int(mean.argmin())]
    assert beta["test"].keys() == {"chosen", "0", "1"}
    assert scores["seconds"] > 0


def test_the_playgrounds_questions_are_asked_as_benchmarks_and_their_card_is_in_the_report(workdir):
    lines = {line.benchmark: line for line in read_card(workdir)}
    assert lines.keys() == {"pope", "mmbench"} and all(line.count + line.missing == 2 for line in lines.values())
    report = (workdir / "report.html").read_text()
    _, _, section = report.partition("<h2>Score card</h2>")
    assert "<th>pope</th>" in section and 'href="benchmarks/card.html"' in section
    assert (workdir / "benchmarks" / "card.html").read_text().count("<figure") == 4
    # a picture in a file is the one that was encoded before, and of another model it is looked at
    run = Run(runner.parse(values()), workdir, quiet=True)
    stage, data = run.recipe.settings["benchmarks"], run.data.benchmarks
    engine = Engine(sphinx_jax.from_pretrained(workdir / "finetune"))
    encoded = benchmarks._encoded(run, stage, engine)
    for name in ("pope", "mmbench"):
        look = benchmarks._looking(engine, Pictures(data / name), encoded)
        for question in BENCHMARKS[name].read(data / name).questions[:4]:
            picture = look(question)
            domain, number = picture.name.split("/")
            assert picture.pixels is None and len(encoded) == sum(len(run.data.items("test", d)) for d in DOMAINS)
            image = run.data.items("test", domain)[int(number)].image
            np.testing.assert_array_equal(load_image(Pictures(data / name).find(question.picture)), load_image(image))
    assert benchmarks._encoded(run, dataclasses.replace(stage, start=str(workdir / "finetune")), engine) == {}


@pytest.mark.slow
def test_what_settings_of_answers_cost_is_told_of_every_task(workdir):
    told = "\n".join(answering.measure(workdir, limit=2))
    details, forms, boxes, sure, few = (
        [line.split(" | ") for line in part.splitlines()] for part in told.split("\n\n")
    )
    scored = json.loads((workdir / "evaluate" / "scores.json").read_text())["tasks"]
    named = [{row[0].strip("| ") for row in table[2:]} for table in (details, forms, boxes)]
    assert named[0] == scored.keys() and named[1] == scored.keys() & TASKS.keys() and named[2] <= named[1]
    for task, _, count, high, *_ in details[2:]:
        one = scored[task.strip("| ")]
        assert int(count) == one["count"] and float(high) == pytest.approx(one["value"], abs=1e-3)
    assert "boxes" in sure[0][0] and "nats a token of the right answers" in few[0][0] and "nan" not in told


def test_the_area_is_how_often_a_right_one_is_surer():
    sure, right = np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False])
    assert answering.area(sure, right) == (3 + 0.5) / 4


def test_any_stage_of_a_workdir_loads(workdir):
    tokens = np.arange(3, 9, dtype=np.int32)[None]
    stage, step = (sphinx_jax.from_pretrained(workdir / name) for name in ("real", "real/checkpoints/4"))
    np.testing.assert_array_equal(stage.logits(tokens), step.logits(tokens))
    assert not np.array_equal(stage.logits(tokens), sphinx_jax.from_pretrained(workdir).logits(tokens))


def test_a_stage_starts_from_one_of_another_run(workdir, tmp_path):
    other = values() | {"stages": ("synthetic",)}
    other["stage"]["synthetic"] |= {"start": str(workdir / "real"), "steps": 1, "cache_features": False}
    runner.run(runner.parse(other), tmp_path / "w", quiet=True)
    made = sphinx_jax.from_pretrained(tmp_path / "w" / "synthetic")
    start = sphinx_jax.from_pretrained(workdir / "real")
    for path, leaf in start.leaves.items():
        if path.startswith("encoders/"):
            jax.tree.map(np.testing.assert_array_equal, leaf, made.leaves[path])


def test_what_it_suggests_can_be_run(workdir, tmp_path):
    recipe = runner.parse(values())
    recipe = dataclasses.replace(recipe, settings=dict(sorted(recipe.settings.items())))  # as a config file sorts them
    run = Run(recipe, workdir, quiet=True)
    lines = things_to_try(run, ["--config", "some.py", "--workdir", str(workdir)])
    chat, tune, mix = (shlex.split(line) for line in lines if line.startswith("    "))
    assert chat[3:7] == ["--config", "some.py", "--workdir", str(workdir)] and chat[7:9] == ["--stage", "chat"]
    assert load_image(chat[9].partition("=")[2]).size
    assert get_config(tune[4].partition(":")[2]).model.decoder.lora_rank == 8
    assert (
        tune[4].startswith(f"finetune:{workdir}/finetune")
        and f"{workdir}/real" in mix
        and f"{workdir}/synthetic" in mix
    )
    carried_out(*mix[1:-1], tmp_path / "mixed", cwd=ROOT)
    assert store.is_complete(tmp_path / "mixed")
    assert things_to_try(Run(run.recipe, tmp_path / "empty"), ()) == []
    card = carried_out("tools/score_card.py", workdir, cwd=ROOT)
    assert "| pope |" in card and "| mmbench |" in card
    assert "| pope |" in carried_out("tools/score_card.py", workdir, "--compare", workdir, cwd=ROOT)


@pytest.mark.slow
def test_what_it_suggests_without_a_clone_can_be_run(workdir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = things_to_try(Run(runner.parse(values()), workdir, quiet=True), ["--config", "some.py"])
    _, tune, ask = (shlex.split(line) for line in lines if line.startswith("    "))
    assert carried_out(*ask[1:], cwd=tmp_path).startswith("[")
    carried_out(*tune[1:-1], tmp_path / "taught", cwd=tmp_path)
    assert (tmp_path / "taught" / "finetune" / "done.json").exists()


def test_the_mix_on_disk_is_the_papers_formula(workdir, mesh):
    real, synthetic, mixed = (
        store.restore(store.newest(workdir / name / "checkpoints"), mesh) for name in ("real", "synthetic", "mix")
    )
    beta = json.loads((workdir / "mix" / "beta.json").read_text())["chosen"]
    for path, leaf in mixed.items():
        expected = beta * np.asarray(real[path]) + (1 - beta) * np.asarray(synthetic[path])
        np.testing.assert_allclose(leaf, expected, atol=1e-6, err_msg=path)
        assert not path.startswith("encoders/") or np.array_equal(leaf, real[path])
    changed = [p for p in real if not np.array_equal(real[p], synthetic[p])]
    assert changed and not any(p.startswith("encoders/") for p in changed)


@pytest.mark.parametrize("way", ["sweep", "greedy", "learn"])
def test_a_mix_chosen_on_held_out_data_is_what_is_written(workdir, tmp_path, way):
    folders = [workdir / "real", workdir / "synthetic"]
    choice = mix_choice.choose(way, folders, workdir, grid=(1.0, 0.5, 0.0), epochs=2, quiet=True)
    rows = {row["name"]: row for row in choice.result["rows"]}
    assert {"real/4 alone", "synthetic/2 alone", "uniform average"} <= rows.keys()
    found = choice.result["rows"][-1]
    if way == "sweep":
        singles = [row["validation"]["mean"] for row in choice.result["rows"][:-1]]
        assert found["validation"]["mean"] <= min(singles) + 1e-6
    out = write_mix(choice.mix, tmp_path / "out", quiet=True)
    again = mix_choice.choose("sweep", [out, out], workdir, grid=(1.0,), quiet=True).result["rows"][0]
    for split in ("validation", "test"):
        for domain, loss in found[split].items():
            assert again[split][domain] == pytest.approx(loss, rel=1e-5)
    assert choice.save(tmp_path / "report")[0].name == f"{way}.json"


def test_a_workdir_may_be_named_from_where_one_stands(workdir, tmp_path, monkeypatch):
    shutil.copytree(workdir, tmp_path / "runs" / "here")
    shutil.rmtree(tmp_path / "runs" / "here" / "mix")
    monkeypatch.chdir(tmp_path)
    runner.run(runner.parse(values()), Path("runs") / "here", only="mix", quiet=True)
    found, wanted = (store.newest(folder / "mix" / "checkpoints") for folder in (tmp_path / "runs" / "here", workdir))
    assert store.read_recipe(found)["method"] == store.read_recipe(wanted)["method"] == "linear"


def test_a_second_run_says_it_is_done(workdir, capsys):
    before = {p: p.stat().st_mtime for p in workdir.rglob("*") if p.is_file()}
    runner.run(runner.parse(values()), workdir)
    assert "All 7 stages are done" in capsys.readouterr().out
    assert {p: p.stat().st_mtime for p in workdir.rglob("*") if p.is_file()} == before


def test_a_stage_that_is_not_done_is_done_again_alone(workdir):
    (workdir / "show" / "done.json").unlink()
    (workdir / "report.html").unlink()
    runner.run(runner.parse(values()), workdir, quiet=True)
    assert (workdir / "report.html").exists()


def test_other_settings_in_the_same_workdir_are_refused(workdir):
    changed = copy.deepcopy(values())
    changed["stage"]["finetune"]["steps"] = 5
    with pytest.raises(ValueError, match=r"settings.finetune.steps = 4, now it is 5"):
        runner.run(runner.parse(changed), workdir, quiet=True)


def test_how_many_answers_are_given_at_once_may_change(workdir):
    changed = copy.deepcopy(values())
    changed["stage"]["evaluate"]["batch"] = 3
    scores = (workdir / "evaluate" / "scores.json").read_bytes()
    runner.run(runner.parse(changed), workdir, quiet=True)
    assert (workdir / "evaluate" / "scores.json").read_bytes() == scores


def test_a_setting_that_a_newer_version_brought_counts_from_then_on(workdir):
    config = workdir / "config.json"
    kept = json.loads(config.read_text())
    older = copy.deepcopy(kept)
    del older["settings"]["finetune"]["unusable"]
    config.write_text(json.dumps(older))
    runner.run(runner.parse(values()), workdir, quiet=True)
    assert json.loads(config.read_text()) == kept
    changed = copy.deepcopy(values())
    changed["stage"]["finetune"]["unusable"] = 0.9
    with pytest.raises(ValueError, match=r"settings.finetune.unusable = [\d.]+, now it is 0.9"):
        runner.run(runner.parse(changed), workdir, quiet=True)


def test_a_mapping_that_has_grown_is_another_setting(workdir):
    changed = copy.deepcopy(values())
    before = changed["stage"]["finetune"].get("tasks")
    changed["stage"]["finetune"]["tasks"] = {**(before or {}), "vqa": 3.0}
    with pytest.raises(ValueError, match=r"was made with settings.finetune.tasks = "):
        runner.run(runner.parse(changed), workdir, quiet=True)


def test_the_trained_model_answers_about_a_picture(workdir, capsys):
    picture = Run(runner.parse(values()), workdir).data.items("test", "real")[0].image
    model = sphinx_jax.from_pretrained(workdir)
    answer = model.respond([["What is it?", None]], image=picture, max_new_tokens=4, temperature=0.0)
    assert isinstance(answer, str)
    streamed = list(model.stream("Some words", max_new_tokens=4, temperature=0.0))
    assert streamed[-1] == model.generate(["Some words"], max_new_tokens=4, temperature=0.0)[0]
    good, bad = model.score(["a", "a"], [" red circle", " circle circle circle"])
    assert good < 0 and bad < 0
    runner.run(runner.parse(values()), workdir, only="chat", quiet=True)
    assert capsys.readouterr().out.endswith("\n")


def test_a_copied_workdir_answers_with_its_last_stage(workdir, tmp_path):
    copied = shutil.copytree(workdir, tmp_path / "copied", ignore=shutil.ignore_patterns("data", "features"))
    (earlier,) = copied.glob("real/checkpoints/*/recipe.json")
    earlier.touch()  # copying leaves times in any order
    assert last_checkpoint(copied).parts[-3] == "finetune"


def test_a_mix_that_was_written_is_not_made_again(workdir):
    before = (workdir / "mix" / "beta.json").stat().st_mtime_ns
    (workdir / "mix" / "done.json").unlink()  # as after a kill between the two
    runner.run(runner.parse(values()), workdir, quiet=True)
    assert (workdir / "mix" / "done.json").exists() and (workdir / "mix" / "beta.json").stat().st_mtime_ns == before


def test_ragged_prompts_get_the_answers_they_get_alone(workdir):
    model = sphinx_jax.from_pretrained(workdir)
    prompts = ["What is it?", "How many things are there in this picture? I would like to know.", "Hi"]
    together = model.generate(prompts, max_new_tokens=6, temperature=0.0)
    assert together == [model.generate([p], max_new_tokens=6, temperature=0.0)[0] for p in prompts]
