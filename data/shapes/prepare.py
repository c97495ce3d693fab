"""Make the shapes data set: draw scenes, write texts about them, train the tokenizer.

    python data/shapes/prepare.py                  the default, half a minute on two cores
    python data/shapes/prepare.py --level 2 --out data/shapes/prepared2

Writes these files of records:

    train, val            pictures with captions and dialogues
    web                   pictures with one caption each, which may be wrong
    zeroshot              pictures of one object, all 48 classes
    eval                  questions about val, with what a right answer contains
    prompts, prompts_val  such questions about pictures of train, for stage 4
    text                  documents for the language model

and tokenizer.tiktoken, meta.json and samples/*.png. Equal arguments give equal bytes.
"""

import json
import random
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path

import numpy as np

from data.shapes import language, questions, world
from minivlm.loading.prepared import finish_folder, start_folder
from minivlm.running.options import check, cli

SHARD = 1000  # scenes that one task of a worker makes
CLASSES = [(color, shape) for color in world.COLORS for shape in world.SHAPES]
# kinds of questions for stage 4: those that the picture answers, and requests
ANSWERED = ("exist", "color", "shape", "size", "position", "count", "relation")
REQUESTS = ("private", "unsafe", "harmless", "unknowable")


@dataclass
class Config:
    """Options; the comments are the help texts."""

    # data set
    out: str = "data/shapes/prepared"  # data folder to write
    level: int = 1  # 1 .. 3; difficulty: 48 pixels, 1-3 objects; 64, 2-6; 96, 3-8, textures
    seed: int = 0  # >= 0; another seed gives another data set
    vocab_size: int = 1024  # >= 263; most tokens in the vocabulary, special tokens included
    # sizes
    n_train: int = 30000  # >= 2; pictures with captions and dialogues
    n_val: int = 1000  # >= 1; the same, held out
    n_web: int = 10000  # >= 1; pictures with one caption, 30 % of them wrong or useless
    n_text: int = 20000  # >= 1; documents for the language model
    n_zeroshot: int = 20  # >= 1; pictures of each of the 48 classes
    n_prompts: int = 4000  # >= 2; train pictures with prompts for stage 4, a tenth held out
    # machine
    workers: int = 2  # >= 1; processes that make scenes


# --- records ---


def record_of(scene: world.Scene, key: str, image: str) -> dict:
    """What the record of every picture holds.

    Args:
        scene: has been drawn, which sets the boxes and visibilities of its objects.
        key: id of the record.
        image: name of the picture, as "train.npy#17".
    """
    objects = []
    for o in scene.objects:
        objects.append({
            "name": o.shape, "attributes": {"color": o.color, "size": o.size},
            "box": [round(v, 4) for v in o.box], "place": o.place,
            "visibility": o.visibility, "hidden": o.hidden,
        })
    return {"id": key, "image": image, "border": scene.border, "objects": objects}


def turns_of(rounds: list[questions.Round]) -> list[dict]:
    """A dialogue in LLaVA's format, with the picture before the first question."""
    turns = []
    for r in rounds:
        mark = "" if turns else "<image>\n"
        turns.append({"from": "human", "value": mark + r.question})
        turns.append({"from": "gpt", "value": r.answer})
    return turns


def question_of(
    r: questions.Round, key: str, image: str, kind: str = "", border: str = ""
) -> dict:
    """The record of a question about a picture, with what a right answer contains.

    Args:
        kind: under which the question is evaluated; "" = the round's own.
        border: of the picture, as in `world.Scene`.
    """
    return {
        "id": key, "image": image, "kind": kind or r.kind, "style": r.style,
        "question": r.question, "answer": r.answer, "expect": r.expect, "wrong": r.wrong,
        "border": border,
    }


def questions_of(
    scene: world.Scene, key: str, image: str, rng: random.Random
) -> list[dict]:
    """Evaluation questions about one picture.

    Answers tell what can be seen, with one exception: questions of kind "hidden" ask about
    barely visible objects, and their answer is the annotation's, yes.
    """
    if scene.border == "private":
        rounds = [("private", questions.private(rng))]
    else:
        rounds = _rounds_of(scene, rng)
    # an unsafe request may come with any picture
    if rng.random() < 0.1:
        rounds.append(("unsafe", questions.unsafe(rng)))
    asked = []
    for i, (kind, r) in enumerate(rounds):
        asked.append(question_of(r, f"{key}-{i}", image, kind, scene.border))
    return asked


