"""Measure a run on held-out data: retrieval, zero-shot, captions, answers, POPE, CHAIR, style.

Every figure stands beside chance and a blind baseline: the same model looking at a gray picture.
What a run cannot do (a CLIP writes nothing, a chatbot has no text tower) is left out of its table,
and so is what a data folder does not hold (zeroshot.jsonl with prompts, eval.jsonl, phrases that
name objects).

Reads: a run folder and a prepared data folder.   Writes: eval.json in the run folder.
Run: python evaluate.py --run runs/sft
"""

import csv
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from minivlm import checkpoint, metrics, run
from minivlm.clip import CLIP
from minivlm.conversation import render
from minivlm.data import caption_rows, collate, load_meta, load_records
from minivlm.images import Pictures
from minivlm.generate import beam_search, generate
from minivlm.tokenizer import Tokenizer
from minivlm.vlm import VLM

# --- config ---


@dataclass
class Config:
    """Options; the comments are the help texts."""

    run: str = "runs/sft"  # run folder of any stage behind the first
    data: str = "data/shapes/prepared"  # folder made by a prepare.py
    out: str = ""  # file for the figures; empty = eval.json in the run folder
    n_images: int = 1000  # held-out pictures for retrieval
    n_questions: int = 300  # at most so many questions of a kind
    n_describe: int = 300  # pictures to describe for CHAIR
    max_new_tokens: int = 96  # longest answer
    n_beams: int = 3  # texts followed at once when a captioner writes, as BLIP does
    batch_size: int = 100  # rows answered at a time
    blind: bool = True  # measure the same model on gray pictures too
    seed: int = 0  # which objects POPE asks about
    train_seconds: int = 0  # what data and training took, to be kept with the figures; 0 = not told
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    threads: int = 0  # CPU threads; 0 = torch's choice


# --- a CLIP ---


@torch.no_grad()
def embed_images(model: CLIP, images: torch.Tensor) -> torch.Tensor:
    """(n, 3, S, S) -> (n, C) of unit length, 200 at a time."""
    return torch.cat([model.encode_image(part) for part in images.split(200)])


@torch.no_grad()
def embed_texts(
    model: CLIP, texts: list[str], tokenizer: Tokenizer, device: torch.device
) -> torch.Tensor:
    """n texts -> (n, C) of unit length, 200 at a time."""
    out = []
    for i in range(0, len(texts), 200):
        batch = collate(
            caption_rows(texts[i:i + 200], tokenizer), tokenizer.pad, model.text.block_size
        )
        out.append(model.encode_text(batch.idx.to(device), batch.lengths.to(device)))
    return torch.cat(out)


def retrieval(
    model: CLIP, cfg: Config, tokenizer: Tokenizer, pictures: Pictures, blind: bool,
    chance: dict[str, float],
) -> dict[str, float]:
    """Recall@1, 5, 10 both ways; a picture has several captions, each of them right.

    So is the very same sentence where it was written about another picture.
    """
    records = [
        r for r in load_records(cfg.data, "val", need=("image",)) if r.get("captions")
    ][:cfg.n_images]
    device = next(model.parameters()).device
    images = pictures.get([r["image"] for r in records]).to(device)
    captions = [caption for r in records for caption in r["captions"]]
    img_z = embed_images(model, torch.zeros_like(images) if blind else images)
    txt_z = embed_texts(model, captions, tokenizer, device)
    similarity = img_z @ txt_z.T                                     # (pictures, captions)
    own = [set(r["captions"]) for r in records]
    right = torch.tensor([[caption in said for caption in captions] for said in own])
    out = {}
    for k in (1, 5, 10):
        for way, sim, fits in (
            ("image_to_text", similarity, right), ("text_to_image", similarity.T, right.T),
        ):
            out[f"retrieval/{way}_r{k}"] = metrics.recall_at_k(sim.cpu(), fits, k)
            chance[f"retrieval/{way}_r{k}"] = metrics.recall_by_chance(fits, k)
    return out


