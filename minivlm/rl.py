"""Reinforcement learning on answers: rewards per token, advantages, the KL coefficient.

    rewards = - kl_coef * KL estimate at every token of the answer, + score at the last one
    advs, returns = gae(rewards, values, mask, gamma, lam)
    advs = whiten(advs, mask)

Log-probabilities, rewards, values, advantages and masks are (B, T). Position t belongs to
the choice of token t + 1, as in targets. It holds the log-probability of that token, the
reward for it, and the value of the text before it. A mask is True at the positions of the
answer. They form one piece: the prompt stands before it, pads stand behind it.

Source: Ziegler et al. 2019, arXiv:1909.08593, section 2; Ouyang et al. 2022,
arXiv:2203.02155.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from minivlm.losses import masked_mean

KL_HORIZON = 10_000  # answers; as in Ziegler et al. 2019 (openai/lm-human-preferences)

# --- rewards and advantages ---


def last_true(mask: Tensor) -> Tensor:
    """Return the position of each row's last True: (B, T) bool -> (B,).

    Raises:
        ValueError: if a row has none.

    >>> last_true(torch.tensor([[False, True, True, False]]))
    tensor([2])
    """
    if not mask.any(1).all():
        raise ValueError("a row has no token of an answer")
    # argmax gives the first of equal maxima: read from the right, this is the last True
    return mask.shape[1] - 1 - mask.flip(1).int().argmax(1)


def shape_score(
    score: Tensor, ended: Tensor, length: Tensor, end_penalty: float, length_penalty: float
) -> Tensor:
    """Subtract two penalties from an answer's score: for not ending and for its length.

        score - end_penalty [not ended] - length_penalty * length

    Args:
        score: (B,) by a reward model.
        ended: (B,) bool, True if the answer has its end token.
        length: (B,) number of tokens.
        end_penalty: >= 0; a larger one makes more answers end.
        length_penalty: >= 0, per token; a larger one makes answers shorter.

    Returns:
        (B,).

    Source: penalty for not ending: Ziegler et al. 2019, arXiv:1909.08593, section 3.1.1;
    penalty for length: LLaVA-RLHF's ppo_trainer.py.

    >>> score, ended = torch.tensor([1.0, 1.0]), torch.tensor([True, False])
    >>> shape_score(score, ended, torch.tensor([5, 5]), 2.0, 0.1)
    tensor([ 0.5000, -1.5000])
    """
    return score - torch.where(ended, 0.0, end_penalty) - length_penalty * length


def kl_rewards(score: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Reward every token with minus its KL estimate, and the last one with the score too.

        rewards[b, t] = - kl_coef * kl[b, t] + [t is the last of the answer] * score[b]

    The last token is the end token, if the answer has one; it is never a pad.

    Args:
        score: (B,) of the whole answers, after `shape_score`.
        kl: (B, T) estimates, see `losses.kl_estimate`.
        mask: (B, T) bool.
        kl_coef: >= 0; larger keeps the policy closer to the reference.

    Returns:
        (B, T), 0 outside of the answers.

    Raises:
        ValueError: if a row has no answer.
    """
    rewards = (-kl_coef * kl).masked_fill(~mask, 0.0)                # (B, T)
    rows = torch.arange(len(score), device=score.device)
    rewards[rows, last_true(mask)] += score
    return rewards


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation, and the returns that the values should predict.

        delta_t = rewards_t + gamma * values_{t+1} - values_t
        advs_t = delta_t + gamma * lam * advs_{t+1}
        returns = advs + values

    After the last token of an answer, value and advantage are 0.

    Args:
        rewards, values: (B, T), read where the mask is True.
        mask: (B, T) bool.
        gamma: 0 .. 1; discount per token, 1 is none.
        lam: 0 .. 1. At 1, returns are sums of discounted rewards, without any value. At 0,
            an advantage is delta, the error of one step. Lower has more bias and less
            variance.

    Returns:
        advs and returns, (B, T), 0 outside of the answers.

    Source: Schulman et al. 2015, arXiv:1506.02438, eqs. 11, 12 and 16.
    """
    values = values.masked_fill(~mask, 0.0)  # else the last token would use a pad's value
    advs = torch.zeros_like(values)
    next_value = torch.zeros_like(values[:, 0])                      # (B,)
    next_adv = next_value
    T = values.shape[1]
    for t in reversed(range(T)):
        delta = rewards[:, t] + gamma * next_value - values[:, t]    # (B,)
        next_adv = (delta + gamma * lam * next_adv).masked_fill(~mask[:, t], 0.0)
        next_value = values[:, t]
        advs[:, t] = next_adv
    return advs, advs + values


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale x to variance 1 over the positions where the mask is True.

    Args:
        x: (B, T).
        mask: (B, T) bool.
        shift_mean: also shift x to mean 0; if False, its mean stays.

    Returns:
        (B, T), 0 where the mask is False.

    Raises:
        ValueError: if the mask is True at fewer than two positions, which have no variance.

    Source: masked_whiten of huggingface/trl 0.11, which takes the unbiased variance too.
    """
    n = mask.sum()
    if n < 2:
        raise ValueError(f"{int(n)} positions have no variance")
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean).square(), mask) * n / (n - 1)
    whitened = (x - mean) * (variance + 1e-8).rsqrt()  # 1e-8: no NaN if x is constant
    if not shift_mean:
        whitened = whitened + mean
    return whitened.masked_fill(~mask, 0.0)


