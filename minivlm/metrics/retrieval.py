"""Measure how well pictures and texts fit: recall@k, its chance level, CLIPScore."""

import torch
from torch import Tensor


def recall_at_k(similarity: Tensor, right: Tensor, k: int) -> float:
    """Return the share of queries with a right item among their k most similar items.

    A query counts once, however many of its right items are found. Ties count against the
    model: a constant similarity has recall 0, not 1, if k wrong items exist.

    Args:
        similarity: (Q, G) of Q queries to G items.
        right: (Q, G) bool, True where the item answers the query; at least one in each row.

    Returns:
        0 .. 1.

    Source: the image-to-text protocol of Karpathy and Fei-Fei 2015, arXiv:1412.2306,
    section 4.1.

    >>> similarity = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
    >>> recall_at_k(similarity, torch.eye(2, dtype=torch.bool), k=1)
    0.5
    """
    best_right = similarity.masked_fill(~right, -torch.inf).amax(1, keepdim=True)  # (Q, 1)
    # "not below" instead of "above or equal": NaN then counts against the model
    above = (~(similarity < best_right) & ~right).sum(1)                           # (Q,)
    return (above < k).float().mean().item()


def recall_by_chance(right: Tensor, k: int) -> float:
    """Return the expected recall@k if the items are in random order.

    Let m of G items be right. The first k items of a random order miss all m of them with
    probability

        P(miss) = (G-m)/G * (G-m-1)/(G-1) * ... * (G-m-k+1)/(G-k+1)

    The result is the mean of 1 - P(miss) over all queries.

    Args:
        right: (Q, G) bool, as for `recall_at_k`.

    >>> recall_by_chance(torch.eye(4, dtype=torch.bool), 2)
    0.5
    """
    G = right.shape[1]
    wrong = (~right).sum(1).double()                                 # (Q,)
    miss = torch.ones_like(wrong)
    for i in range(min(k, G)):
        miss *= (wrong - i).clamp(min=0) / (G - i)
    return float(1 - miss.mean())


def clip_score(img_z: Tensor, txt_z: Tensor) -> float:
    """Compute CLIPScore: how well texts fit their pictures, according to a CLIP.

        CLIPScore = mean_i 2.5 * max(cos(img_z_i, txt_z_i), 0)

    Two CLIPScores can be compared only if the same CLIP gave both. The paper puts "A photo
    depicts" before every text; this function leaves the texts to its caller.

    Args:
        img_z, txt_z: (n, C) embeddings of unit length; text i belongs to picture i.

    Returns:
        0 .. 2.5.

    Source: Hessel et al. 2021, arXiv:2104.08718, section 3.

    >>> txt_z = torch.tensor([[0.6, 0.8], [0.0, -1.0]])
    >>> round(clip_score(torch.eye(2), txt_z), 6)  # 2.5 * (0.6 + 0) / 2
    0.75
    """
    return 2.5 * (img_z * txt_z).sum(dim=1).clamp(min=0).mean().item()
