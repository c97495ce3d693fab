"""Measures how well a reward model's scores agree with rankings and with ratings."""

from itertools import combinations

import torch
from torch import Tensor

from minivlm.evaluation.raters import rating_of
from minivlm.metrics import calibration_error

# ranges of the difference between two ratings: name, and upper end in points
GAPS = (("0-0.5", 0.5), ("0.5-1", 1.0), ("1-", float("inf")))

Pairs = list[tuple[int, int]]  # each pair: the places of two answers in a list


def win_share(scores: list[float], better: Pairs) -> float:
    """Share of the pairs (i, j) with scores[i] > scores[j]; equal scores count half.

    >>> win_share([2.0, 1.0, 1.0], [(0, 1), (1, 2)])
    0.75
    """
    won = 0.0
    for i, j in better:
        if scores[i] > scores[j]:
            won += 1
        elif scores[i] == scores[j]:
            won += 0.5
    return won / len(better)


def larger_first(values: list[float], pairs: Pairs) -> Pairs:
    """Keep the pairs whose values differ, and put the larger value first in each.

    >>> larger_first([1, 3, 3], [(0, 1), (1, 2)])
    [(1, 0)]
    """
    ordered = []
    for i, j in pairs:
        if values[i] > values[j]:
            ordered.append((i, j))
        elif values[i] < values[j]:
            ordered.append((j, i))
    return ordered


def agreement(rankings: list[dict], scores: list[list[float]]) -> dict[str, float]:
    """Measure how well a reward model's scores agree with rankings and with ratings.

    A pair means two answers to one question. Shares are shares of pairs.

        accuracy/all        of two answers with different ranks, the better ranked one
                            scores higher
        accuracy/gap_1-     the same, for pairs whose ratings differ by 1 point or more
        pairs/gap_1-        the number of these pairs, no share
        accuracy/ceiling    of two answers with different ranks, the better ranked one is
                            rated higher; errors in the ranks limit every reward model to
                            about this share
        truth/all           of two answers with different ratings, the better rated one
                            scores higher
        calibration/error   the `calibration_error` of the predictions
                            P(i is ranked before j) = sigmoid(score_i - score_j), no share
        length/model        the longer answer, in characters, scores higher
        length/people       the longer answer is ranked higher
        length/truth        the longer answer is rated higher

    The other ranges of a gap are 0-0.5 and 0.5-1. Where length/model is larger than
    length/people and length/truth, the reward model itself prefers longer answers.

    Args:
        rankings: as `load_rankings` reads them, so each has different ranks.
        scores: for each ranking the raw scores of its answers; their differences are
            log-odds.

    Returns:
        the figures; those that need ratings are missing if any ranking has no ratings.
    """
    is_rated = all(r.get("ratings") for r in rankings)
    # one entry for each answer of all rankings
    score, rating, length, preference = [], [], [], []
    pairs: Pairs = []  # answers to the same question
    for r, answer_scores in zip(rankings, scores):
        first = len(score)
        pairs += combinations(range(first, first + len(answer_scores)), 2)
        score += answer_scores
        length += [len(answer) for answer in r["responses"]]
        preference += [-rank for rank in r["ranking"]]  # larger is better, as in scores
        if is_rated:
            rating += [rating_of(x) for x in r["ratings"]]

    ranked = larger_first(preference, pairs)
    figures = {"accuracy/all": win_share(score, ranked)}
    if is_rated:
        by_gap: dict[str, Pairs] = {}
        for i, j in ranked:
            # a gap of exactly 0.5 or 1 belongs to the upper range; a rating is a mean over
            # three axes, and thirds are not exact as floats
            gap = abs(rating[i] - rating[j]) + 1e-9
            name = next(name for name, end in GAPS if gap < end)
            by_gap.setdefault(name, []).append((i, j))
        for name, group in sorted(by_gap.items()):
            figures[f"accuracy/gap_{name}"] = win_share(score, group)
            figures[f"pairs/gap_{name}"] = len(group)
        figures["accuracy/ceiling"] = win_share(rating, ranked)
        differently_rated = larger_first(rating, pairs)
        if differently_rated:
            figures["truth/all"] = win_share(score, differently_rated)

    # a prediction must not know which answer is ranked better, so the answers of a pair
    # stand in the order of their places
    by_place = [sorted(pair) for pair in ranked]
    p = torch.tensor([score[i] - score[j] for i, j in by_place]).sigmoid()       # (n,)
    came_true = torch.tensor([preference[i] > preference[j] for i, j in by_place])
    figures["calibration/error"] = calibration_error(p, came_true)

    longer = larger_first(length, pairs)
    if longer:
        figures["length/model"] = win_share(score, longer)
        figures["length/people"] = win_share(preference, longer)
        if is_rated:
            figures["length/truth"] = win_share(rating, longer)
    return figures
