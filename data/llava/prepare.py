"""Make a data set of LLaVA's published dialogues and the pictures that they are about.

    python data/llava/prepare.py --source llava_instruct_150k.json --images coco/train2017
    python data/llava/prepare.py --source llava_v1_5_mix665k.json --images playground/data

Reads the JSON as published: a list of {"id", "image", "conversations"}; text-only records have no
image, pictures of the 665K mix lie in folders of their own (coco/train2017/..., gqa/images/...),
the id may be a number, missing, or given twice. What cannot be used is counted by reason. A picture
is packed once, however many dialogues are about it, and is either learned from or held out.

Writes train, val, text, tokenizer.tiktoken, meta.json, samples/*.png, and llava.json: the records
that were used, as they were read.

Source: Liu et al. 2023, arXiv:2304.08485; docs/Finetune_Custom_Data.md and preprocess_multimodal
(which puts <image> first) of haotian-liu/LLaVA.
"""

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minivlm.conversation import IMAGE_MARK, count_images, render
from minivlm.loading.images import fit, open_image
from minivlm.loading.prepared import Pack, check_vocab_size, summary, write_folder
from minivlm.running.files import inside, parse_json
from minivlm.running.options import cli
from minivlm.tokenizer import Tokenizer


@dataclass
class Config:
    """Where the dialogues and the pictures are."""

    source: str = "data/llava/llava_instruct_150k.json"  # dialogues as published
    images: str = "data/llava/images"  # folder that the records' image paths are relative to
    limit: int = 0  # at most so many records; 0 = all
    val_every: int = 50  # one picture in so many is held out
    out: str = "data/llava/prepared"  # folder to write
    image_size: int = 64  # side of the packed pictures in pixels
    fit: str = "pad"  # how a picture is made square: pad (LLaVA-1.5), crop, stretch
    vocab_size: int = 4096  # upper limit of the vocabulary, special tokens included

    def __post_init__(self):
        check_vocab_size(self.vocab_size)
        if self.fit not in ("pad", "crop", "stretch"):
            raise ValueError(f"fit {self.fit!r} is not one of pad, crop, stretch")
        if self.val_every < 2 or self.image_size < 1 or self.limit < 0:
            raise ValueError("expected val_every >= 2, image_size >= 1 and limit >= 0")


BYTES = Tokenizer({bytes([i]): i for i in range(256)})  # only to see whether a dialogue can be read


def read_dialogues(path: str) -> list:
    """The published list.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no JSON list in UTF-8.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no dialogues at {path}; they are published as one .json file")
    data = parse_json(Path(path).read_bytes(), path)
    if not isinstance(data, list):
        raise ValueError(f"{path} is no list of records")
    return data


def turns_of(record: dict) -> list[dict]:
    """A record's turns, with <image> at the start of the first one as LLaVA's trainer puts it.

    Raises:
        ValueError: with the reason for which the record cannot be used.
    """
    if not isinstance(record, dict) or not isinstance(record.get("conversations"), list):
        raise ValueError("no conversation")
    turns = record["conversations"]
    if not all(isinstance(t, dict) and isinstance(t.get("value"), str) for t in turns):
        raise ValueError("turn that is not {from, value}")
    image = record.get("image")
    if image is not None and not isinstance(image, str):
        raise ValueError("several pictures")
    marks = count_images(turns)
    if marks > 1:
        raise ValueError("several <image> marks")
    if bool(image) != bool(marks):
        raise ValueError("picture without <image>" if image else "<image> without a picture")
    if marks and IMAGE_MARK in "".join(t["value"] for t in turns[1:]):
        raise ValueError("<image> in a later turn")
    out = [{"from": t.get("from"), "value": t["value"]} for t in turns]
    if marks:
        text = out[0]["value"].replace(IMAGE_MARK, "").strip()
        out[0]["value"] = f"{IMAGE_MARK}\n{text}"
    try:
        _, answers = render(out, BYTES, 1)
    except ValueError as error:
        empty = "empty" in str(error)
        raise ValueError("empty turn" if empty else "turns out of order") from None
    if not any(answers):
        raise ValueError("no answer")
    return out


def main(cfg: Config) -> dict[str, float]:
    """Write the data set; return how many records of each kind, how many skipped, and the time.

    Raises:
        FileNotFoundError, ValueError: for files that are missing or wrong, or if a side is empty.
    """
    began, skipped, seen = time.time(), Counter(), Counter()
    data = read_dialogues(cfg.source)
    if not Path(cfg.images).is_dir():
        raise FileNotFoundError(f"no folder of pictures at {cfg.images}")
    root = Path(cfg.images)
    files: dict[str, list[dict]] = {"train": [], "val": []}
    pixels = {side: Pack(cfg.out) for side in files}
    places: dict[str, str] = {}                                      # image path -> side.npy#row
    used, ids = [], Counter()
    for number, record in enumerate(data[: cfg.limit or None]):
        try:
            turns = turns_of(record)
            image = record.get("image")
            if image and image not in places:
                try:
                    path = inside(root, image)
                except ValueError:
                    raise ValueError("picture outside of the folder") from None
                try:
                    picture = fit(open_image(path), cfg.image_size, cfg.fit)
                except FileNotFoundError:
                    raise ValueError("missing picture") from None
                except ValueError:
                    raise ValueError("unreadable picture") from None
                side = "val" if len(places) % cfg.val_every == 0 else "train"
                places[image] = f"{side}.npy#{len(pixels[side])}"
                pixels[side].append(np.asarray(picture))
        except ValueError as reason:
            skipped[str(reason)] += 1
            continue
        side = places[image].split(".")[0] if image else "train"
        key = str(record["id"]) if record.get("id") not in (None, "") else f"record {number}"
        ids[key] += 1
        key += f" ({ids[key]})" if ids[key] > 1 else ""
        place = {"image": places[image]} if image else {}
        files[side].append({"id": key, **place, "conversations": turns})
        used.append(record)
        folder = "/".join(image.split("/")[:-1]) or "." if image else "text only"
        seen[folder] += 1
        seen["turns"] += len(turns)
    for side, records in files.items():
        if not records:
            raise ValueError(f"no usable record for {side}; skipped {dict(+skipped)}")

    texts = [t["value"].replace(IMAGE_MARK, "").strip()
             for r in files["train"] for t in r["conversations"]]
    refused, told = dict(sorted((+skipped).items())), dict(sorted(seen.items()))
    meta = {"name": "llava", "image_size": cfg.image_size, "skipped": refused, "seen": told}
    write_folder(cfg.out, files, pixels, texts, cfg.vocab_size, meta)
    (Path(cfg.out) / "llava.json").write_text(json.dumps(used, indent=1), encoding="utf-8")
    return summary(cfg.out, files, refused, began, f", {len(places)} pictures, {told}")


if __name__ == "__main__":
    cli(main, Config)
