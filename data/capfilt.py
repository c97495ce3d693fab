"""CapFilt: a captioner writes a caption for every web picture, a filter keeps what fits.

    python data/capfilt.py --run runs/caption       writes data/shapes/prepared/capfilt.jsonl
    python train_caption.py --split capfilt

Captioner and filter are one checkpoint of train_caption.py --objective blip: its GPT writes by
nucleus sampling; its matching head judges web captions and its own alike and keeps those that it
finds likelier to fit than not. A picture of which nothing is kept is left out. Where the data say
which captions are noise, the filter's precision and recall are known and printed.

The head has learned from one fitting pair in three, so it doubts too much where more of them fit.
How many do is estimated from its own judgments, and these are corrected for it (`correct_prior`).

Source: BLIP, arXiv:2201.12086, section 3.3; top_p 0.9 and a repetition penalty of 1.1 as in
salesforce/BLIP, models/blip.py; the threshold of 0.5 is the author's, salesforce/BLIP issue 46; the
correction: Saerens et al. 2002, Adjusting the outputs of a classifier to new a priori
probabilities, Neural Computation 14(1), eqs. 4 and 9. It is not in BLIP.
"""

import json
import time
from minivlm.loading.models import captioner_from
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from minivlm.captioner import Captioner
from minivlm.conversation import caption_rows
from minivlm.generate import generate
from minivlm.loading.batches import collate, shorten_rows
from minivlm.loading.images import Pictures
from minivlm.loading.prepared import load_records
from minivlm.running import checkpoint
from minivlm.running.machine import pick_device, provenance, seed_everything
from minivlm.running.options import cli
from minivlm.tokenizer import Tokenizer


@dataclass
class Config:
    """What to clean, and how strictly."""

    run: str = "runs/caption"  # run folder of train_caption.py --objective blip
    data: str = "data/shapes/prepared"  # folder made by a prepare.py
    split: str = "web"  # which file of it to clean
    out: str = ""  # file to write, a .report.json beside it; empty = capfilt.jsonl with the data
    threshold: float = 0.5  # least probability of "fits" of a caption that is kept
    correct_prior: bool = True  # allow for another share of fitting captions than in training
    synthetic: bool = True  # write captions too; else only filter those there are
    temperature: float = 1.0  # 1 = the model's own distribution
    top_p: float = 0.9  # keep the likeliest tokens that make up this probability
    repetition_penalty: float = 1.1  # 1 = none
    max_new_tokens: int = 40  # longest caption in tokens
    batch_size: int = 100  # pictures at a time
    seed: int = 0  # of the sampling
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    threads: int = 0  # CPU threads; 0 = torch's choice

    def __post_init__(self):
        if not 0 <= self.threshold <= 1 or not 0 < self.top_p <= 1 or self.temperature <= 0:
            raise ValueError("expected 0 <= threshold <= 1, 0 < top_p <= 1, temperature > 0")
        if self.repetition_penalty < 1:
            raise ValueError(f"repetition_penalty {self.repetition_penalty} is below 1")


# --- judgments ---


def correct_prior(p: list[float], steps: int = 100) -> tuple[list[float], float]:
    """Correct judgments for the share of fitting pairs among those judged, and estimate it (EM).

        q_i = p_i s / P / (p_i s / P + (1 - p_i) (1 - s) / (1 - P)),   s <- mean_i q_i

    with P = 1/3, the share in `Captioner.blip_losses`. Right as far as the head's p are calibrated.

    Args:
        p: probability of each pair that it fits, by the head.

    Returns:
        the q, and s.

    >>> [round(q, 2) for q in correct_prior([0.999, 0.999, 0.999, 0.4])[0]]  # three of four fit
    [1.0, 1.0, 1.0, 0.84]
    """
    logits = torch.tensor(p, dtype=torch.float64).logit(eps=1e-6)    # (n,)
    share = torch.tensor(1 / 3, dtype=torch.float64)
    trained_on = share.logit()
    for _ in range(steps):
        q = torch.sigmoid(logits - trained_on + share.logit(eps=1e-6))
        share = q.mean()
    return q.tolist(), share.item()


@torch.no_grad()
def fits(
    model: Captioner, tokenizer: Tokenizer, img_emb: torch.Tensor, captions: list[str],
    prompt: list[int],
) -> list[float]:
    """Probability that each caption fits its picture: B captions, (B, N, C) -> B numbers.

    A caption that is longer than the context is judged by its beginning.
    """
    N, room = model.config.vit.n_tokens, model.config.gpt.block_size
    rows = caption_rows(captions, tokenizer, N, prompt, end=True)
    batch = collate(shorten_rows(rows, room, 2), tokenizer.pad, room).to(img_emb.device)
    logits = model.match_logits(batch.idx, batch.lengths, img_emb)   # (B, 2)
    return logits.softmax(dim=1)[:, 1].tolist()


