"""minivlm/optim.py: Muon by singular values, AdamW against torch's, groups, schedule, state."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from minivlm.optim import Muon, Optimizer, lr_scale, orthogonalize, with_slower_part
from minivlm.projector import Projector
from minivlm.transformer import Block, BlockConfig


class Toy(nn.Module):
    """One of everything: tied embedding, block, projector, norm, and a single number."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(10, 8)
        nn.init.normal_(self.wte.weight, std=0.1)
        self.projector = Projector(6, 8)
        nn.init.constant_(self.projector.norm.weight, 0.05)  # features here tell nothing
        self.block = Block(BlockConfig(8, 2))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.wte.weight
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, idx: Tensor, feats: Tensor) -> Tensor:
        x = self.block(self.wte(idx) + self.projector(feats))
        return self.head(self.norm(x)) * self.logit_scale


MATRICES = {
    "block.attn.qkv.weight", "block.attn.proj.weight", "block.mlp.0.weight", "block.mlp.2.weight",
    "projector.net.0.weight", "projector.net.2.weight",
}


def train(model: Toy, step, n: int, start: int = 0) -> list[float]:
    """n updates by `step(scale)`; batch i is a function of i alone."""
    losses = []
    for i in range(start, start + n):
        generator = torch.Generator().manual_seed(i)
        idx = torch.randint(0, 10, (4, 5), generator=generator)
        feats = torch.randn(4, 5, 6, generator=generator).to(model.wte.weight.dtype)
        loss = nn.functional.cross_entropy(
            model(idx, feats).flatten(0, 1), (idx.flatten() + 1) % 10
        )
        loss.backward()
        step((i + 1) / (start + n))
        losses.append(loss.item())
    return losses


def names(model: nn.Module, params) -> set[str]:
    name_of = {p: name for name, p in model.named_parameters()}
    return {name_of[p] for p in params}


# --- Muon ---


