"""Captioning: from "does it match" to "say what is there". Three published objectives, one network.

   lm         - mean_t log p(caption_t | picture, prompt, caption before t), smoothed
   prefix_lm  the same behind a random cut; picture and text before the cut see each other both
              ways, and some rows are text alone (SimVLM)
   blip       contrast + match + lm: InfoNCE, yes or no on hard negatives, and writing (BLIP)

Source: BLIP, arXiv:2201.12086, section 3; SimVLM, arXiv:2108.10904, section 3.
Reads: runs/clip, runs/lm.   Writes: runs/caption.
Expect (2 CPU cores): 3 min, held-out loss 1.7 -> .5, pairs judged rightly .93 (always no: .67)
Run: python train_caption.py [--objective prefix_lm]
"""

import time
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from minivlm import checkpoint, run
from minivlm.captioner import Captioner
from minivlm.data import Batch, batches, caption_rows, check_captions, collate, cut_rows, hash_seed
from minivlm.data import pick_captions, shuffled
from minivlm.images import Pictures
from minivlm.log import Meter, Run
from minivlm.losses import IGNORE_INDEX, next_token_loss
from minivlm.optim import Optimizer, lr_scale
from minivlm.prepared import load_records
from minivlm.tokenizer import Tokenizer
from minivlm.transformer import Block
from minivlm.vlm import VLMConfig, tower_configs


# --- config ---


@dataclass
class Config:
    """Options of the run; the comments are the help texts."""

    data: str = "data/shapes/prepared"  # folder made by a prepare.py
    split: str = "train"  # which file of it to learn from: train, or web (noisy captions)
    objective: str = "blip"  # lm, prefix_lm (SimVLM) or blip
    clip: str = "runs/clip"  # where the ViT comes from
    lm: str = "runs/lm"  # where the GPT comes from
    scratch: bool = False  # take only sizes and tokenizer from there, random weights
    out: str = "runs/caption"  # run folder
    steps: int = 300  # optimizer steps
    batch_size: int = 64  # pictures with a caption a step
    n_texts: int = 8  # rows of text alone beside them, in prefix_lm
    prompt: str = "a picture of"  # stands before every caption and is not learned
    label_smoothing: float = 0.1  # of lm and blip, as BLIP's decoder has it
    grad_accum: int = 1  # micro-batches a step; blip compares pairs within one
    lr: float = 2e-3  # peak rate of AdamW: embeddings, norms, heads
    muon_lr: float = 0.005  # peak rate of Muon: matrices of blocks and projector; 0 = AdamW
    weight_decay: float = 0.05  # on matrices and embeddings
    warmup: int = 50  # steps until the peak rate
    grad_clip: float = 1.0  # largest norm of the gradient
    eval_every: int = 150  # steps between evaluations, each logged and saved
    seed: int = 0  # weights and order of the data
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    dtype: str = "auto"  # auto (bfloat16 on a GPU, else float32), float32, bfloat16
    compile: bool = False  # torch.compile of every block: slow to start, then faster
    threads: int = 0  # CPU threads; 0 = torch's choice
    workers: int = 0  # processes that make batches ahead; 0 = none
    resume: bool = False  # continue the run in `out`

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing {self.label_smoothing} is not in 0 .. 1")
        if self.objective == "blip" and self.batch_size < 2 * self.grad_accum:
            raise ValueError("blip needs two pairs in a micro-batch: raise batch_size")


# --- evaluate ---


@torch.no_grad()
def evaluate(
    model: Captioner, val_batches: list[Batch], skip: int, device: torch.device, blip: bool
) -> dict[str, float]:
    """Mean loss per caption token of held-out batches, in nats; for blip also the share of pairs
    that the matching head judges rightly. Two thirds of these are hard negatives: always no is
    right in two of three cases.
    """
    model.eval()
    loss, n, right, n_rows = 0.0, 0, 0.0, 0
    for batch in val_batches:
        batch = batch.to(device)
        at, B = batch.targets != IGNORE_INDEX, len(batch.idx)        # (B, T)
        if blip:
            losses, match = model.blip_losses(batch, skip, 0.0, torch.Generator().manual_seed(0))
            batch_loss, right = losses["lm"], right + float(match) * B
        else:
            logits = model.vlm(batch.idx, batch.images, at=at, prefix=model.prefix_of(batch))
            batch_loss = next_token_loss(logits, batch.targets[at])
        loss, n, n_rows = loss + float(batch_loss * at.sum()), n + int(at.sum()), n_rows + B
    model.train()
    return {"val_loss": loss / n, **({"val_match": right / n_rows} if blip else {})}


