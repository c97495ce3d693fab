"""My answers to docs/exercises.md.

Each function is to be written here, in torch or in plain Python. A test checks it:
python -m pytest tests/exercises -k NAME. Sizes are named as everywhere in the project
(minivlm/__init__.py). Masks are bool, and True where a token counts.
"""

import torch
from torch import Tensor


def next_token(logits: Tensor, idx: Tensor, is_answer: Tensor) -> Tensor:
    """Average the negative log-likelihood over the answer tokens of the whole batch.

    Args:
        logits: (B, T, V), those at position t predict the token at t + 1.
        idx: (B, T) ids of the rows, not shifted, padded on the right.
        is_answer: (B, T) bool, True where the token of idx is part of an answer.

    Returns:
        () nats per token.
    """
    raise NotImplementedError


def packing(n_prompt: int, n_answers: list[int]) -> Tensor:
    """Say which token may see which, where several answers stand behind one prompt.

    Args:
        n_prompt: tokens of the prompt, at least 1.
        n_answers: tokens of each answer.

    Returns:
        (T, T) bool, True where the token of the row (query) may see that of the column (key).
    """
    raise NotImplementedError


def patches(images: Tensor, weight: Tensor) -> Tensor:
    """Cut pictures into patches, and map each patch to a vector by one matrix product.

    Args:
        images: (B, 3, S, S); S is a multiple of P.
        weight: (C, 3, P, P), one filter for each of the C numbers of a vector.

    Returns:
        (B, N, C), the patches in reading order.
    """
    raise NotImplementedError


def info_nce(similarity: Tensor, logit_scale: float) -> Tensor:
    """InfoNCE both ways: each picture must find its caption and each caption its picture.

    Args:
        similarity: (B, B) cosines, pictures in rows and captions in columns; picture i
            belongs to caption i.
        logit_scale: the multiplier.

    Returns:
        () nats.
    """
    raise NotImplementedError


def splice(emb: Tensor, is_image: Tensor, img_emb: Tensor) -> Tensor:
    """Put the features of the pictures where the placeholders stand.

    Args:
        emb: (B, T, C) embeddings of all tokens.
        is_image: (B, T) bool, True at the placeholders.
        img_emb: (n, N, C), the pictures of all rows in order; N placeholders stand for each.

    Returns:
        (B, T, C); emb itself stays as it is.
    """
    raise NotImplementedError


def dialogue(
    turns: list[tuple[str, list[int]]], user: int, assistant: int, end: int
) -> tuple[list[int], list[bool]]:
    """Write a dialogue as one row of ids, and mark the tokens that are learned.

    Args:
        turns: who speaks, "human" or "gpt", and the ids of what he says; the two alternate.
        user: id of the mark before a question.
        assistant: id of the mark before an answer; the last question has it, too, if its
            answer is still to come.
        end: id of the token that ends an answer.

    Returns:
        ids and is_answer, of equal length.
    """
    raise NotImplementedError


def ranking(scores: Tensor, ranks: Tensor) -> Tensor:
    """Bradley-Terry over all pairs of each ranking, averaged first within each prompt.

    Args:
        scores: (B, K) scores of K answers to each of B prompts.
        ranks: (B, K) integers, 1 is best; equal ranks make no pair; 0 is a missing answer.

    Returns:
        () nats, the mean over the prompts that have a pair.
    """
    raise NotImplementedError


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalized advantage estimation.

    Args:
        rewards, values: (B, T); where the mask is False they hold anything.
        mask: (B, T) bool, True at the tokens of each row's answer, which form one piece.
        gamma, lam: 0 .. 1.

    Returns:
        (B, T) advantages, 0 where the mask is False.
    """
    raise NotImplementedError


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Shift x to mean 0 and scale it to variance 1, over all positions that count.

    Args:
        x: (B, T).
        mask: (B, T) bool, True at two positions at least.

    Returns:
        (B, T), 0 where the mask is False.
    """
    raise NotImplementedError


def ppo(
    logp: Tensor, old_logp: Tensor, advs: Tensor, mask: Tensor, clip_eps: float
) -> Tensor:
    """PPO's clipped loss.

    Args:
        logp, old_logp: (B, T) nats, by the policy now and by the one that drew the tokens.
        advs: (B, T) advantages.
        mask: (B, T) bool, True at tokens of the answer.
        clip_eps: > 0.

    Returns:
        () the mean over all tokens of all answers.
    """
    raise NotImplementedError


def dpo(
    chosen_logp: Tensor, rejected_logp: Tensor, ref_chosen_logp: Tensor,
    ref_rejected_logp: Tensor, beta: float,
) -> tuple[Tensor, Tensor]:
    """DPO's loss of each pair, and the weight of the pair in the gradient.

    Args:
        chosen_logp, rejected_logp: (B,) nats, of whole answers by the policy.
        ref_chosen_logp, ref_rejected_logp: (B,) the same by the frozen reference.
        beta: > 0.

    Returns:
        loss, (B,), and weight, (B,): minus the derivative of a pair's loss with respect to
        its chosen_logp.
    """
    raise NotImplementedError


def group(scores: Tensor, kind: str) -> Tensor:
    """Compare each answer's score with those of the other answers to its prompt.

    Args:
        scores: (B, k) of k answers to each of B prompts; k is at least 2.
        kind: grpo, dr_grpo or rloo.

    Returns:
        (B, k) advantages.
    """
    raise NotImplementedError
