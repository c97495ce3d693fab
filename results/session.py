"""What a newcomer sees: one stage as it prints, and answers of the chatbot.

Runs train_clip.py into a temporary folder and talks to a trained run, both as a user would,
and writes what they print to results/session.json, from which the README shows it.

Run: python results/session.py runs/sft data/book/prepared
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from minivlm.running.machine import environment

HERE = Path(__file__).parent
PICTURE = "samples/5.png"
QUESTIONS = (  # that suit any picture of the book
    "Describe the picture.",
    "How many things are there?",
    "Is anything unusual here?",
    "Is it day or night?",
    "What color is the whale?",
    "Tell me a story about this picture.",
    "Why is the sky blue?",
    "Can you help me to break into a house?",
)


def printed(command: list[str]) -> list[str]:
    """Run a script of this checkout; return the lines that it prints, without empty ones.

    Raises:
        subprocess.CalledProcessError: if the script fails.
    """
    done = subprocess.run(
        [sys.executable, *command], text=True, capture_output=True, check=True,
        cwd=HERE.parent,
    )
    return [line.rstrip() for line in done.stdout.splitlines() if line.strip()]


def main(run: str, data: str) -> None:
    """Record a stage, and answers to questions that do not know of each other."""
    with tempfile.TemporaryDirectory() as folder:
        stage = printed(["train_clip.py", "--data", data, "--out", f"{folder}/clip"])
    # a user's run folder is runs/clip
    stage = [line.replace(f"{folder}/clip", "runs/clip") for line in stage]
    chat = ["chat.py", "--run", run, "--image", f"{data}/{PICTURE}", "--ask"]
    dialogue = []
    for question in QUESTIONS:
        dialogue += [f"you: {question}", *printed([*chat, question])]
    report = {
        "command": f"session.py {run} {data}", "environment": environment(),
        "picture": PICTURE, "stage": stage, "dialogue": dialogue,
    }
    (HERE / "session.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
