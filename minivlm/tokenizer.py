"""Byte-level BPE: trained here, run by tiktoken.

    train: start from the 256 bytes; again and again join the most frequent neighboring pair
    run:   tiktoken applies the joins of lowest rank first, in Rust

Special tokens have ids behind all ranks and never come from text (contract 7). The file format is
tiktoken's own, one "base64 rank" a line.

Source: Sennrich et al. 2016, arXiv:1508.07909; bytes as in GPT-2 (Radford et al. 2019).
"""

import base64
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import tiktoken

from minivlm.running.files import read_text

# GPT-2's split, written so that Python's re and tiktoken's engine both read it: a word or a number
# with its leading space, other signs, white space.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+"""
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# PATTERN for huggingface/tokenizers, whose \w lacks the two joiners that tiktoken's has
HF_PATTERN = (r"'(?:[sdmt]|ll|ve|re)| ?[[\w\u200c\u200d]&&[^\d_]]+| ?\d+"
              r"| ?(?:[^\s\w\u200c\u200d]|_)+|\s+(?!\S)|\s+")
SPECIALS = (
    "<|endoftext|>", "<|pad|>", "<|image|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>",
)


def train_bpe(texts: Iterable[str], vocab_size: int) -> dict[bytes, int]:
    """Learn the joins of byte-level BPE.

    Pairs are counted once per distinct word, weighted by its frequency; after a join only the words
    that held the pair are counted again. Equal counts are settled by the smaller pair of ids, so
    the result does not depend on the order of the texts.

    Args:
        texts: any strings.
        vocab_size: bytes and joins together, at least 256; fewer if every word is one token.

    Returns:
        token bytes -> rank, the 256 single bytes first.

    Raises:
        ValueError: if vocab_size < 256.

    >>> ranks = train_bpe(["aaabdaaabac"], 259)   # the worked example of Wikipedia's article on BPE
    >>> [token for token, rank in ranks.items() if rank >= 256]
    [b'aa', b'ab', b'aaab']
    """
    if vocab_size < 256:
        raise ValueError(f"vocab_size {vocab_size} is below 256, one for each byte")
    frequency = Counter(piece for text in texts for piece in re.findall(PATTERN, text))
    words = [list(piece.encode("utf-8", "replace")) for piece in frequency]
    counts = list(frequency.values())
    tokens = [bytes([i]) for i in range(256)]

    pairs: Counter[tuple[int, int]] = Counter()
    where: dict[tuple[int, int], set[int]] = defaultdict(set)
    for w, word in enumerate(words):
        for pair in zip(word, word[1:]):
            pairs[pair] += counts[w]
            where[pair].add(w)

    while len(tokens) < vocab_size and pairs:
        best = max(pairs, key=lambda p: (pairs[p], -p[0], -p[1]))
        if pairs[best] < 1:
            break
        tokens.append(tokens[best[0]] + tokens[best[1]])
        for w in where.pop(best):
            for pair in zip(words[w], words[w][1:]):
                pairs[pair] -= counts[w]
            words[w] = join_pair(words[w], best, len(tokens) - 1)
            for pair in zip(words[w], words[w][1:]):
                pairs[pair] += counts[w]
                where[pair].add(w)
        del pairs[best]
    return {token: rank for rank, token in enumerate(tokens)}


