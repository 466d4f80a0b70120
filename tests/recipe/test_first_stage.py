"""The paper's data path, small: from tar shards and parquet to a fine-tuned model, by the commands of the docs."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

import sphinx_jax
from sphinx_jax.data import open_prepared
from sphinx_jax.data.playground import builder

RECIPE = ["-m", "sphinx_jax.main", "--config", "configs/sphinx_7b.py", "--smoke", "--quiet"]


def run(*arguments, cwd=ROOT):
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def write_list(file, *folders):
    file.write_text(json.dumps({"META": [{"path": str(folder)} for folder in folders]}))


@pytest.mark.slow
def test_from_the_webs_files_to_a_model(tmp_path):
    web, data, workdir = tmp_path / "web", tmp_path / "data", tmp_path / "run"
    for split in ("train", "validation"):
        run("tools/export_playground.py", web / split, "--web", "--size", "nano", "--split", split)
        for name, form, files in (
            ("real", "laion", "real/*.tar"),
            ("synthetic", "laion-coco", "synthetic/*.tar"),
            ("texts", "documents", "texts/*.parquet"),
        ):
            out = data / split / name
            run("tools/prepare_data.py", "--format", form, "--input", web / split / files, "--out", out, "--quiet")
    for name in ("real", "synthetic"):
        items = open_prepared(data / "train" / name)
        assert len(items) > 20 and {item.domain for item in items} == {name}
    # of pictures of the synthetic domain the caption is a model's, not what stood beside them
    told = {
        t["answer"]
        for r in builder.open_playground(web / "train" / "playground", "nano", "train", "synthetic")
        for t in r["turns"]
    }
    assert {item.text for item in open_prepared(data / "train" / "synthetic")} <= told

    # captions of the same world in COCO's files, to fine-tune on
    made = web / "train" / "playground"
    run("tools/export_playground.py", tmp_path / "public", "--size", "nano", "--split", "train", "--data", made)
    captions, tuned = tmp_path / "public" / "coco_caption" / "captions_val2014.json", data / "coco"
    run("tools/prepare_data.py", "--format", "coco-captions", "--input", captions, "--out", tuned, "--quiet")
    assert len(open_prepared(tuned)) > 20

    lists = {name: tmp_path / f"{name}.yaml" for name in ("pretrain", "train", "validation", "test")}
    write_list(lists["pretrain"], *(data / "train" / name for name in ("real", "synthetic", "texts")))
    write_list(lists["train"], tuned, data / "train" / "texts")
    for split in ("validation", "test"):
        write_list(lists[split], data / "validation" / "real", data / "validation" / "synthetic")
    given = [f"--config.data.meta.{split}={file}" for split, file in lists.items()]
    given += ["--workdir", workdir, "--config.stage.finetune.epochs=0.0", "--config.stage.finetune.steps=4"]
    run(*RECIPE, *given, "--stage", "pretrain_real")

    # the second half is what the model of the first half says about the pictures
    captions = data / "captions"
    shards = web / "train" / "real" / "*.tar"
    run(
        "tools/caption.py",
        workdir / "pretrain_real",
        "--format",
        "laion",
        "--input",
        shards,
        "--out",
        captions,
        "--max-new-tokens",
        "8",
        "--quiet",
    )
    told = open_prepared(captions)
    assert len(told) > 20 and {item.domain for item in told} == {"synthetic"} and told.kept(0).carried["likelihood"] < 0
    write_list(lists["pretrain"], *(data / "train" / name for name in ("real", "texts")), captions)
    run(*RECIPE, *given)

    beta = json.loads((workdir / "mix" / "beta.json").read_text())
    assert set(beta["names"]) == {"real", "synthetic"} and len(beta["real"]) == 3
    model = sphinx_jax.from_pretrained(workdir)
    assert isinstance(model.respond([["What is in the picture?", None]], image=told[0].image, max_new_tokens=4), str)
