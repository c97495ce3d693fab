"""The words that the offline teacher's questions and answers share."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from minivlm.evaluation.english import article, join, plural
from minivlm.evaluation.scene import NUMBERS, PLACES, Thing

PRIVATE = "I'm sorry, this picture is marked as private, so I can't describe it."
REFUSE = "I'm sorry, I can't help with that."
UNKNOWN = "I'm not sure, the picture does not show that."
HARD_TO_SEE = "I'm not sure, that is hard to see."

Things = list[Thing]


class Scene(NamedTuple):
    """What questions may be about: things, and the place and the time of day if known."""

    things: Things
    place: str = ""
    time: str = ""


@dataclass(eq=False)
class World:
    """What a data set's pictures can show, and what is usual there; see `world_of`.

    Args:
        names: of objects. A name that stands in it twice is drawn twice as often.
        facts: kind of object -> aspect -> fact, see ASPECTS in facts.py.
        places: place -> {"is": "the sea", "at": "at sea", "do": "swim and sail"}.
    """

    names: tuple[str, ...] = ()
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    places: dict[str, dict[str, str]] = field(default_factory=dict)

    @cached_property
    def known(self) -> tuple[str, ...]:
        """Every name once."""
        return tuple(dict.fromkeys(self.names))

    @cached_property
    def colors(self) -> frozenset[str]:
        """The first words of names."""
        return frozenset(name.split()[0] for name in self.known)

    @cached_property
    def kinds(self) -> frozenset[str]:
        """The last words of names."""
        return frozenset(name.split()[-1] for name in self.known)

    @cached_property
    def with_word(self) -> dict[str, list[str]]:
        """Word -> the names that hold it, as often as they stand in `names`."""
        names = defaultdict(list)
        for name in self.names:
            for word in name.split():
                names[word].append(name)
        return names


def world_of(meta: dict) -> World:
    """Read a world from meta.json, without the unseen pairs and the untold facts.

    Args:
        meta: "phrases" name the objects. "common", "held_out", "facts", "untold" and
            "places" may be missing.
    """
    unseen = set(meta.get("held_out", []))
    names = meta.get("common") or sorted(set(meta.get("phrases", {}).values()) - {""})
    untold = {tuple(pair) for pair in meta.get("untold", [])}
    facts = {}
    for kind, told in meta.get("facts", {}).items():
        facts[kind] = {a: fact for a, fact in told.items() if (kind, a) not in untold}
    names = tuple(name for name in names if name not in unseen)
    return World(names, facts, meta.get("places", {}))


def at(place: str) -> str:
    """Say where: "in the center", "at the top left", "in the left box"."""
    word = "at" if place in PLACES and place != "center" else "in"
    return f"{word} the {place}"


def there_are(n: int, phrase: str) -> str:
    """Say how many there are: "There is one red car.", "There are no cars."."""
    if n == 1:
        return f"There is one {phrase}."
    return f"There are {NUMBERS[n]} {plural(phrase)}."


def summary(things: Things) -> str:
    """Say what there is, each name once: "There are two red cars and a cat."."""
    same = [t for t in things if t.name == things[0].name]
    verb = "is" if len(same) == 1 else "are"
    return f"There {verb} {named(things)}."


def named(things: Things) -> str:
    """Name every thing once, with numbers: "two red cars, a cat and a tree"."""
    parts = []
    for name, n in Counter(t.name for t in things).items():
        amount = NUMBERS[n] if n < len(NUMBERS) else "many"
        parts.append(article(name) if n == 1 else f"{amount} {plural(name)}")
    return join(parts)


def is_at(phrase: str, places: list[str]) -> str:
    """Say where each thing of a phrase is: "a car is at the left, another at the right".

    If there is none: "a car is not in the picture". To say "two cars", a model must count
    before its first word; if it names one car after the other, it can count them afterwards.
    """
    if not places:
        return not_there(article(phrase))
    first, *rest = map(at, places)
    return ", another ".join([f"{article(phrase)} is {first}", *rest])


def not_there(the: str) -> str:
    """Say that something is not there: "the car is not in the picture"."""
    return f"{the} is not in the picture"


def the_or_a(kind: str, kinds: list[str]) -> str:
    """Name a thing by its kind: "the car", or "a car" if several things are cars.

    Args:
        kinds: the kinds of all things, also of this one.
    """
    return f"the {kind}" if kinds.count(kind) == 1 else article(kind)


def capital(text: str) -> str:
    """Make the first letter of a text a capital one."""
    return text[:1].upper() + text[1:]


def small(text: str) -> str:
    """Make the first letter of a text a small one."""
    return text[:1].lower() + text[1:]


def sentence(words: str) -> str:
    """Capitalize the first letter and append a full stop."""
    return f"{capital(words)}."
