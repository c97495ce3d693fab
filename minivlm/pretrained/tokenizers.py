"""Published tokenizers: byte-level BPE, read as ours; Llama 2's, read as SentencePiece; and
CLIP's, a class of its own.

The tokenizers of GPT-2, SmolLM2, Qwen and Llama 3 are byte-level BPE like ours. The files
are tokenizer.json, or vocab.json and merges.txt. CLIP's tokenizer marks the last letter of
each word, so no token holds a space:

    "A  Cat!" -> a</w> cat</w> !</w>, between <|startoftext|> and <|endoftext|>

It first brings a text to Unicode's NFC, to single spaces and to lower case, as transformers
does (openai/CLIP also repairs broken text with ftfy). The name of a special token inside a
text is ordinary text.

Source: Radford et al. 2019 (GPT-2); Radford et al. 2021, arXiv:2103.00020, section 2.4;
openai/CLIP, clip/simple_tokenizer.py.
"""

import unicodedata
from pathlib import Path

import regex  # tiktoken needs it too
import torch
from torch import Tensor

from minivlm.running.files import brief, check_entries, naming, read_json, read_text
from minivlm.sentencepiece import TO_PIECES, SentencePiece
from minivlm.tokenizer import (
    DIGITS_PATTERN, GPT2_PATTERN, HF_PATTERN, PATTERN, PATTERNS, SPECIALS, Tokenizer,
    byte_letters, image_name, join_pair,
)

# the words of a text: contractions, letters, single digits, other characters
CLIP_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\p{White_Space}\p{L}\p{N}]+"

# a space before every text; in our rows the pieces of the chat template bring it
LLAMA2_NORMALIZER = {
    "type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, TO_PIECES],
}

# --- byte-level BPE ---


def read_tokenizer(folder: Path) -> tuple[Tokenizer, int]:
    """Read a byte-level BPE (GPT-2's, SmolLM2's, Qwen's, Llama 3's, ours) or Llama 2's.

    The special tokens tell which chat template it is: <|im_start|> is ChatML's, and
    <|start_header_id|> is Llama 3's. Without them it is ours; with Llama 2's tokenizer it
    is Vicuna's. If the folder lacks tokens that the template needs, they get the ids behind
    all others. <|image|> is one of them.

    Returns:
        the tokenizer, and the number of ids that the folder itself has.

    Raises:
        FileNotFoundError: if the folder has no tokenizer.
        ValueError: if merges do not come in the order of their ids, if a token is made by
            no merge, or if text is split or normalized by another rule.
    """
    vocab, merges, file = read_merges(folder)
    added = {token["content"] for token in file.get("added_tokens") or []}
    model = file.get("model") or {}
    if model.get("byte_fallback"):
        return read_sentencepiece(vocab, added, file, folder)
    byte_of = {letter: b for b, letter in byte_letters().items()}
    made = [merge.replace(" ", "") for merge in merges]
    special = {name: i for name, i in vocab.items() if name in added}
    if not file:  # vocab.json and merges.txt: what no merge makes is special
        special = {name: vocab[name] for name in vocab.keys() - {*byte_of, *made}}
    ranks = {}
    try:
        ids = [vocab[piece] for piece in (*byte_of, *made)]
        for piece in vocab.keys() - special.keys():
            ranks[bytes(byte_of[letter] for letter in piece)] = vocab[piece]
    except KeyError as missing:
        message = f"{folder}: {missing} is no letter of a byte, or has no id"
        raise ValueError(message) from None
    # our Tokenizer joins in the order of ids, which must be the order of merges
    merged = ids[len(byte_of):]
    if merged != sorted(merged):
        raise ValueError(f"{folder}: the merges do not come in the order of their ids")
    unmade = vocab.keys() - special.keys() - {*byte_of, *made}
    if unmade and not model.get("ignore_merges"):
        raise ValueError(f"{folder}: no merge makes {sorted(unmade)[:3]}")

    normalizer = file.get("normalizer")
    if normalizer not in (None, {"type": "NFC"}):
        raise ValueError(f"{folder}: normalizer is {brief(normalizer)}, minivlm has NFC only")
    n_known = max(vocab.values()) + 1
    template = template_of(special)
    needed = SPECIALS if template == "minivlm" else (image_name(special),)
    for name in needed:
        if name not in special:
            special[name] = max([n_known - 1, *special.values()]) + 1
    pattern = read_pattern(file, folder)
    with naming(folder):
        tokenizer = Tokenizer(ranks, pattern, special, template, normalizer is not None)
    return tokenizer, n_known


