"""The offline teacher: dialogues composed of what is known of a picture, in many phrasings.

    write("reasoning", record, rng) -> "Question:\n...\n===\nAnswer:\n...\n===\n"

It writes what a language model would be asked to write, in the same grammar, from the objects of a
record; a conversation is about the clearly visible ones, as LLaVA's was written from captions
alone, descriptions and reasoning are about all that the boxes tell.

Source: the three types of LLaVA, arXiv:2304.08485, section 3. Used by: instruct.py, quiz.py.
"""

import random
from collections import Counter
from collections.abc import Callable

from minivlm.engine.phrasings import Ask, asker, harmless
from minivlm.evaluation.english import article, join, plural
from minivlm.evaluation.scene import NUMBERS, OPPOSITE, PLACES, SIZES, Thing, beside
from minivlm.evaluation.scene import named_by, things_of

PRIVATE = "I'm sorry, this picture is marked as private, so I can't describe it."
REFUSE = "I'm sorry, I can't help with that."
UNKNOWN = "I'm not sure, the picture does not show that."

Round = tuple[str, str]  # question, answer


# --- words ---


def at(t: Thing) -> str:
    """"in the center", "at the top left", "in the left box"."""
    return ("at the " if t.place in PLACES and t.place != "center" else "in the ") + t.place


def number(n: int, phrase: str) -> str:
    """"There is one red circle.", "There are no circles."."""
    words = f"is one {phrase}" if n == 1 else f"are {NUMBERS[n]} {plural(phrase)}"
    return f"There {words}."


def summary(things: list[Thing]) -> str:
    """"There are two red circles and a ring.": what there is, each kind once."""
    many = Counter(t.name for t in things)
    said = [article(name) if n == 1 else f"{NUMBERS[n] if n < len(NUMBERS) else 'many'} "
            f"{plural(name)}" for name, n in many.items()]
    return f"There {'is' if many[things[0].name] == 1 else 'are'} {join(said)}."


# --- pointing at things ---


def names_of(t: Thing, things: list[Thing]) -> list[str]:
    """Phrases that fit t and nothing else: by name, by kind, by color, by size."""
    tries = [t.name, t.kind] + [f"{t.color} object"] * bool(t.color)
    tries += [f"{t.size} {t.name}"] * bool(t.size)
    return [p for p in dict.fromkeys(tries) if named_by(p, things) == [t]]


Pointed = tuple[Thing, str]  # a thing, and words that fit it alone


def point(things: list[Thing], rng: random.Random, but: str = "") -> Pointed | None:
    """Choose a thing and words for it that do not give `but` (color, kind, size) away."""
    ways = [(t, p) for t in things for p in names_of(t, things)
            if not but or getattr(t, but) and getattr(t, but) not in p.split()
            and getattr(t, but) != p]
    return rng.choice(ways) if ways else None


def two(
    things: list[Thing], rng: random.Random, but: str = ""
) -> tuple[Pointed, Pointed] | None:
    """Two different things, each with words for it that do not give `but` away."""
    a = point(things, rng, but)
    b = a and point([t for t in things if t is not a[0]], rng, but)
    if not b or named_by(b[1], things) != [b[0]]:
        return None
    return a, b


def absent(things: list[Thing], rng: random.Random, world: tuple[str, ...]) -> str:
    """A name of the world that fits nothing here; most share a word with something that does."""
    missing = [n for n in world if not named_by(n, things)]
    here = {word for t in things for word in t.name.split()}
    close = [n for n in missing if here & set(n.split())]
    return rng.choice(close if close and rng.random() < 0.6 else missing) if missing else ""


def missing_kind(things: list[Thing], rng: random.Random, world: tuple[str, ...]) -> str:
    """A kind that is absent or not: "cross", where things have colors; else a whole name."""
    name = absent(things, rng, world)
    return name.split()[-1] if name and any(t.color for t in things) else name


# --- questions: each gives (kind, words of the question, one word or "", full answer) or None ---

Answered = tuple[str, dict[str, str], str, str]


