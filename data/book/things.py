"""The things of the picture book, and how each of them is drawn.

A thing is drawn by a function of a few lines, on a square whose corners are (0, 0), top
left, and (1, 1). `sprite` turns such a drawing into pixels: large and small, in any color,
and with a dark outline, which tells silhouettes apart on every background.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

COLORS = {
    "red": (222, 44, 48), "orange": (246, 140, 28), "yellow": (252, 216, 48),
    "green": (40, 150, 66), "blue": (48, 84, 222), "purple": (146, 66, 190),
    "pink": (248, 146, 190), "white": (248, 248, 248), "brown": (140, 86, 46),
    "gray": (138, 140, 150),
}
PAINTED = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
INK = (38, 36, 48)  # outlines, eyes, wheels
PALE = (236, 240, 246)  # windows, sails, tablecloths
SKIN = (240, 190, 150)
WOOD = (122, 78, 44)
DOTS = 4  # a pixel is drawn as DOTS x DOTS dots


class Pen:
    """Draws on a square of side 1, in the thing's color unless another one is given."""

    def __init__(self, side: int, color: tuple[int, int, int]):
        self.side = side
        self.color = color
        self.image = Image.new("RGBA", (side, side))
        self.draw = ImageDraw.Draw(self.image)

    def _dots(self, points: tuple[float, ...]) -> list[float]:
        return [p * (self.side - 1) for p in points]

    def oval(self, *box: float, fill: tuple[int, int, int] | None = None) -> None:
        """Draw an oval in the box x1, y1, x2, y2."""
        self.draw.ellipse(self._dots(box), fill=fill or self.color)

    def block(self, *box: float, fill: tuple[int, int, int] | None = None) -> None:
        """Draw a rectangle with the corners x1, y1 and x2, y2."""
        self.draw.rectangle(self._dots(box), fill=fill or self.color)

    def shape(self, *points: float, fill: tuple[int, int, int] | None = None) -> None:
        """Draw a polygon with the corners x, y, x, y, ..."""
        self.draw.polygon(self._dots(points), fill=fill or self.color)

    def line(
        self, *points: float, width: float = 0.07, fill: tuple[int, int, int] | None = None
    ) -> None:
        """Draw a line through the points x, y, x, y, ..."""
        self.draw.line(
            self._dots(points), fill=fill or self.color, joint="curve",
            width=max(1, round(width * self.side)),
        )

    def ring(
        self, *box: float, width: float = 0.07, fill: tuple[int, int, int] | None = None
    ) -> None:
        """Draw the rim of an oval."""
        self.draw.ellipse(
            self._dots(box), outline=fill or self.color, width=round(width * self.side)
        )


# --- in the sky ---


def sun(p: Pen) -> None:
    for points in (
        (0.42, 0.2, 0.58, 0.2, 0.5, 0), (0.42, 0.8, 0.58, 0.8, 0.5, 1),
        (0.2, 0.42, 0.2, 0.58, 0, 0.5), (0.8, 0.42, 0.8, 0.58, 1, 0.5),
        (0.22, 0.34, 0.34, 0.22, 0.13, 0.13), (0.66, 0.22, 0.78, 0.34, 0.87, 0.13),
        (0.22, 0.66, 0.34, 0.78, 0.13, 0.87), (0.66, 0.78, 0.78, 0.66, 0.87, 0.87),
    ):
        p.shape(*points)
    p.oval(0.21, 0.21, 0.79, 0.79)


def moon(p: Pen) -> None:
    p.oval(0.1, 0.06, 0.98, 0.94)
    p.oval(0.38, 0, 1.16, 0.78, fill=(0, 0, 0, 0))


def cloud(p: Pen) -> None:
    p.oval(0, 0.42, 0.42, 0.84)
    p.oval(0.2, 0.18, 0.68, 0.7)
    p.oval(0.52, 0.3, 0.9, 0.74)
    p.oval(0.64, 0.46, 1, 0.84)
    p.block(0.2, 0.6, 0.82, 0.84)


def bird(p: Pen) -> None:
    p.shape(0.34, 0.52, 0.02, 0.1, 0.3, 0.2, 0.56, 0.5)
    p.shape(0.5, 0.5, 0.66, 0.02, 0.8, 0.14, 0.74, 0.56)
    p.oval(0.24, 0.42, 0.84, 0.78)
    p.shape(0.3, 0.5, 0, 0.62, 0.04, 0.8, 0.36, 0.7)
    p.oval(0.66, 0.34, 0.92, 0.62)
    p.shape(0.88, 0.42, 1, 0.52, 0.88, 0.56, fill=COLORS["orange"])
    p.oval(0.76, 0.4, 0.84, 0.49, fill=INK)


