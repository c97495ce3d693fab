"""Make a data set of COCO: photographs, five captions by people each, and boxes.

    python data/coco/prepare.py --captions annotations/captions_train2017.json \
        --instances annotations/instances_train2017.json --images train2017
    python data/coco/prepare.py --captions annotations/captions_train2014.json,annotations/\
captions_val2014.json --images train2014,val2014 --karpathy dataset_coco.json

Reads the annotation files as published, several with commas between; boxes are optional. Without a
Karpathy split file every `val_every`-th picture, by its id, is held out; with it, train and restval
are learned from and its val or test is held out. Pictures are packed at one size.

Writes train, val, text, tokenizer.tiktoken, meta.json and samples/*.png. With boxes, meta.json
tells which words name a class, for CHAIR: a category's name, its plural, and the synonyms of a file
as LisaAnne/Hallucination's data/synonyms.txt: "person, girl, boy, ...", a class a line.
Equal arguments give equal bytes.

Source: Lin et al. 2014, arXiv:1405.0312; Chen et al. 2015, arXiv:1504.00325; split file of Karpathy
and Fei-Fei 2015, arXiv:1412.2306.
"""

import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minivlm.evaluation.english import plural
from minivlm.loading.images import fit, open_image
from minivlm.loading.prepared import Pack, check_vocab_size, summary, write_folder
from minivlm.metrics import words_of
from minivlm.running.files import check_entries, inside, is_number, parse_json, read_text
from minivlm.running.options import cli

CATEGORY, SIDES = {"id": int, "name": str}, {"width": int, "height": int}


@dataclass
class Config:
    """Where the files are, and what becomes of the pictures."""

    captions: str = "data/coco/annotations/captions_train2017.json"  # as published, or a,b
    instances: str = ""  # boxes as published; empty = none
    synonyms: str = ""  # other words for the classes, a class a line; empty = none
    images: str = "data/coco/train2017"  # folder with the pictures; commas between several
    karpathy: str = ""  # dataset_coco.json; empty = every val_every-th picture is held out
    held_out: str = "val"  # with karpathy: which of its splits is held out, val or test
    val_every: int = 20  # without karpathy: one picture in so many is held out
    limit: int = 0  # at most so many pictures; 0 = all
    out: str = "data/coco/prepared"  # folder to write
    image_size: int = 64  # side of the packed pictures in pixels
    fit: str = "pad"  # how a picture is made square: pad, crop, stretch
    vocab_size: int = 4096  # upper limit of the vocabulary, special tokens included

    def __post_init__(self):
        check_vocab_size(self.vocab_size)
        if self.held_out not in ("val", "test"):
            raise ValueError(f"held_out {self.held_out!r} is not one of val, test")
        if self.fit not in ("pad", "crop", "stretch"):
            raise ValueError(f"fit {self.fit!r} is not one of pad, crop, stretch")
        if self.val_every < 2 or self.image_size < 1 or self.limit < 0:
            raise ValueError("expected val_every >= 2, image_size >= 1 and limit >= 0")


# --- the published files ---


def read_json(paths: str, **lists: dict[str, type]) -> dict[str, list]:
    """Read annotation files, with commas between, and join the lists that they hold.

    Args:
        lists: name of each list -> what its entries must have, with their types.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if one is no JSON object in UTF-8, or a list or something in it is missing.
    """
    joined: dict[str, list] = {key: [] for key in lists}
    for path in paths.split(","):
        if not Path(path).is_file():
            raise FileNotFoundError(f"no annotations at {path}; get them from cocodataset.org")
        data = parse_json(Path(path).read_bytes(), path)
        missing = [key for key in lists if not isinstance(data, dict) or key not in data]
        if missing:
            raise ValueError(f"{path} has no {' and no '.join(missing)}: is it the right file?")
        for key, types in lists.items():
            check_entries(data[key], f"{path}, {key}", **types)
            joined[key] += data[key]
    return joined


def captions_of(annotations: list[dict], skipped: Counter) -> dict[int, list[str]]:
    """Captions by picture, in order of their ids, white space tidied; empty ones are counted."""
    said = defaultdict(list)
    for a in sorted(annotations, key=lambda a: a["id"]):
        text = " ".join(a["caption"].split())
        if text.strip(" ."):
            said[a["image_id"]].append(text)
        else:
            skipped["empty caption"] += 1
    return said


def square_box(box: list[float], width: int, height: int, mode: str) -> list[float]:
    """Where a box lies once its picture is square.

    Args:
        box: x, y, width, height in pixels of the published picture of `width` x `height`.
        mode: pad, crop or stretch, as `images.fit` takes it.

    Returns:
        x1, y1, x2, y2 in 0..1; of a part cut away, nothing is left: x1 = x2 or y1 = y2.

    >>> square_box([0, 0, 100, 50], 100, 50, "pad"), square_box([0, 0, 50, 50], 100, 50, "crop")
    ([0.0, 0.25, 1.0, 0.75], [0.0, 0.0, 0.5, 1.0])
    """
    x, y, w, h = box
    if mode == "stretch":
        corners = (x / width, y / height, (x + w) / width, (y + h) / height)
    else:
        side = max(width, height) if mode == "pad" else min(width, height)
        dx, dy = (side - width) / 2, (side - height) / 2             # below 0 where it is cut
        corners = ((x + dx) / side, (y + dy) / side, (x + w + dx) / side, (y + h + dy) / side)
    return [round(min(max(v, 0.0), 1.0), 4) for v in corners]


