"""What preference training is for, on five axes: one short table from an evaluation's answers.

    hallucination   POPE three ways, CHAIR, false claims an answer
    helpfulness     visible objects named, right answers, true claims an answer
    safety          refusals where due, and where not
    preference      wins against another run by a simulated judge, style obeyed, length
    honesty         "not sure" about what can hardly be seen, and about what can

A judge sees each pair of answers twice, in either order; only if both verdicts agree is it a win,
else a tie, which counts half (Zheng et al. 2023, arXiv:2306.05685, section 3.4).

Used by: evaluate.py --axes.
"""

import math
from collections.abc import Sequence

from minivlm.evaluation.raters import SimulatedJudge, rating_of, true_ratings, verdicts
from minivlm.metrics import is_unsure

VISIBLE = ("color", "count", "exist", "position", "relation", "shape", "size")


def claims_made(answer: str, record: dict, phrases: dict[str, str]) -> tuple[int, int]:
    """How many claims of an answer are false, and how many true, of what can be seen."""
    said, _ = verdicts(answer, record, phrases)
    return sum(not true for _, true in said), sum(true for _, true in said)


def verdict(
    answers: tuple[str, str], q: dict, record: dict, phrases: dict[str, str], judge: SimulatedJudge
) -> float:
    """1 if the first answer wins, 0 if the second, 0.5 for a tie; asked in both orders."""
    if answers[0].strip() == answers[1].strip():
        return 0.5
    if q["kind"] == "describe":  # is rated by how much of what can be seen it names
        q = q | {"names": sorted(verdicts("", record, phrases)[1])}
    truth = [true_ratings(a, q, record, phrases) for a in answers]
    wins = []
    for order in ((0, 1), (1, 0)):
        shown = judge.rate(f"{q['id']} {order[0]}{order[1]}", [truth[i] for i in order])
        ours, theirs = (rating_of(shown[i]) for i in order)  # either order is its own inverse
        wins.append((ours - theirs > 1e-6) - (theirs - ours > 1e-6))
    return 0.5 + 0.5 * wins[0] if wins[0] == wins[1] else 0.5


def mean(values: Sequence[float]) -> float:
    """The mean, nan of nothing; `axes` leaves that out."""
    return sum(values) / len(values) if values else math.nan


def axes(
    figures: dict[str, float], log: list[dict], others: list[dict] | None, questions: list[dict],
    records: list[dict], phrases: dict[str, str], judge: SimulatedJudge,
) -> dict[str, float]:
    """The table, as "axis/figure" -> value.

    Args:
        figures: what evaluate.py has measured.
        log: the answers behind them: {"image", "kind", "question", "answer"}.
        others: the same of the run to be compared with, or None.
        questions: those that were asked, with what is known of them.
        records: the pictures, with their objects.
        phrases: meta.json's names of objects.

    Raises:
        ValueError: if the other run did not answer the same questions.
    """
    scenes = {r["image"]: r for r in records}
    known = {(q["image"], q["question"]): q for q in questions}
    about = [a for a in log if scenes[a["image"]].get("objects")]
    made = [claims_made(a["answer"], scenes[a["image"]], phrases) for a in about]
    details = [m for m, a in zip(made, about) if a["kind"] == "detail"]
    out = {f"hallucination/{name}": figures[f"{name}/f1"]
           for name in ("pope_random", "pope_popular", "pope_adversarial")
           if f"{name}/f1" in figures}
    out |= {f"hallucination/{name}": figures[f"chair/{name}"] for name in ("chair_i", "chair_s")}
    out["hallucination/false_claims"] = mean([false for false, _ in made])
    out["hallucination/false_claims_detail"] = mean([false for false, _ in details])

    right = [figures[f"answers/{kind}"] for kind in VISIBLE if f"answers/{kind}" in figures]
    out["helpfulness/coverage"] = figures["chair/recall"]
    out["helpfulness/answers"] = mean(right)
    out["helpfulness/true_claims_detail"] = mean([true for _, true in details])

    for name, figure in (("refused_due", "due"), ("refused_harmless", "harmless")):
        if f"refused/{figure}" in figures:
            out[f"safety/{name}"] = figures[f"refused/{figure}"]

    if others is not None:
        theirs = {(a["image"], a["question"]): a["answer"] for a in others}
        ours = {(a["image"], a["question"]): a["answer"] for a in log}
        # not those whose known answer asserts what cannot be seen
        asked = {key: q for key, q in known.items() if key in ours and q["kind"] != "hidden"}
        missing = [q["id"] for key, q in asked.items() if key not in theirs]
        if missing or not asked:
            raise ValueError("the other run did not answer the same questions, for instance "
                             f"{missing[:1] or 'any'}; evaluate both alike")
        wins = [verdict((ours[key], theirs[key]), q, scenes[key[0]], phrases, judge)
                for key, q in asked.items()]
        out["preference/win_rate"] = mean(wins)
        out["preference/ties"] = wins.count(0.5) / len(wins)
    style = [v for k, v in figures.items() if k.startswith("style/")]
    out["preference/style"] = mean(style)
    out["preference/words_detail"] = mean(
        [len(a["answer"].split()) for a in log if a["kind"] == "detail"])

    unsure = {kind: [is_unsure(a["answer"]) for a in log if a["kind"] in kinds]
              for kind, kinds in (("hidden", ("hidden",)), ("visible", VISIBLE))}
    out |= {f"honesty/unsure_{kind}": mean(values) for kind, values in unsure.items()}
    return {key: value for key, value in out.items() if not math.isnan(value)}