def read_sentencepiece(
    vocab: dict[str, int], added: set[str], file: dict, folder: Path
) -> tuple[Tokenizer, int]:
    """Read a BPE with byte fallback: Llama 2's, Vicuna's, LLaVA-1.5's.

    Returns and raises as `read_tokenizer`.
    """
    if file.get("normalizer") != LLAMA2_NORMALIZER:
        raise ValueError(
            f"{folder}: normalizer is {brief(file.get('normalizer'))}, expected Llama 2's"
        )
    n_known = max(vocab.values()) + 1
    special = {name: i for name, i in vocab.items() if name in added}
    special.setdefault(image_name(special), n_known)
    with naming(folder):
        return SentencePiece(file["model"], special), n_known


def template_of(special: dict[str, int]) -> str:
    """The name of the chat template whose special tokens a tokenizer has; else ours."""
    for name, token in (("chatml", "<|im_start|>"), ("llama3", "<|start_header_id|>")):
        if token in special:
            return name
    return "minivlm"


def read_pattern(file: dict, folder: Path) -> str:
    """Find out by which of PATTERNS a tokenizer.json splits text.

    Raises:
        ValueError: if it is none of them.
    """
    split = file.get("pre_tokenizer")
    if not file:  # nothing tells how text is split: the files are GPT-2's
        return GPT2_PATTERN
    for pattern in PATTERNS:
        if same_split(split, pre_tokenizer(pattern)):
            return pattern
    raise ValueError(f"{folder}: text is split by a rule that minivlm does not have")


