"""The attention masks of the language model: which position may see which.

    plain causal   a token sees itself and all tokens before it
    prefix         causal, but tokens of the prefix see each other both ways (prefix-LM)
    segments       causal; of several answers to one prompt, each sees the prompt and itself

The ViT needs no mask, because every patch sees every patch. Pads need none either: they
stand on the right, where no earlier token sees them.
"""

import torch
from torch import Tensor


def mask_for(
    positions: Tensor, prefix: Tensor | None, segments: Tensor | None, n_keys: int | None
) -> Tensor | None:
    """Choose the mask of one pass through the GPT.

        case           given       mask
        plain causal   nothing     None: the fused causal kernel needs no mask and is faster
        prefix         prefix      causal, and all of the prefix
        segments       segments    causal, within the prompt and the query's own answer
        cache          n_keys      causal over all n_keys positions, and all of the prefix

    Args:
        positions: (B, T) absolute position of each query.
        prefix: (B,) length of each row's prefix, or None.
        segments: (B, T) as in `segment_mask`, or None; never with prefix or cache.
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

    A query behind the prefix sees the whole prefix by the first condition. So the second
    one matters only inside the prefix: there a query also sees later keys, up to the
    prefix's end. Every query sees at least itself; a softmax over no keys would be NaN.

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

    The result for each answer is the same as if it stood alone behind the prompt, but the
    prompt is read only once.

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
    """Let each answer's positions follow the prompt's: (B, T) -> (B, T), 0 at pads.

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
