"""Byte-level BPE: trained here, applied by tiktoken.

    train:  start from the 256 bytes; repeatedly join the most frequent pair of neighbors
    encode: tiktoken applies the joins in the order of their ranks, in Rust

No text is ever encoded to a special token. In a tokenizer that is trained here, the ids of
special tokens follow those of all ranks; a published one brings its own ids and template.
The file format is tiktoken's, "base64 rank" on each line; lines before them that begin with
# hold the pattern, and what is not ours.

Source: Sennrich et al. 2016, arXiv:1508.07909; bytes as in GPT-2 (Radford et al. 2019).
"""

import base64
import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import tiktoken

from minivlm.running.files import brief, read_text
from minivlm.templates import TEMPLATES

# Text is split nearly as in GPT-2: a word or a number with the space before it, other
# signs, white space. Both Python's re and tiktoken's engine can read PATTERN.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+"""
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# Qwen's: a sign may belong to the word behind it, every digit stands alone. Llama 3's has up
# to three digits together, and SmolLM2's is GPT-2's with every digit alone.
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_PATTERN = QWEN_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
DIGITS_PATTERN = (
    r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
)
PATTERNS = (PATTERN, GPT2_PATTERN, QWEN_PATTERN, LLAMA3_PATTERN, DIGITS_PATTERN)
# PATTERN for huggingface/tokenizers, whose \w lacks two joiners that tiktoken's \w has
HF_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?[[\w\u200c\u200d]&&[^\d_]]+| ?\d+"
    r"| ?(?:[^\s\w\u200c\u200d]|_)+|\s+(?!\S)|\s+"
)
# characters; a longer word is cut before training. Uncut, a word of a million letters would
# be counted anew for almost every join, and could become a single token
LONGEST_WORD = 100
# characters; longer white space is cut before encoding. tiktoken's regex engine fails on a
# million characters of it
LONGEST_SPACE = 100_000
LONG_SPACE = re.compile(r"(?<!\s)\s{%d,}" % LONGEST_SPACE)
SPECIAL_NAME = re.compile(r"<\|\w+\|>|</?\w+>")  # in the marks of a chat template
CHATBOTS = ("sft", "ppo", "dpo", "grpo")  # stages whose models answer in turns
MAGIC = "#sentencepiece "  # so begins a file of sentencepiece.py
# their order decides their ids
SPECIALS = (
    "<|endoftext|>", "<|pad|>", "<|image|>",
    "<|system|>", "<|user|>", "<|assistant|>", "<|end|>",
)


def train_bpe(texts: Iterable[str], vocab_size: int) -> dict[bytes, int]:
    """Learn the joins of byte-level BPE.

    Each distinct word is counted once and weighted by its frequency. After a join, only the
    words that held the pair are counted again. Of equally frequent pairs, the one with
    smaller ids is joined, so the result does not depend on the order of the texts. Words of
    more than LONGEST_WORD characters are cut.

    Args:
        texts: any strings.
        vocab_size: number of bytes and joins together, at least 256. The result has fewer
            if every word has become a single token before.

    Returns:
        token bytes -> rank, the 256 single bytes first.

    Raises:
        ValueError: if vocab_size < 256.

    >>> ranks = train_bpe(["aaabdaaabac"], 259)  # the example of Wikipedia's article on BPE
    >>> [token for token, rank in ranks.items() if rank >= 256]
    [b'aa', b'ab', b'aaab']
    """
    if vocab_size < 256:
        raise ValueError(f"vocab_size {vocab_size} is below 256, one for each byte")
    frequency = Counter()
    for text in texts:
        # not findall: the list of all words of a long text takes many times its memory
        frequency.update(map(re.Match.group, re.finditer(PATTERN, text)))
    words, counts = [], []
    for piece, count in frequency.items():
        for start in range(0, len(piece), LONGEST_WORD):
            part = piece[start:start + LONGEST_WORD]
            # "replace": half of a surrogate pair cannot be encoded in UTF-8
            words.append(list(part.encode("utf-8", "replace")))
            counts.append(count)
    tokens = [bytes([i]) for i in range(256)]

    pairs = Counter()  # (id, id) -> how often
    words_with = defaultdict(set)  # (id, id) -> the words that hold it, or once held it
    for i, word in enumerate(words):
        for pair in pairwise(word):
            pairs[pair] += counts[i]
            words_with[pair].add(i)

    while len(tokens) < vocab_size and pairs:
        best = max(pairs, key=lambda pair: (pairs[pair], -pair[0], -pair[1]))
        if pairs[best] < 1:  # the pairs that are left stand nowhere any more
            break
        tokens.append(tokens[best[0]] + tokens[best[1]])
        for i in words_with.pop(best):
            for pair in pairwise(words[i]):
                pairs[pair] -= counts[i]
            words[i] = join_pair(words[i], best, len(tokens) - 1)
            for pair in pairwise(words[i]):
                pairs[pair] += counts[i]
                words_with[pair].add(i)
        del pairs[best]
    return {token: rank for rank, token in enumerate(tokens)}


