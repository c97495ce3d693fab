"""Writing text token by token: greedy, sampled or by beam search, batched over rows of any length.

Every row's next token is written at that row's own length (contract 2), so a batch needs no left
padding, and a row's answer does not depend on who shares its batch. With the cache each new token
costs one position; without it, everything is read again: same answer, more work.

Used by: evaluate.py, chat.py, rollout.py, minivlm/preferences/pool.py, data/capfilt.py.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from minivlm.losses import IGNORE_INDEX, token_logprobs
from minivlm.masks import last_only

# --- choosing a token ---


def filter_logits(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Divide by the temperature, keep the top_k likeliest, then the smallest set of mass top_p.

    Args:
        logits: (B, V).
        temperature: > 0.
        top_k: 0 keeps all; equals of the k-th are kept too.
        top_p: the likeliest token always stays.

    Returns:
        (B, V), -inf where a token is out.

    Raises:
        ValueError: if the temperature is not above 0.

    Source: top-p is nucleus sampling, Holtzman et al. 2019, arXiv:1904.09751, section 3.1.

    >>> filter_logits(torch.tensor([[2.0, 1.0, 0.0]]), 0.5, top_k=2)
    tensor([[4., 2., -inf]])
    """
    if temperature <= 0:
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
        out = p.cumsum(dim=-1) - p >= top_p                          # the mass before it suffices
        out[:, 0] = False
        logits = logits.masked_fill(out.scatter(-1, order, out), -torch.inf)
    return logits