def join_pair(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Replace each occurrence of `pair`, from the left, by `new`.

    >>> join_pair([1, 1, 1, 2], (1, 1), 9)
    [9, 1, 2]
    """
    out, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


class Tokenizer:
    """Text to ids and back, with the special tokens of the chat template.

    Args:
        ranks: token bytes -> rank, 0 .. n-1 without a gap, all 256 bytes among them.
        pattern: how text is split before joining, PATTERN or GPT2_PATTERN. A file may name no
            other: one that does not fit every character would lose text without a word, one that
            goes back and forth would take for ever.

    Raises:
        ValueError: if the ranks have a gap or miss a byte, or for another pattern.
    """

    def __init__(self, ranks: dict[bytes, int], pattern: str = PATTERN):
        missing = [b for b in range(256) if bytes([b]) not in ranks]
        if missing or sorted(ranks.values()) != list(range(len(ranks))):
            raise ValueError(
                f"{len(ranks)} ranks miss {len(missing)} bytes or are not 0 .. {len(ranks) - 1}"
            )
        if pattern not in (PATTERN, GPT2_PATTERN):
            raise ValueError(f"pattern {pattern[:80]!r} is neither ours nor GPT-2's")
        self.ranks, self.pattern = ranks, pattern
        special = {name: len(ranks) + i for i, name in enumerate(SPECIALS)}
        self.endoftext, self.pad, self.image, *of_turns = special.values()
        self.system, self.user, self.assistant, self.end = of_turns
        self.encoding = tiktoken.Encoding(
            "minivlm", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
        )
        self.vocab_size = len(ranks) + len(special)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; what looks like a special token in it is ordinary text."""
        return self.encoding.encode_ordinary(text)

    def decode(self, ids: list[int]) -> str:
        """Text of ids; special tokens appear by name, broken UTF-8 as replacement signs."""
        return self.encoding.decode(ids)

    @property
    def identity(self) -> str:
        """A fingerprint: equal for tokenizers that give equal ids."""
        lines = [self.pattern.encode()] + sorted(self.ranks, key=self.ranks.get)
        return hashlib.sha256(b"\n".join(base64.b64encode(line) for line in lines)).hexdigest()[:16]

    def stop(self, stage: str) -> int:
        """The id that ends what a stage's model writes: <|end|> after answers, else <|endoftext|>.

        A captioner or a language model has never seen <|end|> end anything.
        """
        return self.end if stage in ("sft", "ppo", "dpo") else self.endoftext

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 1024) -> "Tokenizer":
        """Learn the ranks from texts; `vocab_size` counts the special tokens too."""
        return cls(train_bpe(texts, vocab_size - len(SPECIALS)))

    def to_text(self) -> str:
        """The tokenizer as text: first its pattern, then tiktoken's "base64 rank" lines."""
        by_rank = sorted(self.ranks.items(), key=lambda kv: kv[1])
        lines = [f"{base64.b64encode(t).decode()} {r}" for t, r in by_rank]
        return "\n".join([f"# {self.pattern}", *lines]) + "\n"

    @classmethod
    def from_text(cls, text: str, name: str = "tokenizer") -> "Tokenizer":
        """Read `to_text`'s format, tiktoken's ranks or GPT-2's merges (vocab.bpe, merges.txt).

        Raises:
            ValueError: if a line is neither of these, or they make no tokenizer.
        """
        lines = text.splitlines()
        pattern = GPT2_PATTERN
        if lines and lines[0].startswith("# "):
            pattern = lines.pop(0)[2:]
        try:
            if lines and lines[0].startswith("#version"):
                ranks = _gpt2_ranks(lines[1:])
            else:
                pairs = map(str.split, filter(None, lines))
                ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
        except KeyError as letter:
            raise ValueError(f"{name} is no list of GPT-2 merges: it holds {letter}") from None
        except ValueError as error:
            raise ValueError(
                f"{name} is no tokenizer file (expected lines 'base64 rank'): {error}"
            ) from None
        try:
            return cls(ranks, pattern)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def save(self, path: Path) -> None:
        """Write the tokenizer to a file."""
        Path(path).write_text(self.to_text())

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a tokenizer file; nothing is ever downloaded.

        Raises:
            FileNotFoundError: if there is no such file, with what to do.
            ValueError: if it is not UTF-8, or as `from_text`.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"no tokenizer at {path}; a prepare.py writes tokenizer.tiktoken beside its data, "
                "and GPT-2's vocab.bpe, merges.txt or gpt2.tiktoken must be a local file: "
                "tiktoken's own download needs a network"
            )
        return cls.from_text(read_text(path), str(path))


def byte_letters() -> dict[int, str]:
    """GPT-2's alphabet, which writes each byte as a printable letter: byte -> letter, in the order
    of GPT-2's first 256 ids.

    >>> byte_letters()[ord("a")], byte_letters()[ord(" ")]
    ('a', 'Ġ')
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def _gpt2_ranks(merges: list[str]) -> dict[bytes, int]:
    """GPT-2's ranks from its merge list, which is written in GPT-2's own alphabet."""
    letters = {letter: b for b, letter in byte_letters().items()}
    ranks = {bytes([b]): i for i, b in enumerate(letters.values())}
    for line in filter(None, merges):
        ranks[bytes(letters[c] for c in line.replace(" ", ""))] = len(ranks)
    return ranks
