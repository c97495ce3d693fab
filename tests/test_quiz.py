"""data/quiz.py: what is asked has one answer, the judge takes it and no other."""

import json
import random
from collections import Counter

import pytest

from data import quiz, template
from data.facts import claims, holds, things_of
from data.shapes.language import phrases
from minivlm import measure
from minivlm.metrics import answer_ok, style_ok
from test_instruct import WORLD, folder, read, scene

NAMES = frozenset(WORLD)


def test_the_right_answer_is_taken_and_that_of_another_picture_is_not():
    """Catches a judge that lets everything pass, or refuses what the teacher itself writes.

    An answer to the same question about another picture must be refused unless it says the same.
    """
    kinds, refused = Counter(), Counter()
    for i in range(600):
        record = scene(i)
        for q in quiz.questions_of(record, random.Random(i), WORLD):
            if not q.expect:
                continue
            kinds[q.kind] += 1
            assert answer_ok(q.answer, q.expect, q.wrong), q
            assert style_ok(q.answer, q.style), q
            if q.style != "word" and q.kind != "unknowable":
                read_, _ = claims(q.answer)
                things = [t for t in things_of(record) if not t.hidden]
                assert read_ and all(holds(c, things, NAMES) for c in read_), q
        others = quiz.questions_of(scene(i + 1), random.Random(i + 1), WORLD)
        for q in quiz.questions_of(record, random.Random(i), WORLD):
            for other in others:
                if q.kind == other.kind and q.expect and set(q.expect) != set(other.expect):
                    refused[q.kind] += 1
                    assert not answer_ok(other.answer, q.expect, q.wrong), (q, other)
    assert set(kinds) >= {"exist", "color", "kind", "size", "count", "position", "relation",
                          "negation", "compare_number", "compare_size", "same", "next_to",
                          "without", "one_more", "unusual", "unknowable"}
    assert min(kinds.values()) > 15 and min(refused.values()) > 5 and len(refused) > 12


@pytest.mark.parametrize("kind, made, good, bad", [
    ("negation", ({"x": "red ring"}, "", "No, there is a red ring at the top."),
     "There is a red ring.", "Yes, there is no red ring."),
    ("negation", ({"x": "red ring"}, "", "Yes, there is no red ring."), "Yes.",
     "Yes, there is a red ring."),
    ("count", ({"xs": "rings"}, "zero", "There are no rings."), "There are no rings.", "One"),
    ("count", ({"xs": "rings"}, "two", "There are two rings."), "2", "There are no rings."),
    ("position", ({"x": "ring"}, "", "The ring is at the top."), "At the top.", "At the top left."),
    ("kind", ({"x": "red object"}, "ring", "The red object is a ring."), "Ring", "A square."),
    ("next_to", ({"x": "blue ring", "r": "above"}, "red",
                 "The ring is above the blue ring. The ring is red."),
     "What is above the blue ring is red.", "Green"),
    ("without", ({"x": "ring"}, "two", "There are three objects. The ring is one of them. "
                 "So two objects are left."), "So two objects are left.", "Two or three."),
])
def test_what_is_right_worked_by_hand(kind, made, good, bad):
    """Catches words of the question held against the answer, and halves of other answers taken."""
    record = {"objects": [
        {"name": n, "attributes": {"color": c, "size": "small"}, "box": [0, y, 0.3, y + 0.3]}
        for n, c, y in (("ring", "red", 0), ("ring", "blue", 0.6))]}
    expect, wrong = quiz.judged((kind, *made), things_of(record), WORLD)
    assert answer_ok(made[2], expect, wrong) and answer_ok(good, expect, wrong)
    assert not answer_ok(bad, expect, wrong)


def test_both_files_ask_the_same_in_other_words_and_a_teacher_scores_one(tmp_path):
    """Catches questions that differ in more than their phrasing, and a judge no one can satisfy."""
    data = folder(tmp_path, [scene(i) for i in range(80)], phrases=phrases())
    (data / "train.jsonl").rename(data / "val.jsonl")
    quiz.main(quiz.Config(str(data)))
    plain, kept = read(data / "quiz.jsonl"), read(data / "quiz_held_out.jsonl")
    changed = 0
    for a, b in zip(plain, kept, strict=True):
        same = ("id", "image", "kind", "style", "expect", "wrong", "border")
        assert [a[k] for k in same] == [b[k] for k in same]
        changed += a["question"] != b["question"]
    assert changed == len(plain)
    for name in ("quiz", "quiz_held_out"):
        known = {(q["image"], q["question"]): q for q in read(data / f"{name}.jsonl")}

        def perfect(pairs):
            out = []
            for pair in pairs:
                q = known[pair]
                form = {"list": "- red ring", "harmless": "Gladly."}.get(
                    q["style"] or q["kind"], "There is a ring.")
                out.append(q["answer"] or form)
            return out

        seen = measure.HeldOut(str(data), {}, None, None)
        figures = measure.answers(perfect, seen, 300, [], name)
        assert figures["followed/all"] == 1
        lazy = measure.answers(lambda pairs: ["Yes."] * len(pairs), seen, 300, [], name)
        assert lazy["followed/all"] < 0.4


def test_a_right_answer_in_the_wrong_form_does_not_follow(tmp_path):
    """Catches a figure that forgets the form or the refusals: 1, 0 and 0 of three kinds."""
    asked = [
        {"kind": "a", "question": "1", "style": "word", "expect": ["red"], "wrong": ["blue"]},
        {"kind": "b", "question": "2", "style": "word", "expect": ["red"]},
        {"kind": "c", "question": "3", "expect": ["red"]},
        {"kind": "hidden", "question": "4", "expect": ["yes"]}]
    lines = [json.dumps({"id": q["question"], "image": "x", **q}) for q in asked]
    (tmp_path / "quiz.jsonl").write_text("\n".join(lines))
    said = {"1": "Red", "2": "It is red.", "3": "I'm sorry, I can't say red.", "4": "No"}
    figures = measure.answers(
        lambda pairs: [said[q] for _, q in pairs],
        measure.HeldOut(str(tmp_path), {}, None, None), 9, [], "quiz")
    assert figures["followed/all"] == pytest.approx(1 / 3)
    assert figures["answers/b"] == figures["answers/c"] == 1


def test_deep_questions_count_nothing_hidden():
    """Catches a truth that cannot be seen."""
    for i in range(300):
        record = scene(i)
        if any(o["hidden"] for o in record["objects"]):
            kinds = {q.kind for q in quiz.questions_of(record, random.Random(i), WORLD)}
            assert not kinds & {"next_to", "without", "one_more", "unusual"}
    assert template.world_of({"phrases": {"a": "red ring", "b": "dog"}, "held_out": ["dog"]}) == (
        "red ring",)
