"""CapFilt: a captioner writes a caption for each web picture, a filter keeps what fits.

    python train_caption.py --objective blip --vit_rate 1 --out runs/filter
    python data/capfilt.py                       writes data/book/prepared/capfilt.jsonl
    python train_caption.py --split capfilt

One checkpoint of `train_caption.py --objective blip` is both. Its GPT writes captions by
nucleus sampling, or by beam search (--n_beams 3). Its matching head gives every caption a
probability that it fits its picture, whether the web or the GPT has written it. A caption is
kept if it is likelier to fit than not. A picture without any kept caption is left out. Some
data say which captions are noise; then the filter's precision and recall are printed.

In training, one caption in three fits. Where more captions fit, the head's probabilities
are too low. So the share of fitting captions is estimated from the head's own
probabilities, which are then corrected for it (`correct_prior`). If the data say what the
pictures show, the share of written captions that claim something false is printed, too.

Source: BLIP, arXiv:2201.12086, section 3.3; top_p 0.9 and a repetition penalty of 1.1 as in
salesforce/BLIP, models/blip.py; the author names the threshold of 0.5 in salesforce/BLIP
issue 46. The correction is not in BLIP: Saerens et al. 2002, Adjusting the outputs of a
classifier to new a priori probabilities, Neural Computation 14(1), eqs. 4 and 9.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from minivlm.captioner import Captioner
from minivlm.conversation import caption_rows
from minivlm.evaluation.raters import false_share
from minivlm.evaluation.scene import has_scene
from minivlm.generate import beam_search, generate
from minivlm.loading.batches import collate, shorten_rows
from minivlm.loading.images import Pictures
from minivlm.loading.models import captioner_from, fit_of
from minivlm.loading.prepared import load_meta, load_records
from minivlm.running import checkpoint
from minivlm.running.files import first_line
from minivlm.running.machine import pick_device, provenance, seed_everything
from minivlm.running.options import check, cli
from minivlm.tokenizer import Tokenizer


@dataclass
class Config:
    """Options of the command; the comments are the help texts."""

    # data
    run: str = "runs/filter"  # run folder of train_caption.py --objective blip
    data: str = "data/book/prepared"  # data folder made by a prepare.py
    split: str = "web"  # which file of the data folder to clean
    out: str = ""  # file to write; empty = capfilt.jsonl in the data folder
    # filter
    threshold: float = 0.5  # 0 .. 1; least probability of a kept caption
    correct_prior: bool = True  # correct probabilities for the share of captions that fit
    # captioner
    synthetic: bool = True  # write captions, too; if not, only filter the web captions
    n_beams: int = 0  # >= 0; beams of a beam search, in place of sampling; 0 = sampling
    temperature: float = 1.0  # > 0; higher gives more varied captions
    top_p: float = 0.9  # 0 .. 1; draw from the likeliest tokens of this total probability
    repetition_penalty: float = 1.1  # >= 1; larger repeats less; 1 = no penalty
    max_new_tokens: int = 40  # >= 1; longest caption in tokens
    # machine
    batch_size: int = 100  # >= 1; pictures at a time
    seed: int = 0  # >= 0; decides the sampled captions
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps; auto = a GPU if there is one
    threads: int = 0  # >= 0; CPU threads; 0 = torch's choice


# --- probabilities ---


def correct_prior(p: list[float], steps: int = 100) -> tuple[list[float], float]:
    """Correct probabilities for the share s of captions that fit, and estimate s by EM.

        q_i = p_i s / P / (p_i s / P + (1 - p_i) (1 - s) / (1 - P)),   s <- mean_i q_i

    P = 1/3 is the share in training, see `Captioner.blip_losses`. The better the head's p
    are calibrated, the better are the results.

    Args:
        p: for each caption, the head's probability that it fits its picture.
        steps: of EM.

    Returns:
        the corrected probabilities q, and s.

    >>> q, s = correct_prior([0.999, 0.999, 0.999, 0.4, 0.001])  # most captions fit
    >>> [round(x, 2) for x in q], round(s, 2)
    ([1.0, 1.0, 1.0, 0.81, 0.01], 0.76)
    """
    logits = torch.tensor(p, dtype=torch.float64).logit(eps=1e-6)    # (n,)
    share = torch.tensor(1 / 3, dtype=torch.float64)
    trained_on = share.logit()
    for _ in range(steps):
        # a change of the prior adds a constant to all logits
        q = torch.sigmoid(logits - trained_on + share.logit(eps=1e-6))
        share = q.mean()
    return q.tolist(), share.item()


@torch.no_grad()
def fits(
    model: Captioner, tokenizer: Tokenizer, img_emb: torch.Tensor, captions: list[str],
    prompt: list[int],
) -> list[float]:
    """The probability that each caption fits its picture, by the matching head.

    Of a caption that is longer than the context, only the beginning is read.

    Args:
        img_emb: (B, N, C), the picture of each caption.
        prompt: ids before every caption.
    """
    block_size = model.config.gpt.block_size
    rows = caption_rows(captions, tokenizer, model.config.vit.n_tokens, prompt, end=True)
    rows = shorten_rows(rows, block_size, 2)
    batch = collate(rows, tokenizer.pad, block_size).to(img_emb.device)
    logits = model.match_logits(batch.idx, batch.lengths, img_emb)   # (B, 2)
    return logits.softmax(dim=1)[:, 1].tolist()


def write_captions(
    model: Captioner, tokenizer: Tokenizer, images: torch.Tensor, prompt: list[int],
    cfg: Config, generator: torch.Generator,
) -> list[str]:
    """Write one caption for each picture; "." stands for an empty one.

    Args:
        images: (B, 3, S, S).
        prompt: ids before every caption.
    """
    ids = [tokenizer.image] * model.config.vit.n_tokens + prompt
    asked = model.vlm, images, [ids] * len(images)
    limits = {"max_new_tokens": cfg.max_new_tokens, "stop": tokenizer.endoftext}
    if cfg.n_beams:
        answers = [text for text, _ in beam_search(*asked, n_beams=cfg.n_beams, **limits)]
    else:
        answers = generate(
            *asked, **limits, temperature=cfg.temperature, top_p=cfg.top_p,
            repetition_penalty=cfg.repetition_penalty, generator=generator,
        )
    # load_records refuses empty captions
    return [tokenizer.decode(answer).strip() or "." for answer in answers]


def judge_web(
    model: Captioner, tokenizer: Tokenizer, img_emb: torch.Tensor,
    captions: list[list[str]], prompt: list[int],
) -> list[list[float]]:
    """The probability that each web caption fits, for each picture of a batch.

    Args:
        img_emb: (B, N, C).
        captions: B lists, of any lengths.
        prompt: ids before every caption.
    """
    probabilities = [[] for _ in captions]
    for k in range(max(map(len, captions))):
        # all k-th captions together, so that a batch has at most one row for each picture
        chosen = [i for i in range(len(captions)) if k < len(captions[i])]
        texts = [captions[i][k] for i in chosen]
        for i, p in zip(chosen, fits(model, tokenizer, img_emb[chosen], texts, prompt)):
            probabilities[i].append(p)
    return probabilities


def open_pictures(
    records: list[dict], pictures: Pictures, faults: list[str]
) -> tuple[list[dict], torch.Tensor | None]:
    """The records whose picture can be read, and their pictures: (B, 3, S, S).

    Args:
        faults: gets the error of each of the others.
    """
    readable, images = [], []
    for record in records:
        try:
            images.append(pictures.get([record["image"]]))           # (1, 3, S, S)
        except (ValueError, OSError) as error:
            faults.append(first_line(error))
        else:
            readable.append(record)
    return readable, torch.cat(images) if images else None


# --- the file ---


def report_of(records: list[dict], kept_web: list[bool]) -> dict[str, float]:
    """How well the filter finds noise; {} unless the data say which captions are noise.

        precision = removed noise / removed captions,   recall = removed noise / noise

    If nothing was removed, there is no precision; if nothing is noise, no recall.

    Args:
        records: with one web caption each; "noise" is "" or what is wrong with it.
        kept_web: whether each web caption was kept.
    """
    if not all("noise" in r and len(r.get("captions", [""])) == 1 for r in records):
        return {}
    n_noisy = sum(1 for r in records if r["noise"])
    n_removed = kept_web.count(False)
    n_found = sum(1 for r, kept in zip(records, kept_web) if r["noise"] and not kept)
    figures = {"noisy": n_noisy / len(records)}
    if n_removed:
        figures["precision"] = n_found / n_removed
    if n_noisy:
        figures["recall"] = n_found / n_noisy
    return figures


def main(cfg: Config) -> dict[str, float]:
    """Write the cleaned split; return counts, and shares that the data allow to know.

    Raises:
        ValueError: if the run was not trained by blip, if `out` is the file that is read,
            if no picture can be read, or if no caption is kept.
    """
    check(cfg)
    began = time.time()
    seed_everything(cfg.seed, cfg.threads)
    device = pick_device(cfg.device)
    state = checkpoint.load(cfg.run, ("caption",))
    objective = state["configs"]["objective"]
    if objective != "blip":
        raise ValueError(
            f"{cfg.run} was trained by {objective}; only blip trains a matching head"
        )
    tokenizer = checkpoint.tokenizer_of(state)
    model = captioner_from(state)
    model.to(device).eval()
    prompt = tokenizer.encode(state["configs"]["prompt"])
    out = Path(cfg.out or f"{cfg.data}/capfilt.jsonl")
    if out.resolve() == Path(cfg.data, f"{cfg.split}.jsonl").resolve():
        raise ValueError(f"out {out} is the file that is read")
    records = load_records(cfg.data, cfg.split, need=("image", "captions"))
    pictures = Pictures(cfg.data, model.config.vit.image_size, fit_of(state))
    generator = torch.Generator(device).manual_seed(cfg.seed)

    readable, faults = [], []
    synthetic, p_web, p_synthetic = [], [], []
    for i in tqdm(range(0, len(records), cfg.batch_size), desc="capfilt", disable=None):
        part, images = open_pictures(records[i:i + cfg.batch_size], pictures, faults)
        if not part:
            continue
        readable += part
        images = images.to(device)                                   # (B, 3, S, S)
        with torch.no_grad():
            _, img_emb = model.look(images)                          # (B, N, C)
        captions = [r["captions"] for r in part]
        for probabilities in judge_web(model, tokenizer, img_emb, captions, prompt):
            p_web += probabilities
        if cfg.synthetic:
            new = write_captions(model, tokenizer, images, prompt, cfg, generator)
            synthetic += new
            p_synthetic += fits(model, tokenizer, img_emb, new, prompt)
    if not readable:
        raise ValueError(f"none of {len(faults)} pictures can be read; {faults[0]}")
    shares = {}
    if cfg.correct_prior:
        # web and synthetic captions fit in different shares, so each kind has its own share
        p_web, shares["share_web"] = correct_prior(p_web)
        if cfg.synthetic:
            p_synthetic, shares["share_synthetic"] = correct_prior(p_synthetic)

    kept_web = [p >= cfg.threshold for p in p_web]
    lines = []
    n_web = 0
    n_synthetic = 0
    for i, record in enumerate(readable):
        kept = kept_web[n_web:n_web + len(record["captions"])]
        n_web += len(record["captions"])
        captions = [caption for caption, keep in zip(record["captions"], kept) if keep]
        sources = ["web"] * len(captions)
        if cfg.synthetic and p_synthetic[i] >= cfg.threshold:
            captions.append(synthetic[i])
            sources.append("synthetic")
            n_synthetic += 1
        if captions:
            record = record | {"captions": captions, "caption_source": sources}
            lines.append(json.dumps(record))
    if not lines:
        file = f"{cfg.data}/{cfg.split}.jsonl"
        raise ValueError(f"nothing of {file} is kept; lower the threshold")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n")
    figures = {
        "pictures": len(readable), "unreadable": len(faults), "kept": len(lines),
        "captions": n_web, "web": sum(kept_web), "synthetic": n_synthetic, **shares,
        **report_of(readable, kept_web),
    }
    if synthetic:
        figures["synthetic_kept"] = n_synthetic / len(synthetic)
    known = bool(synthetic) and all(has_scene(r) for r in readable)
    phrases = load_meta(cfg.data).get("phrases") if known else None
    if phrases:
        false = [false_share(text, r, phrases) > 0 for text, r in zip(synthetic, readable)]
        figures["synthetic_false"] = sum(false) / len(false)
    report = {**provenance(cfg, began), "figures": figures}
    out.with_suffix(".report.json").write_text(json.dumps(report, indent=1) + "\n")
    summary = ", ".join(f"{name} {round(value, 3)}" for name, value in figures.items())
    print(f"{out}: {summary}, {time.time() - began:.0f} s")
    return figures


if __name__ == "__main__":
    cli(main, Config)
