"""The splice of pictures into text: order, counts, and what a picture may and may not change."""

from minivlm.loading.models import vlm_from
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minivlm.loading.batches import collate
from minivlm.losses import IGNORE_INDEX, next_token_loss
from minivlm.projector import IMAGE_SCALE, Projector
from minivlm.vlm import VLM, VLMConfig

N, IMAGE = 4, 258  # image tokens a picture, and the placeholder's id, of conftest's tiny models
PICTURE = [IMAGE] * N


def rows(*texts: list[int], pad: int = 257) -> Tensor:
    """Rows of ids, padded on the right."""
    T = max(map(len, texts))
    return torch.tensor([text + [pad] * (T - len(text)) for text in texts])


MIXED = rows(
    [1, *PICTURE, 2, 3],              # one picture
    [4, 5, 6],                        # none
    [*PICTURE, 7, *PICTURE, 8, 9],    # two, with a word between them
)


def same(a: Tensor, b: Tensor) -> None:
    """Equal up to the order of float32 sums."""
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# --- projector ---


def normed(x, weight=1.0, bias=0.0):
    """LayerNorm from its definition: mean 0, biased variance 1 over the channels."""
    x = x - x.mean(-1, keepdim=True)
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def test_a_linear_projector_is_one_matrix_and_a_norm():
    """Catches: another layer, a lost bias, positions that mix."""
    p, feats = Projector(6, 8, "linear"), torch.randn(2, 3, 6)
    for w in p.parameters():
        torch.nn.init.normal_(w)
    W, b, gain, shift = p.parameters()
    same(p(feats), normed(feats @ W.T + b, gain, shift))


def test_an_mlp_projector_is_two_matrices_with_a_gelu_between():
    """Catches: another activation, or one behind the last matrix too."""
    p, feats = Projector(6, 8), torch.randn(2, 3, 6)
    for w in p.parameters():
        torch.nn.init.normal_(w)
    W1, b1, W2, b2, gain, shift = p.parameters()
    same(p(feats), normed(F.gelu(feats @ W1.T + b1) @ W2.T + b2, gain, shift))


def test_image_tokens_start_at_one_size_however_large_the_features_are():
    """Catches: a projector whose image tokens grow with the ViT's features."""
    for scale in (100.0, 10000.0):
        std = Projector(6, 64)(scale * torch.randn(5, 3, 6)).std().item()
        assert std == pytest.approx(IMAGE_SCALE, rel=0.1)


def test_a_placed_projector_tells_equal_patches_apart():
    """Catches: places that are not added, added to all alike, or mixed with other patches."""
    p = Projector(6, 8, "placed", 3)
    feats = torch.randn(1, 1, 6).expand(2, 3, 6)
    plain = p.norm(p.net(feats))
    torch.testing.assert_close(p(feats) - plain, p.place.expand(2, 3, 8))
    assert (p.place[0] - p.place[1]).abs().max() > 0.1


def test_an_unknown_projector_is_refused_by_name():
    """Catches: a silent fall-back to another kind."""
    message = "projector 'resampler' is not one of mlp, linear, llava, placed"
    with pytest.raises(ValueError, match=message):
        Projector(6, 8, "resampler")


# --- splice ---


def test_patches_replace_their_placeholders_in_order(vlm):
    """Catches: features in another order, another row's picture, a text token overwritten."""
    images = torch.randn(3, 3, 16, 16)
    feats = [
        patch for picture in images for patch in vlm.projector(vlm.vit.features(picture[None]))[0]
    ]
    want = []
    for row in MIXED.tolist():
        for token in row:
            want.append(feats.pop(0) if token == IMAGE else vlm.gpt.wte.weight[token])
    assert not feats
    same(vlm.embed(MIXED, images), torch.stack(want).view(3, -1, 32))


def test_a_batch_without_pictures_is_plain_text(vlm):
    """Catches: a picture demanded where there is none."""
    idx = rows([1, 2, 3], [4, 5])
    assert torch.equal(vlm(idx), vlm.gpt(idx))


