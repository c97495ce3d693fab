"""What people say about a scene in a caption, and the words they use.

Captions tell what can be seen, some of it or all. Objects are always named in reading order; a
small model learns that several times faster.

Used by: questions.py, prepare.py.
"""

import random

from data.shapes.world import COLORS, SHAPES, Object, Scene
from minivlm.evaluation.english import article, join

NUMBERS = (
    "zero", "one", "two", "three", "four", "five",
    "six", "seven", "eight", "nine", "ten", "eleven",
)


# --- small pieces ---


def name(o: Object) -> str:
    """"red circle"."""
    return f"{o.color} {o.shape}"


def at(o: Object) -> str:
    """"in the center", "at the top left"."""
    return ("in the " if o.place == "center" else "at the ") + o.place


def sentence(words: str) -> str:
    """Capitalize and close with a full stop."""
    return words[0].upper() + words[1:] + "."


def phrases() -> dict[str, str]:
    """Every way an object can be named in an answer, mapped to its one canonical name."""
    names = [f"{c} {s}" for c in COLORS for s in SHAPES]
    plural = {n + ("es" if n.endswith("cross") else "s"): n for n in names}
    return {n: n for n in names} | plural


def prompts(thing: str) -> list[str]:
    """The prompt ensemble of a class for zero-shot classification (CLIP, section 3.1.4)."""
    start = ("", "a photo of ", "there is ", "i can see ", "a drawing with ", "one shape: ")
    return [sentence(s + article(thing)) for s in start]


# --- captions ---


def captions(scene: Scene, rng: random.Random) -> list[str]:
    """Five different paraphrases of what can be seen, the first one complete, some partial."""
    seen = scene.clear
    short = [article(name(o)) for o in seen]
    full = [f"{article(o.size + ' ' + name(o))} {at(o)}" for o in seen]
    start = rng.choice(("", "", "a picture of ", "an image of ", "there is ", "this shows "))
    pool = [
        join(short),
        rng.choice(("a photo of ", "i can see ", "a drawing with ", "here is ")) + join(short),
        ", ".join(name(o) for o in seen),
        join([f"{article(name(o))} {at(o)}" for o in seen]),
        f"{NUMBERS[len(seen)]} {'shape' if len(seen) == 1 else 'shapes'}: {join(short)}",
        f"{article(name(one := rng.choice(seen)))} {at(one)}",
    ]
    if len(seen) > 1:
        i = rng.randrange(len(seen) - 1)
        a, b = seen[i], seen[i + 1]
        pool.append(f"{article(name(a))} {relation(a, b)} {article(name(b))}")
    pool = list(dict.fromkeys(pool))  # of a single object, two of these are the same
    return [sentence(start + join(full))] + [sentence(c) for c in rng.sample(pool, 4)]


def relation(a: Object, b: Object) -> str:
    """How a lies to b: "left of", "right of", "above" or "below"."""
    if a.cell % 3 != b.cell % 3 and a.cell // 3 == b.cell // 3:
        return "left of" if a.cell % 3 < b.cell % 3 else "right of"
    return "above" if a.cell < b.cell else "below"


def web_caption(scene: Scene, other: Scene, rng: random.Random) -> tuple[str, str]:
    """A caption as the web writes it and its noise: "" (70 %), "wrong" (20 %), "useless" (10 %)."""
    noise = rng.choices(("", "wrong", "useless"), (0.7, 0.2, 0.1))[0]
    if noise == "useless":
        text = rng.choice((
            "IMG {n}.jpg", "click here for more", "photo {n} of 99", "untitled {n}",
            "best price, free delivery", "download as png", "my holiday {n}", "page {n}",
        ))
        return text.format(n=rng.randrange(10, 100)), noise
    return rng.choice(captions(other if noise else scene, rng)), noise
