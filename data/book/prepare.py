"""Make the picture book: draw scenes, write what is said about them, train the tokenizer.

    python data/book/prepare.py                  the default, half a minute on two cores
    python data/book/prepare.py --level 2 --out data/book/prepared2

Writes these files of records:

    train, val            pictures with captions and dialogues
    web                   pictures with one caption each, which may be wrong
    zeroshot              pictures of one thing, every thing in each of its colors
    eval, quiz            questions about val, with what a right answer contains: eval in
                          phrasings that no dialogue uses, quiz in those that are taught
    prompts, prompts_val  such questions about pictures of train, for stage 4; about half of
                          the pictures in words that no other file has
    text                  documents for the language model: facts, two in five; captions,
                          questions about scenes, stories, talk

and tokenizer.tiktoken, meta.json and samples/*.png. Equal arguments give equal bytes.
"""

import json
import random
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice, repeat
from pathlib import Path

import numpy as np

from data.book import facts, language, world
from data.book.things import COLORS, THINGS
from minivlm.engine import quiz
from minivlm.engine.checks import parse
from minivlm.engine.dialogues import turns_of
from minivlm.engine.phrasings import make_phraser
from minivlm.engine.scenes import story
from minivlm.engine.talk import ANSWERS, say
from minivlm.engine.template import DEEP, SIMPLE, choose, scene_of, worded, write
from minivlm.engine.wording import World, world_of
from minivlm.loading.prepared import finish_folder, start_folder
from minivlm.running.options import check, cli

SHARD = 1000  # scenes that one task of a worker makes
# conversation : detail : reasoning
TYPES = ("conversation",) * 7 + ("detail", "reasoning", "reasoning")
# kinds of requests for stage 4
REQUESTS = ("private", "unsafe", "harmless", "unknowable", "offer")
# what chat.py's /help shows
QUESTIONS = (
    "Describe the picture.", "Is it day or night?", "What is unusual here, and why?",
    "How many things are there?", "Where is the cat?", "What color is the boat?",
    "Is the car left of the tree?", "Does the fish belong there?",
    "What does the thing at the left eat?", "Tell me a story about this picture.",
)
CLASSES = [(color, name) for name, kind in THINGS.items() for color in kind.colors]


@dataclass
class Config:
    """Options; the comments are the help texts."""

    # data set
    out: str = "data/book/prepared"  # data folder to write
    level: int = 1  # 1 .. 3; difficulty: 60 pixels, 1-4 things; 96, 2-6; 128, 3-7, textures
    seed: int = 0  # >= 0; another seed gives another data set
    vocab_size: int = 1536  # >= 263; most tokens in the vocabulary, special tokens included
    # sizes
    n_train: int = 30000  # >= 2; pictures with captions and dialogues
    n_val: int = 1000  # >= 1; the same, held out
    n_web: int = 10000  # >= 1; pictures with one caption, 30 % of them wrong or useless
    n_text: int = 20000  # >= 1; documents for the language model
    n_zeroshot: int = 6  # >= 1; pictures of each class
    n_prompts: int = 4000  # >= 2; train pictures with prompts for stage 4, a tenth held out
    # machine
    workers: int = 2  # >= 1; processes that make scenes


# --- records ---


def record_of(scene: world.Scene, key: str, image: str) -> dict:
    """What the record of every picture holds.

    Args:
        scene: its things have boxes and visibilities, which `world.draw` sets.
        key: id of the record.
        image: name of the picture, as "train.npy#17".
    """
    objects = []
    for t in scene.things:
        entry = {
            "name": t.kind, "attributes": {"color": t.color, "size": t.size},
            "box": [round(v, 4) for v in t.box], "place": world.PLACES[t.cell],
            "zone": language.ZONE[scene.zone(t.cell)], "visibility": t.visibility,
            "hidden": bool(t.hidden),
        }
        reason = language.strange(t, scene)
        if reason:
            entry["unusual"] = reason
        objects.append(entry)
    return {
        "id": key, "image": image, "border": scene.border, "place": scene.place,
        "time": scene.time, "objects": objects,
    }


