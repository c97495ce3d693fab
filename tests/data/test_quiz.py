"""data/quiz.py: what is asked has one answer, the judge takes it and no other."""

import json
import random
import re
from collections import Counter

import pytest

from data import quiz
from data.shapes.language import phrases
from minivlm.engine import template
from minivlm.evaluation import measure
from minivlm.evaluation.english import article, join
from minivlm.evaluation.scene import claims, holds, things_of
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
    ("negation", ({"x": "red ring", "a": "a red ring"}, "", "No, there is a red ring at the top."),
     "There is a red ring.", "No, there is a blue ring."),
    ("negation", ({"x": "red ring", "a": "a red ring"}, "", "Yes, there is no red ring."),
     "No, there is no red ring.", "Yes, there is a red ring."),
    ("exist", ({"x": "red ring", "a": "a red ring"}, "yes", "Yes, there is a red ring at the top."),
     "Yes", "Yes, there is no red ring."),
    ("exist", ({"x": "red dog", "a": "a red dog"}, "no", "No, there is no red dog."),
     "No", "No, there is a red dog."),
    ("relation", ({"x": "red ring", "y": "blue ring", "r": "above"}, "yes",
                  "Yes, the red ring is above the blue ring."), "Yes.",
     "Yes, the red ring is below the blue ring."),
    ("compare_number", ({"xs": "red objects", "ys": "dogs"}, "yes",
                        "Yes, there are more red objects than dogs."), "Yes",
     "Yes, there are fewer red objects than dogs."),
    ("compare_size", ({"x": "red ring", "y": "blue ring"}, "no",
                      "No, the red ring is smaller than the blue ring."), "No",
     "No, the red ring is larger than the blue ring."),
    ("same", ({"x": "red ring", "y": "blue ring", "w": "size"}, "yes",
              "Yes, the red ring and the blue ring have the same size."), "Yes",
     "Yes, the red ring and the blue ring have different sizes."),
    ("size", ({"x": "red ring"}, "small", "The red ring is small."), "Small", "Large or small."),
    ("color", ({"x": "top ring"}, "red", "The top ring is red."), "red!", "blue"),
    ("one_more", ({"x": "ring", "xs": "rings"}, "three",
                  "There are two rings. With one more there would be three."),
     "there are two rings; with one more there would be three",
     "There are five rings. With one more there would be three."),
    ("count", ({"xs": "rings"}, "zero", "There are no rings."), "There are no rings.", "One"),
    ("count", ({"xs": "rings"}, "two", "There are two rings."), "2", "There are no rings."),
    ("position", ({"x": "ring"}, "", "The ring is at the top."), "At the top.", "At the top left."),
    ("kind", ({"x": "red object"}, "ring", "The red object is a ring."), "Ring", "A square."),
    ("next_to", ({"x": "blue ring", "r": "above"}, "red",
                 "The ring is above the blue ring. The ring is red."),
     "What is above the blue ring is red.", "Green"),
    ("without", ({"x": "ring"}, "two", "There are three objects. The ring is one of them. "
                 "So two objects are left."), "There are three objects. The ring is one of them. "
     "So two objects are left!", "There are nine objects. The ring is one of them. So two objects "
     "are left."),
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

        def told(pairs, extra=()):
            out = []
            for pair in pairs:
                q = known[pair]
                names = [article(n) for n in (*q["names"], *extra)]
                form = {"list": "\n".join("- " + n.split(" ", 1)[1] for n in names),
                        "sentence": f"There is {join(names or ['a dog'])}.",
                        "detail": " ".join(f"There is {n} somewhere." for n in names)}
                out.append(q["answer"] or form.get(q["style"], "Gladly."))
            return out

        seen = measure.EvalData(str(data), {"phrases": phrases()}, None, None)
        figures = measure.answers(told, seen, 300, [], name)
        assert figures["followed/form"] == figures["followed/all"] == 1
        lazy = measure.answers(lambda pairs: ["Yes."] * len(pairs), seen, 300, [], name)
        assert lazy["followed/all"] < lazy["followed/form"] < 0.35
        odd = measure.answers(lambda pairs: told(pairs, ["pink ring"]), seen, 300, [], name)
        assert odd["followed/all"] == 1  # what no phrase names is not read
        more = measure.answers(lambda pairs: told(pairs, WORLD), seen, 300, [], name)
        n_kinds = len({q["kind"] for q in known.values()})
        assert more["followed/form"] == 1
        assert more["followed/all"] == pytest.approx(1 - 3 / n_kinds)


def test_the_form_of_a_question_fits_its_answer_and_no_other_kind_of_answer():
    """Catches forms that fit anything: an answer to another question about the same picture."""
    alike = [{"exist", "negation"}, {"list", "sentence", "detail"}]
    refused = Counter()
    for i in range(300):
        asked = [q for q in quiz.questions_of(scene(i), random.Random(i), WORLD)
                 if q.form and q.answer and q.style != "word"]
        for q in asked:
            line = {"kind": q.kind, "style": q.style, "form": q.form}
            assert measure.follows(q.answer, line), q
            assert not measure.follows("I'm sorry, I can't tell.", line)
            for other in asked:
                if q.kind != other.kind and {q.kind, other.kind} not in alike:
                    refused[q.kind] += 1
                    assert not measure.follows(other.answer, line), (q, other)
    assert len(refused) == 16 and min(refused.values()) > 20


