"""Each objective against its definition, numbers done by hand, limits and finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minivlm.losses import (
    IGNORE_INDEX, clip_loss, equal_rows, match_loss, next_token_loss, siglip_loss, token_logprobs,
)


def text(B: int = 3, T: int = 5, V: int = 7) -> tuple[Tensor, Tensor]:
    """Random float64 logits and targets of which every third one is ignored."""
    logits, targets = torch.randn(B, T, V, dtype=torch.float64) * 2, torch.randint(V, (B, T))
    targets.view(-1)[::3] = IGNORE_INDEX
    return logits, targets


def unit(B: int, C: int) -> Tensor:
    """Random float64 vectors of length 1."""
    return F.normalize(torch.randn(B, C, dtype=torch.float64), dim=-1)


# --- next token ---


def test_next_token_loss_is_the_mean_over_supervised_tokens_only():
    """Catches: a mean over all positions, over rows, or over pads; a shift of the targets.

    By hand, V = 2: logits (ln 3, 0) give p = (3/4, 1/4). Row 0 supervises ids 0 and 1, row 1 only
    id 0: (ln 4/3 + ln 4 + ln 4/3) / 3 = (0.2877 + 1.3863 + 0.2877) / 3 = 0.6539.
    """
    logits = torch.tensor([math.log(3), 0.0]).expand(2, 2, 2)
    targets = torch.tensor([[0, 1], [0, IGNORE_INDEX]])
    assert next_token_loss(logits, targets).item() == pytest.approx(0.6539, abs=1e-4)


def test_next_token_loss_equals_the_written_out_sum():
    """Catches: a wrong reduction, a wrong ignored id, targets read one place off."""
    logits, targets = text()
    total, count = 0.0, 0
    for b in range(3):
        for t in range(5):
            if targets[b, t] != -100:
                scores = logits[b, t].tolist()
                total -= scores[targets[b, t]] - math.log(sum(math.exp(s) for s in scores))
                count += 1
    assert next_token_loss(logits, targets).item() == pytest.approx(total / count, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing_mixes_the_target_with_the_even_distribution(smoothing: float):
    """Catches: smoothing dropped, applied to ignored tokens, or spread over V - 1 tokens.

        loss = (1 - s) * -log p(target) + s * mean over the vocabulary of -log p
    """
    logits, targets = text()
    logp, keep = logits.log_softmax(-1), targets != IGNORE_INDEX
    hard = -logp[keep].gather(-1, targets[keep][:, None])[:, 0]
    want = (1 - smoothing) * hard + smoothing * -logp[keep].mean(-1)
    assert next_token_loss(logits, targets, smoothing).item() == pytest.approx(
        want.mean().item(), rel=1e-6
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_make_a_weighted_mean_and_0_is_no_target(smoothing: float):
    """Catches: weights not in the divisor, of ignored tokens counted, given to the wrong tokens.

        (1 * 2 + 3 * 0.5) / (2 + 0.5) = 1.4, for losses of 1 and 3 nats
    """
    scores = torch.tensor([[0.0, math.log(math.e - 1)], [0.0, math.log(math.e ** 3 - 1)]])
    loss = next_token_loss(scores, torch.tensor([0, 0]), weights=torch.tensor([2.0, 0.5]))
    assert loss.item() == pytest.approx(1.4, rel=1e-6)
    logits, targets = text()
    plain = next_token_loss(logits, targets, smoothing)
    same = next_token_loss(logits, targets, smoothing, torch.full(targets.shape, 0.3))
    torch.testing.assert_close(same, plain)
    weights = torch.ones(targets.shape)
    weights[0] = 0
    fewer = targets.clone()
    fewer[0] = IGNORE_INDEX
    torch.testing.assert_close(
        next_token_loss(logits, targets, smoothing, weights),
        next_token_loss(logits, fewer, smoothing),
    )


def test_a_model_that_knows_nothing_pays_ln_V():
    """Catches: a loss in bits, a sum for the mean; smoothing cannot change an even guess."""
    _, targets = text(V=7)
    for smoothing in (0.0, 0.3):
        loss = next_token_loss(torch.zeros(3, 5, 7), targets, smoothing)
        assert loss.item() == pytest.approx(math.log(7), rel=1e-6)


def test_only_supervised_positions_get_gradient():
    """Catches: the prompt or pads pushing weights through the loss."""
    logits, targets = text()
    logits.requires_grad_()
    next_token_loss(logits, targets, 0.1).backward()
    pushed = logits.grad.abs().sum(-1) > 0
    assert torch.equal(pushed, targets != IGNORE_INDEX)


def test_next_token_loss_refuses_targets_without_supervision():
    """Catches: a batch of pads that trains on nothing and returns nan."""
    with pytest.raises(ValueError, match="^no token is supervised: every target is -100$"):
        next_token_loss(torch.zeros(1, 3, 4), torch.full((1, 3), IGNORE_INDEX))


def test_next_token_loss_refuses_shapes_that_do_not_fit():
    """Catches: unshifted logits of T + 1 positions, which flatten into another row's targets."""
    with pytest.raises(ValueError, match=r"logits \(2, 4, 5\) do not fit targets \(2, 3\)"):
        next_token_loss(torch.zeros(2, 4, 5), torch.zeros(2, 3, dtype=torch.long))


