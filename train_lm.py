"""Language pretraining: a GPT learns to continue text.

   loss = - mean_t log p(token_t | tokens before t)

Source: GPT-2, Radford et al. 2019.
Reads: text records of a prepared data folder.   Writes: runs/lm.
Expect (2 CPU cores): 1 min, loss near ln V = 6.87 -> 0.63
Run: python train_lm.py [--n_layer 6 --n_embd 192]
"""

import time
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from minivlm import checkpoint, run
from minivlm.data import Batch, batches, collate, hash_seed
from minivlm.gpt import GPT, GPTConfig
from minivlm.log import Meter, Run
from minivlm.losses import IGNORE_INDEX, next_token_loss
from minivlm.optim import Optimizer, lr_scale
from minivlm.prepared import load_records
from minivlm.tokenizer import Tokenizer


# --- config ---


@dataclass
class Config:
    """Options of the run; the comments are the help texts."""

    data: str = "data/shapes/prepared"  # folder made by a prepare.py
    split: str = "text"  # which file of it to learn from; its records hold `text`
    tokenizer: str = ""  # tokenizer file; empty = the data folder's own
    out: str = "runs/lm"  # run folder
    steps: int = 240  # optimizer steps
    batch_size: int = 12  # windows of text a step
    grad_accum: int = 1  # micro-batches a step, same result with less memory
    lr: float = 2e-3  # peak rate of AdamW: embeddings, norms
    muon_lr: float = 0.02  # peak rate of Muon: matrices of the blocks; 0 = AdamW for all
    weight_decay: float = 0.05  # on matrices and embeddings
    warmup: int = 30  # steps until the peak rate
    grad_clip: float = 1.0  # largest norm of the gradient
    n_layer: int = 4  # blocks
    n_embd: int = 128  # width
    block_size: int = 256  # context in tokens, image tokens included later
    eval_every: int = 120  # steps between evaluations, each logged and saved
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


# --- evaluate ---


@torch.no_grad()
def evaluate(model: GPT, val_batches: list[Batch], device: torch.device) -> dict[str, float]:
    """Mean loss per supervised token of held-out batches, in nats."""
    model.eval()
    loss, n = 0.0, 0
    for batch in val_batches:
        batch = batch.to(device)
        at = batch.targets != IGNORE_INDEX                           # (B, T)
        loss += float(next_token_loss(model(batch.idx, at=at), batch.targets[at]) * at.sum())
        n += int(at.sum())
    model.train()
    return {"val_loss": loss / n}


def main(cfg: Config) -> dict[str, float]:
    """Train; return the last evaluation."""
    # --- run ---
    run.seed_everything(cfg.seed, cfg.threads)
    device, log = run.pick_device(cfg.device), Run(cfg, __file__)

    # --- data ---
    tokenizer = Tokenizer.load(cfg.tokenizer or f"{cfg.data}/tokenizer.tiktoken")
    ids: list[int] = []
    for record in load_records(cfg.data, cfg.split, need=("text",)):
        ids += [tokenizer.endoftext, *tokenizer.encode(record["text"])]
    n_val = max(len(ids) // 50, cfg.block_size + 1)
    train, val = ids[:-n_val], ids[-n_val:]
    if len(train) <= cfg.block_size:
        raise ValueError(
            f"{cfg.data}/{cfg.split}.jsonl has {len(ids)} tokens, "
            f"too few for block_size {cfg.block_size}"
        )

    def windows(stream: list[int], starts: list[int]) -> Batch:
        n = cfg.block_size + 1  # one more than is read: the last token is only a target
        rows = [(stream[i:i + n], [True] * n) for i in starts]
        return collate(rows, tokenizer.pad, cfg.block_size, [f"token {i}" for i in starts])

    def make_batch(step: int) -> Batch:
        generator = torch.Generator().manual_seed(hash_seed(cfg.seed, step))
        starts = torch.randint(len(train) - cfg.block_size, (cfg.batch_size,), generator=generator)
        return windows(train, starts.tolist())

    starts = list(range(0, len(val) - cfg.block_size, cfg.block_size))[:64]
    val_batches = [
        windows(val, starts[i:i + cfg.batch_size]) for i in range(0, len(starts), cfg.batch_size)
    ]

    # --- model ---
    config = GPTConfig(
        tokenizer.vocab_size, cfg.block_size, cfg.n_layer, cfg.n_embd // 32, cfg.n_embd
    )
    model = GPT(config).to(device)
    step_model = torch.compile(model) if cfg.compile else model

    # --- optimizer ---
    optimizer = Optimizer(model, cfg.lr, cfg.muon_lr, cfg.weight_decay)

    # --- resume ---
    configs = {"model": asdict(config), "tokenizer": tokenizer.identity, **run.settings(cfg)}
    start, best, meter = 0, float("inf"), Meter()
    if cfg.resume:
        start, best = checkpoint.resume(log.ckpt, "lm", configs, model, optimizer, meter)
    make_batch(start)  # a batch that cannot be made must not cost the run that `out` holds
    log.begin(start)

    # --- loop ---
    made, row = batches(make_batch, start, cfg.steps, cfg.workers), {}
    bar = tqdm(range(start, cfg.steps + 1), desc="lm", initial=start, total=cfg.steps, disable=None)
    for step in bar:
        paths = [log.ckpt] if log.terminated else []
        # step 0 is measured before any update: there the loss is ln V
        if (step % cfg.eval_every == 0 or step == cfg.steps) and not (cfg.resume and step == start):
            row = evaluate(model, val_batches, device)
            log.log({"step": step, **meter.means(("loss", "lr", "grad", "ms", "data_ms")), **row})
            paths = [log.best, log.ckpt] if row["val_loss"] < best else [log.ckpt]
            best = min(best, row["val_loss"])
        if paths:
            checkpoint.save(
                paths, stage="lm", configs=configs, model=model, tokenizer=tokenizer,
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
                logits = step_model(part.idx, at=at)                 # (M, V)
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