def test_a_name_with_signs_of_a_regular_expression_is_a_name_in_a_form():
    """Catches a form that is no regular expression, and one that a right answer does not match."""
    form = quiz.form_of("kind", {"x": "red thing"}, "", {"kind": {"c++ mug", "(ring", "ball"}})
    for name in ("c++ mug", "(ring", "ball"):
        assert re.fullmatch(form, f"the red thing is a {name}.")
    assert not re.fullmatch(form, "the red thing is a ccc mug.")


def test_pictures_without_colors_and_with_places_of_their_own_are_asked_about():
    """Catches two-word kinds cut in two, "at the left box", a record without objects."""
    kinds = ("person", "hot dog", "wine glass", "bus")
    for i in range(200):
        rng = random.Random(i)
        boxes = [[x, y, x + 0.1, y + 0.1] for x, y in
                 [(rng.random() * 0.9, rng.random() * 0.9) for _ in range(rng.randint(1, 6))]]
        photo = {"objects": [{"name": rng.choice(kinds), "box": b, "crowd": rng.random() < 0.1}
                             for b in boxes]}
        tiles = {"objects": [
            {"name": rng.choice(("circle", "square")), "box": b,
             "place": rng.choice(("top left box", "left box")), "attributes": {
                 "color": rng.choice(("yellow", "black")), "size": rng.choice(("small", "large"))}}
            for b in boxes]}
        for record, names in ((photo, kinds), (tiles, ("yellow circle", "black square"))):
            for q in quiz.questions_of(record, rng, names):
                if q.expect:
                    assert answer_ok(q.answer, q.expect, q.wrong), q
                if q.form and q.answer:
                    assert measure.follows(q.answer, {"kind": "", "style": q.style,
                                                      "form": q.form}), q


def test_a_folder_without_objects_is_refused_and_one_picture_without_is_left_out(tmp_path):
    """Catches an empty quiz, and a photograph in which nothing is boxed that stops all."""
    bare = {"id": "bare", "image": "x.jpg", "objects": []}
    data = folder(tmp_path / "a", [scene(1), bare], phrases=phrases())
    assert quiz.main(quiz.Config(str(data), split="train"))["exist"] == 1
    data = folder(tmp_path / "b", [bare])
    with pytest.raises(ValueError, match="no picture of .* has objects"):
        quiz.main(quiz.Config(str(data), split="train"))


def test_a_right_answer_in_the_wrong_form_does_not_follow(tmp_path):
    """Of five kinds: right; right in the wrong style; a refusal; another form; nothing is known."""
    asked = [
        {"kind": "a", "question": "1", "style": "word", "expect": ["red"], "wrong": ["blue"]},
        {"kind": "b", "question": "2", "style": "word", "expect": ["red"]},
        {"kind": "c", "question": "3", "expect": ["red"]},
        {"kind": "d", "question": "5", "expect": ["red"], "form": "it is (red|blue)[.]"},
        {"kind": "e", "question": "6", "people": ["red"] * 10},
        {"kind": "hidden", "question": "4", "expect": ["yes"]}]
    lines = [json.dumps({"id": q["question"], "image": "x", **q}) for q in asked]
    (tmp_path / "quiz.jsonl").write_text("\n".join(lines))
    said = {"1": "Red", "2": "It is red.", "3": "I'm sorry, I can't say red.", "4": "No",
            "5": "Red, I think.", "6": "Red"}
    data = measure.EvalData(str(tmp_path), {}, None, None)
    figures = measure.answers(lambda pairs: [said[q] for _, q in pairs], data, 9, [], "quiz")
    assert figures["followed/form"] == pytest.approx(2 / 5)          # a and e
    assert figures["followed/all"] == pytest.approx(1 / 4)           # a; of e nothing is known
    assert figures["answers/b"] == figures["answers/c"] == figures["answers/d"] == 1
    described = measure.UNSET | {"kind": "detail", "names": ["dog"]}
    assert measure.is_right("A cat.", described, {"dog": "dog"}) is False
    assert measure.is_right("A cat.", described, {}) is None         # no name can be read


def test_deep_questions_count_nothing_hidden():
    """Catches a truth that cannot be seen."""
    for i in range(300):
        record = scene(i)
        if any(o["hidden"] for o in record["objects"]):
            kinds = {q.kind for q in quiz.questions_of(record, random.Random(i), WORLD)}
            assert not kinds & {"next_to", "without", "one_more", "unusual", "relation", "same",
                                "compare_number", "compare_size"}
    assert template.world_of({"phrases": {"a": "red ring", "b": "dog"}, "held_out": ["dog"]}) == (
        "red ring",)