def by_singular_values(G: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz on the singular values: each becomes a x + b x^3 + c x^5, in float64."""
    U, s, Vh = torch.linalg.svd(G.double(), full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (U * s) @ Vh


@pytest.mark.parametrize("rows, cols", [(4, 16), (32, 64), (16, 160), (64, 256)])
def test_all_singular_values_end_near_one(rows, cols):
    """Catches a wrong coefficient or missing normalization: 0.6 to 1.3 for random wide matrices."""
    out = orthogonalize(
        torch.randn(6, rows, cols) * torch.tensor([1e-4, 0.1, 1, 3, 100, 1e4])[:, None, None]
    )
    values = torch.linalg.svdvals(out)
    assert out.shape == (6, rows, cols) and values.min() > 0.6 and values.max() < 1.3


def test_newton_schulz_acts_on_each_matrix_by_its_singular_values():
    """Catches matrices of a stack that mix, and singular vectors that turn."""
    G = torch.randn(3, 8, 20)
    for got, g in zip(orthogonalize(G), G):
        torch.testing.assert_close(got.double(), by_singular_values(g), atol=1e-5, rtol=1e-4)


def test_a_zero_gradient_stays_zero():
    """Catches a division by zero for a matrix that got no gradient yet."""
    assert orthogonalize(torch.zeros(2, 3, 5)).abs().max() == 0


@pytest.mark.parametrize("rows, cols", [(6, 10), (8, 8), (10, 5), ((4, 4, 4), 4), ((8, 2, 2), 4)])
def test_muon_steps_follow_the_formula(rows, cols):
    """Catches a wrong momentum, look ahead, decay, scale for tall matrices, or q, k, v not split.

    m = 0.9 m + 0.1 g;  u = 0.1 g + 0.9 m;
    p = (1 - 0.1 * 0.2) p - 0.1 sqrt(max(1, rows / cols)) ortho(u).
    (8, 2, 2) x 4 is three maps, the first with sqrt(8 / 4), the others with 1.
    """
    maps = rows if isinstance(rows, tuple) else (rows,)
    rows = sum(maps)
    p = nn.Parameter(torch.randn(rows, cols))
    want, m = p.detach().double().clone(), torch.zeros(rows, cols, dtype=torch.float64)
    optimizer = Muon([p], lr=0.1, momentum=0.9, weight_decay=0.2, maps={p: maps})
    for _ in range(3):
        p.grad = torch.randn(rows, cols)
        g = p.grad.double()
        m = 0.9 * m + 0.1 * g
        u = 0.1 * g + 0.9 * m
        update = torch.cat(
            [math.sqrt(max(1, len(x) / cols)) * by_singular_values(x) for x in u.split(maps)]
        )
        want = (1 - 0.1 * 0.2) * want - 0.1 * update
        optimizer.step()
        torch.testing.assert_close(p.detach().double(), want, atol=1e-4, rtol=1e-3)


def test_matrices_of_one_shape_do_not_mix():
    """Catches updates given to the wrong parameter: together equals alone, tall, wide, thirds."""
    shapes = [(4, 8), (8, 4), (4, 8), (12, 4), (4, 4), (8, 4), (12, 4)]
    together = [nn.Parameter(torch.randn(s)) for s in shapes]
    alone = copy.deepcopy(together)
    for p, q in zip(together, alone):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    Muon(together, maps={p: (4, 4, 4) for p in together if len(p) == 12}).step()
    for q in alone:
        Muon([q], maps={q: (4, 4, 4)} if len(q) == 12 else None).step()
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(together, alone))


def test_the_optimizer_knows_which_matrices_hold_several_maps():
    """Catches: queries, keys and values as one, or a tall matrix that is one map cut in three."""
    block = Block(BlockConfig(8, 4, act="swiglu", n_inner=12, n_kv_head=2))
    muon = Optimizer(block, 0.1, 0.1).parts[1]
    assert muon.maps == {block.attn.qkv.weight: (8, 4, 4), block.mlp.gate_up.weight: (12, 12)}


def test_muon_leaves_a_matrix_without_gradient_alone():
    """Catches weight decay on what a stage does not train."""
    p, q = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2, 3))
    p.grad = torch.randn(2, 3)
    Muon([p, q], weight_decay=0.5).step()
    assert torch.equal(q, torch.ones(2, 3)) and not torch.equal(p, torch.ones(2, 3))


@pytest.mark.parametrize("shape", [(3,), (), (2, 3, 4)])
def test_muon_refuses_what_is_no_matrix(shape):
    """Catches a bias or a convolution among the matrices."""
    with pytest.raises(ValueError, match=r"Muon takes matrices, got a parameter of shape \("):
        Muon([nn.Parameter(torch.zeros(shape))])


# --- groups ---


def test_each_parameter_is_in_its_group_once():
    """Catches decay on biases, norms and scalars, an embedding in Muon, a tied weight twice."""
    model = Toy()
    optimizer = Optimizer(model, lr=1e-3, muon_lr=0.02, weight_decay=0.1)
    adamw, muon = optimizer.parts
    assert names(model, muon.param_groups[0]["params"]) == MATRICES
    decayed, plain = adamw.param_groups
    assert names(model, decayed["params"]) == {"wte.weight"} and decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0 and muon.param_groups[0]["weight_decay"] == 0.1
    everything = {name for name, _ in model.named_parameters()}
    assert names(model, plain["params"]) == everything - MATRICES - {"wte.weight"}
    assert {"logit_scale", "norm.weight", "block.attn.qkv.bias"} <= names(model, plain["params"])
    assert len(optimizer.params) == len(set(optimizer.params)) == len(everything)


def test_without_muon_every_matrix_decays_under_adamw():
    """Catches matrices lost when muon_lr is 0."""
    model = Toy()
    optimizer = Optimizer(model, lr=1e-3, muon_lr=0, weight_decay=0.1)
    [adamw] = optimizer.parts
    assert names(model, adamw.param_groups[0]["params"]) == MATRICES | {"wte.weight"}
    assert len(optimizer.params) == len(list(model.parameters()))


def test_frozen_parts_are_left_out_and_stay():
    """Catches a frozen ViT that decays, or whose gradient counts in the clipped norm."""
    model = Toy()
    for p in model.parameters():
        p.requires_grad_(False)
    model.projector.requires_grad_(True)
    optimizer = Optimizer(model, 1e-2, 0.02, weight_decay=0.5)
    projector = {name for name, _ in model.named_parameters() if name.startswith("projector.")}
    assert names(model, optimizer.params) == projector
    before = copy.deepcopy(model.state_dict())
    train(model, lambda scale: optimizer.step(scale, 1.0), 3)
    moved = {name for name, p in model.state_dict().items() if not torch.equal(p, before[name])}
    assert moved == projector


def test_matrices_alone_need_no_adamw():
    """Catches an AdamW without parameters, which torch refuses."""
    block = Block(BlockConfig(8, 2))
    for p in block.parameters():
        p.requires_grad_(p.ndim == 2)
    assert [type(part) for part in Optimizer(block, 1e-3, 0.02).parts] == [Muon]


def test_nothing_to_train_is_an_error():
    """Catches a stage that freezes everything and runs for an hour."""
    model = Toy().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train: every parameter is frozen"):
        Optimizer(model, 1e-3, 0.02)


# --- steps ---


def test_without_muon_it_is_torchs_adamw():
    """Catches a changed beta, a decay in the wrong group, a rate without its schedule, a lost clip.

    In float64: the gradient of attention's key bias is 0 but for rounding, and Adam divides by it.
    """
    model = Toy().double()
    peer = copy.deepcopy(model)
    optimizer = Optimizer(model, lr=1e-2, muon_lr=0, weight_decay=0.1)
    theirs = torch.optim.AdamW([
        {"params": [p for p in peer.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in peer.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ], betas=(0.9, 0.95), foreach=False, fused=False)

    def step(scale):
        nn.utils.clip_grad_norm_(peer.parameters(), 0.5)
        for group in theirs.param_groups:
            group["lr"] = 1e-2 * scale
        theirs.step()
        theirs.zero_grad()

    ours = train(model, lambda scale: optimizer.step(scale, 0.5), 12)
    assert ours == pytest.approx(train(peer, step, 12), abs=1e-9)
    for p, q in zip(model.parameters(), peer.parameters()):
        torch.testing.assert_close(p, q, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_leaves_everything_as_it_was(bad):
    """Catches weights and moments that are lost to one bad batch: a later step equals that of an
    optimizer which never saw it.
    """
    runs = []
    for poisoned in (True, False):
        torch.manual_seed(0)
        model = Toy()
        optimizer = Optimizer(model, 1e-2, 0.02, weight_decay=0.1)
        if poisoned:
            for p in model.parameters():
                p.grad = torch.full_like(p, bad)
            assert not math.isfinite(optimizer.step(1.0, 1.0))
            assert all(p.grad is None for p in model.parameters())
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step(1.0, 1.0)
        runs.append([p.detach().clone() for p in model.parameters()])
    assert all(map(torch.equal, *runs))


def test_a_step_tells_the_norm_before_clipping_and_forgets_gradients():
    """Catches a logged norm that never exceeds the clip, and gradients that add up over steps.

    One weight of each kind has gradient 3 and 4, all others none: the norm is 5,
    clipped to 1 it is 0.6, 0.8.
    """
    model = Toy()
    optimizer = Optimizer(model, lr=1.0, muon_lr=0.02)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    model.logit_scale.grad.fill_(3.0)
    model.block.attn.proj.weight.grad[0, 0] = 4.0
    assert optimizer.step(1.0, clip=1.0) == pytest.approx(5.0)
    assert all(p.grad is None for p in model.parameters())
    momentum = optimizer.parts[1].state[model.block.attn.proj.weight]["momentum"]
    assert momentum[0, 0].item() == pytest.approx(0.05 * 0.8, rel=1e-4)


@pytest.mark.parametrize("muon_lr", [0.0, 0.02])
def test_a_clip_of_0_is_no_clip(muon_lr):
    """Catches a run that learns nothing: a gradient scaled down to norm 0 has no direction left."""
    weights = []
    for clip in (0.0, 1e9):
        torch.manual_seed(0)
        model = Toy()
        before = copy.deepcopy(model.state_dict())
        optimizer = Optimizer(model, 1e-2, muon_lr)
        train(model, lambda scale: optimizer.step(1.0, clip), 2)
        assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
        weights.append(list(model.parameters()))
    assert all(map(torch.equal, *weights))


def test_the_scale_multiplies_both_peak_rates():
    """Catches a schedule that reaches AdamW only, or scales the last rate, not the peak."""
    model = Toy()
    optimizer = Optimizer(model, lr=1e-3, muon_lr=0.02)
    for scale in (0.5, 0.5, 1.0, 0.0):
        before = copy.deepcopy(model.state_dict())
        train(model, lambda _: optimizer.step(scale, 1.0), 1)
        rates = [group["lr"] for part in optimizer.parts for group in part.param_groups]
        assert rates == pytest.approx([1e-3 * scale, 1e-3 * scale, 0.02 * scale])
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


@pytest.mark.parametrize("muon_lr", [0.0, 0.02])
def test_a_restored_optimizer_goes_on_identically(muon_lr):
    """Catches moments or momentum that are not saved: 3 + 3 steps equal 6, bit for bit."""
    torch.manual_seed(2)
    model = Toy()
    optimizer = Optimizer(model, 1e-2, muon_lr, 0.1)
    train(model, lambda scale: optimizer.step(scale, 1.0), 3)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    wanted = train(model, lambda scale: optimizer.step(scale, 1.0), 3, start=3)

    other = Toy()
    again = Optimizer(other, 1e-2, muon_lr, 0.1)
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert train(other, lambda scale: again.step(scale, 1.0), 3, start=3) == wanted
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters()))


def test_the_state_of_other_optimizers_is_refused():
    """Catches a resumed run in which Muon was switched off."""
    both, adamw = Optimizer(Toy(), 1e-3, 0.02), Optimizer(Toy(), 1e-3, 0)
    with pytest.raises(
        ValueError, match="checkpoint has 2 optimizers, this run 1; was muon_lr changed?"
    ):
        adamw.load_state_dict(both.state_dict())


@pytest.mark.parametrize("muon_lr", [0.0, 0.02])
def test_a_toy_is_learned(muon_lr):
    """Catches an update with the wrong sign: "the next number" from ln 10 = 2.3 to below 0.5."""
    model = Toy()
    optimizer = Optimizer(model, 2e-2, muon_lr)
    losses = train(model, lambda scale: optimizer.step(1.0, 1.0), 60)
    assert losses[0] == pytest.approx(math.log(10), abs=0.3) and losses[-1] < 0.5


# --- schedule ---


def test_the_rate_rises_in_a_line_and_falls_along_a_cosine():
    """Catches a first step that does not move, a jump behind the warmup, a cosine that ends early.

    10 steps, 2 of warmup, floor 0.2. Warmup: 1/2, 2/2. Then 0.2 + 0.8 * (1 + cos(pi i / 8)) / 2:
    at i = 0 it is 1, at i = 2 0.2 + 0.4 * 1.7071 = 0.8828, at i = 4 0.6, at i = 8, the end, 0.2.
    """
    want = {0: 0.5, 1: 1.0, 2: 1.0, 4: 0.8828, 6: 0.6, 10: 0.2}
    assert {s: round(lr_scale(s, 10, 2, 0.2), 4) for s in want} == want
    assert lr_scale(0, 10, 0) == 1.0 and lr_scale(10, 10, 0) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("steps, warmup, floor", [
    (100, 10, 0.0), (100, 0, 0.1), (7, 7, 0.0), (1, 0, 0.0), (5, 9, 0.0)])
def test_the_rate_stays_between_floor_and_peak(steps, warmup, floor):
    """Catches a division by zero if all is warmup, a negative rate, a curve of two hills."""
    rates = [lr_scale(s, steps, warmup, floor) for s in range(steps)]
    assert all(0 < rate <= 1 for rate in rates) and min(rates[warmup:], default=1) >= floor
    top = min(warmup, steps)
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[:top] == pytest.approx([(s + 1) / warmup for s in range(top)])


@pytest.mark.parametrize("rate", (0.0, 0.25))
def test_a_slower_part_takes_its_share_of_each_step(rate):
    """Catches a part that learns at the full rate, twice, or though it is frozen.

    AdamW's first step moves each number by the learning rate, whatever the gradient.
    """
    torch.manual_seed(0)
    model = Toy()
    model.block.requires_grad_(rate == 0)  # it is set here, not before
    optimizer = with_slower_part(model, model.block, rate, lr=0.01, muon_lr=0.02)
    before = {k: v.clone() for k, v in model.named_parameters()}
    logits = model(torch.tensor([[1, 2, 3]]), torch.randn(1, 3, 6))
    logits.logsumexp(-1).sum().backward()
    optimizer.step(1.0, 0)
    moved = {k: (v - before[k]).abs() for k, v in model.named_parameters()}
    assert torch.allclose(moved["norm.bias"], torch.full((8,), 0.01), rtol=1e-3)
    assert torch.allclose(moved["block.norm1.bias"], torch.full((8,), rate * 0.01), rtol=1e-3)
    assert (moved["block.mlp.0.weight"].max() > 0) == (rate > 0)
