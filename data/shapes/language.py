"""Captions of a scene, and the words that they are made of.

A caption tells all or some of what can be seen. Objects are named in reading order, because
a small model learns a fixed order several times faster.
"""

import random

from data.shapes.world import COLORS, SHAPES, Object, Scene
from minivlm.engine.wording import at
from minivlm.evaluation.english import article, join, plural
from minivlm.evaluation.scene import NUMBERS as NO_TO_TEN

NUMBERS = ("zero", *NO_TO_TEN[1:], "eleven")


# --- small pieces ---


def name(o: Object) -> str:
    """An object in words: "red circle"."""
    return f"{o.color} {o.shape}"


def sized(o: Object) -> str:
    """An object in words, with its size: "a large red circle"."""
    return article(f"{o.size} {name(o)}")


def sentence(words: str) -> str:
    """Capitalize the first letter and append a full stop."""
    return words[0].upper() + words[1:] + "."


def phrases() -> dict[str, str]:
    """Every way to name an object in an answer -> its canonical name, "red circle"."""
    names = []
    for color in COLORS:
        names += [f"{color} {shape}" for shape in SHAPES]
    singular = {n: n for n in names}
    return singular | {plural(n): n for n in names}


def prompts(thing: str) -> list[str]:
    """Texts that name a class, for zero-shot classification (CLIP, section 3.1.4)."""
    starts = (
        "", "a photo of ", "there is ", "i can see ", "a drawing with ", "one shape: ",
    )
    return [sentence(start + article(thing)) for start in starts]


# --- captions ---


def captions(scene: Scene, rng: random.Random) -> list[str]:
    """Five different captions of the visible objects; the first one is complete."""
    visible = scene.clear
    short = join([article(name(o)) for o in visible])
    placed = [f"{article(name(o))} {at(o.place)}" for o in visible]
    full = join([f"{sized(o)} {at(o.place)}" for o in visible])
    start = rng.choice((
        "", "", "a picture of ", "an image of ", "there is ", "this shows ",
    ))
    opening = rng.choice(("a photo of ", "i can see ", "a drawing with ", "here is "))
    shapes = "shape" if len(visible) == 1 else "shapes"
    pool = [
        short,
        opening + short,
        ", ".join(name(o) for o in visible),
        join(placed),
        f"{NUMBERS[len(visible)]} {shapes}: {short}",
        rng.choice(placed),
    ]
    if len(visible) > 1:
        i = rng.randrange(len(visible) - 1)
        a, b = visible[i:i + 2]  # neighbors in reading order
        pool.append(f"{article(name(a))} {relation(a, b)} {article(name(b))}")
    pool = list(dict.fromkeys(pool))  # for a single object, two of these are the same
    return [sentence(start + full)] + [sentence(c) for c in rng.sample(pool, 4)]


def relation(a: Object, b: Object) -> str:
    """Where a lies, seen from b: "left of", "right of", "above" or "below"."""
    # two objects on a diagonal are called above and below
    if a.cell % 3 != b.cell % 3 and a.cell // 3 == b.cell // 3:
        return "left of" if a.cell % 3 < b.cell % 3 else "right of"
    return "above" if a.cell < b.cell else "below"


def web_caption(scene: Scene, other: Scene, rng: random.Random) -> tuple[str, str]:
    """A caption like those of the web, and what is wrong with it.

    Returns:
        the caption, and "" (70 % of captions), "wrong" (20 %: a caption of the scene
        `other`) or "useless" (10 %: about no picture).
    """
    noise = rng.choices(("", "wrong", "useless"), (0.7, 0.2, 0.1))[0]
    if noise == "useless":
        text = rng.choice((
            "IMG {n}.jpg", "click here for more", "photo {n} of 99", "untitled {n}",
            "best price, free delivery", "download as png", "my holiday {n}", "page {n}",
        ))
        return text.format(n=rng.randrange(10, 100)), noise
    described = other if noise == "wrong" else scene
    return rng.choice(captions(described, rng)), noise
