"""Pairs of answers, one preferred to the other: read, made into rows, scored by a reference.

    {"id", "image" (or none), "conversations": turns up to the question, "chosen", "rejected"}

`chosen` and `rejected` are texts, or lists of turns that begin alike and end in the two answers.

Both answers stand in one row behind their prompt, see `data.pack`, so that prompt and picture are
read once, and one forward has all.

Used by: train_dpo.py.
"""

import difflib
import hashlib
import json
import random
from collections import Counter
from dataclasses import dataclass, replace
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

# --- reading ---


def split_pair(r: dict) -> tuple[list[Turn], str, str]:
    """The turns up to the question, the chosen answer, the rejected answer.

    Raises:
        ValueError: if an answer is missing or empty, both are equal, or the prompts differ.
    """
    turns, chosen, rejected = r.get("conversations") or [], r["chosen"], r["rejected"]
    if isinstance(chosen, list) and isinstance(rejected, list):
        if chosen[:-1] != rejected[:-1]:
            raise ValueError("chosen and rejected answer different prompts")
        turns = turns + chosen[:-1]
        chosen, rejected = (side[-1].get("value") for side in (chosen, rejected))
    if not all(isinstance(a, str) and a.strip() for a in (chosen, rejected)):
        raise ValueError("an answer is empty or no text")
    if chosen.strip() == rejected.strip():
        raise ValueError("chosen and rejected are equal")
    if not turns or turns[-1].get("from") != "human":
        raise ValueError("no question comes before the answers")
    return turns, chosen.strip(), rejected.strip()


def check_pair(r: dict) -> str:
    """Why a pair cannot be used, or ""."""
    try:
        split_pair(r)
    except ValueError as error:
        return str(error)
    except (TypeError, AttributeError):
        return "a turn is not {from, value}"
    return ""


def load_pairs(folder: str | Path, split: str) -> list[dict]:
    """Read `<folder>/<split>.jsonl`; each pair as `split_pair` wants it.

    Raises as `load_checked`.
    """
    return load_checked(folder, split, "pairs", ("chosen", "rejected"), check_pair)


def at_most(n: int, pairs: list[dict], seed: int) -> list[dict]:
    """Pairs in random order, of each question n at most, or all if n is 0.

    A ranking of K answers makes up to K (K - 1) / 2 pairs, so that long answers, which nearly
    always differ, would have the most to say. (InstructGPT weighs prompts alike too.)

    >>> asked = [{"from": "human", "value": "Why?"}]
    >>> pair = {"conversations": asked, "rejected": "No."}
    >>> len(at_most(1, [pair | {"chosen": "So."}, pair | {"chosen": "Yes."}], seed=0))
    1
    """
    out, taken = [], Counter()
    for r in random.Random(seed).sample(pairs, len(pairs)):
        turns, *_ = split_pair(r)
        question = json.dumps([r.get("image"), turns])
        taken[question] += 1
        if not n or taken[question] <= n:
            out.append(r)
    return out


# --- from rankings ---


def pairs_of(r: dict) -> list[dict]:
    """Every ordered pair of a ranked record; ties carry none."""
    out = []
    turns = [{"from": "human", "value": f"{IMAGE_MARK}\n{r['question']}"}]
    scores = [rating_of(x) for x in r["ratings"]] if r.get("ratings") else None
    for i, better in enumerate(r["ranking"]):
        for j, worse in enumerate(r["ranking"]):
            if better < worse:
                gap = scores[i] - scores[j] if scores else worse - better
                out.append({
                    "id": f"{r['id']}-{i}{j}", "image": r["image"], "conversations": turns,
                    "chosen": r["responses"][i], "rejected": r["responses"][j], "gap": gap,
                    "rater": r["rater"]})
    return out


# --- rows ---


def changed_tokens(a: list[int], b: list[int], least: int = 3) -> tuple[list[bool], list[bool]]:
    """Which tokens of two answers are not in a piece of text, `least` tokens or longer, of both.

    RLHF-V's code (RLAIF-V, utils/diff_lib.py) wants changes that have tokens on both sides. Here a
    piece that is only added counts as well, since an added object is the very thing to unlearn.

    Source: the corrected segments of RLHF-V, arXiv:2312.00849, section 3.2.

    >>> changed_tokens([1, 2, 3, 7], [1, 2, 3, 8, 9])
    ([False, False, False, True], [False, False, False, True, True])
    """
    in_a, in_b = [True] * len(a), [True] * len(b)
    for i, j, n in difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks():
        if n >= least:
            in_a[i:i + n], in_b[j:j + n] = [False] * n, [False] * n
    return in_a, in_b


@dataclass
class PairBatch:
    """B pairs: a Batch of B packed rows and their pictures; (B, T) how much each target counts."""

    rows: Batch
    weights: Tensor

    def to(self, device: torch.device) -> "PairBatch":
        """The same on another device."""
        return replace(self, rows=self.rows.to(device), weights=self.weights.to(device))


