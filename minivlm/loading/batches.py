"""Batches: what a training step reads, made of rows (conversation.py) and pictures.

A batch depends on (seed, step) and the data alone. A resumed run therefore needs only its
step to go on with the same batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minivlm.conversation import Row, make_row, render
from minivlm.loading.prepared import load_records
from minivlm.losses import IGNORE_INDEX
from minivlm.tokenizer import Tokenizer


@dataclass
class Batch:
    """B rows of text with their pictures.

    Args:
        idx: (B, T) the ids that the model reads, padded on the right.
        targets: (B, T) the ids that it must predict: at position t the row's token t + 1 if
            that token is part of an answer, else IGNORE_INDEX.
        lengths: (B,) how many tokens of each row of idx are no pads.
        images: (n, 3, S, S) the pictures of all rows, in the order of the rows; or None.
        n_images: how many pictures each row has.
        ids: the ids of the records, for error messages.
        segments: (B, T) the segments of packed rows, see `conversation.pack`, and -1 at
            pads; None if the rows are not packed.
        weights: (B,) what each target of a row counts in the loss; None: 1 in every row.
    """

    idx: Tensor
    targets: Tensor
    lengths: Tensor
    images: Tensor | None
    n_images: list[int]
    ids: list[str] = field(default_factory=list)
    segments: Tensor | None = None
    weights: Tensor | None = None

    @property
    def n_supervised(self) -> Tensor:
        """Count the targets that are not ignored, with their weights: a tensor of shape ().

        The loss of a whole batch is the mean of its micro-batches' mean losses, each
        weighted by this count.
        """
        counts = (self.targets != IGNORE_INDEX).sum(1)               # (B,)
        return counts.sum() if self.weights is None else (counts * self.weights).sum()

    def weights_at(self, at: Tensor) -> Tensor | None:
        """The weights of the tokens where `at`, (B, T) bool, is True: (M,); None: all 1."""
        if self.weights is None:
            return None
        return self.weights[:, None].expand_as(at)[at]

    def split(self, n: int) -> list["Batch"]:
        """Cut the batch into n micro-batches, for gradient accumulation.

        Their numbers of rows differ by one at most. Each has the T of its own longest row.

        Raises:
            ValueError: if there are fewer rows than micro-batches.
        """
        B = len(self.idx)
        if n > B:
            raise ValueError(
                f"a batch of {B} rows cannot be split into {n} parts; lower grad_accum"
            )
        return [self.take(slice(B * i // n, B * (i + 1) // n)) for i in range(n)]

    def take(self, rows: slice | Tensor) -> "Batch":
        """Take some rows, with their pictures, cut to the T of the longest of them.

        Args:
            rows: a slice, or (b,) row numbers.
        """
        B = len(self.idx)
        numbers = list(range(B)[rows]) if isinstance(rows, slice) else rows.tolist()
        if numbers == list(range(B)):
            return self
        # all fields but the pictures have one entry for each row
        fields = {k: v for k, v in vars(self).items() if k != "images" and v is not None}
        of_rows = {k: v[rows] if isinstance(v, Tensor) else [v[b] for b in numbers]
                   for k, v in fields.items()}
        T = int(of_rows["lengths"].max())
        for name in of_rows.keys() & {"idx", "targets", "segments"}:
            of_rows[name] = of_rows[name][:, :T]
        images = None
        if sum(of_rows["n_images"]):
            of_each = self.images.split(self.n_images)
            images = torch.cat([of_each[b] for b in numbers])
        return Batch(images=images, **of_rows)

    def to(self, device: torch.device) -> "Batch":
        """Return the same batch on another device.

        The CPU does not wait until a copy to a GPU is finished.
        """
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        if device.type == "cuda":  # copies from pinned memory need not be waited for
            tensors = {k: v if v.is_cuda else v.pin_memory() for k, v in tensors.items()}
        moved = {k: v.to(device, non_blocking=True) for k, v in tensors.items()}
        return replace(self, **moved)


def collate(
    rows: list[Row],
    pad: int,
    block_size: int,
    ids: list[str] | None = None,
    images: Tensor | None = None,
    n_images: list[int] | None = None,
    segments: list[list[int]] | None = None,
    weights: list[float] | None = None,
) -> Batch:
    """Pad rows on the right and shift the targets, here and nowhere else (contracts 1-3).

        idx[b, t] = row[t]
        targets[b, t] = row[t + 1] if that token is part of an answer, else -100

    Args:
        rows: B rows of at least two tokens each.
        pad: the id that fills short rows.
        block_size: the model's context in tokens; longer rows are refused, never cut.
        ids: the ids of the records, for error messages; by default "0", "1", ...
        images: (n, 3, S, S) the pictures of all rows, in the order of the rows.
        n_images: how many pictures each row has; by default none.
        segments: the segments of packed rows (`conversation.pack`). Only the prompt and one
            answer at a time must then fit the context.
        weights: what each target of a row counts in the loss; by default 1 in every row.

    Raises:
        ValueError: if a row is too long, too short, or has no answer.
    """
    B = len(rows)
    names = ids or [str(b) for b in range(B)]
    # a row's last token is only a target, so the model reads one token less
    lengths = [len(tokens) - 1 for tokens, _ in rows]
    for b, (tokens, is_answer) in enumerate(rows):
        if not any(is_answer[1:]):  # the first token is never a target
            raise ValueError(f"record {names[b]} has no answer to learn from")
        n = lengths[b]
        if segments:  # the positions of each answer begin where the prompt ends
            prompt, *answers = torch.tensor(segments[b][:-1]).bincount().tolist()
            n = prompt + max(answers, default=0)
        if n > block_size:
            raise ValueError(
                f"record {names[b]} has {n} tokens, the context holds {block_size}; "
                "shorten it"
            )
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
        idx, targets, torch.tensor(lengths), images, n_images or [0] * B, names, segment,
        None if weights is None else torch.tensor(weights),
    )


def shuffled(
    step: int, batch_size: int, n: int, seed: int, lengths: Tensor | None = None
) -> list[int]:
    """Choose the records of a step's batch. Each epoch has a new random order.

    If `lengths` are given, the batch's records are sorted by them. Micro-batches then hold
    rows of nearly the same length, and little time is spent on pads. Whole batches of one
    length would save more, but teach less (docs/lessons.md).

    Args:
        step: counts from 0 over all epochs.
        batch_size: records in the batch.
        n: records in the data set.
        seed: the run's seed.
        lengths: (n,) tokens of each record, or None.

    Returns:
        the places of batch_size different records in the data set, each in 0 .. n - 1.

    Raises:
        ValueError: if batch_size is below 1 or above n.
    """
    if batch_size > n:
        raise ValueError(
            f"batch_size {batch_size} is larger than the data set of {n} records"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} is below 1")
    # batches in an epoch; n % batch_size records, others each time, are left out
    n_batches = n // batch_size
    epoch, i = divmod(step, n_batches)
    generator = torch.Generator().manual_seed(hash_seed(seed, epoch))
    order = torch.randperm(n, generator=generator)
    chosen = order[i * batch_size:(i + 1) * batch_size]
    if lengths is not None:
        chosen = chosen[lengths[chosen].argsort(stable=True)]
    return chosen.tolist()


def hash_seed(*numbers: int) -> int:
    """Mix several numbers into one seed.

    A sum would not do: (seed 1, epoch 0) and (seed 0, epoch 1) must differ.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def cut_rows(rows: list[Row], least: int, generator: torch.Generator) -> list[Row]:
    """Cut each row at a random token; only answer tokens from the cut on are learned.

        cut ~ uniform{least, ..., last answer token}

    Args:
        least: the smallest index of a cut: the first token behind picture and prompt, or 1
            for a text alone. No row's last answer token may stand before it.

    Returns:
        rows with the same ids, and with is_answer False before the cut.

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
    rows: list[Row], words: Sequence[int], share: float, generator: torch.Generator
) -> list[Row]:
    """Replace some of the tokens outside of the answers by random ones.

    A model that is trained on such rows cannot rely on a single word of a question, and so
    learns to answer questions in other words too. Special tokens (placeholders, marks of
    turns) are not replaced.

    Args:
        words: the ids of ordinary tokens.
        share: 0 .. 1, the probability that a token is replaced.

    Returns:
        rows of the same lengths, with the same is_answer.

    Raises:
        ValueError: if the share is outside 0 .. 1.

    Source: SwitchOut, Wang et al. 2018, arXiv:1808.07512. Its rate is random too, and it
    also replaces tokens of the target.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"noise {share} is no share, expected 0 .. 1")
    new_rows = []
    ordinary = frozenset(words)
    for ids, is_answer in rows:
        chances = torch.rand(len(ids), generator=generator).tolist()
        others = torch.randint(len(words), (len(ids),), generator=generator).tolist()
        # every token gets both draws, so that later draws do not depend on the share
        noisy = list(ids)
        for i, learned in enumerate(is_answer):
            if chances[i] < share and ids[i] in ordinary and not learned:
                noisy[i] = words[others[i]]
        new_rows.append(Row(noisy, is_answer))
    return new_rows