def exist(things, rng, world, kind: str = "exist") -> Answered | None:
    """Is there a red circle?"""
    thing = rng.choice(things).name if rng.random() < 0.5 else absent(things, rng, world)
    if not thing:
        return None
    found = named_by(thing, things)
    word = "yes" if bool(found) == (kind == "exist") else "no"
    fact = f"there is {article(thing)} {at(found[0])}" if found else f"there is no {thing}"
    return kind, {"a": article(thing), "x": thing}, word, f"{word.capitalize()}, {fact}."


def negation(things, rng, world) -> Answered | None:
    """Is it true that there is no red circle? A single yes or no could mean either."""
    made = exist(things, rng, world, "negation")
    return made and (*made[:2], "", made[3])


def attribute(what: str) -> Callable:
    """The question for a color, kind or size."""
    def make(things, rng, world) -> Answered | None:
        """What color is the circle?"""
        one = point(things, rng, but=what)
        if not one:
            return None
        t, phrase = one
        value = getattr(t, what)
        said = article(value) if what == "kind" else value
        return what, {"x": phrase}, value if " " not in value else "", f"The {phrase} is {said}."
    return make


def counted(things, rng, world) -> tuple[str, int] | None:
    """Choose what to count, "circle", "red object" or "object", and how many of it there are."""
    pool = ["object"] + [t.kind for t in things] * 2
    pool += [f"{t.color} object" for t in things if t.color]
    pool += [missing_kind(things, rng, world)]
    phrase = rng.choice([p for p in pool if p])
    found = named_by(phrase, things)
    if len(found) >= len(NUMBERS) or any(t.crowd for t in found):
        return None
    return phrase, len(found)


def count(things, rng, world) -> Answered | None:
    """How many circles, red objects or objects are there?"""
    made = counted(things, rng, world)
    if not made:
        return None
    phrase, n = made
    words = {"x": phrase, "xs": plural(phrase)}
    return "count", words, NUMBERS[n] if n else "zero", number(n, phrase)


def position(things, rng, world) -> Answered | None:
    """Where is the circle? Two words may be needed, so no single one is asked for."""
    one = point(things, rng)
    return one and ("position", {"x": one[1]}, "", f"The {one[1]} is {at(one[0])}.")


def relation(things, rng, world) -> Answered | None:
    """Is the red circle left of the square? Half of the questions turn it round."""
    pair = two(things, rng)
    true = pair and side_of(pair[0][0], pair[1][0])
    if not true:
        return None
    asked = rng.choice((true, OPPOSITE[true]))
    yes, (x, y) = asked == true, (pair[0][1], pair[1][1])
    full = f"{'Yes' if yes else 'No'}, the {x} is {true} the {y}."
    return "relation", {"x": x, "y": y, "r": asked}, "yes" if yes else "no", full


def side_of(a: Thing, b: Thing) -> str:
    """The one word for how a lies to b, or "" where two would do as well."""
    true = [r for r in OPPOSITE if beside(a, b, r)]
    far = {"left of": abs(a.x - b.x), "right of": abs(a.x - b.x)}
    true.sort(key=lambda r: -far.get(r, abs(a.y - b.y)))
    if len(true) == 2 and abs(abs(a.x - b.x) - abs(a.y - b.y)) < 0.15:
        return ""
    return true[0] if true else ""


def compare_number(things, rng, world) -> Answered | None:
    """Are there more circles than squares?"""
    key = rng.choice(("kind", "color"))
    pool = {getattr(t, key) for t in things}
    pool |= {missing_kind(things, rng, world)} if key == "kind" else set()
    if len(pool - {""}) < 2 or any(t.crowd for t in things):
        return None
    x, y = rng.sample(sorted(pool - {""}), 2)
    x, y = (f"{p} object" if key == "color" else p for p in (x, y))
    a, b = len(named_by(x, things)), len(named_by(y, things))
    how = "as many" if a == b else "more" if a > b else "fewer"
    fact = f"there are {how} {plural(x)} {'as' if a == b else 'than'} {plural(y)}"
    word = "yes" if a > b else "no"
    words = {"xs": plural(x), "ys": plural(y)}
    return "compare_number", words, word, f"{word.capitalize()}, {fact}."


