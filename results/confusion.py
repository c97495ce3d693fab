"""Draw a confusion matrix of CLIP's zero-shot answers, which evaluate.py has kept.

    python results/confusion.py runs/cifar10/clip results/cifar10/confusion.png

A row is a true class, a column the class that CLIP chose by text prompts. A cell is the
share of its row in percent.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL, MARGIN = 52, 110  # pixels


def read_answers(run: str) -> list[dict]:
    """The zero-shot answers in a run folder."""
    lines = Path(run, "eval.answers.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    return [a for a in answers if a["kind"] == "zero_shot"]


def cell_color(share: float, is_right: bool) -> tuple[int, int, int]:
    """Green for right answers, red for wrong ones, the darker the larger the share."""
    shade = int(255 * (1 - share))
    if is_right:
        return shade, 255 - (255 - shade) // 3, shade
    return 255, shade, shade


def main(run: str, out: str) -> None:
    """Draw the matrix of a CLIP run."""
    answers = read_answers(run)
    # pairs of true and chosen class
    counts = Counter((a["expected"], a["answer"]) for a in answers)
    n_of = Counter(a["expected"] for a in answers)
    names = sorted(n_of)
    side = MARGIN + CELL * len(names) + 10
    sheet = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for i, truth in enumerate(names):
        y = MARGIN + CELL * i
        draw.text((MARGIN - 6, y + CELL / 2), truth, "black", font, anchor="rm")
        # as much of the name as fits above a column
        middle = MARGIN + CELL * (i + 0.5)
        draw.text((middle, MARGIN - 8), truth[:7], "black", font, anchor="ms")
        for j, answer in enumerate(names):
            share = counts[truth, answer] / n_of[truth]
            x = MARGIN + CELL * j
            color = cell_color(share, is_right=i == j)
            draw.rectangle((x, y, x + CELL - 2, y + CELL - 2), color)
            text = f"{100 * share:.0f}"
            draw.text((x + CELL / 2, y + CELL / 2), text, "black", font, anchor="mm")
    title = "true class (rows), chosen by text prompt (columns), %"
    draw.text((6, 6), title, "black", font)
    sheet.save(out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("confusion.py: error: expected a run folder and the picture to write")
    main(*sys.argv[1:])
