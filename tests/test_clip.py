"""Both towers, the temperature, and gradients of a large batch made in parts."""

import copy
import math
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from conftest import stir
from minivlm.clip import CLIP, CLIPConfig
from minivlm.loading.batches import Batch, collate
from minivlm.loading.models import clip_from
from minivlm.losses import clip_loss, siglip_loss
from train_clip import contrastive_backward


def batch(B: int, longest: int = 12) -> Batch:
    """B random pictures with captions of different lengths, collated as train_clip.py does."""
    rows = [torch.randint(256, (3 + 5 * b % (longest - 2),)).tolist() for b in range(B)]
    images = torch.randn(B, 3, 16, 16)
    return collate(
        [(row, [True] * len(row)) for row in rows], 257, longest, images=images, n_images=[1] * B
    )


# --- towers ---


@pytest.mark.parametrize("B", [1, 2, 5, 9])
def test_a_caption_is_read_alike_alone_and_in_a_batch(clip, B: int):
    """Catches: rows back in the order of their lengths, a group cut too short, pads read."""
    b = batch(B)
    together = clip.text(b.idx, b.lengths)
    for i, n in enumerate(b.lengths.tolist()):
        x = clip.text.wte(b.idx[i:i + 1, :n]) + clip.text.wpe.weight[:n]
        for block in clip.text.blocks:
            x = block(x, causal=True)
        torch.testing.assert_close(together[i], clip.text.norm(x[0, -1]), rtol=1e-4, atol=1e-4)


def test_permuting_the_captions_permutes_their_features(clip):
    """Catches: a tower whose groups depend on who stands next to whom."""
    b, order = batch(7), torch.randperm(7)
    got, want = (
        clip.encode_text(b.idx[order], b.lengths[order]),
        clip.encode_text(b.idx, b.lengths)[order],
    )
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_what_stands_behind_a_caption_is_inert_and_its_last_token_is_not(clip):
    """Catches: the feature taken at a pad, or one place before the last token."""
    b = batch(6)
    z = clip.encode_text(b.idx, b.lengths)
    other_pads = torch.where(torch.arange(b.idx.shape[1]) < b.lengths[:, None], b.idx, 5)
    torch.testing.assert_close(clip.encode_text(F.pad(other_pads, (0, 4), value=9), b.lengths), z)
    other_ends = b.idx.clone()
    other_ends[torch.arange(6), b.lengths - 1] += 1
    assert (clip.encode_text(other_ends, b.lengths) - z).abs().amax(-1).min() > 1e-3


