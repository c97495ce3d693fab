"""Tokens beside tiktoken's teaching code and Hugging Face's, caption scores beside COCO's."""

import json
import shutil

import pytest
import torch

from minivlm.metrics.captions import bleu, cider, rouge_l, tokenize
from minivlm.tokenizer import GPT2_PATTERN, PATTERN, Tokenizer, train_bpe
from parity.peers import whole

# what breaks tokenizers: emoji, joiners, lone marks, look-alikes of special tokens, odd white space
HARD = [
    "<|endoftext|>", "<|image|>", "<|", "é", "e\u0301", "日本語", "שלום", "१२३", "½", "__x__", "'s",
    "'ll", "\u200d", "👩‍👩‍👧", "🏳️‍🌈", "\x00", "\x85", "\u2028", "\u3000", " ", "  ", "\n", "\r\n",
    "\t", "\ufffd", "\U0010ffff", "3.14", "!?", "...",
]


def words(rng, n: int) -> list[str]:
    """n words of a skewed alphabet, so that pairs repeat."""
    letters = rng.sample("etaoinshrdlubcfg", 6)
    skewed = [2.0 ** -i for i in range(6)]
    return ["".join(rng.choices(letters, skewed, k=rng.randint(1, 7))) for _ in range(n)]


def wild(rng) -> str:
    """A text of words, of what is hard, and of characters from all of Unicode but half pairs."""
    pieces = [*words(rng, 8), *rng.choices(HARD, k=6)]
    for planes in (range(0x500), range(0xd800), range(0xe000, 0x110000)):
        pieces += map(chr, rng.choices(planes, k=3))
    rng.shuffle(pieces)
    return rng.choice(("", " ")).join(pieces)


def test_a_thousand_texts_have_the_tokens_of_tiktokens_teaching_code(agreement):
    """Catches joins out of order, a special token read out of a text, bytes that get lost."""
    peer = whole("tiktoken._educational").SimpleBytePairEncoding
    seen = agreement("byte-pair tokens of unicode texts: ids, texts read back", "tiktoken",
                     "SimpleBytePairEncoding", 0)
    for i, rng in enumerate(seen.cases(1000)):
        if i % 10 == 0:
            ranks = train_bpe(words(rng, 200), 256 + rng.randint(0, 120))
            pattern = rng.choice((PATTERN, GPT2_PATTERN))
            ours = Tokenizer(ranks, pattern)
            theirs = peer(pat_str=pattern, mergeable_ranks=ranks)
        text = wild(rng)
        ids = ours.encode(text)
        seen.same(ids, theirs.encode(text, visualise=None))
        seen.same(ours.decode(ids), text)
        seen.same(theirs.decode(ids), text)


def test_gpt2s_merges_give_the_ids_of_hugging_faces_tokenizers(agreement):
    """Catches bytes numbered in plain order, a merge list read from behind, another split.

    The merges are learned by the peer: where a list comes from no text, tiktoken, which joins any
    two neighbors that make a known token, and Hugging Face, which wants the very pair, may differ.
    """
    peer = whole("tokenizers")
    letters = list(whole("transformers.convert_slow_tokenizer").bytes_to_unicode().values())
    seen = agreement("GPT-2's merge lists: ids, texts read back", "tokenizers",
                     "models.BPE, pre_tokenizers.ByteLevel", 0)
    for i, rng in enumerate(seen.cases(1000)):
        if i % 10 == 0:
            split = peer.pre_tokenizers.ByteLevel(add_prefix_space=False)
            learner = peer.Tokenizer(peer.models.BPE())
            learner.pre_tokenizer = split
            learner.train_from_iterator([" ".join(words(rng, 200))], peer.trainers.BpeTrainer(
                vocab_size=256 + rng.randint(1, 120), initial_alphabet=split.alphabet(),
                show_progress=False))
            merges = json.loads(learner.to_str())["model"]["merges"]
            vocabulary = letters + [a + b for a, b in merges]
            theirs = peer.Tokenizer(peer.models.BPE(
                vocab={t: i for i, t in enumerate(vocabulary)}, merges=[(a, b) for a, b in merges]))
            theirs.pre_tokenizer, theirs.decoder = split, peer.decoders.ByteLevel()
            lines = "\n".join(f"{a} {b}" for a, b in merges)
            ours = Tokenizer.from_text(f"#version: 0.2\n{lines}\n")
        text = wild(rng)
        ids = ours.encode(text)
        seen.same(ids, theirs.encode(text).ids)
        seen.same(ours.decode(ids), theirs.decode(ids))


def cider_of_all(made: list[str], references: list[list[str]]) -> list[float]:
    """The mean, then each caption's score."""
    total, each = cider(made, references)
    return [total, *each]


@pytest.mark.parametrize("name, quantity, score", [
    ("bleu", "BLEU-1 to BLEU-4 of sets of captions", bleu),
    ("rouge", "ROUGE-L of sets of captions", lambda *texts: [rouge_l(*texts)]),
    ("cider", "CIDEr-D of sets of captions and of each", cider_of_all),
])
def test_caption_scores_are_the_coco_evaluations(agreement, name, quantity, score):
    """Catches unclipped counts, the longer of two close references, idf from captions.

    Sentences come tokenized, so its Java tokenizer is not needed.
    """
    peer = getattr(whole(f"pycocoevalcap.{name}.{name}"), name.capitalize())
    seen = agreement(quantity, "pycocoevalcap", name.capitalize(), 1e-12)
    for rng in seen.cases():
        lexicon = words(rng, rng.randint(3, 40))
        n, texts = rng.randint(1, 20), [
            " ".join(rng.choices(lexicon, k=rng.randint(1, 15))) for _ in range(120)]
        references = [rng.sample(texts, rng.randint(1, 5)) for _ in range(n)]
        made = [rng.choice((*refs, texts[i])) for i, refs in enumerate(references)]
        total, each = peer().compute_score(
            dict(enumerate(references)), {i: [text] for i, text in enumerate(made)})
        theirs = {"bleu": total, "rouge": [total], "cider": [total, *each]}[name]
        seen.close(*(torch.tensor(x, dtype=torch.float64)
                     for x in (score(made, references), theirs)))


# words as people write them in captions, with what may follow them
WRITTEN = (
    "a two cats dog's dogs' man's boss's it's he'd we'll they're you've I'm isn't don't can't "
    "won't red-and-white T-shirt 7-up 2.5 1,000 10:30 o'clock \"stop\" 'stop' caf\u00e9 "
    "\u201cGo\u201d It\u2019s"
).split()
FOLLOWS = ("", "", "", "", ",", ";", ":", "!", "?", " -", " --", "...")


def test_captions_are_tokenized_as_the_coco_evaluation_does(agreement):
    """Catches 's or n't that stays in its word, quotes as words, hyphens and numbers that part."""
    peer = whole("pycocoevalcap.tokenizer.ptbtokenizer")
    if shutil.which("java") is None:
        pytest.skip("the tokenizer of pycocoevalcap needs java")
    seen = agreement("tokens of captions", "pycocoevalcap", "PTBTokenizer", 0)
    captions = []
    for rng in seen.cases():
        chosen = [rng.choice(WRITTEN) + rng.choice(FOLLOWS) for _ in range(rng.randint(1, 12))]
        captions.append(f"The {' '.join(chosen)} end.")
    tokens = peer.PTBTokenizer().tokenize({i: [{"caption": c}] for i, c in enumerate(captions)})
    for i, caption in enumerate(captions):
        seen.same(tokenize(caption), tokens[i][0])
