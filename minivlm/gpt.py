"""GPT-2's decoder: token and position embeddings, causal blocks, a head tied to the embedding.

    logits[:, t] = head(norm(blocks(embed(idx) + pos)))[:, t]   scores the token after idx[:, t]

Source: Radford et al. 2019 (GPT-2). Left out: nothing of the architecture, so that its weights fit.
Used by: train_lm.py on its own, vlm.py as the language half.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from minivlm.cache import KVCache
from minivlm.masks import attention_mask, segment_mask
from minivlm.transformer import Block, init_weights


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a GPT: V = vocab_size, C = n_embd; no text is longer than block_size."""

    vocab_size: int = 1024
    block_size: int = 256
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    dropout: float = 0.0


class GPT(nn.Module):
    """A causal language model over token ids, or over embeddings put in their place."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        C = config.n_embd
        self.wte = nn.Embedding(config.vocab_size, C)
        self.wpe = nn.Embedding(config.block_size, C)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            [Block(C, config.n_head, config.dropout) for _ in range(config.n_layer)]
        )
        self.norm = nn.LayerNorm(C)
        self.head = nn.Linear(C, config.vocab_size, bias=False)
        init_weights(self)
        self.head.weight = self.wte.weight

    def forward(self, idx: Tensor | None = None, **options) -> Tensor:
        """Score the next token at every position; arguments and errors are those of `hidden`.

        Returns:
            (B, T, V) logits, or (number of True in `at`, V).
        """
        return self.head(self.hidden(idx, **options))

    def hidden(
        self,
        idx: Tensor | None = None,
        *,
        emb: Tensor | None = None,
        at: Tensor | None = None,
        prefix: Tensor | None = None,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """What the head, or any other head, reads: the normed output of the last block.

        Args:
            idx: (B, T) token ids; or else
            emb: (B, T, C) token embeddings, as a VLM makes them.
            at: (B, T) bool; give these positions only. Same numbers, less work for the head.
            prefix: (B,) leading positions that see each other both ways, or None.
            cache: keys and values so far; the new ones are added.
            positions: (B, T) absolute positions, needed with a cache; by default 0 .. T-1.
            segments: (B, T), which answer to a shared prompt a token belongs to, see
                `segment_mask`; each then counts its positions on from the prompt's. Or None.

        Returns:
            (B, T, C), or (number of True in `at`, C).

        Raises:
            ValueError: if the text, or the prompt with one of its answers, is longer than
                block_size; if segments come with a prefix, a cache or positions.
        """
        x = self.wte(idx) if emb is None else emb                    # (B, T, C)
        B, T, _ = x.shape
        mask, longest = None, T
        if segments is not None:
            if prefix is not None or cache is not None or positions is not None:
                raise ValueError("segments go with no prefix, cache or positions")
            mask = segment_mask(segments)                            # (B, 1, T, T)
            positions = (mask.sum(-1)[:, 0] - 1).masked_fill(segments < 0, 0)    # (B, T)
            longest = int(positions.max()) + 1
        if longest > self.config.block_size:
            raise ValueError(
                f"text has {longest} tokens, the context holds block_size {self.config.block_size}"
            )

        if positions is None:
            positions = torch.arange(T, device=x.device).expand(B, T)  # (B, T)
        if cache is not None:
            cache.n_keys = max(cache.n_keys, int(positions.max()) + 1)
        # the fused causal kernel needs no mask
        plain = cache is None and prefix is None and segments is None
        n_keys = T if cache is None else cache.n_keys
        if mask is None and not plain:
            mask = attention_mask(positions, n_keys, prefix)

        x = self.drop(x + self.wpe(positions))
        for layer, block in enumerate(self.blocks):
            remember = None if cache is None else partial(cache.write, layer, positions=positions)
            x = block(x, causal=plain, mask=mask, remember=remember)
        return self.norm(x if at is None else x[at])                 # (M, C) where M = at.sum()

    def new_cache(self, batch: int, max_len: int) -> KVCache:
        """An empty cache for `batch` rows of at most `max_len` positions."""
        c = self.config
        return KVCache(
            c.n_layer, batch, max_len, c.n_head, c.n_embd // c.n_head, like=self.wte.weight
        )
