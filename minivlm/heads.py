"""VLMs whose head gives a number instead of logits: the reward model and the value model.

    score = mean of head(hidden) over the tokens of the answer       RewardModel, (M,)
    values = head(hidden at every token)                             ValueModel, (B, T)

A Learner holds everything that PPO trains, so that one checkpoint can hold everything.

Source: InstructGPT, Ouyang et al. 2022, arXiv:2203.02155, section 3.5; initial weights of
the heads as in Ziegler et al. 2019 (openai/lm-human-preferences).
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivlm.vlm import VLM

POOLS = ("mean", "last")  # how a reward model reads an answer


def apply(head: nn.Linear, hidden: Tensor) -> Tensor:
    """Map each vector to a number, (..., C) -> (...), in float32 even under autocast."""
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.float())[..., 0]


class RewardModel(nn.Module):
    """Scores whole answers; higher is better.

        score = (raw - mean) / std

    PPO needs scores of a known size, and training does not decide the size of raw scores.
    So `mean` and `std` are measured on the raw scores of held-out ranked answers, see
    `normalize`. The checkpoint holds both.

    Args:
        vlm: reads the answers; it is trained, too.
        pool: "mean": the head reads every token of an answer, and its numbers are averaged,
            so that each word can be good or bad by itself; "last": it reads the last token,
            as InstructGPT's.
    """

    def __init__(self, vlm: VLM, pool: str = "mean"):
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"pool {pool!r} is not one of {', '.join(POOLS)}")
        self.vlm = vlm
        self.pool = pool
        C = vlm.config.gpt.n_embd
        self.head = nn.Linear(C, 1)
        nn.init.normal_(self.head.weight, std=(C + 1) ** -0.5)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def raw(
        self, idx: Tensor, segments: Tensor, images: Tensor | None = None,
        img_emb: Tensor | None = None,
    ) -> Tensor:
        """Return the raw score of each answer, before normalization, for training.

        Args:
            idx: (B, T) ids, padded right. An answer's last token is read, too, so it must be
                an input, see `conversation.append_unread`.
            segments: (B, T) of rows that hold one answer or several, see `conversation.pack`.
            images, img_emb: as `VLM.embed` takes them.

        Returns:
            (M,): the raw scores of all M answers, row by row.
        """
        before = F.pad(segments[:, :-1], (1, 0))                     # (B, T)
        behind = F.pad(segments[:, 1:], (0, 1), value=-1)            # (B, T)
        # a segment begins with the prompt's last token, which is no part of the answer
        begins = (segments > 0) & (segments != before)
        at = (segments > 0) & ~begins
        if self.pool == "last":
            at &= segments != behind
        # alone behind its prompt an answer needs no mask of its own
        packed = segments if bool((segments > 1).any()) else None
        hidden = self.vlm.hidden(idx, images, img_emb, at=at, segments=packed)  # (n, C)
        numbers = apply(self.head, hidden)                           # (n,)
        answer = (begins.flatten().cumsum(0) - 1).view_as(begins)[at]  # (n,) in 0 .. M - 1
        sums = numbers.new_zeros(int(begins.sum())).index_add(0, answer, numbers)    # (M,)
        return sums / answer.bincount(minlength=len(sums))

    def forward(
        self, idx: Tensor, segments: Tensor, images: Tensor | None = None,
        img_emb: Tensor | None = None,
    ) -> Tensor:
        """Return the score of each answer, (M,); arguments as in `raw`."""
        return (self.raw(idx, segments, images, img_emb) - self.mean) / self.std

    @torch.no_grad()
    def normalize(self, raw: Tensor) -> None:
        """Set mean and std so that these raw scores, (n,), get mean 0 and std 1.

        Raises:
            ValueError: if the raw scores are all equal, or one is NaN or inf.
        """
        std = raw.std(correction=min(1, len(raw) - 1))  # a single score: 0, not NaN
        if not std.isfinite() or std == 0:
            raise ValueError(
                f"{len(raw)} scores with a standard deviation of {std:.3g} "
                "cannot be scaled to one of 1"
            )
        self.mean.copy_(raw.mean())
        self.std.copy_(std)


class ValueModel(nn.Module):
    """Predicts at every token the reward that is still to come; at first always 0."""

    def __init__(self, vlm: VLM):
        super().__init__()
        self.vlm = vlm
        self.head = nn.Linear(vlm.config.gpt.n_embd, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def from_reward_model(cls, reward_model: RewardModel, share: bool = False) -> "ValueModel":
        """Make a value model from a copy of the reward model's VLM, with a new head.

        Args:
            share: both use the same parameters, which must then stay frozen: only adapters
                beside them may learn.
        """
        # what is in the memo counts as copied already
        memo = {id(p): p for p in reward_model.vlm.parameters()} if share else {}
        return cls(copy.deepcopy(reward_model.vlm, memo))

    def forward(
        self, idx: Tensor, images: Tensor | None = None, img_emb: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Ids (B, T) and pictures -> values (B, T); no position sees a later one.

        Args:
            at: (B, T) bool; compute only the values where it is True, the others are 0.
        """
        values = apply(self.head, self.vlm.hidden(idx, images, img_emb, at=at))
        if at is None:
            return values
        return values.new_zeros(at.shape).masked_scatter(at, values)


class Learner(nn.Module):
    """The policy, its value model, and the current coefficient of the KL penalty."""

    def __init__(self, policy: VLM, value_model: ValueModel, kl_coef: float):
        super().__init__()
        self.vlm = policy
        self.value_model = value_model
        self.kl_coef = kl_coef

    def get_extra_state(self) -> Tensor:
        """Return the coefficient, to be saved with the weights; float64 is exact."""
        return torch.tensor(self.kl_coef, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the coefficient that `get_extra_state` returned."""
        self.kl_coef = float(state)
