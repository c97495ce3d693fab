"""ViT: a picture becomes patches of P x P pixels, each patch a token of a Transformer.

    clip      z = [class; patches @ W] + positions;  z = block(...block(norm(z)))
    siglip    z = patches @ W + b + positions;       z = block(...block(z))

The layouts are those of CLIP's and SigLIP's vision towers, so their weights fit. One vector
for the whole picture is the class token's output, or what an attention pool reads from all
patches.

Source: Dosovitskiy et al. 2020, arXiv:2010.11929, eqs. 1-4; Radford et al. 2021,
arXiv:2103.00020; Zhai et al. 2023, arXiv:2303.15343. Left out: hybrid stems, fine-tuning at
another resolution.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivlm.transformer import Block, BlockConfig, init_weights, make_mlp

# mean and standard deviation of red, green and blue by which all pictures of this project
# are normalized, as in openai/CLIP, clip/clip.py
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ViTConfig:
    """Sizes: S = image_size and P = patch_size in pixels; N = (S // P)^2 image tokens.

    A SigLIP of 384 pixels in patches of 14 does not see the last 6 of a row.

    Raises:
        ValueError: if image_size is not a multiple of patch_size, but for SigLIP; if no
            patch fits; if there is no such feature_layer or kind.
    """

    image_size: int = 60
    patch_size: int = 20
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    act: str = "quick_gelu"
    feature_layer: int = -2  # block whose output a VLM reads; -2 = last but one, as LLaVA
    kind: str = "clip"  # clip | siglip
    n_inner: int = 0  # width of the MLPs; 0 = 4 C
    norm_eps: float = 1e-5  # SigLIP's is 1e-6
    pool_head: bool = True  # SigLIP's attention pool; LLaVAs are published without it

    def __post_init__(self):
        rest = self.image_size % self.patch_size
        if self.image_size < self.patch_size or (rest and self.kind != "siglip"):
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of "
                f"patch_size {self.patch_size}"
            )
        if not -self.n_layer <= self.feature_layer <= -1:
            raise ValueError(
                f"feature_layer {self.feature_layer} is not in {-self.n_layer} .. -1"
            )
        if type(self.pool_head) is not bool:
            raise ValueError(f"pool_head is {self.pool_head!r}, expected True or False")
        if self.kind not in ("clip", "siglip"):
            raise ValueError(f"kind {self.kind!r} is not one of clip, siglip")

    @property
    def n_tokens(self) -> int:
        """N, the number of patches."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def n_class(self) -> int:
        """How many class tokens stand before the patches."""
        return 1 if self.kind == "clip" else 0

    @property
    def block(self) -> BlockConfig:
        """What the blocks are made of."""
        return BlockConfig(
            self.n_embd, self.n_head, act=self.act, n_inner=self.n_inner,
            norm_eps=self.norm_eps,
        )


class AttentionPool(nn.Module):
    """One vector for a picture: a learned query looks at all patches once, then an MLP.

        y = attention(probe, z, z);  y = y + mlp(norm(y))

    Source: SigLIP's vision tower (google-research/big_vision, models/vit.py, MAPHead); Lee
    et al. 2019, arXiv:1810.00825, section 3.2.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        C = config.n_embd
        self.n_head = config.n_head
        self.probe = nn.Parameter(torch.zeros(1, 1, C))
        self.qkv = nn.Linear(C, 3 * C)
        self.proj = nn.Linear(C, C)
        self.norm = nn.LayerNorm(C, eps=config.norm_eps)
        self.mlp = make_mlp(config.block)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, C)."""
        B, N, C = x.shape
        w, b = self.qkv.weight, self.qkv.bias
        q = F.linear(self.probe, w[:C], b[:C]).view(1, 1, self.n_head, -1)
        kv = F.linear(x, w[C:], b[C:]).view(B, N, 2, self.n_head, -1)
        k, v = kv.transpose(1, 3).unbind(2)                          # (B, H, N, D) each
        q = q.transpose(1, 2).expand(B, -1, -1, -1)                  # (B, H, 1, D)
        y = F.scaled_dot_product_attention(q, k, v)                  # (B, H, 1, D)
        y = self.proj(y.flatten(1))                                  # (B, C)
        return y + self.mlp(self.norm(y))


class ViT(nn.Module):
    """A vision Transformer; CLIP reads the output of `pool`, a VLM that of `features`."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        C, P, eps = config.n_embd, config.patch_size, config.norm_eps
        is_clip = config.kind == "clip"
        self.patch = nn.Conv2d(3, C, kernel_size=P, stride=P, bias=not is_clip)
        self.cls = nn.Parameter(torch.zeros(C)) if is_clip else None
        self.pos = nn.Parameter(torch.zeros(config.n_class + config.n_tokens, C))
        self.norm_pre = nn.LayerNorm(C, eps=eps) if is_clip else nn.Identity()
        self.blocks = nn.Sequential(*[Block(config.block) for _ in range(config.n_layer)])
        self.norm_post = nn.LayerNorm(C, eps=eps)
        has_head = not is_clip and config.pool_head
        self.head = AttentionPool(config) if has_head else None
        init_weights(self)
        # as all embeddings of this project
        nn.init.normal_(self.pos, std=0.02)
        if is_clip:
            nn.init.normal_(self.cls, std=0.02)
        elif has_head:
            nn.init.normal_(self.head.probe, std=0.02)
        # how many blocks come before the features: -1 means all, -2 all but the last
        self.n_before_features = config.n_layer + 1 + config.feature_layer

    def embed(self, images: Tensor) -> Tensor:
        """Embed the patches in reading order, behind the class token if there is one.

        (B, 3, S, S) -> (B, 1 + N, C), or (B, N, C) without class token.

        Raises:
            ValueError: if the pictures are not (B, 3, S, S).
        """
        S = self.config.image_size
        if images.shape[1:] != (3, S, S):
            raise ValueError(
                f"images are {tuple(images.shape)}, "
                f"expected (B, 3, {S}, {S}); resize them first"
            )
        if self.config.kind == "siglip":
            # SigLIP has learned from pixels between -1 and 1
            mean, std = (images.new_tensor(c).view(3, 1, 1) for c in (MEAN, STD))
            images = 2 * (images * std + mean) - 1
        x = self.patch(images).flatten(2).transpose(1, 2)            # (B, N, C)
        if self.cls is not None:
            cls = self.cls.expand(len(x), 1, -1).to(x.dtype)         # (B, 1, C)
            x = torch.cat([cls, x], dim=1)                           # (B, 1 + N, C)
        return self.norm_pre(x + self.pos)

    def forward(self, images: Tensor) -> Tensor:
        """Return all positions after the last block, shaped as by `embed`."""
        return self.blocks(self.embed(images))

    def pool(self, images: Tensor) -> Tensor:
        """Return one vector for the whole picture: (B, 3, S, S) -> (B, C).

        It is the class token's output, normalized, or the attention pool's.
        """
        return self.pool_and_features(images)[0]

    def features(self, images: Tensor) -> Tensor:
        """Return the patch features that a VLM reads: (B, 3, S, S) -> (B, N, C).

        They are the output of block `feature_layer`, by default the last but one, without
        class token and without norm. The last block serves the class token's task, so the
        patches behind it have lost local detail.

        Source: Liu et al. 2023, arXiv:2304.08485, section 4.1.
        """
        return self._at_feature_layer(images)[:, self.config.n_class:]

    def pool_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute `pool` and `features` in one pass: (B, 3, S, S) -> (B, C), (B, N, C).

        Raises:
            ValueError: if the tower has neither class token nor pool.
        """
        if self.cls is None and self.head is None:
            raise ValueError("a ViT without class token and pool has no vector of a picture")
        x = self._at_feature_layer(images)
        feats = x[:, self.config.n_class:]                           # (B, N, C)
        rest = self.blocks[self.n_before_features:]
        if self.head is not None:
            return self.head(self.norm_post(rest(x))), feats
        if not rest:  # the features are the last block's output already
            return self.norm_post(x[:, 0]), feats
        x = rest[:-1](x)
        first = torch.arange(len(x), device=x.device) * x.shape[1]   # the class tokens
        return self.norm_post(rest[-1](x, places=first)), feats

    def _at_feature_layer(self, images: Tensor) -> Tensor:
        return self.blocks[:self.n_before_features](self.embed(images))
