"""Line charts, drawn with pillow alone, for the figures of results/ and for the report."""

import math
from collections.abc import Callable, Sequence

from PIL import Image, ImageColor, ImageDraw, ImageFont

COLORS = ("#1f5fa8", "#c2571a", "#5a9a3c", "#8a4fa0", "#777777")
FONT = 15
MANY = 30  # points; a longer line is drawn without dots, which would hide it
Points = Sequence[tuple[float, float]]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two values, four to ten of them.

    >>> ticks(0.0, 10.0)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    power = 10 ** math.floor(math.log10(high - low))
    # the range is 1 to 10 powers wide, so one of these steps fits at least four times
    for multiple in (2, 1, 0.5, 0.2):
        step = multiple * power
        if (high - low) / step >= 4:
            break
    first = math.ceil(low / step)
    last = math.floor(high / step)
    return [i * step for i in range(first, last + 1)]


def lighter(color: str) -> tuple[int, int, int]:
    """The color, mixed half and half with white."""
    red, green, blue = ImageColor.getrgb(color)
    return (red + 255) // 2, (green + 255) // 2, (blue + 255) // 2


def panel(
    draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], lines: Sequence[Points],
    title: str, x_title: str, x_label: Callable[[float], str] = "{:.4g}".format,
    colors: Sequence[str] = COLORS, thin_lines: Sequence[Points] = (),
) -> None:
    """Draw lines with a dot at each point; x begins at 0, y spans the values.

    Args:
        box: left, top, right, bottom of the axes in pixels; labels stand outside of it.
        x_label: how a number at the x axis is written. colors: of the lines, in their
        order; thin_lines have lighter tones of the same colors. thin_lines: drawn behind
        the others and without dots; one may be empty.
    """
    font = ImageFont.load_default(FONT)
    left, top, right, bottom = box
    points = [point for line in (*lines, *thin_lines) for point in line]
    low = min(y for _, y in points)
    high = max(y for _, y in points)
    # 5 % of air around the values; a constant line gets half a unit
    margin = 0.05 * (high - low) or 0.5
    low = low - margin
    high = high + margin
    x_end = 1.05 * max(x for x, _ in points) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        return (
            left + (right - left) * x / x_end,
            bottom - (bottom - top) * (y - low) / (high - low),
        )

    # grid lines first, so that the curves lie on top of them
    draw.text((left, top - 24), title, "black", font)
    draw.text(((left + right) / 2, bottom + 30), x_title, "black", font, "mt")
    for y in ticks(low, high):
        draw.line((*place(0, y), *place(x_end, y)), "#dddddd")
        draw.text((left - 8, place(0, y)[1]), f"{y:.4g}", "black", font, anchor="rm")
    for x in ticks(0, x_end):
        draw.text((place(x, low)[0], bottom + 8), x_label(x), "black", font, anchor="mt")
    for line, color in zip(thin_lines, colors):
        draw.line([place(x, y) for x, y in line], lighter(color), 1)
    for line, color in zip(lines, colors):
        draw.line([place(x, y) for x, y in line], color, 2)
        if len(line) > MANY:
            continue
        for x, y in line:
            x, y = place(x, y)
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), color)


def legend(
    draw: ImageDraw.ImageDraw, x: int, y: int, labels: dict[str, str], step: int
) -> None:
    """Draw strokes with their labels, `step` pixels apart. labels: label -> color."""
    font = ImageFont.load_default(FONT)
    for label, color in labels.items():
        draw.line((x, y, x + 24, y), color, 3)
        draw.text((x + 32, y), label, "black", font, anchor="lm")
        x += step


def row_of_panels(
    panels: Sequence[tuple[str, Sequence[Points]]], labels: dict[str, str], x_title: str,
    x_label: Callable[[float], str] = "{:.4g}".format,
) -> Image.Image:
    """Two panels side by side with one legend.

    Args:
        panels: title and lines of each; the lines stand in the order of the labels.
        labels: label -> color.
        x_title, x_label: as `panel` takes them.
    """
    sheet = Image.new("RGB", (1100, 470), "white")
    draw = ImageDraw.Draw(sheet)
    legend(draw, 70, 20, labels, 340)
    left = 70  # room for the numbers of the y axis
    for title, lines in panels:
        box = (left, 70, left + 430, 400)
        panel(draw, box, lines, title, x_title, x_label, list(labels.values()))
        left += 540
    return sheet
