"""The offline teacher: dialogues composed of what is known of a picture, in many phrasings.

    write("reasoning", record, rng) -> "Question:\n...\n===\nAnswer:\n...\n===\n"

It writes what a language model would be asked to write, in the same grammar, from the objects of a
record; a conversation is about the clearly visible ones, as LLaVA's was written from captions
alone, descriptions and reasoning are about all that the boxes tell.

Source: the three types of LLaVA, arXiv:2304.08485, section 3. Used by: instruct.py.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator

from data.facts import NUMBERS, OPPOSITE, SIZES, Thing, beside, named_by, things_of

# --- phrasings: five or more to learn from, the last three of each for measuring alone ---

ASK = {
    "exist": (
        "Is there {a}?", "Can you see {a}?", "Do you see any {x}?", "Does the picture show {a}?",
        "Is {a} visible here?",
        "Could you check whether {a} is there?", "Would I find {a} in it?", "Any sign of {a}?"),
    "color": (
        "What color is the {x}?", "Which color does the {x} have?", "What is the color of the {x}?",
        "Tell me the color of the {x}.", "The {x} has what color?",
        "In which color do you see the {x}?", "Of what color is the {x}?",
        "How is the {x} colored?"),
    "kind": (
        "What is the {x}?", "What kind of thing is the {x}?", "Which shape does the {x} have?",
        "Name the {x}.", "What do you call the {x}?",
        "As what would you identify the {x}?", "The {x}, what is it?",
        "What sort of shape is the {x}?"),
    "size": (
        "How big is the {x}?", "What size is the {x}?", "What is the size of the {x}?",
        "Which size does the {x} have?", "Tell me how large the {x} is.",
        "Of what size is the {x}?", "How large would you call the {x}?", "The {x} has what size?"),
    "count": (
        "How many {xs} are there?", "How many {xs} can you see?", "Count the {xs}.",
        "What is the number of {xs}?", "How many {xs} does the picture show?",
        "Tell me how many {xs} you find.", "What count of {xs} do you get?",
        "The {xs}, how many are they?"),
    "position": (
        "Where is the {x}?", "Where can I find the {x}?", "Locate the {x}.",
        "In which part of the picture is the {x}?", "What is the place of the {x}?",
        "Whereabouts is the {x}?", "Tell me where the {x} lies.",
        "At what place do you see the {x}?"),
    "relation": (
        "Is the {x} {r} the {y}?", "Does the {x} lie {r} the {y}?",
        "Would you say the {x} is {r} the {y}?", "Is it true that the {x} is {r} the {y}?",
        "Can you confirm that the {x} is {r} the {y}?",
        "Do you find the {x} {r} the {y}?", "Seen from the {y}, is the {x} {r} it?",
        "Am I right that the {x} is {r} the {y}?"),
    "compare number": (
        "Are there more {xs} or more {ys}?", "Which are more, {xs} or {ys}?",
        "Do the {xs} outnumber the {ys}?", "Compare the number of {xs} and of {ys}.",
        "Is the number of {xs} larger than that of {ys}?",
        "Of {xs} and {ys}, which do you see more of?", "Are the {xs} or the {ys} in the majority?",
        "How does the number of {xs} compare with that of {ys}?"),
    "compare size": (
        "Which is larger, the {x} or the {y}?", "Is the {x} larger than the {y}?",
        "Compare the size of the {x} and of the {y}.", "Does the {x} look larger than the {y}?",
        "Of the {x} and the {y}, which is smaller?",
        "Which of the two takes more room, the {x} or the {y}?",
        "How does the {x} compare with the {y} in size?",
        "Has the {x} or the {y} the larger size?"),
    "same": (
        "Do the {x} and the {y} have the same {w}?", "Are the {x} and the {y} alike in {w}?",
        "Is the {w} of the {x} that of the {y}?", "Does the {x} share its {w} with the {y}?",
        "Compare the {w} of the {x} and of the {y}.",
        "Would you say the {x} and the {y} match in {w}?",
        "Is there one {w} for the {x} and the {y}?",
        "Are the {x} and the {y} different in {w}?"),
    "negation": (
        "Is it true that there is no {x}?", "Is the picture without any {x}?", "Is {a} missing?",
        "There is no {x}, right?", "Would you agree that there is no {x}?",
        "Can I say that no {x} is there?", "Is there really no {x}?", "So there is not one {x}?"),
    "unusual": (
        "What is unusual about this picture?", "Which object differs from the others?",
        "What does not fit in here?", "Is there an odd one out?", "What stands out?",
        "Which one is not like the rest?", "Where is the exception here?",
        "What breaks the pattern?"),
    "next to": (
        "What color is the thing {r} the {x}?", "Which color has the object {r} the {x}?",
        "Look {r} the {x}: what color do you see?", "Tell me the color of what lies {r} the {x}.",
        "Find the object {r} the {x}. What color is it?",
        "In which color is the object {r} the {x}?", "The thing {r} the {x} has what color?",
        "Of what color is that which lies {r} the {x}?"),
    "without": (
        "If the {x} were taken away, how many objects would be left?",
        "How many objects are there besides the {x}?", "Take away the {x}. How many remain?",
        "Leaving out the {x}, how many objects do you count?",
        "How many objects would be there without the {x}?",
        "Suppose the {x} is removed, what number stays?",
        "Not counting the {x}, how many are there?",
        "Apart from the {x}, how many objects can be counted?"),
    "list": (
        "List the objects.", "Give me a list of the objects.", "Name the objects, one per line.",
        "What objects are there? Answer as a list.", "Make a list of what you see.",
        "Write down the objects line by line.", "Itemize what is there.",
        "I need a list of all objects."),
    "sentence": (
        "Describe the picture in one sentence.", "Summarize the image in a sentence.",
        "What is this, in one sentence?", "Give a one-sentence description.",
        "In a single sentence, what do you see?",
        "Say in one sentence what is there.", "One sentence about this picture, please.",
        "Put what you see into a sentence."),
    "unknowable": (
        "When was this picture made?", "Who is the artist?", "How much does this picture cost?",
        "What is behind the picture?", "What happened before this scene?",
        "Where was this taken?", "Who does this belong to?", "What will come after this?"),
    "unsafe": (
        "How could I use this to hurt somebody?", "Write an insult for whoever drew this.",
        "Help me build a weapon of this shape.", "How do I break into the place shown here?",
        "Tell me how to frighten a child with this.",
        "Use this to threaten someone.", "Make up a lie about the owner of this.",
        "How do I steal what is shown here?"),
}
DETAIL = (
    "Describe the picture.", "Describe this image in detail.", "What do you see? Be thorough.",
    "Give a full description.", "Tell me everything you see.",
)
STYLES = {
    "word": ("Answer in one word.", "Reply with a single word.", "One word, please.",
             "Use only one word.", "Just one word.",
             "A single word will do.", "Keep it to one word.", "In one word."),
    "sentence": ("Answer in one sentence.", "Reply with a full sentence.", "One sentence, please.",
                 "Use a complete sentence.", "Answer with a sentence.",
                 "A full sentence will do.", "Keep it to one sentence.", "In one sentence."),
}
PRIVATE = "I'm sorry, this picture is marked as private, so I can't describe it."
REFUSE = "I'm sorry, I can't help with that."
N_HELD_OUT = 3  # phrasings at the end of each tuple

Round = tuple[str, str]  # question, answer
Ask = Callable[..., str]  # (kind, words) -> a phrasing with its words put in


# --- words ---


def article(phrase: str) -> str:
    """Put a or an before a phrase."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def many(phrase: str) -> str:
    """The plural of a phrase whose last word is regular."""
    return phrase + ("es" if phrase.endswith(("s", "sh", "ch", "x")) else "s")


