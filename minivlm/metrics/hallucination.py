"""Does a model name objects that the picture does not show? POPE asks, CHAIR reads descriptions."""

import random
from collections import Counter

from minivlm.metrics.answers import words_of


def says_yes(answer: str) -> bool:
    """POPE's reading of an answer: the first sentence means no if it holds No, no or not, else yes.

    Source: RUCAIBox/POPE, evaluate.py (case-sensitive, commas removed, split at spaces).
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not any(w in words for w in ("No", "not", "no"))


def pope_questions(
    truth: list[list[str]], strategy: str, seed: int = 0, per_image: int = 3,
    annotated: list[list[str]] | None = None,
) -> list[tuple[int, str, bool]]:
    """Choose the objects that POPE asks about: as many absent ones as present ones.

    Absent objects are drawn at "random", taken from the most frequent of the data set ("popular"),
    or from those that most often occur together with what is there ("adversarial").

    Args:
        truth: for each picture, the names of its objects that can be asked about.
        annotated: for each picture, all its objects, those that hardly show too: none of them
            counts as absent, and they too occur together; by default equal to `truth`.
        strategy: random, popular or adversarial.
        per_image: at most so many present and so many absent objects a picture.

    Returns:
        (picture, object name, is it there) in order of the pictures.

    Raises:
        ValueError: for another strategy.

    Source: Li et al. 2023, arXiv:2305.10355, section 4.
    """
    if strategy not in ("random", "popular", "adversarial"):
        raise ValueError(f"strategy {strategy!r} is not one of random, popular, adversarial")
    rng, annotated = random.Random(seed), annotated or truth
    frequency = Counter(name for names in annotated for name in set(names))
    everything = sorted(frequency, key=lambda name: (-frequency[name], name))
    together: dict[str, Counter] = {name: Counter() for name in everything}
    for names in annotated:
        for a in set(names):
            together[a].update(set(names) - {a})
    out = []
    for i, (names, known) in enumerate(zip(truth, annotated)):
        present = sorted(set(names))
        absent = [name for name in everything if name not in known]
        if strategy == "random":
            rng.shuffle(absent)
        elif strategy == "adversarial":
            score = sum((together[name] for name in present), Counter())
            absent.sort(key=lambda name: -score[name])
        n = min(per_image, len(present), len(absent))
        out += [(i, name, True) for name in rng.sample(present, n)]
        out += [(i, name, False) for name in absent[:n]]
    return out


def pope(says: list[bool], truth: list[bool]) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of "yes", and the share of yes answers.

    >>> pope([True, True, False, False], [True, False, True, False])
    {'accuracy': 0.5, 'precision': 0.5, 'recall': 0.5, 'f1': 0.5, 'yes': 0.5}
    """
    hit = sum(s and t for s, t in zip(says, truth))
    precision, recall = hit / max(1, sum(says)), hit / max(1, sum(truth))
    return {
        "accuracy": sum(s == t for s, t in zip(says, truth)) / len(truth),
        "precision": precision, "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if hit else 0.0,
        "yes": sum(says) / len(says),
    }


def mentions(text: str, phrases: dict[str, str]) -> list[str]:
    """Canonical names of the objects a text mentions, with repeats, longest phrase first.

    >>> phrases = {"red circles": "red circle", "red ring": "red ring"}
    >>> mentions("Two red circles and a red ring.", phrases)
    ['red circle', 'red ring']
    """
    longest = max((len(p.split()) for p in phrases), default=0)
    said, out, i = words_of(text).split(), [], 0
    while i < len(said):
        for n in range(longest, 0, -1):
            found = phrases.get(" ".join(said[i:i + n]))
            if found:
                out.append(found)
                i += n - 1
                break
        i += 1
    return out


def chair(named: list[list[str]], there: list[list[str]]) -> dict[str, float]:
    """How much of what texts name is not in the pictures, and how much of what is there they name.

        chair_i = mentions of absent objects / all mentions
        chair_s = texts that mention an absent object / all texts
        recall  = kinds of object there and named / kinds of object there

    Mentions count with repeats; whether one is right depends on the kinds of object there only.

    Args:
        named: for each picture, the objects its text names, with repeats.
        there: for each picture, the objects it shows.

    Source: Rohrbach et al. 2018, arXiv:1809.02156, section 3.1 (LisaAnne/Hallucination,
    utils/chair.py).

    >>> chair([["red circle", "blue ring"]], [["red circle"]])
    {'chair_i': 0.5, 'chair_s': 1.0, 'recall': 1.0}
    """
    wrong = [sum(name not in t for name in n) for n, t in zip(named, there)]
    found = [len(set(n) & set(t)) for n, t in zip(named, there)]
    return {
        "chair_i": sum(wrong) / max(1, sum(map(len, named))),
        "chair_s": sum(w > 0 for w in wrong) / max(1, len(named)),
        "recall": sum(found) / max(1, sum(len(set(t)) for t in there)),
    }
