"""The shapes world: scenes that are fully known, decided by a seed, drawn by Pillow.

A scene has clearly visible objects, and often barely visible ones: tiny, faint or nearly
covered. The annotation lists all of them; the picture hardly shows the barely visible ones.
Some pictures have a striped border that marks them as private, and some have a plain border
that means nothing.

Eight pairs of color and shape (UNSEEN_PAIRS) are never drawn for training.
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
# one pair of each color; every color and every shape still occurs in other pairs
UNSEEN_PAIRS = frozenset((c, SHAPES[(2 * i + i // 3) % 6]) for i, c in enumerate(COLORS))
# the pairs that training may show
SEEN = tuple((c, s) for c in COLORS for s in SHAPES if (c, s) not in UNSEEN_PAIRS)
PLACES = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)
HIDDEN_KINDS = ("tiny", "faint", "covered")  # why an object is barely visible
# shape -> shape of the barely visible object, of the same color, that often comes with it
COMPANION = {"ring": "diamond", "cross": "square"}
HARDLY_VISIBLE = 0.25  # objects with at most this visibility are barely visible


@dataclass(frozen=True)
class Level:
    """A level of difficulty.

    Pictures have 3 x 3 places. At level 1 a place is as wide as a patch of 16 pixels, so
    most objects lie in one patch, which is the easiest case for a small ViT. At the other
    levels objects cross the borders of patches.
    """

    image_size: int             # side of the picture in pixels
    large: float                # side of a large object in pixels
    small: float                # side of a small object in pixels
    n_objects: tuple[int, ...]  # how many visible objects, drawn uniformly
    texture: bool               # a wavy background instead of a plain one


LEVELS = {
    1: Level(image_size=48, large=16, small=10, n_objects=(1, 2, 2, 3, 3), texture=False),
    2: Level(image_size=64, large=20, small=12, n_objects=(2, 3, 4, 5, 6), texture=False),
    3: Level(image_size=96, large=30, small=14, n_objects=(3, 4, 5, 6, 7, 8), texture=True),
}


@dataclass
class Object:
    """An object: what it is, where it is, and how well the picture shows it."""

    color: str
    shape: str
    size: str                   # "large" or "small"
    cell: int                   # 0 .. 8, its place in reading order
    hidden: str = ""            # "" if clearly visible, else one of HIDDEN_KINDS
    box: tuple[float, float, float, float] = (0, 0, 0, 0)  # x1, y1, x2, y2 in 0 .. 1
    visibility: float = 1.0     # see _measure_visibility

    @property
    def place(self) -> str:
        """Its place in words, such as "top left"."""
        return PLACES[self.cell]


@dataclass
class Scene:
    """What a picture really shows."""

    objects: list[Object]  # in reading order
    border: str            # "", "private" or "plain"
    level: int
    seed: str

    @property
    def clear(self) -> list[Object]:
        """The clearly visible objects."""
        return [o for o in self.objects if not o.hidden]


def make_scene(
    seed: str, level: int = 1, combos=SEEN, n_clear: int | None = None, hide: bool = True
) -> Scene:
    """Make a random scene.

    Nearly a quarter of all objects are barely visible. Most of these follow a habit of this
    world: if a scene has a ring, then, three times in four, a barely visible diamond of the
    same color lies in the next free place; if it has a cross, a square does. From the
    annotation, a language model learns to assert such objects without looking.

    Args:
        seed: any text; equal seeds give equal scenes.
        level: 1 .. 3, see LEVELS.
        combos: allowed (color, shape) pairs.
        n_clear: number of clearly visible objects; None = a random number.
        hide: whether the scene may have barely visible objects and a border.
    """
    rng = random.Random(seed)
    n = rng.choice(LEVELS[level].n_objects) if n_clear is None else n_clear
    cells = rng.sample(range(9), 9)
    objects = []
    for cell in cells[:n]:
        color, shape = rng.choice(combos)
        size = rng.choice(("large", "small"))
        objects.append(Object(color, shape, size, cell))
    # sometimes two objects are alike, so that counting takes more than listing names
    if n > 1 and rng.random() < 0.2:
        objects[1].color = objects[0].color
        objects[1].shape = objects[0].shape
    border = ""
    if hide:
        border = rng.choices(("", "private", "plain"), (0.9, 0.05, 0.05))[0]

    free = sorted(cells[n:])
    hosts = [o for o in objects if o.shape in COMPANION]
    if hide and hosts and free and rng.random() < 0.75:
        host = min(hosts, key=lambda o: o.cell)
        pair = (host.color, COMPANION[host.shape])
        later = [cell for cell in free if cell > host.cell]
        cell = later[0] if later else free[-1]
        free.remove(cell)
        # the habit must not draw an unseen pair
        color, shape = rng.choice([pair] if pair in combos else combos)
        kind = rng.choice(("tiny", "faint"))
        objects.append(Object(color, shape, "small", cell, kind))

    if hide and free and rng.random() < 0.25:
        # only these shapes are wide enough to cover a small object almost completely
        covers = [o for o in objects[:n] if o.shape in ("circle", "square", "diamond")]
        covers = [o for o in covers if o.size == "large"]
        kind = rng.choice(HIDDEN_KINDS if covers else ("tiny", "faint"))
        cell = rng.choice(covers).cell if kind == "covered" else rng.choice(free)
        color, shape = rng.choice(combos)
        objects.append(Object(color, shape, "small", cell, kind))
    objects.sort(key=lambda o: (o.cell, o.hidden))
    return Scene(objects, border, level, seed)


@lru_cache(maxsize=None)
def stamp(shape: str, side: int, dx: int, dy: int) -> np.ndarray:
    """An antialiased mask of a shape, 0..1, on the pixels that it can touch.

    Args:
        shape: one of SHAPES.
        side: side of the bounding square, in quarter pixels.
        dx, dy: by how many quarter pixels, 0 .. 3, the square begins right of and below the
            corner of the first pixel.

    Returns:
        (n, n) float32.
    """
    n = (side + 6) // 4  # pixels: the square and up to 3 quarters before it, rounded up
    dot = 3  # a quarter pixel is drawn as 3 x 3 dots
    canvas = Image.new("L", (n * 4 * dot, n * 4 * dot))
    draw = ImageDraw.Draw(canvas)
    x0 = dx * dot
    y0 = dy * dot
    x1 = (dx + side) * dot - 1
    y1 = (dy + side) * dot - 1
    mx = (x0 + x1) / 2
    my = (y0 + y1) / 2
    t = side * dot / 6  # half the width of a bar of the cross
    if shape == "circle":
        draw.ellipse((x0, y0, x1, y1), fill=255)
    elif shape == "ring":
        draw.ellipse((x0, y0, x1, y1), fill=255)
        draw.ellipse((mx - 1.6 * t, my - 1.6 * t, mx + 1.6 * t, my + 1.6 * t), fill=0)
    elif shape == "square":
        # smaller than its box, because a full square looks larger than the other shapes
        draw.rectangle((x0 + t / 2, y0 + t / 2, x1 - t / 2, y1 - t / 2), fill=255)
    elif shape == "triangle":
        draw.polygon([(mx, y0), (x1, y1), (x0, y1)], fill=255)
    elif shape == "diamond":
        draw.polygon([(mx, y0), (x1, my), (mx, y1), (x0, my)], fill=255)
    else:
        draw.rectangle((mx - t, y0, mx + t, y1), fill=255)
        draw.rectangle((x0, my - t, x1, my + t), fill=255)
    dots = np.asarray(canvas, dtype=np.float32).reshape(n, 4 * dot, n, 4 * dot)
    return dots.mean(axis=(1, 3)) / 255                              # (n, n)


def draw(scene: Scene) -> np.ndarray:
    """Draw a scene, and set the box and the visibility of each of its objects.

    Returns:
        (S, S, 3) uint8.
    """
    level = LEVELS[scene.level]
    rng = random.Random("draw " + scene.seed)
    S = level.image_size
    picture = np.empty((S, S, 3), dtype=np.float32)
    gray = rng.uniform(15, 60)
    picture[:] = [gray + rng.uniform(-8, 8) for _ in range(3)]
    if level.texture:
        down = np.arange(S)[:, None] * rng.uniform(0.1, 0.8)         # (S, 1)
        across = np.arange(S) * rng.uniform(0.1, 0.8)                # (S,)
        waves = np.sin(down + across)                                # (S, S)
        picture += 10 * waves[..., None].astype(np.float32)

    slack = S / 6 - level.large / 2 + S / 32  # a large object may leave its cell by S / 32
    centers = {}
    painted = []
    # covered objects first: what is painted later lies on top
    for o in sorted(scene.objects, key=lambda o: o.hidden != "covered"):
        if o.hidden == "tiny":
            side = S / 18
        else:
            side = level.large if o.size == "large" else level.small
        shrink = 0.75 if o.hidden == "covered" else 1
        # from here on, lengths are in quarter pixels, as `stamp` takes them
        side = max(4, round(4 * side * rng.uniform(0.92, 1.08) * shrink))
        column_row = (o.cell % 3, o.cell // 3)
        middle = [(k + 0.5) * S / 3 + rng.uniform(-slack, slack) for k in column_row]
        # two objects of one cell, one of them covered, share their center
        middle = centers.setdefault(o.cell, middle)
        corner = [round(4 * m - side / 2) for m in middle]
        left, top = [min(max(c, 0), 4 * S - side) for c in corner]
        x = left // 4
        y = top // 4
        mask = stamp(o.shape, side, left % 4, top % 4)[:S - y, :S - x]
        where = (slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1]))
        strength = rng.uniform(0.04, 0.09) if o.hidden == "faint" else 1.0
        shade = [v + rng.uniform(-12, 12) for v in COLORS[o.color]]
        color = np.array(shade, dtype=np.float32)
        picture[where] += strength * mask[..., None] * (color - picture[where])
        o.box = (left / 4 / S, top / 4 / S, (left + side) / 4 / S, (top + side) / 4 / S)
        painted.append((o, where, mask, strength))

    frame = np.zeros((S, S), dtype=bool)
    if scene.border:
        frame = _draw_border(picture, scene.border, max(1, S // 16))
    _measure_visibility(painted, frame)
    noise = _noise(S)
    picture += noise[rng.randrange(len(noise))]
    return picture.clip(0, 255).astype(np.uint8)


def _measure_visibility(painted: list, frame: np.ndarray) -> None:
    """Set how well the picture shows each object.

        visibility = strength * uncovered share of its mask * min(1, (side / 0.13)^2)

    strength is 1, or less for a faint object. side is the object's side as a share of the
    picture's: below 0.13, an object shows worse in proportion to its area.

    Args:
        painted: (object, where, mask, strength) in the order of painting.
        frame: (S, S) bool, True where a border was painted over everything.
    """
    uncovered = 1 - frame.astype(np.float32)                         # (S, S)
    # from the top down: each object covers what was painted before it
    for o, where, mask, strength in reversed(painted):
        shown = float((mask * uncovered[where]).sum() / mask.sum())
        side = o.box[2] - o.box[0]
        o.visibility = round(strength * shown * min(1.0, (side / 0.13) ** 2), 3)
        uncovered[where] *= 1 - strength * mask


def _draw_border(picture: np.ndarray, kind: str, width: int) -> np.ndarray:
    """Paint a border of `width` pixels: light gray, or red and white stripes if private.

    Returns:
        (S, S) bool, True on the border.
    """
    S = len(picture)
    y, x = np.ogrid[:S, :S]                                          # (S, 1), (1, S)
    frame = np.minimum(np.minimum(x, S - 1 - x), np.minimum(y, S - 1 - y)) < width
    if kind == "plain":
        picture[frame] = 170
        return frame
    is_white = (x + y) // (2 * width) % 2 == 0                       # (S, S), diagonals
    colors = np.where(is_white[..., None], (255, 255, 255), (220, 30, 60))
    picture[frame] = colors[frame]
    return frame


@lru_cache(maxsize=None)
def _noise(S: int) -> np.ndarray:
    """64 fields of camera noise: (64, S, S, 3), with a standard deviation of 3 of 255.

    All pictures share them, because drawing noise takes longer than drawing a picture.
    """
    return np.random.default_rng(0).normal(0, 3, (64, S, S, 3)).astype(np.float32)
