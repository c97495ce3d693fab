"""Texts about an NLVR picture: captions made from its boxes, questions, and dialogues.

An object is a dict of a record: name, attributes, box, place. A statement is the sentence
that a person wrote about the picture, and its label tells whether it is true.
"""

import random
from collections import Counter
from dataclasses import dataclass
from itertools import product

from minivlm.engine.wording import sentence
from minivlm.evaluation.english import article, join
from minivlm.evaluation.scene import NUMBERS as NO_TO_TEN

# published color -> our word
COLORS = {"yellow": "yellow", "black": "black", "#0099ff": "blue"}
SHAPES = ("circle", "square", "triangle")
SIZES = {10: "small", 20: "medium", 30: "large"}  # side in published pixels -> our word
THINGS = [f"{color} {shape}" for color, shape in product(COLORS.values(), SHAPES)]
SIZED = [f"{size} {thing}" for size, thing in product(SIZES.values(), THINGS)]
# name of a box -> its column and row in the packed picture
PLACES = {"top left box": (0, 0), "top right box": (1, 0), "bottom left box": (0, 1)}
NUMBERS = ("zero", *NO_TO_TEN[1:], "eleven")
LONG = 36  # most words of a caption; a text tower reads 64 tokens

EXIST = (
    "Is there {one}?", "Can you see {one}?", "Do you see any {thing}s?",
    "Does the picture show {one}?", "Is {one} visible here?",
    "Is there {one} in any of the boxes?",
)
COUNT = (
    "How many {thing}s are there?", "How many {thing}s can you see?", "Count the {thing}s.",
    "What is the number of {thing}s?", "How many {thing}s do the boxes hold?",
)
STATEMENT = (
    "Is it true that {claim}?", "Would you say that {claim}?",
    "Can you confirm that {claim}?", "Does the picture show that {claim}?",
    "Is it right to say that {claim}?",
)
DESCRIBE = (
    "Describe the picture.", "Describe this image in detail.",
    "What do you see? Be thorough.", "Give a full description.",
    "Tell me what each box holds.",
)
# style -> ways to ask for it, which follow the question
STYLE_REQUESTS = {
    "word": (
        "Answer in one word.", "Reply with a single word.", "One word, please.",
        "Use only one word.", "Just one word.",
    ),
    "sentence": (
        "Answer in one sentence.", "Reply with a full sentence.", "One sentence, please.",
        "Use a complete sentence.", "Answer with a sentence.",
    ),
}


@dataclass
class Round:
    """A question with its answer, and how to tell whether another answer is right.

    kind: the type of the question.
    style: "word", "sentence" or "detail"; "" asks for no style.
    expect: a right answer contains one of these texts.
    wrong: a right answer contains none of these texts.
    """

    kind: str
    question: str
    answer: str
    style: str
    expect: list[str]
    wrong: list[str]


# --- captions ---


def named(o: dict) -> tuple[str, str]:
    """An object without and with its size: "black circle" and "small black circle"."""
    look = o["attributes"]
    thing = f"{look['color']} {o['name']}"
    return thing, f"{look['size']} {thing}"


def listed(objects: list[dict], place: str = "") -> str:
    """The objects of one box, or of all boxes: "a black circle and two blue squares".

    Args:
        place: name of the box; "" = all boxes.
    """
    counts = Counter(named(o)[0] for o in objects if place in o["place"])
    parts = []
    for thing in THINGS:
        n = counts[thing]
        if n == 1:
            parts.append(article(thing))
        elif n > 1:
            number = NUMBERS[n] if n < len(NUMBERS) else n  # words end at eleven
            parts.append(f"{number} {thing}s")
    return join(parts) if parts else "nothing"


def captions(objects: list[dict], rng: random.Random) -> list[str]:
    """Three captions; the first tells everything unless that takes more than LONG words."""
    place = rng.choice(list(PLACES))
    full = "; ".join(f"{p}: {listed(objects, p)}" for p in PLACES)
    whole = rng.choice((
        "there are {} in all", "the three boxes hold {}", "three boxes with {}",
    ))
    verb = rng.choice(("holds", "has", "contains", "shows"))
    pool = [
        whole.format(listed(objects)),
        f"the {place} {verb} {listed(objects, place)}",
        f"{listed(objects, place)} in the {place}",
    ]
    if objects:
        o = rng.choice(objects)
        pool.append(f"{article(named(o)[1])} in the {o['place']}")
    # a text tower would cut a longer caption
    first = full if len(full.split()) <= LONG else pool.pop(0)
    return [sentence(words) for words in (first, *rng.sample(pool, 2))]


# --- questions ---


