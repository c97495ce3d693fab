"""Ways to speak of one object of a picture, and of objects that it does not show."""

from itertools import permutations
from random import Random

from minivlm.engine.wording import Things, World, at
from minivlm.evaluation.scene import PLACES, Thing, named_by

Reference = tuple[Thing, str]  # an object, and a phrase that fits it alone


def names_of(t: Thing, things: Things) -> list[str]:
    """Phrases that fit t and no other object; they use name, kind, color, size or place."""
    candidates = [t.name, t.kind]
    if t.color:
        candidates += [f"{t.color} object", f"{t.color} thing"]
    if t.size:
        candidates.append(f"{t.size} {t.name}")
    candidates.append(f"thing {at(t.place)}")
    # an object without a color has the same name and kind
    return [p for p in dict.fromkeys(candidates) if named_by(p, things) == [t]]


def gives_away(phrase: str, value: str) -> bool:
    """Whether a phrase already names the color, kind, size or place that is asked for."""
    return value == phrase or f" {value} " in f" {phrase} "


def longer(phrase: str) -> tuple[str, ...]:
    """Phrases that begin with this one and mean others: "thing at the top left"."""
    phrases = [f"thing {at(place)}" for place in PLACES]
    return tuple(p for p in phrases if p != phrase and p.startswith(phrase))


def overlap(phrases: list[str]) -> bool:
    """Whether one phrase is a part of another, so that an answer would name both."""
    return any(a in b for a, b in permutations(phrases, 2))


def refer(
    things: Things, rng: Random, secret: str = "", among: Things | None = None
) -> Reference | None:
    """Choose an object and a phrase for it.

    Args:
        secret: "color", "kind", "size" or "place", if the question asks for it. The
            object's value is then known, and the phrase does not name it. "" allows every
            object and phrase.
        among: choose one of these objects; by default one of all.

    Returns:
        the object and its phrase, or None if there is no such phrase for any object.
    """
    choices = []
    for t in things if among is None else among:
        value = getattr(t, secret) if secret else ""
        if secret and not value:
            continue
        for phrase in names_of(t, things):
            if not gives_away(phrase, value) or not secret:
                # people say "the car" more often than "the thing at the left"
                weight = 4 if phrase in (t.kind, t.name) else 1
                choices += weight * [(t, phrase)]
    return rng.choice(choices) if choices else None


def refer_to_several(
    things: Things, rng: Random, n: int, secret: str = "", among: Things | None = None
) -> list[Reference] | None:
    """Choose n different objects, each with a phrase that does not name the secret."""
    pool = list(things if among is None else among)
    found = []
    for t in rng.sample(pool, len(pool)):
        reference = refer(things, rng, secret, [t])
        if reference:
            found.append(reference)
        if len(found) == n:
            return found
    return None


def absent(things: Things, rng: Random, world: World) -> str:
    """Draw a name that fits no object of the picture, or return "" if every name fits one.

    Six times in ten the name shares a word with an object of the picture. A question about
    such a name is hard: a model that sees something red tends to say yes to a red ring.
    """
    there = {t.name for t in things}
    word = rng.choice(rng.choice(things).name.split())
    pools = [world.with_word.get(word, ()), world.names]
    for pool in pools if rng.random() < 0.6 else pools[1:]:
        for _ in range(10 if pool else 0):
            name = rng.choice(pool)
            if name not in there:
                return name
    # nearly every name fits
    missing = [name for name in world.known if name not in there]
    return rng.choice(missing) if missing else ""


def absent_kind(things: Things, rng: Random, world: World) -> str:
    """Draw a kind of which the picture shows nothing; "" if there is none.

    Where no object has a color, names are not "color kind", and a kind is a whole name.
    """
    colored = any(t.color for t in things)
    kinds = {t.kind for t in things}
    for _ in range(10 if world.names else 0):
        name = rng.choice(world.names)
        kind = name.split()[-1] if colored else name
        if kind not in kinds:
            return kind
    return ""
