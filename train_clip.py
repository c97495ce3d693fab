"""Image-text alignment: a picture and its caption meet, all other pairs of the batch part (CLIP).

   loss = (cross_entropy(s * img_z @ txt_z.T, diagonal)
           + cross_entropy(s * txt_z @ img_z.T, diagonal)) / 2

Source: CLIP, Radford et al. 2021, arXiv:2103.00020, figure 3.
Reads: a prepared data folder.   Writes: runs/clip.
Expect (2 CPU cores): 2 min, loss of 1,000 held-out pairs ln 1000 = 6.9 -> 1.2, recall@1 .00 -> .68
Run: python train_clip.py [--batch_size 256]
"""

import time
from dataclasses import asdict, dataclass
from functools import partial

import torch
from tqdm import tqdm

from minivlm import checkpoint, run
from minivlm.clip import CLIP, CLIPConfig, contrastive_backward
from minivlm.data import Batch, batches, caption_rows, check_captions, collate, hash_seed
from minivlm.data import pick_captions, shuffled
from minivlm.images import Pictures, augment
from minivlm.log import Meter, Run
from minivlm.losses import clip_loss, equal_rows
from minivlm.metrics import recall_at_k
from minivlm.optim import Optimizer, lr_scale
from minivlm.prepared import load_meta, load_records
from minivlm.tokenizer import Tokenizer
from minivlm.vit import ViTConfig


# --- config ---


@dataclass
class Config:
    """Options of the run; the comments are the help texts."""

    data: str = "data/shapes/prepared"  # folder made by a prepare.py
    split: str = "train"  # which file of it to learn from: train, or web (noisy captions)
    out: str = "runs/clip"  # run folder
    steps: int = 350  # optimizer steps
    batch_size: int = 192  # pairs a step; each pair's negatives are the rest of the batch
    grad_accum: int = 1  # micro-batches a step, same result with less memory (features made twice)
    lr: float = 1e-3  # peak rate of AdamW: embeddings, heads, norms
    muon_lr: float = 0.02  # peak rate of Muon: matrices of the blocks; 0 = AdamW for all
    weight_decay: float = 0.05  # on matrices and embeddings
    warmup: int = 50  # steps until the peak rate
    grad_clip: float = 1.0  # largest norm of the gradient
    n_layer: int = 4  # blocks of the ViT; the text tower has one less
    n_embd: int = 128  # width of both towers
    patch_size: int = 16  # side of a patch in pixels
    block_size: int = 64  # longest caption in tokens
    shift: int = 0  # augmentation: move each picture by up to so many pixels
    mirror: bool = False  # augmentation: swap left and right at a chance of 1/2
    eval_every: int = 175  # steps between evaluations, each logged and saved
    seed: int = 0  # weights and order of the data
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    dtype: str = "auto"  # auto (bfloat16 on a GPU, else float32), float32, bfloat16
    compile: bool = False  # torch.compile: slow to start, then faster
    threads: int = 0  # CPU threads; 0 = torch's choice
    workers: int = 0  # processes that make batches ahead; 0 = none
    resume: bool = False  # continue the run in `out`

    def __post_init__(self):
        if self.n_embd % 32:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of 32, the width of a head")
        if self.n_layer < 2:
            raise ValueError(
                f"n_layer {self.n_layer} is below 2: a VLM reads the ViT's last block but one"
            )


# --- evaluate ---


@torch.no_grad()
def evaluate(model: CLIP, batch: Batch, device: torch.device) -> dict[str, float]:
    """Loss on one held-out batch, and recall@1 of its captions among themselves."""
    model.eval()
    img_z, txt_z, scale = model(*(x.to(device) for x in (batch.images, batch.idx, batch.lengths)))
    same = equal_rows(batch.idx).to(device)                          # (B, B)
    model.train()
    val_r1 = recall_at_k(img_z @ txt_z.T, same, 1)
    return {"val_loss": float(clip_loss(img_z, txt_z, scale)), "val_r1": val_r1}


