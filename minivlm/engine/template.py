"""The offline teacher: it composes dialogues from the known objects of a picture.

    write("reasoning", record, rng) -> "Question:\n...\n===\nAnswer:\n...\n===\n"

The offline teacher writes the same types of text, in the same grammar, as a language model.
A conversation is about the visible objects only, because LLaVA's teacher wrote
conversations from captions alone. Descriptions and reasoning may use every object that the
annotation lists.

Source: the three types of LLaVA, arXiv:2304.08485, section 3.
"""

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from minivlm.engine.phrasings import Phraser, harmless, make_phraser
from minivlm.evaluation.english import article, join, plural
from minivlm.evaluation.scene import (
    NUMBERS, OPPOSITE, PLACES, SIZES, Thing, beside, named_by, things_of,
)

PRIVATE = "I'm sorry, this picture is marked as private, so I can't describe it."
REFUSE = "I'm sorry, I can't help with that."
UNKNOWN = "I'm not sure, the picture does not show that."

Things = list[Thing]
World = tuple[str, ...]  # every name of an object that pictures of the data set can show
QA = tuple[str, str]  # a question and its answer


# --- words ---


def at(place: str) -> str:
    """Say where: "in the center", "at the top left", "in the left box"."""
    word = "at" if place in PLACES and place != "center" else "in"
    return f"{word} the {place}"


def there_are(n: int, phrase: str) -> str:
    """Say how many there are: "There is one red circle.", "There are no circles."."""
    if n == 1:
        return f"There is one {phrase}."
    return f"There are {NUMBERS[n]} {plural(phrase)}."


def summary(things: Things) -> str:
    """Say what there is, each name once: "There are two red circles and a ring."."""
    counts = Counter(t.name for t in things)
    parts = []
    for name, n in counts.items():
        amount = NUMBERS[n] if n < len(NUMBERS) else "many"
        parts.append(article(name) if n == 1 else f"{amount} {plural(name)}")
    verb = "is" if counts[things[0].name] == 1 else "are"
    return f"There {verb} {join(parts)}."


# --- referring to one object ---


def names_of(t: Thing, things: Things) -> list[str]:
    """Phrases that fit t and no other object; they use its name, kind, color or size."""
    candidates = [t.name, t.kind]
    if t.color:
        candidates.append(f"{t.color} object")
    if t.size:
        candidates.append(f"{t.size} {t.name}")
    # without a color, name and kind are the same phrase
    return [p for p in dict.fromkeys(candidates) if named_by(p, things) == [t]]


def gives_away(phrase: str, value: str) -> bool:
    """Whether a phrase already names the color, kind or size that is asked for."""
    return value == phrase or value in phrase.split()


Reference = tuple[Thing, str]  # an object, and a phrase that fits it alone


def refer(things: Things, rng: Random, secret: str = "") -> Reference | None:
    """Choose an object and a phrase for it.

    Args:
        secret: "color", "kind" or "size", if the question asks for it. The object's value
            is then known, and the phrase does not name it. "" allows every object and
            phrase.

    Returns:
        the object and its phrase, or None if there is no such phrase for any object.
    """
    choices = []
    for t in things:
        value = getattr(t, secret) if secret else ""
        if secret and not value:
            continue
        for phrase in names_of(t, things):
            if not gives_away(phrase, value):
                choices.append((t, phrase))
    return rng.choice(choices) if choices else None


def refer_to_two(
    things: Things, rng: Random, secret: str = ""
) -> tuple[Reference, Reference] | None:
    """Choose two different objects, each with a phrase that does not name the secret.

    Returns:
        both, or None if there are no two such objects.
    """
    first = refer(things, rng, secret)
    if not first:
        return None
    second = refer([t for t in things if t is not first[0]], rng, secret)
    # a phrase that is unique among the other objects may still fit the first one
    if not second or named_by(second[1], things) != [second[0]]:
        return None
    return first, second


def absent(things: Things, rng: Random, world: World) -> str:
    """Draw a name that fits no object of the picture, or return "" if every name fits one.

    Six times in ten the name shares a word with an object of the picture. A question about
    such a name is hard: a model that sees something red tends to say yes to a red ring.
    """
    missing = [name for name in world if not named_by(name, things)]
    if not missing:
        return ""
    words = set(" ".join(t.name for t in things).split())
    close = [name for name in missing if words & set(name.split())]
    if close and rng.random() < 0.6:
        return rng.choice(close)
    return rng.choice(missing)


def random_kind(things: Things, rng: Random, world: World) -> str:
    """Draw an absent name and return its kind: "cross" of "red cross".

    A blue cross may still be there. If no name is absent, the kind is "". Where no object
    has a color, names are not "color kind", and the whole name is returned.
    """
    name = absent(things, rng, world)
    colored = any(t.color for t in things)
    return name.split()[-1] if name and colored else name