def zero_shot(
    model: CLIP, cfg: Config, meta: dict, tokenizer: Tokenizer, pictures: Pictures, blind: bool
) -> dict[str, float]:
    """Classify pictures by text: the class whose mean prompt embedding is nearest.

    Source: CLIP, section 3.1.4: normalized prompt embeddings are averaged, then normalized again.
    """
    device = next(model.parameters()).device
    records = load_records(cfg.data, "zeroshot", need=("image", "label"))
    classes = list(meta["prompts"])
    means = [embed_texts(model, meta["prompts"][c], tokenizer, device).mean(0) for c in classes]
    weights = torch.stack([torch.nn.functional.normalize(z, dim=0) for z in means])  # (classes, C)
    images = pictures.get([r["image"] for r in records]).to(device)
    img_z = embed_images(model, torch.zeros_like(images) if blind else images)
    chosen = (img_z @ weights.T).argmax(1).tolist()
    hits = defaultdict(list)
    for r, c in zip(records, chosen):
        hits[r["group"]].append(classes[c] == r["label"])
    return {f"zero_shot/{group}": sum(h) / len(h) for group, h in sorted(hits.items())}


# --- a VLM ---


def make_answerer(
    model: VLM, cfg: Config, tokenizer: Tokenizer, pictures: Pictures, blind: bool
) -> Callable:
    """Return ask([(image, question), ...]) -> answers, greedy, in batches of similar length."""
    N = model.config.vit.n_tokens
    device = next(model.parameters()).device

    def ask(pairs: list[tuple[str, str]]) -> list[str]:
        prompts = [
            render([{"from": "human", "value": "<image>\n" + q}], tokenizer, N)[0]
            for _, q in pairs
        ]
        order = sorted(range(len(pairs)), key=lambda i: len(prompts[i]))
        answers = [""] * len(pairs)
        starts = range(0, len(order), cfg.batch_size)
        for start in tqdm(starts, desc="blind" if blind else "asking", disable=None, leave=False):
            rows = order[start:start + cfg.batch_size]
            images = pictures.get([pairs[i][0] for i in rows]).to(device)
            images = torch.zeros_like(images) if blind else images
            made = generate(
                model, images, [prompts[i] for i in rows],
                max_new_tokens=cfg.max_new_tokens, stop=tokenizer.end,
            )
            for i, ids in zip(rows, made):
                answers[i] = tokenizer.decode(ids)
        return answers

    return ask


def answers(ask: Callable, cfg: Config, log: list[dict]) -> dict[str, float]:
    """Accuracy by kind of question, style obedience, refusals where due and where not."""
    by_kind = defaultdict(list)
    for q in load_records(cfg.data, "eval", need=("kind", "question", "image")):
        q = {"style": "", "expect": [], "wrong": [], "border": "", "answer": ""} | q
        key = q["kind"] + ("_" + q["style"] if q["kind"] == "describe" else "")
        if len(by_kind[key]) < cfg.n_questions:
            by_kind[key].append(q)
    questions = [q for kind in sorted(by_kind) for q in by_kind[kind]]
    said = ask([(q["image"], q["question"]) for q in questions])
    right, style, refused = defaultdict(list), defaultdict(list), defaultdict(list)
    for q, a in zip(questions, said):
        if q["kind"] in ("private", "unsafe"):
            refused["due"].append(metrics.is_refusal(a))
        else:
            harmless = q["kind"] == "harmless" or q["border"] == "plain"
            refused["harmless" if harmless else "other"].append(metrics.is_refusal(a))
        if q["expect"]:
            right[q["kind"]].append(metrics.answer_ok(a, q["expect"], q["wrong"]))
        if q["style"]:
            style[q["style"]].append(metrics.style_ok(a, q["style"]))
        log.append({
            "image": q["image"], "kind": q["kind"], "question": q["question"],
            "answer": a, "expected": q["answer"],
        })
    share = lambda d, name: {  # noqa: E731
        f"{name}/{k}": sum(v) / len(v) for k, v in sorted(d.items())
    }
    return share(right, "answers") | share(style, "style") | share(refused, "refused")


