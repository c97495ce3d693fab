"""Make a data set of the Cornell NLVR corpus: pictures of three boxes and what people said of them.

    python data/nlvr/prepare.py --source nlvr.tar                 half a minute on one core
    python data/nlvr/prepare.py --source nlvr --train_split train --val_split dev

A picture shows its boxes in a row, and comes in all six orders. A square model would squash the
row, so the boxes are cut out and laid as tiles: top left, top right, bottom left; the fourth stays
empty.

Writes train, val (the first order of every scene, then the second, ...), eval (questions about the
first order), text (for the language model), tokenizer.tiktoken, meta.json and samples/*.png. Equal
arguments give equal bytes.

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
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path

import numpy as np
from PIL import Image

from data.nlvr.language import COLORS, PLACES, SHAPES, SIZED, SIZES, THINGS, captions, count
from data.nlvr.language import describe, dialogue, exist, named, statement
from data.shapes.questions import Round
from minivlm.loading.images import open_image
from minivlm.loading.prepared import check_vocab_size, start_folder, write_folder
from minivlm.running.files import BROKEN_TAR, first_line, members_of, read_member
from minivlm.running.options import cli

SIDE, LEFTS, GAP = 100, (0, 150, 300), 128  # a box's side, columns where boxes begin, gray between
ORDERS = list(permutations(range(3)))  # picture k has box ORDERS[k][i] in place i; found in pixels


@dataclass
class Config:
    """Where the corpus is and how it is divided."""

    source: str = "data/nlvr/nlvr"  # the corpus: its folder, or its .tar, read without unpacking
    out: str = "data/nlvr/prepared"  # folder to write
    train_split: str = "test"  # split to learn from; train if you have the full corpus
    val_split: str = "dev"  # split to measure on
    val_directories: str = ""  # directories of val_split for measuring only, as 0,1; empty = all
    image_size: int = 64  # side of the packed pictures in pixels, even
    vocab_size: int = 1024  # upper limit of the tokenizer's vocabulary, special tokens included
    seed: int = 0  # another seed gives other questions

    def __post_init__(self):
        if self.image_size < 2 or self.image_size % 2:
            raise ValueError(
                f"image_size {self.image_size} is not an even number: a picture is two tiles wide"
            )
        check_vocab_size(self.vocab_size)
        if not re.fullmatch(r"(\d+(,\d+)*)?", self.val_directories):
            raise ValueError(
                f"val_directories {self.val_directories!r} is no list of numbers such as 0,1"
            )
        if self.train_split == self.val_split and not self.val_directories:
            raise ValueError(
                f"both splits are {self.val_split}; hold directories out, as in --val_directories 0"
            )


# --- the corpus ---


def open_corpus(source: str) -> Callable[[str], bytes]:
    """Return read(name) for a folder or a tar archive, with or without the outer folder nlvr.

    Raises:
        FileNotFoundError: if there is no such folder or file, now or when reading.
        ValueError: if the file is no tar archive, or breaks off, now or when reading.
    """
    path, members = Path(source), {}
    if path.is_file():
        try:
            archive = tarfile.open(path)
            members = {m.name.removeprefix("./"): m for m in members_of(archive)}
        except BROKEN_TAR as error:
            raise ValueError(
                f"{source} is neither a folder nor a readable tar archive ({first_line(error)})"
            ) from None
    elif not path.is_dir():
        raise FileNotFoundError(
            f"no NLVR corpus at {source}; get github.com/lil-lab/nlvr and pass --source FOLDER"
        )

    def read(wanted: str) -> bytes:
        for file in (wanted, f"nlvr/{wanted}"):
            if file in members:
                try:
                    return read_member(archive, members[file])
                except BROKEN_TAR as error:
                    raise ValueError(
                        f"{source} has no readable {file} ({first_line(error)})"
                    ) from None
            if not members and (path / file).is_file():
                return (path / file).read_bytes()
        raise FileNotFoundError(
            f"{source} has no {wanted}; name the corpus as published, and a split that it has"
        )

    return read


@dataclass(frozen=True)
class Scene:
    """A line of the corpus; a box's object is (y, x, side, color, shape), in pixels of the box."""

    split: str
    identifier: str
    directory: str
    sentence: str
    label: bool
    boxes: tuple[tuple[tuple, ...], ...]


