"""Data folders: how they are read, and how every prepare.py writes them.

A data folder holds `<split>.jsonl` with one record a line, the pictures (see images.py),
tokenizer.tiktoken and meta.json.
"""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from minivlm.loading.images import FITS, MAX_PIXELS, save_samples
from minivlm.loading.records import META, as_read, read_keys
from minivlm.running.files import parse_json, read_lines
from minivlm.running.options import printable
from minivlm.tokenizer import Tokenizer

# --- reading ---


def load_records(
    folder: str | Path, split: str, need: tuple[str, ...] = (), unique: bool = False,
    check: Callable[[dict], str] | None = None,
) -> list[dict]:
    """Read the records of `<folder>/<split>.jsonl`, and return them as `as_read` does.

    Args:
        need: keys that every record must have, besides its id. If "conversations" are
            needed, they are checked by `check_turns`.
        unique: refuse two records with the same id; for callers that store results by id.
        check: says why the caller cannot use a record; "" if it can.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is empty; or if a line is no JSON object, lacks a key, has a
            value of a wrong kind, does not pass `check`, or (with `unique`) has the id of
            an earlier line. The message names file and line.
    """
    path = Path(folder) / f"{split}.jsonl"
    if not path.is_file():
        raise FileNotFoundError(
            f"no data at {path}; run the data set's prepare.py first, for instance "
            "python data/book/prepare.py"
        )
    records = []
    ids = set()
    for name, fields in read_lines(path):
        try:
            record = as_read(fields, need)
        except ValueError as error:
            raise ValueError(f"{name} has {error}") from None
        reason = check(record) if check else ""
        if reason:
            raise ValueError(f"{name}: {reason}")
        # results are stored by the id's text, so 1 and "1" are the same
        if unique and str(record["id"]) in ids:
            raise ValueError(f"{name} has the id {record['id']!r} of an earlier line")
        ids.add(str(record["id"]))
        records.append(record)
    if not records:
        raise ValueError(f"{path} is empty")
    return records


def write_records(folder: str | Path, split: str, records: Iterable[dict]) -> None:
    """Write `<folder>/<split>.jsonl`, one record a line."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (Path(folder) / f"{split}.jsonl").write_text(lines, encoding="utf-8")


def load_meta(folder: str | Path) -> dict:
    """Read meta.json, which describes the data set: name, image_size, phrases, prompts, ...

    "fit" says how its pictures are made square, see `images.fit`; by default "stretch".
    Keys with null or nothing in them are dropped.

    Raises:
        FileNotFoundError: if the folder has no meta.json.
        ValueError: if the file is no JSON object, has no name, has no image_size that a
            picture can have, or if an entry that a later line reads is of a wrong kind.
    """
    path = Path(folder) / "meta.json"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; run the data set's prepare.py first")
    meta = parse_json(path.read_bytes(), str(path))
    size = meta.get("image_size") if isinstance(meta, dict) else None
    # image_size is the side of a square; `open_image` refuses more than MAX_PIXELS
    is_size = type(size) is int and 0 < size <= MAX_PIXELS ** 0.5
    if not is_size or not meta.get("name") or not isinstance(meta["name"], str):
        raise ValueError(
            f"{path} lacks a name or an image_size in pixels, "
            'as in {"name": "mine", "image_size": 60}'
        )
    meta = {key: value for key, value in meta.items() if value not in (None, {}, [])}
    try:
        meta = read_keys(meta, META)
    except ValueError as error:
        raise ValueError(f"{path} has {error}") from None
    if meta.setdefault("fit", "stretch") not in FITS:
        raise ValueError(f"{path} has a fit that is not one of {', '.join(FITS)}")
    return meta


# --- writing ---


def start_folder(folder: str | Path) -> Path:
    """Make a data folder; delete the records and meta.json of an older data set in it.

    If the writing script is stopped, its data set is incomplete and must not look complete:
    then meta.json is missing. Kept are the replies of data/instruct.py's teacher
    (*.raw.jsonl), which cost money, and rankings by people, which cost hours.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.json*"):
        with old.open("rb") as file:
            is_by_people = b'"person": ' in file.readline(100_000)
        if not old.name.endswith(".raw.jsonl") and not is_by_people:
            old.unlink()
    return folder


