"""Make a data set of COCO: photographs, five captions by people for each, and boxes.

    python data/coco/prepare.py --captions annotations/captions_train2017.json \
        --instances annotations/instances_train2017.json --images train2017
    python data/coco/prepare.py --captions annotations/captions_train2014.json,annotations/\
captions_val2014.json --images train2014,val2014 --karpathy dataset_coco.json

Reads the annotation files as published; put commas between several. Boxes are optional.
Without a split file of Karpathy's, every `val_every`-th picture by its id is held out. With
it, the splits train and restval are learned from, and val or test is held out. Pictures are
packed at one size. Entries that cannot be used are counted.

Writes train, val, text, tokenizer.tiktoken, meta.json and samples/*.png. With boxes,
meta.json also tells which words name a class: the name of a category, its synonyms, and the
plurals; and which pairs of words are one thing ("baby elephant"). The metric CHAIR needs
these words. Synonyms come from a file such as LisaAnne/Hallucination's data/synonyms.txt,
with a class a line: "person, girl, boy, ...".
Equal arguments give equal bytes.

Source: Lin et al. 2014, arXiv:1405.0312; Chen et al. 2015, arXiv:1504.00325; split file of
Karpathy and Fei-Fei 2015, arXiv:1412.2306.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minivlm.evaluation.english import plural
from minivlm.loading.images import fit, open_image
from minivlm.loading.prepared import Pack, sorted_counts, summary, write_folder
from minivlm.metrics import words_of
from minivlm.running.files import first_line, inside, is_number, parse_json, read_text
from minivlm.running.options import check, cli, printable


# Two words that are one thing -> the word that tells which; "" = no object. Otherwise the
# first word, or the last, would name an object of its own: a baby elephant is no person.
# Source: LisaAnne/Hallucination, utils/chair.py; its other pairs are among its synonyms.
PAIRS = {
    "train track": "", "home plate": "", "hot dog": "", "teddy bear": "",
    "toilet seat": "toilet", "passenger jet": "jet", "passenger train": "train",
}
for _animal in ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra",
                "giraffe", "animal", "cub"):
    PAIRS[f"baby {_animal}"] = PAIRS[f"adult {_animal}"] = _animal


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
    fit: str = "stretch"  # stretch | pad | crop; how a picture is made square
    vocab_size: int = 4096  # >= 263; most tokens in the vocabulary, special tokens included


# --- the published files ---


def read_json(
    paths: str, skipped: Counter, optional: str = "", **lists: Callable[[dict], dict]
) -> dict[str, list[dict]]:
    """Read annotation files and join the lists that they hold.

    Args:
        paths: of the files, with commas between.
        skipped: counts the entries that cannot be used.
        optional: name of a list that a file may lack.
        lists: name of a list -> the function that takes what is needed out of an entry. It
            may raise any error of a value that is missing or has a wrong type.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a file is no JSON object in UTF-8, or lacks a list, or if none of a
            list's entries can be used.
    """
    joined = {key: [] for key in lists}
    for path in paths.split(","):
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"no annotations at {path}; get them from cocodataset.org"
            )
        data = parse_json(Path(path).read_bytes(), path)
        held = data if isinstance(data, dict) else {}
        missing = [key for key in lists if key not in held and key != optional]
        if missing:
            names = " and no ".join(missing)
            raise ValueError(f"{path} has no {names}: is it the right file?")
        for key, read in lists.items():
            entries = held.get(key, [])
            if not isinstance(entries, list):
                raise ValueError(f"{path}, {key} is no list")
            used = []
            faults = []
            for entry in entries:
                try:
                    used.append(read(entry))
                except (ValueError, LookupError, TypeError, AttributeError) as error:
                    faults.append(f"{type(error).__name__}: {first_line(error)}")
            if faults and not used:
                raise ValueError(
                    f"{path}, {key}: none of {len(faults)} entries can be used; "
                    f"the first: {faults[0]}"
                )
            skipped[f"entry of {key} with a part missing or wrong"] += len(faults)
            joined[key] += used
    return joined


def id_of(value: object) -> str:
    """An id as text; files may write the same id as 1, 1.0 or "1".

    Raises:
        ValueError: if it is no id.

    >>> [id_of(value) for value in (1, 1.0, "1", "b7")]
    ['1', '1', '1', 'b7']
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) not in (int, str) or not str(value).strip():
        raise ValueError("no id")
    return printable(str(value).strip(), keep="")


