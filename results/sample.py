"""Write docs/dialogues_nlvr.md and .png: 30 dialogues of the data engine, to be checked by hand.

    python data/nlvr/prepare.py --source nlvr.tar
    python data/instruct.py --data data/nlvr/prepared --n 3000
    python results/sample.py data/nlvr/prepared

They are the first ten of each type, not chosen by hand. Beside each stands what the teacher was
told; the picture lets a reader judge both.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
from data.instruct import TYPES, told
from minivlm.loading.prepared import load_records

EACH, COLUMNS, SIDE, GAP = 10, 6, 150, 28  # dialogues of a type; pixels of a picture, of its number


def main(data: str) -> None:
    """Draw the pictures on one sheet and write what is said about each."""
    records = {r["image"]: r for r in load_records(data, "train")}
    dialogues = load_records(data, "instruct", need=("conversations",))
    chosen = [d for kind in TYPES
              for d in [d for d in dialogues if f"-{kind}-" in d["id"]][:EACH]]
    rows, packs = -(-len(chosen) // COLUMNS), {}
    sheet = Image.new("RGB", (COLUMNS * (SIDE + 10) + 10, rows * (SIDE + GAP) + 10), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    lines = [
        "# Thirty dialogues about NLVR's pictures", "",
        "Written by `results/sample.py` (see there), the offline teacher of `data/instruct.py` and "
        "the boxes of the Cornell NLVR corpus (Suhr et al. 2017): the first ten of each type. A "
        "picture's three boxes lie top left, top right and bottom left. Places told as numbers are "
        "x1, y1, x2, y2 in shares of the picture's sides.", "",
        "![the thirty pictures](dialogues_nlvr.png)", "",
    ]
    for i, d in enumerate(chosen):
        pack, row = d["image"].split(".npy#")
        packs.setdefault(pack, np.load(f"{data}/{pack}.npy", mmap_mode="r"))
        x, y = 10 + i % COLUMNS * (SIDE + 10), 10 + i // COLUMNS * (SIDE + GAP)
        picture = Image.fromarray(packs[pack][int(row)])
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y))
        draw.text((x, y + SIDE + 2), str(i + 1), "black", font)
        lines += [f"## {i + 1}: {d['id']}", "", "```"]
        lines += [*told(records[d["image"]], True).splitlines(), "```", ""]
        for turn in d["conversations"]:
            who, text = turn["from"], turn["value"].removeprefix("<image>\n")
            lines.append(f"**{text}**  " if who == "human" else text.replace("\n", "  \n") + "\n")
    sheet.save(ROOT / "docs" / "dialogues_nlvr.png")
    (ROOT / "docs" / "dialogues_nlvr.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("sample.py: error: expected a folder made by data/nlvr/prepare.py")
    main(sys.argv[1])
