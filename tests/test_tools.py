"""Tools that draw and train what is kept in the repository."""

import importlib.util

import pytest
from conftest import ROOT, carried_out
from PIL import Image

from sphinx_jax.data.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def boxes() -> dict:
    spec = importlib.util.spec_from_file_location("draw_architecture", ROOT / "tools" / "draw_architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.BOXES


def test_the_figure_names_modules_that_are_there_and_is_what_its_tool_draws(boxes, tmp_path):
    assert len(boxes) > 8
    for _, _, module, *_ in boxes.values():
        assert (ROOT / "sphinx_jax" / module).exists(), module
    carried_out("tools/draw_architecture.py", tmp_path / "drawn.svg", cwd=ROOT)
    # paths of letters differ by version of matplotlib; what is drawn and where does not
    drawn, kept = (
        [line.split("_")[0] for line in file.read_text().splitlines() if "<g id=" in line]
        for file in (tmp_path / "drawn.svg", ROOT / "docs" / "how_it_works.svg")
    )
    assert drawn == kept


def test_a_contact_sheet_shows_as_many_pictures_as_are_asked_for(tmp_path):
    sizes = []
    for count in (2, 8):
        carried_out("tools/contact_sheet.py", tmp_path / "sheet.png", "--count", str(count), cwd=ROOT)
        with Image.open(tmp_path / "sheet.png") as sheet:
            sizes.append(sheet.size)
            assert len(sheet.getcolors(10**6)) > 50
    assert sizes[0] < sizes[1]


def test_a_tokenizer_is_trained_on_the_playground(tmp_path):
    carried_out("tools/train_tokenizer.py", tmp_path, "--size", "700", "--pictures", "20", cwd=ROOT)
    tokenizer = load_tokenizer(tmp_path / "tokenizer.model")
    assert tokenizer.vocab_size == 700
    text = "What colour is the star? red [0.10, 0.20, 0.30, 0.40]"
    assert tokenizer.decode(tokenizer.encode(text)) == text