def by_id(entry: dict) -> tuple[int, str]:
    """A key to sort entries by their ids: numbers by size, entries without an id first."""
    return len(entry["id"]), entry["id"]


def text_of(value: object) -> str:
    """The value itself if it is a text; otherwise raises a ValueError."""
    if not isinstance(value, str):
        raise ValueError("no text")
    return value


def picture_in(entry: dict) -> dict:
    """Id, name and size of a picture; without a usable size, width and height are 0."""
    size = [entry.get("width"), entry.get("height")]
    if not all(is_number(side) and side > 0 for side in size):
        size = [0, 0]
    name = text_of(entry["file_name"])
    return {"id": id_of(entry["id"]), "file_name": name, "size": size}


def caption_in(entry: dict) -> dict:
    """A caption, which may be empty, and its picture; it may lack an id of its own."""
    # published captions hold line breaks and double spaces
    text = " ".join(text_of(entry.get("caption") or "").split())
    own = entry.get("id")
    return {
        "id": "" if own is None else id_of(own), "image_id": id_of(entry["image_id"]),
        "caption": text,
    }


def box_in(entry: dict) -> dict:
    """A box, its picture and its category; it may lack an id of its own."""
    own = entry.get("id")
    return {
        "id": "" if own is None else id_of(own), "image_id": id_of(entry["image_id"]),
        "category_id": id_of(entry["category_id"]), "bbox": entry.get("bbox"),
        "crowd": bool(entry.get("iscrowd")),
    }


def category_in(entry: dict) -> dict:
    """Id and name of a category, in small letters: "Hot  dog" is "hot dog"."""
    name = " ".join(text_of(entry["name"]).lower().split())
    return {"id": id_of(entry["id"]), "name": name}


def side_in(entry: dict) -> dict:
    """Id and split of a picture in Karpathy's file."""
    return {"id": id_of(entry["cocoid"]), "split": text_of(entry["split"])}


def captions_of(
    annotations: list[dict], pictures: dict[str, dict], skipped: Counter
) -> dict[str, list[str]]:
    """Picture -> its captions, in the order of their ids; unusable ones are counted."""
    captions = defaultdict(list)
    for a in sorted(annotations, key=by_id):
        if a["image_id"] not in pictures:
            skipped["caption of an unknown picture"] += 1
        elif a["caption"].strip(" ."):
            captions[a["image_id"]].append(a["caption"])
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
    cfg: Config, pictures: dict[str, dict], skipped: Counter
) -> dict[str, list[dict]]:
    """Picture -> its objects, with boxes on the square picture; {} without `instances`.

    A picture with no objects has an empty list. A picture is left out if its objects are
    not all known: if the boxes' files do not list it, or a box of it cannot be used. Boxes
    that cannot be used are counted.

    Args:
        pictures: id -> its entry, with its size.
    """
    if not cfg.instances:
        return {}
    data = read_json(
        cfg.instances, skipped, "images", annotations=box_in, categories=category_in,
        images=picture_in,
    )
    names = {c["id"]: c["name"] for c in data["categories"]}
    listed = {d["id"] for d in data["images"]} or set(pictures)
    listed |= {a["image_id"] for a in data["annotations"]}
    objects = {i: [] for i in pictures if i in listed}
    unsure = set()
    for a in sorted(data["annotations"], key=by_id):
        i = a["image_id"]
        box = a["bbox"]
        fault = ""
        if i not in pictures or a["category_id"] not in names:
            fault = "box of an unknown picture or category"
        elif not all(pictures[i]["size"]):
            fault = "box of a picture without a size"
        elif not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            fault = "box that is not four numbers"
        if fault:
            skipped[fault] += 1
            unsure.add(i)
            continue
        box = square_box(box, *pictures[i]["size"], cfg.fit)
        if box[0] >= box[2] or box[1] >= box[3]:
            skipped["box outside of the square picture"] += 1
            continue
        o = {"name": names[a["category_id"]], "attributes": {}, "box": box}
        if a["crowd"]:
            o["crowd"] = True  # one box around many objects, which nobody has counted
        objects[i].append(o)
    return {i: some for i, some in objects.items() if i not in unsure}


