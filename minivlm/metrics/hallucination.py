"""Measure invented objects: POPE asks about objects, CHAIR reads descriptions."""

import random
import re
from collections import Counter, defaultdict
from functools import lru_cache

from minivlm.metrics.answers import tokens_of

# phrase, spelled as `words_of` does it -> name of the object that it stands for, or ""
Phrases = dict[str, str]
# signs that separate phrases; not the point in 2.5
PAUSE = re.compile(r"[.,:;!?](?!\d)|[\n\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f]")


def says_yes(answer: str) -> bool:
    """Whether POPE reads an answer as yes: its first sentence has no "No", "no" or "not".

    Source: RUCAIBox/POPE, evaluate.py (case-sensitive; the first sentence ends at the first
    full stop; commas are removed; words are split at spaces).
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not any(w in words for w in ("No", "not", "no"))


def pope_questions(
    truth: list[list[str]], strategy: str, seed: int = 0, per_image: int = 3,
    annotated: list[list[str]] | None = None,
) -> list[tuple[int, str, bool]]:
    """Choose the objects that POPE asks about: as many absent objects as present ones.

    The strategy chooses the absent objects:

        random         at random
        popular        the objects that are most frequent in the data set
        adversarial    the objects that most often occur together with the present ones

    Args:
        truth: for each picture, the names of the present objects that can be asked about.
        strategy: random, popular or adversarial.
        seed: for all draws.
        per_image: most present objects to ask about in a picture, and most absent ones.
        annotated: for each picture, the names of all its objects, the barely visible ones
            too; by default `truth`. An annotated object is never asked about as absent.
            Frequencies are counted on annotated objects.

    Returns:
        (index of the picture, name of the object, whether it is present), in the order of
        the pictures.

    Raises:
        ValueError: for another strategy.

    Source: Li et al. 2023, arXiv:2305.10355, section 4.
    """
    if strategy not in ("random", "popular", "adversarial"):
        raise ValueError(
            f"strategy {strategy!r} is not one of random, popular, adversarial"
        )
    rng = random.Random(seed)
    annotated = annotated or truth
    frequency = Counter()                # name -> pictures that have such an object
    together = defaultdict(Counter)      # name -> other name -> pictures that have both
    for names in annotated:
        frequency.update(set(names))
        for name in set(names):
            together[name].update(set(names) - {name})
    by_frequency = sorted(frequency, key=lambda name: (-frequency[name], name))
    questions = []
    for i, (names, known) in enumerate(zip(truth, annotated)):
        present = sorted(set(names))
        absent = [name for name in by_frequency if name not in known]
        if strategy == "random":
            rng.shuffle(absent)
        elif strategy == "adversarial":
            score = Counter()
            for name in present:
                score.update(together[name])
            # sorting is stable: of equally high scores, the more frequent name comes first
            absent.sort(key=lambda name: -score[name])
        n = min(per_image, len(present), len(absent))
        questions += [(i, name, True) for name in rng.sample(present, n)]
        questions += [(i, name, False) for name in absent[:n]]
    return questions


def pope(says: list[bool], truth: list[bool]) -> dict[str, float]:
    """Return accuracy; precision, recall and F1 of "yes"; and the share of yes.

    A share of nothing is left out: precision, if the model never says yes; recall, if no
    object is present; every figure, if there is no question.

    Args:
        says: for each question, whether the model says yes.
        truth: for each question, whether the object is present.

    >>> pope([True, True, False, False], [True, False, True, False])
    {'accuracy': 0.5, 'precision': 0.5, 'recall': 0.5, 'f1': 0.5, 'yes': 0.5}
    """
    n_right = sum(s == t for s, t in zip(says, truth))
    hits = sum(s and t for s, t in zip(says, truth))     # right answers "yes"
    return shares(
        accuracy=(n_right, len(truth)),
        precision=(hits, sum(says)),
        recall=(hits, sum(truth)),
        f1=(2 * hits, sum(says) + sum(truth)),
        yes=(sum(says), len(says)),
    )


def shares(**counts: tuple[int, int]) -> dict[str, float]:
    """Return each part of a whole as a share; a part of nothing is no figure.

    >>> shares(found=(1, 2), lost=(0, 0))
    {'found': 0.5}
    """
    return {name: part / whole for name, (part, whole) in counts.items() if whole}


def mentions(text: str, phrases: Phrases) -> list[str]:
    """Return the names of the objects that a text mentions, in order, with repeats.

    If several phrases begin at the same word, only the longest counts: "red car" is not
    also "car". A phrase may stand for "": its words mention nothing. As in the published
    CHAIR, a phrase does not go on behind a comma or full stop, and it does not begin or end
    within a word with hyphens: "man-made" mentions no man. But "teddy-bear", all of it, is
    a teddy bear.

    If "toilet seat" stands for the toilet, then a seat in a text that speaks of a toilet is
    a part of it and is not counted: "a toilet with its seat up".

    >>> phrases = {"red cars": "red car", "gray cat": "gray cat"}
    >>> mentions("Two red cars and a gray cat.", phrases)
    ['red car', 'gray cat']
    """
    longest = _most_words(tuple(phrases))
    words = []
    for part in PAUSE.split(text):
        words += [token.replace("-", " ") for token in tokens_of(part)]
        words.append(".")                # a word that is in no phrase
    names = []
    i = 0                                # the word where the next phrase may begin
    while i < len(words):
        for n in range(longest, 0, -1):
            phrase = " ".join(words[i:i + n])
            if phrase in phrases:
                if phrases[phrase] and not _is_part(phrase, words, phrases):
                    names.append(phrases[phrase])
                i += n
                break
        else:
            i += 1
    return names


@lru_cache(maxsize=8)  # all texts of a data set are searched for the same phrases
def _most_words(phrases: tuple[str, ...]) -> int:
    """How many words the longest of the phrases has."""
    return 1 + max((p.count(" ") for p in phrases), default=0)


def _is_part(phrase: str, words: list[str], phrases: Phrases) -> bool:
    """Whether one of these words names a whole of which the phrase names a part."""
    for word in words:
        whole = phrases.get(word)
        if whole and whole != phrases[phrase] and phrases.get(f"{word} {phrase}") == whole:
            return True
    return False


def chair(named: list[list[str]], there: list[list[str]]) -> dict[str, float]:
    """Measure how many invented objects texts name, and how many of the shown objects.

        chair_i = mentions of invented objects / all mentions
        chair_s = texts that mention an invented object / all texts
        recall  = kinds of object that are shown and named / kinds of object that are shown

    A kind is counted in each picture anew. In chair_i, repeated mentions count again. A
    mention is right if the picture shows an object of that kind, however many it shows.

    Args:
        named: for each picture, the names of objects that its text mentions, with repeats.
        there: for each picture, the names of the objects that it shows.

    Returns:
        {"chair_i", "chair_s", "recall"}, each 0 .. 1. A share of nothing is left out.

    Source: Rohrbach et al. 2018, arXiv:1809.02156, section 3.1 (LisaAnne/Hallucination,
    utils/chair.py).

    >>> chair([["red car", "gray cat"]], [["red car"]])
    {'chair_i': 0.5, 'chair_s': 1.0, 'recall': 1.0}
    """
    n_mentions = n_invented = n_texts = n_found = n_kinds = 0
    for names, shown in zip(named, there):
        # repeats count: a text that names an invented object twice is worse
        invented = [name for name in names if name not in shown]
        n_mentions += len(names)
        n_invented += len(invented)
        n_texts += bool(invented)
        n_found += len(set(names) & set(shown))
        n_kinds += len(set(shown))
    return shares(
        chair_i=(n_invented, n_mentions),
        chair_s=(n_texts, len(named)),
        recall=(n_found, n_kinds),
    )
