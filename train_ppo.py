"""PPO with a KL penalty: the chatbot's own answers, scored, teach it which of them to give.

   maximize  score(answer) - kl_coef * KL(policy || reference),   by clipped steps:
   loss = - mean_t min(ratio_t advs_t, clip(ratio_t, 1 - clip_eps, 1 + clip_eps) advs_t)

Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7; on language: Ziegler et al. 2019,
arXiv:1909.08593; with pictures: LLaVA-RLHF, arXiv:2309.14525.
Reads: runs/sft, runs/reward, prompts.jsonl.   Writes: runs/ppo, samples_*.png in it.
Expect (2 CPU cores): 3 min, true score 4.72 -> 4.79 (seed 0), two fifths of the inventions left
Run: python train_ppo.py [--kl_coef 0]
"""

import copy
import math
import random
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace

import torch
from tqdm import tqdm

from data.raters import true_ratings
from minivlm import checkpoint, run
from minivlm.data import batches, hash_seed, shuffled
from minivlm.heads import Learner, RewardModel, ValueModel
from minivlm.log import Meter, Run
from minivlm.lora import add_lora
from minivlm.losses import kl_estimate, masked_mean, ppo_policy_loss, ppo_value_loss
from minivlm.optim import Optimizer, Together, lr_scale
from minivlm.prompts import PromptBatch, Prompts
from minivlm.rl import AdaptiveKL, FixedKL, explained_variance, gae, kl_rewards, minibatches, whiten
from minivlm.rollout import Rollout, by_length, describe, logprobs, roll_out, share_vit
from minivlm.tokenizer import Tokenizer
from minivlm.vlm import VLM


# --- config ---


@dataclass
class Config:
    """Options of the run; the comments are the help texts."""

    data: str = "data/shapes/prepared"  # folder made by a prepare.py
    split: str = "prompts"  # which file of it holds the questions
    val_split: str = "prompts_val"  # which file of it holds those to measure with
    records: str = "train"  # which file of it tells what is true of the pictures, and captions
    init: str = "runs/sft"  # where policy and reference come from: sft, or a captioner to compare
    reward: str = "runs/reward"  # run folder of the reward model
    out: str = "runs/ppo"  # run folder
    steps: int = 70  # rollouts, each with its updates
    batch_size: int = 256  # answers a rollout
    minibatches: int = 2  # parts of a rollout, an optimizer step each
    epochs: int = 1  # times that a rollout is gone through (Ouyang et al. 2022: 1, TRL: 4)
    grad_accum: int = 4  # micro-batches a minibatch, of like length: same result with less memory
    lr: float = 2e-4  # peak rate of the policy's AdamW: all of it, if Muon has nothing
    muon_lr: float = 0.0  # peak rate of the policy's Muon: matrices; 0 = AdamW for all of it
    value_lr: float = 2e-3  # peak rate of the value model's Muon; its AdamW has a quarter
    weight_decay: float = 0.0  # on matrices and embeddings
    warmup: int = 5  # rollouts until the peak rate
    grad_clip: float = 1.0  # largest norm of the gradient
    temperature: float = 1.0  # of drawing answers, and of all log-probabilities
    max_new_tokens: int = 96  # longest answer
    kl_coef: float = 0.3  # price of a nat, charged at each token (LLaVA-RLHF: .1, TRL: .05)
    kl: str = "k1"  # estimate of the KL per token: k1, k2 or k3 (Schulman 2020)
    kl_target: float = 0.0  # nats an answer that kl_coef adapts to (Ziegler et al.: 6); 0 = fixed
    kl_horizon: int = 10000  # answers until an adaptive kl_coef has reacted (Ziegler et al.)
    end_penalty: float = 1.0  # taken off the score of an answer that does not end (Ziegler et al.)
    length_penalty: float = 0.0  # taken off the score per token of the answer
    clip_eps: float = 0.2  # how far a probability's ratio may move (Schulman et al., section 6.1)
    value_clip: float = 0.2  # how far a value may move at a rollout (openai/baselines, ppo2)
    gamma: float = 1.0  # discount per token (Stiennon et al. 2020: none)
    lam: float = 0.95  # GAE's trade of bias for variance (Schulman et al. 2015)
    whiten_rewards: bool = False  # bring rewards to variance 1 first (lm-human-preferences)
    max_kl: float = 0.1  # nats per token from the rollout that end its updates; 0 = never (TRL)
    lora: int = 0  # rank of LoRA adapters, all of the policy that learns then; 0 = its weights
    lora_layers: str = "gpt.*,projector.*"  # names of the linear maps that get one
    n_val: int = 300  # held-out questions to measure with
    eval_every: int = 20  # rollouts between evaluations, each logged and saved
    seed: int = 0  # which questions, which answers are drawn
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    dtype: str = "auto"  # auto (bfloat16 on a GPU, else float32), float32, bfloat16
    compile: bool = False  # torch.compile: slow to start, then faster
    threads: int = 0  # CPU threads; 0 = torch's choice
    workers: int = 0  # processes that load pictures ahead; 0 = none
    resume: bool = False  # continue the run in `out`

    def __post_init__(self):
        if not self.temperature > 0 or max(self.gamma, self.lam) > 1:
            raise ValueError("expected temperature > 0, gamma <= 1 and lam <= 1")


