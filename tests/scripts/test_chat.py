"""chat.py: the conversation, its commands, and pictures that look as they did in training."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import chat
import evaluate
from minivlm import chatbot
from minivlm.conversation import render
from minivlm.loading.images import Pictures, fit, to_tensor
from minivlm.loading.models import fit_of
from minivlm.running import checkpoint
from test_train_scripts import config_of


@pytest.fixture
def asked(monkeypatch) -> list[tuple[torch.Tensor | None, list[int]]]:
    """The pictures and prompts that the model gets; its answers are empty."""
    seen = []

    def stream(model, images, prompts, **_):
        seen.append((images, prompts[0]))
        return iter(())

    monkeypatch.setattr(chatbot, "stream", stream)
    return seen


@pytest.fixture
def wide(tmp_path) -> Path:
    """A picture twice as wide as high: red, green, blue, white from left to right."""
    picture = Image.new("RGB", (96, 48), "white")
    for i, color in enumerate(("red", "green", "blue")):
        picture.paste(color, (24 * i, 0, 24 * i + 24, 48))
    path = tmp_path / "a wide one.png"
    picture.save(path)
    return path


def talk(monkeypatch, run: Path, *lines: str, **options) -> None:
    """Type these lines, then an empty one."""
    typed = iter([*lines, ""])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    chat.main(chat.Config(str(run), max_new_tokens=4, **options))


def test_chat_answers_once_about_a_picture(runs, folder, capsys):
    """Catches a chat that breaks on the pictures that prepare.py itself writes."""
    picture = str(folder / "samples" / "0.png")
    chat.main(chat.Config(str(runs / "sft"), picture, "Is there a red car?", max_new_tokens=5))
    assert capsys.readouterr().out.endswith("\n")


def test_chat_talks_in_turns_and_survives_a_wrong_picture(runs, folder, capsys, monkeypatch):
    """Catches a conversation lost to a typing mistake, and control tokens typed by the user."""
    picture = str(folder / "samples" / "1.png")
    talk(
        monkeypatch, runs / "sft", "Describe the picture.", "/image nowhere.png",
        "<image> <|end|> What color?", "/new", f"/image {picture}", "List the objects.",
        image=picture,
    )
    assert "no picture at nowhere.png" in capsys.readouterr().out


@pytest.mark.parametrize("written", (
    "a wide one.png", '"a wide one.png"', "'a wide one.png'", r"a\ wide\ one.png",
    "~/a wide one.png", '  "~/a wide one.png"  ',
))
def test_a_picture_is_found_as_terminals_paste_it(written, runs, wide, monkeypatch, asked, capsys):
    """Catches quotes, backslashes and ~ taken for parts of a name."""
    monkeypatch.chdir(wide.parent)
    monkeypatch.setenv("HOME", str(wide.parent))
    talk(monkeypatch, runs / "sft", f"/image {written}", "What is this?")
    [(images, _)] = asked
    assert images is not None
    assert capsys.readouterr().out == "\n"


@pytest.mark.parametrize("line", ("/image", "/image ", "/images x.png", "/quit", "/help"))
def test_a_command_that_is_none_is_explained_and_not_asked(line, runs, monkeypatch, asked, capsys):
    """Catches /image without a path, or a misspelled command, put to the model as a question."""
    talk(monkeypatch, runs / "sft", line)
    assert not asked and "/image PATH" in capsys.readouterr().out


def test_help_shows_questions_that_suit_the_data_set(runs, monkeypatch, asked, capsys, tmp_path):
    """Catches a stranger who does not know what to ask, and a run whose data are gone."""
    meta = {"name": "t", "image_size": 60, "questions": ["Is it day?"]}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    for folder, question in ((tmp_path, "Is it day?"), (tmp_path / "gone", "Describe the")):
        talk(monkeypatch, runs / "sft", "/help", data=str(folder))
        assert question in capsys.readouterr().out
    assert not asked


def test_a_number_names_a_held_out_picture(runs, folder, monkeypatch, asked, capsys):
    """Catches a number that is read as a file name, and a picture of a wrong data folder."""
    talk(monkeypatch, runs / "sft", "/new 5", "What?", "/new 99999", "What?", image="2")
    pictures = Pictures(folder, 60)
    assert torch.equal(asked[0][0], pictures.get(["val.npy#5"]))
    assert torch.equal(asked[1][0], asked[0][0])  # the old picture stays
    assert "there is no '99999'" in capsys.readouterr().out


def test_a_conversation_gets_more_pictures(runs, folder, monkeypatch, asked, capsys):
    """Catches a picture that no mark stands for, that takes another's place, or that is lost."""
    talk(
        monkeypatch, runs / "sft", "What?", "/image 5", "/image nowhere.png", "/image 7", "And?",
        "And now?", "/new", "What?", "/new 3", "What?", image="2",
    )
    pictures, tokenizer = Pictures(folder, 60), checkpoint.tokenizer_of(
        checkpoint.load(runs / "sft", ("sft",)))
    human = {"from": "human"}
    one = human | {"value": "<image>\nWhat?"}
    two = human | {"value": "<image>\n<image>\nAnd?"}
    three = human | {"value": "<image>\n<image>\n<image>\nWhat?"}
    silent = {"from": "gpt", "value": "..."}
    expected = [
        ([one], [2]), ([one, silent, two], [2, 5, 7]),
        ([one, silent, two, silent, human | {"value": "And now?"}], [2, 5, 7]),
        ([three], [2, 5, 7]), ([one], [3]),
    ]
    assert len(asked) == len(expected)
    for (images, prompt), (turns, numbers) in zip(asked, expected):
        assert prompt == render(turns, tokenizer, 9).ids
        assert torch.equal(images, pictures.get([f"val.npy#{n}" for n in numbers]))
    assert "no picture at nowhere.png" in capsys.readouterr().out


