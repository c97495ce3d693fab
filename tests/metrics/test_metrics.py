"""minivlm/metrics: every figure against a number worked by hand or a slow definition."""

import itertools
import random
from collections import Counter

import pytest
import torch

from minivlm.evaluation.refusals import is_refusal
from minivlm.metrics import (
    answer_ok, chair, clip_score, is_unsure, mentions, pope, pope_questions, recall_at_k,
    recall_by_chance, says_yes, style_ok, words_of,
)
from minivlm.metrics.answers import tokens_of

# --- retrieval ---


def test_recall_at_k_is_the_number_worked_by_hand():
    """Catches ranks counted from 1, and k taken as an index.

    The right item of query i is item i. Query 0: 0.9 is the highest, rank 0. Query 1: 0.5 is behind
    0.6, rank 1. Query 2: 0.1 is behind 0.8 and 0.7, rank 2. So recall is 1/3, 2/3, 3/3.
    """
    similarity = torch.tensor([[0.9, 0.2, 0.1], [0.6, 0.5, 0.1], [0.8, 0.7, 0.1]])
    right = torch.eye(3, dtype=torch.bool)
    assert [recall_at_k(similarity, right, k) for k in (1, 2, 3)] == pytest.approx(
        [1 / 3, 2 / 3, 1]
    )


def test_ties_count_against_the_model():
    """Catches a collapsed model that scores 1: equal similarity everywhere must score lowest."""
    right = torch.eye(4, dtype=torch.bool)
    assert [recall_at_k(torch.zeros(4, 4), right, k) for k in (1, 3, 4)] == [0, 0, 1]


def test_one_of_several_right_items_is_enough_and_counts_once():
    """Catches recall above 1 and right items pushing each other down: a picture has five captions.

    Query 0 has the right items 0 and 1: item 1 is the best of all, a hit at 1. Query 1 has the
    right items 2 and 3, ranked behind items 0 and 1: a hit at 3, not at 2.
    """
    similarity = torch.tensor([[0.1, 0.9, 0.5, 0.5], [0.9, 0.8, 0.7, 0.6]])
    right = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.bool)
    assert [recall_at_k(similarity, right, k) for k in (1, 2, 3)] == [0.5, 0.5, 1.0]


def test_recall_agrees_with_sorting():
    """Catches a mask on the wrong axis: against a sort of 40 queries with 1 to 3 right items."""
    similarity, right = torch.randn(40, 25), torch.zeros(40, 25, dtype=torch.bool)
    for q in range(40):
        right[q, torch.randperm(25)[:1 + q % 3]] = True
    for k in (1, 5, 10):
        top = similarity.argsort(dim=1, descending=True)[:, :k]
        want = sum(bool(right[q, top[q]].any()) for q in range(40)) / 40
        assert recall_at_k(similarity, right, k) == pytest.approx(want)


def test_a_query_without_a_right_item_is_a_miss():
    """Catches a query that cannot be answered counted as a hit."""
    right = torch.tensor([[False, False], [True, False]])
    assert recall_at_k(torch.tensor([[0.3, 0.2], [0.3, 0.2]]), right, 1) == 0.5


def test_similarity_that_is_no_number_scores_nothing():
    """Catches a diverged model with recall 1: comparisons with NaN are all false."""
    nan = torch.full((3, 3), torch.nan)
    assert recall_at_k(nan, torch.eye(3, dtype=torch.bool), 1) == 0.0


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_recall_by_chance_is_the_mean_over_all_orders(k):
    """Catches draws with replacement: every order of five items, three, two or none right."""
    right = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    for fits in (right, right[:1], right[1:2]):
        orders = list(itertools.permutations(range(5)))
        found = [
            recall_at_k(-torch.tensor([order] * len(fits)).float(), fits, k) for order in orders
        ]
        assert recall_by_chance(fits, k) == pytest.approx(sum(found) / len(found), abs=1e-6)


