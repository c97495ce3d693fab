"""minivlm/chatbot.py: answers piece by piece, and where a chatbot is found."""

import io

import pytest
import torch
from PIL import Image

from minivlm import chatbot
from minivlm.chatbot import Chatbot, find
from minivlm.conversation import IMAGE_MARK
from minivlm.running import checkpoint
from minivlm.tokenizer import CHATBOTS

ASKED = [{"from": "human", "value": "What is this?"}]


@pytest.fixture
def bot(runs) -> Chatbot:
    """The chatbot of the tests."""
    return Chatbot(checkpoint.load(runs / "sft", CHATBOTS), torch.device("cpu"))


def writes(monkeypatch, bot: Chatbot, ids: list[int]) -> None:
    """Let the model write these ids."""
    monkeypatch.setattr(chatbot, "stream", lambda *_, **__: iter([[i] for i in ids]))


def test_a_character_is_shown_when_it_is_whole(bot, monkeypatch):
    """Catches a letter of two bytes that is shown as two marks, and text after the end."""
    ids = [*" a é.".encode(), bot.stop, *b"never"]
    writes(monkeypatch, bot, ids)
    assert list(bot.answer(ASKED, None)) == ["a", " ", "é", "."]


def test_an_answer_that_breaks_off_within_a_character_is_whole_text(bot, monkeypatch):
    """Catches bytes that are kept back for ever."""
    writes(monkeypatch, bot, list("é".encode())[:1])
    assert list(bot.answer(ASKED, None)) == ["\ufffd"]


def test_two_answers_may_be_written_in_turn(bot):
    """Catches what one answer leaves behind for the other: each is as if it were alone."""
    images = bot.look(io.BytesIO(png("red")))
    seen = [{"from": "human", "value": f"{IMAGE_MARK}\nWhat is this?"}]
    conversations = [(ASKED, None), (seen, images)]
    alone = ["".join(bot.answer(*c, max_new_tokens=12)) for c in conversations]
    together = ["", ""]
    writing = [bot.answer(*c, max_new_tokens=12) for c in conversations]
    pieces = [next(w, None) for w in writing]
    while any(piece is not None for piece in pieces):
        together = [text + (piece or "") for text, piece in zip(together, pieces)]
        pieces = [next(w, None) for w in writing]
    assert together == alone and alone[0] != alone[1]


def png(color: str) -> bytes:
    """A small picture, as a file's content."""
    file = io.BytesIO()
    Image.new("RGB", (20, 10), color).save(file, "PNG")
    return file.getvalue()


def test_shipped_weights_stand_in_for_a_run_that_is_not_there(tmp_path, monkeypatch):
    """Catches shipped weights before a user's own, or in place of a folder that was mistyped."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chatbot, "SHIPPED", tmp_path / "chatbots")
    assert find("runs/sft") == "runs/sft"
    (tmp_path / "chatbots").mkdir()
    (tmp_path / "chatbots" / "sft.pt").touch()
    assert find("runs/sft") == str(tmp_path / "chatbots" / "sft.pt")
    assert find("mine/sft") == "mine/sft" and find("runs/ppo") == "runs/ppo"
    (tmp_path / "runs" / "sft").mkdir(parents=True)
    assert find("runs/sft") == "runs/sft"
