"""Patches in reading order, features from the right layer, and refusals."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from minivlm.vit import ViT, ViTConfig


def test_patch_embedding_equals_unfold_and_a_matrix(vit):
    """Catches: patches by columns, a transposed patch, the class token last, lost positions."""
    images = torch.randn(2, 3, 16, 16)
    cut = F.unfold(images, kernel_size=8, stride=8).transpose(1, 2)  # (B, N, 3 P P)
    tokens = cut @ vit.patch.weight.flatten(1).T
    rows = torch.cat([vit.cls.expand(2, 1, -1), tokens], dim=1) + vit.pos
    torch.testing.assert_close(vit.embed(images), vit.norm_pre(rows), rtol=1e-4, atol=1e-5)


def test_patches_stand_in_reading_order(vit):
    """Catches: column order, which `unfold` against `unfold` could share.

    With 2 x 2 patches of 8 pixels, the patch at top right is token 1 behind the class token, that
    at bottom left token 2.
    """
    blank = torch.zeros(1, 3, 16, 16)
    for token, (top, left) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8)], start=1):
        drawn = blank.clone()
        drawn[..., top:top + 8, left:left + 8] = 1.0
        changed = (vit.embed(drawn) != vit.embed(blank)).any(-1)[0]
        assert changed.nonzero().flatten().tolist() == [token]


def test_every_position_sees_every_patch(vit):
    """Catches: a causal mask in the image tower, which hides the picture's bottom from its top."""
    images = torch.randn(1, 3, 16, 16, requires_grad=True)
    for token in range(5):
        grad, = torch.autograd.grad(vit(images)[0, token].pow(2).sum(), images)
        seen = [grad[..., y:y + 8, x:x + 8].abs().sum() > 0 for y in (0, 8) for x in (0, 8)]
        assert all(seen)


def test_features_are_the_patches_of_the_chosen_layer(vit_config):
    """Catches: one layer too many or few, the class token among the features, a last norm on them.

    Of three blocks, feature_layer -1 is after the third, -2 after the second, -3 after the first.
    """
    for layer, n_blocks in ((-1, 3), (-2, 2), (-3, 1)):
        vit = ViT(replace(vit_config, n_layer=3, feature_layer=layer))
        images = torch.randn(2, 3, 16, 16)
        x = vit.embed(images)
        for block in list(vit.blocks)[:n_blocks]:
            x = block(x)
        assert torch.equal(vit.features(images), x[:, 1:])
    assert ViTConfig().feature_layer == -2  # LLaVA's choice is the default


def test_pool_is_the_normed_class_token(vit):
    """Catches: a mean over patches, another token, the norm before the choice of layer."""
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(vit.pool(images), vit.norm_post(vit(images)[:, 0]))
    assert vit(images).shape == (2, 5, 32)


def test_permuting_the_batch_permutes_the_output(vit):
    """Catches: pictures that look at each other (a batch norm, a reshape over the batch)."""
    images, order = torch.randn(4, 3, 16, 16), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(vit(images[order]), vit(images)[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 16, 24), (1, 1, 16, 16), (3, 16, 16), (1, 3, 32, 32)])
def test_pictures_of_another_shape_are_refused(vit, shape):
    """Catches: positions of another grid added to the patches, a missing batch axis."""
    with pytest.raises(ValueError, match=r"expected \(B, 3, 16, 16\); resize them first"):
        vit(torch.zeros(shape))


def test_a_picture_that_patches_do_not_tile_is_refused():
    """Catches: a convolution that drops the last columns in silence."""
    with pytest.raises(ValueError, match="image_size 30 is not a multiple of patch_size 8"):
        ViTConfig(image_size=30, patch_size=8)


@pytest.mark.parametrize("layer", [0, 1, -5])
def test_a_feature_layer_that_does_not_exist_is_refused(layer: int):
    """Catches: an empty or cut slice of blocks."""
    with pytest.raises(ValueError, match=rf"feature_layer {layer} is not in -4 .. -1"):
        ViTConfig(n_layer=4, feature_layer=layer)


def test_the_number_of_image_tokens_is_that_of_the_patches():
    """Catches: N counted along one side or with the class token: (48 / 16)^2 = 9."""
    assert ViTConfig(image_size=48, patch_size=16).n_tokens == 9


def test_a_tower_without_class_token_and_pool_has_features_only(vit_config):
    """Catches the last patch taken for the whole picture."""
    vit = ViT(replace(vit_config, kind="siglip", pool_head=False))
    assert vit.features(torch.randn(2, 3, 16, 16)).shape == (2, 4, 32)
    with pytest.raises(ValueError, match="no vector of a picture"):
        vit.pool(torch.randn(2, 3, 16, 16))


def test_a_rest_of_the_picture_that_fills_no_patch(vit_config):
    """Catches a picture smaller than a patch, and pixels left out where no weights ask for it."""
    assert replace(vit_config, kind="siglip", image_size=19).n_tokens == 4
    for wrong in ({"image_size": 19}, {"kind": "siglip", "image_size": 7}):
        with pytest.raises(ValueError, match="is not a multiple of"):
            replace(vit_config, **wrong)
