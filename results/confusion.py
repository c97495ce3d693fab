"""Draw a confusion picture: which class was taken for which, from the answers evaluate.py kept.

    python results/confusion.py runs/cifar10/clip results/cifar10/confusion.png

Rows are the true classes, columns the ones chosen by text prompts, cells the share of a row in %.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL, MARGIN = 52, 110  # pixels


def main(run: str, out: str) -> None:
    """Draw the matrix of a CLIP run's zero-shot answers."""
    lines = Path(run, "eval.answers.jsonl").read_text().splitlines()
    log = [e for e in map(json.loads, lines) if e["kind"] == "zero_shot"]
    counts = Counter((e["expected"], e["answer"]) for e in log)
    rows = Counter(e["expected"] for e in log)
    names = sorted(rows)
    side = MARGIN + CELL * len(names) + 10
    sheet = Image.new("RGB", (side, side), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, truth in enumerate(names):
        y = MARGIN + CELL * i
        draw.text((MARGIN - 6, y + CELL / 2), truth, "black", font, anchor="rm")
        draw.text((MARGIN + CELL * (i + 0.5), MARGIN - 8), truth[:7], "black", font, anchor="ms")
        for j, said in enumerate(names):
            share = counts[truth, said] / rows[truth]
            x, shade = MARGIN + CELL * j, int(255 * (1 - share))
            color = (shade, 255 - (255 - shade) // 3, shade) if i == j else (255, shade, shade)
            draw.rectangle((x, y, x + CELL - 2, y + CELL - 2), color)
            text = f"{100 * share:.0f}"
            draw.text((x + CELL / 2, y + CELL / 2), text, "black", font, anchor="mm")
    draw.text((6, 6), "true class (rows), chosen by text prompt (columns), %", "black", font)
    sheet.save(out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("confusion.py: error: expected a run folder and the picture to write")
    main(*sys.argv[1:])
