"""From a ranking of K answers to up to K (K - 1) / 2 pairs; data/preferences.py writes them."""

from itertools import permutations

from minivlm.conversation import IMAGE_MARK
from minivlm.evaluation.raters import rating_of


def pairs_of(r: dict) -> list[dict]:
    """Make a pair of any two answers that have different ranks; "chosen" is the better one.

    "gap" is the difference of their ratings in points, or of their ranks if the ranking has
    no ratings. It is below 0 if the chosen answer has the worse rating.

    Args:
        r: a ranking, with its "rater".
    """
    turns = [{"from": "human", "value": f"{IMAGE_MARK}\n{r['question']}"}]
    ranks = r["ranking"]
    ratings = r.get("ratings")
    pairs = []
    for i, j in permutations(range(len(ranks)), 2):
        if ranks[i] >= ranks[j]:  # a tie, or i is the worse answer
            continue
        gap = ranks[j] - ranks[i]
        if ratings:
            gap = rating_of(ratings[i]) - rating_of(ratings[j])
        pairs.append({
            "id": f"{r['id']}-{i}{j}", "image": r["image"], "conversations": turns,
            "chosen": r["responses"][i], "rejected": r["responses"][j], "gap": gap,
            "rater": r["rater"],
        })
    return pairs
