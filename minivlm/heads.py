"""VLMs with a head that gives numbers: how good an answer is, what reward is still to come.

    score = head(hidden at the last token of the answer)             RewardModel, (B,)
    values = head(hidden at every token)                             ValueModel, (B, T)

A Learner holds all that PPO trains, so that one checkpoint holds it too.

Source: InstructGPT, Ouyang et al. 2022, arXiv:2203.02155, section 3.5; initial weights of
the heads as in Ziegler et al. 2019 (openai/lm-human-preferences).
"""

import copy

import torch
from torch import Tensor, nn

from minivlm.masks import last_only
from minivlm.vlm import VLM


def apply(head: nn.Linear, hidden: Tensor) -> Tensor:
    """One number for each hidden vector, (..., C) -> (...); float32 even under autocast."""
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.float())[..., 0]


class RewardModel(nn.Module):
    """Scores whole answers; higher is better.

        score = (raw - mean) / std

    The head's own scale means nothing. `mean` and `std` are measured on raw scores of
    held-out ranked answers, see `normalize`, and are part of the checkpoint.
    """

    def __init__(self, vlm: VLM):
        super().__init__()
        self.vlm = vlm
        C = vlm.config.gpt.n_embd
        self.head = nn.Linear(C, 1)
        nn.init.normal_(self.head.weight, std=(C + 1) ** -0.5)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def raw(
        self, idx: Tensor, lengths: Tensor, images: Tensor | None = None,
        img_emb: Tensor | None = None, segments: Tensor | None = None,
    ) -> Tensor:
        """Score answers at their last token, before normalization. Training compares these.

        Args:
            idx: (B, T) ids, padded right; each row ends with the end token of an answer.
            lengths: (B,) tokens of each row.
            images, img_emb: as `VLM.embed` takes them.
            segments: (B, T) of rows that hold several answers, as `conversation.pack` makes
                them.

        Returns:
            (B,), or with segments (M,) for all M answers, row by row.
        """
        at = last_only(lengths, idx.shape[1])                        # (B, T)
        if segments is not None:
            # an answer also ends where the next segment begins; 0 is the prompt, -1 a pad
            segment = segments[:, :-1]                               # (B, T - 1)
            at[:, :-1] |= (segment > 0) & (segment < segments[:, 1:])
        hidden = self.vlm.hidden(idx, images, img_emb, at=at, segments=segments)  # (M, C)
        return apply(self.head, hidden)

    def forward(
        self, idx: Tensor, lengths: Tensor, images: Tensor | None = None,
        img_emb: Tensor | None = None,
    ) -> Tensor:
        """Score one answer in each row, normalized; arguments as in `raw`. Returns (B,)."""
        return (self.raw(idx, lengths, images, img_emb) - self.mean) / self.std

    @torch.no_grad()
    def normalize(self, raw: Tensor) -> None:
        """Choose mean and std such that these raw scores, (n,), become mean 0 and std 1.

        Raises:
            ValueError: if the raw values are all equal, or one is NaN or inf.
        """
        std = raw.std(correction=min(1, len(raw) - 1))  # 0 of a single score, not NaN
        if not std.isfinite() or std == 0:
            raise ValueError(
                f"{len(raw)} scores with a standard deviation of {std:.3g} "
                "cannot be brought to one of 1"
            )
        self.mean.copy_(raw.mean())
        self.std.copy_(std)


class ValueModel(nn.Module):
    """Predicts at every token the reward that is still to come."""

    def __init__(self, vlm: VLM):
        super().__init__()
        self.vlm = vlm
        self.head = nn.Linear(vlm.config.gpt.n_embd, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def from_reward_model(cls, reward_model: RewardModel) -> "ValueModel":
        """A value model on a copy of the reward model's VLM; at first it predicts 0."""
        return cls(copy.deepcopy(reward_model.vlm))

    def forward(
        self, idx: Tensor, images: Tensor | None = None, img_emb: Tensor | None = None
    ) -> Tensor:
        """Ids (B, T) and pictures -> values (B, T); position t sees nothing behind it."""
        return apply(self.head, self.vlm.hidden(idx, images, img_emb))


class Learner(nn.Module):
    """The policy, its value model, and the present coefficient of the KL penalty."""

    def __init__(self, policy: VLM, value_model: ValueModel, kl_coef: float):
        super().__init__()
        self.vlm = policy
        self.value_model = value_model
        self.kl_coef = kl_coef

    def get_extra_state(self) -> Tensor:
        """The coefficient, saved with the weights; float64 keeps every bit of it."""
        return torch.tensor(self.kl_coef, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the coefficient."""
        self.kl_coef = float(state)
