"""DPO: the policy learns from pairs which answer is preferred; no reward model, no rollouts.

   h = log (policy / reference)(chosen) - log (policy / reference)(rejected)
   loss = - log sigmoid(beta h)        and its family: cDPO, robust, hinge, IPO

Log-probabilities of answers are means over tokens, those that differ weighing more: RLHF-V's dense
DPO. --no-average --changed 1 takes sums, as first published.

Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; dense: RLHF-V, arXiv:2312.00849, section 3.2;
with pictures: Silkie, arXiv:2312.10665, section 4.
Reads: runs/sft, preferences_pairs.jsonl (data/preferences.py).   Writes: runs/dpo, samples_*.png.
Expect (2 CPU cores): 1.3 min, loss .69 -> .67, true score 4.72 -> 4.78, half the inventions left
Run: python train_dpo.py [--kind ipo]
"""

import copy
import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from data.raters import true_ratings
from minivlm import checkpoint, run
from minivlm.data import batches, shuffled
from minivlm.log import Meter, Run
from minivlm.lora import add_lora
from minivlm.losses import IGNORE_INDEX, dpo_loss, sequence_logprobs
from minivlm.optim import Optimizer, lr_scale
from minivlm.pairs import PairBatch, PairMaker, ReferenceCache, at_most, fingerprint_of
from minivlm.pairs import load_pairs, pair_logprobs
from minivlm.prompts import PromptBatch, Prompts
from minivlm.rollout import Rollout, describe, roll_out
from minivlm.tokenizer import Tokenizer
from minivlm.vlm import VLM


# --- config ---


@dataclass
class Config:
    """Options of the run; the comments are the help texts."""

    data: str = "data/shapes/prepared"  # folder made by a prepare.py
    split: str = "preferences_pairs"  # which file of it holds the pairs to learn from
    val_split: str = "preferences_val_pairs"  # which file of it holds those to measure with
    prompts: str = "prompts_val"  # which file of it holds questions to sample answers to; or empty
    records: str = "train"  # which file of it tells what is true of their pictures
    init: str = "runs/sft"  # where policy and reference come from: sft, or dpo, ppo to go on
    ref_logps: str = ""  # file of the reference's log-probabilities; empty = one in the run folder
    out: str = "runs/dpo"  # run folder
    per_question: int = 1  # pairs of each question at most, at random; 0 = all
    n_val_pairs: int = 640  # pairs to measure with, at random; 0 = all
    steps: int = 200  # optimizer steps
    batch_size: int = 64  # pairs a step
    grad_accum: int = 1  # micro-batches a step, same result with less memory
    lr: float = 1e-4  # peak rate of AdamW: all of it, if Muon has nothing
    muon_lr: float = 0.0  # peak rate of Muon: matrices of blocks and projector; 0 = AdamW for all
    weight_decay: float = 0.0  # on matrices and embeddings
    warmup: int = 10  # steps until the peak rate
    grad_clip: float = 1.0  # largest norm of the gradient
    kind: str = "sigmoid"  # sigmoid (DPO), robust, hinge or ipo
    beta: float = 5.0  # what a nat a token off the reference is worth (--no-average, Silkie: .1)
    label_smoothing: float = 0.0  # share of wrong labels, of sigmoid (cDPO) and robust
    average: bool = True  # an answer's mean over its tokens (RLHF-V, TRL's ipo), else its sum
    changed: float = 5.0  # weight of tokens that only one of both answers has (RLHF-V: 5)
    sft_coef: float = 0.0  # weight of the next-token loss of chosen answers (RPO)
    freeze_vit: bool = True  # keep the ViT as it is
    lora: int = 0  # rank of LoRA adapters, all that learns then; 0 = the weights themselves
    lora_layers: str = "gpt.*,projector.*"  # names of the linear maps that get one
    max_new_tokens: int = 96  # longest answer
    n_val: int = 300  # held-out questions to measure with
    eval_every: int = 50  # steps between evaluations, each logged and saved
    seed: int = 0  # weights and order of the data
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    dtype: str = "auto"  # auto (bfloat16 on a GPU, else float32), float32, bfloat16
    compile: bool = False  # torch.compile: slow to start, then faster
    threads: int = 0  # CPU threads; 0 = torch's choice
    workers: int = 0  # processes that make batches ahead; 0 = none
    resume: bool = False  # continue the run in `out`

    def __post_init__(self):
        z = torch.zeros(1)
        dpo_loss(z, z, z, z, self.beta, self.kind, self.label_smoothing)  # raises what it must


