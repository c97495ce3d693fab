"""The block against torch's own, the masks against their definition, the first weights."""

import cmath
import math

import pytest
import torch
from conftest import stir
from torch import nn

from minivlm.attention_masks import prefix_mask, segment_mask
from minivlm.rotary import Llama3Scaling, frequencies, rotate, rotation
from minivlm.transformer import (
    ACTS, Attention, Block, BlockConfig, RMSNorm, SwiGLU, init_lookup_heads, init_weights,
    lengthened,
)

CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()


def positions(B: int, T: int) -> torch.Tensor:
    """Rows 0 .. T-1, as a model makes them."""
    return torch.arange(T).expand(B, T)


# --- attention ---


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n_head", [1, 4])
def test_attention_equals_the_five_lines_of_its_docstring(n_head: int, causal: bool):
    """Catches: heads on another axis, q, k, v exchanged, a missing sqrt(D), a leaking mask."""
    attn = stir(Attention(BlockConfig(32, n_head))).double()
    x = torch.randn(3, 5, 32, dtype=torch.float64)
    D, out = 32 // n_head, []
    for h in range(n_head):
        rows = slice(h * D, (h + 1) * D)
        parts = zip(attn.qkv.weight.split(32), attn.qkv.bias.split(32))
        q, k, v = (x @ w[rows].T + b[rows] for w, b in parts)                            # (B, T, D)
        scores = q @ k.transpose(-2, -1) / math.sqrt(D)
        if causal:
            scores = scores.masked_fill(~CAUSAL, -torch.inf)
        out.append(scores.softmax(dim=-1) @ v)
    torch.testing.assert_close(attn(x, causal=causal), attn.proj(torch.cat(out, dim=-1)))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_torchs_multihead_attention_with_its_weights(causal: bool):
    """Catches: a layout of the weights that published checkpoints do not fit."""
    ours = stir(Attention(BlockConfig(32, 4)))
    theirs = nn.MultiheadAttention(32, 4, batch_first=True)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.qkv.weight.data, ours.qkv.bias.data
    theirs.out_proj.load_state_dict(ours.proj.state_dict())
    x = torch.randn(3, 5, 32)
    want = theirs(x, x, x, attn_mask=~CAUSAL if causal else None, need_weights=False)[0]
    torch.testing.assert_close(ours(x, causal=causal), want, rtol=1e-4, atol=1e-5)


def test_a_boolean_mask_is_true_where_a_key_counts():
    """Catches: the inverted mask (contract 3), the most common of all attention bugs."""
    attn, x = stir(Attention(BlockConfig(32, 2))), torch.randn(2, 5, 32)
    torch.testing.assert_close(attn(x, mask=CAUSAL), attn(x, causal=True), rtol=1e-4, atol=1e-5)


def turned(x: torch.Tensor, rotary: tuple) -> torch.Tensor:
    """`rotate` for (B, H, T, D)."""
    return rotate(x.transpose(1, 2), *rotary).transpose(1, 2)


def test_the_gradient_of_a_rotation_is_that_of_its_definition():
    """Catches: a gradient that turns the same way, or is of one half only."""
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    rotary = rotation(positions(2, 3) + 5, frequencies(6, 10.0))
    assert torch.autograd.gradcheck(lambda x: rotate(x, *rotary), x)


