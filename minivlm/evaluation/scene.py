"""Decide whether a sentence about a picture is true, from what the picture really shows.

    things = things_of(record)
    read, other = claims("The red car is left of the tree.")
    false = [c for c in read if holds(c, things) is False]

A small grammar reads the sentences. It checks the answers of language models
(engine/checks.py) and of our own templates (engine/template.py). It knows nothing of the
texts of these templates, so that it does not repeat mistakes in them; but `plural`,
`named_by` and `beside` serve both.

A claim about something that is neither in the picture nor in the vocabulary of the data set
stays undecided.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from minivlm.evaluation.english import plural
from minivlm.running.files import is_number

NUMBERS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
)
SIZES = ("large", "medium", "small")
PLACES = ("top left", "top", "top right", "left", "center", "right",
          "bottom left", "bottom", "bottom right")
OPPOSITE = {
    "left of": "right of", "right of": "left of", "above": "below", "below": "above",
}
ANY = ("object", "thing", "shape")  # nouns that fit every thing
# two centers that differ by this or less, as a share of the picture's side, are aligned:
# neither is left of, right of, above or below the other
NEAR = 0.08


@dataclass(frozen=True)
class Thing:
    """An object of a scene.

    Args:
        kind: for instance "car" or "dog".
        color, size: "" if unknown.
        x, y: the center of its box, 0 .. 1; (0, 0) is the picture's top left corner.
        area: the area of its box, as a share of the picture.
        place: one of PLACES, or the record's own word.
        hidden: whether it is barely visible.
        crowd: whether its box holds an unknown number of such objects.
        unusual: why it is unusual: "the fish is in the sky, and fish belong in the water".
            "" if it is not.
        zone: in what part of the scene it is, "in the sky"; "" if unknown.
    """

    kind: str
    color: str
    size: str
    x: float
    y: float
    area: float
    place: str
    hidden: bool = False
    crowd: bool = False
    unusual: str = ""
    zone: str = ""

    @property
    def name(self) -> str:
        """Color and kind: "red car"; the kind alone if the color is unknown."""
        return f"{self.color} {self.kind}".strip()

    @property
    def places(self) -> set[str]:
        """The words that say where it is: its place, and the last word of its zone."""
        return {self.place, self.zone.rpartition(" ")[2]}


class Setting(NamedTuple):
    """Where and when a picture is.

    Args:
        place: for instance "sea", "" if unknown. Where it is known, it is also known of
            every thing whether it is unusual.
        time: "day", "night", or "" if unknown.
        places: every place that the data set knows.
    """

    place: str = ""
    time: str = ""
    places: frozenset[str] = frozenset()


def setting_of(record: dict, places: Iterable[str] = ()) -> Setting:
    """Read where and when a record's picture is."""
    return Setting(record.get("place") or "", record.get("time") or "", frozenset(places))


def has_scene(record: dict) -> bool:
    """Whether a record has objects, and each a box: then `things_of` reads a scene."""
    objects = record.get("objects", [])
    return bool(objects) and all("box" in o for o in objects)


def things_of(record: dict) -> list[Thing]:
    """Read the objects of a record, in the record's order.

    A box is [left, top, right, bottom], as shares of the picture's sides.

    Raises:
        ValueError: if an object has no name, or no box of four numbers in 0 .. 1.
    """
    things = []
    for o in record.get("objects", []):
        box = o.get("box")
        look = o.get("attributes") or {}
        is_box = isinstance(box, list) and len(box) == 4 and all(map(is_number, box))
        if not o.get("name") or not is_box or not all(0 <= v <= 1 for v in box):
            raise ValueError(
                f"record {record.get('id', '?')} has an object without a name, or without "
                "a box of four numbers in 0..1"
            )
        left, top, right, bottom = box
        x = (left + right) / 2
        y = (top + bottom) / 2
        # min: a center at the right or lower edge (at 1) belongs to the last third
        ninth = 3 * min(2, int(3 * y)) + min(2, int(3 * x))
        # claims are read in lower case
        color, size = (look.get(key) or "" for key in ("color", "size"))
        place = o.get("place") or PLACES[ninth]
        things.append(Thing(
            o["name"].lower(), color.lower(), size.lower(), x, y,
            (right - left) * (bottom - top), place.lower(),
            bool(o.get("hidden")), bool(o.get("crowd")), o.get("unusual") or "",
            o.get("zone") or "",
        ))
    return things


