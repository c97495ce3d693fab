"""Draw docs/answers.png: held-out pictures, a question each, the answer that evaluate.py kept.

    python results/figure.py [runs/sft] [data/shapes/prepared]

The pictures are the first ones of each kind of question, not chosen by hand.
"""

import json
import sys
from pathlib import Path

import numpy as np

from minivlm.loading.images import contact_sheet

KINDS = ("exist", "color", "count", "position", "hidden", "detail", "private", "harmless")


def main(
    run: str = "runs/sft", data: str = "data/shapes/prepared", out: str = "docs/answers.png"
) -> None:
    """Draw one panel for each kind of question."""
    log = [json.loads(line) for line in Path(run, "eval.answers.jsonl").read_text().splitlines()]
    pixels = np.load(Path(data, "val.npy"), mmap_mode="r")
    shown: dict[str, dict] = {}
    for kind in KINDS:
        entry = next(e for e in log if e["kind"] == kind and e["image"] not in shown)
        shown[entry["image"]] = entry
    pictures = np.stack([pixels[int(name.split("#")[1])] for name in shown])
    texts = [[e["question"], *(f"> {line}" for line in e["answer"].splitlines())]
             for e in shown.values()]
    contact_sheet(pictures, texts).save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
