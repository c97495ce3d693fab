"""list[Row] and batches: what a step reads, out of records (prepared.py) and pictures (images.py).

A batch is a pure function of (seed, step): resuming needs the step and nothing else.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from minivlm.conversation import Row, count_images, render
from minivlm.losses import IGNORE_INDEX
from minivlm.tokenizer import Tokenizer

@dataclass
class Batch:
    """B rows of text with their pictures.

    idx, targets: (B, T), shifted, padded right; lengths: (B,); images: (n, 3, S, S) or None, in the
    order of the rows; n_images: pictures of each row; ids: the records' names, for error messages;
    segments: (B, T) of packed rows, see `pack`, or None.
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
        """() how many tokens the batch has a target for. Micro-batches whose mean losses are
        weighted by it add up to the mean of the whole batch."""
        return (self.targets != IGNORE_INDEX).sum()

    def split(self, n: int) -> list["Batch"]:
        """Cut into n micro-batches of rows, as equal as can be, for gradient accumulation.

        Raises:
            ValueError: if there are fewer rows than parts.
        """
        B = len(self.idx)
        if n > B:
            raise ValueError(
                f"a batch of {B} rows cannot be split into {n} parts; lower grad_accum"
            )
        parts, seen = [], 0
        for i in range(n):
            rows = slice(B * i // n, B * (i + 1) // n)
            count = sum(self.n_images[rows])
            images = self.images[seen:seen + count] if count else None
            seen += count
            segments = None if self.segments is None else self.segments[rows]
            parts.append(Batch(self.idx[rows], self.targets[rows], self.lengths[rows], images,
                               self.n_images[rows], self.ids[rows], segments))
        return parts

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        images = None if self.images is None else self.images.to(device, non_blocking=True)
        segments = None if self.segments is None else self.segments.to(device)
        return Batch(self.idx.to(device), self.targets.to(device), self.lengths.to(device), images,
                     self.n_images, self.ids, segments)


def collate(
    rows: list[Row], pad: int, block_size: int,
    ids: list[str] | None = None, images: Tensor | None = None, n_images: list[int] | None = None,
    segments: list[list[int]] | None = None,
) -> Batch:
    """Pad rows on the right and shift the targets, here and nowhere else (contracts 1 to 3).

        idx[b, t] = row[t],   targets[b, t] = row[t + 1] if that is an answer, else -100

    Args:
        rows: (ids, is_answer) of each row, at least two tokens, as `render` makes them.
        pad: the id that fills short rows.
        block_size: the model's context; a longer row is an error, never cut.
        segments: of rows that `pack` made; then each answer, behind its prompt, must fit.

    Raises:
        ValueError: if a row is too long, too short, or has no answer token.
    """
    names = ids or [str(i) for i in range(len(rows))]
    for b, (name, (row, answer)) in enumerate(zip(names, rows)):
        n = len(row) - 1
        if segments:  # of what is read, all but the row's last token
            shared, *each = torch.tensor(segments[b][:-1]).bincount().tolist()
            n = shared + max(each)
        if n > block_size:
            raise ValueError(
                f"record {name} has {n} tokens, the context holds {block_size}; shorten it"
            )
        if len(row) < 2 or not any(answer[1:]):
            raise ValueError(f"record {name} has no answer to learn from")
    T = max(len(row) for row, _ in rows) - 1
    idx = torch.full((len(rows), T), pad)
    targets = torch.full((len(rows), T), IGNORE_INDEX)
    for b, (row, answer) in enumerate(rows):
        row_t, n = torch.tensor(row), len(row) - 1
        idx[b, :n] = row_t[:-1]
        targets[b, :n] = torch.where(torch.tensor(answer[1:]), row_t[1:], IGNORE_INDEX)
    lengths = torch.tensor([len(row) - 1 for row, _ in rows])
    of_answers = None
    if segments:
        of_answers = torch.full((len(rows), T), -1)
        for b, row in enumerate(segments):
            of_answers[b, : len(row) - 1] = torch.tensor(row[:-1])
    return Batch(idx, targets, lengths, images, n_images or [0] * len(rows), names, of_answers)


def shuffled(
    step: int, batch_size: int, n: int, seed: int, lengths: Tensor | None = None
) -> list[int]:
    """Which of n records make up the batch of a step: each once an epoch, then in another order.

    With `lengths`, every 8 batches are dealt out by length, so that rows of a batch are nearly
    equally long and little is spent on padding; which batches come when stays random. (LLaVA groups
    by length too and reports about 25 % less time.)

    Args:
        lengths: (n,) tokens of each record, or None.

    Raises:
        ValueError: if the batch is larger than the data set, or empty.
    """
    if batch_size > n:
        raise ValueError(f"batch_size {batch_size} is larger than the data set of {n} records")
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} is below 1")
    epoch, place = divmod(step, n // batch_size)
    generator = torch.Generator().manual_seed(hash_seed(seed, epoch))
    order = torch.randperm(n, generator=generator)[: n // batch_size * batch_size]
    if lengths is not None:
        groups = [
            group[lengths[group].argsort(stable=True)] for group in order.split(8 * batch_size)
        ]
        order = torch.cat(groups).view(-1, batch_size)
        order = order[torch.randperm(len(order), generator=generator)].flatten()
    return order[place * batch_size:(place + 1) * batch_size].tolist()


def hash_seed(*numbers: int) -> int:
    """Mix several numbers into one seed, so that (seed 1, epoch 0) and (seed 0, epoch 1) differ."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def cut_rows(rows: list[Row], least: int, generator: torch.Generator) -> list[Row]:
    """Cut each row at random: what stands before the cut is read, what stands behind it is learned.

        cut ~ uniform{least, ..., last learned token}

    Args:
        least: the shortest prefix in tokens: picture and prompt, or 1 for a text alone.

    Source: PrefixLM of SimVLM, Wang et al. 2021, arXiv:2108.10904, section 3.1.
    """
    made = []
    for ids, learned in rows:
        last = max(i for i, wanted in enumerate(learned) if wanted)
        cut = int(torch.randint(least, last + 1, (1,), generator=generator))
        made.append((ids, [wanted and i >= cut for i, wanted in enumerate(learned)]))
    return made


def switch_out(rows: list[Row], vocab_size: int, share: float, generator: torch.Generator) -> list[Row]:
    """Replace a share of the tokens that are read, never of those that are learned, by random ones.

    So no single word of a question can be relied on, and a question in other words still finds its
    answer. Image tokens and marks of turns stay.

    Args:
        vocab_size: without special tokens, whose ids stand behind the others.
        share: 0 .. 1.

    Raises:
        ValueError: if the share is outside.

    Source: SwitchOut, Wang et al. 2018, arXiv:1808.07512 (there at a random rate, on both sides).
    """
    if not 0 <= share <= 1:
        raise ValueError(f"noise {share} is no share, expected 0 .. 1")
    made = []
    for ids, learned in rows:
        chance = torch.rand(len(ids), generator=generator).tolist()
        other = torch.randint(vocab_size, (len(ids),), generator=generator).tolist()
        new = [o if c < share and i < vocab_size and not wanted else i
               for i, wanted, c, o in zip(ids, learned, chance, other)]
        made.append((new, learned))
    return made


def shorten_rows(rows: list[Row], block_size: int, tail: int) -> list[Row]:
    """Cut what is too long for the context, keeping the last `tail` tokens, where it is judged.

    For texts that are looked at, never for training, where `collate` refuses them.
    """
    head = block_size + 1 - tail  # collate reads one token less than a row has
    return [
        (ids[:head] + ids[-tail:], learned[:head] + learned[-tail:])
        if len(ids) - 1 > block_size else (ids, learned)
        for ids, learned in rows
    ]


def check_captions(
    records: list[dict], tokenizer: Tokenizer, n_image_tokens: int, block_size: int
) -> None:
    """Find a caption that does not fit the context before training meets it.

    Raises:
        ValueError: names the record and both lengths.
    """
    for record in records:
        longest = (
            max(len(tokenizer.encode(caption)) for caption in record["captions"]) + n_image_tokens
        )
        if longest > block_size:
            raise ValueError(
                f"record {record['id']} has a caption of {longest} tokens, image tokens included; "
                f"the context holds {block_size}; shorten it"
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
    """Render each record's conversation once: a list of (ids, is_answer).

    Raises:
        ValueError: if a conversation is malformed, its <image> marks do not fit its pictures, or it
            is longer than the context of block_size; names the record.
    """
    rows = []
    for record in records:
        turns, name = record["conversations"], record.get("id", "?")
        try:
            rows.append(render(turns, tokenizer, n_image_tokens))
            marks, pictures = count_images(turns), int(bool(record.get("image")))
            if marks != pictures:
                raise ValueError(f"{marks} <image> marks and {pictures} pictures")
            if len(rows[-1][0]) - 1 > block_size:
                raise ValueError(
                    f"{len(rows[-1][0]) - 1} tokens, the context holds {block_size}; shorten it"
                )
        except ValueError as error:
            raise ValueError(f"record {name}: {error}") from None
    return rows
