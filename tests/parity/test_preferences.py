"""Rewards, PPO and DPO beside TRL 0.11, whose methods are run without its package.

Its PPO left later wheels, and its own import wants an older transformers.
"""

import math
import warnings
from enum import Enum
from types import SimpleNamespace

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivlm import rl
from minivlm.losses import (
    dpo_loss, kl_estimate, ppo_policy_loss, ppo_value_loss, ranking_loss, reward_loss,
    sequence_logprobs, token_logprobs,
)
from minivlm.rl import adapted_kl_coef, gae, kl_rewards, whiten
from parity.peers import functions

DOUBLE = torch.float64


def ragged(rng, B: int, T: int) -> Tensor:
    """(B, T) bool: answers that stand together, with a prompt before and pads behind."""
    mask = torch.zeros(B, T, dtype=torch.bool)
    for b in range(B):
        start = rng.randint(0, T - 1)
        mask[b, start:rng.randint(start + 1, T)] = True
    return mask


def drawn(*shape: int) -> Tensor:
    """Normal numbers in float64 whose gradient is wanted."""
    return torch.randn(*shape, dtype=DOUBLE, requires_grad=True)


# --- reward models ---


@pytest.fixture(scope="module")
def pair_loss():
    """TRL's RewardTrainer.compute_loss, of scores that need no model."""
    compute_loss = functions("trl", "trainer/reward_trainer.py", ("compute_loss",),
                             {"torch": torch, "nn": nn, "warnings": warnings})["compute_loss"]

    def loss(chosen: Tensor, rejected: Tensor, margin: Tensor | None) -> Tensor:
        trainer = SimpleNamespace(use_reward_data_collator=True,
                                  args=SimpleNamespace(center_rewards_coefficient=None))
        inputs = {f"{name}_{side}": x for side, x in (("chosen", chosen), ("rejected", rejected))
                  for name in ("input_ids", "attention_mask")}
        inputs |= {} if margin is None else {"margin": margin}
        return compute_loss(trainer, lambda input_ids, **_: {"logits": input_ids}, inputs)

    return loss


def test_the_reward_loss_is_trls(agreement, pair_loss):
    """Catches chosen and rejected swapped, and a margin that is added."""
    seen = agreement("Bradley-Terry with margins: loss, gradients", "trl",
                     "RewardTrainer.compute_loss", 1e-12)
    for rng in seen.cases():
        B = rng.randint(1, 32)
        chosen, rejected = drawn(B), drawn(B)
        margin = rng.choice((None, torch.rand(B, dtype=DOUBLE)))
        ours = reward_loss(chosen, rejected, 0.0 if margin is None else margin).mean()
        seen.close_with_grads(ours, pair_loss(chosen, rejected, margin), [chosen, rejected])


def test_a_ranked_list_is_the_mean_of_trls_pairs(agreement, pair_loss):
    """Catches ties that carry a pair, missing answers that do, a margin read as (j, i).

    A prompt counts once, so TRL's loss is asked for one prompt's pairs at a time.
    """
    seen = agreement("Bradley-Terry of ranked lists against the mean over pairs: loss, gradients",
                     "trl", "RewardTrainer.compute_loss", 1e-12)
    for rng in seen.cases():
        B, K = rng.randint(1, 6), rng.randint(2, 6)
        scores, ranks = drawn(B, K), torch.randint(0, K + 1, (B, K))  # 0: no answer
        ranks[0, :2] = torch.tensor([2, 1])
        margin = torch.rand(B, K, K, dtype=DOUBLE)
        losses = []
        for b in range(B):
            pairs = [(i, j) for i in range(K) for j in range(K) if 0 < ranks[b, i] < ranks[b, j]]
            if pairs:
                i, j = torch.tensor(pairs).T
                losses.append(pair_loss(scores[b, i], scores[b, j], margin[b, i, j]))
        theirs = torch.stack(losses).mean()
        seen.close_with_grads(ranking_loss(scores, ranks, margin), theirs, [scores])


# --- PPO ---