@pytest.mark.parametrize("placeholders, n, message", [
    ([4], 2, r"rows hold \[4\] image placeholders, but 2 pictures of 4 tokens make 8"),
    ([8], 1, r"rows hold \[8\] image placeholders, but 1 pictures of 4 tokens make 4"),
    ([3, 0], 1, r"rows hold \[3, 0\] image placeholders, but 1 pictures of 4 tokens make 4"),
    ([2, 6], 2, r"rows hold \[2, 6\] image placeholders, but 2 pictures of 4 tokens make 8"),
    ([0, 0], 1, r"rows hold \[0, 0\] image placeholders, but 1 pictures of 4 tokens make 4"),
    ([4], None, r"rows hold \[4\] image placeholders, but 0 pictures of 4 tokens make 0"),
], ids=[
    "too few", "too many", "one missing", "right total, wrong rows", "unused picture", "no picture",
])
def test_a_wrong_number_of_placeholders_is_refused_with_both_numbers(vlm, placeholders, n, message):
    """Catches: a splice that broadcasts, drops patches, or moves a row's patches into the next."""
    images = None if n is None else torch.randn(n, 3, 16, 16)
    with pytest.raises(ValueError, match=message):
        vlm(rows(*[[1] + [IMAGE] * k for k in placeholders]), images)


def test_a_placeholder_of_another_id_is_text(vlm_config):
    """Catches: the placeholder's id fixed in the code in place of the config's."""
    vlm = VLM(replace(vlm_config, image_id=7))
    assert vlm(rows([IMAGE, 7, 7, 7, 7]), torch.randn(1, 3, 16, 16)).shape == (1, 5, 263)
    with pytest.raises(ValueError, match="image placeholders"):
        vlm(rows(PICTURE), torch.randn(1, 3, 16, 16))


# --- what a picture changes ---


def test_another_picture_changes_the_logits_behind_it_in_its_own_row_only(vlm):
    """Catches: a picture never read, leaking into another row, or seen before it comes."""
    images = torch.randn(3, 3, 16, 16)
    other = images.clone()
    other[2] = torch.randn(3, 16, 16)  # last row's second picture, behind four patches and a word
    changed = ((vlm(MIXED, images) - vlm(MIXED, other)).abs() > 1e-4).any(-1)
    assert not changed[:2].any()
    assert changed[2].tolist() == [False] * 5 + [True] * 6


def test_swapping_two_pictures_of_a_row_changes_its_answer(vlm):
    """Catches: pictures that are pooled, or written in reverse."""
    images, swap = torch.randn(2, 3, 16, 16), [1, 0]
    idx = rows([*PICTURE, 7, *PICTURE, 8])
    assert (vlm(idx, images)[0, -1] - vlm(idx, images[swap])[0, -1]).abs().max() > 1e-2


def test_another_document_of_a_batch_changes_no_logit_and_no_gradient_of_this_one(vlm):
    """Catches documents that leak into each other: B beside A, beside a longer A, and alone."""
    torch.manual_seed(0)
    b, pictures = ([*PICTURE, 7, 8, 9], [False] * (N + 1) + [True] * 2), torch.randn(2, 3, 16, 16)
    found = []
    for a in ([*PICTURE, 2, 3], [5, 6, *PICTURE, 4, 4, 4, 4, 5], None):
        documents = [(a, [False] * (len(a) - 1) + [True]), b] if a else [b]
        images = pictures[-len(documents):]
        batch = collate(documents, 257, 32, images=images, n_images=[1] * len(documents))
        logits = vlm(batch.idx, batch.images)[-1, :len(b[0]) - 1]    # B's own positions
        vlm.zero_grad()
        next_token_loss(logits, batch.targets[-1, :len(b[0]) - 1]).backward()
        grads = [p.grad.clone() for p in vlm.parameters() if p.grad is not None]
        found.append((logits.detach(), grads))
    for logits, grads in found[:2]:
        same(logits, found[2][0])
        for grad, alone in zip(grads, found[2][1], strict=True):
            same(grad, alone)


def test_permuting_rows_with_their_pictures_permutes_the_logits(vlm):
    """Catches: a picture bound to a row's number in place of its order."""
    images = torch.randn(3, 3, 16, 16)
    permuted = vlm(MIXED[[2, 0, 1]], images[[1, 2, 0]])  # row 2 has pictures 1, 2; row 0 picture 0
    same(permuted, vlm(MIXED, images)[[2, 0, 1]])


def test_pads_on_the_right_are_inert(vlm):
    """Catches: pads that reach a real token or shift the pictures."""
    images = torch.randn(3, 3, 16, 16)
    longer = F.pad(MIXED, (0, 5), value=257)
    same(vlm(longer, images)[:, :MIXED.shape[1]], vlm(MIXED, images))


