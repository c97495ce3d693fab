"""minivlm/metrics/captions.py and answers.py: scores of texts against numbers worked by hand."""

import math
import random
import unicodedata

import pytest

from minivlm.metrics import normalize_answer, tokenize, vqa_accuracy
from minivlm.metrics.answers import ASCII_TOKEN, PLAIN, TOKEN
from minivlm.metrics.captions import bleu, cider, rouge_l

# --- captions ---


def sentences(n: int, seed: int, longest: int = 9) -> tuple[list[str], list[list[str]]]:
    """n captions with one to four references each, over ten words, so that n-grams repeat."""
    rng = random.Random(seed)

    def one() -> str:
        return " ".join(rng.choices(
            "a red blue circle ring at the top left and".split(), k=rng.randint(1, longest)
        ))

    references = [[one() for _ in range(rng.randint(1, 4))] for _ in range(n)]
    made = [one() if rng.random() < 0.5 else rng.choice(refs) for refs in references]
    return made, references


def test_bleu_is_the_number_worked_by_hand():
    """Catches unclipped counts, a mean over captions, the longer of two equally close references.

    "the the the cat" has 4 words: "the" counts twice, as in "the cat the", and "cat" once:
    p_1 = 3/4. Of its bigrams the-the, the-the, the-cat only the last one stands in the reference:
    p_2 = 1/3. "a dog" against "a dog" and "a dog ran off": p_1 = 2/2, p_2 = 1/1. Together
    p_1 = 5/6, p_2 = 2/4; lengths 6 and 3 + 2, so no brevity penalty. BLEU-2 = sqrt(5/6 * 1/2).
    """
    made = ["the the the cat", "a dog"]
    references = [["the cat the"], ["a dog ran off", "a dog"]]
    assert bleu(made, references, 2) == pytest.approx([5 / 6, math.sqrt(5 / 12)])
    # half as long as its reference: exp(1 - 4 / 2)
    assert bleu(["a b"], [["a b c d"]], 1) == pytest.approx([math.exp(-1)])
    assert bleu(["a b c"], [["a b c d", "a b"]], 1) == pytest.approx([1])  # the shorter is as close


def test_rouge_l_is_the_number_worked_by_hand():
    """Catches a substring for a subsequence, and p and r mixed up.

    "red ring on top" and "red circle on the top": red, on, top are common in order. p = 3/4,
    r = 3/5, F = 2.44 * p * r / (r + 1.44 p).
    """
    wanted = 2.44 * 0.75 * 0.6 / (0.6 + 1.44 * 0.75)
    assert rouge_l(["red ring on top"], [["red circle on the top"]]) == pytest.approx(wanted)
    assert rouge_l(["a b"], [["c d"]]) == 0


def test_cider_is_the_number_worked_by_hand():
    """Catches idf from captions instead of pictures, and a length penalty on words.

    Two pictures; "x" stands in both, so its idf is 0; "a", "b" and "c" have idf ln 2. The caption
    "x a b" against "x a c": unigrams a b and a c, cosine 1/2; bigrams xa ab and xa ac, 1/2;
    trigrams differ, no four-grams: 10 * (1/2 + 1/2) / 4 = 2.5, equal lengths. The other caption is
    its reference with a word cut off: unigrams d e f and d e, sqrt(2/3); bigrams xd de ef and
    xd de, sqrt(2/3); trigrams xde def and xde, sqrt(1/2); all times exp(-1/72).
    """
    score, each = cider(["x a b", "x d e"], [["x a c"], ["x d e f"]])
    other = 10 / 4 * (2 * math.sqrt(2 / 3) + math.sqrt(1 / 2)) * math.exp(-1 / 72)
    assert each == pytest.approx([2.5, other]) and score == pytest.approx((2.5 + other) / 2)


def test_cider_ranks_a_right_caption_above_a_common_one():
    """Catches an idf turned round: words in every picture's captions must count for nothing."""
    references = [["there is a red ring", "a red ring"], ["there is a blue cross", "a blue cross"]]
    assert cider(["a red ring", "a blue cross"], references)[0] > 5
    assert cider(["there is a", "there is a"], references)[0] == 0
    assert cider(["a", "b"], [["c"], ["d"]])[0] == 0


def test_caption_scores_do_not_depend_on_the_order_of_pictures_or_references():
    """Catches a score that looks at a picture's neighbors."""
    made, references = sentences(30, 0)
    order = random.Random(1).sample(range(30), 30)
    turned = [made[i] for i in order], [references[i][::-1] for i in order]
    assert bleu(*turned) == pytest.approx(bleu(made, references))
    assert rouge_l(*turned) == pytest.approx(rouge_l(made, references))
    assert cider(*turned)[0] == pytest.approx(cider(made, references)[0])


@pytest.mark.parametrize("caption, tokens", [
    ("The dog's ball.", "the dog 's ball"), ("The dogs\u2019 ball!", "the dogs ball"),
    ("It's a T-shirt, isn't it?", "it 's a t-shirt is n't it"),
    ("He said: \"I don\u2019t\"; 'we can't'...", "he said i do n't we ca n't"),
    ("2.5 of 1,000 at 10:30", "2.5 of 1,000 at 10:30"), ("two o'clock", "two o'clock"),
    ("the dog 's ball is n't red", "the dog 's ball is n't red"), ("", ""),
])
def test_captions_are_tokenized_as_the_penn_treebank_is(caption, tokens):
    """Catches 's that stays in a word, an apostrophe as a word, hyphens and numbers that part."""
    assert tokenize(caption) == tokens


