"""Draw docs/answers.png: held-out pictures, a question about each, the chatbot's answer.

    python results/figure.py [runs/sft] [data/shapes/prepared]

The answers are those that evaluate.py has kept. Nobody chose the pictures: they are the
first ones of each kind of question.
"""

import json
import sys
from pathlib import Path

from minivlm.loading.images import Pictures, contact_sheet
from minivlm.loading.prepared import load_meta

KINDS = ("exist", "color", "count", "position", "hidden", "detail", "private", "harmless")


def main(
    run: str = "runs/sft", data: str = "data/shapes/prepared", out: str = "docs/answers.png"
) -> None:
    """Draw one panel for each kind of question."""
    lines = Path(run, "eval.answers.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    shown: dict[str, dict] = {}  # picture -> the answer that stands below it
    for kind in KINDS:
        answer = next(a for a in answers if a["kind"] == kind and a["image"] not in shown)
        shown[answer["image"]] = answer
    texts = []
    for answer in shown.values():
        quoted = [f"> {line}" for line in answer["answer"].splitlines()]
        texts.append([answer["question"], *quoted])
    pictures = Pictures(data, load_meta(data)["image_size"])
    contact_sheet(pictures.pixels(list(shown)), texts).save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
