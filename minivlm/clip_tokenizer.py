"""CLIP's own tokenizer, for weights that were trained with it.

    "A  Cat!" -> a</w> cat</w> !</w>, between <|startoftext|> and <|endoftext|>

A word's last letter is marked, so that no spaces are tokens. Text is brought to Unicode's NFC, to
single spaces and to lower case, as huggingface/transformers does; openai/CLIP repairs broken text
with ftfy besides. What looks like a special token in a text is ordinary text here.

Source: Radford et al. 2021, arXiv:2103.00020, section 2.4; openai/CLIP, clip/simple_tokenizer.py.
Used by: data/webdata/prepare.py --clip DIR, LAION's rule with the CLIP that LAION used.
"""

import unicodedata
from pathlib import Path

import regex  # tiktoken needs it too
import torch
from torch import Tensor

from minivlm.pretrained import read_merges
from minivlm.tokenizer import byte_letters, join_pair

PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\p{White_Space}\p{L}\p{N}]+"


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
        """The tokenizer of a published folder; raises as `pretrained.read_merges`."""
        vocab, merges, added, _ = read_merges(Path(folder))
        return cls(vocab | added, merges)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without the special tokens around it.

        Every byte is a letter here; the neighbors that were joined first in training are joined
        first, all occurrences of a pair at once.
        """
        text = unicodedata.normalize("NFC", text)
        text = " ".join(regex.findall(r"\P{White_Space}+", text)).lower()
        ids, never = [], len(self.ranks)
        for word in regex.findall(PATTERN, text):
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
