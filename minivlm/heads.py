"""VLMs whose head gives a number instead of logits: the reward model and the value model.

    score = head(hidden at the last token of the answer)             RewardModel, (B,)
    values = head(hidden at every token)                             ValueModel, (B, T)

A Learner holds everything that PPO trains, so that one checkpoint can hold everything.

Source: InstructGPT, Ouyang et al. 2022, arXiv:2203.02155, section 3.5; initial weights of
the heads as in Ziegler et al. 2019 (openai/lm-human-preferences).
"""

import copy

import torch
from torch import Tensor, nn

from minivlm.attention_masks import last_only
from minivlm.vlm import VLM


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
        """Return the raw score of each answer, before normalization, for training.

        The head reads the output at an answer's last token. So this token must be an input,
        see `conversation.append_unread`.

        Args:
            idx: (B, T) ids, padded right; each row ends with the last token of an answer.
            lengths: (B,) number of tokens of each row.
            images, img_emb: as `VLM.embed` takes them.
            segments: (B, T) of packed rows, which hold several answers each (see
                `conversation.pack`), or None.

        Returns:
            (B,), or with segments (M,): the raw scores of all M answers, row by row.
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
        """Return the score of the answer in each row, (B,); arguments as in `raw`."""
        return (self.raw(idx, lengths, images, img_emb) - self.mean) / self.std

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
