"""GPT-2's decoder: token and position embeddings, causal blocks, a tied head.

    logits[:, t] = head(norm(blocks(embed(idx) + pos)))[:, t]   predicts idx[:, t + 1]

The architecture is exactly GPT-2's, so published GPT-2 weights fit. With `rotary_base`,
queries and keys are rotated as well, as in later models, and the heads start as
`init_lookup_heads` says. A small model learns sooner from distances how to look words up in
what it has read.

Source: Radford et al. 2019 (GPT-2).
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from minivlm.cache import KVCache
from minivlm.attention_masks import mask_for, segment_positions
from minivlm.transformer import Block, init_lookup_heads, init_weights, rotation


EMBEDDING_SCALE = 5  # of a GPT with rotary positions, against GPT-2's initial weights


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a GPT: V = vocab_size, C = n_embd; no text is longer than block_size."""

    vocab_size: int = 1024
    block_size: int = 256
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    dropout: float = 0.0
    rotary_base: float = 0.0  # above 0: queries and keys are also rotated; GPT-2 has 0
    act: str = "gelu_tanh"  # GPT-2's; "gelu" takes a fourth of its time on a CPU


class GPT(nn.Module):
    """A causal language model that reads token ids, or embeddings in their place.

    Raises:
        ValueError: if rotary_base is neither 0 nor a finite number above 1; if a head that
            is rotated has an odd width.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        base = config.rotary_base
        # not isinstance: True is an int too
        if type(base) not in (int, float) or not (base == 0 or 1 < base < math.inf):
            raise ValueError(f"rotary_base is {base!r}, expected 0 or a number above 1")
        C = config.n_embd
        self.wte = nn.Embedding(config.vocab_size, C)
        self.wpe = nn.Embedding(config.block_size, C)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList([
            Block(C, config.n_head, config.dropout, config.act)
            for _ in range(config.n_layer)
        ])
        # the blocks have checked that the heads divide C
        if base and C // config.n_head % 2:
            raise ValueError(
                f"n_embd {C} in {config.n_head} heads: rotation needs an even width"
            )
        self.norm = nn.LayerNorm(C)
        self.head = nn.Linear(C, config.vocab_size, bias=False)
        init_weights(self)
        if base:
            init_lookup_heads(self.blocks, base)
            # At GPT-2's 0.02, the first steps make words alike that occur in the same
            # places. Larger embeddings stay apart; the logits start as small as before.
            with torch.no_grad():
                self.wte.weight *= EMBEDDING_SCALE
                self.norm.weight /= EMBEDDING_SCALE
        self.head.weight = self.wte.weight  # tied, as in GPT-2

    def forward(self, idx: Tensor | None = None, **options) -> Tensor:
        """Return the logits of each position's next token; arguments as for `hidden`.

        Returns:
            (B, T, V) logits, or (number of True in `at`, V).

        Raises:
            ValueError: as `hidden`.
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
        """Return the last block's output, normalized, for the GPT's own head or another.

        Args:
            idx: (B, T) token ids; None if emb is given.
            emb: (B, T, C) token embeddings, as a VLM makes them.
            at: (B, T) bool; return only the positions that are True: less work for a head.
            prefix: (B,) number of leading positions that see each other both ways, or None.
            cache: keys and values of earlier tokens; this call adds those of its tokens.
            positions: (B, T) absolute positions; by default 0 .. T-1. A cache that already
                holds tokens needs them.
            segments: (B, T) of packed rows, see `segment_mask`, or None. With them,
                positions are those of `segment_positions`.

        Returns:
            (B, T, C), or (number of True in `at`, C).

        Raises:
            ValueError: if a position, of the text or of the prompt with one of its answers,
                is not below block_size; if segments come with a prefix, a cache or
                positions.
        """
        if segments is not None and any(x is not None for x in (prefix, cache, positions)):
            raise ValueError("segments cannot be combined with prefix, cache or positions")
        c = self.config
        x = self.wte(idx) if emb is None else emb                    # (B, T, C)
        positions = self._positions(x, positions, segments)          # (B, T)
        n_keys = None if cache is None else cache.extend(positions)
        mask = mask_for(positions, prefix, segments, n_keys)         # (B, 1, T, n_keys)

        rotary = None
        if c.rotary_base:
            rotary = rotation(positions, c.n_embd // c.n_head, c.rotary_base)
        x = self.drop(x + self.wpe(positions))
        for layer, block in enumerate(self.blocks):
            remember = None
            if cache is not None:
                remember = partial(cache.write, layer, positions=positions)
            x = block(
                x, causal=mask is None, mask=mask, remember=remember, rotary=rotary
            )
        if at is not None:
            x = x[at]                                                # (M, C), M = at.sum()
        return self.norm(x)

    def _positions(
        self, x: Tensor, positions: Tensor | None, segments: Tensor | None
    ) -> Tensor:
        """Find each token's position in its own text, (B, T); refuse too long texts."""
        B, T, _ = x.shape
        if segments is not None:
            # each answer is a text of its own, so T may exceed block_size
            positions = segment_positions(segments)
        if positions is None:
            longest = T
            positions = torch.arange(T, device=x.device).expand(B, T)
        else:
            longest = int(positions.max()) + 1
        if longest > self.config.block_size:
            raise ValueError(
                f"text has {longest} tokens, "
                f"the context holds block_size {self.config.block_size}"
            )
        return positions

    def new_cache(self, batch: int, max_len: int) -> KVCache:
        """Make an empty cache for `batch` rows of at most `max_len` positions."""
        c = self.config
        return KVCache(
            c.n_layer, batch, max_len, c.n_head, c.n_embd // c.n_head, like=self.wte.weight
        )