@pytest.mark.parametrize("loss", [next_token_loss, token_logprobs])
def test_half_precision_is_widened_before_exponentials_are_summed(loss):
    """Catches sums in bfloat16, of whose result two or three digits are right."""
    logits, targets = torch.randn(2, 3, 4000).bfloat16(), torch.randint(4000, (2, 3))
    torch.testing.assert_close(loss(logits, targets), loss(logits.float(), targets))


# --- log-probabilities ---


def test_token_logprobs_gathers_the_target_and_is_exactly_zero_elsewhere():
    """Catches: a flipped sign, a shift, -0.0 or a pad's log-probability in a sequence's sum."""
    logits, targets = text()
    want = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    got, keep = token_logprobs(logits, targets), targets != IGNORE_INDEX
    torch.testing.assert_close(got[keep].double(), want[keep], rtol=1e-5, atol=1e-6)
    assert got.shape == targets.shape
    assert (got[~keep] == 0).all() and not torch.signbit(got[~keep]).any()


def test_the_sum_of_a_row_is_the_log_probability_of_its_sequence():
    """Catches: logarithms of base 2 or a mean over the row.

    By hand: ids 0, 1 under p = (3/4, 1/4) have probability 3/16, ln 3/16 = -1.6740.
    """
    logits = torch.tensor([math.log(3), 0.0]).expand(1, 3, 2)
    logp = token_logprobs(logits, torch.tensor([[0, 1, IGNORE_INDEX]]))
    assert logp.sum().item() == pytest.approx(-1.6740, abs=1e-4)


def test_the_mean_of_token_logprobs_is_the_next_token_loss():
    """Catches: the two functions drifting apart."""
    logits, targets = text()
    mean = -token_logprobs(logits, targets).sum() / (targets != IGNORE_INDEX).sum()
    torch.testing.assert_close(mean, next_token_loss(logits, targets))


# --- InfoNCE ---


def test_clip_loss_equals_a_double_loop():
    """Catches: one direction only, a softmax over the wrong axis, positives off the diagonal."""
    img_z, txt_z, scale = unit(5, 4), unit(5, 4), 3.7
    total = 0.0
    for i in range(5):
        to_text = [math.exp(scale * float(img_z[i] @ txt_z[j])) for j in range(5)]
        to_image = [math.exp(scale * float(img_z[j] @ txt_z[i])) for j in range(5)]
        total -= (math.log(to_text[i] / sum(to_text)) + math.log(to_image[i] / sum(to_image))) / 2
    assert clip_loss(img_z, txt_z, scale).item() == pytest.approx(total / 5, rel=1e-12)


