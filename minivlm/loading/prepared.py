"""A prepared data set: a folder with `<split>.jsonl`, one record a line, pictures (see images.py),
tokenizer.tiktoken, meta.json. Reading it, and writing it as every prepare.py does.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np

from minivlm.loading.images import MAX_PIXELS, save_samples
from minivlm.running.files import parse_json, read_lines
from minivlm.tokenizer import SPECIALS, Tokenizer

TEXTS = ("image", "text", "question", "answer", "kind", "style", "border")
LISTS = ("captions", "conversations", "objects", "expect", "wrong", "responses")

# --- reading ---


def load_records(
    folder: str | Path, split: str, need: tuple[str, ...] = (), unique: bool = False
) -> list[dict]:
    """Read `<folder>/<split>.jsonl`.

    Args:
        need: keys that every record must have, besides its id.
        unique: refuse two records of one id, where replies are kept by it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a line that is no JSON object, lacks a key, has a value of another type than
            it must, or the id of an earlier one, with file and line.
    """
    path = Path(folder) / f"{split}.jsonl"
    if not path.is_file():
        raise FileNotFoundError(
            f"no data at {path}; run the data set's prepare.py first, for instance "
            "python data/shapes/prepare.py"
        )
    records, ids = [], set()
    for name, record in read_lines(path):
        missing = [key for key in dict.fromkeys(("id", *need)) if not record.get(key)]
        if missing:
            raise ValueError(f"{name} has no {' and no '.join(missing)}")
        fault = fault_of(record)
        if fault:
            raise ValueError(f"{name} has {fault}")
        if unique and record["id"] in ids:
            raise ValueError(f"{name} has the id {record['id']!r} of an earlier line")
        ids.add(record["id"])
        records.append(record)
    if not records:
        raise ValueError(f"{path} is empty")
    return records


def fault_of(record: dict) -> str:
    """What a record has that is of another type than it must be, or ""."""
    if type(record["id"]) not in (str, int):
        return "an id that is neither text nor a whole number"
    for key in TEXTS:
        if not isinstance(record.get(key) or "", str):
            return f"{key} that is no text"
    for key in LISTS:
        if not isinstance(record.get(key, []), list):
            return f"{key} that are no list"
    if not all(isinstance(c, str) and c.strip() for c in record.get("captions", [])):
        return "a caption that is empty or no text"
    for o in record.get("objects", []):
        look = (o.get("attributes") or {}) if isinstance(o, dict) else None
        if not isinstance(look, dict) or not all(
            text is None or isinstance(text, str)
            for text in (o.get("name"), o.get("place"), look.get("color"), look.get("size"))
        ):
            return "an object that is not {name, attributes, box}"
    return ""


def load_meta(folder: str | Path) -> dict:
    """Read meta.json: what the data set says of itself (name, image_size, phrases, classes, ...).

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no JSON object, lacks a name or an image_size that pictures can have,
            or has names of other types than evaluate.py reads.
    """
    path = Path(folder) / "meta.json"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; run the data set's prepare.py first")
    meta = parse_json(path.read_bytes(), str(path))
    size = meta.get("image_size") if isinstance(meta, dict) else None
    if type(size) is not int or not 0 < size <= MAX_PIXELS ** 0.5 or not meta.get("name"):
        raise ValueError(
            f"{path} lacks a name or an image_size in pixels, "
            'as in {"name": "mine", "image_size": 48}'
        )
    for key, kind in (("phrases", str), ("prompts", list), ("chance", (int, float))):
        named = meta.get(key, {})
        if not isinstance(named, dict) or not all(isinstance(v, kind) for v in named.values()):
            raise ValueError(f"{path} has {key} that are not as a prepare.py writes them")
    return meta


# --- writing ---


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
