"""Typical wrong answers to the exercises; each must fail its check.

They also serve the reader: where his answer gives the same results as one of them, the message of
the check says which mistake that is.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

DOCS = Path(__file__).parents[2] / "docs"
WRONG: dict[str, dict[str, Callable]] = {}  # exercise -> what is wrong -> the wrong answer


def load(path: Path) -> ModuleType:
    """Import a file by its path: tests/exercises/ has the name of the reader's exercises.py."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wrong(exercise: str, about: str) -> Callable:
    """List a function among the wrong answers; `about` ends "The same comes out if ..."."""
    def listed(answer: Callable) -> Callable:
        WRONG.setdefault(exercise, {})[about] = answer
        return answer
    return listed


BROKEN = load(DOCS / "exercises_broken.py")
for name in ("packing", "whiten", "ppo"):
    wrong(name, "nothing in docs/exercises_broken.py is repaired")(getattr(BROKEN, name))


# --- next_token ---


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p of the targets, (B, T, V), (B, T) -> (B, T)."""
    return F.cross_entropy(logits.mT, targets, reduction="none")


@wrong("next_token", "logits predict the token of their own position: nothing is shifted")
def not_shifted(logits, idx, is_answer):
    return token_losses(logits, idx)[is_answer].mean()


@wrong("next_token", "targets are shifted twice")
def shifted_twice(logits, idx, is_answer):
    return token_losses(logits[:, :-2], idx[:, 2:])[is_answer[:, 2:]].mean()


@wrong("next_token", "the targets are shifted, but not their mask")
def mask_not_shifted(logits, idx, is_answer):
    return token_losses(logits[:, :-1], idx[:, 1:])[is_answer[:, :-1]].mean()


@wrong("next_token", "the mask is inverted: questions and pads are learned, answers are not")
def mask_inverted(logits, idx, is_answer):
    return token_losses(logits[:, :-1], idx[:, 1:])[~is_answer[:, 1:]].mean()


@wrong("next_token", "each row is averaged first, and then the rows")
def mean_of_means(logits, idx, is_answer):
    mask = is_answer[:, 1:]
    losses = token_losses(logits[:, :-1], idx[:, 1:]) * mask
    return (losses.sum(1) / mask.sum(1)).mean()


@wrong("next_token", "the sum is divided by the number of all positions")
def mean_over_pads(logits, idx, is_answer):
    return (token_losses(logits[:, :-1], idx[:, 1:]) * is_answer[:, 1:]).mean()


# --- packing ---


def blocks(n_prompt: int, n_answers: list[int]) -> Tensor:
    """(T, T): True within the prompt, within each answer, and from each answer to the prompt."""
    sizes = [n_prompt - 1] + [1 + n for n in n_answers]
    mask = torch.block_diag(*[torch.ones(n, n) for n in sizes]).bool()
    mask[:, :n_prompt - 1] = True
    return mask


@wrong("packing", "tokens see the tokens behind them")
def looks_ahead(n_prompt, n_answers):
    return blocks(n_prompt, n_answers)


@wrong("packing", "a token does not see itself")
def not_itself(n_prompt, n_answers):
    return blocks(n_prompt, n_answers).tril(-1)


@wrong("packing", "answers do not see the prompt")
def without_prompt(n_prompt, n_answers):
    mask = blocks(n_prompt, n_answers)
    mask[n_prompt - 1:, :n_prompt - 1] = False
    return mask.tril()


@wrong("packing", "the prompt's last token stands once in the row, and not before each answer")
def last_token_once(n_prompt, n_answers):
    return blocks(n_prompt + 1, [n - 1 for n in n_answers]).tril()


# --- patches ---


def cut(images: Tensor, P: int) -> Tensor:
    """(B, 3, S, S) -> (B, rows of patches, patches of a row, 3, P, P)."""
    return images.unfold(2, P, P).unfold(3, P, P).permute(0, 2, 3, 1, 4, 5)


@wrong("patches", "the patches are counted down the columns, not along the rows")
def by_columns(images, weight):
    x = cut(images, weight.shape[-1]).transpose(1, 2)
    return x.flatten(3).flatten(1, 2) @ weight.flatten(1).T


@wrong("patches", "the pixels of a patch are in column order, those of a filter in row order")
def turned(images, weight):
    return cut(images, weight.shape[-1]).mT.flatten(3).flatten(1, 2) @ weight.flatten(1).T


@wrong("patches", "the colors of a patch come last, those of a filter first")
def colors_last(images, weight):
    x = cut(images, weight.shape[-1]).movedim(3, -1)
    return x.flatten(3).flatten(1, 2) @ weight.flatten(1).T


@wrong("patches", "the picture is reshaped without moving a dimension: no patch is a square")
def only_reshaped(images, weight):
    return images.reshape(len(images), -1, weight[0].numel()) @ weight.flatten(1).T


@wrong("patches", "patches overlap: the window moves by one pixel")
def overlapping(images, weight):
    P = weight.shape[-1]
    x = images.unfold(2, P, 1).unfold(3, P, 1).permute(0, 2, 3, 1, 4, 5)
    return x.flatten(3).flatten(1, 2) @ weight.flatten(1).T


# --- info_nce ---


@wrong("info_nce", "only the pictures choose: one direction is missing")
def pictures_only(similarity, logit_scale):
    return -(logit_scale * similarity).log_softmax(1).diagonal().mean()


@wrong("info_nce", "only the captions choose: one direction is missing")
def captions_only(similarity, logit_scale):
    return -(logit_scale * similarity).log_softmax(0).diagonal().mean()


@wrong("info_nce", "the two directions are added, not averaged")
def both_added(similarity, logit_scale):
    return pictures_only(similarity, logit_scale) + captions_only(similarity, logit_scale)


@wrong("info_nce", "one softmax runs over all B x B pairs")
def one_softmax(similarity, logit_scale):
    logits = logit_scale * similarity
    return (logits.flatten().logsumexp(0) - logits.diagonal()).mean()


@wrong("info_nce", "the right pair is left out of the denominator")
def others_only(similarity, logit_scale):
    logits = logit_scale * similarity
    others = logits - torch.diag(torch.full((len(logits),), torch.inf))
    rows, columns = others.logsumexp(1), others.logsumexp(0)
    return ((rows + columns) / 2 - logits.diagonal()).mean()


@wrong("info_nce", "exp is taken of logits of 100: float32 ends at e^88")
def overflows(similarity, logit_scale):
    e = (logit_scale * similarity).exp()
    rows, columns = e / e.sum(1, keepdim=True), e / e.sum(0, keepdim=True)
    return -(rows.diagonal().log().mean() + columns.diagonal().log().mean()) / 2


# --- splice ---


def put(emb: Tensor, is_image: Tensor, features: Tensor) -> Tensor:
    """Put features, (n N, C), at the placeholders, row by row."""
    return emb.masked_scatter(is_image[..., None], features)


@wrong("splice", "the features of each picture stand in reverse order")
def features_reversed(emb, is_image, img_emb):
    return put(emb, is_image, img_emb.flip(1))


@wrong("splice", "the last picture is put first")
def pictures_reversed(emb, is_image, img_emb):
    return put(emb, is_image, img_emb.flip(0))


@wrong("splice", "first feature of each picture first, then the second of each, and so on")
def pictures_mixed(emb, is_image, img_emb):
    return put(emb, is_image, img_emb.transpose(0, 1).flatten(0, 1))


@wrong("splice", "each row begins with the first picture again")
def begins_again(emb, is_image, img_emb):
    out = emb.clone()
    for b, here in enumerate(is_image):
        out[b, here] = img_emb.flatten(0, 1)[:int(here.sum())]
    return out


@wrong("splice", "features are added to the placeholders' embeddings, which they must replace")
def added(emb, is_image, img_emb):
    return emb + put(torch.zeros_like(emb), is_image, img_emb)


# --- dialogue ---


def joined(pieces: list[tuple[list[int], bool]]) -> tuple[list[int], list[bool]]:
    """Join pieces of ids, each learned or not."""
    ids = [i for piece, _ in pieces for i in piece]
    return ids, [learned for piece, learned in pieces for _ in piece]


@wrong("dialogue", "the end of an answer is not learned: the chatbot will not stop")
def end_not_learned(turns, user, assistant, end):
    pieces = []
    for role, text in turns:
        if role == "human":
            pieces.append(([user, *text, assistant], False))
        else:
            pieces += [(text, True), ([end], False)]
    return joined(pieces)


@wrong("dialogue", "the mark before an answer is learned, too")
def mark_learned(turns, user, assistant, end):
    pieces = []
    for role, text in turns:
        if role == "human":
            pieces += [([user, *text], False), ([assistant], True)]
        else:
            pieces.append(([*text, end], True))
    return joined(pieces)


@wrong("dialogue", "questions are learned, and answers are not")
def questions_learned(turns, user, assistant, end):
    pieces = []
    for role, text in turns:
        if role == "human":
            pieces.append(([user, *text, assistant], True))
        else:
            pieces.append(([*text, end], False))
    return joined(pieces)


@wrong("dialogue", "only the last answer is learned")
def last_answer_only(turns, user, assistant, end):
    last = max(i for i, (role, _) in enumerate(turns) if role == "gpt")
    pieces = []
    for i, (role, text) in enumerate(turns):
        if role == "human":
            pieces.append(([user, *text, assistant], False))
        else:
            pieces.append(([*text, end], i == last))
    return joined(pieces)


@wrong("dialogue", "each answer is searched for in the whole row: it is found in a question")
def searched(turns, user, assistant, end):
    ids = []
    for role, text in turns:
        ids += [user, *text, assistant] if role == "human" else [*text, end]
    learned = [token == end for token in ids]
    for role, text in turns:
        if role == "gpt":
            n = len(text)
            begin = next(i for i in range(len(ids)) if ids[i:i + n] == text)
            learned[begin:begin + n] = [True] * n
    return ids, learned


# --- ranking ---


def pair_losses(scores: Tensor) -> Tensor:
    """(B, K) -> (B, K, K): the loss if i is better than j."""
    return F.softplus(scores[:, None, :] - scores[:, :, None])


def better(ranks: Tensor) -> Tensor:
    """(B, K) -> (B, K, K): whether both answers are there, and i is better than j."""
    return (ranks[:, :, None] < ranks[:, None, :]) & (ranks > 0)[:, :, None]


def mean_of_prompts(losses: Tensor, pairs: Tensor) -> Tensor:
    """The mean over the prompts that have a pair, of the means over their pairs."""
    n = pairs.sum((1, 2))
    return ((losses * pairs).sum((1, 2)) / n.clamp(min=1))[n > 0].mean()


@wrong("ranking", "the ranks are turned round: the worst answer counts as the best")
def turned_round(scores, ranks):
    return mean_of_prompts(pair_losses(-scores), better(ranks))


@wrong("ranking", "a missing answer counts as the best, because its rank 0 is the lowest")
def missing_is_best(scores, ranks):
    return mean_of_prompts(pair_losses(scores), ranks[:, :, None] < ranks[:, None, :])


@wrong("ranking", "two answers of equal rank make pairs, too")
def ties_are_pairs(scores, ranks):
    there = (ranks > 0)[:, :, None] & (ranks > 0)[:, None, :]
    pairs = (ranks[:, :, None] <= ranks[:, None, :]) & there
    return mean_of_prompts(pair_losses(scores), pairs & ~torch.eye(ranks.shape[1]).bool())


@wrong("ranking", "the mean runs over all pairs, so that a prompt with many pairs weighs more")
def mean_of_pairs(scores, ranks):
    return pair_losses(scores)[better(ranks)].mean()


@wrong("ranking", "a prompt without a pair counts as a loss of 0")
def empty_is_zero(scores, ranks):
    pairs = better(ranks)
    n = pairs.sum((1, 2)).clamp(min=1)
    return ((pair_losses(scores) * pairs).sum((1, 2)) / n).mean()


@wrong("ranking", "the mean over no pairs is taken, 0 / 0, for a prompt without a pair")
def empty_is_nan(scores, ranks):
    pairs = better(ranks)
    return ((pair_losses(scores) * pairs).sum((1, 2)) / pairs.sum((1, 2))).mean()


@wrong("ranking", "only pairs that stand in the order of their ranks count")
def in_order_only(scores, ranks):
    later = torch.ones(ranks.shape[1], ranks.shape[1]).triu(1).bool()
    return mean_of_prompts(pair_losses(scores), better(ranks) & later)


@wrong("ranking", "log is taken of a sigmoid that has become 0")
def log_of_zero(scores, ranks):
    losses = -torch.sigmoid(scores[:, :, None] - scores[:, None, :]).log()
    pairs = better(ranks)
    n = pairs.sum((1, 2))
    return (losses.masked_fill(~pairs, 0).sum((1, 2)) / n.clamp(min=1))[n > 0].mean()


# --- gae ---


def errors(rewards: Tensor, values: Tensor, gamma: float) -> Tensor:
    """delta_t = rewards_t + gamma values_t+1 - values_t, with 0 behind the last column."""
    return rewards + gamma * F.pad(values[:, 1:], (0, 1)) - values


def summed(delta: Tensor, factor: float) -> Tensor:
    """sum over i >= t of factor^(i - t) delta_i."""
    t = torch.arange(delta.shape[1], dtype=delta.dtype)
    powers = (t[:, None] - t[None]).clamp(min=0)
    return delta @ (factor ** powers).tril()


@wrong("gae", "the value behind an answer's last token is that of a pad, and not 0")
def past_the_end(rewards, values, mask, gamma, lam):
    return summed(errors(rewards, values, gamma) * mask, gamma * lam) * mask


@wrong("gae", "what stands at the pads is added to the advantages before them")
def over_the_pads(rewards, values, mask, gamma, lam):
    return summed(errors(rewards, values * mask, gamma), gamma * lam) * mask


@wrong("gae", "rewards, values and advantages of the pads come into those of the answer")
def from_the_last_column(rewards, values, mask, gamma, lam):
    return summed(errors(rewards, values, gamma), gamma * lam) * mask


@wrong("gae", "a step's error leaves out gamma")
def gamma_left_out(rewards, values, mask, gamma, lam):
    return summed(errors(rewards, values * mask, 1.0) * mask, gamma * lam) * mask


@wrong("gae", "lam is left out: rewards to come minus value")
def lam_left_out(rewards, values, mask, gamma, lam):
    return summed(errors(rewards, values * mask, gamma) * mask, gamma) * mask


@wrong("gae", "an advantage sums the errors before its token, and not those to come")
def backward(rewards, values, mask, gamma, lam):
    delta = errors(rewards, values * mask, gamma) * mask
    return summed(delta.flip(1), gamma * lam).flip(1) * mask


@wrong("gae", "the returns are returned: the values are still added")
def returns_instead(rewards, values, mask, gamma, lam):
    advs = summed(errors(rewards, values * mask, gamma) * mask, gamma * lam)
    return (advs + values) * mask


@wrong("gae", "positions outside of the answers are not set to 0")
def prompt_not_zero(rewards, values, mask, gamma, lam):
    return summed(errors(rewards, values * mask, gamma) * mask, gamma * lam)


# --- whiten ---


@wrong("whiten", "the pads count in mean and variance")
def over_pads(x, mask):
    return ((x - x.mean()) / x.std()) * mask


@wrong("whiten", "each row is whitened by itself")
def row_by_row(x, mask):
    n = mask.sum(1, keepdim=True)
    mean = (x * mask).sum(1, keepdim=True) / n
    std = (((x - mean) * mask).square().sum(1, keepdim=True) / (n - 1)).sqrt()
    return (x - mean) / std * mask


@wrong("whiten", "the sum of squares is divided by n, and not by n - 1")
def biased(x, mask):
    return (x - x[mask].mean()) / x[mask].std(unbiased=False) * mask


@wrong("whiten", "the pads are not set to 0")
def pads_left(x, mask):
    return (x - x[mask].mean()) / x[mask].std()


@wrong("whiten", "x is divided by its variance, and not by the root of that")
def by_variance(x, mask):
    return (x - x[mask].mean()) / x[mask].var() * mask


# --- ppo ---


@wrong("ppo", "the larger of both gains counts, and not the smaller one")
def the_better(logp, old_logp, advs, mask, clip_eps):
    ratio = (logp - old_logp).exp()
    gain = torch.maximum(ratio * advs, ratio.clamp(1 - clip_eps, 1 + clip_eps) * advs)
    return -gain[mask].mean()


def clipped_gain(ratio: Tensor, advs: Tensor, clip_eps: float) -> Tensor:
    """The smaller of both gains."""
    return torch.minimum(ratio * advs, ratio.clamp(1 - clip_eps, 1 + clip_eps) * advs)


@wrong("ppo", "the ratio is upside down: the old policy over the new one")
def upside_down(logp, old_logp, advs, mask, clip_eps):
    return -clipped_gain((old_logp - logp).exp(), advs, clip_eps)[mask].mean()


@wrong("ppo", "the sign is missing: the loss rises with the gain")
def no_minus(logp, old_logp, advs, mask, clip_eps):
    return clipped_gain((logp - old_logp).exp(), advs, clip_eps)[mask].mean()


@wrong("ppo", "nothing is clipped")
def unclipped(logp, old_logp, advs, mask, clip_eps):
    return -((logp - old_logp).exp() * advs)[mask].mean()


@wrong("ppo", "the log of the ratio is clipped, and not the ratio")
def log_clipped(logp, old_logp, advs, mask, clip_eps):
    log_ratio = logp - old_logp
    held = log_ratio.clamp(-clip_eps, clip_eps).exp()
    return -torch.minimum(log_ratio.exp() * advs, held * advs)[mask].mean()


@wrong("ppo", "the mean runs over prompts and pads, too")
def mean_over_all(logp, old_logp, advs, mask, clip_eps):
    return -(clipped_gain((logp - old_logp).exp(), advs, clip_eps) * mask).mean()


@wrong("ppo", "each row is averaged first, and then the rows")
def rows_first(logp, old_logp, advs, mask, clip_eps):
    gain = clipped_gain((logp - old_logp).exp(), advs, clip_eps) * mask
    return -(gain.sum(1) / mask.sum(1)).mean()


# --- dpo ---


def loss_and_weight(h: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """DPO's loss and weight for a margin h."""
    return F.softplus(-beta * h), beta * torch.sigmoid(-beta * h)


