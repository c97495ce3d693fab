"""Writing text token by token: greedy or sampled, batched over rows of different length.

Every row's next token is written at that row's own length (contract 2), so a batch needs no left
padding, and a row's answer does not depend on who shares its batch. With the cache each new token
costs one position; without it, everything is read again: same answer, more work.

Used by: evaluate.py, chat.py.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def filter_logits(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Divide by the temperature, then keep the top_k likeliest tokens, then the smallest set of mass top_p.

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
        raise ValueError(f"temperature {temperature} is not above 0; greedy decoding needs no filter")
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]            # (B, 1)
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        p = ordered.softmax(dim=-1)
        out = p.cumsum(dim=-1) - p >= top_p                          # the mass before a token suffices
        out[:, 0] = False
        logits = logits.masked_fill(out.scatter(-1, order, out), -torch.inf)
    return logits


def pick(
    logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None
) -> Tensor:
    """Choose the next token of each row: the likeliest at temperature 0, else a draw. (B, V) -> (B,)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    p = filter_logits(logits, temperature, top_k, top_p).softmax(dim=-1)
    return torch.multinomial(p, 1, generator=generator)[:, 0]


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
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Iterator[list[int | None]]:
    """Yield the next token of every row, step by step; None for a row that has stopped.

    Args:
        model: a VLM, or a GPT if images is None.
        images: all rows' pictures in order, (n, 3, S, S), or None.
        prompts: B lists of ids, of any lengths.
        max_new_tokens: at most so many tokens a row; a row also ends where the context is full.
        stop: the id that ends a row; it is yielded, then None.
        temperature: 0 is greedy.
        use_cache: keep keys and values; False reads everything again at every step.

    Raises:
        ValueError: if there is no prompt, one is empty, or one leaves no room for an answer.
    """
    if not prompts or not all(prompts):
        raise ValueError("every row needs a prompt of at least one token")
    block_size = (model.gpt if hasattr(model, "gpt") else model).config.block_size
    longest = max(map(len, prompts))
    if longest >= block_size:
        raise ValueError(
            f"prompt has {longest} tokens, the context holds {block_size} with the answer; shorten it"
        )
    was_training = model.training
    model.eval()
    try:
        device, B = next(model.parameters()).device, len(prompts)
        rows = torch.arange(B, device=device)
        lengths = torch.tensor([len(p) for p in prompts], device=device)         # (B,)
        size = min(longest + max_new_tokens, block_size)
        idx = torch.zeros(B, size, dtype=torch.long, device=device)
        for b, prompt in enumerate(prompts):
            idx[b, : len(prompt)] = torch.tensor(prompt)
        pictures = {} if images is None else {"images": images.to(device)}

        cache = model.new_cache(B, size) if use_cache else None
        positions = torch.arange(longest, device=device).expand(B, longest)
        last = torch.zeros(B, longest, dtype=torch.bool, device=device)
        last[rows, lengths - 1] = True
        logits = model(idx[:, :longest], **pictures, at=last, cache=cache, positions=positions)  # (B, V)

        # a picture's placeholder is no word: written, it could not be read back
        image_id = getattr(model.config, "image_id", None)
        alive = [True] * B
        for _ in range(min(max_new_tokens, size - min(map(len, prompts)))):
            if image_id is not None:
                logits[:, image_id] = -torch.inf
            token = pick(logits.float(), temperature, top_k, top_p, generator)   # (B,)
            room = lengths < size
            given = [int(t) if a and r else None for t, a, r in zip(token, alive, room.tolist())]
            alive = [t is not None and t != stop for t in given]
            yield given
            if not any(alive):
                break
            # a full row writes over its own last place; it is never read again
            idx[rows, lengths.clamp(max=size - 1)] = token
            lengths = (lengths + 1).clamp(max=size)
            if cache is None:
                T = int(lengths.max())
                last = torch.zeros(B, T, dtype=torch.bool, device=device)
                last[rows, lengths - 1] = True
                logits = model(idx[:, :T], **pictures, at=last)
            else:
                newest = idx[rows, lengths - 1][:, None]
                logits = model(newest, cache=cache, positions=lengths[:, None] - 1)[:, -1]
    finally:  # also when the caller stops listening
        model.train(was_training)


def generate(model: nn.Module, images: Tensor | None, prompts: list[list[int]], **options) -> list[list[int]]:
    """The whole answers of all rows, without the stop token; options as `stream` takes them.

    >>> from minivlm.gpt import GPT, GPTConfig
    >>> gpt = GPT(GPTConfig(vocab_size=8, block_size=16, n_layer=1, n_head=1, n_embd=8))
    >>> [len(row) for row in generate(gpt, None, [[1], [1, 2, 3]], max_new_tokens=4, stop=-1)]
    [4, 4]
    """
    out: list[list[int]] = [[] for _ in prompts]
    for tokens in stream(model, images, prompts, **options):
        for row, token in zip(out, tokens):
            if token is not None and token != options["stop"]:
                row.append(token)
    return out
