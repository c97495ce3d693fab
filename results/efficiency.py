"""Draw results/instruct/efficiency.png: what the chatbot learns from how many dialogues.

    python results/efficiency.py

The left panel varies the number of dialogues, the right panel leaves one type of them
out. Reads results/instruct/*-seed*.json. A point is the mean over the seeds; its bar
reaches from the lowest seed to the highest.
"""

import json
import math
import statistics
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent / "instruct"
# file -> label
SIZES = {"1000": "1,000", "3000": "3,000", "10000": "10,000", "30000": "30,000"}
TYPES = {"30000": "all", "no_conversation": "no convers.", "no_detail": "no detail",
         "no_reasoning": "no reasoning"}
PHRASINGS = (  # prefix of the files, label, color
    ("", "trained phrasings", "#1f5fa8"),
    ("held_out_", "unseen phrasings", "#c2571a"),
)
WIDTH, HEIGHT, LEFT, TOP = 1060, 460, 60, 56  # pixels
PANEL = 400  # width of one of the two panels
FONT = 15


def values(name: str) -> list[float]:
    """Of each seed the mean share of answers that do what was asked and are right.

    Raises:
        SystemExit: if there is no result of that name.
    """
    paths = sorted(HERE.glob(f"{name}-seed*.json"))
    if not paths:
        raise SystemExit(
            f"efficiency.py: error: {HERE / name}-seed*.json is missing; "
            f"results/instruct.sh writes it"
        )
    return [json.loads(path.read_text())["figures"]["followed/all"] for path in paths]


def main() -> None:
    """Draw both panels."""
    sheet = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT)
    bottom = HEIGHT - 70
    right = LEFT + PANEL + 110

    def y(value: float) -> float:
        """Pixels from the top; the axis goes from 0 to 1."""
        return bottom - value * (bottom - TOP)

    titles = {LEFT: "number of dialogues", right: "a type of the 30,000 left out"}
    for x, title in titles.items():
        draw.text((x + PANEL / 2, bottom + 44), title, "black", font, anchor="mt")
        for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
            draw.line((x, y(tick), x + PANEL, y(tick)), "#dddddd")
            draw.text((x - 8, y(tick)), f"{tick:.1f}", "black", font, anchor="rm")
    y_title = "does what was asked and is right, mean over kinds"
    draw.text((LEFT, 10), y_title, "black", font)

    # the x axis of the left panel is logarithmic
    sizes = [int(name) for name in SIZES]
    span = math.log(sizes[-1] / sizes[0])
    columns = [LEFT + 30 + (PANEL - 60) * math.log(n / sizes[0]) / span for n in sizes]
    bars = [right + PANEL * (i + 0.5) / len(TYPES) for i in range(len(TYPES))]
    for labels, places in ((SIZES, columns), (TYPES, bars)):
        for label, x in zip(labels.values(), places):
            draw.text((x, bottom + 8), label, "black", font, anchor="mt")

    for i, (prefix, label, color) in enumerate(PHRASINGS):
        x = right + 190 * i
        draw.rectangle((x, 14, x + 12, 26), color)
        draw.text((x + 18, 10), label, "black", font)
        points = []
        for name, x in zip(SIZES, columns):
            shares = values(prefix + name)
            points.append((x, y(statistics.fmean(shares))))
            draw.line((x, y(min(shares)), x, y(max(shares))), color, 3)
        draw.line(points, color, 2)
        for x, height in points:
            draw.ellipse((x - 5, height - 5, x + 5, height + 5), color)
        for name, middle in zip(TYPES, bars):
            shares = values(prefix + name)
            mean = statistics.fmean(shares)
            x = middle + (i - 1) * 30  # the first bar stands left of the middle
            draw.rectangle((x, y(mean), x + 28, bottom), color)
            top = y(max(shares))
            draw.line((x + 14, y(min(shares)), x + 14, top), "black", 2)
            draw.text((x + 14, top - 4), f"{mean:.2f}", "black", font, anchor="mb")
    sheet.save(HERE / "efficiency.png")


if __name__ == "__main__":
    main()
