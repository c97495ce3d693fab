"""CLIP: an image tower and a text tower that meet in one space.

    img_z = normalize(vit(image) @ Wi),  txt_z = normalize(text(caption) @ Wt)
    similarity = exp(logit_scale) * img_z @ txt_z.T

Source: Radford et al. 2021, arXiv:2103.00020, figure 3. One change: the text feature is taken at
the last real token by its length, not at the largest id. Used by: train_clip.py, evaluate.py.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import ContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivlm.checkpoint import rebuild
from minivlm.data import Batch
from minivlm.losses import clip_loss
from minivlm.transformer import Block, check_sizes, init_weights
from minivlm.vit import ViT, ViTConfig

MAX_LOGIT_SCALE = math.log(100)  # CLIP, section 2.5: the multiplier never exceeds 100


@dataclass(frozen=True)
class CLIPConfig:
    """Sizes of a CLIP; the text tower's fields begin with text_."""

    vit: ViTConfig = field(default_factory=ViTConfig)
    vocab_size: int = 1024
    text_block_size: int = 64
    text_n_layer: int = 3
    text_n_head: int = 4
    text_n_embd: int = 128
    n_embd: int = 128  # width of the shared space
    act: str = "quick_gelu"

    def __post_init__(self):
        check_sizes(self)

    @classmethod
    def from_dict(cls, d: dict) -> "CLIPConfig":
        """Rebuild the config from the plain dicts of a checkpoint."""
        return cls(**(d | {"vit": ViTConfig(**d["vit"])}))


class TextTower(nn.Module):
    """A causal Transformer that reads a caption and keeps its last token's feature."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        C = config.text_n_embd
        self.block_size = config.text_block_size
        self.wte = nn.Embedding(config.vocab_size, C)
        self.wpe = nn.Embedding(config.text_block_size, C)
        blocks = [Block(C, config.text_n_head, act=config.act) for _ in range(config.text_n_layer)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(C)
        init_weights(self)

    def forward(self, idx: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) ids, right-padded, with (B,) lengths -> (B, C).

        Raises:
            ValueError: if the caption is longer than the tower's context.
        """
        if idx.shape[1] > self.block_size:
            raise ValueError(
                f"caption has {idx.shape[1]} tokens, the text tower holds {self.block_size}"
            )
        # short captions need not wait for long ones: four groups by length, each cut to its longest
        order = lengths.argsort()
        z = torch.cat([self._read(idx[rows], lengths[rows]) for rows in order.chunk(4)])
        return z[order.argsort()]                                    # (B, C)

    def _read(self, idx: Tensor, lengths: Tensor) -> Tensor:
        T = int(lengths.max())
        x = self.wte(idx[:, :T]) + self.wpe.weight[:T]               # (B, T, C)
        for block in self.blocks:
            x = block(x, causal=True)
        return self.norm(x[torch.arange(len(x), device=x.device), lengths - 1])  # (B, C)


class CLIP(nn.Module):
    """Two towers and a temperature."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.vit = ViT(config.vit)
        self.text = TextTower(config)
        self.img_proj = nn.Linear(config.vit.n_embd, config.n_embd, bias=False)
        self.txt_proj = nn.Linear(config.text_n_embd, config.n_embd, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # CLIP, section 2.5
        nn.init.normal_(self.img_proj.weight, std=config.vit.n_embd ** -0.5)
        nn.init.normal_(self.txt_proj.weight, std=config.text_n_embd ** -0.5)

    @classmethod
    def from_checkpoint(cls, state: dict) -> "CLIP":
        """Rebuild the model of a checkpoint, weights and all."""
        return rebuild(state, lambda d: cls(CLIPConfig.from_dict(d)))

    @property
    def logit_scale(self) -> Tensor:
        """The multiplier of the cosine similarities, already exponentiated."""
        return self.log_scale.exp()

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, C) of unit length."""
        return F.normalize(self.img_proj(self.vit.pool(images)).float(), dim=-1)

    def encode_text(self, idx: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) ids with (B,) lengths -> (B, C) of unit length."""
        return F.normalize(self.txt_proj(self.text(idx, lengths)).float(), dim=-1)

    def forward(
        self, images: Tensor, idx: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return img_z (B, C), txt_z (B, C) and the multiplier, as `clip_loss` takes them."""
        return self.encode_image(images), self.encode_text(idx, lengths), self.logit_scale

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep the multiplier in [1, 100]; call after every optimizer step."""
        self.log_scale.clamp_(0, MAX_LOGIT_SCALE)


def contrastive_backward(
    model: nn.Module, parts: list[Batch], autocast: Callable[[], ContextManager] = nullcontext
) -> float:
    """Gradients of InfoNCE over all parts together, holding one part's graph at a time.

    Plain accumulation would compare a pair with its own part only. Here all features are made
    first, without graphs; the loss of the whole gives their gradients; then each part is made again
    and its features are pulled back with those gradients. The result equals one large batch's.

    Args:
        model: maps (images, idx, lengths) to (img_z, txt_z, logit_scale).
        parts: micro-batches; one alone is the plain case.
        autocast: makes the context in which the model runs; the loss stays outside, in full
            precision, because a similarity of 100 rounded to bfloat16 is off by a quarter.

    Returns:
        the loss in nats.

    Source: Gao et al. 2021 (GradCache), arXiv:2101.06983, section 3.
    """
    def features(part: Batch) -> tuple[Tensor, Tensor, Tensor]:
        with autocast():
            return model(part.images, part.idx, part.lengths)

    if len(parts) == 1:
        loss = clip_loss(*features(parts[0]))
        loss.backward()
        return loss.item()
    with torch.no_grad():
        made = [features(part) for part in parts]
    img_z = torch.cat([m[0] for m in made]).requires_grad_()
    txt_z = torch.cat([m[1] for m in made]).requires_grad_()
    scale = made[0][2].clone().requires_grad_()
    loss = clip_loss(img_z, txt_z, scale)
    loss.backward()
    sizes = [len(m[0]) for m in made]
    for part, img_grad, txt_grad in zip(parts, img_z.grad.split(sizes), txt_z.grad.split(sizes)):
        new_img, new_txt, new_scale = features(part)
        share = scale.grad * len(part.idx) / sum(sizes)  # shares add up to the whole gradient
        torch.autograd.backward([new_img, new_txt, new_scale], [img_grad, txt_grad, share])
    return loss.item()
