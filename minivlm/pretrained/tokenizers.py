"""Published tokenizers: GPT-2's as ours, and CLIP's own, for weights that were trained with it.

GPT-2's is byte-level BPE like ours: tokenizer.json, or vocab.json with merges.txt. CLIP's marks a
word's last letter, so that no spaces are tokens:

    "A  Cat!" -> a</w> cat</w> !</w>, between <|startoftext|> and <|endoftext|>

Its text is brought to Unicode's NFC, to single spaces and to lower case, as in transformers;
openai/CLIP repairs broken text with ftfy besides. What looks like a special token in a text is
ordinary text here.

Source: Radford et al. 2019 (GPT-2); Radford et al. 2021, arXiv:2103.00020, section 2.4;
openai/CLIP, clip/simple_tokenizer.py. Used by: pretrained.py, export.py; data/webdata/prepare.py
--clip DIR.
"""

import unicodedata
from pathlib import Path

import regex  # tiktoken needs it too
import torch
from torch import Tensor

from minivlm.running.files import check_entries, expect, read_json, read_text
from minivlm.tokenizer import GPT2_PATTERN, HF_PATTERN, PATTERN, SPECIALS, Tokenizer
from minivlm.tokenizer import byte_letters, join_pair

CLIP_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\p{White_Space}\p{L}\p{N}]+"


def read_tokenizer(folder: Path) -> tuple[Tokenizer, int]:
    """GPT-2's tokenizer, or ours as export.py writes it; special tokens stand behind all others.

    Returns:
        the tokenizer, and how many of its special tokens the folder knows: GPT-2 the first one.

    Raises:
        FileNotFoundError: if the folder has none.
        ValueError: if its ids have gaps, its merges another order than their ids, other special
            tokens stand where ours do, or it splits text in another way.
    """
    vocab, merges, file = read_merges(folder)
    expect(file, folder, normalizer=None)
    letters = byte_letters()
    pieces = [*letters.values(), *(m.replace(" ", "") for m in merges)]
    bytes_of = {letter: b for b, letter in letters.items()}
    try:
        ranks = {bytes(bytes_of[x] for x in piece): vocab[piece] for piece in pieces}
    except KeyError as missing:
        raise ValueError(f"{folder}: {missing} is no letter of a byte, or has no id") from None
    joined = list(ranks.values())[len(letters):]
    if joined != sorted(joined):
        raise ValueError(f"{folder}: the merges do not come in the order of their ids")
    special = {name: vocab[name] for name in vocab.keys() - set(pieces)}
    known = [name for name, _ in sorted(special.items(), key=lambda kv: kv[1])]
    if special != {name: len(ranks) + i for i, name in enumerate(SPECIALS[:len(known)])}:
        raise ValueError(f"{folder}: special tokens {known[:8]}, expected {', '.join(SPECIALS)}, "
                         "or the first of them, behind all others")
    splits = file.get("pre_tokenizer") or {}
    if isinstance(splits, dict) and splits.get("type") == "ByteLevel":
        splits = {"use_regex": True} | splits | {"trim_offsets": True}  # the default; not asked for
    for pattern in (GPT2_PATTERN, PATTERN):
        if not file or splits == pre_tokenizer(pattern):
            return Tokenizer(ranks, pattern), len(known)
    raise ValueError(f"{folder}: text is split neither in GPT-2's way nor in ours")


