"""What a picture really shows, and whether a sentence about it is true.

    things = things_of(record)
    read, other = claims("The red circle is left of the square.")
    false = [c for c in read if holds(c, things) is False]

A small grammar reads the sentences. It shares no code with the templates and models that
write them, so it can check them: a language model's answers (engine/checks.py) and our own
templates' (engine/template.py). A claim about something that is neither in the picture nor
in the vocabulary of the data set stays undecided.
"""

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

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
NEAR = 0.08  # centers that differ by less, as a share of the picture's side, are aligned


@dataclass(frozen=True)
class Thing:
    """An object of a scene.

    Args:
        kind: "circle", "dog".
        color, size: "" if unknown.
        x, y: the center, 0 .. 1, from the top left.
        area: of its box, as a share of the picture.
        place: one of PLACES, or the record's own word.
        hidden: the picture barely shows it.
        crowd: its box holds an unknown number of such objects.
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

    @property
    def name(self) -> str:
        """"red circle"."""
        return f"{self.color} {self.kind}".strip()


def things_of(record: dict) -> list[Thing]:
    """The objects of a record, in its order.

    Raises:
        ValueError: for an object without a name or a box of four numbers in 0 .. 1.
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
        # a center at the right or lower edge, at 1, belongs to the last third too
        ninth = 3 * min(2, int(3 * y)) + min(2, int(3 * x))
        things.append(Thing(
            o["name"].lower(), look.get("color") or "", look.get("size") or "", x, y,
            (right - left) * (bottom - top), o.get("place") or PLACES[ninth],
            bool(o.get("hidden")), bool(o.get("crowd")),
        ))
    return things


# --- phrases ---


def split(phrase: str) -> tuple[str, str]:
    """The size that a phrase begins with, or "", and the rest; its article is dropped.

    >>> split("the large red circle")
    ('large', 'red circle')
    """
    words = re.sub(r"^(the|an?|any) ", "", phrase).split()
    size = words.pop(0) if len(words) > 1 and words[0] in SIZES else ""
    return size, " ".join(words)


def named_by(phrase: str, things: list[Thing]) -> list[Thing]:
    """The things that a phrase fits: "large red circle", "red objects", "circles"."""
    size, noun = split(phrase)
    found = []
    for t in things:
        nouns = [*ANY, t.kind]
        if t.color:  # "circle", and then also "red circle"
            nouns += [f"{t.color} {n}" for n in nouns]
        if size in ("", t.size) and (noun in nouns or noun in map(plural, nouns)):
            found.append(t)
    return found


def known(phrase: str, things: list[Thing], names: frozenset[str]) -> bool:
    """Whether a phrase names a kind of thing that is in the picture or in the vocabulary.

    Only then does a phrase that fits no thing mean that there is none: nobody has listed
    trees.
    """
    _, noun = split(phrase)
    nouns, colors = vocabulary(names)
    # what is in the picture is known, even if the vocabulary lacks it
    kinds = {t.kind for t in things}
    nouns = nouns | kinds | set(map(plural, kinds))
    color, _, rest = noun.partition(" ")
    return noun in nouns or (color in colors | {t.color for t in things} and rest in nouns)


