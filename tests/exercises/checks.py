"""The checks of docs/exercises.md: inputs, what is right for them, and what is said of an answer.

What is right is computed here from the definitions, by loops in plain Python, or stands here as
worked by hand. Nothing of the project's own code is called.
"""

import copy
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wrong_answers import WRONG

TOLERANCE = 1e-5  # relative and absolute; wider than any order of float32 sums, narrower than a bug
SMALL = 16  # results of so many numbers are shown as a whole


@dataclass(frozen=True)
class Case:
    """A call of the reader's function.

    Args:
        about: what this input is, in words.
        args: the arguments.
        right: what is right, one entry for each result.
        by_hand: it also stands in docs/exercises.md.
    """

    about: str
    args: tuple
    right: tuple
    by_hand: bool = False


@dataclass(frozen=True)
class Exercise:
    """What a function returns, what the dimensions of that are called, and the calls of it."""

    results: tuple[str, ...]
    axes: tuple[str, ...]
    cases: list[Case]


class Wrong(Exception):
    """An answer is not right; the message says what is wrong with it."""


# --- checking ---


def check(name: str, answer: Callable) -> None:
    """Call the function with the inputs of all cases.

    Raises:
        Wrong: if a result is not what it must be, or an argument is changed.
    """
    exercise = EXERCISES[name]
    outcomes = [outcome(answer, case, exercise.results) for case in exercise.cases]
    for case, got in zip(exercise.cases, outcomes):
        for result, x, right in zip(exercise.results, got, case.right):
            fault = difference(x, torch.as_tensor(right), exercise.axes)
            if fault:
                known = known_mistake(name, outcomes)
                raise Wrong(f"{result} is wrong for {case.about}:\n{fault}{known}")


def outcome(answer: Callable, case: Case, results: tuple[str, ...]) -> list[Tensor]:
    """Call the function with copies of a case's arguments; return its results as tensors.

    Raises:
        Wrong: if it returns something else, or has changed an argument.
    """
    args = copy.deepcopy(case.args)
    got = answer(*args)
    names = " and ".join(results)
    if len(results) == 1:
        got = (got,)
    elif not isinstance(got, tuple) or len(got) != len(results):
        raise Wrong(f"returned {type(got).__name__}, expected the tuple of {names}")
    for before, after in zip(case.args, args):
        if isinstance(before, Tensor) and not torch.equal(before, after):
            raise Wrong("changes one of its arguments; its caller still needs that: copy it first")
    for x in got:
        if not isinstance(x, (Tensor, float, list)):
            raise Wrong(f"returned {type(x).__name__}, expected {names}")
    return [torch.as_tensor(x).detach() for x in got]


def difference(got: Tensor, right: Tensor, axes: tuple[str, ...]) -> str:
    """Say how two results differ: in shape, or where first; empty if they do not."""
    if got.shape != right.shape:
        named = f", which are {', '.join(axes)}" if right.ndim else ": one number"
        return f"  expected shape {tuple(right.shape)}{named}\n  got shape {tuple(got.shape)}"
    # NaN is close to nothing
    off = ~torch.isclose(got.double(), right.double(), rtol=TOLERANCE, atol=TOLERANCE)
    if not off.any():
        return ""
    if right.numel() <= SMALL:
        return f"  expected {shown(right)}\n  got      {shown(got)}"
    place = off.nonzero()[0].tolist()
    where = ", ".join(f"{axis} {i}" for axis, i in zip(axes, place))
    return (
        f"  {int(off.sum())} of {off.numel()} numbers differ; the first is at {where}\n"
        f"  expected {shown(right[tuple(place)])}\n  got      {shown(got[tuple(place)])}"
    )


def known_mistake(name: str, outcomes: list[list[Tensor]]) -> str:
    """Name the typical mistake whose results are these ones in all cases, if there is one."""
    exercise = EXERCISES[name]
    for about, mistake in WRONG[name].items():
        theirs = [outcome(mistake, case, exercise.results) for case in exercise.cases]
        pairs = [pair for a, b in zip(theirs, outcomes) for pair in zip(a, b)]
        if all(is_close(a, b) for a, b in pairs):
            return f"\n  The same comes out if {about}."
    return ""