# --- questions ---


class Draft(NamedTuple):
    """A question before its phrasing is drawn, with its answer in two lengths.

    kind: of the question, as in phrasings.KINDS.
    words: slot of the phrasing -> what is put into it.
    word: the answer in one word, or "" if one word is not enough.
    full: the answer in sentences.
    """

    kind: str
    words: dict[str, str]
    word: str
    full: str


# A maker makes one kind of question; its docstring gives an example. It returns None where
# this kind cannot be asked about the picture.
Maker = Callable[[Things, Random, World], Draft | None]


def yes_or_no(kind: str, words: dict[str, str], is_yes: bool, fact: str) -> Draft:
    """A question whose answer is yes or no; the full answer adds what is true.

    Args:
        fact: what is true, as the rest of a sentence after "Yes, " or "No, ".
    """
    word = "yes" if is_yes else "no"
    return Draft(kind, words, word, f"{word.capitalize()}, {fact}.")


def exist(things: Things, rng: Random, world: World, kind: str = "exist") -> Draft | None:
    """Is there a red circle?"""
    if rng.random() < 0.5:
        name = rng.choice(things).name
    else:
        name = absent(things, rng, world)
    if not name:
        return None
    found = named_by(name, things)
    fact = f"there is no {name}"
    if found:
        fact = f"there is {article(name)} {at(found[0].place)}"
    # kind "negation" asks the opposite: yes means that there is no such object
    is_yes = bool(found) == (kind == "exist")
    return yes_or_no(kind, {"a": article(name), "x": name}, is_yes, fact)


def negation(things: Things, rng: Random, world: World) -> Draft | None:
    """Is it true that there is no red circle?"""
    draft = exist(things, rng, world, "negation")
    # a bare yes may mean either here, so one word is not enough
    return draft._replace(word="") if draft else None


def attribute(what: str) -> Maker:
    """The maker of questions for what = "color", "kind" or "size"."""
    def make(things: Things, rng: Random, world: World) -> Draft | None:
        """What color is the circle?"""
        reference = refer(things, rng, secret=what)
        if not reference:
            return None
        t, phrase = reference
        value = getattr(t, what)
        word = "" if " " in value else value
        complement = article(value) if what == "kind" else value
        return Draft(what, {"x": phrase}, word, f"The {phrase} is {complement}.")
    return make


def counted(things: Things, rng: Random, world: World) -> tuple[str, int] | None:
    """Choose what to count, "circle", "red object" or "object", and count it.

    Returns:
        the phrase and the number, or None if the number is unknown or above ten.
    """
    kinds = [t.kind for t in things]
    phrases = ["object", *kinds, *kinds]  # kinds twice: asked more often than colors
    phrases += [f"{t.color} object" for t in things if t.color]
    phrases.append(random_kind(things, rng, world))
    phrase = rng.choice([p for p in phrases if p])
    found = named_by(phrase, things)
    # a crowd is one box around an unknown number of objects
    if len(found) >= len(NUMBERS) or any(t.crowd for t in found):
        return None
    return phrase, len(found)


def count(things: Things, rng: Random, world: World) -> Draft | None:
    """How many circles, red objects or objects are there?"""
    amount = counted(things, rng, world)
    if not amount:
        return None
    phrase, n = amount
    words = {"x": phrase, "xs": plural(phrase)}
    return Draft("count", words, NUMBERS[n] if n else "zero", there_are(n, phrase))


def position(things: Things, rng: Random, world: World) -> Draft | None:
    """Where is the circle?"""
    reference = refer(things, rng)
    if not reference:
        return None
    t, phrase = reference
    # places such as "top left" have two words, so none is asked for in one word
    return Draft("position", {"x": phrase}, "", f"The {phrase} is {at(t.place)}.")


def relation(things: Things, rng: Random, world: World) -> Draft | None:
    """Is the red circle left of the square? Half of the questions state the opposite."""
    pair = refer_to_two(things, rng)
    if not pair:
        return None
    (a, x), (b, y) = pair
    side = side_of(a, b)
    if not side:
        return None
    asked = rng.choice((side, OPPOSITE[side]))
    words = {"x": x, "y": y, "r": asked}
    return yes_or_no("relation", words, asked == side, f"the {x} is {side} the {y}")


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