def document(seed: str, level: int, rng: random.Random) -> str:
    """A text for the language model: a page of the book of facts, a scene told in a caption
    and again in short sentences, questions about it, a story about it, or talk.

    Only these texts hold the untold facts.
    """
    if rng.random() < 0.35:
        return facts.page(rng.choice(list(THINGS)), rng)
    # where there is more to tell apart, more must be looked up
    drawn = [world.make_scene(f"{seed}-{i}", level, hide=False) for i in range(3)]
    scene = max(drawn, key=lambda scene: len(scene.things))
    kind = rng.choices(("retold", "questions", "story", "talk"), (8, 6, 1, 1))[0]
    if kind == "retold":
        return language.retold(scene, rng)
    world.draw(scene)  # sets the boxes, which decide what is left of what
    record = record_of(scene, seed, "")
    _, _, book = worlds(level)
    lines = [language.captions(scene, rng)[0]]
    if kind == "questions":
        makers = rng.choice((SIMPLE, SIMPLE, DEEP))
        drafts = [choose(makers, scene_of(record), rng, book) for _ in range(4)]
    elif kind == "story":
        drafts = [story(scene_of(record), rng, book)]
    else:
        lines = []
        drafts = [say(what, rng) for what in rng.sample(list(ANSWERS), 3)]
    phrase_question = make_phraser(rng)
    for draft in drafts:
        if draft:
            question = worded(draft, phrase_question)
            lines.append(f"Question: {question}\nAnswer: {draft.answer}")
    return "\n".join(lines)


def make_chance(level: int) -> dict[str, float]:
    """Kind of question -> the accuracy of a random answer, where that is defined."""
    chance = dict.fromkeys((
        "exist", "negation", "relation", "size", "and_size", "compare_number",
        "compare_size", "larger_of", "nearer", "same", "belongs", "day_night",
    ), 1 / 2)
    chance |= dict.fromkeys(("position", "and_where"), 1 / len(world.PLACES))
    chance |= dict.fromkeys(("color", "and_color", "next_to"), 1 / len(COLORS))
    chance["kind"] = 1 / len(THINGS)
    chance["setting"] = 1 / len(world.ZONES)
    # zero is an answer too
    chance["count"] = 1 / (1 + max(world.LEVELS[level].n_things))
    return chance


@lru_cache(maxsize=None)
def make_meta(level: int) -> dict:
    """What meta.json tells of this world, whatever the seed."""
    told, untold = facts.read_facts()
    common = []  # names, as often as they occur in 2,000 scenes
    for i in range(2000):
        common += [t.name for t in world.make_scene(f"common {i}", level).clear]
    classes = [" ".join(pair) for pair in CLASSES]
    return {
        "name": "book", "image_size": world.LEVELS[level].image_size, "level": level,
        "phrases": language.phrases(), "places": language.SETTINGS,
        "prompts": {name: language.prompts(name) for name in classes},
        "held_out": sorted(" ".join(pair) for pair in world.UNSEEN_PAIRS),
        "facts": told, "untold": [list(pair) for pair in untold], "common": common,
        "chance": make_chance(level), "questions": list(QUESTIONS),
    }


@lru_cache(maxsize=None)
def worlds(level: int) -> tuple[World, World, World]:
    """What dialogues may use; the same with the untold facts alone; and with all facts."""
    meta = make_meta(level)
    hidden = {}
    for kind, aspect in meta["untold"]:
        hidden.setdefault(kind, {})[aspect] = meta["facts"][kind][aspect]
    known = world_of(meta)
    return known, replace(known, facts=hidden), replace(known, facts=meta["facts"])