# --- phrases ---


def split(phrase: str) -> tuple[str, str]:
    """Split a phrase into its size, or "", and the rest; its article is dropped.

    >>> split("the large red car")
    ('large', 'red car')
    """
    words = re.sub(r"^(the|an?|any) ", "", phrase).split()
    size = words.pop(0) if len(words) > 1 and words[0] in SIZES else ""
    return size, " ".join(words)


def split_place(phrase: str) -> tuple[str, str]:
    """Split a phrase from the place that stands behind it, or "".

    >>> [split_place(text) for text in ("thing at the top left", "cat in a room", "car")]
    [('thing', 'top left'), ('cat', 'room'), ('car', '')]
    """
    start, *rest = re.split(r" (?:at|in|on) (?:the|a) ", phrase, maxsplit=1)
    return start, "".join(rest)


def named_by(phrase: str, things: list[Thing]) -> list[Thing]:
    """Return the things that a phrase names: "large red car", "thing at the left"."""
    phrase, place = split_place(phrase)
    size, noun = split(phrase)
    found = []
    for t in things:
        nouns = [*ANY, t.kind]
        if t.color:  # a red car is named by "car" and by "red car"
            nouns += [f"{t.color} {n}" for n in nouns]
        fits = size in ("", t.size) and (not place or place in t.places)
        if fits and (noun in nouns or noun in map(plural, nouns)):
            found.append(t)
    return found


def known(phrase: str, things: list[Thing], names: frozenset[str]) -> bool:
    """Whether a phrase names a kind of thing that is in the picture or in the vocabulary.

    If such a phrase fits no thing, there is no such thing. Of any other phrase this cannot
    be said: a picture may show trees, and nobody has listed them; a dog may be large, and
    nobody has recorded its size.
    """
    phrase, _ = split_place(phrase)
    size, noun = split(phrase)
    if size and not all(t.size for t in named_by(noun, things)):
        return False
    nouns, colors = vocabulary(names)
    # what is in the picture is known, even if the vocabulary lacks it
    kinds = {t.kind for t in things}
    kinds |= set(map(plural, kinds))
    color, _, rest = noun.partition(" ")
    if color in colors or any(color == t.color for t in things):
        if rest in nouns or rest in kinds:
            return True
    return noun in nouns or noun in kinds


