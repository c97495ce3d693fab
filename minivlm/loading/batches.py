"""Batches: what a training step reads, made of rows (conversation.py) and pictures.

A batch is a pure function of (seed, step): to resume a run, its step is enough.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from minivlm.conversation import Row, count_images, render
from minivlm.losses import IGNORE_INDEX
from minivlm.tokenizer import Tokenizer


@dataclass
class Batch:
    """B rows of text with their pictures.

    idx, targets: (B, T), shifted by one, padded right.
    lengths: (B,) tokens of each row of idx.
    images: (n, 3, S, S) in the order of the rows, or None.
    n_images: how many pictures each row has.
    ids: the ids of the records, for error messages.
    segments: (B, T) of packed rows, see `conversation.pack`, or None.
    """

    idx: Tensor
    targets: Tensor
    lengths: Tensor
    images: Tensor | None
    n_images: list[int]
    ids: list[str] = field(default_factory=list)
    segments: Tensor | None = None

    @property
    def n_supervised(self) -> Tensor:
        """() how many targets the batch has.

        Mean losses of micro-batches, weighted by it, add up to the mean of the whole batch.
        """
        return (self.targets != IGNORE_INDEX).sum()

    def split(self, n: int) -> list["Batch"]:
        """Cut into n micro-batches of nearly equally many rows, for gradient accumulation.

        Raises:
            ValueError: if there are fewer rows than micro-batches.
        """
        B = len(self.idx)
        if n > B:
            raise ValueError(
                f"a batch of {B} rows cannot be split into {n} parts; lower grad_accum"
            )
        # all fields but the pictures have one entry for each row
        fields = {k: v for k, v in vars(self).items() if k != "images" and v is not None}
        parts = []
        start = 0  # the first picture of the part
        for i in range(n):
            rows = slice(B * i // n, B * (i + 1) // n)
            stop = start + sum(self.n_images[rows])
            images = self.images[start:stop] if stop > start else None
            parts.append(Batch(images=images, **{k: v[rows] for k, v in fields.items()}))
            start = stop
        return parts

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **{k: v.to(device) for k, v in tensors.items()})


def collate(
    rows: list[Row],
    pad: int,
    block_size: int,
    ids: list[str] | None = None,
    images: Tensor | None = None,
    n_images: list[int] | None = None,
    segments: list[list[int]] | None = None,
) -> Batch:
    """Pad rows on the right and shift the targets, here and nowhere else (contracts 1-3).

        idx[b, t] = row[t],   targets[b, t] = row[t + 1] if that is an answer, else -100

    Args:
        rows: of at least two tokens each.
        pad: the id that fills short rows.
        block_size: the model's context; a longer row is refused, never cut.
        ids: of the records, for error messages; by default 0, 1, ...
        images: (n, 3, S, S), the pictures of all rows in order.
        n_images: how many of them each row has.
        segments: of packed rows; then the prompt with any one answer must fit the context.

    Raises:
        ValueError: if a row is too long, too short, or has no answer.
    """
    B = len(rows)
    names = ids or [str(b) for b in range(B)]
    # a row's last token is only a target, so the model reads one token less
    lengths = [len(tokens) - 1 for tokens, _ in rows]
    for b, (tokens, is_answer) in enumerate(rows):
        n = lengths[b]
        if segments:  # each answer counts its positions on from the prompt
            prompt, *answers = torch.tensor(segments[b][:-1]).bincount().tolist()
            n = prompt + max(answers)
        if n > block_size:
            raise ValueError(
                f"record {names[b]} has {n} tokens, the context holds {block_size}; "
                "shorten it"
            )
        if len(tokens) < 2 or not any(is_answer[1:]):  # the first token is never a target
            raise ValueError(f"record {names[b]} has no answer to learn from")
    T = max(lengths)
    idx = torch.full((B, T), pad)
    targets = torch.full((B, T), IGNORE_INDEX)
    segment = torch.full((B, T), -1) if segments else None
    for b, (tokens, is_answer) in enumerate(rows):
        n = lengths[b]
        row = torch.tensor(tokens)                                   # (n + 1,)
        idx[b, :n] = row[:-1]
        targets[b, :n] = torch.where(torch.tensor(is_answer[1:]), row[1:], IGNORE_INDEX)
        if segments:
            segment[b, :n] = torch.tensor(segments[b][:-1])
    return Batch(
        idx, targets, torch.tensor(lengths), images, n_images or [0] * B, names, segment
    )


def shuffled(
    step: int, batch_size: int, n: int, seed: int, lengths: Tensor | None = None
) -> list[int]:
    """Which of n records make up the batch of a step. Each epoch has a new random order.

    With `lengths`, the records of every 8 batches are sorted by length before they are
    dealt out: rows of one batch then have nearly the same length, and little time goes into
    pads. The order of the batches stays random. (LLaVA groups by length too and reports
    about 25 % less time.)

    Args:
        lengths: (n,) tokens of each record, or None.

    Returns:
        batch_size numbers of records.

    Raises:
        ValueError: if the batch is larger than the data set, or empty.
    """
    if batch_size > n:
        raise ValueError(
            f"batch_size {batch_size} is larger than the data set of {n} records"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} is below 1")
    n_batches = n // batch_size  # of an epoch; what is left over waits for the next one
    epoch, i = divmod(step, n_batches)
    generator = torch.Generator().manual_seed(hash_seed(seed, epoch))
    order = torch.randperm(n, generator=generator)[: n_batches * batch_size]
    if lengths is not None:
        groups = order.split(8 * batch_size)
        order = torch.cat([group[lengths[group].argsort(stable=True)] for group in groups])
    batches = order.view(n_batches, batch_size)
    if lengths is not None:  # else batch i would always be the i-th longest of its group
        batches = batches[torch.randperm(n_batches, generator=generator)]
    return batches[i].tolist()


def hash_seed(*numbers: int) -> int:
    """Mix several numbers into one seed; (seed 1, epoch 0) and (seed 0, epoch 1) differ."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def cut_rows(rows: list[Row], least: int, generator: torch.Generator) -> list[Row]:
    """Cut each row at random: what stands before the cut is read, the rest is learned.

        cut ~ uniform{least, ..., last learned token}

    Args:
        least: the earliest cut: behind picture and prompt, or 1 for a text alone.

    Source: PrefixLM of SimVLM, Wang et al. 2021, arXiv:2108.10904, section 3.1.
    """
    new_rows = []
    for ids, is_answer in rows:
        last = max(i for i, learned in enumerate(is_answer) if learned)
        cut = int(torch.randint(least, last + 1, (1,), generator=generator))
        behind_cut = [learned and i >= cut for i, learned in enumerate(is_answer)]
        new_rows.append(Row(ids, behind_cut))
    return new_rows


