"""Group-relative advantages and losses: by hand, in limits, beside the policy gradient."""

import math

import pytest
import torch

from minivlm.losses import group_policy_loss, kl_estimate, ppo_policy_loss
from minivlm.rl import group_advantages

KINDS = ("grpo", "dr_grpo", "rloo")
MASK = torch.tensor([[False, True, True, True], [False, True, False, False]])


def loss_of(logp, old, advs, kind, kl=None, low=0.2, high=0.28, longest=5):
    return group_policy_loss(logp, old, advs, MASK, kind, low, high, longest, kl)


@pytest.mark.parametrize("kind, want", [
    # by hand: mean 2, deviations -2, -1, 0, 3; their squares' sum 14 over 3 is std^2
    ("grpo", [x / (math.sqrt(14 / 3) + 1e-4) for x in (-2, -1, 0, 3)]),
    ("dr_grpo", [-2, -1, 0, 3]),
    # each against the mean of the other three
    ("rloo", [0 - 8 / 3, 1 - 7 / 3, 2 - 6 / 3, 5 - 3 / 3]),
])
def test_advantages_by_hand(kind, want):
    """Catches the biased deviation, a baseline that holds the answer itself, groups mixed up."""
    scores = torch.tensor([[0.0, 1, 2, 5], [9.0, 9, 9, 9]])
    advs = group_advantages(scores, kind)
    assert advs[0].tolist() == pytest.approx(want, abs=1e-5)
    assert advs[1].tolist() == [0, 0, 0, 0]  # all alike: no NaN, no gradient


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_added_to_all_scores_changes_nothing(kind):
    """Catches a baseline that is not the group's own."""
    scores = torch.randn(3, 5)
    moved = scores + torch.tensor([[1.0], [-7.0], [30.0]])
    torch.testing.assert_close(group_advantages(moved, kind), group_advantages(scores, kind),
                               atol=1e-4, rtol=1e-4)


def test_what_cannot_be_compared_is_refused():
    """Catches a division by 0, and an algorithm that is silently another one."""
    with pytest.raises(ValueError, match="^1 answer to a prompt has no others"):
        group_advantages(torch.zeros(3, 1), "grpo")
    with pytest.raises(ValueError, match="kind 'ppo' is not one of grpo, dr_grpo, rloo"):
        group_advantages(torch.zeros(3, 2), "ppo")
    with pytest.raises(ValueError, match="kind 'ppo' is not one of grpo, dr_grpo, rloo"):
        loss_of(torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(2), "ppo")
    with pytest.raises(ValueError, match="a row has no token of an answer"):
        group_policy_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1),
                          torch.zeros(1, 2).bool(), "grpo", 0.2, 0.2, 4)


@pytest.mark.parametrize("kind, want", [
    # gradients of the loss by each token's log-probability, advantages 3 and -2:
    ("grpo", ([-3 / 2 / 3] * 3, 2 / 2)),      # a token counts 1 / (2 answers x its tokens)
    ("dr_grpo", ([-3 / 2 / 5] * 3, 2 / 2 / 5)),   # 5 tokens are the longest
    ("rloo", ([-3 / 2] * 3, 2 / 2)),          # REINFORCE: the answer is one action
])
def test_before_any_step_the_gradient_is_the_policy_gradient(kind, want):
    """Catches a sign, pads that count, lengths that count where they must not."""
    logp = torch.randn(2, 4, requires_grad=True)
    advs = torch.tensor([3.0, -2.0])
    loss, clipped = loss_of(logp, logp.detach(), advs, kind)
    loss.backward()
    first, second = want
    assert clipped == 0
    torch.testing.assert_close(logp.grad, torch.tensor([[0, *first], [0, second, 0, 0]]))


@pytest.mark.parametrize("ratio, adv, want, moves", [
    (1.25, 1.0, -1.25, True), (1.4, 1.0, -1.28, False), (0.5, 1.0, -0.5, True),
    (0.5, -1.0, 0.8, False), (1.4, -1.0, 1.4, True),
])
@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_the_clips_upper_side_is_a_number_of_its_own(kind, ratio, adv, want, moves):
    """Catches one width for both sides; for rloo the clip holds whole answers."""
    # the ratio of a whole answer of two tokens; for grpo both tokens have it
    share = 0.5 if kind == "rloo" else 1.0
    logp = torch.full((1, 2), share * math.log(ratio)).requires_grad_()
    loss, clipped = group_policy_loss(logp, torch.zeros(1, 2), torch.tensor([adv]),
                                      torch.ones(1, 2).bool(), kind, 0.2, 0.28, 2)
    loss.backward()
    assert loss.item() == pytest.approx(want, abs=1e-6)
    assert bool(logp.grad.any()) == moves and clipped.item() == (not moves)


def test_equal_lengths_and_equal_clips_make_it_ppos_loss():
    """Catches a loss that is another one even where all of them agree."""
    logp, old, advs = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3)
    every = torch.ones(3, 4).bool()
    want = ppo_policy_loss(logp, old, advs[:, None].expand(3, 4), every, 0.2)
    for kind in ("grpo", "dr_grpo"):
        got = group_policy_loss(logp, old, advs, every, kind, 0.2, 0.2, 4)
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cost_is_summed_as_the_gain_is(kind):
    """Catches a KL that is left out, of the wrong sign, or averaged in another way."""
    logp, ref = torch.randn(2, 4), torch.randn(2, 4)
    kl = 0.5 * kl_estimate(logp, ref, "k3")
    zero = torch.zeros(2)
    loss, _ = loss_of(logp, logp, zero, kind, kl)
    first, second = kl[0, 1:], kl[1, 1]
    want = {"grpo": (first.mean() + second) / 2, "dr_grpo": (first.sum() + second) / 5 / 2,
            "rloo": (first.sum() + second) / 2}[kind]
    torch.testing.assert_close(loss, want)


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_outside_of_the_answers_changes_nothing(kind):
    """Catches prompts and pads in a ratio, in particular in that of a whole answer."""
    logp, old, kl, advs = torch.randn(2, 4), torch.randn(2, 4), torch.rand(2, 4), torch.randn(2)
    junk = torch.where(MASK, 0.0, 1e3)
    a = loss_of(logp, old, advs, kind, kl)
    b = loss_of(logp + junk, old - junk, advs, kind, kl + junk)
    torch.testing.assert_close(a, b)
