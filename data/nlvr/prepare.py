"""Make a data set of the Cornell NLVR corpus: pictures of three boxes, people's sentences.

    python data/nlvr/prepare.py --source nlvr.tar                 half a minute on one core
    python data/nlvr/prepare.py --source nlvr --train_split train --val_split dev

The corpus has six pictures of each scene. They show its three boxes side by side, in all
six orders. A model that reads squares would squash such a picture, so the boxes are cut out
and laid as tiles: top left, top right, bottom left. The fourth tile stays gray.

Writes train and val (the first order of every scene, then the second, ...), eval (questions
about the first order), text (for the language model), tokenizer.tiktoken, meta.json and
samples/*.png. Equal arguments give equal bytes.

Source: Suhr et al. 2017, A Corpus of Natural Language for Visual Reasoning,
github.com/lil-lab/nlvr.
"""

import io
import json
import random
import re
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import permutations, product
from pathlib import Path

import numpy as np
from PIL import Image

from data.nlvr.language import (
    COLORS, PLACES, SHAPES, SIZED, SIZES, THINGS, captions, count, describe, dialogue,
    exist, named, statement,
)
from minivlm.engine.dialogues import turns_of
from minivlm.loading.images import open_image
from minivlm.loading.prepared import Pack, sorted_counts, summary, write_folder
from minivlm.running.files import members_of, read_member, readable
from minivlm.running.options import check, cli

SIDE = 100  # of a box in the published picture, in pixels
LEFTS = (0, 150, 300)  # columns where the three boxes begin
GAP = 128  # gray level of the fourth tile, as between the published boxes
# picture k shows box ORDERS[k][i] at place i; this is not documented, and was found by
# comparing pixels
ORDERS = list(permutations(range(3)))


@dataclass
class Config:
    """Options; the comments are the help texts."""

    # corpus
    source: str = "data/nlvr/nlvr"  # the corpus: its folder, or its .tar
    train_split: str = "test"  # split to learn from; train if you have the full corpus
    val_split: str = "dev"  # split to measure on
    val_directories: str = ""  # directories of val_split to hold out, as 0,1; empty = all
    # data set
    out: str = "data/nlvr/prepared"  # data folder to write
    image_size: int = 64  # >= 2; side of the packed pictures in pixels, an even number
    vocab_size: int = 1024  # >= 263; most tokens in the vocabulary, special tokens included
    seed: int = 0  # >= 0; another seed gives other captions and questions

    def __post_init__(self):
        if self.image_size % 2:
            raise ValueError(
                f"image_size {self.image_size} is not an even number: "
                "a picture is two tiles wide"
            )
        if not re.fullmatch(r"(\d+(,\d+)*)?", self.val_directories):
            raise ValueError(
                f"val_directories {self.val_directories!r} is no list of numbers, "
                "such as 0,1"
            )
        if self.train_split == self.val_split and not self.val_directories:
            raise ValueError(
                f"both splits are {self.val_split}; hold directories out, "
                "as in --val_directories 0"
            )


# --- the corpus ---


def open_corpus(source: str) -> Callable[[str], bytes]:
    """Make a function that reads a file of the corpus by name, in the folder nlvr or not.

    Raises:
        FileNotFoundError: if there is no such folder or file, now or when reading.
        ValueError: if the file is no tar archive or is damaged, now or when reading.
    """
    path = Path(source)
    members = {}
    if path.is_file():
        with readable(source):
            archive = tarfile.open(path)
            for member in members_of(archive):
                # a tar that was made of ./nlvr has names that begin with ./
                members[member.name.removeprefix("./")] = member
    elif not path.is_dir():
        raise FileNotFoundError(
            f"no NLVR corpus at {source}; "
            "get github.com/lil-lab/nlvr and pass --source FOLDER"
        )

    def read(wanted: str) -> bytes:
        for file in (wanted, f"nlvr/{wanted}"):
            if file in members:
                with readable(f"{source}, {file},"):
                    return read_member(archive, members[file])
            if not members and (path / file).is_file():
                return (path / file).read_bytes()
        raise FileNotFoundError(
            f"{source} has no {wanted}; "
            "name the corpus as published, and a split that it has"
        )

    return read


