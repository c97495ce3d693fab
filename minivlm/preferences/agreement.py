"""How well a reward model's scores agree with rankings, and with the ratings behind them."""

from collections import defaultdict

import torch
from torch import Tensor

from minivlm.evaluation.raters import rating_of


def win_share(scores: list[float], better: list[tuple[int, int]]) -> float:
    """Share of the pairs (i, j) whose i scores higher than j; equal scores count half.

    >>> win_share([2.0, 1.0, 1.0], [(0, 1), (1, 2)])
    0.75
    """
    won = [(scores[i] > scores[j]) + (scores[i] == scores[j]) / 2 for i, j in better]
    return sum(won) / len(won)


def calibration_error(p: Tensor, came: Tensor, n_bins: int = 10) -> float:
    """How far shares of what came true lie from what was foretold: the expected calibration error.

        sum over bins of P's range: (pairs in it / pairs) |mean P - share that came true|

    Args:
        p: (n,) probabilities; came: (n,) bool.

    Source: Guo et al. 2017, arXiv:1706.04599, eq. 3.

    >>> round(calibration_error(torch.tensor([0.9, 0.9]), torch.tensor([True, False])), 4)
    0.4
    """
    place, out = (p * n_bins).long().clamp(max=n_bins - 1), 0.0
    for b in place.unique():
        here = place == b
        out += float(here.sum() / len(p) * (p[here].mean() - came[here].float().mean()).abs())
    return out

GAPS = ((0.0, 0.5, "0-0.5"), (0.5, 1.0, "0.5-1"), (1.0, float("inf"), "1-"))


def judge_scores(rankings: list[dict], scores: list[list[float]]) -> dict[str, float]:
    """How a reward model's scores agree with rankings, and with the ratings behind them.

        accuracy/all          pairs that people ranked whose better answer scores higher
        accuracy/gap_1-       of these, those whose ratings differ by 1 or more; other gaps likewise
        accuracy/ceiling      what the ratings themselves would reach: people's noise is the rest
        truth/all             pairs of different rating that are scored in their order
        calibration/error     of P(i before j) = sigmoid(score_i - score_j), see calibration_error
        length/model          pairs whose longer answer, in characters, scores higher
        length/people, truth  the same for people's ranks and for ratings: the bias is the rest

    Args:
        scores: for each ranking its answers' raw scores: their differences are log-odds.

    What the rankings hold no ratings for is left out.
    """
    rated = all(r.get("ratings") for r in rankings)
    flat = [s for row in scores for s in row]
    true = [rating_of(x) for r in rankings for x in r["ratings"]] if rated else [0.0] * len(flat)
    length = [len(a) for r in rankings for a in r["responses"]]
    rank = [-x for r in rankings for x in r["ranking"]]
    pairs, first = [], 0
    for r in rankings:
        K = len(r["responses"])
        pairs += [(first + i, first + j) for i in range(K) for j in range(i + 1, K)]
        first += K

    def ordered(values: list[float], among: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The pairs of different value, the larger first."""
        return [(i, j) if values[i] > values[j] else (j, i) for i, j in among
                if values[i] != values[j]]

    ranked, longer = ordered(rank, pairs), ordered(length, pairs)
    out = {"accuracy/all": win_share(flat, ranked)}
    if rated:
        groups = defaultdict(list)
        for i, j in ranked:
            gap = abs(true[i] - true[j]) + 1e-9  # a third of a point has no exact float
            groups[next(name for low, high, name in GAPS if low <= gap < high)].append((i, j))
        for name, among in sorted(groups.items()):
            out |= {f"accuracy/gap_{name}": win_share(flat, among), f"pairs/gap_{name}": len(among)}
        out["accuracy/ceiling"] = win_share(true, ranked)
        different = ordered(true, pairs)
        if different:
            out["truth/all"] = win_share(flat, different)
    # neither order may know who won: by place in the list, not by rank
    by_place = [(min(i, j), max(i, j)) for i, j in ranked]
    p = torch.tensor([flat[i] - flat[j] for i, j in by_place]).sigmoid()
    came = torch.tensor([rank[i] > rank[j] for i, j in by_place])
    out["calibration/error"] = calibration_error(p, came)
    if longer:
        out |= {"length/model": win_share(flat, longer), "length/people": win_share(rank, longer)}
        out |= {"length/truth": win_share(true, longer)} if rated else {}
    return out
