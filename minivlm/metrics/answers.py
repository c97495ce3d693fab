"""Short answers: right or not, in the wanted style or not; VQA's accuracy; calibration."""

import re
from functools import lru_cache
from unicodedata import category, normalize

from torch import Tensor

N_BINS = 10  # of probabilities from 0 to 1, for the calibration error

# --- words ---

# signs that the script of a language puts on letters: accents, vowels of India's scripts
MARKS = "".join(c for c in map(chr, range(0x300, 0x1E950)) if category(c).startswith("M"))
LETTER = rf"[^\W_][{MARKS}]*"
# a letter of a script that has no spaces between words: Thai, Lao, Myanmar, Khmer;
# Hiragana, Katakana and Bopomofo; Han
UNSPACED = (
    r"(?![\W\d_])[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u312f\u31a0-\u31ff"
    r"\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    r"\U00020000-\U000323af]"
)
CLITIC = r"'(?:s|m|d|re|ve|ll)(?![^\W_]|-)"                          # of dog's, it's, we'll
# within a word: ' and -; within a number: a point or colon, and a comma before thousands
JOIN = rf"(?!{CLITIC})['-]|(?<=\d)(?:[.:](?=\d)|,(?=\d{{3}}(?!\d)))"
RUN = rf"(?:(?!{UNSPACED}){LETTER})+"
TOKEN = re.compile(rf"{UNSPACED}[{MARKS}]*|{RUN}(?:(?:{JOIN}){RUN})*|{CLITIC}")
# finds the same words in ASCII texts, in a twelfth of the time
ASCII_TOKEN = re.compile(rf"[a-z0-9]+(?:(?:{JOIN})[a-z0-9]+)*|{CLITIC}")
# what people write for ' and -
PLAIN = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\uff07`\xb4", "'") | {
    "\u2010": "-", "\u2011": "-",
})
CONTRACTED = re.compile(rf"{LETTER}(?:['\u2019]?{LETTER})*")          # "isn't" is one
ENDS = ".!?\u3002\uff01\uff1f\u0964\u061f"  # of sentences, in Chinese, Hindi, Arabic too


def tokens_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation.

    In scripts that do not put spaces between words (Chinese, Japanese, Thai, Lao, Khmer,
    Burmese) every letter with its marks is a word, as in the captioning metrics of Chinese.
    In any other script a word consists of letters, marks and digits. It may hold
    apostrophes and hyphens, but not at its ends: quotes are no part of it. The ends 's, 'm,
    'd, 're, 've and 'll are words of their own. 2.5, 1,000 and 10:30 are one word each.

    The text is brought to Unicode's form NFC first: an accent may be written as a character
    of its own, and the text is still the same. NFKC would go further and change what is
    said (x\u00b2 to x2), and it takes letters of Thai apart.

    >>> tokens_of("The dog's T-shirt isn't 'red'.")
    ['the', 'dog', "'s", 't-shirt', "isn't", 'red']
    """
    if text.isascii():
        return ASCII_TOKEN.findall(text.lower().translate(PLAIN))
    return TOKEN.findall(normalize("NFC", text.lower()).translate(PLAIN))


@lru_cache(maxsize=10_000)  # phrases and short answers come again and again
def words_of(text: str) -> str:
    """Return the words of a text with a space around each: " the top left ".

    These are the words of `tokens_of`, but a hyphen separates words, too. If a phrase and a
    text both have this form, `phrase in text` finds whole words only: " red " is not in
    " a hundred ".

    >>> words_of("The TOP-left!")
    ' the top left '
    """
    return " " + " ".join(tokens_of(text)).replace("-", " ") + " "


# --- right or wrong ---


def answer_ok(answer: str, expect: list[str], wrong: list[str]) -> bool:
    """Whether an answer contains one of the expected phrases and none of the wrong ones.

    >>> answer_ok("The car is red.", ["red"], ["blue"])
    True
    >>> answer_ok("red or blue", ["red"], ["blue"])
    False
    """
    words = words_of(answer)
    is_wrong = any(words_of(phrase) in words for phrase in wrong)
    return not is_wrong and any(words_of(phrase) in words for phrase in expect)


def style_ok(answer: str, style: str) -> bool:
    """Whether an answer has the style that was asked for.

        word        one word
        sentence    one sentence, of at least three words, on one line
        list        every line starts with "- "
        detail      one or more sentences, of at least three words together, on one line
        ""          any answer

    Contractions like "isn't" and "it's" are one word here. In a script without spaces
    between words, letters without a space or a sign between them pass as one word, and each
    of them as a word of a sentence.

    >>> style_ok("Red", "word"), style_ok("It is red.", "word")
    (True, False)
    >>> style_ok("- red car\\n- gray cat", "list")
    True
    """
    text = answer.strip()
    n_runs = len(CONTRACTED.findall(text))
    n_words = max(n_runs, len(re.findall(UNSPACED, text)))
    if style == "word":
        return n_runs == 1
    if style == "sentence":
        # the point in 2.5 is no end; behind the full stop of Chinese there is no space
        n_ends = len(re.findall(rf"[.!?](?:\s|$)|[{ENDS[3:]}]", text))
        return n_words >= 3 and n_ends == 1 and text[-1] in ENDS and "\n" not in text
    if style == "list":
        return bool(text) and all(line.startswith("- ") for line in text.splitlines())
    if style == "detail":
        return n_words >= 3 and text[-1] in ENDS and "\n" not in text
    return True


def is_unsure(answer: str) -> bool:
    """Whether an answer says that the model does not know: it contains "not sure"."""
    return " not sure " in words_of(answer)


# --- VQA ---

# VQA's annotators left out apostrophes of these contractions
CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't "
    "hadn't've hasn't haven't he'd he'd've he's how'd how'll how's i'd've isn't it'd "
    "it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've "
    "o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've "
    "somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's "
    "something'd something'd've something'll that's there'd there'd've there're there's "
    "they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't "
    "what'll what're what's what've when's where'd where's where've who'd who'd've "
    "who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all "
    "y'all'll y'all'd've you'd you'd've you'll you're you've"
).split()

REPAIRED = {}  # contraction without one of its apostrophes -> contraction
for _form in CONTRACTIONS:
    for _match in re.finditer("'", _form):
        REPAIRED[_form[:_match.start()] + _form[_match.end():]] = _form
REPAIRED["somebody'd"] = "somebodyd"  # as in the official table

NUMBERS = "zero one two three four five six seven eight nine ten".split()
DIGITS = {word: str(i) for i, word in enumerate(NUMBERS)} | {"none": "0"}

PUNCTUATION = ";/[]\"{}()=+\\_-><@`,?!"


