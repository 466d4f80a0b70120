"""Pictures captioned by Apache Beam's workers: what is written is what one process writes."""

import functools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, ROOT, born, tiny_config
from PIL import Image

from sphinx_jax.checkpoint import store
from sphinx_jax.data.prepare.pipeline import InProcesses, OnBeam, Order, prepare
from sphinx_jax.data.tokenizer import load_tokenizer
from sphinx_jax.generate.batching.pictures import Picture
from sphinx_jax.generate.caption import ByRunInference, Here, caption
from sphinx_jax.generate.caption_piece import Captions, pieces
from sphinx_jax.generate.request import Said

FILES, EACH = 3, 4


class Notes:
    """An engine that notes in a folder that it was made and what it was asked, and fails after so many answers."""

    def __init__(self, folder: Path, until: int = 10**6):
        self.folder, self.until, self.pictures = folder, until, self
        self._note("made")

    def _note(self, line):
        with (self.folder / "notes").open("a") as file:
            file.write(f"{line}\n")

    def picture(self, image):
        return Picture(Path(image).name if isinstance(image, str) else str(sum(image)))

    def room(self, with_picture, new_tokens):
        return []

    def as_completed(self, requests):
        for place, request in enumerate(requests):
            if not self.until:
                raise RuntimeError("the worker is lost")
            self.until -= 1
            self._note(request.image.name)
            yield place, [Said(f"this is {request.image.name}", [1], [-0.5], "stop")]


@pytest.fixture(scope="module")
def lists(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("lists")
    files = []
    for number in range(FILES):
        names = [f"{number}-{i}.png" for i in range(EACH)]
        for i, name in enumerate(names):
            pixels = np.random.default_rng(EACH * number + i).integers(0, 255, (20, 30, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name)
        files.append(folder / f"{number}.tsv")
        files[-1].write_text("".join(f"a picture\t{name}\n" for name in names))
    return files


def shards(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("part-*")}


def by_beam(folder: Path, until: int = 10**6) -> ByRunInference:
    return ByRunInference(functools.partial(Notes, folder, until), OnBeam())


def test_the_command_writes_the_same_on_beam(lists, tmp_path):
    pytest.importorskip("apache_beam")
    config = tiny_config()
    model = store.save(tmp_path / "model", born(config), config, load_tokenizer(DATA / "tokenizer.model"), {})
    for name, more in (("here", ()), ("beam", ("--runner", "FnApiRunner"))):
        command = [sys.executable, "tools/caption.py", model, "--format", "cc3m", "--input", *lists]
        command += ["--out", tmp_path / name, "--max-new-tokens", "6", "--batch", "2", "--quiet", *more]
        done = subprocess.run(
            list(map(str, command)), cwd=ROOT, capture_output=True, text=True, env=os.environ, timeout=400
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert len(shards(tmp_path / "here")) == FILES
    assert shards(tmp_path / "beam") == shards(tmp_path / "here")
    told = [(tmp_path / name / "manifest.json").read_bytes() for name in ("here", "beam")]
    assert told[0] == told[1]


@pytest.mark.parametrize("until", [0, 1, EACH, EACH + 2, FILES * EACH - 1])
def test_a_lost_worker_costs_no_answer(lists, tmp_path, until):
    pytest.importorskip("apache_beam")
    what = Captions("cc3m", lists, tmp_path / "out", tmp_path)
    with pytest.raises(Exception, match="the worker is lost"):
        caption(what, by_beam(tmp_path, until))
    assert not (tmp_path / "out" / "manifest.json").exists()
    items = caption(what, by_beam(tmp_path))
    notes = (tmp_path / "notes").read_text().split()
    names = [f"{number}-{i}.png" for number in range(FILES) for i in range(EACH)]
    assert sorted(notes) == sorted([*names, "made", "made"])  # one engine a run, each picture once
    assert [item.turns[0][1] for item in items] == [f"this is {name}" for name in names]
    assert sorted((tmp_path / "out").glob(".work")) == []


def test_shards_of_prepared_data_are_what_workers_are_given(lists, tmp_path):
    pytest.importorskip("apache_beam")
    prepare(Order("cc3m", lists, tmp_path / "prepared"), each=InProcesses(1, quiet=True))
    what = Captions("prepared", [tmp_path / "prepared"], tmp_path / "beam", tmp_path)
    assert [piece.shard for piece in pieces(what)] == [*range(FILES)]
    there = caption(what, by_beam(tmp_path))
    here = caption(Captions("prepared", what.inputs, tmp_path / "here", tmp_path), Here(Notes(tmp_path), quiet=True))
    assert [*there] == [*here] and len(there) == FILES * EACH
    assert shards(tmp_path / "beam") == shards(tmp_path / "here")


def test_only_names_travel(lists, tmp_path):
    pytest.importorskip("apache_beam")
    from sphinx_jax.generate.caption_handler import Handler

    what = Captions("cc3m", lists, tmp_path / "out", tmp_path)
    what.out.mkdir()
    handler = Handler(functools.partial(Notes, tmp_path), what)
    model = handler.load_model()
    for piece in pieces(what):
        assert len(pickle.dumps(piece)) < 500
        (name,) = handler.run_inference([piece], model)
        assert name == str(what.done(piece)) and Path(name).exists()