def shorten_rows(rows: list[Row], block_size: int, tail: int) -> list[Row]:
    """Shorten rows that do not fit the context, but keep their last `tail` tokens.

    Use it only for texts that a model embeds or compares with a picture, where the output
    at the last token counts. Training must not cut: there `collate` refuses such rows.
    """
    head = block_size + 1 - tail  # the model reads one token less than a row has
    new_rows = []
    for ids, is_answer in rows:
        if len(ids) - 1 > block_size:
            ids = ids[:head] + ids[-tail:]
            is_answer = is_answer[:head] + is_answer[-tail:]
        new_rows.append(Row(ids, is_answer))
    return new_rows


def places_that_fit(
    records: list[dict], lengths: list[int], block_size: int, skip_long: bool, split: str,
    included: str = "image tokens",
) -> list[int]:
    """Find the records that fit the context. Call it before the training starts.

    Args:
        lengths: how many tokens of context each record needs.
        block_size: how many the context holds.
        skip_long: leave out the records that need more, and print how many they are.
        split: the records' file, for the messages.
        included: what the lengths include besides the text, for the messages.

    Returns:
        the places of the records that fit, in order.

    Raises:
        ValueError: if a record does not fit, without `skip_long`; if no record fits.
    """
    places = [i for i, n in enumerate(lengths) if n <= block_size]
    n_long = len(records) - len(places)
    if not n_long:
        return places
    first = next(i for i, n in enumerate(lengths) if n > block_size)
    name, n = records[first]["id"], lengths[first]
    if not skip_long:
        raise ValueError(
            f"{split}, record {name}: {n} tokens, {included} included; the context holds "
            f"{block_size}; shorten it, or leave out such records with --skip_long"
        )
    which = (
        f"{n_long:,} of {len(records):,} records of {split}: longer than the context of "
        f"{block_size} tokens, for instance {name} ({n})"
    )
    if not places:
        raise ValueError(f"nothing is left without {which}")
    print(f"left out {which}")
    return places


