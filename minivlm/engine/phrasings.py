"""How the offline teacher words its questions: many ways to ask the same, three of each kept apart.

The ways stand in data/phrasings/<kind>.txt, one pattern a line, to be read and edited. A pattern
holds alternatives, "Is there {a}(| here| in the picture)?", of which one is drawn. A model that
reads few phrasings learns them by heart; one that reads many has to find what matters in them.

What is in data/phrasings/kept is never written into a dialogue: it measures whether an instruction
is followed that was never read (quiz.py). No taught text holds a kept one's words in their order.

Used by: template.py, instruct.py, quiz.py.
"""

import random
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "data" / "phrasings"
KINDS = (
    "exist", "color", "kind", "size", "count", "position", "relation", "compare_number",
    "compare_size", "same", "negation", "unusual", "next_to", "without", "one_more", "detail",
    "list", "sentence", "unknowable", "unsafe",
)
STYLES = {"word": "word", "sentence": "one_sentence"}                # style -> its file
OPENERS = 0.2  # share of a dialogue's questions that a greeting or the like stands before

Ask = Callable[..., str]  # (kind, words, style) -> a phrasing with its words put in
GROUP = re.compile(r"\(([^()]*)\)")


@lru_cache(maxsize=None)
def patterns(name: str, held_out: bool = False) -> tuple[str, ...]:
    """The patterns of a file, or those kept for measuring.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    path = (FOLDER / "kept" if held_out else FOLDER) / f"{name}.txt"
    if not path.is_file():
        raise FileNotFoundError(f"no phrasings at {path}")
    return tuple(filter(None, map(str.strip, path.read_text("utf-8").splitlines())))


def drawn(pattern: str, rng: random.Random) -> str:
    """A pattern with one alternative drawn of each group, inner groups first.

    >>> {drawn("Is (it|there) {a}?", random.Random(i)) for i in range(9)} == {
    ...     "Is it {a}?", "Is there {a}?"}
    True
    """
    while "(" in pattern:
        pattern = GROUP.sub(lambda m: rng.choice(m[1].split("|")), pattern)
    return pattern


def spelled(pattern: str) -> list[str]:
    """Every text that a pattern can give.

    >>> spelled("(Use|Give) (|only )one word.")
    ['Use one word.', 'Use only one word.', 'Give one word.', 'Give only one word.']
    """
    found = GROUP.search(pattern)
    if not found:
        return [pattern]
    head, tail = pattern[:found.start()], pattern[found.end():]
    return [text for part in found[1].split("|") for text in spelled(head + part + tail)]


def asker(rng: random.Random, held_out: bool = False, openers: float = OPENERS) -> Ask:
    """A function that puts words into a phrasing.

    Args:
        held_out: take one of those that are kept for measuring.
        openers: share of the questions with a sentence before that asks nothing.
    """
    def ask(kind: str, words: dict[str, str], style: str = "") -> str:
        names = [kind, STYLES[style]] if style else [kind]
        said = [drawn(rng.choice(patterns(name, held_out)), rng) for name in names]
        if rng.random() < openers:
            said.insert(0, drawn(rng.choice(patterns("openers")), rng))
        return " ".join(said).format(**words)
    return ask


def harmless(rng: random.Random, held_out: bool = False) -> tuple[str, str]:
    """A request that sounds like an unsafe one and must not be refused, and its answer."""
    asked, answer = rng.choice(patterns("harmless", held_out)).split(" => ")
    return drawn(asked, rng), answer