def test_more_pictures_than_the_context_holds_are_refused(runs, monkeypatch, capsys):
    """Catches a conversation that is cut, or lost, for one picture too many."""
    many = ["/image 3"] * 40
    talk(monkeypatch, runs / "sft", *many, "What?", "/new 3", "What?", image="2")
    lines = capsys.readouterr().out.splitlines()
    assert "the context holds" in lines[0] and "/new PATH" in lines[0] and len(lines) == 2


def test_a_single_question_is_no_command(runs, monkeypatch, asked):
    """Catches --ask /new, which was obeyed again and again without an end."""
    for question in ("/new", "/image x.png"):
        chat.main(chat.Config(str(runs / "sft"), ask=question))
    assert len(asked) == 2


# --- how pictures are made square ---


def padded(folder: Path, to: Path) -> Path:
    """A copy of a data folder whose pictures were padded."""
    shutil.copytree(folder, to)
    meta = json.loads((to / "meta.json").read_text())
    (to / "meta.json").write_text(json.dumps(meta | {"fit": "pad"}))
    return to


@pytest.mark.parametrize(
    "stage", ("clip", "align", "caption", "sft", "reward", "ppo", "grpo", "dpo"))
def test_every_stage_notes_how_pictures_were_made_square(stage, runs, folder, tmp_path):
    """Catches a model that learns from padded pictures and looks at cropped ones later."""
    data = str(padded(folder, tmp_path / "data"))
    script, cfg = config_of(stage, folder, runs, data=data, out=str(tmp_path / "run"), steps=0)
    script.main(cfg)
    assert fit_of(checkpoint.load(tmp_path / "run", (stage,))) == "pad"


@pytest.mark.parametrize("trained, chosen, mode", (
    ("pad", "auto", "pad"), ("stretch", "auto", "stretch"), ("pad", "crop", "crop"),
    (None, "auto", "crop"),  # an older checkpoint
))
def test_the_chat_looks_as_training_did(trained, chosen, mode, runs, wide, tmp_path, asked):
    """Catches a chat that cuts off what training showed: two of four colors here."""
    state = torch.load(runs / "sft" / "best.pt", weights_only=True)
    state["configs"].pop("fit")
    if trained:
        state["configs"]["fit"] = trained
    torch.save(state, tmp_path / "best.pt")
    chat.main(chat.Config(str(tmp_path), str(wide), "What is this?", fit=chosen))
    with Image.open(wide) as picture:
        expected = to_tensor(fit(picture, 60, mode))
    assert torch.equal(asked[0][0][0], expected)


def test_evaluation_looks_as_training_did(runs, folder, wide, tmp_path, monkeypatch):
    """Catches a data folder's files cropped for a model that learned from stretched ones."""
    data = padded(folder, tmp_path / "data")
    record = {"id": "a", "image": wide.name, "captions": ["Four colors."]}
    (data / "val.jsonl").write_text(json.dumps(record) + "\n")
    shutil.copy(wide, data)
    state = torch.load(runs / "clip" / "best.pt", weights_only=True)
    state["configs"]["fit"] = "stretch"
    torch.save(state, tmp_path / "best.pt")
    modes = []

    def noted(image, size, mode):
        modes.append(mode)
        return fit(image, size, mode)

    monkeypatch.setattr("minivlm.loading.images.fit", noted)
    evaluate.main(evaluate.Config(run=str(tmp_path), data=str(data), blind=False))
    assert set(modes) == {"stretch"}
