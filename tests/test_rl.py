"""Rewards, advantages and KL, against loops from their definitions and numbers worked by hand."""

import math

import pytest
import torch
from torch import Tensor

from minivlm.losses import (
    kl_estimate, masked_mean, ppo_policy_loss, ppo_value_loss, ranking_loss, reward_loss,
)
from minivlm.rl import (
    adapted_kl_coef, explained_variance, gae, kl_rewards, last_true, minibatches,
    shape_score, whiten,
)


def ragged(B: int, T: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Random rewards and values, and masks with a prompt before and pads behind each answer."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.zeros(B, T, dtype=torch.bool)
    for b in range(B):
        start = int(torch.randint(0, T - 1, (1,), generator=g))
        stop = int(torch.randint(start + 1, T + 1, (1,), generator=g))
        mask[b, start:stop] = True
    return torch.randn(B, T, generator=g), torch.randn(B, T, generator=g), mask


# --- Bradley-Terry ---


def test_the_reward_loss_worked_by_hand():
    """-log sigmoid(1) = 0.3133, with a margin of 1 ln 2; its slope is -(1 - p)."""
    chosen = torch.tensor([1.0, 1.0], requires_grad=True)
    loss = reward_loss(chosen, torch.zeros(2), torch.tensor([0.0, 1.0]))
    assert loss.tolist() == pytest.approx([0.313262, math.log(2)], abs=1e-6)
    loss.sum().backward()
    assert chosen.grad.tolist() == pytest.approx([1 / (1 + math.e ** -1) - 1, -0.5], abs=1e-6)
    far = reward_loss(torch.tensor([-1000.0]), torch.tensor([1000.0]))
    assert far.item() == 2000.0  # no overflow on the way


def test_a_ranking_is_the_mean_of_its_pairs_and_every_prompt_counts_once():
    """Catches ties that carry a pair, answers that are missing, prompts weighed by their pairs."""
    torch.manual_seed(0)
    scores, ranks = torch.randn(40, 4), torch.randint(0, 4, (40, 4))
    means = []
    for row, rank in zip(scores, ranks):
        pairs = [reward_loss(row[i], row[j]).item() for i in range(4) for j in range(4)
                 if 0 < rank[i] < rank[j]]
        means += [sum(pairs) / len(pairs)] if pairs else []
    assert 20 < len(means) < 40
    assert ranking_loss(scores, ranks).item() == pytest.approx(sum(means) / len(means), abs=1e-6)
    margin = torch.tensor([[[0.0, 2.0], [5.0, 0.0]]])                # 2 for the first before second
    got = ranking_loss(torch.tensor([[0.3, -0.4]]), torch.tensor([[1, 2]]), margin)
    assert got.item() == pytest.approx(math.log(1 + math.exp(2 - 0.7)), abs=1e-6)
    two = torch.tensor([[0.3, -0.4]])
    assert ranking_loss(two, torch.tensor([[1, 2]])).item() == pytest.approx(
        reward_loss(two[:, 0], two[:, 1]).item())


def test_a_prompt_without_a_pair_gets_no_gradient_and_all_ties_are_refused():
    """Catches a NaN out of an empty mean."""
    scores = torch.zeros(2, 3, requires_grad=True)
    ranking_loss(scores, torch.tensor([[1, 2, 3], [1, 1, 0]])).backward()
    assert scores.grad[0].abs().sum() > 0 and scores.grad[1].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="^no prompt has two answers of different .* are ties$"):
        ranking_loss(scores, torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="differ"):
        ranking_loss(scores, torch.ones(2, 2, dtype=torch.long))


# --- KL ---


def test_the_estimates_of_kl_agree_with_the_exact_one():
    """Catches a sign and a direction: E[k1] = E[k3] = KL within 4 sigma, over 50 tokens."""
    g = torch.Generator().manual_seed(0)
    policy = torch.randn(50, generator=g).log_softmax(0)
    ref = (policy + 0.3 * torch.randn(50, generator=g)).log_softmax(0)
    exact = (policy.exp() * (policy - ref)).sum().item()
    drawn = torch.multinomial(policy.exp(), 200_000, replacement=True, generator=g)
    logp, ref_logp = policy[drawn], ref[drawn]
    for kind in ("k1", "k3"):
        k = kl_estimate(logp, ref_logp, kind)
        assert abs(k.mean().item() - exact) < 4 * k.std().item() / len(k) ** 0.5
    assert kl_estimate(logp, ref_logp, "k3").min() >= 0
    assert kl_estimate(logp, ref_logp, "k3").std() < kl_estimate(logp, ref_logp).std()


def test_the_estimates_of_kl_worked_by_hand():
    """log ratio 1: k1 = 1, k2 = 1/2, k3 = 1/e - 1 + 1; all 0 where both agree."""
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    want = {"k1": 1.0, "k2": 0.5, "k3": math.exp(-1)}
    for kind, value in want.items():
        assert kl_estimate(zero, -one, kind).item() == pytest.approx(value, abs=1e-6)
        assert kl_estimate(one, one, kind).item() == 0
    with pytest.raises(ValueError, match="'kl' is not one of k1, k2, k3"):
        kl_estimate(zero, one, "kl")