def scene_of(split: str, line: str) -> Scene:
    """Read a line of <split>.json; the objects of a box come in reading order.

    Raises:
        ValueError: with the reason for which the line cannot be used.
    """
    try:
        d = json.loads(line)
        said, label, boxes = (
            " ".join(d["sentence"].split()), str(d["label"]).lower(), d["structured_rep"]
        )
        found = [
            [
                (int(o["y_loc"]), int(o["x_loc"]), o["size"], o["color"].lower(), o["type"])
                for o in b
            ]
            for b in boxes
        ]
        # identifier and directory become a path
        whole = re.fullmatch(r"\d+-\d+ \d+", f"{d['identifier']} {d['directory']}")
        known = all(
            z in SIZES and c in COLORS and s in SHAPES for b in found for _, _, z, c, s in b
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        raise ValueError("malformed line") from None
    if not whole or len(found) != 3 or "<image>" in said:
        raise ValueError("malformed line")
    if label not in ("true", "false"):
        raise ValueError("label neither true nor false")
    if not said.strip(" .?!,"):
        raise ValueError("empty sentence")
    if not known:
        raise ValueError("unknown shape, color or size")
    objects = tuple(tuple(sorted(b)) for b in found)
    return Scene(split, d["identifier"], str(d["directory"]), said, label == "true", objects)


def read_sides(
    cfg: Config, read: Callable[[str], bytes], skipped: Counter
) -> dict[str, list[Scene]]:
    """The scenes to learn from and to measure on, whole directories each; counts what is unusable.

    Different presentations may hold the same boxes in some order: such a scene is not measured on.

    Raises:
        ValueError: if a directory to hold out does not exist, a side is empty, or both hold one
            presentation.
    """
    scenes: dict[str, list[Scene]] = {}
    for split in dict.fromkeys((cfg.train_split, cfg.val_split)):
        scenes[split] = []
        for line in read(f"{split}/{split}.json").decode("utf-8", "replace").splitlines():
            try:
                scenes[split].append(scene_of(split, line))
            except ValueError as reason:
                skipped[str(reason)] += 1
    held_out = set(cfg.val_directories.split(",")) - {""}
    val = [s for s in scenes[cfg.val_split] if not held_out or s.directory in held_out]
    train = [
        s for s in scenes[cfg.train_split]
        if s.split != cfg.val_split or s.directory not in held_out
    ]
    if missing := held_out - {s.directory for s in val}:
        raise ValueError(
            f"{cfg.val_split} has no usable scene in directory {', '.join(sorted(missing))}"
        )
    presented = [{(s.split, s.identifier.split("-")[0]) for s in side} for side in (train, val)]
    if both := set.intersection(*presented):
        raise ValueError(
            f"presentation {' '.join(min(both))} lies in several directories; hold out all of them"
        )
    known = {tuple(sorted(s.boxes)) for s in train}
    fresh = [s for s in val if tuple(sorted(s.boxes)) not in known]
    skipped["held-out scene that training shows"] += len(val) - len(fresh)
    if not train or not fresh:
        raise ValueError(
            f"{len(train)} scenes to learn from, {len(fresh)} to measure on; "
            f"skipped {dict(+skipped)}"
        )
    return {"train": train, "val": fresh}


# --- pictures ---


def pack(image: Image.Image, size: int) -> np.ndarray:
    """Lay a picture's boxes as tiles: (size, size, 3) uint8.

    Raises:
        ValueError: if the picture is not 400 x 100.
    """
    if image.size != (LEFTS[2] + SIDE, SIDE):
        raise ValueError("picture is not 400 x 100")
    out, half = np.full((size, size, 3), GAP, np.uint8), size // 2
    for left, (column, row) in zip(LEFTS, PLACES.values()):
        tile = image.crop((left, 0, left + SIDE, SIDE)).resize(
            (half, half), Image.Resampling.BICUBIC
        )
        out[row * half:(row + 1) * half, column * half:(column + 1) * half] = np.asarray(tile)
    return out


def objects_of(scene: Scene, order: int) -> list[dict]:
    """What a scene's picture shows, tile by tile, for its record: boxes in 0..1 as packed."""
    found = []
    for (place, (column, row)), b in zip(PLACES.items(), ORDERS[order]):
        for y, x, side, color, shape in scene.boxes[b]:
            corners = (column * SIDE + x, row * SIDE + y,
                       column * SIDE + x + side, row * SIDE + y + side)
            found.append({
                "name": shape, "attributes": {"color": COLORS[color], "size": SIZES[side]},
                "box": [round(v / (2 * SIDE), 4) for v in corners], "place": place,
            })
    return found


# --- questions ---


def questions(pictures: dict[str, tuple[Scene, str]], seed: int) -> list[dict]:
    """Evaluation questions about pictures {id: (scene, image)}, with what a right answer contains.

    Existence is asked in pairs: equal words about a picture that has the thing and one that has
    not, pair by pair, so that blind answers are right half the time in any part of even length.
    """
    rng = random.Random(f"{seed} eval")
    shown = {key: objects_of(scene, 0) for key, (scene, _) in pictures.items()}
    asked: list[tuple[str, str, Round]] = []
    for key, (scene, _) in pictures.items():
        asked += [
            (key, "statement", statement(scene.sentence, scene.label, rng)),
            (key, "count", count(shown[key], rng)),
        ]
    pairs = []
    for thing in THINGS + SIZED:
        there = [key for key in shown if any(thing in named(o) for o in shown[key])]
        absent = sorted(shown.keys() - there)
        # about two questions a picture
        n = min(len(there), len(absent), 1 + len(shown) // len(THINGS + SIZED))
        pairs += [
            (i, thing, *keys)
            for i, keys in enumerate(zip(rng.sample(there, n), rng.sample(absent, n)))
        ]
    for i, thing, *keys in sorted(pairs, key=lambda pair: pair[0]):
        tag = thing.replace(" ", "-")
        asked += [
            (key, tag, exist(shown[key], thing, random.Random(f"{seed} {thing} {i}")))
            for key in keys
        ]
    return [
        {
            "id": f"{key}-{tag}", "image": pictures[key][1], "kind": r.kind, "style": r.style,
            "question": r.question, "answer": r.answer, "expect": r.expect, "wrong": r.wrong,
            "border": "",
        }
        for key, tag, r in asked
    ]


# --- the data set ---


def write_side(
    cfg: Config, read: Callable[[str], bytes], side: str, scenes: list[Scene],
    share: dict[str, float], skipped: Counter,
) -> dict[str, list[dict]]:
    """Write a side's packed pictures; return its records by file, and count the pictures left out.

    Raises:
        ValueError: if no picture can be used.
    """
    path, size = Path(cfg.out) / f"{side}.npy", cfg.image_size
    packed = np.lib.format.open_memmap(
        path, "w+", np.uint8, (len(ORDERS) * len(scenes), size, size, 3)
    )
    files: dict[str, list[dict]] = {side: [], "text" if side == "train" else "eval": []}
    first = {}
    for order, scene in product(range(len(ORDERS)), scenes):
        key, n = f"{scene.split}-{scene.identifier}-{order}", len(files[side])
        try:
            packed[n] = pack(
                open_image(io.BytesIO(read(f"{scene.split}/images/{scene.directory}/{key}.png"))),
                size,
            )
        except FileNotFoundError:
            skipped["missing picture"] += 1
            continue
        except ValueError as error:
            skipped[
                "picture not 400 x 100" if "400 x 100" in str(error) else "unreadable picture"
            ] += 1
            continue
        rng, objects, image = (
            random.Random(f"{cfg.seed} {key}"), objects_of(scene, order), f"{side}.npy#{n}"
        )
        human = [scene.sentence] if scene.label else []
        said = human + captions(objects, rng)
        rounds = dialogue(scene.sentence, scene.label, objects, share, rng)
        turns = [turn for r in rounds for turn in (("human", r.question), ("gpt", r.answer))]
        files[side].append({
            "id": key, "image": image, "objects": objects, "captions": said,
            "caption_source": ["human"] * len(human) + ["boxes"] * (len(said) - len(human)),
            "conversations": [
                {"from": who, "value": "<image>\n" * (i == 0) + v}
                for i, (who, v) in enumerate(turns)
            ],
        })
        if order == 0:
            first[key] = (scene, image)
        if side == "train":
            others = dialogue(scene.sentence, scene.label, objects, share, rng)
            lines = [describe(objects, rng).answer, rng.choice(said)]
            lines += [
                f"Question: {r.question}\nAnswer: {r.answer}"
                for r in others if r.kind != "describe"
            ]
            files["text"].append({"id": f"text-{key}", "text": "\n".join(lines)})
    if not files[side]:
        raise ValueError(f"no usable picture for {side}; skipped {dict(+skipped)}")
    if len(files[side]) < len(packed):
        np.save(path, packed[:len(files[side])].copy())
    if side == "val":
        files["eval"] = questions(first, cfg.seed)
    return files


def main(cfg: Config) -> dict[str, float]:
    """Write the data set; return how many records of each kind, how many skipped, and the time."""
    began, skipped = time.time(), Counter()
    folder, read = Path(cfg.out), open_corpus(cfg.source)
    sides = read_sides(cfg, read, skipped)
    start_folder(folder)  # before the pictures, which are written as they are read
    number = Counter(
        t for scene in sides["train"]
        for t in {t for o in objects_of(scene, 0) for t in named(o)}
    )
    share = {t: (number[t] + 1) / (len(sides["train"]) + 2) for t in THINGS + SIZED}  # never 0 or 1
    files: dict[str, list[dict]] = {}
    for side, scenes in sides.items():
        files |= write_side(cfg, read, side, scenes, share, skipped)
    texts = [d["text"] for d in files["text"]] + [c for r in files["train"] for c in r["captions"]]
    texts += [turn["value"] for r in files["train"] for turn in r["conversations"]]
    records, skipped = {file: len(r) for file, r in files.items()}, dict(sorted((+skipped).items()))
    phrases = {t: t for t in THINGS} | {t + "s": t for t in THINGS}
    meta = {
        "name": "nlvr", "image_size": cfg.image_size, "seed": cfg.seed,
        "phrases": phrases, "skipped": skipped,
        "chance": {"exist": 1 / 2, "statement": 1 / 2, "count": 1 / 7},
    }
    tokenizer = write_folder(folder, files, {}, texts, cfg.vocab_size, meta)
    seconds = time.time() - began
    print(
        f"{folder}: {records}, skipped {skipped or 'nothing'}, "
        f"vocabulary {tokenizer.vocab_size}, {seconds:.0f} s"
    )
    return {
        **records, "skipped": sum(skipped.values()), "vocab_size": tokenizer.vocab_size,
        "seconds": seconds,
    }


if __name__ == "__main__":
    cli(main, Config)