def test_clip_score_is_the_number_worked_by_hand():
    """Catches the factor 2.5 or the floor at 0 left out: cosines .6 and -1."""
    assert clip_score(torch.eye(2), torch.tensor([[0.6, 0.8], [0.0, -1.0]])) == pytest.approx(0.75)


# --- answers ---


@pytest.mark.parametrize("answer, expect, wrong, ok", [
    ("The circle is red.", ["red"], ["blue"], True),
    ("RED!", ["red"], [], True),
    ("The circle is reddish.", ["red"], [], False),
    ("red or blue", ["red"], ["blue"], False),
    ("It is at the top left.", ["top left"], ["right", "bottom"], True),
    ("It is at the left top.", ["top left"], [], False),
    ("There are 2 circles.", ["two", "2"], ["one", "three"], True),
    ("", ["red"], [], False),
    ("anything", [], [], False),
    ("top\nleft", ["top left"], [], True),
    ("I'm not sure, it may be red.", ["not sure"], [], True),
    ("It is 'red'.", ["red"], [], True), ("It is \u2018red\u2019.", ["red"], [], True),
    ("It is the dog's.", ["dog"], [], True), ("It isn\u2019t.", ["isn't"], [], True),
    ("It isn't red.", ["is"], [], False), ("It is 2.5 high.", ["5"], [], False),
    ("caf\u00e9", ["cafe\u0301"], [], True), ("cafe\u0301", ["cafe"], [], False),
    ("圆是红色的。", ["红色"], ["蓝色"], True),
    ("赤い円です", ["赤"], [], True),
    ("วงกลมสีแดง", ["แดง"], [], True),
    ("ปี", ["ป"], [], False),  # Thai: a vowel sign belongs to its letter
    ("कि", ["का"], [], False),  # Hindi: two vowels, ki and ka
])
def test_an_answer_is_right_by_whole_words(answer, expect, wrong, ok):
    """Catches "red" found in "hundred", and a right word that excuses a wrong one."""
    assert answer_ok(answer, expect, wrong) is ok


def test_words_are_lower_case_and_padded():
    """Catches phrases that match across punctuation differently at the start and at the end."""
    assert words_of("The TOP-left, it's 2!") == " the top left it 's 2 " and words_of("...") == "  "


@pytest.mark.parametrize("text, words", [
    ("The dogs' ball, the dog's.", "the dogs ball the dog 's"),
    ("'Red', \u201cblue\u201d; \u2018green\u2019", "red blue green"),
    ("they\u2019re we'd I'll don`t o'clock", "they 're we 'd i 'll don't o'clock"),
    ("T-shirt red\u2011brick - well--known 7-up", "t-shirt red-brick well known 7-up"),
    ("2.5 of 1,000 at 10:30. 2,5", "2.5 of 1,000 at 10:30 2 5"),
    ("圆是red的3匹", "圆 是 red 的 3 匹"),
    ("ドック\u3099", "ド ッ グ"),              # Japanese, decomposed
    ("สีแดง ๑๒", "สี แ ด ง ๑๒"),
    ("한국어 단어", "한국어 단어"),  # Korean has spaces
    ("हिन्दी", "हिन्दी"),
])
def test_words_are_those_of_each_script(text, words):
    """Catches quotes and 's in a word, accents and vowel signs that part it, a sentence as a word.

    Words that were found are found again, unchanged: phrases in meta.json are such words.
    """
    assert tokens_of(text) == words.split() == tokens_of(words)
    assert words_of(words_of(text)) == words_of(text)


