"""Make a data set of photographs in class folders, such as CIFAR-10: "a photo of a dog".

    python data/cifar10/prepare.py --source cifar10.tar

Reads a folder or a .tar with train/CLASS/*.jpg|png|webp and test/CLASS/*; any classes will do.
Every picture gets the one caption "A photo of a CLASS.", so CLIP learns to tell classes apart and
nothing else, and classes are asked for in these words alone: a text tower that has read one
sentence a class reads others badly (on CIFAR-10 an ensemble of seven cost 13 points). Writes train,
val and zeroshot (both the test pictures, val with captions, zeroshot with labels), text,
tokenizer.tiktoken, meta.json and samples/*.png.
Equal arguments give equal bytes.

Source: Krizhevsky 2009, Learning multiple layers of features from tiny images; prompts as CLIP's,
arXiv:2103.00020, section 3.1.4.
"""

import io
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from data.shapes.language import sentence
from minivlm.evaluation.english import article
from minivlm.loading.images import fit, open_image
from minivlm.loading.prepared import Pack, check_vocab_size, summary, write_folder
from minivlm.running.files import BROKEN_TAR, first_line, members_of, read_member
from minivlm.running.options import cli

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
# the first one is the caption; all are text for a tokenizer and a language model
TEMPLATES = ("a photo of {}", "a small photo of {}", "a blurry photo of {}", "a bad photo of {}",
             "a good photo of {}", "a picture of {}", "an image of {}")


@dataclass
class Config:
    """Where the photographs are and how large they become."""

    source: str = "data/cifar10/cifar10"  # folder or .tar with train/CLASS/* and test/CLASS/*
    out: str = "data/cifar10/prepared"  # folder to write
    train_split: str = "train"  # folder to learn from
    val_split: str = "test"  # folder to measure on
    image_size: int = 32  # side of the packed pictures in pixels
    vocab_size: int = 512  # upper limit of the tokenizer's vocabulary, special tokens included

    def __post_init__(self):
        if self.image_size < 1:
            raise ValueError(f"image_size {self.image_size} is below 1")
        check_vocab_size(self.vocab_size)
        if self.train_split == self.val_split:
            raise ValueError(f"both splits are {self.val_split}: nothing would be held out")


# --- the photographs ---


def members(source: str) -> Iterator[tuple[str, bytes]]:
    """Names (relative, with forward slashes) and contents of all files, in order of their names.

    Raises:
        FileNotFoundError: if there is no such folder or file.
        ValueError: if the file is no tar archive, or holds a file larger than pictures are.
    """
    path = Path(source)
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            yield file.relative_to(path).as_posix(), file.read_bytes()
    elif path.is_file():
        try:
            with tarfile.open(path) as archive:
                for m in sorted(members_of(archive), key=lambda m: m.name):
                    yield m.name.removeprefix("./"), read_member(archive, m)
        except BROKEN_TAR as error:
            raise ValueError(f"{source} is no readable tar archive ({first_line(error)})") from None
    else:
        raise FileNotFoundError(f"no photographs at {source}; pass --source, a folder or a .tar")


def read_splits(cfg: Config, skipped: Counter) -> dict[str, list[tuple[str, str, np.ndarray]]]:
    """(name, class, pixels) of every picture of both splits; counts by reason what is unusable.

    Raises:
        ValueError: if a split has no picture, or the splits differ in their classes.
    """
    found: dict[str, list[tuple[str, str, np.ndarray]]] = {cfg.train_split: [], cfg.val_split: []}
    for name, content in members(cfg.source):
        *_, split, label, file = ("", "", *PurePosixPath(name).parts)
        if split not in found:
            skipped["not in SPLIT/CLASS/"] += 1
        elif not file.lower().endswith(ENDINGS):
            skipped["not a picture by its name"] += 1
        else:
            try:
                picture = fit(open_image(io.BytesIO(content)), cfg.image_size)
            except ValueError:
                skipped["unreadable picture"] += 1
                continue
            words = label.replace("_", " ").replace("-", " ").lower()
            found[split].append((f"{split}/{label}/{file}", words, np.asarray(picture)))
    classes = {split: sorted({label for _, label, _ in rows}) for split, rows in found.items()}
    for split, names in classes.items():
        if not names:
            raise ValueError(
                f"{cfg.source} has no picture in {split}/CLASS/; skipped {dict(+skipped)}"
            )
    if classes[cfg.train_split] != classes[cfg.val_split]:
        differ = sorted(set(classes[cfg.train_split]) ^ set(classes[cfg.val_split]))
        raise ValueError(f"classes {', '.join(differ)} stand in one of the splits only")
    return found


# --- the data set ---


def main(cfg: Config) -> dict[str, float]:
    """Write the data set; return how many records of each kind, how many skipped, and the time."""
    began, skipped = time.time(), Counter()
    splits = read_splits(cfg, skipped)
    classes = sorted({label for _, label, _ in splits[cfg.train_split]})
    said = {c: [sentence(t.format(article(c))) for t in TEMPLATES] for c in classes}
    files: dict[str, list[dict]] = {}
    pixels = {name: Pack(cfg.out) for name in ("train", "val")}
    mixed = np.random.default_rng(0)  # in folders' order the first 1,000 would be of one class
    for name, split in (("train", cfg.train_split), ("val", cfg.val_split)):
        mixed.shuffle(splits[split])
        for _, _, picture in splits[split]:
            pixels[name].append(picture)
        files[name] = [
            {"id": key, "image": f"{name}.npy#{i}", "captions": said[label][:1], "label": label}
            for i, (key, label, _) in enumerate(splits[split])
        ]
    files["zeroshot"] = [r | {"group": "all"} for r in files["val"]]
    refused = dict(sorted((+skipped).items()))
    prompts = {c: said[c][:1] for c in classes}
    meta = {"name": "cifar10", "image_size": cfg.image_size, "prompts": prompts, "skipped": refused}
    texts = [text for c in classes for text in said[c]]
    write_folder(cfg.out, files, pixels, texts, cfg.vocab_size, meta)
    return summary(cfg.out, files, refused, began)


if __name__ == "__main__":
    cli(main, Config)