def is_close(a: Tensor, b: Tensor) -> bool:
    """Whether two results are the same, NaN included."""
    return a.shape == b.shape and torch.allclose(
        a.double(), b.double(), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True
    )


def shown(x: Tensor) -> str:
    """A tensor as text, six digits a number; True and False are 1 and 0.

    >>> shown(torch.tensor([[0.5, 2.0], [1 / 3, -1.0]]))
    '[[0.5, 2], [0.333333, -1]]'
    """
    if x.ndim:
        return f"[{', '.join(map(shown, x))}]"
    return f"{x.item() + 0:.6g}"


# --- inputs ---


def draw(*shape: int, seed: int) -> Tensor:
    """Normal random numbers in float64, the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def numbers(*rows: list[float]) -> Tensor:
    """A table (B, T) in float64."""
    return torch.tensor(rows, dtype=torch.float64)


def spans(T: int, *places: tuple[int, int]) -> Tensor:
    """A mask (B, T) that is True from begin to before end of each row."""
    t = torch.arange(T)
    return torch.stack([(t >= begin) & (t < end) for begin, end in places])


def log_softmax(logits: list[float]) -> list[float]:
    """log(exp(x_i) / sum_j exp(x_j)), from the definition."""
    largest = max(logits)
    log_sum = largest + math.log(sum(math.exp(x - largest) for x in logits))
    return [x - log_sum for x in logits]


def softplus(x: float) -> float:
    """-log sigmoid(-x) = log(1 + exp(x)), also where exp(x) would be infinite."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


# --- next_token ---


def right_next_token(logits: Tensor, idx: Tensor, is_answer: Tensor) -> float:
    """Go through all rows and tokens, and look at the position before each answer token."""
    losses = []
    for row, ids, learned in zip(logits.tolist(), idx.tolist(), is_answer.tolist()):
        for t in range(1, len(ids)):
            if learned[t]:
                losses.append(-log_softmax(row[t - 1])[ids[t]])
    return sum(losses) / len(losses)


def next_token_cases() -> list[Case]:
    """Two answers in a row, an answer that begins with the row, rows of unequal lengths."""
    by_hand = (
        numbers([1 / 2, 1 / 2], [7 / 8, 1 / 8], [1 / 4, 3 / 4]).log()[None],
        torch.tensor([[0, 1, 1]]), torch.tensor([[False, True, True]]),
    )
    idx = torch.randint(0, 5, (3, 8), generator=torch.Generator().manual_seed(1))
    # the first row has two answers, the second is a text that is learned from its first token on
    is_answer = spans(8, (2, 4), (0, 5), (6, 8)) | spans(8, (6, 8), (0, 0), (0, 0))
    drawn = (3 * draw(3, 8, 5, seed=2), idx, is_answer)
    equal = (torch.zeros(3, 8, 5, dtype=torch.float64), idx, is_answer)
    return [
        Case("three tokens, worked by hand", by_hand, (2 * math.log(2),), by_hand=True),
        Case("equal logits: ln V of 5 ids", equal, (math.log(5),)),
        Case("three rows of random logits", drawn, (right_next_token(*drawn),)),
    ]


# --- packing ---


def right_packing(n_prompt: int, n_answers: list[int]) -> list[list[bool]]:
    """Write down for each answer the text that it ends; each token sees those before it there."""
    prompt = list(range(n_prompt - 1))
    T = n_prompt - 1 + sum(1 + n for n in n_answers)
    mask = [[False] * T for _ in range(T)]
    texts, begin = [prompt], len(prompt)
    for n in n_answers:
        texts.append(prompt + list(range(begin, begin + 1 + n)))
        begin += 1 + n
    for text in texts:
        for i, token in enumerate(text):
            for before in text[:i + 1]:
                mask[token][before] = True
    return mask


def packing_cases() -> list[Case]:
    """Answers of unequal lengths, a single answer, a prompt of one token."""
    by_hand = [[1, 0, 0, 0, 0, 0],
               [1, 1, 0, 0, 0, 0],
               [1, 1, 1, 0, 0, 0],
               [1, 1, 1, 1, 0, 0],
               [1, 0, 0, 0, 1, 0],
               [1, 0, 0, 0, 1, 1]]
    sizes = {"one answer: plain causal": (3, [2]), "a prompt of one token": (1, [1, 2]),
             "three answers": (4, [3, 1, 2])}
    cases = [Case(about, args, (right_packing(*args),)) for about, args in sizes.items()]
    return [Case("a prompt of 2 tokens, answers of 2 and 1, worked by hand", (2, [2, 1]),
                 (by_hand,), by_hand=True), *cases]