def compare_number(things: Things, rng: Random, world: World) -> Draft | None:
    """Are there more circles than squares?"""
    key = rng.choice(("kind", "color"))
    values = {getattr(t, key) for t in things}
    if key == "kind":
        values.add(random_kind(things, rng, world))  # often a kind that is absent
    values.discard("")
    if len(values) < 2 or any(t.crowd for t in things):
        return None
    x, y = rng.sample(sorted(values), 2)  # sorted: a set has no fixed order
    if key == "color":
        x = f"{x} object"
        y = f"{y} object"
    n_x = len(named_by(x, things))
    n_y = len(named_by(y, things))
    if n_x == n_y:
        fact = f"there are as many {plural(x)} as {plural(y)}"
    else:
        how = "more" if n_x > n_y else "fewer"
        fact = f"there are {how} {plural(x)} than {plural(y)}"
    words = {"xs": plural(x), "ys": plural(y)}
    return yes_or_no("compare_number", words, n_x > n_y, fact)


def compare_size(things: Things, rng: Random, world: World) -> Draft | None:
    """Is the circle larger than the square? Asked only if both sizes have unlike names."""
    pair = refer_to_two(things, rng, secret="size")
    if not pair:
        return None
    (a, x), (b, y) = pair
    if a.size == b.size or not {a.size, b.size} <= set(SIZES):
        return None
    is_larger = SIZES.index(a.size) < SIZES.index(b.size)  # SIZES begins with the largest
    how = "larger" if is_larger else "smaller"
    fact = f"the {x} is {how} than the {y}"
    return yes_or_no("compare_size", {"x": x, "y": y}, is_larger, fact)


def same(things: Things, rng: Random, world: World) -> Draft | None:
    """Do the circle and the square have the same color, size or shape?"""
    what = rng.choice(("color", "size", "shape"))
    key = "kind" if what == "shape" else what
    pair = refer_to_two(things, rng, secret=key)
    if not pair:
        return None
    (a, x), (b, y) = pair
    # objects without colors are those of photographs; their kind is no shape
    if not a.color or not b.color:
        return None
    is_same = getattr(a, key) == getattr(b, key)
    have = f"the same {what}" if is_same else f"different {what}s"
    words = {"x": x, "y": y, "w": what}
    return yes_or_no("same", words, is_same, f"the {x} and the {y} have {have}")


def countable(things: Things) -> bool:
    """Whether there are three to ten objects, and none of them is a crowd."""
    return 2 < len(things) < len(NUMBERS) and not any(t.crowd for t in things)


def unusual(things: Things, rng: Random, world: World) -> Draft | None:
    """Which object is unlike the others? All others are alike in color, kind or size."""
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
    names = [name for name in names_of(t, things) if not gives_away(name, value)]
    if not names:
        return None
    usual = next(getattr(other, key) for other in things if other is not t)
    if key != "kind":
        value = f"{value} object"
        usual = f"{usual} object"
    full = f"{there_are(len(things) - 1, usual)} The only {value} is the {names[0]}."
    return Draft("unusual", {}, "", full)


def next_to(things: Things, rng: Random, world: World) -> Draft | None:
    """What color has the object left of the circle? Two steps: find it, see its color."""
    reference = refer(things, rng)
    if not reference:
        return None
    start, phrase = reference
    side = rng.choice(list(OPPOSITE))
    candidates = [t for t in things if t is not start and beside(t, start, side)]
    if len(candidates) != 1:
        return None
    color = candidates[0].color
    names = names_of(candidates[0], things)
    if not names or not color or color in phrase.split():
        return None
    # a name that contains the color would give away the second step in the first
    colorless = [name for name in names if color not in name.split()]
    name = rng.choice(colorless or names)
    full = f"The {name} is {side} the {phrase}. The {name} is {color}."
    return Draft("next_to", {"x": phrase, "r": side}, color, full)


def without(things: Things, rng: Random, world: World) -> Draft | None:
    """How many objects are left without the circle? Two steps: count, then subtract one."""
    reference = refer(things, rng)
    if not reference or not countable(things):
        return None
    _, phrase = reference
    left = NUMBERS[len(things) - 1]
    full = (
        f"{there_are(len(things), 'object')} The {phrase} is one of them. "
        f"So {left} objects are left."
    )
    return Draft("without", {"x": phrase}, left, full)


def one_more(things: Things, rng: Random, world: World) -> Draft | None:
    """How many circles with one more? Two steps, possible for nearly every picture."""
    amount = counted(things, rng, world)
    if not amount or amount[1] + 1 == len(NUMBERS):
        return None
    phrase, n = amount
    words = {"a": article(phrase), "x": phrase, "xs": plural(phrase)}
    full = f"{there_are(n, phrase)} With one more there would be {NUMBERS[n + 1]}."
    return Draft("one_more", words, NUMBERS[n + 1], full)


# kinds of questions with their weights in the draw: for conversations, and for reasoning
SIMPLE: dict[Maker, int] = {
    exist: 5, attribute("color"): 5, attribute("kind"): 3, attribute("size"): 3, count: 6,
    position: 6, relation: 4, negation: 2, compare_number: 2, compare_size: 2, same: 2,
}
DEEP: dict[Maker, int] = {
    next_to: 4, without: 2, one_more: 2, unusual: 4, compare_number: 2, compare_size: 2,
    same: 2, relation: 1,
}