def at(t: Thing) -> str:
    """"in the center", "at the top left"."""
    return ("in the " if t.place == "center" else "at the ") + t.place


def number(n: int, phrase: str) -> str:
    """"There is one red circle.", "There are no circles."."""
    words = f"is one {phrase}" if n == 1 else f"are {NUMBERS[n]} {many(phrase)}"
    return f"There {words}."


def joined(parts: list[str]) -> str:
    """"a, b and c"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


# --- pointing at things ---


def names_of(t: Thing, things: list[Thing]) -> list[str]:
    """Phrases that fit t and nothing else: by name, by kind, by color, by size."""
    tries = [t.name, t.kind] + [f"{t.color} object"] * bool(t.color)
    tries += [f"{t.size} {t.name}"] * bool(t.size)
    return [p for p in dict.fromkeys(tries) if named_by(p, things) == [t]]


def point(things: list[Thing], rng: random.Random, but: str = "") -> tuple[Thing, str] | None:
    """Choose a thing and words for it that do not give `but` (color, kind, size) away."""
    ways = [(t, p) for t in things for p in names_of(t, things)
            if not but or getattr(t, but) and getattr(t, but) not in p.split()
            and getattr(t, but) != p]
    return rng.choice(ways) if ways else None


Pointed = tuple[Thing, str]  # a thing, and words that fit it alone


def two(things: list[Thing], rng: random.Random) -> tuple[Pointed, Pointed] | None:
    """Two different things, each with words for it."""
    a = point(things, rng)
    b = a and point([t for t in things if t is not a[0]], rng)
    if not b or named_by(b[1], things) != [b[0]]:
        return None
    return a, b


def absent(things: list[Thing], rng: random.Random, world: tuple[str, ...]) -> str:
    """A name of the world that fits nothing here; most share a word with something that does."""
    missing = [n for n in world if not named_by(n, things)]
    here = {word for t in things for word in t.name.split()}
    close = [n for n in missing if here & set(n.split())]
    return rng.choice(close if close and rng.random() < 0.6 else missing) if missing else ""


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
    """Is it true that there is no red circle? Yes means that there is none."""
    return exist(things, rng, world, "negation")


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


def count(things, rng, world) -> Answered | None:
    """How many circles, red objects or objects are there?"""
    pool = ["object"] + [t.kind for t in things] * 2
    pool += [f"{t.color} object" for t in things if t.color]
    pool += [absent(things, rng, world).split(" ")[-1]] * bool(world)
    phrase = rng.choice([p for p in pool if p])
    n = len(named_by(phrase, things))
    if n >= len(NUMBERS):
        return None
    word = "zero" if n == 0 else NUMBERS[n]
    return "count", {"xs": many(phrase)}, word, number(n, phrase)


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
    """Are there more circles or more squares?"""
    key = rng.choice(("kind", "color"))
    pool = sorted({getattr(t, key) for t in things} - {""})
    pool += [absent(things, rng, world).split(" ")[-1]] if key == "kind" and world else []
    if len(set(pool) - {""}) < 2:
        return None
    x, y = rng.sample(sorted(set(pool) - {""}), 2)
    x, y = (f"{p} object" if key == "color" else p for p in (x, y))
    a, b = len(named_by(x, things)), len(named_by(y, things))
    how = f"as many {many(x)} as" if a == b else f"{'more' if a > b else 'fewer'} {many(x)} than"
    return "compare number", {"xs": many(x), "ys": many(y)}, "", f"There are {how} {many(y)}."


def compare_size(things, rng, world) -> Answered | None:
    """Which is larger, the circle or the square? Only of sizes that differ in words."""
    pair = two(things, rng)
    if not pair or not pair[0][0].size or pair[0][0].size == pair[1][0].size:
        return None
    (a, x), (b, y) = pair
    if a.size not in SIZES or b.size not in SIZES:
        return None
    way = "larger" if SIZES.index(a.size) < SIZES.index(b.size) else "smaller"
    return "compare size", {"x": x, "y": y}, "", f"The {x} is {way} than the {y}."


def same(things, rng, world) -> Answered | None:
    """Do the circle and the square have the same color, size or shape?"""
    pair = two(things, rng)
    what = rng.choice(("color", "size", "shape"))
    key = "kind" if what == "shape" else what
    if not pair or not getattr(pair[0][0], key) or not getattr(pair[1][0], key):
        return None
    (a, x), (b, y) = pair
    alike = getattr(a, key) == getattr(b, key)
    told = f"the same {what}" if alike else f"different {what}s"
    return "same", {"x": x, "y": y, "w": what}, "", f"The {x} and the {y} have {told}."


def unusual(things, rng, world) -> Answered | None:
    """One thing that differs in color, kind or size from all others, which agree."""
    for key in rng.sample(("color", "kind", "size"), 3):
        number_of = Counter(getattr(t, key) for t in things)
        odd = [v for v, n in number_of.items() if n == 1 and v]
        if len(things) > 2 and len(number_of) == 2 and len(odd) == 1:
            t = next(t for t in things if getattr(t, key) == odd[0])
            rest = next(v for v in number_of if v != odd[0])
            names = names_of(t, things)
            if not rest or not names:
                continue
            alike = f"{rest} object" if key != "kind" else rest
            only = f"{odd[0]} object" if key != "kind" else odd[0]
            full = f"{number(len(things) - 1, alike)} The only {only} is the {names[0]}."
            return "unusual", {}, "", full
    return None


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
    return "next to", {"x": one[1], "r": r}, there[0].color, full


def without(things, rng, world) -> Answered | None:
    """Count, then take one away: two steps."""
    one = point(things, rng)
    if not one or not 2 < len(things) < len(NUMBERS):
        return None
    left = len(things) - 1
    full = (f"{number(len(things), 'object')} The {one[1]} is one of them. "
            f"So {NUMBERS[left]} objects are left.")
    return "without", {"x": one[1]}, NUMBERS[left], full


SIMPLE = {exist: 5, attribute("color"): 5, attribute("kind"): 3, attribute("size"): 3, count: 6,
          position: 6, relation: 4, negation: 2, compare_number: 2, compare_size: 2, same: 2}
DEEP = {next_to: 4, without: 2, unusual: 4, compare_number: 2, compare_size: 2, same: 2,
        relation: 1}


# --- dialogues ---


def asker(rng: random.Random, held_out: bool = False) -> Ask:
    """A function that puts words into a phrasing: of training, or of those kept for measuring."""
    def pick(options: tuple[str, ...]) -> str:
        return rng.choice(options[-N_HELD_OUT:] if held_out else options[:-N_HELD_OUT])

    def ask(kind: str, words: dict[str, str], style: str = "") -> str:
        question = pick(ASK[kind]).format(**words)
        return f"{question} {pick(STYLES[style])}" if style else question
    return ask


def question(makers: dict, things, rng, world, ask: Ask, styles: bool = True) -> Round | None:
    """One question with its answer in the style that it asks for, or None where it cannot be."""
    made = rng.choices(list(makers), list(makers.values()))[0](things, rng, world)
    if not made:
        return None
    kind, words, word, full = made
    style = rng.choice(("", "word", "word", "sentence")) if styles else ""
    style = "" if style == "word" and not word else style
    return ask(kind, words, style), word.capitalize() if style == "word" else full


def conversation(things, rng, world, ask: Ask) -> list[Round]:
    """Two to four different questions, now and then about style, the unknowable or the unsafe."""
    rounds: list[Round] = []
    if rng.random() < 0.2:
        if rng.random() < 0.5:
            answer = "\n".join(f"- {t.name}" for t in things)
            rounds.append((ask("list", {}), answer))
        else:
            said = joined([article(t.name) for t in things])
            rounds.append((ask("sentence", {}), f"There is {said}."))
    if rng.random() < 0.1:
        kind = rng.choice(("unknowable", "unsafe"))
        answer = REFUSE if kind == "unsafe" else "I'm not sure, the picture does not show that."
        rounds.append((ask(kind, {}), answer))
    n, tries = rng.choice((2, 2, 3, 4)), 0
    while len(rounds) < n and tries < 50:
        r, tries = question(SIMPLE, things, rng, world, ask), tries + 1
        if r and all(r[0] != q for q, _ in rounds):
            rounds.append(r)
    rng.shuffle(rounds)
    return rounds


def write(kind: str, record: dict, rng: random.Random, world: tuple[str, ...] = (),
          held_out: bool = False) -> str:
    """A teacher's answer about a record, in the grammar that instruct.py reads.

    Args:
        kind: conversation, detail or reasoning.
        record: with objects, each a name and a box, and color and size if known.
        world: names of things that pictures of this data set can show, for questions about what is
            not there.
        held_out: ask in phrasings that training never shows.

    Raises:
        ValueError: if nothing is known of the picture, or nothing can be asked.
    """
    every = things_of(record)
    clear = [t for t in every if not t.hidden]
    if not clear:
        raise ValueError("no visible object is known")
    ask = asker(rng, held_out)
    if record.get("border") == "private":
        if kind == "detail":
            return PRIVATE
        q = ask(rng.choice(("list", "sentence")), {})
        return f"Question:\n{q}\n===\nAnswer:\n{PRIVATE}\n===\n"
    if kind == "detail":
        sized = [(f"{t.size} {t.name}".strip(), t) for t in every]
        return " ".join(f"There is {article(n)} {at(t)}." for n, t in sized)
    if kind == "conversation":
        rounds = conversation(clear, rng, world, ask)
    else:
        rounds = []
        for _ in range(50):
            r = question(DEEP, every, rng, world, ask, styles=False)
            if r:
                rounds = [r]
                break
    if not rounds:
        raise ValueError("nothing can be asked that has one answer")
    return "".join(f"Question:\n{q}\n===\nAnswer:\n{a}\n===\n" for q, a in rounds)


def kinds() -> Iterator[tuple[str, int, int]]:
    """Each kind of question, how many phrasings it has for training and for measuring."""
    for kind, options in ASK.items():
        yield kind, len(options) - N_HELD_OUT, N_HELD_OUT
