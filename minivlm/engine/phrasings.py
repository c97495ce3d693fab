"""How the offline teacher words its questions: many phrasings of each kind of question.

A file <kind>.txt in a folder of data/phrasings holds one pattern a line. People may edit it.
A pattern contains alternatives, as in "Is there {a}(| here| in the picture)?".
One of them is drawn.

A model that reads few phrasings learns them by heart. A model that reads many must find out
which words of a question matter. No two folders share a question:

    taught   a hundred or more of each kind; dialogues use them, and the texts of stage 0
    asked    about twenty of each kind that is about the picture; half of the prompts of
             stage 4 use them. SFT has not taught them, so more answers are wrong, and
             preference training has more to correct
    unseen   twenty or more of most kinds. No training data contain their words in the same
             order: with them data/quiz.py measures whether a model follows an instruction
             that it has never read
"""

import random
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "data" / "phrasings"
KINDS = (
    # objects
    "exist", "color", "kind", "size", "count", "position", "relation", "compare_number",
    "compare_size", "larger_of", "nearer", "same", "negation", "odd_one_out", "next_to",
    "without", "one_more",
    # the whole picture, and what is usual
    "strange", "what_strange", "why_strange", "belongs", "day_night", "setting", "activity",
    "hear", "happening", "left_without", "story", "detail", "list", "sentence",
    "fact_is", "fact_does", "fact_eats", "fact_says", "fact_needs", "fact_made", "fact_has",
    "fact_found", "fact_for", "fact_comes", "fact_can", "fact_near",
    # "it"
    "and_color", "and_where", "and_size", "sure", "why",
    # what no picture decides
    "greeting", "thanks", "bye", "who", "able", "offer", "unknowable", "unsafe",
)
STYLES = {"word": "word", "sentence": "one_sentence"}  # style -> name of its file
OPENERS = 0.2  # share of the questions that begin with a greeting or the like

Phraser = Callable[..., str]  # (kind, words, style="") -> the question in some phrasing
GROUP = re.compile(r"\(([^()]*)\)")  # alternatives without a group among them


@lru_cache(maxsize=None)
def patterns(name: str, use: str = "taught") -> tuple[str, ...]:
    """Read the patterns of a file.

    Args:
        name: a kind of question, "openers", "harmless", or the file of a style.
        use: "taught", "asked" or "unseen", a folder of phrasings. What is not about the
            picture (talk, requests) has many topics, and is asked as it is taught.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    path = FOLDER / use / f"{name}.txt"
    if use == "asked" and not path.is_file():
        path = FOLDER / "taught" / f"{name}.txt"
    if not path.is_file():
        raise FileNotFoundError(f"no phrasings at {path}")
    lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    return tuple(line for line in lines if line)


def drawn(pattern: str, rng: random.Random) -> str:
    """Draw a text from a pattern: one alternative of each group, inner groups first.

    >>> {drawn("Is (it|there) {a}?", random.Random(i)) for i in range(9)} == {
    ...     "Is it {a}?", "Is there {a}?"}
    True
    """
    def draw_one(group: re.Match) -> str:
        return rng.choice(group[1].split("|"))

    while "(" in pattern:  # inner groups first: GROUP matches no group with a group inside
        pattern = GROUP.sub(draw_one, pattern)
    return pattern


def spelled(pattern: str) -> list[str]:
    """List every text that a pattern can give.

    >>> spelled("(Use|Give) (|only )one word.")
    ['Use one word.', 'Use only one word.', 'Give one word.', 'Give only one word.']
    """
    group = GROUP.search(pattern)  # an innermost one
    if not group:
        return [pattern]
    before = pattern[:group.start()]
    after = pattern[group.end():]
    texts = []
    for alternative in group[1].split("|"):
        texts += spelled(before + alternative + after)
    return texts


def make_phraser(
    rng: random.Random, use: str = "taught", openers: float = OPENERS
) -> Phraser:
    """Make a function that puts a question into words.

    Args:
        use: "taught", "asked" or "unseen", the folder of phrasings to draw from.
        openers: share of the questions that begin with a sentence which asks nothing; such
            a sentence makes it harder to find the question.
    """
    def phrase_question(kind: str, words: dict[str, str], style: str = "") -> str:
        names = [kind]
        if style:
            names.append(STYLES[style])
        sentences = [drawn(rng.choice(patterns(name, use)), rng) for name in names]
        if rng.random() < openers:
            # openers have no other version: they are not what is measured
            sentences.insert(0, drawn(rng.choice(patterns("openers")), rng))
        return " ".join(sentences).format(**words)
    return phrase_question


def harmless(rng: random.Random, use: str = "taught") -> tuple[str, str]:
    """Draw a request that sounds unsafe but must not be refused, and its answer."""
    # an answer fits only its own request, so a line holds both
    request, answer = rng.choice(patterns("harmless", use)).split(" => ")
    return drawn(request, rng), answer
