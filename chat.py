"""Talk about a picture with a trained run, in the terminal.

    python chat.py --image data/book/prepared/samples/0.png
    python chat.py --image 7                 held-out picture 7 of the data it learned from
    python chat.py --image scene.png --ask "How many cats are there?"

Some lines have a meaning of their own in a conversation:

    an empty line, or Ctrl-D    ends it
    /image PATH                 adds a picture to the next question; or a number's
    /new                        starts a new conversation about the same pictures
    /new PATH                   starts a new conversation about another picture
    /help                       shows these, and questions that suit the data set

Reads: a run folder of train_sft.py, train_ppo.py, train_dpo.py, train_align.py or
train_caption.py.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from minivlm.chatbot import Chatbot, find
from minivlm.conversation import IMAGE_MARK, Turn
from minivlm.loading.images import Pictures
from minivlm.loading.prepared import load_meta
from minivlm.pretrained.weights import load_state
from minivlm.running import machine, options
from minivlm.tokenizer import CHATBOTS

COMMANDS = (
    "/new starts a new conversation, /new PATH one about another picture; "
    "/image PATH adds a picture; /help shows questions to ask"
)
# if the data set names none
QUESTIONS = ("Describe the picture.", "What is in it?", "How many objects are there?")

# --- config ---


@dataclass
class Config:
    """Options of the conversation; the comments are the help texts."""

    # conversation
    run: str = "runs/sft"  # run folder of the model, or folder of a published LLaVA
    image: str = ""  # picture to talk about: a file, or a number, see data; empty = none
    ask: str = ""  # a question to ask once, then exit; empty = a conversation
    fit: str = "auto"  # auto | crop | pad | stretch; to make it square; auto = as trained
    data: str = ""  # data folder of numbered pictures; empty = the one that the run learned
    # answers
    max_new_tokens: int = 128  # >= 1; most tokens of an answer
    temperature: float = 0.0  # >= 0; 0 = the likeliest token, 1 = the model's distribution
    top_k: int = 0  # >= 0; draw from the k likeliest tokens only; 0 = from all
    top_p: float = 1.0  # 0 .. 1; draw from the likeliest tokens of this total probability
    # machine
    seed: int = 0  # >= 0; decides what is drawn at temperatures above 0
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps; auto = a GPU if there is one
    dtype: str = "auto"  # auto | float32 | bfloat16; auto = bfloat16 on a GPU, else float32
    threads: int = 0  # >= 0; CPU threads; 0 = torch's choice


# --- answer ---


def load_picture(bot: Chatbot, path: str, folder: str) -> torch.Tensor:
    """Load a picture as the model takes it: (1, 3, S, S).

    Args:
        path: as a user types it or a terminal pastes it: with ~, quotes or backslashes; or
            the number of a held-out picture.
        folder: the data folder of numbered pictures.
    """
    if path.isdecimal() and not Path(path).is_file():
        return Pictures(folder, bot.size, bot.mode).get([f"val.npy#{path}"]).to(bot.device)
    if not Path(path).is_file():
        try:
            path = " ".join(shlex.split(path))
        except ValueError:  # a quotation mark without a second one belongs to the name
            pass
        path = os.path.expanduser(path)
    return bot.look(path)


def suggestions(folder: str) -> str:
    """Commands, and questions that suit a data folder, one a line."""
    try:
        questions = load_meta(folder).get("questions", QUESTIONS)
    except (ValueError, OSError):  # the run may be here without its data
        questions = QUESTIONS
    return "\n".join([COMMANDS, *(f"  {question}" for question in questions)])


def typed() -> str:
    """Return the next line that the user types; "" at the end of the input."""
    try:
        return input("you: ").strip()
    except EOFError:
        return ""


def main(cfg: Config) -> dict[str, float]:
    """Load the run, then answer once or talk until the user stops."""
    options.check(cfg)

    # --- model ---
    machine.seed_everything(cfg.seed, cfg.threads)
    device = machine.pick_device(cfg.device)
    run = find(cfg.run)
    if run != cfg.run:
        shipped = f"chatbots/{Path(run).name}"
        print(f"no run at {cfg.run}; the shipped {shipped} answers", file=sys.stderr)
    state = load_state(run, (*CHATBOTS, "align", "caption"))
    data = cfg.data or str(state["configs"].get("data", ""))
    bot = Chatbot(state, device, cfg.dtype, cfg.fit)
    drawing = {
        "max_new_tokens": cfg.max_new_tokens, "temperature": cfg.temperature,
        "top_k": cfg.top_k, "top_p": cfg.top_p,
        "generator": torch.Generator(device).manual_seed(cfg.seed),
    }

    # --- conversation ---
    def look(path: str) -> torch.Tensor:
        return load_picture(bot, path, data)                         # (1, 3, S, S)

    coming = [look(cfg.image)] if cfg.image else []  # pictures of the next question
    shown: list[torch.Tensor] = []  # pictures of the turns before it
    turns: list[Turn] = []
    while True:
        question = cfg.ask or typed()
        if not question:
            break
        if question.startswith("/") and not cfg.ask:
            command, _, path = question.partition(" ")
            path = path.strip()
            try:
                if command == "/image" and path:
                    coming.append(look(path))
                elif command == "/new":
                    coming = [look(path)] if path else shown + coming
                    shown, turns = [], []
                else:
                    print(options.printable(suggestions(data)))
            except (ValueError, FileNotFoundError) as error:
                # the pictures and their conversation stay
                print(options.printable(str(error)))
            continue
        # the user cannot add a picture by typing its mark
        question = question.replace(IMAGE_MARK, "image")
        question = f"{IMAGE_MARK}\n" * len(coming) + question
        turns.append({"from": "human", "value": question})
        images = torch.cat(shown + coming) if shown or coming else None
        text = ""
        try:
            for piece in bot.answer(turns, images, **drawing):
                print(options.printable(piece), end="", flush=True)
                text += piece
            print()
        except ValueError as error:
            if cfg.ask:
                raise
            print(options.printable(f"{error} ({COMMANDS})"))
            turns.pop()
            continue
        shown += coming
        coming = []
        # render refuses an empty answer
        turns.append({"from": "gpt", "value": text.strip() or "..."})
        if cfg.ask:
            break
    return {}


if __name__ == "__main__":
    options.cli(main, Config)