class PairMaker:
    """Makes batches of pairs.

    Args:
        folder: the data folder, for its pictures.
        vlm: whose picture tokens and context the rows must fit.
        changed: how much a token counts that one answer has and the other has not, see
            `changed_tokens`; what both have counts 1.
    """

    def __init__(self, folder: str | Path, vlm: VLM, tokenizer: Tokenizer, changed: float = 1.0):
        self.vit, self.block_size = vlm.config.vit, vlm.config.gpt.block_size
        self.tokenizer, self.changed = tokenizer, changed
        self.pictures = Pictures(folder, self.vit.image_size)

    def rows(self, r: dict) -> tuple[list[int], list[int], list[int]]:
        """Ids of the prompt, of the chosen answer and of the rejected one, both with their end."""
        turns, *answers = split_pair(r)
        prompt, _ = render(turns, self.tokenizer, self.vit.n_tokens)
        chosen, rejected = (self.tokenizer.encode(a) + [self.tokenizer.end] for a in answers)
        return prompt, chosen, rejected

    def length(self, r: dict) -> int:
        """Tokens of a pair's row, which holds both answers.

        Raises:
            ValueError: with the record's id, if they are more than the context holds, if the turns
                are not as `render` wants them, or if they have another number of <image> marks than
                the record has pictures.
        """
        try:
            prompt, *answers = self.rows(r)
            marks = prompt.count(self.tokenizer.image) // self.vit.n_tokens
            n_images = int(bool(r.get("image")))
            if marks != n_images:
                raise ValueError(f"{marks} <image> marks and {n_images} pictures")
        except ValueError as error:
            raise ValueError(f"record {r['id']}: {error}") from None
        chosen, rejected = map(len, answers)
        n = len(prompt) + max(chosen, rejected - 1)  # each answer is read by itself
        if n > self.block_size:
            raise ValueError(f"record {r['id']} has {n} tokens, the context holds "
                             f"{self.block_size}; shorten it")
        return len(prompt) + chosen + rejected

    def batch(self, pairs: list[dict]) -> PairBatch:
        """Render pairs and load their pictures."""
        made = [self.rows(r) for r in pairs]
        packed = [pack(prompt, [chosen, rejected]) for prompt, chosen, rejected in made]
        images = [r["image"] for r in pairs if r.get("image")]
        batch = collate(
            [row for row, _ in packed], self.tokenizer.pad, self.block_size, [r["id"] for r in pairs],
            self.pictures.get(images) if images else None,
            [int(bool(r.get("image"))) for r in pairs], [segments for _, segments in packed])
        weights = torch.ones(batch.idx.shape)
        if self.changed != 1:
            for b, (_, *answers) in enumerate(made):
                marks = [mark for side in changed_tokens(*answers) for mark in side]
                here = batch.targets[b] != IGNORE_INDEX              # (T,)
                weights[b, here] += (self.changed - 1) * torch.tensor(marks)
        return PairBatch(batch, weights)


def pair_logprobs(
    vlm: VLM, batch: PairBatch, average: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the chosen and of the rejected answers, in one forward.

    Args:
        average: as `losses.sequence_logprobs` takes it.

    Returns:
        chosen (B,) and rejected (B,), weighted as the batch says; (B, T) of tokens, unweighted.
    """
    rows, img_emb = batch.rows, None
    if rows.images is not None:
        img_emb = vlm.projector(vlm.vit.features(rows.images))       # (B, N, C)
    logp, _ = logprobs(vlm, vlm.config.image_id, rows.idx, rows.targets, img_emb, temperature=1.0,
                       segments=rows.segments)
    answers = rows.targets != IGNORE_INDEX                           # (B, T)
    chosen, rejected = (
        sequence_logprobs(logp, answers & (rows.segments == k), batch.weights, average)
        for k in (1, 2))
    return chosen, rejected, logp


# --- the reference, asked once ---


class ReferenceCache:
    """A reference's log-probabilities of all pairs, computed once and kept in a file.

    Args:
        path: the file.
        key: what they were made from: names -> fingerprints, or settings.
        overwrite: let a file with another key, or a damaged one, be replaced; else it is refused.

    Raises:
        ValueError: if there is a file with another key, naming what differs, or a damaged one.
        FileNotFoundError: if there is no folder to keep the file in.
    """

    def __init__(self, path: Path, key: dict, overwrite: bool):
        self.path, self.key, self.logp = Path(path), key, None
        if not self.path.is_file():
            if not overwrite and not self.path.parent.is_dir():
                raise FileNotFoundError(f"no folder {self.path.parent} to keep {self.path.name} in")
            return
        try:
            state = torch.load(self.path, weights_only=True)
            theirs, logp = state["key"], state["logp"]
        except Exception:  # a damaged archive can break anywhere inside torch's reader
            if overwrite:
                return
            raise ValueError(f"{path} is damaged; delete it, or name another file") from None
        differ = sorted(k for k in key | theirs if theirs.get(k) != key.get(k))
        if not differ:
            self.logp = logp
        elif not overwrite:
            raise ValueError(f"{path} holds log-probabilities of other {', '.join(differ)}; "
                             "delete it, or name another file")

    @torch.no_grad()
    def fill(self, ref: VLM, maker: PairMaker, pairs: list[dict], lengths: Tensor, average: bool,
             device: torch.device) -> Tensor:
        """The log-probabilities (n, 2), chosen and rejected; from the file where it has them.

        Args:
            lengths: (n,) of the pairs, which are read in batches of about equal ones.
        """
        if self.logp is None:
            self.logp = torch.empty(len(pairs), 2)
            for part in tqdm(lengths.argsort().split(64), desc="reference", disable=None):
                batch = maker.batch([pairs[i] for i in part.tolist()]).to(device)
                with adapters_off(ref):
                    both = pair_logprobs(ref, batch, average)[:2]
                self.logp[part] = torch.stack(both, 1).cpu()
            write({"key": self.key, "logp": self.logp}, self.path)
        return self.logp


def fingerprint_of(pairs: list[dict]) -> str:
    """Names pairs, in their order: 12 hexadecimal digits of the hash of their texts."""
    text = "\n".join(json.dumps(r, sort_keys=True) for r in pairs)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
