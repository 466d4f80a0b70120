"""The chat in the terminal, driven by its standard input: whatever comes, it goes on."""

import io
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from sphinx_jax.generate.arguments import BadArgument, check_turns
from sphinx_jax.recipe.stages import chat


class Model:
    """Answers with what it was asked about, or fails as it is told."""

    def __init__(self, has_vision: bool = True):
        self.config = SimpleNamespace(name="fake", has_vision=has_vision)
        self.asked = []

    def respond(self, turns, image=None, **settings):
        check_turns(turns)
        self.asked.append(([tuple(turn) for turn in turns], image))
        question = turns[-1][0]
        if question == "fail":
            raise BadArgument("max_new_tokens 9\nleaves no room")
        if question == "interrupt":
            raise KeyboardInterrupt
        return f"{len(turns)} {question}"


@pytest.fixture
def talk(monkeypatch, capsys):
    def run(*lines: str, model: Model | None = None, image: str = "") -> tuple[Model, list[str]]:
        """What the model was asked, and what was said between the prompts."""
        model = model or Model()
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        chat.talk(model, chat.ChatStage(image=image))
        return model, [said.strip() for said in capsys.readouterr().out.split("you> ")]

    return run


def test_what_cannot_be_answered_leaves_the_conversation_as_it_was(talk):
    model, said = talk("one", "fail", "interrupt", "", "   ", "half \ud800", "two")
    assert said[1:] == [
        "sphinx> 1 one",
        "max_new_tokens 9 leaves no room",
        "stopped",
        "",
        "",
        "turns[1][0] holds half of a surrogate pair, which is no character",
        "sphinx> 2 two",
        "",
    ]
    assert model.asked[-1] == ([("one", "1 one"), ("two", None)], None)


def test_a_bad_picture_is_one_line_and_the_last_one_stays(talk, tmp_path, monkeypatch):
    for name in ("a.png", "my photo.png", "it's.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "text.png").write_text("no picture")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model, said = talk(
        "/image a.png", "one", "/image", "/image gone.png", "/image text.png", "/image https://x.org/a.png", "two"
    )
    assert said[3].startswith("/image PATH")
    assert [line.partition(" ")[0] for line in said[4:7]] == ["image"] * 3
    assert all(
        reason in line for reason, line in zip(("not exist", "not a picture", "web address"), said[4:7], strict=True)
    )
    assert model.asked == [([("one", None)], "a.png"), ([("one", "1 one"), ("two", None)], "a.png")]
    for line, found in (
        ("/image my photo.png", "my photo.png"),
        ('/image "my photo.png"', "my photo.png"),
        ("/image  'my photo.png' ", "my photo.png"),
        (r"/image my\ photo.png", "my photo.png"),
        ("/image it's.png", "it's.png"),
        ("/image ~/a.png", str(tmp_path / "a.png")),
        ("/image '~/my photo.png'", str(tmp_path / "my photo.png")),
    ):
        model, said = talk("first", line, "what")
        assert model.asked[-1] == ([("what", None)], found), said


def test_a_picture_to_begin_with_that_is_not_there_is_said(talk, tmp_path):
    model, said = talk("one", image=str(tmp_path / "gone.png"))
    assert "gone.png does not exist" in said[0] and model.asked == [([("one", None)], None)]


def test_a_model_without_eyes_says_so_once(talk, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    model, said = talk(f"/image {tmp_path / 'a.png'}", "one", model=Model(has_vision=False))
    assert said[1] == "fake is a text-only model; it takes no pictures"
    assert model.asked == [([("one", None)], None)]


def test_new_forgets_and_quit_leaves(talk):
    model, said = talk("one", "/new", "two", "/help", "/quit", "three")
    assert said == [chat.HELP, "sphinx> 1 one", "", "sphinx> 1 two", chat.HELP, ""]
    assert len(model.asked) == 2


def test_bytes_that_are_no_text_do_not_end_it(monkeypatch):
    out = io.BytesIO()
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n/image \xff.png\ncaf\xc3\xa9\n"), "utf-8")
    )
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "ascii", write_through=True))
    chat.talk(Model(), chat.ChatStage())
    said = out.getvalue().decode().split("you> ")
    assert "surrogate" in said[1] and "does not exist" in said[2] and said[3] == "sphinx> 1 caf?\n"
