"""Visual instruction tuning: the model learns to answer; only answers are in the loss.

   loss = - mean_t [t is an answer token] log p(token_t | picture, conversation before t)

A few documents of stage 0 are read in every step, all of their tokens learned, or the model
forgets what it has only read. Their tokens count a fourth: they cost ten times as much as answers,
because most of a text cannot be foreseen, and that noise would leave little of each update to
answers. The logged loss is of both, val_loss of answers alone.

Source: LLaVA, arXiv:2304.08485, eq. 3 and section 4.2, stage 2.
Reads: runs/caption (or runs/align, as LLaVA does).   Writes: runs/sft.
Expect (2 CPU cores): 20 min, loss 3 -> .06
Run: python train_sft.py [--no-freeze_vit] [--freeze_gpt --n_texts 0]
"""

from dataclasses import dataclass, replace

import torch

from minivlm.conversation import Row
from minivlm.evaluation.held_out import held_out_loss
from minivlm.loading.batches import (
    Batch, Reading, collate, hash_seed, places_that_fit, render_records, shuffled,
    switch_out,
)
from minivlm.loading.images import Pictures
from minivlm.loading.models import place, vlm_from
from minivlm.loading.prepared import load_meta, load_records
from minivlm.lora import LAYERS, add_lora
from minivlm.losses import IGNORE_INDEX, next_token_loss
from minivlm.optim import Optimizer, lr_scale
from minivlm.pretrained.weights import load_state
from minivlm.running import checkpoint
from minivlm.running.options import cli
from minivlm.running.processes import add_gradients, own_rows, total
from minivlm.running.run import Run

# --- config ---


@dataclass
class Config:
    """Options of the run; the comments are the help texts."""

    # data
    data: str = "data/book/prepared"  # data folder made by a prepare.py
    split: str = "train"  # file of the data folder to learn from
    val_split: str = "val"  # file of the data folder to measure the loss on
    n_texts: int = 4  # >= 0; documents of stage 0 read per step, so that none is forgotten
    text_weight: float = 0.25  # > 0; of a document's token in the loss; an answer's has 1
    noise: float = 0.0  # 0 .. 1; share of the questions' tokens replaced at random
    skip_long: bool = False  # leave out records longer than the context, say how many
    out: str = "runs/sft"  # run folder to write
    # model
    init: str = "runs/caption"  # where the VLM comes from: a run of caption, align, sft; or a LLaVA
    freeze_vit: bool = True  # do not train the ViT, as in LLaVA
    freeze_gpt: bool = False  # do not train the GPT: the projector learns alone
    lora: int = 0  # >= 0; rank of LoRA adapters; if above 0, nothing else learns
    # optimization
    steps: int = 3000  # >= 0; optimizer steps
    batch_size: int = 64  # >= 1; conversations per step
    grad_accum: int = 4  # >= 1; micro-batches of similar lengths; more of them take less memory
    lr: float = 2e-3  # >= 0; peak learning rate of AdamW: embeddings, norms, biases
    muon_lr: float = 0.02  # >= 0; peak learning rate of Muon: matrices; 0 = AdamW for all
    weight_decay: float = 0.05  # >= 0; on matrices and embeddings
    warmup: int = 50  # >= 0; steps until the peak learning rate
    grad_clip: float = 1.0  # >= 0; scale a larger gradient down to this norm; 0 = off
    # machine
    eval_every: int = 300  # >= 1; steps between evaluations, each logged and saved
    log_every: int = 10  # >= 1; steps between lines of training losses in metrics.csv
    seed: int = 0  # >= 0; decides the order of the data
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps; auto = a GPU if there is one
    dtype: str = "auto"  # auto | float32 | bfloat16; auto = bfloat16 on a GPU, else float32
    compile: bool = False  # torch.compile: 1.5 min to start, then a tenth faster (2 CPU cores)
    checkpoint_blocks: bool = False  # compute activations again: less memory, more time
    threads: int = 0  # >= 0; CPU threads; 0 = torch's choice
    workers: int = 0  # >= 0; processes that prepare batches in advance; 0 = none
    resume: bool = False  # continue the run in `out`

    def __post_init__(self):
        if self.freeze_gpt and (self.lora or self.n_texts):
            raise ValueError("freeze_gpt leaves the projector alone to learn: it needs lora 0, "
                             "and n_texts 0, because documents do not pass the projector")


