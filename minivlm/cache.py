"""The KV cache, and the pass that reads one new token of each row with its help.

With the keys and values of all earlier tokens, only the new token must be computed. Without
them, a pass would have to compute all earlier tokens again.

    prompts        a a a a        a short prompt is padded on the right; behind it is a gap,
                   b b . .        which no later token sees
    new tokens     a a a a x y    stand in columns that all rows share,
                   b b . . x y    though each row counts positions of its own

What a block computes, `Block.forward` says. At a single position a small model takes less
time for arithmetic than for Python and for the calls of kernels, so `Decoder` computes the
same with as few of them as it can: without modules around the kernels, without dropout, all
keys and values of a token written at once.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivlm.attention_masks import added
from minivlm.rotary import frequencies, rotate, rotation
from minivlm.transformer import Block, SwiGLU

LARGE = 400_000  # numbers in a matrix from which on oneDNN is faster, see `reads_faster`


class KVCache:
    """Holds keys and values of each layer, (B, 2 G, n_columns, D): first G heads of keys.

    Args:
        n_layer, n_rows: L, B.
        n_columns: tokens of the longest prompt, and new tokens of a row.
    """

    def __init__(self, n_layer: int, n_rows: int, n_columns: int):
        self.n_rows = n_rows
        self.n_columns = n_columns
        self.rows: Tensor | slice = slice(None)  # which rows the next pass reads
        self.kv: list[Tensor | None] = [None] * n_layer

    def fill(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Store one layer's keys and values of prompts, (b, G, T, D) each, in `self.rows`."""
        _, G, T, D = k.shape
        if self.kv[layer] is None:
            # zeros: what a mask hides must be finite, too
            self.kv[layer] = k.new_zeros(self.n_rows, 2 * G, self.n_columns, D)
        self.kv[layer][self.rows, :G, :T] = k
        self.kv[layer][self.rows, G:, :T] = v


class Decoder:
    """Reads one new token of each row after another.

    Args:
        gpt: in evaluation mode.
        cache: as the pass over the prompts has filled it.
        lengths: (B,) tokens of each row's prompt.
    """

    def __init__(self, gpt: nn.Module, cache: KVCache, lengths: Tensor):
        self.heads = _, G, D = gpt.heads
        self.n_keys = longest = int(lengths.max())  # columns in use
        self.embed = gpt.embed
        self.wpe = None if gpt.wpe is None else gpt.wpe.weight
        self.layers = [parts_of(block) for block in gpt.blocks]
        self.norm, self.head = bare(gpt.norm), bare(gpt.head)
        # of each layer all that is kept, its keys, its values: (B, G, n_columns, D)
        self.kept = [(kv, *kv.split(G, dim=1)) for kv in cache.kv]
        self.gaps = None  # (B, 1, 1, n_columns), added to the scores
        if int(lengths.min()) < longest:
            columns = torch.arange(cache.n_columns, device=lengths.device)
            counts = (columns < lengths[:, None]) | (columns >= longest)
            self.gaps = added(counts[:, None, None], cache.kv[0])
        self.rotary = None  # `rotation` of all positions, (n_columns, 1, D) each
        if gpt.config.rotary_base:
            f = frequencies(D, gpt.config.rotary_base, gpt.scaling, lengths.device)
            positions = torch.arange(cache.n_columns, device=lengths.device)
            self.rotary = [x[0].to(cache.kv[0]) for x in rotation(positions[None], f)]

    def __call__(self, token: Tensor, positions: Tensor) -> Tensor:
        """Read each row's next token: (B,) ids, (B,) positions -> (B, V) logits."""
        H, G, D = self.heads
        B = len(token)
        n = self.n_keys
        self.n_keys += 1
        gaps = None if self.gaps is None else self.gaps[..., :n + 1]
        x = self.embed(token)                                        # (B, C)
        if self.wpe is not None:
            x = x + F.embedding(positions, self.wpe)
        if self.rotary is not None:
            cos, sin = (table[positions] for table in self.rotary)   # (B, 1, D)
        for (kv, k, v), (norm1, qkv, norm_q, norm_k, proj, norm2, mlp) in zip(
            self.kept, self.layers
        ):
            y = qkv(norm1(x)).view(B, H + 2 * G, D)
            if norm_q is not None:
                y = torch.cat([norm_q(y[:, :H]), norm_k(y[:, H:H + G]), y[:, H + G:]], 1)
            if self.rotary is not None:
                qk = y[:, :H + G]
                qk.copy_(rotate(qk, cos, sin))
            kv.select(2, n).copy_(y.narrow(1, H, 2 * G))
            # the H / G queries that share keys are as many queries of one head
            y = F.scaled_dot_product_attention(
                y.narrow(1, 0, H).view(B, G, H // G, D), k.narrow(2, 0, n + 1),
                v.narrow(2, 0, n + 1), gaps,
            )                                                        # (B, G, H / G, D)
            x = x + proj(y.reshape(B, H * D))
            x = x + mlp(norm2(x))
        return self.head(self.norm(x))

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, (n,): old row rows[i] becomes row i. Rows may repeat."""
        _, G, _ = self.heads
        for layer, (old, _, _) in enumerate(self.kept):
            kv = old.new_empty(len(rows), *old.shape[1:])
            kv[:, :, :self.n_keys] = old[rows, :, :self.n_keys]
            self.kept[layer] = (kv, *kv.split(G, dim=1))
        if self.gaps is not None:
            self.gaps = self.gaps[rows]


def parts_of(block: Block) -> tuple[Callable | None, ...]:
    """What a block computes with, for `Decoder`: norms, linear maps, the MLP."""
    attn = block.attn
    norms = (bare(attn.norm_q), bare(attn.norm_k)) if attn.qk_norm else (None, None)
    if isinstance(block.mlp, SwiGLU):
        mlp = block.mlp.forward
    else:
        up, act, down = map(bare, block.mlp)

        def mlp(x: Tensor) -> Tensor:
            return down(act(up(x)))

    return bare(block.norm1), bare(attn.qkv), *norms, bare(attn.proj), bare(block.norm2), mlp


def bare(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The kernel that a module calls, or its `forward`."""
    if type(module) is nn.LayerNorm:
        shape, weight, bias = module.normalized_shape, module.weight, module.bias
        return lambda x: torch.layer_norm(x, shape, weight, bias, module.eps)
    if type(module) is nn.Linear:
        weight, bias = module.weight, module.bias
        if reads_faster(weight):
            onednn = torch.ops.mkldnn._linear_pointwise.default
            return lambda x: onednn(x, weight, bias, "none", [], "")
        transposed = weight.t()
        if bias is None:
            return lambda x: torch.mm(x, transposed)
        return lambda x: torch.addmm(bias, x, transposed)
    return module.forward


def reads_faster(weight: Tensor) -> bool:
    """Whether oneDNN multiplies a few rows by this matrix sooner than MKL does.

    With few rows, reading the matrix takes the time. Here MKL, which `F.linear` calls, reads
    GPT-2's head with one thread, 14 GB/s, and oneDNN with all of them, 31. For a small
    matrix, the ten microseconds that oneDNN needs to begin are too many. Its operator has
    no public name, but torch's own compiler calls it, too.
    """
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and (
        weight.device.type == "cpu" and weight.dtype == torch.float32
        and weight.numel() >= LARGE and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )
