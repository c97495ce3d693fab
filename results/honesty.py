"""Draw results/honesty/figure.png: right answers over answers "not sure", for all methods.

    python results/honesty.py

A point is a seed. The more a method moves to the right, the more it gives up; one that knows
what it does not know gives up what it would have answered wrongly, and loses no height.
results/honesty.sh writes what this reads.
"""

import json
from pathlib import Path

from PIL import Image, ImageDraw

from charts import COLORS, legend, panel
from tables import HONEST

HERE = Path(__file__).parent / "honesty"
TONES = (*COLORS, "#b8a02a", "#2a9a9a", "#d0589a")  # one for each way
PANELS = {"clear": "clearly visible things: right", "hardly": "hardly visible things: right",
          "absent": "absent things: said to be absent"}


def points(name: str, sight: str) -> list[tuple[float, float]]:
    """Shares of unsure and of right answers, of each seed; [] if there is no result."""
    paths = sorted(HERE.glob(f"{name}-seed*.json"))
    figures = [json.loads(path.read_text())["figures"] for path in paths]
    return [(f[f"sight/{sight}_unsure"], f[f"sight/{sight}_right"]) for f in figures]


def main() -> None:
    """Draw the three panels."""
    sheet = Image.new("RGB", (1640, 470), "white")
    draw = ImageDraw.Draw(sheet)
    ways = {name: label for name, label in HONEST.items() if points(name, "clear")}
    legend(draw, 70, 20, dict(zip(ways.values(), TONES)), 190)
    for i, (sight, title) in enumerate(PANELS.items()):
        dots = [points(name, sight) for name in ways]
        box = (70 + 540 * i, 70, 500 + 540 * i, 400)
        panel(draw, box, [], title, "\"not sure\"", colors=TONES, dots=dots)
    sheet.save(HERE / "figure.png")


if __name__ == "__main__":
    main()
