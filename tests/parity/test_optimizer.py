"""Which weights decay, the learning rate over time, and Muon beside torch's."""

import ast
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from minivlm.captioner import Captioner
from minivlm.clip import CLIP, CLIPConfig
from minivlm.gpt import GPT, GPTConfig
from minivlm.heads import Learner, RewardModel, ValueModel
from minivlm.lora import add_lora
from minivlm.optim import Muon, Optimizer, lr_scale
from minivlm.vit import ViTConfig
from minivlm.vlm import VLM, VLMConfig
from parity.peers import folder_of, one_file, whole


def some_model(rng) -> nn.Module:
    """Any of the models that are trained, of any size, with some parameters frozen."""
    n_layer, C = rng.randint(2, 3), rng.choice((4, 6))
    vit = ViTConfig(image_size=8, patch_size=4, n_layer=n_layer, n_head=2, n_embd=C)
    gpt = GPTConfig(vocab_size=11, block_size=8, n_layer=n_layer, n_head=2, n_embd=C)
    config = VLMConfig(image_id=10, vit=vit, gpt=gpt, projector=rng.choice(("mlp", "linear")))
    model = rng.choice((
        lambda: GPT(gpt), lambda: VLM(config), lambda: Captioner(config),
        lambda: RewardModel(VLM(config)), lambda: CLIP(CLIPConfig(vit, 11, 8, n_layer, 2, C, 4)),
        lambda: Learner(VLM(config), ValueModel(VLM(config)), 0.1),
    ))()
    if rng.random() < 0.2:
        add_lora(model, "*.qkv", rank=2)
    for p in model.parameters():
        p.requires_grad_(p.requires_grad and rng.random() < 0.8)
    next(model.parameters()).requires_grad_()
    return model


def test_what_decays_is_what_open_clip_lets_decay(agreement):
    """Catches decay of biases, norms or temperatures, and weights stepped twice or never.

    open_clip's rule is a lambda inside of main.py, read from its source. Muon's matrices decay too.
    """
    tree = ast.parse((folder_of("open_clip_train") / "main.py").read_text())
    exclude = next(eval(ast.unparse(node.value)) for node in ast.walk(tree)
                   if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "exclude")
    seen = agreement("weights that decay, weights that do not: names", "open_clip_torch",
                     "open_clip_train.main, exclude", 0)
    for rng in seen.cases():
        model = some_model(rng)
        optimizer = Optimizer(model, 1e-3, rng.choice((0.0, 0.02)), weight_decay=0.1)
        name_of = {p: name for name, p in model.named_parameters()}
        ours = sorted((name_of[p], group["weight_decay"] > 0) for part in optimizer.parts
                      for group in part.param_groups for p in group["params"])
        seen.same(ours, sorted((name, not exclude(name, p)) for name, p in model.named_parameters()
                               if p.requires_grad))


def test_the_learning_rate_is_open_clips(agreement):
    """Catches a first step of rate 0, a peak one step late, a cosine over the whole run."""
    cosine_lr = one_file("open_clip_train", "scheduler.py").cosine_lr
    seen = agreement("learning rate, warmup and cosine, at every step", "open_clip_torch",
                     "cosine_lr", 1e-12)
    for rng in seen.cases():
        steps, peak = rng.randint(1, 300), rng.uniform(1e-5, 1)
        warmup = rng.randrange(steps)
        group = {}
        at = cosine_lr(SimpleNamespace(param_groups=[group]), peak, warmup, steps)
        ours = [peak * lr_scale(step, steps, warmup) for step in range(steps)]
        seen.close(torch.tensor(ours, dtype=torch.float64),
                   torch.tensor([at(step) for step in range(steps)], dtype=torch.float64))


def test_a_cosine_that_ends_above_zero_is_transformers(agreement):
    """Catches a floor that cuts the curve off, where it should lift it.

    Compared behind the warmup: there transformers begins at 0, and minivlm at 1 / warmup.
    """
    schedule = whole("transformers.optimization").get_cosine_with_min_lr_schedule_with_warmup
    seen = agreement("learning rate, cosine to a floor, at every step", "transformers",
                     "get_cosine_with_min_lr_schedule_with_warmup", 1e-12)
    for rng in seen.cases():
        steps, floor = rng.randint(1, 100), rng.random()
        warmup = rng.randrange(steps)
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        peer, theirs = schedule(optimizer, warmup, steps, min_lr_rate=floor), []
        for _ in range(steps):
            theirs += peer.get_last_lr()
            optimizer.step()
            peer.step()
        ours = [lr_scale(step, steps, warmup, floor) for step in range(warmup, steps)]
        seen.close(*(torch.tensor(x, dtype=torch.float64) for x in (ours, theirs[warmup:])))


def test_muon_is_torchs(agreement, monkeypatch):
    """Catches another momentum, look ahead, decay, scale of tall matrices, matrices mixed up.

    torch rounds to bfloat16 before it orthogonalizes, which is kept from it here; minivlm stays in
    float32. A map of q, k and v in one is three matrices for minivlm, so torch is given three. What
    keeps a norm from 0, 1e-7, is the least for torch and added here: the same at these sizes.
    """
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch before 2.9 has no Muon")
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    seen = agreement("Muon, 4 steps in float32: parameters", "torch", "optim.Muon", 1e-5)
    for rng in seen.cases():
        sizes = [rng.randint(2, 24) for _ in range(3)]
        shapes = [(3 * sizes[0], sizes[0])]
        shapes += [(rng.choice(sizes), rng.choice(sizes)) for _ in range(4)]
        options = {"lr": rng.uniform(0.01, 0.1), "momentum": rng.uniform(0.5, 0.99),
                   "weight_decay": rng.choice((0.0, rng.uniform(0, 1)))}
        ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
        maps = {ours[0]: (sizes[0],) * 3}
        theirs = [[nn.Parameter(x) for x in p.detach().clone().split(maps.get(p, len(p)))]
                  for p in ours]
        optimizers = (Muon(ours, **options, maps=maps),
                      torch.optim.Muon(sum(theirs, []), **options))
        for _ in range(4):
            for p, pieces in zip(ours, theirs):
                p.grad = torch.randn_like(p)
                for x, grad in zip(pieces, p.grad.clone().chunk(len(pieces))):
                    x.grad = grad
            for optimizer in optimizers:
                optimizer.step()
        for p, pieces in zip(ours, theirs):
            seen.close(p, torch.cat(pieces))
