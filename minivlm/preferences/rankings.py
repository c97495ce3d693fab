"""Reads rankings from a file and checks them.

A ranking is one JSON object: a question about a picture, K different answers, and a rank
for each answer; 1 is best, and answers may share a rank. A ranking may also have ratings:
for each answer, axis -> points. The mean over the axes is then the answer's rating.
"""

from collections.abc import Callable
from pathlib import Path

from minivlm.loading.prepared import load_records
from minivlm.running.files import is_number


def check_ranking(r: dict) -> str:
    """Say why a ranking cannot be used; "" if it can."""
    answers = r["responses"]
    ranks = r["ranking"]
    is_listed = isinstance(answers, list) and isinstance(ranks, list)
    if not is_listed or len(answers) != len(ranks):
        return "as many ranks as answers are needed"
    if any(not isinstance(a, str) or not a.strip() for a in answers):
        return "empty answer"
    if len({a.strip() for a in answers}) < len(answers):
        return "answer equal to another"
    # type(), because isinstance takes True for an int
    if any(type(rank) is not int or rank < 1 for rank in ranks):
        return "rank that is no number from 1"
    if len(set(ranks)) < 2:
        return "all ties"
    ratings = r.get("ratings") or []  # a ranking by people may have none
    if ratings and (not isinstance(ratings, list) or len(ratings) != len(answers)):
        return "as many ratings as answers are needed"
    for rating in ratings:
        # axis -> points; raters may use different axes
        points = rating.values() if isinstance(rating, dict) else []
        if not points or not all(map(is_number, points)):
            return "rating that is no number"
    return ""


def load_checked(
    folder: str | Path, split: str, what: str, need: tuple[str, ...],
    check: Callable[[dict], str],
) -> list[dict]:
    """Read and check `<folder>/<split>.jsonl`, a file that data/preferences.py writes.

    Args:
        what: what an error calls the records: "rankings" or "pairs".
        need: keys that every record must have.
        check: says why a record cannot be used; "" if it can.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as `load_records`.
    """
    path = Path(folder) / f"{split}.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}; run data/preferences.py first")
    return load_records(folder, split, need, check=check)


def load_rankings(folder: str | Path, split: str) -> list[dict]:
    """Read the rankings in `<folder>/<split>.jsonl`, and check them by `check_ranking`.

    Raises:
        FileNotFoundError, ValueError: as `load_checked`.
    """
    need = ("image", "question", "responses", "ranking")
    return load_checked(folder, split, "rankings", need, check_ranking)