# --- patches ---


def right_patches(images: Tensor, weight: Tensor) -> list:
    """Go down the rows of patches, along each row, and over the pixels of each patch."""
    P = weight.shape[-1]
    n = images.shape[-1] // P
    pixels, filters = images.tolist(), weight.tolist()
    return [
        [
            [
                sum(f[color][y][x] * image[color][row * P + y][column * P + x]
                    for color in range(3) for y in range(P) for x in range(P))
                for f in filters
            ]
            for row in range(n) for column in range(n)
        ]
        for image in pixels
    ]


def patches_cases() -> list[Case]:
    """A filter that reads one pixel, random filters, patches as large as picture and pixel."""
    picture = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    picture[0, 0] = torch.arange(16).view(4, 4)
    reads_one = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    reads_one[0, 0, 0, 1] = 1
    sizes = {"2 pictures of 6 x 6 pixels in patches of 2 x 2": (6, 2),
             "patches as large as the picture": (3, 3), "patches of one pixel": (2, 1)}
    cases = []
    for about, (S, P) in sizes.items():
        args = (draw(2, 3, S, S, seed=S), draw(4, 3, P, P, seed=P))
        cases.append(Case(about, args, (right_patches(*args),)))
    return [Case("a filter that reads one pixel, worked by hand", (picture, reads_one),
                 ([[[1.0], [3.0], [9.0], [11.0]]],), by_hand=True), *cases]


# --- info_nce ---


def right_info_nce(similarity: Tensor, logit_scale: float) -> float:
    """Let each picture choose among the captions, and each caption among the pictures."""
    logits = [[logit_scale * x for x in row] for row in similarity.tolist()]
    columns = [list(column) for column in zip(*logits)]
    B = len(logits)
    losses = [-log_softmax(table[i])[i] for table in (logits, columns) for i in range(B)]
    return sum(losses) / (2 * B)


def info_nce_cases() -> list[Case]:
    """Both directions by hand, the limits, and logits whose exponential float32 cannot hold."""
    by_hand = (numbers([1, 0], [1, 0]), math.log(3))
    equal = (torch.ones(4, 4, dtype=torch.float64), 7.0)
    sharp = (torch.eye(3).roll(1, 0), 100.0)
    drawn = (draw(5, 5, seed=3).tanh(), 4.0)
    return [
        Case("two pictures that both take the first caption, worked by hand", by_hand,
             ((math.log(4 / 3) + math.log(4) + 2 * math.log(2)) / 4,), by_hand=True),
        Case("equal similarities: ln B of 4 pairs", equal, (math.log(4),)),
        Case("a multiplier of 100 in float32, all wrong", sharp, (right_info_nce(*sharp),)),
        Case("random similarities", drawn, (right_info_nce(*drawn),)),
    ]


# --- splice ---


def right_splice(emb: Tensor, is_image: Tensor, img_emb: Tensor) -> list:
    """Go along each row, and take the next feature of the next picture at each placeholder."""
    features = [feature for picture in img_emb.tolist() for feature in picture]
    n_used = 0
    rows = []
    for row, here in zip(emb.tolist(), is_image.tolist()):
        rows.append([])
        for vector, is_placeholder in zip(row, here):
            if is_placeholder:
                vector = features[n_used]
                n_used += 1
            rows[-1].append(vector)
    return rows


