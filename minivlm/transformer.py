"""The one Transformer block of all towers: ViT, text towers and language models.

    x = x + attention(norm(x))
    x = x + mlp(norm(x))

`BlockConfig` says which parts it is made of, and which models have them. Who wants to read
about one model can skip the parts of the others. attention_masks.py makes the masks, and
rotary.py the angles; this file only applies them.

Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; pre-norm: GPT-2, Radford et al. 2019;
RMSNorm and SwiGLU: Llama, Touvron et al. 2023, arXiv:2302.13971, section 2.2.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivlm.rotary import frequencies, rotate


@dataclass(frozen=True)
class BlockConfig:
    """The parts of a block; the defaults are GPT-2's.

                     GPT-2       CLIP         SigLIP      Llama    Qwen2.5   Qwen3
        norm         layer       layer        layer       rms      rms       rms
        act          gelu_tanh   quick_gelu   gelu_tanh   swiglu   swiglu    swiglu
        bias         all         all          all         none     qkv       none
        n_kv_head    n_head      n_head       n_head      fewer    fewer     fewer
        head_dim     C / H       C / H        C / H       C / H    C / H     128
        qk_norm      no          no           no          no       no        yes

    Raises:
        ValueError: if a part is unknown, or sizes do not go together.
    """

    n_embd: int  # C
    n_head: int  # H
    dropout: float = 0.0
    act: str = "gelu_tanh"  # gelu | gelu_tanh | quick_gelu | swiglu
    n_inner: int = 0  # width of the MLP; 0 = 4 C
    norm: str = "layer"  # layer | rms
    norm_eps: float = 1e-5
    bias: str = "all"  # all | qkv | none: which linear maps have one
    n_kv_head: int = 0  # G, heads of keys and values; each serves H / G queries; 0 = H
    head_dim: int = 0  # D; 0 = C / H
    qk_norm: bool = False  # each head's queries and keys pass an RMSNorm

    def __post_init__(self):
        C, H, G = self.n_embd, self.n_head, self.n_kv_head
        if H < 1 or (not self.head_dim and C % H):
            raise ValueError(f"n_embd {C} is not a multiple of n_head {H}")
        if G and H % G:
            raise ValueError(f"n_head {H} is not a multiple of n_kv_head {G}")
        if type(self.qk_norm) is not bool:
            raise ValueError(f"qk_norm is {self.qk_norm!r}, expected True or False")
        eps = self.norm_eps
        if type(eps) not in (int, float) or not 0 < eps < 1:
            raise ValueError(f"norm_eps is {eps!r}, expected a number between 0 and 1")
        for name, known in (("norm", NORMS), ("act", ACTS), ("bias", BIASES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} {getattr(self, name)!r} is not one of {', '.join(known)}"
                )

    @property
    def heads(self) -> tuple[int, int, int]:
        """H, G, D: heads of queries, heads of keys and values, width of a head."""
        H = self.n_head
        return H, self.n_kv_head or H, self.head_dim or self.n_embd // H


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension, computed in float32.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4.
    """

    def __init__(self, n_embd: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(n_embd))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


