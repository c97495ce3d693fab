"""train_grpo.py on tiny models: groups, checked rewards, dead groups, what must stay and move.

That it runs, logs, resumes bit for bit and accumulates gradients is in test_train_scripts.py; the
advantages and the losses are in test_grpo.py.
"""

import copy

import pytest
import torch

import train_grpo
from minivlm.heads import RewardModel
from minivlm.preferences.prompts import Prompts
from test_train_ppo import ids_below_512, weights
from test_train_scripts import config_of, rows_of

PARTS = ("right", "form", "refusal", "unsure")


def vowels(answer, q, phrases):
    """Parts of a reward that even an untrained model's answers differ in."""
    share = sum(letter in "aeiou" for letter in answer) / max(1, len(answer))
    return {"right": share, "form": len(answer) / 50, "refusal": float("e" in answer),
            "unsure": float("o" in answer)}


@pytest.fixture
def checking(monkeypatch):
    """The reward of an answer is its vowels."""
    monkeypatch.setattr(train_grpo, "checked", vowels)


def seen_by(monkeypatch):
    """What every call of roll_out was given, and what it returned."""
    calls, whole = [], train_grpo.roll_out

    def spy(policy, ref, reward_model, value_model, batch, *args):
        rollout = whole(policy, ref, reward_model, value_model, batch, *args)
        frozen = {"ref": ref.state_dict(), "vit": policy.vit.state_dict()}
        calls.append((batch, rollout, copy.deepcopy(frozen)))
        return rollout

    monkeypatch.setattr(train_grpo, "roll_out", spy)
    return calls


def test_the_reference_stays_and_all_else_moves(checking, runs, folder, tmp_path, monkeypatch):
    """Catches a reference that follows the policy, a ViT that learns, a part that does not."""
    calls = seen_by(monkeypatch)
    _, cfg = config_of("grpo", folder, runs, out=str(tmp_path / "grpo"), reward="checked")
    train_grpo.main(cfg)
    (*_, before), (*_, after) = calls[0], calls[-1]
    for name in before:
        assert all(torch.equal(before[name][k], after[name][k]) for k in before[name]), name
    now, sft = weights(tmp_path / "grpo"), weights(runs / "sft")
    moved = [k for k in sft if not k.startswith("vit.")]
    assert moved and not any(torch.equal(now[k], sft[k]) for k in moved if sft[k].any())


def test_step_0_and_every_first_update_are_where_theory_says(runs):
    """Catches a KL between equal models, and log-probabilities that changed since the rollout."""
    first, *others = rows_of(runs / "grpo" / "metrics.csv")
    assert abs(float(first["val_kl_answer"])) < 1e-5 and abs(float(first["val_kl_token"])) < 1e-6
    assert all(float(r["first_ratio_off"]) < 1e-5 for r in others)
    for part in PARTS:
        assert 0 <= float(first[f"val_{part}"]) <= 1


@pytest.mark.parametrize("advantage", ["grpo", "dr_grpo", "rloo"])
def test_a_higher_score_is_learned(advantage, runs, folder, tmp_path, monkeypatch):
    """Catches a sign turned round, scores given to other answers, and a KL that does not hold."""
    monkeypatch.setattr(RewardModel, "forward", ids_below_512)
    ends, first = {}, {}
    for kl_coef in (0.0, 20.0):
        out = tmp_path / str(kl_coef)
        _, cfg = config_of("grpo", folder, runs, out=str(out), steps=90, eval_every=90, n_val=60,
                           batch_size=24, n_copies=6, lr=5e-3, muon_lr=0.01,
                           kl_coef=kl_coef, advantage=advantage)
        ends[kl_coef] = train_grpo.main(cfg)
        first[kl_coef] = float(rows_of(out / "metrics.csv")[0]["val_score"])
    assert ends[0.0]["val_score"] > first[0.0] + 0.7
    assert ends[0.0]["val_kl_answer"] > max(1, 3 * ends[20.0]["val_kl_answer"])


def test_a_group_shares_its_prompt_and_only_there_noise_is_added(
        checking, runs, folder, tmp_path, monkeypatch):
    """Catches copies that are torn apart, noise of each copy, noise in what is measured."""
    clean = {}
    whole = Prompts.batch

    def batch(self, questions, seed):
        made = whole(self, questions, seed)
        clean.update({q["id"]: ids for q, ids in zip(questions, made.prompts)})
        return made

    monkeypatch.setattr(Prompts, "batch", batch)
    calls = seen_by(monkeypatch)
    _, cfg = config_of("grpo", folder, runs, out=str(tmp_path), reward="checked", noise=0.5)
    train_grpo.main(cfg)
    changed = measured = 0
    for asked, rollout, _ in calls:
        k = asked.n_copies
        ids = [q["id"] for q in asked.questions]
        assert len(rollout.answers) == len(ids)
        if k == 1:  # held-out questions
            assert asked.prompts == [clean[i] for i in ids]
            measured += 1
            continue
        for start in range(0, len(ids), k):
            assert len(set(ids[start:start + k])) == 1
            assert len({tuple(p) for p in asked.prompts[start:start + k]}) == 1
            changed += asked.prompts[start] != clean[ids[start]]
        assert len({tuple(a) for a in rollout.answers}) > len(ids) // k  # drawn apart
    assert changed > 3 and measured == 3  # at steps 0, 2 and 4


