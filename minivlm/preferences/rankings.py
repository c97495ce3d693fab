"""Rankings read from a file, and checked.

A ranking is one JSON object: a question about a picture, K different answers, and a rank
for each (1 is best, equals alike). Where it has ratings too, their mean over the axes is an
answer's rating.
"""

from collections.abc import Callable
from pathlib import Path

from minivlm.loading.prepared import load_records
from minivlm.running.files import is_number


def check_ranking(r: dict) -> str:
    """Say why a ranking cannot be used, or ""."""
    answers = r["responses"]
    ranks = r["ranking"]
    is_listed = isinstance(answers, list) and isinstance(ranks, list)
    if not is_listed or len(answers) != len(ranks):
        return "as many ranks as answers are needed"
    if any(not isinstance(a, str) or not a.strip() for a in answers):
        return "empty answer"
    if len({a.strip() for a in answers}) < len(answers):
        return "answer equal to another"
    # type(), since True would pass for the int 1
    if any(type(rank) is not int or rank < 1 for rank in ranks):
        return "rank that is no number from 1"
    if len(set(ranks)) < 2:
        return "all ties"
    ratings = r.get("ratings") or []  # a ranking by people has none
    if ratings and (not isinstance(ratings, list) or len(ratings) != len(answers)):
        return "as many ratings as answers are needed"
    for rating in ratings:
        # axis -> points; which axes is up to the rater
        points = rating.values() if isinstance(rating, dict) else []
        if not points or not all(map(is_number, points)):
            return "rating that is no number"
    return ""


def load_checked(
    folder: str | Path, split: str, what: str, need: tuple[str, ...],
    check: Callable[[dict], str],
) -> list[dict]:
    """Read `<folder>/<split>.jsonl`, a file that data/preferences.py writes.

    Args:
        what: a name for the records, for messages.
        need: keys that every record must have.
        check: says why a record cannot be used, or "".

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a record cannot be used, with its id and the reason.
    """
    path = Path(folder) / f"{split}.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}; run data/preferences.py first")
    records = load_records(folder, split, need)
    for r in records:
        reason = check(r)
        if reason:
            raise ValueError(f"{path}, record {r['id']}: {reason}")
    return records


def load_rankings(folder: str | Path, split: str) -> list[dict]:
    """Read the rankings in `<folder>/<split>.jsonl`, each as `check_ranking` wants it.

    Raises:
        FileNotFoundError, ValueError: as `load_checked`.
    """
    need = ("image", "question", "responses", "ranking")
    return load_checked(folder, split, "rankings", need, check_ranking)