def main(cfg: Config) -> dict[str, float]:
    """Train; return the last evaluation."""
    # --- run ---
    run = Run(cfg, __file__)

    # --- model ---
    before = load_state(cfg.init, ("align", "caption", "sft"))
    tokenizer = checkpoint.tokenizer_of(before)
    model = vlm_from(before, take=True, half=run.half)
    # a captioner may be a prefix-LM; a chatbot is always causal
    config = model.config = replace(model.config, prefix_lm=False)
    model.vit.requires_grad_(not cfg.freeze_vit)
    model.gpt.requires_grad_(not cfg.freeze_gpt)
    model.gpt.checkpoint_blocks = cfg.checkpoint_blocks
    if cfg.lora:
        add_lora(model, LAYERS, cfg.lora, frozen=model.vit if cfg.freeze_vit else None)
    place(model, run.device, run.half)
    step_model = torch.compile(model) if cfg.compile else model

    # --- data ---
    N, block_size = config.vit.n_tokens, config.gpt.block_size

    def load(split: str) -> tuple[list[dict], list[Row]]:
        records = load_records(cfg.data, split, need=("conversations",))
        rows = render_records(records, tokenizer, N)
        needed = [len(row.ids) - 1 for row in rows]  # the last token is only a target
        kept = places_that_fit(records, needed, block_size, cfg.skip_long, split)
        return [records[i] for i in kept], [rows[i] for i in kept]

    records, rows = load(cfg.split)
    val_records, val_rows = load(cfg.val_split)
    lengths = torch.tensor([len(row.ids) for row in rows])
    pictures = Pictures(cfg.data, config.vit.image_size, load_meta(cfg.data)["fit"])
    reading = Reading(cfg.data, cfg.n_texts, tokenizer)
    words = sorted(tokenizer.ranks.values())

    def collect(records: list[dict], rows: list[Row]) -> Batch:
        images, n_images = pictures.of(records)                      # (n, 3, S, S)
        n_texts = len(rows) - len(records)
        names = [r["id"] for r in records] + [f"text {i}" for i in range(n_texts)]
        n_images += [0] * n_texts
        weights = [1.0] * len(records) + [cfg.text_weight] * n_texts
        return collate(
            rows, tokenizer.pad, block_size, names, images, n_images, weights=weights
        )

    def make_batch(step: int) -> Batch:
        chosen = shuffled(step, cfg.batch_size, len(records), cfg.seed, lengths)
        generator = torch.Generator().manual_seed(hash_seed(cfg.seed, step, 1))
        clean = [rows[i] for i in chosen]
        noisy = switch_out(clean, words, cfg.noise, generator)
        longest = max(len(row.ids) for row in clean)
        documents = reading.rows(longest, generator)
        return collect([records[i] for i in chosen], noisy + documents)

    val_batches = []
    for i in range(0, min(256, len(val_records)), 64):
        val_batches.append(collect(val_records[i:i + 64], val_rows[i:i + 64]))

    # --- optimizer ---
    optimizer = Optimizer(model, cfg.lr, cfg.muon_lr, cfg.weight_decay)

    # --- resume ---
    # what checkpoints contain; with --resume it is restored from the last one
    run.hold("sft", model, optimizer, tokenizer, config, fit=pictures.mode)
    run.begin(make_batch)

    # --- loop ---
    for step in run.steps():
        # step 0 is measured before any update: it shows what this stage starts from
        if run.is_due(step):
            val_loss = held_out_loss(model, val_batches, run.device, run.autocast)
            run.record({"val_loss": val_loss}, loss=val_loss)
        if step == cfg.steps:
            break

        batch = run.next_batch().to(run.device)
        loss = 0.0
        for part in batch.take(own_rows()).split(cfg.grad_accum):
            # questions and pictures have no targets: of dialogues only answers are scored
            at = part.targets != IGNORE_INDEX                        # (B, T)
            with run.autocast():
                logits = step_model(part.idx, part.images, at=at)    # (M, V)
            weights = part.weights_at(at)                            # (M,)
            part_loss = next_token_loss(logits, part.targets[at], weights=weights)
            # weighted by its learned tokens, so that all parts add up to the batch's mean
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
