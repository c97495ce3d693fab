"""Rollouts: a policy answers a batch of questions, and other models read the answers.

    batch = prompts.batch(questions, seed)
    rollout = roll_out(policy, ref, reward_model, value_model, batch, ...)

A policy with LoRA adapters is its own reference while the adapters are off.

The k answers to one prompt share a row behind it, see `conversation.pack`.
So each model reads picture and prompt once, not k times.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minivlm.conversation import answer_row, pack, pack_unread
from minivlm.generate import generate
from minivlm.heads import RewardModel, ValueModel
from minivlm.loading.batches import Batch, collate
from minivlm.lora import adapters, adapters_off
from minivlm.losses import IGNORE_INDEX, masked_mean, token_logprobs
from minivlm.rl import shape_score
from minivlm.running import processes
from minivlm.tokenizer import Tokenizer
from minivlm.vlm import VLM

# --- reading ---

N_PARTS = 8  # a rollout is read in parts, each of rows of similar length: fewer pads


def share_vit(vlms: Sequence[VLM]) -> None:
    """Let VLMs whose ViTs are equal share one ViT, which then computes once for all.

    The shared ViT must stay frozen: training it in one VLM would change it in the others.
    """
    for i, vlm in enumerate(vlms):
        weights = vlm.vit.state_dict()
        for other in vlms[:i]:
            if other.vit.config != vlm.vit.config:
                continue
            if all(torch.equal(w, weights[k]) for k, w in other.vit.state_dict().items()):
                vlm.vit = other.vit
                break


def by_length(rows: Tensor, lengths: Tensor, n: int) -> list[Tensor]:
    """Divide rows into n parts of similar length, the shortest first: fewer pads.

    Args:
        rows: (b,) row numbers.
        lengths: (B,) number of tokens of each row of the whole batch.
        n: number of parts; empty parts are left out.

    >>> by_length(torch.tensor([0, 2, 3]), torch.tensor([9, 5, 4, 6]), 2)
    [tensor([2, 3]), tensor([0])]
    """
    ordered = rows[lengths[rows].argsort(stable=True).to(rows.device)]
    return [part for part in ordered.tensor_split(n) if len(part)]


def in_parts(lengths: Tensor) -> list[tuple[Tensor, int]]:
    """Divide B rows, whose lengths are (B,), into N_PARTS parts of similar length.

    Returns:
        for each part its row numbers (b,), and the length of its longest row.
    """
    parts = by_length(torch.arange(len(lengths), device=lengths.device), lengths, N_PARTS)
    return [(rows, int(lengths[rows].max())) for rows in parts]


def logprobs(
    model: nn.Module, image_id: int, idx: Tensor, targets: Tensor, img_emb: Tensor | None,
    temperature: float, with_entropy: bool = False, segments: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute the log-probability of each answer token, and the entropy of the choice.

        p = softmax(logits / temperature), the placeholder left out

    `generate` draws from the same distribution at this temperature. So the probability
    ratio of a policy to itself, before any update, is 1.

    Args:
        model: a VLM.
        image_id: the placeholder, which is never drawn.
        idx, targets: (B, T); targets are -100 outside of the answers.
        img_emb: (n, N, C), the pictures as this model's projector maps them, or None if no
            row has a picture.
        with_entropy: compute the entropy too.
        segments: (B, T) of packed rows, as GPT.hidden takes them.

    Returns:
        log-probabilities (B, T), and entropies (B, T) or None; both in nats, and 0 outside
        of the answers. The entropies have no gradient.
    """
    at = targets != IGNORE_INDEX                                     # (B, T)
    logits = model(idx, img_emb=img_emb, at=at, segments=segments).float()  # (M, V)
    is_placeholder = torch.arange(logits.shape[-1], device=logits.device) == image_id
    logits = (logits / temperature).masked_fill(is_placeholder, -torch.inf)
    zeros = torch.zeros(at.shape, device=logits.device)              # (B, T)
    token_logp = token_logprobs(logits[None], targets[at][None])[0]  # (M,)
    logp = zeros.masked_scatter(at, token_logp)
    if not with_entropy:
        return logp, None
    token_entropy = torch.special.entr(logits.detach().softmax(-1)).sum(-1)      # (M,)
    return logp, zeros.masked_scatter(at, token_entropy)


