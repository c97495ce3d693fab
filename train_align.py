"""Connector pretraining: only the projector learns, so that patches become words the GPT can read.

   loss = - mean_t log p(caption_t | picture, caption before t),   gradient to the projector alone

Source: LLaVA, arXiv:2304.08485, section 4.2, stage 1.
Reads: runs/clip, runs/lm, or published weights.   Writes: runs/align.
Expect (2 CPU cores): 0.4 min, loss 2.3 -> 0.93
Run: python train_align.py [--vision DIR --llm DIR]
"""

import time
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from minivlm import checkpoint, run
from minivlm.data import Batch, batches, caption_rows, check_captions, collate, hash_seed
from minivlm.data import pick_captions, shuffled
from minivlm.images import Pictures
from minivlm.log import Meter, Run
from minivlm.losses import IGNORE_INDEX, next_token_loss
from minivlm.optim import Optimizer, lr_scale
from minivlm.prepared import load_records
from minivlm.pretrained import read_clip, read_gpt2
from minivlm.tokenizer import Tokenizer
from minivlm.vlm import VLM, VLMConfig, tower_configs


# --- config ---


@dataclass
class Config:
    """Options of the run; the comments are the help texts."""

    data: str = "data/shapes/prepared"  # folder made by a prepare.py
    split: str = "train"  # which file of it to learn from: train, or web (noisy captions)
    clip: str = "runs/clip"  # where the ViT comes from
    lm: str = "runs/lm"  # where the GPT comes from
    vision: str = ""  # folder of a published CLIP to take the ViT from instead, see pretrained.py
    llm: str = ""  # folder of a published GPT-2 to take instead, its tokenizer too
    image_size: int = 0  # pixels to interpolate a published ViT to; 0 = what it was trained with
    out: str = "runs/align"  # run folder
    steps: int = 200  # optimizer steps
    batch_size: int = 64  # pictures with a caption a step
    grad_accum: int = 1  # micro-batches a step, same result with less memory
    lr: float = 2e-3  # peak rate of AdamW: biases
    muon_lr: float = 0.02  # peak rate of Muon: the projector's matrices; 0 = AdamW for all
    weight_decay: float = 0.0  # on matrices
    warmup: int = 20  # steps until the peak rate
    grad_clip: float = 1.0  # largest norm of the gradient
    projector: str = "mlp"  # mlp (LLaVA-1.5), linear (LLaVA), llava (mlp as published, no norm)
    eval_every: int = 100  # steps between evaluations, each logged and saved
    seed: int = 0  # weights and order of the data
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    dtype: str = "auto"  # auto (bfloat16 on a GPU, else float32), float32, bfloat16
    compile: bool = False  # torch.compile: slow to start, then faster
    threads: int = 0  # CPU threads; 0 = torch's choice
    workers: int = 0  # processes that make batches ahead; 0 = none
    resume: bool = False  # continue the run in `out`

    def __post_init__(self):
        if self.image_size and not self.vision:
            raise ValueError("image_size is for --vision; a ViT of ours takes its own pictures")


# --- evaluate ---


@torch.no_grad()
def evaluate(model: VLM, val_batches: list[Batch], device: torch.device) -> dict[str, float]:
    """Mean loss per supervised token of held-out batches, in nats."""
    model.eval()
    loss, n = 0.0, 0
    for batch in val_batches:
        batch = batch.to(device)
        at = batch.targets != IGNORE_INDEX                           # (B, T)
        loss += float(
            next_token_loss(model(batch.idx, batch.images, at=at), batch.targets[at]) * at.sum()
        )
        n += int(at.sum())
    model.train()
    return {"val_loss": loss / n}