def _rounds_of(scene: world.Scene, rng: random.Random) -> list[tuple[str, questions.Round]]:
    """Kind and round of each question about a picture that is not private."""
    rounds = []
    clear = {language.name(o) for o in scene.clear}
    hidden = [o for o in scene.objects if language.name(o) not in clear]
    hidden_names = [language.name(o) for o in hidden]
    for make in (
        questions.exist, questions.color, questions.shape, questions.size,
        questions.position, questions.count, questions.relate,
    ):
        r = make(scene.clear, rng, rng.choice(("", "word", "sentence")))
        if r is None:  # the scene does not allow such a question
            continue
        # barely visible objects are asked about below, under a kind of their own
        if r.kind == "exist" and any(name in r.question for name in hidden_names):
            continue
        rounds.append((r.kind, questions.ask_style(r, rng)))
    for o in hidden:
        r = questions.exist(scene.objects, rng, target=(o.color, o.shape))
        rounds.append(("hidden", r))
    for style in ("detail", "sentence", "list"):
        rounds.append(("describe", questions.describe(scene.clear, rng, style)))
    if rng.random() < 0.2:
        rounds.append(("harmless", questions.harmless(rng)))
    if rng.random() < 0.1:
        rounds.append(("unknowable", questions.unknowable(rng)))
    return rounds


def prompts_of(scene: world.Scene, key: str, image: str, rng: random.Random) -> list[dict]:
    """What stage 4 asks about a picture: descriptions, requests, three short questions.

    A description's record has the `names` of the visible objects.
    """
    drawn = [questions_of(scene, key, image, rng) for _ in range(3)]
    short = [q for q in drawn[0] if q["kind"] in ANSWERED]
    asked = rng.sample(short, min(3, len(short)))
    asked += [q for q in drawn[0] if q["kind"] == "describe"]
    # requests are rare, so they are taken from all three draws, each text once
    requests = {}
    for q in drawn[0] + drawn[1] + drawn[2]:
        if q["kind"] in REQUESTS:
            requests[q["question"]] = q
    asked += requests.values()
    names = [language.name(o) for o in scene.clear]
    for i, q in enumerate(asked):
        q["id"] = f"{key}-{i}"
        if q["kind"] == "describe":
            q["names"] = names
    return asked


# --- shards ---


