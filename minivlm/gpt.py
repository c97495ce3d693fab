"""The language models: GPT-2's decoder, and the parts that make it Llama, Qwen or our own.

    logits[:, t] = head(norm(blocks(embed(idx) + pos)))[:, t]   predicts idx[:, t + 1]

    GPT-2          learned positions, tied head; the blocks of transformer.py as they are
    Llama, Qwen    rotary positions instead, other parts in the blocks: see BlockConfig
    ours           GPT-2 with rotary positions as well; its heads start as
                   `init_lookup_heads` says

Published weights of all of them fit. A small model learns sooner from distances how to look
words up in what it has read.

Source: Radford et al. 2019 (GPT-2); Touvron et al. 2023, arXiv:2302.13971 (Llama).
"""

import math
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minivlm.cache import KVCache
from minivlm.attention_masks import added, mask_for, segment_positions
from minivlm.rotary import Llama3Scaling, frequencies, rotation
from minivlm.transformer import (
    NORMS, Block, BlockConfig, init_lookup_heads, init_weights, lengthened,
)


EMBEDDING_SCALE = 5  # of our own GPT, against GPT-2's initial weights


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and parts of a language model; no text is longer than block_size.

    The fields from `dropout` on, but the last four, are those of BlockConfig.

    Raises:
        ValueError: as BlockConfig; if rotary_base is neither 0 nor a finite number above 1;
            if a head that is rotated has an odd width; if nothing tells positions.
    """

    vocab_size: int = 1024  # V
    block_size: int = 256
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128  # C
    dropout: float = 0.0
    act: str = "gelu_tanh"  # GPT-2's; "gelu" takes a fourth of its time on a CPU
    n_inner: int = 0
    norm: str = "layer"
    norm_eps: float = 1e-5
    bias: str = "all"
    n_kv_head: int = 0
    head_dim: int = 0
    qk_norm: bool = False
    learned_positions: bool = True
    rotary_base: float = 0.0  # above 0: queries and keys are rotated; GPT-2 has 0
    rotary_scaling: dict | None = None  # the fields of Llama3Scaling
    tied: bool = True  # the head is the embedding, transposed

    def __post_init__(self):
        _, _, D = self.block.heads
        base = self.rotary_base
        # not isinstance: True is an int too
        if type(base) not in (int, float) or not (base == 0 or 1 < base < math.inf):
            raise ValueError(f"rotary_base is {base!r}, expected 0 or a number above 1")
        if base and D % 2:
            raise ValueError(f"heads of width {D}: rotation needs an even width")
        for name in ("learned_positions", "tied"):
            value = getattr(self, name)
            if type(value) is not bool:
                raise ValueError(f"{name} is {value!r}, expected True or False")
        if not base and not self.learned_positions:
            raise ValueError("neither learned nor rotary positions: no order of words")
        self.scaling  # raises if its fields are wrong

    @property
    def block(self) -> BlockConfig:
        """What the blocks are made of."""
        return BlockConfig(**{f.name: getattr(self, f.name) for f in fields(BlockConfig)})

    @property
    def scaling(self) -> Llama3Scaling | None:
        """How the rotary positions are stretched."""
        return None if self.rotary_scaling is None else Llama3Scaling(**self.rotary_scaling)


class GPT(nn.Module):
    """A causal language model that reads token ids, or embeddings in their place."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        # True: a block's activations are computed again when the gradients need them. That
        # takes the memory of one block instead of all, and a third more time.
        self.checkpoint_blocks = False
        C = config.n_embd
        self.wte = nn.Embedding(config.vocab_size, C)
        self.wpe = None
        if config.learned_positions:
            self.wpe = nn.Embedding(config.block_size, C)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList([Block(config.block) for _ in range(config.n_layer)])
        self.norm = NORMS[config.norm](C, eps=config.norm_eps)
        self.head = nn.Linear(C, config.vocab_size, bias=False)
        init_weights(self)
        self.heads = H, G, D = config.block.heads
        self.scaling = config.scaling
        is_plain = G == H and H * D == C and config.bias != "none" and config.tied
        if config.rotary_base and config.learned_positions and is_plain:  # ours
            init_lookup_heads(self.blocks, config.rotary_base)
            # At GPT-2's 0.02, the first steps make words alike that occur in the same
            # places. Larger embeddings stay apart; the logits start as small as before.
            with torch.no_grad():
                self.wte.weight *= EMBEDDING_SCALE
                self.norm.weight /= EMBEDDING_SCALE
        self.tie()

    def tie(self) -> None:
        """Make the head the embedding, if it is tied; also after tensors were assigned."""
        if self.config.tied:
            self.head.weight = self.wte.weight

    def embed(self, idx: Tensor) -> Tensor:
        """Embed tokens: (B, T) -> (B, T, C). Under autocast the result is float32."""
        x = self.wte(idx)
        return x.float() if torch.is_autocast_enabled(x.device.type) else x

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
            at: (B, T) bool; return only the positions that are True: less work for the last
                block and for a head.
            prefix: (B,) number of leading positions that see each other both ways, or None.
            cache: an empty one, to be filled with the keys and values of these tokens.
                `cache.Decoder` reads what comes behind them.
            positions: (B, T) absolute positions; by default 0 .. T-1.
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
        x = self.embed(idx) if emb is None else emb                  # (B, T, C)
        T = x.shape[1]
        positions = self._positions(x, positions, segments)          # (B or 1, T)
        mask = mask_for(T, prefix, segments)                         # (B, 1, T, T)
        causal = mask is None
        if mask is not None:
            mask = added(mask, x)

        if self.wpe is not None:
            x = x + self.wpe(positions)
        rotary = None
        if c.rotary_base:
            _, _, D = self.heads
            f = frequencies(D, c.rotary_base, self.scaling, x.device)            # (D/2,)
            rotary = rotation(positions, f)
        x = self.drop(x)
        places, M = None, None
        if at is not None:
            places = at.flatten().nonzero()[:, 0]                    # (M,)
            M = len(places)
            places = lengthened(places)                              # (M or a few more,)
        last = len(self.blocks) - 1
        for layer, block in enumerate(self.blocks):
            keep = None if cache is None else partial(cache.fill, layer)
            if self.checkpoint_blocks and cache is None and torch.is_grad_enabled():
                block = partial(checkpoint, block, use_reentrant=False)
            x = block(
                x, causal=causal, mask=mask, keep=keep, rotary=rotary,
                places=places if layer == last else None,
            )
        return self.norm(x[:M])                                      # (B, T, C) or (M, C)

    def _positions(
        self, x: Tensor, positions: Tensor | None, segments: Tensor | None
    ) -> Tensor:
        """Find each token's position in its own text, (B or 1, T); refuse too long texts."""
        T = x.shape[1]
        if segments is not None:
            # each answer is a text of its own, so T may exceed block_size
            positions = segment_positions(segments)
        if positions is None:
            longest = T
            positions = torch.arange(T, device=x.device)[None]       # the same in all rows
        else:
            longest = int(positions.max()) + 1
        if longest > self.config.block_size:
            raise ValueError(
                f"text has {longest} tokens, "
                f"the context holds block_size {self.config.block_size}"
            )
        return positions
