"""Make a data set of COCO: photographs, five captions by people for each, and boxes.

    python data/coco/prepare.py --captions annotations/captions_train2017.json \
        --instances annotations/instances_train2017.json --images train2017
    python data/coco/prepare.py --captions annotations/captions_train2014.json,annotations/\
captions_val2014.json --images train2014,val2014 --karpathy dataset_coco.json

Reads the annotation files as published; put commas between several. Boxes are optional.
Without a split file of Karpathy's, every `val_every`-th picture by its id is held out. With
it, the splits train and restval are learned from, and val or test is held out. Pictures are
packed at one size.

Writes train, val, text, tokenizer.tiktoken, meta.json and samples/*.png. With boxes,
meta.json also tells which words name a class: the name of a category, its synonyms, and the
plurals. The metric CHAIR needs these words. Synonyms come from a file such as
LisaAnne/Hallucination's data/synonyms.txt, with a class a line: "person, girl, boy, ...".
Equal arguments give equal bytes.

Source: Lin et al. 2014, arXiv:1405.0312; Chen et al. 2015, arXiv:1504.00325; split file of
Karpathy and Fei-Fei 2015, arXiv:1412.2306.
"""

import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minivlm.evaluation.english import plural
from minivlm.loading.images import fit, open_image
from minivlm.loading.prepared import Pack, sorted_counts, summary, write_folder
from minivlm.metrics import words_of
from minivlm.running.files import check_entries, inside, is_number, parse_json, read_text
from minivlm.running.options import check, cli

# key -> type, of what the entries of published lists must hold
CATEGORY = {"id": int, "name": str}
SIDES = {"width": int, "height": int}


@dataclass
class Config:
    """Options; the comments are the help texts."""

    # published files
    captions: str = "data/coco/annotations/captions_train2017.json"  # a,b for several
    instances: str = ""  # boxes; a,b for several; empty = none
    synonyms: str = ""  # other words for the classes, with a class a line; empty = none
    images: str = "data/coco/train2017"  # folder with the pictures; a,b for several
    limit: int = 0  # >= 0; how many pictures to read at most; 0 = all
    # held-out pictures
    karpathy: str = ""  # dataset_coco.json; empty = every val_every-th picture is held out
    held_out: str = "val"  # val | test; with karpathy: which of its splits is held out
    val_every: int = 20  # >= 2; without karpathy: one picture in so many is held out
    # data set
    out: str = "data/coco/prepared"  # data folder to write
    image_size: int = 64  # >= 1; side of the packed pictures in pixels
    fit: str = "pad"  # pad | crop | stretch; how a picture is made square
    vocab_size: int = 4096  # >= 263; most tokens in the vocabulary, special tokens included


# --- the published files ---


def read_json(paths: str, **lists: dict[str, type]) -> dict[str, list]:
    """Read annotation files and join the lists that they hold.

    Args:
        paths: of the files, with commas between.
        lists: name of a list -> the keys that its entries must have, with their types.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a file is no JSON object in UTF-8, or lacks a list or a part of an
            entry.
    """
    joined = {key: [] for key in lists}
    for path in paths.split(","):
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"no annotations at {path}; get them from cocodataset.org"
            )
        data = parse_json(Path(path).read_bytes(), path)
        missing = [key for key in lists if not isinstance(data, dict) or key not in data]
        if missing:
            names = " and no ".join(missing)
            raise ValueError(f"{path} has no {names}: is it the right file?")
        for key, types in lists.items():
            check_entries(data[key], f"{path}, {key}", **types)
            joined[key] += data[key]
    return joined


def captions_of(annotations: list[dict], skipped: Counter) -> dict[int, list[str]]:
    """Picture -> its captions, in the order of their ids; empty ones count as skipped."""
    captions = defaultdict(list)
    for a in sorted(annotations, key=lambda a: a["id"]):
        # published captions hold line breaks and double spaces
        text = " ".join(a["caption"].split())
        if text.strip(" ."):
            captions[a["image_id"]].append(text)
        else:
            skipped["empty caption"] += 1
    return captions


