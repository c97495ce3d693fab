"""Make a data set of web pictures with their alt texts, filtered by LAION's rules.

    python data/webdata/prepare.py --shards laion --clip runs/clip
    python data/webdata/prepare.py --shards laion --write_shards kept    tars again, nothing packed

Reads img2dataset's and webdataset's tar shards as a stream (or a folder of picture.jpg +
picture.txt), and keeps a pair if

    its text has at least `min_text` and at most `max_text` characters,
    its picture has at least `min_bytes` bytes in the shard and can be opened,
    cosine(picture, text) of a CLIP is at least `min_similarity`,

each refusal counted by its rule, the first one that it breaks. Writes train, val, text,
tokenizer.tiktoken, meta.json, samples/*.png, and refused.txt with a line for each pair left out.

Source: Schuhmann et al. 2021 (LAION-400M), arXiv:2111.02114, section 2.2: 5 characters, 5 KB, 0.3.
"""

import io
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.webdata.shards import PICTURES, Sample, read_shard, refuse, write_shards
from data.webdata.similarity import by_similarity
from minivlm.loading.images import fit, open_image
from minivlm.loading.prepared import Pack, check_vocab_size, fault_of, write_folder
from minivlm.running.options import cli


@dataclass
class Config:
    """What to read, what to keep, what to write."""

    shards: str = "data/webdata/shards"  # folder of *.tar, one .tar, or a folder of pictures + .txt
    clip: str = ""  # run of train_clip.py, or published CLIP, to judge similarity; empty = no rule
    min_text: int = 5  # characters of a text
    max_text: int = 200  # no rule of LAION's: a text tower holds so many, a longer text stops it
    min_bytes: int = 5000  # bytes of a picture's file
    min_similarity: float = 0.3  # cosine of picture and text; LAION's 0.3 is for OpenAI's ViT-B/32
    out: str = "data/webdata/prepared"  # folder to write
    write_shards: str = ""  # folder for tars of what is kept, in place of a packed data set
    image_size: int = 48  # side of the packed pictures in pixels
    val_every: int = 50  # one pair in so many is held out
    vocab_size: int = 4096  # upper limit of the vocabulary, special tokens included

    def __post_init__(self):
        check_vocab_size(self.vocab_size)
        if not 1 <= self.min_text <= self.max_text or self.min_bytes < 0:
            raise ValueError("expected 1 <= min_text <= max_text and min_bytes >= 0")
        if self.val_every < 2 or self.image_size < 1:
            raise ValueError("expected val_every >= 2 and image_size >= 1")
        if not -1 <= self.min_similarity <= 1:
            raise ValueError(f"min_similarity {self.min_similarity} is no cosine, -1 .. 1")


# --- reading ---


def read_all(source: str, skipped: Counter, named: list[str]) -> Iterator[Sample]:
    """Every usable pair of all shards, or of a folder of pictures with texts, by name.

    Raises:
        FileNotFoundError: if there is nothing to read.
    """
    path = Path(source)
    shards = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if shards:
        for shard in shards:
            yield from read_shard(shard, skipped, named)
        return
    pictures = sorted(p for p in path.rglob("*") if p.suffix.lower().lstrip(".") in PICTURES)
    if not pictures:
        raise FileNotFoundError(f"{source} holds neither *.tar nor pictures")
    for picture in pictures:
        name, text = picture.relative_to(path).as_posix(), picture.with_suffix(".txt")
        reason = "" if text.is_file() else "no text"
        try:
            said = text.read_bytes().decode() if not reason else ""
        except UnicodeDecodeError:
            reason = "text is not UTF-8"
        if reason:
            refuse(skipped, named, name, reason)
        else:
            ending = picture.suffix.lower().lstrip(".")
            yield Sample(
                name.rpartition(".")[0].replace(".", "_"), picture.read_bytes(), ending,
                said.strip(),
            )


# --- LAION's rules ---