def switch_out(
    rows: list[Row], vocab_size: int, share: float, generator: torch.Generator
) -> list[Row]:
    """Replace a share of the tokens by random ones, but never tokens that are learned.

    A model trained so cannot rely on a single word of a question, and finds the answer to a
    question in other words too. Image tokens and marks of turns are not replaced.

    Args:
        vocab_size: number of ordinary tokens; the ids of special tokens are not below it.
        share: 0 .. 1; more replaces more.

    Raises:
        ValueError: if the share is outside 0 .. 1.

    Source: SwitchOut, Wang et al. 2018, arXiv:1808.07512 (there at a random rate, and in
    source and target).
    """
    if not 0 <= share <= 1:
        raise ValueError(f"noise {share} is no share, expected 0 .. 1")
    new_rows = []
    for ids, is_answer in rows:
        chances = torch.rand(len(ids), generator=generator).tolist()
        others = torch.randint(vocab_size, (len(ids),), generator=generator).tolist()
        # both draws for every token, so that the later ones do not depend on the share
        noisy = list(ids)
        for i, learned in enumerate(is_answer):
            if chances[i] < share and ids[i] < vocab_size and not learned:
                noisy[i] = others[i]
        new_rows.append(Row(noisy, is_answer))
    return new_rows


def shorten_rows(rows: list[Row], block_size: int, tail: int) -> list[Row]:
    """Shorten rows that do not fit the context, but keep their last `tail` tokens.

    Only for texts that a model judges, and at their last tokens. In training `collate`
    refuses such rows.
    """
    head = block_size + 1 - tail  # `collate` reads one token less than a row has
    new_rows = []
    for ids, is_answer in rows:
        if len(ids) - 1 > block_size:
            ids = ids[:head] + ids[-tail:]
            is_answer = is_answer[:head] + is_answer[-tail:]
        new_rows.append(Row(ids, is_answer))
    return new_rows


def check_captions(
    records: list[dict], tokenizer: Tokenizer, n_image_tokens: int, block_size: int
) -> None:
    """Refuse a caption that does not fit the context, before the training starts.

    Raises:
        ValueError: with the record and both lengths.
    """
    for record in records:
        longest = max(len(tokenizer.encode(caption)) for caption in record["captions"])
        longest += n_image_tokens
        if longest > block_size:
            raise ValueError(
                f"record {record['id']} has a caption of {longest} tokens, image tokens "
                f"included; the context holds {block_size}; shorten it"
            )


def pick_captions(records: list[dict], generator: torch.Generator) -> list[str]:
    """Draw one caption for each record."""
    captions = []
    for record in records:
        i = int(torch.randint(len(record["captions"]), (1,), generator=generator))
        captions.append(record["captions"][i])
    return captions


def render_records(
    records: list[dict], tokenizer: Tokenizer, n_image_tokens: int, block_size: int
) -> list[Row]:
    """Render the conversation of each record, once for the whole run.

    Raises:
        ValueError: if a conversation is malformed, if the number of its <image> marks is
            not that of its pictures, or if it is longer than the context; names the record.
    """
    rows = []
    for record in records:
        turns = record["conversations"]
        n_pictures = 1 if record.get("image") else 0
        try:
            row = render(turns, tokenizer, n_image_tokens)
            n_marks = count_images(turns)
            if n_marks != n_pictures:
                raise ValueError(f"{n_marks} <image> marks and {n_pictures} pictures")
            n = len(row.ids) - 1
            if n > block_size:
                raise ValueError(f"{n} tokens, the context holds {block_size}; shorten it")
        except ValueError as error:
            raise ValueError(f"record {record.get('id', '?')}: {error}") from None
        rows.append(row)
    return rows
