"""Half precision: what must be computed in float32 is, whatever comes in, whatever surrounds it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minivlm.losses import (
    clip_loss, dpo_loss, kl_estimate, match_loss, next_token_loss, ppo_policy_loss,
    ppo_value_loss, ranking_loss, reward_loss, sequence_logprobs, token_logprobs,
)
from test_train_scripts import config_of, rows_of

B, T, V = 6, 7, 50
MASK = torch.arange(T) < torch.tensor([7, 1, 3, 5, 7, 2])[:, None]
TARGETS = (torch.arange(B * T).view(B, T) % V).masked_fill(~MASK, -100)


def some(*shape: int, scale: float = 1.0):
    """A function that draws a tensor, when the test has seeded."""
    return lambda: scale * torch.randn(*shape)


def unit() -> Tensor:
    return F.normalize(torch.randn(B, 32), dim=-1)


def nats() -> Tensor:
    return -3 * torch.randn(B, T).abs()


LOSSES = {
    "next token": (lambda x: next_token_loss(x, TARGETS), [some(B, T, V, scale=30)]),
    "smoothed": (lambda x: next_token_loss(x, TARGETS, 0.1), [some(B, T, V, scale=30)]),
    "log-probabilities": (lambda x: token_logprobs(x, TARGETS).sum(), [some(B, T, V, scale=30)]),
    "InfoNCE": (lambda a, b: clip_loss(a, b, 100.0), [unit, unit]),
    "match": (lambda x: match_loss(x, torch.tensor([0, 1] * 3)), [some(B, 2, scale=30)]),
    "reward": (lambda a, b: reward_loss(a, b, 0.3).mean(), [some(B, scale=10), some(B, scale=10)]),
    "ranking": (lambda x: ranking_loss(x, torch.tensor([[1, 2, 2]] * 2)), [some(2, 3, scale=10)]),
    "policy": (lambda a, b, c: ppo_policy_loss(a, b, c, MASK, 0.2)[0], [nats, nats, some(B, T)]),
    "value": (lambda a, b, c: ppo_value_loss(a, b, c, MASK, 0.2), [some(B, T, scale=10)] * 3),
    "sequence": (lambda x: sequence_logprobs(x, MASK).sum(), [nats]),
    **{kind: (lambda a, b, kind=kind: kl_estimate(a, b, kind).mean(), [nats, nats])
       for kind in ("k1", "k2", "k3")},
    **{f"dpo {kind}": (lambda a, b, c, d, kind=kind: dpo_loss(a, b, c, d, 0.5, kind).mean(),
                       [some(B, scale=30)] * 4)
       for kind in ("sigmoid", "robust", "hinge", "ipo")},
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_computed_in_float32_inside_and_outside_of_autocast(name, dtype):
    """Catches sums of exponentials in half precision, similarities times 100 rounded to a quarter,
    and differences of nearly equal numbers taken before they are widened.
    """
    loss, made = LOSSES[name]
    half = [make().to(dtype) for make in made]
    whole = [x.float().requires_grad_() for x in half]
    want = loss(*whole)
    grads = torch.autograd.grad(want, whole)
    assert torch.equal(loss(*half), want)
    with torch.autocast("cpu", dtype):
        assert torch.equal(loss(*half), want)
        again = loss(*whole)
    assert torch.equal(again, want) and want.dtype == torch.float32
    assert all(map(torch.equal, torch.autograd.grad(again, whole), grads))


def test_a_probability_of_one_has_no_loss_in_half_precision():
    """Catches an overflow: logits of 60,000 are the largest that float16 holds, and exp of them is
    infinite.
    """
    logits = torch.tensor([[[60000.0, -60000.0]]], dtype=torch.float16)
    assert next_token_loss(logits, torch.tensor([[0]])) == 0
    assert next_token_loss(logits, torch.tensor([[1]])) > 1e5


@pytest.mark.parametrize("stage", ["clip", "sft", "ppo", "dpo"])
def test_a_run_in_bfloat16_goes_where_one_in_float32_goes(stage, runs, folder, tmp_path):
    """Catches a model that only computes in one type, and weights that are kept in the other."""
    script, cfg = config_of(stage, folder, runs, out=str(tmp_path), dtype="bfloat16", steps=2)
    script.main(cfg)
    a, b = (rows_of(out / "metrics.csv") for out in (runs / stage, tmp_path))
    key = "val_score" if stage == "ppo" else "val_loss"
    measured = [(row, exact) for row, exact in zip(b, a) if row[key]]  # others are means of steps
    assert [row["step"] for row, _ in measured] == ["0", "2"]
    for row, exact in measured:
        assert float(row[key]) == pytest.approx(float(exact[key]), rel=0.05, abs=0.02)
    kept = torch.load(tmp_path / "ckpt.pt", weights_only=True)["model"]
    assert not {v.dtype for v in kept.values()} & {torch.bfloat16, torch.float16}
