"""Captioning: a model learns to write what a picture shows, by one of three objectives.

   lm         - mean_t log p(caption_t | picture, prompt, caption before t)
   prefix_lm  only tokens behind a random cut are learned; the tokens before it see each
              other both ways (SimVLM)
   blip       contrast + match + lm: InfoNCE, yes or no on hard negatives, writing (BLIP)

Some rows of lm and prefix_lm are documents of stage 0 and have no picture, as in SimVLM. Their
tokens count a fourth, see train_sft.py.

Source: BLIP, arXiv:2201.12086, section 3; SimVLM, arXiv:2108.10904, section 3.
Reads: runs/clip, runs/lm.   Writes: runs/caption.
Expect (2 CPU cores): 5 min, held-out loss 1.3 -> .13
Run: python train_caption.py [--objective blip --vit_rate 1]
"""

import math
from collections import defaultdict
from dataclasses import dataclass

import torch

from minivlm.captioner import Captioner
from minivlm.conversation import Row, caption_rows
from minivlm.loading.batches import (
    Batch, Reading, caption_lengths, collate, cut_rows, hash_seed, pick_captions,
    places_that_fit, shuffled,
)
from minivlm.loading.images import Pictures
from minivlm.loading.models import place, take_towers, tower_configs
from minivlm.loading.prepared import load_meta, load_records
from minivlm.losses import IGNORE_INDEX, next_token_loss
from minivlm.optim import lr_scale, with_slower_part
from minivlm.running import checkpoint
from minivlm.running.options import cli
from minivlm.running.processes import add_gradients, own_rows, total
from minivlm.running.run import Run
from minivlm.vlm import VLMConfig

# --- config ---


@dataclass
class Config:
    """Options of the run; the comments are the help texts."""

    # data
    data: str = "data/book/prepared"  # data folder made by a prepare.py
    split: str = "train"  # file of the data folder to learn from: train or web
    n_texts: int = 6  # >= 0; documents of stage 0 read per step; none for blip
    text_weight: float = 0.25  # > 0; of a document's token in the loss; a caption's has 1
    prompt: str = "a picture of"  # text before every caption; it is read, not learned
    skip_long: bool = False  # leave out records longer than the context, say how many
    out: str = "runs/caption"  # run folder to write
    # model
    clip: str = "runs/clip"  # run folder that the ViT comes from
    lm: str = "runs/lm"  # run folder that the GPT comes from
    vit_rate: float = 0.1  # >= 0; the ViT's share of the other learning rates; 0 = frozen
    # optimization
    objective: str = "lm"  # lm | prefix_lm | blip; prefix_lm is SimVLM's
    label_smoothing: float = 0.0  # for lm and blip, 0 <= x < 1; BLIP's decoder has 0.1
    steps: int = 1000  # >= 0; optimizer steps
    batch_size: int = 64  # >= 1; pictures per step, each with one caption
    grad_accum: int = 1  # >= 1; micro-batches per step; blip compares pairs within one
    lr: float = 6e-3  # >= 0; peak learning rate of AdamW: embeddings, norms, heads, biases
    muon_lr: float = 0.03  # >= 0; peak learning rate of Muon: matrices; 0 = AdamW for all
    weight_decay: float = 0.05  # >= 0; on matrices and embeddings
    warmup: int = 50  # >= 0; steps until the peak learning rate
    grad_clip: float = 1.0  # >= 0; scale a larger gradient down to this norm; 0 = off
    # machine
    eval_every: int = 100  # >= 1; steps between evaluations, each logged and saved
    log_every: int = 10  # >= 1; steps between lines of training losses in metrics.csv
    seed: int = 0  # >= 0; decides the initial weights and the order of the data
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps; auto = a GPU if there is one
    dtype: str = "auto"  # auto | float32 | bfloat16; auto = bfloat16 on a GPU, else float32
    threads: int = 0  # >= 0; CPU threads; 0 = torch's choice
    workers: int = 0  # >= 0; processes that prepare batches in advance; 0 = none
    resume: bool = False  # continue the run in `out`

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, expected 0 <= x < 1")
        if self.objective == "blip" and self.batch_size < 2 * self.grad_accum:
            raise ValueError("blip needs two pairs in a micro-batch: raise batch_size")


# --- evaluate ---


@torch.no_grad()
def evaluate(
    model: Captioner, val_batches: list[Batch], skip: int, device: torch.device, blip: bool
) -> dict[str, float]:
    """Compute the mean loss per caption token of held-out batches, in nats.

    For blip, also compute the share of pairs that the matching head classifies right. Two
    thirds of the pairs are hard negatives, so a head that always says no is right for two
    of three pairs.

    Args:
        skip: how many tokens stand before the caption.
    """
    model.eval()
    loss, right = 0.0, 0.0
    n_tokens, n_rows = 0, 0
    for batch in val_batches:
        batch = batch.to(device)
        at = batch.targets != IGNORE_INDEX                           # (B, T)
        B = len(batch.idx)
        if blip:
            generator = torch.Generator().manual_seed(0)
            losses, match = model.blip_losses(batch, skip, 0.0, generator)
            batch_loss = losses["lm"]
            right += float(match) * B
        else:
            prefix = model.prefix_of(batch)                          # (B,) or None
            logits = model.vlm(batch.idx, batch.images, at=at, prefix=prefix)
            batch_loss = next_token_loss(logits, batch.targets[at])
        loss += float(batch_loss * at.sum())
        n_tokens += int(at.sum())
        n_rows += B
    model.train()
    figures = {"val_loss": loss / n_tokens}
    if blip:
        figures["val_match"] = right / n_rows
    return figures