def test_clip_loss_of_two_pairs_by_hand():
    """Catches: only one of the two directions, or a scale that divides.

    img_z = (1, 0), (0, 1); txt_z = (1, 0), (1, 0); scale ln 3. The logits are
        ln 3   ln 3        rows: ln 2 and ln 2                          mean 0.6931
           0      0        columns: -ln 3/4 = 0.2877, -ln 1/4 = 1.3863  mean 0.8370
    and the loss is (0.6931 + 0.8370) / 2 = 0.7651.
    """
    img_z, txt_z = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert clip_loss(img_z, txt_z, math.log(3)).item() == pytest.approx(0.7651, abs=1e-4)


def test_the_right_caption_has_the_lowest_loss_of_all_orders():
    """Catches: labels in another order than the rows (a shuffled or reversed diagonal)."""
    z = unit(4, 8)
    right = clip_loss(z, z, 5.0)
    for shift in (1, 2, 3):
        assert clip_loss(z, z.roll(shift, 0), 5.0) > right + 0.1
    assert clip_loss(z, z.flip(0), 5.0) > right + 0.1


@pytest.mark.parametrize("B", [1, 2, 8])
def test_a_batch_of_equal_vectors_costs_ln_B(B: int):
    """Catches: a sum over the batch, a mask on the diagonal, a wrong start of the curve."""
    z = unit(1, 4).expand(B, 4)
    assert clip_loss(z, z, 14.0).item() == pytest.approx(math.log(B), abs=1e-9)


def test_clip_loss_is_symmetric_in_the_towers_and_blind_to_the_order_of_pairs():
    """Catches: different weights for the two directions; labels tied to a row's number."""
    img_z, txt_z, order = unit(6, 4), unit(6, 4), torch.randperm(6)
    loss = clip_loss(img_z, txt_z, 9.0)
    torch.testing.assert_close(clip_loss(txt_z, img_z, 9.0), loss)
    torch.testing.assert_close(clip_loss(img_z[order], txt_z[order], 9.0), loss)


def test_a_caption_that_stands_twice_shares_its_target():
    """Catches the belief that equal captions are false negatives: UniCL's eq. 3, in loops.

    Rows 0 and 2 have one caption and so one vector; either picture may find either, and the other
    way round. Loss and gradients are those of the plain diagonal.
    """
    img_z, txt_z = unit(4, 6).requires_grad_(), unit(4, 6)
    txt_z[2] = txt_z[0]
    txt_z.requires_grad_()
    logits = 3.0 * img_z @ txt_z.T
    target = torch.eye(4, dtype=torch.float64)
    target[0, 2] = target[2, 0] = target[0, 0] = target[2, 2] = 0.5
    shared = -sum((target * x.log_softmax(1)).sum() for x in (logits, logits.T)) / 8
    plain = clip_loss(img_z, txt_z, 3.0)
    torch.testing.assert_close(plain, shared)
    for z in (img_z, txt_z):
        one, other = (torch.autograd.grad(x, z, retain_graph=True)[0] for x in (plain, shared))
        if z is txt_z:  # the copies are one vector: its gradient is their sum
            one[0], other[0], one[2], other[2] = one[0] + one[2], other[0] + other[2], 0, 0
        torch.testing.assert_close(one, other)


# --- SigLIP ---


def test_siglip_loss_equals_a_double_loop():
    """Catches: a mean over all pairs, positives off the diagonal, the bias inside the product."""
    img_z, txt_z, scale, bias = unit(5, 4), unit(5, 4), 3.7, -2.0
    total = 0.0
    for i in range(5):
        for j in range(5):
            logit = scale * float(img_z[i] @ txt_z[j]) + bias
            y = 1 if i == j else -1
            total -= math.log(1 / (1 + math.exp(-y * logit)))
    assert siglip_loss(img_z, txt_z, scale, bias).item() == pytest.approx(total / 5, rel=1e-12)


def test_siglip_loss_of_two_pairs_by_hand():
    """Catches: a scale that divides, a bias with the wrong sign, a division by B squared.

    Equal vectors, scale ln 9, bias -ln 3: every logit is ln 3. The right pairs cost ln 4/3 each,
    the wrong ones ln 4, and per picture that is ln 4/3 + ln 4 = 1.6740.
    """
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    got = siglip_loss(z, z, math.log(9), -math.log(3)).item()
    assert got == pytest.approx(math.log(4 / 3) + math.log(4), abs=1e-6)


