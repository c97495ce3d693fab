"""Reward model: a copy of the SFT model learns which of several answers people prefer.

   loss = mean over prompts, mean over their pairs (i ranked before j):
          - log sigmoid(score_i - score_j - margin)     + center * (mean score of the prompt)^2

Source: InstructGPT, arXiv:2203.02155, eq. 1; true captions in its input (--facts): factually
augmented RLHF, LLaVA-RLHF, arXiv:2309.14525, section 3.2.
Reads: runs/sft, preferences.jsonl (data/preferences.py).   Writes: runs/reward.
Expect (2 CPU cores): 1.8 min, pair accuracy .49 -> .71 (people's noise allows .8)
Run: python train_reward.py [--facts]
"""

import json
import time
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from minivlm import checkpoint, run
from minivlm.data import Batch, batches, collate, hash_seed, pack, shuffled
from minivlm.heads import RewardModel
from minivlm.images import Pictures
from minivlm.log import Meter, Run
from minivlm.lora import add_lora
from minivlm.losses import ranking_loss
from minivlm.measure import prompt_of
from minivlm.optim import Optimizer, Together, lr_scale
from minivlm.rankings import judge_scores, load_rankings, rating_of
from minivlm.tokenizer import Tokenizer
from minivlm.vlm import VLM


# --- config ---


@dataclass
class Config:
    """Options of the run; the comments are the help texts."""

    data: str = "data/shapes/prepared"  # folder made by a prepare.py
    split: str = "preferences"  # which file of it holds the rankings to learn from
    val_split: str = "preferences_val"  # which file of it holds those to measure with
    init: str = "runs/sft"  # where the VLM comes from: sft
    out: str = "runs/reward"  # run folder
    steps: int = 900  # optimizer steps
    batch_size: int = 16  # prompts a step, each with all its answers
    grad_accum: int = 1  # micro-batches a step, same result with less memory
    lr: float = 5e-4  # peak rate of AdamW: embeddings, norms, head
    muon_lr: float = 0.003  # peak rate of Muon: matrices of blocks and projector; 0 = AdamW for all
    weight_decay: float = 0.05  # on matrices and embeddings
    warmup: int = 20  # steps until the peak rate
    grad_clip: float = 1.0  # largest norm of the gradient
    margin: float = 0.0  # log-odds asked for per point that two answers' ratings differ by
    center: float = 0.01  # weight of the squared mean score of a prompt, which pairs leave free
    facts: bool = False  # show the reward model true captions of the picture, in random order
    vit_rate: float = 0.0  # the ViT's rates as a share of the others' peak rates; 0 = frozen
    lora: int = 0  # rank of LoRA adapters, which learn then beside the head; 0 = all weights
    lora_layers: str = "gpt.*,projector.*"  # names of the linear maps that get one
    eval_every: int = 300  # steps between evaluations, each logged and saved
    seed: int = 0  # weights and order of the data
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    dtype: str = "auto"  # auto (bfloat16 on a GPU, else float32), float32, bfloat16
    compile: bool = False  # torch.compile: slow to start, then faster
    threads: int = 0  # CPU threads; 0 = torch's choice
    workers: int = 0  # processes that make batches ahead; 0 = none
    resume: bool = False  # continue the run in `out`

    def __post_init__(self):
        if self.lora and self.vit_rate:
            raise ValueError("expected vit_rate 0 with lora, which trains adapters alone")


# --- evaluate ---

Part = tuple[Batch, Tensor, Tensor]  # rows with one picture a prompt; ranks (B, K); ratings (B, K)


def score(model: RewardModel, batch: Batch, ranks: Tensor) -> Tensor:
    """Raw scores of B prompts with up to K answers each, (B, K); 0 where a rank is 0.

    Picture and prompt are read once for all answers.
    """
    raw = model.raw(batch.idx, batch.lengths, batch.images, segments=batch.segments)     # (M,)
    return torch.zeros(ranks.shape, device=raw.device).masked_scatter(ranks > 0, raw)    # (B, K)