class Pack:
    """Collect pictures of one size on the disk, because a data set may not fit into memory.

    Args:
        folder: the folder of the unnamed temporary file that holds the pictures until
            `save`. Both are made when the first picture comes.
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
            ValueError: if its shape is not the first picture's, or its type not uint8.
        """
        if not self.n:
            self.folder.mkdir(parents=True, exist_ok=True)
            # not in /tmp, which may be small; unnamed: the system deletes it after a crash
            self.file = tempfile.TemporaryFile(dir=self.folder)
            self.shape = picture.shape
        if picture.shape != self.shape or picture.dtype != np.uint8:
            raise ValueError(
                f"a picture {picture.shape} of {picture.dtype} among {self.shape} of uint8"
            )
        self.file.write(picture.tobytes())
        self.n += 1

    def save(self, path: str | Path) -> None:
        """Write all pictures to a .npy file: (n, S, S, 3) uint8.

        Raises:
            ValueError: if there is no picture.
        """
        if not self.n:
            raise ValueError(f"no picture for {path}")
        packed = np.lib.format.open_memmap(path, "w+", np.uint8, (self.n, *self.shape))
        self.file.seek(0)
        for start in range(0, self.n, 1000):  # all at once may not fit into memory
            part = packed[start:start + 1000]
            pixels = np.frombuffer(self.file.read(part.nbytes), np.uint8)
            part[:] = pixels.reshape(part.shape)
        packed.flush()


def write_folder(
    folder: str | Path, files: dict[str, list[dict]], pixels: dict[str, Pack],
    texts: list[str], vocab_size: int, meta: dict,
) -> Tokenizer:
    """Write a whole data set in place of an older one.

    Args:
        files: split -> its records. If there is no split "text", one is made of `texts`.
        pixels: split -> its packed pictures, for the splits that have some. One of them
            must be "val": samples/ is made of it.
        texts: the texts that the tokenizer is trained on.
        vocab_size: most tokens of the tokenizer, special tokens included.
        meta: the content of meta.json, without the numbers of records.

    Returns:
        the tokenizer.

    Raises:
        ValueError: if a split has no record; an older data set is then left as it is.
    """
    for split, records in files.items():
        if not records:
            raise ValueError(f"no usable record for {split}; skipped {meta.get('skipped')}")
    folder = start_folder(folder)
    text_records = [{"id": f"text {i}", "text": text} for i, text in enumerate(texts)]
    files = {"text": text_records} | files
    for split, pack in pixels.items():
        if len(pack):  # LLaVA's dialogues may be without a picture
            pack.save(folder / f"{split}.npy")
    for split, records in files.items():
        write_records(folder, split, records)
    counts = {split: len(records) for split, records in files.items()}
    return finish_folder(folder, texts, vocab_size, meta | {"records": counts})


def finish_folder(folder: Path, texts: list[str], vocab_size: int, meta: dict) -> Tokenizer:
    """Write the last files of a data set: tokenizer.tiktoken, meta.json, samples/*.png.

    Args:
        folder: already holds the records and the packed pictures; val.npy among them.
        texts: the texts that the tokenizer is trained on.
        vocab_size: most tokens of the tokenizer, special tokens included.
        meta: the content of meta.json.

    Returns:
        the tokenizer.
    """
    tokenizer = Tokenizer.train(texts, vocab_size)
    tokenizer.save(folder / "tokenizer.tiktoken")
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    save_samples(folder)
    return tokenizer


def unique_id(key: str, n_of_id: Counter) -> str:
    """Return the key as an id; for a key that is taken, "key (2)", "key (3)", ...

    Args:
        key: characters that cannot be printed are spelled out.
        n_of_id: how often each id was asked for; gets this one.
    """
    key = printable(key, keep="")
    n_of_id[key] += 1
    if n_of_id[key] == 1:
        return key
    return unique_id(f"{key} ({n_of_id[key]})", n_of_id)  # this may be a key, too


def sorted_counts(counts: Counter) -> dict[str, int]:
    """Return the counts above zero in alphabetical order, for instance skipped records."""
    return dict(sorted((+counts).items()))


def summary(
    folder: str | Path, files: dict[str, list[dict]], skipped: dict[str, int], began: float,
    more: str = "",
) -> dict[str, float]:
    """Print the size of a data set, and return it.

    Args:
        files: split -> its records.
        skipped: reason -> how many records were left out for it.
        began: `time.time()` when the script started.
        more: text that is printed behind the numbers of records.

    Returns:
        the number of records of each split, of skipped ones, and the seconds spent.
    """
    counts = {name: len(records) for name, records in files.items()}
    seconds = time.time() - began
    print(f"{folder}: {counts}{more}, skipped {skipped or 'nothing'}, {seconds:.0f} s")
    return {**counts, "skipped": sum(skipped.values()), "seconds": seconds}
