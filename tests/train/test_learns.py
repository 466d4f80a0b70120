"""What is trained has learnt: pictures that it never saw are told apart, and a withheld picture is not."""

import json

import numpy as np
import pytest
from conftest import DATA, tiny_config
from PIL import Image

import sphinx_jax
from sphinx_jax.config import to_dict
from sphinx_jax.recipe import runner

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200), "white": (230, 230, 230)}
QUESTION = "Which colour?"


def shades(root, name: str, count: int) -> tuple[dict[str, list], str]:
    """Pictures of one colour with noise of their own, and their list."""
    random, pictures, items = np.random.default_rng(len(name)), {colour: [] for colour in COLOURS}, []
    for number in range(count):
        for colour, value in COLOURS.items():
            pixels = np.array(value) + random.integers(-25, 25, (24, 24, 3))
            file = root / f"{name}-{colour}-{number}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)
            pictures[colour].append(file)
            talk = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": colour}]
            items.append(json.dumps({"image": file.name, "conversations": talk, "task": "vqa"}))
    (root / f"{name}.jsonl").write_text("\n".join(items))
    (root / f"{name}.yaml").write_text(f"META:\n  - {{path: {name}.jsonl, root: {root}}}\n")
    return pictures, str(root / f"{name}.yaml")


@pytest.mark.slow
def test_pictures_that_were_held_out_are_told_apart(tmp_path):
    _, train = shades(tmp_path, "train", 8)
    unseen, validation = shades(tmp_path, "validation", 2)
    stage = {
        "kind": "train",
        "start": "fresh",
        "steps": 120,
        "batch": 12,
        "length": 200,
        "domains": {"*": 1.0},
        "text_batch": 0,
        "optimizer": "muon",
        "rate": 1e-2,
        "warmup": 5,
        "clip": 1.0,
        "log_every": 20,
        "save_every": 120,
        "cache_features": True,
        "evaluate_every": 20,
        "keep": "best",
    }
    values = {
        "model": to_dict(tiny_config()),
        "data": {"playground": None, "meta": {"train": train, "validation": validation}},
        "tokenizer": str(DATA / "tokenizer.model"),
        "stages": ("tune",),
        "stage": {"tune": stage},
    }
    runner.run(runner.parse(values), tmp_path / "w", quiet=True)
    history = [json.loads(line) for line in (tmp_path / "w/tune/history.jsonl").read_text().splitlines()]
    held = [entry["held_out/loss"] for entry in history]
    assert [entry["step"] for entry in history] == [*range(20, 121, 20)]
    assert min(held) < 0.5 * held[0] and all("held_out/task/vqa" in entry for entry in history)
    model = sphinx_jax.from_pretrained(tmp_path / "w")
    turns = [[QUESTION, None]]

    def says(picture) -> str:
        return model.respond(turns, image=picture, max_new_tokens=8, temperature=0.0)

    answers = [(says(file), colour) for colour, files in unseen.items() for file in files]
    assert sum(answer == colour for answer, colour in answers) >= len(answers) - 1, answers
    blind = [says(None) for _ in COLOURS]
    assert len(set(blind)) == 1
