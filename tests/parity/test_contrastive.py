"""Contrastive learning beside open_clip and transformers: rows 1 to 4 of the list."""

import math

import pytest
import torch
import torch.nn.functional as F

from minivlm.losses import clip_loss
from parity.peers import one_file


@pytest.mark.parametrize("dtype, allowed", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_infonce_is_open_clips(agreement, dtype, allowed):
    """Catches a sum for a mean, one direction only, a scale that enters another way."""
    peer = one_file("open_clip", "loss.py").ClipLoss()
    name = str(dtype).removeprefix("torch.")
    seen = agreement(f"InfoNCE in {name}: loss, gradients to features and scale",
                     "open_clip_torch", "ClipLoss", allowed)
    for rng in seen.cases():
        B, C = rng.choice((1, 2, 7, 64)), rng.randint(2, 40)
        img, txt = (torch.randn(B, C, dtype=dtype, requires_grad=True) for _ in range(2))
        log_scale = torch.tensor(rng.uniform(0, math.log(100)), dtype=dtype, requires_grad=True)
        args = F.normalize(img, dim=-1), F.normalize(txt, dim=-1), log_scale.exp()
        ours, theirs = clip_loss(*args), peer(*args)
        seen.close(ours, theirs)
        inputs = (img, txt, log_scale)
        grads = (torch.autograd.grad(loss, inputs, retain_graph=True) for loss in (ours, theirs))
        for a, b in zip(*grads):
            seen.close(a, b)