def splice_cases() -> list[Case]:
    """Rows with one picture, none, and two that a word divides."""
    by_hand = (
        numbers([10, 5, 5, 5, 5, 20])[..., None], spans(6, (1, 5)),
        numbers([1, 2, 3, 4])[..., None],
    )
    is_image = spans(10, (1, 5), (0, 0), (0, 4)) | spans(10, (0, 0), (0, 0), (5, 9))
    mixed = (draw(3, 10, 2, seed=5), is_image, draw(3, 4, 2, seed=6))
    nothing = (draw(2, 3, 2, seed=7), spans(3, (0, 0), (0, 0)), draw(0, 4, 2, seed=8))
    right = [[[10.0], [1.0], [2.0], [3.0], [4.0], [20.0]]]
    return [
        Case("one picture of 4 tokens between two words, worked by hand", by_hand, (right,),
             by_hand=True),
        Case("a row with one picture, one without, one with two", mixed, (right_splice(*mixed),)),
        Case("rows without pictures", nothing, (right_splice(*nothing),)),
    ]


# --- dialogue ---


def dialogue_cases() -> list[Case]:
    """An answer that repeats words of its question, two answers, an answer still to come."""
    human, gpt = "human", "gpt"
    marks = (1, 2, 3)
    one = ([(human, [5, 6]), (gpt, [7])], *marks)
    repeats = ([(human, [7, 8, 9]), (gpt, [8, 9])], *marks)
    two = ([(human, [5]), (gpt, [6, 7]), (human, [7, 6]), (gpt, [6, 7, 8])], *marks)
    open_end = ([(human, [5]), (gpt, [6]), (human, [7, 8])], *marks)
    return [
        Case("one question and one answer, worked by hand", one,
             ([1, 5, 6, 2, 7, 3], [False] * 4 + [True] * 2), by_hand=True),
        Case("an answer whose ids stand in the question, too", repeats,
             ([1, 7, 8, 9, 2, 8, 9, 3], [False] * 5 + [True] * 3)),
        Case("two questions and two answers", two,
             ([1, 5, 2, 6, 7, 3, 1, 7, 6, 2, 6, 7, 8, 3],
              [False] * 3 + [True] * 3 + [False] * 4 + [True] * 4)),
        Case("a last question without an answer", open_end,
             ([1, 5, 2, 6, 3, 1, 7, 8, 2], [False] * 3 + [True] * 2 + [False] * 4)),
    ]


# --- ranking ---


def right_ranking(scores: Tensor, ranks: Tensor) -> float:
    """Take each ordered pair of answers of each prompt, then the mean of the prompts' means."""
    means = []
    for row, rank in zip(scores.tolist(), ranks.tolist()):
        losses = [
            softplus(row[j] - row[i])
            for i in range(len(row)) for j in range(len(row))
            if rank[i] > 0 and rank[j] > 0 and rank[i] < rank[j]
        ]
        if losses:
            means.append(sum(losses) / len(losses))
    return sum(means) / len(means)


def ranking_cases() -> list[Case]:
    """Ties, missing answers, a prompt without a pair, scores far apart."""
    ln3 = math.log(3)
    by_hand = (numbers([ln3, 0, 0], [ln3, 0, 0]), torch.tensor([[1, 2, 2], [2, 1, 0]]))
    equal = (torch.zeros(2, 3, dtype=torch.float64), torch.tensor([[3, 1, 2], [1, 2, 1]]))
    far = (numbers([-500, 500]), torch.tensor([[1, 2]]))
    ranks = torch.tensor([[2, 1, 4, 3], [1, 1, 2, 0], [0, 2, 1, 0], [1, 1, 1, 0], [3, 1, 1, 2]])
    drawn = (draw(5, 4, seed=9), ranks)
    return [
        Case("two prompts, worked by hand", by_hand, ((math.log(4 / 3) + math.log(4)) / 2,),
             by_hand=True),
        Case("equal scores: ln 2", equal, (math.log(2),)),
        Case("a better answer that scores 1000 less", far, (1000.0,)),
        Case("random scores, ties, missing answers", drawn, (right_ranking(*drawn),)),
    ]


# --- gae ---


def right_gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> list[list[float]]:
    """Cut each answer out, then add up the discounted errors of all steps to come."""
    out = []
    for r, v, here in zip(rewards.tolist(), values.tolist(), mask.tolist()):
        places = [t for t, counts in enumerate(here) if counts]
        r, v = [r[t] for t in places], [v[t] for t in places] + [0.0]
        n = len(places)
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(n)]
        row = [0.0] * len(here)
        for t in range(n):
            row[places[t]] = sum((gamma * lam) ** (i - t) * delta[i] for i in range(t, n))
        out.append(row)
    return out


