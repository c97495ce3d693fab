"""Contrastive learning beside open_clip and transformers.

Not here: SigLIP's loss, which minivlm does not have.
"""

import itertools
import math
import multiprocessing
import random
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from train_clip import contrastive_backward
from minivlm.loading.batches import Batch
from minivlm.losses import clip_loss
from parity.peers import one_file, whole


def features(rng, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors of pictures and texts, not yet of unit length, and the logarithm of the scale."""
    B, C = rng.choice((1, 2, 7, 64)), rng.randint(2, 40)
    img, txt = (torch.randn(B, C, dtype=dtype, requires_grad=True) for _ in range(2))
    return img, txt, torch.tensor(rng.uniform(0, math.log(100)), dtype=dtype, requires_grad=True)


def test_infonce_is_open_clips(agreement):
    """Catches a sum for a mean, one direction only, a scale that enters another way."""
    peer = one_file("open_clip", "loss.py").ClipLoss()
    seen = agreement("InfoNCE: loss, gradients to features and scale", "open_clip_torch",
                     "ClipLoss", 1e-12)
    for rng in seen.cases():
        inputs = img, txt, log_scale = features(rng, torch.float64)
        args = F.normalize(img, dim=-1), F.normalize(txt, dim=-1), log_scale.exp()
        seen.close_with_grads(clip_loss(*args), peer(*args), inputs)


def test_infonce_is_open_clips_in_float32(agreement):
    """Catches a step that loses digits, as a softmax before the logarithm does.

    Values alone: the scale's gradient is a difference of nearly equal sums, and what float32 leaves
    of it depends on the order of the multiplications.
    """
    peer = one_file("open_clip", "loss.py").ClipLoss()
    seen = agreement("InfoNCE in float32: loss", "open_clip_torch", "ClipLoss", 1e-5)
    for rng in seen.cases():
        img, txt, log_scale = features(rng, torch.float32)
        args = F.normalize(img, dim=-1), F.normalize(txt, dim=-1), log_scale.exp()
        seen.close(clip_loss(*args), peer(*args))


def test_infonce_is_transformers(agreement):
    """Catches the same mistakes as open_clip's, by code that starts from logits."""
    peer = whole("transformers.models.clip.modeling_clip").image_text_contrastive_loss
    seen = agreement("InfoNCE from logits: loss, gradients to features and scale", "transformers",
                     "image_text_contrastive_loss", 1e-12)
    for rng in seen.cases():
        inputs = img, txt, log_scale = features(rng, torch.float64)
        img_z, txt_z = F.normalize(img, dim=-1), F.normalize(txt, dim=-1)
        ours = clip_loss(img_z, txt_z, log_scale.exp())
        seen.close_with_grads(ours, peer(txt_z @ img_z.T * log_scale.exp()), inputs)


class Towers(nn.Module):
    """Two towers of one layer and a scale, in float64, called as CLIP is."""

    def __init__(self, n_pixels: int, n_words: int, C: int):
        super().__init__()
        self.see = nn.Linear(n_pixels, C, dtype=torch.float64)
        self.read = nn.EmbeddingBag(n_words, C, dtype=torch.float64)
        self.log_scale = nn.Parameter(torch.randn((), dtype=torch.float64) + 2)

    def forward(self, images: Tensor, idx: Tensor, lengths: Tensor):
        img_z = F.normalize(self.see(images.flatten(1)).tanh(), dim=-1)
        return img_z, F.normalize(self.read(idx), dim=-1), self.log_scale.exp()


@pytest.mark.parametrize("n_parts", [2, 4])
def test_accumulated_gradients_are_those_of_open_clips_loss_of_one_large_batch(agreement, n_parts):
    """Catches a pair that meets its own part only, and gradients divided by the parts."""
    peer = one_file("open_clip", "loss.py").ClipLoss()
    seen = agreement(f"InfoNCE in {n_parts} parts against one batch: loss, all gradients",
                     "open_clip_torch", "ClipLoss", 1e-12)
    for rng in seen.cases():
        B, T, C = rng.randint(n_parts, 19), rng.randint(1, 6), rng.randint(2, 16)
        model = Towers(12, 30, C)
        batch = Batch(torch.randint(30, (B, T)), torch.zeros(B, T), torch.full((B,), T),
                      torch.randn(B, 3, 2, 2, dtype=torch.float64), [1] * B, [""] * B)
        ours = contrastive_backward(model, batch.split(n_parts))
        grads = [p.grad for p in model.parameters()]
        theirs = peer(*model(batch.images, batch.idx, batch.lengths))
        seen.close(torch.tensor(ours, dtype=torch.float64), theirs)
        for a, b in zip(grads, torch.autograd.grad(theirs, list(model.parameters()))):
            seen.close(a, b)


def one_rank(rank: int, folder: Path, n_cases: int) -> None:
    """Half of every batch in a process of its own: loss and gradients, by open_clip's two flags."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    ClipLoss, found = one_file("open_clip", "loss.py").ClipLoss, []
    for seed in range(n_cases):
        img, txt, log_scale = halves(seed)
        mine = [img[rank], txt[rank], log_scale]
        for local, with_grad in itertools.product((False, True), repeat=2):
            peer = ClipLoss(local_loss=local, gather_with_grad=with_grad, rank=rank, world_size=2)
            loss = peer(F.normalize(mine[0], dim=-1), F.normalize(mine[1], dim=-1), log_scale.exp())
            found.append([loss.detach(), *torch.autograd.grad(loss, mine)])
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def halves(seed: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """What two processes hold of a batch, and the scale that both have."""
    rng, made = random.Random(seed), torch.Generator().manual_seed(seed)
    shape = 2, rng.choice((1, 2, 7)), rng.randint(2, 24)
    img, txt = (list(torch.randn(shape, dtype=torch.float64, generator=made)) for _ in range(2))
    for x in (*img, *txt):
        x.requires_grad_()
    return img, txt, torch.tensor(rng.uniform(0, 4), dtype=torch.float64, requires_grad=True)


def test_one_large_batch_is_what_two_processes_compute_together(agreement, tmp_path, monkeypatch):
    """Catches a batch whose loss is not the mean over its processes' losses. Gradients agree once
    averaged over processes, as DDP does, and only with gather_with_grad: without it a process's
    vectors get none from the other's loss.
    """
    one_file("open_clip", "loss.py")
    seen = agreement("InfoNCE of one batch against two gloo processes: loss, gradients",
                     "open_clip_torch", "ClipLoss, local_loss and gather_with_grad on and off",
                     1e-12)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    started = [multiprocessing.get_context("fork").Process(target=one_rank, args=(r, tmp_path, 100))
               for r in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    ranks = [iter(torch.load(tmp_path / f"{r}.pt")) for r in range(2)]
    differ = 0
    for seed, _ in enumerate(seen.cases(100)):
        img, txt, log_scale = halves(seed)
        loss = clip_loss(F.normalize(torch.cat(img), dim=-1), F.normalize(torch.cat(txt), dim=-1),
                         log_scale.exp())
        grads = torch.autograd.grad(loss, [*img, *txt, log_scale])
        for local, with_grad in itertools.product((False, True), repeat=2):
            (loss0, img0, txt0, scale0), (loss1, img1, txt1, scale1) = map(next, ranks)
            seen.close(loss, (loss0 + loss1) / 2)
            theirs = [img0 / 2, img1 / 2, txt0 / 2, txt1 / 2, (scale0 + scale1) / 2]
            if with_grad:
                for a, b in zip(grads, theirs):
                    seen.close(a, b, 1e-6)
            else:
                differ += not torch.allclose(grads[0], theirs[0], rtol=1e-3)
    assert differ > 150  # of 200
