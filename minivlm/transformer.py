"""The one Transformer block of all towers: ViT, CLIP's text tower and GPT.

    x = x + attention(norm(x))
    x = x + mlp(norm(x))

attention_masks.py makes the masks; this file only applies them.

Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; pre-norm: GPT-2, Radford et al. 2019.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rotation(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """How far the queries and keys of each position are rotated.

        angle[p, i] = p / base^(2 i / D),    i = 0 .. D/2 - 1

    The product of a rotated query and a rotated key depends on their distance, not on
    where both are.

    Args:
        positions: (B, T).
        head_dim: D, an even number.
        base: above 1; a larger one lets farther distances differ.

    Returns:
        cosines and sines of the angles, (B, 1, T, D/2) float32 each.

    Source: RoFormer, Su et al. 2021, arXiv:2104.09864, eq. 15.
    """
    i = torch.arange(head_dim // 2, device=positions.device)
    angles = positions[:, None, :, None] / base ** (2 * i / head_dim)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x_i, x_{i + D/2}) of x, (B, H, T, D), by its position's angle."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = x.chunk(2, dim=-1)                                        # (B, H, T, D/2) each
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention.

    `F.scaled_dot_product_attention` computes these lines in one fused call, and in training
    drops out weights:

        scores = q @ k.transpose(-2, -1) / sqrt(D)                   # (B, H, T, T)
        scores = scores.masked_fill(~mask, -inf)
        weights = scores.softmax(dim=-1)
        out = weights @ v                                            # (B, H, T, D)

    Raises:
        ValueError: if n_embd is not a multiple of n_head.
    """

    def __init__(self, n_embd: int, n_head: int, dropout: float = 0.0):
        super().__init__()
        if n_head < 1 or n_embd % n_head:
            raise ValueError(f"n_embd {n_embd} is not a multiple of n_head {n_head}")
        self.n_head = n_head
        self.dropout = dropout
        self.qkv = nn.Linear(n_embd, 3 * n_embd)
        self.proj = nn.Linear(n_embd, n_embd)

    def forward(
        self, x: Tensor, causal: bool = False, mask: Tensor | None = None, remember=None,
        rotary: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Compute for every position a weighted sum over the positions that it sees.

        Args:
            x: (B, T, C).
            causal: let no position see a later one; the kernel then needs no mask.
            mask: (B, 1, T, n_keys) bool, True where the key counts; None: every key counts.
            remember: a cache's function. It takes k and v of these tokens, (B, H, T, D),
                and returns k and v of all tokens so far, (B, H, n_keys, D). None: there is
                no cache, and n_keys is T.

        Returns:
            (B, T, C).
        """
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).unbind(2)
        q = q.transpose(1, 2)                                        # (B, H, T, D)
        k = k.transpose(1, 2)
        v = v.transpose(1, 2)
        if rotary is not None:
            q = rotate(q, *rotary)
            k = rotate(k, *rotary)
        if remember is not None:
            k, v = remember(k, v)                                    # (B, H, n_keys, D)
        # the kernel does not know whether the model is in evaluation mode
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal
        )                                                            # (B, H, T, D)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))         # (B, T, C)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU with which CLIP was trained."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def activation(name: str) -> nn.Module:
    """Return a GELU by name: "gelu" (exact), "gelu_tanh" (GPT-2) or "quick_gelu" (CLIP).

    Raises:
        ValueError: for another name.
    """
    known = {
        "gelu": nn.GELU(),
        "gelu_tanh": nn.GELU(approximate="tanh"),
        "quick_gelu": QuickGELU(),
    }
    if name not in known:
        raise ValueError(f"activation {name!r} is not one of {', '.join(known)}")
    return known[name]


class Block(nn.Module):
    """A pre-norm Transformer block: attention, then an MLP of width 4 C, both residual."""

    def __init__(
        self, n_embd: int, n_head: int, dropout: float = 0.0, act: str = "gelu_tanh"
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(n_embd)
        self.attn = Attention(n_embd, n_head, dropout)
        self.norm2 = nn.LayerNorm(n_embd)
        self.mlp = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd), activation(act), nn.Linear(4 * n_embd, n_embd)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, **options) -> Tensor:
        """(B, T, C) -> (B, T, C); the options are those of `Attention.forward`."""
        x = x + self.drop(self.attn(self.norm1(x), **options))
        return x + self.drop(self.mlp(self.norm2(x)))


@torch.no_grad()
def init_weights(model: nn.Module) -> None:
    """Draw GPT-2's initial weights: standard deviation 0.02, and biases 0.

    Two maps of each of the L blocks add to the residual stream. Their standard deviation is
    0.02 / sqrt(2 L), so that the variance of the stream does not grow with depth.

    Source: Radford et al. 2019 (GPT-2), section 2.3.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding, nn.Conv2d)):
            module.weight.normal_(0, 0.02)
            if getattr(module, "bias", None) is not None:  # an Embedding has none
                module.bias.zero_()
    for tower in model.modules():
        # a model may hold several towers, and each has a depth L of its own
        blocks = [child for child in tower.children() if isinstance(child, Block)]
        for block in blocks:
            std = 0.02 / math.sqrt(2 * len(blocks))
            block.attn.proj.weight.normal_(0, std)
            block.mlp[2].weight.normal_(0, std)


@torch.no_grad()
def init_lookup_heads(blocks: nn.ModuleList, base: float) -> None:
    """Let heads begin near what looking words up needs.

    To look a word up in what was read, a head must compare words, and the heads before it
    must have told each word what stands before it. From random weights a small model
    finds this pair late, if at all (docs/lessons.md). Here it begins near it:

        all heads                                 keys = queries = 3 times the drawn queries
        all heads                                 proj v = identity / 4, a part a head
        heads 0 and 1 of the first two blocks     also look 1 or 2 positions back; of two
                                                  heads one, of one none

    The first two are a simple form of mimetic initialization: a position looks at positions
    like itself, and takes over what it finds. The third comes from biases: where a query is
    rotated by p theta and a key by (p' + d) theta, their product is largest at p - p' = d.

    Args:
        blocks: of a GPT whose queries and keys are rotated, with initial weights.
        base: of the rotation.

    Source: Trockman and Kolter 2023, arXiv:2305.09828; previous token heads: Olsson et al.
    2022, arXiv:2209.11895.
    """
    for i, block in enumerate(blocks):
        attn = block.attn
        C = attn.proj.in_features
        D = C // attn.n_head
        queries, keys, _ = attn.qkv.weight.chunk(3)                  # (C, C) each
        queries *= 3  # else all scores are nearly equal at first
        keys.copy_(queries)
        # Each block draws its own rotation. If all blocks had the same one, head 0 of every
        # block would copy the same directions of the residual stream.
        rotation_v = torch.linalg.qr(torch.randn(C, C))[0]
        attn.qkv.weight[2 * C:] = rotation_v / 2
        attn.proj.weight.copy_(rotation_v.T / 2)
        if i > 1:
            continue
        query_bias, key_bias, _ = attn.qkv.bias.view(3, attn.n_head, D)
        for head in range(min(2, attn.n_head // 2)):
            cos, sin = rotation(torch.tensor([[head + 1]]), D, base)     # (1, 1, 1, D/2)
            # 6: most of the weight is then on that one position
            query_bias[head, :D // 2] = 6
            key_bias[head] = 6 * torch.cat([cos, sin], dim=-1).flatten()