def main(cfg: Config) -> dict[str, float]:
    """Train; return the last evaluation."""
    # --- run ---
    run.seed_everything(cfg.seed, cfg.threads)
    device, log = run.pick_device(cfg.device), Run(cfg, __file__)

    # --- data ---
    meta, tokenizer = load_meta(cfg.data), Tokenizer.load(f"{cfg.data}/tokenizer.tiktoken")
    records, held_out = (
        load_records(cfg.data, s, need=("image", "captions")) for s in (cfg.split, "val")
    )
    check_captions(records + held_out, tokenizer, 0, cfg.block_size)
    pictures = Pictures(cfg.data, meta["image_size"])

    def make(records: list[dict], generator: torch.Generator, train: bool) -> Batch:
        pairs = pick_captions(records, generator)
        images = pictures.get([r["image"] for r, _ in pairs])
        if train and (cfg.shift or cfg.mirror):
            images = augment(images, cfg.shift, cfg.mirror, generator)
        rows = caption_rows([c for _, c in pairs], tokenizer)
        names = [r["id"] for r, _ in pairs]
        return collate(rows, tokenizer.pad, cfg.block_size, names, images, [1] * len(rows))

    def make_batch(step: int) -> Batch:
        chosen = shuffled(step, cfg.batch_size, len(records), cfg.seed)
        return make(
            [records[i] for i in chosen],
            torch.Generator().manual_seed(hash_seed(cfg.seed, step, 1)), train=True,
        )

    val_batch = make(held_out[:1000], torch.Generator().manual_seed(0), train=False)

    # --- model ---
    vit = ViTConfig(meta["image_size"], cfg.patch_size, cfg.n_layer, cfg.n_embd // 32, cfg.n_embd)
    config = CLIPConfig(
        vit, tokenizer.vocab_size, cfg.block_size,
        cfg.n_layer - 1, cfg.n_embd // 32, cfg.n_embd, cfg.n_embd,
    )
    model = CLIP(config).to(device)
    step_model = torch.compile(model) if cfg.compile else model

    # --- optimizer ---
    optimizer = Optimizer(model, cfg.lr, cfg.muon_lr, cfg.weight_decay)

    # --- resume ---
    configs = {"model": asdict(config), "tokenizer": tokenizer.identity, **run.settings(cfg)}
    start, best, meter = 0, float("inf"), Meter()
    if cfg.resume:
        start, best = checkpoint.resume(log.ckpt, "clip", configs, model, optimizer, meter)
    make_batch(start)  # a batch that cannot be made must not cost the run that `out` holds
    log.begin(start)

    # --- loop ---
    made, row = batches(make_batch, start, cfg.steps, cfg.workers), {}
    bar = tqdm(
        range(start, cfg.steps + 1), desc="clip", initial=start, total=cfg.steps, disable=None
    )
    for step in bar:
        paths = [log.ckpt] if log.terminated else []
        # step 0 is measured before any update: there the loss is near ln B, B held-out pairs
        if (step % cfg.eval_every == 0 or step == cfg.steps) and not (cfg.resume and step == start):
            row = evaluate(model, val_batch, device)
            means = meter.means(("loss", "lr", "grad", "ms", "data_ms", "scale"))
            log.log({"step": step, **means, **row})
            paths = [log.best, log.ckpt] if row["val_loss"] < best else [log.ckpt]
            best = min(best, row["val_loss"])
        if paths:
            checkpoint.save(
                paths, stage="clip", configs=configs, model=model, tokenizer=tokenizer,
                step=step, best=best, optimizer=optimizer, meter=meter,
            )
        if step == cfg.steps:
            break
        if log.terminated and paths:
            log.stop(step)

        began = time.time()
        batch = next(made).to(device)
        got_data = time.time()

        autocast = partial(run.autocast, device, cfg.dtype)
        loss = contrastive_backward(step_model, batch.split(cfg.grad_accum), autocast)
        scale = lr_scale(step, cfg.steps, cfg.warmup)
        grad = optimizer.step(scale, cfg.grad_clip)
        log.check(loss, grad, step, batch.ids)
        model.clamp_scale()

        meter.add(loss=loss, lr=cfg.lr * scale, grad=grad, ms=1000 * (time.time() - began),
                  data_ms=1000 * (got_data - began), scale=model.logit_scale.item())
        bar.set_postfix(loss=f"{loss:.3f}")

    # --- finish ---
    log.finish(row)
    return row


if __name__ == "__main__":
    run.cli(main, Config)
