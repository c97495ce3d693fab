"""The one Transformer block of all towers: ViT, CLIP's text tower and GPT.

    x = x + attention(norm(x))
    x = x + mlp(norm(x))

Two attention patterns exist: none (every position sees every other, ViT) and causal. A causal row
may have a prefix in which positions see each other both ways (prefix-LM), or hold several answers
to one prompt that do not see each other. There are no padding masks: pads stand on the right, where
a causal row cannot see them.

Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; pre-norm as in GPT-2 (Radford et al. 2019).
"""

import math
from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def check_sizes(config) -> None:
    """Refuse sizes that no model has, of a config out of a checkpoint that anybody may have made.

    Raises:
        ValueError: for a number of layers above 1,000, or any other that is not in 1 .. 10 million
            (the largest vocabularies have some 300 thousand tokens).
    """
    for f in fields(config):
        value, most = getattr(config, f.name), 1000 if f.name.endswith("n_layer") else 10 ** 7
        signed = f.name in ("feature_layer", "image_id")             # checked by who knows more
        if f.type is int and not signed and not (type(value) is int and 1 <= value <= most):
            raise ValueError(f"{f.name} {value!r} is no size, expected a number in 1 .. {most:,}")


class KVCache:
    """Keys and values of every layer for cached generation; each row is as long as itself.

    Shapes: `k` and `v` are (L, B, T_max, H, D). A row's new tokens are written at that row's own
    positions, so rows of different length share one batch without left padding.

    Args:
        n_layer, batch, max_len, n_head, head_dim: sizes L, B, T_max, H, D.
        like: a tensor whose device and dtype the cache takes.
    """

    def __init__(
        self, n_layer: int, batch: int, max_len: int, n_head: int, head_dim: int, like: Tensor
    ):
        shape = (n_layer, batch, max_len, n_head, head_dim)
        self.k = torch.zeros(shape, device=like.device, dtype=like.dtype)
        self.v = torch.zeros(shape, device=like.device, dtype=like.dtype)
        self.rows = torch.arange(batch, device=like.device)[:, None]  # (B, 1)
        self.n_keys = 0  # how many leading positions any row has used

    def write(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, H, T, D) at `positions` (B, T); return all of them, (B, H, n_keys, D)."""
        self.k[layer][self.rows, positions] = k.transpose(1, 2).to(self.k.dtype)
        self.v[layer][self.rows, positions] = v.transpose(1, 2).to(self.v.dtype)
        keys = self.k[layer][:, : self.n_keys].transpose(1, 2)
        values = self.v[layer][:, : self.n_keys].transpose(1, 2)
        return keys.to(k.dtype), values.to(v.dtype)  # autocast may compute in a narrower type


def attention_mask(positions: Tensor, n_keys: int, prefix: Tensor | None = None) -> Tensor:
    """Say which key each query may see: the ones not after it, and the whole prefix.

        mask[b, 0, t, j] = j <= positions[b, t]  or  j < prefix[b]

    A query behind the prefix sees all of it by causality, so the second clause only adds the
    backward look *inside* the prefix; nothing inside it ever sees what follows. Every row sees at
    least itself, so no softmax runs over nothing.

    Args:
        positions: (B, T) absolute position of each query.
        n_keys: number of keys, positions 0 .. n_keys-1.
        prefix: (B,) length of each row's bidirectional prefix, or None for a causal mask.

    Returns:
        (B, 1, T, n_keys) bool, True where the key counts.

    Source: the prefix-LM of SimVLM, Wang et al. 2021, arXiv:2108.10904, section 3.1.

    >>> attention_mask(torch.tensor([[0, 1, 2]]), 3, prefix=torch.tensor([2]))[0, 0].int()
    tensor([[1, 1, 0],
            [1, 1, 0],
            [1, 1, 1]], dtype=torch.int32)
    """
    keys = torch.arange(n_keys, device=positions.device)
    mask = keys <= positions[:, None, :, None]                       # (B, 1, T, n_keys)
    return mask if prefix is None else mask | (keys < prefix[:, None, None, None])


def segment_mask(segments: Tensor) -> Tensor:
    """Say which key each query may see where a row holds a prompt and several answers to it.

        mask[b, 0, t, j] = j <= t  and  segments[b, j] in (0, segments[b, t])

    So each answer reads on from the prompt as if it stood there alone, and the prompt is read once
    for all of them. How many keys a query sees is how far it stands from its own beginning.

    Args:
        segments: (B, T), 0 at the prompt, k at the k-th answer, -1 at pads.

    Returns:
        (B, 1, T, T) bool, True where the key counts.

    >>> segment_mask(torch.tensor([[0, 1, 1, 2]]))[0, 0].int()
    tensor([[1, 0, 0, 0],
            [1, 1, 0, 0],
            [1, 1, 1, 0],
            [1, 0, 0, 1]], dtype=torch.int32)
    """
    T = segments.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=segments.device).tril()
    keys, queries = segments[:, None, None, :], segments[:, None, :, None]
    return causal & ((keys == 0) | (keys == queries))                # (B, 1, T, T)


def last_only(lengths: Tensor, T: int) -> Tensor:
    """(B,) lengths -> (B, T) bool, True at each row's last token.

    >>> last_only(torch.tensor([1, 3]), 3).int()
    tensor([[1, 0, 0],
            [0, 0, 1]], dtype=torch.int32)
    """
    return torch.arange(T, device=lengths.device) == lengths[:, None] - 1


class Attention(nn.Module):
    """Multi-head self-attention; `F.scaled_dot_product_attention` does, in one fused call,

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
        self.n_head, self.dropout = n_head, dropout
        self.qkv = nn.Linear(n_embd, 3 * n_embd)
        self.proj = nn.Linear(n_embd, n_embd)

    def forward(
        self, x: Tensor, causal: bool = False, mask: Tensor | None = None, remember=None
    ) -> Tensor:
        """Mix positions. x: (B, T, C); mask: (B, 1, T, n_keys) bool; remember: k, v -> all k, v."""
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).unbind(2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)        # (B, H, T, D)
        if remember is not None:
            k, v = remember(k, v)                                                # (B, H, n_keys, D)
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p, is_causal=causal)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))                     # (B, T, C)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation that OpenAI's CLIP weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def activation(name: str) -> nn.Module:
    """Return a GELU by name: "gelu" (exact), "gelu_tanh" (GPT-2), "quick_gelu" (CLIP)."""
    known = {"gelu": nn.GELU(), "gelu_tanh": nn.GELU(approximate="tanh"), "quick_gelu": QuickGELU()}
    if name not in known:
        raise ValueError(f"activation {name!r} is not one of {', '.join(known)}")
    return known[name]


