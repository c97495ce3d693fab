"""Language pretraining: a GPT learns to continue text.

   loss = - mean_t log p(token_t | tokens before t)

Source: GPT-2, Radford et al. 2019.
Reads: text records of a prepared data folder.   Writes: runs/lm.
Expect (2 CPU cores): 2.6 min, loss near ln V = 7.34 -> 1.0
Run: python train_lm.py [--n_layer 6 --n_embd 192]
"""

from dataclasses import dataclass

import torch

from minivlm.evaluation.held_out import held_out_loss
from minivlm.gpt import GPT, GPTConfig
from minivlm.loading.batches import Batch, collate, hash_seed
from minivlm.loading.prepared import load_records
from minivlm.losses import IGNORE_INDEX, next_token_loss
from minivlm.optim import Optimizer, lr_scale
from minivlm.running.options import cli
from minivlm.running.processes import add_gradients, own_rows, total
from minivlm.running.run import Run
from minivlm.tokenizer import Tokenizer

# --- config ---


@dataclass
class Config:
    """Options of the run; the comments are the help texts."""

    # data
    data: str = "data/book/prepared"  # data folder made by a prepare.py
    split: str = "text"  # file of the data folder to learn from
    tokenizer: str = ""  # tokenizer file; empty = the data folder's own
    out: str = "runs/lm"  # run folder to write
    # model
    n_layer: int = 4  # >= 1; number of blocks
    n_embd: int = 128  # >= 32; width, a multiple of 32
    block_size: int = 256  # >= 2; longest text in tokens; in a VLM, image tokens count too
    rotary_base: float = 1e5  # >= 0; base of rotary positions; 0 = none, as in GPT-2
    act: str = "gelu"  # gelu | gelu_tanh | swiglu; gelu_tanh is GPT-2's and slow on a CPU
    norm: str = "layer"  # layer | rms; rms is Llama's
    # optimization
    steps: int = 1100  # >= 0; optimizer steps
    batch_size: int = 6  # >= 1; windows of text per step
    grad_accum: int = 1  # >= 1; micro-batches per step; more of them take less memory
    lr: float = 0.02  # >= 0; peak learning rate of AdamW: embeddings, norms, biases
    muon_lr: float = 0.03  # >= 0; peak learning rate of Muon: blocks' matrices; 0 = AdamW
    weight_decay: float = 0.05  # >= 0; on matrices and embeddings
    warmup: int = 30  # >= 0; steps until the peak learning rate
    grad_clip: float = 1.0  # >= 0; scale a larger gradient down to this norm; 0 = off
    # machine
    eval_every: int = 200  # >= 1; steps between evaluations, each logged and saved
    log_every: int = 10  # >= 1; steps between lines of training losses in metrics.csv
    seed: int = 0  # >= 0; decides the initial weights and the order of the data
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps; auto = a GPU if there is one
    dtype: str = "auto"  # auto | float32 | bfloat16; auto = bfloat16 on a GPU, else float32
    threads: int = 0  # >= 0; CPU threads; 0 = torch's choice
    workers: int = 0  # >= 0; processes that prepare batches in advance; 0 = none
    resume: bool = False  # continue the run in `out`

    def __post_init__(self):
        if self.n_embd % 32:
            raise ValueError(
                f"n_embd {self.n_embd} is not a multiple of 32, the width of a head"
            )


def main(cfg: Config) -> dict[str, float]:
    """Train; return the last evaluation."""
    # --- run ---
    run = Run(cfg, __file__)

    # --- data ---
    tokenizer = Tokenizer.load(cfg.tokenizer or f"{cfg.data}/tokenizer.tiktoken")
    records = load_records(cfg.data, cfg.split, need=("text",))
    if not any(record["text"].strip() for record in records):
        raise ValueError(f"{cfg.data}/{cfg.split}.jsonl holds nothing but white space")
    stream: list[int] = []
    for record in records:
        stream += [tokenizer.endoftext, *tokenizer.encode(record["text"])]
    # the last 2 % of the text are for evaluation only, but at least one window
    n_val = max(len(stream) // 50, cfg.block_size + 1)
    train, val = stream[:-n_val], stream[-n_val:]
    if len(train) <= cfg.block_size:
        raise ValueError(
            f"{cfg.data}/{cfg.split}.jsonl has {len(stream)} tokens, too few for "
            f"block_size {cfg.block_size}, which needs {2 * cfg.block_size + 2}"
        )

    def windows(ids: list[int], starts: list[int]) -> Batch:
        n = cfg.block_size + 1  # the last token of a window is only a target
        rows = [(ids[i:i + n], [True] * n) for i in starts]
        return collate(rows, tokenizer.pad, cfg.block_size, [f"token {i}" for i in starts])

    def make_batch(step: int) -> Batch:
        generator = torch.Generator().manual_seed(hash_seed(cfg.seed, step))
        n_starts = len(train) - cfg.block_size
        starts = torch.randint(n_starts, (cfg.batch_size,), generator=generator)
        return windows(train, starts.tolist())

    starts = list(range(0, len(val) - cfg.block_size, cfg.block_size))[:64]
    val_batches = []
    for i in range(0, len(starts), cfg.batch_size):
        val_batches.append(windows(val, starts[i:i + cfg.batch_size]))

    # --- model ---
    n_head = cfg.n_embd // 32
    V, T = tokenizer.vocab_size, cfg.block_size
    # a gate is a third matrix: with two thirds of the width, the MLP is as large as before
    n_inner = round(8 / 3 * cfg.n_embd / 32) * 32 if cfg.act == "swiglu" else 0
    config = GPTConfig(
        V, T, cfg.n_layer, n_head, cfg.n_embd, rotary_base=cfg.rotary_base, act=cfg.act,
        n_inner=n_inner, norm=cfg.norm,
    )
    model = GPT(config).to(run.device)

    # --- optimizer ---
    optimizer = Optimizer(model, cfg.lr, cfg.muon_lr, cfg.weight_decay)

    # --- resume ---
    # what checkpoints contain; with --resume it is restored from the last one
    run.hold("lm", model, optimizer, tokenizer, config)
    run.begin(make_batch)

    # --- loop ---
    for step in run.steps():
        # step 0 is measured before any update: the loss is near ln V
        if run.is_due(step):
            val_loss = held_out_loss(model, val_batches, run.device)
            run.record({"val_loss": val_loss}, loss=val_loss)
        if step == cfg.steps:
            break

        batch = run.next_batch().to(run.device)
        loss = 0.0
        for part in batch.take(own_rows()).split(cfg.grad_accum):
            at = part.targets != IGNORE_INDEX                        # (B, T)
            with run.autocast():
                logits = model(part.idx, at=at)                 # (M, V)
            # every token of a window is a target, except the first
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
