"""Measuring: a model that knows everything scores 1, one that lies is caught, by each measure."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.cifar10 import prepare as class_folders
from minivlm.conversation import prompt_of
from minivlm.evaluation import measure
from minivlm.heads import RewardModel
from minivlm.loading.images import Pictures
from minivlm.loading.prepared import load_meta
from minivlm.rollout import scores_of
from minivlm.tokenizer import Tokenizer

TOKENIZER = Tokenizer({bytes([i]): i for i in range(256)})
ROOT = Path(__file__).parents[2]
PHRASES = {"dog": "dog", "dogs": "dog", "puppy": "dog", "cat": "cat", "red ring": "red ring"}


def held_out(folder: Path, meta: dict, **splits: list[dict]) -> measure.EvalData:
    """A folder of two gray pictures with the given records."""
    np.save(folder / "val.npy", np.zeros((2, 16, 16, 3), np.uint8))
    for split, records in splits.items():
        lines = [json.dumps({"id": str(i)} | r) for i, r in enumerate(records)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return measure.EvalData(str(folder), meta, TOKENIZER, Pictures(folder, 16))


def test_objects_are_named_with_and_without_a_color(tmp_path):
    """Catches a photograph's object, which has no color, and one that only people's words name."""
    record = {"image": "val.npy#0", "captions": ["A puppy, red", "Ring. Two dogs"], "objects": [
        {"name": "cat", "attributes": {}},
        {"name": "ring", "attributes": {"color": "red"}, "hidden": True},
    ]}
    data = held_out(tmp_path, {"phrases": PHRASES}, val=[record])
    assert data.object_names(record, (False,)) == ["cat"]
    assert data.object_names(record, (True,)) == ["red ring"]
    assert data.shown(record) == ["cat", "dog", "dog"]
    record["captions"] = ["A dog is at the left, the red ring is not in the picture, a cat sits."]
    assert data.shown(record) == ["cat", "dog", "cat"]


def test_a_picture_without_objects_is_not_asked_about(tmp_path):
    """Catches a crash on a photograph in which nothing is boxed, and synonyms counted as absent."""
    data = held_out(tmp_path, {"phrases": PHRASES}, val=[
        {"image": "val.npy#0", "objects": []},
        {"image": "val.npy#1", "captions": ["A puppy."], "objects": [{"name": "cat"}]},
        {"image": "val.npy#1", "captions": ["A cat."], "objects": [{"name": "dog"}]},
    ])
    asked = []

    def ask(questions):
        asked.extend(questions)
        said = {"Describe the picture.": "A puppy and a cat. A red ring.",
                "Describe the picture in detail.": "A puppy."}
        return [said.get(q["question"], "Yes") for q in questions]

    figures = measure.hallucination(ask, data, 10, 0, [])
    # in detail only the dog is told
    assert figures["chair_detail/chair_i"] == 0 and figures["chair_detail/recall"] == 0.5
    assert {q["image"] for q in asked} == {"val.npy#1"}
    assert figures["chair/chair_i"] == pytest.approx(1 / 3) and figures["chair/recall"] == 1


@pytest.mark.parametrize("answer, want", [("two", 0.9), ("Two.", 0.9), ("three", 0.0)])
def test_answers_of_several_people_are_scored_as_vqa_does(tmp_path, answer, want):
    """Catches people's answers left unread: 3 of 10 say 2, (3 * 2/3 + 7 * 1) / 10 = 0.9."""
    people = ["2"] * 3 + ["many"] * 7
    data = held_out(tmp_path, {}, eval=[
        {"image": "val.npy#0", "kind": "count", "question": "How many?", "people": people}])
    figures = measure.answers(lambda pairs: [answer] * len(pairs), data, 5, [])
    assert figures["vqa/accuracy"] == pytest.approx(want)


