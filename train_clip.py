"""CLIP: two towers learn to give a picture and its caption similar vectors, others not.

   loss = (cross_entropy(s * img_z @ txt_z.T, diagonal)
           + cross_entropy(s * txt_z @ img_z.T, diagonal)) / 2,    s: learned multiplier

With --loss siglip, every pair by itself: do picture and caption belong together?

Source: CLIP, Radford et al. 2021, arXiv:2103.00020, figure 3; SigLIP, arXiv:2303.15343.
Reads: a prepared data folder.   Writes: runs/clip.
Expect (2 CPU cores): 3 min; on 1,000 held-out pairs, loss ln 1000 = 6.9 -> 1.55,
recall@1 0 -> .64
Run: python train_clip.py [--batch_size 256]
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ContextManager

import torch
from torch import Tensor, nn

from minivlm.clip import CLIP, CLIPConfig
from minivlm.conversation import caption_rows
from minivlm.loading.batches import (
    Batch, caption_lengths, collate, hash_seed, pick_captions, places_that_fit, shuffled,
)
from minivlm.loading.images import Pictures, augment
from minivlm.loading.prepared import load_meta, load_records
from minivlm.losses import clip_loss, equal_rows, siglip_loss
from minivlm.metrics import recall_at_k
from minivlm.optim import Optimizer, lr_scale
from minivlm.running import processes
from minivlm.running.options import cli
from minivlm.running.run import Run
from minivlm.tokenizer import Tokenizer
from minivlm.vit import ViTConfig

LOSSES = {"infonce": clip_loss, "siglip": siglip_loss}

# --- config ---


@dataclass
class Config:
    """Options of the run; the comments are the help texts."""

    # data
    data: str = "data/book/prepared"  # data folder made by a prepare.py
    split: str = "train"  # file of the data folder to learn from: train or web
    shift: int = 0  # >= 0; augmentation: largest random shift of a picture in pixels
    mirror: bool = False  # augmentation: mirror each picture with probability 1/2
    skip_long: bool = False  # leave out records longer than the context, say how many
    out: str = "runs/clip"  # run folder to write
    # model
    n_layer: int = 4  # >= 1; blocks of the ViT; the text tower has one less
    n_embd: int = 128  # >= 32; width of both towers, a multiple of 32
    patch_size: int = 20  # >= 1; side of a patch in pixels
    block_size: int = 80  # >= 2; longest caption in tokens
    # optimization
    loss: str = "infonce"  # infonce | siglip; SigLIP asks of every pair by itself
    steps: int = 550  # >= 0; optimizer steps
    batch_size: int = 192  # >= 2; pairs per step; for each pair, all others are negatives
    grad_accum: int = 1  # >= 1; micro-batches per step; more of them take less memory
    lr: float = 1e-3  # >= 0; peak learning rate of AdamW: embeddings, heads, norms, biases
    muon_lr: float = 0.02  # >= 0; peak learning rate of Muon: blocks' matrices; 0 = AdamW
    weight_decay: float = 0.05  # >= 0; on matrices and embeddings
    warmup: int = 50  # >= 0; steps until the peak learning rate
    grad_clip: float = 1.0  # >= 0; scale a larger gradient down to this norm; 0 = off
    # machine
    eval_every: int = 110  # >= 1; steps between evaluations, each logged and saved
    log_every: int = 10  # >= 1; steps between lines of training losses in metrics.csv
    seed: int = 0  # >= 0; decides the initial weights and the order of the data
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps; auto = a GPU if there is one
    dtype: str = "auto"  # auto | float32 | bfloat16; auto = bfloat16 on a GPU, else float32
    threads: int = 0  # >= 0; CPU threads; 0 = torch's choice
    workers: int = 0  # >= 0; processes that prepare batches in advance; 0 = none
    resume: bool = False  # continue the run in `out`

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise ValueError(f"loss {self.loss!r} is not one of {', '.join(LOSSES)}")
        if self.n_embd % 32:
            raise ValueError(
                f"n_embd {self.n_embd} is not a multiple of 32, the width of a head"
            )
        if self.n_layer < 2:
            raise ValueError(
                f"n_layer {self.n_layer} is below 2: a VLM reads the last block but one"
            )


# --- evaluate ---


@torch.no_grad()
def evaluate(
    model: CLIP, batch: Batch, loss_of: Callable[..., Tensor], device: torch.device,
    n_compared: int = 0,
) -> dict[str, float]:
    """Compute the loss of one held-out batch, and its recall@1.

    recall@1 is the share of pictures that are more similar to their own caption than to all
    others. Captions with equal texts count as the picture's own.

    Args:
        n_compared: pairs among which the loss compares; 0 = all. SigLIP's bias has learned
            how seldom two of a training batch belong together, so the held-out loss must be
            a mean over parts of that size.
    """
    batch = batch.to(device)
    model.eval()
    img_z, txt_z, *learned = model(batch.images, batch.idx, batch.lengths)
    model.train()
    same = equal_rows(batch.idx)                                     # (B, B)
    B = len(img_z)
    loss = 0.0
    for z in zip(img_z.split(n_compared or B), txt_z.split(n_compared or B)):
        loss += float(loss_of(*z, *learned)) * len(z[0]) / B
    return {
        "val_loss": loss,
        "val_r1": recall_at_k(img_z @ txt_z.T, same, 1),
    }


# --- update ---


def contrastive_backward(
    model: nn.Module,
    parts: list[Batch],
    autocast: Callable[[], ContextManager] = nullcontext,
    loss_of: Callable[..., Tensor] = clip_loss,
) -> float:
    """Compute the gradients of a loss over all parts together, one part's graph at a time.

    Plain accumulation would compare a pair only with the pairs of its own part. Here the
    vectors of all parts, and of all processes, are computed first. The loss over all of
    them gives the gradients of the vectors. Then each part is computed again, with its
    graph, and the gradients of its vectors flow back through it. The result is that of one
    large batch, because the towers have no dropout: both passes give the same vectors.

    Args:
        model: maps (images, idx, lengths) to (img_z, txt_z, logit_scale), or to these and
            SigLIP's bias.
        parts: micro-batches of this process. A single one keeps its graph and needs no
            second pass.
        autocast: makes the context in which the model computes. The loss is computed
            outside of it, in float32: near 100, bfloat16 rounds to steps of 0.5.
        loss_of: takes what the model returns.

    Returns:
        the loss in nats.

    Source: Gao et al. 2021 (GradCache), arXiv:2101.06983, section 3.
    """
    def features(part: Batch) -> tuple[Tensor, ...]:
        with autocast():
            return model(part.images, part.idx, part.lengths)

    with torch.set_grad_enabled(len(parts) == 1):
        stored = [features(part) for part in parts]
    sizes = [len(z) for z, *_ in stored]
    B = int(processes.total(sum(sizes))[0])
    img_z, txt_z = (                                                 # (B, C) each
        processes.gather(torch.cat([z[i] for z in stored]), B).requires_grad_()
        for i in (0, 1)
    )
    # the multiplier, and SigLIP's bias: () each
    learned = [x.detach().clone().requires_grad_() for x in stored[0][2:]]
    loss = loss_of(img_z, txt_z, *learned)
    img_grad, txt_grad, *learned_grads = torch.autograd.grad(
        loss, [img_z, txt_z, *learned], allow_unused=True, materialize_grads=True
    )
    grads = [processes.mine(grad).split(sizes) for grad in (img_grad, txt_grad)]
    for part, known, *z_grads in zip(parts, stored, *grads):
        # the parts' shares of these numbers' gradients add up to the whole gradients
        shares = [g * len(part.idx) / B for g in learned_grads]
        out = known if len(parts) == 1 else features(part)
        torch.autograd.backward(list(out), [*z_grads, *shares])
    return loss.item()


def main(cfg: Config) -> dict[str, float]:
    """Train; return the last evaluation."""
    # --- run ---
    run = Run(cfg, __file__)

    # --- data ---
    meta = load_meta(cfg.data)
    tokenizer = Tokenizer.load(f"{cfg.data}/tokenizer.tiktoken")
    def load(split: str) -> list[dict]:
        records = load_records(cfg.data, split, need=("image", "captions"))
        lengths = caption_lengths(records, tokenizer)
        kept = places_that_fit(records, lengths, cfg.block_size, cfg.skip_long, split)
        return [records[i] for i in kept]

    records = load(cfg.split)
    val_records = load("val")
    if len(val_records) < 2:
        raise ValueError(
            f"{cfg.data}/val.jsonl has a single record, which has no other to differ from"
        )
    pictures = Pictures(cfg.data, meta["image_size"], meta["fit"])

    def collect(chosen: list[dict], generator: torch.Generator, train: bool) -> Batch:
        captions = pick_captions(chosen, generator)
        images = pictures.get([r["image"] for r in chosen])
        if train and (cfg.shift or cfg.mirror):
            images = augment(images, cfg.shift, cfg.mirror, generator)
        rows = caption_rows(captions, tokenizer)
        names = [r["id"] for r in chosen]
        return collate(rows, tokenizer.pad, cfg.block_size, names, images, [1] * len(rows))

    def make_batch(step: int) -> Batch:
        chosen = shuffled(step, cfg.batch_size, len(records), cfg.seed)
        generator = torch.Generator().manual_seed(hash_seed(cfg.seed, step, 1))
        return collect([records[i] for i in chosen], generator, train=True)

    val_batch = collect(val_records[:1000], torch.Generator().manual_seed(0), train=False)

    # --- model ---
    C, n_head = cfg.n_embd, cfg.n_embd // 32
    # published CLIPs have quick_gelu, which takes twice the time
    vit = ViTConfig(meta["image_size"], cfg.patch_size, cfg.n_layer, n_head, C, "gelu")
    config = CLIPConfig(
        vit, tokenizer.vocab_size, cfg.block_size, cfg.n_layer - 1, n_head, C, n_embd=C,
        act="gelu", logit_bias=cfg.loss == "siglip",
    )
    loss_of = LOSSES[cfg.loss]
    n_compared = cfg.batch_size if cfg.loss == "siglip" else 0
    model = CLIP(config).to(run.device)

    # --- optimizer ---
    optimizer = Optimizer(model, cfg.lr, cfg.muon_lr, cfg.weight_decay)

    # --- resume ---
    # what checkpoints contain; with --resume it is restored from the last one
    run.hold("clip", model, optimizer, tokenizer, config, fit=pictures.mode)
    run.begin(make_batch)

    # --- loop ---
    for step in run.steps():
        # step 0 is measured before any update: InfoNCE of B held-out pairs is near ln B
        if run.is_due(step):
            figures = evaluate(model, val_batch, loss_of, run.device, n_compared)
            run.record(figures, loss=figures["val_loss"])
        if step == cfg.steps:
            break

        batch = run.next_batch().to(run.device)
        parts = batch.take(processes.own_rows()).split(cfg.grad_accum)
        loss = contrastive_backward(model, parts, run.autocast, loss_of)
        scale = lr_scale(step, cfg.steps, cfg.warmup)
        processes.add_gradients(optimizer.params)
        grad = optimizer.step(scale, cfg.grad_clip)
        model.clamp_scale()
        multiplier = model.logit_scale.item()
        run.add(batch.ids, loss=loss, grad=grad, lr=cfg.lr * scale, scale=multiplier)

    # --- finish ---
    return run.finish()


if __name__ == "__main__":
    cli(main, Config)