@pytest.fixture(scope="module")
def ppo() -> dict:
    """TRL's PPOTrainer by method, and the helpers that these call."""
    names = ("masked_mean", "masked_var", "masked_whiten", "clip_by_value", "entropy_from_logits")
    space = {"torch": torch, "F": F, "np": numpy, "warnings": warnings, "flatten_dict": dict}
    functions("trl", "core.py", names, space)
    functions("trl", "trainer/utils.py", ("AdaptiveKLController", "FixedKLController"), space)
    methods = ("compute_rewards", "_kl_penalty", "compute_advantages", "loss")
    functions("trl", "trainer/ppo_trainer.py", methods, space)
    return space


def trainer(ppo: dict, kl_coef: float = 0.0, **config) -> SimpleNamespace:
    """What stands for PPOTrainer's self."""
    made = SimpleNamespace(kl_ctl=SimpleNamespace(value=kl_coef), config=SimpleNamespace(**config))
    made._kl_penalty = lambda *args: ppo["_kl_penalty"](made, *args)
    return made


@pytest.mark.parametrize("kind, theirs", [("k1", "kl"), ("k2", "mse")])
def test_rewards_per_token_are_trls(agreement, ppo, kind, theirs):
    """Catches a score at a pad or at the first token, a KL of the other sign, a coefficient lost.

    TRL charges pads too and drops them later, so the mask is laid on its rewards. Its "abs" has no
    counterpart here, nor has k3 one there.
    """
    seen = agreement(f"rewards per token, KL by {kind}: values, gradients", "trl",
                     f"PPOTrainer.compute_rewards, kl_penalty={theirs}", 1e-12)
    for rng in seen.cases():
        B, T, coef = rng.randint(1, 8), rng.randint(1, 20), rng.uniform(0, 1)
        score, logp, ref_logp, mask = drawn(B), drawn(B, T), drawn(B, T), ragged(rng, B, T)
        ours = kl_rewards(score, kl_estimate(logp, ref_logp, kind), mask, coef)
        peer = trainer(ppo, coef, kl_penalty=theirs)
        want, _, _ = ppo["compute_rewards"](peer, score, logp, ref_logp, mask)
        seen.close_with_grads(ours, want * mask, [score, logp, ref_logp])


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_an_unbiased_estimate_has_the_exact_kl_as_its_mean(agreement, ppo, kind):
    """Catches KL(reference || policy), and a k3 that is only nearly unbiased.

    The mean is taken exactly, over all 50 tokens of the vocabulary, so it has the KL's gradient.
    """
    seen = agreement(f"expectation of {kind} over a vocabulary: value, gradients", "trl",
                     "PPOTrainer._kl_penalty, full", 1e-12)
    for rng in seen.cases():
        logits, ref_logits = drawn(3, 50), drawn(3, 50)
        logp, ref_logp = logits.log_softmax(-1), ref_logits.log_softmax(-1)
        ours = (logp.exp() * kl_estimate(logp, ref_logp, kind)).sum(-1)
        theirs = ppo["_kl_penalty"](trainer(ppo, kl_penalty="full"), logp, ref_logp)
        seen.close_with_grads(ours, theirs, [logits, ref_logits])


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_estimates_from_drawn_tokens_scatter_around_the_exact_kl(agreement, ppo, kind):
    """Catches an estimate for tokens that the reference drew.

    All cases are pooled, for of a hundred means some lie three deviations off by chance.
    """
    seen = agreement(f"{kind} of 1,000 drawn tokens a case: pooled mean within 3 sigma", "trl",
                     "PPOTrainer._kl_penalty, full", 0)
    off, variance = 0.0, 0.0
    for rng in seen.cases():
        logp = torch.randn(50, dtype=DOUBLE).log_softmax(-1)
        ref_logp = (logp + rng.uniform(0.1, 1) * torch.randn(50, dtype=DOUBLE)).log_softmax(-1)
        tokens = torch.multinomial(logp.exp(), 1000, replacement=True)
        k = kl_estimate(logp[tokens], ref_logp[tokens], kind)
        off += float(k.mean() - ppo["_kl_penalty"](
            trainer(ppo, kl_penalty="full"), logp, ref_logp))
        variance += float(k.var() / len(k))
    seen.same(abs(off) < 3 * math.sqrt(variance), True)


