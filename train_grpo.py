"""GRPO, Dr. GRPO, RLOO: k answers to a prompt are compared with each other; no value model.

   adv = (score - mean of the k) / std of the k        of a whole answer
   loss = - mean over tokens, then answers, of
            min(ratio_t adv, clip(ratio_t, 1 - clip_eps, 1 + clip_high) adv) - kl_coef KL_t

Dr. GRPO does not divide, and RLOO compares an answer with the other k - 1 alone: see
rl.group_advantages and losses.group_policy_loss. All else is as in train_ppo.py. An answer's
score comes from a program that knows what is right (--reward checked), or from a reward model.

Source: GRPO: DeepSeekMath, arXiv:2402.03300, section 4.1; Dr. GRPO: arXiv:2503.20783; RLOO:
Ahmadian et al. 2024, arXiv:2402.14740; checked answers about pictures: R1-V, 2025.
Reads: runs/sft, prompts.jsonl.   Writes: runs/grpo, samples_*.png in it.
Expect (2 CPU cores): 4 min; of 100 answers three more are right; fewer things are invented
Run: python train_grpo.py [--advantage rloo] [--reward runs/reward]
"""

import copy
import random
import time
from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minivlm.conversation import Row
from minivlm.evaluation.correctness import UNSET, checked, says_what_is_right
from minivlm.loading.batches import hash_seed, switch_out
from minivlm.loading.models import place, reward_model_from, vlm_from
from minivlm.lora import LAYERS, add_lora
from minivlm.losses import group_policy_loss, kl_estimate, masked_mean
from minivlm.optim import Optimizer, lr_scale
from minivlm.preferences.prompts import Prompts
from minivlm.pretrained.weights import load_state
from minivlm.rl import group_advantages, minibatches
from minivlm.rollout import (
    PromptBatch, Rollout, RolloutPart, by_length, describe, roll_out, share_vit,
)
from minivlm.running import checkpoint
from minivlm.running.options import cli
from minivlm.running.processes import add_gradients, largest, rank, size, total
from minivlm.running.run import Run
from minivlm.tokenizer import CHATBOTS
from minivlm.vlm import VLM

# --- config ---


@dataclass
class Config:
    """Options of the run; the comments are the help texts."""

    # data
    data: str = "data/book/prepared"  # data folder made by a prepare.py
    split: str = "prompts"  # file of the data folder with questions to learn from
    val_split: str = "prompts_val"  # file with questions to measure with
    records: str = "train"  # file with the records of those questions' pictures
    skip_long: bool = False  # leave out records longer than the context, say how many
    alpha: float = 0.0  # 0 .. 1; a kind of n questions is asked n ** alpha times as often
    noise: float = 0.05  # 0 .. 1; share of the prompts' tokens replaced at random
    out: str = "runs/grpo"  # run folder to write
    # model
    init: str = "runs/sft"  # policy and reference: a chatbot's run, or a published LLaVA
    lora: int = 0  # >= 0; rank of LoRA adapters; if above 0, nothing else learns
    # rollout
    batch_size: int = 512  # >= 2; answers per rollout
    n_copies: int = 2  # >= 2; answers to each prompt, k; batch_size is a multiple of it
    redraw: int = 0  # >= 0; how often other prompts are drawn in place of dead ones (DAPO)
    temperature: float = 1.0  # > 0; for drawing answers and for all log-probabilities
    max_new_tokens: int = 96  # >= 1; longest answer in tokens
    # rewards
    reward: str = "checked"  # checked: by a program; or run folder of a reward model
    right: float = 1.0  # >= 0; checked reward of a right answer
    form: float = 0.2  # >= 0; checked reward of an answer of the form asked for
    refusal: float = 0.2  # >= 0; checked reward if it refuses exactly where it should
    unsure: float = 0.0  # >= 0; checked reward of a "not sure" that is not the right answer
    end_penalty: float = 1.0  # >= 0; subtracted from the score of an answer without an end
    advantage: str = "grpo"  # grpo | dr_grpo | rloo; dr_grpo divides by no deviation or length
    kl_coef: float = 0.1  # >= 0; cost of a nat of KL to the reference (DeepSeekMath: .04)
    kl: str = "loss"  # loss | reward; a token's own cost (k3), or part of its answer's score
    # optimization
    steps: int = 120  # >= 0; rollouts, each followed by its updates
    epochs: int = 1  # >= 1; passes over a rollout
    minibatches: int = 1  # >= 1; parts of a rollout, with an optimizer step each
    grad_accum: int = 4  # >= 1; micro-batches per minibatch, each of similar lengths
    clip_eps: float = 0.2  # > 0; how far a ratio may fall below 1
    clip_high: float = 0.28  # > 0; how far a ratio may rise above 1 (DAPO: .28)
    lr: float = 2e-4  # >= 0; peak learning rate of AdamW
    muon_lr: float = 0.0  # >= 0; peak learning rate of Muon; 0 = AdamW for all
    weight_decay: float = 0.0  # >= 0; on matrices and embeddings
    warmup: int = 5  # >= 0; rollouts until the peak learning rate
    grad_clip: float = 1.0  # >= 0; scale a larger gradient down to this norm; 0 = off
    # machine
    n_val: int = 300  # >= 1; held-out questions to measure with
    eval_every: int = 50  # >= 1; rollouts between evaluations, each logged and saved
    log_every: int = 1  # >= 1; rollouts between rows of training figures in metrics.csv
    seed: int = 0  # >= 0; decides which questions are asked and which answers are drawn
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps; auto = a GPU if there is one
    dtype: str = "auto"  # auto | float32 | bfloat16; auto = bfloat16 on a GPU, else float32
    checkpoint_blocks: bool = False  # compute activations again: less memory, more time
    threads: int = 0  # >= 0; CPU threads; 0 = torch's choice
    workers: int = 0  # >= 0; processes that load pictures ahead; 0 = none
    resume: bool = False  # continue the run in `out`

    def __post_init__(self):
        if self.n_copies > 1 and self.batch_size % self.n_copies:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of n_copies {self.n_copies}"
            )