# --- evaluate ---

LOGGED = ("true_score", "score", "kl_token", "kl_answer", "entropy", "length", "ended", "loss",
          "value_loss", "clip_fraction", "explained_variance", "ratio_off", "first_ratio_off",
          "new_kl", "updates", "lr", "grad", "ms", "rollout_ms")


def main(cfg: Config) -> dict[str, float]:
    """Train; return the last evaluation."""
    # --- run ---
    run.seed_everything(cfg.seed, cfg.threads)
    device, log = run.pick_device(cfg.device), Run(cfg, __file__)

    # --- model ---
    before = checkpoint.load(cfg.init, ("sft", "caption"))
    scorer = checkpoint.load(cfg.reward, ("reward",))
    tokenizer, policy = Tokenizer.from_text(before["tokenizer"]), VLM.from_checkpoint(before)
    if scorer["configs"]["tokenizer"] != tokenizer.identity:
        raise ValueError(f"{cfg.reward} and {cfg.init} have different tokenizers")
    config = policy.config = replace(policy.config, prefix_lm=False)  # answers follow causally
    if cfg.lora:  # then the reference is the very same weights, with the adapters off
        add_lora(policy, cfg.lora_layers, cfg.lora, frozen=policy.vit)
    ref = policy if cfg.lora else copy.deepcopy(policy).requires_grad_(False)
    reward_model = RewardModel.from_checkpoint(scorer)
    value_model = ValueModel.from_reward_model(reward_model)
    share_vit([policy, ref, reward_model.vlm, value_model.vlm])
    for frozen in (policy.vit, value_model.vlm.vit, reward_model):
        frozen.requires_grad_(False)
    # without dropout, which would move a ratio off 1 before the first update
    learner = Learner(policy, value_model, cfg.kl_coef).to(device).eval()
    ref, reward_model = ref.to(device).eval(), reward_model.to(device).eval()
    step_model = torch.compile(policy) if cfg.compile else policy

    # --- data ---
    prompts = Prompts(cfg.data, cfg.records, policy, tokenizer, facts=scorer["configs"]["facts"])
    questions, held_out = (prompts.load(s, cfg.max_new_tokens) for s in (cfg.split, cfg.val_split))
    held_out = random.Random(cfg.seed).sample(held_out, min(cfg.n_val, len(held_out)))
    val_batch, penalties = prompts.batch(held_out, cfg.seed), (cfg.end_penalty, cfg.length_penalty)

    def make_batch(step: int) -> PromptBatch:
        rows = shuffled(step, cfg.batch_size, len(questions), cfg.seed)
        return prompts.batch([questions[i] for i in rows], hash_seed(cfg.seed, step, 1))

    def answer(batch: PromptBatch) -> tuple[Rollout, list[str], list[float]]:
        with run.autocast(device, cfg.dtype):
            rollout = roll_out(policy, ref, reward_model, value_model, batch, tokenizer,
                               cfg.max_new_tokens, cfg.temperature)
        said = [tokenizer.decode(ids).strip() for ids in rollout.answers]
        return rollout, said, prompts.true_scores(batch.questions, said, true_ratings)

    # --- optimizer ---
    optimizer = Together(
        Optimizer(policy, cfg.lr, cfg.muon_lr, cfg.weight_decay),
        Optimizer(value_model, cfg.value_lr / 4, cfg.value_lr, cfg.weight_decay),
    )
    controller = (AdaptiveKL(cfg.kl_coef, cfg.kl_target, cfg.kl_horizon) if cfg.kl_target
                  else FixedKL(cfg.kl_coef))

    # --- resume ---
    configs = {"model": asdict(config), "tokenizer": tokenizer.identity, **run.settings(cfg),
               "init": checkpoint.fingerprint(before), "reward": checkpoint.fingerprint(scorer)}
    start, best, meter = 0, float("inf"), Meter()
    if cfg.resume:
        start, best = checkpoint.resume(log.ckpt, "ppo", configs, learner, optimizer, meter)
        controller.kl_coef = learner.kl_coef
    answer(make_batch(start))  # a batch that cannot be made must not cost the run that `out` holds
    log.begin(start)

    # --- loop ---
    made, row = batches(make_batch, start, cfg.steps, cfg.workers), {}
    bar = tqdm(
        range(start, cfg.steps + 1), desc="ppo", initial=start, total=cfg.steps, disable=None
    )
    for step in bar:
        paths = [log.ckpt] if log.terminated else []
        # step 0 is measured before any update: policy and reference are one, their KL is 0
        if (step % cfg.eval_every == 0 or step == cfg.steps) and not (cfg.resume and step == start):
            rollout, said, true = answer(val_batch)
            row = {f"val_{k}": v for k, v in describe(rollout, true).items()}
            log.log({"step": step, "kl_coef": controller.kl_coef, **meter.means(LOGGED), **row})
            prompts.sheet(held_out, said, rollout.score).save(log.folder / f"samples_{step}.png")
            loss = cfg.kl_coef * row["val_kl_answer"] - float(rollout.worth(*penalties).mean())
            paths = [log.best, log.ckpt] if loss < best else [log.ckpt]
            best = min(best, loss)
        if paths:
            learner.kl_coef = controller.kl_coef
            checkpoint.save(
                paths, stage="ppo", configs=configs, model=learner, tokenizer=tokenizer,
                step=step, best=best, optimizer=optimizer, meter=meter,
            )
        if step == cfg.steps:
            break
        if log.terminated and paths:
            log.stop(step)

        began = time.time()
        batch = next(made)
        rollout, _, true = answer(batch)
        rolled = time.time()

        # what each token was worth, beyond what was foreseen
        mask, kl = rollout.mask, kl_estimate(rollout.logp, rollout.ref_logp, cfg.kl)  # (B, T)
        rewards = kl_rewards(rollout.worth(*penalties), kl, mask, controller.kl_coef)  # (B, T)
        if cfg.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        advs, returns = gae(rewards, rollout.values, mask, cfg.gamma, cfg.lam)   # (B, T)
        foreseen = explained_variance(rollout.values, returns, mask)
        advs = whiten(advs, mask)

        # several passes over the same answers, until the policy has left the one that gave them
        figures, updates, grad, scale = [], 0, 0.0, lr_scale(step, cfg.steps, cfg.warmup)
        order = hash_seed(cfg.seed, step, 2)
        for rows in minibatches(cfg.batch_size, cfg.minibatches, cfg.epochs, order):
            figures.append(defaultdict(float))
            for part in by_length(rows, rollout.lengths, cfg.grad_accum):
                idx, targets, m, old_logp, old_values, adv, ret = rollout.part(part, advs, returns)
                with run.autocast(device, cfg.dtype):
                    img_emb = policy.projector(rollout.feats[part])  # (b, N, C)
                    logp, _ = logprobs(
                        step_model, config.image_id, idx, targets, img_emb, cfg.temperature)
                    img_emb = value_model.vlm.projector(rollout.value_feats[part])
                    values = value_model(idx, img_emb=img_emb)       # (b, T)
                loss, clip = ppo_policy_loss(logp, old_logp, adv, m, cfg.clip_eps)
                value_loss = ppo_value_loss(values, old_values, ret, m, cfg.value_clip)
                share = m.sum() / mask[rows].sum()
                ((loss + value_loss) * share).backward()
                new_kl = masked_mean(kl_estimate(old_logp, logp.detach(), "k3"), m)
                off = float((logp.detach() - old_logp).exp().sub(1).abs().max())
                figures[-1]["ratio_off"] = max(figures[-1]["ratio_off"], off)
                for name, value in (("loss", loss), ("value_loss", value_loss), ("new_kl", new_kl),
                                    ("clip_fraction", clip)):
                    figures[-1][name] += float(value.detach() * share)
            if cfg.max_kl and cfg.max_kl < figures[-1]["new_kl"] < math.inf:
                learner.zero_grad()
                break
            grad = optimizer.step(scale, cfg.grad_clip)
            log.check(figures[-1]["loss"] + figures[-1]["value_loss"], grad, step,
                      [batch.questions[i]["id"] for i in rows.tolist()])
            updates += 1
        means = {k: sum(f[k] for f in figures) / len(figures) for k in figures[0]}
        now = describe(rollout, true)
        controller.update(now["kl_answer"], cfg.batch_size)

        meter.add(
            **means | now | {"first_ratio_off": figures[0]["ratio_off"], "updates": updates},
            explained_variance=foreseen, lr=cfg.lr * scale, grad=grad,
            ms=1000 * (time.time() - began), rollout_ms=1000 * (rolled - began),
        )
        bar.set_postfix(score=f"{now['score']:.3f}", kl=f"{now['kl_answer']:.3f}")

    # --- finish ---
    log.finish(row)
    return row


if __name__ == "__main__":
    run.cli(main, Config)