class Block(nn.Module):
    """A pre-norm Transformer block: attention, then a four times wider MLP, both residual."""

    def __init__(self, n_embd: int, n_head: int, dropout: float = 0.0, act: str = "gelu_tanh"):
        super().__init__()
        self.norm1 = nn.LayerNorm(n_embd)
        self.attn = Attention(n_embd, n_head, dropout)
        self.norm2 = nn.LayerNorm(n_embd)
        self.mlp = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd), activation(act), nn.Linear(4 * n_embd, n_embd)
        )
        self.drop = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, causal: bool = False, mask: Tensor | None = None, remember=None
    ) -> Tensor:
        """(B, T, C) -> (B, T, C); the other arguments are those of Attention."""
        x = x + self.drop(self.attn(self.norm1(x), causal, mask, remember))
        return x + self.drop(self.mlp(self.norm2(x)))


@torch.no_grad()
def init_weights(model: nn.Module) -> None:
    """Draw GPT-2's initial weights: N(0, 0.02), biases 0, what enters the residual stream smaller.

    The two maps that write into the residual stream of each of L blocks start at
    0.02 / sqrt(2 L), so that the stream's variance does not grow with depth.

    Source: Radford et al. 2019 (GPT-2), section 2.3.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding, nn.Conv2d)):
            module.weight.normal_(0, 0.02)
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
    for tower in model.modules():
        blocks = [child for child in tower.children() if isinstance(child, Block)]
        for block in blocks:
            block.attn.proj.weight.normal_(0, 0.02 / math.sqrt(2 * len(blocks)))
            block.mlp[2].weight.normal_(0, 0.02 / math.sqrt(2 * len(blocks)))