def dialogue_of(record: dict, rng: random.Random, level: int) -> list[dict]:
    """A dialogue about a picture, in LLaVA's format."""
    known, _, _ = worlds(level)
    kind = rng.choice(TYPES)
    try:
        text = write(kind, record, rng, known)
    except ValueError:  # a single object allows few questions that need two steps
        kind = "conversation"
        text = write(kind, record, rng, known)
    return turns_of(parse(kind, text), rng)


def questions_of(record: dict, rng: random.Random, level: int) -> dict[str, list[dict]]:
    """The same questions in unseen phrasings ("eval") and in those that are taught."""
    known, untold, _ = worlds(level)
    asked = quiz.questions_of(record, rng, known, make_meta(level)["phrases"], untold)
    return {
        "eval": quiz.lines_of(record, asked, rng, "unseen"),
        "quiz": quiz.lines_of(record, asked, rng, "taught"),
    }


def prompts_of(record: dict, rng: random.Random, level: int) -> list[dict]:
    """What stage 4 asks about a picture: descriptions, requests, three short questions.

    Of half of the pictures in words of their own, neither taught nor measured.
    """
    known, _, _ = worlds(level)
    asked = quiz.questions_of(record, rng, known, make_meta(level)["phrases"])
    asked = [q for q in asked if not q.before]
    lines = quiz.lines_of(record, asked, rng, rng.choice(("taught", "asked")))
    chosen = [q for q in lines if q["kind"] in REQUESTS or q["names"]]
    short = [q for q in lines if q not in chosen and q["expect"]]
    return chosen + rng.sample(short, min(3, len(short)))


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
            text = document(seed, cfg.level, rng)
            lines[split].append(json.dumps({"id": key, "text": text}))
            continue
        pair = CLASSES[i % len(CLASSES)]
        if split == "zeroshot":
            scene = world.make_single(seed, cfg.level, *pair)
        else:
            scene = world.make_scene(seed, cfg.level)
        pixels.append(world.draw(scene))
        record = record_of(scene, key, f"{split}.npy#{i}")
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
            record["conversations"] = dialogue_of(record, rng, cfg.level)
        if split == "val":
            for name, new in questions_of(record, rng, cfg.level).items():
                lines.setdefault(name, []).extend(map(json.dumps, new))
        if split == "train" and i < n_prompts:
            # at least one picture is held out, and never all: n_prompts is 2 or more
            is_held_out = i >= n_prompts - max(1, n_prompts // 10)
            name = "prompts_val" if is_held_out else "prompts"
            asked = prompts_of(record, rng, cfg.level)
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
        # kept on the disk: 30,000 pictures of level 3 are 1.5 GB
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
        (folder / f"{name}.jsonl").write_text("\n".join(new) + "\n", encoding="utf-8")


# --- the data set ---


def texts_of(folder: Path) -> list[str]:
    """Texts from three files, for the training of the tokenizer.

    8,000 records of each file are enough: every word of this world occurs in them.
    """
    texts = []
    for name in ("train", "web", "text"):
        with (folder / f"{name}.jsonl").open(encoding="utf-8") as lines:
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
    sizes = {
        "train": cfg.n_train, "val": cfg.n_val, "web": cfg.n_web, "text": cfg.n_text,
        "zeroshot": cfg.n_zeroshot * len(CLASSES),
    }
    # a single worker is a thread of this process: no second process is needed
    make_pool = ThreadPoolExecutor if cfg.workers == 1 else ProcessPoolExecutor
    with make_pool(cfg.workers) as pool:
        for split, n in sizes.items():
            write_split(cfg, split, n, pool, folder)
    meta = make_meta(cfg.level) | {"seed": cfg.seed, "records": sizes}
    tokenizer = finish_folder(folder, texts_of(folder), cfg.vocab_size, meta)
    seconds = time.time() - began
    print(f"{folder}: {sizes}, vocabulary {tokenizer.vocab_size}, {seconds:.0f} s")
    return {**sizes, "vocab_size": tokenizer.vocab_size, "seconds": seconds}


if __name__ == "__main__":
    cli(main, Config)
