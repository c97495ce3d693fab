"""Draw results/preferences/overoptimization.png: PPO's scores over the KL.

    python results/overoptimization.py

The left panel shows the score of the reward model, which PPO maximizes. The right panel
shows the true score, which nothing learns from. A line is one way of training, a point is
one row of its log: the mean over the rollouts since the row before, whose questions were
new to the policy.

Source: the idea of the figure is Gao et al.'s, 2022, arXiv:2210.10760, figure 1, which
also has the square root of the KL on its x axis.
"""

import math
from pathlib import Path

from charts import row_of_panels
from tables import read_log

HERE = Path(__file__).parent / "preferences"
WAYS = {  # log -> label, color
    "hot": ("KL penalty, as by default", "#1f5fa8"),
    "no_kl": ("no KL penalty", "#c2571a"),
    "no_kl_facts": ("no KL penalty, reward model with facts", "#5a9a3c"),
}
PANELS = (
    ("score", "score by the reward model"),
    ("true_score", "true score, by the scene (1 .. 5)"),
)


def points(name: str, key: str) -> list[tuple[float, float]]:
    """The square root of the KL (nats an answer) and a value, of each row that has both.

    Raises:
        SystemExit: if there is no such log.
    """
    path = HERE / f"{name}-seed0.csv"
    if not path.is_file():
        raise SystemExit(
            f"overoptimization.py: error: {path} is missing; "
            "results/preferences.sh writes it"
        )
    line = []
    for row in read_log(path):
        if key in row and "kl_answer" in row:
            kl = max(0.0, row["kl_answer"])  # an estimate, which may fall below 0
            line.append((math.sqrt(kl), row[key]))
    return line


def squared(x: float) -> str:
    """The label of a tick at a square root: the KL itself."""
    return f"{x * x:.3g}"


def main() -> None:
    """Draw both panels."""
    panels = [(title, [points(name, key) for name in WAYS]) for key, title in PANELS]
    x_title = "KL to the reference, nats an answer (square root)"
    sheet = row_of_panels(panels, dict(WAYS.values()), x_title, squared)
    sheet.save(HERE / "overoptimization.png")


if __name__ == "__main__":
    main()
