"""minivlm/rollout.py: what is drawn, what it was worth, and that nothing has moved yet."""

import copy
import json
from collections import Counter
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minivlm.conversation import prompt_of
from minivlm.heads import RewardModel, ValueModel
from minivlm.lora import add_lora
from minivlm.losses import kl_estimate
from minivlm.preferences.prompts import Prompts
from minivlm.rl import explained_variance
from minivlm.rollout import PromptBatch, logprobs, roll_out, share_vit

QUESTIONS = ("Is it?", "A", "How so?")


@pytest.fixture
def models(vlm):
    """Policy, reference, reward model and value model, as train_ppo.py makes them of one VLM."""
    reward_model = RewardModel(copy.deepcopy(vlm)).eval()
    value_model = ValueModel.from_reward_model(reward_model).eval()
    torch.nn.init.normal_(value_model.head.weight)
    return vlm.eval(), copy.deepcopy(vlm), reward_model, value_model


def roll(models, tokenizer, temperature=0.7, n=3, max_new_tokens=8, judged=None, **options):
    """A rollout over n questions about random pictures."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, 3, 16, 16, generator=generator)
    N = models[0].config.vit.n_tokens
    prompts = [prompt_of(QUESTIONS[i % 3], tokenizer, N) for i in range(n)]
    batch = PromptBatch([], images, prompts, judged or prompts, seed=1)
    return images, prompts, roll_out(
        *models, batch, tokenizer, max_new_tokens, temperature, **options)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
def test_before_the_first_update_the_ratio_is_1_and_the_kl_0(models, tokenizer, temperature):
    """Catches log-probabilities of another temperature, shift or mask than at the rollout."""
    policy, *_ = models
    _, _, r = roll(models, tokenizer, temperature)
    assert r.mask.any(1).all()
    for rows in ([0, 1, 2], [2], [1, 0]):                            # minibatches of any make-up
        logp, _ = logprobs(policy, tokenizer.image, r.idx[rows], r.targets[rows],
                           policy.projector(r.feats[rows]), temperature)
        assert ((logp - r.logp[rows]).exp() - 1).abs().max() < 1e-5
    for kind in ("k1", "k2", "k3"):
        # the draw and the reference's pass round differently
        assert kl_estimate(r.logp, r.ref_logp, kind).abs().max() < 1e-5


def test_a_policy_with_adapters_is_its_own_reference(models, tokenizer):
    """Catches a reference that is read with the adapters on: its KL to the policy would be 0."""
    policy, _, reward_model, value_model = models
    add_lora(policy, "gpt.*,projector.*", rank=2)
    plain = copy.deepcopy(policy)
    policy.load_state_dict({k: v + 0.3 * torch.randn_like(v) if "lora_B" in k else v
                            for k, v in policy.state_dict().items()})
    _, _, own = roll((policy, policy, reward_model, value_model), tokenizer)
    _, _, other = roll((policy, plain, None, None), tokenizer)
    assert own.answers == other.answers and (own.logp - own.ref_logp).abs().max() > 0.1
    torch.testing.assert_close(own.ref_logp, other.ref_logp)
    assert other.score is None and other.values is None and other.value_feats is None


def test_logprobs_are_those_of_a_softmax_by_hand(models, tokenizer):
    """Catches a placeholder that counts as a word, a temperature used once, a wrong position."""
    policy, *_ = models
    images, _, r = roll(models, tokenizer)
    logp, entropy = logprobs(policy, tokenizer.image, r.idx, r.targets, policy.projector(r.feats),
                             0.7, with_entropy=True)
    logits = policy(r.idx, images).detach() / 0.7
    logits[..., tokenizer.image] = -torch.inf
    p = logits.softmax(-1)
    for b, t in r.mask.nonzero().tolist():
        assert logp[b, t].item() == pytest.approx(p[b, t, r.targets[b, t]].log().item(), abs=1e-4)
        want = -sum(float(x * x.log()) for x in p[b, t] if x > 0)
        assert entropy[b, t].item() == pytest.approx(want, abs=1e-3)
    assert not logp[~r.mask].any() and not entropy[~r.mask].any()


def test_answers_are_drawn_with_the_probabilities_that_are_reported(models, tokenizer):
    """Catches a sampler and a logprobs that disagree: 3000 first tokens, 5 sigma."""
    policy, n = models[0], 3000
    prompt, temperature = prompt_of("A", tokenizer, policy.config.vit.n_tokens), 1.3
    images = torch.zeros(n, 3, 16, 16)
    batch = PromptBatch([], images, [prompt] * n, [prompt] * n, seed=0)
    r = roll_out(*models, batch, tokenizer, 1, temperature)
    drawn = Counter(int(t) for t in r.targets[r.mask])
    p = {int(t): float(x.exp()) for t, x in zip(r.targets[r.mask], r.logp[r.mask])}
    for token, count in drawn.most_common(5):
        assert abs(count / n - p[token]) < 5 * (p[token] * (1 - p[token]) / n) ** 0.5 + 1e-3
    assert sum(p.values()) == pytest.approx(1, abs=0.1) and tokenizer.image not in drawn


def score_of(reward_model, prompt, answer, images):
    """The score of one answer to one prompt."""
    segments = [0] * (len(prompt) - 1) + [1] * (1 + len(answer))
    return reward_model(torch.tensor([prompt + answer]), torch.tensor([segments]), images)


def test_scores_values_and_ends_belong_to_their_answers(models, tokenizer):
    """Catches a score read before the end token, values one place off, an end that is not told."""
    policy, _, reward_model, value_model = models
    with torch.no_grad():  # make the end likely, so that both kinds of row occur
        policy.gpt.norm.bias += 7.5 * F.normalize(policy.gpt.wte.weight[tokenizer.end], dim=0)
    judged = [prompt_of("Other?", tokenizer, policy.config.vit.n_tokens)] * 8
    images, prompts, r = roll(models, tokenizer, 1.6, n=8, max_new_tokens=5, judged=judged)
    assert 0 < r.ended.sum() < 8
    for b in range(8):
        ids = r.answers[b] + [tokenizer.end] * bool(r.ended[b])
        assert tokenizer.end not in r.answers[b] and r.targets[b][r.mask[b]].tolist() == ids
        score = score_of(reward_model, judged[b], ids, images[b:b + 1])
        assert r.score[b].item() == pytest.approx(score.item(), abs=1e-4)
        seen = torch.tensor([prompts[b] + ids[:-1]])
        values = value_model(seen, images[b:b + 1])[0, len(prompts[b]) - 1:]
        torch.testing.assert_close(r.values[b][r.mask[b]], values, rtol=1e-4, atol=1e-4)
    logp, entropy = logprobs(policy, tokenizer.image, r.idx, r.targets, policy.projector(r.feats),
                             1.6, with_entropy=True)
    torch.testing.assert_close(r.logp, logp, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(r.entropy, entropy, rtol=1e-3, atol=1e-3)


def test_copies_of_a_prompt_are_answered_as_if_each_stood_alone(models, tokenizer):
    """Catches features, scores or log-probabilities of another picture's copies."""
    N, k = models[0].config.vit.n_tokens, 3
    images = torch.randn(2, 3, 16, 16).repeat_interleave(k, dim=0)
    prompts = [prompt_of(text, tokenizer, N) for text in ("A", "How so?") for _ in range(k)]
    alone = PromptBatch([], images, prompts, prompts, seed=1)
    policy, ref, reward_model, value_model = models
    with torch.no_grad():  # a KL that is not 0
        ref.gpt.norm.weight.mul_(1.3)
        policy.gpt.norm.bias += 4 * F.normalize(policy.gpt.wte.weight[tokenizer.end], dim=0)
    copies = replace(alone, n_copies=k)
    want = roll_out(policy, ref, reward_model, None, alone, tokenizer, 8, 1.2)
    got = roll_out(policy, ref, reward_model, None, copies, tokenizer, 8, 1.2)
    assert got.answers == want.answers and len({tuple(a) for a in got.answers}) > 3
    assert len({len(a) for a in got.answers}) > 1 and want.packed_lengths.equal(want.lengths)
    for name in ("idx", "targets", "lengths", "ended"):
        assert torch.equal(getattr(got, name), getattr(want, name)), name
    for name in ("logp", "ref_logp", "entropy", "score"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), atol=1e-4, rtol=1e-4)
    assert got.packed_lengths.equal(got.packed.lengths) and len(got.feats) == 2
    advs = torch.arange(2.0 * k)
    for groups in ([0, 1], [1]):  # an update reads the same of the packed row
        part = got.part(torch.tensor(groups), advs)
        rows = got.rows_of(torch.tensor(groups))
        other = want.part(rows, advs)
        for name in ("idx", "targets", "mask", "logp", "advs"):
            torch.testing.assert_close(getattr(part, name), getattr(other, name),
                                       atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(part.logprobs(policy, 1.2), other.logprobs(policy, 1.2),
                                   atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="a value model reads one answer to a prompt"):
        roll_out(*models, copies, tokenizer, 8, 1.2)


def test_a_share_of_the_questions_keeps_their_copies_together(tokenizer):
    """Catches copies that are torn apart between processes, and draws of other rows."""
    batch = PromptBatch([*"abcdef"], torch.arange(6.0), [[i] for i in range(6)],
                        [[i] for i in range(6)], seed=5, n_copies=2)
    draws = batch.draws(3, torch.device("cpu"))
    shares = [batch.share(rank, 2) for rank in range(2)]
    for share, rows in zip(shares, ([0, 1, 4, 5], [2, 3])):
        assert share.questions == ["abcdef"[row] for row in rows] and share.n_copies == 2
        assert share.prompts == share.reward_prompts == [[row] for row in rows]
        assert share.images.tolist() == rows
        assert share.draws(3, torch.device("cpu")).equal(draws[rows])
    with pytest.raises(ValueError, match="3 questions are too few for 4 processes"):
        batch.share(0, 4)


def test_the_cache_changes_nothing(models, tokenizer):
    """Catches rollouts that depend on how they were computed."""
    _, _, a = roll(models, tokenizer)
    _, _, b = roll(models, tokenizer, use_cache=False)
    assert a.answers == b.answers and (a.targets == b.targets).all()
    torch.testing.assert_close(a.logp, b.logp)


def test_a_score_that_is_no_number_stops_the_rollout(models, tokenizer):
    """Catches a NaN that poisons every weight at the next update."""
    models[2].head.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="the reward model's score of .* is NaN or inf"):
        roll(models, tokenizer)


