"""Every objective of the pipeline, side by side, as pure functions.

Targets are already shifted (contract 1) and -100 where nothing is supervised (contract 3);
log-probabilities are natural logarithms (contract 6). Models are never called from here.

    next-token   -mean log p(token | before)        language, captions, answers
    InfoNCE      which caption fits which picture   train_clip.py, train_caption.py
    match        does this caption fit, yes or no   train_caption.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100  # torch's default for cross_entropy


def at_least_float32(x: Tensor) -> Tensor:
    """Widen half precision, where sums of exponentials lose too much; leave float32 and float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def next_token_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Average the negative log-likelihood of the supervised tokens of the whole batch.

        loss = - sum_t [targets_t != -100] log p(targets_t) / count

    Long rows weigh more than short ones, because the mean runs over tokens, not over rows.

    Args:
        logits: (..., V), position t scores targets[..., t]; nothing is shifted here.
        targets: (...) ids, or -100 where the token does not count.
        label_smoothing: share of the probability spread evenly over the vocabulary, 0 .. 1.

    Returns:
        () loss in nats per token; ln V for a model that knows nothing.

    Raises:
        ValueError: if no token is supervised, or the shapes do not fit.

    Source: Bengio et al. 2003, section 2; answers only: LLaVA, arXiv:2304.08485, eq. 3.

    >>> next_token_loss(torch.zeros(1, 2, 4), torch.tensor([[3, -100]]))  # ln 4
    tensor(1.3863)
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)} do not fit targets {tuple(targets.shape)}")
    if not bool((targets != IGNORE_INDEX).any()):
        raise ValueError("no token is supervised: every target is -100")
    return F.cross_entropy(
        at_least_float32(logits.flatten(0, -2)), targets.flatten(),
        ignore_index=IGNORE_INDEX, label_smoothing=label_smoothing,
    )


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target token; exactly 0 where nothing is supervised.

    A sequence's log-probability is the sum over its row.

    Args:
        logits: (B, T, V).
        targets: (B, T), -100 where the token does not count.

    Returns:
        (B, T) nats.

    >>> token_logprobs(torch.zeros(1, 2, 4), torch.tensor([[3, -100]]))
    tensor([[-1.3863,  0.0000]])
    """
    logp = -F.cross_entropy(
        at_least_float32(logits.flatten(0, -2)), targets.flatten(),
        ignore_index=IGNORE_INDEX, reduction="none",
    ).view_as(targets)
    return logp.masked_fill(targets == IGNORE_INDEX, 0.0)  # turns -0.0 into 0.0


def clip_loss(img_z: Tensor, txt_z: Tensor, logit_scale: Tensor | float) -> Tensor:
    """InfoNCE both ways: each picture must find its caption and each caption its picture.

        logits = logit_scale * img_z @ txt_z.T
        loss = (cross_entropy(logits, diagonal) + cross_entropy(logits.T, diagonal)) / 2

    A caption that stands m times in a batch does no harm: its copies have one vector, so the loss
    and its gradients are those of targets shared among them (UniCL, Yang et al. 2022,
    arXiv:2204.03610, eq. 3), and ln m is the least that they can cost. A batch whose vectors are
    all equal costs ln B.

    Args:
        img_z, txt_z: (B, C) of unit length, row i of both belongs together.
        logit_scale: the multiplier, already exponentiated.

    Returns:
        () loss in nats.

    Raises:
        ValueError: if the shapes differ.

    Source: van den Oord et al. 2018, arXiv:1807.03748, eq. 4; Radford et al. 2021,
    arXiv:2103.00020, figure 3.

    >>> z = torch.eye(2)
    >>> clip_loss(z, z, 1.0)  # -ln(e / (e + 1))
    tensor(0.3133)
    """
    if img_z.shape != txt_z.shape:
        raise ValueError(f"img_z {tuple(img_z.shape)} and txt_z {tuple(txt_z.shape)} differ")
    logits = logit_scale * img_z @ txt_z.T                           # (B, B)
    diagonal = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2


def equal_rows(idx: Tensor) -> Tensor:
    """Which texts of a batch are the same: (B, T) ids, padded alike -> (B, B) bool."""
    text = torch.unique(idx, dim=0, return_inverse=True)[1]          # (B,) its number
    return text[:, None] == text[None]


def match_loss(logits: Tensor, fits: Tensor) -> Tensor:
    """Judge each pair of picture and text: the cross-entropy of "no" and "yes".

        loss = - mean_i log softmax(logits_i)[fits_i]

    Args:
        logits: (B, 2), the second column is "yes".
        fits: (B,) 1 where the text belongs to the picture, 0 where not.

    Returns:
        () loss in nats; ln 2 for a head that knows nothing.

    Raises:
        ValueError: if the shapes do not fit.

    Source: the image-text matching of BLIP, Li et al. 2022, arXiv:2201.12086, section 3.2.

    >>> match_loss(torch.zeros(3, 2), torch.tensor([1, 0, 0]))
    tensor(0.6931)
    """
    if logits.shape != (*fits.shape, 2):
        raise ValueError(
            f"logits {tuple(logits.shape)} are not two for each of {tuple(fits.shape)}"
        )
    return F.cross_entropy(at_least_float32(logits), fits)
