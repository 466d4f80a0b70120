"""Pictures captioned by a model: each gets its own answer, whatever order they come in and wherever a run is killed."""

import io
import os
import tarfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sphinx_jax.config import ConfigError
from sphinx_jax.data import open_prepared
from sphinx_jax.data.image import load_image
from sphinx_jax.data.prepare.choose import Filters
from sphinx_jax.data.prepare.pipeline import InProcesses, Order, prepare
from sphinx_jax.data.tasks import instruct
from sphinx_jax.generate.batching.pictures import Picture
from sphinx_jax.generate.caption import Here, caption
from sphinx_jax.generate.caption_piece import Captions
from sphinx_jax.generate.request import Said

TASKS = ("short_caption", "detailed_caption")


def name_of(image: bytes) -> str:
    return sha256(load_image(image).tobytes()).hexdigest()[:12]


class Teller:
    """An engine that says which picture it sees and what it was asked, the last of each few first; killed after so
    many."""

    def __init__(self, until: int = 10**6):
        self.until, self.asked, self.pictures = until, [], self

    def picture(self, image):
        return Picture(name_of(image))

    def room(self, with_picture, new_tokens):
        return []

    def as_completed(self, requests):
        held = []
        for place, request in enumerate(requests):
            held.append((place, request))
            if len(held) == 5:
                yield from self._said(held)
        yield from self._said(held)

    def _said(self, held):
        while held:
            place, request = held.pop()
            if len(self.asked) == self.until:
                raise KeyboardInterrupt
            self.asked.append((request.image.name, request.prompt))
            task = next(task for task in TASKS if instruct(task) in request.prompt)
            text = "" if int(request.image.name[0], 16) == 0 else f"{request.image.name} {task}"
            yield place, [Said(text, [1, 2], [-0.5, -1.0 if task == TASKS[0] else -2.0], "stop")]


@pytest.fixture(scope="module")
def tars(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("tars")
    files = []
    for shard in range(2):
        files.append(folder / f"{shard}.tar")
        with tarfile.open(files[-1], "w") as tar:
            for i in range(14):
                pixels = np.random.default_rng(100 * shard + i).integers(0, 255, (8, 9, 3), np.uint8)
                stream = io.BytesIO()
                Image.fromarray(pixels).save(stream, "PNG")
                image = stream.getvalue()[: 50 if i == 3 else None]
                for ending, content in (("png", image), ("txt", b"alt text")):
                    member = tarfile.TarInfo(f"{shard}{i:03d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return files


def what(tars, out, checkpoint, **changes) -> Captions:
    values = {"format": "laion", "inputs": tars, "out": out, "checkpoint": checkpoint, "tasks": TASKS}
    return Captions(**values | changes)


def told(engine, captions: Captions):
    return caption(captions, Here(engine, quiet=True))


def shards(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(folder.glob("part-*"))]


def test_each_picture_has_its_own_answers(tars, tmp_path):
    items = told(Teller(), what(tars, tmp_path / "out", tmp_path))
    assert items.manifest["dropped"]["picture is missing or damaged"] == 2
    assert len(items) + sum(items.manifest["dropped"].values()) == 28
    assert items.manifest["domains"] == {"synthetic": len(items)}
    for i, item in enumerate(items):
        name = name_of(item.image)
        assert item.turns == tuple((instruct(task), f"{name} {task}") for task in TASKS) and item.tasks == TASKS
        assert item.text == "" and int(name[0], 16) != 0
        likelihoods = {"likelihood_short_caption": -0.75, "likelihood_detailed_caption": -1.25}
        assert items.kept(i).carried.items() >= likelihoods.items()
    made = items.manifest["made_from"]
    assert instruct("short_caption") in made["prompts"]["short_caption"] and made["checkpoint"] == str(tmp_path)


@pytest.mark.parametrize("until", [0, 1, 4, 5, 27, 51, 52])
def test_a_killed_run_asks_nothing_twice_and_writes_the_same(tars, tmp_path, until):
    told(Teller(), what(tars, tmp_path / "whole", tmp_path))
    engines = [Teller(until), Teller()]
    try:
        told(engines[0], what(tars, tmp_path / "cut", tmp_path))
    except KeyboardInterrupt:
        for record in (tmp_path / "cut" / ".work" / "said").glob("*.jsonl"):
            record.write_bytes(record.read_bytes() + b'[7, "short_cap')  # the half line of a kill
    items = told(engines[1], what(tars, tmp_path / "cut", tmp_path))
    asked = engines[0].asked + engines[1].asked
    assert len(asked) == len(set(asked)) == 26 * 2
    assert shards(tmp_path / "cut") == shards(tmp_path / "whole")
    assert told(Teller(0), what(tars, tmp_path / "cut", tmp_path))[0] == items[0]
    with pytest.raises(ConfigError, match="was prepared with domain = "):
        told(Teller(), what(tars, tmp_path / "cut", tmp_path, domain="real"))


def test_captions_are_chosen_by_likelihood_and_captioned_again(tars, tmp_path):
    first = told(Teller(), what(tars, tmp_path / "first", tmp_path, tasks=TASKS[:1]))
    assert {first.kept(i).carried["likelihood"] for i in range(len(first))} == {-0.75}
    order = Order("prepared", [tmp_path / "first"], tmp_path / "chosen", filters=Filters(at_least={"likelihood": -0.7}))
    assert len(prepare(order, each=InProcesses(1, quiet=True))) == 0
    order = Order("prepared", [tmp_path / "first"], tmp_path / "all", filters=Filters(at_least={"likelihood": -0.8}))
    assert [*prepare(order, each=InProcesses(1, quiet=True))] == [*first]
    prepared = what([tmp_path / "first"], tmp_path / "second", tmp_path, format="prepared", tasks=TASKS[1:])
    names = [shard["name"] for shard in first.manifest["shards"]]
    assert len(names) == 2
    half = Teller(first.manifest["shards"][0]["items"] + 1)  # killed in the second shard
    with pytest.raises(KeyboardInterrupt):
        told(half, prepared)
    rest = Teller()
    second = told(rest, prepared)
    asked = half.asked + rest.asked
    assert len(asked) == len(set(asked)) == len(first)
    assert [shard["name"] for shard in second.manifest["shards"]] == names
    assert [item.image for item in second] == [item.image for item in first]
    assert {item.tasks for item in open_prepared(tmp_path / "second")} == {TASKS[1:]}


def test_answers_go_with_the_file_they_are_about(tars, tmp_path):
    """However the files changed, or were named, between two attempts."""
    files = [tmp_path / tar.name for tar in tars]
    for file, tar in zip(files, tars, strict=True):
        file.write_bytes(tar.read_bytes())
    with pytest.raises(KeyboardInterrupt):
        told(Teller(30), what(files, tmp_path / "out", tmp_path))
    with pytest.raises(ConfigError, match="other files"):
        told(Teller(), what(files[::-1], tmp_path / "out", tmp_path))
    for file, tar in zip(files, tars[::-1], strict=True):
        file.write_bytes(tar.read_bytes())
        os.utime(file, (1, 1))
    items = told(Teller(), what(files, tmp_path / "out", tmp_path))
    for item in items:
        assert item.turns[0][1] == f"{name_of(item.image)} {TASKS[0]}"
    assert len({item.id for item in items}) == len(items)