def test_the_likeliest_candidate_is_the_answer(tmp_path, monkeypatch):
    """Catches a rank by the worst, candidates of another kind, questions of other styles."""
    shared = {"kind": "color", "question": "Which?", "style": "word"}
    data = held_out(tmp_path, {}, eval=[
        {"image": "val.npy#0", "answer": "Red", **shared},
        {"image": "val.npy#1", "answer": "Blue", **shared},
        {"image": "val.npy#1", "answer": "Two", "kind": "count", "question": "?", "style": "word"},
        {"image": "val.npy#1", "answer": "It is red.", **shared, "style": "sentence"},
    ])
    tokenizer, given = data.tokenizer, []

    def always_red(model, images, prompts, answers, pad):
        given.append([tokenizer.decode(a[:-1]).strip() for a in answers])
        assert len(images) == len(prompts) and all(a[-1] == tokenizer.end for a in answers)
        return torch.tensor([[-1.0 - (a != "Red") for a in given[-1]]] * len(prompts))

    monkeypatch.setattr(measure, "answer_logprobs", always_red)
    sees = type("Model", (), {"config": type("C", (), {"vit": type("V", (), {"n_tokens": 4})})})
    chance: dict[str, float] = {}
    figures = measure.ranked(sees, data, TOKENIZER.end, 10, 10, chance)
    calibration = {name: figures.pop(f"calibration/{name}") for name in ("error", "confidence")}
    assert figures == {"ranked/color": 0.5, "ranked/count": 1.0}
    # red beside blue: e / (e + 1) = .731, once right and once wrong; two has no rival
    want = {"error": (2 * 0.731 - 1) / 3, "confidence": 0.821}
    assert calibration == pytest.approx(want, abs=1e-3)
    assert sorted(given) == [["Blue", "Red"], ["Two"]]
    assert chance == {"ranked/color": 0.5, "ranked/count": 1.0}


def test_candidates_are_read_in_batches(tmp_path, monkeypatch):
    """Catches --batch_size without effect on candidates or pictures, the best of one batch only.

    The likeliest of five words is the last one in the alphabet.
    """
    words = ["ash", "bee", "cod", "dog", "elk"]
    data = held_out(tmp_path, {}, eval=[
        {"image": "val.npy#0", "answer": word, "kind": "color", "question": "?", "style": "word"}
        for word in words])
    sizes = []

    def last(model, images, prompts, answers, pad):
        sizes.append((len(images), len(prompts), len(answers)))
        return torch.tensor([[float(ids[0]) for ids in answers]] * len(prompts))

    monkeypatch.setattr(measure, "answer_logprobs", last)
    sees = type("Model", (), {"config": type("C", (), {"vit": type("V", (), {"n_tokens": 4})})})
    figures = measure.ranked(sees, data, TOKENIZER.end, 10, 2, {})
    assert figures["ranked/color"] == 0.2
    assert sizes == [(n, n, m) for n in (2, 2, 1) for m in (2, 2, 1)]


def test_captions_are_compared_with_their_own_pictures_references(tmp_path, monkeypatch):
    """Catches references of another picture, made and reference swapped, CHAIR of another row.

    The first picture's caption is one of its references, the second one's is the first's.
    """
    objects = [[{"name": "cat"}], [{"name": "dog"}]]
    said = [["A gray cat sleeps on a chair.", "A cat."], ["Two dogs run over wet sand.", "Dogs."]]
    data = held_out(tmp_path, {"phrases": PHRASES}, val=[
        {"image": f"val.npy#{i}", "captions": said[i], "objects": objects[i]} for i in range(2)])

    def beams(model, images, prompts, **options):
        assert len(images) == len(prompts) == 2 and options["stop"] == TOKENIZER.endoftext
        return [(TOKENIZER.encode(said[0][0]), 0.0)] * 2

    monkeypatch.setattr(measure, "beam_search", beams)
    sees = type("Model", (), {"config": type("C", (), {"vit": type("V", (), {"n_tokens": 4})})})
    log: list[dict] = []
    figures = measure.captioning(sees, data, "a picture of", 10, 3, 9, 10, log)
    alone = measure.metrics.cider(
        ["a gray cat sleeps on a chair"] * 2,
        [["a gray cat sleeps on a chair", "a cat"], ["two dogs run over wet sand", "dogs"]])
    assert figures["captions/cider"] == pytest.approx(alone[0])
    assert alone[1][0] > 4 > 1 > alone[1][1]
    assert figures["captions/chair_i"] == figures["captions/recall"] == 0.5
    assert [e["answer"] for e in log] == [said[0][0]] * 2