def test_a_rotation_multiplies_by_a_complex_number_of_length_one():
    """Catches: the wrong half of a pair, a sign, an exponent, one angle for all positions."""
    places, D, base = torch.tensor([[0, 3, 7]]), 6, 10.0
    x = torch.randn(1, 2, 3, D)
    got = turned(x, rotation(places, frequencies(D, base)))
    for t, p in enumerate(places[0].tolist()):
        for i in range(D // 2):
            z = torch.complex(x[..., t, i], x[..., t, i + D // 2])
            want = z * cmath.exp(1j * p * base ** (-2 * i / D))
            torch.testing.assert_close(got[..., t, i], want.real)
            torch.testing.assert_close(got[..., t, i + D // 2], want.imag)
    torch.testing.assert_close(got[..., 0, :], x[..., 0, :])  # nothing turns at position 0


@torch.no_grad()
def test_heads_start_at_equal_words_and_at_the_last_two_positions():
    """Catches keys that are not the queries, a head that looks ahead, and one back too far.

    Of 40 positions of noise, positions 3 and 30 are equal, and so are 4 and 31.
    """
    blocks = torch.nn.ModuleList([Block(BlockConfig(128, 4)) for _ in range(3)])
    for block in blocks:
        init_weights(block)
    init_lookup_heads(blocks, 1e5)
    x = torch.randn(1, 40, 128)
    x[0, 30:32] = x[0, 3:5]
    rotary = rotation(positions(1, 40), frequencies(32, 1e5))
    for i, block in enumerate(blocks):
        q, k, _ = block.attn.qkv(x).view(1, 40, 3, 4, 32).transpose(1, 3).unbind(2)
        scores = turned(q, rotary) @ turned(k, rotary).mT / math.sqrt(32)
        seen = torch.ones(40, 40).tril().bool()
        weights = scores.masked_fill(~seen, -math.inf).softmax(-1)[0]  # (4, 40, 40)
        at = [float(weights[head].diagonal(-back).mean()) for head in (0, 1) for back in (1, 2)]
        assert (at[0] > 0.5 and at[3] > 0.5 and max(at[1:3]) < 0.3) == (i < 2), at
        plain = (q @ k.mT)[0, 2:]                                    # without the rotation
        torch.testing.assert_close(plain, plain.mT)
        assert (plain[:, 30, 3] > plain[:, 30, 4:30].amax(-1)).all()
        copied = block.attn.proj.weight @ block.attn.qkv.weight[256:]
        torch.testing.assert_close(copied, torch.eye(128) / 4, rtol=0, atol=1e-5)


def test_one_head_looks_nowhere_by_itself():
    """Catches: the only head of a small model tied to the word before."""
    blocks = torch.nn.ModuleList([Block(BlockConfig(32, 1))])
    init_weights(blocks[0])
    init_lookup_heads(blocks, 1e5)
    assert blocks[0].attn.qkv.bias.abs().max() == 0


def test_with_rotation_only_distances_count():
    """Catches: queries rotated and keys not, or the other way, or values rotated too."""
    attn, x = stir(Attention(BlockConfig(32, 2))), torch.randn(2, 5, 32)
    f = frequencies(16, 100.0)
    near = attn(x, causal=True, rotary=rotation(positions(2, 5), f))
    far = attn(x, causal=True, rotary=rotation(positions(2, 5) + 40, f))
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-5)
    assert (near - attn(x, causal=True)).abs().max() > 0.01
    alone = torch.zeros(1, 1, dtype=torch.long)  # one token sees its own value, wherever it is
    torch.testing.assert_close(attn(x[:1, :1], rotary=rotation(alone + 9, f)), attn(x[:1, :1]))


def test_attention_refuses_a_width_that_the_heads_do_not_divide():
    """Catches: heads of unequal width."""
    with pytest.raises(ValueError, match="n_embd 30 is not a multiple of n_head 4"):
        Attention(BlockConfig(30, 4))


def test_groups_of_queries_share_their_keys_and_values():
    """Catches: heads dealt out in turn where neighbors share, keys of one group, values of another.

    Four heads of queries over two of keys and values are four heads over four of which two are
    alike.
    """
    few = stir(Attention(BlockConfig(32, 4, n_kv_head=2, head_dim=6)))
    many = Attention(BlockConfig(32, 4, head_dim=6))
    many.proj.load_state_dict(few.proj.state_dict())
    for ours, theirs in ((many.qkv.weight, few.qkv.weight), (many.qkv.bias, few.qkv.bias)):
        q, k, v = theirs.data.split((24, 12, 12))
        k, v = (x.view(2, 1, 6, -1).expand(2, 2, 6, -1).reshape(24, -1) for x in (k, v))
        ours.data = torch.cat([q.view(24, -1), k, v]).view_as(ours)
    x, mask = torch.randn(3, 5, 32), CAUSAL
    torch.testing.assert_close(few(x), many(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(few(x, causal=True), many(x, mask=mask), rtol=1e-4, atol=1e-5)


def test_norms_of_queries_and_keys_stand_before_the_rotation():
    """Catches: one norm over all heads, values normed too, a norm behind the rotation.

    Queries and keys of any size then score the same, and a weight of the norm acts on the number
    it belongs to, whichever way that is rotated.
    """
    attn, x = stir(Attention(BlockConfig(32, 2, qk_norm=True))), torch.randn(2, 5, 32)
    rotary = rotation(positions(2, 5), frequencies(16, 100.0))
    q, k, v = attn.qkv(x).view(2, 5, 3, 2, 16).transpose(1, 3).unbind(2)
    q, k = (
        turned(y / y.square().mean(-1, keepdim=True).add(1e-5).sqrt() * norm.weight, rotary)
        for y, norm in ((q, attn.norm_q), (k, attn.norm_k))
    )
    out = (q @ k.mT / 4).softmax(-1) @ v
    torch.testing.assert_close(attn(x, rotary=rotary), attn.proj(out.transpose(1, 2).flatten(2)))


def test_rms_norm_and_swiglu_by_hand():
    """Catches: a mean that is subtracted, eps outside the root, gate and up exchanged.

    The mean of the squares of (1, 7) is 25, so the norm gives (0.2, 1.4). silu(1) = 0.73106.
    """
    norm = RMSNorm(2, eps=1e-9)
    torch.testing.assert_close(norm(torch.tensor([1.0, 7.0])), torch.tensor([0.2, 1.4]))
    far = RMSNorm(2, eps=75.0)(torch.tensor([1.0, 7.0]))  # sqrt(25 + 75) = 10
    torch.testing.assert_close(far, torch.tensor([0.1, 0.7]))
    half = norm(torch.tensor([300.0, 300.0], dtype=torch.float16))  # 300^2 overflows float16
    torch.testing.assert_close(half.float(), torch.ones(2))
    mlp = SwiGLU(1, 1, bias=False)
    for p, value in ((mlp.gate_up.weight, [[1.0], [2.0]]), (mlp.down.weight, [[3.0]])):
        p.data = torch.tensor(value)
    assert mlp(torch.ones(1)).item() == pytest.approx(0.73106 * 2 * 3, abs=1e-4)


def test_stretched_positions_keep_what_turns_often_and_slow_what_turns_seldom():
    """Catches: frequencies for wavelengths, low and high exchanged, a jump where the ramp begins.

    Within 2 pi * 16 positions frequency f turns 16 f times: 1 stays (16 > 4), 0.01 is divided by 8
    (0.16 < 1), and 0.15625 turns 2.5 times, half way up the ramp: (1/2 + 1/2 / 8) of it stays.
    """
    scaling = Llama3Scaling(factor=8.0, low=1.0, high=4.0, original=2 * math.pi * 16)
    base = 0.15625 ** -4  # pairs 0, 1, 2, 3 of a head of 8: 1, 0.15625, ...
    got = frequencies(8, base, scaling)
    want = torch.tensor([1.0, 0.15625 * (0.5 + 0.5 / 8), 0.15625 ** 2 / 8, 0.15625 ** 3 / 8])
    torch.testing.assert_close(got, want)


# --- block ---


@pytest.mark.parametrize("causal", [False, True])
def test_block_equals_torchs_pre_norm_encoder_layer(causal: bool):
    """Catches: post-norm, a lost residual, swapped norms, an MLP of another width or activation."""
    ours = stir(Block(BlockConfig(32, 4, act="gelu")))
    theirs = nn.TransformerEncoderLayer(
        32, 4, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    theirs.self_attn.in_proj_weight.data = ours.attn.qkv.weight.data
    theirs.self_attn.in_proj_bias.data = ours.attn.qkv.bias.data
    pairs = (
        (theirs.self_attn.out_proj, ours.attn.proj),
        (theirs.norm1, ours.norm1), (theirs.norm2, ours.norm2),
        (theirs.linear1, ours.mlp[0]), (theirs.linear2, ours.mlp[2]),
    )
    for theirs_part, ours_part in pairs:
        theirs_part.load_state_dict(ours_part.state_dict())
    x = torch.randn(3, 5, 32)
    want = theirs(x, src_mask=~CAUSAL if causal else None)
    torch.testing.assert_close(ours(x, causal=causal), want, rtol=1e-4, atol=1e-4)


def test_activations_by_hand():
    """Catches: one GELU in place of another, which CLIP's or GPT-2's weights would not survive.

    At x = 1: gelu is Phi(1) = 0.84134; quick_gelu is 1 / (1 + e^-1.702) = 0.84580; gelu_tanh is
    (1 + tanh(sqrt(2 / pi) * 1.044715)) / 2 = 0.84119.
    """
    for name, want in (("gelu", 0.84134), ("gelu_tanh", 0.84119), ("quick_gelu", 0.84580)):
        assert ACTS[name]()(torch.tensor(1.0)).item() == pytest.approx(want, abs=1e-5)


def test_an_unknown_activation_is_refused_by_name():
    """Catches: a silent fall-back to another activation."""
    with pytest.raises(ValueError, match="act 'relu' is not one of gelu, gelu_tanh, quick_gelu"):
        BlockConfig(32, 4, act="relu")


def test_dropout_acts_in_training_only():
    """Catches: dropout that stays on in evaluation, or reaches only one of the two branches."""
    block, x = stir(Block(BlockConfig(32, 2, dropout=0.5))), torch.randn(1, 5, 32)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


# --- masks ---


def test_prefix_mask_is_exact():
    """Catches: a prefix one too long or short, a prefix that sees what follows, rows mixed up.

    Row 0 has a prefix of 3, row 1 none, row 2 one of 5, the whole row.
    """
    mask = prefix_mask(5, torch.tensor([3, 0, 5]))
    assert mask.shape == (3, 1, 5, 5) and mask.dtype == torch.bool
    by_hand = torch.tensor([
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ])
    assert torch.equal(mask[0, 0], by_hand.bool())
    assert torch.equal(mask[1, 0], CAUSAL)
    assert mask[2].all()


def test_segment_mask_is_exact():
    """Catches: an answer that reads another one, or ahead; a pad that anything reads.

    Row 0: a prompt of two, an answer of two, one of one; row 1: a prompt, an answer, two pads.
    """
    mask = segment_mask(torch.tensor([[0, 0, 1, 1, 2], [0, 1, 1, -1, -1]]))
    assert mask.shape == (2, 1, 5, 5) and mask.dtype == torch.bool
    by_hand = torch.tensor([
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ])
    assert torch.equal(mask[0, 0], by_hand.bool())
    assert torch.equal(mask[1, 0, :3, :3], CAUSAL[:3, :3]) and not mask[1, 0, :3, 3:].any()


def test_every_query_sees_at_least_itself():
    """Catches: a row of the softmax with no key, which gives nan."""
    for length in range(6):
        mask = prefix_mask(5, torch.tensor([length]))[0, 0]
        assert mask.diagonal().all()
    assert segment_mask(torch.tensor([[0, 1, 2, -1, -1]]))[0, 0].diagonal().all()


# --- initial weights ---


def test_initial_weights_are_gpt_2s():
    """Catches: a residual scale of 1 / sqrt(L), the scale on the wrong matrix, nonzero biases."""
    tower = nn.Module()
    tower.blocks = nn.Sequential(*[Block(BlockConfig(128, 4)) for _ in range(8)])
    tower.wte = nn.Embedding(300, 128)
    init_weights(tower)
    assert tower.wte.weight.std().item() == pytest.approx(0.02, rel=0.03)
    for block in tower.blocks:
        for inner in (block.attn.qkv, block.mlp[0]):
            assert inner.weight.std().item() == pytest.approx(0.02, rel=0.03)
        for into_stream in (block.attn.proj, block.mlp[2]):
            # sqrt(2 * 8) = 4
            assert into_stream.weight.std().item() == pytest.approx(0.02 / 4, rel=0.03)
        for part in (block.attn.qkv, block.attn.proj, block.mlp[0], block.mlp[2]):
            assert not part.bias.any()


def test_few_different_numbers_of_places_occur():
    """Catches a new shape for every number of answer tokens, and too many repeated places."""
    lengths = {}
    for n in range(2000):
        places = torch.arange(7, 7 + n)
        longer = lengthened(places)
        assert torch.equal(longer[:n], places) and (longer[n:] == 7).all()
        assert n <= len(longer) <= n * 17 / 16
        lengths[n] = len(longer)
    assert lengths[31] == 31 and len({lengths[n] for n in range(513, 1025)}) == 16
