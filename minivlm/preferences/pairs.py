"""Pairs: how they are read, and turned into rows for a model.

    {"id", "image": one, a list or none, "conversations": turns up to the question,
     "chosen", "rejected"}

`chosen` and `rejected` are texts. They may also be two lists of turns, which continue
`conversations` and differ only in the last turn, the answer. Both answers stand in one row
behind their prompt (see `conversation.pack`). So one forward pass reads prompt and picture
once and gives the log-probabilities of both answers.
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

from minivlm.conversation import Turn, check_turns, pack, render, spoken
from minivlm.loading.batches import Batch, collate
from minivlm.loading.images import Pictures
from minivlm.loading.prepared import load_meta
from minivlm.loading.records import images_of
from minivlm.lora import adapters_off
from minivlm.losses import IGNORE_INDEX, sequence_logprobs
from minivlm.preferences.rankings import load_checked
from minivlm.rollout import logprobs
from minivlm.running.checkpoint import write
from minivlm.tokenizer import Tokenizer
from minivlm.vlm import VLM

MIN_COMMON = 3  # tokens; two answers may share a shorter piece by chance

# --- reading ---


def split_pair(r: dict) -> tuple[list[Turn], str, str]:
    """Read a pair: the turns up to the question, the chosen and the rejected answer.

    Raises:
        ValueError: if an answer is missing or empty, if both are equal, if their prompts
            differ, if no question comes before them, or as `check_turns` for the turns.
    """
    turns = r.get("conversations", [])
    chosen = r["chosen"]
    rejected = r["rejected"]
    if isinstance(chosen, list) and isinstance(rejected, list):
        if chosen[:-1] != rejected[:-1]:
            raise ValueError("chosen and rejected answer different prompts")
        turns = turns + chosen[:-1]
        chosen = _answer(chosen)
        rejected = _answer(rejected)
    for answer in (chosen, rejected):
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError("an answer is empty or no text")
    if chosen.strip() == rejected.strip():
        raise ValueError("chosen and rejected are equal")
    if turns:
        check_turns(turns, len(images_of(r)))
    if not turns or turns[-1]["from"] != "human":
        raise ValueError("no question comes before the answers")
    return turns, chosen.strip(), rejected.strip()


def _answer(turns: list[Turn]) -> str | None:
    """Return the text of the last of some turns, or None if it is no answer."""
    last = turns[-1] if turns and isinstance(turns[-1], dict) else {}
    return last.get("value") if last.get("from") == "gpt" else None


def check_pair(r: dict) -> str:
    """Say why a pair cannot be used; "" if it can."""
    try:
        split_pair(r)
    except ValueError as error:
        return str(error)
    return ""


def load_pairs(folder: str | Path, split: str) -> list[dict]:
    """Read the pairs in `<folder>/<split>.jsonl`, and check them by `check_pair`.

    Raises:
        FileNotFoundError, ValueError: as `load_checked`.
    """
    return load_checked(folder, split, "pairs", ("chosen", "rejected"), check_pair)


def at_most(n: int, pairs: list[dict], seed: int) -> list[dict]:
    """Put pairs in random order and keep at most n for each question, or all if n is 0.

    A ranking of K answers makes up to K (K - 1) / 2 pairs, and fewer if ranks are equal.
    Without a limit, questions with long answers would dominate the loss, because long
    answers hardly ever get equal ranks. InstructGPT also gives questions equal weights.

    Args:
        seed: decides the order, and so which pairs are kept.

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


# --- rows ---