class QuickGELU(nn.Module):
    """CLIP's approximation of GELU: x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class SwiGLU(nn.Module):
    """An MLP with a gate: down(silu(gate(x)) * up(x)); `gate_up` makes both in one product.

    Source: Shazeer 2020, arXiv:2002.05202, eq. 6.
    """

    def __init__(self, n_embd: int, n_inner: int, bias: bool):
        super().__init__()
        self.gate_up = nn.Linear(n_embd, 2 * n_inner, bias)
        self.down = nn.Linear(n_inner, n_embd, bias)

    @property
    def maps(self) -> tuple[nn.Parameter, tuple[int, ...]]:
        """The weight of `gate_up`, and the rows of gate and up: Muon needs both apart."""
        return self.gate_up.weight, (self.down.in_features,) * 2

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


NORMS = {"layer": nn.LayerNorm, "rms": RMSNorm}
ACTS = {
    "gelu": nn.GELU, "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "quick_gelu": QuickGELU, "swiglu": None,  # a gate is no function of one number
}
BIASES = ("all", "qkv", "none")


class Attention(nn.Module):
    """Multi-head self-attention.

    `F.scaled_dot_product_attention` computes these lines in one fused call, and in training
    drops out weights:

        scores = q @ k.transpose(-2, -1) / sqrt(D)                   # (B, H, T, T)
        scores = scores.masked_fill(~mask, -inf)
        weights = scores.softmax(dim=-1)
        out = weights @ v                                            # (B, H, T, D)

    Where keys and values have fewer heads than queries, G instead of H, each of them serves
    H / G neighbors (grouped-query attention, Ainslie et al. 2023, arXiv:2305.13245).
    """

    def __init__(self, config: BlockConfig):
        super().__init__()
        C, eps = config.n_embd, config.norm_eps
        self.heads = H, G, D = config.heads
        self.dropout = config.dropout
        # all queries, then all keys, then all values
        self.qkv = nn.Linear(C, (H + 2 * G) * D, bias=config.bias != "none")
        self.proj = nn.Linear(H * D, C, bias=config.bias == "all")
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.norm_q = RMSNorm(D, eps)
            self.norm_k = RMSNorm(D, eps)

    @property
    def maps(self) -> tuple[nn.Parameter, tuple[int, ...]]:
        """The matrix that holds three maps, and the rows of each; for Muon."""
        H, G, D = self.heads
        return self.qkv.weight, (H * D, G * D, G * D)

    def forward(
        self, x: Tensor, causal: bool = False, mask: Tensor | None = None, keep=None,
        rotary: tuple[Tensor, Tensor] | None = None, places: Tensor | None = None,
    ) -> Tensor:
        """Compute for every position a weighted sum over the positions that it sees.

        Args:
            x: (B, T, C).
            causal: let no position see a later one; the kernel then needs no mask.
            mask: (B, 1, T, T), added to the scores, see `attention_masks.added`, or bool,
                True where the key counts. None: every key counts.
            keep: a cache's function, which takes keys and values, (B, G, T, D); or None.
            rotary: as `rotary.rotation` returns it, or None: nothing is rotated.
            places: (M,) as `Block.forward` takes them, or None.

        Returns:
            (B, T, C), or (M, C).
        """
        B, T, _ = x.shape
        H, G, D = self.heads
        # queries and keys together, (B, T, H + G, D), and values, (B, T, G, D)
        qk, v = self.qkv(x).view(B, T, H + 2 * G, D).split((H + G, G), dim=2)
        if self.qk_norm:
            q, k = qk.split((H, G), dim=2)
            qk = torch.cat([self.norm_q(q), self.norm_k(k)], dim=2)
        if rotary is not None:
            qk = rotate(qk, *rotary)
        # (B, H, T, D), (B, G, T, D), (B, G, T, D)
        q, k = qk.transpose(1, 2).split((H, G), dim=1)
        v = v.transpose(1, 2)
        if keep is not None:
            keep(k, v)
        if mask is not None and G < H:  # the fused kernels take masks or groups, not both
            k, v = (x.repeat_interleave(H // G, dim=1) for x in (k, v))
        # the kernel does not know whether the model is in evaluation mode
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal,
            enable_gqa=mask is None and G < H,
        )                                                            # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, H * D)
        return self.proj(y if places is None else taken(y, places))  # (B, T, C) or (M, C)


def make_mlp(config: BlockConfig) -> nn.Module:
    """The block's MLP, C -> n_inner -> C, with one of ACTS or with a gate."""
    C, bias = config.n_embd, config.bias == "all"
    n_inner = config.n_inner or 4 * C
    if config.act == "swiglu":
        return SwiGLU(C, n_inner, bias)
    return nn.Sequential(
        nn.Linear(C, n_inner, bias), ACTS[config.act](), nn.Linear(n_inner, C, bias)
    )


class Block(nn.Module):
    """A pre-norm Transformer block: attention, then an MLP, both residual."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        norm = NORMS[config.norm]
        self.norm1 = norm(config.n_embd, eps=config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = norm(config.n_embd, eps=config.norm_eps)
        self.mlp = make_mlp(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, places: Tensor | None = None, **options) -> Tensor:
        """(B, T, C) -> (B, T, C), or (M, C); the options are those of `Attention.forward`.

        Args:
            places: (M,) positions whose output is wanted, counted over all rows; None: all.
                The last block of a tower needs the keys and values of all positions, but
                the output of these alone.
        """
        y = self.attn(self.norm1(x), places=places, **options)
        x = (x if places is None else taken(x, places)) + self.drop(y)
        return x + self.drop(self.mlp(self.norm2(x)))


def taken(x: Tensor, places: Tensor) -> Tensor:
    """Take some positions, counted over all rows: (B, T, C), (M,) -> (M, C)."""
    return x.flatten(0, 1).index_select(0, places)


def lengthened(places: Tensor) -> Tensor:
    """Repeat the first place until few different lengths are left, 16 between n and 2 n.

    oneDNN, which computes GELU on a CPU, compiles for every new shape, and keeps the last
    thousand of them: more than half a millisecond and 60 kB for each number of answer
    tokens that has not occurred before.
    """
    n = len(places)
    step = 1 << max(0, n.bit_length() - 5)
    return torch.cat([places, places[:1].expand(-n % step)])


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
            into_stream = block.mlp.down if isinstance(block.mlp, SwiGLU) else block.mlp[2]
            into_stream.weight.normal_(0, std)


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
        blocks: of our own GPT, with initial weights: as many keys as queries, and biases.
        base: of the rotation.

    Source: Trockman and Kolter 2023, arXiv:2305.09828; previous token heads: Olsson et al.
    2022, arXiv:2209.11895.
    """
    for i, block in enumerate(blocks):
        attn = block.attn
        H, _, D = attn.heads
        C = H * D
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
        query_bias, key_bias, _ = attn.qkv.bias.view(3, H, D)
        for head in range(min(2, H // 2)):
            angle = (head + 1) * frequencies(D, base, device=key_bias.device)    # (D/2,)
            # 6: most of the weight is then on that one position
            query_bias[head, :D // 2] = 6
            key_bias[head] = 6 * torch.cat([angle.cos(), angle.sin()])
