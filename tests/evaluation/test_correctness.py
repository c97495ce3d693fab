"""evaluation/correctness.py: the form of an answer, and questions that no answer can satisfy."""

import pytest

from minivlm.evaluation.correctness import UNSET, check_names, follows, is_right

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
