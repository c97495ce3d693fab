"""Draw docs/answers.png: held-out pictures, a question each, the answer that evaluate.py kept.

    python results/figure.py [runs/sft] [data/shapes/prepared]

The pictures are the first ones of each kind of question, not chosen by hand.
"""

import json
import sys
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

KINDS = ("exist", "color", "count", "position", "hidden", "detail", "private", "harmless")
SIDE, TEXT, COLUMNS = 240, 170, 4  # pixels of a picture and of the lines below it


def main(
    run: str = "runs/sft", data: str = "data/shapes/prepared", out: str = "docs/answers.png"
) -> None:
    """Draw one panel for each kind of question."""
    log = [json.loads(line) for line in Path(run, "eval.answers.jsonl").read_text().splitlines()]
    pixels = np.load(Path(data, "val.npy"), mmap_mode="r")
    font = ImageFont.load_default(14)
    rows = -(-len(KINDS) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + 16) + 16, rows * (SIDE + TEXT) + 16), "white")
    draw = ImageDraw.Draw(sheet)
    used: set[str] = set()
    for i, kind in enumerate(KINDS):
        entry = next(e for e in log if e["kind"] == kind and e["image"] not in used)
        used.add(entry["image"])
        x, y = 16 + i % COLUMNS * (SIDE + 16), 16 + i // COLUMNS * (SIDE + TEXT)
        picture = Image.fromarray(pixels[int(entry["image"].split("#")[1])])
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), (x, y))
        lines = textwrap.wrap(entry["question"], 32)
        lines += [f"> {line}" for line in textwrap.wrap(entry["answer"], 30)]
        draw.multiline_text((x, y + SIDE + 4), "\n".join(lines[:10]), fill="black", font=font)
    sheet.save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
