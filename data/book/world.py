"""The picture book's world: scenes that are fully known, decided by a seed.

A scene is a place by day or by night with a few clearly visible things, and often some
barely visible ones: tiny, faint or nearly covered. The annotation lists all of them; the
picture hardly shows the barely visible ones. In one scene of three, a thing is unusual: it
is where it does not belong, has a color that it never has, is there at the wrong time of
day, or stands like a person.

Some pictures have a border of red and white stripes, which marks them as private, and some
have a border that means nothing. What training never shows: the pairs of a thing and a
color in UNSEEN_COLORS, and the things at wrong homes in UNSEEN_HOMES.
"""

import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data.book.things import COLORS, STANDING, THINGS, sprite

PLACES = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)
# place -> where things stand in each row of the picture, from the top
ZONES = {
    "meadow": ("sky", "ground", "ground"),
    "street": ("sky", "ground", "ground"),
    "sea": ("sky", "water", "water"),
    "room": ("indoors", "indoors", "indoors"),
}
# thing -> the thing that often comes with it, in this color
COMPANION = {
    "boat": ("yellow", "duck"), "cup": ("pink", "cake"), "child": ("red", "ball"),
    "house": ("green", "tree"), "table": ("blue", "chair"), "cat": ("white", "dog"),
}
WRONG_TIME = {"sun": "night", "moon": "day"}
HIDDEN_KINDS = ("tiny", "faint", "covered")  # why a thing is barely visible
HARDLY_VISIBLE = 0.25  # things with at most this visibility are barely visible
# things that are wide and full enough to cover a small one almost completely
COVERS = ("house", "tree", "ball", "whale", "cake", "cloud", "clock")

# thing -> the one of its colors that training never shows
UNSEEN_COLORS = {
    "bird": "green", "plane": "orange", "balloon": "pink", "kite": "purple",
    "house": "blue", "flower": "white", "car": "yellow", "bicycle": "red",
    "ball": "purple", "child": "yellow", "boat": "blue", "fish": "red",
    "chair": "green", "lamp": "pink", "clock": "orange", "cup": "white",
}
# thing -> the one of its wrong homes in which training never shows it
UNSEEN_HOMES = {
    "sun": "ground", "cloud": "indoors", "bird": "water", "balloon": "ground",
    "tree": "indoors", "flower": "sky", "dog": "water", "car": "sky",
    "ball": "water", "fish": "indoors", "whale": "ground", "chair": "ground",
    "clock": "sky", "cake": "water",
}
UNSEEN_PAIRS = frozenset((color, name) for name, color in UNSEEN_COLORS.items())


@dataclass(frozen=True)
class Level:
    """A level of difficulty.

    Pictures have 3 x 3 places. At level 1 a place is as wide as a patch of 20 pixels, so
    most things lie in one patch, which is the easiest case for a small ViT. At the other
    levels things cross the borders of patches.
    """

    image_size: int             # side of the picture in pixels
    large: int                  # side of a large thing in pixels
    small: int                  # side of a small thing in pixels
    n_things: tuple[int, ...]   # how many visible things, drawn uniformly
    slack: float                # most pixels from the middle of its place to a thing's
    angles: tuple[int, ...]     # degrees by which a thing may be turned
    texture: bool               # an uneven background


LEVELS = {
    1: Level(60, large=18, small=12, n_things=(1, 2, 2, 3, 3, 4), slack=1.5,
             angles=(0,), texture=False),
    2: Level(96, large=32, small=19, n_things=(2, 3, 4, 5, 6), slack=7,
             angles=(-8, 0, 8), texture=False),
    3: Level(128, large=44, small=20, n_things=(3, 4, 5, 6, 7), slack=10,
             angles=(-15, 0, 15), texture=True),
}