def penalize(logits: Tensor, said: Tensor, penalty: float) -> Tensor:
    """Make tokens that a row holds already less likely: logit / penalty, or * penalty if negative.

    Args:
        logits: (B, V).
        said: (B, V) bool, True for tokens that the row holds.
        penalty: 1 changes nothing; BLIP samples captions with 1.1.

    Returns:
        (B, V).

    Source: Keskar et al. 2019 (CTRL), arXiv:1909.05858, section 4.1; negative logits, which a
    division would make likelier, as in huggingface/transformers.

    >>> penalize(torch.tensor([[2.0, -2.0, 1.0]]), torch.tensor([[True, True, False]]), 2.0)
    tensor([[ 1., -4.,  1.]])
    """
    if penalty == 1:  # nearly every call, once a token
        return logits
    return torch.where(said, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def pick(
    logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None
) -> Tensor:
    """Choose each row's next token: the likeliest at temperature 0, else a draw. (B, V) -> (B,)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    p = filter_logits(logits, temperature, top_k, top_p).softmax(dim=-1)
    return torch.multinomial(p, 1, generator=generator)[:, 0]


# --- reading on ---


class Reader:
    """Prompts of different length as rows of one batch: reads them, then one token a row at a time.

    `logits` (B, V) always scores the next token of each row; `room` (B,) says which can take one.

    Args:
        model: a VLM, or a GPT if images is None.
        images: all rows' pictures in order, (n, 3, S, S), or None.
        prompts: B lists of ids, of any lengths.
        max_new_tokens: at most so many tokens a row; a row also ends where the context is full.
        use_cache: keep keys and values; False reads everything again at every step.
        n_copies: rows of each prompt, side by side; it is read once for all of them.

    Raises:
        ValueError: if there is no prompt, one is empty, or one leaves no room for an answer; if
            n_copies < 1.
    """

    def __init__(
        self, model: nn.Module, images: Tensor | None, prompts: list[list[int]],
        max_new_tokens: int, use_cache: bool, n_copies: int,
    ):
        if not prompts or not all(prompts):
            raise ValueError("every row needs a prompt of at least one token")
        if n_copies < 1:
            raise ValueError(f"{n_copies} rows of each prompt are below 1")
        block_size = (model.gpt if hasattr(model, "gpt") else model).config.block_size
        longest = max(map(len, prompts))
        if longest >= block_size:
            raise ValueError(
                f"prompt has {longest} tokens, the context holds {block_size} with the answer; "
                "shorten it"
            )
        self.model, device, B = model, next(model.parameters()).device, len(prompts)
        self.pictures = {} if images is None else {"images": images.to(device)}
        self.rows = torch.arange(B, device=device)
        self.lengths = torch.tensor([len(p) for p in prompts], device=device)    # (B,)
        # a prefix-LM reads its prompt both ways; what it writes is causal
        both_ways = getattr(model.config, "prefix_lm", False)
        self.prefix = {"prefix": self.lengths.clone()} if both_ways else {}
        self.size = min(longest + max_new_tokens, block_size)
        self.steps = min(max_new_tokens, self.size - min(map(len, prompts)))
        self.idx = torch.zeros(B, self.size, dtype=torch.long, device=device)
        for b, prompt in enumerate(prompts):
            self.idx[b, : len(prompt)] = torch.tensor(prompt, device=device)
        # a picture's placeholder is no word: written, it could not be read back
        self.image_id = getattr(model.config, "image_id", None)

        self.cache = model.new_cache(B, self.size) if use_cache else None
        self._score(
            self.idx[:, :longest], at=last_only(self.lengths, longest), cache=self.cache,
            **self.pictures, **self.prefix,
        )
        if n_copies > 1:
            self.select(self.rows.repeat_interleave(n_copies))

    @property
    def room(self) -> Tensor:
        """(B,) bool, False for a row whose context is full."""
        return self.lengths < self.size

    def push(self, token: Tensor) -> None:
        """Write each row's next token, (B,), and read it.

        A full row writes over its own last place; it is never read again.
        """
        self.idx[self.rows, self.lengths.clamp(max=self.size - 1)] = token
        self.lengths = (self.lengths + 1).clamp(max=self.size)
        if self.cache is None:
            T = int(self.lengths.max())
            at = last_only(self.lengths, T)
            self._score(self.idx[:, :T], at=at, **self.pictures, **self.prefix)
        else:
            newest = self.idx[self.rows, self.lengths - 1]           # (B,)
            self._score(newest[:, None], cache=self.cache, positions=self.lengths[:, None] - 1)

    def select(self, rows: Tensor) -> None:
        """Go on with rows[b], (n,), as row b: any of them, in any order, as often as named."""
        if self.cache is not None:
            self.cache.k, self.cache.v = self.cache.k[:, rows], self.cache.v[:, rows]
            self.cache.rows = torch.arange(len(rows), device=rows.device)[:, None]
        elif self.pictures:  # they will be looked at again
            n_images = (self.idx == self.image_id).sum(1) // self.model.config.vit.n_tokens
            of_row = self.pictures["images"].split(n_images.tolist())
            self.pictures["images"] = torch.cat([of_row[b] for b in rows.tolist()])
        self.prefix = {k: v[rows] for k, v in self.prefix.items()}
        self.idx, self.lengths, self.logits = self.idx[rows], self.lengths[rows], self.logits[rows]
        self.rows = torch.arange(len(rows), device=rows.device)

    def _score(self, idx: Tensor, **options) -> None:
        logits = self.model(idx, **options)  # (B, V), or (B, 1, V) of one position
        self.logits = logits.view(len(self.rows), -1).float()
        if self.image_id is not None:
            self.logits[:, self.image_id] = -torch.inf


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
    """Yield the next token of every row, step by step; None for a row that has stopped.

    Args:
        model, images, prompts, max_new_tokens, use_cache, n_copies: as `Reader` takes them.
        stop: the id that ends a row; it is yielded, then None.
        temperature: 0 is greedy.
        top_k, top_p: as `filter_logits` takes them.
        repetition_penalty: as `penalize` takes it, for what the row itself has written.

    Raises as `Reader`.
    """
    was_training = model.training
    model.eval()
    try:
        reader = Reader(model, images, prompts, max_new_tokens, use_cache, n_copies)
        said = torch.zeros_like(reader.logits, dtype=torch.bool)     # (B, V)
        n = len(said)
        alive, who = [True] * n, list(range(n))                      # rows still read
        for step in range(1, reader.steps + 1):
            logits = penalize(reader.logits, said, repetition_penalty)
            token = pick(logits, temperature, top_k, top_p, generator)           # (rows read,)
            said[reader.rows, token] = True
            given: list[int | None] = [None] * n
            for b, t, room in zip(who, token.tolist(), reader.room.tolist()):
                given[b] = t if alive[b] and room else None
            alive = [t is not None and t != stop for t in given]
            yield given
            if step == reader.steps or not any(alive):
                break
            going = [i for i, b in enumerate(who) if alive[b]]
            if len(going) <= len(who) / 2:  # most have stopped: cheaper without them
                reader.select(torch.tensor(going, device=token.device))
                said, token, who = said[going], token[going], [who[i] for i in going]
            reader.push(token)
    finally:  # also when the caller stops listening
        model.train(was_training)


def generate(
    model: nn.Module, images: Tensor | None, prompts: list[list[int]], keep_stop: bool = False,
    **options,
) -> list[list[int]]:
    """The whole answers of all rows; options as `stream` takes them.

    With n_copies=n, n answers to the first prompt come first, then n to the second.

    keep_stop: leave the stop token at the end of the rows that wrote it.

    >>> from minivlm.gpt import GPT, GPTConfig
    >>> gpt = GPT(GPTConfig(vocab_size=8, block_size=16, n_layer=1, n_head=1, n_embd=8))
    >>> [len(row) for row in generate(gpt, None, [[1], [1, 2, 3]], max_new_tokens=4, stop=-1)]
    [4, 4]
    """
    out: list[list[int]] = [[] for _ in prompts for _ in range(options.get("n_copies", 1))]
    for tokens in stream(model, images, prompts, **options):
        for row, token in zip(out, tokens):
            if token is not None and (keep_stop or token != options["stop"]):
                row.append(token)
    return out


# --- searching for a likely text ---


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
    """Follow the n_beams likeliest beginnings of every row; return its best text and the score.

        score = sum_t log p(token_t) / length^length_penalty,   the stop token included in both

    Of the 2 n_beams likeliest continuations, those that end and rank among the first n_beams are
    finished texts, the first n_beams others go on. A row is done when it has n_beams finished texts
    and its likeliest beginning, divided by its present length, is no better than the worst of them.
    What has not ended after max_new_tokens counts as finished there.

    Args:
        model, images, prompts, max_new_tokens, use_cache: as `Reader` takes them.
        length_penalty: 0 compares sums, 1 means; larger favors longer texts.

    Returns:
        for each row, ids without the stop token, and the score in nats.

    Raises:
        ValueError: if n_beams or max_new_tokens < 1, or as `Reader`.

    Source: the procedure is huggingface/transformers' with early_stopping=False, which BLIP's
    captions were made with (3 beams); length_penalty as in Wu et al. 2016, arXiv:1609.08144,
    section 7, without its 5s.
    """
    B, K = len(prompts), n_beams
    if K < 1:
        raise ValueError(f"n_beams {K} is below 1")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens {max_new_tokens} is below 1")
    was_training = model.training
    model.eval()
    try:
        reader = Reader(model, images, prompts, max_new_tokens, use_cache, n_copies=K)
        device, first = reader.rows.device, [len(p) for p in prompts]
        sums = torch.full((B, K), -torch.inf, device=device)         # log p of each beginning
        sums[:, 0] = 0.0                                             # all beams are equal at first
        finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(B)]
        done = [False] * B
        for n in range(1, reader.steps + 1):
            logp = reader.logits.log_softmax(-1).view(B, K, -1)      # (B, K, V)
            V = logp.shape[-1]
            best = (sums[..., None] + logp).flatten(1).topk(min(2 * K, K * V))   # (B, 2K)
            beams, tokens = best.indices // V, best.indices % V
            keep = torch.zeros(B, K, dtype=torch.long, device=device)
            token = torch.zeros(B, K, dtype=torch.long, device=device)
            new = torch.full((B, K), -torch.inf, device=device)
            for b in range(B):
                going = 0
                length = int(reader.lengths[b * K])
                last = n == reader.steps or length + 1 == reader.size
                for rank, (total, beam, t) in enumerate(
                    zip(best.values[b].tolist(), beams[b].tolist(), tokens[b].tolist())
                ):
                    if done[b] or total == -float("inf"):
                        continue
                    if t == stop or last:
                        if rank < K:
                            row = reader.idx[b * K + beam, first[b]:length].tolist()
                            finished[b].append(
                                (total / n ** length_penalty, row + [t] * (t != stop))
                            )
                    elif going < K:
                        keep[b, going], token[b, going], new[b, going] = beam, t, total
                        going += 1
                finished[b] = sorted(finished[b], key=lambda text: -text[0])[:K]
                full = (
                    len(finished[b]) == K
                    and float(new[b, 0]) / n ** length_penalty <= finished[b][-1][0]
                )
                done[b] = done[b] or last or full
            if all(done):
                break
            sums = new
            reader.select((torch.arange(B, device=device)[:, None] * K + keep).flatten())
            reader.push(token.flatten())
        return [(texts[0][1], texts[0][0]) for texts in finished]
    finally:
        model.train(was_training)


@torch.no_grad()
def answer_logprobs(
    model: nn.Module, images: Tensor | None, prompts: list[list[int]], answers: list[list[int]],
    pad: int,
) -> Tensor:
    """Log-probability of every given answer after every prompt, to rank candidates by likelihood.

    Args:
        model: a VLM, or a GPT if images is None.
        images: (B, 3, S, S), one picture a prompt, or None.
        prompts: B lists of ids.
        answers: A lists of ids, each with the token that ends it.
        pad: the id that fills short rows.

    Returns:
        (B, A) nats, summed over an answer's tokens; longer ones are less likely by length alone.

    Raises:
        ValueError: if there is no answer or one is empty.

    Source: how BLIP answers questions of VQA, arXiv:2201.12086, section 5.3 (salesforce/BLIP,
    models/blip_vqa.py).
    """
    if not answers or not all(answers):
        raise ValueError("every answer needs at least one token")
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        out = []
        for b, prompt in enumerate(prompts):
            T = len(prompt) + max(map(len, answers)) - 1
            idx = torch.full((len(answers), T), pad, device=device)
            targets = torch.full_like(idx, IGNORE_INDEX)
            for a, answer in enumerate(answers):
                row = torch.tensor(prompt + answer, device=device)
                idx[a, : len(row) - 1] = row[:-1]
                targets[a, len(prompt) - 1: len(row) - 1] = row[len(prompt):]
            given = {}
            if images is not None:  # looked at once, however many answers there are
                img_emb = model.projector(model.vit.features(images[b:b + 1].to(device)))
                given["img_emb"] = img_emb.expand(len(answers), -1, -1)
            if getattr(model.config, "prefix_lm", False):
                given["prefix"] = torch.full((len(answers),), len(prompt), device=device)
            at = targets != IGNORE_INDEX                             # (A, T), where the head runs
            gpt = model if images is None else model.gpt
            logits = gpt.head(model.hidden(idx, at=at, **given))     # (M, V)
            logp = token_logprobs(logits[None], targets[at][None])[0]            # (M,)
            out.append(logp.new_zeros(at.shape).masked_scatter(at, logp).sum(1))
        return torch.stack(out)
    finally:
        model.train(was_training)