def unpacked(x: Tensor, packed: Tensor, targets: Tensor) -> Tensor:
    """Put figures of packed answers where the answers stand that have rows of their own.

    Args:
        x: (G, S) figures of the tokens of packed rows.
        packed: (G, S) the targets of these rows, -100 outside of the answers.
        targets: (B, T) the targets of the same answers, in the same order, a row each.

    Returns:
        (B, T), 0 outside of the answers.

    >>> packed, targets = torch.tensor([[-100, 5, 6]]), torch.tensor([[-100, 5], [6, -100]])
    >>> unpacked(torch.tensor([[0.1, 0.2, 0.3]]), packed, targets)
    tensor([[0.0000, 0.2000],
            [0.3000, 0.0000]])
    """
    zeros = torch.zeros(targets.shape, dtype=x.dtype, device=x.device)
    # both masks go row by row, and in a packed row one answer stands behind the other
    return zeros.masked_scatter(targets != IGNORE_INDEX, x[packed != IGNORE_INDEX])


# --- answers ---


@dataclass
class PromptBatch:
    """B questions, ready to be answered and scored.

    questions: their records.
    images: (B, 3, S, S), one for each question.
    prompts: ids that the policy reads before it answers.
    reward_prompts: ids that the reward model reads before an answer; they may hold facts.
    seed: decides which answers are drawn.
    n_copies: k, how many rows side by side ask the same; their prompt is read once.
    shared: if this is a share of a batch: its rows, and how many the whole batch has.
    """

    questions: list[dict]
    images: Tensor
    prompts: list[list[int]]
    reward_prompts: list[list[int]]
    seed: int
    n_copies: int = 1
    shared: tuple[list[int], int] | None = None

    def copied(self, k: int) -> "PromptBatch":
        """Each question k times, side by side."""
        def copies(of_questions: list) -> list:
            return [x for x in of_questions for _ in range(k)]

        return PromptBatch(
            copies(self.questions), self.images.repeat_interleave(k, dim=0),
            copies(self.prompts), copies(self.reward_prompts), self.seed, n_copies=k,
        )

    def share(self, rank: int, size: int) -> "PromptBatch":
        """Every size-th question, from the rank-th on, with all its copies.

        Their answers are drawn as in the whole batch.

        Raises:
            ValueError: if there are fewer questions than processes.
        """
        if size == 1:
            return self
        n, k = len(self.prompts), self.n_copies
        if n // k < size:
            raise ValueError(f"{n // k} questions are too few for {size} processes")
        rows = [row for row in range(n) if row // k % size == rank]

        def some(of_questions: list) -> list:
            return [of_questions[row] for row in rows]

        return PromptBatch(
            some(self.questions), self.images[rows], some(self.prompts),
            some(self.reward_prompts), self.seed, k, shared=(rows, n),
        )

    def draws(self, n: int, device: torch.device) -> Tensor:
        """Random numbers for n tokens of each answer, (B, n): each token of each row its own.

        Those of a row do not depend on how the whole batch is shared out.
        """
        rows, n_rows = self.shared or (range(len(self.prompts)), len(self.prompts))
        generator = torch.Generator(device).manual_seed(self.seed)
        return torch.rand(n_rows, n, generator=generator, device=device)[list(rows)]


@dataclass
class RolloutPart:
    """Some answers of a rollout, cut to the longest of them, as an update reads them.

    packed: g rows; each holds one prompt and its k answers, as in Rollout.
    feats, value_feats: (g, N, Cv).
    advs: (b, T), or (b,) of whole answers, where b = g k; all others are (b, T).

    What belongs to a value model is None if there is none.
    """

    packed: Batch
    idx: Tensor
    targets: Tensor
    mask: Tensor
    logp: Tensor
    ref_logp: Tensor
    values: Tensor | None
    advs: Tensor
    returns: Tensor | None
    feats: Tensor
    value_feats: Tensor | None

    def logprobs(self, policy: VLM, temperature: float) -> Tensor:
        """Compute the policy's log-probabilities of the answers, (b, T), with gradients."""
        rows = self.packed
        logp, _ = logprobs(
            policy, policy.config.image_id, rows.idx, rows.targets,
            policy.projector(self.feats), temperature, segments=rows.segments,
        )                                                            # (g, S)
        return unpacked(logp, rows.targets, self.targets)            # (b, T)


@dataclass
class Rollout:
    """B answers that a policy drew, k to each prompt, and what an update needs of them.

    n_copies: k.
    packed: B / k rows; each holds one prompt and its k answers. If k is 1, they are the rows
        of idx and targets.
    idx, targets: (B, T), prompts and answers as `collate` makes them.
    lengths: (B,) number of tokens of each row of idx.
    logp, ref_logp: (B, T) nats by policy and reference, 0 outside of the answers.
    entropy: (B, T) nats, of the policy's distribution, 0 outside of the answers.
    values: (B, T) by the value model, or None.
    feats, value_feats: (B / k, N, Cv) patch features by the ViTs of policy and value model.
    score: (B,) by the reward model or by a program, or None.
    ended: (B,) bool, whether the policy wrote the end token.
    answers: ids of each answer, without the end token.
    ids: ids of the questions' records.

    Where several processes share a rollout, `together` collects all but `packed` and the
    features: these stay with the process that has drawn the answers.
    """

    n_copies: int
    packed: Batch
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
        """(B, T) bool, True where the target is a token of the answer."""
        return self.targets != IGNORE_INDEX

    @property
    def packed_lengths(self) -> Tensor:
        """(B / k,) number of tokens of each packed row, of all processes."""
        n_tokens = self.mask.sum(1).view(-1, self.n_copies)          # (B / k, k)
        # the prompt without its last token
        n_prompt = self.lengths[::self.n_copies] - n_tokens[:, 0]
        return n_prompt + (n_tokens + 1).sum(1) - 1

    def together(self, n: int) -> "Rollout":
        """Collect a rollout of n answers from all processes, in the order of its batch."""
        k = self.n_copies

        def tensor(x: Tensor | None, fill: float = 0) -> Tensor | None:
            if x is None:
                return None
            groups = x.unflatten(0, (-1, k))                         # (b / k, k, ...)
            return processes.gather(groups, n // k, fill).flatten(0, 1)

        def items(x: list) -> list:
            groups = [x[i:i + k] for i in range(0, len(x), k)]
            return [y for group in processes.gather_items(groups, n // k) for y in group]

        return Rollout(
            n_copies=k, packed=self.packed,
            idx=tensor(self.idx), targets=tensor(self.targets, IGNORE_INDEX),
            lengths=tensor(self.lengths), logp=tensor(self.logp),
            ref_logp=tensor(self.ref_logp), entropy=tensor(self.entropy),
            values=tensor(self.values), feats=self.feats, value_feats=self.value_feats,
            score=tensor(self.score), ended=tensor(self.ended.long()).bool(),
            answers=items(self.answers), ids=items(self.ids),
        )

    def names(self, rows: Tensor | None = None) -> list[str]:
        """Return the ids of the questions' records, for all rows or for some, (b,)."""
        if rows is None:
            return self.ids
        return [self.ids[i] for i in rows.tolist()]

    def rows_of(self, groups: Tensor) -> Tensor:
        """Numbers of prompts, (g,) -> numbers of the rows of their answers, (g k,)."""
        copies = torch.arange(self.n_copies, device=groups.device)
        return (groups[:, None] * self.n_copies + copies).flatten()

    def part(
        self, groups: Tensor, advs: Tensor, returns: Tensor | None = None
    ) -> RolloutPart:
        """Cut out the answers to the given prompts, (g,), which must be this process's own.

        Args:
            advs, returns: of all answers, (B, T); or (B,) advantages of whole answers, and
                no returns.
        """
        rows = self.rows_of(groups)                                  # (b,)
        T = int(self.lengths[rows].max())
        own = groups // processes.size()  # their places among what stays with the process

        def cut(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[rows, :T] if x.ndim == 2 else x[rows]

        return RolloutPart(
            packed=self.packed.take(own),
            idx=cut(self.idx),
            targets=cut(self.targets),
            mask=cut(self.mask),
            logp=cut(self.logp),
            ref_logp=cut(self.ref_logp),
            values=cut(self.values),
            advs=cut(advs),
            returns=cut(returns),
            feats=self.feats[own],
            value_feats=None if self.value_feats is None else self.value_feats[own],
        )

    def worth(self, end_penalty: float, length_penalty: float) -> Tensor:
        """Return each answer's score minus its penalties, (B,), see `rl.shape_score`."""
        lengths = self.mask.sum(1)                                   # (B,)
        return shape_score(self.score, self.ended, lengths, end_penalty, length_penalty)


def describe(rollout: Rollout, true_scores: list[float]) -> dict[str, float]:
    """Compute the figures of a rollout for the log; without true scores, no "true_score".

    kl_token and entropy are means over the tokens of answers, all others over answers.

    Args:
        true_scores: of the answers, or [] if there are none; no model learns from them.
    """
    mask = rollout.mask                                              # (B, T)
    kl = rollout.logp - rollout.ref_logp                             # (B, T)
    figures = {}
    if true_scores:
        figures["true_score"] = sum(true_scores) / len(true_scores)
    if rollout.score is not None:
        figures["score"] = float(rollout.score.mean())
    figures["kl_token"] = float(masked_mean(kl, mask))
    figures["kl_answer"] = float(kl.sum(1).mean())
    figures["entropy"] = float(masked_mean(rollout.entropy, mask))
    figures["length"] = float(mask.sum(1).float().mean())
    figures["ended"] = float(rollout.ended.float().mean())
    return figures


def of_answers(
    steps: list[tuple[list[int], Tensor, Tensor]], targets: Tensor
) -> list[Tensor]:
    """Put figures of drawn tokens where the tokens stand.

    Args:
        steps: for the first tokens of the answers, then for the second, and so on: the
            numbers of n rows, and for each figure its values, (n,).
        targets: (B, T), -100 outside of the answers; what is told of later tokens than a
            row has is left out.

    Returns:
        each figure, (B, T), 0 outside of the answers.

    >>> one, two = torch.tensor([0.1, 0.2]), torch.tensor([0.3])
    >>> of_answers([([0, 1], one), ([1], two)], torch.tensor([[-100, 5], [6, 7]]))
    [tensor([[0.0000, 0.1000],
            [0.2000, 0.3000]])]
    """
    at = targets != IGNORE_INDEX                                     # (B, T)
    n_tokens = at.sum(1)                                             # (B,)
    device = targets.device
    out = []
    for values in zip(*(figures for _, *figures in steps)):
        table = torch.zeros(len(at), len(steps), device=device)      # (B, tokens)
        for i, ((rows, *_), x) in enumerate(zip(steps, values)):
            table[torch.tensor(rows, device=device), i] = x
        is_token = torch.arange(len(steps), device=device) < n_tokens[:, None]
        # both masks go row by row, and an answer is one piece
        out.append(torch.zeros(at.shape, device=device).masked_scatter(at, table[is_token]))
    return out


def scores_of(
    reward_model: RewardModel, feats: Tensor, prompts: list[list[int]],
    answers: list[list[int]], tokenizer: Tokenizer, names: Sequence[str] | None = None,
) -> Tensor:
    """Score whole answers, k to each prompt.

    Args:
        feats: (B / k, N, Cv) patch features by the reward model's ViT.
        prompts: B / k lists of ids before the answers.
        answers: ids of each answer, with the end token if it has one; the k answers to the
            first prompt come first.
        names: of the prompts, for errors.

    Returns:
        (B,).

    Raises:
        ValueError: if a score is NaN or inf, or as `collate`.
    """
    k = len(answers) // len(prompts)
    packed = [pack_unread(prompt, answers[i * k:i * k + k], tokenizer.end)
              for i, prompt in enumerate(prompts)]
    rows, segments = zip(*packed)
    block_size = reward_model.vlm.gpt.config.block_size
    judged = collate(rows, tokenizer.pad, block_size, names, segments=segments)
    judged = judged.to(feats.device)
    img_emb = reward_model.vlm.projector(feats)                      # (B / k, N, C)
    score = torch.zeros(len(prompts), k, device=feats.device)
    for part, T in in_parts(judged.lengths):
        score[part] = reward_model(
            judged.idx[part, :T], judged.segments[part, :T], img_emb=img_emb[part]
        ).view(-1, k)
    score = score.flatten()                                          # (B,)
    finite = score.isfinite()
    if not bool(finite.all()):
        first = tokenizer.decode(answers[int(finite.int().argmin())])
        raise ValueError(f"the reward model's score of {first!r} is NaN or inf")
    return score


@torch.no_grad()
def roll_out(
    policy: VLM, ref: VLM, reward_model: RewardModel | None, value_model: ValueModel | None,
    batch: PromptBatch, tokenizer: Tokenizer, max_new_tokens: int, temperature: float,
    use_cache: bool = True,
) -> Rollout:
    """Let the policy answer the questions, and the other models read the answers.

    The reward model reads `batch.reward_prompts`, all others read `batch.prompts`.

    Args:
        ref: the reference. With LoRA it is the policy itself, whose adapters are off while
            it computes ref_logp.
        reward_model, value_model: None if scores or values are not needed.
        temperature: > 0; answers are drawn, and log-probabilities computed, at this
            temperature.
        use_cache: as `generate` takes it.

    Raises:
        ValueError: if a score is NaN or inf; if there is a value model and more than one
            answer to a prompt; or as `generate` and `collate`.
    """
    device = next(policy.parameters()).device
    end, pad = tokenizer.end, tokenizer.pad
    k = batch.n_copies
    if value_model is not None and k > 1:
        raise ValueError(f"a value model reads one answer to a prompt, and here are {k}")
    images = batch.images[::k].to(device)

    features: dict[tuple[int, bool], Tensor] = {}  # a ViT that models share computes once

    def feats_of(vlm: VLM) -> Tensor:
        """Patch features, (B / k, N, Cv), kept for the ViT with and without its adapters."""
        key = id(vlm.vit), any(adapter.on for _, adapter in adapters(vlm.vit))
        if key not in features:
            features[key] = vlm.vit.features(images)
        return features[key]

    # 1. the policy draws an answer to every question
    img_emb = policy.projector(feats_of(policy))                     # (B / k, N, C)
    steps: list[tuple[list[int], Tensor, Tensor]] = []  # rows, log-probabilities, entropies

    def watch(active: list[int], logits: Tensor, token: Tensor) -> None:
        log_p = (logits / temperature).log_softmax(-1)               # (n, V)
        logp = log_p.gather(1, token[:, None])[:, 0]                 # (n,)
        steps.append((active, logp, torch.special.entr(log_p.exp()).sum(-1)))

    drawn = generate(
        policy, img_emb, batch.prompts[::k], keep_stop=True, stop=end,
        max_new_tokens=max_new_tokens, temperature=temperature, use_cache=use_cache,
        n_copies=k, draws=batch.draws(max_new_tokens, device), watch=watch,
    )
    ended = torch.tensor([ids[-1] == end for ids in drawn], device=device)
    names = [str(question["id"]) for question in batch.questions]
    rows = [answer_row(prompt, ids) for prompt, ids in zip(batch.prompts, drawn)]
    block_size = policy.gpt.config.block_size
    dialogues = packed = collate(rows, pad, block_size, names).to(device)
    if k > 1:
        groups = [pack(batch.prompts[i], drawn[i:i + k]) for i in range(0, len(drawn), k)]
        rows, segments = map(list, zip(*groups))
        packed = collate(rows, pad, block_size, names[::k], segments=segments).to(device)

    # 2. policy and reference give each answer token a probability
    idx = dialogues.idx                                              # (B, T)
    targets = dialogues.targets                                      # (B, T)
    parts = in_parts(packed.lengths)

    def read(vlm: VLM, with_entropy: bool = False) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies, (B, T) each; entropies are 0 if not wanted."""
        img_emb = vlm.projector(feats_of(vlm))                       # (B / k, N, C)
        logp = torch.zeros(packed.idx.shape, device=device)          # (B / k, S)
        entropy = torch.zeros(packed.idx.shape, device=device)
        for rows, T in parts:
            part = packed.take(rows)
            logp[rows, :T], part_entropy = logprobs(
                vlm, tokenizer.image, part.idx, part.targets, img_emb[rows], temperature,
                with_entropy, part.segments,
            )
            if with_entropy:
                entropy[rows, :T] = part_entropy
        return (unpacked(logp, packed.targets, targets),
                unpacked(entropy, packed.targets, targets))

    if torch.is_autocast_enabled(device.type):
        # In half precision a pass over whole rows, as the update takes it, gives other
        # numbers than one over new tokens; then the first ratios would not be 1.
        logp, entropy = read(policy, with_entropy=True)
    else:
        logp, entropy = of_answers(steps, targets)
    feats = feats_of(policy)                                         # (B / k, N, Cv)
    with adapters_off(ref):
        ref_logp, _ = read(ref)

    # 3. the value model predicts at each token the reward that is still to come
    values = value_feats = None
    if value_model is not None:
        value_feats = feats_of(value_model.vlm)                      # (B, N, Cv)
        img_emb = value_model.vlm.projector(value_feats)             # (B, N, C)
        values = torch.zeros(idx.shape, device=device)
        for rows, T in parts:
            values[rows, :T] = value_model(
                idx[rows, :T], img_emb=img_emb[rows], at=targets[rows, :T] != IGNORE_INDEX
            )

    # 4. the reward model scores whole answers
    score = None
    if reward_model is not None:
        score = scores_of(reward_model, feats_of(reward_model.vlm),
                          batch.reward_prompts[::k], drawn, tokenizer, names[::k])

    answers = [ids[:-1] if ids[-1] == end else ids for ids in drawn]
    return Rollout(
        n_copies=k,
        packed=packed,
        idx=idx,
        targets=targets,
        lengths=dialogues.lengths,
        logp=logp,
        ref_logp=ref_logp,
        entropy=entropy,
        values=values,
        feats=feats,
        value_feats=value_feats,
        score=score,
        ended=ended,
        answers=answers,
        ids=names,
    )
