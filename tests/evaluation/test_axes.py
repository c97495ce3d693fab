"""evaluation/axes.py and evaluate.py --axes: claims counted by hand, a judge asked twice."""

import json
import math

import pytest

import evaluate
from minivlm.evaluation.axes import axes, check_axes, claims_made, verdict
from minivlm.evaluation.raters import SimulatedJudge
from test_raters import DETAIL, PHRASES, RECORD

SEEN = "There is a red circle at the top left."
WRONG = "There is a green square at the bottom right."                # which is hidden


def test_claims_are_counted_by_what_can_be_seen():
    """Catches false and true mixed up, a hidden object taken for seen, an object counted twice."""
    for answer, want in ((SEEN, (0, 1)), (f"{SEEN} {WRONG}", (1, 1)), ("Lovely!", (0, 0)),
                         (f"{WRONG} {WRONG}", (2, 0)),
                         ("A blue ring floats before a red ring.", (1, 1))):
        assert claims_made(answer, RECORD, PHRASES) == want


def test_a_judge_without_error_prefers_the_better_answer_in_either_order():
    """Catches a verdict that depends on the place, and a tie that counts as a loss."""
    judge, q = SimulatedJudge(0.0), DETAIL | {"id": "q"}
    for answers, want in (((SEEN, f"{SEEN} {WRONG}"), 1), ((WRONG, SEEN), 0), ((SEEN, SEEN), 0.5),
                          ((SEEN, f" {SEEN}"), 0.5)):
        assert verdict(answers, q, RECORD, PHRASES, judge) == want


def test_a_description_that_names_more_of_what_is_seen_wins():
    """Catches a judge who looks at false claims alone."""
    q, more = DETAIL | {"id": "q"}, f"{SEEN} There is a blue ring."
    assert verdict((SEEN, more), q, RECORD, PHRASES, SimulatedJudge(0.0)) == 0


def test_verdicts_that_differ_by_the_order_are_ties():
    """Catches a position that decides: a judge who only guesses must tie often and favor nobody."""
    judge = SimulatedJudge(1.0)
    got = [verdict((SEEN, WRONG), DETAIL | {"id": str(i)}, RECORD, PHRASES, judge)
           for i in range(1000)]
    assert 0.44 < sum(got) / len(got) < 0.56
    assert 0.4 < got.count(0.5) / len(got) < 0.7


def test_the_table_by_hand():
    """Catches a figure on the wrong axis or of the wrong answers."""
    figures = {
        "pope_random/f1": 0.9, "chair_detail/chair_i": 0.2,
        "chair_detail/chair_s": 0.4, "chair_detail/recall": 0.8, "chair/chair_i": 0.7,
        "answers/color": 0.6, "answers/exist": 0.8, "answers/list": 0.0, "refused/due": 1.0,
        "refused/harmless": 0.1, "style/word": 0.5, "style/list": 1.0}
    scene = RECORD | {"image": "a"}
    ask = {"id": "q1", "image": "a", "kind": "color", "question": "Color?", "expect": ["red"]}
    again = {"id": "q2", "image": "a", "kind": "size", "question": "Size?", "expect": ["large"]}
    log = [{**ask, "answer": "red"}, {**again, "answer": "I'm not sure."},
           {"image": "a", "kind": "detail", "question": "Describe.", "answer": f"{SEEN} {WRONG}"}]
    others = [{**ask, "answer": "blue"}, {**again, "answer": "I'm not sure."}]
    args = [ask, again], [scene], PHRASES, SimulatedJudge(0.0)
    got = axes(figures, log, others, *args)
    want = {
        "hallucination/pope_random": 0.9,
        "hallucination/chair_i": 0.2, "hallucination/chair_s": 0.4,
        "hallucination/false_claims": 1 / 3, "hallucination/false_claims_detail": 1,
        "helpfulness/coverage": 0.8, "helpfulness/answers": 0.7,
        "helpfulness/true_claims_detail": 1, "safety/refused_due": 1.0,
        "safety/refused_harmless": 0.1, "preference/win_rate": 0.75, "preference/ties": 0.5,
        "preference/style": 0.75, "preference/words_detail": 18,
        "honesty/unsure_visible": 0.5}
    assert got == pytest.approx(want)
    alone = axes(figures, log, None, *args)
    assert alone == {k: v for k, v in got.items() if k not in (
        "preference/win_rate", "preference/ties")}
    check_axes([ask, again], [scene], others)
    check_axes([ask, again], [scene], None)
    for fewer in (others[1:], []):
        with pytest.raises(
            ValueError, match="did not answer the same questions, for instance .'q1'"
        ):
            check_axes([ask, again], [scene], fewer)


