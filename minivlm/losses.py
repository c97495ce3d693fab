"""Every objective of the pipeline, side by side, as pure functions. No model is called.

    next-token     -mean log p(token | before)        language, captions, answers
    InfoNCE        which caption fits which picture   train_clip.py, train_caption.py
    SigLIP         does this caption fit this picture train_clip.py --loss siglip
    match          does a caption fit, yes or no      train_caption.py
    Bradley-Terry  which answer is preferred          train_reward.py
    KL, PPO        what a drawn token is worth        train_ppo.py
    GRPO, RLOO     which of k answers is better       train_grpo.py
    DPO, IPO, ...  preferences, no reward model       train_dpo.py

Targets are shifted before they come here: targets[:, t] is the token after position t, or
-100 where no token is supervised. Log-probabilities are natural logarithms (nats).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100  # torch's default for cross_entropy


def at_least_float32(x: Tensor) -> Tensor:
    """Widen half precision to float32; leave float32 and float64 as they are.

    Half precision loses too much in sums of exponentials and differences of close numbers.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def next_token_loss(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Average the negative log-likelihood over the supervised tokens of the whole batch.

        loss = - sum_t w_t log p(targets_t) / sum_t w_t,    w_t = 0 where targets_t = -100

    The mean runs over tokens, not over rows, so a long row weighs more than a short one.

    Args:
        logits: (..., V); those at position t predict targets[..., t], so nothing is shifted
            here.
        targets: (...) ids, or -100 where the token does not count.
        label_smoothing: 0 .. 1; the share of a target's probability that is spread evenly
            over the vocabulary.
        weights: (...) of the tokens, at least 0; None: 1 for each.

    Returns:
        () loss in nats per token; ln V for a model that has learned nothing.

    Raises:
        ValueError: if no token is supervised, or the shapes do not fit.

    Source: Bengio et al. 2003, section 2; answers only: LLaVA, arXiv:2304.08485, eq. 3.

    >>> next_token_loss(torch.zeros(1, 2, 4), torch.tensor([[3, -100]]))  # ln 4
    tensor(1.3863)
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} do not fit targets {tuple(targets.shape)}"
        )
    if not (targets != IGNORE_INDEX).any():
        raise ValueError("no token is supervised: every target is -100")
    losses = F.cross_entropy(
        at_least_float32(logits.flatten(0, -2)), targets.flatten(),
        ignore_index=IGNORE_INDEX, label_smoothing=label_smoothing,
        reduction="mean" if weights is None else "none",
    )
    if weights is None:
        return losses                                                # ()
    weights = weights.flatten() * (targets.flatten() != IGNORE_INDEX)
    return (losses * weights).sum() / weights.sum()


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probability of each target token, exactly 0 where there is none.

    Their sum over a row is the log-probability of the row's answer.

    Args:
        logits: (B, T, V).
        targets: (B, T) ids, or -100 where the token does not count.

    Returns:
        (B, T) nats.

    >>> token_logprobs(torch.zeros(1, 2, 4), torch.tensor([[3, -100]]))
    tensor([[-1.3863,  0.0000]])
    """
    logp = -F.cross_entropy(
        at_least_float32(logits.flatten(0, -2)), targets.flatten(),
        ignore_index=IGNORE_INDEX, reduction="none",
    ).view_as(targets)                                               # (B, T)
    # cross_entropy gives 0 where there is no target, and the minus turns it into -0.0
    return logp.masked_fill(targets == IGNORE_INDEX, 0.0)


def similarity_logits(img_z: Tensor, txt_z: Tensor, logit_scale: Tensor | float) -> Tensor:
    """The similarity of every picture to every caption, times the multiplier.

    Args:
        img_z, txt_z: (B, C) of unit length.
        logit_scale: the multiplier, already exponentiated.

    Returns:
        (B, B), at least float32: near 100, the largest logit, bfloat16 rounds to steps of
        0.5.

    Raises:
        ValueError: if the shapes differ.
    """
    if img_z.shape != txt_z.shape:
        raise ValueError(
            f"img_z {tuple(img_z.shape)} and txt_z {tuple(txt_z.shape)} differ"
        )
    with torch.autocast(img_z.device.type, enabled=False):
        return logit_scale * at_least_float32(img_z) @ at_least_float32(txt_z).T


def clip_loss(img_z: Tensor, txt_z: Tensor, logit_scale: Tensor | float) -> Tensor:
    """InfoNCE both ways: each picture must find its caption and each caption its picture.

        logits = logit_scale * img_z @ txt_z.T
        loss = (cross_entropy(logits, diagonal) + cross_entropy(logits.T, diagonal)) / 2

    A batch may hold the same caption m times. The m copies have equal vectors, so loss and
    gradients are the same as if the copies shared the target probability (UniCL, Yang et
    al. 2022, arXiv:2204.03610, eq. 3). The loss of such a caption is at least ln m. If all
    vectors of a batch are equal, the loss is ln B.

    Args:
        img_z, txt_z: (B, C) of unit length; row i of one belongs to row i of the other.
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
    logits = similarity_logits(img_z, txt_z, logit_scale)            # (B, B)
    diagonal = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2


