"""Captions of a scene, as people write them.

A caption names some or all of the visible things. It may tell their colors, sizes, number
and places, which thing is left of another, the setting, the time of day, and what is
unusual. Later stages cannot see what the captions leave out. Most captions name things in
reading order, because a small model learns a fixed order several times faster. Captions
that say what the cup is like, or what is at the left, name things in random order: so the
model learns to look for a thing by its kind, color or place.
"""

import random

from data.book.facts import read_facts
from data.book.things import COLORS, THINGS
from data.book.world import PLACES, UNSEEN_PAIRS, Scene, Thing
from minivlm.engine.facts import HOME
from minivlm.engine.scenes import UNIQUE
from minivlm.engine.wording import (
    at, capital, is_at, named, not_there, sentence, the_or_a, there_are,
)
from minivlm.evaluation.english import article, join, plural
from minivlm.evaluation.scene import NUMBERS, OPPOSITE

WHERE = {"meadow": "in a meadow", "street": "on a street", "sea": "at sea",
         "room": "in a room"}
WHEN = {"day": "by day", "night": "at night"}
ZONE = {"sky": "in the sky", "ground": "on the ground", "water": "in the water",
        "indoors": "in a room"}
# for the engine's questions: what a place is, where one is, what one could do there
SETTINGS = {
    "meadow": {"is": "a meadow", "at": WHERE["meadow"], "do": "pick flowers and run"},
    "street": {"is": "a street", "at": WHERE["street"], "do": "walk and ride a bicycle"},
    "sea": {"is": "the sea", "at": WHERE["sea"], "do": "swim and sail"},
    "room": {"is": "a room", "at": WHERE["room"], "do": "sit down and drink tea"},
}


# --- small pieces ---


def sized(t: Thing) -> str:
    """A thing in words, with its size: "a large red car"."""
    return article(f"{t.size} {t.name}")


def where(scene: Scene) -> str:
    """The place and the time of day: "at sea by day"."""
    return f"{WHERE[scene.place]} {WHEN[scene.time]}"


def relation(a: Thing, b: Thing) -> str:
    """Where a lies, seen from b: "left of", "right of", "above" or "below"."""
    # two things on a diagonal are called above and below
    if a.cell // 3 == b.cell // 3:
        return "left of" if a.cell < b.cell else "right of"
    return "above" if a.cell < b.cell else "below"


def strange(t: Thing, scene: Scene) -> str:
    """What is unusual about a thing, and what would be usual; "" if nothing is.

    For instance "the fish is in the sky, and fish belong in the water".
    """
    the = the_or_a(t.kind, [other.kind for other in scene.clear])
    kinds = plural(t.kind)
    if t.unusual == "home":
        home = read_facts()[0][t.kind][HOME]
        there = ZONE[scene.zone(t.cell)]
        if t.kind in UNIQUE:
            return f"{the} is {there}, and the {t.kind} belongs {home}"
        return f"{the} is {there}, and {kinds} belong {home}"
    if t.unusual == "color":
        *first, last = THINGS[t.kind].colors
        colors = f"{', '.join(first)} or {last}"
        return f"{the} is {t.color}, and {kinds} are {colors}"
    if t.unusual == "time":
        usual = "night" if scene.time == "day" else "day"
        return f"{the} is there {WHEN[scene.time]}, and it belongs to the {usual}"
    if t.unusual == "upright":
        return f"{the} stands on two legs, and {kinds} walk on four"
    return ""


def phrases() -> dict[str, str]:
    """Every way to name a thing in an answer -> its canonical name, "red car"."""
    names = [f"{color} {kind}" for kind in THINGS for color in COLORS]
    singular = {n: n for n in names}
    return singular | {plural(n): n for n in names}


def prompts(thing: str) -> list[str]:
    """Texts that name a class, for zero-shot classification (CLIP, section 3.1.4)."""
    starts = ("", "a picture of ", "there is ", "i can see ", "a drawing of ", "here is ")
    return [sentence(start + article(thing)) for start in starts]


# --- captions ---


# what captions tell of the things that they look for; sizes, which are hard to see, twice
FORMS = (
    "color", "size", "size", "where", "zone", "odd", "is there", "of color", "at place",
)


