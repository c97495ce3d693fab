"""Make a data set of web pictures with their alt texts, filtered by LAION's rules.

    python data/webdata/prepare.py --shards laion --clip runs/clip
    python data/webdata/prepare.py --shards laion --write_shards kept    writes tars again

Reads tar shards of img2dataset or webdataset as a stream, or a folder of picture.jpg +
picture.txt. A sample is one picture with its text. It is kept if

    its text has at least `min_text` and at most `max_text` characters,
    its picture has at least `min_bytes` bytes in the shard and can be opened,
    cosine(picture, text) of a CLIP is at least `min_similarity`.

A refused sample is counted under the first rule that it breaks. Writes train, val, text,
tokenizer.tiktoken, meta.json, samples/*.png, and refused.txt, which lists refused samples.

Source: Schuhmann et al. 2021 (LAION-400M), arXiv:2111.02114, section 2.2; its limits are
5 characters, 5 KB and a cosine of 0.3.
"""

import io
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.webdata.shards import (
    PICTURES, Sample, is_plain, read_shard, refuse, write_shards,
)
from data.webdata.similarity import by_similarity
from minivlm.loading.images import fit, open_image
from minivlm.loading.prepared import Pack, sorted_counts, unique_id, write_folder
from minivlm.loading.records import fault_of
from minivlm.running.files import is_hidden, read_text
from minivlm.running.options import check, cli

Pair = tuple[Sample, Image.Image]  # a sample and its picture, opened


@dataclass
class Config:
    """Options; the comments are the help texts."""

    # web pictures
    shards: str = "data/webdata/shards"  # folder of *.tar, one .tar, or pictures + .txt
    # rules
    min_text: int = 5  # >= 1; least number of characters in a text
    max_text: int = 200  # >= 1; most characters; longer texts do not fit a text tower
    min_bytes: int = 5000  # >= 0; least number of bytes in a picture's file
    clip: str = ""  # folder of a run of train_clip.py or of a published CLIP; empty = none
    min_similarity: float = 0.3  # -1 .. 1; least cosine; 0.3 is for OpenAI's ViT-B/32
    # data set
    out: str = "data/webdata/prepared"  # data folder to write
    write_shards: str = ""  # folder for tars of the kept samples, written instead of `out`
    image_size: int = 48  # >= 1; side of the packed pictures in pixels
    fit: str = "stretch"  # stretch | pad | crop; how a picture is made square
    val_every: int = 50  # >= 2; one sample in so many is held out
    vocab_size: int = 4096  # >= 263; most tokens in the vocabulary, special tokens included

    def __post_init__(self):
        if self.min_text > self.max_text:
            raise ValueError(
                f"min_text {self.min_text} is more than max_text {self.max_text}"
            )


# --- reading ---


def read_all(source: str, skipped: Counter, named: list[str]) -> Iterator[Sample]:
    """Yield the usable samples of all shards, or of a folder of pictures with texts.

    Args:
        source: folder of *.tar, one .tar, or folder of pictures with texts.
        skipped, named: as for `refuse`.

    Raises:
        FileNotFoundError: if there is nothing to read.
    """
    path = Path(source)
    # sorted: a folder lists its files in any order
    shards = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    shards = [shard for shard in shards if not is_hidden(shard.name)]
    for shard in shards:
        yield from read_shard(shard, skipped, named)
    if not shards:
        yield from read_folder(path, skipped, named)


def read_folder(folder: Path, skipped: Counter, named: list[str]) -> Iterator[Sample]:
    """Yield a sample for each picture with a text beside it; other pictures are refused.

    Hidden files, as systems write them, are passed over.

    Raises:
        FileNotFoundError: if there is no picture.
    """
    pictures = []
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if ending_of(file) in PICTURES and not is_hidden(name) and not file.is_dir():
            pictures.append(file)
    if not pictures:
        raise FileNotFoundError(f"{folder} holds neither *.tar nor pictures")
    for picture in pictures:
        name = picture.relative_to(folder).as_posix()
        # a dot in a key would end it when a shard is read
        key = name.rpartition(".")[0].replace(".", "_")
        try:
            yield _sample_beside(picture, key)
        except ValueError as reason:
            refuse(skipped, named, name, str(reason))


def _sample_beside(picture: Path, key: str) -> Sample:
    """Read a picture and its text; a ValueError says why they cannot be used."""
    if not is_plain(key):
        raise ValueError("strange name")
    try:
        text = read_text(picture.with_suffix(".txt")).strip()
    except OSError:
        raise ValueError("no text") from None
    except ValueError:
        raise ValueError("text is not UTF-8") from None
    try:
        return Sample(key, picture.read_bytes(), ending_of(picture), text)
    except OSError:
        raise ValueError("picture unreadable") from None


def ending_of(file: Path) -> str:
    """The ending of a file's name in small letters, such as "jpg"."""
    return file.suffix.lower().lstrip(".")


