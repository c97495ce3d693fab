"""Draw the pictures of results/dpo/: what DPO learns from a judge that guesses a share of its
ratings (feedback.png), and six pictures with each method's answers (answers.png).

    python results/feedback.py
"""

import json
from pathlib import Path

from charts import COLORS, row_of_panels
from report import ROOT, answers

HERE = Path(__file__).parent / "dpo"
METHODS = {"sft": "SFT", "ppo": "PPO", "dpo": "DPO", "ppo_facts": "PPO, facts", "silkie": "Silkie"}
RATES = (0, 2, 4, 8)  # tenths
PANELS = (
    ("axes/hallucination/chair_i", "named objects that cannot be seen (CHAIR_i)"),
    ("axes/helpfulness/answers", "right answers, mean over seven kinds"),
)


def figures(name: str) -> dict[str, float]:
    """The figures of a result of seed 0.

    Raises:
        SystemExit: if there is none.
    """
    path = HERE / f"{name}-seed0.json"
    if not path.is_file():
        raise SystemExit(f"feedback.py: error: no {path}; see dpo.sh")
    return json.loads(path.read_text())["figures"]


def main() -> None:
    """Draw both; in the panels SFT is a line from end to end."""
    sft, judged = figures("sft"), {rate / 10: figures(f"judge{rate}") for rate in RATES}
    panels = [(title, [[(rate, f[key]) for rate, f in judged.items()],
                       [(0, sft[key]), (0.8, sft[key])]]) for key, title in PANELS]
    labels = dict(zip(("DPO on the judge's pairs", "SFT"), COLORS))
    row_of_panels(panels, labels, "share of the judge's ratings that are guesses").save(
        HERE / "feedback.png")
    runs = ROOT / "runs" / "seed0"
    logs = {label: runs / name / "eval.answers.jsonl" for name, label in METHODS.items()}
    answers(logs, ROOT / "data/shapes/prepared").save(HERE / "answers.png")


if __name__ == "__main__":
    main()
