"""Reinforcement learning on answers: rewards per token, advantages, and how hard the KL pulls.

    rewards = - kl_coef * KL estimate at every token of the answer, + the score at its last one
    advs, returns = gae(rewards, values, mask, gamma, lam)
    advs = whiten(advs, mask)

All of it is (B, T); a mask is True at the tokens of the answer, which stand together in a row, with
the prompt before and pads behind. Position t holds what belongs to the choice of token t + 1, as
targets do: its log-probability, its reward, and the value of what was known before it.

Source: Ziegler et al. 2019, arXiv:1909.08593, section 2; Ouyang et al. 2022, arXiv:2203.02155.
Used by: train_ppo.py.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from minivlm.losses import masked_mean

# --- rewards and advantages ---


def last_true(mask: Tensor) -> Tensor:
    """The position of each row's last True: (B, T) bool -> (B,).

    Raises:
        ValueError: if a row has none.

    >>> last_true(torch.tensor([[False, True, True, False]]))
    tensor([2])
    """
    if not bool(mask.any(1).all()):
        raise ValueError("a row has no token of an answer")
    return mask.shape[1] - 1 - mask.flip(1).int().argmax(1)


def shape_score(
    score: Tensor, ended: Tensor, length: Tensor, end_penalty: float, length_penalty: float
) -> Tensor:
    """What an answer is worth as a whole: its score, less for not ending, less for being long.

        score - end_penalty [not ended] - length_penalty * length

    Args:
        score: (B,) by a reward model; ended: (B,) bool; length: (B,) tokens.

    Returns:
        (B,).

    Source: the end: Ziegler et al. 2019, arXiv:1909.08593, section 3.1.1; the length: LLaVA-RLHF's
    ppo_trainer.py.

    >>> shape_score(torch.tensor([1.0, 1.0]), torch.tensor([True, False]), torch.tensor([5, 5]),
    ...             2.0, 0.1)
    tensor([ 0.5000, -1.5000])
    """
    return score - end_penalty * ~ended - length_penalty * length


def kl_rewards(score: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """A reward for every token: the price of leaving the reference, and the score at the end.

        rewards[b, t] = - kl_coef * kl[b, t] + [t is the last token of the answer] * score[b]

    The last token is a real one, the end token if the answer has one; never a pad behind it.

    Args:
        score: (B,) of the whole answers, by a reward model.
        kl: (B, T) estimates, see `losses.kl_estimate`.
        mask: (B, T) bool.

    Returns:
        (B, T), 0 outside of the answers.

    Raises:
        ValueError: if a row has no answer.
    """
    rewards = (-kl_coef * kl).masked_fill(~mask, 0.0)
    rows = torch.arange(len(score), device=score.device)
    rewards[rows, last_true(mask)] += score
    return rewards


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation, and the returns that the values shall learn.

        delta_t = rewards_t + gamma * values_{t+1} - values_t      no value after the last token
        advs_t = delta_t + gamma * lam * advs_{t+1}
        returns = advs + values

    lam 1 gives returns without bootstrapping, lam 0 one step's error.

    Args:
        rewards, values: (B, T), read where the mask is True.
        mask: (B, T) bool.

    Returns:
        advs and returns, (B, T), 0 outside of the answers.

    Source: Schulman et al. 2015, arXiv:1506.02438, eqs. 11, 12 and 16.
    """
    values = values.masked_fill(~mask, 0.0)                          # none after the last token
    advs, following = torch.zeros_like(values), torch.zeros_like(values[:, 0])
    T = values.shape[1]
    for t in reversed(range(T)):
        next_value = values[:, t + 1] if t + 1 < T else torch.zeros_like(following)
        delta = rewards[:, t] + gamma * next_value - values[:, t]    # (B,)
        following = (delta + gamma * lam * following).masked_fill(~mask[:, t], 0.0)
        advs[:, t] = following
    return advs, advs + values


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Bring x to variance 1, and to mean 0 unless shift_mean is False, over what counts.

    Args:
        x: (B, T); mask: (B, T) bool.

    Returns:
        (B, T), 0 where nothing counts.

    Raises:
        ValueError: if fewer than two positions count: they have no variance.

    Source: the variance is the unbiased one, as in huggingface/trl 0.11, masked_whiten.
    """
    n = mask.sum()
    if n < 2:
        raise ValueError(f"{int(n)} positions have no variance")
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean).square(), mask) * n / (n - 1)
    out = (x - mean) * (variance + 1e-8).rsqrt() + (0 if shift_mean else mean)
    return out.masked_fill(~mask, 0.0)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Share of the returns' variance that the values foresaw: 1 all, 0 none, below 0 worse.

        1 - Var(returns - values) / Var(returns)          0 where the returns do not vary

    Args:
        values, returns, mask: (B, T).
    """
    spread = returns[mask].var()
    return float(1 - (returns - values)[mask].var() / spread) if spread > 0 else 0.0


def minibatches(n: int, parts: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """The rows of each minibatch: n rows in `parts`, `epochs` times, each time in another order."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(n, generator=generator).tensor_split(parts)


# --- the KL coefficient ---

KL_HORIZON = 10_000  # answers; as in Ziegler et al. 2019 (openai/lm-human-preferences)


def adapted_kl_coef(
    kl_coef: float, kl: float, target: float, n: int, horizon: int = KL_HORIZON
) -> float:
    """A KL coefficient that grows while an answer's KL is above its target, and shrinks below.

        error = clip(kl / target - 1, -0.2, 0.2)
        kl_coef = kl_coef * (1 + error * min(1, n / horizon))

    Args:
        kl: mean of n answers, in nats an answer.
        target: nats an answer; 0 leaves the coefficient as it is.
        n: answers.
        horizon: answers until the coefficient has fully reacted.

    Source: Ziegler et al. 2019, arXiv:1909.08593, eq. 4 and below.

    >>> round(adapted_kl_coef(0.1, kl=9.0, target=6.0, n=10_000), 3), adapted_kl_coef(0.1, 9, 0, 1)
    (0.12, 0.1)
    """
    if target == 0:
        return kl_coef
    error = min(0.2, max(-0.2, kl / target - 1))
    return kl_coef * (1 + error * min(1.0, n / horizon))