# --- rewards and advantages ---


def test_the_score_comes_at_the_last_real_token():
    """Catches a score on a pad, and a KL that is paid for the prompt."""
    mask = torch.tensor([[False, True, True, False], [True, False, False, False]])
    kl = torch.tensor([[9.0, 1.0, 2.0, 9.0], [3.0, 9.0, 9.0, 9.0]])
    rewards = kl_rewards(torch.tensor([5.0, 7.0]), kl, mask, 0.1)
    assert torch.allclose(rewards, torch.tensor([[0, -0.1, 4.8, 0], [6.7, 0, 0, 0]]))
    assert last_true(mask).tolist() == [2, 0]
    with pytest.raises(ValueError, match="^a row has no token of an answer$"):
        kl_rewards(torch.zeros(2), torch.zeros(2, 1), torch.tensor([[True], [False]]), 0.1)
    with torch.device("meta"):  # a default device that is not the one of the scores
        again = kl_rewards(torch.tensor([5.0, 7.0], device="cpu"), kl, mask, 0.1)
    assert torch.equal(again, rewards)


def test_what_an_answer_is_worth_worked_by_hand():
    """Catches an end that is punished, a long answer that gains: 3 - 0.5 * 4 and 3 - 2 - 0.5 * 8.
    """
    score, ended, length = torch.tensor([3.0, 3.0]), torch.tensor([True, False]), [4, 8]
    assert shape_score(score, ended, torch.tensor(length), 2.0, 0.5).tolist() == [1.0, -3.0]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_advantages_are_the_discounted_sum_of_errors(gamma, lam):
    """Catches a value taken from a pad, a recursion across the mask, lam and gamma swapped."""
    rewards, values, mask = ragged(30, 12)
    advs, returns = gae(rewards, values, mask, gamma, lam)
    for b in range(30):
        at = [t for t in range(12) if mask[b, t]]
        n = len(at)
        r, v = rewards[b, at].tolist(), values[b, at].tolist() + [0.0]
        delta = [r[i] + gamma * v[i + 1] - v[i] for i in range(n)]
        for i in range(n):
            want = sum((gamma * lam) ** (j - i) * delta[j] for j in range(i, n))
            assert advs[b, at[i]].item() == pytest.approx(want, abs=1e-5)
            if lam == 1:  # the discounted rewards themselves
                rest = sum(gamma ** (j - i) * r[j] for j in range(i, n))
                assert returns[b, at[i]].item() == pytest.approx(rest, abs=1e-5)
    assert not advs[~mask].any() and not returns[~mask].any()


def test_an_answer_of_one_token_has_its_error_as_advantage():
    """Catches a recursion that wants a second token: reward 2, value 0.5, no value after it."""
    one = torch.ones(1, 1)
    assert [x.item() for x in gae(2 * one, 0.5 * one, one.bool(), 0.9, 0.8)] == [1.5, 2.0]


def test_what_stands_outside_of_the_answer_changes_nothing():
    """Catches pads and prompts in advantages, whitening, losses."""
    rewards, values, mask = ragged(8, 10)
    junk = torch.where(mask, 0.0, 1e3)
    for a, b in zip(gae(rewards, values, mask, 1, 0.95),
                    gae(rewards + junk, values - junk, mask, 1, 0.95)):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(whiten(rewards, mask), whiten(rewards + junk, mask))
    a = ppo_policy_loss(rewards, values, rewards, mask, 0.2)[0]
    b = ppo_policy_loss(rewards + junk, values - junk, rewards + junk, mask, 0.2)[0]
    torch.testing.assert_close(a, b)
    a = ppo_value_loss(rewards, values, rewards - 1, mask, 0.2)
    b = ppo_value_loss(rewards + junk, values - junk, rewards - 1, mask, 0.2)
    torch.testing.assert_close(a, b)


def test_whitened_values_have_mean_0_and_variance_1():
    """Catches the biased variance, and a mean that is shifted where it shall stay."""
    x, _, mask = ragged(6, 9, seed=1)
    for shift in (True, False):
        seen = whiten(3 * x + 5, mask, shift)[mask]
        assert seen.var().item() == pytest.approx(1, abs=1e-5)
        want = 0 if shift else (3 * x + 5)[mask].mean().item()
        assert seen.mean().item() == pytest.approx(want, abs=1e-4)
        assert not whiten(3 * x + 5, mask, shift)[~mask].any()
    two, both = torch.tensor([[1.0, 3.0]]), torch.ones(1, 2).bool()
    assert whiten(two, both)[0].tolist() == pytest.approx([-0.5 ** 0.5, 0.5 ** 0.5])
    assert whiten(torch.ones(1, 2), both).tolist() == [[0.0, 0.0]]  # no variance, and no NaN
    with pytest.raises(ValueError, match="1 positions have no variance"):
        whiten(torch.ones(1, 2), torch.tensor([[True, False]]))


# --- PPO ---


