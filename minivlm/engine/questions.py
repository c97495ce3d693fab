"""Questions about the objects of a picture: the makers, one for each kind.

A maker returns a `Draft`: the question before its phrasing is drawn, its answer in one word
and in sentences, and what any right answer contains. It returns None where this kind cannot
be asked about the picture.
"""

import re
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from minivlm.engine.references import (
    Reference, absent, absent_kind, gives_away, longer, names_of, overlap, refer,
    refer_to_several,
)
from minivlm.engine.wording import (
    Scene, Things, World, at, capital, is_at, not_there, sentence, small, summary,
    there_are,
)
from minivlm.evaluation.english import article, plural
from minivlm.evaluation.scene import (
    NUMBERS, OPPOSITE, PLACES, SIZES, Thing, beside, named_by,
)

Texts = tuple[str, ...]


class Draft(NamedTuple):
    """A question before its phrasing is drawn, with its answer, short and full.

    kind: of the question; without `phrasing`, also the name of its file of phrasings.
    words: slot of the phrasing -> what is put into it.
    word: the answer in one word, or "" if one word is not enough.
    full: the answer in sentences, without `seen`.
    expect: a right answer contains one of these texts.
    wrong: a right answer contains none of these texts.
    phrasing: the file of phrasings, if it is not the kind's own.
    about: the object that the question is about, for follow-up questions.
    seen: sentences that tell what was seen, from which the full answer follows.

    A small model that has to answer at once stays at chance for long. So an answer first
    names what it is about ("A red cup is"), as captions do that look things up, then says
    what is seen ("at the left", "not in the picture"), and only then concludes ("so yes").
    """

    kind: str
    words: dict[str, str]
    word: str
    full: str
    expect: Texts = ()
    wrong: Texts = ()
    phrasing: str = ""
    about: Thing | None = None
    seen: str = ""

    @property
    def answer(self) -> str:
        """What was seen, then the full answer."""
        return f"{self.seen} {self.full}".strip()

    @property
    def sentence(self) -> str:
        """The answer; the sentences of `seen` and the first of `full` are joined to one."""
        if not self.seen:
            return self.full
        first, *more = [*self.seen.removesuffix(".").split(". "), self.full]
        return ", ".join([first, *map(small, more)])


Maker = Callable[[Scene, Random, World], Draft | None]

FACT = re.compile(r"([^.]+), so (?:yes|no)\.")  # the last sentence of a yes or no
TRIES = 3  # a maker is asked so often until it makes a question about a picture
# kind of comparison -> its possible results, of which only one can be true
OUTCOMES = {
    "compare_number": ("more", "fewer", "as many"),
    "compare_size": ("larger", "smaller"),
    "same": ("the same", "different"),
}


def yes_or_no(
    kind: str, words: dict[str, str], is_yes: bool, fact: str, wrong: Texts = (),
    about: Thing | None = None, seen: str = "",
) -> Draft:
    """A question whose answer is yes or no; the answer in sentences first tells why.

    Args:
        fact: what is true, as a sentence before ", so yes." or ", so no.".
        wrong: texts that say something false.
    """
    word, other = ("yes", "no") if is_yes else ("no", "yes")
    full = f"{capital(fact)}, so {word}."
    wrong = (*wrong, other)
    return Draft(kind, words, word, full, (word,), wrong, about=about, seen=seen)


def tell(what: str, *references: Reference) -> str:
    """Say what each object is like, in a sentence each: "The cup is red. The car is blue."

    Nothing is said of an object whose phrase tells it already.

    Args:
        what: "color", "kind", "size", "place" or "zone".
    """
    texts = []
    for t, phrase in references:
        value = getattr(t, what)
        if value and not gives_away(phrase, value):
            said = {"kind": article, "place": at}.get(what, str)(value)
            texts.append(f"The {phrase} is {said}.")
    return " ".join(texts)


def values_of(things: Things, world: World) -> dict[str, set[str]]:
    """The colors, kinds, sizes and settings that an answer may name.

    Where no object has a color, names are not "color kind", and a kind is a whole name.
    """
    colored = any(t.color for t in things)
    colors = {t.color for t in things} | world.colors if colored else set()
    kinds = {t.kind for t in things} | (world.kinds if colored else set(world.known))
    places = set(world.places)
    return {"color": colors, "kind": kinds, "size": set(SIZES), "place": places}


