"""DPO: the policy learns from pairs which answer is preferred, without a reward model.

   h = log (policy / reference)(chosen) - log (policy / reference)(rejected)
   loss = - log sigmoid(beta h)        and its family: cDPO, robust, hinge, IPO, KTO

Here an answer's log-probability is a weighted mean over its tokens. Tokens that only one of
the two answers has weigh more (RLHF-V's dense DPO). With --no-average --changed 1 it is the
sum over the tokens, as DPO was first published. With --picture_coef 1 the policy also learns
to prefer the chosen answer beside its own picture to the same answer beside another picture.

Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; dense DPO: RLHF-V, arXiv:2312.00849,
section 3.2; DPO with pictures: Silkie, arXiv:2312.10665, section 4; pairs of pictures: mDPO,
arXiv:2406.11839, where the other picture is a small part of the same.
Reads: runs/sft, preferences_pairs.jsonl (data/preferences.py).   Writes: runs/dpo.
Expect (2 CPU cores): 2.5 min, loss from .69; the true score rises, fewer objects are
invented
Run: python train_dpo.py [--kind ipo]
"""

import copy
import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from minivlm.loading.batches import places_that_fit, shuffled
from minivlm.loading.models import place, vlm_from
from minivlm.lora import LAYERS, adapters_off, add_lora
from minivlm.losses import IGNORE_INDEX, dpo_loss, sequence_logprobs
from minivlm.optim import Optimizer, lr_scale
from minivlm.preferences.pairs import (
    PairBatch, PairMaker, ReferenceCache, at_most, fingerprint_of, load_pairs,
    pair_logprobs,
)
from minivlm.preferences.prompts import Prompts
from minivlm.rollout import describe, roll_out
from minivlm.pretrained.weights import load_state
from minivlm.running import checkpoint
from minivlm.running.options import cli
from minivlm.running.processes import add_gradients, first_then_others, is_first, mine, total
from minivlm.running.run import Run
from minivlm.tokenizer import CHATBOTS
from minivlm.vlm import VLM

# --- config ---


@dataclass
class Config:
    """Options of the run; the comments are the help texts."""

    # data
    data: str = "data/book/prepared"  # data folder made by a prepare.py
    split: str = "preferences_pairs"  # file of the data folder with pairs to learn from
    val_split: str = "preferences_val_pairs"  # file with pairs to measure with
    per_question: int = 1  # >= 0; how many pairs of a question to use, at random; 0 = all
    prompts: str = "prompts_val"  # file with questions to sample answers to; empty = none
    records: str = "train"  # file with the records of those questions' pictures
    skip_long: bool = False  # leave out records longer than the context, say how many
    out: str = "runs/dpo"  # run folder to write
    # model
    init: str = "runs/sft"  # policy and reference: a chatbot's run, or a published LLaVA
    ref_logps: str = ""  # file to keep the reference's log-probabilities; empty = in `out`
    freeze_vit: bool = True  # do not train the ViT
    lora: int = 0  # >= 0; rank of LoRA adapters; if above 0, nothing else learns
    # algorithm
    kind: str = "sigmoid"  # sigmoid | robust | hinge | ipo | kto; sigmoid is DPO's
    beta: float = 5.0  # > 0; larger keeps the policy closer to the reference (Silkie: .1)
    label_smoothing: float = 0.0  # share of wrong labels, below .5; for sigmoid and robust
    average: bool = True  # take the mean over an answer's tokens (RLHF-V), not the sum
    changed: float = 5.0  # >= 0.01; weight of tokens that only one answer has (RLHF-V: 5)
    sft_coef: float = 0.0  # >= 0; weight of the next-token loss of chosen answers (RPO)
    picture_coef: float = 0.0  # >= 0; weight of DPO's loss between two pictures (mDPO: 1)
    # optimization
    steps: int = 200  # >= 0; optimizer steps
    batch_size: int = 64  # >= 1; pairs per step
    grad_accum: int = 2  # >= 1; micro-batches of similar lengths; more of them take less memory
    lr: float = 1e-4  # >= 0; peak learning rate of AdamW
    muon_lr: float = 0.0  # >= 0; peak learning rate of Muon: matrices; 0 = AdamW for all
    weight_decay: float = 0.0  # >= 0; on matrices and embeddings
    warmup: int = 10  # >= 0; steps until the peak learning rate
    grad_clip: float = 1.0  # >= 0; scale a larger gradient down to this norm; 0 = off
    # machine
    n_val_pairs: int = 640  # >= 0; pairs to measure with, drawn at random; 0 = all
    n_val: int = 300  # >= 1; questions to sample answers to
    max_new_tokens: int = 96  # >= 1; longest sampled answer in tokens
    eval_every: int = 50  # >= 1; steps between evaluations, each logged and saved
    log_every: int = 5  # >= 1; steps between lines of training losses in metrics.csv
    seed: int = 0  # >= 0; decides the order of the data and the draws
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps; auto = a GPU if there is one
    dtype: str = "auto"  # auto | float32 | bfloat16; auto = bfloat16 on a GPU, else float32
    checkpoint_blocks: bool = False  # compute activations again: less memory, more time
    threads: int = 0  # >= 0; CPU threads; 0 = torch's choice
    workers: int = 0  # >= 0; processes that prepare batches in advance; 0 = none
    resume: bool = False  # continue the run in `out`

    def __post_init__(self):
        z = torch.zeros(1)
        # the loss raises a ValueError if beta or label_smoothing does not fit
        dpo_loss(z, z, z, z, self.beta, self.kind, self.label_smoothing)