def test_features_have_unit_length_and_the_shared_width(clip):
    """Catches: a dot product that is no cosine; a tower's width in place of the shared one."""
    b = batch(3)
    img_z, txt_z, scale = clip(b.images, b.idx, b.lengths)
    for z in (img_z, txt_z):
        assert z.shape == (3, 16)
        torch.testing.assert_close(z.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(
        img_z, F.normalize(clip.vit.pool(b.images) @ clip.img_proj.weight.T, dim=-1)
    )
    text = clip.text(b.idx, b.lengths)
    torch.testing.assert_close(txt_z, F.normalize(text @ clip.txt_proj.weight.T, dim=-1))
    torch.testing.assert_close(scale, clip.log_scale.exp())


def test_a_caption_longer_than_the_tower_is_refused(clip):
    """Catches: a caption cut in silence."""
    with pytest.raises(ValueError, match="caption has 25 tokens, the text tower holds 24"):
        clip.encode_text(torch.zeros(1, 25, dtype=torch.long), torch.tensor([25]))


def test_a_checkpoint_brings_back_config_and_features(clip):
    """Catches: a nested config left a dict, weights that are not loaded."""
    state = {"configs": {"model": asdict(clip.config)}, "model": clip.state_dict()}
    again, images = clip_from(state), torch.randn(2, 3, 16, 16)
    assert again.config == clip.config == CLIPConfig.from_dict(asdict(clip.config))
    assert torch.equal(again.encode_image(images), clip.encode_image(images))


# --- temperature ---


@pytest.mark.parametrize("log_scale, want", [(9.0, 100.0), (-3.0, 1.0), (math.log(20), 20.0)])
def test_the_multiplier_stays_between_1_and_100(clip, log_scale: float, want: float):
    """Catches: no clamp, a clamp of the multiplier's logarithm at 100, or of one side only."""
    clip.log_scale.data.fill_(log_scale)
    clip.clamp_scale()
    assert clip.logit_scale.item() == pytest.approx(want, rel=1e-5)
    assert clip.log_scale.requires_grad


def test_a_fresh_multiplier_is_one_over_007(clip_config):
    """Catches: the logarithm forgotten or taken twice: 1 / 0.07 = 14.2857."""
    assert CLIP(clip_config).logit_scale.item() == pytest.approx(14.2857, abs=1e-3)


def test_siglip_starts_where_its_paper_says_and_has_no_limit(clip_config):
    """Catches: a bias of 0, with which the first steps only learn that most pairs are wrong; a
    clamp at 100, where published multipliers are 117.
    """
    model = CLIP(replace(clip_config, logit_bias=True))
    assert model.logit_scale.item() == pytest.approx(10.0) and model.bias.item() == -10.0
    model.log_scale.data.fill_(math.log(117))
    model.clamp_scale()
    assert model.logit_scale.item() == pytest.approx(117.0, rel=1e-5)


# --- one large batch in parts ---


@pytest.mark.parametrize("loss_of", [clip_loss, siglip_loss])
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_parts_give_loss_and_gradients_of_one_large_batch(clip_config, n: int, loss_of):
    """Catches: negatives of the own part only, parts averaged, a temperature counted once a part.

    Seven pairs in 2 or 3 parts are uneven; in 7 parts, each alone would have a loss of ln 1 = 0.
    """
    clip = stir(CLIP(replace(clip_config, logit_bias=loss_of is siglip_loss)))
    b, plain = batch(7), copy.deepcopy(clip)
    want = loss_of(*plain(b.images, b.idx, b.lengths))
    want.backward()
    got = contrastive_backward(clip, b.split(n), loss_of=loss_of)
    assert got == pytest.approx(want.item(), rel=1e-5)
    for (name, one), other in zip(clip.named_parameters(), plain.parameters()):
        torch.testing.assert_close(
            one.grad, other.grad, rtol=1e-3, atol=1e-5, msg=lambda m: f"{name}: {m}"
        )
    assert clip.log_scale.grad.abs() > 1e-4


@pytest.mark.parametrize("n", [1, 3])
def test_the_loss_is_computed_in_full_precision_whatever_the_towers_run_in(clip, n: int):
    """Catches: similarities times 100 rounded to bfloat16, whose steps there are a half."""
    b, autocast = batch(6), partial(torch.autocast, "cpu", torch.bfloat16)
    clip.log_scale.data.fill_(math.log(100))
    with autocast():
        features = clip(b.images, b.idx, b.lengths)
    assert contrastive_backward(clip, b.split(n), autocast) == pytest.approx(
        clip_loss(*features).item(), rel=2e-2
    )
    img_z, txt_z, scale = features
    coarse = (scale * img_z.bfloat16() @ txt_z.bfloat16().T).float() # what it must not be made of
    rounded = F.cross_entropy(coarse, torch.arange(6)) + F.cross_entropy(coarse.T, torch.arange(6))
    assert abs(contrastive_backward(clip, b.split(n), autocast) - rounded.item() / 2) > 1e-4


def test_gradients_reach_both_towers_and_the_temperature(clip):
    """Catches: a detached tower or temperature, a parameter that nothing reads."""
    contrastive_backward(clip, [batch(4)])
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in clip.parameters())


def test_a_frozen_image_tower_gets_no_gradient(clip):
    """Catches: a frozen tower that still moves, in the plain case and in parts."""
    clip.vit.requires_grad_(False)
    contrastive_backward(clip, batch(4).split(2))
    assert all(p.grad is None for p in clip.vit.parameters())
    assert all(p.grad is not None for p in clip.text.parameters())


# --- learning ---


@pytest.mark.parametrize("n_parts", [1, 2])
def test_a_tiny_clip_learns_four_pairs_by_heart(clip_config, n_parts: int):
    """Catches: a tower that does not learn, pairs that part ways between collate and loss."""
    clip, b = CLIP(clip_config), batch(4)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-3, weight_decay=0.0)
    for step in range(200):
        optimizer.zero_grad()
        loss = contrastive_backward(clip, b.split(n_parts))
        optimizer.step()
        clip.clamp_scale()
        if loss < 0.02:
            break
    assert loss < 0.02
    img_z, txt_z, _ = clip(b.images, b.idx, b.lengths)
    assert (img_z @ txt_z.T).argmax(1).tolist() == [0, 1, 2, 3]
