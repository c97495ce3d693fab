"""How well pictures and texts find each other: recall at k, its chance level, CLIPScore."""

import torch
from torch import Tensor


def recall_at_k(similarity: Tensor, right: Tensor, k: int) -> float:
    """Share of queries with a right item among their k most similar ones.

    A query counts once, however many of its right items are found. Ties count against the
    model, so a constant similarity scores 0 and not 1.

    Args:
        similarity: (Q, G) of Q queries to G gallery items.
        right: (Q, G) bool, True where the item answers the query.

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
    """Recall@k of a random order.

    Of G items m are right. The first k items of a random order miss all m of them with
    probability

        P(miss) = (G-m)/G * (G-m-1)/(G-1) * ... * (G-m-k+1)/(G-k+1)

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
    """CLIPScore: how well texts fit their pictures, according to a CLIP.

        score = mean_i 2.5 * max(cos(img_z_i, txt_z_i), 0)

    Only scores of the same CLIP can be compared. The published score puts "A photo depicts"
    before every text; put there what your CLIP has been trained on.

    Args:
        img_z, txt_z: (n, C) of unit length; row i of one belongs to row i of the other.

    Source: Hessel et al. 2021, arXiv:2104.08718, section 3.

    >>> txt_z = torch.tensor([[0.6, 0.8], [0.0, -1.0]])
    >>> round(clip_score(torch.eye(2), txt_z), 6)  # 2.5 * (0.6 + 0) / 2
    0.75
    """
    return 2.5 * (img_z * txt_z).sum(dim=1).clamp(min=0).mean().item()
