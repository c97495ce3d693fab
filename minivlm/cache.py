"""The KV cache: keys and values of every layer, kept while a text is generated.

With it, a pass computes the new tokens only. Without it, every token before them would be
computed again.
"""

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer, (L, B, T_max, H, D) each.

    A row's new tokens are written at that row's own positions. So rows of different lengths
    share one batch without padding on the left.

    Args:
        n_layer, batch, max_len, n_head, head_dim: sizes L, B, T_max, H, D.
        like: a tensor whose device and dtype the cache takes.
    """

    def __init__(
        self, n_layer: int, batch: int, max_len: int, n_head: int, head_dim: int,
        like: Tensor,
    ):
        self.k = like.new_zeros(n_layer, batch, max_len, n_head, head_dim)
        self.v = torch.zeros_like(self.k)
        self.rows = torch.arange(batch, device=like.device)[:, None]  # (B, 1)
        self.n_keys = 0  # positions in use, in the longest row

    def extend(self, positions: Tensor) -> int:
        """Announce the `positions` (B, T) that come next; return the new n_keys."""
        self.n_keys = max(self.n_keys, int(positions.max()) + 1)
        return self.n_keys

    def write(
        self, layer: int, k: Tensor, v: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store k and v of a layer at `positions`; return all keys and values of the layer.

        Args:
            k, v: (B, H, T, D) of the new tokens.
            positions: (B, T).

        Returns:
            keys and values, (B, H, n_keys, D).
        """
        # autocast may compute in a narrower type than the cache has
        self.k[layer][self.rows, positions] = k.transpose(1, 2).to(self.k.dtype)
        self.v[layer][self.rows, positions] = v.transpose(1, 2).to(self.v.dtype)
        keys = self.k[layer][:, :self.n_keys].transpose(1, 2)        # (B, H, n_keys, D)
        values = self.v[layer][:, :self.n_keys].transpose(1, 2)
        return keys.to(k.dtype), values.to(v.dtype)
