"""Rollouts: a policy's answers to a batch of questions, and what other models make of them.

    rollout = roll_out(policy, ref, reward_model, value_model, prompts.batch(questions, seed), ...)

A policy with LoRA adapters is its own reference, once they are off.

Used by: train_ppo.py, train_dpo.py, pairs.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minivlm.data import collate
from minivlm.generate import generate
from minivlm.heads import RewardModel, ValueModel
from minivlm.lora import adapters, adapters_off
from minivlm.losses import IGNORE_INDEX, masked_mean, token_logprobs
from minivlm.prompts import PromptBatch
from minivlm.rankings import read_row
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
class Rollout:
    """B answers that a policy drew, and all that PPO needs to know of them.

    idx, targets: (B, T) dialogues as `collate` makes them, lengths: (B,) theirs; logp, ref_logp,
    entropy: (B, T), 0 outside of the answers; values: (B, T); feats, value_feats: (B, N, Cv), what
    the ViTs of policy and value model see; score: (B,); ended: (B,) bool, whether the end token was
    written; answers: their ids, without it.
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

    @property
    def mask(self) -> Tensor:
        """(B, T) bool, True where a token of the answer is chosen."""
        return self.targets != IGNORE_INDEX

    def part(self, rows: Tensor, *others: Tensor) -> list[Tensor]:
        """Of rows (b,), as long as the longest of them: idx, targets, mask, logp, values, others.

        Args:
            others: (B, T) each.

        Returns:
            (b, T) each.
        """
        T = int(self.lengths[rows].max())
        every = (self.idx, self.targets, self.mask, self.logp, self.values, *others)
        return [x[rows, :T] for x in every]

    def worth(self, end_penalty: float, length_penalty: float) -> Tensor:
        """(B,) what each answer is worth as a whole, see `rl.shape_score`."""
        return shape_score(self.score, self.ended, self.mask.sum(1), end_penalty, length_penalty)


def describe(rollout: Rollout, true: list[float]) -> dict[str, float]:
    """What a rollout was like: means over answers, or over their tokens.

    Args:
        true: the answers' scores by the scene, which nothing learns from, or empty.
    """
    mask, kl = rollout.mask, rollout.logp - rollout.ref_logp         # (B, T)
    out = {"true_score": sum(true) / len(true) if true else float("nan")}
    if rollout.score is not None:
        out["score"] = float(rollout.score.mean())
    return out | {
        "kl_token": float(masked_mean(kl, mask)), "kl_answer": float(kl.sum(1).mean()),
        "entropy": float(masked_mean(rollout.entropy, mask)),
        "length": float(mask.sum(1).float().mean()), "ended": float(rollout.ended.float().mean()),
    }


@torch.no_grad()
def roll_out(
    policy: VLM, ref: VLM, reward_model: RewardModel | None, value_model: ValueModel | None,
    batch: PromptBatch, tokenizer: Tokenizer, max_new_tokens: int, temperature: float,
    use_cache: bool = True,
) -> Rollout:
    """Let the policy answer, and the other models read its answers.

    The reward model reads `batch.judged`, all others `batch.prompts`.

    Args:
        ref: another model, or the policy itself, which then is read without its adapters.
        reward_model, value_model: or None, where nobody wants to know.
        temperature: of drawing, above 0; log-probabilities are of the same distribution.
        use_cache: as `generate` takes it.

    Raises:
        ValueError: if a score is no finite number, or as `generate` and `collate`.
    """
    device = next(policy.parameters()).device
    end, pad, images = tokenizer.end, tokenizer.pad, batch.images.to(device)
    drawn = generate(
        policy, images, batch.prompts, keep_stop=True, max_new_tokens=max_new_tokens, stop=end,
        temperature=temperature, use_cache=use_cache,
        generator=torch.Generator(device).manual_seed(batch.seed),
    )
    ended = torch.tensor([ids[-1] == end for ids in drawn], device=device)
    rows = [
        (p + said, [False] * len(p) + [True] * len(said)) for p, said in zip(batch.prompts, drawn)
    ]
    ids = [q["id"] for q in batch.questions] or None
    seen = collate(rows, pad, policy.gpt.config.block_size, ids).to(device)
    seen_by: dict[tuple[int, bool], Tensor] = {}                     # (B, N, Cv) each

    def look(vlm: VLM) -> Tensor:
        key = id(vlm.vit), any(m.on for _, m in adapters(vlm.vit))   # equal ViTs look once
        if key not in seen_by:
            seen_by[key] = vlm.vit.features(images)
        return vlm.projector(seen_by[key])                           # (B, N, C)

    def read(vlm: VLM, with_entropy: bool = False) -> list[Tensor]:
        img_emb = look(vlm)
        return in_parts(seen.lengths, lambda rows, T: logprobs(
            vlm, tokenizer.image, seen.idx[rows, :T], seen.targets[rows, :T], img_emb[rows],
            temperature, with_entropy)[: 1 + with_entropy])

    logp, entropy = read(policy, with_entropy=True)                  # (B, T) each
    feats, = seen_by.values()
    with adapters_off(ref):
        ref_logp, = read(ref)                                        # (B, T)
    score = values = value_feats = None
    if value_model is not None:
        value_emb = look(value_model.vlm)
        value_feats = seen_by[id(value_model.vlm.vit), False]
        values, = in_parts(seen.lengths, lambda rows, T: [
            value_model(seen.idx[rows, :T], img_emb=value_emb[rows])])           # (B, T)
    if reward_model is not None:
        # it scores at the last token of the answer, so it reads one token more
        rows = [read_row(p, said, end) for p, said in zip(batch.judged, drawn)]
        whole = collate(rows, pad, reward_model.vlm.gpt.config.block_size, ids).to(device)
        judge_emb = look(reward_model.vlm)
        score, = in_parts(whole.lengths, lambda rows, T: [reward_model(
            whole.idx[rows, :T], whole.lengths[rows], img_emb=judge_emb[rows])])         # (B,)
        if not bool(score.isfinite().all()):
            said = tokenizer.decode(drawn[int(score.isfinite().int().argmin())])
            raise ValueError(f"the reward model's score of {said!r} is no finite number")
    return Rollout(
        idx=seen.idx, targets=seen.targets, lengths=seen.lengths, logp=logp, ref_logp=ref_logp,
        entropy=entropy, values=values, feats=feats, value_feats=value_feats, score=score,
        ended=ended,
        answers=[ids[: len(ids) - (ids[-1] == end)] for ids in drawn],
    )