@lru_cache(maxsize=None)
def vocabulary(names: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Return the nouns in a data set's names, singular and plural, and the colors.

    If a name has several words, its first word counts as a color.
    """
    names = names - {""}  # phrases may stand for nothing, see `metrics.mentions`
    kinds = {*ANY, *names, *(n.split()[-1] for n in names)}
    colors = frozenset(n.split()[0] for n in names if " " in n)
    return frozenset(kinds | set(map(plural, kinds))), colors


def beside(a: Thing, b: Thing, relation: str) -> bool:
    """Whether a lies in this relation (a key of OPPOSITE) to b, by their centers."""
    distances = {
        "left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y,
    }
    return distances[relation] > NEAR


# --- claims ---

WORDS = r"[a-z][a-z' -]*?"
N = "|".join(NUMBERS)
SOME = rf"(?:an?|another|{'|'.join(NUMBERS[1:])}) {WORDS}"           # "a ring", "two rings"
LIST = rf"{SOME}(?:(?:, {SOME})* and {SOME})?"                       # "a ring and two dogs"
WHERE = r"(?:at|in|on) (?:the|a) ([a-z ]+?)(?: corner| side)?"
AT = WHERE.replace("([a-z ]+?)", "[a-z ]+?")
# a sentence is read by the first pattern that fits all of it: special ones come first
GRAMMAR = [(name, re.compile(pattern)) for name, pattern in (
    ("more", rf"there are (more|fewer|as many) ({WORDS}) (?:than|as) ({WORDS})"),
    ("there at", rf"there is an? ({WORDS}) {WHERE}"),
    ("none", rf"(?:an?|the) ({WORDS}) is not"),
    ("as usual", rf"(?:an?|the) ({WORDS}) is as usual"),
    ("several", rf"an? ({WORDS}) is ({AT}(?:, another {AT})*)"),
    ("there", rf"there (?:is|are) ({SOME}(?:, {SOME})* and {SOME})"),
    ("count", rf"there (?:is|are) ({N}) ({WORDS})"),
    ("there", rf"there is (an? {WORDS})"),
    ("there", rf"i see ({LIST})"),
    ("without", rf"without the ({WORDS}), (nothing|{LIST}) would be left"),
    ("unusual",
     rf"((?:an?|the) {WORDS} (?:is|stands) {WORDS}, and {WORDS} (?:belongs?|are|walk) .+)"),
    ("usual", "(?:nothing is unusual: )?everything is as usual"),
    ("time", r"it is (day|night)(?: (?:at|in|on) (?:an? |the )?([a-z]+))?"),
    ("shows", "(?:the picture shows|this is) (?:an?|the) ([a-z]+)"),
    ("only", rf"the only ({WORDS}) is the ({WORDS})"),
    ("beside",
     rf"the ({WORDS}) is (?:to the )?(left of|right of|above|below) the ({WORDS})"),
    ("not beside",
     rf"the ({WORDS}) is not (?:to the )?(left of|right of|above|below) the ({WORDS})"),
    ("size", rf"the ({WORDS}) is (larger|smaller) than the ({WORDS})"),
    ("larger", rf"the ({WORDS}) is (larger|smaller)"),
    ("nearer", rf"the ({WORDS}) is (nearer|closer) to the ({WORDS})"),
    ("same",
     rf"the ({WORDS}) and the ({WORDS}) have (the same|different) "
     "(colors?|kinds?|shapes?|sizes?)"),
    ("at", rf"the ({WORDS}) is {WHERE}"),
    ("kind", rf"the ({WORDS}) is an? ({WORDS})"),
    ("is", rf"the ({WORDS}) is ([a-z]+)"),
)]
# which groups of a pattern name things; `_amounts` reads lists of them
NAMING = {
    "larger": (0,), "nearer": (0, 2), "without": (0,),
    "more": (1, 2), "count": (1,), "only": (0, 1), "beside": (0, 2), "size": (0, 2),
    "not beside": (0, 2),
    "same": (0, 1), "kind": (0, 1), "there at": (0,), "at": (0,), "is": (0,),
    "none": (0,), "as usual": (0,), "several": (0,),
}
LEAD = re.compile(r"^((yes|no|so|therefore), |because )?(i am sure: )?")
TAIL = re.compile(
    r"(,? (in|on) (the|this) (picture|image|photo)|,? here|,? in (total|all)"
    r"|, so (yes|no))+$"
)
Claim = tuple[str, ...]  # name of the pattern, then what its groups matched


def claims(text: str) -> tuple[list[Claim], list[str]]:
    """Read a text: the claims of sentences that the grammar knows, and all other sentences.

    "Yes," or "no," before a sentence and ", so yes" or ", so no" behind it are dropped,
    because the rest says the same. A sentence may make several claims: "the cup is red, the
    car is blue". A line that begins with "- " claims that the picture shows this object.

    >>> claims("No, there is no red car. The cat is nice to see.")
    ([('count', 'no', 'red car')], ['the cat is nice to see'])
    """
    read = []
    other = []
    for line in re.split(r"(?<=[.!?])\s+|\n", text.lower().replace("\u2019", "'")):
        sentence = TAIL.sub("", LEAD.sub("", line.strip().rstrip(".!?")))
        if line.startswith("- "):
            item = re.sub(r"^(an?|the) ", "", line[2:].strip().rstrip("."))
            read.append(("there", "a " + item))
        elif sentence not in ("", "yes", "no"):
            claim, rest = _first_claim(sentence)
            while claim:
                read.append(claim)
                claim, rest = _first_claim(rest)
            if rest:
                other.append(rest)
    return read, other


@lru_cache(maxsize=10_000)  # models say the same things of many pictures
def _first_claim(sentence: str) -> tuple[Claim | None, str]:
    """Read the longest claim that a sentence begins with, up to a comma or its end.

    Returns:
        the claim, or None if the grammar does not know any; and the rest of the sentence.
    """
    ends = [match.start() for match in re.finditer(", ", sentence)]
    for end in (len(sentence), *reversed(ends)):
        claim = _claim(TAIL.sub("", sentence[:end]))
        if claim:
            return claim, sentence[end + 2:]
    return None, sentence


def _claim(sentence: str) -> Claim | None:
    """Return what a sentence claims, or None if the grammar does not know the sentence."""
    for name, pattern in GRAMMAR:
        match = pattern.fullmatch(sentence)
        if match:
            return name, *match.groups("")
    return None


def holds(
    claim: Claim, things: list[Thing], names: frozenset[str] = frozenset(),
    setting: Setting = Setting(),
) -> bool | None:
    """Whether a claim about a picture is true.

    If a claim says something about "the ring", this must be true of every ring, and there
    must be at least one. "There is a ring at the top" needs only one ring there. "There are
    a ring and a dog" allows more of both.

    Args:
        claim: as `claims` returns it.
        things: the objects of the picture.
        names: the names of all objects that the data set lists, like "red car" or "dog".
            If such an object is not among the things, the picture does not show it.
        setting: where and when the picture is, if that is known.

    Returns:
        None if it cannot be told: the claim is about a kind of thing that the data set does
        not list; or about a color, a size, a place or a number that nobody has recorded.
    """
    what, *args = claim
    if what in ("time", "unusual", "usual"):
        return _holds_of_setting(what, args, things, setting)
    if what == "shows":
        if known(args[0], things, names):
            return bool(named_by(args[0], things))
        return _is_place(args[0], setting)
    amounts = {}
    if what == "there" or (what == "without" and args[1] != "nothing"):
        amounts = _amounts(args[-1])
    phrases = [args[i] for i in NAMING.get(what, ())] + list(amounts)
    if not all(known(p, things, names) for p in phrases):
        return None
    named = [named_by(p, things) for p in phrases]
    if what == "there":
        # at least: a text that lists a ring does not say that there is only one
        return all(len(some) >= n for some, n in zip(named, amounts.values()))
    subjects = named[0]
    others = named[-1]

    if what == "more":
        gap = len(subjects) - len(others)
        return {"more": gap > 0, "fewer": gap < 0, "as many": gap == 0}[args[0]]
    if what == "count":
        if any(t.crowd for t in subjects):
            # a crowd holds an unknown number of things, but not 0
            return False if args[0] == "no" else None
        return len(subjects) == NUMBERS.index(args[0])
    if what == "none":
        return not subjects
    if what == "as usual":
        return any(not t.unusual for t in subjects) if setting.place else None
    if what == "several":
        places = Counter(re.findall(f"{WHERE}(?=, another|$)", args[1]))
        each = [holds(("there at", args[0], place), things, names) for place in places]
        if None in each or (places.total() > 1 and any(t.crowd for t in subjects)):
            return None
        return all(
            sum(place in t.places for t in subjects) >= n for place, n in places.items()
        )
    if what in ("at", "there at"):
        is_there = [args[1] in t.places for t in subjects]
        if args[1] not in {*PLACES, *(t.place for t in things)} and not any(is_there):
            # whoever knows the zone of each thing knows that it is another one
            return False if subjects and all(t.zone for t in subjects) else None
        if what == "there at":
            return any(is_there)
        return bool(subjects) and all(is_there)
    if what == "is":
        # things in photographs have neither color nor size, so nothing can be told
        words = {*SIZES, *(t.color for t in things), *vocabulary(names)[1]}
        recorded = [t.size if args[1] in SIZES else t.color for t in subjects]
        if args[1] not in words or not all(recorded):
            return None
        return bool(subjects) and all(args[1] in (t.color, t.size) for t in subjects)
    # below, every claim is false if its subject is not in the picture
    if not subjects:
        return False
    if what == "kind":
        return all(t in others for t in subjects)
    if what == "only":
        return len(subjects) == 1 and others == subjects
    rest = [t for t in things if t not in subjects]
    if what == "without":
        if any(t.crowd for t in rest):
            return None
        is_left = [len(named_by(p, rest)) == n for p, n in amounts.items()]
        return all(is_left) and sum(amounts.values()) == len(rest)
    if what == "larger":  # than something else in the picture
        if len({t.size in SIZES for t in things}) > 1:
            return None
        sign = 1 if args[1] == "larger" else -1
        return all(any(sign * (_bulk(a) - _bulk(b)) > 0 for b in rest) for a in subjects)
    if what == "same":
        # "shapes", "colors" and "sizes" -> the fields of a Thing
        key = "kind" if args[3].startswith("shape") else args[3].rstrip("s")
        values = {getattr(t, key) for t in subjects + others}
        if "" in values:  # nobody has recorded one of the colors or sizes
            return None
        is_same = len(values) == 1
        return is_same == (args[2] == "the same")
    if not others:
        return False
    pairs = list(product(subjects, others))
    if what == "nearer":  # than something else in the picture
        rest = [t for t in rest if t not in others]
        return all(any(_gap(a, b) < _gap(c, b) for c in rest) for a, b in pairs)
    if what == "beside":
        return all(beside(a, b, args[1]) for a, b in pairs)
    if what == "not beside":
        return not any(beside(a, b, args[1]) for a, b in pairs)
    if len({t.size in SIZES for t in subjects + others}) > 1:
        return None  # a size in words and the area of a box cannot be compared
    if args[1] == "larger":
        return all(_bulk(a) > _bulk(b) for a, b in pairs)
    return all(_bulk(a) < _bulk(b) for a, b in pairs)


def _holds_of_setting(
    what: str, args: list[str], things: list[Thing], setting: Setting
) -> bool | None:
    """Whether a claim about the time, or about what is unusual, is true."""
    if what == "time":
        if not setting.time:
            return None
        if args[0] != setting.time:
            return False
        return _is_place(args[1], setting) if args[1] else True
    if not setting.place:
        return None
    # "a fish is in the sky" and "the fish is in the sky" are one reason
    reasons = [t.unusual.lower().partition(" ")[2] for t in things if t.unusual]
    return not reasons if what == "usual" else args[0].partition(" ")[2] in reasons


def _is_place(word: str, setting: Setting) -> bool | None:
    """Whether a word names the picture's place; None if no place is called so."""
    if not setting.place or word not in {setting.place, *setting.places}:
        return None
    return word == setting.place


def _gap(a: Thing, b: Thing) -> float:
    """Return the distance of two centers."""
    return math.hypot(a.x - b.x, a.y - b.y)


def _amounts(phrase: str) -> Counter[str]:
    """Read a list: "a red ring, two dogs" -> {"red ring": 1, "dogs": 2}."""
    amounts: Counter[str] = Counter()
    for part in re.split(rf", | and (?={SOME}$)", phrase):
        first, _, rest = part.partition(" ")
        if first in NUMBERS:
            amounts[rest] += NUMBERS.index(first)
        elif first in ("a", "an", "another"):
            amounts[rest] += 1
        else:
            amounts[part] += 1
    return amounts


def _bulk(t: Thing) -> float:
    """Say how large a thing is: by its size in words if it has one, else by its box."""
    # SIZES begins with the largest
    return -SIZES.index(t.size) if t.size in SIZES else t.area
