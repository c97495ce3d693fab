"""Writing text token by token: greedy, sampled or by beam search, for rows of any lengths.

Each row's next token is written at that row's own length (contract 2 in README.md). So a
batch needs no left padding, and a row's logits do not depend on the other rows of its
batch. With the KV cache, each step computes one position of each row. Without it, each step
computes all positions again: the answers are the same, the work is more.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from minivlm.conversation import answer_row
from minivlm.loading.batches import collate
from minivlm.losses import IGNORE_INDEX, token_logprobs
from minivlm.attention_masks import last_only

# --- choosing a token ---


def filter_logits(
    logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Divide logits by the temperature, then remove all but the likeliest tokens.

    First the top_k likeliest tokens stay. Of these, the fewest whose probabilities add up
    to top_p stay.

    Args:
        logits: (B, V).
        temperature: > 0; higher makes the draw more random.
        top_k: how many tokens stay; those that tie with the last of them stay too. 0 keeps
            all.
        top_p: probability that the tokens which stay add up to; 1 keeps all. The likeliest
            token always stays.

    Returns:
        (B, V), -inf where a token is removed.

    Raises:
        ValueError: if the temperature is not above 0.

    Source: top-p is nucleus sampling, Holtzman et al. 2019, arXiv:1904.09751, section 3.1.

    >>> filter_logits(torch.tensor([[2.0, 1.0, 0.0]]), 0.5, top_k=2)
    tensor([[4., 2., -inf]])
    """
    if not temperature > 0:  # NaN is refused too
        raise ValueError(
            f"temperature {temperature} is not above 0; greedy decoding needs no filter"
        )
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]            # (B, 1)
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        p = ordered.softmax(dim=-1)
        removed = p.cumsum(dim=-1) - p >= top_p  # likelier tokens alone reach top_p
        removed[:, 0] = False
        logits = logits.masked_fill(removed.scatter(-1, order, removed), -torch.inf)
    return logits


def penalize(logits: Tensor, written: Tensor, penalty: float) -> Tensor:
    """Lower the logits of those tokens that a row has already written.

        logit / penalty if the logit is positive, else logit * penalty

    Args:
        logits: (B, V).
        written: (B, V) bool, True for tokens that the row has written.
        penalty: 1 changes nothing; a larger one lowers more. BLIP samples captions with
            1.1.

    Returns:
        (B, V).

    Source: Keskar et al. 2019 (CTRL), arXiv:1909.05858, section 4.1. Dividing a
    negative logit would make its token likelier. huggingface/transformers multiplies
    negative logits instead, and so does this function.

    >>> penalize(torch.tensor([[2.0, -2.0, 1.0]]), torch.tensor([[True, True, False]]), 2.0)
    tensor([[ 1., -4.,  1.]])
    """
    if penalty == 1:  # the usual case, at every step
        return logits
    lowered = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(written, lowered, logits)