@dataclass
class Thing:
    """A thing in a scene: what it is, where it is, and how well the picture shows it."""

    kind: str                   # one of THINGS
    color: str                  # one of COLORS
    size: str                   # "large" or "small"
    cell: int                   # 0 .. 8, its place in reading order
    hidden: str = ""            # "" if clearly visible, else one of HIDDEN_KINDS
    unusual: str = ""           # "", or why it is: "home", "color", "time", "upright"
    box: tuple[float, float, float, float] = (0, 0, 0, 0)  # x1, y1, x2, y2 in 0 .. 1
    visibility: float = 1.0     # see _measure_visibility

    @property
    def name(self) -> str:
        """The thing in words: "red car"."""
        return f"{self.color} {self.kind}"


@dataclass
class Scene:
    """What a picture really shows."""

    place: str           # one of ZONES
    time: str            # "day" or "night"
    things: list[Thing]  # in reading order
    border: str          # "", "private" or "plain"
    level: int
    seed: str

    @property
    def clear(self) -> list[Thing]:
        """The clearly visible things."""
        return [t for t in self.things if not t.hidden]

    def zone(self, cell: int) -> str:
        """What is at a place: sky, ground, water, or indoors."""
        return ZONES[self.place][cell // 3]


# --- scenes ---


def make_scene(
    seed: str, level: int = 1, unseen: bool = False, hide: bool = True
) -> Scene:
    """Make a random scene.

    Nearly a quarter of all things are barely visible. Most of these follow a habit of this
    world: a boat often comes with a barely visible yellow duck, and so on (COMPANION). From
    the annotation, a language model learns to assert such things without looking.

    Args:
        seed: any text; equal seeds give equal scenes.
        level: 1 .. 3, see LEVELS.
        unseen: also draw what training never shows.
        hide: whether the scene may have barely visible things and a border.
    """
    rng = random.Random(seed)
    time = rng.choice(("day", "night"))
    scene = Scene(rng.choice(list(ZONES)), time, [], "", level, seed)
    free = list(range(9))
    n = rng.choice(LEVELS[level].n_things)
    if rng.random() < 0.3:  # what comes with what, clearly visible
        hosts = [k for k in COMPANION if _cells_for(k, scene, free)]
        if hosts and n > 1:
            host = rng.choice(hosts)
            _add(scene, rng, free, unseen, host)
            _add(scene, rng, free, unseen, COMPANION[host][1])
    for _ in range(50):
        if len(scene.things) >= n:
            break
        _add(scene, rng, free, unseen)
    # some are alike, so that counting takes more than listing names
    if len(scene.things) > 1 and rng.random() < 0.3:
        first, other = rng.sample(scene.things, 2)
        fits = other.cell in _cells_for(first.kind, scene, [other.cell])
        if fits and first.kind not in WRONG_TIME:
            other.kind = first.kind
            other.color = rng.choice((first.color, _color(first.kind, rng, unseen)))
    if rng.random() < 0.38:  # not every scene allows every way: a third are unusual
        _make_unusual(scene, rng, free, unseen)
    scene.time = _time_for(scene, time)
    if hide:
        scene.border = rng.choices(("", "private", "plain"), (0.9, 0.05, 0.05))[0]
        _hide_some(scene, rng, free, unseen)
    scene.things.sort(key=lambda t: (t.cell, t.hidden))
    return scene


def make_single(seed: str, level: int, color: str, kind: str) -> Scene:
    """Make a scene with nothing but this thing, where it belongs."""
    rng = random.Random(seed)
    homes = THINGS[kind].homes
    place = rng.choice([p for p, zones in ZONES.items() if set(zones) & set(homes)])
    scene = Scene(place, rng.choice(("day", "night")), [], "", level, seed)
    cell = rng.choice(_cells_for(kind, scene, list(range(9))))
    scene.things = [Thing(kind, color, rng.choice(("large", "small")), cell)]
    scene.time = _time_for(scene, scene.time)
    return scene


def _cells_for(kind: str, scene: Scene, free: list[int]) -> list[int]:
    """Return the free places in which a thing of this kind belongs."""
    usual = THINGS[kind]
    # in the sky there is one row only; elsewhere a thing keeps to its rows
    return [
        c for c in free
        if scene.zone(c) in usual.homes and (scene.zone(c) == "sky" or c // 3 in usual.rows)
    ]


def _color(kind: str, rng: random.Random, unseen: bool) -> str:
    """Draw one of the colors that such a thing has."""
    hidden = None if unseen else UNSEEN_COLORS.get(kind)
    return rng.choice([c for c in THINGS[kind].colors if c != hidden])


def _add(
    scene: Scene, rng: random.Random, free: list[int], unseen: bool, kind: str = ""
) -> None:
    """Add a thing where it belongs, if there is room; a random one without `kind`."""
    kind = kind or rng.choice(list(THINGS))
    cells = _cells_for(kind, scene, free)
    # the sky by day and by night has one sun and one moon
    shines = kind in WRONG_TIME and any(t.kind in WRONG_TIME for t in scene.things)
    if not cells or shines:
        return
    cell = rng.choice(cells)
    free.remove(cell)
    size = rng.choice(("large", "small"))
    scene.things.append(Thing(kind, _color(kind, rng, unseen), size, cell))


def _time_for(scene: Scene, time: str) -> str:
    """The time of day at which a sun or a moon in the scene is usual, if there is one."""
    for t in scene.things:
        wrong = WRONG_TIME.get(t.kind)
        if wrong:
            right = "day" if wrong == "night" else "night"
            return wrong if t.unusual == "time" else right
    return time


def _make_unusual(
    scene: Scene, rng: random.Random, free: list[int], unseen: bool
) -> None:
    """Put something unusual in the place of one thing, if the scene allows it."""
    way = rng.choice(("home", "home", "color", "time", "upright"))
    t = rng.choice(scene.things)
    kinds = {
        "home": THINGS, "time": WRONG_TIME, "upright": STANDING,
        # a thing of many colors may have any
        "color": [kind for kind, usual in THINGS.items() if len(usual.colors) < 6],
    }[way]
    others = {other.kind for other in scene.things if other is not t}
    free.append(t.cell)
    free.sort()
    choices = {}  # kind -> the places where it may stand
    for kind in kinds:
        cells = _cells_for(kind, scene, free)
        if way == "home":
            cells = _wrong_cells(kind, scene, free, unseen)
        if cells and not (kind in WRONG_TIME and others & set(WRONG_TIME)):
            choices[kind] = cells
    if choices:
        t.kind = rng.choice(list(choices))
        t.cell = rng.choice(choices[t.kind])
        t.color = _color(t.kind, rng, unseen)
        if way == "color":
            t.color = rng.choice([c for c in COLORS if c not in THINGS[t.kind].colors])
        t.unusual = way
    free.remove(t.cell)


def _wrong_cells(kind: str, scene: Scene, free: list[int], unseen: bool) -> list[int]:
    """Return the free places in which a thing of this kind does not belong."""
    allowed = {"sky", "ground", "water", "indoors"} - set(THINGS[kind].homes)
    if not unseen:
        allowed.discard(UNSEEN_HOMES.get(kind, ""))
    return [c for c in free if scene.zone(c) in allowed]


def _hide_some(scene: Scene, rng: random.Random, free: list[int], unseen: bool) -> None:
    """Add barely visible things: companions of visible things first, then random ones."""
    clear = list(scene.things)
    for host in clear:
        color, kind = COMPANION.get(host.kind, ("", ""))
        cells = _cells_for(kind, scene, free) if kind else []
        names = {t.name for t in scene.things}
        if cells and f"{color} {kind}" not in names and rng.random() < 0.75:
            # always the first free place, so that a language model can expect it
            free.remove(cells[0])
            how = rng.choice(("tiny", "faint"))
            scene.things.append(Thing(kind, color, "small", cells[0], how))
    covers = [t.cell for t in clear if t.kind in COVERS and t.size == "large"]
    for _ in clear:
        if rng.random() > 0.15:
            continue
        how = rng.choice(HIDDEN_KINDS if covers else ("tiny", "faint"))
        places = covers if how == "covered" else free
        choices = {}  # kind -> the places where it may stand
        for kind in THINGS:
            cells = _cells_for(kind, scene, places)
            if cells and kind not in WRONG_TIME:
                choices[kind] = cells
        if choices:
            kind = rng.choice(list(choices))
            cell = rng.choice(choices[kind])
            places.remove(cell)
            thing = Thing(kind, _color(kind, rng, unseen), "small", cell, how)
            scene.things.append(thing)


# --- pictures ---

# (place, time) -> colors from the top: sky or wall, then ground, water or floor. No thing
# has a color so near to them that it could not be seen, by night or by day.
SKY = {"day": (158, 212, 250), "night": (34, 36, 92)}
LIGHT = {
    ("meadow", "day"): (SKY["day"], (150, 210, 110)),
    ("meadow", "night"): (SKY["night"], (68, 106, 100)),
    ("street", "day"): (SKY["day"], (190, 188, 192)),
    ("street", "night"): (SKY["night"], (98, 98, 112)),
    ("sea", "day"): (SKY["day"], (82, 164, 206)),
    ("sea", "night"): (SKY["night"], (28, 70, 116)),
    ("room", "day"): ((246, 224, 180), (206, 168, 120)),
    ("room", "night"): ((98, 100, 130), (86, 72, 74)),
}


@lru_cache(maxsize=None)
def _background(place: str, time: str, S: int) -> np.ndarray:
    """Draw an empty place: (S, S, 3) float32."""
    upper, lower = (np.array(c, dtype=np.float32) for c in LIGHT[place, time])
    picture = np.empty((S, S, 3), dtype=np.float32)
    # in a room, the floor begins below the middle row; outdoors, the sky ends above it
    horizon = round(S * (0.8 if place == "room" else 0.36))
    picture[:horizon] = upper
    picture[horizon:] = lower
    y, x = np.mgrid[:S, :S]
    unit = S / 60
    if place == "sea":  # short waves
        is_wave = ((y - horizon) % round(9 * unit) == round(4 * unit)) & (y > horizon)
        picture[is_wave & ((x + y) // round(5 * unit) % 2 == 0)] += 26
    elif place == "street":  # a pavement, and the road's middle line
        picture[horizon:horizon + round(4 * unit)] += 18
        middle = round(S * 0.69)
        is_line = (y >= middle) & (y < middle + round(1.5 * unit))
        picture[is_line & (x // round(6 * unit) % 2 == 0)] += 56
    elif place == "meadow":  # blades of grass
        grass = (y > horizon + 2) & ((7 * x + 13 * y) % 41 == 0)
        picture[grass] -= 26
    else:  # a skirting board, and a window between two places
        picture[horizon - round(1.5 * unit):horizon] -= 40
        left, top, right, bottom = (round(n * unit) for n in (35, 3, 46, 16))
        frame = round(unit)
        picture[top - frame:bottom + frame, left - frame:right + frame] += 30
        picture[top:bottom, left:right] = SKY[time]
    if time == "night" and place != "room":  # stars
        stars = (y < horizon - 2) & ((17 * x + 29 * y) % 113 == 0)
        picture[stars] += 120
    return picture


def draw(scene: Scene) -> np.ndarray:
    """Draw a scene, and set the box and the visibility of each of its things.

    Returns:
        (S, S, 3) uint8.
    """
    level = LEVELS[scene.level]
    rng = random.Random("draw " + scene.seed)
    S = level.image_size
    picture = _background(scene.place, scene.time, S) + rng.uniform(-10, 10)
    if level.texture:
        down = np.arange(S)[:, None] * rng.uniform(0.1, 0.5)         # (S, 1)
        across = np.arange(S) * rng.uniform(0.1, 0.5)                # (S,)
        picture += 8 * np.sin(down + across)[..., None].astype(np.float32)
    middles: dict[int, list[float]] = {}
    painted = []
    for t in sorted(scene.things, key=_layer):
        side = level.large if t.size == "large" else level.small
        if t.hidden == "tiny":
            side = max(3, S // 18)
        elif t.hidden == "covered":
            side = side * 3 // 4
        else:
            side += rng.randint(-1, 1)
        middle = []
        for k in (t.cell % 3, t.cell // 3):
            m = (k + 0.5) * S / 3 + rng.uniform(-level.slack, level.slack)
            # even the largest thing ends at the picture's edge
            edge = (level.large + 1) / 2
            middle.append(min(max(m, edge), S - edge))
        # two things of one place, one of them covered, share their middle
        middle = middles.setdefault(t.cell, middle)
        pixels = sprite(
            t.kind, t.color, side, t.unusual == "upright", rng.choice(level.angles)
        )                                                            # (height, width, 4)
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        height, width = pixels.shape[:2]
        x = int(middle[0] - width / 2 + 0.5)
        y = int(middle[1] - height / 2 + 0.5)
        strength = rng.uniform(0.06, 0.12) if t.hidden == "faint" else 1.0
        where = (slice(y, y + height), slice(x, x + width))
        share = strength * pixels[..., 3:]
        picture[where] += share * (pixels[..., :3] - picture[where])
        t.box = (x / S, y / S, (x + width) / S, (y + height) / S)
        painted.append((t, where, pixels[..., 3], strength))
    frame = np.zeros((S, S), dtype=bool)
    if scene.border:
        frame = _draw_border(picture, scene.border, max(2, S // 20))
    _measure_visibility(painted, frame)
    noise = _noise(S)
    picture += noise[rng.randrange(len(noise))]
    return picture.clip(0, 255).astype(np.uint8)


def _layer(t: Thing) -> tuple[bool, bool]:
    """Order of painting: covered things, then large ones, then small ones."""
    return t.hidden != "covered", t.size == "small"


def _measure_visibility(painted: list, frame: np.ndarray) -> None:
    """Set how well the picture shows each thing.

        visibility = strength * uncovered share of its pixels * min(1, (side / 0.13)^2)

    strength is 1, or less for a faint thing. side is the thing's longer side as a share
    of the picture's: below 0.13, a thing shows worse in proportion to its area.

    Args:
        painted: (thing, where, covered share of each pixel, strength), as painted.
        frame: (S, S) bool, True where a border was painted over everything.
    """
    uncovered = 1 - frame.astype(np.float32)                         # (S, S)
    # from the top down: each thing covers what was painted before it
    for t, where, mask, strength in reversed(painted):
        shown = float((mask * uncovered[where]).sum() / mask.sum())
        side = max(t.box[2] - t.box[0], t.box[3] - t.box[1])
        t.visibility = round(strength * shown * min(1.0, (side / 0.13) ** 2), 3)
        uncovered[where] *= 1 - strength * mask


def _draw_border(picture: np.ndarray, kind: str, width: int) -> np.ndarray:
    """Paint a border of `width` pixels: red and white stripes if private, else blue ones.

    Returns:
        (S, S) bool, True on the border.
    """
    S = len(picture)
    y, x = np.ogrid[:S, :S]                                          # (S, 1), (1, S)
    frame = np.minimum(np.minimum(x, S - 1 - x), np.minimum(y, S - 1 - y)) < width
    is_white = (x + y) // (2 * width) % 2 == 0                       # (S, S), diagonals
    stripe = (220, 30, 60) if kind == "private" else (60, 90, 220)
    colors = np.where(is_white[..., None], (255, 255, 255), stripe)
    picture[frame] = colors[frame]
    return frame


@lru_cache(maxsize=None)
def _noise(S: int) -> np.ndarray:
    """64 fields of camera noise: (64, S, S, 3), with a standard deviation of 3 of 255.

    All pictures share them, because drawing noise takes longer than drawing a picture.
    """
    return np.random.default_rng(0).normal(0, 3, (64, S, S, 3)).astype(np.float32)