@pytest.mark.parametrize("answer, style, ok", [
    ("Red", "word", True), ("Red.", "word", True),
    ("It is red.", "word", False), ("", "word", False),
    ("The circle is red.", "sentence", True), ("Is it red or not?", "sentence", True),
    ("The circle is red. The ring is blue.", "sentence", False),
    ("The circle is red", "sentence", False),
    ("Red.", "sentence", False), ("", "sentence", False),
    ("There are 2.5 red circles.", "sentence", True),
    ("There is a\nred circle.", "sentence", False),
    ("It is red!", "sentence", True), ("One mark is there. An X", "sentence", False),
    ("- red circle\n- blue ring", "list", True), ("- red circle", "list", True),
    ("red circle", "list", False),
    ("- red circle\nblue ring", "list", False), ("", "list", False),
    ("There is a red circle. There is a ring.", "detail", True),
    ("There is a red circle", "detail", False),
    ("It is red.", "detail", True), ("Look: it is red!", "detail", True),
    ("It is red. Or is it?", "detail", True),
    ("Yes.", "detail", False), ("- a red\n- b blue.", "detail", False), ("", "detail", False),
    ("", "", True), ("whatever it is", "", True),
    ("It's", "word", True), ("It\u2019s red.", "sentence", False), ("Rene\u0301", "word", True),
    ("红色。", "word", True), ("红 色", "word", False),
    ("圆是红色的。", "sentence", True),
    ("圆是红的。环是蓝的。", "sentence", False),
    ("圆是红的。环是蓝的。", "detail", True),
])
def test_each_style_has_its_form(answer, style, ok):
    """Catches a judge of style that looks at the wrong form, or fails on an empty answer."""
    assert style_ok(answer, style) is ok


@pytest.mark.parametrize("answer, refused", [
    ("I'm sorry, I can't help with that.", True), ("I can't talk about it.", True),
    ("i cannot do this", True), ("I'm sorry.", True), ("I can\u2019t say.", True),
    ("Sorry, but I won't.", True), ("Yes, there is a red circle.", False), ("I'm not sure.", False),
    ("You can't see it.", False), ("", False), ("I'm sorrynot", False),
])
def test_a_refusal_is_known_by_its_words(answer, refused):
    """Catches "not sure" or another's "can't" taken for a refusal."""
    assert is_refusal(answer) is refused


def test_doubt_is_known_by_its_words():
    """Catches a doubt in capitals that is not heard, and one that was not said."""
    assert is_unsure("I'm Not Sure.") and not is_unsure("I'm sure it is not.")
    assert is_unsure("I'm not\nsure.") and not is_unsure("They are not surely red.")


# --- POPE ---


@pytest.mark.parametrize("answer, yes", [
    ("Yes", True), ("No", False), ("no", False), ("No, there is no ring.", False),
    ("There is not.", False), ("Yes. There is no doubt.", True), ("It is, no, wait", False),
    ("", True), ("I cannot tell", True),
    # quirks of the published parser: case-sensitive, split at spaces and full stops only
    ("NO", True), ("Not that I see", True), ("no!", True), ("Nothing", True), ("No\nyes", True),
    ("Maybe 3.5 no", True),
])
def test_answers_are_read_as_pope_reads_them(answer, yes):
    """Catches a kinder parser: figures would not compare with published ones."""
    assert says_yes(answer) is yes


def test_pope_figures_are_the_ones_worked_by_hand():
    """Catches precision and recall swapped, and no taken for the positive class.

    Says yes to 4 of 8, 3 of them rightly; 5 are truly yes. Right: 3 yes and 2 no, 5/8. Precision
    3/4, recall 3/5, F1 2 * 0.75 * 0.6 / 1.35 = 2/3, yes 4/8.
    """
    says = [True, True, True, True, False, False, False, False]
    truth = [True, True, True, False, True, True, False, False]
    want = {"accuracy": 5 / 8, "precision": 3 / 4, "recall": 3 / 5, "f1": 2 / 3, "yes": 0.5}
    assert pope(says, truth) == pytest.approx(want)


