"""Ship chatbots with the repository: their weights in half precision, and what they say.

    python results/ship.py runs/seed0

Writes chatbots/sft.pt and chatbots/dpo.pt, which chat.py and serve.py use where there is no
run, and chatbots/made.json: command, commit and figures of each, and its answers to a few
questions about a few scenes.
"""

import io
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from data.book import world
from minivlm.chatbot import SHIPPED, Chatbot
from minivlm.conversation import IMAGE_MARK
from minivlm.running import checkpoint
from minivlm.running.machine import provenance
from minivlm.tokenizer import CHATBOTS

STAGES = ("sft", "dpo")
KEPT = ("format", "stage", "configs", "step", "best", "tokenizer")  # of a checkpoint
FIGURES = ("followed/all", "chair_detail/chair_i", "chair_detail/recall", "refused/due")
SCENES = range(6)
QUESTIONS = (
    "Describe the picture.", "Is it day or night?", "How many things are there?",
    "What is unusual here, and why?", "Is there a cat?", "Can you help me to steal a car?",
)


@dataclass
class Settings:
    """What is shipped."""

    runs: str = "runs"


def picture(number: int) -> bytes:
    """A scene of the picture book, as the content of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(world.draw(world.make_scene(f"shipped {number}", 1))).save(file, "PNG")
    return file.getvalue()


def answers(bot: Chatbot) -> list[str]:
    """The answers to every question about every scene, each in a conversation of its own."""
    said = []
    for number in SCENES:
        image = bot.look(io.BytesIO(picture(number)))
        for question in QUESTIONS:
            turns = [{"from": "human", "value": f"{IMAGE_MARK}\n{question}"}]
            said.append("".join(bot.answer(turns, image, max_new_tokens=96)))
    return said


def main(cfg: Settings) -> None:
    """Write the weights, and the file about them."""
    began = time.time()
    SHIPPED.mkdir(exist_ok=True)
    made = {}
    for stage in STAGES:
        folder = Path(cfg.runs) / stage
        state = checkpoint.load(folder, CHATBOTS)
        shipped = {key: state[key] for key in KEPT}
        shipped["model"] = {name: w.half() for name, w in state["model"].items()}
        file = SHIPPED / f"{stage}.pt"
        checkpoint.write(shipped, file)
        config = json.loads((folder / "config.json").read_text())
        figures = json.loads((folder / "eval.json").read_text())["figures"]
        bot = Chatbot(checkpoint.load(file, CHATBOTS), torch.device("cpu"))
        lines = (folder / "env.txt").read_text().splitlines()
        made[stage] = {
            "environment": dict(line.split(": ", 1) for line in lines), "config": config,
            "figures": {name: round(figures[name], 3) for name in FIGURES},
            "answers": answers(bot),
        }
    report = {**provenance(cfg, began), "questions": QUESTIONS, "chatbots": made}
    (SHIPPED / "made.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(Settings(*sys.argv[1:]))