# --- LAION's rules ---


def by_size(
    cfg: Config, samples: Iterator[Sample], skipped: Counter, named: list[str]
) -> Iterator[Pair]:
    """Yield the samples that obey `broken_rule` and whose picture opens.

    Pictures wait for CLIP's next batch. So that they take little memory, their sides are
    reduced to at most 512 pixels.
    """
    for sample in samples:
        reason = broken_rule(cfg, sample)
        if not reason:
            try:
                picture = open_image(io.BytesIO(sample.picture))
                picture.thumbnail((512, 512))
            except ValueError:
                reason = "picture unreadable"
        if reason:
            refuse(skipped, named, sample.key, reason)
        else:
            yield sample, picture


def broken_rule(cfg: Config, sample: Sample) -> str:
    """Name the first rule that a sample breaks, without opening its picture; "" if none."""
    # from the cheapest test to the most expensive
    if len(sample.text) < cfg.min_text:
        return f"text under {cfg.min_text} characters"
    if len(sample.text) > cfg.max_text:
        return f"text over {cfg.max_text} characters"
    if len(sample.picture) < cfg.min_bytes:
        return f"picture under {cfg.min_bytes} bytes"
    # the sample's JSON becomes part of a record, which `load_records` must accept
    fault = fault_of(sample.info | {"id": sample.key, "image": "", "captions": []})
    return f"json has {fault}" if fault else ""


# --- the data set ---


def main(cfg: Config) -> dict[str, float]:
    """Filter and write; return the numbers of kept and refused samples, and the seconds.

    Raises:
        FileNotFoundError: if there is nothing to read.
        ValueError: if no sample is left, or too few for train and val; or if
            `write_shards` is the folder that is read.
    """
    check(cfg)
    began = time.time()
    skipped = Counter()
    named = []
    if cfg.write_shards:
        source = Path(cfg.shards).resolve()
        # writing removes old tars first
        if Path(cfg.write_shards).resolve() in (source, source.parent):
            raise ValueError(
                f"write_shards {cfg.write_shards} is where the shards are read from"
            )
    # these are generators: each picture passes all rules before the next one is read
    # disable=None: no progress bar where the output is no terminal
    samples = tqdm(read_all(cfg.shards, skipped, named), desc="pairs", disable=None)
    sized = by_size(cfg, samples, skipped, named)
    keys = Counter()
    kept = with_own_keys(
        by_similarity(sized, cfg.clip, cfg.min_similarity, skipped, named), keys
    )
    if cfg.write_shards:
        folder = Path(cfg.write_shards)
        write_shards(folder, (sample for sample, _ in kept))
        if not keys:
            raise ValueError(
                f"{cfg.shards}: nothing is left; refused {sorted_counts(skipped)}"
            )
    else:
        folder = Path(cfg.out)
        write_records(cfg, kept, skipped)
    n_kept = len(keys)
    lines = "".join(line + "\n" for line in named)
    (folder / "refused.txt").write_text(lines, encoding="utf-8")
    refused = sorted_counts(skipped)
    seconds = time.time() - began
    print(f"{folder}: kept {n_kept}, refused {refused or 'nothing'}, {seconds:.0f} s")
    return {"kept": n_kept, "refused": sum(refused.values()), "seconds": seconds}


def with_own_keys(kept: Iterator[Pair], keys: Counter) -> Iterator[Pair]:
    """Give samples a key of their own, for two shards may number their samples alike.

    Args:
        keys: gets the key of each sample that is yielded, see `unique_id`.
    """
    for sample, picture in kept:
        sample.key = unique_id(sample.key, keys)
        yield sample, picture


def write_records(cfg: Config, kept: Iterator[Pair], skipped: Counter) -> None:
    """Write the packed data set.

    Raises:
        ValueError: if train or val would be empty.
    """
    files = {"train": [], "val": []}
    pixels = {side: Pack(cfg.out) for side in files}
    for n, (sample, picture) in enumerate(kept):
        side = "val" if n % cfg.val_every == 0 else "train"
        record = {
            "id": sample.key, "image": f"{side}.npy#{len(files[side])}",
            "captions": [sample.text],
        }
        # an id, image or captions in the sample's JSON do not replace ours
        for key, value in sample.info.items():
            record.setdefault(key, value)
        files[side].append(record)
        pixels[side].append(np.asarray(fit(picture, cfg.image_size, cfg.fit)))  # (S, S, 3)
    texts = [record["captions"][0] for record in files["train"]]
    meta = {
        "name": "webdata", "image_size": cfg.image_size, "fit": cfg.fit,
        "skipped": sorted_counts(skipped),
    }
    write_folder(cfg.out, files, pixels, texts, cfg.vocab_size, meta)


if __name__ == "__main__":
    cli(main, Config)