@pytest.mark.parametrize("captions", [
    ["一只红色的狗\u3002", "两个蓝色球在桌上\u3002"],
    ["赤い犬がいます", "青い球が二つ"],
    ["หมาสีแดง", "ลูกบอลสีฟ้า"],
    ["un cafe\u0301 tout noir ici", "deux bo\u0302les bleus sur la table"],
])
def test_a_caption_that_is_its_reference_scores_the_most_in_any_script(captions):
    """Catches a sentence without spaces as one word: it has no four-grams, and partly right is 0.

    The reference ends without a stop, and its accents are composed.
    """
    references = [[tokenize(unicodedata.normalize("NFC", c).rstrip(".\u3002"))] for c in captions]
    made = [tokenize(caption) for caption in captions]
    assert bleu(made, references) == pytest.approx([1] * 4)
    assert rouge_l(made, references) == pytest.approx(1)
    assert cider(made, references)[1] == pytest.approx([10, 10])
    cut = [text.rsplit(" ", 1)[0] for text in made]
    assert 0.5 < bleu(cut, references)[3] < 1 and 5 < cider(cut, references)[0] < 10


@pytest.mark.parametrize("score", [bleu, rouge_l, cider])
def test_captions_without_references_are_refused(score):
    """Catches lists that do not fit each other."""
    with pytest.raises(ValueError, match="2 captions and 1 lists"):
        score(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="0 captions"):
        score([], [])
    with pytest.raises(ValueError, match="picture 1 has no reference"):
        score(["a", "b"], [["a"], []])


# --- answers ---


@pytest.mark.parametrize("said, want", [
    ("Yes!", "yes"), ("the Red  car", "red car"), ("two", "2"), ("none", "0"),
    ("ten apples", "10 apples"), ("isnt", "isn't"), ("couldnt've", "couldn't've"),
    ("couldn'tve", "couldn't've"), ("yalld've", "yalld've"),
    ("1,000", "1000"), ("3.5", "3.5"), ("3.5.", "3.5"), ("e.g. this", "eg this"),
    ("red/blue", "red blue"), ("red / blue", "red blue"), ("red, blue", "red blue"),
    ("well-known", "well known"), ("an", ""), ("red-blue, 1,000", "redblue 1000"),
    ("shes", "shes"), ("eleven", "eleven"), ("somebody'd", "somebodyd"),
    ("x-ray red- brick", "xray red brick"), ("x-ray red -brick", "xray red brick"),
    ("a dog", "dog"),
])
def test_an_answer_is_normalized_as_vqa_does_it(said, want):
    """Catches: articles inside words, digits cut at a point, a sign wrongly glued or split."""
    assert normalize_answer(said) == want


@pytest.mark.parametrize("n, want", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_is_the_number_worked_by_hand(n, want):
    """Catches min(n / 3, 1) without leaving one out.

    n of ten people agree: each of them sees n - 1 others, the rest see n:
    (n min(1, (n-1)/3) + (10-n) min(1, n/3)) / 10. n = 3: (3 * 2/3 + 7) / 10 = 0.9.
    """
    assert vqa_accuracy("red", ["red"] * n + ["blue"] * (10 - n)) == pytest.approx(want)


def test_vqa_answers_are_normalized_only_where_people_differ():
    """Catches a normalization that the official code leaves out when all people say the same."""
    assert vqa_accuracy("Two", ["two"] * 10) == 0 and vqa_accuracy("two", ["two"] * 10) == 1
    assert vqa_accuracy("Two", ["two"] * 9 + ["2"]) == 1
    with pytest.raises(ValueError, match="^nobody answered: there is nothing to agree with$"):
        vqa_accuracy("red", [])


def test_vqa_answers_may_hold_line_breaks_and_tabs():
    """Catches white space that makes equal answers different; the official code makes it spaces."""
    assert vqa_accuracy("red\nring\t", ["red ring"] * 10) == 1
    assert vqa_accuracy("red ring", ["red\tring"] * 10) == 1


def test_vqa_answers_may_be_in_any_script():
    """Catches a reference in Chinese that is not right itself, and accents written in two ways."""
    assert vqa_accuracy("红色", ["红色"] * 10) == 1
    assert vqa_accuracy("红色", ["红色"] * 4 + ["蓝色"] * 6) == 1
    assert vqa_accuracy("cafe\u0301", ["caf\u00e9"] * 9 + ["bar"]) == 1


def test_the_pattern_for_ascii_finds_the_same_words():
    """Catches a join, a clitic or an underscore that the shorter pattern reads otherwise."""
    rng = random.Random(0)
    letters = "ab1s,.:'-_` dlvemr\n" + "".join(map(chr, range(32, 127)))
    for _ in range(20_000):
        text = "".join(rng.choices(letters, k=rng.randint(0, 12))).lower().translate(PLAIN)
        assert ASCII_TOKEN.findall(text) == TOKEN.findall(text), text