def captions_of_nothing(monkeypatch, tmp_path, objects: list, said: str) -> tuple[dict, dict]:
    """Figures and what is left out, of a captioner that says the same of two pictures."""
    data = held_out(tmp_path, {"phrases": PHRASES}, val=[
        {"image": f"val.npy#{i}", "captions": ["A dog."]} | ({} if some is None else
         {"objects": some}) for i, some in enumerate(objects)])
    monkeypatch.setattr(
        measure, "beam_search",
        lambda model, images, prompts, **options: [(TOKENIZER.encode(said), 0.0)] * len(images))
    sees = type("Model", (), {"config": type("C", (), {"vit": type("V", (), {"n_tokens": 4})})})
    figures = measure.captioning(sees, data, "", 10, 1, 9, 10, [])
    return {name: p for name, p in figures.items() if "chair" in name or "recall" in name}, (
        data.left_out)


def test_captions_have_a_chair_where_objects_are_known(tmp_path, monkeypatch):
    """Catches a perfect CHAIR where nobody looked for objects, one lost over a single picture."""
    cat = [{"name": "cat"}]
    assert captions_of_nothing(monkeypatch, tmp_path, [[], []], "A cat.") == (
        {}, {"captions/chair": "no picture of val.jsonl has objects"})
    assert captions_of_nothing(monkeypatch, tmp_path, [None, None], "A cat.")[0] == {}
    # of one picture, the objects are known: a cat, and a dog that people's captions name
    assert captions_of_nothing(monkeypatch, tmp_path, [cat, None], "A cat.") == (
        {"captions/chair_i": 0.0, "captions/chair_s": 0.0, "captions/recall": 0.5},
        {"captions/chair of 1 pictures": "their objects are not known"})
    assert captions_of_nothing(monkeypatch, tmp_path, [cat, []], "Nice.") == (
        {"captions/chair_s": 0.0, "captions/recall": 0.0},
        {"captions/chair_i": "no caption names an object"})


def test_pictures_without_captions_or_objects_have_no_figures(clip, tmp_path):
    """Catches a crash or a recall over no picture, a POPE and a CHAIR of no object."""
    data = held_out(tmp_path, {"phrases": PHRASES}, val=[
        {"image": "val.npy#0", "objects": []}, {"image": "val.npy#1"}])
    chance: dict[str, float] = {}
    assert measure.retrieval(clip.eval(), data, 10, chance) == chance == {}
    assert measure.hallucination(lambda pairs: 1 / 0, data, 10, 0, []) == {}
    assert data.left_out == {"retrieval": "no picture of val.jsonl has captions",
                             "pope, chair": "no picture of val.jsonl has objects"}


def test_a_model_that_says_nothing_has_no_chair_i(tmp_path):
    """Catches a perfect share of invented objects for descriptions that name none."""
    look = {"attributes": None}
    data = held_out(tmp_path, {"phrases": PHRASES}, val=[
        {"image": "val.npy#0", "objects": [{"name": "cat"} | look, {"name": "dog", "hidden": 1}]},
        {"image": "val.npy#1", "objects": [{"name": "dog", "attributes": {"color": None}}]}])
    figures = measure.hallucination(lambda pairs: ["no"] * len(pairs), data, 5, 0, [])
    kinds = {name: p for name, p in figures.items() if name.startswith("chair/")}
    assert kinds == {"chair/chair_s": 0.0, "chair/recall": 0.0, "chair/recall_hidden": 0.0}
    assert figures["pope_random/f1"] == 0.0 and "pope_random/precision" not in figures
    assert data.left_out["chair/chair_i"] == "no description names an object"
    assert data.left_out["pope_popular/precision"] == "the model never says yes"


def test_a_class_without_texts_is_said_before_anything_runs(tmp_path):
    """Catches a picture that no answer can be right about, and one without a group."""
    data = held_out(tmp_path, {"prompts": {"dog": ["A dog."]}}, zeroshot=[
        {"image": "val.npy#0", "label": "dog"}, {"image": "val.npy#1", "label": "cat"}])
    with pytest.raises(ValueError, match="zeroshot.jsonl, record 1: .* no prompts .* 'cat'"):
        measure.zero_shot(None, data, [])


