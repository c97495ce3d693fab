"""minivlm/tokenizer.py: the trainer against slow ones, round trips, files, special tokens."""

import base64
import random
import re
from collections import Counter

import pytest
import tiktoken

from minivlm.tokenizer import (
    GPT2_PATTERN, LONGEST_SPACE, LONGEST_WORD, PATTERN, SPECIALS, Tokenizer, join_pair, train_bpe,
)

BYTES = {bytes([i]): i for i in range(256)}
# what breaks tokenizers: emoji, joiners, lone marks, look-alikes of special tokens, odd white space
PIECES = [
    *SPECIALS, "<image>", "<|", "|>", "<|end|", "a", "the ",
    "Ünïcödé", "日本語", "שלום", "१२३", "½", "__x__", "'s", "'ll",
    "\u0301", "e\u0301\u0323", "\u200d", "👩‍👩‍👧", "🏳️‍🌈", "😀", "\ufeff", "\u00ad",
    "\x00", "\x1c", "\x85", "\u2028", "\u3000",
    " ", "  ", "\n", "\r\n", "\t", "\ufffd", "\U0010ffff", "1234567", "3.14", "‿", "!?", "...",
]


def naive_bpe(text: str, vocab_size: int) -> tuple[list[bytes], int]:
    """Train BPE the slow way: all pairs of all words are counted anew for each join.

    Returns the joined tokens, and how many of them were the only pair with the highest count.
    """
    words = [[bytes([b]) for b in piece.encode()] for piece in re.findall(PATTERN, text)]
    rank = dict(BYTES)
    n_clear = None
    while len(rank) < vocab_size:
        pairs = Counter(pair for word in words for pair in zip(word, word[1:]))
        if not pairs:
            break
        top = max(pairs.values())
        tied = [pair for pair in pairs if pairs[pair] == top]
        if len(tied) > 1 and n_clear is None:
            n_clear = len(rank) - 256
        a, b = min(tied, key=lambda pair: (rank[pair[0]], rank[pair[1]]))
        rank[a + b] = len(rank)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == (a, b):
                    word[i:i + 2] = [a + b]
                i += 1
    joins = list(rank)[256:]
    return joins, len(joins) if n_clear is None else n_clear


def babble(seed: int, n_words: int) -> str:
    """Words of a skewed alphabet, so counts differ; some with repeats, digits, accents, signs."""
    rng = random.Random(seed)
    lexicon = [
        "".join(rng.choices("etaoinshrdlu", range(12, 0, -1), k=rng.randint(1, 7)))
        for _ in range(60)
    ]
    lexicon += ["aaaaa", "banana", "2024", "it's", "naïve", "x_y", "--", "日本"]
    words = rng.choices(lexicon, [1 / (i + 1) for i in range(len(lexicon))], k=n_words)
    return "".join(word + rng.choice((" ", " ", " ", "  ", "\n", ", ")) for word in words)


@pytest.mark.parametrize("seed", range(4))
def test_the_trainer_finds_the_joins_of_a_slow_one(seed):
    """Catches stale pair counts: only the words that held the joined pair are counted again."""
    text = babble(seed, 400)
    ranks = train_bpe([text], 256 + 90)
    assert list(ranks)[256:] == naive_bpe(text, 256 + 90)[0]
    assert list(ranks.values()) == list(range(len(ranks)))


def test_equal_counts_go_to_the_smaller_pair_of_ids():
    """Catches a tie rule that depends on the order of the texts.

    "ba" and "ab" occur twice each. (a, b) = (97, 98) is below (b, a) = (98, 97), so "ab" is first.
    """
    assert list(train_bpe(["ba\nba\nab\nab"], 258))[256:] == [b"ab", b"ba"]


def test_overlapping_pairs_are_joined_from_the_left():
    """Catches a join that eats one token twice.

    1 1 1 1 1 with (1, 1) -> 9: places 0-1, then 2-3; the last 1 is left over.
    """
    assert join_pair([1, 1, 1, 1, 1], (1, 1), 9) == [9, 9, 1]
    assert join_pair([2, 1, 1], (1, 1), 9) == [2, 9]
    assert join_pair([], (1, 1), 9) == [] and join_pair([1], (1, 1), 9) == [1]


