"""Rollouts: a policy's answers to a batch of questions, and what other models make of them.

    rollout = roll_out(policy, ref, reward_model, value_model, prompts.batch(questions, seed), ...)

A policy with LoRA adapters is its own reference, once they are off.

Used by: train_ppo.py, train_dpo.py, pairs.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minivlm.conversation import answer_row, append_unread
from minivlm.generate import generate
from minivlm.heads import RewardModel, ValueModel
from minivlm.loading.batches import collate
from minivlm.lora import adapters, adapters_off
from minivlm.losses import IGNORE_INDEX, masked_mean, token_logprobs
from minivlm.rl import shape_score
from minivlm.tokenizer import Tokenizer
from minivlm.vlm import VLM

# --- reading ---

N_PARTS = 4  # that a rollout is read in, rows of like length together


def share_vit(vlms: Sequence[VLM]) -> None:
    """Let VLMs whose ViTs are equal use the very same one: one copy in memory, one look."""
    for i, vlm in enumerate(vlms):
        theirs = vlm.vit.state_dict()
        for other in vlms[:i]:
            ours = other.vit.state_dict()
            same = other.vit.config == vlm.vit.config
            if same and all(torch.equal(ours[k], theirs[k]) for k in ours):
                vlm.vit = other.vit
                break


def by_length(rows: Tensor, lengths: Tensor, n: int) -> list[Tensor]:
    """Deal rows (b,) out in n parts, the shortest first: each is read without the others' pads.

    Args:
        lengths: (B,) tokens of all rows, of which these are some.

    >>> by_length(torch.tensor([0, 2, 3]), torch.tensor([9, 5, 4, 6]), 2)
    [tensor([2, 3]), tensor([0])]
    """
    ordered = rows[lengths[rows].argsort(stable=True).to(rows.device)]
    return [part for part in ordered.tensor_split(n) if len(part)]


def in_parts(
    lengths: Tensor, read: Callable[[Tensor, int], Sequence[Tensor]]
) -> list[Tensor]:
    """What a model makes of B rows, read in N_PARTS parts of like length.

    Args:
        lengths: (B,) of the rows.
        read: rows (b,) and the longest one's length T -> tensors (b,) or (b, T).

    Returns:
        the same of all rows, (B,) or (B, T), 0 where a row was not read to.
    """
    B, longest, out = len(lengths), int(lengths.max()), []
    for rows in by_length(torch.arange(B, device=lengths.device), lengths, N_PARTS):
        T = int(lengths[rows].max())
        made = read(rows, T)
        out = out or [x.new_zeros((B, longest)[: x.dim()]) for x in made]
        for whole, x in zip(out, made):
            if x.dim() == 1:
                whole[rows] = x
            else:
                whole[rows, :T] = x
    return out


def logprobs(
    model: nn.Module, image_id: int, idx: Tensor, targets: Tensor, img_emb: Tensor | None,
    temperature: float, with_entropy: bool = False, segments: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each token of the answers, and the entropy of what it was drawn from.

        p = softmax(logits / temperature), a picture's placeholder being no word

    This is the distribution that `generate` draws from at this temperature, so that a policy that
    has not moved since gives the ratio 1.

    Args:
        model: a VLM, or one compiled.
        idx, targets: (B, T), -100 outside of the answers.
        img_emb: (n, N, C) of that model, or None where no row has a picture.
        segments: (B, T) of packed rows, as GPT.hidden takes them.

    Returns:
        (B, T) nats, 0 outside of the answers; the same for the entropy, or None.
    """
    at = targets != IGNORE_INDEX                                     # (B, T)
    logits = model(idx, img_emb=img_emb, at=at, segments=segments).float()       # (M, V)
    no_word = torch.arange(logits.shape[-1], device=logits.device) == image_id
    logits = (logits / temperature).masked_fill(no_word, -torch.inf)
    nothing = torch.zeros(at.shape, device=logits.device)            # (B, T)
    said = token_logprobs(logits[None], targets[at][None])[0]        # (M,)
    logp = nothing.masked_scatter(at, said)
    if not with_entropy:
        return logp, None
    spread = torch.special.entr(logits.detach().softmax(-1)).sum(-1)
    return logp, nothing.masked_scatter(at, spread)