def changed_tokens(a: list[int], b: list[int]) -> tuple[list[bool], list[bool]]:
    """Mark the tokens that two answers do not share.

    Answers share a piece of text if at least MIN_COMMON tokens in a row are equal. RLHF-V's
    code (RLAIF-V, utils/diff_lib.py) marks only changes that have tokens in both answers.
    Here a piece that only one answer has is marked as well: it may name an invented object,
    which DPO is to unlearn.

    Returns:
        for each token of a, and for each token of b, whether it is marked.

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
    """B pairs, ready for a model.

    rows: B packed rows with their pictures.
    weights: (B, T) of the targets: 1 for a token that both answers share, PairMaker's
        `changed` for a token that only one of them has.
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
        vlm: the model that will read the batches; it decides the size of a picture, the
            number of image tokens, and the longest row.
        tokenizer: the model's.
        changed: weight of a token that only one of the two answers has, see
            `changed_tokens`; a token that both share weighs 1.
    """

    def __init__(
        self, folder: str | Path, vlm: VLM, tokenizer: Tokenizer, changed: float = 1.0
    ):
        self.n_image_tokens = vlm.config.vit.n_tokens
        self.block_size = vlm.config.gpt.block_size
        self.tokenizer = tokenizer
        self.changed = changed
        mode = load_meta(folder)["fit"]
        self.pictures = Pictures(folder, vlm.config.vit.image_size, mode)

    def rows(self, r: dict) -> tuple[list[int], list[int], list[int]]:
        """Encode a pair: prompt, chosen and rejected answer, each answer with its end."""
        turns, chosen, rejected = split_pair(r)
        prompt = render(turns, self.tokenizer, self.n_image_tokens).ids
        end = [self.tokenizer.end]
        chosen_ids = spoken(chosen, self.tokenizer) + end
        rejected_ids = spoken(rejected, self.tokenizer) + end
        return prompt, chosen_ids, rejected_ids

    def lengths(self, r: dict) -> tuple[int, int]:
        """Count the tokens of a pair's row, and those that must fit the context."""
        prompt, chosen, rejected = self.rows(r)
        # neither answer sees the other, so the longer one must fit behind the prompt alone;
        # the model never reads the row's last token, the rejected answer's end
        longest = len(prompt) + max(len(chosen), len(rejected) - 1)
        return len(prompt) + len(chosen) + len(rejected), longest

    def batch(self, pairs: list[dict]) -> PairBatch:
        """Render pairs and load their pictures."""
        encoded = [self.rows(r) for r in pairs]
        rows, segments = [], []
        for prompt, chosen, rejected in encoded:
            row, row_segments = pack(prompt, [chosen, rejected])
            rows.append(row)
            segments.append(row_segments)
        names = [r["id"] for r in pairs]
        images, n_images = self.pictures.of(pairs)                   # (n, 3, S, S)
        batch = collate(
            rows, self.tokenizer.pad, self.block_size, names, images, n_images, segments
        )
        weights = torch.ones(batch.idx.shape)                        # (B, T)
        if self.changed != 1:
            for b, (_, chosen, rejected) in enumerate(encoded):
                in_chosen, in_rejected = changed_tokens(chosen, rejected)
                is_changed = torch.tensor(in_chosen + in_rejected)
                # (T,), True at the tokens of the chosen answer, then of the rejected one
                is_answer = batch.targets[b] != IGNORE_INDEX
                weights[b, is_answer] += (self.changed - 1) * is_changed
        return PairBatch(batch, weights)


def pair_logprobs(
    vlm: VLM, batch: PairBatch, average: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the log-probabilities of both answers of each pair, in one forward pass.

    Args:
        average: divide the sum over an answer's tokens by the sum of their weights, see
            `losses.sequence_logprobs`.

    Returns:
        (B,) of the chosen and (B,) of the rejected answers, weighted, in nats; and (B, T)
        of each token of both, not weighted.
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
        key: what the log-probabilities depend on: name -> fingerprint or setting.
        overwrite: whether to replace a file that is damaged or has another key. Without it,
            such a file is refused.

    Raises:
        ValueError: if the file is refused; for another key, with the names that differ.
        FileNotFoundError: if the folder of the file does not exist, without `overwrite`.
    """

    def __init__(self, path: Path, key: dict, overwrite: bool):
        self.path = path
        self.key = key
        self.logp = None
        if not path.is_file():
            # with overwrite, the file lies in the run folder, which is made later
            if not overwrite and not path.parent.is_dir():
                raise FileNotFoundError(f"no folder {path.parent} to keep {path.name} in")
            return
        try:
            state = torch.load(path, weights_only=True)
            file_key = dict(state["key"])
            logp = state["logp"]
            if not isinstance(logp, Tensor) or logp.shape[1:] != (2,):
                raise ValueError("no log-probabilities")
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
        """Return the log-probabilities of the file, or compute and write them.

        Args:
            ref: the reference, or the policy, which is then read without its adapters.
            maker: makes the batches.
            lengths: (n,) tokens of each pair, see `PairMaker.lengths`; pairs of similar
                length share a batch.
            average: as for `pair_logprobs`.

        Returns:
            (n, 2) nats: of each pair's chosen and of its rejected answer.
        """
        if self.logp is None:
            self.logp = torch.empty(len(pairs), 2)
            for part in tqdm(lengths.argsort().split(64), desc="reference", disable=None):
                batch = maker.batch([pairs[i] for i in part.tolist()]).to(device)
                with adapters_off(ref):  # without its adapters, the policy is the reference
                    chosen, rejected, _ = pair_logprobs(ref, batch, average)     # (b,) (b,)
                self.logp[part] = torch.stack((chosen, rejected), 1).cpu()
            write({"key": self.key, "logp": self.logp}, self.path)
        return self.logp


def fingerprint_of(pairs: list[dict]) -> str:
    """12 hexadecimal digits that change with any pair and with the pairs' order."""
    text = "\n".join(json.dumps(r, sort_keys=True) for r in pairs)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
