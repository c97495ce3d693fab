"""Measure how similar captions are to people's captions: BLEU, ROUGE-L, CIDEr-D.

The metrics take tokenized texts: words separated by spaces. Of the same tokenized texts,
all values equal those of the official code, but nothing here needs Java. If pycocoevalcap
is installed, tests/parity compares the values.
"""

import math
import re
from collections import Counter

from minivlm.metrics.answers import tokens_of


def tokenize(caption: str) -> str:
    """Return the words of a caption, separated by spaces: lower case, no punctuation.

    The COCO evaluation uses the Penn Treebank's tokenizer. Plain English comes out alike:
    words with hyphens, possessives, contractions, quotes, numbers. Different are: signs
    like & and $ and brackets, which count as words there; abbreviations, which keep their
    points there (u.s.); words joined by / or _, which stay one there; and cannot, gonna and
    the like, which are two words there. For scripts without spaces see `tokens_of`.

    >>> tokenize("It's the man's red-and-white kite, isn't it?")
    "it 's the man 's red-and-white kite is n't it"
    """
    return re.sub(r"(?<=[a-z])n't(?!\S)", " n't", " ".join(tokens_of(caption)))


def ngrams(words: list[str], n: int) -> Counter:
    """Count how often each n-gram occurs.

    >>> ngrams("a b a b".split(), 2)
    Counter({('a', 'b'): 2, ('b', 'a'): 1})
    """
    return Counter(zip(*(words[i:] for i in range(n))))


def bleu(captions: list[str], references: list[list[str]], max_n: int = 4) -> list[float]:
    """Compute BLEU-1 .. BLEU-max_n of a set of captions.

        BLEU-n = brevity * (p_1 * ... * p_n)^(1/n),   brevity = min(1, exp(1 - r / c))

    p_n is the share of the captions' n-grams that occur in a reference. An n-gram counts at
    most as often as it occurs in the reference that has it most often. c is the number of
    words in all captions. r is the number of words in their closest references: for each
    caption, the reference that is closest to it in length, and the shorter one of two that
    are equally close. All sums run over the set, so the BLEU of a set is not the mean of
    its captions' BLEUs.

    Args:
        captions: one caption per picture.
        references: for each picture, at least one caption by people.

    Returns:
        max_n numbers, each 0 .. 1.

    Raises:
        ValueError: if the lists differ in length, are empty, or a picture has no reference.

    Source: Papineni et al. 2002, section 2.3. The tiny constants are those of the COCO
    evaluation (salaniz/pycocoevalcap, bleu/bleu_scorer.py): they avoid divisions by 0, and
    keep one count of 0 from making BLEU 0.

    >>> scores = bleu(["the the cat"], [["the cat sat"]], max_n=2)
    >>> [round(b, 3) for b in scores]  # 2/3, sqrt(2/3 * 1/2)
    [0.667, 0.577]
    """
    _check(captions, references)
    hits = Counter()    # n -> how many n-grams of captions occur in a reference
    totals = Counter()  # n -> how many n-grams captions have
    c = r = 0
    for caption, refs in zip(captions, references):
        words = caption.split()
        ref_words = [ref.split() for ref in refs]
        c += len(words)
        _, closest = min((abs(len(ref) - len(words)), len(ref)) for ref in ref_words)
        r += closest
        for n in range(1, max_n + 1):
            most = Counter()
            for ref in ref_words:
                most |= ngrams(ref, n)                   # | keeps the larger count
            found = ngrams(words, n)
            hits[n] += (found & most).total()            # & keeps the smaller count
            totals[n] += found.total()
    tiny = 1e-15
    small = 1e-9
    ratio = (c + tiny) / (r + small)
    brevity = min(1.0, math.exp(1 - 1 / ratio))
    scores = []
    product = 1.0
    for n in range(1, max_n + 1):
        product *= (hits[n] + tiny) / (totals[n] + small)
        scores.append(brevity * product ** (1 / n))
    return scores