def write_captions(
    model: Captioner, tokenizer: Tokenizer, images: torch.Tensor, prompt: list[int], cfg: Config,
    generator: torch.Generator,
) -> list[str]:
    """One caption a picture by nucleus sampling: (B, 3, S, S) -> B texts, none of them empty."""
    ids = [tokenizer.image] * model.config.vit.n_tokens + prompt
    made = generate(
        model.vlm, images, [ids] * len(images), max_new_tokens=cfg.max_new_tokens,
        stop=tokenizer.endoftext, temperature=cfg.temperature, top_p=cfg.top_p,
        repetition_penalty=cfg.repetition_penalty, generator=generator,
    )
    return [tokenizer.decode(text).strip() or "." for text in made]


# --- the file ---


def report_of(records: list[dict], kept_web: list[bool]) -> dict[str, float]:
    """How well the filter finds noise, where the data know it: a caption removed is a find.

        precision = removed and noisy / removed,   recall = removed and noisy / noisy
    """
    if not all("noise" in r and len(r.get("captions", [""])) == 1 for r in records):
        return {}
    noisy = [bool(r["noise"]) for r in records]
    found = sum(n and not k for n, k in zip(noisy, kept_web))
    removed = len(records) - sum(kept_web)
    return {"precision": found / max(1, removed), "recall": found / max(1, sum(noisy)),
            "noisy": sum(noisy) / len(records)}


def main(cfg: Config) -> dict[str, float]:
    """Write the cleaned split; return counts, and the filter's precision and recall if known.

    Raises:
        ValueError: if the run was not trained by blip, or nothing is kept.
    """
    began = time.time()
    seed_everything(cfg.seed, cfg.threads)
    device = pick_device(cfg.device)
    state = checkpoint.load(cfg.run, ("caption",))
    objective = state["configs"]["objective"]
    if objective != "blip":
        raise ValueError(f"{cfg.run} was trained by {objective}: only blip can judge")
    tokenizer, model = Tokenizer.from_text(state["tokenizer"]), captioner_from(state)
    model.to(device).eval()
    prompt = tokenizer.encode(state["configs"]["prompt"])
    out = Path(cfg.out or f"{cfg.data}/capfilt.jsonl")
    if out.resolve() == Path(cfg.data, f"{cfg.split}.jsonl").resolve():
        raise ValueError(f"out {out} is the file that is read")
    records = load_records(cfg.data, cfg.split, need=("image", "captions"))
    pictures = Pictures(cfg.data, model.config.vit.image_size)
    generator = torch.Generator(device).manual_seed(cfg.seed)

    web = [caption for r in records for caption in r["captions"]]
    new, p_web, p_new = [], [], []
    for i in tqdm(range(0, len(records), cfg.batch_size), desc="capfilt", disable=None):
        part = records[i:i + cfg.batch_size]
        images = pictures.get([r["image"] for r in part]).to(device)
        with torch.no_grad():
            _, img_emb = model.look(images)                          # (B, N, C)
        for k in range(max(len(r["captions"]) for r in part)):       # the k-th caption of each
            have = [j for j, r in enumerate(part) if k < len(r["captions"])]
            said = [part[j]["captions"][k] for j in have]
            p = fits(model, tokenizer, img_emb[have], said, prompt)
            p_web += [(i + j, k, q) for j, q in zip(have, p)]
        if cfg.synthetic:
            new += write_captions(model, tokenizer, images, prompt, cfg, generator)
            p_new += fits(model, tokenizer, img_emb, new[i:], prompt)
    p_web = [q for *_, q in sorted(p_web)]                           # in the order of `web`
    shares = {}
    if cfg.correct_prior:
        p_web, shares["share_web"] = correct_prior(p_web)
        if cfg.synthetic:
            p_new, shares["share_synthetic"] = correct_prior(p_new)

    lines, n_synthetic, kept_web = [], 0, [q >= cfg.threshold for q in p_web]
    judged = iter(zip(web, kept_web))
    for i, record in enumerate(records):
        captions = [c for c, keep in (next(judged) for _ in record["captions"]) if keep]
        sources = ["web"] * len(captions)
        if cfg.synthetic and p_new[i] >= cfg.threshold:
            captions, sources = captions + [new[i]], sources + ["synthetic"]
            n_synthetic += 1
        if captions:
            lines.append(json.dumps(record | {"captions": captions, "caption_source": sources}))
    if not lines:
        raise ValueError(f"nothing of {cfg.data}/{cfg.split}.jsonl is kept; lower the threshold")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n")
    figures = {"pictures": len(records), "kept": len(lines), "captions": len(web),
               "web": sum(kept_web), "synthetic": n_synthetic, **shares,
               **report_of(records, kept_web)}
    report = {**provenance(cfg, began), "figures": figures}
    out.with_suffix(".report.json").write_text(json.dumps(report, indent=1) + "\n")
    told = ", ".join(f"{k} {round(v, 3)}" for k, v in figures.items())
    print(f"{out}: {told}, {time.time() - began:.0f} s")
    return figures


if __name__ == "__main__":
    cli(main, Config)
