"""What is true of a picture whose objects are known, and what a sentence claims about it.

    things = things_of(record)
    read, other = claims("The red circle is left of the square.")
    [c for c in read if holds(c, things) is False]

Sentences are read by a small grammar, apart from whatever wrote them: this is how answers of a
teacher are checked (checks.py), and how the offline teacher's own are (template.py). What speaks of
things that are neither here nor in the data set's vocabulary stays undecided.
"""

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from minivlm.evaluation.english import plural
from minivlm.running.files import is_number

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SIZES = ("large", "medium", "small")
PLACES = ("top left", "top", "top right", "left", "center", "right",
          "bottom left", "bottom", "bottom right")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
ANY = ("object", "thing", "shape")  # nouns that fit whatever there is
NEAR = 0.08  # centers closer than this, in shares of the picture's side, lie in one line


@dataclass(frozen=True)
class Thing:
    """An object: what it is, its color and size or "", its center and area in 0..1, its place.

    hidden: the picture hardly shows it; crowd: a box around an unknown number of such things.
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
    """The objects of a record, in reading order as they stand there.

    Raises:
        ValueError: for an object without a name or a box of four numbers in 0..1.
    """
    out = []
    for o in record.get("objects", []):
        box, known = o.get("box"), o.get("attributes") or {}
        boxed = isinstance(box, list) and len(box) == 4 and all(map(is_number, box))
        if not o.get("name") or not boxed or not all(0 <= v <= 1 for v in box):
            raise ValueError(
                f"record {record.get('id', '?')} has an object without a name, or without a box of "
                "four numbers in 0..1"
            )
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        ninth = PLACES[3 * min(2, int(3 * y)) + min(2, int(3 * x))]
        area = (box[2] - box[0]) * (box[3] - box[1])
        out.append(Thing(
            o["name"].lower(), known.get("color") or "", known.get("size") or "", x, y, area,
            o.get("place") or ninth, bool(o.get("hidden")), bool(o.get("crowd")),
        ))
    return out


# --- phrases ---


def split(phrase: str) -> tuple[str, str]:
    """A phrase without its article: the size that it begins with or "", and the rest."""
    words = re.sub(r"^(the|an?|any) ", "", phrase).split()
    size = words.pop(0) if len(words) > 1 and words[0] in SIZES else ""
    return size, " ".join(words)


def named_by(phrase: str, things: list[Thing]) -> list[Thing]:
    """The things that a phrase fits: "large red circle", "red objects", "circles"."""
    size, noun = split(phrase)
    out = []
    for t in things:
        nouns = [*ANY, t.kind]
        nouns += [f"{t.color} {n}" for n in nouns] if t.color else []
        if size in ("", t.size) and (noun in nouns or noun in map(plural, nouns)):
            out.append(t)
    return out


def known(phrase: str, things: list[Thing], names: frozenset[str]) -> bool:
    """Whether a phrase names a kind of thing that is here or in the vocabulary.

    Only then does fitting nothing mean that there is none.
    """
    _, noun = split(phrase)
    nouns, colors = vocabulary(names)
    here = {t.kind for t in things}
    nouns = nouns | here | set(map(plural, here))
    color, _, rest = noun.partition(" ")
    return noun in nouns or (color in colors | {t.color for t in things} and rest in nouns)


@lru_cache(maxsize=None)
def vocabulary(names: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    """The nouns, singular and plural, and the first words, colors if any, of a data set's names."""
    kinds = {*ANY, *names, *(n.split()[-1] for n in names)}
    colors = frozenset(n.split()[0] for n in names if " " in n)
    return frozenset(kinds | set(map(plural, kinds))), colors


def beside(a: Thing, b: Thing, relation: str) -> bool:
    """Whether a lies left of, right of, above or below b, by their centers."""
    way = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}
    return way[relation] > NEAR


# --- claims ---

WORDS = r"[a-z][a-z' -]*?"
N = "|".join(NUMBERS)
SOME = rf"(?:an?|{'|'.join(NUMBERS[1:])}) {WORDS}"                   # "a ring", "two rings"
WHERE = r"(?:at|in|on) the ([a-z ]+?)(?: corner| side)?"
GRAMMAR = [(name, re.compile(pattern)) for name, pattern in (
    ("more", rf"there are (more|fewer|as many) ({WORDS}) (?:than|as) ({WORDS})"),
    ("there at", rf"there is an? ({WORDS}) {WHERE}"),
    ("there", rf"there (?:is|are) ({SOME}(?:, {SOME})* and {SOME})"),
    ("count", rf"there (?:is|are) ({N}) ({WORDS})"),
    ("there", rf"there is (an? {WORDS})"),
    ("only", rf"the only ({WORDS}) is the ({WORDS})"),
    ("beside", rf"the ({WORDS}) is (?:to the )?(left of|right of|above|below) the ({WORDS})"),
    ("size", rf"the ({WORDS}) is (larger|smaller) than the ({WORDS})"),
    ("same",
     rf"the ({WORDS}) and the ({WORDS}) have (the same|different) (colors?|shapes?|sizes?)"),
    ("at", rf"the ({WORDS}) is {WHERE}"),
    ("kind", rf"the ({WORDS}) is an? ({WORDS})"),
    ("is", rf"the ({WORDS}) is ([a-z]+)"),
)]
TAIL = re.compile(r"(,? (in|on) (the|this) (picture|image|photo)|,? here|,? in (total|all))$")
Claim = tuple[str, ...]