def compare_size(things, rng, world) -> Answered | None:
    """Is the circle larger than the square? Only of sizes that differ in words."""
    pair = two(things, rng, but="size")
    if not pair or {pair[0][0].size, pair[1][0].size} - set(SIZES):
        return None
    (a, x), (b, y) = pair
    if a.size == b.size:
        return None
    word = "yes" if SIZES.index(a.size) < SIZES.index(b.size) else "no"
    fact = f"the {x} is {'larger' if word == 'yes' else 'smaller'} than the {y}"
    return "compare_size", {"x": x, "y": y}, word, f"{word.capitalize()}, {fact}."


def same(things, rng, world) -> Answered | None:
    """Do the circle and the square have the same color, size or shape?"""
    what = rng.choice(("color", "size", "shape"))
    key = "kind" if what == "shape" else what
    pair = two(things, rng, but=key)
    if not pair or not pair[0][0].color or not pair[1][0].color:
        return None
    (a, x), (b, y) = pair
    if not getattr(a, key) or not getattr(b, key):
        return None
    word = "yes" if getattr(a, key) == getattr(b, key) else "no"
    told = f"the same {what}" if word == "yes" else f"different {what}s"
    fact = f"the {x} and the {y} have {told}"
    return "same", {"x": x, "y": y, "w": what}, word, f"{word.capitalize()}, {fact}."


def unusual(things, rng, world) -> Answered | None:
    """One thing that alone differs in color, kind or size from all others, which agree in it."""
    odd: dict[str, Thing] = {}
    for key in ("color", "kind", "size"):
        number_of = Counter(getattr(t, key) for t in things)
        if len(number_of) == 2 and "" not in number_of and 1 in number_of.values():
            odd[key] = next(t for t in things if number_of[getattr(t, key)] == 1)
    if any(t.crowd for t in things) or not 2 < len(things) < len(NUMBERS):
        return None
    if len(set(odd.values())) != 1:
        return None  # none stands out, or more than one does
    key, t = rng.choice(sorted(odd.items(), key=lambda item: item[0]))
    names = [n for n in names_of(t, things)
             if getattr(t, key) not in n.split() and getattr(t, key) != n]
    if not names:
        return None
    rest = next(getattr(o, key) for o in things if o is not t)
    nouns = [value if key == "kind" else f"{value} object" for value in (rest, getattr(t, key))]
    full = f"{number(len(things) - 1, nouns[0])} The only {nouns[1]} is the {names[0]}."
    return "unusual", {}, "", full


def next_to(things, rng, world) -> Answered | None:
    """Find a thing by another one, then tell its color: two steps."""
    one = point(things, rng)
    if not one:
        return None
    r = rng.choice(list(OPPOSITE))
    there = [t for t in things if t is not one[0] and beside(t, one[0], r)]
    names = names_of(there[0], things) if len(there) == 1 else []
    if not names or not there[0].color or there[0].color in one[1].split():
        return None
    blind = [n for n in names if there[0].color not in n.split()] or names
    name = rng.choice(blind)
    full = f"The {name} is {r} the {one[1]}. The {name} is {there[0].color}."
    return "next_to", {"x": one[1], "r": r}, there[0].color, full


def without(things, rng, world) -> Answered | None:
    """Count, then take one away: two steps."""
    one = point(things, rng)
    if not one or any(t.crowd for t in things) or not 2 < len(things) < len(NUMBERS):
        return None
    left = len(things) - 1
    full = (f"{number(len(things), 'object')} The {one[1]} is one of them. "
            f"So {NUMBERS[left]} objects are left.")
    return "without", {"x": one[1]}, NUMBERS[left], full


def one_more(things, rng, world) -> Answered | None:
    """Count, then add one: two steps, and nearly every picture can be asked about so."""
    made = counted(things, rng, world)
    if not made or made[1] + 1 == len(NUMBERS):
        return None
    phrase, n = made
    words = {"a": article(phrase), "x": phrase, "xs": plural(phrase)}
    full = f"{number(n, phrase)} With one more there would be {NUMBERS[n + 1]}."
    return "one_more", words, NUMBERS[n + 1], full