# --- evaluate ---

Part = tuple[PairBatch, Tensor]  # b pairs, and their places (b,) in the list of all pairs


def score_pairs(
    model: VLM, ref: VLM, batch: PairBatch, ref_logp: Tensor, cfg: Config
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the mean loss of B pairs, (), and figures for the log, means over the pairs.

    Args:
        ref: the reference, or the policy with adapters; read only beside other pictures.
        ref_logp: (B, 2), the reference's log-probabilities of chosen and rejected answers.
    """
    # (B,), (B,), (B, T)
    chosen, rejected, logp = pair_logprobs(model, batch, cfg.average)
    ref_chosen, ref_rejected = ref_logp.unbind(1)
    losses = dpo_loss(
        chosen, rejected, ref_chosen, ref_rejected, cfg.beta, cfg.kind, cfg.label_smoothing
    )
    loss = losses.mean()
    if cfg.sft_coef:
        is_answer = batch.rows.targets != IGNORE_INDEX               # (B, T)
        is_chosen = is_answer & (batch.rows.segments == 1)           # (B, T)
        loss = loss - cfg.sft_coef * sequence_logprobs(logp, is_chosen, average=True).mean()
    if cfg.picture_coef and batch.rows.images is not None:
        # the same answers, each row beside the picture of the row before
        rows = replace(batch.rows, images=batch.rows.images.roll(1, 0))
        other = replace(batch, rows=rows)
        elsewhere, _, _ = pair_logprobs(model, other, cfg.average)   # (B,)
        with torch.no_grad(), adapters_off(ref):
            ref_elsewhere, _, _ = pair_logprobs(ref, other, cfg.average)
        picture_losses = dpo_loss(
            chosen, elsewhere, ref_chosen, ref_elsewhere, cfg.beta, cfg.kind,
            cfg.label_smoothing,
        )
        loss = loss + cfg.picture_coef * picture_losses.mean()
    # the policy's implicit rewards, up to a term that depends on the prompt alone
    chosen_reward = cfg.beta * (chosen - ref_chosen)
    rejected_reward = cfg.beta * (rejected - ref_rejected)
    is_right = (chosen_reward > rejected_reward) + (chosen_reward == rejected_reward) / 2
    figures = {
        "loss": loss,
        "accuracy": is_right.mean(),
        "margin": (chosen_reward - rejected_reward).mean(),
        "chosen_reward": chosen_reward.mean(),
        "rejected_reward": rejected_reward.mean(),
        "chosen_logp": chosen.mean(),
        "rejected_logp": rejected.mean(),
    }
    return loss, {name: value.detach() for name, value in figures.items()}


@torch.no_grad()
def evaluate(
    model: VLM, ref: VLM, val_parts: list[Part], ref_logp: Tensor, cfg: Config, run: Run
) -> dict[str, float]:
    """Compute the figures of all n held-out pairs, means over the pairs.

    Args:
        ref_logp: (n, 2), the reference's log-probabilities of chosen and rejected answers.
    """
    sums: dict[str, Tensor] = {}
    for batch, places in val_parts:
        with run.autocast():
            _, figures = score_pairs(model, ref, batch.to(run.device), ref_logp[places], cfg)
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + value * len(places) / len(ref_logp)
    return {f"val_{name}": value.item() for name, value in sums.items()}


def main(cfg: Config) -> dict[str, float]:
    """Train; return the last evaluation."""
    # --- run ---
    run = Run(cfg, __file__)

    # --- model ---
    before = load_state(cfg.init, CHATBOTS)
    tokenizer = checkpoint.tokenizer_of(before)
    weights = checkpoint.fingerprint(before)
    model = vlm_from(before, take=True, half=run.half)
    model.vit.requires_grad_(not cfg.freeze_vit)
    model.gpt.checkpoint_blocks = cfg.checkpoint_blocks
    if cfg.lora:  # the reference is the same model with its adapters off
        add_lora(model, LAYERS, cfg.lora, frozen=model.vit if cfg.freeze_vit else None)
        ref = model
    else:
        ref = copy.deepcopy(model).requires_grad_(False)
    # evaluation mode: with dropout, an answer's log-probability would be random
    for part in (model, ref):
        place(part.eval(), run.device, run.half)

    # --- data ---
    maker = PairMaker(cfg.data, model, tokenizer, cfg.changed)

    def load(split: str) -> tuple[list[dict], list[int]]:
        """Read the pairs that fit the context, and the length of each one's row."""
        pairs = at_most(cfg.per_question, load_pairs(cfg.data, split), cfg.seed)
        rows, needed = zip(*map(maker.lengths, pairs))
        kept = places_that_fit(pairs, needed, maker.block_size, cfg.skip_long, split)
        return [pairs[i] for i in kept], [rows[i] for i in kept]

    pairs, lengths = load(cfg.split)
    val_pairs, val_lengths = load(cfg.val_split)
    n_val_pairs = cfg.n_val_pairs or len(val_pairs)
    val_pairs = val_pairs[:n_val_pairs]
    lengths = torch.tensor(lengths + val_lengths[:n_val_pairs])
    val_parts = []
    for places in torch.arange(len(val_pairs)).split(64):
        val_parts.append((maker.batch([val_pairs[i] for i in places]), places))

    def make_parts(step: int) -> list[Part]:
        chosen = shuffled(step, cfg.batch_size, len(pairs), cfg.seed, lengths[: len(pairs)])
        parts = torch.tensor(chosen).tensor_split(run.n_parts)
        return [(maker.batch([pairs[i] for i in part.tolist()]), part) for part in parts]

    prompts, questions = None, []
    if cfg.prompts:
        prompts = Prompts(cfg.data, cfg.records, model, tokenizer, facts=False)
        questions = prompts.load(cfg.prompts, cfg.max_new_tokens, cfg.skip_long)
        n_val = min(cfg.n_val, len(questions))
        questions = random.Random(cfg.seed).sample(questions, n_val)

    def sample_answers() -> dict[str, float]:
        """Answer the held-out questions, save a sheet of samples, return figures."""
        batch = prompts.batch(questions, cfg.seed)
        with run.autocast():
            rollout = roll_out(
                model, ref, None, None, batch, tokenizer, cfg.max_new_tokens, temperature=1.0
            )
        texts = [tokenizer.decode(ids).strip() for ids in rollout.answers]
        prompts.sheet(questions, texts, None).save(run.folder / f"samples_{run.step}.png")
        true_scores = prompts.true_scores(questions, texts)
        return {f"val_{name}": x for name, x in describe(rollout, true_scores).items()}

    # --- optimizer ---
    optimizer = Optimizer(model, cfg.lr, cfg.muon_lr, cfg.weight_decay)

    # --- resume ---
    # what checkpoints contain; with --resume it is restored from the last one
    run.hold("dpo", model, optimizer, tokenizer, model.config, init=weights,
             fit=maker.pictures.mode)
    made_of = {"weights": weights, "tokenizer": tokenizer.identity,
               "pairs": fingerprint_of(pairs + val_pairs), "average": cfg.average,
               "changed": cfg.changed, "bfloat16": run.half}
    cache = ReferenceCache(Path(cfg.ref_logps or run.folder / "ref_logps.pt"), made_of,
                           overwrite=not cfg.ref_logps and not cfg.resume)
    run.begin(make_parts)
    with run.autocast(), first_then_others():
        if not is_first():  # the first process has written it
            cache = ReferenceCache(cache.path, made_of, overwrite=False)
        ref_logp = cache.fill(
            ref, maker, pairs + val_pairs, lengths, cfg.average, run.device
        ).to(run.device)                                             # (n, 2)
    ref_logp, val_ref_logp = ref_logp.split([len(pairs), len(val_pairs)])

    # --- loop ---
    for step in run.steps():
        # step 0 is measured before any update: policy equals reference, so h = 0
        if run.is_due(step):
            figures = evaluate(model, ref, val_parts, val_ref_logp, cfg, run)
            if questions:
                figures |= sample_answers()
            # a lower loss does not mean better answers, so the latest model counts as best
            run.record(figures, loss=figures["val_loss"], last_is_best=True)
        if step == cfg.steps:
            break

        parts = run.next_batch()
        sums: dict[str, Tensor] = {}
        for batch, places in mine(parts):
            with run.autocast():
                loss, figures = score_pairs(
                    model, ref, batch.to(run.device), ref_logp[places], cfg
                )
            share = len(places) / cfg.batch_size  # each pair weighs the same
            (loss * share).backward()
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value * share
        sums_of_all = dict(zip(sums, total(*sums.values())))
        ids = [name for batch, _ in parts for name in batch.rows.ids]
        scale = lr_scale(step, cfg.steps, cfg.warmup)
        add_gradients(optimizer.params)
        grad = optimizer.step(scale, cfg.grad_clip)
        run.add(ids, **sums_of_all, grad=grad, lr=cfg.lr * scale)

    # --- finish ---
    return run.finish()


if __name__ == "__main__":
    cli(main, Config)
