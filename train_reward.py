"""Reward model: a copy of the SFT model learns which of several answers people prefer.

   score            = mean over the answer's tokens of head(hidden)
   loss of a prompt = mean over pairs, i ranked before j, of
                          - log sigmoid(score_i - score_j - margin_ij)
                      + CENTER * (mean score of its answers)^2

The loss is the mean over prompts.

Source: InstructGPT, arXiv:2203.02155, eq. 1, whose head reads the last token alone (--pool
last); true captions in the input (--facts): factually augmented RLHF of LLaVA-RLHF,
arXiv:2309.14525, section 3.2.
Reads: runs/sft, preferences.jsonl (data/preferences.py).   Writes: runs/reward.
Expect (2 CPU cores): 1.5 min, pair accuracy from .5 (people's noise allows .8)
Run: python train_reward.py [--facts]
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minivlm.conversation import longest_prompt, pack_unread, prompt_of, spoken
from minivlm.evaluation.raters import rating_of
from minivlm.heads import RewardModel
from minivlm.loading.batches import Batch, collate, hash_seed, places_that_fit, shuffled
from minivlm.loading.images import Pictures
from minivlm.loading.models import place, vlm_from
from minivlm.loading.prepared import load_meta
from minivlm.lora import LAYERS, add_lora
from minivlm.losses import ranking_loss
from minivlm.optim import lr_scale, with_slower_part
from minivlm.preferences.agreement import agreement
from minivlm.preferences.rankings import load_rankings
from minivlm.pretrained.weights import load_state
from minivlm.running import checkpoint
from minivlm.running.options import cli
from minivlm.running.processes import add_gradients, mine, total
from minivlm.running.run import Run

# weight of a prompt's squared mean score. Pairs only compare scores, so without this term
# the mean could drift. The idea is from Eisenstein et al. 2023, arXiv:2312.09244, eq. 2;
# TRL recommends 0.01
CENTER = 0.01

# --- config ---


@dataclass
class Config:
    """Options of the run; the comments are the help texts."""

    # data
    data: str = "data/book/prepared"  # data folder made by a prepare.py
    split: str = "preferences"  # file of the data folder with rankings to learn from
    val_split: str = "preferences_val"  # file with rankings to measure with
    facts: bool = False  # let the reward model read true captions of the picture
    skip_long: bool = False  # leave out records longer than the context, say how many
    out: str = "runs/reward"  # run folder to write
    # model
    init: str = "runs/sft"  # where the VLM comes from: a run of sft; or a published LLaVA
    pool: str = "mean"  # mean | last; the tokens that the head reads: an answer's all, or last
    vit_rate: float = 0.0  # >= 0; the ViT's share of the other learning rates; 0 = frozen
    lora: int = 0  # >= 0; rank of LoRA adapters; if above 0, only they and the head learn
    # optimization
    margin: float = 0.0  # >= 0; margin of a pair, in log-odds per point between its ratings
    steps: int = 400  # >= 0; optimizer steps
    batch_size: int = 16  # >= 1; prompts per step, each with all its answers
    grad_accum: int = 2  # >= 1; micro-batches of similar lengths; more of them take less memory
    lr: float = 5e-4  # >= 0; peak learning rate of AdamW: embeddings, norms, head, biases
    muon_lr: float = 0.003  # >= 0; peak learning rate of Muon: matrices; 0 = AdamW for all
    weight_decay: float = 0.05  # >= 0; on matrices and embeddings
    warmup: int = 20  # >= 0; steps until the peak learning rate
    grad_clip: float = 1.0  # >= 0; scale a larger gradient down to this norm; 0 = off
    # machine
    eval_every: int = 100  # >= 1; steps between evaluations, each logged and saved
    log_every: int = 10  # >= 1; steps between lines of training losses in metrics.csv
    seed: int = 0  # >= 0; decides the head's initial weights and the order of the data
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps; auto = a GPU if there is one
    dtype: str = "auto"  # auto | float32 | bfloat16; auto = bfloat16 on a GPU, else float32
    checkpoint_blocks: bool = False  # compute activations again: less memory, more time
    threads: int = 0  # >= 0; CPU threads; 0 = torch's choice
    workers: int = 0  # >= 0; processes that prepare batches in advance; 0 = none
    resume: bool = False  # continue the run in `out`

    def __post_init__(self):
        if self.lora and self.vit_rate:
            raise ValueError("vit_rate must be 0 with lora, which trains adapters only")


# --- evaluate ---

# rows, one for each prompt, with its picture; ranks (B, K); ratings (B, K)
Part = tuple[Batch, Tensor, Tensor]


def score(model: RewardModel, batch: Batch, ranks: Tensor) -> Tensor:
    """Compute the raw scores of B prompts with up to K answers each, (B, K).

    Picture and prompt are read once for all answers. Where an answer is missing, the rank
    is 0, and so is the score.
    """
    # (M,) for M answers in all
    raw = model.raw(batch.idx, batch.segments, batch.images)
    scores = torch.zeros(ranks.shape, device=raw.device)             # (B, K)
    return scores.masked_scatter(ranks > 0, raw)


@torch.no_grad()
def evaluate(
    model: RewardModel, val_parts: list[Part], rankings: list[dict], run: Run
) -> dict[str, float]:
    """Compute loss and agreement on held-out rankings, see `agreement`.

    This also normalizes the model: afterwards its scores of these answers have mean 0 and
    standard deviation 1.
    """
    model.eval()
    loss = 0.0
    scores: list[list[float]] = []  # of each ranking's answers
    for batch, ranks, _ in val_parts:
        with run.autocast():
            part = score(model, batch.to(run.device), ranks.to(run.device)).cpu()    # (B, K)
        loss += float(ranking_loss(part, ranks)) * len(ranks)
        for row, is_answer in zip(part, ranks > 0):
            scores.append(row[is_answer].tolist())
    model.train()
    model.normalize(torch.tensor([s for row in scores for s in row]))
    return {"val_loss": loss / len(rankings), **agreement(rankings, scores)}


def main(cfg: Config) -> dict[str, float]:
    """Train; return the last evaluation."""
    # --- run ---
    run = Run(cfg, __file__)

    # --- model ---
    before = load_state(cfg.init, ("sft",))
    tokenizer = checkpoint.tokenizer_of(before)
    model = RewardModel(vlm_from(before, take=True, half=run.half), cfg.pool)
    config = model.vlm.config
    model.vlm.vit.requires_grad_(cfg.vit_rate > 0)
    model.vlm.gpt.checkpoint_blocks = cfg.checkpoint_blocks
    if cfg.lora:
        add_lora(model.vlm, LAYERS, cfg.lora, frozen=model.vlm.vit)
    place(model, run.device, run.half)

    # --- data ---
    N, block_size = config.vit.n_tokens, config.gpt.block_size

    def needed(r: dict) -> int:
        """Count the tokens of a prompt with its longest answer and the answer's end."""
        facts = r["captions"] if cfg.facts else []
        answers = [spoken(a, tokenizer) for a in r["responses"]]
        return longest_prompt(r["question"], tokenizer, N, facts) + max(map(len, answers)) + 1

    def load(split: str) -> list[dict]:
        rankings = load_rankings(cfg.data, split)
        if cfg.facts and not all(r.get("captions") for r in rankings):
            raise ValueError(f"--facts needs captions in every record of {split}")
        lengths = [needed(r) for r in rankings]
        kept = places_that_fit(rankings, lengths, block_size, cfg.skip_long, split)
        return [rankings[i] for i in kept]

    rankings = load(cfg.split)
    val_rankings = load(cfg.val_split)
    K = max(len(r["responses"]) for r in rankings + val_rankings)
    pictures = Pictures(cfg.data, config.vit.image_size, load_meta(cfg.data)["fit"])

    def packed(r: dict, generator: torch.Generator):
        """Make a row with all answers of a ranking, and the segment of each token."""
        captions = r.get("captions", [])
        order = torch.randperm(len(captions), generator=generator).tolist()
        facts = [captions[i] for i in order] if cfg.facts else []
        prompt = prompt_of(r["question"], tokenizer, N, facts)
        answers = [spoken(a, tokenizer) + [tokenizer.end] for a in r["responses"]]
        return pack_unread(prompt, answers, tokenizer.end)

    def collect(chosen: list[dict], generator: torch.Generator) -> Part:
        rows, segments = zip(*[packed(r, generator) for r in chosen])
        ranks = torch.zeros(len(chosen), K, dtype=torch.long)
        ratings = torch.zeros(len(chosen), K)
        for b, r in enumerate(chosen):
            n = len(r["responses"])
            ranks[b, :n] = torch.tensor(r["ranking"])
            if r.get("ratings"):
                ratings[b, :n] = torch.tensor([rating_of(x) for x in r["ratings"]])
        names = [r["id"] for r in chosen]
        images = pictures.get([r["image"] for r in chosen])
        n_images = [1] * len(chosen)
        batch = collate(rows, tokenizer.pad, block_size, names, images, n_images, segments)
        return batch, ranks, ratings

    # in characters, which is good enough to put prompts of similar length into a micro-batch
    lengths = torch.tensor([sum(map(len, r["responses"])) for r in rankings])

    def make_parts(step: int) -> list[Part]:
        chosen = shuffled(step, cfg.batch_size, len(rankings), cfg.seed, lengths)
        generator = torch.Generator().manual_seed(hash_seed(cfg.seed, step, 1))
        parts = torch.tensor(chosen).tensor_split(run.n_parts)
        return [collect([rankings[i] for i in part.tolist()], generator) for part in parts]

    generator = torch.Generator().manual_seed(0)
    val_parts = []
    for i in range(0, len(val_rankings), 16):
        val_parts.append(collect(val_rankings[i:i + 16], generator))

    # --- optimizer ---
    # the ViT may lack features that scoring needs, so it can learn too
    optimizer = with_slower_part(
        model, model.vlm.vit, cfg.vit_rate, cfg.lr, cfg.muon_lr, cfg.weight_decay
    )

    # --- resume ---
    # what checkpoints contain; with --resume it is restored from the last one
    run.hold("reward", model, optimizer, tokenizer, config, fit=pictures.mode)
    run.begin(make_parts)

    # --- loop ---
    for step in run.steps():
        # step 0 is measured before any update: a fresh head prefers at random
        if run.is_due(step):
            figures = evaluate(model, val_parts, val_rankings, run)
            run.record(figures, loss=figures["val_loss"])
        if step == cfg.steps:
            break

        parts = run.next_batch()
        loss = 0.0
        for batch, ranks, ratings in mine(parts):
            batch, ranks = batch.to(run.device), ranks.to(run.device)
            gaps = ratings[:, :, None] - ratings[:, None]            # (B, K, K)
            margin = cfg.margin * gaps.clamp(min=0).to(run.device)
            with run.autocast():
                scores = score(model, batch, ranks)             # (B, K)
            # missing answers have score 0, so they do not change the sum
            mean = scores.sum(1) / (ranks > 0).sum(1)                # (B,)
            part_loss = ranking_loss(scores, ranks, margin) + CENTER * mean.square().mean()
            # each prompt weighs the same, however many pairs it has
            part_loss = part_loss * len(ranks) / cfg.batch_size
            part_loss.backward()
            loss += part_loss.detach()
        [loss] = total(loss)
        ids = [name for batch, *_ in parts for name in batch.ids]
        scale = lr_scale(step, cfg.steps, cfg.warmup)
        add_gradients(optimizer.params)
        grad = optimizer.step(scale, cfg.grad_clip)
        run.add(ids, loss=loss, grad=grad, lr=cfg.lr * scale)

    # --- finish ---
    return run.finish()


if __name__ == "__main__":
    cli(main, Config)