def test_advantages_and_returns_are_trls(agreement, ppo):
    """Catches a value from behind the answer, a recursion that runs forward, gamma for lam.

    TRL's recursion goes on into the prompt and is masked afterwards: it is compared in the answers.
    Its whitened rewards are left out: there pads get a reward, which flows back into the answers.
    """
    seen = agreement("GAE, lambda 0 to 1: whitened advantages, returns, gradients", "trl",
                     "PPOTrainer.compute_advantages", 1e-12)
    for rng in seen.cases(400):
        B, T = rng.randint(4, 8), rng.randint(2, 20)
        rewards, values, mask = drawn(B, T), drawn(B, T), ragged(rng, B, T)
        gamma, lam = rng.choice((1.0, 0.99, 0.7)), rng.choice((0.0, 0.5, 0.95, 1.0))
        advs, returns = gae(rewards, values, mask, gamma, lam)
        peer = trainer(ppo, gamma=gamma, lam=lam, whiten_rewards=False)
        _, their_advs, their_returns = ppo["compute_advantages"](
            peer, values, rewards, mask.double())  # as a bool it would round to float32 inside
        seen.close(whiten(advs, mask), their_advs * mask)
        seen.close_with_grads(returns, their_returns * mask, [rewards, values])


def test_whitening_is_trls(agreement, ppo):
    """Catches the biased variance, pads in it, a mean that is kept where it shall go."""
    seen = agreement("whitening, with and without the mean: values, gradients", "trl",
                     "masked_whiten", 1e-12)
    for rng in seen.cases(200):
        B, T = rng.randint(4, 8), rng.randint(1, 20)  # two numbers always whiten to the same two
        x, mask, shift_mean = drawn(B, T), ragged(rng, B, T), rng.random() < 0.5
        scaled = x * rng.uniform(0.1, 10) + rng.uniform(-5, 5)
        theirs = ppo["masked_whiten"](scaled, mask.double(), shift_mean) * mask
        seen.close_with_grads(whiten(scaled, mask, shift_mean), theirs, [x])


def test_ppos_losses_are_trls(agreement, ppo):
    """Catches a clip on one side only, a mean over pads, the wrong center of the values' clip."""
    seen = agreement("PPO clipped losses of policy and values, share clipped: values, gradients",
                     "trl", "PPOTrainer.loss", 1e-12)
    for rng in seen.cases():
        B, T = rng.randint(2, 8), rng.randint(1, 20)
        logp, values, mask = drawn(B, T), drawn(B, T), ragged(rng, B, T)
        spread, eps, value_eps = (rng.choice((0.05, 0.2, 0.5)) for _ in range(3))
        old_logp, old_values = (
            (x + 2 * spread * torch.randn(B, T, dtype=DOUBLE)).detach() for x in (logp, values))
        advs, returns = torch.randn(2, B, T, dtype=DOUBLE)
        peer = trainer(ppo, cliprange=eps, cliprange_value=value_eps, vf_coef=1.0,
                       ratio_threshold=math.inf)
        their_policy, their_value, stats = ppo["loss"](
            peer, old_logp, old_values, torch.zeros(B, T, 2), values, logp, mask, advs, returns)
        policy, clipped = ppo_policy_loss(logp, old_logp, advs, mask, eps)
        seen.close_with_grads(policy, their_policy, [logp])
        seen.close(clipped, stats["policy"]["clipfrac"])
        value = ppo_value_loss(values, old_values, returns, mask, value_eps)
        seen.close_with_grads(value, their_value, [values])


def test_the_kl_controllers_are_trls(agreement, ppo, monkeypatch):
    """Catches an error that is not clipped, one of the wrong sign, a coefficient added to.

    Ours reacts fully to a batch as large as its horizon; TRL's overshoots, so none is larger here.
    """
    seen = agreement("KL coefficient, fixed and adaptive, over 100 updates", "trl",
                     "AdaptiveKLController, FixedKLController", 1e-12)
    for rng in seen.cases():
        coef, target, horizon = rng.uniform(0.01, 1), rng.uniform(0.5, 10), rng.randint(100, 10000)
        monkeypatch.setattr(rl, "KL_HORIZON", horizon)
        ours = [coef, coef]                                          # adaptive, fixed
        theirs = (ppo["AdaptiveKLController"](coef, target, horizon),
                  ppo["FixedKLController"](coef))
        for _ in range(100):
            kl, n = target * rng.uniform(0, 2.5), rng.randint(1, 100)
            ours = [adapted_kl_coef(ours[0], kl, target, n), adapted_kl_coef(ours[1], kl, 0.0, n)]
            for controller in theirs:
                controller.update(kl, n)
            coefs = ours, [controller.value for controller in theirs]
            seen.close(*(torch.tensor(x, dtype=DOUBLE) for x in coefs))