def siglip_loss(
    img_z: Tensor, txt_z: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float
) -> Tensor:
    """Ask of every pair by itself whether picture and caption belong together.

        logits = logit_scale * img_z @ txt_z.T + logit_bias
        loss = - 1/B sum_ij log sigmoid(y_ij logits_ij),    y = 1 on the diagonal, else -1

    No pair is compared with others, so the loss does not need a large batch. Of B^2 pairs
    only B belong together; a bias of about -10 at the start says so, and the first steps
    need not learn it.

    Args:
        img_z, txt_z: (B, C) of unit length; row i of one belongs to row i of the other.
        logit_scale: the multiplier t, already exponentiated; 10 at the start.
        logit_bias: b.

    Returns:
        () loss in nats per picture, the sum over its B captions.

    Raises:
        ValueError: if the shapes differ.

    Source: SigLIP, Zhai et al. 2023, arXiv:2303.15343, eq. 2 and algorithm 1.

    >>> z = torch.eye(2)
    >>> siglip_loss(z, z, 1.0, 0.0)  # ln(1 + 1/e) + ln 2
    tensor(1.0064)
    """
    logits = similarity_logits(img_z, txt_z, logit_scale) + logit_bias
    y = 2 * torch.eye(len(logits), device=logits.device) - 1         # (B, B)
    return -F.logsigmoid(y * logits).sum() / len(logits)


def equal_rows(idx: Tensor) -> Tensor:
    """Find the texts of a batch that are equal: (B, T) ids, padded alike -> (B, B) bool."""
    # equal rows get equal numbers
    _, number = torch.unique(idx, dim=0, return_inverse=True)        # (B,)
    return number[:, None] == number[None]


def match_loss(logits: Tensor, fits: Tensor) -> Tensor:
    """Cross-entropy of the matching head: does each text belong to its picture?

        loss = - mean_i log softmax(logits_i)[fits_i]

    Args:
        logits: (B, 2), the first column is "no", the second "yes".
        fits: (B,) 1 where the text belongs to the picture, else 0.

    Returns:
        () loss in nats; ln 2 for a head that has learned nothing.

    Raises:
        ValueError: if the shapes do not fit.

    Source: the image-text matching of BLIP, Li et al. 2022, arXiv:2201.12086, section 3.2.

    >>> match_loss(torch.zeros(3, 2), torch.tensor([1, 0, 0]))
    tensor(0.6931)
    """
    if logits.shape != (*fits.shape, 2):
        raise ValueError(
            f"logits {tuple(logits.shape)} do not fit pairs {tuple(fits.shape)}, expected "
            "two logits for each pair"
        )
    return F.cross_entropy(at_least_float32(logits), fits)


# --- preferences ---