def rouge_l(captions: list[str], references: list[list[str]], beta: float = 1.2) -> float:
    """Compute ROUGE-L: the mean over pictures of F, from the longest common subsequence.

        F = (1 + beta^2) p r / (r + beta^2 p)
        p = lcs / length of the caption,   r = lcs / length of the reference

    lcs is the length of the longest common subsequence of words. p is the largest over a
    picture's references, and so is r; the two may come from different references.

    Args:
        captions, references: as `bleu` takes them.
        beta: above 1, r weighs more than p.

    Returns:
        0 .. 1.

    Raises:
        ValueError: as `bleu`.

    Source: Lin 2004, section 3; beta and the largest p and r as in the COCO evaluation
    (salaniz/pycocoevalcap, rouge/rouge.py).

    >>> round(rouge_l(["a b c d"], [["a c d e"]]), 3)  # lcs 3, p = r = 3/4
    0.75
    """
    _check(captions, references)
    total = 0.0
    for caption, refs in zip(captions, references):
        words = caption.split()
        p = r = 0.0
        for ref in refs:
            ref_words = ref.split()
            lcs = _lcs(words, ref_words)
            p = max(p, lcs / max(1, len(words)))
            r = max(r, lcs / max(1, len(ref_words)))
        if p and r:
            total += (1 + beta ** 2) * p * r / (r + beta ** 2 * p)
    return total / len(captions)


def _lcs(a: list[str], b: list[str]) -> int:
    """Compute the length of the longest common subsequence, by dynamic programming.

    Entry j of the row for word i of `a`: the length for a[:i + 1] and b[:j].
    """
    row = [0] * (len(b) + 1)
    for x in a:
        above = row
        row = [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(above[j + 1], row[j]))
    return row[-1]


def cider(
    captions: list[str], references: list[list[str]], sigma: float = 6.0
) -> tuple[float, list[float]]:
    """Compute CIDEr-D: how similar captions are to people's; rare n-grams weigh more.

        g_n(text) = count of each n-gram in the text * its idf
        idf = ln(pictures / pictures that have the n-gram in a reference)
        CIDEr-D = 10 * mean over n = 1..4 and references of
                  exp(-(length difference)^2 / (2 sigma^2))
                  * min(g_n(caption), g_n(ref)) . g_n(ref) / (|g_n(caption)| |g_n(ref)|)

    The value depends on the set of pictures, because the idf is counted on it. With one
    picture every idf is 0, and CIDEr-D is 0 too. As in the COCO evaluation, "length" counts
    bigrams, and the counts are not divided by the text's length.

    Args:
        captions, references: as `bleu` takes them.
        sigma: the larger, the less a difference in length costs.

    Returns:
        the mean over pictures, 0 .. 10, and the value of each picture.

    Raises:
        ValueError: as `bleu`.

    Source: Vedantam et al. 2015, arXiv:1411.5726, eqs. 1-4 and section 6 (CIDEr-D);
    salaniz/pycocoevalcap, cider/cider_scorer.py.

    >>> captions = ["a b c d e", "f g h i j"]
    >>> cider(captions, [[caption] for caption in captions])  # each is its own reference
    (10.0, [10.0, 10.0])
    """
    _check(captions, references)
    n_pictures = Counter()  # n-gram -> how many pictures have it in a reference
    for refs in references:
        grams = set()                    # a set: an n-gram counts once per picture
        for ref in refs:
            for n in range(1, 5):
                grams.update(ngrams(ref.split(), n))
        n_pictures.update(grams)

    def idf(gram: tuple[str, ...]) -> float:
        return math.log(len(captions)) - math.log(max(1, n_pictures[gram]))

    def vectors(text: str) -> list[dict[tuple[str, ...], float]]:
        counts = [ngrams(text.split(), n) for n in range(1, 5)]
        return [{gram: tf * idf(gram) for gram, tf in count.items()} for count in counts]

    scores = []
    for caption, refs in zip(captions, references):
        ours = vectors(caption)
        total = 0.0
        for ref in refs:
            gap = _n_bigrams(caption) - _n_bigrams(ref)
            near = math.exp(-(gap ** 2) / (2 * sigma ** 2))
            for a, b in zip(ours, vectors(ref)):
                dot = sum(min(w, b[gram]) * b[gram] for gram, w in a.items() if gram in b)
                # if a norm is 0, dot is 0 too, and any divisor will do
                total += near * dot / (_norm(a) * _norm(b) or 1.0)
        scores.append(10 * total / (4 * len(refs)))
    return sum(scores) / len(scores), scores


def _n_bigrams(text: str) -> int:
    return max(0, len(text.split()) - 1)


def _norm(vector: dict[tuple[str, ...], float]) -> float:
    return math.sqrt(sum(w * w for w in vector.values()))


def _check(captions: list[str], references: list[list[str]]) -> None:
    if len(captions) != len(references) or not captions:
        raise ValueError(
            f"{len(captions)} captions and {len(references)} lists of references; "
            "expected one list for each caption, and at least one"
        )
    for i, refs in enumerate(references):
        if not refs:
            raise ValueError(f"picture {i} has no reference caption")