@dataclass(frozen=True)
class Scene:
    """A line of the corpus: three boxes, a sentence about them, and whether it is true.

    split, identifier, directory: name the six pictures.
    boxes: their objects in reading order, each (y, x, side, color, shape) in pixels of its
        box.
    """

    split: str
    identifier: str
    directory: str
    sentence: str
    label: bool
    boxes: tuple[tuple[tuple, ...], ...]


def scene_of(split: str, line: str) -> Scene:
    """Read a line of <split>.json.

    Raises:
        ValueError: if the line cannot be used; the error is the reason.
    """
    try:
        fields = json.loads(line)
        # some published sentences hold double spaces
        sentence = " ".join(fields["sentence"].split())
        label = str(fields["label"]).lower()
        boxes = tuple(_objects_in(box) for box in fields["structured_rep"])
        objects = [o for box in boxes for o in box]
        known = all(z in SIZES and c in COLORS and s in SHAPES for _, _, z, c, s in objects)
        identifier = fields["identifier"]
        directory = str(fields["directory"])
        # both become parts of the pictures' paths
        is_safe = re.fullmatch(r"\d+-\d+ \d+", f"{identifier} {directory}")
    # all that a forged line can raise in json, in int() and by missing keys
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        raise ValueError("malformed line") from None
    # <image> in a question would stand for a second picture
    if not is_safe or len(boxes) != 3 or "<image>" in sentence:
        raise ValueError("malformed line")
    if label not in ("true", "false"):
        raise ValueError("label neither true nor false")
    if not sentence.strip(" .?!,"):
        raise ValueError("empty sentence")
    if not known:
        raise ValueError("unknown shape, color or size")
    return Scene(split, identifier, directory, sentence, label == "true", boxes)


def _objects_in(box: list[dict]) -> tuple[tuple, ...]:
    """The objects of a published box in reading order."""
    objects = []
    for o in box:
        y = int(o["y_loc"])
        x = int(o["x_loc"])
        objects.append((y, x, o["size"], o["color"].lower(), o["type"]))
    return tuple(sorted(objects))


def read_sides(
    cfg: Config, read: Callable[[str], bytes], skipped: Counter
) -> dict[str, list[Scene]]:
    """The scenes to learn from and to measure on; lines that cannot be used are counted.

    A directory is never divided between both. The published splits share some scenes, with
    the boxes in another order; a held-out scene that training also has is left out.

    Returns:
        {"train": scenes, "val": scenes}.

    Raises:
        ValueError: if a held-out directory has no scene, if train or val is empty, or if
            they share scenes that were presented to people together.
    """
    scenes = {}
    # if both are the same split, it is read once
    for split in dict.fromkeys((cfg.train_split, cfg.val_split)):
        scenes[split] = []
        lines = read(f"{split}/{split}.json").decode("utf-8-sig", "replace").split("\n")
        for line in filter(str.strip, lines):
            try:
                scenes[split].append(scene_of(split, line))
            except ValueError as reason:
                skipped[str(reason)] += 1
    train = scenes[cfg.train_split]
    val = scenes[cfg.val_split]
    if cfg.val_directories:
        held_out = set(cfg.val_directories.split(","))
        val = [s for s in val if s.directory in held_out]
        if cfg.train_split == cfg.val_split:
            train = [s for s in train if s.directory not in held_out]
        missing = held_out - {s.directory for s in val}
        if missing:
            names = ", ".join(sorted(missing))
            raise ValueError(f"{cfg.val_split} has no usable scene in directory {names}")
    both = _presentations(train) & _presentations(val)
    if both:
        raise ValueError(
            f"presentation {' '.join(min(both))} lies in several directories; "
            "hold out all of them"
        )
    # sorted: pictures show the boxes in all orders, so their order does not matter
    known = {tuple(sorted(s.boxes)) for s in train}
    fresh = [s for s in val if tuple(sorted(s.boxes)) not in known]
    skipped["held-out scene that training shows"] += len(val) - len(fresh)
    if not train or not fresh:
        raise ValueError(
            f"{len(train)} scenes to learn from, {len(fresh)} to measure on; "
            f"skipped {sorted_counts(skipped)}"
        )
    return {"train": train, "val": fresh}


