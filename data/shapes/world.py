"""The shapes world: scenes of exactly known truth, drawn by Pillow, deterministic from a seed.

A scene has clearly visible objects and, often, hardly visible ones (tiny, faint or nearly covered):
the annotation knows them, the picture barely shows them. Some pictures carry a striped border that
marks them as private, some a plain one that means nothing.

Eight combinations of color and shape (HELD_OUT) are never drawn for training.

Used by: language.py (what is said about a scene), prepare.py (the data set).
"""

import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
COLORS = {
    "red": (225, 40, 40), "orange": (250, 140, 20), "yellow": (240, 230, 50),
    "green": (40, 170, 60), "cyan": (60, 215, 225), "blue": (45, 75, 235),
    "purple": (160, 60, 200), "white": (245, 245, 245),
}
# each color once; every shape and color is still seen often in other company
HELD_OUT = frozenset((c, SHAPES[(2 * i + i // 3) % 6]) for i, c in enumerate(COLORS))
SEEN = tuple((c, s) for c in COLORS for s in SHAPES if (c, s) not in HELD_OUT)
PLACES = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)
HIDDEN_KINDS = ("tiny", "faint", "covered")
# a hardly visible one of the same color often lies next to it
COMPANION = {"ring": "diamond", "cross": "square"}
HARDLY_VISIBLE = 0.25  # at or below this visibility an object counts as hardly visible


@dataclass(frozen=True)
class Level:
    """A setting of the difficulty dial. Pixels: image and object sides; counts: visible objects.

    Pictures have 3 x 3 places. At level 1 a place is as wide as a patch of 16 pixels, so that most
    objects lie in one patch: the kindest case for a small ViT. At the other levels they straddle.
    """

    image_size: int
    large: float
    small: float
    n_objects: tuple[int, ...]  # drawn from uniformly
    texture: bool


LEVELS = {
    1: Level(image_size=48, large=16, small=10, n_objects=(1, 2, 2, 3, 3), texture=False),
    2: Level(image_size=64, large=20, small=12, n_objects=(2, 3, 4, 5, 6), texture=False),
    3: Level(image_size=96, large=30, small=14, n_objects=(3, 4, 5, 6, 7, 8), texture=True),
}


@dataclass
class Object:
    """An object: what it is, where (cell 0..8 in reading order; box in 0..1), how well it shows."""

    color: str
    shape: str
    size: str                   # "large" or "small"
    cell: int
    hidden: str = ""            # "", or one of HIDDEN_KINDS
    box: tuple[float, float, float, float] = (0, 0, 0, 0)
    visibility: float = 1.0     # share of its own color that is seen, times relative area if tiny

    @property
    def place(self) -> str:
        """Where it is, in words: "top left"."""
        return PLACES[self.cell]


@dataclass
class Scene:
    """A picture's truth: all objects in reading order and its border ("", "private" or "plain")."""

    objects: list[Object]
    border: str
    level: int
    seed: str

    @property
    def clear(self) -> list[Object]:
        """The clearly visible objects."""
        return [o for o in self.objects if not o.hidden]


def make_scene(
    seed: str, level: int = 1, combos=SEEN, n_clear: int | None = None, hide: bool = True
) -> Scene:
    """Invent a scene.

    Near a quarter of all objects is hardly visible. Most of these follow a habit of the world: next
    to a ring lies, three times in four, a hardly visible diamond of its color, next to a cross a
    square. A language model learns that habit from the annotation and asserts it without looking.

    Args:
        seed: any text; equal seeds give equal scenes.
        level: 1 .. 3, see LEVELS.
        combos: allowed (color, shape) pairs.
        n_clear: number of clearly visible objects, or None to draw it.
        hide: whether hardly visible objects and borders may occur.
    """
    rng = random.Random(seed)
    n = n_clear or rng.choice(LEVELS[level].n_objects)
    cells = rng.sample(range(9), 9)
    objects = [
        Object(*rng.choice(combos), rng.choice(("large", "small")), cells[i]) for i in range(n)
    ]
    if n > 1 and rng.random() < 0.2:  # the same thing twice, so that counting is more than listing
        objects[1].color, objects[1].shape = objects[0].color, objects[0].shape
    border = rng.choices(("", "private", "plain"), (0.9, 0.05, 0.05))[0] if hide else ""
    free = sorted(cells[n:])
    host = next((o for o in sorted(objects, key=lambda o: o.cell) if o.shape in COMPANION), None)
    if hide and host and free and rng.random() < 0.75:
        same = [c for c in combos if c == (host.color, COMPANION[host.shape])]
        cell = next((c for c in free if c > host.cell), free[-1])
        free.remove(cell)
        objects.append(
            Object(*rng.choice(same or combos), "small", cell, rng.choice(HIDDEN_KINDS[:2]))
        )
    if hide and free and rng.random() < 0.25:
        covers = [
            o for o in objects[:n]
            if o.size == "large" and o.shape in ("circle", "square", "diamond")
        ]
        kind = rng.choice(HIDDEN_KINDS if covers else HIDDEN_KINDS[:2])
        cell = rng.choice(covers).cell if kind == "covered" else rng.choice(free)
        objects.append(Object(*rng.choice(combos), "small", cell, kind))
    objects.sort(key=lambda o: (o.cell, o.hidden))
    return Scene(objects, border, level, seed)


@lru_cache(maxsize=None)
def stamp(shape: str, side: int, dx: int, dy: int) -> np.ndarray:
    """An antialiased mask of a shape, 0..1, on the pixels it can touch.

    Args:
        shape: one of SHAPES.
        side: length of the bounding square, in quarter pixels.
        dx, dy: 0 .. 3 quarter pixels right of and below the first pixel's corner.
    """
    n, dot = (side + 6) // 4, 3  # pixels a side; Pillow draws 3 dots a quarter pixel
    canvas = Image.new("L", (n * 4 * dot, n * 4 * dot))
    draw = ImageDraw.Draw(canvas)
    x0, y0, x1, y1 = dx * dot, dy * dot, (dx + side) * dot - 1, (dy + side) * dot - 1
    mx, my, t = (x0 + x1) / 2, (y0 + y1) / 2, side * dot / 6  # middle; a sixth of the side
    if shape == "circle":
        draw.ellipse((x0, y0, x1, y1), fill=255)
    elif shape == "ring":
        draw.ellipse((x0, y0, x1, y1), fill=255)
        draw.ellipse((mx - 1.6 * t, my - 1.6 * t, mx + 1.6 * t, my + 1.6 * t), fill=0)
    elif shape == "square":
        draw.rectangle((x0 + t / 2, y0 + t / 2, x1 - t / 2, y1 - t / 2), fill=255)
    elif shape == "triangle":
        draw.polygon([(mx, y0), (x1, y1), (x0, y1)], fill=255)
    elif shape == "diamond":
        draw.polygon([(mx, y0), (x1, my), (mx, y1), (x0, my)], fill=255)
    else:
        draw.rectangle((mx - t, y0, mx + t, y1), fill=255)
        draw.rectangle((x0, my - t, x1, my + t), fill=255)
    dots = np.asarray(canvas, dtype=np.float32).reshape(n, 4 * dot, n, 4 * dot)
    return dots.mean(axis=(1, 3)) / 255


def draw(scene: Scene) -> np.ndarray:
    """Draw a scene and fill in its objects' boxes (0..1) and visibilities.

    Returns:
        (S, S, 3) uint8.
    """
    level, rng = LEVELS[scene.level], random.Random("draw " + scene.seed)
    S = level.image_size
    picture = np.empty((S, S, 3), dtype=np.float32)
    gray = rng.uniform(15, 60)
    picture[:] = [gray + rng.uniform(-8, 8) for _ in range(3)]
    if level.texture:
        waves = np.sin(
            np.arange(S)[:, None] * rng.uniform(0.1, 0.8) + np.arange(S) * rng.uniform(0.1, 0.8)
        )
        picture += 10 * waves[..., None].astype(np.float32)

    slack = S / 6 - level.large / 2 + S / 32     # a large object may leave its cell by this much
    centers, painted = {}, []
    for o in sorted(scene.objects, key=lambda o: o.hidden != "covered"):  # the covered one is first
        side = S / 18 if o.hidden == "tiny" else level.large if o.size == "large" else level.small
        side = max(
            4, round(4 * side * rng.uniform(0.92, 1.08) * (0.75 if o.hidden == "covered" else 1))
        )
        middle = [(k + 0.5) * S / 3 + rng.uniform(-slack, slack) for k in (o.cell % 3, o.cell // 3)]
        middle = centers.setdefault(o.cell, middle)                       # and lies under its cover
        left, top = (min(max(round(4 * m - side / 2), 0), 4 * S - side) for m in middle)
        x, y = left // 4, top // 4
        mask = stamp(o.shape, side, left % 4, top % 4)[: S - y, : S - x]
        where = (slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1]))
        strength = rng.uniform(0.04, 0.09) if o.hidden == "faint" else 1.0
        color = np.array([v + rng.uniform(-12, 12) for v in COLORS[o.color]], dtype=np.float32)
        picture[where] += strength * mask[..., None] * (color - picture[where])
        o.box = (left / 4 / S, top / 4 / S, (left + side) / 4 / S, (top + side) / 4 / S)
        painted.append((o, where, mask, strength))

    frame = np.zeros((S, S), dtype=bool)
    if scene.border:
        frame = _draw_border(picture, scene.border, max(1, S // 16))
    _measure_visibility(painted, frame)
    picture += _noise(S)[rng.randrange(len(_noise(S)))]
    return picture.clip(0, 255).astype(np.uint8)


def _measure_visibility(painted: list, frame: np.ndarray) -> None:
    """visibility = strength * share of the mask not painted over * min(1, (side / 0.13 S)^2)."""
    uncovered = 1 - frame.astype(np.float32)                         # (S, S)
    for o, where, mask, strength in reversed(painted):
        seen = float((mask * uncovered[where]).sum() / mask.sum())
        side = o.box[2] - o.box[0]
        o.visibility = round(strength * seen * min(1.0, (side / 0.13) ** 2), 3)
        uncovered[where] *= 1 - strength * mask


def _draw_border(picture: np.ndarray, kind: str, width: int) -> np.ndarray:
    """Paint a frame of `width` pixels: red and white stripes for "private", light gray for "plain".

    Returns:
        (S, S) bool, True on the frame.
    """
    S = len(picture)
    y, x = np.ogrid[:S, :S]
    frame = np.minimum(np.minimum(x, S - 1 - x), np.minimum(y, S - 1 - y)) < width
    if kind == "plain":
        picture[frame] = 170
    else:
        stripes = ((x + y) // (2 * width) % 2 == 0)[..., None]
        picture[frame] = np.where(stripes, (255, 255, 255), (220, 30, 60))[frame]
    return frame


@lru_cache(maxsize=None)
def _noise(S: int) -> np.ndarray:
    """64 fields of camera noise (64, S, S, 3), standard deviation 3 of 255; pictures share them."""

    return np.random.default_rng(0).normal(0, 3, (64, S, S, 3)).astype(np.float32)