def pick(
    logits: Tensor, temperature: float, top_k: int, top_p: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Choose each row's next token: at temperature 0 the likeliest, else a draw.

    (B, V) -> (B,).
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    p = filter_logits(logits, temperature, top_k, top_p).softmax(dim=-1)
    return torch.multinomial(p, 1, generator=generator)[:, 0]


# --- reading ---


class Reader:
    """Reads prompts of any lengths as one batch, then one new token of each row per step.

    `logits`, (B, V), are always those of each row's next token.

    Args:
        model: a VLM, or a GPT if images is None.
        images: (n, 3, S, S), the pictures of all rows in order, or None.
        prompts: B lists of ids, of any lengths.
        max_new_tokens: the most new tokens of a row; a row gets fewer if it fills the
            context first.
        use_cache: keep keys and values; if False, every step computes all positions again.
        n_copies: how many rows are made of each prompt. They stand side by side, and their
            prompt is read once.

    Raises:
        ValueError: if there is no prompt, one is empty, or one leaves no room for an
            answer; if n_copies < 1; or as `VLM.embed`.
    """

    def __init__(
        self, model: nn.Module, images: Tensor | None, prompts: list[list[int]],
        max_new_tokens: int, use_cache: bool, n_copies: int,
    ):
        if not prompts or not all(prompts):
            raise ValueError("every row needs a prompt of at least one token")
        if n_copies < 1:
            raise ValueError(f"n_copies {n_copies} is below 1")
        gpt = model.gpt if hasattr(model, "gpt") else model
        block_size = gpt.config.block_size
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        if longest >= block_size:
            raise ValueError(
                f"prompt has {longest} tokens, the context holds {block_size} "
                "with the answer; shorten it"
            )
        self.model = model
        B = len(prompts)
        device = next(model.parameters()).device
        self.rows = torch.arange(B, device=device)
        self.lengths = torch.tensor(lengths, device=device)          # (B,)
        self.context = {}  # what a pass over whole rows needs besides their ids
        if images is not None:
            self.context["images"] = images.to(device)
        # in a prefix-LM the prompt's tokens see each other both ways; new tokens are causal
        if getattr(model.config, "prefix_lm", False):
            self.context["prefix"] = self.lengths.clone()
        self.size = min(longest + max_new_tokens, block_size)  # the most tokens of any row
        self.steps = min(max_new_tokens, self.size - min(lengths))
        self.idx = torch.zeros(B, self.size, dtype=torch.long, device=device)
        for b, prompt in enumerate(prompts):
            self.idx[b, : len(prompt)] = torch.tensor(prompt, device=device)
        # the placeholder must never be written: without a picture it cannot be read
        self.image_id = getattr(model.config, "image_id", None)

        self.cache = model.new_cache(B, self.size) if use_cache else None
        at = last_only(self.lengths, longest)
        self._score(self.idx[:, :longest], at=at, cache=self.cache, **self.context)
        if n_copies > 1:
            self.select(self.rows.repeat_interleave(n_copies))

    def push(self, token: Tensor) -> None:
        """Write each row's next token, (B,), and read it.

        A full row overwrites its own last token. Callers must ignore such a row from then
        on.
        """
        self.idx[self.rows, self.lengths.clamp(max=self.size - 1)] = token
        self.lengths = (self.lengths + 1).clamp(max=self.size)
        if self.cache is None:
            T = int(self.lengths.max())
            at = last_only(self.lengths, T)
            self._score(self.idx[:, :T], at=at, **self.context)
        else:
            newest = self.idx[self.rows, self.lengths - 1]           # (B,)
            positions = self.lengths[:, None] - 1                    # (B, 1)
            self._score(newest[:, None], cache=self.cache, positions=positions)

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, (n,): old row rows[i] becomes row i. Rows may repeat."""
        if self.cache is not None:
            self.cache.k = self.cache.k[:, rows]
            self.cache.v = self.cache.v[:, rows]
            self.cache.rows = torch.arange(len(rows), device=rows.device)[:, None]
        elif "images" in self.context:  # without a cache, every step needs them
            n_images = (self.idx == self.image_id).sum(1) // self.model.config.vit.n_tokens
            of_row = self.context["images"].split(n_images.tolist())
            self.context["images"] = torch.cat([of_row[b] for b in rows.tolist()])
        if "prefix" in self.context:
            self.context["prefix"] = self.context["prefix"][rows]
        self.idx = self.idx[rows]
        self.lengths = self.lengths[rows]
        self.logits = self.logits[rows]
        self.rows = torch.arange(len(rows), device=rows.device)

    def _score(self, idx: Tensor, **options) -> None:
        logits = self.model(idx, **options)  # (B, V), or (B, 1, V) of one position
        self.logits = logits.view(len(self.rows), -1).float()
        if self.image_id is not None:
            self.logits[:, self.image_id] = -torch.inf


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, without dropout, inside the with block only."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def stream(
    model: nn.Module,
    images: Tensor | None,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    stop: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
    n_copies: int = 1,
) -> Iterator[list[int | None]]:
    """Yield the next token of every row, step by step; None for a row that has ended.

    Args:
        model, images, prompts, max_new_tokens, use_cache, n_copies: as `Reader` takes them.
        stop: the id that ends a row; it is yielded too, and after it None.
        temperature: 0 always takes the likeliest token; higher makes the draw more random.
        top_k, top_p: as `filter_logits` takes them.
        repetition_penalty: as `penalize` takes it; it does not concern the prompt's tokens.
        generator: of the draws, on the model's device.

    Raises:
        ValueError: as `Reader`, or if the temperature is below 0.
    """
    with evaluation_mode(model):  # its end is reached even if the caller stops early
        reader = Reader(model, images, prompts, max_new_tokens, use_cache, n_copies)
        written = torch.zeros_like(reader.logits, dtype=torch.bool)  # (B, V)
        n = len(written)
        alive = [True] * n
        active = list(range(n))  # which rows the reader still holds
        for step in range(1, reader.steps + 1):
            logits = penalize(reader.logits, written, repetition_penalty)
            token = pick(logits, temperature, top_k, top_p, generator)  # (active rows,)
            written[reader.rows, token] = True
            tokens: list[int | None] = [None] * n
            has_room = (reader.lengths < reader.size).tolist()  # else the context is full
            for b, t, room in zip(active, token.tolist(), has_room):
                if alive[b] and room:
                    tokens[b] = t
            alive = [t is not None and t != stop for t in tokens]
            yield tokens
            if step == reader.steps or not any(alive):
                break
            going = [i for i, b in enumerate(active) if alive[b]]
            # drop ended rows only once they are half of all: select copies the whole cache
            if len(going) <= len(active) / 2:
                reader.select(torch.tensor(going, device=token.device))
                written = written[going]
                token = token[going]
                active = [active[i] for i in going]
            reader.push(token)


def generate(
    model: nn.Module, images: Tensor | None, prompts: list[list[int]],
    keep_stop: bool = False, **options,
) -> list[list[int]]:
    """Write the whole answer of every row.

    Args:
        model, images, prompts: as `Reader` takes them.
        keep_stop: whether an answer keeps its stop token, if it has one.
        options: as `stream` takes them.

    Returns:
        the ids of each answer. With n_copies=n, the n answers to the first prompt come
        first, then the n answers to the second.

    Raises:
        ValueError: as `stream`.

    >>> from minivlm.gpt import GPT, GPTConfig
    >>> gpt = GPT(GPTConfig(vocab_size=8, block_size=16, n_layer=1, n_head=1, n_embd=8))
    >>> rows = generate(gpt, None, [[1], [1, 2, 3]], max_new_tokens=4, stop=-1)
    >>> [len(row) for row in rows]
    [4, 4]
    """
    n_rows = len(prompts) * options.get("n_copies", 1)
    answers: list[list[int]] = [[] for _ in range(n_rows)]
    for tokens in stream(model, images, prompts, **options):
        for answer, token in zip(answers, tokens):
            if token is not None and (keep_stop or token != options["stop"]):
                answer.append(token)
    return answers


# --- searching for a likely text ---


class FinishedTexts:
    """The best finished texts of one row of a beam search, by score, the best first."""

    def __init__(self, n_beams: int):
        self.n_beams = n_beams
        self.best: list[tuple[list[int], float]] = []
        self.done = False

    def add(self, ids: list[int], score: float) -> None:
        """Add a text and keep the n_beams best; of equal scores, the earlier one wins."""
        self.best.append((ids, score))
        self.best = sorted(self.best, key=lambda text: -text[1])[:self.n_beams]

    def beat(self, score: float) -> bool:
        """Say whether there are n_beams texts, none of which is worse than this score."""
        return len(self.best) == self.n_beams and score <= self.best[-1][1]


@torch.no_grad()
def beam_search(
    model: nn.Module,
    images: Tensor | None,
    prompts: list[list[int]],
    *,
    n_beams: int,
    max_new_tokens: int,
    stop: int,
    length_penalty: float = 1.0,
    use_cache: bool = True,
) -> list[tuple[list[int], float]]:
    """Follow the n_beams likeliest beginnings of each row; return its best text and score.

        score = sum_t log p(token_t) / length^length_penalty

    Sum and length include the stop token. The followed beginnings are called beams. A
    candidate is a beam with one more token. Each step takes the 2 n_beams likeliest
    candidates of each row. Those with the stop token, if they are among the first n_beams,
    are finished texts. The first n_beams without it are the next beams.

    A row is done when it has n_beams finished texts and none of them scores lower than its
    likeliest next beam scores at its present length. A row is also done after
    max_new_tokens, or when the context is full. Then the first n_beams candidates are
    finished texts, with or without the stop token.

    Args:
        model, images, prompts, max_new_tokens, use_cache: as `Reader` takes them.
        n_beams: how many beginnings of each row are followed.
        stop: the id that ends a text.
        length_penalty: 0 compares sums, 1 compares means; larger favors longer texts.

    Returns:
        for each row the ids of its best text, without the stop token, and the score.

    Raises:
        ValueError: if n_beams or max_new_tokens < 1, or as `Reader`.

    Source: the procedure of huggingface/transformers with early_stopping=False, with which
    BLIP writes captions (3 beams); length_penalty as in Wu et al. 2016, arXiv:1609.08144,
    section 7, but without the constant 5.
    """
    B, K = len(prompts), n_beams
    if K < 1:
        raise ValueError(f"n_beams {K} is below 1")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens {max_new_tokens} is below 1")
    finished = [FinishedTexts(K) for _ in prompts]
    with evaluation_mode(model):
        reader = Reader(model, images, prompts, max_new_tokens, use_cache, n_copies=K)
        device = reader.rows.device
        first_row = torch.arange(B, device=device)[:, None] * K      # (B, 1)
        totals = torch.full((B, K), -torch.inf, device=device)  # log p of each beam
        totals[:, 0] = 0.0  # at first all beams of a row are equal, so only one counts
        for n in range(1, reader.steps + 1):
            # 1. the likeliest candidates of each row, in order
            logp = reader.logits.log_softmax(-1).view(B, K, -1)      # (B, K, V)
            V = logp.shape[-1]
            best = (totals[..., None] + logp).flatten(1).topk(min(2 * K, K * V))
            rows = first_row + best.indices // V                     # (B, 2K)
            tokens = best.indices % V                                # (B, 2K)

            # 2. the first K that do not end go on; each beam ends at most once, so K remain
            ends = tokens == stop                                    # (B, 2K)
            order = ends.int().argsort(dim=1, stable=True)[:, :K]    # (B, K)
            totals = best.values.masked_fill(ends, -torch.inf).gather(1, order)

            # 3. those that end and rank among the first K are finished texts
            norm = n ** length_penalty
            first_totals = best.values[:, :K].tolist()
            first_tokens = tokens[:, :K].tolist()
            for b, texts in enumerate(finished):
                if texts.done:
                    continue
                start = len(prompts[b])
                last = n == reader.steps or start + n == reader.size  # no room for more
                for rank in range(K):
                    total = first_totals[b][rank]
                    token = first_tokens[b][rank]
                    if total > -math.inf and (token == stop or last):
                        ids = reader.idx[rows[b, rank], start:start + n - 1].tolist()
                        if token != stop:
                            ids.append(token)
                        texts.add(ids, total / norm)
                texts.done = last or texts.beat(float(totals[b, 0]) / norm)
            if all(texts.done for texts in finished):
                break

            # 4. the reader keeps the beams that go on, and reads their new tokens
            reader.select(rows.gather(1, order).flatten())
            # a beam of probability 0 may have any new token, even stop or a placeholder
            new = tokens.gather(1, order).masked_fill(totals == -torch.inf, 0)
            reader.push(new.flatten())
    return [texts.best[0] for texts in finished]


@torch.no_grad()
def answer_logprobs(
    model: nn.Module, images: Tensor | None, prompts: list[list[int]],
    answers: list[list[int]], pad: int,
) -> Tensor:
    """Compute the log-probability of each given answer after each prompt.

    These log-probabilities rank the answers to a prompt.

    Args:
        model: a VLM, or a GPT if images is None.
        images: (B, 3, S, S), one picture for each prompt, or None.
        prompts: B lists of ids.
        answers: A lists of ids, each with the token that ends it.
        pad: the id that fills short rows.

    Returns:
        (B, A) nats, summed over an answer's tokens. Its length alone makes a longer answer
        less likely.

    Raises:
        ValueError: if there is no answer, one is empty, or one does not fit the context.

    Source: how BLIP answers the questions of VQA, arXiv:2201.12086, section 5.3
    (salesforce/BLIP, models/blip_vqa.py).
    """
    if not answers or not all(answers):
        raise ValueError("every answer needs at least one token")
    A = len(answers)
    gpt = model if images is None else model.gpt
    device = next(model.parameters()).device
    sums = []
    with evaluation_mode(model):
        for b, prompt in enumerate(prompts):
            rows = [answer_row(prompt, answer) for answer in answers]
            with device:  # collate makes its tensors there
                batch = collate(rows, pad, gpt.config.block_size)
            options = {}
            if images is not None:  # the ViT runs once for all answers
                img_emb = model.projector(model.vit.features(images[b:b + 1].to(device)))
                options["img_emb"] = img_emb.expand(A, -1, -1)       # (A, N, C)
            if getattr(model.config, "prefix_lm", False):
                options["prefix"] = torch.full((A,), len(prompt), device=device)
            at = batch.targets != IGNORE_INDEX                       # (A, T)
            logits = gpt.head(model.hidden(batch.idx, at=at, **options))  # (M, V)
            logp = token_logprobs(logits[None], batch.targets[at][None])[0]  # (M,)
            sums.append(logp.new_zeros(at.shape).masked_scatter(at, logp).sum(1))
    return torch.stack(sums)