def test_equal_vits_become_one_and_others_stay(models):
    """Catches a second copy in memory, and a reward model that loses eyes of its own."""
    policy, ref, reward_model, value_model = models
    with torch.no_grad():
        next(reward_model.vlm.vit.parameters()).add_(1)
    other = reward_model.vlm.vit
    share_vit([policy, ref, reward_model.vlm, value_model.vlm])
    assert ref.vit is policy.vit and value_model.vlm.vit is policy.vit
    assert reward_model.vlm.vit is other


def test_a_reward_model_with_its_own_eyes_looks_with_them(models, tokenizer):
    """Catches the policy's features read by a projector that was trained on others."""
    share_vit([models[0], models[1], models[3].vlm])
    with torch.no_grad():
        for p in models[2].vlm.vit.parameters():
            p.add_(0.1 * torch.randn_like(p))
    images, prompts, r = roll(models, tokenizer)
    ids = r.answers[0] + [tokenizer.end] * bool(r.ended[0])
    score = score_of(models[2], prompts[0], ids, images[:1])
    assert r.score[0].item() == pytest.approx(score.item(), abs=1e-4)


def test_facts_are_for_the_judge_alone_and_in_random_order(tmp_path, vlm, tokenizer):
    """Catches a policy that is told what it should see, and captions always in one order."""
    captions = ["One.", "Two!", "Three?"]
    record = {"id": "s", "image": "train.npy#0", "captions": captions}
    asked = [{"id": f"q{i}", "image": "train.npy#0", "kind": "k", "question": "A"}
             for i in range(40)]
    np.save(tmp_path / "train.npy", np.zeros((1, 16, 16, 3), np.uint8))
    for name, rows in (("train", [record]), ("prompts", asked)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "meta.json").write_text(json.dumps({"name": "t", "image_size": 16}))
    prompts = Prompts(tmp_path, "train", vlm, tokenizer, facts=True)
    batch = prompts.batch(prompts.load("prompts", 2), seed=3)
    plain = prompt_of("A", tokenizer, vlm.config.vit.n_tokens)
    assert batch.prompts == [plain] * 40 and batch.images.shape == (40, 3, 16, 16)
    orders = {"\n".join([*order, "A"]) for order in permutations(captions)}
    assert {tokenizer.decode(ids[6:-1]) for ids in batch.reward_prompts} == orders
    assert batch.reward_prompts == prompts.batch(batch.questions, seed=3).reward_prompts
    bare = Prompts(tmp_path, "train", vlm, tokenizer, facts=False)
    assert bare.batch(asked, seed=3).reward_prompts == [plain] * 40
    # a prompt of 25 tokens, in a context of 32
    with pytest.raises(ValueError, match="record q0: 36 tokens, an answer of 11 included; .* 32;"):
        prompts.load("prompts", 11)
    for changes, words in (({"image": "train.npy#7"}, "jsonl:1: no picture train.npy#7 in train"),
                           ({}, "prompts.jsonl:1: no captions to serve as facts")):
        (tmp_path / "train.jsonl").write_text(json.dumps(record | {"captions": []}))
        (tmp_path / "prompts.jsonl").write_text(json.dumps(asked[0] | changes))
        with pytest.raises(ValueError, match=words):
            Prompts(tmp_path, "train", vlm, tokenizer, facts=True).load("prompts", 2)


