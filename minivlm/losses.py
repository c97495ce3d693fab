"""Every objective of the pipeline, side by side, as pure functions.

Targets are already shifted (contract 1) and -100 where nothing is supervised (contract 3);
log-probabilities are natural logarithms (contract 6). Models are never called from here.

    next-token   -mean log p(token | before)        language, captions, answers
    InfoNCE      which caption fits which picture   train_clip.py, train_caption.py
    match        does this caption fit, yes or no   train_caption.py
    Bradley-Terry  which answer is preferred        train_reward.py
    KL, PPO        what a drawn token is worth      train_ppo.py
    DPO, IPO, ...  preferences without a reward model   train_dpo.py
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
    img_z, txt_z = at_least_float32(img_z), at_least_float32(txt_z)
    with torch.autocast(img_z.device.type, enabled=False):           # 100 in bfloat16 is 0.25 off
        logits = logit_scale * img_z @ txt_z.T                       # (B, B)
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


# --- preferences ---


def reward_loss(
    chosen_score: Tensor, rejected_score: Tensor, margin: Tensor | float = 0.0
) -> Tensor:
    """Bradley-Terry: how surprised a reward model is that people prefer the chosen answer.

        loss = -log sigmoid(chosen_score - rejected_score - margin)

    Args:
        chosen_score, rejected_score: (B,).
        margin: () or (B,), how much better the chosen one must be; Llama 2 sets it by how clear the
            preference is.

    Returns:
        (B,) nats; ln 2 where both score alike and there is no margin.

    Source: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, eq. 1; the margin: Touvron et al.
    2023 (Llama 2), arXiv:2307.09288, eq. 2.

    >>> reward_loss(torch.tensor([0.0]), torch.tensor([0.0]))
    tensor([0.6931])
    """
    better_by = at_least_float32(chosen_score) - at_least_float32(rejected_score)
    return -F.logsigmoid(better_by - margin)


def ranking_loss(scores: Tensor, ranks: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Bradley-Terry over all pairs of a ranked list, weighted together per prompt.

        loss = mean_b mean_{i, j: ranks_bi < ranks_bj} -log sigmoid(scores_bi - scores_bj - margin)

    The pairs of one prompt share its answers, so a prompt counts once however many pairs it has:
    a pair as its own batch element would be overfitted in one epoch.

    Args:
        scores: (B, K).
        ranks: (B, K) integers, 1 is best; equals carry no pair; 0 marks an answer that is missing.
        margin: () or (B, K, K), how much better i must be than j, see `reward_loss`.

    Returns:
        () nats, the mean over prompts that have a pair.

    Raises:
        ValueError: if the shapes differ, or no prompt has a pair.

    Source: InstructGPT, arXiv:2203.02155, section 3.5 and eq. 1.

    >>> ranking_loss(torch.zeros(1, 3), torch.tensor([[1, 2, 2]]))
    tensor(0.6931)
    """
    if scores.shape != ranks.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and ranks {tuple(ranks.shape)} differ")
    there = ranks > 0                                                # (B, K)
    better = ranks[:, :, None] < ranks[:, None, :]                   # (B, K, K), i before j
    better = better & there[:, :, None] & there[:, None, :]
    n_pairs = better.sum((1, 2))                                     # (B,)
    if not bool(n_pairs.any()):
        raise ValueError("no prompt has two answers of different rank: all are ties")
    loss = reward_loss(scores[:, :, None], scores[:, None, :], margin)   # (B, K, K)
    per_prompt = loss.masked_fill(~better, 0.0).sum((1, 2)) / n_pairs.clamp(min=1)
    return per_prompt[n_pairs > 0].mean()