SIMPLE = {exist: 5, attribute("color"): 5, attribute("kind"): 3, attribute("size"): 3, count: 6,
          position: 6, relation: 4, negation: 2, compare_number: 2, compare_size: 2, same: 2}
DEEP = {next_to: 4, without: 2, one_more: 2, unusual: 4, compare_number: 2, compare_size: 2,
        same: 2, relation: 1}


# --- dialogues ---


def world_of(meta: dict) -> tuple[str, ...]:
    """What pictures of a data set can show; what none of them ever shows is not asked about."""
    return tuple(sorted(set(meta.get("phrases", {}).values()) - set(meta.get("held_out", []))))


def choose(makers: dict, things, rng, world) -> Answered | None:
    """A question of any of these kinds, each as often as its weight says; None if none fits."""
    left = dict(makers)
    while left:
        make = rng.choices(list(left), list(left.values()))[0]
        for _ in range(3):  # another thing may do
            made = make(things, rng, world)
            if made:
                return made
        del left[make]
    return None


def topic(made: Answered) -> str:
    """What a question is about; "is there" and "is there no" of one thing are about the same."""
    kind, words, _, _ = made
    return f"{'exist' if kind == 'negation' else kind} {sorted(words.items())}"


def in_style(style: str, word: str, full: str) -> tuple[str, str]:
    """The answer in a style, and the style, which is none where one word will not do."""
    style = "" if style == "word" and not word else style
    return style, word.capitalize() if style == "word" else full


def conversation(things, rng, world, ask: Ask) -> list[Round]:
    """Two to four different questions, now and then about style, the unknowable or the unsafe."""
    rounds: list[Round] = []
    if rng.random() < 0.2:
        if rng.random() < 0.5:
            answer = "\n".join(f"- {t.name}" for t in things)
            rounds.append((ask("list", {}), answer))
        else:
            rounds.append((ask("sentence", {}), summary(things)))
    if rng.random() < 0.15:
        rounds.append(rng.choice((
            (ask("unknowable", {}), UNKNOWN), (ask("unsafe", {}), REFUSE), harmless(rng))))
    n, asked = rng.choice((2, 2, 3, 4)), set()
    for _ in range(10):
        made = choose(SIMPLE, things, rng, world) if len(rounds) < n else None
        if made and topic(made) not in asked:
            kind, words, word, full = made
            style = rng.choice(("", "word", "word", "sentence"))     # half of them one word
            style, answer = in_style(style, word, full)
            rounds.append((ask(kind, words, style), answer))
            asked.add(topic(made))
    rng.shuffle(rounds)
    return rounds


def write(kind: str, record: dict, rng: random.Random, world: tuple[str, ...] = ()) -> str:
    """A teacher's answer about a record, in the grammar that instruct.py reads.

    Args:
        kind: conversation, detail or reasoning.
        record: with objects, each a name and a box, and color and size if known.
        world: names of things that pictures of this data set can show, for questions about what is
            not there.

    Raises:
        ValueError: if nothing is known of the picture, or nothing can be asked.
    """
    every = things_of(record)
    clear = [t for t in every if not t.hidden]
    if not clear:
        raise ValueError("no visible object is known")
    ask = asker(rng)
    if record.get("border") == "private":
        if kind == "detail":
            return PRIVATE
        q = ask(rng.choice(("list", "sentence")), {})
        return f"Question:\n{q}\n===\nAnswer:\n{PRIVATE}\n===\n"
    if kind == "detail":
        return " ".join(                                             # more would be too long
            f"There is {article(f'{t.size} {t.name}'.strip())} {at(t)}." for t in every[:10])
    if kind == "conversation":
        rounds = conversation(clear, rng, world, ask)
    else:
        made = choose(DEEP, every, rng, world)
        rounds = [(ask(*made[:2]), made[3])] if made else []
    if not rounds:
        raise ValueError("nothing can be asked that has one answer")
    return "".join(f"Question:\n{q}\n===\nAnswer:\n{a}\n===\n" for q, a in rounds)
