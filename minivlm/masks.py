"""Who sees whom: the attention masks of the language model.

    causal                 a token sees itself and what stands before it
    causal with a prefix   within the prefix, tokens see each other both ways (prefix-LM, SimVLM)
    answers to one prompt  each answer sees the prompt and itself, not the other answers

The ViT needs none: every patch sees every patch. There are no padding masks either, because pads
stand on the right, where a causal row cannot see them.
"""

import torch
from torch import Tensor


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
