"""Make a data set of the Cornell NLVR corpus: real pictures of boxes, sentences people wrote about them.

    python data/nlvr/prepare.py --source nlvr.tar                 20 seconds on one core
    python data/nlvr/prepare.py --source nlvr --train_split train --val_split dev

A picture shows three boxes in a row, once in each of the six orders. A square model would squash the
row, so the boxes are cut out and laid as tiles: top left, top right, bottom left, the fourth stays
empty. The first picture of every scene comes first, so that a part of a split holds distinct scenes.

Reads <split>/<split>.json and <split>/images/<directory>/<split>-<identifier>-<order>.png from a
folder or an archive, which is never unpacked. Writes train, val, eval (questions about each held-out
scene), text (for the language model), tokenizer.tiktoken and meta.json. Equal arguments give equal bytes.

Source: Suhr et al. 2017, A Corpus of Natural Language for Visual Reasoning, github.com/lil-lab/nlvr.
"""

import io
import json
import random
import re
import sys
import tarfile
import time
from collections import Counter
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, so that this runs as a script

from data.shapes.language import NUMBERS, Round, article, ask_style, join, name, sentence, styled  # noqa: E402
from minivlm.data import open_image  # noqa: E402
from minivlm.run import cli  # noqa: E402
from minivlm.tokenizer import Tokenizer  # noqa: E402