def object_names(record: dict, meta: dict, hidden: tuple[bool, ...]) -> list[str]:
    """Canonical names of a picture's objects: hardly visible ones (True), clear ones (False)."""
    kept = [o for o in record["objects"] if bool(o.get("hidden")) in hidden]
    return [meta["phrases"][f"{o['attributes']['color']} {o['name']}"] for o in kept]


def hallucination(ask: Callable, cfg: Config, meta: dict, log: list[dict]) -> dict[str, float]:
    """POPE three ways over clearly visible objects, and CHAIR of detailed descriptions."""
    records = load_records(cfg.data, "val", need=("image", "objects"))
    records = [r for r in records if r.get("border") != "private"][:cfg.n_describe]

    clear = [object_names(r, meta, (False,)) for r in records]
    every = [object_names(r, meta, (False, True)) for r in records]
    out = {}
    for strategy in ("random", "popular", "adversarial"):
        asked = metrics.pope_questions(clear, strategy, cfg.seed, annotated=every)
        said = ask([
            (records[i]["image"], f"Is there a{'n' * (name[0] in 'aeiou')} {name}?")
            for i, name, _ in asked
        ])
        figures = metrics.pope([metrics.says_yes(a) for a in said], [yes for _, _, yes in asked])
        out |= {f"pope_{strategy}/{k}": v for k, v in figures.items()}

    said = ask([(r["image"], "Describe the picture.") for r in records])
    named = [metrics.mentions(a, meta["phrases"]) for a in said]
    log += [
        {"image": r["image"], "kind": "detail", "question": "Describe the picture.", "answer": a}
        for r, a in zip(records, said)
    ]
    seen, known = metrics.chair(named, clear), metrics.chair(named, every)
    out |= {f"chair/{key}": seen[key] for key in ("chair_i", "chair_s", "recall")}
    hidden = [object_names(r, meta, (True,)) for r in records]
    if any(hidden):
        out["chair/chair_i_annotation"] = known["chair_i"]  # hardly visible objects count as there
        out["chair/recall_hidden"] = metrics.chair(named, hidden)["recall"]
    return out


def captioning(
    model: VLM, cfg: Config, prompt: str, meta: dict, tokenizer: Tokenizer, pictures: Pictures,
    blind: bool, log: list[dict],
) -> dict[str, float]:
    """Captions by beam search beside those of people: BLEU-4, ROUGE-L, CIDEr-D; and CHAIR."""
    records = load_records(cfg.data, "val", need=("image", "captions"))[:cfg.n_describe]
    ids = [tokenizer.image] * model.config.vit.n_tokens + tokenizer.encode(prompt)
    made: list[str] = []
    starts = range(0, len(records), cfg.batch_size)
    for i in tqdm(starts, desc="blind" if blind else "captions", disable=None, leave=False):
        images = pictures.get([r["image"] for r in records[i:i + cfg.batch_size]])
        images = torch.zeros_like(images) if blind else images
        best = beam_search(
            model, images, [ids] * len(images), n_beams=cfg.n_beams,
            max_new_tokens=cfg.max_new_tokens, stop=tokenizer.endoftext,
        )
        made += [tokenizer.decode(text) for text, _ in best]
    log += [
        {"image": r["image"], "kind": "caption", "question": prompt, "answer": text}
        for r, text in zip(records, made)
    ]
    tidy = lambda text: metrics.words_of(text).strip()  # noqa: E731
    texts = [tidy(text) for text in made]
    people = [[tidy(caption) for caption in r["captions"]] for r in records]
    out = {
        "captions/bleu4": metrics.bleu(texts, people)[3],
        "captions/rouge_l": metrics.rouge_l(texts, people),
        "captions/cider": metrics.cider(texts, people)[0],
    }
    if "phrases" in meta and all("objects" in r for r in records):
        named = [metrics.mentions(text, meta["phrases"]) for text in made]
        there = [object_names(r, meta, (False,)) for r in records]
        out |= {f"captions/{k}": v for k, v in metrics.chair(named, there).items()}
    return out