# --- DPO ---


@pytest.fixture(scope="module")
def dpo():
    """TRL's DPOTrainer.dpo_loss, called as minivlm's is, and its get_batch_logps."""
    space = functions("trl", "trainer/dpo_config.py", ("FDivergenceType",), {"Enum": Enum})
    space |= {"torch": torch, "F": F}
    functions("trl", "trainer/dpo_trainer.py", ("dpo_loss", "get_batch_logps"), space)

    def loss(*four: Tensor, beta: float, kind: str, label_smoothing: float) -> Tensor:
        made = SimpleNamespace(
            accelerator=SimpleNamespace(device="cpu"), reference_free=False, beta=beta,
            f_divergence_type="reverse_kl", loss_type=kind, label_smoothing=label_smoothing)
        return space["dpo_loss"](made, *four)[0]

    return loss, space["get_batch_logps"]


@pytest.mark.parametrize("kind", ["sigmoid", "robust", "hinge", "ipo"])
def test_the_dpo_family_is_trls(agreement, dpo, kind):
    """Catches a swapped answer or reference, beta outside of the sigmoid, smoothing reversed."""
    seen = agreement(f"DPO's family, {kind}: loss, gradients", "trl",
                     f"DPOTrainer.dpo_loss, {kind}", 1e-12)
    for rng in seen.cases(200):
        B, beta = rng.randint(4, 16), 10 ** rng.uniform(-2, 0.5)
        e = rng.choice((0.0, rng.uniform(0, 0.49))) if kind in ("sigmoid", "robust") else 0.0
        four = [drawn(B) for _ in range(4)]
        ours = dpo_loss(*four, beta, kind, e)
        seen.close_with_grads(ours, dpo[0](*four, beta=beta, kind=kind, label_smoothing=e), four)


def test_kto_is_trls(agreement):
    """Catches a z that learns or falls below 0, and a term turned round.

    TRL reads z from other answers; here it gets the batch's own, and its 2 B losses are halved.
    """
    space = functions("trl", "trainer/kto_trainer.py", ("kto_loss",), {"torch": torch, "F": F})
    seen = agreement("DPO's family, kto: loss, gradients", "trl", "KTOTrainer.kto_loss", 1e-12)
    for rng in seen.cases(200):
        B, beta = rng.randint(4, 16), 10 ** rng.uniform(-2, 0.5)
        four = chosen, rejected, ref_chosen, ref_rejected = [drawn(B) for _ in range(4)]
        made = SimpleNamespace(
            accelerator=SimpleNamespace(device="cpu", gather=lambda x: x), beta=beta,
            loss_type="kto", calculate_KL=True, desirable_weight=1.0, undesirable_weight=1.0)
        both, ref_both = torch.cat([chosen, rejected]), torch.cat([ref_chosen, ref_rejected])
        theirs = space["kto_loss"](
            made, chosen, rejected, both, ref_chosen, ref_rejected, ref_both)[0]
        ours = dpo_loss(*four, beta, "kto")
        seen.close_with_grads(ours, theirs.view(2, B).sum(0) / 2, four)


@pytest.mark.parametrize("average", [False, True])
def test_log_probabilities_of_answers_are_trls(agreement, dpo, average):
    """Catches a shift by none or two, pads in the sum, a mean over the row's length.

    TRL shifts inside, minivlm's targets come shifted; TRL divides by the length for its ipo.
    """
    seen = agreement(f"{'mean' if average else 'sum'} of an answer's log-probabilities: values, "
                     "gradients", "trl", "DPOTrainer.get_batch_logps", 1e-12)
    for rng in seen.cases():
        B, T, V = rng.randint(1, 6), rng.randint(1, 12), rng.randint(2, 30)
        logits, mask = drawn(B, T + 1, V), ragged(rng, B, T)
        labels = torch.randint(V, (B, T + 1))
        labels[:, 1:][~mask] = -100
        logp = token_logprobs(logits[:, :-1], labels[:, 1:])
        theirs, length = dpo[1](logits, labels)
        ours = sequence_logprobs(logp, mask, average=average)
        seen.close_with_grads(ours, theirs / length if average else theirs, [logits])
