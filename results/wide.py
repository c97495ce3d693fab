"""Make wide pictures of the picture book, and make them square in each of three ways.

    python results/wide.py [data/book/prepared]

A scene has three columns. Between and beside them, the background is continued, until the
picture is half as wide again as it is high, as a photograph. Then it is cropped, padded or
stretched to the size of the default world, and packed: data/book/prepared_crop, prepared_pad,
prepared_stretch. results/wide.sh trains on these.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from minivlm.loading.images import FITS, fit


def widened(pixels: np.ndarray) -> np.ndarray:
    """Continue the edges of the three columns: (S, S, 3) -> (S, 3 S / 2, 3)."""
    S = len(pixels)
    beside = S // 12  # pixels added on each side of each column
    parts = []
    for column in np.split(pixels, 3, axis=1):                       # (S, S / 3, 3)
        left, right = column[:, :1], column[:, -1:]                  # (S, 1, 3)
        parts += [left.repeat(beside, 1), column, right.repeat(beside, 1)]
    return np.concatenate(parts, axis=1)


def main(source: str = "data/book/prepared") -> None:
    """Write the three folders."""
    source = Path(source)
    for mode in FITS:
        out = source.parent / f"prepared_{mode}"
        out.mkdir(exist_ok=True)
        for name in ("train.jsonl", "val.jsonl", "zeroshot.jsonl", "tokenizer.tiktoken"):
            shutil.copy(source / name, out)
        meta = json.loads((source / "meta.json").read_text()) | {"fit": mode}
        (out / "meta.json").write_text(json.dumps(meta))
        for pack in ("train.npy", "val.npy", "zeroshot.npy"):
            before = np.load(source / pack, mmap_mode="r")           # (n, S, S, 3)
            after = np.lib.format.open_memmap(out / pack, "w+", np.uint8, before.shape)
            for i, pixels in enumerate(tqdm(before, f"{mode}, {pack}", disable=None)):
                wide = Image.fromarray(widened(pixels))
                after[i] = np.asarray(fit(wide, len(pixels), mode))
            after.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