def plane(p: Pen) -> None:
    p.shape(0.02, 0.24, 0.16, 0.24, 0.3, 0.44, 0.12, 0.5)
    p.oval(0.06, 0.38, 1, 0.64)
    p.shape(0.4, 0.5, 0.68, 0.5, 0.4, 0.94, 0.26, 0.94)
    p.shape(0.44, 0.42, 0.62, 0.42, 0.46, 0.12, 0.34, 0.12)
    for x in (0.44, 0.57, 0.7):
        p.oval(x, 0.43, x + 0.09, 0.53, fill=PALE)
    p.shape(0.84, 0.42, 0.95, 0.47, 0.97, 0.52, 0.84, 0.52, fill=INK)


def balloon(p: Pen) -> None:
    p.line(0.5, 0.68, 0.44, 0.8, 0.54, 0.9, 0.48, 1, width=0.05, fill=INK)
    p.oval(0.2, 0, 0.8, 0.68)
    p.shape(0.5, 0.62, 0.41, 0.75, 0.59, 0.75)
    p.oval(0.31, 0.1, 0.43, 0.28, fill=PALE)


def kite(p: Pen) -> None:
    p.line(0.42, 0.68, 0.6, 0.8, 0.46, 0.88, 0.66, 0.99, width=0.05, fill=INK)
    p.shape(0.5, 0.84, 0.64, 0.74, 0.66, 0.86, fill=PALE)
    p.shape(0.5, 0, 0.86, 0.3, 0.4, 0.74, 0.14, 0.22)
    p.line(0.5, 0, 0.4, 0.74, width=0.05, fill=INK)
    p.line(0.14, 0.22, 0.86, 0.3, width=0.05, fill=INK)


# --- on the ground ---


def tree(p: Pen) -> None:
    p.block(0.41, 0.6, 0.59, 1, fill=WOOD)
    p.oval(0.06, 0.26, 0.6, 0.74)
    p.oval(0.4, 0.26, 0.94, 0.74)
    p.oval(0.2, 0, 0.8, 0.58)