@lru_cache(maxsize=None)
def vocabulary(names: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    """The nouns in a data set's names, singular and plural; their first words: colors."""
    kinds = {*ANY, *names, *(n.split()[-1] for n in names)}
    colors = frozenset(n.split()[0] for n in names if " " in n)
    return frozenset(kinds | set(map(plural, kinds))), colors


def beside(a: Thing, b: Thing, relation: str) -> bool:
    """Whether a lies left of, right of, above or below b, by their centers."""
    distances = {
        "left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y,
    }
    return distances[relation] > NEAR


# --- claims ---

WORDS = r"[a-z][a-z' -]*?"
N = "|".join(NUMBERS)
SOME = rf"(?:an?|{'|'.join(NUMBERS[1:])}) {WORDS}"                   # "a ring", "two rings"
WHERE = r"(?:at|in|on) the ([a-z ]+?)(?: corner| side)?"
# the first pattern that fits a whole sentence reads it: put special ones first
GRAMMAR = [(name, re.compile(pattern)) for name, pattern in (
    ("more", rf"there are (more|fewer|as many) ({WORDS}) (?:than|as) ({WORDS})"),
    ("there at", rf"there is an? ({WORDS}) {WHERE}"),
    ("there", rf"there (?:is|are) ({SOME}(?:, {SOME})* and {SOME})"),
    ("count", rf"there (?:is|are) ({N}) ({WORDS})"),
    ("there", rf"there is (an? {WORDS})"),
    ("only", rf"the only ({WORDS}) is the ({WORDS})"),
    ("beside",
     rf"the ({WORDS}) is (?:to the )?(left of|right of|above|below) the ({WORDS})"),
    ("size", rf"the ({WORDS}) is (larger|smaller) than the ({WORDS})"),
    ("same",
     rf"the ({WORDS}) and the ({WORDS}) have (the same|different) "
     "(colors?|shapes?|sizes?)"),
    ("at", rf"the ({WORDS}) is {WHERE}"),
    ("kind", rf"the ({WORDS}) is an? ({WORDS})"),
    ("is", rf"the ({WORDS}) is ([a-z]+)"),
)]
# which groups of a pattern name things; those of "there" are read by `_amounts`
NAMING = {
    "more": (1, 2), "count": (1,), "only": (0, 1), "beside": (0, 2), "size": (0, 2),
    "same": (0, 1), "kind": (0, 1), "there at": (0,), "at": (0,), "is": (0,),
}
LEAD = re.compile(r"^(yes|no|so|therefore), ")
TAIL = re.compile(
    r"(,? (in|on) (the|this) (picture|image|photo)|,? here|,? in (total|all))$"
)
Claim = tuple[str, ...]


def claims(text: str) -> tuple[list[Claim], list[str]]:
    """Read a text: the claims of sentences that the grammar knows, and all other sentences.

    A leading yes or no is left out: what follows it says the same in full.

    >>> claims("No, there is no red ring. The circle is nice to see.")
    ([('count', 'no', 'red ring')], ['the circle is nice to see'])
    """
    read = []
    other = []
    for line in re.split(r"(?<=[.!?])\s+|\n", text.lower().replace("\u2019", "'")):
        sentence = TAIL.sub("", LEAD.sub("", line.strip().rstrip(".!?")))
        if line.startswith("- "):  # an item of a list says that it is there
            item = re.sub(r"^(an?|the) ", "", line[2:].strip().rstrip("."))
            read.append(("there", "a " + item))
        elif sentence not in ("", "yes", "no"):
            claim = _claim(sentence)
            if claim:
                read.append(claim)
            else:
                other.append(sentence)
    return read, other


def _claim(sentence: str) -> Claim | None:
    """What a sentence claims, or None if the grammar does not know it."""
    for name, pattern in GRAMMAR:
        match = pattern.fullmatch(sentence)
        if match:
            return name, *match.groups()
    return None


def holds(
    claim: Claim, things: list[Thing], names: frozenset[str] = frozenset()
) -> bool | None:
    """Whether a claim is true: of every thing that its subject fits, and of at least one.

    Args:
        names: what the data set's pictures can show, "red circle" or "dog". What is named
            there and is not among the things is absent.

    Returns:
        None if it cannot be told: the claim is about a kind of thing that nobody has
        listed, or its words are no color, no size and no place.
    """
    what, *args = claim
    amounts = _amounts(args[0]) if what == "there" else {}
    phrases = list(amounts) if amounts else [args[i] for i in NAMING[what]]
    if not all(known(p, things, names) for p in phrases):
        return None
    named = [named_by(p, things) for p in phrases]
    if what == "there":
        # at least so many: a text that lists a ring does not say that there is only one
        return all(len(some) >= n for some, n in zip(named, amounts.values()))
    subjects = named[0]
    others = named[-1]

    if what == "more":
        gap = len(subjects) - len(others)
        return {"more": gap > 0, "fewer": gap < 0, "as many": gap == 0}[args[0]]
    if what == "count":
        if any(t.crowd for t in subjects):
            # how many things a crowd holds is unknown, only that it is not empty
            return False if args[0] == "no" else None
        return len(subjects) == NUMBERS.index(args[0])
    if what in ("at", "there at"):
        if args[1] not in {*PLACES, *(t.place for t in things)}:
            return None
        is_there = [t.place == args[1] for t in subjects]
        if what == "there at":
            return any(is_there)
        return bool(subjects) and all(is_there)
    if what == "is":
        # things of a photograph have neither color nor size: then nothing can be told
        words = {*SIZES, *(t.color for t in things), *vocabulary(names)[1]}
        if args[1] not in words or not all(t.color or t.size for t in subjects):
            return None
        return bool(subjects) and all(args[1] in (t.color, t.size) for t in subjects)
    # from here on, a claim about something that is not there is false
    if not subjects:
        return False
    if what == "kind":
        return all(t in others for t in subjects)
    if what == "only":
        return len(subjects) == 1 and others == subjects
    if what == "same":
        # "shapes", "colors" and "sizes" -> the fields of a Thing
        key = "kind" if args[3].startswith("shape") else args[3].rstrip("s")
        values = {getattr(t, key) for t in subjects + others}
        if "" in values:  # a color or a size that nobody has recorded
            return None
        is_same = len(values) == 1
        return is_same == (args[2] == "the same")
    if not others:
        return False
    pairs = product(subjects, others)
    if what == "beside":
        return all(beside(a, b, args[1]) for a, b in pairs)
    if args[1] == "larger":
        return all(_bulk(a) > _bulk(b) for a, b in pairs)
    return all(_bulk(a) < _bulk(b) for a, b in pairs)


def _amounts(phrase: str) -> Counter[str]:
    """How many of what "a red ring, two dogs and a cat" speaks of."""
    amounts: Counter[str] = Counter()
    for part in re.split(rf", | and (?={SOME}$)", phrase):
        first, _, rest = part.partition(" ")
        if first in NUMBERS:
            amounts[rest] += NUMBERS.index(first)
        elif first in ("a", "an"):
            amounts[rest] += 1
        else:
            amounts[part] += 1
    return amounts


def _bulk(t: Thing) -> float:
    """How large a thing is: by its size in words if it has one, else by its box."""
    # SIZES begins with the largest
    return -SIZES.index(t.size) if t.size in SIZES else t.area