COLORS = {"yellow": "yellow", "black": "black", "#0099ff": "blue"}
SHAPES = ("circle", "square", "triangle")
SIZES = {10: "small", 20: "medium", 30: "large"}  # pixels
THINGS = [f"{c} {s}" for c, s in product(COLORS.values(), SHAPES)]
SIZED = [f"{z} {t}" for z, t in product(SIZES.values(), THINGS)]
# the picture: 400 x 100 pixels, boxes of 100 x 100 that begin at these columns, 50 pixels of a darker gray between
SIDE, LEFTS, GAP = 100, (0, 150, 300), 128
ORDERS = list(permutations(range(3)))  # picture k shows box ORDERS[k][i] in place i; checked against the pixels
PLACES = {"top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1)}  # column and row of each tile

EXIST = ("Is there {one}?", "Can you see {one}?", "Do you see any {many}?", "Does the picture show {one}?",
         "Is {one} visible here?", "Is there {one} in any of the boxes?")
COUNT = ("How many {many} are there?", "How many {many} can you see?", "Count the {many}.",
         "What is the number of {many}?", "How many {many} do the boxes hold?")
STATEMENT = ("Is it true that {said}?", "Would you say that {said}?", "Can you confirm that {said}?",
             "Does the picture show that {said}?", "Is it right to say that {said}?")
DESCRIBE = ("Describe the picture.", "Describe this image in detail.", "What do you see? Be thorough.",
            "Give a full description.", "Tell me what each box holds.")
HOLD = ("holds", "has", "contains", "shows")


@dataclass
class Config:
    """Where the corpus is and how it is divided."""

    source: str = "data/nlvr/nlvr"  # the corpus: its folder, or its .tar
    out: str = "data/nlvr/prepared"  # folder to write
    train_split: str = "test"  # split to learn from; train if you have the full corpus
    val_split: str = "dev"  # split to measure on
    val_directories: str = ""  # directories of val_split to measure on, as 0,1; empty = all; train never takes them
    image_size: int = 64  # side of the packed pictures in pixels, even
    vocab_size: int = 1024  # upper limit of the tokenizer's vocabulary, special tokens included
    seed: int = 0  # another seed gives other questions

    def __post_init__(self):
        if self.image_size < 2 or self.image_size % 2:
            raise ValueError(f"image_size {self.image_size} is not an even number of pixels, two tiles wide")
        for split in (self.train_split, self.val_split):
            if not split.isidentifier():
                raise ValueError(f"split {split!r} is no name such as train, dev or test")
        if not re.fullmatch(r"(\d+(,\d+)*)?", self.val_directories):
            raise ValueError(f"val_directories {self.val_directories!r} is no list of numbers such as 0,1")
        if self.train_split == self.val_split and not self.val_directories:
            raise ValueError(f"train_split and val_split are both {self.val_split}; pass --val_directories 0 to hold some out")


# --- the corpus ---


class Corpus:
    """The published files, in a folder or in an archive that is read where it lies.

    Raises:
        FileNotFoundError: if there is no such folder or file.
        ValueError: if the file is no tar archive.
    """

    def __init__(self, source: str):
        self.path, self.members = Path(source), None
        if self.path.is_file():
            try:
                self.archive = tarfile.open(self.path)
                self.members = {m.name.removeprefix("./"): m for m in self.archive if m.isfile()}
            except (tarfile.TarError, EOFError) as error:
                raise ValueError(f"{source} is neither a folder nor a readable tar archive ({error})") from None
        elif not self.path.is_dir():
            raise FileNotFoundError(f"no NLVR corpus at {source}; get it from github.com/lil-lab/nlvr and pass --source FOLDER")

    def read(self, name: str) -> bytes:
        """The bytes of a file, named as published, with or without the outer folder nlvr.

        Raises:
            FileNotFoundError: if there is no such file.
        """
        for where in (name, "nlvr/" + name):
            if self.members is None and (self.path / where).is_file():
                return (self.path / where).read_bytes()
            if self.members is not None and where in self.members:
                return self.archive.extractfile(self.members[where]).read()
        raise FileNotFoundError(f"{self.path} has no {name}; it must hold the corpus as published (README.md, dev/, test/, ...)")


@dataclass(frozen=True)
class Object:
    """One object of a box; x, y: its upper left corner in pixels of the box; side: in pixels."""

    shape: str
    color: str
    size: str
    x: int
    y: int
    side: int


@dataclass(frozen=True)
class Scene:
    """One line of the corpus: three boxes, a sentence, and whether it is true of them."""

    split: str
    identifier: str
    directory: str
    sentence: str
    label: bool
    boxes: tuple[tuple[Object, ...], ...]


def scene_of(split: str, line: str) -> Scene:
    """Read one line of the corpus, each box in reading order.

    Raises:
        ValueError: with the reason for which the line cannot be used.
    """
    try:
        d = json.loads(line)
        said, boxes = " ".join(d["sentence"].split()), d["structured_rep"]
        found = [[(o["type"], str(o["color"]).lower(), o["size"], int(o["x_loc"]), int(o["y_loc"])) for o in b] for b in boxes]
        names = re.fullmatch(r"\d+-\d+ \d+", f"{d['identifier']} {d['directory']}")  # they become a path
        label = str(d["label"]).lower()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("malformed line") from None
    if not names or len(boxes) != 3 or "<image>" in said:
        raise ValueError("malformed line")
    if label not in ("true", "false"):
        raise ValueError("label neither true nor false")
    if not said.strip(" .?!,"):
        raise ValueError("empty sentence")
    if any(s not in SHAPES or c not in COLORS or z not in SIZES for b in found for s, c, z, _, _ in b):
        raise ValueError("unknown shape, color or size")
    boxes = [sorted(b, key=lambda o: (o[4], o[3], o)) for b in found]
    objects = tuple(tuple(Object(s, COLORS[c], SIZES[z], x, y, z) for s, c, z, x, y in b) for b in boxes)
    return Scene(split, d["identifier"], str(d["directory"]), said, label == "true", objects)


def contents(scene: Scene) -> tuple:
    """What a scene shows, in whatever order its boxes stand."""
    return tuple(sorted(scene.boxes, key=repr))


def read_sides(cfg: Config, corpus: Corpus, skipped: Counter) -> dict[str, list[Scene]]:
    """The scenes to learn from and to measure on; counts in `skipped` what cannot be used.

    Scenes of different presentations may hold the same boxes: such a one is not measured on.

    Raises:
        FileNotFoundError: if a split is missing.
        ValueError: if a held-out directory does not exist, a side is empty, or a presentation is on both sides.
    """
    scenes: dict[str, list[Scene]] = {}
    for split in dict.fromkeys((cfg.train_split, cfg.val_split)):
        scenes[split] = []
        for line in corpus.read(f"{split}/{split}.json").decode("utf-8", "replace").splitlines():
            try:
                scenes[split].append(scene_of(split, line))
            except ValueError as reason:
                skipped[str(reason)] += 1
    held_out = set(filter(None, cfg.val_directories.split(",")))
    unknown = held_out - {s.directory for s in scenes[cfg.val_split]}
    if unknown:
        raise ValueError(f"{cfg.val_split} has no directory {', '.join(sorted(unknown))} with a usable scene")
    train = [s for s in scenes[cfg.train_split] if s.split != cfg.val_split or s.directory not in held_out]
    val = [s for s in scenes[cfg.val_split] if not held_out or s.directory in held_out]
    shared = {s.presentation for s in train} & {s.presentation for s in val}
    if shared:
        raise ValueError(f"presentation {min(shared)} is in both train and val; its directories must be on one side")
    known = {contents(s) for s in train}
    fresh = [s for s in val if contents(s) not in known]
    skipped["held-out scene that train shows too"] += len(val) - len(fresh)
    if not train or not fresh:
        raise ValueError(f"{len(train)} scenes to train on and {len(fresh)} to measure on; skipped {dict(+skipped)}")
    return {"train": train, "val": fresh}


# --- pictures ---


def pack(image: Image.Image, size: int) -> np.ndarray:
    """Lay the three boxes of a picture as tiles: (size, size, 3) uint8.

    Raises:
        ValueError: if the picture is not 400 x 100.
    """
    if image.size != (LEFTS[2] + SIDE, SIDE):
        raise ValueError("picture not 400 x 100")
    out, half = np.full((size, size, 3), GAP, np.uint8), size // 2
    for left, (column, row) in zip(LEFTS, PLACES.values()):
        tile = image.crop((left, 0, left + SIDE, SIDE)).resize((half, half), Image.Resampling.BICUBIC)
        out[row * half:(row + 1) * half, column * half:(column + 1) * half] = np.asarray(tile)
    return out


def shown(scene: Scene, order: int) -> dict[str, tuple[Object, ...]]:
    """Which objects each tile of a scene's picture holds."""
    return {place: scene.boxes[b] for place, b in zip(PLACES, ORDERS[order])}


def objects_of(tiles: dict[str, tuple[Object, ...]]) -> list[dict]:
    """The record's objects, their boxes in 0..1 of the packed picture."""
    found = []
    for place, objects in tiles.items():
        column, row = PLACES[place]
        for o in objects:
            x, y = column * SIDE + o.x, row * SIDE + o.y
            box = [round(max(0.0, min(1.0, v / (2 * SIDE))), 4) for v in (x, y, x + o.side, y + o.side)]
            attributes = {"color": o.color, "size": o.size}
            found.append({"name": o.shape, "attributes": attributes, "box": box, "place": f"{place} box"})
    return found


# --- words ---


def some(n: int, thing: str) -> str:
    """"a black circle", "two black circles"."""
    return article(thing) if n == 1 else f"{NUMBERS[n] if n < len(NUMBERS) else n} {thing}s"


def listed(objects: tuple[Object, ...]) -> str:
    """The objects counted by color and shape, always in the same order."""
    number = Counter(map(name, objects))
    return join([some(number[t], t) for t in THINGS if number[t]] or ["nothing"])


def every(tiles: dict[str, tuple[Object, ...]]) -> tuple[Object, ...]:
    """The objects of all tiles."""
    return sum(tiles.values(), ())


def description(tiles: dict[str, tuple[Object, ...]]) -> str:
    """All boxes, a sentence each."""
    return " ".join(sentence(f"the {place} box holds {listed(objects)}") for place, objects in tiles.items())


def captions(tiles: dict[str, tuple[Object, ...]], rng: random.Random) -> list[str]:
    """Three different ways to tell what the boxes hold; the first is complete unless that is long."""
    totals, (place, objects) = listed(every(tiles)), rng.choice(list(tiles.items()))
    pool = [
        rng.choice(("there are {} in all", "the three boxes hold {}", "three boxes with {}")).format(totals),
        f"the {place} box {rng.choice(HOLD)} {listed(objects)}",
        f"{listed(objects)} in the {place} box",
        f"the boxes hold {join([some(len(o), 'object') for o in tiles.values()])}",
    ]
    for o in rng.sample(objects, min(1, len(objects))):
        pool.append(f"{article(f'{o.size} {name(o)}')} in the {place} box")
    full = "; ".join(f"{place}: {listed(objects)}" for place, objects in tiles.items())
    first = full if len(full.split()) <= LONG else pool.pop(0)
    return [sentence(words) for words in (first, *rng.sample(pool, 2))]


def ask(kind: str, forms: tuple[str, ...], words: dict[str, str], word: str, full: str, expect: list[str],
        wrong: list[str], rng: random.Random) -> Round:
    """A round in a random phrasing and style; equal random states give equal questions whatever the answer."""
    style = rng.choice(("", "word", "sentence"))
    return ask_style(styled(kind, rng.choice(forms).format(**words), word, full, style, expect, wrong), rng)


def exist(tiles: dict[str, tuple[Object, ...]], thing: str, rng: random.Random) -> Round:
    """Is there a black circle, or a small black circle?"""
    words = {"one": article(thing), "many": thing + "s"}
    places = [place for place, objects in tiles.items() if thing in named(objects)]
    if places:
        full = f"Yes, there is {article(thing)} in the {places[0]} box."
        return ask("exist", EXIST, words, "yes", full, ["yes"], ["no"], rng)
    return ask("exist", EXIST, words, "no", f"No, there is no {thing}.", ["no"], ["yes"], rng)


def named(objects: tuple[Object, ...]) -> set[str]:
    """The things among objects, with and without their size."""
    return {name(o) for o in objects} | {f"{o.size} {name(o)}" for o in objects}


def count(tiles: dict[str, tuple[Object, ...]], rng: random.Random) -> Round:
    """How many yellow squares, squares or yellow objects are there? Never about more than six."""
    number = Counter(w for o in every(tiles) for w in (name(o), o.shape, f"{o.color} object"))
    things = [*THINGS, *SHAPES, *(f"{c} object" for c in COLORS.values())]
    n = rng.choice(sorted({number[t] for t in things if number[t] <= 6}))  # the number first, or most would be zero
    thing = rng.choice([t for t in things if number[t] == n])
    full = f"There is one {thing}." if n == 1 else f"There are {NUMBERS[n] if n else 'no'} {thing}s."
    expect = [NUMBERS[n], str(n)] + ["no"] * (n == 0)
    wrong = [w for w in NUMBERS if w != NUMBERS[n]]
    return ask("count", COUNT, {"many": thing + "s"}, NUMBERS[n], full, expect, wrong, rng)


def statement(scene: Scene, rng: random.Random) -> Round:
    """Is what people wrote true of the scene?"""
    said = scene.sentence.rstrip(" .?!,")
    words = {"said": said[0].lower() + said[1:]}
    if scene.label:
        return ask("statement", STATEMENT, words, "yes", "Yes, that is true.", ["yes"], ["no"], rng)
    return ask("statement", STATEMENT, words, "no", "No, that is not true.", ["no"], ["yes"], rng)


def dialogue(scene: Scene, tiles: dict, share: dict[str, float], rng: random.Random) -> list[Round]:
    """Five different questions in random order: three or two of existence, counts, the sentence, a description.

    A thing is drawn by how unusual its answer is, f (1 - f) for a thing in a share f of the scenes, both
    for yes and for no: so neither answer can be guessed from the thing alone.
    """
    there = named(every(tiles))

    def thing(things: list[str]) -> str:
        return rng.choices(things, [1 - share[t] if t in there else share[t] for t in things])[0]

    rounds = [statement(scene, rng), exist(tiles, thing(THINGS), rng), exist(tiles, thing(SIZED), rng), count(tiles, rng)]
    if rng.random() < 0.4:
        rounds.append(Round("describe", rng.choice(DESCRIBE), description(tiles), "detail"))
    else:
        rounds.append(rng.choice((lambda: exist(tiles, thing(THINGS), rng), lambda: count(tiles, rng)))())
    rng.shuffle(rounds)
    return list({r.question: r for r in rounds}.values())


# --- the data set ---


def write_side(cfg: Config, corpus: Corpus, side: str, scenes: list[Scene], share: dict[str, float],
               skipped: Counter) -> tuple[int, set[Scene]]:
    """Write a side's pictures and records, and train's documents; return their number and who has picture 0."""
    folder = Path(cfg.out)
    pixels, records, documents, first = [], [], [], set()
    for order, scene in product(range(len(ORDERS)), scenes):
        key = f"{scene.split}-{scene.identifier}-{order}"
        try:
            data = corpus.read(f"{scene.split}/images/{scene.directory}/{key}.png")
            pixels.append(pack(open_image(io.BytesIO(data)), cfg.image_size))
        except FileNotFoundError:
            skipped["missing picture"] += 1
            continue
        except ValueError as error:
            skipped[str(error) if str(error).startswith("picture not") else "unreadable picture"] += 1
            continue