def others(
    what: str, value: str, words: dict[str, str], scene: Scene, world: World
) -> Texts:
    """The values that a right answer must not name.

    A value that the question names is never wrong, because an answer may repeat the
    question. "light" is a part of the right answer "light blue", so it is not wrong.
    """
    asked = " ".join(words.values()).split()
    values = sorted(values_of(scene.things, world)[what])
    return tuple(v for v in values if v not in asked and v not in value)


# --- one object ---


def exist(scene: Scene, rng: Random, world: World, kind: str = "exist") -> Draft | None:
    """Is there a red car?"""
    if rng.random() < 0.5:
        t = rng.choice(scene.things)
        name = rng.choice((t.kind, t.name))
    else:
        draw = rng.choice((absent_kind, absent))
        # where every kind is shown, a name may still be absent
        name = draw(scene.things, rng, world) or absent(scene.things, rng, world)
    if not name:
        return None
    found = named_by(name, scene.things)
    # a crowd comes last: its box does not tell where anyone is
    fact = is_at(name, [t.place for t in sorted(found, key=lambda t: t.crowd)[:1]])
    affirmed = (f"there is {article(name)}", f"{name} is at", f"{name} is in")
    expect, wrong = denials_of(name), ("there is a", "there is an", *affirmed)
    if found:
        expect, wrong = affirmed, ("there is no", "not in the picture")
    # kind "negation" asks the opposite: yes means that there is no such object
    is_yes = bool(found) == (kind == "exist")
    words = {"a": article(name), "x": name}
    about = found[0] if len(found) == 1 else None
    draft = yes_or_no(kind, words, is_yes, fact, wrong, about)
    # "A red car is at the left." answers it, too
    return draft._replace(expect=draft.expect + expect)


def negation(scene: Scene, rng: Random, world: World) -> Draft | None:
    """Is it true that there is no red car?"""
    draft = exist(scene, rng, world, "negation")
    if not draft:
        return None
    # a bare yes may mean either here: one word is not enough, and only the rest counts
    full = draft.full.rpartition(",")[0] + "."
    return draft._replace(
        word="", full=full, expect=draft.expect[1:], wrong=draft.wrong[:-1]
    )


def attribute(what: str) -> Maker:
    """The maker of questions for what = "color", "kind" or "size"."""
    def make(scene: Scene, rng: Random, world: World) -> Draft | None:
        """What color is the car?"""
        reference = refer(scene.things, rng, secret=what)
        if not reference:
            return None
        t, phrase = reference
        value = getattr(t, what)
        word = "" if " " in value else value
        words = {"x": phrase}
        wrong = others(what, value, words, scene, world)
        full = tell(what, reference)
        return Draft(what, words, word, full, (value,), wrong, about=t)
    return make


def position(scene: Scene, rng: Random, world: World) -> Draft | None:
    """Where is the car?"""
    reference = refer(scene.things, rng, secret="place")
    if not reference:
        return None
    t, phrase = reference
    wrong = tuple(p for p in PLACES if p not in t.place)
    # places such as "top left" have two words, so none is asked for in one word
    return Draft(
        "position", {"x": phrase}, "", tell("place", reference), (t.place,), wrong, about=t
    )


def assumed(scene: Scene, rng: Random, world: World) -> Draft | None:
    """What color is the car? There is none: the question assumes what is not there."""
    x = absent_kind(scene.things, rng, world)
    if not x:
        return None
    phrasing = rng.choice(("color", "color", "position", "position", "size"))
    return no_such(x, phrasing)


def no_such(x: str, phrasing: str) -> Draft:
    """A question about something that is not there."""
    full = sentence(not_there(f"the {x}"))
    return Draft("assumed", {"x": x}, "", full, denials_of(x), (), phrasing)


def denials_of(x: str) -> Texts:
    """What says that something is not there."""
    return f"there is no {x}", not_there(x)


