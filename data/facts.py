"""What is true of a picture whose objects are known, and what a sentence claims about it.

    things = things_of(record)
    [c for c in claims("The red circle is left of the square.") if not holds(c, things)]

Sentences are read by a small grammar, apart from whatever wrote them: this is how answers of a
teacher are checked (instruct.py), and how the offline teacher's own are (template.py).
"""

import re
from dataclasses import dataclass

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SIZES = ("large", "medium", "small")
PLACES = ("top left", "top", "top right", "left", "center", "right",
          "bottom left", "bottom", "bottom right")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
ANY = ("object", "thing")  # nouns that fit whatever there is
NEAR = 0.08  # centers closer than this, in shares of the picture's side, lie in one line
PLURALS = {"people": "person", "men": "man", "women": "woman", "children": "child",
           "mice": "mouse", "geese": "goose", "knives": "knife"}


@dataclass(frozen=True)
class Thing:
    """An object: what it is, its color and size or "", its center and area in 0..1, its place."""

    kind: str
    color: str
    size: str
    x: float
    y: float
    area: float
    place: str
    hidden: bool = False

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
        if not o.get("name") or not box or len(box) != 4 or not all(0 <= v <= 1 for v in box):
            raise ValueError(f"object {o} has no name, or no box of four numbers in 0..1")
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        ninth = PLACES[3 * min(2, int(3 * y)) + min(2, int(3 * x))]
        area = (box[2] - box[0]) * (box[3] - box[1])
        out.append(Thing(
            o["name"].lower(), known.get("color", ""), known.get("size", ""), x, y, area,
            o.get("place") or ninth, bool(o.get("hidden")),
        ))
    return out


# --- phrases ---


def singular(noun: str) -> str:
    """The singular of a noun, by its last word."""
    *before, last = noun.split()
    if last in PLURALS:
        last = PLURALS[last]
    elif last.endswith(("sses", "shes", "ches", "xes")):
        last = last[:-2]
    elif last.endswith("ies") and len(last) > 4:
        last = last[:-3] + "y"
    elif last.endswith("s") and not last.endswith("ss"):
        last = last[:-1]
    return " ".join([*before, last])


def named_by(phrase: str, things: list[Thing]) -> list[Thing]:
    """The things that a phrase fits: "large red circle", "red objects", "circles"."""
    words = re.sub(r"^(the|an?|any) ", "", phrase).split()
    size = words.pop(0) if len(words) > 1 and words[0] in SIZES else ""
    noun = " ".join(words)
    out = []
    for t in things:
        nouns = [*ANY, t.kind]
        nouns += [f"{t.color} {n}" for n in nouns] if t.color else []
        if (noun in nouns or singular(noun) in nouns) and size in ("", t.size):
            out.append(t)
    return out


def beside(a: Thing, b: Thing, relation: str) -> bool:
    """Whether a lies left of, right of, above or below b, by their centers."""
    way = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}
    return way[relation] > NEAR


# --- claims ---

WORDS = r"[a-z][a-z' -]*?"
N = "|".join(NUMBERS)
PLACE = "|".join(sorted(PLACES, key=len, reverse=True))
WHERE = rf"(?:at|in) the ({PLACE})"
GRAMMAR = [(name, re.compile(pattern)) for name, pattern in (
    ("more", rf"there are (more|fewer|as many) ({WORDS}) (?:than|as) ({WORDS})"),
    ("there at", rf"there is an? ({WORDS}) {WHERE}"),
    ("count", rf"there (?:is|are) ({N}) ({WORDS})"),
    ("there", rf"there is ((?:an? |two |three )?{WORDS}(?:, an? {WORDS})*(?: and an? {WORDS})?)"),
    ("only", rf"the only ({WORDS}) is the ({WORDS})"),
    ("beside", rf"the ({WORDS}) is (left of|right of|above|below) the ({WORDS})"),
    ("size", rf"the ({WORDS}) is (larger|smaller) than the ({WORDS})"),
    ("same",
     rf"the ({WORDS}) and the ({WORDS}) have (the same|different) (colors?|shapes?|sizes?)"),
    ("at", rf"the ({WORDS}) is {WHERE}"),
    ("kind", rf"the ({WORDS}) is an? ({WORDS})"),
    ("is", rf"the ({WORDS}) is ([a-z]+)"),
)]
Claim = tuple[str, ...]


def claims(text: str) -> tuple[list[Claim], list[str]]:
    """Read a text: the claims of the sentences that the grammar knows, and the other sentences.

    A leading yes or no is left out: what follows it says the same in full.

    >>> claims("No, there is no red ring. The circle is nice to see.")
    ([('count', 'no', 'red ring')], ['the circle is nice to see'])
    """
    read, other = [], []
    for line in re.split(r"(?<=[.!?])\s+|\n", text.lower()):
        sentence = re.sub(r"^(yes|no|so|therefore),? ", "", line.strip().rstrip(".!?"))
        if line.startswith("- "):
            read.append(("there", "a " + line[2:].strip()))
        elif sentence not in ("", "yes", "no"):
            found = [(name, m) for name, p in GRAMMAR if (m := p.fullmatch(sentence))]
            if found:
                read.append((found[0][0], *found[0][1].groups()))
            else:
                other.append(sentence)
    return read, other


def holds(claim: Claim, things: list[Thing]) -> bool:
    """Whether a claim is true: of every thing that its subject fits, and of at least one."""
    what, *args = claim
    if what == "more":
        a, b = (len(named_by(phrase, things)) for phrase in args[1:])
        return {"more": a > b, "fewer": a < b, "as many": a == b}[args[0]]
    if what == "count":
        return len(named_by(args[1], things)) == NUMBERS.index(args[0])
    if what == "there":
        parts = re.split(r", | and (?=an? )", args[0])
        return all(len(named_by(p, things)) >= parts.count(p) for p in parts)
    if what == "there at":
        return any(t.place == args[1] for t in named_by(args[0], things))
    subjects = named_by(args[0], things)
    if not subjects:
        return False
    if what == "at":
        return all(t.place == args[1] for t in subjects)
    if what == "is":
        return all(args[1] in (t.color, t.size) for t in subjects)
    if what == "kind":
        return all(t in named_by(args[1], things) for t in subjects)
    if what == "only":
        return len(subjects) == 1 and named_by(args[1], things) == subjects
    if what == "same":
        one, other = subjects, named_by(args[1], things)
        key = {"c": "color", "s": "size"}.get(args[3][0], "")
        key = "kind" if args[3].startswith("shape") else key
        alike = len({getattr(t, key) for t in one + other}) == 1
        return bool(other) and alike == (args[2] == "the same")
    objects = named_by(args[2], things)
    if what == "beside":
        return bool(objects) and all(beside(a, b, args[1]) for a in subjects for b in objects)
    order = {"large": 2, "medium": 1, "small": 0}
    way = 1 if args[1] == "larger" else -1
    return bool(objects) and all(
        way * (order.get(a.size, a.area) - order.get(b.size, b.area)) > 0
        for a in subjects for b in objects
    )
