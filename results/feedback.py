"""Draw results/dpo/feedback.png: what DPO learns from a judge that guesses a share of its ratings.

    python results/feedback.py

Reads results/dpo/judge*-seed*.json.
"""

import json
from pathlib import Path

from charts import COLORS, row_of_panels

HERE = Path(__file__).parent / "dpo"
RATES = (0, 2, 4, 8)  # tenths
PANELS = (
    ("chair_detail/chair_i", "detailed descriptions: not visible things (CHAIR_i)"),
    ("axes/helpfulness/answers", "right answers about visible things"),
)


def figures(name: str) -> dict[str, float]:
    """The figures of a result's first seed.

    Raises:
        SystemExit: if there is none.
    """
    paths = sorted(HERE.glob(f"{name}-seed*.json"))
    if not paths:
        raise SystemExit(
            f"feedback.py: error: no {HERE / name}-seed*.json; results/dpo.sh writes it"
        )
    return json.loads(paths[0].read_text())["figures"]


def main() -> None:
    """Draw both panels."""
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


if __name__ == "__main__":
    main()