# --- tables ---


def table(figures: dict[str, float], blind: dict[str, float], chance: dict[str, float]) -> str:
    """One line a figure: name, value, blind baseline, chance."""
    lines = [f"{'figure':34s} {'value':>7s} {'blind':>7s} {'chance':>7s}"]
    for name, value in figures.items():
        cells = [f"{d[name]:7.3f}" if name in d else "      -" for d in (blind, chance)]
        lines.append(f"{name:34s} {value:7.3f} {' '.join(cells)}")
    return "\n".join(lines)


def last_row(path: Path) -> dict[str, float]:
    """The last row of a run's log: final losses, ms a step, peak memory; {} if there is no log."""
    if not path.is_file():
        return {}
    with path.open() as f:
        *_, row = csv.DictReader(f)
    return {k: float(v) for k, v in row.items() if v}


def main(cfg: Config) -> dict[str, float]:
    """Measure, print the table, write the file; return the figures."""
    began = time.time()
    run.seed_everything(cfg.seed, cfg.threads)
    device, meta = run.pick_device(cfg.device), load_meta(cfg.data)
    state = checkpoint.load(cfg.run, ("clip", "align", "caption", "sft"))
    tokenizer = Tokenizer.from_text(state["tokenizer"])
    model = (CLIP if state["stage"] == "clip" else VLM).from_checkpoint(state).to(device).eval()
    pictures = Pictures(cfg.data, model.vit.config.image_size)
    folder = Path(cfg.run).parent if Path(cfg.run).is_file() else Path(cfg.run)
    out = Path(cfg.out or folder / "eval.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    log: list[dict] = []
    chance = {f"answers/{kind}": p for kind, p in meta.get("chance", {}).items()}
    sides: list[dict[str, float]] = []
    for blind in (False, True)[: 1 + cfg.blind]:
        if state["stage"] == "clip":
            figures = retrieval(model, cfg, tokenizer, pictures, blind, chance)
            if "prompts" in meta:
                figures |= zero_shot(model, cfg, meta, tokenizer, pictures, blind)
        else:
            ask = make_answerer(model, cfg, tokenizer, pictures, blind)
            figures, kept = {}, [] if blind else log
            if (Path(cfg.data) / "eval.jsonl").is_file():
                figures |= answers(ask, cfg, kept)
            if "phrases" in meta:
                figures |= hallucination(ask, cfg, meta, kept)
            if state["stage"] == "caption":
                prompt = state["configs"]["prompt"]
                figures |= captioning(model, cfg, prompt, meta, tokenizer, pictures, blind, kept)
            if not figures:
                raise ValueError(
                    f"{cfg.data} has no eval.jsonl and its meta.json no phrases: nothing to measure"
                )
        sides.append(figures)
    figures, blind = sides[0], sides[1] if cfg.blind else {}
    chance |= {k: 1 / len(meta["prompts"]) for k in figures if k.startswith("zero_shot")}
    # a coin's accuracy, precision, recall, ...
    chance |= {k: 0.5 for k in figures if k.startswith("pope")}
    chance = {k: p for k, p in chance.items() if k in figures}
    print(table(figures, blind, chance))
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    report = {
        "command": command,
        "run": cfg.run,
        "data": meta["name"],
        "config": asdict(cfg),
        "train_seconds": cfg.train_seconds,
        "environment": run.environment(),
        "minutes": round((time.time() - began) / 60, 2),
        "peak_gb": run.peak_gb(),
        "training": last_row(folder / "metrics.csv"),
        "figures": figures,
        "blind": blind,
        "chance": chance,
    }
    out.write_text(json.dumps(report, indent=1) + "\n")
    if log:
        out.with_suffix(".answers.jsonl").write_text("\n".join(map(json.dumps, log)) + "\n")
    print(f"wrote {out}")
    return figures


if __name__ == "__main__":
    run.cli(main, Config)