def gae_cases() -> list[Case]:
    """Answers of unequal lengths between prompts and pads that hold other numbers; the limits."""
    by_hand = (numbers([0, 0, 1, 0]), numbers([0.5, 0.5, 0.5, 9]), spans(4, (0, 3)), 1.0, 0.5)
    rewards, values = draw(3, 7, seed=10), draw(3, 7, seed=11)
    mask = spans(7, (1, 4), (0, 7), (3, 6))
    limits = {"gamma .9 and lam .8": (0.9, 0.8), "lam 1: rewards to come minus value": (1.0, 1.0),
              "lam 0: the error of one step": (0.9, 0.0)}
    cases = []
    for about, (gamma, lam) in limits.items():
        args = (rewards, values, mask, gamma, lam)
        cases.append(Case(f"three answers, {about}", args, (right_gae(*args),)))
    return [Case("an answer of three tokens and a pad, worked by hand", by_hand,
                 ([[0.125, 0.25, 0.5, 0.0]],), by_hand=True), *cases]


# --- whiten ---


def right_whiten(x: Tensor, mask: Tensor) -> list[list[float]]:
    """Put all that counts into one list, and take its mean and its unbiased deviation."""
    rows, counts = x.tolist(), mask.tolist()
    kept = [a for row, here in zip(rows, counts) for a, c in zip(row, here) if c]
    mean, std = statistics.mean(kept), statistics.stdev(kept)
    return [
        [(a - mean) / std if c else 0.0 for a, c in zip(row, here)]
        for row, here in zip(rows, counts)
    ]


def whiten_cases() -> list[Case]:
    """Numbers far from 0, so that a pad that counts shows; rows of unequal lengths."""
    root = math.sqrt(1 / 2)
    drawn = (3 + 2 * draw(3, 6, seed=12), spans(6, (1, 5), (0, 2), (3, 6)))
    full = (draw(2, 4, seed=13), spans(4, (0, 4), (0, 4)))
    return [
        Case("two numbers and a pad, worked by hand",
             (numbers([1, 3, 99]), spans(3, (0, 2))), ([[-root, root, 0.0]],), by_hand=True),
        Case("random numbers near 3, rows of 4, 2 and 3 tokens", drawn, (right_whiten(*drawn),)),
        Case("rows without pads", full, (right_whiten(*full),)),
    ]


# --- ppo ---


def right_ppo(
    logp: Tensor, old_logp: Tensor, advs: Tensor, mask: Tensor, clip_eps: float
) -> float:
    """Look at each token of an answer, and take the smaller of its two gains."""
    gains = []
    for rows in zip(*(x.tolist() for x in (logp, old_logp, advs, mask))):
        for new, old, adv, counts in zip(*rows):
            if counts:
                ratio = math.exp(new - old)
                clipped = min(max(ratio, 1 - clip_eps), 1 + clip_eps)
                gains.append(min(ratio * adv, clipped * adv))
    return -sum(gains) / len(gains)


def ppo_cases() -> list[Case]:
    """The four corners by hand, a policy that has not moved, answers of unequal lengths."""
    corners = [(2, 1, -1.2), (2, -1, 2.0), (0.5, 1, -0.5), (0.5, -1, 0.8)]
    zero, mask = numbers([0, 0]), spans(2, (0, 1))
    cases = []
    for ratio, adv, loss in corners:
        about = f"one token, ratio {ratio}, advantage {adv}, clip_eps 0.2, worked by hand"
        args = (numbers([math.log(ratio), 0]), zero, numbers([adv, 9]), mask, 0.2)
        cases.append(Case(about, args, (loss,), by_hand=True))
    mask = spans(6, (1, 5), (0, 2), (3, 6))
    old, advs = draw(3, 6, seed=14), draw(3, 6, seed=15)
    still = (old, old, advs, mask, 0.2)
    moved = (old + draw(3, 6, seed=16) / 2, old, advs, mask, 0.2)
    return [
        *cases,
        Case("a policy that has not moved: minus the mean advantage", still,
             (-advs[mask].mean().item(),)),
        Case("random tokens, rows of 4, 2 and 3", moved, (right_ppo(*moved),)),
    ]


