"""The arithmetic of a model: PaLM's formula, torch's own counter, what is frozen or not learned."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from minivlm.flops import FlopCounter
from minivlm.gpt import GPT, GPTConfig
from minivlm.lora import add_lora
from minivlm.vit import ViTConfig
from minivlm.vlm import VLM, VLMConfig


def counted(model, *args, **options) -> int:
    """FLOPs of one call, with gradients."""
    counter = FlopCounter(model)
    model(*args, **options)
    return counter.flops


@pytest.mark.parametrize("B, T", [(1, 1), (3, 7)])
def test_a_language_model_needs_what_palms_formula_says(B, T):
    """Catches a gradient's products left out, heads or rows counted once."""
    c = GPTConfig(vocab_size=50, block_size=16, n_layer=3, n_head=2, n_embd=8)
    model = GPT(c)
    N = 3 * 12 * 8 * 8 + 50 * 8  # q, k, v, proj: 4 C C; MLP: 8 C C; the head
    per_token = 6 * N + 12 * c.n_layer * c.n_embd * T
    assert counted(model, torch.zeros(B, T, dtype=torch.long)) == B * T * per_token


def test_linear_maps_and_convolutions_as_torch_counts_them():
    """Catches a convolution that counts its stride, an input's gradient counted without one."""
    model = nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.Flatten(2), nn.Linear(9, 6), nn.GELU(),
                          nn.Linear(6, 2, bias=False))
    counter = FlopCounter(model)
    with FlopCounterMode(display=False) as torchs:
        model(torch.randn(7, 3, 12, 12)).sum().backward()
    assert counter.flops == torchs.get_total_flops() > 0
    # 7 pictures, 5 channels of 9 places; by hand: 48 numbers a place, only the weight learns
    assert counter.flops == 2 * 7 * (5 * 9 * 48 * 2 + 5 * 6 * 9 * 3 + 5 * 2 * 6 * 3)


def test_without_gradients_the_forward_pass_alone_counts():
    """Catches a reference model that is charged for gradients."""
    model = GPT(GPTConfig(vocab_size=50, block_size=16, n_layer=2, n_head=2, n_embd=8))
    idx = torch.zeros(2, 5, dtype=torch.long)
    whole = counted(model, idx)
    with torch.no_grad():
        assert 3 * counted(model, idx) == whole
    model.requires_grad_(False)
    assert 3 * counted(model, idx) == whole


def test_a_frozen_tower_counts_a_third_and_adapters_two_thirds():
    """Catches frozen weights that are charged for their gradients."""
    config = VLMConfig(49, ViTConfig(8, 4, 2, 2, 8),
                       GPTConfig(vocab_size=50, block_size=16, n_layer=2, n_head=2, n_embd=8))
    model = VLM(config)
    counter = FlopCounter(model.vit)
    idx, images = torch.tensor([[49] * 4 + [1, 2]]), torch.randn(1, 3, 8, 8)
    model(idx, images)
    learned, counter.flops = counter.flops, 0
    model.vit.requires_grad_(False)
    model(idx, images)
    patches = 2 * 4 * 8 * 48  # the first map's input has no gradient: twice, not three times
    assert learned == 3 * (counter.flops - patches) + 2 * patches
    # a map that is frozen passes its gradient on to what is below it
    gpt = GPT(GPTConfig(vocab_size=50, block_size=16, n_layer=1, n_head=2, n_embd=8))
    add_lora(gpt, "blocks.0.attn.qkv", 2)
    counter = FlopCounter(gpt.blocks[0].mlp)
    gpt(idx)
    assert counter.flops == 2 * 2 * 6 * 2 * 8 * 32


def test_a_model_counts_the_places_that_it_computes():
    """Catches a head that counts all positions where it computes one."""
    gpt = GPT(GPTConfig(vocab_size=50, block_size=16, n_layer=1, n_head=2, n_embd=8))
    at = torch.zeros(2, 6, dtype=torch.bool)
    at[0, 3] = True
    counter = FlopCounter(gpt.head)
    gpt(torch.zeros(2, 6, dtype=torch.long), at=at)
    assert counter.flops == 3 * 2 * 8 * 50


def test_blocks_that_are_computed_again_count_once():
    """Catches arithmetic that only saves memory."""
    model = GPT(GPTConfig(vocab_size=50, block_size=16, n_layer=2, n_head=2, n_embd=8))
    counter = FlopCounter(model)
    found = []
    for model.checkpoint_blocks in (False, True):
        model(torch.zeros(2, 6, dtype=torch.long)).sum().backward()
        found.append(counter.flops)
        counter.flops = 0
    assert found[0] == found[1] > 0


def test_a_compiled_model_is_not_counted():
    """Catches a count that makes torch.compile start anew at every step."""
    model = GPT(GPTConfig(vocab_size=50, block_size=16, n_layer=1, n_head=2, n_embd=8))
    counter = FlopCounter(model)
    idx = torch.zeros(2, 6, dtype=torch.long)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(compiled(idx), model(idx))
        counter.flops = 7
        compiled(idx)
    assert counter.flops == 7
