"""evaluate.py: what is wrong is said before anything is asked, and answers are never lost."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
from minivlm.evaluation import measure
from minivlm.running import checkpoint

PHRASES = {"red circle": "red circle", "blue ring": "blue ring"}
SHOWN = {"id": 0, "image": "val.npy#0"}
ASKED = {"id": "q1", "image": "val.npy#0", "kind": "color", "question": "What color?",
         "expect": ["red"]}


def thing(color: str, name: str, **more) -> dict:
    return {"name": name, "attributes": {"color": color}, "box": [0, 0, 0.5, 0.5]} | more


@pytest.fixture
def cfg(tmp_path, vlm, tokenizer) -> evaluate.Config:
    """A chatbot with random weights, two pictures and a question about the first."""
    checkpoint.save([tmp_path / "ckpt.pt"], stage="sft",
                    configs={"model": dataclasses.asdict(vlm.config)}, model=vlm,
                    tokenizer=tokenizer, step=1, best=0.0)
    np.save(tmp_path / "val.npy", np.zeros((2, 16, 16, 3), np.uint8))
    (tmp_path / "meta.json").write_text(json.dumps(
        {"name": "t", "image_size": 16, "phrases": PHRASES, "chance": {"color": 0.5}}))
    things = [thing("red", "circle"), thing("blue", "ring")]
    write(tmp_path, "val", *({"id": i, "image": f"val.npy#{i}", "objects": [o]}
                             for i, o in enumerate(things)))
    write(tmp_path, "eval", ASKED)
    return evaluate.Config(str(tmp_path), str(tmp_path), max_new_tokens=2)


def write(folder: Path, name: str, *records: dict) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def answering(monkeypatch, say) -> None:
    """Let `say(data, image, question)` answer instead of the model."""
    monkeypatch.setattr(measure, "make_answerer", lambda model, data, *_: lambda qs: [
        say(data, q["image"], q["question"]) for q in qs])


@pytest.mark.parametrize("broken", ["the blind baseline", "the figures", "the axes"])
def test_answers_are_kept_whatever_comes_after_them(broken, cfg, tmp_path, monkeypatch, capsys):
    """Catches an hour of answers that Ctrl-C in the blind baseline, or a bug, throws away."""
    def say(data, image, question):
        if data.blind and broken == "the blind baseline":
            raise KeyboardInterrupt
        return f"{question} Red."

    def fail(*_):
        raise KeyError("a bug")

    answering(monkeypatch, say)
    if broken == "the figures":
        monkeypatch.setattr(measure, "is_right", fail)
    if broken == "the axes":
        monkeypatch.setattr(evaluate, "axes", fail)
    with pytest.raises((KeyboardInterrupt, KeyError)):
        evaluate.main(dataclasses.replace(cfg, axes=True))
    kept = [json.loads(line) for line in (tmp_path / "eval.answers.jsonl").open()]
    assert kept[0]["answer"] == "What color? Red." and kept[0]["expected"] == ""
    assert "eval.answers.jsonl" in capsys.readouterr().out
    assert not (tmp_path / "eval.json").exists()


@pytest.mark.parametrize("split, records, options, words", [
    ("eval", [ASKED, ASKED | {"form": "(red"}], {}, "eval.jsonl:2 has a form that is no regular"),
    ("eval", [ASKED | {"people": "yes"}], {}, "eval.jsonl:1 has people that are no list"),
    ("eval", [{k: v for k, v in ASKED.items() if k != "kind"}], {}, "eval.jsonl:1 has no kind"),
    ("eval", [ASKED | {"names": ["circle"]}], {}, "eval.jsonl, question q1: no phrase of meta"),
    ("val", [SHOWN | {"objects": [thing("green", "dog")]}], {},
     "meta.json has no phrase for 'green dog' of 0"),
    ("val", [SHOWN | {"objects": [{"name": ""}]}], {},
     "val.jsonl:1 has an object without a name"),
    ("val", [{"id": 0, "objects": []}], {}, "val.jsonl:1 has no image"),
    ("val", [SHOWN | {"objects": [thing("red", "circle", box=[0, 0, 8, 9])]}], {"axes": True},
     "record 0 has an object without a name, or without a box"),
    ("eval", [ASKED | {"image": "train.npy#0"}], {"axes": True}, "which val.jsonl lacks"),
    ("other/eval.answers", [ASKED], {"axes": True, "against": "other"},
     "eval.answers.jsonl:1 is no answer: it has no answer"),
    ("other/eval.answers", [ASKED | {"question": "Who?", "answer": "I."}],
     {"axes": True, "against": "other"}, "did not answer the same questions"),
])
def test_what_cannot_be_measured_is_said_before_anything_is_asked(
    split, records, options, words, cfg, tmp_path, monkeypatch
):
    """Catches tracebacks after all answers have been written."""
    answering(monkeypatch, lambda *_: pytest.fail("asked"))
    (tmp_path / "other").mkdir()
    write(tmp_path, split, *records)
    if "against" in options:
        options = options | {"against": str(tmp_path / "other")}
    with pytest.raises(ValueError, match=words):
        evaluate.main(dataclasses.replace(cfg, **options))


def test_a_clip_is_refused_a_class_without_texts_before_it_embeds(
    cfg, clip, tokenizer, tmp_path, monkeypatch
):
    """Catches a misspelled label that is always wrong, and one that is found after retrieval."""
    (tmp_path / "clip").mkdir()
    checkpoint.save([tmp_path / "clip" / "ckpt.pt"], stage="clip",
                    configs={"model": dataclasses.asdict(clip.config)}, model=clip,
                    tokenizer=tokenizer, step=1, best=0.0)
    (tmp_path / "meta.json").write_text(json.dumps(
        {"name": "t", "image_size": 16, "prompts": {"0": ["A ring."], "1": ["A dog."]}}))
    cfg = dataclasses.replace(cfg, run=str(tmp_path / "clip"))
    monkeypatch.setattr(measure, "retrieval", lambda *_: {})
    write(tmp_path, "zeroshot", SHOWN | {"label": 0})                # "0" in meta.json
    assert set(evaluate.main(cfg)) == {"zero_shot/all"}
    monkeypatch.setattr(measure, "retrieval", lambda *_: pytest.fail("embedded"))
    write(tmp_path, "zeroshot", SHOWN | {"label": "Dog"})
    with pytest.raises(ValueError, match="zeroshot.jsonl, record 0: .* no prompts for its label"):
        evaluate.main(cfg)


@pytest.mark.parametrize("objects, reason", [([], "no picture of val.jsonl has objects"),
                                             (None, "it has no eval.jsonl, or its meta.json no")])
def test_a_folder_with_nothing_to_measure_is_refused(objects, reason, cfg, tmp_path, monkeypatch):
    """Catches an empty table, and a reason that is not the one."""
    answering(monkeypatch, lambda *_: pytest.fail("asked"))
    (tmp_path / "eval.jsonl").unlink()
    write(tmp_path, "val", SHOWN | {"objects": objects})
    if objects is None:
        (tmp_path / "meta.json").write_text('{"name": "t", "image_size": 16}')
    with pytest.raises(ValueError, match=f"holds nothing to measure: {reason}"):
        evaluate.main(cfg)


def test_groups_that_were_not_measured_are_named_with_the_reason(cfg, monkeypatch, capsys):
    """Catches a figure that is missing in silence, or in the blind column alone a KeyError."""
    def hallucination(ask, data, *_):
        if data.blind:
            return {}
        data.left_out["pope_random"] = "no object is absent from any picture"
        return {"chair/recall": 0.25}

    answering(monkeypatch, lambda *_: "Red.")
    monkeypatch.setattr(measure, "hallucination", hallucination)
    assert evaluate.main(cfg)["answers/color"] == 1
    table = capsys.readouterr().out
    assert "left out: pope_random, for no object is absent from any picture\n" in table
    [line] = [line for line in table.splitlines() if line.startswith("chair/recall")]
    assert line.split() == ["chair/recall", "0.250", "-", "-"]


def test_the_best_of_several_answers_is_kept_beside_the_greedy_ones(folder, runs, tmp_path):
    """Catches figures of one way of answering that replace those of another."""
    small = {"data": str(folder), "n_questions": 1, "describe": False, "blind": False,
             "max_new_tokens": 4}
    run = tmp_path / "sft"
    run.mkdir()
    (run / "best.pt").symlink_to(runs / "sft" / "best.pt")
    evaluate.main(evaluate.Config(str(run), **small))
    greedy = (run / "eval.json").read_bytes()
    drawn = {}
    for seed in (0, 0, 1):
        evaluate.main(evaluate.Config(
            str(run), best_of=2, reward=str(runs / "reward"), temperature=2.0, seed=seed, **small))
        answers = (run / "eval_best2.answers.jsonl").read_text()
        assert drawn.setdefault(seed, answers) == answers
    assert drawn[0] != drawn[1]
    assert (run / "eval.json").read_bytes() == greedy


@pytest.mark.parametrize("options, words", [
    ({"best_of": 2}, "the one needs the other"), ({"reward": "reward"}, "the one needs the other"),
    ({"run": "caption", "best_of": 2, "reward": "reward"}, "--best_of needs a chatbot"),
    ({"best_of": 2, "reward": "nowhere"}, "train_reward.py"),
    ({"best_of": 2, "reward": "facts"}, "was trained with --facts"),
])
def test_a_choice_without_a_judge_is_refused(options, words, folder, runs, tmp_path):
    """Catches minutes of answers before what is missing is said."""
    if options.get("reward") == "facts":
        state = checkpoint.load(runs / "reward", ("reward",))
        state["configs"]["facts"] = True
        (tmp_path / "facts").mkdir()
        torch.save({k: v for k, v in state.items() if k != "file"}, tmp_path / "facts" / "best.pt")
        options = options | {"reward": str(tmp_path / "facts")}
    elif "reward" in options:
        options = options | {"reward": str(runs / options["reward"])}
    options = {"run": "sft"} | options
    options["run"] = str(runs / options["run"])
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        evaluate.main(evaluate.Config(data=str(folder), **options))