# --- numbers ---


def amount_of(scene: Scene, rng: Random, world: World) -> tuple[str, int] | None:
    """Choose what to count, "car", "red object" or "object", and count it.

    Returns:
        the phrase and the number, or None if the number is unknown or above ten.
    """
    kinds = [t.kind for t in scene.things]
    phrases = ["object", *kinds, *kinds]  # kinds twice: asked more often than colors
    phrases += [f"{t.color} object" for t in scene.things if t.color]
    phrases.append(absent_kind(scene.things, rng, world))
    phrase = rng.choice([p for p in phrases if p])
    found = named_by(phrase, scene.things)
    # a crowd is one box around an unknown number of objects
    if len(found) >= len(NUMBERS) or any(t.crowd for t in found):
        return None
    return phrase, len(found)


def found_at(phrase: str, scene: Scene) -> str:
    """Return a sentence that tells the place of every object that fits the phrase."""
    return sentence(is_at(phrase, [t.place for t in named_by(phrase, scene.things)]))


def count(scene: Scene, rng: Random, world: World) -> Draft | None:
    """How many cars, red objects or objects are there?"""
    amount = amount_of(scene, rng, world)
    if not amount:
        return None
    phrase, n = amount
    words = {"x": phrase, "xs": plural(phrase)}
    seen = found_at(phrase, scene)
    word = NUMBERS[n] if n else "zero"
    expect = (word, str(n)) if n else ("zero", "no", "0", "not in the picture")
    wrong = tuple(other for other in (*NUMBERS, "zero") if other not in expect)
    full = there_are(n, phrase)
    return Draft("count", words, word, full, expect, wrong, seen=seen)


def compare_number(scene: Scene, rng: Random, world: World) -> Draft | None:
    """Are there more cars than trees?"""
    things = scene.things
    key = rng.choice(("kind", "color"))
    values = {getattr(t, key) for t in things}
    if key == "kind":
        values.add(absent_kind(things, rng, world))
    values.discard("")
    if len(values) < 2 or any(t.crowd for t in things):
        return None
    x, y = rng.sample(sorted(values), 2)  # sorted: a set has no fixed order
    if key == "color":
        x = f"{x} object"
        y = f"{y} object"
    n_x, n_y = (len(named_by(phrase, things)) for phrase in (x, y))
    if max(n_x, n_y) >= len(NUMBERS):
        return None
    how = "as many" if n_x == n_y else "more" if n_x > n_y else "fewer"
    than = "as" if n_x == n_y else "than"
    fact = f"there are {how} {plural(x)} {than} {plural(y)}"
    words = {"xs": plural(x), "ys": plural(y)}
    wrong = tuple(o for o in OUTCOMES["compare_number"] if o != how)
    seen = f"{found_at(x, scene)} {found_at(y, scene)}"
    return yes_or_no("compare_number", words, n_x > n_y, fact, wrong, seen=seen)


def countable(things: Things) -> bool:
    """Whether there are three to ten objects, and none of them is a crowd."""
    return 2 < len(things) < len(NUMBERS) and not any(t.crowd for t in things)


def without(scene: Scene, rng: Random, world: World) -> Draft | None:
    """How many objects are left without the car? Two steps: count, then subtract one."""
    things = scene.things
    reference = refer(things, rng)
    if not reference or not countable(things):
        return None
    t, phrase = reference
    left = NUMBERS[len(things) - 1]
    full = (
        f"{there_are(len(things), 'object')} The {phrase} is one of them. "
        f"So {left} objects are left."
    )
    words = {"x": phrase}
    return Draft("without", words, left, full, (full,), about=t, seen=summary(things))


def one_more(scene: Scene, rng: Random, world: World) -> Draft | None:
    """How many cars with one more? Two steps, possible for nearly every picture."""
    amount = amount_of(scene, rng, world)
    if not amount or amount[1] + 1 == len(NUMBERS):
        return None
    phrase, n = amount
    words = {"a": article(phrase), "x": phrase, "xs": plural(phrase)}
    full = f"{there_are(n, phrase)} With one more there would be {NUMBERS[n + 1]}."
    seen = found_at(phrase, scene)
    return Draft("one_more", words, NUMBERS[n + 1], full, (full,), seen=seen)