# --- evaluate ---

LOGGED = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_logp",
          "rejected_logp")


def read_pairs(
    model: VLM, batch: PairBatch, ref_logp: Tensor, cfg: Config
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss () of B pairs, and what is logged of them, means () over pairs. ref_logp: (B, 2)."""
    chosen, rejected, logp = pair_logprobs(model, batch, cfg.average)            # (B,) (B,) (B, T)
    ref_chosen, ref_rejected = ref_logp.unbind(1)
    loss = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, cfg.beta, cfg.kind,
                    cfg.label_smoothing).mean()
    if cfg.sft_coef:
        said = (batch.rows.targets != IGNORE_INDEX) & (batch.rows.segments == 1)
        mean_logp = sequence_logprobs(logp, said, average=True)                  # (B,)
        loss = loss - cfg.sft_coef * mean_logp.mean()
    # the rewards that the policy implies, up to what depends on the prompt alone
    good, bad = cfg.beta * (chosen - ref_chosen), cfg.beta * (rejected - ref_rejected)
    right = (good > bad) + (good == bad) / 2
    figures = (loss, right, good - bad, good, bad, chosen, rejected)
    return loss, {name: x.detach().mean() for name, x in zip(LOGGED, figures)}


@torch.no_grad()
def evaluate(
    model: VLM, val_parts: list[tuple[PairBatch, Tensor]], ref_logp: Tensor, cfg: Config,
    device: torch.device,
) -> dict[str, float]:
    """What is logged of held-out pairs, means over them; ref_logp: (n, 2)."""
    sums = dict.fromkeys(LOGGED, 0.0)
    for batch, place in val_parts:
        with run.autocast(device, cfg.dtype):
            _, figures = read_pairs(model, batch.to(device), ref_logp[place], cfg)
        for name, x in figures.items():
            sums[name] += float(x) * len(place) / len(ref_logp)
    return {f"val_{name}": x for name, x in sums.items()}


def main(cfg: Config) -> dict[str, float]:
    """Train; return the last evaluation."""
    # --- run ---
    run.seed_everything(cfg.seed, cfg.threads)
    device, log = run.pick_device(cfg.device), Run(cfg, __file__)

    # --- model ---
    before = checkpoint.load(cfg.init, ("sft", "dpo", "ppo"))
    tokenizer, model = Tokenizer.from_text(before["tokenizer"]), VLM.from_checkpoint(before)
    config = model.config = replace(model.config, prefix_lm=False)  # answers follow causally
    model.vit.requires_grad_(not cfg.freeze_vit)
    if cfg.lora:  # then the reference is the very same weights, with the adapters off
        add_lora(model, cfg.lora_layers, cfg.lora, frozen=model.vit if cfg.freeze_vit else None)
    ref = model if cfg.lora else copy.deepcopy(model).requires_grad_(False)
    # without dropout, which would make an answer's log-probability a matter of luck
    model, ref = model.to(device).eval(), ref.to(device).eval()
    step_model = torch.compile(model) if cfg.compile else model

    # --- data ---
    pairs, held_out = (at_most(cfg.per_question, load_pairs(cfg.data, split), cfg.seed)
                       for split in (cfg.split, cfg.val_split))
    held_out = held_out[: cfg.n_val_pairs or None]
    maker = PairMaker(cfg.data, model, tokenizer, cfg.changed)
    lengths = torch.tensor([maker.length(r) for r in pairs + held_out])
    places = torch.arange(len(held_out)).split(64)
    val_parts = [(maker.batch([held_out[i] for i in place]), place) for place in places]
    prompts = Prompts(cfg.data, cfg.records, model, tokenizer, facts=False) if cfg.prompts else None
    questions = prompts.load(cfg.prompts, cfg.max_new_tokens) if prompts else []
    questions = random.Random(cfg.seed).sample(questions, min(cfg.n_val, len(questions)))
    val_batch = prompts.batch(questions, cfg.seed) if questions else None

    def make_parts(step: int) -> list[tuple[PairBatch, Tensor]]:
        order = torch.tensor(
            shuffled(step, cfg.batch_size, len(pairs), cfg.seed, lengths[: len(pairs)]))
        return [(maker.batch([pairs[i] for i in part.tolist()]), part)
                for part in order.tensor_split(cfg.grad_accum)]

    def answer(batch: PromptBatch) -> tuple[Rollout, list[str], list[float]]:
        with run.autocast(device, cfg.dtype):
            rollout = roll_out(model, ref, None, None, batch, tokenizer, cfg.max_new_tokens, 1.0)
        said = [tokenizer.decode(ids).strip() for ids in rollout.answers]
        return rollout, said, prompts.true_scores(batch.questions, said, true_ratings)

    # --- optimizer ---
    optimizer = Optimizer(model, cfg.lr, cfg.muon_lr, cfg.weight_decay)

    # --- resume ---
    configs = {"model": asdict(config), "tokenizer": tokenizer.identity, **run.settings(cfg),
               "init": checkpoint.fingerprint(before)}
    start, best, meter = 0, float("inf"), Meter()
    if cfg.resume:
        start, best = checkpoint.resume(log.ckpt, "dpo", configs, model, optimizer, meter)
    made_of = {"weights": configs["init"], "tokenizer": tokenizer.identity,
               "pairs": fingerprint_of(pairs + held_out), "average": cfg.average,
               "changed": cfg.changed, "bfloat16": run.is_bfloat16(device, cfg.dtype)}
    cache = ReferenceCache(Path(cfg.ref_logps or log.folder / "ref_logps.pt"), made_of,
                           overwrite=not cfg.ref_logps and not cfg.resume)
    make_parts(start)  # a batch that cannot be made must not cost the run that `out` holds
    log.begin(start)
    with run.autocast(device, cfg.dtype):
        ref_logp = cache.fill(ref, maker, pairs + held_out, lengths, cfg.average, device)
    ref_logp, val_ref_logp = ref_logp.to(device).split([len(pairs), len(held_out)])

    # --- loop ---
    made, row = batches(make_parts, start, cfg.steps, cfg.workers), {}
    bar = tqdm(
        range(start, cfg.steps + 1), desc="dpo", initial=start, total=cfg.steps, disable=None
    )
    for step in bar:
        paths = [log.ckpt] if log.terminated else []
        # step 0 is measured before any update: policy and reference are one, each pair costs ln 2
        if (step % cfg.eval_every == 0 or step == cfg.steps) and not (cfg.resume and step == start):
            row = evaluate(model, val_parts, val_ref_logp, cfg, device)
            if val_batch:
                rollout, said, true = answer(val_batch)
                row |= {f"val_{k}": v for k, v in describe(rollout, true).items()}
                prompts.sheet(questions, said, rollout.score).save(
                    log.folder / f"samples_{step}.png")
            log.log({"step": step, **meter.means((*LOGGED, "lr", "grad", "ms", "data_ms")), **row})
            # the last one is kept as the best: a lower loss does not mean better answers
            paths, best = [log.best, log.ckpt], row["val_loss"]
        if paths:
            checkpoint.save(
                paths, stage="dpo", configs=configs, model=model, tokenizer=tokenizer,
                step=step, best=best, optimizer=optimizer, meter=meter,
            )
        if step == cfg.steps:
            break
        if log.terminated and paths:
            log.stop(step)

        began = time.time()
        parts = next(made)
        got_data = time.time()

        # each pair weighs the same
        sums, ids = dict.fromkeys(LOGGED, 0.0), []
        for batch, place in parts:
            with run.autocast(device, cfg.dtype):
                loss, figures = read_pairs(step_model, batch.to(device), ref_logp[place], cfg)
            share = len(place) / cfg.batch_size
            (loss * share).backward()
            sums = {name: sums[name] + float(x) * share for name, x in figures.items()}
            ids += batch.rows.ids
        scale = lr_scale(step, cfg.steps, cfg.warmup)
        grad = optimizer.step(scale, cfg.grad_clip)
        log.check(sums["loss"], grad, step, ids)

        meter.add(**sums, lr=cfg.lr * scale, grad=grad, ms=1000 * (time.time() - began),
                  data_ms=1000 * (got_data - began))
        bar.set_postfix(loss=f"{sums['loss']:.3f}")

    # --- finish ---
    log.finish(row)
    return row


if __name__ == "__main__":
    run.cli(main, Config)
