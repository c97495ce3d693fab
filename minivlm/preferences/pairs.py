"""Pairs of answers, one preferred to the other: read, made into rows, scored.

    {"id", "image" or none, "conversations": turns up to the question, "chosen", "rejected"}

`chosen` and `rejected` are texts, or lists of turns that are equal except for the last one,
the answer. Both answers stand in one row behind their prompt (see `conversation.pack`), so
one forward pass reads prompt and picture once and scores both.
"""

import difflib
import hashlib
import json
import random
from collections import Counter
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from minivlm.conversation import IMAGE_MARK, Turn, pack, render
from minivlm.evaluation.raters import rating_of
from minivlm.loading.batches import Batch, collate
from minivlm.loading.images import Pictures
from minivlm.lora import adapters_off
from minivlm.losses import IGNORE_INDEX, sequence_logprobs
from minivlm.preferences.rankings import load_checked
from minivlm.rollout import logprobs
from minivlm.running.checkpoint import write
from minivlm.tokenizer import Tokenizer
from minivlm.vlm import VLM

MIN_COMMON = 3  # tokens; a shorter piece that two answers share may be there by chance

# --- reading ---


def split_pair(r: dict) -> tuple[list[Turn], str, str]:
    """The turns up to the question, the chosen answer and the rejected answer.

    Raises:
        ValueError: if an answer is missing or empty, both are equal, or the prompts differ.
    """
    turns = r.get("conversations") or []
    chosen = r["chosen"]
    rejected = r["rejected"]
    if isinstance(chosen, list) and isinstance(rejected, list):
        if chosen[:-1] != rejected[:-1]:
            raise ValueError("chosen and rejected answer different prompts")
        turns = turns + chosen[:-1]
        chosen = chosen[-1].get("value")
        rejected = rejected[-1].get("value")
    for answer in (chosen, rejected):
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError("an answer is empty or no text")
    if chosen.strip() == rejected.strip():
        raise ValueError("chosen and rejected are equal")
    if not turns or turns[-1].get("from") != "human":
        raise ValueError("no question comes before the answers")
    return turns, chosen.strip(), rejected.strip()


def check_pair(r: dict) -> str:
    """Say why a pair cannot be used, or ""."""
    try:
        split_pair(r)
    except ValueError as error:
        return str(error)
    except (TypeError, AttributeError):
        return "a turn is not {from, value}"
    return ""


def load_pairs(folder: str | Path, split: str) -> list[dict]:
    """Read the pairs in `<folder>/<split>.jsonl`; `split_pair` can read each of them.

    Raises:
        FileNotFoundError, ValueError: as `load_checked`.
    """
    return load_checked(folder, split, "pairs", ("chosen", "rejected"), check_pair)


def at_most(n: int, pairs: list[dict], seed: int) -> list[dict]:
    """Put pairs in random order and keep at most n for each question, or all if n is 0.

    A ranking of K answers makes up to K (K - 1) / 2 pairs, and fewer if answers are equal.
    Without this limit, questions with long answers would dominate the loss, because long
    answers are hardly ever equal. InstructGPT gives each prompt the same weight too.

    >>> asked = [{"from": "human", "value": "Why?"}]
    >>> pair = {"conversations": asked, "rejected": "No."}
    >>> len(at_most(1, [pair | {"chosen": "So."}, pair | {"chosen": "Yes."}], seed=0))
    1
    """
    out = []
    taken = Counter()
    for r in random.Random(seed).sample(pairs, len(pairs)):
        turns, _, _ = split_pair(r)
        question = json.dumps([r.get("image"), turns])
        taken[question] += 1
        if not n or taken[question] <= n:
            out.append(r)
    return out


# --- from rankings ---


def pairs_of(r: dict) -> list[dict]:
    """Make every ordered pair of a ranking; two answers of equal rank make none."""
    turns = [{"from": "human", "value": f"{IMAGE_MARK}\n{r['question']}"}]
    ranks = r["ranking"]
    ratings = r.get("ratings")
    pairs = []
    for i, j in permutations(range(len(ranks)), 2):
        if ranks[i] >= ranks[j]:  # a tie, or the pair the other way round
            continue
        gap = ranks[j] - ranks[i]
        if ratings:
            gap = rating_of(ratings[i]) - rating_of(ratings[j])
        pairs.append({
            "id": f"{r['id']}-{i}{j}", "image": r["image"], "conversations": turns,
            "chosen": r["responses"][i], "rejected": r["responses"][j], "gap": gap,
            "rater": r["rater"],
        })
    return pairs