def claims(text: str) -> tuple[list[Claim], list[str]]:
    """Read a text: the claims of the sentences that the grammar knows, and the other sentences.

    A leading yes or no is left out: what follows it says the same in full.

    >>> claims("No, there is no red ring. The circle is nice to see.")
    ([('count', 'no', 'red ring')], ['the circle is nice to see'])
    """
    read, other = [], []
    for line in re.split(r"(?<=[.!?])\s+|\n", text.lower().replace("\u2019", "'")):
        sentence = TAIL.sub("", re.sub(r"^(yes|no|so|therefore), ", "", line.strip().rstrip(".!?")))
        if line.startswith("- "):
            phrase = re.sub(r"^(an?|the) ", "", line[2:].strip().rstrip("."))
            read.append(("there", "a " + phrase))
        elif sentence not in ("", "yes", "no"):
            found = [(name, m) for name, p in GRAMMAR if (m := p.fullmatch(sentence))]
            if found:
                read.append((found[0][0], *found[0][1].groups()))
            else:
                other.append(sentence)
    return read, other


def holds(
    claim: Claim, things: list[Thing], names: frozenset[str] = frozenset()
) -> bool | None:
    """Whether a claim is true: of every thing that its subject fits, and of at least one.

    Args:
        names: what the data set's pictures can show, "red circle" or "dog"; what is named there
            and not among the things is absent.

    Returns:
        None where it cannot be told: of what nobody has listed, or in words that are no color, no
        size and no place.
    """
    what, *args = claim
    amounts = _amounts(args[0]) if what == "there" else {}
    phrases = {
        "more": args[1:], "count": args[1:], "there": list(amounts), "kind": args, "only": args,
        "same": args[:2], "beside": args[::2], "size": args[::2],
    }.get(what, args[:1])
    if not all(known(p, things, names) for p in phrases):
        return None
    if what == "more":
        a, b = (len(named_by(p, things)) for p in phrases)
        return {"more": a > b, "fewer": a < b, "as many": a == b}[args[0]]
    if what == "count":
        found = named_by(args[1], things)
        if any(t.crowd for t in found):
            return None if args[0] != "no" else False
        return len(found) == NUMBERS.index(args[0])
    if what == "there":
        return all(len(named_by(p, things)) >= n for p, n in amounts.items())
    places = {*PLACES, *(t.place for t in things)}
    subjects = named_by(args[0], things)
    if what in ("at", "there at"):
        if args[1] not in places:
            return None
        right = [t.place == args[1] for t in subjects]
        return any(right) if what == "there at" else bool(right) and all(right)
    if what == "is":
        words = {*SIZES, *(t.color for t in things), *vocabulary(names)[1]}
        if args[1] not in words or not all(t.color or t.size for t in subjects):
            return None
        return bool(subjects) and all(args[1] in (t.color, t.size) for t in subjects)
    if not subjects:
        return False
    if what == "kind":
        return all(t in named_by(args[1], things) for t in subjects)
    if what == "only":
        return len(subjects) == 1 and named_by(args[1], things) == subjects
    if what == "same":
        key = "kind" if args[3].startswith("shape") else args[3].rstrip("s")
        values = {getattr(t, key) for t in subjects + named_by(args[1], things)}
        return None if "" in values else (len(values) == 1) == (args[2] == "the same")
    objects = named_by(args[2], things)
    if what == "beside":
        return bool(objects) and all(beside(a, b, args[1]) for a in subjects for b in objects)
    way = 1 if args[1] == "larger" else -1
    return bool(objects) and all(way * (_bulk(a) - _bulk(b)) > 0 for a in subjects for b in objects)


def _amounts(phrase: str) -> Counter[str]:
    """How many of what "a red ring, two dogs and a cat" speaks of."""
    out: Counter[str] = Counter()
    for part in re.split(rf", | and (?={SOME}$)", phrase):
        first, _, rest = part.partition(" ")
        if first in NUMBERS:
            out[rest] += NUMBERS.index(first)
        else:
            out[rest if first in ("a", "an") else part] += 1
    return out


def _bulk(t: Thing) -> float:
    """How large a thing is: by its size in words if it has one, else by its box."""
    return -SIZES.index(t.size) if t.size in SIZES else t.area
