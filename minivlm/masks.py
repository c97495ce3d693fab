"""Which position may see which: the attention masks of the language model.

    plain causal   a token sees itself and all tokens before it
    prefix         causal, but inside the prefix tokens see each other both ways (prefix-LM)
    segments       several answers to one prompt: each sees the prompt and itself only

The ViT needs no mask, because every patch sees every patch. Padding needs none either: pads
stand on the right, where a causal row cannot see them.
"""

import torch
from torch import Tensor


def mask_for(
    positions: Tensor, prefix: Tensor | None, segments: Tensor | None, n_keys: int | None
) -> Tensor | None:
    """Choose the mask of one pass through the GPT.

        case           given       mask
        plain causal   nothing     None: the fused causal kernel does it, and is faster
        prefix         prefix      causal, and all of the prefix
        segments       segments    causal, within the prompt and the query's own answer
        cache          n_keys      causal over all n_keys positions, and all of the prefix

    Args:
        positions: (B, T) absolute position of each query.
        prefix: (B,) length of each row's prefix, or None.
        segments: (B, T) as in `segment_mask`, or None; go with neither prefix nor cache.
        n_keys: number of keys in the cache, or None without a cache.

    Returns:
        None, or (B, 1, T, n_keys or T) bool, True where the key counts.
    """
    if segments is not None:
        return segment_mask(segments)
    if prefix is None and n_keys is None:
        return None
    if n_keys is None:
        n_keys = positions.shape[1]
    return attention_mask(positions, n_keys, prefix)


def attention_mask(positions: Tensor, n_keys: int, prefix: Tensor | None = None) -> Tensor:
    """Let each query see the keys that are not after it, and the whole prefix.

        mask[b, 0, t, j] = j <= positions[b, t]  or  j < prefix[b]

    A query behind the prefix sees all of it anyway. So the second condition only lets
    positions inside the prefix see later ones, and never one behind the prefix. Every query
    sees at least itself, because a softmax over no key would be NaN.

    Args:
        positions: (B, T) absolute position of each query.
        n_keys: number of keys, at positions 0 .. n_keys-1.
        prefix: (B,) length of each row's prefix, or None for a causal mask.

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
    if prefix is None:
        return mask
    return mask | (keys < prefix[:, None, None, None])


def segment_mask(segments: Tensor) -> Tensor:
    """Let each query see the prompt and its own answer, where a row holds several answers.

        mask[b, 0, t, j] = j <= t  and  segments[b, j] in (0, segments[b, t])

    Each answer is read as if it stood alone behind the prompt. The prompt is read once.

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
    keys = segments[:, None, None, :]                                # (B, 1, 1, T)
    queries = segments[:, None, :, None]                             # (B, 1, T, 1)
    return causal & ((keys == 0) | (keys == queries))                # (B, 1, T, T)


def segment_positions(segments: Tensor) -> Tensor:
    """Count each answer's positions on from the prompt's: (B, T) -> (B, T), 0 at pads.

    >>> segment_positions(torch.tensor([[0, 0, 1, 1, 2, -1]]))
    tensor([[0, 1, 2, 3, 2, 0]])
    """
    # a token sees exactly the tokens before it in its own text, and itself
    n_seen = segment_mask(segments).sum(-1)[:, 0]                    # (B, T)
    return (n_seen - 1).masked_fill(segments < 0, 0)


def last_only(lengths: Tensor, T: int) -> Tensor:
    """Mark each row's last token: (B,) lengths -> (B, T) bool.

    >>> last_only(torch.tensor([1, 3]), 3).int()
    tensor([[1, 0, 0],
            [0, 0, 1]], dtype=torch.int32)
    """
    return torch.arange(T, device=lengths.device) == lengths[:, None] - 1
