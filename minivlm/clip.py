"""CLIP: an image tower and a text tower that map pictures and captions into one space.

    img_z = normalize(vit(image) @ Wi),  txt_z = normalize(text(caption) @ Wt)
    similarity = exp(log_scale) * img_z @ txt_z.T

Source: Radford et al. 2021, arXiv:2103.00020, figure 3. One change: the text feature is the
output at the caption's last token, which is found by the caption's length. CLIP's code
looks for the largest id instead.

With a ViT of kind "siglip", both towers are those of SigLIP (arXiv:2303.15343). Its text
tower reads a caption in both directions. It reads all its positions, pads included, and the
feature is the output at the last position. No map follows its ViT: the vector of the ViT
belongs to the shared space already.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivlm.transformer import Block, BlockConfig, init_weights
from minivlm.vit import ViT, ViTConfig

MAX_LOGIT_SCALE = math.log(100)  # CLIP, section 2.5: the multiplier is at most 100


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
    logit_bias: bool = False  # learn a bias of the logits, as SigLIP does
    text_n_inner: int = 0  # width of the text tower's MLPs; 0 = 4 C
    pad_id: int = 0  # only SigLIP's text tower reads pads

    def __post_init__(self):
        if self.is_siglip and not self.logit_bias:
            raise ValueError("SigLIP's towers come with a bias of the logits")
        if self.is_siglip and self.n_embd != self.vit.n_embd:
            raise ValueError(
                f"n_embd {self.n_embd} is not the ViT's {self.vit.n_embd}: "
                "SigLIP has no map between them"
            )

    @property
    def is_siglip(self) -> bool:
        """Whether the towers are SigLIP's."""
        return self.vit.kind == "siglip"

    @classmethod
    def from_dict(cls, d: dict) -> "CLIPConfig":
        """Rebuild the config from the plain dicts of a checkpoint."""
        return cls(**(d | {"vit": ViTConfig(**d["vit"])}))


class TextTower(nn.Module):
    """A Transformer that reads a caption; the last token's output is its feature.

    CLIP's is causal. SigLIP's sees both ways, and its last token is always a pad or the end
    of a caption that fills the context.
    """

    def __init__(self, config: CLIPConfig):
        super().__init__()
        C, eps = config.text_n_embd, config.vit.norm_eps
        self.block_size = config.text_block_size
        self.is_siglip = config.is_siglip
        self.pad_id = config.pad_id
        self.wte = nn.Embedding(config.vocab_size, C)
        self.wpe = nn.Embedding(config.text_block_size, C)
        block = BlockConfig(
            C, config.text_n_head, act=config.act, n_inner=config.text_n_inner, norm_eps=eps
        )
        self.blocks = nn.ModuleList([Block(block) for _ in range(config.text_n_layer)])
        self.norm = nn.LayerNorm(C, eps=eps)
        init_weights(self)

    def forward(self, idx: Tensor, lengths: Tensor) -> Tensor:
        """Read captions: ids (B, T), padded right, and lengths (B,) -> features (B, C).

        Raises:
            ValueError: if a caption is longer than the tower's context.
        """
        B, T = idx.shape
        if T > self.block_size:
            raise ValueError(
                f"caption has {T} tokens, the text tower holds {self.block_size}"
            )
        if self.is_siglip:
            is_pad = torch.arange(T, device=idx.device) >= lengths[:, None]
            full = idx.new_full((B, self.block_size), self.pad_id)
            full[:, :T] = idx.masked_fill(is_pad, self.pad_id)
            return self._read(full, torch.full_like(lengths, self.block_size))
        # read in four groups by length, each cut to its longest caption: fewer pads
        order = lengths.argsort()
        groups = [self._read(idx[rows], lengths[rows]) for rows in order.chunk(4)]
        return torch.cat(groups)[order.argsort()]                    # (B, C)

    def _read(self, idx: Tensor, lengths: Tensor) -> Tensor:
        T = int(lengths.max())
        x = self.wte(idx[:, :T]) + self.wpe.weight[:T]               # (B, T, C)
        for block in self.blocks[:-1]:
            x = block(x, causal=not self.is_siglip)
        # each row's last token, counted over all rows
        places = torch.arange(len(x), device=x.device) * T + lengths - 1
        x = self.blocks[-1](x, causal=not self.is_siglip, places=places)
        return self.norm(x)                                          # (B, C)


class CLIP(nn.Module):
    """Two towers, a map from each into the shared space, and a learned temperature.

    For SigLIP's loss there is a learned bias as well.
    """

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.vit = ViT(config.vit)
        self.text = TextTower(config)
        self.img_proj = nn.Identity()
        if not config.is_siglip:
            self.img_proj = nn.Linear(config.vit.n_embd, config.n_embd, bias=False)
        self.txt_proj = nn.Linear(config.text_n_embd, config.n_embd, bias=config.is_siglip)
        # the temperature starts at 0.07: CLIP, section 2.5; SigLIP, section 3.2: 1/10, -10
        scale = 10.0 if config.logit_bias else 1 / 0.07
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(-10.0)) if config.logit_bias else None
        # std 1 / sqrt(width), as in CLIP's code: features of variance 1 keep that variance
        if not config.is_siglip:
            nn.init.normal_(self.img_proj.weight, std=config.vit.n_embd ** -0.5)
        nn.init.normal_(self.txt_proj.weight, std=config.text_n_embd ** -0.5)

    @property
    def logit_scale(self) -> Tensor:
        """The multiplier of the cosine similarities, exp(log_scale)."""
        return self.log_scale.exp()

    def encode_image(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) -> img_z (B, C) of unit length."""
        return F.normalize(self.img_proj(self.vit.pool(images)).float(), dim=-1)

    def encode_text(self, idx: Tensor, lengths: Tensor) -> Tensor:
        """Captions, ids (B, T) and lengths (B,) -> txt_z (B, C) of unit length."""
        return F.normalize(self.txt_proj(self.text(idx, lengths)).float(), dim=-1)

    def forward(self, images: Tensor, idx: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """Return what the loss takes.

        That is img_z (B, C), txt_z (B, C) and the multiplier for `clip_loss`, and for
        `siglip_loss` the bias as well.
        """
        out = self.encode_image(images), self.encode_text(idx, lengths), self.logit_scale
        return out if self.bias is None else (*out, self.bias)

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep InfoNCE's multiplier in [1, 100]; call after every optimizer step.

        SigLIP has no such limit: its published multipliers are about 117.
        """
        if self.bias is None:
            self.log_scale.clamp_(0, MAX_LOGIT_SCALE)