def describe(objects: list[dict], rng: random.Random) -> Round:
    """Tell what each box holds."""
    parts = [sentence(f"the {place} holds {listed(objects, place)}") for place in PLACES]
    return Round("describe", rng.choice(DESCRIBE), " ".join(parts), "detail", [], [])


def ask(
    kind: str, forms: tuple[str, ...], words: dict[str, str], word: str, full: str,
    expect: list[str], wrong: list[str], rng: random.Random,
) -> Round:
    """A round in a random phrasing and style.

    The draws do not depend on the answer: equal states of `rng` give equal questions, so
    that a question can be asked in the same words about two pictures.

    Args:
        forms: phrasings of the question.
        words: slot of the phrasings -> what is put into it.
        word, full: the answer in one word, and in a sentence.
        expect, wrong: as in `Round`.
    """
    # the style first, then the phrasing, then how the style is asked for
    style = rng.choice(("", "word", "sentence"))
    question = rng.choice(forms).format(**words)
    if style:
        question += " " + rng.choice(STYLE_REQUESTS[style])
    answer = word if style == "word" else full
    return Round(kind, question, answer, style, expect, wrong)


def ask_yes_no(
    kind: str, forms: tuple[str, ...], words: dict[str, str], is_true: bool, full: str,
    rng: random.Random,
) -> Round:
    """As `ask`, for a question that is answered by yes or no.

    Args:
        full: the answer in a sentence, "Yes, ..." or "No, ...".
    """
    word = "yes" if is_true else "no"
    other = "no" if is_true else "yes"
    return ask(kind, forms, words, word, full, [word], [other], rng)


def exist(objects: list[dict], thing: str, rng: random.Random) -> Round:
    """Is there a black circle, or a small black circle?"""
    words = {"one": article(thing), "thing": thing}
    for o in objects:
        if thing in named(o):
            full = f"Yes, there is {article(thing)} in the {o['place']}."
            return ask_yes_no("exist", EXIST, words, True, full, rng)
    return ask_yes_no("exist", EXIST, words, False, f"No, there is no {thing}.", rng)


def count(objects: list[dict], rng: random.Random) -> Round:
    """How many yellow squares, squares, or yellow objects are there?

    First a number up to six is drawn, then a thing that occurs so often in the picture. So
    no number is the right answer much more often than the others.
    """
    counts = Counter()
    for o in objects:
        counts.update((named(o)[0], o["name"], o["attributes"]["color"] + " object"))
    things = [*THINGS, *SHAPES]
    things += [f"{color} object" for color in COLORS.values()]
    numbers = {counts[t] for t in things}
    n = rng.choice(sorted(number for number in numbers if number <= 6))
    thing = rng.choice([t for t in things if counts[t] == n])
    word = NUMBERS[n]
    expect = [word, str(n)]
    full = f"There are {word} {thing}s."
    if n == 0:
        # people say "no squares", not "zero squares"
        expect.append("no")
        full = f"There are no {thing}s."
    if n == 1:
        full = f"There is one {thing}."
    # an answer that names another number besides the right one is wrong
    wrong = [other for other in NUMBERS if other != word]
    return ask("count", COUNT, {"thing": thing}, word, full, expect, wrong, rng)


def statement(written: str, label: bool, rng: random.Random) -> Round:
    """Is what a person wrote true?"""
    claim = written.rstrip(" .?!,")
    # the claim continues the sentence of the question
    words = {"claim": claim[0].lower() + claim[1:]}
    full = "Yes, that is true." if label else "No, that is not true."
    return ask_yes_no("statement", STATEMENT, words, label, full, rng)


def dialogue(
    written: str, label: bool, objects: list[dict], share: dict[str, float],
    rng: random.Random,
) -> list[Round]:
    """Up to five rounds: a statement, two of existence, a count, and one more of any kind.

    Let f be the share of scenes that have a thing. The thing is drawn with weight 1 - f if
    the picture has it, and with weight f if not. So its name alone tells less about the
    answer. It still tells something: seven scenes in ten are towers and have squares only.

    Args:
        written: the statement.
        label: whether the statement is true.
        share: thing -> f, above 0 and below 1.
    """
    # names with and without a size, because both are asked about
    present = set()
    for o in objects:
        present.update(named(o))

    def some(things: list[str]) -> Round:
        weights = [1 - share[t] if t in present else share[t] for t in things]
        return exist(objects, rng.choices(things, weights)[0], rng)

    last = rng.choice(("describe", "exist", "count"))
    rounds = [
        statement(written, label, rng), some(THINGS), some(SIZED), count(objects, rng),
    ]
    if last == "describe":
        rounds.append(describe(objects, rng))
    elif last == "exist":
        rounds.append(some(THINGS))
    else:
        rounds.append(count(objects, rng))
    rng.shuffle(rounds)
    # two draws may give the same question
    return list({r.question: r for r in rounds}.values())