def _presentations(scenes: list[Scene]) -> set[tuple[str, str]]:
    """The presentations of scenes: 12-0, 12-1, ... were shown to people together as 12."""
    return {(s.split, s.identifier.split("-")[0]) for s in scenes}


# --- pictures ---


def pack(image: Image.Image, size: int) -> np.ndarray:
    """Lay the boxes of a published picture as tiles: (size, size, 3) uint8.

    Raises:
        ValueError: if the picture is not 400 x 100.
    """
    if image.size != (LEFTS[2] + SIDE, SIDE):
        raise ValueError("picture not 400 x 100")
    tiles = np.full((size, size, 3), GAP, np.uint8)                  # (S, S, 3)
    half = size // 2
    for left, (column, row) in zip(LEFTS, PLACES.values()):
        box = image.crop((left, 0, left + SIDE, SIDE))
        x = column * half
        y = row * half
        tile = box.resize((half, half), Image.Resampling.BICUBIC)
        tiles[y:y + half, x:x + half] = np.asarray(tile)
    return tiles


def objects_of(scene: Scene, order: int) -> list[dict]:
    """The objects of a scene's picture, tile by tile; boxes are shares of its sides.

    Args:
        order: which of the scene's six pictures, 0 .. 5.
    """
    objects = []
    for (place, (column, row)), b in zip(PLACES.items(), ORDERS[order]):
        for y, x, side, color, shape in scene.boxes[b]:
            left = column * SIDE + x
            top = row * SIDE + y
            corners = (left, top, left + side, top + side)           # pixels of 2 x 2 boxes
            objects.append({
                "name": shape, "attributes": {"color": COLORS[color], "size": SIZES[side]},
                "box": [round(v / (2 * SIDE), 4) for v in corners], "place": place,
            })
    return objects


# --- questions ---


def questions(pictures: dict[str, tuple[Scene, str]], seed: int) -> list[dict]:
    """Evaluation questions about pictures.

    Whether a thing exists is asked twice in the same words: about a picture that has the
    thing, and about a picture that does not. Both questions follow each other, so a blind
    model is right half the time on any part of even length.

    Args:
        pictures: id -> scene and image, of pictures in the first order.
    """
    rng = random.Random(f"{seed} eval")
    objects = {key: objects_of(scene, 0) for key, (scene, _) in pictures.items()}
    asked = []
    for key, (scene, _) in pictures.items():
        asked.append((key, "statement", statement(scene.sentence, scene.label, rng)))
        asked.append((key, "count", count(objects[key], rng)))
    # most pairs of questions about a thing: about two questions a picture in all
    most = 1 + len(objects) // len(THINGS + SIZED)
    pairs = []
    for thing in THINGS + SIZED:
        present = [key for key in objects if any(thing in named(o) for o in objects[key])]
        # sorted: a set has another order in every process
        absent = sorted(objects.keys() - present)
        n = min(len(present), len(absent), most)
        yes = rng.sample(present, n)
        no = rng.sample(absent, n)
        for i in range(n):
            pairs.append((i, thing, yes[i], no[i]))
    # the first pair of questions about every thing, then the second, ...
    pairs.sort(key=lambda pair: pair[0])
    for i, thing, yes_key, no_key in pairs:
        tag = thing.replace(" ", "-")
        for key in (yes_key, no_key):
            # equal states of the generator give equal words
            again = random.Random(f"{seed} {thing} {i}")
            asked.append((key, tag, exist(objects[key], thing, again)))
    lines = []
    for key, tag, r in asked:
        lines.append({"id": f"{key}-{tag}", "image": pictures[key][1]} | asdict(r))
    return lines


# --- the data set ---


