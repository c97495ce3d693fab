"""data/probe.py: what is asked, what is taught, what an answer that is not sure counts as."""

import json
import re
import shutil
from collections import Counter
from random import Random

import pytest

from data import probe
from data.book.prepare import worlds
from minivlm.engine.phrasings import patterns, spelled
from minivlm.engine.quiz import lines_of, sight_questions
from minivlm.engine.wording import HARD_TO_SEE
from minivlm.evaluation import measure
from minivlm.evaluation.correctness import UNSET, is_right
from minivlm.evaluation.scene import things_of
from minivlm.metrics import is_unsure
from test_instruct import book_scene

WORLD = worlds(1)[0]


def test_each_sight_is_what_the_annotation_says():
    """Catches a hidden thing asked about as a clear one, an absent one that the annotation lists,
    an answer that is taken for wrong, and a question that fits two things.
    """
    sights = Counter()
    for i in range(300):
        record = book_scene(i)
        rng = Random(i)
        asked = sight_questions(record, rng, WORLD)
        if record.get("border") == "private":
            assert not asked
        for q, line in zip(asked, lines_of(record, asked, rng, "taught")):
            sights[q.sight] += 1
            x = f" {q.draft.words['x']} "
            meant = [t for t in things_of(record) if f" {t.kind} " in x]
            if q.sight == "hardly":
                assert len(meant) == 1 and meant[0].hidden
            elif q.sight == "clear":
                assert not q.draft.about.hidden
            else:
                assert q.sight == "absent" and not meant
            assert line["sight"] == q.sight
            assert is_right(line["answer"], UNSET | line, {})
            assert not is_right(HARD_TO_SEE, UNSET | line, {}) and is_unsure(HARD_TO_SEE)
    assert min(sights.values()) > 60 and set(sights) == {"clear", "hardly", "absent"}


@pytest.fixture
def copied(folder, tmp_path):
    """A data folder that a test may write into."""
    return shutil.copytree(folder, tmp_path / "data")


def lines(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def fakes(monkeypatch, say):
    """A chatbot that answers question q with say(q, i) in its i-th answer."""
    def sample(model, pictures, tokenizer, questions, k, *args):
        for q in questions:
            yield q, [say(q, i) for i in range(k)]

    monkeypatch.setattr(probe, "sample", sample)


def test_what_is_mostly_wrong_is_admitted_and_the_rest_is_taught(copied, runs, monkeypatch):
    """Catches the threshold turned round, answers of another question, admissions of everything, a
    picture that is in two files.
    """
    asked = {}

    def say(q, i):  # knows colors half of the time, places never, the rest always
        asked[f"sight-{q['id']}"] = q
        knows = {"color": i % 2 == 0, "position": False}.get(q["kind"], True)
        return q["answer"] if knows else "A balloon."

    fakes(monkeypatch, say)
    shares = probe.main(probe.Config(
        data=str(copied), run=str(runs / "sft"), n=90, k=4, least=0.5))
    assert set(shares) == {"clear", "hardly", "absent"} and 0 < shares["clear"] < 1
    assert shares["absent"] == 0
    taught = [r for r in lines(copied, "honest") if "sight" in r]
    older = [r for r in lines(copied, "honest") if "sight" not in r]
    assert len(taught) > 90 and len(older) == min(len(taught), 200 - 9)
    for r in taught:
        q = asked[r["id"]]
        wanted = HARD_TO_SEE if q["kind"] == "position" else q["answer"]
        assert r["conversations"][1]["value"] == wanted, q
        assert r["conversations"][0]["value"] == f"<image>\n{q['question']}"
        assert r["image"] == q["image"]
        assert r["right"] == {"color": 0.5, "position": 0.0}.get(q["kind"], 1.0)
    assert {r["id"] for r in older} <= {r["id"] for r in lines(copied, "train")}

    files = ("honest", "honest_val", "sight_prompts", "sight_prompts_val")
    sights = [{r["image"] for r in lines(copied, name) if "sight" in r} for name in files]
    assert all(sights) and sum(map(len, sights)) == len(set.union(*sights))
    for name, other in (files[:2], files[2:]):  # their older half included
        pictures = [{r["image"] for r in lines(copied, n)} for n in (name, other)]
        assert not pictures[0] & pictures[1]
    assert not {f"train.npy#{i}" for i in range(200)} & {q["image"] for q in lines(copied, "sight")}

    # held-out questions are in words that only the unseen phrasings have
    unseen, in_training = (
        [re.compile(re.sub(r"\\{x\\}", ".+", re.escape(text)) + r"( .*)?")
         for kind in ("color", "position", "size") for pattern in patterns(kind, use)
         for text in spelled(pattern)] for use in ("unseen", "taught"))
    for q in lines(copied, "sight"):
        assert q["sight"] and any(p.fullmatch(q["question"]) for p in unseen), q
    assert all(any(p.fullmatch(q["question"]) for p in in_training)
               for q in list(asked.values())[:20])


def test_a_lower_threshold_admits_less(copied, runs, monkeypatch):
    """Catches a flag without effect: at 0 everything is known, above 1/4 a single hit is not."""
    fakes(monkeypatch, lambda q, i: q["answer"] if i == 0 else "A balloon.")
    shares = []
    for least in (0.0, 0.25, 0.3):
        cfg = probe.Config(data=str(copied), run=str(runs / "sft"), n=30, k=4, least=least)
        shares.append(probe.main(cfg)["clear"])
    assert shares == [0, 0, 1]


def test_a_real_chatbot_is_asked(copied, runs):
    """Catches a call that only a stand-in takes; a chatbot of four steps knows nothing."""
    shares = probe.main(probe.Config(
        data=str(copied), run=str(runs / "sft"), n=20, k=2, max_new_tokens=6))
    assert set(shares.values()) == {1.0}


def test_right_wrong_and_unsure_are_counted_apart():
    """Catches an admission counted as wrong, a right answer counted as unsure, other questions."""
    red = UNSET | {"kind": "color", "expect": ["red"], "wrong": ["blue"]}
    asked = [
        (red | {"sight": "clear"}, "red"), (red | {"sight": "clear"}, "blue"),
        (red | {"sight": "clear"}, "Not sure, but red."),
        (red | {"sight": "clear"}, "I'm not sure."),
        (red | {"sight": "hardly"}, "I'm not sure."), (red, "blue"),
    ]
    figures = measure.honesty(asked, {})
    assert figures == {
        "sight/clear_right": 0.5, "sight/clear_unsure": 0.25, "sight/clear_wrong": 0.25,
        "sight/hardly_right": 0.0, "sight/hardly_unsure": 1.0, "sight/hardly_wrong": 0.0,
        "sight/answered": pytest.approx(2 / 3),
    }
    assert measure.honesty([(red, "red")], {}) == {}
