"""data/preferences.py: rankings and pairs, from a model's answers or from people's files."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from data import preferences
from minivlm.preferences import layouts
from minivlm.preferences.pairs_from_rankings import pairs_of
from minivlm.preferences.pool import ask_pool
from minivlm.preferences.rankings import check_ranking
from minivlm.running import checkpoint
from test_instruct import read, scene

GOOD = {"question": "What?", "responses": ["a", "b", "c"], "ranking": [2, 1, 2]}


def test_every_ordered_pair_is_made_and_ties_carry_none():
    """Catches a pair turned round or doubled; the gap is the difference of the mean ratings."""
    ratings = [dict.fromkeys(("helpfulness", "faithfulness", "ethics"), v) for v in (3, 5, 2)]
    r = GOOD | {"id": "q", "image": "x", "rater": "file", "ratings": ratings, "ranking": [2, 1, 3]}
    pairs = pairs_of(r)
    assert [(p["chosen"], p["rejected"], p["gap"]) for p in pairs] == [
        ("a", "c", 1), ("b", "a", 2), ("b", "c", 3)]
    assert pairs[0]["conversations"] == [{"from": "human", "value": "<image>\nWhat?"}]
    assert len(pairs_of(GOOD | {"id": "q", "image": "x", "rater": "file"})) == 2
    made = layouts.trl_of(pairs[0], {})
    assert made["images"] == ["x"] and made["chosen"][0]["content"][0]["text"] == "a"
    assert [c["type"] for c in made["prompt"][0]["content"]] == ["image", "text"]


def test_published_layouts_are_read(tmp_path):
    """Catches LLaVA-RLHF's second answer taken for the first, and RLHF-V's JSON inside JSON."""
    talk = [{"from": "human", "value": "<image>\nHow many?"}]
    lines = [
        {"id": "1", "image": "a.jpg", "conversations": talk, "output_1": {"value": "One."},
         "output_2": {"value": "Two."}, "preference": 2},
        {"idx": 7, "image": "b.jpg", "text": json.dumps(
            {"question": "Why?", "chosen": "So.", "rejected": "Thus."})},
        GOOD | {"id": "3", "image": "c.jpg"}]
    path = tmp_path / "ranked.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    a, b, c = whole = layouts.read_ranked(path, Counter())
    assert (a["question"], a["responses"], a["ranking"]) == ("How many?", ["One.", "Two."], [2, 1])
    assert (b["id"], b["question"], b["ranking"]) == ("7", "Why?", [1, 2])
    assert c["ranking"] == [2, 1, 2]
    for indent in (None, 2):                                         # as one list
        path.write_text(json.dumps(lines, indent=indent))
        assert layouts.read_ranked(path, Counter()) == whole
    path.write_text(json.dumps(lines[2]) + "\n[1]")
    with pytest.raises(ValueError, match="ranked.jsonl:2 is no JSON object"):
        layouts.read_ranked(path, Counter())


TALK = [{"from": "human", "value": "<image>\nHow many?"}]
PAIR = {"id": "1", "image": "a.jpg", "conversations": TALK, "output_1": {"value": "One."},
        "output_2": {"value": "Two."}, "preference": 2}


@pytest.mark.parametrize("bad, reason", [
    ({"a": 1}, "record in no known layout"), ({"text": 7}, "record in no known layout"),
    (PAIR | {"conversations": [*TALK, {"from": "gpt", "value": "One."}, *TALK]},
     "conversation without exactly one question"),
    (PAIR | {"conversations": []}, "conversation without exactly one question"),
    (PAIR | {"preference": 0}, "preference that is neither 1 nor 2"),
    ({"text": "{"}, "text that is no JSON"),
    (GOOD | {"question": "<image>\n"}, "no question"),
    (GOOD | {"question": None}, "record in no known layout"),
])
def test_a_record_that_is_no_ranking_is_counted_and_all_are_refused(bad, reason, tmp_path):
    """Catches 10,000 rankings refused for one, and a file of another kind taken as empty."""
    path, skipped = tmp_path / "ranked.jsonl", Counter()
    path.write_text("".join(json.dumps(r) + "\n" for r in (PAIR, bad, PAIR, bad)))
    assert len(layouts.read_ranked(path, skipped)) == 2 and skipped == {reason: 2}
    path.write_text(json.dumps(bad))
    with pytest.raises(ValueError, match=f"ranked.jsonl holds no ranking .*:1: {reason}"):
        layouts.read_ranked(path, skipped)


@pytest.mark.parametrize("image", [
    "b/3.jpg", {"path": "b/3.jpg", "bytes": None}, None, {"path": None, "bytes": "/9j/"},
])
def test_the_columns_of_rlaif_v_are_read(image, tmp_path):
    """Catches the rejected answer taken for the chosen one, and a picture that is not found."""
    row = {"ds_name": "RLAIF-V", "image": image, "question": "What is it?", "chosen": "A dog.",
           "rejected": "A cat.", "origin_dataset": "LCS-558K", "origin_split": '{"type": "qa"}',
           "idx": "17", "image_path": "b/3.jpg"}
    (tmp_path / "rlaif.json").write_text(json.dumps([row]))
    assert layouts.read_ranked(tmp_path / "rlaif.json", Counter()) == [{
        "id": "17", "image": "b/3.jpg", "question": "What is it?",
        "responses": ["A dog.", "A cat."], "ranking": [1, 2]}]


@pytest.mark.parametrize("changes, message", [
    ({"rater": "me"}, "rater 'me' is not one of"), ({"rater": "file"}, "needs --ranked"),
    ({"error_rate": 1.5}, "error_rate is 1.5, expected 0 .. 1"),
    ({"answers": "a.jsonl"}, "need a rater other than"),
    ({"answers": "a.jsonl", "out": "b.jsonl", "rater": "file"}, "need a rater other than"),
    ({"k": 1}, "k is 1, expected >= 2"), ({"temperature": 0}, "temperature is 0, expected > 0"),
])
def test_wrong_options_are_refused(changes, message):
    """Catches an option that nothing can be done with."""
    with pytest.raises(ValueError, match=message):
        preferences.main(preferences.Config(**changes))


def folder(path):
    """Twelve scenes as pictures of 16 pixels, a question about each."""
    records = [scene(i) | {"id": f"s{i}"} for i in range(12)]
    np.save(path / "train.npy", np.zeros((12, 16, 16, 3), np.uint8))
    asked = [{"id": f"q{i}", "image": f"train.npy#{i}", "kind": "color", "question": "What color?",
              "expect": ["red"], "wrong": ["blue"]} for i in range(12)]
    for name, rows in (("train", records), ("prompts", asked)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    meta = {"name": "t", "image_size": 16, "phrases": {"red circle": "red circle"}}
    (path / "meta.json").write_text(json.dumps(meta))


def test_a_model_is_sampled_rated_and_ranked_the_same_each_time(
        tmp_path, vlm, tokenizer, monkeypatch):
    """Catches equal answers, a picture on both sides, other answers the second time."""
    folder(tmp_path)
    checkpoint.save([tmp_path / "ckpt.pt"], stage="sft",
                    configs={"model": dataclasses.asdict(vlm.config)}, model=vlm,
                    tokenizer=tokenizer, step=1, best=0.0)
    cfg = preferences.Config(run=str(tmp_path), data=str(tmp_path), n=12, n_val=4, k=3,
                             max_new_tokens=4, batch_size=5, trl=True)
    monkeypatch.setattr(preferences, "TIE", 0.0)  # answers of an untrained model are equally bad
    counts = preferences.main(cfg)
    rows, held_out = read(tmp_path / "preferences.jsonl"), read(tmp_path / "preferences_val.jsonl")
    assert len(rows) + len(held_out) + counts["skipped"] == 12 and rows and held_out
    assert not {r["image"] for r in rows} & {r["image"] for r in held_out}
    for r in rows + held_out:
        assert check_ranking(r) == "" and 2 <= len(r["responses"]) <= 3
        assert len(r["ratings"]) == len(r["responses"]) and r["rater"] == "human-sim"
    pairs = read(tmp_path / "preferences_pairs.jsonl")
    trl = read(tmp_path / "preferences_pairs.trl.jsonl")
    assert len(pairs) == counts["pairs"] == len(trl)
    assert all(Image.open(tmp_path / r["images"][0]).size == (16, 16) for r in trl)
    before = (tmp_path / "preferences.jsonl").read_bytes()
    preferences.main(cfg)
    assert (tmp_path / "preferences.jsonl").read_bytes() == before


def test_a_pool_of_models_takes_turns_and_a_simulated_judge_drops_ties(tmp_path, vlm, tokenizer):
    """Catches answers of the first model only, ratings that are the truth, a tie that is a pair."""
    folder(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        checkpoint.save([tmp_path / name / "ckpt.pt"], stage="sft",
                        configs={"model": dataclasses.asdict(vlm.config)}, model=vlm,
                        tokenizer=tokenizer, step=1, best=0.0)
        with torch.no_grad():
            vlm.gpt.wte.weight.mul_(-1)
    pool = preferences.Config(
        run=f"{tmp_path}/a, {tmp_path}/b", data=str(tmp_path), n=12, n_val=4, k=4,
        max_new_tokens=4, rater="judge-sim", error_rate=1.0)
    asked = read(tmp_path / "prompts.jsonl")

    def ask(runs: list[str], k: int) -> dict[str, set[str]]:
        return {q["id"]: set(answers) for q, answers in ask_pool(
            asked, runs, tmp_path, k, (1.0, 1.5), 4, 100, torch.device("cpu"), seed=0)}

    both, one, other = ask(pool.run.split(","), 4), *(ask([f"{tmp_path}/{x}"], 2) for x in "ab")
    assert both.keys() == one.keys() and all(both[i] for i in both)
    for mine, theirs in ((one, other), (other, one)):
        assert any(both[i] & (mine[i] - theirs[i]) for i in both)
    preferences.main(pool)
    rows = read(tmp_path / "preferences.jsonl")
    assert rows and {r["rater"] for r in rows} == {"judge-sim"}
    for r in rows:
        means = [sum(x.values()) / 3 for x in r["ratings"]]
        assert all((means[i] > means[j]) == (r["ranking"][i] < r["ranking"][j])
                   for i in range(len(means)) for j in range(len(means)))
    assert len({v for r in rows for x in r["ratings"] for v in x.values()}) == 5
    assert all(p["gap"] > 0 for p in read(tmp_path / "preferences_pairs.jsonl"))

    again = dataclasses.replace(pool, answers=f"{tmp_path}/preferences.jsonl", seed=7,
                                out=f"{tmp_path}/again.jsonl", n_val=1)
    preferences.main(again)
    files = (tmp_path / f"again{side}.jsonl" for side in ("", "_val"))
    rated = {r["id"]: r for file in files for r in read(file)}
    drawn = {r["id"]: r for r in rows + read(tmp_path / "preferences_val.jsonl")}
    assert rated and rated.keys() <= drawn.keys()  # those whose ratings are ties now are not there
    for i, r in rated.items():
        assert r["responses"] == drawn[i]["responses"] and r["ratings"] != drawn[i]["ratings"]


def test_peoples_rankings_are_taken_and_what_cannot_be_used_is_counted(tmp_path):
    """Catches a ranking about a picture that nobody has, and one dropped in silence."""
    folder(tmp_path)
    lines = [GOOD | {"id": f"s{i}"} for i in range(6)] + [
        GOOD | {"id": "nobody"}, GOOD | {"id": "s7", "ranking": [1, 1, 1]}]
    (tmp_path / "people.jsonl").write_text("\n".join(map(json.dumps, lines)))
    cfg = preferences.Config(data=str(tmp_path), rater="file", n_val=1,
                             ranked=f"{tmp_path}/people.jsonl")
    counts = preferences.main(cfg)
    assert counts == {"rankings": 5, "pairs": 10, "rankings_val": 1, "pairs_val": 2, "skipped": 2}
    with pytest.raises(ValueError, match="6 rankings, and 6 of them held out"):
        preferences.main(dataclasses.replace(cfg, n_val=6))
    (tmp_path / "people.jsonl").write_text(json.dumps(lines[-1]))
    with pytest.raises(ValueError, match="nothing can be ranked; left out: {'all ties': 1}"):
        preferences.main(cfg)


def test_a_mean_is_over_the_ratings_that_there_are(tmp_path):
    """Catches an axis that nobody has rated, or some have, counted as 0 points."""
    folder(tmp_path)
    rows = [GOOD | {"id": f"s{i}", "ratings": [{"helpfulness": 3, "clarity": 1}] * 3}
            for i in range(2)]
    rows[1]["ratings"] = [{"helpfulness": 5, "ethics": 4}] * 3
    (tmp_path / "people.json").write_text(json.dumps([*rows, GOOD | {"id": "s2"}]))
    counts = preferences.main(preferences.Config(
        data=str(tmp_path), rater="file", n_val=1, ranked=f"{tmp_path}/people.json"))
    assert counts["helpfulness"] == 4 and counts["ethics"] == 4 and "faithfulness" not in counts


def test_a_damaged_picture_is_counted_before_answers_are_drawn(
        tmp_path, vlm, tokenizer, monkeypatch):
    """Catches an hour of answers lost to one picture, and a folder without pictures not named."""
    folder(tmp_path)
    asked = read(tmp_path / "prompts.jsonl") + [
        {"id": "odd", "image": "odd.png", "kind": "color", "question": "What color?"}]
    records = read(tmp_path / "train.jsonl") + [scene(0) | {"id": "odd", "image": "odd.png"}]
    for name, rows in (("prompts", asked), ("train", records)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "odd.png").write_bytes(b"no picture")
    drawn = []
    monkeypatch.setattr(preferences, "ask_pool", lambda chosen, *_: drawn.extend(chosen) or [
        (q, ["red", "blue"]) for q in chosen])
    counts = preferences.main(preferences.Config(data=str(tmp_path), noise=0, n_val=1))
    assert len(drawn) == 12 and counts["skipped"] == 1
    (tmp_path / "train.npy").unlink()
    with pytest.raises(ValueError, match="none of 13 pictures can be read; no packed pictures at"):
        preferences.main(preferences.Config(data=str(tmp_path)))


@pytest.mark.parametrize("changes, words", [
    ({"rater": "judge", "model": "m"}, "OPENAI_API_KEY|openai needs the client"),
    ({"rater": "judge", "model": "m", "rubric": "nowhere.txt"}, "nowhere.txt"),
    ({"questions": "strange"}, "question q0 is about a picture that train lacks"),
    ({"data": "bare"}, "rater human-sim needs the objects"),
])
def test_what_cannot_be_rated_is_said_before_anything_is_sampled(
        changes, words, tmp_path, vlm, tokenizer, monkeypatch):
    """Catches minutes of sampling that are lost to a missing key, file or truth."""
    folder(tmp_path)
    (tmp_path / "strange.jsonl").write_text(json.dumps(
        {"id": "q0", "image": "other.png", "kind": "color", "question": "What color?"}))
    if changes == {"data": "bare"}:
        (tmp_path / "meta.json").write_text(json.dumps({"name": "t", "image_size": 16}))
        changes = {}
    checkpoint.save([tmp_path / "ckpt.pt"], stage="sft",
                    configs={"model": dataclasses.asdict(vlm.config)}, model=vlm,
                    tokenizer=tokenizer, step=1, best=0.0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(preferences, "ask_pool", lambda *args: pytest.fail("sampled"))
    with pytest.raises((ValueError, OSError), match=words):
        preferences.main(preferences.Config(
            run=str(tmp_path), **({"data": str(tmp_path)} | changes)))