def house(p: Pen) -> None:
    roof = tuple(v * 3 // 5 for v in p.color)
    p.block(0.7, 0.08, 0.83, 0.4, fill=WOOD)
    p.block(0.12, 0.42, 0.88, 1)
    p.shape(0, 0.46, 0.5, 0.04, 1, 0.46, fill=roof)
    p.block(0.42, 0.66, 0.6, 1, fill=INK)
    p.block(0.2, 0.55, 0.35, 0.72, fill=PALE)
    p.block(0.67, 0.55, 0.82, 0.72, fill=PALE)


def flower(p: Pen) -> None:
    green = COLORS["green"]
    p.line(0.5, 0.5, 0.5, 1, width=0.09, fill=green)
    p.shape(0.5, 0.92, 0.24, 0.66, 0.18, 0.8, fill=green)
    p.shape(0.5, 0.92, 0.76, 0.66, 0.82, 0.8, fill=green)
    for x, y in ((0.5, 0.14), (0.69, 0.28), (0.62, 0.5), (0.38, 0.5), (0.31, 0.28)):
        p.oval(x - 0.15, y - 0.15, x + 0.15, y + 0.15)
    center = COLORS["brown" if p.color == COLORS["yellow"] else "yellow"]
    p.oval(0.38, 0.22, 0.62, 0.46, fill=center)


def cat(p: Pen) -> None:
    p.line(0.16, 0.72, 0.05, 0.56, 0.07, 0.3, 0.15, 0.22, width=0.1)
    p.oval(0.1, 0.48, 0.74, 0.86)
    for x in (0.16, 0.3, 0.52, 0.64):
        p.block(x, 0.74, x + 0.1, 1)
    p.shape(0.53, 0.4, 0.54, 0.06, 0.74, 0.24)
    p.shape(0.97, 0.4, 0.97, 0.06, 0.76, 0.24)
    p.oval(0.5, 0.2, 1, 0.64)
    for x in (0.6, 0.82):
        p.oval(x, 0.34, x + 0.09, 0.45, fill=INK)
    p.shape(0.71, 0.48, 0.81, 0.48, 0.76, 0.54, fill=COLORS["pink"])


def upright_cat(p: Pen) -> None:
    """A cat that stands like a person."""
    p.line(0.4, 0.86, 0.14, 0.84, 0.12, 0.6, width=0.08)
    p.oval(0.3, 0.4, 0.7, 0.92)
    p.line(0.36, 0.54, 0.14, 0.42, width=0.1)
    p.line(0.64, 0.54, 0.88, 0.42, width=0.1)
    p.block(0.34, 0.84, 0.46, 1)
    p.block(0.54, 0.84, 0.66, 1)
    p.shape(0.28, 0.24, 0.27, 0, 0.46, 0.1)
    p.shape(0.72, 0.24, 0.73, 0, 0.54, 0.1)
    p.oval(0.26, 0.08, 0.74, 0.48)
    for x in (0.36, 0.55):
        p.oval(x, 0.2, x + 0.09, 0.3, fill=INK)


def dog(p: Pen) -> None:
    ear = tuple(v * 3 // 5 for v in p.color)
    p.line(0.12, 0.52, 0.02, 0.34, width=0.09)
    p.block(0.08, 0.46, 0.66, 0.74)
    for x in (0.08, 0.23, 0.44, 0.56):
        p.block(x, 0.7, x + 0.11, 1)
    p.block(0.54, 0.16, 0.86, 0.56)
    p.oval(0.7, 0.32, 1, 0.56)
    p.oval(0.46, 0.14, 0.64, 0.56, fill=ear)
    p.oval(0.7, 0.24, 0.79, 0.35, fill=INK)
    p.oval(0.9, 0.33, 1, 0.44, fill=INK)


def car(p: Pen) -> None:
    p.shape(0.2, 0.5, 0.34, 0.2, 0.7, 0.2, 0.84, 0.5)
    p.block(0, 0.46, 1, 0.78)
    p.shape(0.3, 0.46, 0.38, 0.28, 0.5, 0.28, 0.5, 0.46, fill=PALE)
    p.shape(0.56, 0.46, 0.56, 0.28, 0.66, 0.28, 0.74, 0.46, fill=PALE)
    for x in (0.1, 0.62):
        p.oval(x, 0.64, x + 0.28, 0.92, fill=INK)
        p.oval(x + 0.09, 0.73, x + 0.19, 0.83, fill=PALE)


def bicycle(p: Pen) -> None:
    for x in (0, 0.56):
        p.oval(x, 0.48, x + 0.44, 0.92, fill=INK)
        p.oval(x + 0.1, 0.58, x + 0.34, 0.82, fill=PALE)
    p.line(0.22, 0.7, 0.36, 0.34, 0.7, 0.34, 0.48, 0.7, 0.22, 0.7, width=0.09)
    p.line(0.36, 0.34, 0.48, 0.7, width=0.09)
    p.line(0.78, 0.7, 0.66, 0.18, 0.84, 0.14, width=0.09)
    p.line(0.26, 0.24, 0.44, 0.24, width=0.09, fill=INK)
    p.line(0.36, 0.36, 0.34, 0.24, width=0.07)


def ball(p: Pen) -> None:
    p.oval(0.08, 0.08, 0.92, 0.92)
    p.shape(0.5, 0.36, 0.64, 0.46, 0.58, 0.62, 0.42, 0.62, 0.36, 0.46, fill=INK)
    for x1, y1, x2, y2 in (
        (0.5, 0.36, 0.5, 0.12), (0.64, 0.46, 0.86, 0.38), (0.58, 0.62, 0.72, 0.82),
        (0.42, 0.62, 0.28, 0.82), (0.36, 0.46, 0.14, 0.38),
    ):
        p.line(x1, y1, x2, y2, width=0.05, fill=INK)


def child(p: Pen) -> None:
    p.line(0.42, 0.68, 0.36, 0.98, width=0.12, fill=INK)
    p.line(0.58, 0.68, 0.64, 0.98, width=0.12, fill=INK)
    p.line(0.4, 0.46, 0.16, 0.3, width=0.1, fill=SKIN)
    p.line(0.6, 0.46, 0.84, 0.6, width=0.1, fill=SKIN)
    p.shape(0.36, 0.38, 0.64, 0.38, 0.76, 0.78, 0.24, 0.78)
    p.oval(0.3, 0, 0.7, 0.4, fill=SKIN)
    p.shape(0.29, 0.2, 0.34, 0.04, 0.5, -0.02, 0.66, 0.04, 0.71, 0.2, 0.5, 0.1, fill=WOOD)
    for x in (0.38, 0.54):
        p.oval(x, 0.17, x + 0.07, 0.25, fill=INK)


# --- in and on the water ---


def boat(p: Pen) -> None:
    p.line(0.46, 0.02, 0.46, 0.7, width=0.07, fill=INK)
    p.shape(0.52, 0.04, 0.92, 0.56, 0.52, 0.56, fill=PALE)
    p.shape(0.4, 0.14, 0.4, 0.56, 0.12, 0.56, fill=PALE)
    p.shape(0, 0.66, 1, 0.66, 0.82, 0.96, 0.18, 0.96)


def fish(p: Pen) -> None:
    p.shape(0.3, 0.5, 0, 0.2, 0.04, 0.5, 0, 0.8)
    p.shape(0.44, 0.3, 0.6, 0.08, 0.74, 0.3)
    p.oval(0.18, 0.24, 1, 0.78)
    p.oval(0.76, 0.36, 0.88, 0.5, fill=PALE)
    p.oval(0.8, 0.39, 0.88, 0.48, fill=INK)
    p.line(0.6, 0.34, 0.64, 0.5, 0.6, 0.68, width=0.05, fill=INK)


def duck(p: Pen) -> None:
    p.shape(0.12, 0.62, 0, 0.36, 0.34, 0.5)
    p.oval(0.06, 0.44, 0.8, 0.94)
    p.oval(0.46, 0.04, 0.86, 0.5)
    p.shape(0.8, 0.24, 1, 0.3, 1, 0.38, 0.8, 0.38, fill=COLORS["orange"])
    p.oval(0.65, 0.16, 0.75, 0.27, fill=INK)
    p.line(0.24, 0.64, 0.4, 0.76, 0.58, 0.66, width=0.05, fill=INK)


def whale(p: Pen) -> None:
    p.line(0.64, 0.36, 0.6, 0.14, 0.5, 0.06, width=0.06, fill=PALE)
    p.line(0.64, 0.36, 0.68, 0.14, 0.8, 0.06, width=0.06, fill=PALE)
    p.shape(0.16, 0.5, 0, 0.16, 0.14, 0.22, 0.26, 0.14, 0.26, 0.46)
    p.shape(0.08, 0.44, 0.3, 0.4, 0.5, 0.6, 0.4, 0.86)
    p.oval(0.22, 0.34, 1, 0.94)
    p.shape(0.34, 0.8, 0.98, 0.72, 0.8, 0.92, 0.5, 0.94, fill=PALE)
    p.oval(0.8, 0.52, 0.89, 0.62, fill=INK)


# --- indoors ---


def table(p: Pen) -> None:
    p.block(0, 0.34, 1, 0.5)
    p.block(0.08, 0.5, 0.2, 0.96)
    p.block(0.8, 0.5, 0.92, 0.96)


def chair(p: Pen) -> None:
    p.block(0.2, 0, 0.34, 1)
    p.block(0.2, 0.06, 0.42, 0.44)
    p.block(0.2, 0.52, 0.84, 0.66)
    p.block(0.7, 0.6, 0.84, 1)


def lamp(p: Pen) -> None:
    p.line(0.5, 0.4, 0.5, 0.92, width=0.09, fill=INK)
    p.oval(0.26, 0.86, 0.74, 1, fill=INK)
    p.shape(0.32, 0.02, 0.68, 0.02, 0.92, 0.5, 0.08, 0.5)


def clock(p: Pen) -> None:
    p.oval(0.04, 0.04, 0.96, 0.96)
    p.oval(0.18, 0.18, 0.82, 0.82, fill=PALE)
    p.line(0.5, 0.26, 0.5, 0.5, 0.68, 0.6, width=0.08, fill=INK)


def cup(p: Pen) -> None:
    p.ring(0.58, 0.36, 0.98, 0.74, width=0.1)
    p.shape(0.08, 0.26, 0.78, 0.26, 0.7, 0.94, 0.16, 0.94)
    p.oval(0.08, 0.18, 0.78, 0.36, fill=WOOD)
    p.line(0.3, 0.14, 0.36, 0, width=0.05, fill=PALE)
    p.line(0.52, 0.14, 0.58, 0, width=0.05, fill=PALE)


def cake(p: Pen) -> None:
    p.block(0.46, 0.1, 0.55, 0.4, fill=PALE)
    p.oval(0.45, 0, 0.56, 0.14, fill=COLORS["orange"])
    p.block(0.08, 0.38, 0.92, 0.9)
    for x in (0.08, 0.29, 0.5, 0.71):
        p.oval(x, 0.4, x + 0.21, 0.62, fill=PALE)
    p.block(0.08, 0.34, 0.92, 0.5, fill=PALE)
    p.oval(0, 0.84, 1, 1, fill=INK)


# --- what they are ---


class Kind(NamedTuple):
    """What is usual for a thing.

    draw: draws it.
    homes: where it belongs: of "sky", "ground", "water" and "indoors".
    colors: the colors that it has.
    rows: of the picture, 0 top .. 2 bottom, in which it stands where it belongs.
    """

    draw: Callable[[Pen], None]
    homes: tuple[str, ...]
    colors: tuple[str, ...] = PAINTED
    rows: tuple[int, ...] = (1, 2)


THINGS = {
    "sun": Kind(sun, ("sky",), ("yellow", "orange"), (0,)),
    "moon": Kind(moon, ("sky",), ("yellow", "white"), (0,)),
    "cloud": Kind(cloud, ("sky",), ("white", "gray"), (0,)),
    "bird": Kind(bird, ("sky",), rows=(0,)),
    "plane": Kind(plane, ("sky",), rows=(0,)),
    "balloon": Kind(balloon, ("sky",), rows=(0,)),
    "kite": Kind(kite, ("sky",), rows=(0,)),
    "tree": Kind(tree, ("ground",), ("green", "orange")),
    "house": Kind(house, ("ground",)),
    "flower": Kind(flower, ("ground",)),
    "cat": Kind(cat, ("ground", "indoors"), ("orange", "gray", "white", "brown")),
    "dog": Kind(dog, ("ground", "indoors"), ("brown", "white", "gray", "orange")),
    "car": Kind(car, ("ground",)),
    "bicycle": Kind(bicycle, ("ground",)),
    "ball": Kind(ball, ("ground", "indoors")),
    "child": Kind(child, ("ground", "indoors")),
    "boat": Kind(boat, ("water",)),
    "fish": Kind(fish, ("water",)),
    "duck": Kind(duck, ("water",), ("yellow", "white", "brown")),
    "whale": Kind(whale, ("water",), ("blue", "gray")),
    "table": Kind(table, ("indoors",), ("brown", "white")),
    "chair": Kind(chair, ("indoors",)),
    "lamp": Kind(lamp, ("indoors",), rows=(0, 1)),
    "clock": Kind(clock, ("indoors",), rows=(0, 1)),
    "cup": Kind(cup, ("indoors",)),
    "cake": Kind(cake, ("indoors",), ("pink", "brown", "yellow")),
}
STANDING = {"cat": upright_cat}  # things that can stand like a person


@lru_cache(maxsize=None)
def sprite(
    name: str, color: str, side: int, upright: bool = False, angle: int = 0
) -> np.ndarray:
    """Draw a thing: its colors, and how much of each pixel it covers.

    Args:
        name: one of THINGS.
        color: one of COLORS.
        side: its longer side in pixels, outline included.
        upright: draw it as STANDING does.
        angle: turned to the left by so many degrees.

    Returns:
        (height, width, 4) float32, cropped to the thing: red, green, blue in 0 .. 255, and
        the covered share of the pixel, 0 .. 1.
    """
    pen = Pen(side * DOTS, COLORS[color])
    (STANDING[name] if upright else THINGS[name].draw)(pen)
    image = pen.image.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    solid = image.getchannel("A").point([255 * (a > 127) for a in range(256)])
    image = image.crop(solid.getbbox())
    # the outline takes half a pixel on every side
    scale = (side - 1) * DOTS / max(image.size)
    image = image.resize([max(1, round(n * scale)) for n in image.size])
    padded = Image.new("RGBA", [(-(-n // DOTS) + 1) * DOTS for n in image.size])
    padded.paste(image, [(p - n) // 2 for p, n in zip(padded.size, image.size)])
    # whatever a drawn dot lies near gets ink; a blur spreads each dot over a small square
    near = padded.getchannel("A").filter(ImageFilter.BoxBlur(DOTS // 2))
    ink = Image.new("RGBA", padded.size, INK)
    ink.putalpha(near.point([255 * (a > 4) for a in range(256)]))
    pixels = np.array(Image.alpha_composite(ink, padded).reduce(DOTS), dtype=np.float32)
    pixels[..., 3] /= 255
    return pixels                                                    # (height, width, 4)
