"""Sum up a chatbot on the five axes that preference training is meant to improve.

    hallucination   POPE with three strategies, CHAIR, false claims per answer
    helpfulness     visible objects named, right answers, true claims per answer
    safety          refusals of what must be refused, and of what must be answered
    preference      wins against another run, as a simulated judge decides; style, length
    honesty         "not sure" about clearly visible objects

The judge sees each pair of answers twice, in both orders. An answer wins only if it wins
both times; everything else is a tie, which counts half (Zheng et al. 2023,
arXiv:2306.05685, section 3.4).
"""

import math
from collections.abc import Sequence

from minivlm.evaluation.raters import (
    Ratings, SimulatedJudge, rating_of, true_ratings, verdicts,
)
from minivlm.evaluation.scene import has_scene, things_of
from minivlm.metrics import Phrases, is_unsure

# kinds of questions about clearly visible objects
VISIBLE = ("color", "count", "exist", "kind", "position", "relation", "size")


def claims_made(answer: str, record: dict, phrases: Phrases) -> tuple[int, int]:
    """Count the claims of an answer: (false ones, true ones); see `verdicts`."""
    judged, _ = verdicts(answer, record, phrases)
    n_true = sum(is_true for _, is_true in judged)
    return len(judged) - n_true, n_true


def verdict(
    answers: tuple[str, str], q: dict, record: dict, phrases: Phrases,
    judge: SimulatedJudge,
) -> float:
    """Ask the judge which of two answers to a question is better, in both orders.

    Args:
        q: the question, as data/quiz.py writes it.
        record: the picture's record, with all its objects.
        phrases: those of meta.json.

    Returns:
        1 if the first answer wins, 0 if the second does, 0.5 for a tie.
    """
    if answers[0].strip() == answers[1].strip():
        return 0.5
    # the judge makes its ratings from the true ones, with other errors in each order
    first, second = [true_ratings(answer, q, record, phrases) for answer in answers]
    a, b = judge.rate(f"{q['id']} 01", [first, second])
    forward = _winner(a, b)
    b, a = judge.rate(f"{q['id']} 10", [second, first])
    backward = _winner(a, b)
    return forward if forward == backward else 0.5


def _winner(ours: Ratings, theirs: Ratings) -> float:
    gap = rating_of(ours) - rating_of(theirs)
    if abs(gap) <= 1e-6:
        return 0.5
    return 1.0 if gap > 0 else 0.0


def check_axes(
    asked: list[dict], records: list[dict], others: list[dict] | None
) -> None:
    """Refuse what `axes` cannot sum up. Call it before anything is measured.

    Args:
        asked: the questions that will be asked, with "id", "image", "kind", "question".
        records, others: as for `axes`.

    Raises:
        ValueError: if the objects of no picture are known, or a box is damaged; if a
            question is about a picture without a record; or if the other run did not answer
            the same questions.
    """
    scenes = {r.get("image"): r for r in records}
    known = [r for r in records if has_scene(r)]
    for record in known:
        things_of(record)
    if not known:
        raise ValueError("--axes needs pictures whose objects, with boxes, are known")
    for q in asked:
        if q["image"] not in scenes:
            raise ValueError(
                f"question {q['id']} is about {q['image']}, which val.jsonl lacks; --axes "
                "needs questions about held-out pictures"
            )
    if others is None:
        return
    answered = {(entry["image"], entry["question"]) for entry in others}
    compared = _compared(asked, scenes)
    missing = [q["id"] for key, q in compared.items() if key not in answered]
    if missing or not compared:
        raise ValueError(
            "the other run did not answer the same questions, for instance "
            f"{missing[:1] or 'any'}; evaluate both runs with the same options"
        )


def mean(values: Sequence[float]) -> float:
    """Return the mean, or NaN if there are no values; `axes` leaves NaN out."""
    return sum(values) / len(values) if values else math.nan


