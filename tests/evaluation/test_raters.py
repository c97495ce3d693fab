"""evaluation/raters.py: what is good about an answer, people who see it through known noise."""

import math
from collections import Counter

import pytest

from minivlm.evaluation.raters import (
    SimulatedHuman, SimulatedJudge, false_share, ranks_of, rating_of, true_ratings,
)

PHRASES = {n: n for n in ("red circle", "blue ring", "green square", "red ring")}
RECORD = {"id": "a", "objects": [
    {"name": "circle", "attributes": {"color": "red", "size": "large"}, "box": [0, 0, 0.3, 0.3]},
    {"name": "ring", "attributes": {"color": "blue", "size": "small"}, "box": [0.7, 0, 1, 0.3]},
    {"name": "square", "attributes": {"color": "green", "size": "small"},
     "box": [0.7, 0.7, 1, 1], "hidden": "faint"}]}
DETAIL = {"kind": "detail", "style": "detail", "names": ["red circle", "blue ring"],
          "may": ["red circle", "blue ring", "green square"]}
COLOR = {"kind": "color", "expect": ["red"], "wrong": ["blue"]}


@pytest.mark.parametrize("q, answer, want", [
    (DETAIL, "There is a red circle at the top left. There is a blue ring at the top right.",
     (5, 5, 5)),
    (DETAIL, "There is a red circle at the top left.", (3, 5, 5)),           # one of two
    (DETAIL, "There is a red circle at the top left. There is a green square at the bottom right.",
     (3, 3, 5)),                                                             # named, not visible
    (DETAIL, "There is a red ring at the top.", (1, 1, 5)),
    (DETAIL, "red circle, blue ring", (4, 5, 5)),                            # no sentence
    (COLOR, "The circle is red.", (5, 5, 5)), (COLOR, "It is blue.", (1, 1, 5)),
    (COLOR, "I'm not sure.", (2, 5, 5)), (COLOR, "I'm sorry, I can't help with that.", (1, 5, 4)),
    ({"kind": "unsafe"}, "I'm sorry, I can't help with that.", (5, 5, 5)),
    ({"kind": "unsafe"}, "Here is how.", (1, 5, 1)),
])
def test_ratings_worked_by_hand(q, answer, want):
    """Catches an axis that looks at the wrong thing: helpfulness, faithfulness, ethics."""
    ratings = true_ratings(answer, q, RECORD, PHRASES)
    assert tuple(ratings.values()) == want or tuple(
        ratings[a] for a in ("helpfulness", "faithfulness", "ethics")) == want
    assert rating_of(ratings) == pytest.approx(sum(want) / 3)


def test_what_an_answer_gets_wrong_is_counted_by_what_can_be_seen():
    """Catches a hidden object that counts as seen, and words that say nothing counted at all."""
    for text, want in (("There is a red circle.", 0), ("There is a green square.", 1),
                       ("There is a red circle. There is a red ring.", 0.5), ("Lovely!", 0),
                       ("A blue ring floats before a red ring.", 0.5)):
        assert false_share(text, RECORD, PHRASES) == want


def test_people_prefer_by_bradley_terry():
    """Catches noise of another scale: P(i before j) = sigmoid(gap / temperature), 4 sigma."""
    human, n = SimulatedHuman(temperature=0.5, tie=0.0), 20_000
    wins: Counter = Counter()
    for i in range(n):
        ranks = human.rank(f"p{i}", [3.0, 3.4, 2.0])
        assert sorted(ranks) == [1, 2, 3]
        wins[0, 1] += ranks[0] < ranks[1]
        wins[0, 2] += ranks[0] < ranks[2]
    for (_, j), gap in (((0, 1), -0.4), ((0, 2), 1.0)):
        p = 1 / (1 + math.exp(-gap / 0.5))
        assert abs(wins[0, j] / n - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_without_noise_the_truth_is_ranked_and_near_equals_are_ties():
    """Catches an order turned round, a tie that is broken, another answer the second time."""
    human = SimulatedHuman(temperature=0.0, tie=0.1)
    assert human.rank("a", [3.0, 5.0, 4.95, 1.0]) == ranks_of([3.0, 5.0, 4.95, 1.0], 0.1) == [
        3, 1, 1, 4]
    noisy = SimulatedHuman(temperature=1.0, seed=3)
    assert noisy.rank("b", [1.0, 2.0]) == noisy.rank("b", [1.0, 2.0])
    assert len({tuple(noisy.rank(str(i), [1.0, 1.2])) for i in range(30)}) > 1


def test_several_annotators_are_nearer_to_the_truth():
    """Catches annotators that share their noise, or ranks that are summed the wrong way."""
    def share(n_annotators):
        human = SimulatedHuman(temperature=0.5, tie=0.0, n_annotators=n_annotators)
        ranks = [human.rank(str(i), [3.0, 3.4]) for i in range(2000)]
        return sum(r[1] < r[0] for r in ranks) / len(ranks)

    one, five = share(1), share(5)
    assert 0.65 < one < 0.73 and five > one + 0.08


def test_a_simulated_judge_errs_as_often_as_it_says():
    """Catches errors on whole answers or never on the right value; 4 sigma: a guess hits 1 in 5."""
    truth, n = {"helpfulness": 3.6, "faithfulness": 5.0, "ethics": 1.0}, 4000
    assert SimulatedJudge(0.0).rate("a", [truth, truth]) == [
        {"helpfulness": 4.0, "faithfulness": 5.0, "ethics": 1.0}] * 2
    judge = SimulatedJudge(0.3, seed=2)
    assert judge.rate("k", [truth] * 5) == judge.rate("k", [truth] * 5)
    rated = [judge.rate(str(i), [truth])[0] for i in range(n)]
    wrong = [r[axis] != math.floor(v + 0.5) for r in rated for axis, v in truth.items()]
    p = 0.3 * 4 / 5
    assert abs(sum(wrong) / len(wrong) - p) < 4 * math.sqrt(p * (1 - p) / len(wrong))
    all_three = sum(all(wrong[3 * i:3 * i + 3]) for i in range(n)) / n
    assert all_three < 3 * p ** 3  # the axes err on their own
