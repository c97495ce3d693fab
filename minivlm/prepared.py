"""Writing a data folder, as data.py and images.py read it: pictures, records, tokenizer, meta.json.

Used by: every prepare.py.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np

from minivlm.images import save_samples
from minivlm.tokenizer import SPECIALS, Tokenizer


def check_vocab_size(vocab_size: int) -> None:
    """Refuse a vocabulary without room for all bytes and special tokens.

    Raises:
        ValueError: if vocab_size is too small.
    """
    least = 256 + len(SPECIALS)
    if vocab_size < least:
        raise ValueError(f"vocab_size {vocab_size} is below {least}: bytes and special tokens")


def start_folder(folder: str | Path) -> Path:
    """Make a data folder, and drop an older one's records: no half may pass for a whole.

    What data/instruct.py was told by a teacher that costs money stays.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.json*"):
        if not old.name.endswith(".raw.jsonl"):
            old.unlink()
    return folder


class Pack:
    """Pictures of one size that go to the disk as they come: a data set may exceed the memory.

    Args:
        folder: where they wait, in a file without a name, until `save`; made with the first one.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.shape: tuple[int, ...] = ()
        self.n = 0

    def __len__(self) -> int:
        return self.n

    def append(self, picture: np.ndarray) -> None:
        """Add a picture, (S, S, 3) uint8.

        Raises:
            ValueError: if it is of another shape than those before, or of another type.
        """
        if not self.n:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file, self.shape = tempfile.TemporaryFile(dir=self.folder), picture.shape
        if picture.shape != self.shape or picture.dtype != np.uint8:
            raise ValueError(f"a picture {picture.shape} of {picture.dtype} among {self.shape} of "
                             "uint8")
        self.file.write(picture.tobytes())
        self.n += 1

    def save(self, path: str | Path) -> None:
        """Write (n, S, S, 3) uint8 as a .npy file.

        Raises:
            ValueError: if there is no picture.
        """
        if not self.n:
            raise ValueError(f"no picture for {path}")
        packed = np.lib.format.open_memmap(path, "w+", np.uint8, (self.n, *self.shape))
        self.file.seek(0)
        for start in range(0, self.n, 1000):
            part = packed[start:start + 1000]
            part[:] = np.frombuffer(self.file.read(part.nbytes), np.uint8).reshape(part.shape)
        packed.flush()


def write_folder(
    folder: str | Path, files: dict[str, list[dict]], pixels: dict[str, Pack],
    texts: list[str], vocab_size: int, meta: dict,
) -> Tokenizer:
    """Write a whole data set in place of an older one.

    Args:
        files: records of each split; `text` is made of `texts` if it is not among them.
        pixels: pictures of the splits that are packed.
        texts: what the tokenizer is trained on.
        vocab_size: upper limit of its vocabulary, special tokens included.
        meta: what meta.json shall hold besides the number of records.

    Returns:
        the tokenizer.
    """
    folder = start_folder(folder)
    made = [{"id": f"text {i}", "text": text} for i, text in enumerate(texts)]
    files = {"text": made} | files
    for split, pack in pixels.items():
        pack.save(folder / f"{split}.npy")
    for split, records in files.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{split}.jsonl").write_text(lines)
    tokenizer = Tokenizer.train(texts, vocab_size)
    tokenizer.save(folder / "tokenizer.tiktoken")
    meta = meta | {"records": {split: len(records) for split, records in files.items()}}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    save_samples(folder)
    return tokenizer


def summary(
    folder: str | Path, files: dict[str, list[dict]], skipped: dict[str, int], began: float,
    more: str = "",
) -> dict[str, float]:
    """Print how a data set came out; return the records of each split, what was left out, seconds.

    Args:
        skipped: how many were left out, by reason.
        began: `time.time()` when the script started.
        more: anything else to tell, behind the records.
    """
    counts, seconds = {name: len(records) for name, records in files.items()}, time.time() - began
    print(f"{folder}: {counts}{more}, skipped {skipped or 'nothing'}, {seconds:.0f} s")
    return {**counts, "skipped": sum(skipped.values()), "seconds": seconds}