def main(cfg: Config) -> dict[str, float]:
    """Train; return the last evaluation."""
    # --- run ---
    run.seed_everything(cfg.seed, cfg.threads)
    device, log = run.pick_device(cfg.device), Run(cfg, __file__)

    # --- model ---
    clip, lm = checkpoint.load(cfg.clip, ("clip",)), checkpoint.load(cfg.lm, ("lm",))
    tokenizer = Tokenizer.from_text(lm["tokenizer"])
    vit, gpt = tower_configs(clip, lm)
    blip, prefix_lm = cfg.objective == "blip", cfg.objective == "prefix_lm"
    config = VLMConfig(tokenizer.image, vit, gpt, prefix_lm=prefix_lm)
    model = Captioner(config)
    if not cfg.scratch:
        model.vlm.take_towers(clip, lm)
    model.to(device)
    for block in model.modules():
        if cfg.compile and isinstance(block, Block):
            block.compile()

    # --- data ---
    records, held_out = (
        load_records(cfg.data, split, need=("image", "captions")) for split in (cfg.split, "val")
    )
    texts = load_records(cfg.data, "text", need=("text",)) if prefix_lm and cfg.n_texts else []
    pictures, prompt = Pictures(cfg.data, vit.image_size), tokenizer.encode(cfg.prompt)
    skip = vit.n_tokens + len(prompt)
    check_captions(records + held_out, tokenizer, skip + 1, gpt.block_size)

    def make(pairs: list[tuple[dict, str]], rows: list) -> Batch:
        names, images = [r["id"] for r, _ in pairs], pictures.get([r["image"] for r, _ in pairs])
        names += [f"text {i}" for i in range(len(rows) - len(pairs))]
        has_picture = [int(i < len(pairs)) for i in range(len(rows))]
        return collate(rows, tokenizer.pad, gpt.block_size, names, images, has_picture)

    def rows_of(pairs: list[tuple[dict, str]]) -> list:
        return caption_rows([c for _, c in pairs], tokenizer, vit.n_tokens, prompt, end=True)

    def make_batch(step: int) -> Batch:
        generator = torch.Generator().manual_seed(hash_seed(cfg.seed, step, 1))
        chosen = shuffled(step, cfg.batch_size, len(records), cfg.seed)
        pairs = pick_captions([records[i] for i in chosen], generator)
        rows = rows_of(pairs)
        if prefix_lm:  # documents are cut to the length of the longest caption
            T = max(len(ids) for ids, _ in rows) - vit.n_tokens
            picks = torch.randint(max(1, len(texts)), (cfg.n_texts,), generator=generator).tolist()
            documents = [tokenizer.encode(texts[i]["text"])[:T] for i in picks if texts]
            documents = [ids for ids in documents if len(ids) > 1]   # one token predicts nothing
            rows = cut_rows(rows, skip, generator)
            rows += cut_rows([(ids, [True] * len(ids)) for ids in documents], 1, generator)
        return make(pairs, rows)

    first = [(r, r["captions"][0]) for r in held_out]
    starts = range(0, min(256, len(held_out)), 64)
    val_batches = [make(first[i:i + 64], rows_of(first[i:i + 64])) for i in starts]

    # --- optimizer ---
    optimizer = Optimizer(model, cfg.lr, cfg.muon_lr, cfg.weight_decay)

    # --- resume ---
    configs = {"model": asdict(config), "tokenizer": tokenizer.identity, **run.settings(cfg)}
    start, best, meter = 0, float("inf"), Meter()
    if cfg.resume:
        start, best = checkpoint.resume(log.ckpt, "caption", configs, model, optimizer, meter)
    make_batch(start)  # a batch that cannot be made must not cost the run that `out` holds
    log.begin(start)

    # --- loop ---
    made, row = batches(make_batch, start, cfg.steps, cfg.workers), {}
    bar = tqdm(
        range(start, cfg.steps + 1), desc="caption", initial=start, total=cfg.steps, disable=None
    )
    for step in bar:
        paths = [log.ckpt] if log.terminated else []
        # step 0 is measured before any update: a blind guess at captions, and at what fits
        if (step % cfg.eval_every == 0 or step == cfg.steps) and not (cfg.resume and step == start):
            row = evaluate(model, val_batches, skip, device, blip)
            extra = ("itc", "itm", "match") if blip else ()
            log.log({
                "step": step, **meter.means(("loss", "lr", "grad", "ms", "data_ms", *extra)), **row,
            })
            paths = [log.best, log.ckpt] if row["val_loss"] < best else [log.ckpt]
            best = min(best, row["val_loss"])
        if paths:
            checkpoint.save(
                paths, stage="caption", configs=configs, model=model, tokenizer=tokenizer,
                step=step, best=best, optimizer=optimizer, meter=meter,
            )
        if step == cfg.steps:
            break
        if log.terminated and paths:
            log.stop(step)

        began = time.time()
        batch = next(made).to(device)
        got_data = time.time()

        # a micro-batch weighs as many tokens as it supervises, in contrast and match as many rows:
        # the sum is the whole batch's mean, but for the contrast, which is within the part
        loss, n_tokens = 0.0, (batch.targets != IGNORE_INDEX).sum()
        told: dict[str, float] = {}                                  # what blip logs besides
        generator = torch.Generator().manual_seed(hash_seed(cfg.seed, step, 2))
        for part in batch.split(cfg.grad_accum):
            at = part.targets != IGNORE_INDEX                        # (B, T), where the head runs
            share, rows = at.sum() / n_tokens, len(part.idx) / len(batch.idx)
            if blip:
                with run.autocast(device, cfg.dtype):
                    losses, match = model.blip_losses(part, skip, cfg.label_smoothing, generator)
                part_loss = (losses["itc"] + losses["itm"]) * rows + losses["lm"] * share
                for name, value in {**losses, "match": match}.items():
                    told[name] = told.get(name, 0.0) + value.item() * rows
            else:
                with run.autocast(device, cfg.dtype):
                    logits = model.vlm(part.idx, part.images, at=at, prefix=model.prefix_of(part))
                smoothing = 0.0 if prefix_lm else cfg.label_smoothing
                part_loss = next_token_loss(logits, part.targets[at], smoothing) * share
            part_loss.backward()
            loss += part_loss.item()
        scale = lr_scale(step, cfg.steps, cfg.warmup)
        grad = optimizer.step(scale, cfg.grad_clip)
        log.check(loss, grad, step, batch.ids)
        model.clamp_scale()

        meter.add(loss=loss, lr=cfg.lr * scale, grad=grad, ms=1000 * (time.time() - began),
                  data_ms=1000 * (got_data - began), **told)
        bar.set_postfix(loss=f"{loss:.3f}")

    # --- finish ---
    log.finish(row)
    return row


if __name__ == "__main__":
    run.cli(main, Config)