# --- PPO ---


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x where the mask is True; both (B, T) -> ().

    Raises:
        ValueError: if nothing counts.
    """
    n = mask.sum()
    if not bool(n):
        raise ValueError("nothing counts: the mask is False everywhere")
    return x.masked_fill(~mask, 0.0).sum() / n


def kl_estimate(logp: Tensor, ref_logp: Tensor, kind: str = "k1") -> Tensor:
    """Estimate KL(policy || reference) token by token, from tokens that the policy drew.

        k1 = logp - ref_logp                                unbiased, may be negative
        k2 = (logp - ref_logp)^2 / 2                        biased, never negative
        k3 = exp(ref_logp - logp) - 1 - (ref_logp - logp)   unbiased, never negative

    Args:
        logp, ref_logp: (B, T) nats, 0 at ignored positions.

    Returns:
        (B, T), 0 where both are equal.

    Raises:
        ValueError: for another kind.

    Source: Schulman 2020, Approximating KL Divergence, joschu.net/blog/kl-approx.html.

    >>> kl_estimate(torch.tensor([[0.0]]), torch.tensor([[-1.0]]), "k3")
    tensor([[0.3679]])
    """
    log_ratio = at_least_float32(ref_logp) - at_least_float32(logp)
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return log_ratio.square() / 2
    if kind == "k3":
        return torch.expm1(log_ratio) - log_ratio
    raise ValueError(f"kind {kind!r} is not one of k1, k2, k3")


def ppo_policy_loss(
    logp: Tensor, old_logp: Tensor, advs: Tensor, mask: Tensor, clip_eps: float
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate: make good tokens likelier, but not by more than clip_eps in one go.

        ratio = exp(logp - old_logp)
        loss = - mean_t min(ratio * advs, clip(ratio, 1 - clip_eps, 1 + clip_eps) * advs)

    Args:
        logp, old_logp: (B, T) of the drawn tokens, now and at rollout.
        advs: (B, T).
        mask: (B, T) bool, True at tokens of the answer.

    Returns:
        () loss, and () share of tokens whose gradient the clip has cut off.

    Raises:
        ValueError: if nothing counts.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7.

    >>> one = torch.ones(1, 1)
    >>> ppo_policy_loss(one * 0, one * 0, one * 2, one.bool(), 0.2)  # ratio 1: minus mean advs
    (tensor(-2.), tensor(0.))
    """
    log_ratio = at_least_float32(logp) - at_least_float32(old_logp)
    ratio = log_ratio.masked_fill(~mask, 0.0).exp()
    free, held = ratio * advs, ratio.clamp(1 - clip_eps, 1 + clip_eps) * advs
    clipped = masked_mean((held < free).float(), mask)
    return -masked_mean(torch.minimum(free, held), mask), clipped


def ppo_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_eps: float
) -> Tensor:
    """Half the squared error of the values, which may not leave old_values by more than clip_eps.

        held = old_values + clip(values - old_values, -clip_eps, clip_eps)
        loss = mean_t max((values - returns)^2, (held - returns)^2) / 2

    Args:
        values, old_values, returns: (B, T); mask: (B, T) bool.

    Returns:
        () loss.

    Raises:
        ValueError: if nothing counts.

    Source: Schulman et al. 2017, arXiv:1707.06347, section 5; the clip as in openai/baselines,
    ppo2.
    """
    values, old_values = at_least_float32(values), at_least_float32(old_values)
    held = old_values + (values - old_values).clamp(-clip_eps, clip_eps)
    worst = torch.maximum((values - returns).square(), (held - returns).square())
    return masked_mean(worst, mask) / 2


# --- direct preferences ---


def sequence_logprobs(
    logp: Tensor, mask: Tensor, weights: Tensor | None = None, average: bool = False
) -> Tensor:
    """Log-probability of whole answers, from that of their tokens.

        sum_t w_t logp_t             or, as an average,  sum_t w_t logp_t / sum_t w_t

    Args:
        logp: (B, T) nats, 0 where the mask is False.
        mask: (B, T) bool, True at tokens of the answer.
        weights: (B, T) > 0, how much a token counts; None: each counts 1.
        average: divide, so that a long answer weighs no more than a short one.

    Returns:
        (B,) nats, or nats per token.

    Raises:
        ValueError: if a row has no answer.

    Source: weights with their average: dense DPO of RLHF-V, Yu et al. 2023, arXiv:2312.00849,
    section 3.2, whose code has the weighted sum too; the average over plain tokens: what
    huggingface/trl calls sigmoid_norm, and does for ipo.

    >>> logp, mask = torch.tensor([[-1.0, -3.0]]), torch.tensor([[True, True]])
    >>> sequence_logprobs(logp, mask, torch.tensor([[1.0, 3.0]]), average=True)  # (-1 - 9) / 4
    tensor([-2.5000])
    """
    if not bool(mask.any(1).all()):
        raise ValueError("a row has no token of an answer")
    logp = at_least_float32(logp)
    w = mask if weights is None else weights.masked_fill(~mask, 0.0)
    total = (w * logp).sum(1)                                        # (B,)
    return total / w.sum(1) if average else total


