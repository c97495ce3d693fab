"""Make a data set of LLaVA's published dialogues and the pictures that they are about.

    python data/llava/prepare.py --source llava_instruct_150k.json --images coco/train2017
    python data/llava/prepare.py --source llava_v1_5_mix665k.json --images playground/data
    python data/llava/prepare.py --source blip_laion_cc_sbu_558k.json --images images --captions

Reads the JSON as published: a list of {"id", "image", "conversations"}. "image" is a name,
or a list of names, or missing in records of text only. Pictures of the 665K mix lie in
several folders (coco/train2017/..., gqa/images/...). An id may be a number, be missing, or
occur twice. A turn is {"from": "human" | "gpt", "value"} or {"role": "user" | "assistant",
"content"}. As in LLaVA's trainer, a turn's only <image> moves to its start, and a first
turn by gpt is left out. Records that cannot be used are counted by reason.

With --captions, the answer to a single question also becomes the picture's caption, and
dialogues with more questions are left out. train_align.py learns from captions, as LLaVA
does in its first stage.

A picture is packed once, however many dialogues are about it. All its dialogues are in the
same split: either train, or val, which is held out. A dialogue about pictures of both is
left out. LLaVA-1.5 pads its pictures (--fit pad).

Writes train, val, text, tokenizer.tiktoken, meta.json, samples/*.png, and llava.json: the
records that were used, as they were read.

Source: Liu et al. 2023, arXiv:2304.08485; docs/Finetune_Custom_Data.md and
llava/train/train.py (preprocess_multimodal, preprocess_v1) of haotian-liu/LLaVA.
"""

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minivlm.conversation import IMAGE_MARK, count_images, render
from minivlm.loading.images import fit, open_image
from minivlm.loading.prepared import (
    Pack, sorted_counts, summary, unique_id, write_folder,
)
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
    val_every: int = 50  # >= 2; about one picture in so many is held out
    captions: bool = False  # answers are captions too; other dialogues are left out
    # data set
    out: str = "data/llava/prepared"  # data folder to write
    image_size: int = 64  # >= 1; side of the packed pictures in pixels
    fit: str = "stretch"  # stretch | pad | crop; how a picture is made square
    vocab_size: int = 4096  # >= 263; most tokens in the vocabulary, special tokens included


# a tokenizer of single bytes tells whether a dialogue can be rendered; the data set's own
# tokenizer is trained later
BYTES = Tokenizer({bytes([i]): i for i in range(256)})
ONE = ["human", "gpt"]  # who speaks in a dialogue of one question
ROLES = {
    "human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system",
}


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
    """The turns of a record as LLaVA's trainer reads them.

    Raises:
        ValueError: if the record cannot be used; the error is the reason.
    """
    published = record.get("conversations") if isinstance(record, dict) else None
    if not isinstance(published, list) or not published:
        raise ValueError("no conversation")
    n_images = len(names_of(record))
    # copies: the originals go to llava.json as they were read
    turns = []
    for turn in published:
        if not isinstance(turn, dict):
            raise ValueError("turn that is not {from, value}")
        role = ROLES.get(str(turn.get("from", turn.get("role"))))
        text = turn.get("value", turn.get("content"))
        if not isinstance(text, str):
            raise ValueError("turn that is not {from, value}")
        if not role:
            raise ValueError("turn by somebody else than human, gpt and system")
        # of one picture, a turn may have several marks; they are one
        if text.count(IMAGE_MARK) == 1 or (IMAGE_MARK in text and n_images == 1):
            text = f"{IMAGE_MARK}\n{text.replace(IMAGE_MARK, '').strip()}".strip()
        turns.append({"from": role, "value": text})
    first = 1 if turns[0]["from"] == "system" else 0
    if first < len(turns) and turns[first]["from"] == "gpt":
        del turns[first]
    marks = count_images(turns)
    if n_images > marks:
        raise ValueError("picture without <image>")
    if marks > n_images:
        raise ValueError("<image> without a picture")
    if any(t["from"] == "gpt" and IMAGE_MARK in t["value"] for t in turns):
        raise ValueError("<image> in an answer")
    if any(not turn["value"].strip() for turn in turns):
        raise ValueError("empty turn")
    if not any(turn["from"] == "gpt" for turn in turns):
        raise ValueError("no answer")
    try:
        render(turns, BYTES, 1)  # refuses what training would refuse: another order
    except ValueError:
        raise ValueError("turns out of order") from None
    return turns


def names_of(record: dict) -> list[str]:
    """The names of a record's pictures: of none, of one, or a list.

    Raises:
        ValueError: if they cannot be used; the error is the reason.
    """
    image = record.get("image") or []
    names = image if isinstance(image, list) else [image]
    if not all(name and isinstance(name, str) for name in names):
        raise ValueError("picture that is no name of a file")
    return names


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
    except (ValueError, OSError):
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
            names = names_of(record)
            if cfg.captions and (len(names) != 1 or [t["from"] for t in turns] != ONE):
                raise ValueError("no single answer about one picture")
            sides = {places[name][0] for name in names if name in places}
            if len(sides) > 1:
                raise ValueError("pictures of both splits")
            # all are read before one is kept: a record may name a broken one as well
            new = [name for name in dict.fromkeys(names) if name not in places]
            loaded = [picture_of(name, cfg) for name in new]         # (S, S, 3) each
            # without a picture, nothing can leak from one split to the other
            side = "train"
            if sides:
                side = sides.pop()
            elif names and len(places) % cfg.val_every == 0:
                side = "val"
            for name, picture in zip(new, loaded):
                places[name] = (side, len(pixels[side]))
                pixels[side].append(picture)
        except ValueError as reason:
            skipped[str(reason)] += 1
            continue
        key = f"record {number}"
        if record.get("id") not in (None, ""):
            key = str(record["id"])
        # a teacher's replies are kept by id, so every record needs an id of its own
        key = unique_id(key, n_of_id)
        new_record = {"id": key}
        folder = "text only"
        if names:
            packed = [f"{side}.npy#{places[name][1]}" for name in names]
            new_record["image"] = packed[0] if len(packed) == 1 else packed
            folder = names[0].rpartition("/")[0] or "."
        if cfg.captions:
            new_record["captions"] = [turns[1]["value"].strip()]
        files[side].append(new_record | {"conversations": turns})
        used.append(record)
        by_folder[folder] += 1
        by_folder["turns"] += len(turns)
        n_left_out = len(record["conversations"]) - len(turns)
        by_folder["first turns by gpt, left out"] += n_left_out

    # <image> stands for image tokens and is no text
    texts = []
    for record in files["train"]:
        for turn in record["conversations"]:
            texts.append(turn["value"].replace(IMAGE_MARK, "").strip())
    texts = [text for text in texts if text]
    refused = sorted_counts(skipped)
    seen = sorted_counts(by_folder)
    meta = {
        "name": "llava", "image_size": cfg.image_size, "fit": cfg.fit, "skipped": refused,
        "seen": seen,
    }
    write_folder(cfg.out, files, pixels, texts, cfg.vocab_size, meta)
    (Path(cfg.out) / "llava.json").write_text(json.dumps(used, indent=1), encoding="utf-8")
    return summary(cfg.out, files, refused, began, f", {len(places)} pictures, {seen}")


if __name__ == "__main__":
    cli(main, Config)
