"""What is said about an NLVR picture: captions from its boxes, questions, dialogues.

Objects are records' dicts (name, attributes, box, place); `written` is a person's sentence about
the picture and `label` says whether it is true. Used by: prepare.py.
"""

import random
from collections import Counter
from itertools import product

from data.shapes.language import NUMBERS, sentence
from data.shapes.questions import Round, ask_style, styled
from minivlm.evaluation.english import article, join

COLORS = {"yellow": "yellow", "black": "black", "#0099ff": "blue"}
SHAPES = ("circle", "square", "triangle")
SIZES = {10: "small", 20: "medium", 30: "large"}  # pixels of the published picture
THINGS = [f"{c} {s}" for c, s in product(COLORS.values(), SHAPES)]
SIZED = [f"{z} {t}" for z, t in product(SIZES.values(), THINGS)]
PLACES = {"top left box": (0, 0), "top right box": (1, 0), "bottom left box": (0, 1)}  # column, row
LONG = 36  # words; a text tower reads 64 tokens

EXIST = ("Is there {one}?", "Can you see {one}?", "Do you see any {thing}s?",
         "Does the picture show {one}?", "Is {one} visible here?",
         "Is there {one} in any of the boxes?")
COUNT = ("How many {thing}s are there?", "How many {thing}s can you see?", "Count the {thing}s.",
         "What is the number of {thing}s?", "How many {thing}s do the boxes hold?")
STATEMENT = ("Is it true that {said}?", "Would you say that {said}?",
             "Can you confirm that {said}?", "Does the picture show that {said}?",
             "Is it right to say that {said}?")
DESCRIBE = ("Describe the picture.", "Describe this image in detail.",
            "What do you see? Be thorough.", "Give a full description.",
            "Tell me what each box holds.")


def named(o: dict) -> tuple[str, str]:
    """"black circle" and "small black circle"."""
    thing = f"{o['attributes']['color']} {o['name']}"
    return thing, f"{o['attributes']['size']} {thing}"


def listed(objects: list[dict], place: str = "") -> str:
    """Objects (of one box) counted by color and shape: "a black circle and two blue squares"."""
    number = Counter(named(o)[0] for o in objects if place in o["place"])
    many = {t: NUMBERS[n] if n < len(NUMBERS) else n for t, n in number.items()}
    return join(
        [article(t) if number[t] == 1 else f"{many[t]} {t}s" for t in THINGS if number[t]]
        or ["nothing"]
    )


def captions(objects: list[dict], rng: random.Random) -> list[str]:
    """Three ways to tell what the boxes hold, the first one complete unless that is long."""
    place = rng.choice(list(PLACES))
    full = "; ".join(f"{p}: {listed(objects, p)}" for p in PLACES)
    pool = [
        rng.choice((
            "there are {} in all", "the three boxes hold {}", "three boxes with {}",
        )).format(listed(objects)),
        f"the {place} {rng.choice(('holds', 'has', 'contains', 'shows'))} {listed(objects, place)}",
        f"{listed(objects, place)} in the {place}",
    ]
    pool += [
        f"{article(named(o)[1])} in the {o['place']}"
        for o in rng.sample(objects, min(1, len(objects)))
    ]
    first = pool.pop(0) if len(full.split()) > LONG else full
    return [sentence(words) for words in (first, *rng.sample(pool, 2))]


def describe(objects: list[dict], rng: random.Random) -> Round:
    """Tell what each box holds."""
    answer = " ".join(sentence(f"the {place} holds {listed(objects, place)}") for place in PLACES)
    return Round("describe", rng.choice(DESCRIBE), answer, "detail")


def ask(kind: str, forms: tuple[str, ...], words: dict[str, str], word: str, full: str,
        judge: tuple[list[str], list[str]], rng: random.Random) -> Round:
    """A round in some phrasing and style; equal random states ask equally, whatever the answer."""
    style = rng.choice(("", "word", "sentence"))
    return ask_style(
        styled(kind, rng.choice(forms).format(**words), word, full, style, *judge), rng
    )


def exist(objects: list[dict], thing: str, rng: random.Random) -> Round:
    """Is there a black circle, or a small black circle?"""
    words = {"one": article(thing), "thing": thing}
    for o in objects:
        if thing in named(o):
            full = f"Yes, there is {article(thing)} in the {o['place']}."
            return ask("exist", EXIST, words, "yes", full, (["yes"], ["no"]), rng)
    return ask("exist", EXIST, words, "no", f"No, there is no {thing}.", (["no"], ["yes"]), rng)


def count(objects: list[dict], rng: random.Random) -> Round:
    """How many yellow squares, squares or yellow objects? The number is drawn first, up to six."""
    number = Counter(
        w for o in objects
        for w in (named(o)[0], o["name"], o["attributes"]["color"] + " object")
    )
    things = [*THINGS, *SHAPES, *(f"{c} object" for c in COLORS.values())]
    n = rng.choice(sorted({number[t] for t in things if number[t] <= 6}))
    thing = rng.choice([t for t in things if number[t] == n])
    full = (
        f"There is one {thing}." if n == 1
        else f"There are {NUMBERS[n] if n else 'no'} {thing}s."
    )
    judge = [NUMBERS[n], str(n)] + ["no"] * (n == 0), [w for w in NUMBERS if w != NUMBERS[n]]
    return ask("count", COUNT, {"thing": thing}, NUMBERS[n], full, judge, rng)


def statement(written: str, label: bool, rng: random.Random) -> Round:
    """Is it true what a person wrote?"""
    said = written.rstrip(" .?!,")
    word, other, full = (
        ("yes", "no", "Yes, that is true.") if label else ("no", "yes", "No, that is not true.")
    )
    return ask("statement", STATEMENT, {"said": said[0].lower() + said[1:]}, word, full,
               ([word], [other]), rng)


def dialogue(written: str, label: bool, objects: list[dict], share: dict[str, float],
             rng: random.Random) -> list[Round]:
    """Five rounds: a statement, two or three things that exist or not, counts, maybe a description.

    A thing in a share f of the scenes is drawn with weight 1 - f where it is and f where it is not,
    so that its name tells less of the answer. It still tells some: seven scenes in ten are towers,
    squares only.
    """
    there = {t for o in objects for t in named(o)}

    def some(things: list[str]) -> Round:
        return exist(
            objects,
            rng.choices(things, [1 - share[t] if t in there else share[t] for t in things])[0],
            rng,
        )

    last = rng.choice((
        lambda: describe(objects, rng), lambda: some(THINGS), lambda: count(objects, rng),
    ))
    rounds = [
        statement(written, label, rng), some(THINGS), some(SIZED), count(objects, rng), last(),
    ]
    rng.shuffle(rounds)
    return list({r.question: r for r in rounds}.values())