def caption_lengths(
    records: list[dict], tokenizer: Tokenizer, n_before: int = 0
) -> list[int]:
    """Count the tokens of each record's longest caption, with `n_before` before it."""
    longest = []
    n_before += len(tokenizer.begin)
    for record in records:
        lengths = [len(tokenizer.encode(caption)) for caption in record["captions"]]
        longest.append(n_before + max(lengths))
    return longest


def pick_captions(records: list[dict], generator: torch.Generator) -> list[str]:
    """Draw one caption for each record."""
    captions = []
    for record in records:
        i = int(torch.randint(len(record["captions"]), (1,), generator=generator))
        captions.append(record["captions"][i])
    return captions


class Reading:
    """Documents of stage 0 that later stages go on reading, in rows without a picture.

    What a model has only read, it forgets while it learns captions or answers: after 600
    steps of captioning, a GPT that knew 206 of 259 facts by heart knew none.

    Args:
        folder: a prepared data folder. Where it holds no text.jsonl, nothing is read, and a
            line on the screen says so.
        n: documents per step.

    Source: pretraining gradients mixed into fine-tuning, InstructGPT, arXiv:2203.02155,
    section 3.5; text without pictures mixed in, VILA, arXiv:2312.07533, section 3.3.
    """

    def __init__(self, folder: str, n: int, tokenizer: Tokenizer):
        self.n = n
        self.tokenizer = tokenizer
        # Llama begins a text with a token of its own
        self.before = tokenizer.begin or [tokenizer.endoftext]
        self.texts: list[dict] = []
        if n and (Path(folder) / "text.jsonl").is_file():
            self.texts = load_records(folder, "text", need=("text",))
        elif n:
            print(f"{folder} has no text.jsonl: no documents are read")

    def rows(self, longest: int, generator: torch.Generator) -> list[Row]:
        """Draw one part of each drawn document, of at most `longest` tokens, all learned."""
        if not self.texts:
            return []
        rows = []
        for i in torch.randint(len(self.texts), (self.n,), generator=generator).tolist():
            # as in stage 0, where <|endoftext|> stands before every document
            ids = [*self.before, *self.tokenizer.encode(self.texts[i]["text"])]
            n_starts = max(1, len(ids) - longest + 1)
            start = int(torch.randint(n_starts, (1,), generator=generator))
            rows.append(make_row((ids[start:start + longest], True)))
        return rows


def render_records(
    records: list[dict], tokenizer: Tokenizer, n_image_tokens: int
) -> list[Row]:
    """Render the conversation of each record, once for the whole run.

    Raises:
        ValueError: if a conversation is malformed. The message names the record.
            (`load_records` has counted its <image> marks.)
    """
    rows = []
    for record in records:
        try:
            row = render(record["conversations"], tokenizer, n_image_tokens)
        except ValueError as error:
            raise ValueError(f"record {record.get('id', '?')}: {error}") from None
        rows.append(row)
    return rows