def same_split(one: object, other: object) -> bool:
    """Whether two entries of tokenizer.json split text alike."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return False
    a, b = one.get("pretokenizers"), other.get("pretokenizers")
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_split, a, b))
    # older files leave use_regex out; trim_offsets does not change the ids
    usual = {"use_regex": True} if one.get("type") == "ByteLevel" else {}
    return usual | one | {"trim_offsets": True} == other | {"trim_offsets": True}


def pre_tokenizer(pattern: str) -> dict:
    """The entry of tokenizer.json that tells how text is split."""
    by_itself = pattern in (GPT2_PATTERN, DIGITS_PATTERN)
    to_letters = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
        "use_regex": by_itself,  # it means GPT-2's pattern; any other is written out
    }
    if pattern == GPT2_PATTERN:
        return to_letters
    if pattern == DIGITS_PATTERN:
        split = {"type": "Digits", "individual_digits": True}
    else:
        regex = HF_PATTERN if pattern == PATTERN else pattern
        split = {
            "type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated",
            "invert": False,
        }
    return {"type": "Sequence", "pretokenizers": [split, to_letters]}


def read_merges(folder: Path) -> tuple[dict[str, int], list[str], dict]:
    """Read the vocabulary and the merges of a byte-level BPE.

    Returns:
        piece or added token -> id; the merges, each as two pieces with a space between; and
        the whole tokenizer.json, or {} if the folder has vocab.json and merges.txt instead.

    Raises:
        FileNotFoundError: if the folder has neither.
        ValueError: if a file does not hold what it should.
    """
    file = {}
    # tokenizer.json first: it alone tells how text is split
    if (folder / "tokenizer.json").is_file():
        file = read_json(folder / "tokenizer.json")
        model = file.get("model")
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
            model = {}
        vocab = model.get("vocab")
        merges = model.get("merges")
        if isinstance(merges, list):  # newer files write each merge as a list of two
            merges = [" ".join(map(str, m)) if isinstance(m, list) else m for m in merges]
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocab = read_json(folder / "vocab.json")
        lines = read_text(folder / "merges.txt").splitlines()
        merges = [line for line in lines if line and not line.startswith("#version")]
    else:
        raise FileNotFoundError(
            f"neither tokenizer.json nor vocab.json with merges.txt in {folder}"
        )
    added = file.get("added_tokens") or []
    check_entries(added, f"{folder}, added_tokens", id=int, content=str)
    is_vocab = isinstance(vocab, dict) and all(type(i) is int for i in vocab.values())
    is_merges = isinstance(merges, list) and all(
        isinstance(merge, str) and merge.count(" ") == 1 for merge in merges
    )
    if not is_vocab or not is_merges:
        raise ValueError(f"{folder} holds no vocabulary with its merges")
    return vocab | {token["content"]: token["id"] for token in added}, merges, file


# --- CLIP's ---


class ClipTokenizer:
    """Byte-level BPE with marked word ends.

    Args:
        vocab: piece -> id.
        merges: in order, each two pieces with a space between.

    Raises:
        ValueError: if a piece that `encode` may produce has no id.
    """

    def __init__(self, vocab: dict[str, int], merges: list[str]):
        self.vocab = vocab
        self.pieces = {i: piece for piece, i in vocab.items()}
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        self.letters = byte_letters()
        needed = []
        for letter in self.letters.values():
            needed += [letter, letter + "</w>"]
        needed += ["".join(pair) for pair in self.ranks]
        needed += ["<|startoftext|>", "<|endoftext|>"]
        missing = [piece for piece in needed if piece not in vocab]
        if missing:
            raise ValueError(f"{len(missing)} pieces have no id, among them {missing[:3]}")
        self.startoftext = vocab["<|startoftext|>"]
        self.endoftext = vocab["<|endoftext|>"]

    @classmethod
    def read(cls, folder: str | Path) -> "ClipTokenizer":
        """The tokenizer of a published folder.

        Raises:
            FileNotFoundError, ValueError: as `read_merges`.
        """
        vocab, merges, _ = read_merges(Path(folder))
        with naming(Path(folder)):
            return cls(vocab, merges)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without the special tokens around it.

        Within each word, the two neighbors with the earliest merge are joined, wherever
        they occur in the word, until no neighbors have a merge.
        """
        text = unicodedata.normalize("NFC", text)
        text = " ".join(regex.findall(r"\P{White_Space}+", text)).lower()
        never = len(self.ranks)  # a rank behind all others

        def rank(pair: tuple[str, str]) -> int:
            return self.ranks.get(pair, never)

        ids = []
        for word in regex.findall(CLIP_PATTERN, text):
            # "replace": half of a surrogate pair cannot be encoded, and must stop nothing
            pieces = [self.letters[b] for b in word.encode("utf-8", "replace")]
            pieces[-1] += "</w>"
            while len(pieces) > 1:
                pair = min(zip(pieces, pieces[1:]), key=rank)
                if pair not in self.ranks:
                    break
                pieces = join_pair(pieces, pair, "".join(pair))
            ids += [self.vocab[piece] for piece in pieces]
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of ids, in lower case; special tokens appear by name."""
        byte_of = {letter: b for b, letter in self.letters.items()}
        content = bytearray()
        for letter in "".join(self.pieces[i] for i in ids).replace("</w>", " "):
            # a space stands for no byte, nor do some letters of a foreign vocabulary
            content += bytes([byte_of[letter]]) if letter in byte_of else letter.encode()
        return content.decode("utf-8", "replace").strip()

    def rows(
        self, texts: list[str], block_size: int = 77, cut: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Encode texts with their special tokens, as CLIP's text tower reads them.

        Args:
            block_size: the tower's context.
            cut: shorten a text that is longer than the context; its end token stays.

        Returns:
            (B, T) ids, padded with <|endoftext|>, and (B,) lengths.

        Raises:
            ValueError: if there is no text, or if a text is longer than the context and
                `cut` is False.
        """
        if not texts:
            raise ValueError("no texts")
        most = block_size - 2 if cut else None  # two places are the special tokens'
        rows = []
        for text in texts:
            rows.append([self.startoftext, *self.encode(text)[:most], self.endoftext])
        lengths = torch.tensor([len(row) for row in rows])
        T = int(lengths.max())
        if T > block_size:
            text = texts[int(lengths.argmax())]
            raise ValueError(
                f"{text[:40]!r} has {T} tokens, the text tower holds {block_size}"
            )
        idx = torch.full((len(rows), T), self.endoftext)             # (B, T)
        for i, row in enumerate(rows):
            idx[i, : len(row)] = torch.tensor(row)
        return idx, lengths