def reward_loss(
    chosen_score: Tensor, rejected_score: Tensor, margin: Tensor | float = 0.0
) -> Tensor:
    """Bradley-Terry: the negative log-probability that the chosen answer is preferred.

        loss = -log sigmoid(chosen_score - rejected_score - margin)

    Args:
        chosen_score, rejected_score: (B,) raw scores of a reward model.
        margin: () or (B,); by how much the chosen score must exceed the rejected one. Llama
            2 has a larger margin where people found the difference clearer.

    Returns:
        (B,) loss in nats; ln 2 where both scores are equal and the margin is 0.

    Source: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, eq. 1; the margin: Touvron
    et al. 2023 (Llama 2), arXiv:2307.09288, eq. 2.

    >>> reward_loss(torch.tensor([0.0]), torch.tensor([0.0]))
    tensor([0.6931])
    """
    # widened before the subtraction: the difference of two close scores has few bits left
    difference = at_least_float32(chosen_score) - rejected_score
    return -F.logsigmoid(difference - margin)


def ranking_loss(scores: Tensor, ranks: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Bradley-Terry over all pairs of each ranking, averaged first within each prompt.

        difference_bij = scores_bi - scores_bj - margin_bij
        loss = mean_b mean_{i, j: ranks_bi < ranks_bj} -log sigmoid(difference_bij)

    Every prompt counts once, however many pairs its answers make. The pairs of one prompt
    share answers. If these pairs were spread over several batches, the reward model would
    overfit in one epoch.

    Args:
        scores: (B, K) raw scores of K answers to each of B prompts.
        ranks: (B, K) integers, 1 is best; equal ranks make no pair; 0 is a missing answer.
        margin: () or (B, K, K); by how much score i must exceed score j, see `reward_loss`.

    Returns:
        () loss in nats, the mean over the prompts that have a pair.

    Raises:
        ValueError: if the shapes differ, or no prompt has a pair.

    Source: InstructGPT, arXiv:2203.02155, section 3.5 and eq. 1.

    >>> ranking_loss(torch.zeros(1, 3), torch.tensor([[1, 2, 2]]))
    tensor(0.6931)
    """
    if scores.shape != ranks.shape:
        raise ValueError(
            f"scores {tuple(scores.shape)} and ranks {tuple(ranks.shape)} differ"
        )
    present = ranks > 0                                              # (B, K)
    is_better = ranks[:, :, None] < ranks[:, None, :]                # (B, K, K), i before j
    # a missing answer has rank 0, below all others: it must not be i, and it never is j
    is_better = is_better & present[:, :, None]
    n_pairs = is_better.sum((1, 2))                                  # (B,)
    if not n_pairs.any():
        raise ValueError("no prompt has two answers of different rank: all are ties")
    loss = reward_loss(scores[:, :, None], scores[:, None, :], margin)   # (B, K, K)
    per_prompt = loss.masked_fill(~is_better, 0.0).sum((1, 2)) / n_pairs.clamp(min=1)
    return per_prompt[n_pairs > 0].mean()


# --- PPO ---


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Average x where the mask is True; both (B, T) -> ().

    Raises:
        ValueError: if the mask is False everywhere.
    """
    n = mask.sum()
    if not n:
        raise ValueError("nothing counts: the mask is False everywhere")
    return x.masked_fill(~mask, 0.0).sum() / n


def kl_estimate(logp: Tensor, ref_logp: Tensor, kind: str = "k1") -> Tensor:
    """Estimate KL(policy || reference) at each token that the policy drew.

        k1 = logp - ref_logp                                unbiased, may be negative
        k2 = (logp - ref_logp)^2 / 2                        biased, never negative
        k3 = exp(ref_logp - logp) - 1 - (ref_logp - logp)   unbiased, never negative

    Args:
        logp, ref_logp: (B, T) nats, 0 at ignored positions.
        kind: k1, k2 or k3.

    Returns:
        (B, T) nats, 0 where both are equal.

    Raises:
        ValueError: for another kind.

    Source: Schulman 2020, Approximating KL Divergence, joschu.net/blog/kl-approx.html.

    >>> kl_estimate(torch.tensor([[0.0]]), torch.tensor([[-1.0]]), "k3")
    tensor([[0.3679]])
    """
    log_ratio = at_least_float32(ref_logp) - logp
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
    """Make tokens of positive advantage likelier and others less likely, both clipped.

        ratio = exp(logp - old_logp)
        unclipped = ratio * advs
        clipped = clip(ratio, 1 - clip_eps, 1 + clip_eps) * advs
        loss = - mean_t min(unclipped, clipped)

    Args:
        logp, old_logp: (B, T) nats, log-probabilities of the drawn tokens by the policy now
            and by the policy that drew them.
        advs: (B, T) advantages.
        mask: (B, T) bool, True at tokens of the answer.
        clip_eps: > 0; a ratio that has moved further than this from 1, in the direction
            that the advantage asks for, gets no gradient.

    Returns:
        () loss; and clip_fraction, the () share of tokens that get no gradient.

    Raises:
        ValueError: if the mask is False everywhere.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7.

    >>> one = torch.ones(1, 1)
    >>> ppo_policy_loss(one * 0, one * 0, one * 2, one.bool(), 0.2)  # ratio 1: -mean advs
    (tensor(-2.), tensor(0.))
    """
    log_ratio = at_least_float32(logp) - old_logp
    # outside of the answer exp could overflow, and the gradient would be 0 * inf = NaN
    ratio = log_ratio.masked_fill(~mask, 0.0).exp()
    unclipped = ratio * advs
    clipped = ratio.clamp(1 - clip_eps, 1 + clip_eps) * advs
    clip_fraction = masked_mean((clipped < unclipped).float(), mask)
    return -masked_mean(torch.minimum(unclipped, clipped), mask), clip_fraction


def group_policy_loss(
    logp: Tensor, old_logp: Tensor, advs: Tensor, mask: Tensor, kind: str,
    clip_low: float, clip_high: float, longest: int, kl: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """PPO's clipped loss for advantages of whole answers: the losses of GRPO and RLOO.

        ratio_t = exp(logp_t - old_logp_t)
        gain_t = min(ratio_t adv, clip(ratio_t, 1 - clip_low, 1 + clip_high) adv) - kl_t

        grpo       - mean over answers of (sum_t gain_t / tokens of the answer)
        dr_grpo    - mean over answers of (sum_t gain_t / longest)
        rloo       - mean over answers of (min(ratio adv, clip(ratio, ...) adv) - sum_t kl_t)
                     where ratio = exp(sum_t (logp_t - old_logp_t)), one for each answer

    grpo divides by an answer's own length, so that a token of a long answer counts less.
    Long wrong answers are then punished less than short ones; dr_grpo divides all by the
    same number. While the policy has not moved, rloo's gradient is that of REINFORCE. A
    larger `clip_high` lets rare tokens become likely sooner (DAPO).

    Args:
        logp, old_logp: (B, T) nats, as `ppo_policy_loss` takes them.
        advs: (B,) of the answers, see `rl.group_advantages`.
        mask: (B, T) bool, True at tokens of the answer.
        kind: grpo, dr_grpo or rloo.
        clip_low, clip_high: > 0; ratios outside get no gradient.
        longest: tokens that an answer may have; dr_grpo divides by it.
        kl: (B, T) cost of each token, already times its coefficient; or None.

    Returns:
        () loss; and clip_fraction, the () share of tokens, for rloo of answers, that get no
        gradient.

    Raises:
        ValueError: for another kind, or if a row has no answer.

    Source: Shao et al. 2024, arXiv:2402.03300, eq. 3; Liu et al. 2025, arXiv:2503.20783,
    section 3.2; Ahmadian et al. 2024, arXiv:2402.14740, eqs. 6 and 9, clipped as in
    huggingface/trl; clip_high: Yu et al. 2025 (DAPO), arXiv:2503.14476, eq. 10.

    >>> zero, mask = torch.zeros(1, 2), torch.ones(1, 2).bool()
    >>> group_policy_loss(zero, zero, torch.tensor([3.0]), mask, "dr_grpo", 0.2, 0.2, 4)
    (tensor(-1.5000), tensor(0.))
    """
    if kind not in ("grpo", "dr_grpo", "rloo"):
        raise ValueError(f"kind {kind!r} is not one of grpo, dr_grpo, rloo")
    if not mask.any(1).all():
        raise ValueError("a row has no token of an answer")
    log_ratio = (at_least_float32(logp) - old_logp).masked_fill(~mask, 0.0)      # (B, T)
    cost = torch.zeros_like(log_ratio) if kl is None else kl.masked_fill(~mask, 0.0)
    if kind == "rloo":  # an answer is one action
        log_ratio, cost = log_ratio.sum(1, keepdim=True), cost.sum(1, keepdim=True)
        mask = mask.any(1, keepdim=True)                             # (B, 1)
    ratio = log_ratio.exp()
    free = ratio * advs[:, None]
    held = ratio.clamp(1 - clip_low, 1 + clip_high) * advs[:, None]
    gain = (torch.minimum(free, held) - cost).masked_fill(~mask, 0.0)
    n = longest if kind == "dr_grpo" else mask.sum(1)
    return -(gain.sum(1) / n).mean(), masked_mean((held < free).float(), mask)


def ppo_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_eps: float
) -> Tensor:
    """Half the squared error of the values; moving beyond clip_eps does not lower it.

        clipped = old_values + clip(values - old_values, -clip_eps, clip_eps)
        loss = mean_t max((values - returns)^2, (clipped - returns)^2) / 2

    Args:
        values, old_values: (B, T), by the value model now and at the time of the rollout.
        returns: (B, T), what the values should predict.
        mask: (B, T) bool, True at tokens of the answer.
        clip_eps: >= 0; how far a value may move from its old value; 0 is no limit.

    Returns:
        () loss.

    Raises:
        ValueError: if the mask is False everywhere.

    Source: Schulman et al. 2017, arXiv:1707.06347, section 5; the clip as in
    openai/baselines, ppo2.
    """
    values = at_least_float32(values)
    errors = (values - returns).square()                             # (B, T)
    if clip_eps:
        clipped = old_values + (values - old_values).clamp(-clip_eps, clip_eps)
        # the larger error counts, so the clip can remove gradient but never hide an error
        errors = torch.maximum(errors, (clipped - returns).square())
    return masked_mean(errors, mask) / 2


# --- direct preferences ---


def sequence_logprobs(
    logp: Tensor, mask: Tensor, weights: Tensor | None = None, average: bool = False
) -> Tensor:
    """Sum the tokens' log-probabilities over each answer, or average them.

        sum_t w_t logp_t             or, as an average,  sum_t w_t logp_t / sum_t w_t

    Args:
        logp: (B, T) nats, finite everywhere; ignored where the mask is False.
        mask: (B, T) bool, True at tokens of the answer.
        weights: (B, T), above 0; how much each token counts. None: each counts 1.
        average: divide by the sum of the weights, so that length does not matter.

    Returns:
        (B,) nats, or nats per token.

    Raises:
        ValueError: if a row has no answer.

    Source: the weighted average is the dense DPO of RLHF-V, Yu et al. 2023,
    arXiv:2312.00849, section 3.2; RLHF-V's code also has the weighted sum. The average
    without weights is sigmoid_norm of huggingface/trl, which also uses it for ipo.

    >>> logp, mask = torch.tensor([[-1.0, -3.0]]), torch.tensor([[True, True]])
    >>> weights = torch.tensor([[1.0, 3.0]])
    >>> sequence_logprobs(logp, mask, weights, average=True)  # (-1 - 9) / 4
    tensor([-2.5000])
    """
    if not mask.any(1).all():
        raise ValueError("a row has no token of an answer")
    w = mask if weights is None else weights.masked_fill(~mask, 0.0)
    total = (w * at_least_float32(logp)).sum(1)                      # (B,)
    return total / w.sum(1) if average else total


def dpo_loss(
    chosen_logp: Tensor, rejected_logp: Tensor, ref_chosen_logp: Tensor,
    ref_rejected_logp: Tensor, beta: float, kind: str = "sigmoid",
    label_smoothing: float = 0.0,
) -> Tensor:
    """DPO and its family: make the policy's margin larger than the reference's.

        h = (chosen_logp - ref_chosen_logp) - (rejected_logp - ref_rejected_logp)
        right = -log sigmoid(beta h)
        wrong = -log sigmoid(-beta h)
        e = label_smoothing

        sigmoid    (1 - e) right + e wrong                  DPO; cDPO if e > 0
        robust     ((1 - e) right - e wrong) / (1 - 2 e)    expectation: clean labels' loss
        hinge      max(0, 1 - beta h)                       SLiC
        ipo        (h - 1 / (2 beta))^2                     h has the target 1 / (2 beta)
        kto        (1 - sigmoid(beta (chosen - z)) + 1 - sigmoid(beta (z - rejected))) / 2
                   with chosen and rejected the two terms of h, and z the larger of 0 and the
                   mean of all these terms, which has no gradient

    If the policy equals its reference, h is 0. The loss is then ln 2 for sigmoid and robust
    with any e, 1 for hinge, 1 / (4 beta^2) for ipo, and 1 / 2 for kto. The implicit
    reward of an answer is beta (logp - ref_logp), up to a term that depends on the prompt
    only.

    There are two conventions for IPO: its authors take the sum over an answer's tokens,
    huggingface/trl the average. Here the caller chooses, see `sequence_logprobs`.

    KTO needs no pairs: it compares each answer with z, an estimate of the policy's KL to its
    reference. Its authors take z from answers to other questions; here it is that of these
    own answers: of a micro-batch, if gradients are accumulated.

    Args:
        chosen_logp, rejected_logp: (B,) nats, log-probabilities under the policy.
        ref_chosen_logp, ref_rejected_logp: (B,) the same under the frozen reference model.
        beta: > 0, per nat; larger keeps the policy closer to the reference.
        kind: sigmoid, robust, hinge, ipo or kto.
        label_smoothing: 0 <= e < 0.5; assumed share of wrong labels, for sigmoid and
            robust.

    Returns:
        (B,) loss of each pair, not averaged.

    Raises:
        ValueError: if the shapes differ, beta is not above 0, the kind is unknown, or
            label_smoothing is out of range or does not belong to the kind.

    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; cDPO: Mitchell 2023, "A note on
    DPO with noisy preferences"; robust: Chowdhury et al. 2024, arXiv:2403.00409; hinge:
    Zhao et al. 2023, arXiv:2305.10425, as Liu et al. 2023, arXiv:2309.06657, write it; ipo:
    Azar et al. 2023, arXiv:2310.12036, eq. 17; kto: Ethayarajh et al. 2024,
    arXiv:2402.01306, eq. 7.

    >>> z = torch.zeros(2)
    >>> dpo_loss(z, z, z, z, beta=0.1)
    tensor([0.6931, 0.6931])
    """
    four = chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp
    shapes = [tuple(x.shape) for x in four]
    if len(set(shapes)) > 1:
        raise ValueError(f"log-probabilities of different shapes: {shapes}")
    if not beta > 0:  # NaN is refused too
        raise ValueError(f"beta is {beta}, expected more than 0")
    if label_smoothing and kind not in ("sigmoid", "robust"):
        raise ValueError(
            f"label_smoothing is {label_smoothing} for kind {kind}, expected 0"
        )
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}, expected 0 <= x < 0.5")
    chosen = at_least_float32(chosen_logp) - ref_chosen_logp         # (B,)
    rejected = at_least_float32(rejected_logp) - ref_rejected_logp   # (B,)
    h = chosen - rejected                                            # (B,)
    right = -F.logsigmoid(beta * h)                                  # if the label is right
    wrong = -F.logsigmoid(-beta * h)                                 # if the label is wrong
    if kind == "sigmoid":
        return (1 - label_smoothing) * right + label_smoothing * wrong
    if kind == "robust":
        noisy = (1 - label_smoothing) * right - label_smoothing * wrong
        return noisy / (1 - 2 * label_smoothing)
    if kind == "hinge":
        return (1 - beta * h).clamp(min=0)
    if kind == "ipo":
        return (h - 1 / (2 * beta)).square()
    if kind == "kto":
        z = torch.cat([chosen, rejected]).mean().detach().clamp(min=0)           # ()
        return (torch.sigmoid(beta * (z - chosen)) + torch.sigmoid(beta * (rejected - z))) / 2
    raise ValueError(f"kind {kind!r} is not one of sigmoid, robust, hinge, ipo, kto")
