"""preferences/pairs.py and train_dpo.py: rows, weights, the reference's cache, what stops a run.

That it runs, logs, resumes bit for bit and accumulates gradients is in test_train_scripts.py.
"""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minivlm.conversation import render
from minivlm.losses import IGNORE_INDEX
from minivlm.preferences import pairs
from minivlm.preferences.pairs import (
    PairMaker, at_most, changed_tokens, load_pairs, pair_logprobs, split_pair,
)
from test_train_ppo import changed, weights
from test_train_scripts import config_of, rows_of

ASKED = [{"from": "human", "value": "<image>\nWhat is it?"}]


def pair(**changes) -> dict:
    """A pair about the first training picture."""
    return {"id": "p", "image": "train.npy#0", "conversations": ASKED, "chosen": "A ring.",
            "rejected": "A big star."} | changes


def said(text: str) -> list[dict]:
    """A whole dialogue."""
    return [*ASKED, {"from": "gpt", "value": text}]


# --- pairs ---


def test_a_pair_is_read_as_texts_and_as_dialogues():
    """Catches a turn lost between prompt and answers."""
    whole = {"conversations": [], "chosen": said("A ring. "), "rejected": said("A star.")}
    assert split_pair(pair(**whole)) == (ASKED, "A ring.", "A star.")
    more = [*said("Yes."), {"from": "human", "value": "Sure?"}]
    assert split_pair(pair(conversations=more))[0] == more


