"""Visual instruction tuning: the model learns to answer, and only its answers are in the loss.

   loss = - mean_t [t is an answer token] log p(token_t | picture, conversation before t)

Source: LLaVA, arXiv:2304.08485, eq. 3 and section 4.2, stage 2.
Reads: runs/align (or runs/caption).   Writes: runs/sft.
Expect (2 CPU cores): 5 min, loss 6 -> 0.08
Run: python train_sft.py [--no-freeze_vit]
"""

import time
from dataclasses import asdict, dataclass, replace

import torch
from tqdm import tqdm

from minivlm import checkpoint, run
from minivlm.data import Batch, batches, collate, hash_seed, render_records
from minivlm.data import shuffled, switch_out
from minivlm.images import Pictures
from minivlm.log import Meter, Run
from minivlm.lora import add_lora
from minivlm.losses import IGNORE_INDEX, next_token_loss
from minivlm.optim import Optimizer, lr_scale
from minivlm.prepared import load_records
from minivlm.tokenizer import Tokenizer
from minivlm.vlm import VLM


# --- config ---


@dataclass
class Config:
    """Options of the run; the comments are the help texts."""

    data: str = "data/shapes/prepared"  # folder made by a prepare.py
    split: str = "train"  # which file of it to learn from
    val_split: str = "val"  # which file of it to measure the loss on
    init: str = "runs/align"  # where the VLM comes from: align, caption or sft
    out: str = "runs/sft"  # run folder
    steps: int = 1100  # optimizer steps
    batch_size: int = 64  # conversations a step
    grad_accum: int = 1  # micro-batches a step, same result with less memory
    lr: float = 2e-3  # peak rate of AdamW: embeddings, norms
    muon_lr: float = 0.005  # peak rate of Muon: matrices of blocks and projector; 0 = AdamW for all
    weight_decay: float = 0.05  # on matrices and embeddings
    warmup: int = 50  # steps until the peak rate
    grad_clip: float = 1.0  # largest norm of the gradient
    noise: float = 0.0  # share of the questions' tokens replaced at random, 0 .. 1
    freeze_vit: bool = True  # keep CLIP's eyes as they are, as LLaVA does
    lora: int = 0  # rank of LoRA adapters, all that learns then; 0 = the weights themselves
    lora_layers: str = "gpt.*,projector.*"  # names of the linear maps that get one
    eval_every: int = 275  # steps between evaluations, each logged and saved
    seed: int = 0  # weights and order of the data
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    dtype: str = "auto"  # auto (bfloat16 on a GPU, else float32), float32, bfloat16
    compile: bool = False  # torch.compile: slow to start, then faster
    threads: int = 0  # CPU threads; 0 = torch's choice
    workers: int = 0  # processes that make batches ahead; 0 = none
    resume: bool = False  # continue the run in `out`


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
    before = checkpoint.load(cfg.init, ("align", "caption", "sft"))
    tokenizer, model = Tokenizer.from_text(before["tokenizer"]), VLM.from_checkpoint(before)
    config = model.config = replace(model.config, prefix_lm=False)  # answers follow causally
    model.vit.requires_grad_(not cfg.freeze_vit)
    if cfg.lora:
        add_lora(model, cfg.lora_layers, cfg.lora, frozen=model.vit if cfg.freeze_vit else None)
    model.to(device)
    step_model = torch.compile(model) if cfg.compile else model

    # --- data ---
    records, held_out = (
        load_records(cfg.data, s, need=("conversations",)) for s in (cfg.split, cfg.val_split)
    )
    rows, val_rows = (
        render_records(rs, tokenizer, config.vit.n_tokens, config.gpt.block_size)
        for rs in (records, held_out)
    )
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    pictures = Pictures(cfg.data, config.vit.image_size)

    def make(records: list[dict], rows: list) -> Batch:
        images = [r["image"] for r in records if r.get("image")]
        return collate(rows, tokenizer.pad, config.gpt.block_size, [r["id"] for r in records],
                       pictures.get(images) if images else None,
                       [int(bool(r.get("image"))) for r in records])

    def make_batch(step: int) -> Batch:
        chosen = shuffled(step, cfg.batch_size, len(records), cfg.seed, lengths)
        generator = torch.Generator().manual_seed(hash_seed(cfg.seed, step, 1))
        said = switch_out([rows[i] for i in chosen], len(tokenizer.ranks), cfg.noise, generator)
        return make([records[i] for i in chosen], said)

    starts = range(0, min(256, len(held_out)), 64)
    val_batches = [make(held_out[i:i + 64], val_rows[i:i + 64]) for i in starts]

    # --- optimizer ---
    optimizer = Optimizer(model, cfg.lr, cfg.muon_lr, cfg.weight_decay)

    # --- resume ---
    configs = {"model": asdict(config), "tokenizer": tokenizer.identity, **run.settings(cfg)}
    start, best, meter = 0, float("inf"), Meter()
    if cfg.resume:
        start, best = checkpoint.resume(log.ckpt, "sft", configs, model, optimizer, meter)
    make_batch(start)  # a batch that cannot be made must not cost the run that `out` holds
    log.begin(start)

    # --- loop ---
    made, row = batches(make_batch, start, cfg.steps, cfg.workers), {}
    bar = tqdm(
        range(start, cfg.steps + 1), desc="sft", initial=start, total=cfg.steps, disable=None
    )
    for step in bar:
        paths = [log.ckpt] if log.terminated else []
        # step 0 is measured before any update: nothing has asked it to answer yet
        if (step % cfg.eval_every == 0 or step == cfg.steps) and not (cfg.resume and step == start):
            row = evaluate(model, val_batches, device)
            log.log({"step": step, **meter.means(("loss", "lr", "grad", "ms", "data_ms")), **row})
            paths = [log.best, log.ckpt] if row["val_loss"] < best else [log.ckpt]
            best = min(best, row["val_loss"])
        if paths:
            checkpoint.save(
                paths, stage="sft", configs=configs, model=model, tokenizer=tokenizer,
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