# --- dpo ---


def right_dpo(*args) -> tuple[list[float], list[float]]:
    """The loss from its formula, and its slope as the difference of two losses."""
    *logps, beta = args

    def loss(chosen: float, rejected: float, ref_chosen: float, ref_rejected: float) -> float:
        return softplus(-beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))

    losses, weights = [], []
    for chosen, *others in zip(*(x.tolist() for x in logps)):
        losses.append(loss(chosen, *others))
        step = 1e-4
        weights.append((loss(chosen - step, *others) - loss(chosen + step, *others)) / (2 * step))
    return losses, weights


def dpo_cases() -> list[Case]:
    """A pair by hand, a policy that equals its reference, margins of any sign, far ones."""
    by_hand = tuple(numbers([x])[0] for x in (-4, -6, -5, -5)) + (0.5,)
    chosen, rejected = draw(4, seed=17) - 5, draw(4, seed=18) - 5
    fresh = (chosen, rejected, chosen, rejected, 0.3)
    drawn = (chosen, rejected, draw(4, seed=19) - 5, draw(4, seed=20) - 5, 0.7)
    far = tuple(numbers([x])[0] for x in (-2000, -10, -10, -10)) + (1.0,)
    sigmoid = 1 / (1 + math.exp(-1))
    return [
        Case("a pair worked by hand", by_hand, ([-math.log(sigmoid)], [0.5 * (1 - sigmoid)]),
             by_hand=True),
        Case("a policy that equals its reference: ln 2 and beta / 2", fresh,
             ([math.log(2)] * 4, [0.15] * 4)),
        Case("four random pairs", drawn, right_dpo(*drawn)),
        Case("a chosen answer that has become unlikely by 1990 nats", far, ([1990.0], [1.0])),
    ]


# --- group ---


def right_group(scores: Tensor, kind: str) -> list[list[float]]:
    """Compare each answer with a list of the others, or of all."""
    out = []
    for row in scores.tolist():
        mean, std = statistics.mean(row), statistics.stdev(row)
        if kind == "rloo":
            out.append([x - statistics.mean(row[:i] + row[i + 1:]) for i, x in enumerate(row)])
        elif kind == "dr_grpo":
            out.append([x - mean for x in row])
        else:
            out.append([(x - mean) / (std + 1e-4) for x in row])
    return out


def group_cases() -> list[Case]:
    """Each kind by hand, with random scores of unequal spread, and with a dead group."""
    by_hand = {"dr_grpo": [-1.0, -1.0, 2.0], "rloo": [-1.5, -1.5, 3.0],
               "grpo": [-1 / (math.sqrt(3) + 1e-4)] * 2 + [2 / (math.sqrt(3) + 1e-4)]}
    scores = draw(4, 4, seed=21) * numbers([1], [5], [0.1], [0]) + numbers([0], [9], [3], [2])
    cases = []
    for kind, right in by_hand.items():
        cases.append(Case(f"{kind} of scores 0, 0 and 3, worked by hand",
                          (numbers([0, 0, 3]), kind), ([right],), by_hand=True))
        cases.append(Case(f"{kind} of random scores, the last group all alike", (scores, kind),
                          (right_group(scores, kind),)))
    return cases


EXERCISES = {
    "next_token": Exercise(("loss",), (), next_token_cases()),
    "packing": Exercise(("mask",), ("query", "key"), packing_cases()),
    "patches": Exercise(("result",), ("picture", "patch", "channel"), patches_cases()),
    "info_nce": Exercise(("loss",), (), info_nce_cases()),
    "splice": Exercise(("result",), ("row", "token", "channel"), splice_cases()),
    "dialogue": Exercise(("ids", "is_answer"), ("token",), dialogue_cases()),
    "ranking": Exercise(("loss",), (), ranking_cases()),
    "gae": Exercise(("advantage",), ("row", "token"), gae_cases()),
    "whiten": Exercise(("result",), ("row", "token"), whiten_cases()),
    "ppo": Exercise(("loss",), (), ppo_cases()),
    "dpo": Exercise(("loss", "weight"), ("pair",), dpo_cases()),
    "group": Exercise(("advantage",), ("prompt", "answer"), group_cases()),
}