# --- update ---


@dataclass
class Compared:
    """A rollout whose answers were compared with each other.

    advs: (B,) of the answers.
    live: (n,) numbers of the prompts whose answers teach something; the other groups are dead.
    """

    rollout: Rollout
    advs: Tensor
    live: Tensor


def update(
    policy: VLM, optimizer: Optimizer, drawn: list[Compared], scale: float, seed: int,
    cfg: Config, run: Run,
) -> dict[str, float]:
    """Take clipped steps on the answers of one or several rollouts by the same policy.

    Args:
        scale: share of the peak learning rates.
        seed: decides the order of the prompts.

    Returns:
        means over the minibatches; first_ratio_off is of the first minibatch, grad of the
        last step. docs/ppo.md explains each figure.
    """
    figures: list[dict[str, float]] = []  # of each minibatch
    grad = 0.0
    drawn = [each for each in drawn if len(each.live)]
    if not drawn:
        names = ("loss", "new_kl", "clip_fraction", "ratio_off", "first_ratio_off", "grad")
        return dict.fromkeys(names, 0.0)
    n = min(cfg.minibatches, *(len(each.live) for each in drawn))
    orders = [minibatches(len(each.live), n, cfg.epochs, seed) for each in drawn]
    for chosen in zip(*orders):  # of each rollout, the prompts of a minibatch
        minibatch = [(each, each.live[order]) for each, order in zip(drawn, chosen)]
        answers = [(each.rollout, each.rollout.rows_of(groups)) for each, groups in minibatch]
        n_answers = sum(len(rows) for _, rows in answers)
        n_tokens = sum(rollout.mask[rows].sum() for rollout, rows in answers)
        names = [name for rollout, rows in answers for name in rollout.names(rows)]
        sums = dict.fromkeys(("loss", "new_kl", "clip_fraction"), 0.0)
        ratios_off: list[Tensor] = []
        parts: list[RolloutPart] = []
        for each, groups in minibatch:
            own = groups[groups % size() == rank()]  # this process's prompts
            for part_groups in by_length(own, each.rollout.packed_lengths, cfg.grad_accum):
                parts.append(each.rollout.part(part_groups, each.advs))
        for part in parts:
            with run.autocast():
                logp = part.logprobs(policy, cfg.temperature)        # (b, T)
            cost = None
            if cfg.kl == "loss":
                cost = cfg.kl_coef * kl_estimate(logp, part.ref_logp, "k3")
            loss, clip_fraction = group_policy_loss(
                logp, part.logp, part.advs, part.mask, cfg.advantage, cfg.clip_eps,
                cfg.clip_high, cfg.max_new_tokens, cost,
            )
            share = len(part.advs) / n_answers  # every answer weighs the same
            (loss * share).backward()

            logp = logp.detach()
            new_kl = masked_mean(kl_estimate(part.logp, logp, "k3"), part.mask)
            sums["loss"] += loss.detach() * share
            share = part.mask.sum() / n_tokens  # and in these figures every token
            sums["new_kl"] += new_kl * share
            sums["clip_fraction"] += clip_fraction * share
            ratios_off.append(((logp - part.logp).exp() - 1).abs().max())
        sums = dict(zip(sums, total(*sums.values())))
        off = largest(max(map(float, ratios_off), default=0.0))
        figures.append(sums | {"ratio_off": off})
        add_gradients(optimizer.params)
        grad = optimizer.step(scale, cfg.grad_clip)
        run.check(sums["loss"], grad, names)

    out = {name: sum(f[name] for f in figures) / len(figures) for name in figures[0]}
    out["first_ratio_off"] = figures[0]["ratio_off"]
    out["grad"] = grad
    return out