def test_the_order_and_the_cut_of_the_texts_do_not_matter():
    """Catches ranks that depend on which text came first: two runs would make two tokenizers."""
    texts = [babble(seed, 50) for seed in range(6)]
    ranks = train_bpe(texts, 320)
    for seed in range(3):
        mixed = random.Random(seed).sample(texts, len(texts))
        assert train_bpe(iter(mixed), 320) == ranks
    assert list(train_bpe(texts, 320)) == list(ranks)


def test_training_stops_when_every_word_is_one_token():
    """Catches an endless loop or an invented join when there is nothing left to join."""
    assert list(train_bpe(["ab ab"], 1000))[256:] == [b"ab", b" ab"]
    assert train_bpe([], 1000) == BYTES and train_bpe(["", "a"], 1000) == BYTES


def test_a_vocabulary_below_256_is_refused():
    """Catches a tokenizer that cannot write every byte."""
    with pytest.raises(ValueError, match="vocab_size 255 is below 256"):
        train_bpe(["a"], 255)
    with pytest.raises(ValueError, match="vocab_size 262 is below 263, the bytes and special tok"):
        Tokenizer.train(["a"], 262)
    assert Tokenizer.train(["a"], 263).vocab_size == 263


@pytest.mark.parametrize("text", ["", " ", " \t\n\r\n \u3000" * 50, "ab" * 3000, "A" * 5000])
def test_a_text_without_words_or_of_one_word_makes_a_tokenizer(text):
    """Catches a crash on white space alone, and a word of any length that becomes one token."""
    tokenizer = Tokenizer.train([text], 300)
    assert max(len(token.decode("utf-8", "replace")) for token in tokenizer.tokens) <= LONGEST_WORD
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("pattern", [PATTERN, GPT2_PATTERN])
def test_white_space_of_any_length_is_encoded(pattern):
    """Catches tiktoken's stack overflow, which no `except Exception` catches: it needs a million
    characters of white space in a row. In a shorter run nothing changes.
    """
    tokenizer = Tokenizer(BYTES | {b"  ": 256, b" a": 257, b"    ": 258}, pattern)
    for run in (" " * 1_000_001, " \n" * 600_000, "\u3000\t" * 500_001):
        for text in (run, f"a{run}a"):
            assert tokenizer.decode(tokenizer.encode(text)) == text
    for n in (LONGEST_SPACE - 1, LONGEST_SPACE, LONGEST_SPACE + 1):
        text = "a" + " " * n + "a"
        assert tokenizer.encode(text) == tokenizer.encoding.encode_ordinary(text)
    assert tokenizer.encode(" " * 1_000_001 + "a")[-1] == 257


def test_tiktokens_own_teaching_trainer_agrees():
    """Catches a shared misunderstanding: the peer was written by others, for training and encoding.

    The peer breaks ties by first occurrence, so the joins are compared up to the first tie.
    """
    peer = pytest.importorskip("tiktoken._educational")
    rng = random.Random(11)
    skewed = [2.0 ** -(i / 2) for i in range(12)]
    text = " ".join(
        "".join(rng.choices("etaoinshrdlu", skewed, k=rng.randint(1, 9))) for _ in range(4000)
    )
    _, n_clear = naive_bpe(text, 256 + 40)
    assert n_clear >= 15
    ranks = train_bpe([text], 256 + n_clear)
    theirs = peer.bpe_train(text, 256 + n_clear, PATTERN, visualise=None)
    assert ranks == theirs

    ours, plain = (
        Tokenizer(ranks), peer.SimpleBytePairEncoding(pat_str=PATTERN, mergeable_ranks=ranks)
    )
    for seed in range(20, 40):
        text = babble(seed, 30)
        assert ours.encode(text) == plain.encode(text, visualise=None)


def test_joins_run_in_the_order_they_were_learned():
    """Catches ranks handed to tiktoken in another order.

    With a+b (256) before b+c (257), "abc" is ab, c; with b+c first it is a, bc.
    """
    first = Tokenizer(BYTES | {b"ab": 256, b"bc": 257})
    other = Tokenizer(BYTES | {b"bc": 256, b"ab": 257})
    assert first.encode("abc") == [256, 99] and other.encode("abc") == [97, 256]


