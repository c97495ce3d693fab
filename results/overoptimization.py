"""Draw results/preferences/overoptimization.png: what PPO's score is worth, by KL to the reference.

    python results/overoptimization.py

Two panels, the reward model's score and the true score by the scene; one line a way of training. A
point is the mean over the rollouts between two rows of the log, each of questions not seen before.

Source: the figure's idea, Gao et al. 2022, arXiv:2210.10760, figure 1 (there over the square root
of the KL).
"""

import csv
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent / "preferences"
WAYS = {  # file, label, color
    "hot": ("KL penalty, as by default", "#1f5fa8"),
    "no_kl": ("no KL penalty", "#c2571a"),
    "no_kl_facts": ("no KL penalty, reward model with facts", "#5a9a3c"),
}
PANELS = (
    ("score", "score by the reward model"), ("true_score", "true score, by the scene (1 .. 5)"),
)
WIDTH, HEIGHT, LEFT, TOP, PANEL, GAP, FONT = 1100, 470, 70, 70, 430, 110, 15


def points(name: str, key: str) -> list[tuple[float, float]]:
    """(square root of the KL in nats an answer, value) of each row of a run's log but the first.

    Raises:
        SystemExit: if there is no such log.
    """
    path = HERE / f"{name}-seed0.csv"
    if not path.is_file():
        raise SystemExit(f"overoptimization.py: error: no {path}; see preferences.sh")
    with path.open() as f:
        rows = [row for row in csv.DictReader(f) if row[key]]
    return [(math.sqrt(max(0.0, float(row["kl_answer"]))), float(row[key])) for row in rows]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two values, four to ten of them."""
    power = 10 ** math.floor(math.log10(high - low))
    step = next(s * power for s in (2, 1, 0.5, 0.2, 0.1) if (high - low) / (s * power) >= 4)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def main() -> None:
    """Draw both panels."""
    sheet = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    bottom = HEIGHT - 70
    for i, (label, color) in enumerate(WAYS.values()):
        x = LEFT + 340 * i
        draw.line((x, 20, x + 24, 20), color, 3)
        draw.text((x + 32, 20), label, "black", font, anchor="lm")
    for i, (key, title) in enumerate(PANELS):
        lines = {name: points(name, key) for name in WAYS}
        every = [p for line in lines.values() for p in line]
        low, high = min(y for _, y in every), max(y for _, y in every)
        low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
        widest, x0 = 1.05 * max(x for x, _ in every), LEFT + i * (PANEL + GAP)

        def at(x: float, y: float) -> tuple[float, float]:
            return x0 + PANEL * x / widest, bottom - (bottom - TOP) * (y - low) / (high - low)

        draw.text((x0, TOP - 24), title, "black", font)
        below = x0 + PANEL / 2, bottom + 34
        draw.text(below, "KL to the reference, nats an answer (square root)", "black", font, "mt")
        for y in ticks(low, high):
            draw.line((*at(0, y), *at(widest, y)), "#dddddd")
            draw.text((x0 - 8, at(0, y)[1]), f"{y:.4g}", "black", font, anchor="rm")
        for x in ticks(0, widest):
            draw.text((at(x, low)[0], bottom + 8), f"{x * x:.3g}", "black", font, anchor="mt")
        for name, line in lines.items():
            color, places = WAYS[name][1], [at(x, y) for x, y in line]
            draw.line(places, color, 2)
            for x, y in places:
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), color)
    sheet.save(HERE / "overoptimization.png")


if __name__ == "__main__":
    main()
