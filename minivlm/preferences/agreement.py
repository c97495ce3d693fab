"""How well a reward model's scores agree with rankings, and with the ratings behind them.
"""

from itertools import combinations

import torch
from torch import Tensor

from minivlm.evaluation.raters import rating_of

N_BINS = 10  # of [0, 1]; 600 held-out rankings give each bin a few hundred pairs
# differences of two ratings: the name of a range, and its upper end in points
GAPS = (("0-0.5", 0.5), ("0.5-1", 1.0), ("1-", float("inf")))

Pairs = list[tuple[int, int]]  # places of two answers in a list


def win_share(scores: list[float], better: Pairs) -> float:
    """Share of the pairs (i, j) whose i scores higher than j; equal scores count half.

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


def calibration_error(p: Tensor, came_true: Tensor) -> float:
    """The expected calibration error: predicted probabilities against observed shares.

        sum over bins of p: (predictions in the bin / n) |mean p - share that came true|

    Args:
        p: (n,) probabilities; came_true: (n,) bool.

    Source: Guo et al. 2017, arXiv:1706.04599, eq. 3.

    >>> round(calibration_error(torch.tensor([0.9, 0.9]), torch.tensor([True, False])), 4)
    0.4
    """
    bins = (p * N_BINS).long().clamp(max=N_BINS - 1)  # (n,), p = 1 belongs to the last bin
    error = 0.0
    for b in bins.unique():
        in_bin = bins == b
        gap = (p[in_bin].mean() - came_true[in_bin].float().mean()).abs()
        error += float(in_bin.sum() / len(p) * gap)
    return error


def larger_first(values: list[float], pairs: Pairs) -> Pairs:
    """The pairs of different value, each turned so that the larger value comes first.

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

        accuracy/all          ranked pairs whose better answer scores higher
        accuracy/gap_1-       the same for pairs whose ratings differ by 1 or more
        pairs/gap_1-          how many pairs that is
        accuracy/ceiling      ranked pairs whose better answer is rated higher: people's
                              errors limit every reward model to about this share
        truth/all             pairs of different rating whose better one scores higher
        calibration/error     of P(i before j) = sigmoid(score_i - score_j)
        length/model          pairs whose longer answer, in characters, scores higher
        length/people, truth  the same for ranks and for ratings; what length/model has
                              beyond these is the reward model's own bias

    Args:
        scores: for each ranking the raw scores of its answers; their differences are
            log-odds.

    Returns:
        the figures; without those that need ratings, if a ranking has none.
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
            # a third of a point has no exact float; a gap of exactly 0.5 or 1 opens the
            # next range
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

    # a prediction must not know who won, so a pair's order here is that of its places
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