# --- two objects ---


def relation(scene: Scene, rng: Random, world: World) -> Draft | None:
    """Is the red car left of the tree? Half of the questions state the opposite.

    Where habits tell which of both is above the other (a sun and a boat), nobody has to
    look, and nothing is asked.
    """
    pair = refer_to_several(scene.things, rng, 2, secret="place")
    if not pair:
        return None
    (a, x), (b, y) = pair
    side = side_of(a, b)
    homes = [world.facts.get(t.kind, {}).get("home") for t in (a, b)]
    if not side or (side in ("above", "below") and homes[0] != homes[1]):
        return None
    asked = rng.choice((side, OPPOSITE[side]))
    words = {"x": x, "y": y, "r": asked}
    # The fact repeats the side that the question names. If the fact named the other side,
    # a small model would have to compare two sides before it says yes or no.
    is_not = "" if asked == side else "not "
    fact = f"the {x} is {is_not}{asked} the {y}"
    wrong = []
    for r in OPPOSITE:
        denied = "not " if beside(a, b, r) else ""
        wrong += [f"is {denied}{to}{r}" for to in ("", "to the ")]
    seen = tell("place", *pair)
    return yes_or_no("relation", words, asked == side, fact, tuple(wrong), a, seen)


def side_of(a: Thing, b: Thing) -> str:
    """Where a lies, seen from b: "left of", "right of", "above" or "below".

    Returns:
        "" if both centers nearly coincide or lie nearly on a diagonal.
    """
    sides = [side for side in OPPOSITE if beside(a, b, side)]  # horizontal first
    if len(sides) < 2:
        return sides[0] if sides else ""
    horizontal = abs(a.x - b.x)
    vertical = abs(a.y - b.y)
    if abs(horizontal - vertical) < 0.15:  # as shares of the picture's sides
        return ""  # nearly diagonal: people disagree about the word
    return sides[0] if horizontal > vertical else sides[1]


def unlike_sizes(scene: Scene, rng: Random) -> list[tuple[Thing, str]] | None:
    """Two objects with unlike sizes in words, the larger one first."""
    pair = refer_to_several(scene.things, rng, 2, secret="size")
    if not pair:
        return None
    sizes = [t.size for t, _ in pair]
    if sizes[0] == sizes[1] or not set(sizes) <= set(SIZES):
        return None
    return sorted(pair, key=lambda p: SIZES.index(p[0].size))  # SIZES: largest first


def compare_size(scene: Scene, rng: Random, world: World) -> Draft | None:
    """Is the car larger than the tree?"""
    pair = unlike_sizes(scene, rng)
    if not pair:
        return None
    is_larger = rng.random() < 0.5
    (a, x), (b, y) = pair if is_larger else pair[::-1]
    how, other = ("larger", "smaller") if is_larger else ("smaller", "larger")
    fact = f"the {x} is {how} than the {y}"
    seen = tell("size", (a, x), (b, y))
    words = {"x": x, "y": y}
    return yes_or_no("compare_size", words, is_larger, fact, (other,), a, seen)


def larger_of(scene: Scene, rng: Random, world: World) -> Draft | None:
    """Which is larger, the car or the tree?"""
    pair = unlike_sizes(scene, rng)
    if not pair:
        return None
    (large, phrase), (_, other) = pair
    if overlap([phrase, other]):
        return None
    first, second = rng.sample(pair, 2)  # the order must not tell which one it is
    wrong = (f"the {other} is larger", *longer(phrase))
    return Draft(
        "larger_of", {"x": first[1], "y": second[1]}, "", f"The {phrase} is larger.",
        (f"the {phrase} is larger", f"it is the {phrase}"), wrong, about=large,
        seen=tell("size", first, second),
    )


