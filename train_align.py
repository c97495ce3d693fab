"""Connector pretraining: the projector learns to map patches to embeddings for the GPT.

   loss = - mean_t log p(caption_t | picture, caption before t)

Only the projector learns; ViT and GPT are frozen.

Source: LLaVA, arXiv:2304.08485, section 4.2, stage 1.
Reads: runs/clip, runs/lm, or published weights.   Writes: runs/align.
Expect (2 CPU cores): .5 min, loss 2.7 -> 1.6
Run: python train_align.py [--vision DIR --llm DIR]
"""

from dataclasses import dataclass, replace

import torch

from minivlm.conversation import caption_rows
from minivlm.evaluation.held_out import held_out_loss
from minivlm.loading.batches import (
    Batch, caption_lengths, collate, hash_seed, pick_captions, places_that_fit, shuffled,
)
from minivlm.loading.images import Pictures
from minivlm.loading.models import on_meta, place, take_towers, tower_configs
from minivlm.loading.prepared import load_meta, load_records
from minivlm.losses import IGNORE_INDEX, next_token_loss
from minivlm.optim import Optimizer, lr_scale
from minivlm.pretrained.weights import read_lm, read_vision
from minivlm.running import checkpoint
from minivlm.running.options import cli
from minivlm.running.processes import add_gradients, own_rows, total
from minivlm.running.run import Run
from minivlm.vlm import VLM, VLMConfig

# --- config ---


@dataclass
class Config:
    """Options of the run; the comments are the help texts."""

    # data
    data: str = "data/book/prepared"  # data folder made by a prepare.py
    split: str = "train"  # file of the data folder to learn from: train or web
    skip_long: bool = False  # leave out records longer than the context, say how many
    out: str = "runs/align"  # run folder to write
    # model
    clip: str = "runs/clip"  # run folder that the ViT comes from
    lm: str = "runs/lm"  # run folder that the GPT comes from
    vision: str = ""  # folder of a published CLIP or SigLIP, to take its ViT instead
    llm: str = ""  # folder of a published GPT-2, Llama or Qwen, to take it instead
    image_size: int = 0  # >= 0; side in pixels to adapt a published ViT to; 0 = its own
    feature_layer: int = 0  # -99 .. 0; block of the ViT that is read; -1 = last; 0 = its own
    projector: str = "placed"  # placed | mlp | linear | llava; see minivlm/projector.py
    # optimization
    steps: int = 150  # >= 0; optimizer steps
    batch_size: int = 64  # >= 1; pictures per step, each with one caption
    grad_accum: int = 1  # >= 1; micro-batches per step; more of them take less memory
    lr: float = 2e-3  # >= 0; peak learning rate of AdamW: biases and norm
    muon_lr: float = 0.02  # >= 0; peak learning rate of Muon: matrices; 0 = AdamW for all
    weight_decay: float = 0.0  # >= 0; on matrices
    warmup: int = 20  # >= 0; steps until the peak learning rate
    grad_clip: float = 1.0  # >= 0; scale a larger gradient down to this norm; 0 = off
    # machine
    eval_every: int = 100  # >= 1; steps between evaluations, each logged and saved
    log_every: int = 10  # >= 1; steps between lines of training losses in metrics.csv
    seed: int = 0  # >= 0; decides the initial weights and the order of the data
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps; auto = a GPU if there is one
    dtype: str = "auto"  # auto | float32 | bfloat16; auto = bfloat16 on a GPU, else float32
    checkpoint_blocks: bool = False  # compute activations again: less memory, more time
    threads: int = 0  # >= 0; CPU threads; 0 = torch's choice
    workers: int = 0  # >= 0; processes that prepare batches in advance; 0 = none
    resume: bool = False  # continue the run in `out`

    def __post_init__(self):
        if self.image_size and not self.vision:
            raise ValueError("image_size is for --vision; other ViTs keep their size")