def main(cfg: Config) -> dict[str, float]:
    """Train; return the last evaluation."""
    # --- run ---
    run.seed_everything(cfg.seed, cfg.threads)
    device, log = run.pick_device(cfg.device), Run(cfg, __file__)

    # --- model ---
    clip = read_clip(cfg.vision, cfg.image_size) if cfg.vision else checkpoint.load(
        cfg.clip, ("clip",))
    lm = read_gpt2(cfg.llm) if cfg.llm else checkpoint.load(cfg.lm, ("lm",))
    tokenizer = Tokenizer.from_text(lm["tokenizer"])
    vit, gpt = tower_configs(clip, lm)
    config = VLMConfig(tokenizer.image, vit, gpt, cfg.projector)
    model = VLM(config)
    model.take_towers(clip, lm)
    model.requires_grad_(False)
    model.projector.requires_grad_(True)
    model.to(device)
    step_model = torch.compile(model) if cfg.compile else model

    # --- data ---
    records, held_out = (
        load_records(cfg.data, s, need=("image", "captions")) for s in (cfg.split, "val")
    )
    check_captions(records + held_out, tokenizer, vit.n_tokens, gpt.block_size)
    pictures = Pictures(cfg.data, vit.image_size)

    def make(records: list[dict], generator: torch.Generator) -> Batch:
        pairs = pick_captions(records, generator)
        rows = caption_rows([c for _, c in pairs], tokenizer, vit.n_tokens)
        images = pictures.get([r["image"] for r, _ in pairs])
        names = [r["id"] for r, _ in pairs]
        return collate(rows, tokenizer.pad, gpt.block_size, names, images, [1] * len(rows))

    def make_batch(step: int) -> Batch:
        chosen = shuffled(step, cfg.batch_size, len(records), cfg.seed)
        return make(
            [records[i] for i in chosen],
            torch.Generator().manual_seed(hash_seed(cfg.seed, step, 1)),
        )

    starts = range(0, min(256, len(held_out)), 64)
    val_batches = [make(held_out[i:i + 64], torch.Generator().manual_seed(0)) for i in starts]

    # --- optimizer ---
    optimizer = Optimizer(model, cfg.lr, cfg.muon_lr, cfg.weight_decay)

    # --- resume ---
    configs = {"model": asdict(config), "tokenizer": tokenizer.identity, **run.settings(cfg)}
    start, best, meter = 0, float("inf"), Meter()
    if cfg.resume:
        start, best = checkpoint.resume(log.ckpt, "align", configs, model, optimizer, meter)
    make_batch(start)  # a batch that cannot be made must not cost the run that `out` holds
    log.begin(start)

    # --- loop ---
    made, row = batches(make_batch, start, cfg.steps, cfg.workers), {}
    bar = tqdm(
        range(start, cfg.steps + 1), desc="align", initial=start, total=cfg.steps, disable=None
    )
    for step in bar:
        paths = [log.ckpt] if log.terminated else []
        # step 0 is measured before any update: a blind guess at captions
        if (step % cfg.eval_every == 0 or step == cfg.steps) and not (cfg.resume and step == start):
            row = evaluate(model, val_batches, device)
            log.log({"step": step, **meter.means(("loss", "lr", "grad", "ms", "data_ms")), **row})
            paths = [log.best, log.ckpt] if row["val_loss"] < best else [log.ckpt]
            best = min(best, row["val_loss"])
        if paths:
            checkpoint.save(
                paths, stage="align", configs=configs, model=model, tokenizer=tokenizer,
                step=step, best=best, optimizer=optimizer, meter=meter,
            )
        if step == cfg.steps:
            break
        if log.terminated and paths:
            log.stop(step)

        began = time.time()
        batch = next(made).to(device)
        got_data = time.time()

        # each micro-batch weighs as many tokens as it supervises: the sum is the whole batch's mean
        loss, n_tokens = 0.0, (batch.targets != IGNORE_INDEX).sum()
        for part in batch.split(cfg.grad_accum):
            at = part.targets != IGNORE_INDEX                        # (B, T), where the head runs
            with run.autocast(device, cfg.dtype):
                logits = step_model(part.idx, part.images, at=at)    # (M, V)
            part_loss = next_token_loss(logits, part.targets[at]) * at.sum() / n_tokens
            part_loss.backward()
            loss += part_loss.item()
        scale = lr_scale(step, cfg.steps, cfg.warmup)
        grad = optimizer.step(scale, cfg.grad_clip)
        log.check(loss, grad, step, batch.ids)

        meter.add(loss=loss, lr=cfg.lr * scale, grad=grad, ms=1000 * (time.time() - began),
                  data_ms=1000 * (got_data - began))
        bar.set_postfix(loss=f"{loss:.3f}")

    # --- finish ---
    log.finish(row)
    return row


if __name__ == "__main__":
    run.cli(main, Config)