def test_dead_groups_are_counted_and_teach_nothing(runs, folder, tmp_path, monkeypatch):
    """Catches a group of equal scores that moves the policy, and one that is not counted."""
    def alike(answer, q, phrases):
        return dict.fromkeys(PARTS, 1.0)

    monkeypatch.setattr(train_grpo, "checked", alike)
    _, cfg = config_of("grpo", folder, runs, out=str(tmp_path), reward="checked", kl_coef=0.0,
                       end_penalty=0.0)
    train_grpo.main(cfg)
    assert [float(r["dead_groups"]) for r in rows_of(tmp_path / "metrics.csv")[1:]] == [1.0] * 4
    now, sft = weights(tmp_path), weights(runs / "sft")
    assert all(torch.equal(now[k], sft[k]) for k in sft)


def test_live_groups_alone_are_learned_from(checking, runs, folder, tmp_path, monkeypatch):
    """Catches rows of another group, and a mean over answers that are left out."""
    def first_alone(answer, q, phrases):
        return vowels(answer, q, phrases) if q["id"] == live[0] else dict.fromkeys(
            PARTS, 0.0)

    live, learned, whole = [], [], train_grpo.update
    made = Prompts.batch

    def batch(self, questions, seed):
        live[:] = [questions[0]["id"]]
        return made(self, questions, seed)

    def update(policy, optimizer, drawn, *args):
        [each] = drawn
        rows = each.rollout.rows_of(each.live).tolist()
        learned.append([each.rollout.ids[i] == live[0] for i in rows])
        return whole(policy, optimizer, drawn, *args)

    monkeypatch.setattr(Prompts, "batch", batch)
    monkeypatch.setattr(train_grpo, "checked", first_alone)
    monkeypatch.setattr(train_grpo, "update", update)
    _, cfg = config_of("grpo", folder, runs, out=str(tmp_path), reward="checked",
                       end_penalty=0.0, batch_size=12)
    train_grpo.main(cfg)
    assert learned and all(all(rows) and len(rows) >= 3 for rows in learned)


def test_dead_groups_are_drawn_anew(checking, runs, folder, tmp_path, monkeypatch):
    """Catches the same prompts drawn again, more of them than were dead, and live ones that are not
    learned from.
    """
    def some_alike(answer, q, phrases):
        alike = sum(map(ord, q["id"])) % 3 > 0  # two questions of three
        return dict.fromkeys(PARTS, 1.0) if alike else vowels(answer, q, phrases)

    learned, whole = [], train_grpo.update

    def update(policy, optimizer, drawn, *args):
        learned.append([(len(each.rollout.ids) // 3, len(each.live), each.rollout.ids[0])
                        for each in drawn])
        return whole(policy, optimizer, drawn, *args)

    monkeypatch.setattr(train_grpo, "checked", some_alike)
    monkeypatch.setattr(train_grpo, "update", update)
    _, cfg = config_of("grpo", folder, runs, out=str(tmp_path), reward="checked", redraw=2,
                       end_penalty=0.0, batch_size=18)
    train_grpo.main(cfg)
    assert max(map(len, learned)) == 3
    for drawn in learned:
        for (n, n_live, first), (n_next, _, first_next) in zip(drawn, drawn[1:]):
            assert n_next == n - n_live and first_next != first
        n, n_live, _ = drawn[-1]
        assert len(drawn) == 3 or n == n_live
    assert all(float(r["first_ratio_off"]) < 1e-5 for r in rows_of(tmp_path / "metrics.csv")[1:])


@pytest.fixture(scope="module")
def plain(runs, folder, tmp_path_factory):
    """The weights of the run that every choice is compared with."""
    out = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_grpo, "checked", vowels)
        script, cfg = config_of("grpo", folder, runs, out=str(out), reward="checked", epochs=3)
        script.main(cfg)
    return weights(out)


@pytest.mark.parametrize("changes", [
    {"advantage": "rloo"}, {"advantage": "dr_grpo"}, {"kl": "reward"}, {"kl_coef": 1.0},
    {"clip_eps": 1e-4}, {"clip_high": 1e-4}, {"temperature": 0.7}, {"end_penalty": 5.0},
    {"right": 3.0}, {"form": 3.0}, {"refusal": 3.0}, {"unsure": 3.0}, {"reward": "runs"},
    {"noise": 0.3}, {"alpha": 1.0}, {"n_copies": 2}, {"minibatches": 2, "grad_accum": 1},
])
def test_every_choice_reaches_the_weights(changes, checking, plain, runs, folder, tmp_path):
    """Catches a flag that is read and has no effect."""
    if "reward" in changes:
        changes = {"reward": str(runs / "reward")}
    options = {"reward": "checked", "epochs": 3} | changes
    script, cfg = config_of("grpo", folder, runs, out=str(tmp_path), **options)
    script.main(cfg)
    now = weights(tmp_path)
    assert any(not torch.equal(plain[k], now[k]) for k in plain)
