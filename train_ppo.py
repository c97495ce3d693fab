"""PPO with a KL penalty: the policy learns from the reward model's scores of its answers.

   maximize  score(answer) - kl_coef * KL(policy || reference)   by clipped steps:
   loss = - mean_t min(ratio_t advs_t, clip(ratio_t, 1 - clip_eps, 1 + clip_eps) advs_t)

Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7; on language: Ziegler et al. 2019,
arXiv:1909.08593; with pictures: LLaVA-RLHF, arXiv:2309.14525.
Reads: runs/sft, runs/reward, prompts.jsonl.   Writes: runs/ppo, samples_*.png in it.
Expect (2 CPU cores): 3.5 min; the true score rises, fewer objects are invented
Run: python train_ppo.py [--kl_coef 0]
"""

import copy
import math
import random
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minivlm.heads import Learner, ValueModel
from minivlm.loading.batches import hash_seed, shuffled
from minivlm.loading.models import place, reward_model_from, vlm_from
from minivlm.lora import LAYERS, add_lora
from minivlm.losses import kl_estimate, masked_mean, ppo_policy_loss, ppo_value_loss
from minivlm.optim import Optimizer, Together, lr_scale
from minivlm.preferences.prompts import Prompts
from minivlm.pretrained.weights import load_state
from minivlm.rl import (
    adapted_kl_coef, explained_variance, gae, kl_rewards, minibatches, whiten,
)
from minivlm.rollout import (
    PromptBatch, Rollout, by_length, describe, roll_out, share_vit,
)
from minivlm.running import checkpoint
from minivlm.running.options import cli
from minivlm.running.processes import add_gradients, largest, rank, size, total
from minivlm.running.run import Run

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
    out: str = "runs/ppo"  # run folder to write
    # model
    init: str = "runs/sft"  # policy and reference: a run of sft, caption; or a published LLaVA
    reward: str = "runs/reward"  # run folder of the reward model
    lora: int = 0  # >= 0; rank of LoRA adapters; above 0: only they and the values' head learn
    # rollout
    batch_size: int = 256  # >= 2; answers per rollout; they are judged by comparison
    temperature: float = 1.0  # > 0; for drawing answers and for all log-probabilities
    max_new_tokens: int = 96  # >= 1; longest answer in tokens
    # rewards
    kl_coef: float = 0.3  # >= 0; reward lost for each nat of KL (LLaVA-RLHF: .1, TRL: .05)
    kl: str = "k1"  # k1 | k2 | k3; how the KL of a token is estimated
    kl_target: float = 0.0  # >= 0; KL per answer, in nats, to adapt kl_coef to; 0 = fixed
    end_penalty: float = 1.0  # >= 0; subtracted from the score of an answer without an end
    length_penalty: float = 0.0  # >= 0; subtracted from the score for each token
    gamma: float = 1.0  # 0 .. 1; discount per token; 1 = none
    lam: float = 0.95  # 0 .. 1; lambda of GAE: lower has more bias and less variance
    whiten_rewards: bool = False  # scale the rewards to variance 1 before GAE
    # optimization
    steps: int = 70  # >= 0; rollouts, each followed by its updates
    epochs: int = 1  # >= 1; passes over a rollout (Ouyang et al. 2022: 1, TRL: 4)
    minibatches: int = 2  # >= 1; parts of a rollout, with an optimizer step each
    grad_accum: int = 4  # >= 1; micro-batches per minibatch, each of similar lengths
    clip_eps: float = 0.2  # > 0; how far a ratio may move from 1 (PPO, section 6.1)
    value_clip: float = 0.2  # >= 0; how far a value may move per rollout (ppo2); 0 = off
    max_kl: float = 0.1  # >= 0; KL per token, in nats, to end a rollout's updates; 0 = off
    lr: float = 2e-4  # >= 0; peak learning rate of the policy's AdamW
    muon_lr: float = 0.0  # >= 0; peak learning rate of the policy's Muon; 0 = AdamW
    value_lr: float = 2e-3  # >= 0; peak rate of the value model's Muon; AdamW has a quarter
    weight_decay: float = 0.0  # >= 0; on matrices and embeddings
    warmup: int = 5  # >= 0; rollouts until the peak learning rate
    grad_clip: float = 1.0  # >= 0; scale a larger gradient down to this norm; 0 = off
    # machine
    n_val: int = 300  # >= 1; held-out questions to measure with
    eval_every: int = 20  # >= 1; rollouts between evaluations, each logged and saved
    log_every: int = 1  # >= 1; rollouts between rows of training figures in metrics.csv
    seed: int = 0  # >= 0; decides which questions are asked and which answers are drawn
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps; auto = a GPU if there is one
    dtype: str = "auto"  # auto | float32 | bfloat16; auto = bfloat16 on a GPU, else float32
    checkpoint_blocks: bool = False  # compute activations again: less memory, more time
    threads: int = 0  # >= 0; CPU threads; 0 = torch's choice
    workers: int = 0  # >= 0; processes that load pictures ahead; 0 = none
    resume: bool = False  # continue the run in `out`

    def __post_init__(self):
        if self.kl_target and not self.kl_coef:
            raise ValueError("kl_target multiplies kl_coef, which must be above 0 for it")