def write_side(
    cfg: Config, read: Callable[[str], bytes], side: str, scenes: list[Scene],
    share: dict[str, float], pixels: Pack, skipped: Counter,
) -> dict[str, list[dict]]:
    """Pack the pictures of train or val; return records by file; count skipped pictures.

    Args:
        side: "train" or "val".
        share: thing -> share of the scenes that have it, see `dialogue`.
        pixels: gets the pictures.
    """
    records = []
    texts = []
    first = {}
    # one picture of each scene first, because evaluations often read only the first ones
    for order, scene in product(range(len(ORDERS)), scenes):
        key = f"{scene.split}-{scene.identifier}-{order}"
        path = f"{scene.split}/images/{scene.directory}/{key}.png"
        try:
            picture = pack(open_image(io.BytesIO(read(path))), cfg.image_size)
        except FileNotFoundError:
            skipped["missing picture"] += 1
            continue
        except (ValueError, OSError) as error:
            wrong_size = "picture not 400 x 100"
            skipped[wrong_size if str(error) == wrong_size else "unreadable picture"] += 1
            continue
        image = f"{side}.npy#{len(pixels)}"
        pixels.append(picture)
        # one generator for each picture: a skipped picture changes no other
        rng = random.Random(f"{cfg.seed} {key}")
        objects = objects_of(scene, order)
        # a person's sentence is a caption only if it is true
        human = [scene.sentence] if scene.label else []
        made = captions(objects, rng)
        spoken = dialogue(scene.sentence, scene.label, objects, share, rng)
        records.append({
            "id": key, "image": image, "objects": objects, "captions": human + made,
            "caption_source": ["human"] * len(human) + ["boxes"] * len(made),
            "conversations": turns_of([(r.question, r.answer) for r in spoken], rng),
        })
        # questions about all six orders would have the same answers
        if order == 0:
            first[key] = (scene, image)
        if side == "train":
            # drawn again, so that the text does not repeat the dialogue
            rounds = dialogue(scene.sentence, scene.label, objects, share, rng)
            lines = [describe(objects, rng).answer, rng.choice(human + made)]
            for r in rounds:
                if r.kind != "describe":
                    lines.append(f"Question: {r.question}\nAnswer: {r.answer}")
            texts.append({"id": f"text-{key}", "text": "\n".join(lines)})
    if side == "train":
        return {"train": records, "text": texts}
    return {"val": records, "eval": questions(first, cfg.seed)}


def shares(scenes: list[Scene]) -> dict[str, float]:
    """Thing -> share of the scenes that have it.

    Two more scenes are counted, one with each thing and one without it, so that no share is
    exactly 0 or 1.
    """
    counts = Counter()
    for scene in scenes:
        things = set()
        for o in objects_of(scene, 0):
            things.update(named(o))
        counts.update(things)
    return {thing: (counts[thing] + 1) / (len(scenes) + 2) for thing in THINGS + SIZED}


def main(cfg: Config) -> dict[str, float]:
    """Write the data set; return numbers of records and of skipped ones, and the seconds.

    Raises:
        FileNotFoundError, ValueError: as `open_corpus` and `read_sides`, or if a split is
            empty.
    """
    check(cfg)
    began = time.time()
    skipped = Counter()
    read = open_corpus(cfg.source)
    sides = read_sides(cfg, read, skipped)
    share = shares(sides["train"])
    files = {}
    pixels = {side: Pack(cfg.out) for side in sides}
    for side, scenes in sides.items():
        files |= write_side(cfg, read, side, scenes, share, pixels[side], skipped)
    texts = [record["text"] for record in files["text"]]
    for record in files["train"]:
        texts += record["captions"]
    for record in files["train"]:
        texts += [turn["value"] for turn in record["conversations"]]
    phrases = {thing: thing for thing in THINGS} | {thing + "s": thing for thing in THINGS}
    refused = sorted_counts(skipped)
    meta = {
        "name": "nlvr", "image_size": cfg.image_size, "seed": cfg.seed,
        "phrases": phrases, "skipped": refused,
        "chance": {"exist": 1 / 2, "statement": 1 / 2, "count": 1 / 7},  # zero to six
    }
    tokenizer = write_folder(cfg.out, files, pixels, texts, cfg.vocab_size, meta)
    return summary(cfg.out, files, refused, began, f", vocabulary {tokenizer.vocab_size}")


if __name__ == "__main__":
    cli(main, Config)
