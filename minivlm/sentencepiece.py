"""BPE as SentencePiece does it, for Llama 2 and Vicuna: applied by the tokenizers package.

    "A cat." -> A ▁cat .        a space belongs to the word behind it, and is written ▁
    a letter that has no id     becomes the bytes of its UTF-8, <0xE4> <0xBD> <0xA0>

No space is put before a text: the pieces of a chat template bring their own.

Source: Kudo and Richardson 2018, arXiv:1808.06226; byte fallback: Llama, arXiv:2302.13971,
section 2.1.
"""

import json
from functools import cached_property

from minivlm.running.files import parse_json
from minivlm.tokenizer import MAGIC, Tokenizer, check_ids

# the words of huggingface/tokenizers for what is written between text and pieces
TO_PIECES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
TO_TEXT = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"}, {"type": "Fuse"},
]


class SentencePiece(Tokenizer):
    """A tokenizer with byte fallback, used like any other Tokenizer.

    Args:
        model: the entry "model" of a tokenizer.json, a BPE with byte fallback.
        special: name -> id of each special token.
        template: a name of TEMPLATES.

    Raises:
        ValueError: if the tokenizers package is not installed, if it cannot read the model,
            or as `Tokenizer.take_special`.
    """

    def __init__(self, model: dict, special: dict[str, int], template: str = "vicuna"):
        try:
            import tokenizers
        except ImportError:
            raise ValueError("this needs another package: pip install tokenizers") from None
        vocab = model.get("vocab")
        if not isinstance(vocab, dict) or not model.get("byte_fallback"):
            raise ValueError("no BPE with byte fallback")
        words = {piece: i for piece, i in vocab.items() if piece not in special}
        check_ids(words, special)
        file = {
            # no added tokens: a special token's name in a text is text
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
            "normalizer": TO_PIECES, "pre_tokenizer": None, "post_processor": None,
            "decoder": {"type": "Sequence", "decoders": TO_TEXT}, "model": model,
        }
        try:
            self.backend = tokenizers.Tokenizer.from_str(json.dumps(file))
        except Exception as error:  # the package raises nothing more exact
            raise ValueError(f"no BPE that tokenizers can read ({error})") from None
        self.model = model
        self.ranks = {piece.encode(): i for piece, i in words.items()}
        self.pattern = ""
        self.nfc = False
        self.take_special(special, template)
        self.name_of = {i: name for name, i in special.items()}

    def encode(self, text: str) -> list[int]:
        """Turn a text into ids; a special token's name in it is ordinary text."""
        text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Turn ids into text: special tokens by their names, broken UTF-8 as U+FFFD."""
        text, run = "", []
        for i in [*ids, None]:
            if i is not None and i in self.known and i not in self.name_of:
                run.append(i)
                continue
            if run:
                text += self.backend.decode(run, skip_special_tokens=False)
                run = []
            text += self.name_of.get(i, "")
        return text

    @cached_property
    def identity(self) -> str:
        """A fingerprint, equal for tokenizers that give equal ids."""
        return self.digest(self.to_text().encode())

    def to_text(self) -> str:
        """Write the tokenizer as text: one line of JSON behind a mark."""
        own = {"template": self.template_name, "special": self.special, "model": self.model}
        return MAGIC + json.dumps(own, sort_keys=True) + "\n"

    @classmethod
    def from_text(cls, text: str, name: str = "tokenizer") -> "SentencePiece":
        """Read what `to_text` wrote.

        Raises:
            ValueError: if it is something else, or as `SentencePiece`.
        """
        own = parse_json(text.removeprefix(MAGIC), name)
        try:
            return cls(dict(own["model"]), dict(own["special"]), own["template"])
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{name} is no tokenizer file: {error}") from None
