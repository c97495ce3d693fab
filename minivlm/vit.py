"""ViT: cut the picture into P x P patches, embed each as a token, run Transformer blocks.

    z = [class; patches @ W] + positions;  z = block(...block(norm(z)))

The layout is that of CLIP's vision tower (patch map without bias, a norm before the blocks, the
class token normed afterwards), so that CLIP's weights fit.

Source: Dosovitskiy et al. 2020, arXiv:2010.11929, eqs. 1-4; Radford et al. 2021, arXiv:2103.00020.
Left out: hybrid stems, fine-tuning at another resolution. Used by: clip.py, vlm.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minivlm.transformer import Block, init_weights


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of a ViT: S = image_size and P = patch_size in pixels, N = (S/P)^2 image tokens."""

    image_size: int = 48
    patch_size: int = 16
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    act: str = "quick_gelu"
    feature_layer: int = -2  # which block's output a VLM reads; LLaVA takes the last but one

    def __post_init__(self):
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if not -self.n_layer <= self.feature_layer <= -1:
            raise ValueError(f"feature_layer {self.feature_layer} is not in {-self.n_layer} .. -1")

    @property
    def n_tokens(self) -> int:
        """N, the number of patches."""
        return (self.image_size // self.patch_size) ** 2


class ViT(nn.Module):
    """A vision Transformer. `forward` gives every position, `features` what a VLM reads."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        C, P = config.n_embd, config.patch_size
        self.patch = nn.Conv2d(3, C, kernel_size=P, stride=P, bias=False)
        self.cls = nn.Parameter(torch.zeros(C))
        self.pos = nn.Parameter(torch.zeros(1 + config.n_tokens, C))
        self.norm_pre = nn.LayerNorm(C)
        self.blocks = nn.Sequential(
            *[Block(C, config.n_head, act=config.act) for _ in range(config.n_layer)]
        )
        self.norm_post = nn.LayerNorm(C)
        init_weights(self)
        nn.init.normal_(self.cls, std=0.02)  # as all embeddings here
        nn.init.normal_(self.pos, std=0.02)

    def embed(self, images: Tensor) -> Tensor:
        """Patches in reading order, the class token before them: (B, 3, S, S) -> (B, 1 + N, C).

        Raises:
            ValueError: if the pictures are not (B, 3, S, S).
        """
        S = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (3, S, S):
            raise ValueError(
                f"images are {tuple(images.shape)}, expected (B, 3, {S}, {S}); resize them first"
            )
        x = self.patch(images).flatten(2).transpose(1, 2)            # (B, N, C)
        x = torch.cat([self.cls.expand(len(x), 1, -1).to(x.dtype), x], dim=1)  # (B, 1 + N, C)
        return self.norm_pre(x + self.pos)

    def forward(self, images: Tensor) -> Tensor:
        """All positions after the last block, class token first: (B, 3, S, S) -> (B, 1 + N, C)."""
        return self.blocks(self.embed(images))

    def pool(self, images: Tensor) -> Tensor:
        """The whole picture as one vector, the normed class token: (B, 3, S, S) -> (B, C)."""
        return self.norm_post(self.forward(images)[:, 0])

    def features(self, images: Tensor) -> Tensor:
        """Patch features for a VLM, no class token and no last norm: (B, 3, S, S) -> (B, N, C).

        They come from `feature_layer`, by default the last block but one: the last one is shaped
        by the class token's task and has lost local detail.

        Source: Liu et al. 2023, arXiv:2304.08485, section 4.1.
        """
        x = self.embed(images)
        for block in self.blocks[: self.config.n_layer + 1 + self.config.feature_layer]:
            x = block(x)
        return x[:, 1:]                                              # (B, N, C)

    def pool_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Both `pool` and `features` in one pass: (B, 3, S, S) -> (B, C) and (B, N, C)."""
        x = self.embed(images)
        n = self.config.n_layer + 1 + self.config.feature_layer
        for block in self.blocks[:n]:
            x = block(x)
        feats = x[:, 1:]                                             # (B, N, C)
        for block in self.blocks[n:]:
            x = block(x)
        return self.norm_post(x[:, 0]), feats
