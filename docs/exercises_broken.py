"""Three functions for docs/exercises.md, in each of which one line is wrong.

Each of the bugs is one that tests/audit/plant.py also plants in the project's own code.
"""

import torch
from torch import Tensor


def packing(n_prompt: int, n_answers: list[int]) -> Tensor:
    """Say which token may see which, where several answers stand behind one prompt."""
    shared = n_prompt - 1  # the prompt without its last token
    T = shared + sum(1 + n for n in n_answers)
    mask = torch.zeros(T, T, dtype=torch.bool)
    mask[:shared, :shared] = True
    begin = shared
    for n in n_answers:
        end = begin + 1 + n  # the prompt's last token, and the answer
        mask[begin:end, :shared] = True
        mask[begin:end, shared:end] = True
        begin = end
    return mask.tril()                                               # (T, T)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Shift x to mean 0 and scale it to variance 1, over all positions that count."""
    n = mask.sum()
    x = x.masked_fill(~mask, 0.0)                                    # (B, T)
    mean = x.sum() / n
    variance = (x - mean).square().sum() / (n - 1)
    whitened = (x - mean) / (variance + 1e-8).sqrt()
    return whitened.masked_fill(~mask, 0.0)


def ppo(
    logp: Tensor, old_logp: Tensor, advs: Tensor, mask: Tensor, clip_eps: float
) -> Tensor:
    """PPO's clipped loss."""
    ratio = (logp - old_logp).masked_fill(~mask, 0.0).exp()          # (B, T)
    clipped = ratio.clamp(1 - clip_eps, 1 + clip_eps)
    gain = (clipped * advs).masked_fill(~mask, 0.0)
    return -gain.sum() / mask.sum()