def main(cfg: Config) -> dict[str, float]:
    """Train; return the last evaluation."""
    # --- run ---
    run = Run(cfg, __file__)

    # --- model ---
    clip = checkpoint.load(cfg.clip, ("clip",))
    lm = checkpoint.load(cfg.lm, ("lm",))
    tokenizer = checkpoint.tokenizer_of(lm)
    vit, gpt = tower_configs(clip, lm)
    blip = cfg.objective == "blip"
    prefix_lm = cfg.objective == "prefix_lm"
    config = VLMConfig(tokenizer.image, vit, gpt, "placed", prefix_lm)
    model = Captioner(config)
    take_towers(model.vlm, clip, lm)
    place(model, run.device, run.half)

    # --- data ---
    reading = Reading(cfg.data, 0 if blip else cfg.n_texts, tokenizer)
    pictures = Pictures(cfg.data, vit.image_size, load_meta(cfg.data)["fit"])
    prompt = tokenizer.encode(cfg.prompt)
    skip = vit.n_tokens + len(prompt)  # tokens before the caption

    def load(split: str) -> list[dict]:
        records = load_records(cfg.data, split, need=("image", "captions"))
        lengths = caption_lengths(records, tokenizer, skip + 1)
        kept = places_that_fit(records, lengths, gpt.block_size, cfg.skip_long, split)
        return [records[i] for i in kept]

    records = load(cfg.split)
    val_records = load("val")
    if blip and len(val_records) < 2:
        raise ValueError(
            f"{cfg.data}/val.jsonl has a single record; blip compares several captions"
        )

    def rows_of(captions: list[str]) -> list[Row]:
        return caption_rows(captions, tokenizer, vit.n_tokens, prompt, end=True)

    def collect(chosen: list[dict], rows: list[Row]) -> Batch:
        n_texts = len(rows) - len(chosen)
        names = [r["id"] for r in chosen] + [f"text {i}" for i in range(n_texts)]
        images = pictures.get([r["image"] for r in chosen])
        n_images = [1] * len(chosen) + [0] * n_texts
        weights = [1.0] * len(chosen) + [cfg.text_weight] * n_texts
        return collate(
            rows, tokenizer.pad, gpt.block_size, names, images, n_images, weights=weights
        )

    def make_batch(step: int) -> Batch:
        generator = torch.Generator().manual_seed(hash_seed(cfg.seed, step, 1))
        places = shuffled(step, cfg.batch_size, len(records), cfg.seed)
        chosen = [records[i] for i in places]
        rows = rows_of(pick_captions(chosen, generator))
        longest = max(len(row.ids) for row in rows)
        documents = reading.rows(longest, generator)
        if prefix_lm:
            rows = cut_rows(rows, skip, generator)
            documents = cut_rows(documents, 1, generator)
        return collect(chosen, rows + documents)

    # parts of equal size: the matching head needs another caption in the same part
    places = torch.arange(min(256, len(val_records)))
    val_batches = []
    for part in places.tensor_split(math.ceil(len(places) / 64)):
        chosen = [val_records[i] for i in part]
        val_batches.append(collect(chosen, rows_of([r["captions"][0] for r in chosen])))

    # --- optimizer ---
    optimizer = with_slower_part(
        model, model.vlm.vit, cfg.vit_rate, cfg.lr, cfg.muon_lr, cfg.weight_decay
    )

    # --- resume ---
    # what checkpoints contain; with --resume it is restored from the last one
    run.hold("caption", model, optimizer, tokenizer, config, fit=pictures.mode)
    run.begin(make_batch)

    # --- loop ---
    for step in run.steps():
        # step 0 is measured before any update: the model cannot use the picture yet
        if run.is_due(step):
            figures = evaluate(model, val_batches, skip, run.device, blip)
            run.record(figures, loss=figures["val_loss"])
        if step == cfg.steps:
            break

        batch = run.next_batch().to(run.device)
        generator = torch.Generator().manual_seed(hash_seed(cfg.seed, step, 2))
        loss, parts_of_loss = 0.0, defaultdict(float)
        for part in batch.take(own_rows()).split(cfg.grad_accum):
            # the writing loss is a mean over tokens, the other two are means over rows
            share = part.n_supervised / batch.n_supervised
            row_share = len(part.idx) / len(batch.idx)
            if blip:
                smoothing = cfg.label_smoothing
                with run.autocast():
                    losses, match = model.blip_losses(part, skip, smoothing, generator)
                part_loss = (losses["itc"] + losses["itm"]) * row_share
                part_loss = part_loss + losses["lm"] * share
                for name in ("itc", "itm"):
                    parts_of_loss[name] += losses[name].detach() * row_share
                parts_of_loss["match"] += match * row_share
            else:
                at = part.targets != IGNORE_INDEX                    # (B, T)
                with run.autocast():
                    prefix = model.prefix_of(part)                   # (B,) or None
                    logits = model.vlm(part.idx, part.images, at=at, prefix=prefix)
                smoothing = 0.0 if prefix_lm else cfg.label_smoothing
                part_loss = next_token_loss(
                    logits, part.targets[at], smoothing, part.weights_at(at)
                ) * share
            part_loss.backward()
            loss += part_loss.detach()
        [loss, *sums] = total(loss, *parts_of_loss.values())
        scale = lr_scale(step, cfg.steps, cfg.warmup)
        add_gradients(optimizer.params)
        grad = optimizer.step(scale, cfg.grad_clip)
        model.clamp_scale()
        more = dict(zip(parts_of_loss, sums))
        run.add(batch.ids, loss=loss, grad=grad, lr=cfg.lr * scale, **more)

    # --- finish ---
    return run.finish()


if __name__ == "__main__":
    cli(main, Config)