def test_questions_too_long_to_be_answered_are_left_out_on_request(
    tmp_path, vlm, tokenizer, capsys
):
    """Catches one long question that ends PPO, and one that fits exactly left out.

    Around a question stand <|user|>, four placeholders, a line break and <|assistant|>.
    """
    asked = [{"id": n, "image": "a.png", "kind": "k", "question": "A" * n} for n in (9, 18, 17)]
    for name, rows in (("train", [{"id": "s", "image": "a.png"}]), ("prompts", asked)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "meta.json").write_text(json.dumps({"name": "t", "image_size": 16}))
    prompts = Prompts(tmp_path, "train", vlm, tokenizer, facts=False)
    before = len(prompts.prompt(asked[0], [])) - 9
    fits = prompts.load("prompts", 32 - before - 17, skip_long=True)
    assert [q["id"] for q in fits] == [9, 17]
    said = "left out 1 of 3 records of prompts: longer than the context of 32 tokens, for instance"
    assert f"{said} 18 (33)" in capsys.readouterr().out


def test_explained_variance_worked_by_hand():
    """Catches a share of the wrong variance, and pads that count."""
    returns = torch.tensor([[1.0, 3.0, 9.0]])
    mask = torch.tensor([[True, True, False]])
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(torch.zeros(1, 3), returns, mask) == 0
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3)  # Var doubles twice
    assert explained_variance(returns, torch.ones(1, 3), mask) == 0
