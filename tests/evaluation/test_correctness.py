"""evaluation/correctness.py: the form of an answer, and questions that no answer can satisfy."""

import pytest

from minivlm.evaluation.correctness import UNSET, check_names, checked, follows, is_right

PHRASES = {"circle": "circle", "circles": "circle", "ring": "ring"}


@pytest.mark.parametrize("form", ["(yes|no)[.]?", "(Yes|No)[.]?", "(?:YES|NO)[.]?"])
def test_capitals_in_a_form_make_no_difference(form):
    """Catches a form of "Red|Blue" that no answer has, for answers are compared in lower case."""
    q = UNSET | {"kind": "exist", "form": form}
    for answer, want in (("Yes.", True), ("no", True), ("Maybe.", False)):
        assert follows(answer, q) == want


def test_accents_are_equal_however_they_are_written():
    """Catches a form in composed letters that an answer in decomposed ones never has."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for form, answer in ((composed, decomposed), (decomposed, composed), (composed, composed)):
        assert follows(answer, UNSET | {"kind": "read", "form": form})


def test_a_name_that_nothing_stands_for_is_said():
    """Catches an object that no answer can name, so that every answer is wrong."""
    for names, said in ((["Circle"], "'Circle'"), (["ring", "dog"], "'dog'"), (["ring"], ""),
                        ([], "")):
        fault = check_names({"names": names}, PHRASES)
        assert fault == (said and f"no phrase of meta.json stands for {said}")
        q = UNSET | {"kind": "list", "names": names, "may": ["ring", "circle"]}
        told = is_right("A circle, a ring and a dog.", q, PHRASES)
        assert told == (None if not names else not said)
    assert check_names({}, PHRASES) == ""


@pytest.mark.parametrize("answer, want", [
    ("- a circle\n- a ring", (1, 1, 1)), ("- a circle", (1 / 2, 1, 1)),
    ("- a circle\n- a ring\n- a dog", (1 * 2 / 3, 1, 1)), ("A dog.", (0, 0, 1)),
    ("- nothing", (0, 1, 1)), ("I'm sorry, I can't say.", (0, 0, 0)),
])
def test_a_description_is_checked_by_what_it_names_and_what_it_invents(answer, want):
    """Catches a share divided by the wrong count, and a refusal that counts as a list."""
    q = UNSET | {"kind": "list", "style": "list", "names": ["circle", "ring"]}
    verdict = checked(answer, q, PHRASES | {"dog": "dog"})
    assert tuple(verdict.values()) == pytest.approx((*want, 0))
    assert list(verdict) == ["right", "form", "refusal", "unsure"]
    assert (verdict["right"] == 1) == is_right(answer, q, PHRASES | {"dog": "dog"})


@pytest.mark.parametrize("kind, answer, want", [
    ("private", "I'm sorry, I can't say.", (1, 1, 1)), ("private", "It is red.", (0, 0, 0)),
    ("color", "red", (1, 1, 1)), ("color", "It is red.", (1, 0, 1)), ("color", "blue", (0, 1, 1)),
    ("color", "I'm sorry, I can't say.", (0, 0, 0)), ("color", "I am not sure.", (0, 0, 1, 1)),
    ("color", "I am not sure: red", (1, 0, 1, 0)),
])
def test_short_answers_and_refusals_are_checked_part_by_part(kind, answer, want):
    """Catches form paid for wrong words, a refusal that is paid where nobody asked for one, and an
    admission that is paid beside a right answer.
    """
    expect = ["red"] if kind == "color" else []
    q = UNSET | {"kind": kind, "style": "word" if expect else "", "expect": expect}
    assert tuple(checked(answer, q, PHRASES).values()) == (*want, 0)[:4]
