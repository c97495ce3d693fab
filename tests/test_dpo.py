"""losses.dpo_loss and its family: by hand, gradients, and what they minimize."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from minivlm.losses import (
    dpo_loss, kl_estimate, ppo_policy_loss, ppo_value_loss, sequence_logprobs,
)
from minivlm.rl import gae, kl_rewards, whiten

KINDS = (("sigmoid", 0.0), ("sigmoid", 0.2), ("robust", 0.0), ("robust", 0.2), ("hinge", 0.0),
         ("ipo", 0.0), ("kto", 0.0))


def four(n: int = 6) -> list[Tensor]:
    """Random float64 log-probabilities: chosen, rejected, and the reference's."""
    return [-3 * torch.rand(n, dtype=torch.float64) for _ in range(4)]


def test_the_family_by_hand():
    """Catches a swapped sign, a beta outside of the sigmoid, a smoothing on the wrong side.

    h = (-1 + 1.5) - (-2 + 1.5) = 1, beta h = .5: -ln sigmoid(.5) = .4741, -ln sigmoid(-.5) = .9741.
    """
    x = [torch.tensor([v]) for v in (-1.0, -2.0, -1.5, -1.5)]
    want = {("sigmoid", 0.0): 0.4741, ("sigmoid", 0.2): 0.8 * 0.4741 + 0.2 * 0.9741,
            ("robust", 0.0): 0.4741, ("robust", 0.2): (0.8 * 0.4741 - 0.2 * 0.9741) / 0.6,
            ("hinge", 0.0): 0.5, ("ipo", 0.0): 0.0,
            ("kto", 0.0): 0.4378}  # z = max(0, (.5 - .5) / 2); 1 - sigmoid(.25) both times
    for (kind, e), value in want.items():
        assert dpo_loss(*x, 0.5, kind, e).item() == pytest.approx(value, abs=1e-4), kind


@pytest.mark.parametrize("kind, e", KINDS)
def test_a_policy_that_is_its_reference_costs_what_theory_says(kind, e):
    """Catches a margin that is not the reference's at the start: ln 2, 1, 1 / (4 beta^2), 1 / 2."""
    chosen, rejected, *_ = four()
    want = {"hinge": 1.0, "ipo": 1 / (4 * 0.3 ** 2), "kto": 0.5}.get(kind, math.log(2))
    got = dpo_loss(chosen, rejected, chosen, rejected, 0.3, kind, e)
    torch.testing.assert_close(got, torch.full_like(got, want))


@pytest.mark.parametrize("kind, e", KINDS[:-1])  # kto's z has no gradient
def test_gradients_equal_finite_differences_and_push_apart(kind, e):
    """Catches a detach, and a gradient that lifts both answers alike."""
    inputs = [x.requires_grad_() for x in four()]
    assert torch.autograd.gradcheck(lambda *x: dpo_loss(*x, 0.7, kind, e), inputs)
    grads = torch.autograd.grad(dpo_loss(*inputs, 0.7, kind, e).sum(), inputs)
    torch.testing.assert_close(grads[0], -grads[1])
    torch.testing.assert_close(grads[0], -grads[2])
    if (kind, e) == ("sigmoid", 0.0):                                # eq. 7's gradient, section 4
        h = (inputs[0] - inputs[2]) - (inputs[1] - inputs[3])
        torch.testing.assert_close(grads[0], -0.7 * torch.sigmoid(-0.7 * h))


def test_kto_measures_each_answer_from_what_all_have_become():
    """Catches a z that learns, one below 0, one of the chosen answers alone, a term turned round.

    Terms .5 and -.1, .9 and .1: z = .35. 1 - sigmoid(.15 beta) = .4626 and so on, at beta = 1.
    """
    chosen, rejected = torch.tensor([0.5, 0.9]), torch.tensor([-0.1, 0.1])
    z = torch.zeros(2)
    got = dpo_loss(chosen.requires_grad_(), rejected, z, z, 1.0, "kto")
    torch.testing.assert_close(
        got, torch.tensor([(0.46257 + 0.38936) / 2, (0.36586 + 0.43782) / 2]), atol=1e-4, rtol=0)
    [grad] = torch.autograd.grad(got[0], chosen)
    assert grad[0].item() == pytest.approx(-0.46257 * 0.53743 / 2, abs=1e-4) and grad[1] == 0
    below = dpo_loss(chosen.detach() - 1, rejected - 1, z, z, 1.0, "kto")
    assert below[0].item() == pytest.approx((0.62246 + 0.24974) / 2, abs=1e-4)


def test_robust_has_the_clean_loss_as_its_mean_over_flipped_labels():
    """Catches a wrong divisor: (1 - e) loss(pair) + e loss(pair flipped) = plain DPO's loss."""
    c, r, rc, rr = four()
    for e in (0.1, 0.4):
        right, flipped = (dpo_loss(*x, 0.5, "robust", e) for x in ((c, r, rc, rr), (r, c, rr, rc)))
        torch.testing.assert_close((1 - e) * right + e * flipped, dpo_loss(c, r, rc, rr, 0.5))


