"""Make a data set of LLaVA's published dialogues and the pictures that they are about.

    python data/llava/prepare.py --source llava_instruct_150k.json --images coco/train2017
    python data/llava/prepare.py --source llava_v1_5_mix665k.json --images playground/data

Reads the JSON as published: a list of {"id", "image", "conversations"}. Records of text
only have no image. Pictures of the 665K mix lie in several folders (coco/train2017/...,
gqa/images/...). An id may be a number, be missing, or occur twice. Records that cannot be
used are counted by reason.

A picture is packed once, however many dialogues are about it. All its dialogues are in the
same split: either train, or val, which is held out.

Writes train, val, text, tokenizer.tiktoken, meta.json, samples/*.png, and llava.json: the
records that were used, as they were read.

Source: Liu et al. 2023, arXiv:2304.08485; docs/Finetune_Custom_Data.md and
preprocess_multimodal (which puts <image> first) of haotian-liu/LLaVA.
"""

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minivlm.conversation import IMAGE_MARK, count_images, render
from minivlm.loading.images import fit, open_image
from minivlm.loading.prepared import Pack, sorted_counts, summary, write_folder
from minivlm.running.files import inside, parse_json
from minivlm.running.options import check, cli
from minivlm.tokenizer import Tokenizer


@dataclass
class Config:
    """Options; the comments are the help texts."""

    # published files
    source: str = "data/llava/llava_instruct_150k.json"  # dialogues
    images: str = "data/llava/images"  # folder that the records' paths are relative to
    limit: int = 0  # >= 0; how many records to read at most; 0 = all
    val_every: int = 50  # >= 2; one picture in so many is held out
    # data set
    out: str = "data/llava/prepared"  # data folder to write
    image_size: int = 64  # >= 1; side of the packed pictures in pixels
    fit: str = "pad"  # pad | crop | stretch; how a picture is made square; LLaVA-1.5 pads
    vocab_size: int = 4096  # >= 263; most tokens in the vocabulary, special tokens included


# a tokenizer of single bytes tells whether a dialogue can be rendered; the data set's own
# tokenizer is trained later
BYTES = Tokenizer({bytes([i]): i for i in range(256)})


# --- one record ---


def read_dialogues(path: str) -> list:
    """Read the published list of records.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no JSON list in UTF-8.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no dialogues at {path}; they are published as one .json file"
        )
    data = parse_json(Path(path).read_bytes(), path)
    if not isinstance(data, list):
        raise ValueError(f"{path} is no list of records")
    return data


def turns_of(record: dict) -> list[dict]:
    """The turns of a record, with <image> moved to the start, as LLaVA's trainer does.

    Raises:
        ValueError: if the record cannot be used; the error is the reason.
    """
    if not isinstance(record, dict) or not isinstance(record.get("conversations"), list):
        raise ValueError("no conversation")
    # copies: the originals go to llava.json as they were read
    turns = []
    for turn in record["conversations"]:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise ValueError("turn that is not {from, value}")
        turns.append({"from": turn.get("from"), "value": turn["value"]})
    image = record.get("image")
    if image is not None and not isinstance(image, str):
        raise ValueError("several pictures")  # a list of names
    marks = count_images(turns)
    if marks > 1:
        raise ValueError("several <image> marks")
    if image and not marks:
        raise ValueError("picture without <image>")
    if marks and not image:
        raise ValueError("<image> without a picture")
    if marks:
        text = turns[0]["value"]
        if IMAGE_MARK not in text:
            raise ValueError("<image> in a later turn")
        turns[0]["value"] = f"{IMAGE_MARK}\n{text.replace(IMAGE_MARK, '').strip()}"
    # `render` refuses what training would refuse: roles, their order, empty texts
    try:
        row = render(turns, BYTES, 1)
    except ValueError as error:
        reason = "empty turn" if "empty" in str(error) else "turns out of order"
        raise ValueError(reason) from None
    if not any(row.is_answer):
        raise ValueError("no answer")
    return turns


def picture_of(image: str, cfg: Config) -> np.ndarray:
    """The picture that a record names, made square: (S, S, 3) uint8.

    Raises:
        ValueError: if it cannot be used; the error is the reason.
    """
    try:
        path = inside(cfg.images, image)
    except ValueError:
        raise ValueError("picture outside of the folder") from None
    try:
        return np.asarray(fit(open_image(path), cfg.image_size, cfg.fit))
    except FileNotFoundError:
        raise ValueError("missing picture") from None
    except ValueError:
        raise ValueError("unreadable picture") from None


# --- the data set ---


def main(cfg: Config) -> dict[str, float]:
    """Write the data set; return numbers of records and of skipped ones, and the seconds.

    Raises:
        FileNotFoundError, ValueError: if a file is missing or wrong, or if a split is
            empty.
    """
    check(cfg)
    began = time.time()
    data = read_dialogues(cfg.source)
    if not Path(cfg.images).is_dir():
        raise FileNotFoundError(f"no folder of pictures at {cfg.images}")
    # a limit on records read, not on records used
    if cfg.limit:
        data = data[:cfg.limit]
    files = {"train": [], "val": []}
    pixels = {side: Pack(cfg.out) for side in files}
    places = {}  # image path -> its split, and its place among the packed pictures
    used = []
    skipped = Counter()
    by_folder = Counter()
    n_of_id = Counter()
    for number, record in enumerate(data):
        try:
            turns = turns_of(record)
            image = record.get("image")
            if image and image not in places:
                picture = picture_of(image, cfg)
                side = "val" if len(places) % cfg.val_every == 0 else "train"
                places[image] = (side, len(pixels[side]))
                pixels[side].append(picture)                         # (S, S, 3)
        except ValueError as reason:
            skipped[str(reason)] += 1
            continue
        key = f"record {number}"
        if record.get("id") not in (None, ""):
            key = str(record["id"])
        # a teacher's replies are kept by id, so every record needs an id of its own
        n_of_id[key] += 1
        if n_of_id[key] > 1:
            key += f" ({n_of_id[key]})"
        if image:
            side, row = places[image]
            new = {"id": key, "image": f"{side}.npy#{row}", "conversations": turns}
            folder = image.rpartition("/")[0] or "."
        else:
            # without a picture, nothing can leak from one split to the other
            side = "train"
            new = {"id": key, "conversations": turns}
            folder = "text only"
        files[side].append(new)
        used.append(record)
        by_folder[folder] += 1
        by_folder["turns"] += len(turns)

    # <image> stands for image tokens and is no text
    texts = []
    for record in files["train"]:
        for turn in record["conversations"]:
            texts.append(turn["value"].replace(IMAGE_MARK, "").strip())
    refused = sorted_counts(skipped)
    seen = sorted_counts(by_folder)
    meta = {"name": "llava", "image_size": cfg.image_size, "skipped": refused, "seen": seen}
    write_folder(cfg.out, files, pixels, texts, cfg.vocab_size, meta)
    (Path(cfg.out) / "llava.json").write_text(json.dumps(used, indent=1), encoding="utf-8")
    return summary(cfg.out, files, refused, began, f", {len(places)} pictures, {seen}")


if __name__ == "__main__":
    cli(main, Config)