def make_shard(
    cfg: Config, split: str, start: int, stop: int
) -> tuple[dict[str, list[str]], np.ndarray]:
    """Make the scenes start .. stop-1 of a split.

    A scene depends on the seed, the split and its number alone, so shards can be made in
    any order.

    Returns:
        JSON lines of each file, and the pictures, (n, S, S, 3) uint8; text has no pictures.
    """
    lines = {split: []}
    pixels = []
    n_prompts = min(cfg.n_prompts, cfg.n_train)
    for i in range(start, stop):
        key = f"{split}-{i}"
        seed = f"{cfg.seed} {key}"
        # not the scene's generator: other words must not change the picture
        rng = random.Random("words " + seed)
        if split == "text":
            # no pictures here, so nothing can be barely visible
            text = questions.document(world.make_scene(seed, cfg.level, hide=False), rng)
            lines[split].append(json.dumps({"id": key, "text": text}))
            continue
        pair = CLASSES[i % len(CLASSES)]
        if split == "zeroshot":
            # all color-shape pairs, including the unseen pairs
            scene = world.make_scene(seed, cfg.level, combos=(pair,), n_clear=1, hide=False)
        else:
            scene = world.make_scene(seed, cfg.level)
        pixels.append(world.draw(scene))
        image = f"{split}.npy#{i}"
        record = record_of(scene, key, image)
        if split == "zeroshot":
            record["label"] = " ".join(pair)
            record["group"] = "held_out" if pair in world.UNSEEN_PAIRS else "seen"
        elif split == "web":
            # a wrong caption is a true one of this other scene
            other = world.make_scene("other " + seed, cfg.level)
            caption, noise = language.web_caption(scene, other, rng)
            record |= {"captions": [caption], "noise": noise}
        else:
            record["captions"] = language.captions(scene, rng)
            record["conversations"] = turns_of(questions.dialogue(scene, rng))
        if split == "val":
            asked = questions_of(scene, key, image, rng)
            lines.setdefault("eval", []).extend(map(json.dumps, asked))
        if split == "train" and i < n_prompts:
            asked = prompts_of(scene, key, image, rng)
            # at least one picture is held out, and never all: n_prompts is 2 or more
            is_held_out = i >= n_prompts - max(1, n_prompts // 10)
            name = "prompts_val" if is_held_out else "prompts"
            lines.setdefault(name, []).extend(map(json.dumps, asked))
        lines[split].append(json.dumps(record))
    return lines, np.stack(pixels) if pixels else np.empty(0)        # (n, S, S, 3)


def write_split(cfg: Config, split: str, n: int, pool: Executor, folder: Path) -> None:
    """Make a split shard by shard, then write its pictures and its lines."""
    starts = range(0, n, SHARD)
    stops = [min(start + SHARD, n) for start in starts]
    texts = {}
    packed = None
    if split != "text":
        size = world.LEVELS[cfg.level].image_size
        # kept on the disk: 30,000 pictures of level 3 are 830 MB
        path = folder / f"{split}.npy"
        packed = np.lib.format.open_memmap(path, "w+", np.uint8, (n, size, size, 3))
    # shards end in any order; map returns them in order, so the bytes are always the same
    shards = pool.map(make_shard, repeat(cfg), repeat(split), starts, stops)
    for start, (lines, pixels) in zip(starts, shards):
        for name, new in lines.items():
            texts.setdefault(name, []).extend(new)
        if packed is not None:
            packed[start:start + len(pixels)] = pixels
    for name, new in texts.items():
        (folder / f"{name}.jsonl").write_text("\n".join(new) + "\n")


# --- the data set ---


def texts_of(folder: Path) -> list[str]:
    """Texts from three files, for the training of the tokenizer.

    8,000 records of each file are enough: every word of this world occurs in them.
    """
    texts = []
    for name in ("train", "web", "text"):
        with (folder / f"{name}.jsonl").open() as lines:
            for line in islice(lines, 8000):
                record = json.loads(line)
                texts += record.get("captions", []) + [record.get("text", "")]
                texts += [turn["value"] for turn in record.get("conversations", [])]
    return texts


def main(cfg: Config) -> dict[str, float]:
    """Write the data set; return the number of records of each split, and the seconds."""
    check(cfg)
    began = time.time()
    folder = start_folder(cfg.out)
    level = world.LEVELS[cfg.level]
    sizes = {
        "train": cfg.n_train, "val": cfg.n_val, "web": cfg.n_web, "text": cfg.n_text,
        "zeroshot": cfg.n_zeroshot * len(CLASSES),
    }
    # a single worker is a thread of this process: no second process is needed
    make_pool = ThreadPoolExecutor if cfg.workers == 1 else ProcessPoolExecutor
    with make_pool(cfg.workers) as pool:
        for split, n in sizes.items():
            write_split(cfg, split, n, pool, folder)

    names = [" ".join(pair) for pair in CLASSES]
    chance = {
        "exist": 1 / 2, "hidden": 1 / 2, "relation": 1 / 2, "size": 1 / 2,
        "position": 1 / 9,
        "color": 1 / len(world.COLORS), "shape": 1 / len(world.SHAPES),
        "count": 1 / (1 + max(level.n_objects)),  # zero is an answer too
    }
    meta = {
        "name": "shapes", "image_size": level.image_size,
        "level": cfg.level, "seed": cfg.seed,
        "records": sizes, "phrases": language.phrases(),
        "prompts": {name: language.prompts(name) for name in names},
        "chance": chance,
        "held_out": sorted(" ".join(pair) for pair in world.UNSEEN_PAIRS),
    }
    tokenizer = finish_folder(folder, texts_of(folder), cfg.vocab_size, meta)
    seconds = time.time() - began
    print(f"{folder}: {sizes}, vocabulary {tokenizer.vocab_size}, {seconds:.0f} s")
    return {**sizes, "vocab_size": tokenizer.vocab_size, "seconds": seconds}


if __name__ == "__main__":
    cli(main, Config)
