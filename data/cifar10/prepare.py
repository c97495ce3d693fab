"""Make a data set of photographs in class folders, such as CIFAR-10: "a photo of a dog".

    python data/cifar10/prepare.py --source cifar10.tar

Reads a folder or a .tar with train/CLASS/*.jpg|png|webp and test/CLASS/*; any classes will
do. Every picture gets one caption, "A photo of a CLASS.", so CLIP learns to tell classes
apart and nothing else. Zero-shot prompts use the same words: a text tower that has read one
sentence for each class reads other sentences badly (on CIFAR-10 an ensemble of seven
prompts cost 13 points).

Writes train, val, zeroshot, text, tokenizer.tiktoken, meta.json and samples/*.png. val and
zeroshot hold the same test pictures: val for captions, zeroshot for classes. Equal
arguments give equal bytes.

Source: Krizhevsky 2009, Learning multiple layers of features from tiny images; prompts as
CLIP's, arXiv:2103.00020, section 3.1.4.
"""

import io
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from minivlm.engine.wording import sentence
from minivlm.evaluation.english import article
from minivlm.loading.images import fit, open_image
from minivlm.loading.prepared import (
    Pack, sorted_counts, summary, unique_id, write_folder,
)
from minivlm.running.files import is_hidden, members_of, read_member, readable
from minivlm.running.options import check, cli

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
# the first gives the caption; all give text for a tokenizer and a language model
TEMPLATES = (
    "a photo of {}", "a small photo of {}", "a blurry photo of {}", "a bad photo of {}",
    "a good photo of {}", "a picture of {}", "an image of {}",
)


@dataclass
class Config:
    """Options; the comments are the help texts."""

    # folders
    source: str = "data/cifar10/cifar10"  # folder or .tar with train/CLASS/*, test/CLASS/*
    out: str = "data/cifar10/prepared"  # data folder to write
    train_split: str = "train"  # folder to learn from
    val_split: str = "test"  # folder to measure on
    # data set
    image_size: int = 32  # >= 1; side of the packed pictures in pixels
    vocab_size: int = 512  # >= 263; most tokens in the vocabulary, special tokens included

    def __post_init__(self):
        if self.train_split == self.val_split:
            raise ValueError(f"both splits are {self.val_split}: nothing would be held out")


# --- the photographs ---


def members(source: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every file, sorted by name; names are relative, with "/".

    Hidden files, as systems write them, are passed over.

    Raises:
        FileNotFoundError: if there is no such folder or file.
        ValueError: if the file is no tar archive, or holds a file larger than pictures are.
    """
    path = Path(source)
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            name = file.relative_to(path).as_posix()
            if not is_hidden(name):
                yield name, file.read_bytes()
    elif path.is_file():
        with readable(source), tarfile.open(path) as archive:
            # a tar may list its files in any order
            for member in sorted(members_of(archive), key=lambda member: member.name):
                yield member.name.removeprefix("./"), read_member(archive, member)
    else:
        raise FileNotFoundError(
            f"no photographs at {source}; pass --source, a folder or a .tar"
        )


def read_splits(
    cfg: Config, skipped: Counter
) -> dict[str, list[tuple[str, str, np.ndarray]]]:
    """Split -> (name, class, pixels) of each of its pictures; other files are counted.

    Raises:
        ValueError: if a split has no picture, or the splits differ in their classes.
    """
    pictures = {cfg.train_split: [], cfg.val_split: []}
    for name, content in members(cfg.source):
        # SPLIT/CLASS/file, which may lie in further folders
        parts = PurePosixPath(name).parts[-3:]
        if len(parts) < 3 or parts[0] not in pictures:
            skipped["not in SPLIT/CLASS/"] += 1
            continue
        if not name.lower().endswith(ENDINGS):
            skipped["not a picture by its name"] += 1
            continue
        try:
            picture = fit(open_image(io.BytesIO(content)), cfg.image_size)
        except ValueError:
            skipped["unreadable picture"] += 1
            continue
        split, folder, _ = parts
        # folder red_fox is the class "red fox"
        label = folder.replace("_", " ").replace("-", " ").lower()
        pictures[split].append(("/".join(parts), label, np.asarray(picture)))
    labels = {}
    for split, rows in pictures.items():
        if not rows:
            raise ValueError(
                f"{cfg.source} has no picture in {split}/CLASS/; "
                f"skipped {sorted_counts(skipped)}"
            )
        # a class that only one split has could not be learned, or not be measured
        labels[split] = {label for _, label, _ in rows}
    differ = sorted(labels[cfg.train_split] ^ labels[cfg.val_split])
    if differ:
        raise ValueError(f"classes {', '.join(differ)} stand in one of the splits only")
    return pictures


# --- the data set ---


def main(cfg: Config) -> dict[str, float]:
    """Write the data set; return numbers of records and of skipped ones, and the seconds.

    Raises:
        FileNotFoundError, ValueError: as `members` and `read_splits`.
    """
    check(cfg)
    began = time.time()
    skipped = Counter()
    splits = read_splits(cfg, skipped)
    sentences = {}
    for label in sorted({label for _, label, _ in splits[cfg.train_split]}):
        sentences[label] = [sentence(t.format(article(label))) for t in TEMPLATES]
    files = {"train": [], "val": []}
    pixels = {name: Pack(cfg.out) for name in files}
    n_of_id = Counter()  # two folders may hold the same train/CLASS/file
    shuffler = np.random.default_rng(0)
    for name, split in (("train", cfg.train_split), ("val", cfg.val_split)):
        # without shuffling, the first 1,000 pictures would be of one class
        shuffler.shuffle(splits[split])
        for i, (key, label, picture) in enumerate(splits[split]):
            pixels[name].append(picture)                             # (S, S, 3)
            files[name].append({
                "id": unique_id(key, n_of_id), "image": f"{name}.npy#{i}",
                "captions": sentences[label][:1], "label": label,
            })
    # accuracy is reported by group; here all classes are one group
    files["zeroshot"] = [record | {"group": "all"} for record in files["val"]]
    prompts = {label: texts[:1] for label, texts in sentences.items()}
    refused = sorted_counts(skipped)
    meta = {
        "name": "cifar10", "image_size": cfg.image_size, "prompts": prompts,
        "skipped": refused,
    }
    # all templates, so that the tokenizer knows the words of other prompts, too
    texts = []
    for label in sentences:
        texts += sentences[label]
    write_folder(cfg.out, files, pixels, texts, cfg.vocab_size, meta)
    return summary(cfg.out, files, refused, began)


if __name__ == "__main__":
    cli(main, Config)