def test_everything_everywhere_leaves_pope_out(tmp_path):
    """Catches a division by no question."""
    data = held_out(tmp_path, {"phrases": {"dog": "dog"}}, val=[
        {"image": "val.npy#0", "objects": [{"name": "dog"}]}])
    figures = measure.hallucination(lambda pairs: ["A dog."] * len(pairs), data, 5, 0, [])
    assert set(figures) == {f"{group}/{name}" for group in ("chair", "chair_detail")
                            for name in ("chair_i", "chair_s", "recall")}
    assert data.left_out == {"pope": "no picture shows one object clearly and lacks another"}
    data.meta["phrases"] = {"cat": "cat"}
    with pytest.raises(ValueError, match="meta.json has no phrase for 'dog' of 0"):
        measure.hallucination(lambda pairs: [], data, 5, 0, [])


def test_a_captioner_is_stopped_where_captions_end(tmp_path):
    """Catches a captioner that runs on behind its caption, because no answer ended."""
    assert TOKENIZER.stop("caption") == TOKENIZER.stop("align") == TOKENIZER.endoftext
    assert TOKENIZER.stop("sft") == TOKENIZER.end


def test_a_folder_of_classes_is_classified_and_drawn(clip, tmp_path):
    """Catches an answer logged beside another picture's truth, and a drawing that cannot be made.

    The tower has random weights: whatever it chooses, log, accuracy and drawing must agree.
    """
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(3):
                pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / label / f"{i}.png")
    out = str(tmp_path / "out")
    class_folders.main(class_folders.Config(str(tmp_path), out, image_size=16))
    data = measure.EvalData(out, load_meta(out), TOKENIZER, Pictures(out, 16))
    log: list[dict] = []
    figures = measure.zero_shot(clip.eval(), data, log)
    truth = {r["image"]: r["label"] for r in data.records("zeroshot", "label")}
    assert {e["image"]: e["expected"] for e in log} == truth and len(truth) == 6
    hits = [e["answer"] == e["expected"] for e in log]
    assert figures == {"zero_shot/all": pytest.approx(sum(hits) / 6)}
    (tmp_path / "eval.answers.jsonl").write_text("\n".join(map(json.dumps, log)))
    draw = [sys.executable, str(ROOT / "results" / "confusion.py"), str(tmp_path)]
    subprocess.run([*draw, str(tmp_path / "confusion.png")], check=True)
    assert subprocess.run(draw, capture_output=True).returncode == 1
    assert Image.open(tmp_path / "confusion.png").size[0] > 200


@pytest.mark.parametrize("answer, says_yes", [
    ("I see a red cup. There is no cat, so no.", False),
    ("There is a cat at the left, so yes.", True),
    ("I see no cup. There is a cat, so yes", True), ("No, there is no cat.", False),
    ("Yes.", True), ("The cat is there, so yes and no matter.", False),
])
def test_pope_reads_what_an_answer_comes_to(answer, says_yes):
    """Catches a no behind what is seen taken for a yes; other answers are read as POPE does."""
    assert measure.metrics.says_yes(measure.conclusion(answer)) == says_yes


def test_the_answer_that_the_reward_model_likes_best_counts(vlm, tmp_path, monkeypatch):
    """Catches the best answer to another question, the worst one, and scores of other prompts."""
    data = held_out(tmp_path, {})
    reward_model = RewardModel(copy.deepcopy(vlm))
    liked = {}

    def spy(judge, feats, prompts, answers, tokenizer):
        score = scores_of(judge, feats, prompts, answers, tokenizer)
        assert len(feats) == len(prompts) and len(answers) == 3 * len(prompts)
        for i, prompt in enumerate(prompts):
            rows = range(3 * i, 3 * i + 3)
            ids = [x for x in answers[max(rows, key=lambda j: score[j])] if x != TOKENIZER.end]
            liked[tuple(prompt)] = TOKENIZER.decode(ids).strip()
            assert len({tuple(answers[j]) for j in rows}) > 1
        return score

    monkeypatch.setattr(measure, "scores_of", spy)
    questions = [{"image": f"val.npy#{i % 2}", "question": text}
                 for i, text in enumerate(("Why?", "Who is it?", "Where?"))]
    best = measure.BestOf(reward_model, 3, temperature=1.5, seed=1)
    ask = measure.make_answerer(vlm, data, TOKENIZER.end, 6, 2, best)
    with torch.no_grad():
        answers = ask(questions)
    n = vlm.config.vit.n_tokens
    assert answers == [
        liked[tuple(prompt_of(q["question"], TOKENIZER, n))] for q in questions]
    again = measure.make_answerer(vlm, data, TOKENIZER.end, 6, 2, best)
    with torch.no_grad():
        assert again(questions) == answers
