"""A VLM that gives numbers in place of words: how good an answer is, and what is still to be won.

    score = head(hidden at the last token of the answer)             RewardModel, (B,)
    values = head(hidden at every token)                             ValueModel, (B, T)

A Learner holds what PPO trains, so that one checkpoint has it all.

Source: InstructGPT, Ouyang et al. 2022, arXiv:2203.02155, section 3.5; initial weights of the heads
as in Ziegler et al. 2019 (openai/lm-human-preferences). Used by: train_reward.py, train_ppo.py.
"""

import copy

import torch
from torch import Tensor, nn

from minivlm.masks import last_only
from minivlm.vlm import VLM


def apply(head: nn.Linear, hidden: Tensor) -> Tensor:
    """One number for each hidden vector, in float32 also under autocast: (..., C) -> (...)."""
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.float())[..., 0]


class RewardModel(nn.Module):
    """Scores whole answers; higher is better.

        score = (raw - mean) / std

    `mean` and `std` are those of the raw scores on held-out ranked answers of the SFT model, so
    that scores have one scale, whatever the head's. They are kept in the checkpoint.
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
        """Score dialogues at their last token, as the head has it; this is what training compares.

        Args:
            idx: (B, T) ids, padded right, each row up to the end token of its (last) answer.
            lengths: (B,) tokens of each row.
            images: (n, 3, S, S), or img_emb: (n, N, C), as VLM.embed takes them.
            segments: (B, T) where rows hold several answers, as `conversation.pack` makes them.

        Returns:
            (B,), or with segments (answers of all rows,), row by row.
        """
        at = last_only(lengths, idx.shape[1])                        # (B, T)
        if segments is not None:  # a row's last token, and each after which another answer begins
            at[:, :-1] |= (segments[:, :-1] > 0) & (segments[:, :-1] < segments[:, 1:])
        hidden = self.vlm.hidden(idx, images, img_emb, at=at, segments=segments)         # (M, C)
        return apply(self.head, hidden)

    def forward(
        self, idx: Tensor, lengths: Tensor, images: Tensor | None = None,
        img_emb: Tensor | None = None,
    ) -> Tensor:
        """Score dialogues at their last token, normalized; everything as `raw` takes it. (B,)."""
        return (self.raw(idx, lengths, images, img_emb) - self.mean) / self.std

    @torch.no_grad()
    def normalize(self, raw: Tensor) -> None:
        """From now on, let scores whose raw values are these, (n,), have mean 0 and deviation 1.

        Raises:
            ValueError: if they are all equal, or not finite.
        """
        std = raw.std(correction=min(1, len(raw) - 1))
        if not bool(torch.isfinite(std)) or not bool(std > 0):
            raise ValueError(f"{len(raw)} scores with a standard deviation of {std:.3g}: "
                             "cannot be brought to one of 1")
        self.mean.copy_(raw.mean())
        self.std.copy_(std)


class ValueModel(nn.Module):
    """Foresees at every token what reward is still to come."""

    def __init__(self, vlm: VLM):
        super().__init__()
        self.vlm = vlm
        self.head = nn.Linear(vlm.config.gpt.n_embd, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def from_reward_model(cls, reward_model: RewardModel) -> "ValueModel":
        """A value model that sees what a reward model sees, and expects nothing yet."""
        return cls(copy.deepcopy(reward_model.vlm))

    def forward(
        self, idx: Tensor, images: Tensor | None = None, img_emb: Tensor | None = None
    ) -> Tensor:
        """(B, T) ids and pictures -> (B, T); position t knows nothing of what comes after it."""
        return apply(self.head, self.vlm.hidden(idx, images, img_emb))


class Learner(nn.Module):
    """The policy, its value model, and how hard the KL to the reference pulls at present."""

    def __init__(self, policy: VLM, value_model: ValueModel, kl_coef: float):
        super().__init__()
        self.vlm = policy
        self.value_model = value_model
        self.kl_coef = kl_coef

    def get_extra_state(self) -> Tensor:
        """The coefficient, kept with the weights, to the last bit and on no device but the CPU."""
        return torch.tensor(self.kl_coef, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the coefficient."""
        self.kl_coef = float(state)