def test_a_pair_that_is_added_leaves_the_others_pairs_alone():
    """Catches a softmax: each pair is judged by itself. Sums over 3 x 3, less the new row and
    column, are those over 2 x 2.
    """
    img_z, txt_z = unit(3, 4), unit(3, 4)
    sides = [F.logsigmoid((1 if i == j else -1) * (5.0 * img_z[i] @ txt_z[j] - 1))
             for i in range(3) for j in range(3) if 2 in (i, j)]
    three, two = (n * siglip_loss(img_z[:n], txt_z[:n], 5.0, -1.0) for n in (3, 2))
    torch.testing.assert_close(three + sum(sides), two)
    with pytest.raises(ValueError, match=r"img_z \(3, 4\) and txt_z \(2, 4\) differ"):
        siglip_loss(img_z, txt_z[:2], 1.0, 0.0)


def test_equal_rows_compares_whole_rows():
    """Catches a comparison of first tokens or of any token."""
    idx = torch.tensor([[1, 2, 0], [1, 3, 0], [1, 2, 0], [4, 2, 0]])
    want = torch.eye(4, dtype=torch.bool)
    want[0, 2] = want[2, 0] = True
    assert torch.equal(equal_rows(idx), want)


def test_clip_loss_refuses_a_different_number_of_pictures_and_captions():
    """Catches: a caption dropped from the batch, which would move every later label."""
    with pytest.raises(ValueError, match=r"img_z \(3, 4\) and txt_z \(2, 4\) differ"):
        clip_loss(unit(3, 4), unit(2, 4), 1.0)


def test_labels_are_made_where_the_vectors_are():
    """Catches labels on the default device: here "meta", which nothing can be read from."""
    z = unit(3, 4)
    for loss_of in (lambda: clip_loss(z, z, 2.0), lambda: siglip_loss(z, z, 2.0, -1.0)):
        with torch.device("meta"):
            loss = loss_of()
        assert loss.item() == loss_of().item()


# --- gradients ---


def test_gradients_of_clip_loss_equal_finite_differences():
    """Catches: a detach in either tower or in the temperature."""
    inputs = [unit(3, 4), unit(3, 4), torch.tensor(2.5, dtype=torch.float64)]
    assert torch.autograd.gradcheck(clip_loss, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradient_of_next_token_loss_equals_differences_and_the_formula(smoothing: float):
    """Catches: a detach, float64 narrowed, or a count of tokens that is not the divisor.

        d loss / d logits = (p - target distribution) / count,  0 where ignored
    """
    logits, targets = text(2, 3, 4)
    keep = targets != IGNORE_INDEX
    q = F.one_hot(targets.clamp(min=0), 4) * (1 - smoothing) + smoothing / 4
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: next_token_loss(z, targets, smoothing), logits)
    got, = torch.autograd.grad(next_token_loss(logits, targets, smoothing), logits)
    torch.testing.assert_close(got, (logits.softmax(-1) - q) * keep[..., None] / keep.sum())


def test_gradient_of_token_logprobs_equals_finite_differences():
    """Catches: gradient at ignored places, a detach, float64 narrowed."""
    logits, targets = text(2, 3, 4)
    assert torch.autograd.gradcheck(lambda z: token_logprobs(z, targets), logits.requires_grad_())


# --- match ---


def test_match_loss_is_the_number_worked_by_hand():
    """Catches the columns mixed up, a sum in place of the mean: -(ln .8 + ln .75) / 2 = .2554."""
    logits = torch.tensor([[0.0, math.log(4)], [math.log(3), 0.0]])
    assert match_loss(logits, torch.tensor([1, 0])).item() == pytest.approx(0.2554, abs=1e-4)
    with pytest.raises(ValueError, match="expected two logits for each pair"):
        match_loss(torch.zeros(3, 2), torch.tensor([1, 0]))
