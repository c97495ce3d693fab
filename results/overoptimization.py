"""Draw results/preferences/overoptimization.png: what PPO's score is worth, by KL to the reference.

    python results/overoptimization.py

Two panels, the reward model's score and the true score by the scene; one line a way of training. A
point is the mean over the rollouts between two rows of the log, each of questions not seen before.

Source: the figure's idea, Gao et al. 2022, arXiv:2210.10760, figure 1 (there over the square root
of the KL).
"""

import math
from pathlib import Path

from charts import row_of_panels
from tables import read_log

HERE = Path(__file__).parent / "preferences"
WAYS = {  # file, label, color
    "hot": ("KL penalty, as by default", "#1f5fa8"),
    "no_kl": ("no KL penalty", "#c2571a"),
    "no_kl_facts": ("no KL penalty, reward model with facts", "#5a9a3c"),
}
PANELS = (
    ("score", "score by the reward model"), ("true_score", "true score, by the scene (1 .. 5)"),
)

def points(name: str, key: str) -> list[tuple[float, float]]:
    """(square root of the KL in nats an answer, value) of each row of a run's log but the first.

    Raises:
        SystemExit: if there is no such log.
    """
    path = HERE / f"{name}-seed0.csv"
    if not path.is_file():
        raise SystemExit(f"overoptimization.py: error: no {path}; see preferences.sh")
    rows = [row for row in read_log(path) if key in row]
    return [(math.sqrt(max(0.0, row["kl_answer"])), row[key]) for row in rows]


def main() -> None:
    """Draw both panels."""
    panels = [(title, [points(name, key) for name in WAYS]) for key, title in PANELS]
    row_of_panels(panels, dict(WAYS.values()), "KL to the reference, nats an answer (square root)",
                  lambda x: f"{x * x:.3g}").save(HERE / "overoptimization.png")


if __name__ == "__main__":
    main()