def main(cfg: Config) -> dict[str, float]:
    """Train; return the last evaluation."""
    # --- run ---
    run = Run(cfg, __file__)

    # --- model ---
    before = load_state(cfg.init, CHATBOTS)
    tokenizer = checkpoint.tokenizer_of(before)
    weights = {"init": checkpoint.fingerprint(before)}
    policy = vlm_from(before, take=True, half=run.half)
    config = policy.config
    if cfg.lora:  # the reference is the same model with its adapters off
        add_lora(policy, LAYERS, cfg.lora, frozen=policy.vit)
        ref = policy
    else:
        ref = copy.deepcopy(policy).requires_grad_(False)
    policy.gpt.checkpoint_blocks = cfg.checkpoint_blocks
    reward_model, facts = None, False
    if cfg.reward != "checked":
        scorer = checkpoint.load(cfg.reward, ("reward",))
        if scorer["configs"]["tokenizer"] != tokenizer.identity:
            raise ValueError(f"{cfg.reward} and {cfg.init} have different tokenizers")
        weights["reward"] = checkpoint.fingerprint(scorer)
        facts = scorer["configs"]["facts"]
        reward_model = reward_model_from(scorer, take=True, half=run.half)
        reward_model.requires_grad_(False)
    judges = [] if reward_model is None else [reward_model]
    share_vit([policy, ref, *(judge.vlm for judge in judges)])
    policy.vit.requires_grad_(False)
    # evaluation mode: dropout would move a ratio off 1 before the first update
    for part in (policy, ref, *judges):
        place(part.eval(), run.device, run.half)

    # --- data ---
    prompts = Prompts(cfg.data, cfg.records, policy, tokenizer, facts)
    questions = prompts.load(cfg.split, cfg.max_new_tokens, cfg.skip_long)
    val_questions = prompts.load(cfg.val_split, cfg.max_new_tokens, cfg.skip_long)
    if cfg.reward == "checked" and not any(
        says_what_is_right(UNSET | q, prompts.phrases) for q in questions
    ):
        raise ValueError(f"no question of {cfg.split} says what is right; --reward needs the "
                         "run folder of a reward model")
    part_weights = {"right": cfg.right, "form": cfg.form, "refusal": cfg.refusal,
                    "unsure": cfg.unsure}
    words = sorted(tokenizer.ranks.values())
    by_kind: dict[str, list[dict]] = {}
    for q in questions:
        by_kind.setdefault(q["kind"], []).append(q)
    kinds = sorted(by_kind)
    odds = [len(by_kind[kind]) ** cfg.alpha for kind in kinds]
    n_val = min(cfg.n_val, len(val_questions))
    val_questions = random.Random(cfg.seed).sample(val_questions, n_val)
    val_batch = prompts.batch(val_questions, cfg.seed)

    def make_batch(step: int, n: int = 0, again: int = 0) -> PromptBatch:
        """Draw prompts, with noise for the policy; the copies of each stand side by side.

        Args:
            n: how many prompts; 0 = as many as make a whole batch.
            again: how often prompts were drawn before in this step.
        """
        rng = random.Random(f"{cfg.seed} {step} {again}" if again else f"{cfg.seed} {step}")
        n = n or cfg.batch_size // cfg.n_copies
        chosen = [rng.choice(by_kind[kind]) for kind in rng.choices(kinds, odds, k=n)]
        batch = prompts.batch(chosen, hash_seed(cfg.seed, step, 1 + 2 * again))
        clean = [Row(ids, [False] * len(ids)) for ids in batch.prompts]
        generator = torch.Generator().manual_seed(batch.seed)
        noisy = switch_out(clean, words, cfg.noise, generator)
        return replace(batch, prompts=[row.ids for row in noisy]).copied(cfg.n_copies)

    def answer(
        batch: PromptBatch, shared: bool = True
    ) -> tuple[Rollout, list[str], dict[str, float]]:
        """Draw the policy's answers and score them; return them, their texts, figures.

        Args:
            shared: all processes share the questions out; else each answers all of them.
        """
        part = batch.share(rank(), size()) if shared else batch
        with run.autocast():
            rollout = roll_out(policy, ref, reward_model, None, part, tokenizer,
                               cfg.max_new_tokens, cfg.temperature)
        if shared:
            rollout = rollout.together(len(batch.questions))
        texts = [tokenizer.decode(ids).strip() for ids in rollout.answers]
        parts: Counter[str] = Counter()  # of the checked reward: sums over the answers
        scores = []
        for text, q in zip(texts, batch.questions):
            verdict = checked(text, UNSET | q, prompts.phrases)
            parts.update(verdict)
            scores.append(sum(part_weights[name] * x for name, x in verdict.items()))
        if reward_model is None:
            rollout.score = torch.tensor(scores, device=run.device)
        figures = describe(rollout, prompts.true_scores(batch.questions, texts))
        return rollout, texts, figures | {name: x / len(texts) for name, x in parts.items()}

    def compare(rollout: Rollout) -> tuple[Compared, Tensor]:
        """Compare answers with the others to their prompts; also say which groups are dead.

        A group whose answers all score alike teaches nothing, and is left out.
        """
        worth = rollout.worth(cfg.end_penalty, 0.0)                  # (B,)
        dead = worth.view(-1, cfg.n_copies).std(1) < 1e-6            # (B / k,)
        live = (~dead).nonzero()[:, 0].cpu()                         # (n,)
        if cfg.kl == "reward":
            worth = worth - cfg.kl_coef * (rollout.logp - rollout.ref_logp).sum(1)
        advs = group_advantages(worth.view(-1, cfg.n_copies), cfg.advantage).flatten()
        return Compared(rollout, advs, live), dead

    # --- optimizer ---
    optimizer = Optimizer(policy, cfg.lr, cfg.muon_lr, cfg.weight_decay)

    # --- resume ---
    # what checkpoints contain; with --resume it is restored from the last one
    run.hold("grpo", policy, optimizer, tokenizer, config, fit=prompts.pictures.mode,
             **weights)
    # try a rollout first: run.begin deletes the older run in `out`
    answer(make_batch(run.start))
    run.begin(make_batch)

    # --- loop ---
    for step in run.steps():
        # step 0 is measured before any update: policy equals reference, so their KL is 0
        if run.is_due(step):
            rollout, texts, figures = answer(val_batch, shared=False)
            sheet = prompts.sheet(val_questions, texts, rollout.score)
            sheet.save(run.folder / f"samples_{step}.png")
            # Between two draws of a few hundred answers the score changes by as much as in
            # training, so the latest model counts as best.
            run.record({f"val_{name}": x for name, x in figures.items()},
                       loss=-float(rollout.worth(cfg.end_penalty, 0.0).mean()),
                       last_is_best=True)
        if step == cfg.steps:
            break

        # 1. roll out: the policy answers each question k times, and the answers are scored
        # 2. advantages: how much better each answer is than the others to its question
        rollout, _, figures = answer(run.next_batch())
        compared, dead = compare(rollout)
        figures["dead_groups"] = float(dead.float().mean())
        drawn = [compared]
        for again in range(1, cfg.redraw + 1):
            if not dead.any():
                break
            # each process needs an answer to read
            n = max(int(dead.sum()), size())
            rollout, _, _ = answer(make_batch(step, n, again))
            compared, dead = compare(rollout)
            drawn.append(compared)
        rollout_ms = 1000 * (time.time() - run.began)

        # 3. update: the policy takes clipped steps on these answers
        scale = lr_scale(step, cfg.steps, cfg.warmup)
        order = hash_seed(cfg.seed, step, 2)
        figures |= update(policy, optimizer, drawn, scale, order, cfg, run)
        names = [name for each in drawn for name in each.rollout.names()]
        run.add(names, **figures, lr=cfg.lr * scale, rollout_ms=rollout_ms)

    # --- finish ---
    return run.finish()


if __name__ == "__main__":
    cli(main, Config)