def test_a_model_that_never_says_yes_has_no_precision_but_a_score():
    """Catches a division by zero, a precision of no answer, a perfect score of no question."""
    assert pope([False, False], [True, False]) == {
        "accuracy": 0.5, "recall": 0.0, "f1": 0.0, "yes": 0.0}
    assert pope([False], [False]) == {"accuracy": 1.0, "yes": 0.0} and pope([], []) == {}
    assert pope([True, True], [False, False])["f1"] == 0.0
    assert set(pope([True], [True]).values()) == {1.0}


def random_truth(seed: int) -> list[list[str]]:
    rng = random.Random(seed)
    return [
        rng.choices("abcdefgh", [8, 7, 6, 5, 4, 3, 2, 1], k=rng.randint(0, 5)) for _ in range(60)
    ]


@pytest.mark.parametrize("strategy", ["random", "popular", "adversarial"])
def test_pope_asks_for_as_many_absent_objects_as_present_ones(strategy):
    """Catches an unbalanced set, an "absent" object that is there, and one asked about twice."""
    truth = random_truth(0)
    asked = pope_questions(truth, strategy, per_image=3)
    for i, names in enumerate(truth):
        mine = [(name, there) for j, name, there in asked if j == i]
        assert len({name for name, _ in mine}) == len(mine)
        assert all((name in names) == there for name, there in mine)
        n = min(3, len(set(names)), len(set("abcdefgh") - set(names)))
        assert (
            Counter(there for _, there in mine) == Counter({True: n, False: n})
            or n == 0 == len(mine)
        )
    assert [j for j, _, _ in asked] == sorted(j for j, _, _ in asked)
    assert asked == pope_questions(truth, strategy, per_image=3)


def absent_of(picture: int, truth: list[list[str]], strategy: str, seed: int = 0) -> list[str]:
    """The absent objects asked about one picture."""
    asked = pope_questions(truth, strategy, seed)
    return [name for i, name, there in asked if i == picture and not there]


def test_popular_asks_for_the_most_frequent_absent_objects():
    """Catches a popularity that counts repeats in one picture: d stands often, but in one only.

    a is in three pictures, b in two, c and d in one each. The last picture shows c: a is asked.
    """
    truth = [["a", "b"], ["a", "b"], ["a", "d", "d", "d", "d"], ["c"]]
    assert absent_of(3, truth, "popular") == ["a"]  # one object is there, so one absent is asked
    truth[3] = ["c", "d"]
    assert absent_of(3, truth, "popular") == ["a", "b"]


def test_adversarial_asks_for_the_companion():
    """Catches the popular strategy under another name.

    "table" is in most pictures, "fork" only where there is a knife. The last picture shows a knife
    without a fork: adversarial asks for the fork, popular for the table.
    """
    truth = [
        ["table"], ["table"], ["table"], ["table"],
        ["knife", "fork"], ["knife", "fork"], ["knife"],
    ]
    assert (
        absent_of(6, truth, "adversarial") == ["fork"]
        and absent_of(6, truth, "popular") == ["table"]
    )


def test_random_asks_differ_with_the_seed():
    """Catches a seed that is not used, and popular objects under the name of random ones.

    By default the seed is 0, and as in the paper three objects are there and three are not.
    """
    truth = [list("abcd"), list("efgh"), list("efgh")]
    assert pope_questions(truth, "random") == pope_questions(truth, "random", 0, per_image=3)
    asked = [absent_of(0, truth, "random", seed=seed) for seed in range(20)]
    assert all(len(names) == 3 for names in asked)
    assert {names[0] for names in asked} == set("efgh")


def test_an_unknown_strategy_is_refused():
    """Catches a misspelled strategy that silently asks at random."""
    with pytest.raises(
        ValueError, match="strategy 'rare' is not one of random, popular, adversarial"
    ):
        pope_questions([["a"]], "rare")


