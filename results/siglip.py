"""Draw results/siglip/figure.png: SigLIP's loss beside InfoNCE's at three batch sizes.

    python results/siglip.py

Lines are means over the seeds, dots are seeds. results/siglip.sh writes what this reads.
"""

import json
import statistics
from pathlib import Path

from PIL import Image, ImageDraw

from charts import COLORS, legend, panel

HERE = Path(__file__).parent / "siglip"
LOSSES = {"infonce": "InfoNCE (CLIP)", "siglip": "sigmoid (SigLIP)"}
BATCHES = (32, 128, 512)
PANELS = {
    "retrieval/image_to_text_r1": "picture to caption, recall@1",
    "retrieval/text_to_image_r1": "caption to picture, recall@1",
}


def seeds_of(loss: str, batch: int, key: str) -> list[float]:
    """A figure of each seed.

    Raises:
        SystemExit: if there is no result.
    """
    paths = sorted(HERE.glob(f"{loss}-{batch}-seed*.json"))
    if not paths:
        raise SystemExit(
            f"siglip.py: error: {HERE}/{loss}-{batch}-seed*.json is missing; "
            "results/siglip.sh writes it"
        )
    return [json.loads(path.read_text())["figures"][key] for path in paths]


def label(x: float) -> str:
    """The batch size at a place of the x axis; nothing between two."""
    return str(BATCHES[int(x) - 1]) if x in (1, 2, 3) else ""


def main() -> None:
    """Draw both panels."""
    sheet = Image.new("RGB", (1100, 470), "white")
    draw = ImageDraw.Draw(sheet)
    legend(draw, 70, 20, dict(zip(LOSSES.values(), COLORS)), 340)
    for left, (key, title) in zip((70, 610), PANELS.items()):
        lines, dots = [], []
        for loss in LOSSES:
            values = [seeds_of(loss, batch, key) for batch in BATCHES]
            lines.append([(i + 1, statistics.fmean(x)) for i, x in enumerate(values)])
            dots.append([(i + 1, y) for i, x in enumerate(values) for y in x])
        panel(draw, (left, 70, left + 430, 400), lines, title, "pairs in a batch", label,
              dots=dots)
    sheet.save(HERE / "figure.png")


if __name__ == "__main__":
    main()