@wrong("dpo", "the reference is left out")
def no_reference(chosen, rejected, ref_chosen, ref_rejected, beta):
    return loss_and_weight(chosen - rejected, beta)


@wrong("dpo", "the reference has the wrong sign")
def reference_added(chosen, rejected, ref_chosen, ref_rejected, beta):
    return loss_and_weight((chosen + ref_chosen) - (rejected + ref_rejected), beta)


@wrong("dpo", "chosen and rejected are exchanged")
def exchanged(chosen, rejected, ref_chosen, ref_rejected, beta):
    return loss_and_weight((rejected - ref_rejected) - (chosen - ref_chosen), beta)


@wrong("dpo", "the weight is turned round: pairs that are right already weigh most")
def easy_weighs_most(chosen, rejected, ref_chosen, ref_rejected, beta):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return F.softplus(-beta * h), beta * torch.sigmoid(beta * h)


@wrong("dpo", "the weight lacks the factor beta")
def no_beta(chosen, rejected, ref_chosen, ref_rejected, beta):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return F.softplus(-beta * h), torch.sigmoid(-beta * h)


@wrong("dpo", "beta stands outside of the sigmoid")
def beta_outside(chosen, rejected, ref_chosen, ref_rejected, beta):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return beta * F.softplus(-h), beta * torch.sigmoid(-h)