@pytest.mark.parametrize("changes, words", [
    ({"rejected": "A ring. "}, "chosen and rejected are equal"),
    ({"chosen": " "}, "an answer is empty"), ({"rejected": 5}, "an answer is empty or no text"),
    ({"conversations": [], "chosen": said("A"), "rejected": [{"from": "human", "value": "Who?"},
     {"from": "gpt", "value": "B"}]}, "chosen and rejected answer different prompts"),
    ({"conversations": []}, "no question comes before"), ({"conversations": said("A")}, "no quest"),
    ({"conversations": ["What?"]}, "a turn is not {from, value}"),
    ({"conversations": [{"from": "human", "value": "What?"}]}, "0 <image> marks and 1 pictures"),
    ({"conversations": [ASKED[0], ASKED[0]]}, "human and gpt alternate"),
    ({"chosen": "word " * 400}, "the context holds"), ({"image": "train.npy#99999"}, "no '99999'"),
])
def test_a_pair_that_teaches_nothing_is_named_and_costs_no_run(
    changes, words, runs, folder, tmp_path
):
    """Catches a bad line that is skipped in silence, or met in the middle of a run."""
    lines = [*load_pairs(folder, "preferences_pairs")[:8], pair(**changes)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    for name in ("train.npy", "train.jsonl", "meta.json", "prompts_val.jsonl"):
        (tmp_path / name).symlink_to(folder / name)
    script, cfg = config_of("dpo", folder, runs, data=str(tmp_path), split="few", val_split="few",
                            out=str(tmp_path / "o"))
    with pytest.raises(ValueError, match=words) as error:
        script.main(cfg)
    named = any(name in str(error.value) for name in ("few.jsonl:9", "record p"))
    assert named or "image" in changes
    assert not (tmp_path / "o" / "ckpt.pt").exists()


def test_changed_tokens_are_those_outside_of_common_text():
    """Catches junk rules of difflib on long texts, and a common token taken for common text."""
    assert changed_tokens([1, 2, 3, 9, 4, 5, 6], [1, 2, 3, 4, 5, 6]) == (
        [False] * 3 + [True] + [False] * 3, [False] * 6)
    assert changed_tokens([7, 1, 8], [9, 1, 5]) == ([True] * 3, [True] * 3)
    long = [5] * 300
    assert changed_tokens(long + [1], long + [2])[0] == [False] * 300 + [True]


@pytest.fixture
def noise(tmp_path):
    """A data folder of five pictures of 16 pixels, no two alike."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    np.save(tmp_path / "train.npy", pixels)
    (tmp_path / "meta.json").write_text(json.dumps({"name": "noise", "image_size": 16}))
    return tmp_path


def test_both_answers_of_a_pair_stand_in_one_row_behind_their_prompt(noise, vlm, tokenizer):
    """Catches sides mixed up, a weight one token off, a target inside of the prompt."""
    asked = [{"from": "human", "value": "<image>\nWhat?"}]
    records = [pair(conversations=asked),
               pair(conversations=asked, chosen="A red ring...", rejected="A red star...")]
    batch = PairMaker(noise, vlm, tokenizer, changed=5.0).batch(records)
    rows = batch.rows
    assert len(rows.idx) == len(rows.images) == 2 and batch.weights.shape == rows.idx.shape
    prompt, _ = render(asked, tokenizer, vlm.config.vit.n_tokens)
    for b, r in enumerate(records):
        assert rows.idx[b, : len(prompt)].tolist() == prompt
        for k, side in ((1, "chosen"), (2, "rejected")):
            answer = tokenizer.encode(" " + r[side]) + [tokenizer.end]
            here = (rows.segments[b] == k) & (rows.targets[b] != IGNORE_INDEX)
            assert rows.targets[b][here].tolist() == answer
            # what predicts an answer: the prompt's last token, then the answer but its end
            assert rows.idx[b][here].tolist() == prompt[-1:] + answer[:-1]
    heavy = tokenizer.decode(rows.targets[1][batch.weights[1] == 5].tolist())
    assert heavy == "ringstar"  # tokens are bytes here; the rest is common to both
    assert set(batch.weights.unique().tolist()) == {1.0, 5.0}


def test_log_probabilities_are_those_of_each_answer_read_alone(noise, vlm, tokenizer):
    """Catches pictures that go to the wrong half, pads that count, an answer without its end."""
    vlm.eval()
    maker, asked = PairMaker(noise, vlm, tokenizer), [{"from": "human", "value": "Why?"}]
    records = [pair(), pair(image="", conversations=asked, rejected="Who knows"),
               pair(image="train.npy#3", chosen="Yes, it is.", rejected="No")]
    chosen, rejected, _ = pair_logprobs(vlm, maker.batch(records))
    for got, side in ((chosen, 1), (rejected, 2)):
        for b, r in enumerate(records):
            prompt, answer = maker.rows(r)[0], maker.rows(r)[side]
            images = maker.pictures.get([r["image"]]) if r["image"] else None
            logits = vlm(torch.tensor([prompt + answer]), images)[0]
            logits[:, tokenizer.image] = -torch.inf                  # a placeholder is no word
            logp = logits.log_softmax(-1)[len(prompt) - 1:-1]
            want = logp[range(len(answer)), answer].sum()
            torch.testing.assert_close(got[b], want, rtol=1e-4, atol=1e-4)


def test_pairs_of_pictures_compare_one_answer_beside_two(runs, folder, noise, vlm, tokenizer):
    """Catches a picture compared with itself, the rejected answer in its place, a reference that
    sees the right picture alone.
    """
    script, cfg = config_of("dpo", folder, runs, picture_coef=2.0)
    ref = copy.deepcopy(vlm.eval())
    with torch.no_grad():
        for weight in vlm.projector.parameters():
            weight.mul_(2)
    maker = PairMaker(noise, vlm, tokenizer, cfg.changed)
    here = [pair(), pair(image="train.npy#3")]
    swapped = [pair(image="train.npy#3"), pair()]
    ref_logp = torch.zeros(2, 2)
    ref_logp[:, 0] = pair_logprobs(ref, maker.batch(here), cfg.average)[0].detach()
    loss, _ = script.score_pairs(vlm, ref, maker.batch(here), ref_logp, cfg)
    plain = replace(cfg, picture_coef=0.0)
    without, _ = script.score_pairs(vlm, ref, maker.batch(here), ref_logp, plain)
    at = {(name, place): pair_logprobs(model, maker.batch(records), cfg.average)[0]
          for name, model in (("now", vlm), ("ref", ref))
          for place, records in (("here", here), ("elsewhere", swapped))}
    h = at["now", "here"] - at["ref", "here"] - at["now", "elsewhere"] + at["ref", "elsewhere"]
    assert h.abs().min() > 1e-3
    torch.testing.assert_close(loss - without, 2 * -F.logsigmoid(cfg.beta * h).mean())


def test_each_question_gives_as_many_pairs_as_it_may_at_random():
    """Catches a question with six pairs that counts six times, and always the same pair of it."""
    asked = {i: [{"from": "human", "value": f"<image>\nWhat? {i}"}] for i in range(3)}
    many = [pair(conversations=asked[i], chosen=f"Answer {k}.") for i, n in enumerate((1, 2, 6))
            for k in range(n)]
    for n, want in ((1, [1, 1, 1]), (2, [1, 2, 2]), (0, [1, 2, 6])):
        taken = at_most(n, many, seed=0)
        assert [sum(r["conversations"] == asked[i] for r in taken) for i in range(3)] == want
        assert len({(str(r["conversations"]), r["chosen"]) for r in taken}) == sum(want)
    assert at_most(1, many, 0) == at_most(1, many, 0)
    assert len({str(at_most(1, many, seed)) for seed in range(9)}) > 3
    other = [pair(image="train.npy#3"), pair(image="train.npy#2")]
    assert len(at_most(1, other, 0)) == 2, "the same words about another picture"


# --- a run ---


def test_step_0_costs_ln_2_and_the_reference_does_not_move(runs):
    """Catches a reference that is not the policy at the start, and one that follows it."""
    first, *_, last = rows_of(runs / "dpo" / "metrics.csv")
    assert float(first["val_loss"]) == pytest.approx(math.log(2), abs=1e-5)
    for name in ("margin", "chosen_reward", "rejected_reward", "kl_answer", "kl_token"):
        assert abs(float(first[f"val_{name}"])) < 1e-5
    assert float(last["val_loss"]) != float(first["val_loss"])
    assert 1 <= float(first["val_true_score"]) <= 5 and (runs / "dpo/samples_0.png").is_file()
    after, sft = weights(runs / "dpo"), weights(runs / "sft")
    assert all(torch.equal(after[k], sft[k]) == k.startswith("vit.") for k in sft if sft[k].any())


def test_overfitting_a_batch_separates_its_pairs(runs, folder, tmp_path):
    """Catches a sign: margins must grow, the chosen answers' rewards above the rejected ones'."""
    (tmp_path / "few.jsonl").write_text("".join(
        json.dumps(r) + "\n" for r in load_pairs(folder, "preferences_pairs")[:6]))
    for name in ("train.npy", "train.jsonl", "meta.json"):
        (tmp_path / name).symlink_to(folder / name)
    script, cfg = config_of("dpo", folder, runs, data=str(tmp_path), split="few", val_split="few",
                            out=str(tmp_path / "o"), steps=40, eval_every=40, prompts="", lr=1e-2,
                            muon_lr=0.02, per_question=0)
    row = script.main(cfg)
    assert row["val_accuracy"] == 1 and row["val_loss"] < 0.4 and row["val_margin"] > 0.5
    assert "val_true_score" not in row


@pytest.mark.parametrize("changes", [
    {"kind": "ipo"}, {"kind": "ipo", "average": False}, {"kind": "hinge"}, {"kind": "kto"},
    {"label_smoothing": 0.2},
    {"kind": "robust", "label_smoothing": 0.2}, {"beta": 1.0}, {"average": False}, {"changed": 1.0},
    {"sft_coef": 1.0}, {"picture_coef": 1.0}, {"freeze_vit": False}, {"per_question": 0},
])
def test_every_choice_reaches_the_policy(changes, runs, folder, tmp_path):
    """Catches a flag of train_dpo.py without effect."""
    script, cfg = config_of("dpo", folder, runs, out=str(tmp_path / "o"), prompts="", **changes)
    script.main(cfg)
    a, b = weights(tmp_path / "o"), weights(runs / "dpo")
    assert any(not torch.equal(a[k], b[k]) for k in a)


# --- the reference's log-probabilities ---


def test_the_reference_is_asked_once_and_its_cache_serves_other_runs(
    runs, folder, tmp_path, monkeypatch
):
    """Catches a cache that is made again, and one whose figures stand at the wrong pairs."""
    cache, calls = tmp_path / "ref.pt", {"n": 0}
    whole = pairs.pair_logprobs

    def count(*args):
        calls["n"] += 1
        return whole(*args)

    monkeypatch.setattr(pairs, "pair_logprobs", count)
    for out in ("a", "b"):
        script, cfg = config_of("dpo", folder, runs, out=str(tmp_path / out), prompts="",
                                ref_logps=str(cache), beta={"a": 0.1, "b": 0.5}[out])
        script.main(cfg)
        assert (calls["n"] > 0) == (out == "a")
        calls["n"] = 0
    for out in "ab":
        first = rows_of(tmp_path / out / "metrics.csv")[0]
        assert float(first["val_loss"]) == pytest.approx(math.log(2), abs=1e-5)


def test_a_cache_of_another_model_other_pairs_or_another_sum_is_refused(runs, folder, tmp_path):
    """Catches log-probabilities of other weights, the silent way to train against noise."""
    cache = runs / "dpo" / "ref_logps.pt"
    other = changed(runs / "sft", tmp_path,
                    lambda state: next(iter(state["model"].values())).view(-1)[0].add_(1))
    for changes, words in (
        ({"init": other}, "of other weights"), ({"average": False}, "of other average"),
        ({"changed": 2.0}, "of other changed"), ({"per_question": 0}, "of other pairs"),
        ({"val_split": "preferences_pairs", "init": other}, "of other pairs, weights"),
    ):
        script, cfg = config_of("dpo", folder, runs, out=str(tmp_path / "o"), ref_logps=str(cache),
                                **changes)
        with pytest.raises(ValueError, match=words):
            script.main(cfg)
    assert not (tmp_path / "o").exists()
    (tmp_path / "broken.pt").write_bytes(b"no archive")
    for name, words in (("broken.pt", "broken.pt is damaged"), ("no/where.pt", "no folder")):
        script, cfg = config_of("dpo", folder, runs, out=str(tmp_path / "o"),
                                ref_logps=str(tmp_path / name))
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            script.main(cfg)


def test_a_fresh_run_makes_its_own_cache_again_and_a_resumed_one_refuses(runs, folder, tmp_path):
    """Catches a newcomer stopped by his own earlier run's cache, and a stale one that is used.

    But a run that goes on must find the pairs that it began with.
    """
    for name in ("train.npy", "train.jsonl", "meta.json", "preferences_pairs.jsonl"):
        (tmp_path / name).symlink_to(folder / name)
    held_out = (folder / "preferences_val_pairs.jsonl").read_text().splitlines(keepends=True)
    path = tmp_path / "preferences_val_pairs.jsonl"
    options = {"data": str(tmp_path), "out": str(tmp_path / "o"), "prompts": ""}
    for lines in (held_out, held_out[1:]):
        path.write_text("".join(lines))
        script, cfg = config_of("dpo", folder, runs, **options)
        script.main(cfg)
        first = rows_of(tmp_path / "o" / "metrics.csv")[0]
        assert float(first["val_loss"]) == pytest.approx(math.log(2), abs=1e-5)
    path.write_text("".join(held_out))
    script, cfg = config_of("dpo", folder, runs, steps=6, resume=True, **options)
    with pytest.raises(ValueError, match="of other pairs"):
        script.main(cfg)
