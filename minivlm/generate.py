"""Writing text token by token: greedy, sampled or by beam search, for rows of any lengths.

Each row counts positions of its own and sees no pads (contract 2 in README.md). So a batch
needs no left padding, and a row's answer does not depend on the other rows of its batch,
not even if it is drawn: every row has its own random numbers. With the KV cache, each step
computes one position of each row. Without it, each step computes all positions again: the
answers are the same, the work is more.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from minivlm.cache import Decoder, KVCache
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
    if temperature != 1:
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


def penalize(logits: Tensor, written: Tensor | None, penalty: float) -> Tensor:
    """Lower the logits of those tokens that a row has already written.

        logit / penalty if the logit is positive, else logit * penalty

    Args:
        logits: (B, V).
        written: (B, V) bool, True for tokens that the row has written; not read if the
            penalty is 1.
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
    logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0,
    draws: Tensor | None = None,
) -> Tensor:
    """Choose each row's next token: at temperature 0 the likeliest, else a draw.

    A draw u takes the first token up to which the probabilities add up to more than u.

    Args:
        logits: (B, V).
        temperature, top_k, top_p: as `filter_logits` takes them.
        draws: (B,) uniform in [0, 1), at a temperature above 0.

    Returns:
        (B,) ids.

    >>> pick(torch.tensor([[0.0, 0.0]]).expand(2, 2), 1.0, draws=torch.tensor([0.4, 0.6]))
    tensor([0, 1])
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    p = filter_logits(logits, temperature, top_k, top_p).softmax(dim=-1)
    sums = p.cumsum(dim=-1)                                          # (B, V)
    # the last sum is 1 but for rounding; a little less keeps u below it
    u = draws.clamp(max=1 - 2 ** -22) * sums[:, -1]
    return torch.searchsorted(sums, u[:, None], right=True)[:, 0]


# --- reading ---


class Reader:
    """Reads prompts of any lengths as one batch, then one new token of each row per step.

    `logits`, (B, V), are always those of each row's next token.

    Args:
        model: a VLM, or a GPT if images is None.
        images: (n, 3, S, S), the pictures of all rows in order, or (n, N, C), the same
            already projected; or None.
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
        self.size = min(longest + max_new_tokens, block_size)  # the most tokens of any row
        self.steps = min(max_new_tokens, self.size - min(lengths))
        self.idx = torch.zeros(B, self.size, dtype=torch.long, device=device)
        for b, prompt in enumerate(prompts):
            self.idx[b, : len(prompt)] = torch.tensor(prompt, device=device)
        # the placeholder must never be written: without a picture it cannot be read
        self.image_id = getattr(model.config, "image_id", None)
        self.images = None  # those of each row
        if images is not None:
            n_images = model.images_per_row(self.idx, len(images))
            self.images = images.to(device).split(n_images.tolist())
        # in a prefix-LM the prompt's tokens see each other both ways; new tokens are causal
        is_prefix_lm = getattr(model.config, "prefix_lm", False)
        self.prefix = self.lengths.clone() if is_prefix_lm else None

        cache = None
        if use_cache:
            cache = KVCache(gpt.config.n_layer, B, longest + self.steps)
        # many prompts are read in groups of similar length: fewer pads
        n_groups = min(8, max(1, B // 4)) if min(lengths) < longest else 1
        order = self.lengths.argsort()
        read = [self._read(rows, cache) for rows in order.chunk(n_groups)]
        self._keep(torch.cat(read)[order.argsort()])
        self.decoder = Decoder(gpt, cache, self.lengths) if use_cache else None
        if n_copies > 1:
            self.select(self.rows.repeat_interleave(n_copies))

    def push(self, token: Tensor) -> None:
        """Write each row's next token, (B,), and read it.

        A full row overwrites its own last token. Callers must ignore such a row from then
        on.
        """
        positions = self.lengths.clamp(max=self.size - 1)            # (B,)
        self.lengths = positions + 1
        if self.decoder is not None:
            # new tokens are never placeholders, so the GPT alone can read them
            self._keep(self.decoder(token, positions))
            return
        self.idx[self.rows, positions] = token
        self._keep(self._read(self.rows))

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, (n,): old row rows[i] becomes row i. Rows may repeat."""
        if self.decoder is not None:
            self.decoder.select(rows)
        else:  # every step reads whole rows
            self.idx = self.idx[rows]
            if self.images is not None:
                self.images = [self.images[b] for b in rows.tolist()]
            if self.prefix is not None:
                self.prefix = self.prefix[rows]
        self.lengths = self.lengths[rows]
        self.logits = self.logits[rows]
        self.rows = torch.arange(len(rows), device=rows.device)

    def _read(self, rows: Tensor, cache: KVCache | None = None) -> Tensor:
        """Read some rows, (b,), from their beginning; return their next logits, (b, V)."""
        lengths = self.lengths[rows]
        T = int(lengths.max())
        options = {"at": last_only(lengths, T)}
        if cache is not None:
            cache.rows = rows
            options["cache"] = cache
        if self.images is not None:
            images = torch.cat([self.images[b] for b in rows.tolist()])
            if len(images):
                options["images" if images.ndim == 4 else "img_emb"] = images
        if self.prefix is not None:
            options["prefix"] = self.prefix[rows]
        return self.model(self.idx[rows, :T], **options)

    def _keep(self, logits: Tensor) -> None:
        """Keep the logits, (B, V), but that of the placeholder."""
        self.logits = logits.float()
        if self.image_id is not None:
            self.logits[:, self.image_id] = -torch.inf


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, without dropout, inside the with block only."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


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
    draws: Tensor | None = None,
    watch: Callable[[list[int], Tensor, Tensor], None] | None = None,
) -> Iterator[list[int | None]]:
    """Yield the next token of every row, step by step; None for a row that has ended.

    Args:
        model, images, prompts, max_new_tokens, use_cache, n_copies: as `Reader` takes them.
        stop: the id that ends a row; it is yielded too, and after it None.
        temperature: 0 always takes the likeliest token; higher makes the draw more random.
        top_k, top_p: as `filter_logits` takes them.
        repetition_penalty: as `penalize` takes it; it does not concern the prompt's tokens.
        generator: of the draws, on the model's device.
        draws: (rows, max_new_tokens) uniform in [0, 1), see `pick`, one for each token of
            each row; by default the generator makes them.
        watch: is called at each step with the numbers of n rows, their logits, (n, V), and
            the tokens that were chosen, (n,). Rows that have ended may be among them.

    Raises:
        ValueError: as `Reader`, or if the temperature is below 0.
    """
    with evaluation_mode(model):  # its end is reached even if the caller stops early
        reader = Reader(model, images, prompts, max_new_tokens, use_cache, n_copies)
        device = reader.rows.device
        n = len(prompts) * n_copies
        # how many tokens each row can write before the context is full
        room = [reader.size - len(prompts[b // n_copies]) for b in range(n)]
        if draws is None and temperature:
            draws = torch.rand(n, reader.steps, generator=generator, device=device)
        written = None
        if repetition_penalty != 1:
            written = torch.zeros_like(reader.logits, dtype=torch.bool)  # (B, V)
        alive = [True] * n
        active = list(range(n))  # which rows the reader still holds
        for step in range(reader.steps):
            logits = penalize(reader.logits, written, repetition_penalty)
            u = None if draws is None else draws[:, step]
            token = pick(logits, temperature, top_k, top_p, u)       # (active rows,)
            if written is not None:
                written[reader.rows, token] = True
            if watch is not None:
                watch(active, logits, token)
            tokens: list[int | None] = [None] * n
            for b, t in zip(active, token.tolist()):
                if alive[b] and step < room[b]:
                    tokens[b] = t
            alive = [t is not None and t != stop for t in tokens]
            yield tokens
            if step + 1 == reader.steps or not any(alive):
                break
            going = [i for i, b in enumerate(active) if alive[b]]
            # drop ended rows only once they are half of all: select copies the whole cache
            if len(going) <= len(active) / 2:
                kept = torch.tensor(going, device=device)
                reader.select(kept)
                token = token[kept]
                written = None if written is None else written[kept]
                draws = None if draws is None else draws[kept]
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
        beams = torch.empty(B * K, 0, dtype=torch.long, device=device)  # ids, (B K, n - 1)
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
                # whether there is no room for more
                last = n == reader.steps or len(prompts[b]) + n == reader.size
                for rank in range(K):
                    total = first_totals[b][rank]
                    token = first_tokens[b][rank]
                    if total > -math.inf and (token == stop or last):
                        ids = beams[rows[b, rank]].tolist()
                        if token != stop:
                            ids.append(token)
                        texts.add(ids, total / norm)
                texts.done = last or texts.beat(float(totals[b, 0]) / norm)
            if all(texts.done for texts in finished):
                break

            # 4. the reader keeps the beams that go on, and reads their new tokens
            kept = rows.gather(1, order).flatten()                   # (B K,)
            reader.select(kept)
            # a beam of probability 0 may have any new token, even stop or a placeholder
            new = tokens.gather(1, order).masked_fill(totals == -torch.inf, 0)
            beams = torch.cat([beams[kept], new.view(-1, 1)], dim=1)
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
