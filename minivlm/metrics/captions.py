"""Likeness to what people wrote: BLEU, ROUGE-L and CIDEr-D of captions, VQA's accuracy of answers.

Texts come tokenized, tokens separated by spaces; nothing here needs Java. Each equals the official
code (tests/parity compares where pycocoevalcap is installed).

Used through metrics.py, which gives the same names.
"""

import math
from collections import Counter

# --- captions ---


def ngrams(words: list[str], n: int) -> Counter:
    """How often each run of n words occurs.

    >>> ngrams("a b a b".split(), 2)
    Counter({('a', 'b'): 2, ('b', 'a'): 1})
    """
    return Counter(zip(*(words[i:] for i in range(n))))


def bleu(made: list[str], references: list[list[str]], max_n: int = 4) -> list[float]:
    """BLEU-1 .. BLEU-max_n of a whole set of captions.

        BLEU-n = brevity * (p_1 * ... * p_n)^(1/n),   brevity = min(1, exp(1 - r / c))

    p_n is the share of the captions' n-grams that stand in a reference, each counted at most as
    often as in the reference that has it most; c is the captions' length, r that of the closest
    references, the shorter one of two equally close. Both sums run over the set, so the score of a
    set is not the mean of its captions'.

    Args:
        made: one caption a picture, tokens separated by spaces.
        references: for each picture, at least one caption by people, tokenized alike.

    Raises:
        ValueError: if the lists differ in length, are empty, or a picture has no reference.

    Source: Papineni et al. 2002, section 2.3; the tiny constants, which keep an empty count from
    making everything 0, are those of the COCO evaluation (salaniz/pycocoevalcap,
    bleu/bleu_scorer.py).

    >>> scores = bleu(["the the cat"], [["the cat sat"]], max_n=2)
    >>> [round(b, 3) for b in scores]  # 2/3, sqrt(2/3 * 1/2)
    [0.667, 0.577]
    """
    _check_captions(made, references)
    right, all_n = [0] * max_n, [0] * max_n
    c = r = 0
    for caption, refs in zip(made, references):
        words, ref_words = caption.split(), [ref.split() for ref in refs]
        c += len(words)
        r += min((abs(len(ref) - len(words)), len(ref)) for ref in ref_words)[1]
        for n in range(1, max_n + 1):
            most = Counter()
            for ref in ref_words:
                most |= ngrams(ref, n)                               # | keeps the larger count
            right[n - 1] += sum((ngrams(words, n) & most).values())  # & the smaller one
            all_n[n - 1] += max(0, len(words) - n + 1)
    tiny, small = 1e-15, 1e-9
    ratio = (c + tiny) / (r + small)
    brevity = min(1.0, math.exp(1 - 1 / ratio))
    out, product = [], 1.0
    for n, (hit, total) in enumerate(zip(right, all_n), 1):
        product *= (hit + tiny) / (total + small)
        out.append(brevity * product ** (1 / n))
    return out


def rouge_l(made: list[str], references: list[list[str]], beta: float = 1.2) -> float:
    """Mean over pictures of the F-measure of the longest common subsequence.

        F = (1 + beta^2) p r / (r + beta^2 p),   p = lcs / caption's length, r = lcs / reference's

    p and r are each the best over a picture's references.

    Raises:
        ValueError: as `bleu`.

    Source: Lin 2004, section 3; beta and the best of references as in the COCO evaluation
    (salaniz/pycocoevalcap, rouge/rouge.py).

    >>> round(rouge_l(["a b c d"], [["a c d e"]]), 3)  # lcs 3, p = r = 3/4
    0.75
    """
    _check_captions(made, references)
    total = 0.0
    for caption, refs in zip(made, references):
        words = caption.split()
        lcs = [(_lcs(words, ref.split()), len(ref.split())) for ref in refs]
        p = max(n / max(1, len(words)) for n, _ in lcs)
        r = max(n / max(1, length) for n, length in lcs)
        total += (1 + beta ** 2) * p * r / (r + beta ** 2 * p) if p and r else 0.0
    return total / len(made)


def _lcs(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, by the textbook's table, a row at a time."""
    row = [0] * (len(b) + 1)
    for x in a:
        above = row
        row = [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(above[j + 1], row[j]))
    return row[-1]


def cider(
    made: list[str], references: list[list[str]], sigma: float = 6.0
) -> tuple[float, list[float]]:
    """CIDEr-D: how alike the captions are to what people wrote, rare n-grams weighing more.

        g_n = tf-idf vector of n-grams;  idf = ln(pictures / pictures whose references hold it)
        score = 10 * mean over n = 1..4 and references of
                exp(-(length difference)^2 / (2 sigma^2))
                * min(g_n(caption), g_n(ref)) . g_n(ref) / norms

    The mean over pictures depends on the set that the idf was counted on; with one picture every
    idf and so the score is 0. As in the COCO evaluation, "length" counts bigrams and term
    frequencies are not divided by the length.

    Returns:
        the mean, 0 .. 10, and each picture's score.

    Raises:
        ValueError: as `bleu`.

    Source: Vedantam et al. 2015, arXiv:1411.5726, eqs. 1-4 and section 6 (CIDEr-D);
    salaniz/pycocoevalcap, cider/cider_scorer.py.

    >>> cider(["a b c d e", "f g h i j"], [["a b c d e"], ["f g h i j"]])  # each is its reference
    (10.0, [10.0, 10.0])
    """
    _check_captions(made, references)
    found = (
        {g for ref in refs for n in range(1, 5) for g in ngrams(ref.split(), n)}
        for refs in references
    )
    holds = Counter(g for grams in found for g in grams)

    def vectors(text: str) -> tuple[list[dict], list[float], int]:
        words = text.split()
        weights = [{g: tf * (math.log(len(made)) - math.log(max(1, holds[g])))
                    for g, tf in ngrams(words, n).items()} for n in range(1, 5)]
        return (
            weights, [math.sqrt(sum(w * w for w in v.values())) for v in weights],
            max(0, len(words) - 1),
        )

    scores = []
    for caption, refs in zip(made, references):
        ours, our_norms, our_length = vectors(caption)
        total = 0.0
        for ref in refs:
            theirs, norms, length = vectors(ref)
            near = math.exp(-((our_length - length) ** 2) / (2 * sigma ** 2))
            for a, b, norm_a, norm_b in zip(ours, theirs, our_norms, norms):
                dot = sum(min(w, b[g]) * b[g] for g, w in a.items() if g in b)
                total += near * dot / (norm_a * norm_b or 1.0)       # a norm of 0: dot is 0 too
        scores.append(10 * total / (4 * len(refs)))
    return sum(scores) / len(scores), scores


def _check_captions(made: list[str], references: list[list[str]]) -> None:
    if len(made) != len(references) or not made:
        raise ValueError(
            f"{len(made)} captions and {len(references)} lists of references do not pair up"
        )
    for i, refs in enumerate(references):
        if not refs:
            raise ValueError(f"picture {i} has no reference caption")


# --- answers ---