def main(cfg: Config) -> dict[str, float]:
    """Train; return the last evaluation."""
    # --- run ---
    run = Run(cfg, __file__)

    # --- model ---
    if cfg.vision:
        clip = read_vision(cfg.vision, cfg.image_size)
    else:
        clip = checkpoint.load(cfg.clip, ("clip",))
    lm = read_lm(cfg.llm) if cfg.llm else checkpoint.load(cfg.lm, ("lm",))
    tokenizer = checkpoint.tokenizer_of(lm)
    vit, gpt = tower_configs(clip, lm)
    if cfg.feature_layer:
        vit = replace(vit, feature_layer=cfg.feature_layer)
    config = VLMConfig(tokenizer.image, vit, gpt, cfg.projector)
    # the towers' own initial weights, which nobody needs, would take memory and time
    model = on_meta(lambda: VLM(config))
    model.projector = model.new_projector()
    take_towers(model, clip, lm)
    model.requires_grad_(False)
    model.gpt.checkpoint_blocks = cfg.checkpoint_blocks
    model.projector.requires_grad_(True)
    place(model, run.device, run.half)

    # --- data ---
    def load(split: str) -> list[dict]:
        records = load_records(cfg.data, split, need=("image", "captions"))
        lengths = caption_lengths(records, tokenizer, vit.n_tokens)
        kept = places_that_fit(records, lengths, gpt.block_size, cfg.skip_long, split)
        return [records[i] for i in kept]

    records = load(cfg.split)
    val_records = load("val")
    pictures = Pictures(cfg.data, vit.image_size, load_meta(cfg.data)["fit"])

    def collect(chosen: list[dict], generator: torch.Generator) -> Batch:
        captions = pick_captions(chosen, generator)
        rows = caption_rows(captions, tokenizer, vit.n_tokens)
        images = pictures.get([r["image"] for r in chosen])
        names = [r["id"] for r in chosen]
        return collate(rows, tokenizer.pad, gpt.block_size, names, images, [1] * len(rows))

    def make_batch(step: int) -> Batch:
        chosen = shuffled(step, cfg.batch_size, len(records), cfg.seed)
        generator = torch.Generator().manual_seed(hash_seed(cfg.seed, step, 1))
        return collect([records[i] for i in chosen], generator)

    val_batches = []
    for i in range(0, min(256, len(val_records)), 64):
        val_batches.append(collect(val_records[i:i + 64], torch.Generator().manual_seed(0)))

    # --- optimizer ---
    optimizer = Optimizer(model, cfg.lr, cfg.muon_lr, cfg.weight_decay)

    # --- resume ---
    # what checkpoints contain; with --resume it is restored from the last one
    run.hold("align", model, optimizer, tokenizer, config, fit=pictures.mode)
    run.begin(make_batch)

    # --- loop ---
    for step in run.steps():
        # step 0 is measured before any update: the GPT cannot read the picture yet
        if run.is_due(step):
            val_loss = held_out_loss(model, val_batches, run.device, run.autocast)
            run.record({"val_loss": val_loss}, loss=val_loss)
        if step == cfg.steps:
            break

        batch = run.next_batch().to(run.device)
        loss = 0.0
        for part in batch.take(own_rows()).split(cfg.grad_accum):
            # the gradient passes through the frozen GPT to the projector
            at = part.targets != IGNORE_INDEX                        # (B, T), the captions
            with run.autocast():
                logits = model(part.idx, part.images, at=at)    # (M, V)
            # weighted by its caption tokens, so that all parts add up to the batch's mean
            part_loss = next_token_loss(logits, part.targets[at])
            part_loss = part_loss * part.n_supervised / batch.n_supervised
            part_loss.backward()
            loss += part_loss.detach()
        [loss] = total(loss)
        scale = lr_scale(step, cfg.steps, cfg.warmup)
        add_gradients(optimizer.params)
        grad = optimizer.step(scale, cfg.grad_clip)
        run.add(batch.ids, loss=loss, grad=grad, lr=cfg.lr * scale)

    # --- finish ---
    return run.finish()


if __name__ == "__main__":
    cli(main, Config)
