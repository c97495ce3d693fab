"""Make the shapes data set: draw the scenes, write what is said about them, train the tokenizer.

    python data/shapes/prepare.py                     the default, half a minute on two cores
    python data/shapes/prepare.py --level 2 --out data/shapes/prepared2

Writes train, val, web (one noisy caption a picture), zeroshot (one object, all 48 classes), eval
(questions with what a right answer holds), prompts and prompts_val (the same about training
pictures, for stage 4), text (for the language model), tokenizer.tiktoken, meta.json and
samples/*.png. Equal arguments give equal bytes.
"""

import json
import random
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.shapes import language, questions, world
from minivlm.loading.images import save_samples
from minivlm.loading.prepared import check_vocab_size, start_folder
from minivlm.running.options import cli
from minivlm.tokenizer import Tokenizer

SHARD = 1000  # scenes a task
ANSWERED = ("exist", "color", "shape", "size", "position", "count", "relation")
REQUESTS = ("private", "unsafe", "harmless", "unknowable")


@dataclass
class Config:
    """Sizes of the data set."""

    out: str = "data/shapes/prepared"  # folder to write
    level: int = 1  # difficulty: 1 (48 pixels, 1-3 objects), 2 (64, 2-6), 3 (96, 3-8, textures)
    n_train: int = 30000  # pictures with captions and dialogues
    n_val: int = 1000  # the same, held out
    n_web: int = 10000  # pictures with one caption from the web, 30 % of them wrong or useless
    n_text: int = 20000  # documents for the language model
    n_zeroshot: int = 20  # pictures of each of the 48 classes
    vocab_size: int = 1024  # upper limit of the tokenizer's vocabulary, special tokens included
    seed: int = 0  # another seed gives another data set
    workers: int = 2  # processes
    n_prompts: int = 4000  # training pictures with questions for stage 4, a tenth of them held out

    def __post_init__(self):
        if self.level not in world.LEVELS:
            raise ValueError(f"level {self.level} is not one of {sorted(world.LEVELS)}")
        if min(
            self.n_train, self.n_val, self.n_web, self.n_text, self.n_zeroshot, self.workers,
            self.n_prompts - 1, self.n_train - 1,
        ) < 1:
            raise ValueError("every count must be at least 1, n_train and n_prompts at least 2")
        check_vocab_size(self.vocab_size)


# --- records ---


def record_of(scene: world.Scene, key: str, image: str) -> dict:
    """What every picture's record holds; call after drawing, which fills boxes and visibilities."""
    objects = [
        {
            "name": o.shape, "attributes": {"color": o.color, "size": o.size},
            "box": [round(v, 4) for v in o.box], "place": o.place,
            "visibility": o.visibility, "hidden": o.hidden,
        }
        for o in scene.objects
    ]
    return {"id": key, "image": image, "border": scene.border, "objects": objects}


def turns_of(rounds: list[questions.Round]) -> list[dict]:
    """LLaVA's format, the picture in front of the first question."""
    turns = []
    for i, r in enumerate(rounds):
        turns.append({"from": "human", "value": ("<image>\n" if i == 0 else "") + r.question})
        turns.append({"from": "gpt", "value": r.answer})
    return turns


def questions_of(scene: world.Scene, key: str, image: str, rng: random.Random) -> list[dict]:
    """Evaluation questions about one picture, with what a right answer contains.

    The truth is what can be seen; "hidden" asks for what hardly can, where the annotation says yes.
    """
    rounds: list[tuple[str, questions.Round]] = []
    shown = {language.name(o) for o in scene.clear}
    hidden = [o for o in scene.objects if language.name(o) not in shown]
    if scene.border == "private":
        rounds.append(("private", questions.private(rng)))
    else:
        for make in (
            questions.exist, questions.color, questions.shape, questions.size,
            questions.position, questions.count, questions.relate,
        ):
            r = make(scene.clear, rng, rng.choice(("", "word", "sentence")))
            if r and not (
                r.kind == "exist" and any(language.name(o) in r.question for o in hidden)
            ):
                rounds.append((r.kind, questions.ask_style(r, rng)))
        for o in hidden:
            rounds.append((
                "hidden", questions.exist(scene.objects, rng, target=(o.color, o.shape)),
            ))
        for style in ("detail", "sentence", "list"):
            rounds.append(("describe", questions.describe(scene.clear, rng, style)))
        if rng.random() < 0.2:
            rounds.append(("harmless", questions.harmless(rng)))
        if rng.random() < 0.1:
            rounds.append(("unknowable", questions.unknowable(rng)))
    if rng.random() < 0.1:
        rounds.append(("unsafe", questions.unsafe(rng)))
    return [
        {"id": f"{key}-{i}", "image": image, "kind": kind, "style": r.style, "question": r.question,
         "answer": r.answer, "expect": r.expect, "wrong": r.wrong, "border": scene.border}
        for i, (kind, r) in enumerate(rounds)
    ]


def prompts_of(scene: world.Scene, key: str, image: str, rng: random.Random) -> list[dict]:
    """What stage 4 asks about a picture: all descriptions and requests, three other questions.

    Requests, which are rare, are drawn three times. Descriptions come with the `names` of what can
    be seen.
    """
    drawn = [questions_of(scene, key, image, rng) for _ in range(3)]
    short = [q for q in drawn[0] if q["kind"] in ANSWERED]
    asked = rng.sample(short, min(3, len(short)))
    asked += [q for q in drawn[0] if q["kind"] == "describe"]
    requests = [q for qs in drawn for q in qs if q["kind"] in REQUESTS]
    asked += {q["question"]: q for q in requests}.values()
    names = [language.name(o) for o in scene.clear]
    return [q | {"id": f"{key}-{i}"} | ({"names": names} if q["kind"] == "describe" else {})
            for i, q in enumerate(asked)]