def normalize_answer(answer: str) -> str:
    """Bring an answer into the form that VQA compares.

    This form is in lower case; number words are digits, lost apostrophes are put back, and
    there are no articles and no signs. A sign is removed if it stands beside a space
    somewhere in the answer; every sign is removed if the answer contains a number like
    1,000; any other sign becomes a space. A full stop is removed unless a digit follows.
    As in the official code, only English signs and words are known.

    Source: Antol et al. 2015, arXiv:1505.00468, and its official code, GT-Vision-Lab/VQA,
    vqaEval.py.

    >>> normalize_answer("The two red-brick houses."), normalize_answer("dont know")
    ('2 red brick houses', "don't know")
    >>> normalize_answer("1,000.5")
    '1000.5'
    """
    text = answer
    thousands = re.search(r"\d,\d", answer) is not None
    for sign in PUNCTUATION:
        # as in the official code, one such place in the answer decides for all places
        beside_space = f"{sign} " in answer or f" {sign}" in answer
        text = text.replace(sign, "" if beside_space or thousands else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = [DIGITS.get(w, w) for w in text.lower().split()]
    return " ".join(REPAIRED.get(w, w) for w in words if w not in ("a", "an", "the"))


def vqa_accuracy(answer: str, people: list[str]) -> float:
    """How well an answer agrees with the answers of several people.

        accuracy = mean over people of min(1, others who gave the model's answer / 3)

    Each person in turn is left out. So the model's answer is compared with nine others, as
    a person's answer would be. Answers are normalized only if the people disagree. Accents
    are compared in Unicode's form NFC, see `tokens_of`; English knows no other.

    Args:
        answer: the model's answer.
        people: people's answers; VQA has ten for each question.

    Returns:
        0 .. 1. If 1, 2, 3 or 4 of ten people gave the model's answer: 0.3, 0.6, 0.9 or 1.

    Raises:
        ValueError: if there are no answers by people.

    Source: Antol et al. 2015, arXiv:1505.00468, section 3; the official code,
    GT-Vision-Lab/VQA, vqaEval.py.

    >>> people = ["2"] * 2 + ["three"] * 8
    >>> round(vqa_accuracy("two", people), 3)  # (2 * 1/3 + 8 * 2/3) / 10
    0.6
    """
    if not people:
        raise ValueError("nobody answered: there is nothing to agree with")
    texts = [normalize("NFC", text) for text in (answer, *people)]
    texts = [re.sub("[\n\t]", " ", text).strip() for text in texts]
    if len(set(texts[1:])) > 1:
        texts = [normalize_answer(text) for text in texts]
    agrees = [text == texts[0] for text in texts[1:]]
    n_agree = sum(agrees)
    # a person who agrees is not counted among the others
    return sum(min(1.0, (n_agree - own) / 3) for own in agrees) / len(people)


def calibration_error(p: Tensor, came_true: Tensor) -> float:
    """The expected calibration error: how far predictions are from what came true.

        sum over bins of p: (predictions in the bin / n) |mean p - share that came true|

    Args:
        p: (n,) predicted probabilities.
        came_true: (n,) bool, whether the predicted event came true.

    Source: Guo et al. 2017, arXiv:1706.04599, eq. 3.

    >>> from torch import tensor
    >>> round(calibration_error(tensor([0.9, 0.9]), tensor([True, False])), 4)
    0.4
    """
    bins = (p * N_BINS).long().clamp(max=N_BINS - 1)  # (n,), p = 1 belongs to the last bin
    error = 0.0
    for b in bins.unique():
        in_bin = bins == b
        gap = (p[in_bin].mean() - came_true[in_bin].float().mean()).abs()
        error += float(in_bin.sum() / len(p) * gap)
    return error
