"""Write docs/dialogues_nlvr.md and .png: five dialogues of the data engine, to be read.

    python data/nlvr/prepare.py --source nlvr.tar
    python data/instruct.py --data data/nlvr/prepared --n 3000
    python results/sample.py data/nlvr/prepared

Nobody chose them: they are the first ones of each type. Before each stand the captions
and boxes of its picture, so that a reader can compare them with the picture and with the
dialogue.
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from data.instruct import record_as_text
from minivlm.loading.images import Pictures
from minivlm.loading.prepared import load_meta, load_records

DOCS = Path(__file__).resolve().parents[1] / "docs"
N_OF_TYPE = {"conversation": 2, "detail": 1, "reasoning": 2}
SIDE, GAP, NUMBER = 150, 10, 28  # pixels: a picture, the space around it, its number
PAGE = """# Five dialogues about NLVR's pictures

`results/sample.py` writes this page. The offline teacher of `data/instruct.py` wrote the
dialogues from the captions and boxes of the Cornell NLVR corpus (Suhr et al. 2017); it
saw no picture. They are the first two conversations, the first description, and the first
two questions that need reasoning.

Each block shows the captions and the objects of its picture. A picture has three boxes:
top left, top right and bottom left. Four numbers are x1, y1, x2, y2 as shares of the
picture's sides.

![the five pictures](dialogues_nlvr.png)
"""


def choose(dialogues: list[dict]) -> list[dict]:
    """The first dialogues of each type."""
    chosen = []
    for kind, n in N_OF_TYPE.items():
        of_kind = [d for d in dialogues if f"-{kind}-" in d["id"]]
        chosen += of_kind[:n]
    return chosen


def write_up(number: int, dialogue: dict, record: dict) -> list[str]:
    """The lines of the page about one dialogue."""
    given = record_as_text(record, boxes=True)
    lines = ["", f"## {number}: {dialogue['id']}", "", "```", given, "```", ""]
    for turn in dialogue["conversations"]:
        text = turn["value"].removeprefix("<image>\n")
        if turn["from"] == "human":
            lines.append(f"**{text}**  ")  # two spaces break the line in Markdown
        else:
            lines += [text.replace("\n", "  \n"), ""]
    return lines[:-1]


def main(data: str) -> None:
    """Draw the pictures on one sheet and write what is said about each."""
    records = {r["image"]: r for r in load_records(data, "train")}
    chosen = choose(load_records(data, "instruct", need=("conversations",)))
    pictures = Pictures(data, load_meta(data)["image_size"])
    width = len(chosen) * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (width, SIDE + NUMBER + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(16)
    lines = []
    x = GAP  # the pictures stand side by side
    for number, dialogue in enumerate(chosen, start=1):
        [pixels] = pictures.pixels([dialogue["image"]])
        picture = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(picture, (x, GAP))
        draw.text((x, GAP + SIDE + 2), str(number), "black", font)
        x += SIDE + GAP
        lines += write_up(number, dialogue, records[dialogue["image"]])
    sheet.save(DOCS / "dialogues_nlvr.png")
    (DOCS / "dialogues_nlvr.md").write_text(PAGE + "\n".join(lines) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("sample.py: error: expected a folder made by data/nlvr/prepare.py")
    main(sys.argv[1])
