"""The KV cache: keys and values of every layer, kept while a text is generated.

With the cache, a forward pass computes the new tokens only. Without it, the pass would have
to compute all earlier tokens again.
"""

import torch
from torch import Tensor


class KVCache:
    """Holds the keys and the values of every layer, each (L, B, T_max, G, D).

    Each row's new tokens are written at that row's own positions. So rows of different
    lengths can share a batch without padding on the left.

    Args:
        n_layer, batch, max_len, n_head, head_dim: sizes L, B, T_max, G, D.
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
        """Count the positions in use once `positions`, (B, T), are written; return n_keys.

        Call it once in each forward pass, before the first layer calls `write`.
        """
        self.n_keys = max(self.n_keys, int(positions.max()) + 1)
        return self.n_keys

    def write(
        self, layer: int, k: Tensor, v: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values; return all that the layer has so far.

        Args:
            k, v: (B, G, T, D) of the new tokens.
            positions: (B, T), where each new token stands in its row.

        Returns:
            keys and values, (B, G, n_keys, D). Behind the end of a short row stand those of
            pads, or zeros. The attention mask must hide them.
        """
        # autocast may compute in a narrower type than the cache has
        self.k[layer][self.rows, positions] = k.transpose(1, 2).to(self.k.dtype)
        self.v[layer][self.rows, positions] = v.transpose(1, 2).to(self.v.dtype)
        keys = self.k[layer][:, :self.n_keys].transpose(1, 2)        # (B, G, n_keys, D)
        values = self.v[layer][:, :self.n_keys].transpose(1, 2)
        return keys.to(k.dtype), values.to(v.dtype)