def square_box(box: list[float], width: int, height: int, mode: str) -> list[float]:
    """Where a box lies after its picture was made square.

    Args:
        box: x, y, width, height in pixels of the published picture.
        width, height: of the published picture, in pixels.
        mode: pad, crop or stretch, as in `images.fit`.

    Returns:
        x1, y1, x2, y2 in 0..1. If the box lies in a part that was cut off, x1 = x2 or
        y1 = y2.

    >>> square_box([0, 0, 100, 50], 100, 50, "pad")
    [0.0, 0.25, 1.0, 0.75]
    >>> square_box([0, 0, 50, 50], 100, 50, "crop")
    [0.0, 0.0, 0.5, 1.0]
    """
    x, y, w, h = box                                                 # pixels
    if mode == "stretch":
        corners = (x / width, y / height, (x + w) / width, (y + h) / height)
    else:
        side = max(width, height) if mode == "pad" else min(width, height)
        # pixels that are added on each side; below 0, they are cut off
        dx = (side - width) / 2
        dy = (side - height) / 2
        corners = (
            (x + dx) / side, (y + dy) / side, (x + w + dx) / side, (y + h + dy) / side,
        )
    # a part that was cut off lies outside of 0..1
    return [round(min(max(v, 0.0), 1.0), 4) for v in corners]


def boxes_of(
    cfg: Config, pictures: dict[int, dict], skipped: Counter
) -> dict[int, list[dict]]:
    """Picture -> its objects, with boxes on the square picture; {} without `instances`.

    Boxes that cannot be used are counted.

    Args:
        pictures: id -> its entry, with width and height.
    """
    if not cfg.instances:
        return {}
    boxed = {"id": int, "image_id": int, "category_id": int, "bbox": list}
    data = read_json(cfg.instances, annotations=boxed, categories=CATEGORY)
    names = {c["id"]: c["name"] for c in data["categories"]}
    # a picture without a size cannot be made square
    sized = {i: d for i, d in pictures.items() if min(d["width"], d["height"]) > 0}
    objects = defaultdict(list)
    for a in sorted(data["annotations"], key=lambda a: a["id"]):
        if a["image_id"] not in sized or a["category_id"] not in names:
            skipped["box of an unknown picture or category"] += 1
            continue
        if len(a["bbox"]) != 4 or not all(map(is_number, a["bbox"])):
            skipped["box that is not four numbers"] += 1
            continue
        picture = sized[a["image_id"]]
        box = square_box(a["bbox"], picture["width"], picture["height"], cfg.fit)
        if box[0] >= box[2] or box[1] >= box[3]:
            skipped["box outside of the square picture"] += 1
            continue
        o = {"name": names[a["category_id"]], "attributes": {}, "box": box}
        if a.get("iscrowd"):
            o["crowd"] = True  # one box around many objects, which nobody has counted
        objects[a["image_id"]].append(o)
    return objects


def phrases_of(cfg: Config) -> dict[str, str]:
    """Word or phrase -> the class that it names: categories, synonyms, and all plurals.

    Raises:
        FileNotFoundError, ValueError: if a file is missing, or a line of synonyms does not
            begin with a category.
    """
    if not cfg.instances:
        return {}
    categories = read_json(cfg.instances, categories=CATEGORY)["categories"]
    classes = [c["name"] for c in categories]
    # a blank name would be found in every text
    class_of = {c: c for c in classes if c.strip()}
    if cfg.synonyms:
        if not Path(cfg.synonyms).is_file():
            raise FileNotFoundError(f"no synonyms at {cfg.synonyms}")
        for number, line in enumerate(read_text(cfg.synonyms).splitlines(), 1):
            first, *others = [word.strip().lower() for word in line.split(",")]
            if first and first not in classes:
                raise ValueError(
                    f"{cfg.synonyms}:{number} begins with {first!r}, no category"
                )
            for word in others:
                # if two classes have the same word, it names the first of them
                if word:
                    class_of.setdefault(word, first)
    phrases = {}
    for word, name in class_of.items():
        for phrase in (plural(word), word):
            # spelled as `metrics.mentions` reads a text
            phrases[words_of(phrase).strip()] = name
    return phrases