@torch.no_grad()
def evaluate(
    model: RewardModel, val_parts: list[Part], rankings: list[dict], device: torch.device
) -> dict[str, float]:
    """Loss and agreement with held-out rankings, by their gap in ratings where they have ratings.

    From here on the model's scores have mean 0 and deviation 1 on these answers.
    """
    model.eval()
    loss, scores = 0.0, []
    for batch, ranks, _ in val_parts:
        made = score(model, batch.to(device), ranks.to(device)).cpu()            # (B, K)
        loss += float(ranking_loss(made, ranks)) * len(ranks)
        scores += [row[there].tolist() for row, there in zip(made, ranks > 0)]
    model.train()
    model.normalize(torch.tensor([s for row in scores for s in row]))
    return {"val_loss": loss / len(rankings), **judge_scores(rankings, scores)}


def main(cfg: Config) -> dict[str, float]:
    """Train; return the last evaluation."""
    # --- run ---
    run.seed_everything(cfg.seed, cfg.threads)
    device, log = run.pick_device(cfg.device), Run(cfg, __file__)

    # --- model ---
    before = checkpoint.load(cfg.init, ("sft",))
    tokenizer = Tokenizer.from_text(before["tokenizer"])
    model = RewardModel(VLM.from_checkpoint(before))
    config = model.vlm.config
    if cfg.lora:
        add_lora(model.vlm, cfg.lora_layers, cfg.lora, frozen=model.vlm.vit)
    model.to(device)

    # --- data ---
    rankings, held_out = (load_rankings(cfg.data, s) for s in (cfg.split, cfg.val_split))
    K = max(len(r["responses"]) for r in rankings + held_out)
    pictures = Pictures(cfg.data, config.vit.image_size)
    if cfg.facts and not all(r.get("captions") for r in rankings + held_out):
        raise ValueError(f"--facts needs captions in every record of {cfg.split}, {cfg.val_split}")

    for r in rankings + held_out:  # too long is better known now than at its step
        room = config.gpt.block_size - len(prompt_of(
            r["question"], model.vlm, tokenizer, r["captions"] if cfg.facts else []))
        if max(len(tokenizer.encode(a)) for a in r["responses"]) >= room:
            raise ValueError(f"record {r['id']} has an answer too long for the context of "
                             f"{config.gpt.block_size} tokens; shorten it")

    def make(records: list[dict], generator: torch.Generator) -> Part:
        rows, ranks, ratings = [], torch.zeros(len(records), K).long(), torch.zeros(len(records), K)
        segments = []
        for b, r in enumerate(records):
            order = torch.randperm(len(r.get("captions", [])), generator=generator)
            facts = [r["captions"][i] for i in order] if cfg.facts else []
            prompt, n = prompt_of(r["question"], model.vlm, tokenizer, facts), len(r["responses"])
            answers = [tokenizer.encode(a.strip()) + [tokenizer.end] for a in r["responses"]]
            # one token more, which nobody reads: an answer is scored at its very last one
            answers[-1] = answers[-1] + [tokenizer.end]
            *row, of_answers = pack(prompt, answers)
            rows.append(row)
            segments.append(of_answers)
            ranks[b, :n] = torch.tensor(r["ranking"])
            if r.get("ratings"):
                ratings[b, :n] = torch.tensor([rating_of(x) for x in r["ratings"]])
        batch = collate(rows, tokenizer.pad, config.gpt.block_size, [r["id"] for r in records],
                        pictures.get([r["image"] for r in records]), [1] * len(records), segments)
        return batch, ranks, ratings

    def make_parts(step: int) -> list[Part]:
        chosen = shuffled(step, cfg.batch_size, len(rankings), cfg.seed, lengths)
        generator = torch.Generator().manual_seed(hash_seed(cfg.seed, step, 1))
        return [make([rankings[i] for i in part.tolist()], generator)
                for part in torch.tensor(chosen).tensor_split(cfg.grad_accum)]

    lengths = torch.tensor([sum(map(len, r["responses"])) for r in rankings])
    generator = torch.Generator().manual_seed(0)
    val_parts = [make(held_out[i:i + 16], generator) for i in range(0, len(held_out), 16)]

    # --- optimizer ---
    # eyes that a captioner or chatbot got by with may not tell its good answers from bad ones
    vit = model.vlm.vit.requires_grad_(False)
    optimizer = Together(Optimizer(model, cfg.lr, cfg.muon_lr, cfg.weight_decay))
    if cfg.vit_rate:
        vit.requires_grad_(True)
        rates = cfg.vit_rate * cfg.lr, cfg.vit_rate * cfg.muon_lr
        optimizer = Together(*optimizer.optimizers, Optimizer(vit, *rates, cfg.weight_decay))
    step_score = torch.compile(score) if cfg.compile else score

    # --- resume ---
    configs = {"model": asdict(config), "tokenizer": tokenizer.identity, **run.settings(cfg)}
    start, best, meter = 0, float("inf"), Meter()
    if cfg.resume:
        start, best = checkpoint.resume(log.ckpt, "reward", configs, model, optimizer, meter)
    make_parts(start)  # a batch that cannot be made must not cost the run that `out` holds
    log.begin(start)

    # --- loop ---
    made, row = batches(make_parts, start, cfg.steps, cfg.workers), {}
    bar = tqdm(
        range(start, cfg.steps + 1), desc="reward", initial=start, total=cfg.steps, disable=None
    )
    for step in bar:
        paths = [log.ckpt] if log.terminated else []
        # step 0 is measured before any update: a fresh head tosses coins
        if (step % cfg.eval_every == 0 or step == cfg.steps) and not (cfg.resume and step == start):
            row = evaluate(model, val_parts, held_out, device)
            log.log({"step": step, **meter.means(("loss", "lr", "grad", "ms", "data_ms")), **row})
            paths = [log.best, log.ckpt] if row["val_loss"] < best else [log.ckpt]
            best = min(best, row["val_loss"])
        if paths:
            checkpoint.save(
                paths, stage="reward", configs=configs, model=model, tokenizer=tokenizer,
                step=step, best=best, optimizer=optimizer, meter=meter,
            )
        if step == cfg.steps:
            break
        if log.terminated and paths:
            log.stop(step)

        began = time.time()
        parts = next(made)
        got_data = time.time()

        # each prompt weighs the same, however many pairs it has
        loss, ids = 0.0, []
        for batch, ranks, ratings in parts:
            batch, ranks, ratings = batch.to(device), ranks.to(device), ratings.to(device)
            margin = cfg.margin * (ratings[:, :, None] - ratings[:, None]).clamp(min=0)
            with run.autocast(device, cfg.dtype):
                scores = step_score(model, batch, ranks)             # (B, K)
            mean = scores.sum(1) / (ranks > 0).sum(1)                # 0 stands where no answer does
            part_loss = ranking_loss(scores, ranks, margin) + cfg.center * mean.square().mean()
            part_loss = part_loss * len(ranks) / cfg.batch_size
            part_loss.backward()
            loss, ids = loss + part_loss.item(), ids + batch.ids
        scale = lr_scale(step, cfg.steps, cfg.warmup)
        grad = optimizer.step(scale, cfg.grad_clip)
        log.check(loss, grad, step, ids)

        meter.add(loss=loss, lr=cfg.lr * scale, grad=grad, ms=1000 * (time.time() - began),
                  data_ms=1000 * (got_data - began))
        bar.set_postfix(loss=f"{loss:.3f}")

    # --- finish ---
    print(json.dumps({k: round(v, 3) for k, v in row.items()}, indent=1))
    log.finish({"pair accuracy": row["accuracy/all"]})
    return row


if __name__ == "__main__":
    run.cli(main, Config)
