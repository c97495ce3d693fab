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


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times each power of ten between two values above 0.

    >>> log_ticks(0.4, 11.0)
    [0.5, 1.0, 2.0, 5.0, 10.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [multiple * 10.0 ** power for power in powers for multiple in (1, 2, 5)]
    return [value for value in values if low <= value <= high]


def smooth(line: Points, reach: int = 2) -> Points:
    """Replace each value by the mean of itself and up to `reach` neighbors on each side.

    Near an end there are fewer neighbors on one side; then fewer count on the other, too,
    so that a straight line stays as it is.

    >>> smooth([(0, 3.0), (10, 0.0), (20, 6.0), (30, 9.0)], reach=1)
    [(0, 3.0), (10, 3.0), (20, 5.0), (30, 9.0)]
    """
    means = []
    for i, (x, _) in enumerate(line):
        n = min(reach, i, len(line) - 1 - i)
        near = [y for _, y in line[i - n:i + n + 1]]
        means.append((x, sum(near) / len(near)))
    return means


def lighter(color: str) -> tuple[int, int, int]:
    """The color, mixed half and half with white."""
    red, green, blue = ImageColor.getrgb(color)
    return (red + 255) // 2, (green + 255) // 2, (blue + 255) // 2


def panel(
    draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], lines: Sequence[Points],
    title: str, x_title: str, x_label: Callable[[float], str] = "{:.4g}".format,
    colors: Sequence[str] = COLORS, thin_lines: Sequence[Points] = (),
    dots: Sequence[Points] | None = None, is_log: bool = False,
) -> None:
    """Draw lines and dots; x begins at 0, y spans the values.

    Args:
        box: left, top, right, bottom of the axes in pixels; labels stand outside of it.
        x_label: how a number at the x axis is written.
        colors: of the lines and of the dots, in their order; thin_lines have lighter tones
            of the same colors.
        thin_lines: drawn behind the others; one may be empty.
        dots: groups of points; None = the points of the lines.
        is_log: whether the y axis is logarithmic; then all values are above 0.
    """
    font = ImageFont.load_default(FONT)
    left, top, right, bottom = box
    scale = math.log10 if is_log else float
    if dots is None:
        dots = [line if len(line) <= MANY else () for line in lines]
    points = [point for line in (*lines, *thin_lines, *dots) for point in line]
    lowest = min(y for _, y in points)
    highest = max(y for _, y in points)
    # 5 % of air around the values; a constant line gets half a unit
    margin = 0.05 * (scale(highest) - scale(lowest)) or 0.5
    low = scale(lowest) - margin
    high = scale(highest) + margin
    x_end = 1.05 * max(x for x, _ in points) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        return (
            left + (right - left) * x / x_end,
            bottom - (bottom - top) * (scale(y) - low) / (high - low),
        )

    # grid lines first, so that the curves lie on top of them
    draw.text((left, top - 24), title, "black", font)
    draw.text(((left + right) / 2, bottom + 30), x_title, "black", font, "mt")
    for y in log_ticks(10 ** low, 10 ** high) if is_log else ticks(low, high):
        draw.line((*place(0, y), *place(x_end, y)), "#dddddd")
        draw.text((left - 8, place(0, y)[1]), f"{y:.4g}", "black", font, anchor="rm")
    for x in ticks(0, x_end):
        draw.text((place(x, lowest)[0], bottom + 8), x_label(x), "black", font, anchor="mt")
    for line, color in zip(thin_lines, colors):
        draw.line([place(x, y) for x, y in line], lighter(color), 1)
    for line, color in zip(lines, colors):
        draw.line([place(x, y) for x, y in line], color, 2)
    for group, color in zip(dots, colors):
        for x, y in group:
            x, y = place(x, y)
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), color, "white")


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
    legend(draw, 70, 20, labels, min(340, 1000 // len(labels)))
    left = 70  # room for the numbers of the y axis
    for title, lines in panels:
        box = (left, 70, left + 430, 400)
        panel(draw, box, lines, title, x_title, x_label, list(labels.values()))
        left += 540
    return sheet
