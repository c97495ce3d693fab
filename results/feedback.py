"""Draw the pictures of results/dpo/, with seed 0.

    python results/feedback.py

feedback.png shows what DPO learns from a judge that guesses a share of its ratings.
answers.png shows six pictures, a question about each, and every method's answer.
"""

import json
from pathlib import Path

from charts import COLORS, row_of_panels
from report import ROOT, answers

HERE = Path(__file__).parent / "dpo"
METHODS = {"sft": "SFT", "ppo": "PPO", "dpo": "DPO", "ppo_facts": "PPO, facts",
           "silkie": "Silkie"}
RATES = (0, 2, 4, 8)  # tenths
PANELS = (
    ("axes/hallucination/chair_i", "named things that are not visible (CHAIR_i)"),
    ("axes/helpfulness/answers", "right answers about visible things"),
)


def figures(name: str) -> dict[str, float]:
    """The figures of a result of seed 0.

    Raises:
        SystemExit: if there is none.
    """
    path = HERE / f"{name}-seed0.json"
    if not path.is_file():
        raise SystemExit(f"feedback.py: error: {path} is missing; results/dpo.sh writes it")
    return json.loads(path.read_text())["figures"]


def main() -> None:
    """Draw both pictures."""
    sft = figures("sft")
    judged = {rate / 10: figures(f"judge{rate}") for rate in RATES}
    panels = []
    for key, title in PANELS:
        dpo_line = [(rate, by_key[key]) for rate, by_key in judged.items()]
        sft_line = [(0, sft[key]), (0.8, sft[key])]  # SFT saw no judge: a level line
        panels.append((title, [dpo_line, sft_line]))
    labels = dict(zip(("DPO on the judge's pairs", "SFT"), COLORS))
    sheet = row_of_panels(panels, labels, "share of the judge's ratings that are guesses")
    sheet.save(HERE / "feedback.png")

    runs = ROOT / "runs" / "seed0"
    logs = {label: runs / name / "eval.answers.jsonl" for name, label in METHODS.items()}
    answers(logs, ROOT / "data/book/prepared").save(HERE / "answers.png")


if __name__ == "__main__":
    main()
