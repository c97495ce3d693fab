"""The book of facts: what the language model reads about things before it sees any.

facts.txt holds about ten facts of each thing. Facts that are marked with a star stand in
the text of stage 0 and in no dialogue: what a chatbot says of them, it knows from reading.
"""

import random
from functools import lru_cache
from pathlib import Path

from data.book.things import THINGS
from minivlm.engine.facts import ASPECTS, HOME
from minivlm.engine.phrasings import make_phraser
from minivlm.engine.scenes import fact_of, in_general
from minivlm.engine.wording import World, sentence

FILE = Path(__file__).with_name("facts.txt")
HOMES = {"sky": "in the sky", "ground": "on land", "water": "in the water",
         "indoors": "in a house"}
# what may stand before a fact; the fact then goes on in small letters
STARTS = (
    "", "", "", "Everybody knows that ", "It is true that ", "In this book, ",
    "Children learn that ", "Remember: ",
)
# things that are larger than all others, outside of the picture book
LARGE = ("sun", "moon", "cloud", "plane", "tree", "house", "boat", "whale", "car")


@lru_cache(maxsize=None)
def read_facts() -> tuple[dict[str, dict[str, str]], tuple[tuple[str, str], ...]]:
    """Read facts.txt, and add where each thing belongs.

    Returns:
        thing -> aspect -> fact, and the (thing, aspect) pairs that no dialogue mentions.

    Raises:
        ValueError: for a line that is neither a thing nor a fact of a known aspect.
    """
    facts: dict[str, dict[str, str]] = {}
    untold = []
    thing = ""
    for number, line in enumerate(FILE.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        aspect, colon, value = line.removeprefix("*").strip().partition(": ")
        if not colon and line in THINGS:
            thing = line
            homes = [HOMES[home] for home in THINGS[thing].homes]
            facts[thing] = {HOME: " or ".join(homes)}
        elif colon and thing and aspect in ASPECTS:
            facts[thing][aspect] = value
            if line.startswith("*"):
                untold.append((thing, aspect))
        else:
            raise ValueError(f"{FILE}:{number} is neither a thing nor a fact: {line!r}")
    return facts, tuple(untold)


def usual_size(thing: str, rng: random.Random) -> str:
    """How large a thing is: "a whale is large", "a cup is smaller than a whale".

    In a picture every thing may be large or small. Without such sentences, both words would
    stand in the same places of all texts, and a language model would take them for one.
    """
    is_large = thing in LARGE
    size = "large" if is_large else "small"
    other = rng.choice([t for t in THINGS if (t in LARGE) != is_large])
    than = f"{'larger' if is_large else 'smaller'} than {in_general(other)}"
    return f"{in_general(thing)} is {rng.choice((size, than))}"


def page(thing: str, rng: random.Random) -> str:
    """A page about a thing: some of its facts, told or asked, in any order."""
    facts, _ = read_facts()
    world = World(facts=facts)
    aspects = [aspect for aspect in facts[thing] if aspect in ASPECTS]
    sentences = []
    for aspect in rng.sample(aspects, rng.randint(3, 5)):
        sentences.append((aspect, fact_of(thing, aspect, world)))
    if rng.random() < 0.5:
        texts = [text for _, text in sentences]
        texts.insert(rng.randrange(len(texts) + 1), usual_size(thing, rng))
        return " ".join(sentence(rng.choice(STARTS) + text) for text in texts)
    phrase_question = make_phraser(rng, openers=0)
    lines = []
    for aspect, text in sentences:
        question = phrase_question(f"fact_{aspect}", {"x": thing})
        lines.append(f"Question: {question}\nAnswer: {sentence(text)}")
    return "\n".join(lines)
