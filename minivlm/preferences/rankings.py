"""Ranked answers: read from a file and checked, shown to a reward model, and its scores judged.

A ranking is one JSON object: a question about a picture, K different answers, and a rank for each
(1 is best, equals alike). Where it has ratings too, their mean over the axes is an answer's rating.

Used by: train_reward.py, prompts.py, rollout.py, pairs.py, data/preferences.py.
"""

import math
from collections.abc import Callable
from pathlib import Path


from minivlm.loading.prepared import load_records

# --- reading ---


def check_ranking(r: dict) -> str:
    """Why a ranking cannot be used, or ""."""
    answers, ranks = r["responses"], r["ranking"]
    if not isinstance(answers, list) or not isinstance(ranks, list) or len(answers) != len(ranks):
        return "as many ranks as answers are needed"
    if any(not isinstance(a, str) or not a.strip() for a in answers):
        return "empty answer"
    if len({a.strip() for a in answers}) < len(answers):
        return "answer equal to another"
    if any(type(rank) is not int or rank < 1 for rank in ranks):
        return "rank that is no number from 1"
    if len(set(ranks)) < 2:
        return "all ties"
    rated = r.get("ratings") or []
    if rated and (not isinstance(rated, list) or len(rated) != len(answers)):
        return "as many ratings as answers are needed"
    values = [v for x in rated for v in (x.values() if isinstance(x, dict) and x else [None])]
    if not all(type(v) in (int, float) and math.isfinite(v) for v in values):
        return "rating that is no number"
    return ""


def load_checked(
    folder: str | Path, split: str, what: str, need: tuple[str, ...], check: Callable[[dict], str]
) -> list[dict]:
    """Read `<folder>/<split>.jsonl`, as data/preferences.py writes it.

    Args:
        what: the records' name, for messages.
        need: keys that every record must have.
        check: why a record cannot be used, or "".

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a record that nothing can be learned from, with its id.
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
    """Read `<folder>/<split>.jsonl`; the answers have one rank each, and not all the same.

    Raises as `load_checked`.
    """
    need = ("image", "question", "responses", "ranking")
    return load_checked(folder, split, "rankings", need, check_ranking)