@wrong("dpo", "log is taken of a sigmoid that has become 0")
def infinite(chosen, rejected, ref_chosen, ref_rejected, beta):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return -torch.sigmoid(beta * h).log(), beta * torch.sigmoid(-beta * h)


# --- group ---


def centered(scores: Tensor, kind: str) -> Tensor:
    """The advantages of dr_grpo and rloo."""
    k = scores.shape[1]
    advs = scores - scores.mean(1, keepdim=True)
    return advs * k / (k - 1) if kind == "rloo" else advs


@wrong("group", "rloo's baseline holds the answer's own score")
def own_baseline(scores, kind):
    advs = scores - scores.mean(1, keepdim=True)
    return advs / (scores.std(1, keepdim=True) + 1e-4) if kind == "grpo" else advs


@wrong("group", "mean and deviation are those of the whole batch, and not of each prompt")
def whole_batch(scores, kind):
    advs = scores - scores.mean()
    if kind == "rloo":
        return advs * scores.numel() / (scores.numel() - 1)
    return advs / (scores.std() + 1e-4) if kind == "grpo" else advs


@wrong("group", "grpo's deviation divides by k, and not by k - 1")
def biased_deviation(scores, kind):
    advs = centered(scores, kind)
    std = scores.std(1, keepdim=True, unbiased=False)
    return advs / (std + 1e-4) if kind == "grpo" else advs


@wrong("group", "nothing is added to grpo's deviation: 0 / 0 where all score alike")
def zero_by_zero(scores, kind):
    advs = centered(scores, kind)
    return advs / scores.std(1, keepdim=True) if kind == "grpo" else advs


@wrong("group", "dr_grpo divides by the deviation as grpo does")
def divides_always(scores, kind):
    advs = centered(scores, kind)
    return advs if kind == "rloo" else advs / (scores.std(1, keepdim=True) + 1e-4)
