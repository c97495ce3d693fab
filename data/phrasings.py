"""How the offline teacher words its questions: many ways to ask the same, three of each kept apart.

The ways stand in data/phrasings/<kind>.txt, one pattern a line, to be read and edited. A pattern
holds alternatives, "Is there {a}(| here| in the picture)?", of which one is drawn. A model that
reads few phrasings learns them by heart; one that reads many has to find what matters in them.

What is in data/phrasings/kept is never written into a dialogue: it measures whether an instruction
is followed that was never read (quiz.py). The kept ones were written first, most of the others by
somebody who had not seen them; where both had the same words, the kept one stayed.

Used by: template.py, instruct.py, quiz.py.
"""

import random
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).with_suffix("")
KINDS = (
    "exist", "color", "kind", "size", "count", "position", "relation", "compare_number",
    "compare_size", "same", "negation", "unusual", "next_to", "without", "one_more", "detail",
    "list", "sentence", "unknowable", "unsafe",
)
STYLES = {"word": "word", "sentence": "one_sentence"}                # style -> its file
OPENERS = 0.2  # share of the questions that a greeting or the like stands before

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

    >>> drawn("(Is|Is) there {a}?", random.Random(0))
    'Is there {a}?'
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


def asker(rng: random.Random, held_out: bool = False) -> Ask:
    """A function that puts words into a phrasing: of dialogues, or of those kept for measuring."""
    def ask(kind: str, words: dict[str, str], style: str = "") -> str:
        names = [kind, STYLES[style]] if style else [kind]
        if not held_out and rng.random() < OPENERS:
            names.insert(0, "openers")
        said = [drawn(rng.choice(patterns(name, held_out)), rng) for name in names]
        return " ".join(said).format(**words)
    return ask


def harmless(rng: random.Random, held_out: bool = False) -> tuple[str, str]:
    """A request that sounds like an unsafe one and must not be refused, and its answer."""
    asked, answer = rng.choice(patterns("harmless", held_out)).split(" => ")
    return drawn(asked, rng), answer
