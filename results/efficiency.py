"""Draw results/instruct/efficiency.png: what is learned from how many dialogues of which types.

    python results/efficiency.py

Reads results/instruct/*-seed*.json; a point is the mean over the seeds, its bar reaches from the
lowest to the highest.
"""

import json
import math
import statistics
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent / "instruct"
SIZES = (1000, 3000, 10000, 30000)
TYPES = ("30000", "no_conversation", "no_detail", "no_reasoning")
SIDES = (("", "phrasings that are taught", "#1f5fa8"),
         ("held_out_", "phrasings never read", "#c2571a"))
WIDTH, HEIGHT, LEFT, TOP, PANEL = 1060, 460, 60, 56, 400  # pixels; PANEL: width of one of the two
FONT = 15


def values(name: str) -> list[float]:
    """The figure of each seed: the mean share of answers that do what was asked and are right.

    Raises:
        SystemExit: if there is no result of that name.
    """
    paths = sorted(HERE.glob(f"{name}-seed*.json"))
    if not paths:
        raise SystemExit(f"efficiency.py: error: no {HERE / name}-seed*.json; see instruct.sh")
    return [json.loads(path.read_text())["figures"]["followed/all"] for path in paths]


def main() -> None:
    """Draw both panels: number of dialogues on the left, types left out on the right."""
    sheet = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    bottom = HEIGHT - 70
    right = LEFT + PANEL + 110

    def y(value: float) -> float:
        return bottom - value * (bottom - TOP)

    for x0, title in ((LEFT, "number of dialogues"), (right, "30,000 dialogues, a type left out")):
        draw.text((x0 + PANEL / 2, bottom + 44), title, "black", font, anchor="mt")
        for tenth in range(0, 11, 2):
            draw.line((x0, y(tenth / 10), x0 + PANEL, y(tenth / 10)), "#dddddd")
            draw.text((x0 - 8, y(tenth / 10)), f"{tenth / 10:.1f}", "black", font, anchor="rm")
    draw.text((LEFT, 10), "does what was asked and is right, mean over kinds", "black", font)
    span = math.log(SIZES[-1] / SIZES[0])
    columns = [LEFT + 30 + (PANEL - 60) * math.log(n / SIZES[0]) / span for n in SIZES]
    bars = [right + PANEL * (i + 0.5) / len(TYPES) for i in range(len(TYPES))]
    for names, places in ((map(str, SIZES), columns), (TYPES, bars)):
        for name, x in zip(names, places):
            label = f"{int(name):,}" if name.isdigit() and places is columns else (
                "all" if name.isdigit() else name.replace("_", " "))
            draw.text((x, bottom + 8), label.replace("conversation", "convers."), "black", font,
                      anchor="mt")
    for side, (prefix, label, color) in enumerate(SIDES):
        draw.rectangle((right + 190 * side, 14, right + 190 * side + 12, 26), color)
        draw.text((right + 190 * side + 18, 10), label, "black", font)
        points = []
        for n, x in zip(SIZES, columns):
            seen = values(f"{prefix}{n}")
            points.append((x, y(statistics.fmean(seen))))
            draw.line((x, y(min(seen)), x, y(max(seen))), color, 3)
        draw.line(points, color, 2)
        for x, height in points:
            draw.ellipse((x - 5, height - 5, x + 5, height + 5), color)
        for name, x in zip(TYPES, bars):
            seen, at = values(prefix + name), x + (side - 1) * 30
            mean = statistics.fmean(seen)
            draw.rectangle((at, y(mean), at + 28, bottom), color)
            draw.line((at + 14, y(min(seen)), at + 14, y(max(seen))), "black", 2)
            draw.text((at + 14, y(max(seen)) - 4), f"{mean:.2f}", "black", font, anchor="mb")
    sheet.save(HERE / "efficiency.png")


if __name__ == "__main__":
    main()