# --- rows ---


def changed_tokens(a: list[int], b: list[int]) -> tuple[list[bool], list[bool]]:
    """Mark the tokens of two answers that lie outside the text that both have in common.

    Common text is a run of MIN_COMMON or more equal tokens. RLHF-V's code (RLAIF-V,
    utils/diff_lib.py) marks only changes that have tokens on both sides. Here a piece that
    only one answer has is marked as well: it may name an invented object, which DPO shall
    unlearn.

    Source: the corrected segments of RLHF-V, arXiv:2312.00849, section 3.2.

    >>> changed_tokens([1, 2, 3, 7], [1, 2, 3, 8, 9])
    ([False, False, False, True], [False, False, False, True, True])
    """
    in_a = [True] * len(a)
    in_b = [True] * len(b)
    # autojunk would ignore tokens that are frequent in a long answer
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    for i, j, n in matcher.get_matching_blocks():
        if n >= MIN_COMMON:
            in_a[i:i + n] = [False] * n
            in_b[j:j + n] = [False] * n
    return in_a, in_b


@dataclass
class PairBatch:
    """B pairs: a Batch of B packed rows with their pictures, and the weight of each target.

    weights: (B, T); 1 if both answers have the token, PairMaker's `changed` if only one has.
    """

    rows: Batch
    weights: Tensor

    def to(self, device: torch.device) -> "PairBatch":
        """The same on another device."""
        return replace(self, rows=self.rows.to(device), weights=self.weights.to(device))


class PairMaker:
    """Makes batches of pairs.

    Args:
        folder: the data folder that holds the pictures.
        vlm: its number of image tokens and its context decide how long a row is and may be.
        changed: weight of a token that only one of the two answers has, see
            `changed_tokens`; a token that both have weighs 1.
    """

    def __init__(
        self, folder: str | Path, vlm: VLM, tokenizer: Tokenizer, changed: float = 1.0
    ):
        self.n_image_tokens = vlm.config.vit.n_tokens
        self.block_size = vlm.config.gpt.block_size
        self.tokenizer = tokenizer
        self.changed = changed
        self.pictures = Pictures(folder, vlm.config.vit.image_size)

    def rows(self, r: dict) -> tuple[list[int], list[int], list[int]]:
        """Ids of prompt, chosen and rejected answer, both answers with their end token."""
        turns, chosen, rejected = split_pair(r)
        encode = self.tokenizer.encode
        end = [self.tokenizer.end]
        prompt = render(turns, self.tokenizer, self.n_image_tokens).ids
        return prompt, encode(chosen) + end, encode(rejected) + end

    def length(self, r: dict) -> int:
        """Number of tokens in a pair's row, which holds both answers.

        Raises:
            ValueError: with the record's id, if the row does not fit the context, `render`
                refuses the turns, or <image> marks and pictures differ in number.
        """
        try:
            prompt, chosen, rejected = self.rows(r)
            marks = prompt.count(self.tokenizer.image) // self.n_image_tokens
            n_images = 1 if r.get("image") else 0
            if marks != n_images:
                raise ValueError(f"{marks} <image> marks and {n_images} pictures")
            # neither answer sees the other, so the longer one must fit alone behind the
            # prompt; collate never feeds the row's last token, the end of the rejected
            # answer
            n = len(prompt) + max(len(chosen), len(rejected) - 1)
            if n > self.block_size:
                raise ValueError(
                    f"{n} tokens, the context holds {self.block_size}; shorten the record"
                )
        except ValueError as error:
            raise ValueError(f"record {r['id']}: {error}") from None
        return len(prompt) + len(chosen) + len(rejected)

    def batch(self, pairs: list[dict]) -> PairBatch:
        """Render pairs and load their pictures."""
        encoded = [self.rows(r) for r in pairs]
        rows, segments = [], []
        for prompt, chosen, rejected in encoded:
            row, row_segments = pack(prompt, [chosen, rejected])
            rows.append(row)
            segments.append(row_segments)
        names = [r["id"] for r in pairs]
        files = [r["image"] for r in pairs if r.get("image")]
        images = self.pictures.get(files) if files else None         # (n, 3, S, S)
        n_images = [1 if r.get("image") else 0 for r in pairs]
        batch = collate(
            rows, self.tokenizer.pad, self.block_size, names, images, n_images, segments
        )
        weights = torch.ones(batch.idx.shape)                        # (B, T)
        if self.changed != 1:
            for b, (_, chosen, rejected) in enumerate(encoded):
                in_chosen, in_rejected = changed_tokens(chosen, rejected)
                is_changed = torch.tensor(in_chosen + in_rejected)
                is_answer = batch.targets[b] != IGNORE_INDEX         # (T,), chosen first
                weights[b, is_answer] += (self.changed - 1) * is_changed
        return PairBatch(batch, weights)