def by_size(
    cfg: Config, samples: Iterator[Sample], skipped: Counter, named: list[str]
) -> Iterator[tuple]:
    """(sample, picture) of the pairs that open and whose text and file have the right length.

    A picture waits for its batch with at most 512 pixels a side, whatever its own size.
    """
    for sample in samples:
        reason = ""
        if len(sample.text) < cfg.min_text:
            reason = f"text under {cfg.min_text} characters"
        elif len(sample.text) > cfg.max_text:
            reason = f"text over {cfg.max_text} characters"
        elif len(sample.picture) < cfg.min_bytes:
            reason = f"picture under {cfg.min_bytes} bytes"
        elif fault := fault_of({**sample.info, "id": sample.key, "image": "", "captions": []}):
            reason = f"json has {fault}"
        else:
            try:
                picture = open_image(io.BytesIO(sample.picture))
                picture.thumbnail((512, 512))
            except ValueError:
                reason = "picture unreadable"
        if reason:
            refuse(skipped, named, sample.key, reason)
        else:
            yield sample, picture


# --- the data set ---


def main(cfg: Config) -> dict[str, float]:
    """Filter and write; return how many pairs were kept and refused, and how long it took.

    Raises:
        FileNotFoundError: if there is nothing to read.
        ValueError: if nothing, or all but one pair, is refused.
    """
    began, skipped, named = time.time(), Counter(), []
    if cfg.write_shards and Path(cfg.write_shards).resolve() in (
        Path(cfg.shards).resolve(), Path(cfg.shards).resolve().parent
    ):
        raise ValueError(f"write_shards {cfg.write_shards} is where the shards are read from")
    samples = tqdm(read_all(cfg.shards, skipped, named), desc="pairs", disable=None)
    kept = by_similarity(
        by_size(cfg, samples, skipped, named), cfg.clip, cfg.min_similarity, skipped, named)
    folder = Path(cfg.write_shards or cfg.out)
    if cfg.write_shards:
        counted: list[str] = []
        write_shards(folder, distinct(kept, counted, skipped, named))
        n_kept = len(counted)
        if not n_kept:
            raise ValueError(f"{cfg.shards}: nothing is left; refused {dict(skipped)}")
    else:
        n_kept = write_records(cfg, kept, skipped)
    (folder / "refused.txt").write_text("".join(line + "\n" for line in named))
    refused, seconds = dict(sorted(skipped.items())), time.time() - began
    print(f"{folder}: kept {n_kept}, refused {refused or 'nothing'}, {seconds:.0f} s")
    return {"kept": n_kept, "refused": sum(refused.values()), "seconds": seconds}


def distinct(
    kept: Iterator[tuple], keys: list[str], skipped: Counter, named: list[str]
) -> Iterator[Sample]:
    """Samples with a key of their own; `keys` gets each. Two shards may number theirs alike."""
    seen: set[str] = set()
    for sample, _ in kept:
        if sample.key in seen:
            refuse(skipped, named, sample.key, "key stands in two shards")
            continue
        seen.add(sample.key)
        keys.append(sample.key)
        yield sample


def write_records(cfg: Config, kept: Iterator[tuple], skipped: Counter) -> int:
    """Write the packed data set; return how many pairs it holds.

    Raises:
        ValueError: if no pair is left to learn from.
    """
    files: dict[str, list[dict]] = {"train": [], "val": []}
    pixels = {side: Pack(cfg.out) for side in files}
    for n, (sample, picture) in enumerate(kept):
        side = "val" if n % cfg.val_every == 0 else "train"
        record = {
            "id": sample.key, "image": f"{side}.npy#{len(files[side])}", "captions": [sample.text],
        }
        files[side].append(record | {k: v for k, v in sample.info.items() if k not in record})
        pixels[side].append(np.asarray(fit(picture, cfg.image_size)))
    if not files["train"]:
        raise ValueError(f"{cfg.shards}: too little is left; refused {dict(skipped)}")
    texts = [r["captions"][0] for r in files["train"]]
    refused = dict(sorted(skipped.items()))
    meta = {"name": "webdata", "image_size": cfg.image_size, "skipped": refused}
    write_folder(cfg.out, files, pixels, texts, cfg.vocab_size, meta)
    return sum(map(len, files.values()))


if __name__ == "__main__":
    cli(main, Config)