def looked_up(scene: Scene, rng: random.Random) -> list[str]:
    """Return texts that tell one property of some things, in random order.

    A text names each thing by its kind, its color or its place. Some texts also name a thing
    that is absent: "the cup is red, the dog is not in the picture". If several things have
    the same kind or color, only the form "is there" uses it as their name. That form tells
    the place of each of them.
    """
    things = scene.clear
    kinds = [t.kind for t in things]
    colors = [t.color for t in things]
    names = [(t.kind, t.name, f"{t.color} thing") for t in things]
    texts = []
    for form in FORMS:
        parts = []
        told = set()  # places that "is there" has named
        for t in rng.sample(things, min(3, len(things))):
            place = at(PLACES[t.cell])
            name = rng.choice((t.kind, t.name))
            if form == "at place":
                parts.append(f"{place} there is {sized(t)}")
            elif form == "is there":
                name = rng.choice((t.kind, t.name, f"{t.color} thing"))
                found = [PLACES[o.cell] for o, own in zip(things, names) if name in own]
                if told.isdisjoint(found):
                    parts.append(is_at(name, found))
                    told.update(found)
            elif form == "of color":
                if colors.count(t.color) == 1:
                    parts.append(f"the {t.color} thing is a {t.size} {t.kind}")
            elif kinds.count(t.kind) > 1:
                continue  # "the cup" would not say which
            elif form == "color":
                parts.append(f"the {t.kind} is {t.color}")
            elif form == "odd":
                parts.append(strange(t, scene) or f"the {t.kind} is as usual")
            else:
                zone = ZONE[scene.zone(t.cell)]
                said = {"size": t.size, "where": place, "zone": zone}[form]
                parts.append(f"the {name} is {said}")
        parts = list(dict.fromkeys(parts))
        if parts and form not in ("of color", "at place", "odd"):
            n = len(parts) if form == "is there" else 1
            for absent in absentees(things, n, rng):
                the = article(absent) if form == "is there" else f"the {absent}"
                parts.insert(rng.randrange(len(parts) + 1), not_there(the))
        if form == "odd" and parts:
            texts.append(". ".join([parts[0], *map(capital, parts[1:])]))
        elif parts:
            texts.append(join(parts[:4]))
    rng.shuffle(texts)
    return texts


def absentees(things: list[Thing], n: int, rng: random.Random) -> list[str]:
    """Kinds and names of which a scene shows nothing; a third are another color's."""
    kinds = {t.kind for t in things}
    names = []
    for _ in range(n):
        t = rng.choice(things)
        kind = rng.choice([kind for kind in THINGS if kind not in kinds])
        shown = {other.color for other in things if other.kind == t.kind}
        colors = [c for c in COLORS if c not in shown and (c, t.kind) not in UNSEEN_PAIRS]
        names.append(rng.choice((kind, kind, f"{rng.choice(colors)} {t.kind}")))
    return list(dict.fromkeys(names))


def retold(scene: Scene, rng: random.Random) -> str:
    """A complete caption, and then ten short sentences that follow from it.

    The first sentence contains nearly every word that follows. From such texts a language
    model learns to look words up and to compare them, before it sees any picture.
    """
    things = scene.clear
    kinds = [t.kind for t in things]
    texts = [sentence(text) for text in looked_up(scene, rng)]
    for t in things:
        texts.append(there_are(kinds.count(t.kind), t.kind))
        for other in things:
            if not kinds.count(t.kind) == kinds.count(other.kind) == 1 or other is t:
                continue
            side = relation(t, other)
            pairs = [(side, OPPOSITE[side])]
            if t.size != other.size:
                than = ("larger than", "smaller than")
                pairs.append(than if t.size == "large" else than[::-1])
            for true, false in pairs:
                asked = rng.choice((true, false, ""))
                question = f"Is the {t.kind} {asked} the {other.kind}? "
                # as answers of the chatbot say it
                is_not = asked == false and false in OPPOSITE
                how = f"not {false}" if is_not else true
                fact = f"The {t.kind} is {how} the {other.kind}"
                so = ", so yes." if asked == true else ", so no."
                texts.append(question + fact + so if asked else f"{fact}.")
    # more would not fit a window of 256 tokens
    texts = rng.sample(texts, min(10, len(texts)))
    return " ".join([captions(scene, rng)[0], *dict.fromkeys(texts)])


def captions(scene: Scene, rng: random.Random) -> list[str]:
    """Six different captions of the visible things; the first one is complete."""
    things = scene.clear
    full = join([f"{sized(t)} {at(PLACES[t.cell])}" for t in things])
    start = rng.choice(("", "", "a picture of ", "there is ", "this shows ", "i can see "))
    one = rng.choice(things)
    pool = [
        f"{join([sized(t) for t in things])} {where(scene)}",
        join([sized(t) for t in things]),
        f"{named(things)} {where(scene)}",
        join([f"{article(t.name)} {at(PLACES[t.cell])}" for t in things]),
        f"{sized(one)} {at(PLACES[one.cell])}, {WHERE[scene.place]}",
    ]
    if len(things) > 1:
        a, b = sorted(rng.sample(things, 2), key=lambda t: t.cell)
        pool += 3 * [f"{sized(a)} {relation(a, b)} {sized(b)}"]
        number = NUMBERS[len(things)]
        pool += 2 * [f"{number} things {where(scene)}: {named(things)}"]
    rng.shuffle(pool)
    # whoever sees something strange speaks of it
    for t in things:
        if t.unusual:
            start_strange = rng.choice(("how strange: ", "look, ", "", ""))
            pool.insert(0, start_strange + strange(t, scene))
    pool = looked_up(scene, rng)[:3] + pool
    # a text that stands in the pool several times is chosen more often
    pool = list(dict.fromkeys(pool))
    return [sentence(f"{start}{full}, {where(scene)}")] + [sentence(c) for c in pool[:5]]


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