def pair_logprobs(
    vlm: VLM, batch: PairBatch, average: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of chosen and rejected answers, in one forward pass.

    Args:
        average: as `losses.sequence_logprobs` takes it.

    Returns:
        (B,) of the chosen and (B,) of the rejected answers, both with the batch's weights,
        and (B, T) of all answer tokens, without weights.
    """
    rows = batch.rows
    img_emb = None
    if rows.images is not None:
        img_emb = vlm.projector(vlm.vit.features(rows.images))       # (n, N, C)
    logp, _ = logprobs(
        vlm, vlm.config.image_id, rows.idx, rows.targets, img_emb, temperature=1.0,
        segments=rows.segments,
    )                                                                # (B, T)
    is_answer = rows.targets != IGNORE_INDEX                         # (B, T)
    is_chosen = is_answer & (rows.segments == 1)
    is_rejected = is_answer & (rows.segments == 2)
    chosen = sequence_logprobs(logp, is_chosen, batch.weights, average)          # (B,)
    rejected = sequence_logprobs(logp, is_rejected, batch.weights, average)      # (B,)
    return chosen, rejected, logp


# --- the reference's log-probabilities ---


class ReferenceCache:
    """The reference's log-probabilities of all pairs, computed once and kept in a file.

    Args:
        path: the file.
        key: what the log-probabilities depend on: names -> fingerprints or settings.
        overwrite: replace a file that is damaged or has another key; else it is refused.

    Raises:
        ValueError: if the file is damaged or has another key, with the names that differ.
        FileNotFoundError: if the folder of the file does not exist.
    """

    def __init__(self, path: Path, key: dict, overwrite: bool):
        self.path = path
        self.key = key
        self.logp = None
        if not path.is_file():
            # with overwrite the path lies in the run folder, which is made later
            if not overwrite and not path.parent.is_dir():
                raise FileNotFoundError(f"no folder {path.parent} to keep {path.name} in")
            return
        try:
            state = torch.load(path, weights_only=True)
            file_key = state["key"]
            logp = state["logp"]
        except Exception:  # a damaged archive can break anywhere inside torch's reader
            if overwrite:
                return
            raise ValueError(f"{path} is damaged; delete it or name another file") from None
        names = sorted(key | file_key)
        differ = [name for name in names if file_key.get(name) != key.get(name)]
        if not differ:
            self.logp = logp
        elif not overwrite:
            raise ValueError(
                f"{path} holds log-probabilities of other {', '.join(differ)}; delete it "
                "or name another file"
            )

    @torch.no_grad()
    def fill(
        self, ref: VLM, maker: PairMaker, pairs: list[dict], lengths: Tensor, average: bool,
        device: torch.device,
    ) -> Tensor:
        """Read the log-probabilities from the file, or compute and write them.

        Args:
            lengths: (n,) of the pairs; those of similar length share a batch.

        Returns:
            (n, 2), chosen and rejected.
        """
        if self.logp is None:
            self.logp = torch.empty(len(pairs), 2)
            for part in tqdm(lengths.argsort().split(64), desc="reference", disable=None):
                batch = maker.batch([pairs[i] for i in part.tolist()]).to(device)
                with adapters_off(ref):  # a policy with LoRA is its own reference
                    chosen, rejected, _ = pair_logprobs(ref, batch, average)     # (b,) (b,)
                self.logp[part] = torch.stack((chosen, rejected), 1).cpu()
            write({"key": self.key, "logp": self.logp}, self.path)
        return self.logp


def fingerprint_of(pairs: list[dict]) -> str:
    """12 hexadecimal digits that change with any pair and with the pairs' order."""
    text = "\n".join(json.dumps(r, sort_keys=True) for r in pairs)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