def group_advantages(scores: Tensor, kind: str) -> Tensor:
    """Compare each answer's score with the scores of the other answers to its prompt.

    GRPO and RLOO need no value model: the group of answers takes its place.

        grpo       (score - mean) / (std + 1e-4)      mean and std of the prompt's k answers
        dr_grpo    score - mean
        rloo       score - mean of the k - 1 others, which is k / (k - 1) (score - mean)

    Dividing by the deviation gives a prompt more weight where its answers score nearly
    alike, which dr_grpo's authors call a bias. If all k score alike, all advantages are 0.

    Args:
        scores: (B, k) of k answers to each of B prompts.
        kind: grpo, dr_grpo or rloo.

    Returns:
        (B, k), with mean 0 over each row.

    Raises:
        ValueError: for another kind, or if k is 1: there is nothing to compare with.

    Source: GRPO: Shao et al. 2024 (DeepSeekMath), arXiv:2402.03300, section 4.1.2, with the
    unbiased deviation and 1e-4 of huggingface/trl; Dr. GRPO: Liu et al. 2025,
    arXiv:2503.20783, section 3.2; RLOO: Ahmadian et al. 2024, arXiv:2402.14740, eq. 9.

    >>> group_advantages(torch.tensor([[0.0, 0.0, 3.0]]), "rloo")  # 3 - 0, 0 - 1.5
    tensor([[-1.5000, -1.5000,  3.0000]])
    """
    k = scores.shape[1]
    if k < 2:
        raise ValueError(f"{k} answer to a prompt has no others to be compared with")
    advs = scores - scores.mean(1, keepdim=True)                     # (B, k)
    if kind == "grpo":
        return advs / (scores.std(1, keepdim=True) + 1e-4)
    if kind == "dr_grpo":
        return advs
    if kind == "rloo":
        return advs * k / (k - 1)
    raise ValueError(f"kind {kind!r} is not one of grpo, dr_grpo, rloo")


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Return the share of the returns' variance that the values predict.

        1 - Var(returns - values) / Var(returns)          0 if the returns do not vary

    1 is all of the variance, 0 none. Below 0, the values predict worse than a constant.

    Args:
        values, returns: (B, T).
        mask: (B, T) bool.
    """
    total = returns[mask].var()
    if not total > 0:  # also if it is NaN, the variance of a single token
        return 0.0
    return float(1 - (returns - values)[mask].var() / total)


def minibatches(n: int, parts: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """Yield the row numbers of each minibatch; each epoch shuffles n rows into `parts`."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(n, generator=generator).tensor_split(parts)


# --- the KL coefficient ---


def adapted_kl_coef(kl_coef: float, kl: float, target: float, n: int) -> float:
    """Raise the KL coefficient if the KL is above its target; lower it if it is below.

        error = clip(kl / target - 1, -0.2, 0.2)
        kl_coef = kl_coef * (1 + error * min(1, n / KL_HORIZON))

    Args:
        kl: mean over n answers, in nats per answer.
        target: in nats per answer; 0 leaves the coefficient as it is.
        n: number of answers; the more there are, up to KL_HORIZON, the larger the change.

    Source: Ziegler et al. 2019, arXiv:1909.08593, eq. 4 and below.

    >>> round(adapted_kl_coef(0.1, kl=9.0, target=6.0, n=10_000), 3)
    0.12
    >>> adapted_kl_coef(0.1, kl=9.0, target=0, n=1)
    0.1
    """
    if target == 0:
        return kl_coef
    error = min(0.2, max(-0.2, kl / target - 1))
    return kl_coef * (1 + error * min(1.0, n / KL_HORIZON))
