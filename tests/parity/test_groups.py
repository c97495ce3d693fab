"""Group-relative advantages and losses beside TRL 0.24, run without its package."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from minivlm.losses import group_policy_loss, kl_estimate
from minivlm.rl import group_advantages
from parity.peers import functions, lines
from parity.test_preferences import DOUBLE, drawn

TRL = "trl-0.24.0"


def answers(rng, B: int, T: int) -> Tensor:
    """(B, T) bool: TRL's answers begin in the first column."""
    return torch.arange(T) < torch.tensor([[rng.randint(1, T)] for _ in range(B)])


def trainer(logp: Tensor, **options) -> SimpleNamespace:
    """What stands for a trainer whose model gives these log-probabilities."""
    accelerator = SimpleNamespace(gather=lambda x: x, num_processes=1)
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, torch.zeros_like(logp)),
        top_entropy_quantile=1.0, importance_sampling_level="token", use_vllm=False,
        args=SimpleNamespace(delta=None), current_gradient_accumulation_steps=1,
        accelerator=accelerator, model=SimpleNamespace(training=True),
        _metrics=defaultdict(lambda: defaultdict(list)), **options)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_advantages_are_trls(agreement, kind):
    """Catches the biased deviation, another small number beside it, a baseline of all k."""
    seen = agreement(f"advantages of {kind}", TRL,
                     "RLOOTrainer" if kind == "rloo" else "GRPOTrainer", 1e-12)
    file, first, last = {
        "rloo": ("trainer/rloo_trainer.py", "grouped_sum = ", "advantages = rewards - baselines"),
    }.get(kind, ("trainer/grpo_trainer.py", "mean_grouped_rewards = rewards",
                 "advantages = advantages / (std_rewards"))
    code = lines(TRL, file, first, last)
    for rng in seen.cases():
        B, k = rng.randint(1, 5), rng.randint(2, 9)
        scores = torch.randn(B, k, dtype=DOUBLE) * rng.choice((0, 1, 10))
        theirs = {"torch": torch, "rewards": scores.flatten(), "grouped_rewards": scores,
                  "self": SimpleNamespace(
                      num_generations=k, scale_rewards="none" if kind == "dr_grpo" else "group")}
        exec(code, theirs)
        seen.close(group_advantages(scores, kind), theirs["advantages"].view(B, k))


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_losses_are_trls(agreement, kind):
    """Catches answers that weigh by their length, a clip of one width, a KL of the wrong sign."""
    name = "RLOOTrainer" if kind == "rloo" else "GRPOTrainer"
    seen = agreement(f"loss of {kind}: values, gradients", TRL, f"{name}._compute_loss", 1e-12)
    space = {"torch": torch}
    functions(TRL, "trainer/utils.py", ("nanmin", "nanmax"), space)
    functions(TRL, f"trainer/{name[:4].lower()}_trainer.py", ("_compute_loss",), space)
    for rng in seen.cases():
        B, T = rng.randint(1, 8), rng.randint(1, 20)
        logp, mask, advs = drawn(B, T), answers(rng, B, T), torch.randn(B, dtype=DOUBLE)
        old, ref = ((logp + s * torch.randn(B, T, dtype=DOUBLE)).detach() for s in (0.3, 1.0))
        low, high, beta = rng.uniform(0.1, 0.3), rng.uniform(0.1, 0.4), rng.choice((0.0, 0.2))
        beta = 0.0 if kind == "rloo" else beta  # TRL's RLOO has the KL in the reward
        peer = trainer(logp, beta=beta, loss_type=kind, epsilon_low=low, epsilon_high=high,
                       max_completion_length=T)
        ids = torch.zeros(B, T, dtype=torch.long)
        given = {"prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids,
                 "completion_mask": mask.long(), "advantages": advs,
                 "old_per_token_logps": old, "old_logps": (old * mask).sum(1),
                 "ref_per_token_logps": ref}
        theirs = space["_compute_loss"](peer, SimpleNamespace(training=True), given)
        kl = beta * kl_estimate(logp, ref, "k3") if beta else None
        ours, _ = group_policy_loss(logp, old, advs, mask, kind, low, high, T, kl)
        seen.close_with_grads(ours, theirs, [logp])