def phrases_of(cfg: Config) -> dict[str, str]:
    """Word or phrase -> the class that it names: categories, synonyms, PAIRS, all plurals.

    With the published file of synonyms, `metrics.mentions` finds what the published CHAIR
    finds, with few exceptions. There "motor bike", "cheesecake" and "iPhone" are never
    found, by slips of that file; a "stove top oven" counts twice; a "teddy-bear" is none.
    And its singulars come from another program, which may know other rare plurals.

    Raises:
        FileNotFoundError, ValueError: if a file is missing, or a line of synonyms does not
            begin with a category.
    """
    if not cfg.instances:
        return {}
    categories = read_json(cfg.instances, Counter(), categories=category_in)["categories"]
    # words are spelled as `metrics.mentions` reads a text
    class_of = {words_of(c["name"]).strip(): c["name"] for c in categories}
    class_of.pop("", None)  # a name without a letter
    if cfg.synonyms:
        if not Path(cfg.synonyms).is_file():
            raise FileNotFoundError(f"no synonyms at {cfg.synonyms}")
        classes = dict(class_of)
        for number, line in enumerate(read_text(cfg.synonyms).splitlines(), 1):
            first, *others = [words_of(word).strip() for word in line.split(",")]
            if first not in classes and line.strip():
                raise ValueError(
                    f"{cfg.synonyms}:{number} begins with {first!r}, no category"
                )
            for word in others:
                # if two classes have the same word, it names the first of them
                if word:
                    class_of.setdefault(word, classes[first])
    for pair, word in PAIRS.items():
        name = class_of.get(word, "")
        if any(class_of.get(part, name) != name for part in pair.split()):
            class_of.setdefault(pair, name)
    phrases = dict(class_of)
    for word, name in class_of.items():
        forms = [plural(word)]
        first, _, last = word.partition(" ")
        if word in PAIRS and first in class_of:  # "toilets with their seats up"
            forms += [f"{plural(first)} {last}", f"{plural(first)} {plural(last)}"]
        for form in forms:
            phrases.setdefault(form, name)  # a class named "glasses" stays itself
    return phrases


def split_of(cfg: Config, ids: list[str], skipped: Counter) -> dict[str, str]:
    """Picture -> its split: "train", "val", or "" for neither.

    Pictures that the split file lists and the captions lack are counted.

    Args:
        ids: of all pictures, sorted, so that the order in the file does not matter.
    """
    sides = {}
    if not cfg.karpathy:
        for n, i in enumerate(ids):
            sides[i] = "val" if n % cfg.val_every == 0 else "train"
        return sides
    # Karpathy's restval is the part of COCO's val2014 that most papers train on
    side_of = {"train": "train", "restval": "train", cfg.held_out: "val"}
    for d in read_json(cfg.karpathy, skipped, images=side_in)["images"]:
        sides[d["id"]] = side_of.get(d["split"], "")
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
    data = read_json(cfg.captions, skipped, images=picture_in, annotations=caption_in)
    folders = [Path(folder) for folder in cfg.images.split(",")]
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder of pictures at {folder}")
    pictures = {d["id"]: d for d in data["images"]}
    captions = captions_of(data["annotations"], pictures, skipped)
    phrases = phrases_of(cfg)
    objects = boxes_of(cfg, pictures, skipped)
    ids = [d["id"] for d in sorted(pictures.values(), key=by_id)]
    sides = split_of(cfg, ids, skipped)
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
        except (ValueError, OSError):
            skipped["unreadable picture"] += 1
            continue
        record = {
            "id": f"coco-{i}", "image": f"{side}.npy#{len(files[side])}",
            "captions": captions[i],
        }
        # an empty list says that there is no object; without a list, nobody has looked
        if i in objects:
            record["objects"] = objects[i]
        files[side].append(record)
        pixels[side].append(np.asarray(image))                       # (S, S, 3)

    # held-out captions must not decide which tokens the vocabulary has
    texts = []
    for record in files["train"]:
        texts += record["captions"]
    refused = sorted_counts(skipped)
    meta = {
        "name": "coco", "image_size": cfg.image_size, "fit": cfg.fit, "skipped": refused,
    }
    if phrases:
        meta["phrases"] = phrases
    write_folder(cfg.out, files, pixels, texts, cfg.vocab_size, meta)
    return summary(cfg.out, files, refused, began)


if __name__ == "__main__":
    cli(main, Config)
