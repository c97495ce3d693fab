"""CapFilt: a captioner writes a caption for every web picture, a filter keeps what fits.

    python data/capfilt.py --run runs/caption       writes data/shapes/prepared/capfilt.jsonl
    python train_caption.py --split capfilt

Captioner and filter are one checkpoint of train_caption.py --objective blip: its GPT writes by
nucleus sampling; its matching head judges web captions and its own alike and keeps those that it
finds likelier to fit than not. A picture of which nothing is kept is left out. Where the data say
which captions are noise, the filter's precision and recall are known and printed.

Source: BLIP, arXiv:2201.12086, section 3.3; top_p 0.9 and a repetition penalty of 1.1 as in
salesforce/BLIP, models/blip.py; the threshold of 0.5 is the author's, salesforce/BLIP issue 46.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

# the checkout, so that this runs as a script
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minivlm import checkpoint  # noqa: E402
from minivlm.captioner import Captioner  # noqa: E402
from minivlm.data import caption_rows, collate, load_records, shorten_rows  # noqa: E402
from minivlm.generate import generate  # noqa: E402
from minivlm.images import Pictures  # noqa: E402
from minivlm.run import cli, pick_device, seed_everything  # noqa: E402
from minivlm.tokenizer import Tokenizer  # noqa: E402


@dataclass
class Config:
    """What to clean, and how strictly."""

    run: str = "runs/caption"  # run folder of train_caption.py --objective blip
    data: str = "data/shapes/prepared"  # folder made by a prepare.py
    split: str = "web"  # which file of it to clean
    out: str = ""  # file to write; empty = capfilt.jsonl in the data folder
    threshold: float = 0.5  # least probability of "fits" of a caption that is kept
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


# --- one batch ---


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
    if not all("noise" in r for r in records):
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
    tokenizer, model = Tokenizer.from_text(state["tokenizer"]), Captioner.from_checkpoint(state)
    model.to(device).eval()
    prompt = tokenizer.encode(state["configs"]["prompt"])
    records = load_records(cfg.data, cfg.split, need=("image", "captions"))
    pictures = Pictures(cfg.data, model.config.vit.image_size)
    generator = torch.Generator(device).manual_seed(cfg.seed)

    lines, kept_web, n_synthetic = [], [], 0
    for i in tqdm(range(0, len(records), cfg.batch_size), desc="capfilt", disable=None):
        part = records[i:i + cfg.batch_size]
        images = pictures.get([r["image"] for r in part]).to(device)
        with torch.no_grad():
            _, img_emb = model.look(images)                          # (B, N, C)
        web = new = [r["captions"][0] for r in part]
        if cfg.synthetic:
            new = write_captions(model, tokenizer, images, prompt, cfg, generator)
        judged = [fits(model, tokenizer, img_emb, said, prompt) for said in (web, new)]
        for record, old, made, p_old, p_new in zip(part, web, new, *judged):
            kept_web.append(p_old >= cfg.threshold)
            keep_new = cfg.synthetic and p_new >= cfg.threshold
            n_synthetic += keep_new
            captions = [old] * kept_web[-1] + [made] * keep_new
            if captions:
                sources = ["web"] * kept_web[-1] + ["synthetic"] * keep_new
                lines.append(json.dumps(record | {"captions": captions, "caption_source": sources}))
    if not lines:
        raise ValueError(f"nothing of {cfg.data}/{cfg.split}.jsonl is kept; lower the threshold")
    out = Path(cfg.out or f"{cfg.data}/capfilt.jsonl")
    out.write_text("\n".join(lines) + "\n")
    figures = {"pictures": len(records), "kept": len(lines), "web": sum(kept_web),
               "synthetic": n_synthetic, **report_of(records, kept_web)}
    told = ", ".join(f"{k} {round(v, 3)}" for k, v in figures.items())
    print(f"{out}: {told}, {time.time() - began:.0f} s")
    return figures


if __name__ == "__main__":
    cli(main, Config)