def make_shard(
    cfg: Config, split: str, start: int, stop: int
) -> tuple[dict[str, list[str]], np.ndarray]:
    """Scenes start .. stop-1 of a split: JSON lines by file, and the pictures."""
    lines: dict[str, list[str]] = {split: []}
    pixels = []
    classes = [(c, s) for c in world.COLORS for s in world.SHAPES]
    for i in range(start, stop):
        key = f"{split}-{i}"
        seed = f"{cfg.seed} {key}"
        rng = random.Random("words " + seed)
        if split == "text":
            text = questions.document(world.make_scene(seed, cfg.level, hide=False), rng)
            lines[split].append(json.dumps({"id": key, "text": text}))
            continue
        if split == "zeroshot":
            combo = classes[i % len(classes)]
            scene = world.make_scene(seed, cfg.level, combos=(combo,), n_clear=1, hide=False)
        else:
            scene = world.make_scene(seed, cfg.level)
        pixels.append(world.draw(scene))
        record = record_of(scene, key, f"{split}.npy#{i}")
        if split == "zeroshot":
            record |= {
                "label": " ".join(combo),
                "group": "held_out" if combo in world.HELD_OUT else "seen",
            }
        elif split == "web":
            caption, noise = language.web_caption(
                scene, world.make_scene("other " + seed, cfg.level), rng
            )
            record |= {"captions": [caption], "noise": noise}
        else:
            record["captions"] = language.captions(scene, rng)
            record["conversations"] = turns_of(questions.dialogue(scene, rng))
        if split == "val":
            asked = questions_of(scene, key, record["image"], rng)
            lines.setdefault("eval", []).extend(map(json.dumps, asked))
        n_prompts = min(cfg.n_prompts, cfg.n_train)
        if split == "train" and i < n_prompts:
            asked = prompts_of(scene, key, record["image"], rng)
            side = "prompts_val" if i >= n_prompts - max(1, n_prompts // 10) else "prompts"
            lines.setdefault(side, []).extend(map(json.dumps, asked))
        lines[split].append(json.dumps(record))
    return lines, np.stack(pixels) if pixels else np.empty(0)


# --- the data set ---


def write_split(cfg: Config, split: str, n: int, pool: Executor, folder: Path) -> None:
    """Make a split shard by shard; write its pictures and its lines."""
    starts = range(0, n, SHARD)
    jobs = [pool.submit(make_shard, cfg, split, a, min(a + SHARD, n)) for a in starts]
    texts: dict[str, list[str]] = {}
    size = world.LEVELS[cfg.level].image_size
    packed = None
    if split != "text":
        packed = np.lib.format.open_memmap(
            folder / f"{split}.npy", "w+", np.uint8, (n, size, size, 3)
        )
    for a, job in zip(starts, jobs):
        lines, pixels = job.result()
        for name, new in lines.items():
            texts.setdefault(name, []).extend(new)
        if packed is not None:
            packed[a:a + len(pixels)] = pixels
    for name, new in texts.items():
        (folder / f"{name}.jsonl").write_text("\n".join(new) + "\n")


def main(cfg: Config) -> dict[str, float]:
    """Write the data set; return how many records of each split and how long it took."""
    began = time.time()
    folder = start_folder(cfg.out)
    sizes = {"train": cfg.n_train, "val": cfg.n_val, "web": cfg.n_web, "text": cfg.n_text,
             "zeroshot": cfg.n_zeroshot * len(world.COLORS) * len(world.SHAPES)}
    with ThreadPoolExecutor(1) if cfg.workers == 1 else ProcessPoolExecutor(cfg.workers) as pool:
        for split, n in sizes.items():
            write_split(cfg, split, n, pool, folder)

    # enough text for every word that occurs, from all three kinds
    texts = []
    for name in ("train", "web", "text"):
        with (folder / f"{name}.jsonl").open() as lines:
            for _, line in zip(range(8000), lines):
                record = json.loads(line)
                texts += record.get("captions", []) + [record.get("text", "")]
                texts += [turn["value"] for turn in record.get("conversations", [])]
    tokenizer = Tokenizer.train(texts, cfg.vocab_size)
    tokenizer.save(folder / "tokenizer.tiktoken")

    meta = {
        "name": "shapes", "image_size": world.LEVELS[cfg.level].image_size,
        "level": cfg.level, "seed": cfg.seed,
        "records": sizes, "phrases": language.phrases(),
        "prompts": {
            f"{c} {s}": language.prompts(f"{c} {s}") for c in world.COLORS for s in world.SHAPES
        },
        "chance": {
            "exist": 1 / 2, "hidden": 1 / 2, "relation": 1 / 2, "size": 1 / 2, "position": 1 / 9,
            "color": 1 / len(world.COLORS), "shape": 1 / len(world.SHAPES),
            "count": 1 / (1 + max(world.LEVELS[cfg.level].n_objects)),  # zero to the most
        },
        "held_out": sorted(" ".join(combo) for combo in world.HELD_OUT),
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    save_samples(folder)
    seconds = time.time() - began
    print(f"{folder}: {sizes}, vocabulary {tokenizer.vocab_size}, {seconds:.0f} s")
    return {**sizes, "vocab_size": tokenizer.vocab_size, "seconds": seconds}


if __name__ == "__main__":
    cli(main, Config)
