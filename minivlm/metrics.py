"""What is measured, as pure functions of predictions and truth.

    retrieval    recall_at_k, rank of the right one among all; recall_by_chance; clip_score
    answers      answer_ok, style_ok, is_refusal
    captions     bleu, rouge_l, cider, vqa_accuracy: likeness to what people wrote (metrics_text.py)
    POPE         yes/no questions about objects: accuracy, precision, recall, F1, share of yes
    CHAIR        which of the objects named in a text are not there

Used by: evaluate.py, train_clip.py.
"""

import random
import re
from collections import Counter

import torch
from torch import Tensor

from minivlm.metrics_text import bleu, cider, rouge_l, vqa_accuracy  # noqa: F401

# --- retrieval ---


def recall_at_k(similarity: Tensor, right: Tensor, k: int) -> float:
    """Share of queries with a right item among their k most similar ones.

    A query counts once, however many of its right items are found; ties count against the model,
    so that a constant similarity scores 0 rather than 1.

    Args:
        similarity: (Q, G) of Q queries to G gallery items.
        right: (Q, G) bool, True where the item answers the query.

    Source: the image-to-text protocol of Karpathy and Fei-Fei 2015, arXiv:1412.2306, section 4.1.

    >>> recall_at_k(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.eye(2, dtype=torch.bool), k=1)
    0.5
    """
    best_right = similarity.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)  # (Q, 1)
    above = (~(similarity < best_right) & ~right).sum(dim=1)  # (Q,), NaN counts as above
    return (above < k).float().mean().item()


def recall_by_chance(right: Tensor, k: int) -> float:
    """Recall@k of a random order: of G items m are right, and the k first miss all m of them with

        P(miss) = (G-m)/G * (G-m-1)/(G-1) * ... * (G-m-k+1)/(G-k+1)

    Args:
        right: (Q, G) bool, as for `recall_at_k`.

    >>> recall_by_chance(torch.eye(4, dtype=torch.bool), 2)
    0.5
    """
    wrong, G = (~right).sum(1).double(), right.shape[1]              # (Q,)
    miss = torch.ones_like(wrong)
    for i in range(min(k, G)):
        miss *= (wrong - i).clamp(min=0) / (G - i)
    return float(1 - miss.mean())


def clip_score(img_z: Tensor, txt_z: Tensor) -> float:
    """CLIPScore: how well texts fit their pictures in the eyes of a CLIP; no reference is needed.

        score = mean_i 2.5 * max(cos(img_z_i, txt_z_i), 0)

    Comparable between texts judged by the same CLIP only. The published one puts "A photo depicts"
    before every text; put there what the CLIP at hand has learned.

    Args:
        img_z, txt_z: (n, C) of unit length, row i of both belongs together.

    Source: Hessel et al. 2021, arXiv:2104.08718, section 3.

    >>> round(clip_score(torch.eye(2), torch.tensor([[0.6, 0.8], [0.0, -1.0]])), 6)  # (.6 + 0) / 2
    0.75
    """
    return 2.5 * (img_z * txt_z).sum(dim=1).clamp(min=0).mean().item()


# --- answers ---


def words_of(text: str) -> str:
    """Lower case, letters and digits of any script only, single spaces: " the top left "."""
    return " " + " ".join(re.findall(r"(?:[^\W_]|')+", text.lower())) + " "


def answer_ok(answer: str, expect: list[str], wrong: list[str]) -> bool:
    """True if the answer holds one of the expected phrases and none of the wrong ones.

    >>> answer_ok("The circle is red.", ["red"], ["blue"])
    True
    >>> answer_ok("red or blue", ["red"], ["blue"])
    False
    """
    said = words_of(answer)
    return any(words_of(e) in said for e in expect) and not any(words_of(w) in said for w in wrong)


def style_ok(answer: str, style: str) -> bool:
    """True if an answer has the asked form.

    "word": one word; "sentence": one sentence of at least three words; "list": every line starts
    with "- "; "detail": full sentences, at least one; "": anything.

    >>> style_ok("Red", "word"), style_ok("It is red.", "word")
    (True, False)
    >>> style_ok("- red circle\\n- blue ring", "list")
    True
    """
    text = answer.strip()
    n_words = len(words_of(text).split())
    if style == "word":
        return n_words == 1
    if style == "sentence":
        n_ends = len(re.findall(r"[.!?](?:\s|$)", text))
        return n_words >= 3 and n_ends == 1 and text[-1] in ".!?" and "\n" not in text
    if style == "list":
        return bool(text) and all(line.startswith("- ") for line in text.splitlines())
    if style == "detail":
        return n_words >= 3 and text[-1:] in (".", "!", "?") and "\n" not in text
    return True


def is_refusal(answer: str) -> bool:
    """True if the answer declines: "I'm sorry", "I can't", "I won't"."""
    said = words_of(answer.replace("\u2019", "'"))
    return any(f" {sign} " in said for sign in ("i'm sorry", "i can't", "i won't", "i cannot"))


def is_unsure(answer: str) -> bool:
    """True if the answer says that it does not know: "not sure"."""
    return "not sure" in answer.lower()


# --- POPE ---


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


# --- CHAIR ---


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