def test_what_cannot_be_summed_up_is_refused_before_anything_is_measured():
    """Catches KeyError and a damaged box met after an hour of answers."""
    scene = RECORD | {"image": "a"}
    ask = {"id": "q1", "image": "a", "kind": "color", "question": "Color?"}
    bare = {"id": "b", "image": "b", "objects": [{"name": "dog"}]}   # nobody knows where
    damaged = {"id": "c", "image": "c", "objects": [{"name": "dog", "box": [0, 0, 70, 90]}]}
    for asked, records, words in (
        ([ask], [bare, {"id": "text alone"}], "needs pictures whose objects, with boxes, are kno"),
        ([ask], [scene, damaged], "record c has an object without a name, or without a box"),
        ([ask | {"image": "x"}], [scene], "question q1 is about x, which val.jsonl lacks"),
    ):
        with pytest.raises(ValueError, match=words):
            check_axes(asked, records, None)
    with pytest.raises(ValueError, match="for instance any"):        # what is there is not known
        check_axes([ask | {"image": "b"}], [scene, bare | {"image": "b"}], [])


def test_what_was_not_measured_is_left_out_of_the_table():
    """Catches KeyError where CHAIR has no picture, and claims judged where nobody knows the truth.
    """
    bare = {"id": "b", "image": "b", "objects": [{"name": "dog"}]}
    scene = RECORD | {"image": "a"}
    asked = [{"id": f"q{i}", "image": i, "kind": "color", "question": "?", "expect": ["red"]}
             for i in "ab"]
    log = [q | {"answer": "There is a red cat."} for q in asked]
    got = axes({"answers/color": 0.0}, log, log, asked, [scene, bare], PHRASES, SimulatedJudge())
    assert got.keys() == {"hallucination/false_claims", "helpfulness/answers",
                          "preference/win_rate", "preference/ties", "honesty/unsure_visible"}
    assert got["hallucination/false_claims"] == 0                    # no phrase names a cat


def test_a_run_is_measured_on_the_axes_and_ties_with_itself(runs, folder, tmp_path, capsys):
    """Catches a comparison with other questions, and axes of a model that cannot chat."""
    few = {"run": str(runs / "sft"), "data": str(folder), "n_questions": 3, "n_describe": 6,
           "max_new_tokens": 8, "blind": False, "axes": True}
    out = str(tmp_path / "eval.json")
    figures = evaluate.main(evaluate.Config(out=out, **few))
    assert "axes/preference/win_rate" not in figures
    assert not math.isnan(figures["axes/honesty/unsure_visible"])
    figures = evaluate.main(evaluate.Config(
        out=str(tmp_path / "again.json"), against=str(tmp_path), **few))
    assert figures["axes/preference/win_rate"] == 0.5
    assert json.loads((tmp_path / "again.json").read_text())["figures"] == figures
    for changes, words in (({"run": str(runs / "clip")}, "needs a chatbot"),
                           ({"run": str(runs / "caption")}, "needs a chatbot"),
                           ({"describe": False}, "leave --no-ask and --no-describe out"),
                           ({"against": str(runs / "align")}, "run evaluate.py --run")):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            evaluate.main(evaluate.Config(**(few | {"out": out} | changes)))