def test_pope_knows_of_objects_that_it_does_not_ask_about():
    """Catches a hardly visible object asked about as if absent, and a habit with it not seen.

    A ring comes with a diamond, mostly a hardly visible one; in the last picture it does not, and
    there the adversary asks about the diamond first.
    """
    truth = [["ring"], ["ring"], ["ring", "cross"], ["ring"]]
    annotated = [["ring", "diamond"], ["ring", "diamond"], ["ring", "cross"], ["ring"]]
    asked = pope_questions(truth, "adversarial", annotated=annotated)
    assert [q for q in asked if q[0] == 3] == [(3, "ring", True), (3, "diamond", False)]
    assert not [q for q in asked if q[0] < 2 and q[1] == "diamond"]
    assert sum(yes for _, _, yes in asked) * 2 == len(asked)


# --- CHAIR ---

PHRASES = {
    "red circle": "red circle", "red circles": "red circle", "circle": "some circle",
    "ring": "ring", "rings": "ring", "dark red circle": "dark circle", "ring road": "road",
    "key ring": "",
}


@pytest.mark.parametrize("text, named", [
    ("A red circle and a ring.", ["red circle", "ring"]),
    ("Two red circles, Rings!", ["red circle", "ring"]),
    ("A dark red circle.", ["dark circle"]),
    ("circle, red circle, circle", ["some circle", "red circle", "some circle"]),
    ("ring ring ring", ["ring", "ring", "ring"]),
    ("rings bring", ["ring"]), ("a ring road, a ring", ["road", "ring"]),
    ("red", []), ("", []), ("a red", []),
    ("The ring's red, the rings' too", ["ring", "ring"]), ("'ring' \u2018ring\u2019", ["ring"] * 2),
    ("A ring. Road works.", ["ring"]), ("dark, red circle", ["red circle"]),
    ("A ring-shaped key, a red-circle", ["red circle"]), ("an ear ring", ["ring"]),
    ("an earring", []), ("a key ring, a ring", ["ring"]), ("The lid. Its key: a ring", ["ring"]),
])
def test_mentions_are_the_longest_phrases_with_repeats(text, named):
    """Catches "circle" counted inside "red circle", plurals missed, a match within a word.

    Also possessives, quotes, a phrase across a comma, and words that stand for nothing.
    """
    assert mentions(text, PHRASES) == named
    assert mentions(text, {}) == []


def test_chair_is_the_number_worked_by_hand():
    """Catches CHAIRs and CHAIRi swapped, mentions without repeats, and recall over mentions.

    Text 1 names a, b, x; there are a, b, c: 1 wrong of 3, 2 of 3 kinds found.
    Text 2 names a, y, y, a; there is a: 2 wrong of 4, 1 of 1 found.
    Text 3 names nothing; there are two b: 0 of 1 kind found.
    Together 3 wrong of 7 mentions, 2 of 3 texts wrong, 3 of 5 kinds found.
    """
    named = [["a", "b", "x"], ["a", "y", "y", "a"], []]
    there = [["a", "b", "c"], ["a"], ["b", "b"]]
    assert chair(named, there) == pytest.approx(
        {"chair_i": 3 / 7, "chair_s": 2 / 3, "recall": 3 / 5}
    )


def test_a_second_mention_is_as_right_as_the_first():
    """Catches mentions matched one to one: CHAIR asks whether the kind is there, not how many."""
    assert chair([["ring"] * 3], [["ring"]]) == {"chair_i": 0.0, "chair_s": 0.0, "recall": 1.0}
    assert chair([["ring"]], [["ring", "ring"]]) == {"chair_i": 0.0, "chair_s": 0.0, "recall": 1.0}
    assert chair([["ring"]], [["disc"]]) == {"chair_i": 1.0, "chair_s": 1.0, "recall": 0.0}


def test_a_share_of_nothing_is_no_figure():
    """Catches a perfect CHAIR of texts that name nothing, of no object and of no picture."""
    assert chair([[], []], [["a"], []]) == {"chair_s": 0.0, "recall": 0.0}
    assert chair([["a"]], [[]]) == {"chair_i": 1.0, "chair_s": 1.0}
    assert chair([], []) == {}
