"""Draw results/dpo/feedback.png: what DPO learns from a judge that guesses a share of its ratings.

    python results/feedback.py
"""

import json
from pathlib import Path

from charts import COLORS, row_of_panels

HERE = Path(__file__).parent / "dpo"
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
    """Draw both panels, SFT as a line from end to end."""
    sft, judged = figures("sft"), {rate / 10: figures(f"judge{rate}") for rate in RATES}
    panels = [(title, [[(rate, f[key]) for rate, f in judged.items()],
                       [(0, sft[key]), (0.8, sft[key])]]) for key, title in PANELS]
    labels = dict(zip(("DPO on the judge's pairs", "SFT"), COLORS))
    row_of_panels(panels, labels, "share of the judge's ratings that are guesses").save(
        HERE / "feedback.png")


if __name__ == "__main__":
    main()