def pre_tokenizer(pattern: str) -> dict:
    """How tokenizer.json says that text is split: GPT-2's way has a name, ours is written out."""
    to_letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": pattern == GPT2_PATTERN}
    if pattern == GPT2_PATTERN:
        return to_letters
    split = {"type": "Split", "pattern": {"Regex": HF_PATTERN}, "behavior": "Isolated",
             "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, to_letters]}


def read_merges(folder: Path) -> tuple[dict[str, int], list[str], dict]:
    """Vocabulary and merges of a byte-level BPE, each merge two pieces with a space between.

    Returns:
        pieces and added tokens with their ids; merges; and all of tokenizer.json, or {} where the
        folder has vocab.json and merges.txt, which say no more.

    Raises:
        FileNotFoundError, ValueError: if the folder has none, or the file is no such thing.
    """
    bad, file = ValueError(f"{folder} holds no vocabulary with its merges"), {}
    if (folder / "tokenizer.json").is_file():
        file = read_json(folder / "tokenizer.json")
        model = file.get("model")
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
            raise bad
        vocab, merges = model.get("vocab"), model.get("merges")
        if not isinstance(merges, list):
            raise bad
        # newer files write each as a pair
        merges = [" ".join(map(str, m)) if isinstance(m, list) else m for m in merges]
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocab = read_json(folder / "vocab.json")
        lines = read_text(folder / "merges.txt").splitlines()
        merges = [m for m in lines if m and not m.startswith("#version")]
    else:
        raise FileNotFoundError(
            f"neither tokenizer.json nor vocab.json with merges.txt in {folder}")
    added = file.get("added_tokens") or []
    check_entries(added, f"{folder}, added_tokens", id=int, content=str)
    if not isinstance(vocab, dict) or not all(
            isinstance(m, str) and m.count(" ") == 1 for m in merges) or not all(
            type(i) is int for i in vocab.values()):
        raise bad
    return vocab | {token["content"]: token["id"] for token in added}, merges, file


class ClipTokenizer:
    """Byte-level BPE with marked word ends.

    Args:
        vocab: piece -> id.
        merges: in order, two pieces with a space between.

    Raises:
        ValueError: if a piece that can come out has no id.
    """

    def __init__(self, vocab: dict[str, int], merges: list[str]):
        self.vocab, self.pieces = vocab, {i: piece for piece, i in vocab.items()}
        self.ranks = {tuple(m.split(" ")): i for i, m in enumerate(merges)}
        self.letters = byte_letters()
        single = [x + end for x in self.letters.values() for end in ("", "</w>")]
        special = [f"<|{name}oftext|>" for name in ("start", "end")]
        missing = [x for x in (*single, *map("".join, self.ranks), *special) if x not in vocab]
        if missing:
            raise ValueError(f"{len(missing)} pieces have no id, among them {missing[:3]}")
        self.startoftext, self.endoftext = (vocab[name] for name in special)

    @classmethod
    def read(cls, folder: str | Path) -> "ClipTokenizer":
        """The tokenizer of a published folder; raises as `read_merges`."""
        vocab, merges, _ = read_merges(Path(folder))
        return cls(vocab, merges)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without the special tokens around it.

        Every byte is a letter here; the neighbors that were joined first in training are joined
        first, all occurrences of a pair at once.
        """
        text = unicodedata.normalize("NFC", text)
        text = " ".join(regex.findall(r"\P{White_Space}+", text)).lower()
        ids, never = [], len(self.ranks)
        for word in regex.findall(CLIP_PATTERN, text):
            pieces = [self.letters[b] for b in word.encode("utf-8", "replace")]
            pieces[-1] += "</w>"
            while len(pieces) > 1:
                pair = min(zip(pieces, pieces[1:]), key=lambda p: self.ranks.get(p, never))
                if pair not in self.ranks:
                    break
                pieces = join_pair(pieces, pair, "".join(pair))
            ids += [self.vocab[piece] for piece in pieces]
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of ids, in lower case; special tokens appear by name."""
        bytes_of = {letter: b for b, letter in self.letters.items()}
        words = "".join(self.pieces[i] for i in ids).replace("</w>", " ")
        return b"".join(
            bytes([bytes_of[x]]) if x in bytes_of else x.encode() for x in words
        ).decode("utf-8", "replace").strip()

    def rows(
        self, texts: list[str], block_size: int = 77, cut: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Texts between their special tokens, as CLIP's text tower takes them.

        Args:
            cut: shorten a text that is longer than block_size tokens; its end token stays.

        Returns:
            (B, T) ids, padded with <|endoftext|>, and (B,) lengths.

        Raises:
            ValueError: if a text is longer than block_size tokens and not cut, or there is none.
        """
        if not texts:
            raise ValueError("no texts")
        most = block_size - 2 if cut else None
        rows = [[self.startoftext, *self.encode(text)[:most], self.endoftext] for text in texts]
        lengths = torch.tensor([len(row) for row in rows])
        if int(lengths.max()) > block_size:
            text = texts[int(lengths.argmax())]
            raise ValueError(f"{text[:40]!r} has {int(lengths.max())} tokens, "
                             f"the text tower holds {block_size}")
        idx = torch.full((len(rows), int(lengths.max())), self.endoftext)
        for i, row in enumerate(rows):
            idx[i, :len(row)] = torch.tensor(row)
        return idx, lengths