@pytest.mark.parametrize("pattern", [PATTERN, GPT2_PATTERN])
def test_a_thousand_random_texts_come_back_unchanged(pattern):
    """Catches a split pattern that drops a character, and byte joins that cut one."""
    tokenizer = Tokenizer(train_bpe([babble(0, 300), " ".join(PIECES) * 3], 400), pattern)
    rng = random.Random(5)
    for _ in range(1000):
        parts = rng.choices(PIECES, k=rng.randint(0, 8))
        parts += [
            chr(c) for c in (rng.randrange(0x110000) for _ in range(4)) if not 0xD800 <= c < 0xE000
        ]
        rng.shuffle(parts)
        text = "".join(parts)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text, ascii(text)
        assert all(i < len(tokenizer.ranks) for i in ids), ascii(text)


def test_text_that_looks_like_a_special_token_is_ordinary_text():
    """Catches contract 7 broken: a user who writes <|end|> must not end the answer."""
    tokenizer = Tokenizer.train([" ".join(SPECIALS) * 50], 512)
    for text in (
        *SPECIALS, "".join(SPECIALS), "a<|end|>b", "<|pad|><|pad|>", "<|image|> what is it?",
    ):
        ids = tokenizer.encode(text)
        assert max(ids) < len(tokenizer.ranks) and tokenizer.decode(ids) == text


def test_special_ids_stand_behind_all_ranks():
    """Catches a special token that shares its id with a piece of text."""
    tokenizer = Tokenizer(dict(BYTES))
    ids = [tokenizer.special[name] for name in SPECIALS]
    assert ids == list(range(256, 263)) and tokenizer.vocab_size == 263
    used = [tokenizer.endoftext, tokenizer.pad, tokenizer.image, tokenizer.end]
    assert used == [*ids[:3], ids[6]]
    assert [tokenizer.decode([i]) for i in ids] == list(SPECIALS)
    assert Tokenizer.train([babble(0, 200)], 300).vocab_size == 300


def test_broken_utf8_is_shown_and_not_an_error():
    """Catches a crash in the middle of a generated emoji: its first byte alone is no character."""
    assert Tokenizer(dict(BYTES)).decode(["é".encode()[0], ord("!")]) == "\ufffd!"


def test_a_saved_tokenizer_is_the_same_one(tmp_path):
    """Catches a file that loses the pattern or the order of the ranks."""
    for pattern in (PATTERN, GPT2_PATTERN):
        tokenizer = Tokenizer(train_bpe([babble(3, 300)], 330), pattern)
        tokenizer.save(tmp_path / "t.tiktoken")
        again = Tokenizer.load(tmp_path / "t.tiktoken")
        assert again.identity == tokenizer.identity and again.to_text() == tokenizer.to_text()
        assert again.pattern == pattern and again.ranks == tokenizer.ranks
        assert again.encode(babble(4, 50)) == tokenizer.encode(babble(4, 50))


def test_the_identity_tells_tokenizers_apart():
    """Catches a fingerprint blind to the pattern or to the order of two joins."""
    made = [
        Tokenizer(dict(BYTES)), Tokenizer(dict(BYTES), GPT2_PATTERN),
        Tokenizer(BYTES | {b"ab": 256, b"bc": 257}), Tokenizer(BYTES | {b"bc": 256, b"ab": 257}),
    ]
    assert len({tokenizer.identity for tokenizer in made}) == 4
    backwards = dict(reversed((BYTES | {b"ab": 256, b"bc": 257}).items()))
    assert Tokenizer(backwards).identity == made[2].identity


def test_tiktokens_rank_files_are_read_with_gpt2s_split():
    """Catches a rank file without a pattern line read with our own split."""
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in BYTES.items()]
    tokenizer = Tokenizer.from_text("\n".join(lines) + "\n\n")
    assert tokenizer.pattern == GPT2_PATTERN and tokenizer.ranks == BYTES


def gpt2_alphabet() -> list[str]:
    """GPT-2's letters in the order of its vocabulary: printable Latin-1 first, then U+0100 on."""
    printable = [chr(c) for c in range(256) if 33 <= c <= 126 or 161 <= c <= 172 or 174 <= c <= 255]
    return printable + [chr(256 + i) for i in range(256 - len(printable))]


