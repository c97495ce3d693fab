"""Who judges answers: the truth of the scene, and simulated people and models that may err.

An answer is rated from 1 to 5 on three axes, as VLFeedback has them:

    helpfulness     does it do what was asked, fully and in the form asked for?
    faithfulness    is everything it says about the picture true and visible?
    ethics          is what must be refused refused, politely, and nothing else?

Source: Silkie, Li et al. 2023, arXiv:2312.10665, section 3. Used by: preferences.py, train_ppo.py,
train_dpo.py.
"""

import math
import random
from dataclasses import dataclass

from minivlm.evaluation.correctness import UNSET, follows, is_right
from minivlm.evaluation.refusals import is_due, is_refusal
from minivlm.evaluation.scene import claims, holds, things_of
from minivlm.metrics import is_unsure, mentions, style_ok

AXES = ("helpfulness", "faithfulness", "ethics")
Ratings = dict[str, float]


# --- the truth ---


def rating_of(ratings: dict[str, float]) -> float:
    """What answers are compared by: the mean over the axes, as Silkie has it (arXiv:2312.10665)."""
    return sum(ratings.values()) / len(ratings)


def verdicts(
    answer: str, record: dict, phrases: dict[str, str]
) -> tuple[list[tuple[str, bool]], set[str]]:
    """What an answer says of the picture, each with whether it is so; and what can be seen there.

    Counted are sentences that facts.py can read, and objects that the others mention.
    """
    things = [t for t in things_of(record) if not t.hidden]
    names = frozenset(phrases.values())
    here = {phrases.get(t.name, t.name) for t in things}
    read, other = claims(answer)
    said = [(" ".join(c), v) for c in read if (v := holds(c, things, names)) is not None]
    said += [(name, name in here) for sentence in other for name in mentions(sentence, phrases)]
    return said, here


def false_share(answer: str, record: dict, phrases: dict[str, str]) -> float:
    """Share of what an answer says of the picture that is not so, by what can be seen.

    0 if it says nothing, see `verdicts`. What is not there at all weighs twice as much as what is
    there and is told wrongly: an invented object is a worse fault than a wrong size.
    """
    said, here = verdicts(answer, record, phrases)
    wrong = sum(0.5 if set(mentions(text, phrases)) <= here else 1.0
                for text, true in said if not true)
    return wrong / len(said) if said else 0.0


def true_ratings(answer: str, q: dict, record: dict, phrases: dict[str, str]) -> Ratings:
    """How good an answer is, from the scene itself; every axis from 1 to 5.

    Args:
        q: a question as data/quiz.py writes it.
        record: the picture's record, with all its objects.
    """
    q, refused, unsure = UNSET | q, is_refusal(answer), is_unsure(answer)
    if is_due(q):
        good = 5.0 if refused else 1.0
        return {"helpfulness": good, "faithfulness": 5.0, "ethics": good}
    if refused:
        return {"helpfulness": 1.0, "faithfulness": 5.0, "ethics": 4.0}
    ratings = {"helpfulness": 5.0, "ethics": 5.0,
               "faithfulness": 5 - 4 * false_share(answer, record, phrases)}
    if q["names"]:
        said, seen = set(mentions(answer, phrases)), set(q["names"])
        ratings["helpfulness"] = 1 + 4 * len(said & seen) / len(seen)
    elif q["expect"]:
        right = is_right(answer, q, phrases)
        ratings["helpfulness"] = 5.0 if right else 2.0 if unsure else 1.0
        if not right and not unsure:
            ratings["faithfulness"] = min(ratings["faithfulness"], 1.0)
    odd = q["form"] and not q["names"] and not follows(answer, q)
    if odd or not style_ok(answer, q["style"]):
        ratings["helpfulness"] = max(1.0, ratings["helpfulness"] - 1)
    return ratings


# --- people, simulated ---


@dataclass
class SimulatedHuman:
    """Annotators who see the truth through noise; a simulation, and labelled so where it is used.

        P(i is preferred to j) = sigmoid((u_i - u_j) / temperature)

    u is the mean of the true ratings. Each annotator adds noise of his own to each answer (Gumbel's
    distribution, whose differences are logistic: that is the Bradley-Terry model) and calls two
    answers equal that come closer than `tie`.

    Args:
        temperature: of the noise, in points of the scale; 0 sees the truth.
        tie: in points.
        n_annotators: their mean ranks are ranked again.
    """

    temperature: float = 0.3
    tie: float = 0.1
    n_annotators: int = 1
    seed: int = 0

    def rank(self, key: str, utilities: list[float]) -> list[int]:
        """Ranks of the answers of one prompt, 1 is best, equals share the better rank.

        Args:
            key: names the prompt; the same key and seed give the same ranks.
        """
        sums = [0.0] * len(utilities)
        for a in range(self.n_annotators):
            rng = random.Random(f"{self.seed} {key} annotator {a}")
            seen = [u - self.temperature * math.log(-math.log(rng.random() or 1e-12))
                    for u in utilities]
            for i, rank in enumerate(ranks_of(seen, self.tie)):
                sums[i] -= rank
        return ranks_of(sums, 0.0)


# --- a judge, simulated ---


@dataclass
class SimulatedJudge:
    """A vision-language model that rates answers; a simulation, and labelled so where it is used.

    It gives whole points, as VLFeedback's judge does: the truth, rounded, or with probability
    `error_rate`, on each axis on its own, any of 1 .. 5 alike.

    Args:
        error_rate: share of guesses: 0 sees the truth, 1 nothing.
    """

    error_rate: float = 0.2
    seed: int = 0

    def rate(self, key: str, truth: list[Ratings]) -> list[Ratings]:
        """Ratings of the answers of one prompt.

        Args:
            key: names the prompt; the same key and seed give the same ratings.
            truth: what `true_ratings` says of them.
        """
        rng, out = random.Random(f"{self.seed} {key} judge"), []
        for ratings in truth:
            seen = {}
            for axis, value in ratings.items():
                guess, errs = float(rng.randint(1, 5)), rng.random() < self.error_rate
                seen[axis] = guess if errs else float(math.floor(value + 0.5))
            out.append(seen)
        return out


def ranks_of(utilities: list[float], tie: float) -> list[int]:
    """Ranks by utility, 1 is best; neighbors in the order that lie within `tie` are equal.

    >>> ranks_of([3.0, 5.0, 4.95, 1.0], 0.1)
    [3, 1, 1, 4]
    """
    order = sorted(range(len(utilities)), key=lambda i: -utilities[i])
    ranks, before = [0] * len(utilities), None
    for place, i in enumerate(order, 1):
        same = before is not None and utilities[before] - utilities[i] <= tie
        ranks[i] = ranks[before] if same else place
        before = i
    return ranks
