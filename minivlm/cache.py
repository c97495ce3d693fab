"""The KV cache: keys and values of every layer, kept while a text is generated."""

import torch
from torch import Tensor


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