# --- update ---


def update(
    learner: Learner, optimizer: Together, rollout: Rollout, advs: Tensor, returns: Tensor,
    scale: float, seed: int, cfg: Config, run: Run,
) -> dict[str, float]:
    """Take clipped steps on the answers of one rollout; stop if the policy has moved far.

        for each epoch, for each minibatch of answers:
            ratio_t = p(token_t) by the policy now / p(token_t) by the policy that drew it
            stop if KL(policy that drew || policy now) > max_kl
            step down  - mean_t min(ratio_t advs_t, clip(ratio_t) advs_t)
                       + mean_t (values_t - returns_t)^2 / 2, clipped too

    Args:
        advs, returns: (B, T).
        scale: share of the peak learning rates.
        seed: decides the order of the answers.

    Returns:
        means over the minibatches; first_ratio_off is of the first minibatch, grad of the
        last step, and updates counts the steps. docs/ppo.md explains each figure.
    """
    figures: list[dict[str, float]] = []  # of each minibatch
    grad, n_updates = 0.0, 0
    for rows in minibatches(cfg.batch_size, cfg.minibatches, cfg.epochs, seed):
        sums = dict.fromkeys(("loss", "value_loss", "new_kl", "clip_fraction"), 0.0)
        ratios_off: list[Tensor] = []
        own = rows[rows % size() == rank()]  # this process's answers
        for part_rows in by_length(own, rollout.lengths, cfg.grad_accum):
            part = rollout.part(part_rows, advs, returns)
            with run.autocast():
                logp = part.logprobs(learner.vlm, cfg.temperature)   # (b, T)
                img_emb = learner.value_model.vlm.projector(part.value_feats)
                values = learner.value_model(
                    part.idx, img_emb=img_emb, at=part.mask
                )                                                    # (b, T)
            loss, clip_fraction = ppo_policy_loss(
                logp, part.logp, part.advs, part.mask, cfg.clip_eps
            )
            value_loss = ppo_value_loss(
                values, part.values, part.returns, part.mask, cfg.value_clip
            )
            # every token of the minibatch weighs the same
            share = part.mask.sum() / rollout.mask[rows].sum()
            ((loss + value_loss) * share).backward()

            logp = logp.detach()
            new_kl = masked_mean(kl_estimate(part.logp, logp, "k3"), part.mask)
            means = {"loss": loss, "value_loss": value_loss, "new_kl": new_kl,
                     "clip_fraction": clip_fraction}
            for name, value in means.items():
                sums[name] += value.detach() * share
            ratios_off.append(((logp - part.logp).exp() - 1).abs().max())
        sums = dict(zip(sums, total(*sums.values())))
        off = largest(max(map(float, ratios_off), default=0.0))
        figures.append(sums | {"ratio_off": off})
        # NaN and inf do not end the updates here: run.check below must see them
        if cfg.max_kl and cfg.max_kl < sums["new_kl"] < math.inf:
            learner.zero_grad()
            break
        add_gradients(optimizer.params)
        grad = optimizer.step(scale, cfg.grad_clip)
        run.check(sums["loss"] + sums["value_loss"], grad, rollout.names(rows))
        n_updates += 1

    out = {name: sum(f[name] for f in figures) / len(figures) for name in figures[0]}
    out["first_ratio_off"] = figures[0]["ratio_off"]
    out["updates"] = n_updates
    out["grad"] = grad
    return out


def main(cfg: Config) -> dict[str, float]:
    """Train; return the last evaluation."""
    # --- run ---
    run = Run(cfg, __file__)

    # --- model ---
    before = load_state(cfg.init, ("sft", "caption"))
    scorer = checkpoint.load(cfg.reward, ("reward",))
    tokenizer = checkpoint.tokenizer_of(before)
    if scorer["configs"]["tokenizer"] != tokenizer.identity:
        raise ValueError(f"{cfg.reward} and {cfg.init} have different tokenizers")
    weights = {"init": checkpoint.fingerprint(before),
               "reward": checkpoint.fingerprint(scorer)}
    policy = vlm_from(before, take=True, half=run.half)
    # a captioner may be a prefix-LM; a chatbot is always causal
    config = policy.config = replace(policy.config, prefix_lm=False)
    if cfg.lora:  # the reference is the same model with its adapters off
        add_lora(policy, LAYERS, cfg.lora, frozen=policy.vit)
        ref = policy
    else:
        ref = copy.deepcopy(policy).requires_grad_(False)
    reward_model = reward_model_from(scorer, take=True, half=run.half)
    value_model = ValueModel.from_reward_model(reward_model, share=cfg.lora > 0)
    if cfg.lora:  # and the value model is the reward model, with adapters and another head
        add_lora(value_model.vlm, LAYERS, cfg.lora, frozen=value_model.vlm.vit)
    for trained in (policy, value_model.vlm):
        trained.gpt.checkpoint_blocks = cfg.checkpoint_blocks
    share_vit([policy, ref, reward_model.vlm, value_model.vlm])
    for frozen in (policy.vit, value_model.vlm.vit, reward_model):
        frozen.requires_grad_(False)
    # evaluation mode: dropout would move a ratio off 1 before the first update
    learner = Learner(policy, value_model, cfg.kl_coef)
    for part in (learner, ref, reward_model):
        place(part.eval(), run.device, run.half)

    # --- data ---
    facts = scorer["configs"]["facts"]
    prompts = Prompts(cfg.data, cfg.records, policy, tokenizer, facts)
    questions = prompts.load(cfg.split, cfg.max_new_tokens, cfg.skip_long)
    val_questions = prompts.load(cfg.val_split, cfg.max_new_tokens, cfg.skip_long)
    n_val = min(cfg.n_val, len(val_questions))
    val_questions = random.Random(cfg.seed).sample(val_questions, n_val)
    val_batch = prompts.batch(val_questions, cfg.seed)

    def make_batch(step: int) -> PromptBatch:
        rows = shuffled(step, cfg.batch_size, len(questions), cfg.seed)
        return prompts.batch([questions[i] for i in rows], hash_seed(cfg.seed, step, 1))

    def answer(
        batch: PromptBatch, shared: bool = True
    ) -> tuple[Rollout, list[str], dict[str, float]]:
        """Draw the policy's answers; return them, their texts, and figures of them.

        Args:
            shared: all processes share the questions out; else each answers all of them.
        """
        part = batch.share(rank(), size()) if shared else batch
        with run.autocast():
            rollout = roll_out(policy, ref, reward_model, value_model, part, tokenizer,
                               cfg.max_new_tokens, cfg.temperature)
        if shared:
            rollout = rollout.together(len(batch.questions))
        texts = [tokenizer.decode(ids).strip() for ids in rollout.answers]
        true_scores = prompts.true_scores(batch.questions, texts)
        return rollout, texts, describe(rollout, true_scores)

    # --- optimizer ---
    optimizer = Together(
        Optimizer(policy, cfg.lr, cfg.muon_lr, cfg.weight_decay),
        Optimizer(value_model, cfg.value_lr / 4, cfg.value_lr, cfg.weight_decay),
    )

    # --- resume ---
    # what checkpoints contain; with --resume it is restored from the last one
    run.hold("ppo", learner, optimizer, tokenizer, config, fit=prompts.pictures.mode,
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
            worth = float(rollout.worth(cfg.end_penalty, cfg.length_penalty).mean())
            # Between two draws of a few hundred answers, score and KL change by as much as
            # they do in training, so the latest model counts as best.
            run.record({f"val_{name}": x for name, x in figures.items()},
                       loss=cfg.kl_coef * figures["kl_answer"] - worth, last_is_best=True)
        if step == cfg.steps:
            break

        # 1. roll out: the policy answers questions, the other models read the answers
        rollout, _, figures = answer(run.next_batch())
        rollout_ms = 1000 * (time.time() - run.began)

        # 2. advantages: how much more each token brought than the value model predicted
        mask = rollout.mask                                              # (B, T)
        kl = kl_estimate(rollout.logp, rollout.ref_logp, cfg.kl)         # (B, T)
        worth = rollout.worth(cfg.end_penalty, cfg.length_penalty)       # (B,)
        rewards = kl_rewards(worth, kl, mask, learner.kl_coef)           # (B, T)
        if cfg.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        # (B, T) each
        advs, returns = gae(rewards, rollout.values, mask, cfg.gamma, cfg.lam)

        # 3. update: policy and value model take clipped steps on the same answers
        scale = lr_scale(step, cfg.steps, cfg.warmup)
        order = hash_seed(cfg.seed, step, 2)
        figures |= update(
            learner, optimizer, rollout, whiten(advs, mask), returns, scale, order, cfg,
            run,
        )

        # 4. log, and adapt the KL coefficient
        figures["explained_variance"] = explained_variance(rollout.values, returns, mask)
        figures["kl_coef"] = learner.kl_coef
        run.add(rollout.names(), **figures, lr=cfg.lr * scale, rollout_ms=rollout_ms)
        learner.kl_coef = adapted_kl_coef(
            learner.kl_coef, figures["kl_answer"], cfg.kl_target, cfg.batch_size
        )

    # --- finish ---
    return run.finish()


if __name__ == "__main__":
    cli(main, Config)