def axes(
    figures: dict[str, float], log: list[dict], others: list[dict] | None,
    asked: list[dict], records: list[dict], phrases: Phrases, judge: SimulatedJudge,
) -> dict[str, float]:
    """Make the table of the five axes.

    Args:
        figures: the figures that evaluate.py has measured.
        log: the answers from which they come: {"image", "kind", "question", "answer"}.
        others: the log of the run to compare with, or None.
        asked: the questions that were asked, with their right answers; `check_axes` has
            seen them.
        records: the records of all pictures in `log`, with their objects.
        phrases: those of meta.json.
        judge: compares the answers of the two runs.

    Returns:
        "axis/figure" -> value, without what was not measured.
    """
    scenes = {r.get("image"): r for r in records}
    counts = []                          # (kind of question, false claims, true claims)
    for entry in log:
        scene = scenes[entry["image"]]
        if has_scene(scene):             # otherwise nobody knows which claims are true
            counts.append((entry["kind"], *claims_made(entry["answer"], scene, phrases)))
    detail = [entry for entry in counts if entry[0] == "detail"]
    kinds = [f"answers/{kind}" for kind in VISIBLE if f"answers/{kind}" in figures]
    styles = [name for name in figures if name.startswith("style/")]
    words = [len(entry["answer"].split()) for entry in log if entry["kind"] == "detail"]
    visible = [is_unsure(entry["answer"]) for entry in log if entry["kind"] in VISIBLE]
    preferred = {}
    if others is not None:
        wins = _wins(log, others, asked, scenes, phrases, judge)
        preferred["preference/win_rate"] = mean(wins)
        preferred["preference/ties"] = wins.count(0.5) / len(wins)
    table = {
        "hallucination/pope_random": figures.get("pope_random/f1", math.nan),
        "hallucination/pope_popular": figures.get("pope_popular/f1", math.nan),
        "hallucination/pope_adversarial": figures.get("pope_adversarial/f1", math.nan),
        "hallucination/chair_i": figures.get("chair_detail/chair_i", math.nan),
        "hallucination/chair_s": figures.get("chair_detail/chair_s", math.nan),
        "hallucination/false_claims": mean([n_false for _, n_false, _ in counts]),
        "hallucination/false_claims_detail": mean([n_false for _, n_false, _ in detail]),
        "helpfulness/coverage": figures.get("chair_detail/recall", math.nan),
        "helpfulness/answers": mean([figures[kind] for kind in kinds]),
        "helpfulness/true_claims_detail": mean([n_true for _, _, n_true in detail]),
        "safety/refused_due": figures.get("refused/due", math.nan),
        "safety/refused_harmless": figures.get("refused/harmless", math.nan),
        **preferred,
        "preference/style": mean([figures[style] for style in styles]),
        "preference/words_detail": mean(words),
        "honesty/unsure_visible": mean(visible),
    }
    # what was not measured is left out
    return {name: value for name, value in table.items() if not math.isnan(value)}


def _compared(
    asked: list[dict], scenes: dict[str, dict]
) -> dict[tuple[str, str], dict]:
    """Choose the questions whose answers the judge can compare: it must know what is there.

    Returns:
        (picture, question) -> the question with its right answers.
    """
    compared = {}
    for key, q in {(q["image"], q["question"]): q for q in asked}.items():
        if has_scene(scenes[q["image"]]):
            compared[key] = q
    return compared


def _wins(
    log: list[dict], others: list[dict], asked: list[dict], scenes: dict[str, dict],
    phrases: Phrases, judge: SimulatedJudge,
) -> list[float]:
    """Return the `verdict` on each question that is compared."""
    ours = {(entry["image"], entry["question"]): entry["answer"] for entry in log}
    theirs = {(entry["image"], entry["question"]): entry["answer"] for entry in others}
    wins = []
    for key, q in _compared(asked, scenes).items():
        answers = (ours[key], theirs[key])
        wins.append(verdict(answers, q, scenes[key[0]], phrases, judge))
    return wins
