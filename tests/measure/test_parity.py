"""The table of parity: what it holds, and that it cannot pass when a number is wrong."""

import functools
import itertools
import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, ROOT

from sphinx_jax.checkpoint.foreign import accessory
from sphinx_jax.checkpoint.foreign.pth import PthWriter
from sphinx_jax.data.image import load_image, preprocess
from sphinx_jax.generate.engine import Engine
from sphinx_jax.measure import parity

TEXT = DATA / "llama_gqa"
TOOL = ROOT / "tools" / "parity.py"
# quantity -> the numbers on record that it is held to
KEYS = {
    "hidden": "text__final_norm",
    "logits": "text_logits_full",
    "loss": "text_loss",
    "decoding": "text_gen_logits",
}


def row(record: Path) -> dict[str, float]:
    return parity.worst(parity.compare(record, DATA / "images"))


def too_far(record: Path) -> set[str]:
    return {quantity for quantity, apart in row(record).items() if parity.over({"": {quantity: apart}})}


def changed(folder: Path, **arrays: np.ndarray) -> Path:
    """The record with other numbers."""
    shutil.copytree(TEXT, folder)
    np.savez(folder / "expected.npz", **dict(np.load(TEXT / "expected.npz")) | arrays)
    return folder


def with_norm(folder: Path, change) -> Path:
    """The record with another scale of the last norm."""
    shutil.copytree(TEXT, folder)
    tensors = {key: tensor.read() for key, tensor in accessory.open_folders([TEXT / "ckpt"]).items()}
    tensors["norm.weight"] = change(tensors["norm.weight"])
    (old,) = (folder / "ckpt").glob("*.pth")
    old.unlink()
    with PthWriter(old) as file:
        for key, tensor in tensors.items():
            file.add(f"llma.{key}", tensor)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """The folder of pre-processed pictures that the records were made with."""
    folder = tmp_path_factory.mktemp("images")
    images = [load_image(DATA / "images" / name) for name in ("img0.png", "img1.png")]
    for size in (448, 512):
        ready = np.stack([preprocess(image, size) for image in images])
        np.savez(folder / f"pre_{size}.npz", image=ready.transpose(0, 3, 1, 2))
    return folder


def test_a_true_record_is_within_every_bound():
    found = row(TEXT)
    assert found.keys() == {*KEYS, "greedy tokens"}
    assert parity.over({"gqa": found}) == []


@pytest.mark.parametrize("quantity", KEYS)
@pytest.mark.parametrize("wrong", [2.0, np.nan])
def test_one_wrong_number_is_too_far(tmp_path, quantity, wrong):
    numbers = np.load(TEXT / "expected.npz")[KEYS[quantity]].copy()
    numbers.reshape(-1)[-1] += wrong * parity.BOUNDS[quantity]
    assert too_far(changed(tmp_path / "r", **{KEYS[quantity]: numbers})) == {quantity}


def test_a_record_of_another_shape_is_too_far(tmp_path):
    logits = np.load(TEXT / "expected.npz")["text_logits_full"]
    assert too_far(changed(tmp_path / "r", text_logits_full=logits[:, :1])) == {"logits"}


def test_a_perturbed_weight_is_too_far(tmp_path):
    assert {"hidden", "logits", "decoding"} <= too_far(with_norm(tmp_path / "a", lambda scale: scale * 1.0001))
    assert set(KEYS) <= too_far(with_norm(tmp_path / "b", functools.partial(np.full_like, fill_value=np.nan)))


def test_greedy_tokens_are_the_same_and_as_many(tmp_path, monkeypatch):
    record, info = changed(tmp_path / "r"), json.loads((TEXT / "info.json").read_text())
    info["text_generate_tokens"][1][-1] += 1
    (record / "info.json").write_text(json.dumps(info))
    assert too_far(record) == {"greedy tokens"}

    whole = Engine.map

    def shorter(self, requests):
        for (said,) in whole(self, requests):
            yield [said._replace(tokens=said.tokens[:-1])]

    monkeypatch.setattr(Engine, "map", shorter)
    assert too_far(TEXT) == {"greedy tokens"}


def test_the_command_marks_and_names_what_is_too_far(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [str(TOOL), str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: .* holds no record"):
        runpy.run_path(str(TOOL), run_name="__main__")

    changed(tmp_path / "good")
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert ended.value.code == 0 and "**" not in capsys.readouterr().out

    changed(tmp_path / "worse", text_loss=np.float32(0))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOL), run_name="__main__")
    loss = float(np.load(TEXT / "expected.npz")["text_loss"])
    # a text as its code is printed, and means an exit status of 1
    assert ended.value.code == f"worse: loss {loss:.1e} from the record, the bound is 1e-05"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| quantity | bound | good | worse |"
    assert [line for line in lines if "**" in line] == [line for line in lines if line.startswith("| loss | 1e-05 | ")]
    assert any(line.endswith(f" | **{loss:.1e}** |") for line in lines)


@pytest.mark.parametrize(("name", "encoders"), [("llama_ens_light", 2), ("mixtral_sparse_ens", 4)])
def test_features_and_logits_with_pictures_are_within_every_bound(pictures, name, encoders):
    before = itertools.takewhile(lambda pair: pair[0] != "loss", parity.compare(DATA / name, pictures))
    found = parity.worst(before)
    assert sum(quantity.endswith("features") for quantity in found) == encoders
    assert found.keys() >= {"image tokens", "hidden", "logits"}
    assert parity.over({name: found}) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama_ens5", "llama_ens_light", "mixtral_sparse_ens"])
def test_every_number_on_record_is_within_its_bound(pictures, name):
    found = parity.worst(parity.compare(DATA / name, pictures))
    assert ("gradients" in found) == (name == "llama_ens5")
    assert parity.over({name: found}) == []