def join_pair(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Replace each occurrence of `pair`, from the left, by `new`.

    >>> join_pair([1, 1, 1, 2], (1, 1), 9)
    [9, 1, 2]
    """
    joined = []
    i = 0
    while i < len(ids):
        if tuple(ids[i:i + 2]) == pair:
            joined.append(new)
            i += 2
        else:
            joined.append(ids[i])
            i += 1
    return joined


class Tokenizer:
    """Text to ids and back, with the special tokens of a chat template.

    Args:
        ranks: token bytes -> rank, all 256 bytes among them. Without `special` they are
            0 .. n-1 without a gap.
        pattern: how text is split before joining, one of PATTERNS. No other pattern is
            accepted, because patterns come from files: one that does not match every
            character would silently lose text, and one with much backtracking might never
            end.
        special: name -> id of each special token; None = ours, behind all ranks.
        template: a name of TEMPLATES, whose marks must be among the special tokens.
        nfc: bring texts to Unicode's NFC first, as Qwen does.

    Raises:
        ValueError: if the ranks have a gap or miss a byte, if two tokens have one id, if a
            token that the template needs is missing, or for another pattern or template.
    """

    def __init__(
        self, ranks: dict[bytes, int], pattern: str = PATTERN,
        special: dict[str, int] | None = None, template: str = "minivlm", nfc: bool = False,
    ):
        missing = [b for b in range(256) if bytes([b]) not in ranks]
        ids = sorted(ranks.values())
        if missing or special is None and ids != list(range(len(ranks))):
            raise ValueError(
                f"{len(ranks)} ranks miss {len(missing)} bytes "
                f"or are not 0 .. {len(ranks) - 1}"
            )
        if pattern not in PATTERNS:
            raise ValueError(
                f"pattern {pattern[:80]!r} is not one of GPT-2's, Qwen's, Llama 3's, "
                "SmolLM2's or minivlm's"
            )
        if special is None:
            special = {name: len(ranks) + i for i, name in enumerate(SPECIALS)}
        check_ids(ranks, special)
        self.ranks = ranks
        self.pattern = pattern
        self.nfc = nfc
        self.encoding = tiktoken.Encoding(
            "minivlm", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
        )
        self.take_special(special, template)

    def take_special(self, special: dict[str, int], template: str) -> None:
        """Set the special tokens, and the chat template that is made of them.

        Raises:
            ValueError: if there is no such template, or if a token that it needs is
                missing.
        """
        if template not in TEMPLATES:
            raise ValueError(
                f"template {brief(template)} is not one of {', '.join(TEMPLATES)}"
            )
        all_ids = [*self.ranks.values(), *special.values()]
        self.special = special
        self.template = TEMPLATES[template]
        self.template_name = template
        self.vocab_size = max(all_ids) + 1
        self.known = frozenset(all_ids)
        image = image_name(special)
        for name in (image, *SPECIAL_NAME.findall("".join(self.template.marks))):
            if name not in special:
                raise ValueError(
                    f"the template {template} needs the special token {name!r}, which the "
                    "tokenizer does not have"
                )
        self.end, self.endoftext = special[self.template.end], special[self.template.stop]
        self.image = special[image]
        # no model reads pads, so any token will do
        self.pad = special.get("<|pad|>", self.endoftext)
        # each piece of the template and its ids; here special tokens count by their names
        longest_first = sorted(special, key=len, reverse=True)
        split = re.compile("|".join(map(re.escape, longest_first)))
        self.marks = {}
        for mark in self.template.marks:
            ids, start = [], 0
            for match in split.finditer(mark):
                ids += self.encode(mark[start:match.start()]) + [special[match.group()]]
                start = match.end()
            self.marks[mark] = ids + self.encode(mark[start:])
        self.begin = self.marks[self.template.begin]  # before every text; ours has none

    @property
    def tokens(self) -> list[bytes]:
        """The bytes of all tokens but the special ones, in the order of their ids."""
        return sorted(self.ranks, key=self.ranks.get)

    def encode(self, text: str) -> list[int]:
        """Turn a text into ids; a special token's name in it is ordinary text."""
        if self.nfc:
            text = unicodedata.normalize("NFC", text)
        ids: list[int] = []
        start = 0
        for match in LONG_SPACE.finditer(text):
            # never at its end: the last space belongs to the word behind it
            for end in range(match.start() + LONGEST_SPACE, match.end(), LONGEST_SPACE):
                ids += self.encoding.encode_ordinary(text[start:end])
                start = end
        return ids + self.encoding.encode_ordinary(text[start:])

    def decode(self, ids: list[int]) -> str:
        """Turn ids into text: special tokens by their names, broken UTF-8 as U+FFFD.

        A published model may have rows for ids that its tokenizer does not know; these say
        nothing.
        """
        return self.encoding.decode([i for i in ids if i in self.known])

    @property
    def identity(self) -> str:
        """A fingerprint, equal for tokenizers that give equal ids."""
        # base64 has no line break, so different lists of tokens cannot make the same text
        lines = [base64.b64encode(line) for line in [self.pattern.encode(), *self.tokens]]
        lines += [line.encode() for line in self._header()]
        return self.digest(b"\n".join(lines))

    @staticmethod
    def digest(content: bytes) -> str:
        """16 hexadecimal digits that identify a content."""
        return hashlib.sha256(content).hexdigest()[:16]

    def _header(self) -> list[str]:
        """The lines of a file that say what is not ours; none for a tokenizer of ours."""
        ours = {name: len(self.ranks) + i for i, name in enumerate(SPECIALS)}
        if (self.special, self.template_name, self.nfc) == (ours, "minivlm", False):
            return []
        lines = [f"#template {self.template_name}", f"#nfc {int(self.nfc)}"]
        for name, i in sorted(self.special.items(), key=lambda item: item[1]):
            lines.append(f"#special {base64.b64encode(name.encode()).decode()} {i}")
        return lines

    def stop(self, stage: str) -> int:
        """Return the id that ends what a stage's model writes.

        A chatbot ends its answers with <|end|>. A captioner or a language model ends a text
        with <|endoftext|>, and has never seen <|end|>.
        """
        return self.end if stage in CHATBOTS else self.endoftext

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 1024) -> "Tokenizer":
        """Learn the ranks from texts; `vocab_size` counts the special tokens too.

        Raises:
            ValueError: if the bytes and the special tokens alone are more.
        """
        least = 256 + len(SPECIALS)
        if vocab_size < least:
            raise ValueError(
                f"vocab_size {vocab_size} is below {least}, the bytes and special tokens"
            )
        return cls(train_bpe(texts, vocab_size - len(SPECIALS)))

    def to_text(self) -> str:
        """Write the tokenizer as text: its pattern, then tiktoken's "base64 rank" lines."""
        lines = [f"# {self.pattern}", *self._header()]
        for token in self.tokens:
            lines.append(f"{base64.b64encode(token).decode()} {self.ranks[token]}")
        return "\n".join(lines) + "\n"

    @classmethod
    def from_text(cls, text: str, name: str = "tokenizer") -> "Tokenizer":
        """Read a tokenizer from the text of a file.

        Args:
            text: what `to_text` wrote, tiktoken's ranks, or GPT-2's merges (vocab.bpe,
                merges.txt).
            name: what error messages call the file.

        Raises:
            ValueError: if a line has none of these forms, or as `Tokenizer`.
        """
        if text.startswith(MAGIC):
            from minivlm.sentencepiece import SentencePiece  # which imports this module

            return SentencePiece.from_text(text, name)
        lines = [line for line in text.splitlines() if line]
        pattern = GPT2_PATTERN  # other people's files do not name their pattern
        if text.startswith("# "):
            pattern = lines.pop(0)[2:]
        own = {}  # what is not ours
        try:
            while lines and lines[0].startswith(("#template ", "#nfc ", "#special ")):
                key, *values = lines.pop(0)[1:].split(" ")
                if key == "special":
                    token = base64.b64decode(values[0], validate=True).decode()
                    own.setdefault("special", {})[token] = int(values[1])
                else:
                    own[key] = values[0] if key == "template" else values[0] == "1"
            if lines and lines[0].startswith("#version"):
                ranks = _gpt2_ranks(lines[1:])
            else:
                ranks = {}
                for line in lines:
                    token, rank = line.split()
                    ranks[base64.b64decode(token, validate=True)] = int(rank)
            return cls(ranks, pattern, **own)
        except (LookupError, ValueError) as error:  # LookupError: no letter of GPT-2's
            raise ValueError(
                f"{name} is no tokenizer file (expected lines 'base64 rank', "
                f"or '#version' and GPT-2's merges): {error}"
            ) from None

    def save(self, path: Path) -> None:
        """Write the tokenizer to a file."""
        path.write_text(self.to_text(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a tokenizer file; nothing is ever downloaded.

        Raises:
            FileNotFoundError: if there is no such file; the message says where to get one.
            ValueError: if it is not UTF-8, or as `from_text`.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"no tokenizer at {path}; a prepare.py writes tokenizer.tiktoken into its "
                "data folder; GPT-2's vocab.bpe, merges.txt or gpt2.tiktoken must be a "
                "local file, because nothing is downloaded"
            )
        return cls.from_text(read_text(path), str(path))


def check_ids(ranks: dict, special: dict[str, int]) -> None:
    """Refuse ids that no model has.

    Raises:
        ValueError: if two tokens have one id, or an id is not in 0 .. 9,999,999.
    """
    ids = [*ranks.values(), *special.values()]
    if not all(type(i) is int and 0 <= i < 10_000_000 for i in ids):
        raise ValueError("an id is no whole number in 0 .. 9,999,999")
    if len(set(ids)) < len(ids):
        raise ValueError("two tokens have one id")


def image_name(special: dict[str, int]) -> str:
    """The name of the token that stands for a picture's tokens; LLaVA's is <image>."""
    return "<image>" if "<image>" in special else "<|image|>"


def byte_letters() -> dict[int, str]:
    """Return GPT-2's alphabet: byte -> printable letter, in the order of the first 256 ids.

    >>> byte_letters()[ord("a")], byte_letters()[ord(" ")]
    ('a', 'Ġ')
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {b: chr(b) for b in printable}
    others = [b for b in range(256) if b not in letters]
    for i, b in enumerate(others):
        letters[b] = chr(256 + i)  # the first letters behind Latin-1
    return letters


def _gpt2_ranks(merges: list[str]) -> dict[bytes, int]:
    """Compute ranks from the lines of GPT-2's merge list, written in GPT-2's alphabet."""
    byte_of = {letter: b for b, letter in byte_letters().items()}
    ranks = {bytes([b]): i for i, b in enumerate(byte_of.values())}
    for line in merges:
        joined = line.replace(" ", "")
        ranks[bytes(byte_of[letter] for letter in joined)] = len(ranks)
    return ranks