def test_at_ratio_1_the_policy_loss_is_minus_the_mean_advantage():
    """Catches a sign; its gradient is that of the policy gradient, -adv / n."""
    _, advs, mask = ragged(5, 7)
    logp = torch.randn(5, 7, requires_grad=True)
    loss, clipped = ppo_policy_loss(logp, logp.detach(), advs, mask, 0.2)
    assert loss.item() == pytest.approx(-advs[mask].mean().item(), abs=1e-6) and clipped == 0
    loss.backward()
    torch.testing.assert_close(logp.grad, -advs * mask / mask.sum())


@pytest.mark.parametrize("log_ratio, adv, want, moves", [
    (math.log(1.5), 1.0, -1.2, False), (math.log(1.5), -1.0, 1.5, True),
    (math.log(0.5), 1.0, -0.5, True), (math.log(0.5), -1.0, 0.8, False),
    (math.log(1.1), 1.0, -1.1, True),
])
def test_the_clip_holds_only_what_has_gone_far_enough(log_ratio, adv, want, moves):
    """Catches a clip on the wrong side: a token that must come back is never held."""
    logp = torch.tensor([[log_ratio]], requires_grad=True)
    one = torch.ones(1, 1)
    loss, clipped = ppo_policy_loss(logp, 0 * one, adv * one, one.bool(), 0.2)
    loss.backward()
    assert loss.item() == pytest.approx(want, abs=1e-6)
    assert bool(logp.grad.any()) == moves and clipped.item() == (not moves)


def test_the_value_loss_worked_by_hand():
    """Old 0, return 1: a value of 0.5 held at 0.2 costs (0.8)^2 / 2 and gets no gradient."""
    one = torch.ones(1, 1)
    for value, want in ((0.1, 0.9 ** 2 / 2), (0.5, 0.8 ** 2 / 2), (-0.5, 1.5 ** 2 / 2)):
        for sign in (1, -1):  # all the other way round it is the same
            values = (sign * value * one).requires_grad_()
            loss = ppo_value_loss(values, 0 * one, sign * one, one.bool(), 0.2)
            loss.backward()
            assert loss.item() == pytest.approx(want, abs=1e-6)
            assert bool(values.grad.any()) == (value != 0.5)


@pytest.mark.parametrize("value", [0.0, 0.5, -0.5])
def test_a_value_clip_of_0_is_no_clip(value):
    """Catches a value model that learns nothing: held where it was, it gets no gradient.

    Old 0, return 1: the loss is (value - 1)^2 / 2, its slope value - 1.
    """
    one = torch.ones(1, 1)
    values = (value * one).requires_grad_()
    loss = ppo_value_loss(values, 0 * one, one, one.bool(), 0)
    loss.backward()
    assert loss.item() == pytest.approx((value - 1) ** 2 / 2)
    assert values.grad.item() == pytest.approx(value - 1)


def test_a_mask_of_nothing_is_refused():
    """Catches a NaN."""
    with pytest.raises(ValueError, match="^nothing counts: the mask is False everywhere$"):
        masked_mean(torch.ones(1, 2), torch.zeros(1, 2).bool())


def test_the_share_of_variance_foreseen_does_not_depend_on_the_scale():
    """Catches small returns taken for constant ones: the mean foreseen with half the spread, 3/4.
    """
    returns = torch.tensor([[0.1, 0.3, 9.0]])
    half, mask = torch.tensor([[0.15, 0.25, -9.0]]), torch.tensor([[True, True, False]])
    assert explained_variance(half, returns, mask) == pytest.approx(0.75, abs=1e-5)


def test_every_epoch_deals_out_all_rows_in_an_order_of_its_own():
    """Catches rows left out or given twice, epochs alike, an order that the seed does not set."""
    def deal(seed: int) -> list[list[int]]:
        return [rows.tolist() for rows in minibatches(20, 3, 2, seed)]

    parts = deal(5)
    assert [len(rows) for rows in parts] == [7, 7, 6] * 2
    epochs = [sum(parts[:3], []), sum(parts[3:], [])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20)) and epochs[0] != epochs[1]
    state = torch.get_rng_state()
    assert deal(5) == parts != deal(6) and torch.equal(torch.get_rng_state(), state)


# --- the KL coefficient ---


def test_the_adaptive_coefficient_follows_its_rule_for_100_updates():
    """Catches an error that is not clipped, and a target that is not the fixed point."""
    kl_coef, want = 0.2, 0.2
    for i in range(100):
        kl = 3 + 0.1 * i
        want *= 1 + max(-0.2, min(0.2, kl / 6 - 1)) * 64 / 10000
        kl_coef = adapted_kl_coef(kl_coef, kl, 6.0, 64)
        assert kl_coef == pytest.approx(want, rel=1e-12)
    assert adapted_kl_coef(kl_coef, 6.0, 6.0, 64) == kl_coef
    # three horizons at once: at most the whole step, 0.2
    assert adapted_kl_coef(kl_coef, 60.0, 6.0, 30000) == pytest.approx(1.2 * kl_coef)
    assert adapted_kl_coef(0.1, 100.0, 0.0, 64) == 0.1  # no target: fixed
