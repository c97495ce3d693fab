"""Line charts with pillow alone, for the figures of this folder and the report of a speedrun."""

import math
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageFont

COLORS = ("#1f5fa8", "#c2571a", "#5a9a3c", "#8a4fa0", "#777777")
FONT = 15
Points = Sequence[tuple[float, float]]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two values, four to ten of them.

    >>> ticks(0.0, 10.0)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    power = 10 ** math.floor(math.log10(high - low))
    step = next(s * power for s in (2, 1, 0.5, 0.2, 0.1) if (high - low) / (s * power) >= 4)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def panel(
    draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], lines: Sequence[Points], title: str,
    below: str, x_name: Callable[[float], str] = "{:.4g}".format, colors: Sequence[str] = COLORS,
) -> None:
    """Draw lines with their points, x from 0, y as far as they go.

    Args:
        box: left, top, right, bottom of the axes in pixels; labels stand outside of it.
        below: what x is.
        x_name: how a number at the x axis is written.
    """
    font, (left, top, right, bottom) = ImageFont.load_default(FONT), box
    every = [p for line in lines for p in line]
    low, high = min(y for _, y in every), max(y for _, y in every)
    room = 0.05 * (high - low) or 0.5
    low, high, widest = low - room, high + room, 1.05 * max(x for x, _ in every) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        return (left + (right - left) * x / widest,
                bottom - (bottom - top) * (y - low) / (high - low))

    draw.text((left, top - 24), title, "black", font)
    draw.text(((left + right) / 2, bottom + 30), below, "black", font, "mt")
    for y in ticks(low, high):
        draw.line((*at(0, y), *at(widest, y)), "#dddddd")
        draw.text((left - 8, at(0, y)[1]), f"{y:.4g}", "black", font, anchor="rm")
    for x in ticks(0, widest):
        draw.text((at(x, low)[0], bottom + 8), x_name(x), "black", font, anchor="mt")
    for line, color in zip(lines, colors):
        places = [at(x, y) for x, y in line]
        draw.line(places, color, 2)
        for x, y in places:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), color)


def row_of_panels(
    panels: Sequence[tuple[str, Sequence[Points]]], labels: dict[str, str], below: str,
    x_name: Callable[[float], str] = "{:.4g}".format,
) -> Image.Image:
    """Two panels side by side with one legend. panels: (title, its lines); labels: label -> color.

    The lines of a panel stand in the order of the labels; `below` and `x_name` are `panel`'s.
    """
    sheet = Image.new("RGB", (1100, 470), "white")
    draw = ImageDraw.Draw(sheet)
    legend(draw, 70, 20, labels, 340)
    for i, (title, lines) in enumerate(panels):
        box = 70 + 540 * i, 70, 500 + 540 * i, 400
        panel(draw, box, lines, title, below, x_name, list(labels.values()))
    return sheet


def legend(draw: ImageDraw.ImageDraw, x: int, y: int, labels: dict[str, str], step: int) -> None:
    """A stroke of each color with its label, `step` pixels apart. labels: label -> color."""
    for i, (label, color) in enumerate(labels.items()):
        draw.line((x + step * i, y, x + step * i + 24, y), color, 3)
        draw.text((x + step * i + 32, y), label, "black", ImageFont.load_default(FONT), anchor="lm")