def dpo_loss(
    chosen_logp: Tensor, rejected_logp: Tensor, ref_chosen_logp: Tensor, ref_rejected_logp: Tensor,
    beta: float, kind: str = "sigmoid", label_smoothing: float = 0.0,
) -> Tensor:
    """Score each pair by how far the policy's margin between its answers exceeds the reference's.

        h = (chosen_logp - ref_chosen_logp) - (rejected_logp - ref_rejected_logp)
        right, wrong = -log sigmoid(beta h), -log sigmoid(-beta h),   e = label_smoothing
        sigmoid    (1 - e) right + e wrong                  DPO; with e cDPO
        robust     ((1 - e) right - e wrong) / (1 - 2 e)    has the clean labels' loss as its mean
        hinge      max(0, 1 - beta h)                       SLiC
        ipo        (h - 1 / (2 beta))^2                     regresses h, so it cannot run away

    A policy equal to its reference has h = 0, which costs ln 2 for sigmoid and robust whatever e
    is, 1 for hinge and 1 / (4 beta^2) for ipo. The implicit reward of an answer, up to what depends
    on the prompt alone, is beta (logp - ref_logp).

    IPO comes with two conventions: its authors sum over an answer's tokens, huggingface/trl takes
    the mean. Both are this function's ipo, of sums or of means; see `sequence_logprobs`.

    Args:
        chosen_logp, rejected_logp: (B,) log-probabilities of the answers under the policy, nats.
        ref_chosen_logp, ref_rejected_logp: (B,) the same under the frozen reference.
        beta: > 0, nats; larger keeps the policy closer to the reference.
        kind: sigmoid, robust, hinge or ipo.
        label_smoothing: share of labels thought to be wrong, 0 <= e < 0.5, of sigmoid and robust.

    Returns:
        (B,) loss per pair.

    Raises:
        ValueError: if the shapes differ, beta is not above 0, or for another kind or smoothing.

    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; cDPO: Mitchell 2023, "A note on DPO with
    noisy preferences"; robust: Chowdhury et al. 2024, arXiv:2403.00409; hinge: Zhao et al. 2023,
    arXiv:2305.10425, as Liu et al. 2023, arXiv:2309.06657, write it; ipo: Azar et al. 2023,
    arXiv:2310.12036, eq. 17.

    >>> z = torch.zeros(2)
    >>> dpo_loss(z, z, z, z, beta=0.1)
    tensor([0.6931, 0.6931])
    """
    shapes = [tuple(x.shape) for x in (chosen_logp, rejected_logp, ref_chosen_logp,
                                       ref_rejected_logp)]
    if len(set(shapes)) > 1:
        raise ValueError(f"log-probabilities of different shapes: {shapes}")
    if not beta > 0:
        raise ValueError(f"beta is {beta}, expected more than 0")
    e = label_smoothing
    if not 0 <= e < 0.5 or (e and kind not in ("sigmoid", "robust")):
        raise ValueError(f"label_smoothing is {e} for kind {kind}, expected 0 .. 0.5 for sigmoid "
                         "and robust, else 0")
    chosen_logp, rejected_logp = at_least_float32(chosen_logp), at_least_float32(rejected_logp)
    chosen, rejected = chosen_logp - ref_chosen_logp, rejected_logp - ref_rejected_logp
    h = chosen - rejected                                            # (B,)
    right, wrong = -F.logsigmoid(beta * h), -F.logsigmoid(-beta * h)
    if kind == "sigmoid":
        return (1 - e) * right + e * wrong
    if kind == "robust":
        return ((1 - e) * right - e * wrong) / (1 - 2 * e)
    if kind == "hinge":
        return (1 - beta * h).clamp(min=0)
    if kind == "ipo":
        return (h - 1 / (2 * beta)).square()
    raise ValueError(f"kind {kind!r} is not one of sigmoid, robust, hinge, ipo")
