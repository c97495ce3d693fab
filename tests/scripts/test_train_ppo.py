"""train_reward.py and train_ppo.py on tiny models: what must stay, what must move, what stops them.

That they run, log, resume bit for bit and accumulate gradients is in test_train_scripts.py.
"""

import copy
import json
import shutil

import pytest
import torch

import train_ppo
import train_reward
from minivlm.conversation import prompt_of
from minivlm.heads import RewardModel
from minivlm.loading.images import Pictures
from minivlm.loading.models import reward_model_from
from minivlm.preferences.rankings import load_rankings
from minivlm.running import checkpoint
from minivlm.running.run import Run
from minivlm.tokenizer import Tokenizer
from test_train_scripts import config_of, rows_of


def weights(run):
    """A run's model, by name."""
    return torch.load(run / "ckpt.pt", weights_only=True)["model"]


def few_rankings(folder, path, rankings):
    """A data folder with these rankings as few.jsonl."""
    (path / "few.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rankings))
    for name in ("train.npy", "meta.json"):
        (path / name).symlink_to(folder / name)


def ids_below_512(self, idx, segments, **pictures):
    """A reward model's score that is easily raised: 0 .. 4; a third of the 1,536 ids count."""
    texts = [ids[(segment == 0) | (segment == k)]  # a row may hold several answers
             for ids, segment in zip(idx, segments) for k in range(1, segment.max() + 1)]
    return torch.stack([(ids[-4:] < 512).sum() for ids in texts]).float()


def test_the_models_that_judge_are_bit_identical_after_training(
        runs, folder, tmp_path, monkeypatch):
    """Catches a reference that follows the policy, a reward model or a ViT that learns."""
    seen, whole = {}, train_ppo.roll_out

    def spy(policy, ref, reward_model, value_model, *args, **options):
        frozen = {"ref": ref, "reward": reward_model, "vit": policy.vit}
        seen.setdefault("before", copy.deepcopy({k: m.state_dict() for k, m in frozen.items()}))
        seen["after"] = {k: m.state_dict() for k, m in frozen.items()}
        return whole(policy, ref, reward_model, value_model, *args, **options)

    monkeypatch.setattr(train_ppo, "roll_out", spy)
    _, cfg = config_of("ppo", folder, runs, out=str(tmp_path / "ppo"))
    train_ppo.main(cfg)
    for name, before in seen["before"].items():
        assert all(torch.equal(before[k], seen["after"][name][k]) for k in before), name
    after, sft = weights(tmp_path / "ppo"), weights(runs / "sft")
    moved = [k for k in sft if not k.startswith("vit.")]
    assert moved and not any(torch.equal(after[f"vlm.{k}"], sft[k]) for k in moved if sft[k].any())
    assert after["value_model.head.weight"].any()  # it began at 0


@pytest.mark.parametrize("stage", ["ppo", "grpo", "dpo"])
def test_the_latest_policy_counts_as_best(stage, runs, folder, tmp_path, monkeypatch):
    """Catches: the chatbot before its preference training taken for the one behind it, because a
    noisy figure was best at step 0. Here every evaluation is worse than the one before.
    """
    record = Run.record

    def worse(self, figures, loss, **options):
        record(self, figures, loss=float(self.step), **options)

    monkeypatch.setattr(Run, "record", worse)
    script, cfg = config_of(stage, folder, runs, out=str(tmp_path / stage))
    script.main(cfg)
    steps = [checkpoint.load(tmp_path / stage / name, (stage,))["step"]
             for name in ("best.pt", "ckpt.pt")]
    assert steps == [cfg.steps, cfg.steps]


def test_step_0_and_every_first_update_are_where_theory_says(runs):
    """Catches a KL between equal models, and log-probabilities that changed since the rollout."""
    first, *others = rows_of(runs / "ppo" / "metrics.csv")
    assert abs(float(first["val_kl_answer"])) < 1e-5 and abs(float(first["val_kl_token"])) < 1e-6
    assert all(float(r["first_ratio_off"]) < 1e-5 for r in others)
    assert float(others[-1]["kl_coef"]) != float(others[0]["kl_coef"])  # the adaptive one moves
    assert 1 <= float(first["val_true_score"]) <= 5
    assert (runs / "ppo" / "samples_0.png").stat().st_size > 5000


def test_a_higher_score_is_learned(runs, folder, tmp_path, monkeypatch):
    """Catches a sign turned round between score and weights, and a penalty that does not hold."""
    monkeypatch.setattr(RewardModel, "forward", ids_below_512)
    ends, scores = {}, {}
    for kl_coef in (0.0, 20.0):
        out = tmp_path / str(kl_coef)
        _, cfg = config_of("ppo", folder, runs, out=str(out), steps=50, eval_every=50,
                           batch_size=24, epochs=2, muon_lr=0.01, lr=5e-3, kl_target=0.0,
                           kl_coef=kl_coef, n_val=20)
        ends[kl_coef] = train_ppo.main(cfg)
        scores[kl_coef] = [float(r["score"]) for r in rows_of(out / "metrics.csv")[1:]]
    # five rollouts are 120 answers; the 20 held-out ones are too few to tell
    assert sum(scores[0.0][-5:]) / 5 > sum(scores[0.0][:5]) / 5 + 1
    assert ends[0.0]["val_kl_answer"] > max(1, 3 * ends[20.0]["val_kl_answer"])


@pytest.fixture(scope="module")
def plain(runs, folder, tmp_path_factory):
    """The weights of the run that every choice is compared with."""
    out = tmp_path_factory.mktemp("plain")
    script, cfg = config_of("ppo", folder, runs, out=str(out), kl_target=0.0, epochs=3)
    script.main(cfg)
    return weights(out)


@pytest.mark.parametrize("changes", [
    {"whiten_rewards": True}, {"kl": "k3"}, {"length_penalty": 2.0}, {"end_penalty": 5.0},
    {"gamma": 0.9}, {"lam": 0.5}, {"clip_eps": 1e-4}, {"value_clip": 1e-4}, {"temperature": 0.7},
    {"kl_coef": 1.0}, {"value_lr": 0.05}, {"max_kl": 1e-9}, {"minibatches": 2, "grad_accum": 1},
])
def test_every_choice_reaches_the_weights(changes, plain, runs, folder, tmp_path):
    """Catches a flag that is read and has no effect."""
    script, cfg = config_of(
        "ppo", folder, runs, out=str(tmp_path), kl_target=0.0, epochs=3, **changes)
    script.main(cfg)
    b = weights(tmp_path)
    # _extra_state is kl_coef itself
    assert any(not torch.equal(plain[k], b[k]) for k in plain if k != "_extra_state")


def test_early_stopping_ends_the_updates_of_a_rollout(runs, folder, tmp_path):
    """Catches a stop that never comes: after the first moved minibatch nothing more is learned."""
    script, cfg = config_of("ppo", folder, runs, out=str(tmp_path / "a"), max_kl=1e-12, epochs=4)
    script.main(cfg)
    # the first minibatch finds the policy where it was; the second finds it moved, and ends it
    assert [float(r["updates"]) for r in rows_of(tmp_path / "a" / "metrics.csv")[1:]] == [1] * 4


def test_the_reward_model_learns_who_is_preferred(runs, folder, tmp_path, monkeypatch):
    """Catches ranks turned round: overfitted on six rankings, all of their pairs come right."""
    few_rankings(folder, tmp_path, load_rankings(folder, "preferences")[:6])
    monkeypatch.setattr(train_reward, "CENTER", 0.0)
    script, cfg = config_of(
        "reward", folder, runs, data=str(tmp_path), split="few", val_split="few",
        out=str(tmp_path / "out"), steps=60, eval_every=60, warmup=2, seed=0)
    row = script.main(cfg)
    assert row["accuracy/all"] == 1 and row["val_loss"] < 0.3


def test_scores_are_normalized_on_the_answers_it_was_measured_with(runs, folder):
    """Catches a normalization that is not in the checkpoint."""
    state = checkpoint.load(runs / "reward" / "ckpt.pt", ("reward",))["model"]
    assert state["std"] > 0 and state["std"] != 1 and state["mean"] != 0
    model = reward_model_from(
        checkpoint.load(runs / "reward" / "ckpt.pt", ("reward",))).eval()
    tokenizer = Tokenizer.load(folder / "tokenizer.tiktoken")
    pictures, scores = Pictures(folder, model.vlm.config.vit.image_size), []
    for r in load_rankings(folder, "preferences_val"):
        prompt = prompt_of(r["question"], tokenizer, model.vlm.config.vit.n_tokens)
        for a in r["responses"]:
            answer = tokenizer.encode(" " + a) + [tokenizer.end]
            of = torch.tensor([[0] * (len(prompt) - 1) + [1] * (1 + len(answer))])
            scores.append(model(torch.tensor([prompt + answer]), of, pictures.get([r["image"]])))
    scores = torch.cat(scores)
    assert abs(scores.mean()) < 1e-3 and abs(scores.std() - 1) < 1e-3


@pytest.mark.parametrize("changes", [
    {"facts": True}, {"margin": 1.0}, {"vit_rate": 1.0}, {"pool": "last"}])
def test_every_choice_reaches_the_reward_model(changes, runs, folder, tmp_path):
    """Catches a flag of train_reward.py without effect."""
    rankings = load_rankings(folder, "preferences")[:8]
    for r in rankings:  # the tiny chatbot's answers are all rated alike
        r["ratings"] = [{"helpfulness": 6.0 - rank} for rank in r["ranking"]]
    few_rankings(folder, tmp_path, rankings)
    few = {"data": str(tmp_path), "split": "few", "val_split": "few"}
    for out, options in (("a", changes), ("b", {})):
        script, cfg = config_of("reward", folder, runs, out=str(tmp_path / out), **few, **options)
        script.main(cfg)
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert any(not torch.equal(a[k], b[k]) for k in a)
    vit, sft = "vlm.vit.patch.weight", weights(runs / "sft")["vit.patch.weight"]
    assert torch.equal(a[vit], sft) == (changes != {"vit_rate": 1.0})
    if "facts" in changes:  # and it is shown them in PPO too
        script, cfg = config_of("ppo", folder, runs, out=str(tmp_path / "p"), max_new_tokens=20,
                                reward=str(tmp_path / "a"), steps=1, eval_every=1)
        script.main(cfg)


# --- what stops them ---


def changed(run, folder, change):
    """A copy of a run's checkpoint in `folder`, after `change` has seen its state."""
    state = torch.load(run / "best.pt", weights_only=True)
    change(state)
    out = folder / run.name
    out.mkdir()
    torch.save(state, out / "best.pt")
    return str(out)


def test_a_reward_model_with_another_tokenizer_is_refused(runs, folder, tmp_path):
    """Catches ids that mean other words to the judge."""
    other = changed(runs / "reward", tmp_path,
                    lambda state: state["configs"].update(tokenizer="another"))
    script, cfg = config_of("ppo", folder, runs, out=str(tmp_path / "o"), reward=other)
    with pytest.raises(ValueError, match="have different tokenizers"):
        script.main(cfg)
    assert not (tmp_path / "o").exists()


def test_a_score_that_is_no_number_stops_ppo_before_anything_is_lost(runs, folder, tmp_path):
    """Catches a NaN that reaches the weights, and a run folder emptied for it."""
    broken = changed(runs / "reward", tmp_path,
                     lambda state: state["model"]["head.weight"].fill_(float("nan")))
    script, cfg = config_of("ppo", folder, runs, out=str(tmp_path / "o"), reward=broken)
    with pytest.raises(ValueError, match="is NaN or inf"):
        script.main(cfg)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_resuming_with_another_judge_or_reference_is_refused(stage, runs, folder, tmp_path):
    """Catches a run whose second half was measured against other weights."""
    shutil.copytree(runs / "ppo", tmp_path / "ppo")
    other = changed(runs / stage, tmp_path,
                    lambda state: next(iter(state["model"].values())).view(-1)[0].add_(1))
    option = {"sft": "init", "reward": "reward"}[stage]
    script, cfg = config_of("ppo", folder, runs, out=str(tmp_path / "ppo"), resume=True, steps=6,
                            **{option: other})
    with pytest.raises(ValueError, match=f"other settings of {option}"):
        script.main(cfg)


@pytest.mark.parametrize("changes, words", [
    ({"ranking": [1, 1, 1]}, "all ties"), ({"responses": ["a", "a", "b"]}, "equal to another"),
    ({"responses": ["a", "", "b"]}, "empty answer"),
    ({"responses": ["a", "b", "word " * 400]}, "the context holds 256"),
    ({"image": "train.npy#99999"}, "no '99999'"),
])
def test_a_ranking_that_teaches_nothing_is_named(
        changes, words, runs, folder, tmp_path):
    """Catches a bad line that costs a run, or is skipped in silence."""
    rows = load_rankings(folder, "preferences")[:8]
    full = next(r for r in rows if len(r["responses"]) == 3)
    lines = [*rows, full | {"id": "bad-1", "ranking": [1, 2, 3]} | changes]
    few_rankings(folder, tmp_path, lines)
    script, cfg = config_of("reward", folder, runs, data=str(tmp_path), split="few",
                            val_split="few", out=str(tmp_path / "o"))
    with pytest.raises(ValueError, match=words) as error:
        script.main(cfg)
    said = str(error.value)
    assert "bad-1" in said or "few.jsonl:9: " in said or "image" in changes
    assert not (tmp_path / "o").exists()