def boxes_of(
    cfg: Config, sizes: dict[int, tuple[int, int]], skipped: Counter
) -> dict[int, list[dict]]:
    """Objects by picture, with their boxes on the square picture; counts those left out."""
    if not cfg.instances:
        return {}
    boxed = {"id": int, "image_id": int, "category_id": int, "bbox": list}
    data = read_json(cfg.instances, annotations=boxed, categories=CATEGORY)
    names = {c["id"]: c["name"] for c in data["categories"]}
    found = defaultdict(list)
    for a in sorted(data["annotations"], key=lambda a: a["id"]):
        if a["image_id"] not in sizes or a["category_id"] not in names:
            skipped["box of an unknown picture or category"] += 1
            continue
        if len(a["bbox"]) != 4 or not all(map(is_number, a["bbox"])):
            skipped["box that is not four numbers"] += 1
            continue
        box = square_box(a["bbox"], *sizes[a["image_id"]], cfg.fit)
        if box[0] >= box[2] or box[1] >= box[3]:
            skipped["box outside of the square picture"] += 1
            continue
        crowd = {"crowd": True} if a.get("iscrowd") else {}          # many in one box, uncounted
        name = names[a["category_id"]]
        found[a["image_id"]].append({"name": name, "attributes": {}, "box": box, **crowd})
    return found


def phrases_of(cfg: Config) -> dict[str, str]:
    """Which class a word or phrase names: every category, its synonyms, and the plurals of all.

    Raises:
        FileNotFoundError, ValueError: if a file is missing, or a line of synonyms begins with no
            category.
    """
    if not cfg.instances:
        return {}
    classes = [c["name"] for c in read_json(cfg.instances, categories=CATEGORY)["categories"]]
    named = {c: c for c in classes if c.strip()}
    if cfg.synonyms:
        if not Path(cfg.synonyms).is_file():
            raise FileNotFoundError(f"no synonyms at {cfg.synonyms}")
        for number, line in enumerate(read_text(cfg.synonyms).splitlines(), 1):
            first, *others = (word.strip().lower() for word in line.split(","))
            if first and first not in classes:
                raise ValueError(f"{cfg.synonyms}:{number} begins with {first!r}, no category")
            named |= {word: first for word in others if word and word not in named}
    # word for word as `metrics.mentions` reads a text
    return {words_of(p).strip(): c for word, c in named.items() for p in (plural(word), word)}


def split_of(cfg: Config, ids: list[int], skipped: Counter) -> dict[int, str]:
    """Which side each picture is on: "train", "val", or "" for neither.

    Counts what a split file asks for and the captions do not hold.
    """
    if not cfg.karpathy:
        return {i: "val" if n % cfg.val_every == 0 else "train" for n, i in enumerate(sorted(ids))}
    sides = {"train": "train", "restval": "train", cfg.held_out: "val"}
    listed = {
        d["cocoid"]: sides.get(d["split"], "")
        for d in read_json(cfg.karpathy, images={"cocoid": int, "split": str})["images"]
    }
    lacking = {i for i, side in listed.items() if side} - set(ids)
    skipped["in the split file, not in the captions"] += len(lacking)
    return {i: listed.get(i, "") for i in ids}


# --- the data set ---


def main(cfg: Config) -> dict[str, float]:
    """Write the data set; return how many records of each kind, how many skipped, and the time.

    Raises:
        FileNotFoundError, ValueError: for files that are missing or wrong, or if a side is empty.
    """
    began, skipped = time.time(), Counter()
    shown = {"id": int, "file_name": str} | (SIDES if cfg.instances else {})
    written = {"id": int, "image_id": int, "caption": str}
    data = read_json(cfg.captions, images=shown, annotations=written)
    folders = [Path(folder) for folder in cfg.images.split(",")]
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder of pictures at {folder}")
    pictures = {d["id"]: d for d in data["images"]}
    said = captions_of(data["annotations"], skipped)
    phrases = phrases_of(cfg)
    sizes = {i: (d["width"], d["height"]) for i, d in pictures.items()
             if cfg.instances and min(d["width"], d["height"]) > 0}
    objects = boxes_of(cfg, sizes, skipped)
    sides = split_of(cfg, list(pictures), skipped)

    files: dict[str, list[dict]] = {"train": [], "val": []}
    pixels = {side: Pack(cfg.out) for side in files}
    for i, d in sorted(pictures.items())[: cfg.limit or None]:
        side = sides[i]
        if not side or not said[i]:
            skipped["not in the split" if not side else "picture without captions"] += 1
            continue
        try:
            paths = [inside(folder, d["file_name"]) for folder in folders]
            path = next((path for path in paths if path.is_file()), paths[0])
            image = fit(open_image(path), cfg.image_size, cfg.fit)
        except (FileNotFoundError, ValueError) as error:
            reason = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
            skipped[f"{reason} picture"] += 1
            continue
        record = {"id": f"coco-{i}", "image": f"{side}.npy#{len(files[side])}", "captions": said[i]}
        files[side].append(record | ({"objects": objects.get(i, [])} if cfg.instances else {}))
        pixels[side].append(np.asarray(image))
    for side, records in files.items():
        if not records:
            raise ValueError(f"no usable picture for {side}; skipped {dict(+skipped)}")

    texts = [caption for record in files["train"] for caption in record["captions"]]
    refused = dict(sorted((+skipped).items()))
    meta = {"name": "coco", "image_size": cfg.image_size, "skipped": refused}
    meta |= {"phrases": phrases} if phrases else {}
    write_folder(cfg.out, files, pixels, texts, cfg.vocab_size, meta)
    return summary(cfg.out, files, refused, began)


if __name__ == "__main__":
    cli(main, Config)