def test_in_a_prefix_pictures_see_each_other_and_never_the_text(vlm):
    """Catches: a prefix mask that the VLM drops, or that lets the answer into the picture's places.

    Two pictures are 8 positions; the second one reaches the first one's logits through the prefix.
    """
    idx, images, prefix = (
        rows([*PICTURE, *PICTURE, 5, 6]), torch.randn(2, 3, 16, 16), torch.tensor([8])
    )
    logits = vlm(idx, images, prefix=prefix)
    other_text = vlm(rows([*PICTURE, *PICTURE, 9, 6]), images, prefix=prefix)
    same(other_text[:, :8], logits[:, :8])
    other_picture = torch.stack([images[0], torch.randn(3, 16, 16)])
    assert ((vlm(idx, other_picture, prefix=prefix) - logits)[0, :4].abs().amax(-1) > 1e-3).all()
    same(vlm(idx, other_picture)[:, :4], vlm(idx, images)[:, :4])


# --- gradients ---


def answers(idx: Tensor) -> Tensor:
    """Targets that supervise the last token of each row of MIXED only."""
    targets = torch.full_like(idx, IGNORE_INDEX)
    for b, n in enumerate((7, 3, 11)):
        targets[b, n - 2] = idx[b, n - 1]
    return targets


def test_at_gives_the_loss_and_gradients_of_all_logits(vlm):
    """Catches: a fast path that trains something else."""
    images, targets = torch.randn(3, 3, 16, 16), answers(MIXED)
    keep = targets != IGNORE_INDEX
    full = next_token_loss(vlm(MIXED, images), targets)
    some = next_token_loss(vlm(MIXED, images, at=keep), targets[keep])
    same(full, some)
    used = [
        p for name, p in vlm.named_parameters()
        if "norm_post" not in name and "vit.blocks.1" not in name
    ]
    for one, other in zip(torch.autograd.grad(full, used), torch.autograd.grad(some, used)):
        same(one, other)


@pytest.mark.parametrize("trained", [
    ("projector",), ("projector", "gpt"), ("projector", "gpt", "vit"),
])
def test_frozen_parts_get_no_gradient_and_the_others_do(vlm, trained: tuple[str, ...]):
    """Catches: a connector stage moving the GPT, a splice that cuts the projector's gradient."""
    vlm.requires_grad_(False)
    for part in trained:
        getattr(vlm, part).requires_grad_(True)
    next_token_loss(vlm(MIXED, torch.randn(3, 3, 16, 16)), answers(MIXED)).backward()
    for part in ("projector", "gpt", "vit"):
        pushed = [
            p.grad is not None and bool(p.grad.any()) for p in getattr(vlm, part).parameters()
        ]
        assert any(pushed) == (part in trained)


def test_each_patch_is_pushed_by_its_own_rows_answer(vlm):
    """Catches: gradients scattered back into another picture than the one that was read."""
    images = torch.randn(3, 3, 16, 16, requires_grad=True)
    targets = answers(MIXED)
    targets[2] = IGNORE_INDEX  # only the rows with picture 0 and with none are trained
    next_token_loss(vlm(MIXED, images), targets).backward()
    assert images.grad.flatten(1).any(1).tolist() == [True, False, False]


# --- checkpoint and learning ---


def test_a_checkpoint_brings_back_config_and_logits(vlm):
    """Catches: a nested config left a dict, weights not loaded, a tied head that comes apart."""

    state = {"configs": {"model": asdict(vlm.config)}, "model": vlm.state_dict()}
    again, images = vlm_from(state), torch.randn(3, 3, 16, 16)
    assert again.config == vlm.config == VLMConfig.from_dict(asdict(vlm.config))
    assert torch.equal(again(MIXED, images), vlm(MIXED, images))
    assert again.gpt.head.weight is again.gpt.wte.weight


def test_a_tiny_vlm_learns_to_tell_four_pictures_apart(vlm_config):
    """Catches: a picture that the answer cannot reach: with equal questions guessing costs ln 4."""
    vlm, images = VLM(vlm_config), torch.randn(4, 3, 16, 16)
    idx = rows(*[[*PICTURE, 5]] * 4)
    targets = torch.full_like(idx, IGNORE_INDEX)
    targets[:, -1] = torch.tensor([10, 20, 30, 40])
    optimizer = torch.optim.AdamW(vlm.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(200):
        loss = next_token_loss(vlm(idx, images), targets)
        if loss < 0.05:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