# --- answers ---


@dataclass
class PromptBatch:
    """B questions, ready to be answered and scored.

    questions: their records; images: (B, 3, S, S); prompts: ids that the policy reads; judged: ids
    that the reward model reads before an answer (they may hold captions); seed: of the draws.
    """

    questions: list[dict]
    images: Tensor
    prompts: list[list[int]]
    judged: list[list[int]]
    seed: int


@dataclass
class RolloutPart:
    """Some rows of a rollout, cut to the longest of them, as PPO's update reads them.

    All (b, T), but feats and value_feats: (b, N, Cv).
    """

    idx: Tensor
    targets: Tensor
    mask: Tensor
    logp: Tensor
    values: Tensor
    advs: Tensor
    returns: Tensor
    feats: Tensor
    value_feats: Tensor


@dataclass
class Rollout:
    """B answers that a policy drew, and all that PPO needs to know of them.

    idx, targets: (B, T) dialogues as `collate` makes them; lengths: (B,) of them; logp, ref_logp,
    entropy: (B, T), 0 outside of the answers; values: (B, T); feats, value_feats: (B, N, Cv), patch
    features of the policy's and the value model's ViT; score: (B,); ended: (B,) bool, whether the
    end token was written; answers: their ids, without the end token; ids: of the questions' records.
    """

    idx: Tensor
    targets: Tensor
    lengths: Tensor
    logp: Tensor
    ref_logp: Tensor
    entropy: Tensor
    values: Tensor | None
    feats: Tensor
    value_feats: Tensor | None
    score: Tensor | None
    ended: Tensor
    answers: list[list[int]]
    ids: list[str]

    @property
    def mask(self) -> Tensor:
        """(B, T) bool, True where a token of the answer is chosen."""
        return self.targets != IGNORE_INDEX

    def names(self, rows: Tensor | None = None) -> list[str]:
        """The ids of the questions' records, of all rows or of some, (b,)."""
        return self.ids if rows is None else [self.ids[i] for i in rows.tolist()]

    def part(self, rows: Tensor, advs: Tensor, returns: Tensor) -> RolloutPart:
        """The given rows (b,), with their advantages and returns, each (B, T) of all rows."""
        T = int(self.lengths[rows].max())
        return RolloutPart(
            idx=self.idx[rows, :T],
            targets=self.targets[rows, :T],
            mask=self.mask[rows, :T],
            logp=self.logp[rows, :T],
            values=self.values[rows, :T],
            advs=advs[rows, :T],
            returns=returns[rows, :T],
            feats=self.feats[rows],
            value_feats=self.value_feats[rows],
        )

    def worth(self, end_penalty: float, length_penalty: float) -> Tensor:
        """(B,) the score of each answer, less its penalties; see `rl.shape_score`."""
        return shape_score(self.score, self.ended, self.mask.sum(1), end_penalty, length_penalty)


def describe(rollout: Rollout, true_scores: list[float]) -> dict[str, float]:
    """Figures of a rollout: means over answers, or over their tokens.

    Args:
        true_scores: how good the answers are by the scene, or empty. Nothing learns from them.
    """
    mask = rollout.mask                                              # (B, T)
    kl = rollout.logp - rollout.ref_logp                             # (B, T)
    out = {"true_score": sum(true_scores) / len(true_scores) if true_scores else float("nan")}
    if rollout.score is not None:
        out["score"] = float(rollout.score.mean())
    out["kl_token"] = float(masked_mean(kl, mask))
    out["kl_answer"] = float(kl.sum(1).mean())
    out["entropy"] = float(masked_mean(rollout.entropy, mask))
    out["length"] = float(mask.sum(1).float().mean())
    out["ended"] = float(rollout.ended.float().mean())
    return out