def nearer(scene: Scene, rng: Random, world: World) -> Draft | None:
    """Which is nearer to the car: the tree or the dog?"""
    three = refer_to_several(scene.things, rng, 3, secret="place")
    if not three:
        return None
    (a, x), (b, y), (c, z) = three
    gaps = [abs(a.x - t.x) ** 2 + abs(a.y - t.y) ** 2 for t in (b, c)]
    # squared: one distance is at least 1.4 times the other
    if overlap([x, y, z]) or max(gaps) < 2 * min(gaps):
        return None
    near, far = (y, z) if gaps[0] < gaps[1] else (z, y)
    words = {"x": x, "y": y, "z": z}
    full = f"The {near} is nearer to the {x}."
    wrong = (f"the {far} is nearer", *longer(near))
    expect = (f"the {near} is nearer", f"it is the {near}")
    seen = tell("place", *three)
    return Draft("nearer", words, "", full, expect, wrong, seen=seen)


def same(scene: Scene, rng: Random, world: World) -> Draft | None:
    """Do the red object and the car have the same color, size or kind?"""
    what = rng.choice(("color", "size", "kind"))
    pair = refer_to_several(scene.things, rng, 2, secret=what)
    if not pair:
        return None
    (a, x), (b, y) = pair
    # objects of photographs have no colors, and a name is all that is known of their kinds
    if not a.color or not b.color:
        return None
    is_same = getattr(a, what) == getattr(b, what)
    have = f"the same {what}" if is_same else f"different {what}s"
    words = {"x": x, "y": y, "w": what}
    wrong = ("different",) if is_same else ("the same",)
    fact = f"the {x} and the {y} have {have}"
    seen = tell(what, *pair)
    return yes_or_no("same", words, is_same, fact, wrong, seen=seen)


# --- steps ---


def odd_one_out(scene: Scene, rng: Random, world: World) -> Draft | None:
    """Which object is unlike the others? All others are alike in color, kind or size."""
    things = scene.things
    if not countable(things):
        return None
    odd: dict[str, Thing] = {}  # attribute -> the one object that differs in it
    for key in ("color", "kind", "size"):
        counts = Counter(getattr(t, key) for t in things)
        if len(counts) == 2 and "" not in counts and 1 in counts.values():
            odd[key] = next(t for t in things if counts[getattr(t, key)] == 1)
    if len(set(odd.values())) != 1:
        return None  # no object stands out, or more than one does
    # one object may differ in two attributes
    key, t = rng.choice(list(odd.items()))
    value = getattr(t, key)
    references = []  # of each object, a phrase that does not tell what is compared
    for other in things:
        names = names_of(other, things)
        names = [name for name in names if not gives_away(name, getattr(other, key))]
        if not names:
            return None
        references.append((other, names[0]))
    usual = next(getattr(other, key) for other in things if other is not t)
    if key != "kind":
        value = f"{value} object"
        usual = f"{usual} object"
    n = len(things) - 1
    full = f"{there_are(n, usual)} The only {value} is the {dict(references)[t]}."
    # any phrase for the odd object is right, not only the one in our answer
    expect = tuple(f"is the {name}" for name in names_of(t, things))
    wrong = tuple(f"there are {number}" for number in NUMBERS if number != NUMBERS[n])
    seen = tell(key, *references)
    return Draft("odd_one_out", {}, "", full, expect, wrong, about=t, seen=seen)


def next_to(scene: Scene, rng: Random, world: World) -> Draft | None:
    """What color has the object left of the car? Two steps: find it, see its color."""
    things = scene.things
    reference = refer(things, rng)
    if not reference:
        return None
    start, phrase = reference
    side = rng.choice(list(OPPOSITE))
    candidates = [t for t in things if t is not start and beside(t, start, side)]
    if len(candidates) != 1:
        return None
    [t] = candidates
    names = names_of(t, things)
    if not names or not t.color or t.color in phrase.split():
        return None
    # a name that contains the color would give away the second step in the first
    colorless = [name for name in names if t.color not in name.split()]
    name = rng.choice(colorless or names)
    full = f"The {name} is {side} the {phrase}. The {name} is {t.color}."
    words = {"x": phrase, "r": side}
    wrong = others("color", t.color, words, scene, world)
    seen = tell("place", (start, phrase))
    return Draft("next_to", words, t.color, full, (t.color,), wrong, about=t, seen=seen)
