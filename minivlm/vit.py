"""ViT: a picture becomes patches of P x P pixels, each patch a token of a Transformer.

    z = [class; patches @ W] + positions;  z = block(...block(norm(z)))

The layout is that of CLIP's vision tower, so CLIP's weights fit: the patch map W has no
bias, a norm stands before the blocks, and another one behind them for the class token.

Source: Dosovitskiy et al. 2020, arXiv:2010.11929, eqs. 1-4; Radford et al. 2021,
arXiv:2103.00020. Left out: hybrid stems, fine-tuning at another resolution.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minivlm.transformer import Block, init_weights


@dataclass(frozen=True)
class ViTConfig:
    """Sizes: S = image_size and P = patch_size in pixels; N = (S/P)^2 image tokens.

    Raises:
        ValueError: if image_size is not a multiple of patch_size, or there is no such
            feature_layer.
    """

    image_size: int = 60
    patch_size: int = 20
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    act: str = "quick_gelu"
    feature_layer: int = -2  # block whose output a VLM reads; -2 = last but one, as LLaVA

    def __post_init__(self):
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of "
                f"patch_size {self.patch_size}"
            )
        if not -self.n_layer <= self.feature_layer <= -1:
            raise ValueError(
                f"feature_layer {self.feature_layer} is not in {-self.n_layer} .. -1"
            )

    @property
    def n_tokens(self) -> int:
        """N, the number of patches."""
        return (self.image_size // self.patch_size) ** 2


class ViT(nn.Module):
    """A vision Transformer; CLIP reads the output of `pool`, a VLM that of `features`."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        C = config.n_embd
        P = config.patch_size
        self.patch = nn.Conv2d(3, C, kernel_size=P, stride=P, bias=False)
        self.cls = nn.Parameter(torch.zeros(C))
        self.pos = nn.Parameter(torch.zeros(1 + config.n_tokens, C))
        self.norm_pre = nn.LayerNorm(C)
        self.blocks = nn.Sequential(
            *[Block(C, config.n_head, act=config.act) for _ in range(config.n_layer)]
        )
        self.norm_post = nn.LayerNorm(C)
        init_weights(self)
        nn.init.normal_(self.cls, std=0.02)  # as all embeddings of this project
        nn.init.normal_(self.pos, std=0.02)
        # how many blocks come before the features: -1 means all, -2 all but the last
        self.n_before_features = config.n_layer + 1 + config.feature_layer

    def embed(self, images: Tensor) -> Tensor:
        """Embed the patches in reading order, behind the class token.

        (B, 3, S, S) -> (B, 1 + N, C).

        Raises:
            ValueError: if the pictures are not (B, 3, S, S).
        """
        S = self.config.image_size
        if images.shape[1:] != (3, S, S):
            raise ValueError(
                f"images are {tuple(images.shape)}, "
                f"expected (B, 3, {S}, {S}); resize them first"
            )
        x = self.patch(images).flatten(2).transpose(1, 2)            # (B, N, C)
        cls = self.cls.expand(len(x), 1, -1).to(x.dtype)             # (B, 1, C)
        x = torch.cat([cls, x], dim=1)                               # (B, 1 + N, C)
        return self.norm_pre(x + self.pos)

    def forward(self, images: Tensor) -> Tensor:
        """Return all positions after the last block: (B, 3, S, S) -> (B, 1 + N, C)."""
        return self.blocks(self.embed(images))

    def pool(self, images: Tensor) -> Tensor:
        """Return one vector for the whole picture, the class token's output, normalized.

        (B, 3, S, S) -> (B, C).
        """
        return self.pool_and_features(images)[0]

    def features(self, images: Tensor) -> Tensor:
        """Return the patch features that a VLM reads: (B, 3, S, S) -> (B, N, C).

        They are the output of block `feature_layer`, by default the last but one, without
        class token and without norm. The last block serves the class token's task, so the
        patches behind it have lost local detail.

        Source: Liu et al. 2023, arXiv:2304.08485, section 4.1.
        """
        return self._at_feature_layer(images)[:, 1:]

    def pool_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute `pool` and `features` in one pass: (B, 3, S, S) -> (B, C), (B, N, C)."""
        x = self._at_feature_layer(images)
        feats = x[:, 1:]                                             # (B, N, C)
        x = self.blocks[self.n_before_features:](x)
        return self.norm_post(x[:, 0]), feats

    def _at_feature_layer(self, images: Tensor) -> Tensor:
        return self.blocks[:self.n_before_features](self.embed(images))  # (B, 1 + N, C)