@torch.no_grad()
def roll_out(
    policy: VLM, ref: VLM, reward_model: RewardModel | None, value_model: ValueModel | None,
    batch: PromptBatch, tokenizer: Tokenizer, max_new_tokens: int, temperature: float,
    use_cache: bool = True,
) -> Rollout:
    """Let the policy answer, and let the other models read its answers.

    The reward model reads `batch.judged`, all others read `batch.prompts`.

    Args:
        ref: the frozen reference, or the policy itself, which is then read without its adapters.
        reward_model, value_model: or None, where scores or values are not needed.
        temperature: of drawing, above 0; log-probabilities are those of the same distribution.
        use_cache: as `generate` takes it.

    Raises:
        ValueError: if a score is NaN or inf, or as `generate` and `collate`.
    """
    device = next(policy.parameters()).device
    end, pad = tokenizer.end, tokenizer.pad
    images = batch.images.to(device)
    # 1. the policy draws an answer to every question
    drawn = generate(
        policy, images, batch.prompts, keep_stop=True, max_new_tokens=max_new_tokens, stop=end,
        temperature=temperature, use_cache=use_cache,
        generator=torch.Generator(device).manual_seed(batch.seed),
    )
    ended = torch.tensor([ids[-1] == end for ids in drawn], device=device)
    names = [str(q["id"]) for q in batch.questions]
    rows = [answer_row(prompt, ids) for prompt, ids in zip(batch.prompts, drawn)]
    dialogues = collate(rows, pad, policy.gpt.config.block_size, names or None).to(device)

    features: dict[tuple[int, bool], Tensor] = {}  # of each ViT, which models may share

    def feats_of(vlm: VLM) -> Tensor:
        """(B, N, Cv); a ViT with adapters switched on is another one."""
        key = id(vlm.vit), any(m.on for _, m in adapters(vlm.vit))
        if key not in features:
            features[key] = vlm.vit.features(images)
        return features[key]

    def read(vlm: VLM, with_entropy: bool = False) -> list[Tensor]:
        """Log-probabilities of the answers, and if wanted entropies, (B, T) each."""
        img_emb = vlm.projector(feats_of(vlm))                       # (B, N, C)

        def read_rows(rows: Tensor, T: int) -> list[Tensor]:
            logp, entropy = logprobs(
                vlm, tokenizer.image, dialogues.idx[rows, :T], dialogues.targets[rows, :T],
                img_emb[rows], temperature, with_entropy,
            )
            return [logp, entropy] if with_entropy else [logp]

        return in_parts(dialogues.lengths, read_rows)

    # 2. policy and reference say how likely each token of the answers is
    logp, entropy = read(policy, with_entropy=True)                  # (B, T) each
    feats = feats_of(policy)
    with adapters_off(ref):
        [ref_logp] = read(ref)                                       # (B, T)

    # 3. the value model says at each token what is still to come
    values = value_feats = None
    if value_model is not None:
        value_feats = feats_of(value_model.vlm)
        value_emb = value_model.vlm.projector(value_feats)           # (B, N, C)
        [values] = in_parts(dialogues.lengths, lambda rows, T: [
            value_model(dialogues.idx[rows, :T], img_emb=value_emb[rows])])      # (B, T)

    # 4. the reward model scores whole answers, at their last token, which must be an input
    score = None
    if reward_model is not None:
        rows = [append_unread(answer_row(p, ids), end) for p, ids in zip(batch.judged, drawn)]
        whole = collate(rows, pad, reward_model.vlm.gpt.config.block_size, names or None).to(device)
        score_emb = reward_model.vlm.projector(feats_of(reward_model.vlm))       # (B, N, C)
        [score] = in_parts(whole.lengths, lambda rows, T: [reward_model(
            whole.idx[rows, :T], whole.lengths[rows], img_emb=score_emb[rows])])         # (B,)
        if not bool(score.isfinite().all()):
            worst = tokenizer.decode(drawn[int(score.isfinite().int().argmin())])
            raise ValueError(f"the reward model's score of {worst!r} is NaN or inf")

    answers = [ids[:-1] if ids[-1] == end else ids for ids in drawn]
    return Rollout(
        idx=dialogues.idx, targets=dialogues.targets, lengths=dialogues.lengths, logp=logp,
        ref_logp=ref_logp, entropy=entropy, values=values, feats=feats, value_feats=value_feats,
        score=score, ended=ended, answers=answers, ids=names,
    )