def test_what_cannot_be_is_refused():
    """Catches a broadcast over pairs, and a smoothing that would be dropped in silence."""
    x = four()
    for bad, words in (
        ((*x[:3], x[3][:1]), "different shapes"), ((*x, 0.0), "beta is 0.0"),
        ((*x, float("nan")), "beta is nan"), ((*x, 0.1, "dpo"), "kind 'dpo'"),
        ((*x, 0.1, "hinge", 0.1), "label_smoothing is 0.1 for kind hinge, expected 0$"),
        ((*x, 0.1, "robust", 0.5), "label_smoothing is 0.5, expected 0 <= x < 0.5$"),
    ):
        with pytest.raises(ValueError, match=words):
            dpo_loss(*(bad if len(bad) > 4 else (*bad, 0.1)))


# --- whole answers ---


def test_answers_are_summed_averaged_and_weighted_by_hand():
    """Catches pads that count, weights left out of the divisor, weights outside of the answer."""
    logp = torch.tensor([[0.0, -1.0, -2.0], [-4.0, 0.0, 0.0]])
    mask = torch.tensor([[False, True, True], [True, False, False]])
    w = torch.tensor([[9.0, 1.0, 5.0], [2.0, 9.0, 9.0]])
    for args, want in (((), [-3.0, -4.0]), ((None, True), [-1.5, -4.0]), ((w,), [-11.0, -8.0]),
                       ((w, True), [-11 / 6, -4.0])):
        torch.testing.assert_close(sequence_logprobs(logp, mask, *args), torch.tensor(want))
    with pytest.raises(ValueError, match="^a row has no token of an answer$"):
        sequence_logprobs(logp, mask & torch.tensor([[True], [False]]))


# --- what is minimized: all 27 answers of three tokens out of three, enumerated ---

V, T, BETA = 3, 3, 0.5
ANSWERS = torch.tensor(list(itertools.product(range(V), repeat=T)))  # (27, T)
STATES = {prefix: i for i, prefix in enumerate(
    p for t in range(T) for p in itertools.product(range(V), repeat=t))}
STATE = torch.tensor([[STATES[tuple(a[:t])] for t in range(T)] for a in ANSWERS.tolist()])


def token_logps(table: Tensor) -> Tensor:
    """Log-probabilities of every answer's tokens under a table of logits by prefix: (27, T)."""
    return table.log_softmax(-1)[STATE, ANSWERS]


@pytest.fixture
def problem():
    """A reference, rewards, and the optimum ref(y) exp(reward(y) / beta) / Z of what they pose."""
    ref, reward = torch.randn(len(STATES), V), 1.0 * torch.randn(len(ANSWERS))
    best = (token_logps(ref).sum(1) + reward / BETA).softmax(0)      # (27,)
    return ref, reward, best


def off(table: Tensor, best: Tensor) -> float:
    """Total variation of a table's distribution over answers from another."""
    return float((token_logps(table).sum(1).exp() - best).detach().abs().sum() / 2)


def test_dpo_on_bradley_terry_data_finds_the_optimum_of_the_kl_regularized_problem(problem):
    """The claim of Rafailov et al., section 4, on an answer space that can be enumerated.

    Data are all pairs with their Bradley-Terry probabilities, so there is no sampling noise.
    """
    ref, reward, best = problem
    i, j = torch.triu_indices(27, 27, 1)
    ref_logp = token_logps(ref).sum(1)
    wins = torch.sigmoid(reward[i] - reward[j])                      # (351,)
    table = ref.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([table], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logp = token_logps(table).sum(1)
        right, wrong = (dpo_loss(logp[a], logp[b], ref_logp[a], ref_logp[b], BETA)
                        for a, b in ((i, j), (j, i)))
        loss = (wins * right + (1 - wins) * wrong).mean()
        loss.backward()
        return loss

    assert off(table, best) > 0.3
    optimizer.step(closure)
    assert off(table, best) < 0.01


def test_the_fixed_point_of_ppo_is_the_same_distribution(problem):
    """Catches a KL of the wrong sign or reference, an advantage that loses the score's scale.

    The rewards are those of train_ppo.py; the answers are drawn, so the end is noisy.
    """
    ref, reward, best = problem
    table, values = ref.clone().requires_grad_(), torch.zeros(len(STATES), requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [table], "lr": 0.05}, {"params": [values], "lr": 0.1}])
    mask, ref_logp, steps = torch.ones(1024, T, dtype=torch.bool), token_logps(ref), 400
    for step in range(steps):
        for group, peak in zip(optimizer.param_groups, (0.05, 0.1)):
            group["lr"] = peak * (1 - step / steps)
        with torch.no_grad():
            old = token_logps(table)
            drawn = torch.multinomial(old.sum(1).exp(), 1024, replacement=True)
            rewards = kl_rewards(reward[drawn], kl_estimate(old, ref_logp)[drawn], mask, BETA)
            old_values = values[STATE][drawn]
            advs, returns = gae(rewards, old_values, mask, 1.0, 0.95)
            advs = whiten(advs, mask)
        for rows in torch.randperm(1024).chunk(2):
            loss, _ = ppo_policy_loss(
                token_logps(table)[drawn[rows]], old[drawn[rows]], advs[rows], mask[rows], 0.2)
            loss = loss + ppo_value_loss(
                values[STATE][drawn[rows]], old_values[rows], returns[rows], mask[rows], 0.2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert off(table, best) < 0.03