def test_gpt2s_list_of_merges_gives_gpt2s_ids():
    """Catches bytes in plain order: GPT-2 numbers "!" 0, "a" 64 and the space 220.

    33 .. 126 are the ids 0 .. 93, so "a" (97) is 64. 161 .. 172 and 174 .. 255 follow: ids
    94 .. 187. Then come the other 68 bytes in order, 0 .. 32 as ids 188 .. 220 (U+0100 .. U+0120,
    the space is "Ġ").
    """
    tokenizer = Tokenizer.from_text("#version: 0.2\nĠ t\nh e\nĠt he\n")
    assert (
        tokenizer.encode("!") == [0] and tokenizer.encode("a") == [64]
        and tokenizer.encode(" ") == [220]
    )
    assert tokenizer.encode("\x00") == [188] and tokenizer.encode("\xad") == [
        tokenizer.ranks[b"\xc2"], tokenizer.ranks[b"\xad"]] and tokenizer.ranks[b"\xad"] == 255
    assert tokenizer.encode(" t") == [256] and tokenizer.encode("he") == [257]
    assert tokenizer.encode(" the") == [258]
    assert tokenizer.pattern == GPT2_PATTERN and tokenizer.endoftext == 259
    by_rank = [token for token, _ in sorted(tokenizer.ranks.items(), key=lambda kv: kv[1])]
    assert (
        by_rank[:94] == [bytes([b]) for b in range(33, 127)]
        and by_rank[256:] == [b" t", b"he", b" the"]
    )
    assert len(gpt2_alphabet()) == 256


def test_every_letter_of_gpt2s_alphabet_is_known():
    """Catches a merge list cut in two at a letter that Python takes for a line end."""
    letters = gpt2_alphabet()
    merges = [f"{a} {b}" for a, b in zip(letters, letters[1:])]
    ranks = Tokenizer.from_text("\n".join(["#version: 0.2", *merges])).ranks
    assert len(ranks) == 256 + 255 and ranks[b"!\""] == 256 and ranks[b"\xff\x00"] == 256 + 187


def test_the_two_patterns_split_english_alike():
    """Catches a rewritten pattern that is not GPT-2's on ordinary text."""
    def pieces(pattern: str, text: str) -> list[bytes]:
        merges = {piece.encode(): 0 for piece in re.findall(PATTERN, text)}
        ranks = BYTES | {t: 256 + i for i, t in enumerate(t for t in merges if len(t) > 1)}
        encoding = tiktoken.Encoding("t", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        return [encoding.decode_single_token_bytes(i) for i in encoding.encode_ordinary(text)]

    text = "It's 2 o'clock,  they'll say: \"x_1 = 3.5!\"\n\n  We're off... "
    assert pieces(PATTERN, text) == pieces(GPT2_PATTERN, text) != [text.encode()]


@pytest.mark.parametrize("ranks, message", [
    ({bytes([i]): i for i in range(255)}, "255 ranks miss 1 bytes"),
    (BYTES | {b"ab": 257}, "257 ranks miss 0 bytes or are not 0 .. 256"),
    (BYTES | {b"ab": 255}, "not 0 .. 256"),
])
def test_ranks_with_a_gap_are_refused(ranks, message):
    """Catches a damaged rank file before its ids meet an embedding."""
    with pytest.raises(ValueError, match=message):
        Tokenizer(ranks)


def test_a_missing_file_says_what_to_do(tmp_path):
    """Catches a silent download or a bare errno."""
    with pytest.raises(
        FileNotFoundError, match=r"no tokenizer at .*t\.tiktoken; a prepare\.py writes"
    ):
        Tokenizer.load(tmp_path / "t.tiktoken")
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("text", [
    "hello world again\n", "!!! 0\n", "YQ==\n", "YQ== x\n", '{"a": 1}\n',
])
def test_a_file_of_another_kind_is_refused_by_name(text, tmp_path):
    """Catches a stack trace for the wrong file: the message names it and the expected lines."""
    (tmp_path / "wrong.txt").write_text(text)
    with pytest.raises(
        ValueError, match=r"wrong\.txt is no tokenizer file \(expected lines 'base64 rank', or "
    ):
        Tokenizer.load(tmp_path / "wrong.txt")


def test_a_merge_list_with_a_foreign_letter_is_refused():
    """Catches a KeyError where from_text promises a ValueError."""
    with pytest.raises(ValueError):
        Tokenizer.from_text("#version: 0.2\n漢 a\n")