def split_of(cfg: Config, ids: list[int], skipped: Counter) -> dict[int, str]:
    """Picture -> its split: "train", "val", or "" for neither.

    Pictures that the split file lists and the captions lack are counted.
    """
    sides = {}
    if not cfg.karpathy:
        # by id, so that the order in the file does not matter
        for n, i in enumerate(sorted(ids)):
            sides[i] = "val" if n % cfg.val_every == 0 else "train"
        return sides
    # Karpathy's restval is the part of COCO's val2014 that most papers train on
    side_of = {"train": "train", "restval": "train", cfg.held_out: "val"}
    listed = read_json(cfg.karpathy, images={"cocoid": int, "split": str})["images"]
    for d in listed:
        sides[d["cocoid"]] = side_of.get(d["split"], "")
    used = {i for i, side in sides.items() if side}
    skipped["in the split file, not in the captions"] += len(used - set(ids))
    return {i: sides.get(i, "") for i in ids}


# --- the data set ---


def main(cfg: Config) -> dict[str, float]:
    """Write the data set; return numbers of records and of skipped ones, and the seconds.

    Raises:
        FileNotFoundError, ValueError: if a file is missing or wrong, or if a split is
            empty.
    """
    check(cfg)
    began = time.time()
    skipped = Counter()
    # sizes are needed only to place boxes
    picture = {"id": int, "file_name": str}
    if cfg.instances:
        picture |= SIDES
    caption = {"id": int, "image_id": int, "caption": str}
    data = read_json(cfg.captions, images=picture, annotations=caption)
    folders = [Path(folder) for folder in cfg.images.split(",")]
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder of pictures at {folder}")
    pictures = {d["id"]: d for d in data["images"]}
    captions = captions_of(data["annotations"], skipped)
    phrases = phrases_of(cfg)
    objects = boxes_of(cfg, pictures, skipped)
    sides = split_of(cfg, list(pictures), skipped)
    ids = sorted(pictures)
    if cfg.limit:
        ids = ids[:cfg.limit]

    files = {"train": [], "val": []}
    pixels = {side: Pack(cfg.out) for side in files}
    for i in ids:
        side = sides[i]
        if not side:
            skipped["not in the split"] += 1
            continue
        if not captions[i]:
            skipped["picture without captions"] += 1
            continue
        try:
            # from the first folder that has it: train2014 and val2014 share no file name
            paths = [inside(folder, pictures[i]["file_name"]) for folder in folders]
            path = next((path for path in paths if path.is_file()), paths[0])
            image = fit(open_image(path), cfg.image_size, cfg.fit)
        except FileNotFoundError:
            skipped["missing picture"] += 1
            continue
        except ValueError:
            skipped["unreadable picture"] += 1
            continue
        record = {
            "id": f"coco-{i}", "image": f"{side}.npy#{len(files[side])}",
            "captions": captions[i],
        }
        # an empty list says that there is no object; without a list, nobody has looked
        if cfg.instances:
            record["objects"] = objects.get(i, [])
        files[side].append(record)
        pixels[side].append(np.asarray(image))                       # (S, S, 3)

    # held-out captions must not decide which tokens the vocabulary has
    texts = []
    for record in files["train"]:
        texts += record["captions"]
    refused = sorted_counts(skipped)
    meta = {"name": "coco", "image_size": cfg.image_size, "skipped": refused}
    if phrases:
        meta["phrases"] = phrases
    write_folder(cfg.out, files, pixels, texts, cfg.vocab_size, meta)
    return summary(cfg.out, files, refused, began)


if __name__ == "__main__":
    cli(main, Config)