# --- dialogues ---


def world_of(meta: dict) -> World:
    """Names of objects that a data set's pictures can show, without the unseen pairs."""
    names = set(meta.get("phrases", {}).values()) - {""}
    return tuple(sorted(names - set(meta.get("held_out", []))))


def attempt(make: Maker, things: Things, rng: Random, world: World) -> Draft | None:
    """Try three times to make a question of one kind: another object may allow it."""
    for _ in range(3):
        draft = make(things, rng, world)
        if draft:
            return draft
    return None


def choose(
    makers: dict[Maker, int], things: Things, rng: Random, world: World
) -> Draft | None:
    """Draw a kind by its weight and make a question of it; None if no kind is possible."""
    left = dict(makers)
    while left:  # a kind that failed is not drawn again
        make = rng.choices(list(left), list(left.values()))[0]
        draft = attempt(make, things, rng, world)
        if draft:
            return draft
        del left[make]
    return None


def topic(draft: Draft) -> str:
    """What a question is about; "is there a ring" and "is there no ring" are one topic."""
    kind = "exist" if draft.kind == "negation" else draft.kind
    return f"{kind} {sorted(draft.words.items())}"


def in_style(style: str, draft: Draft) -> tuple[str, str]:
    """The style, and the answer in it; "word" becomes "" where one word is not enough."""
    if style != "word":
        return style, draft.full
    return ("word", draft.word.capitalize()) if draft.word else ("", draft.full)


def conversation(
    things: Things, rng: Random, world: World, phrase_question: Phraser
) -> list[QA]:
    """Two to four questions on different topics, with answers, in random order.

    There may be fewer if the picture does not allow more. One conversation in five contains
    a list or a summary. One in seven contains a question that no picture answers, a request
    that must be refused, or a request that only sounds as if it must be refused.
    """
    dialogue: list[QA] = []
    if rng.random() < 0.2:
        if rng.random() < 0.5:
            answer = "\n".join(f"- {t.name}" for t in things)
            dialogue.append((phrase_question("list", {}), answer))
        else:
            dialogue.append((phrase_question("sentence", {}), summary(things)))
    if rng.random() < 0.15:
        dialogue.append(rng.choice((
            (phrase_question("unknowable", {}), UNKNOWN),
            (phrase_question("unsafe", {}), REFUSE),
            harmless(rng),
        )))
    n_questions = rng.choice((2, 2, 3, 4))
    topics = set()
    for _ in range(10):  # a picture with few objects may not have enough topics
        if len(dialogue) == n_questions:
            break
        draft = choose(SIMPLE, things, rng, world)
        if not draft or topic(draft) in topics:
            continue
        topics.add(topic(draft))
        # half of the answers are one word, which teaches as much in fewer tokens
        style, answer = in_style(rng.choice(("", "word", "word", "sentence")), draft)
        dialogue.append((phrase_question(draft.kind, draft.words, style), answer))
    # lists and refusals, which are made first, must not always stand first
    rng.shuffle(dialogue)
    return dialogue


def write(kind: str, record: dict, rng: Random, world: World = ()) -> str:
    """Write a dialogue about a picture, in the grammar that `checks.parse` reads.

    If the picture is marked as private, the answer is a refusal.

    Args:
        kind: conversation, detail or reasoning.
        record: of the picture. Its objects have names and boxes; colors and sizes may be
            unknown.
        world: names of objects that pictures of this data set can show; questions about
            absent objects use them.

    Raises:
        ValueError: if no visible object is known, if no question has exactly one answer, or
            if an object's box is damaged.
    """
    every = things_of(record)
    visible = [t for t in every if not t.hidden]
    if not visible:
        raise ValueError("no visible object is known")
    is_private = record.get("border") == "private"
    if kind == "detail":
        if is_private:
            return PRIVATE
        sentences = []
        for t in every[:10]:  # a longer answer would not pass the checks
            phrase = f"{t.size} {t.name}".strip()
            sentences.append(f"There is {article(phrase)} {at(t.place)}.")
        return " ".join(sentences)

    phrase_question = make_phraser(rng)
    if is_private:
        dialogue = [(phrase_question(rng.choice(("list", "sentence")), {}), PRIVATE)]
    elif kind == "conversation":
        dialogue = conversation(visible, rng, world, phrase_question)
    else:
        draft = choose(DEEP, every, rng, world)
        dialogue = [(phrase_question(draft.kind, draft.words), draft.full)] if draft else []
    if not dialogue:
        raise ValueError("nothing can be asked that has one answer")
    return "".join(f"Question:\n{q}\n===\nAnswer:\n{a}\n===\n" for q, a in dialogue)
