"""The attention masks of the language model: which position may see which.

    plain causal   a token sees itself and all tokens before it
    prefix         causal, but tokens of the prefix see each other both ways (prefix-LM)
    segments       causal; of several answers to one prompt, each sees the prompt and itself

The ViT needs no mask, because every patch sees every patch. Pads need none either: they
stand on the right, where no earlier token sees them.
"""

import torch
from torch import Tensor


def mask_for(T: int, prefix: Tensor | None, segments: Tensor | None) -> Tensor | None:
    """Choose the mask of one pass over T tokens.

    Args:
        prefix: (B,) length of each row's prefix, or None.
        segments: (B, T) as in `segment_mask`, or None; never with a prefix.

    Returns:
        (B, 1, T, T) bool, True where the key counts; or None for plain causal attention:
        the fused kernel needs no mask for it, and is faster.
    """
    if segments is not None:
        return segment_mask(segments)
    return None if prefix is None else prefix_mask(T, prefix)


def prefix_mask(T: int, prefix: Tensor) -> Tensor:
    """Let each query see the keys that are not after it, and the whole prefix.

        mask[b, 0, t, j] = j <= t  or  j < prefix[b]

    A query behind the prefix sees the whole prefix by the first condition. So the second
    one matters only inside the prefix: there a query also sees later keys, up to the
    prefix's end. Every query sees at least itself; a softmax over no keys would be NaN.

    Args:
        prefix: (B,) length of each row's prefix; 0 for a causal mask.

    Returns:
        (B, 1, T, T) bool, True where the key counts.

    Source: the prefix-LM of SimVLM, Wang et al. 2021, arXiv:2108.10904, section 3.1.

    >>> prefix_mask(3, torch.tensor([2]))[0, 0].int()
    tensor([[1, 1, 0],
            [1, 1, 0],
            [1, 1, 1]], dtype=torch.int32)
    """
    keys = torch.arange(T, device=prefix.device)
    causal = keys <= keys[:, None]                                   # (T, T)
    return causal | (keys < prefix[:, None, None, None])


def added(mask: Tensor, x: Tensor) -> Tensor:
    """The same mask as attention adds it to the scores: 0 where the key counts, else -inf.

    Attention would make it from a mask of bools, in every layer anew.

    Args:
        x: what the blocks compute with; its number format, or autocast's, is the mask's.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill_(~mask, -torch.inf)


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
