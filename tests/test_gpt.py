"""What a position may see, what `at` and the cache may not change, one batch learned by heart."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from minivlm.cache import Decoder, KVCache
from minivlm.conversation import pack
from minivlm.gpt import GPT, GPTConfig
from minivlm.losses import IGNORE_INDEX, next_token_loss
from minivlm.rotary import Llama3Scaling, frequencies, rotation


LLAMA = {"norm": "rms", "act": "swiglu", "bias": "none", "n_inner": 48, "learned_positions": False,
         "n_head": 4, "n_kv_head": 2, "rotary_base": 50.0}
STRETCHED = {"factor": 4.0, "low": 1.0, "high": 4.0, "original": 16}
KINDS = {
    "GPT-2": {"rotary_base": 0.0},
    "ours": {"rotary_base": 50.0, "act": "gelu"},
    "Llama": LLAMA | {"rotary_scaling": STRETCHED},
    "Qwen2": LLAMA | {"bias": "qkv", "tied": False},
    "Qwen3": LLAMA | {"qk_norm": True, "head_dim": 20, "n_kv_head": 1},
}


@pytest.fixture(params=KINDS)
def gpt_config(gpt_config: GPTConfig, request) -> GPTConfig:
    """Run every test of this file with every kind of language model."""
    return replace(gpt_config, **KINDS[request.param])


def ids(B: int, T: int) -> Tensor:
    """Random bytes."""
    return torch.randint(256, (B, T))


def moved(gpt: GPT, idx: Tensor, at: int, **options) -> Tensor:
    """Which positions' logits change when the token at one place does: (T,) bool."""
    other = idx.clone()
    other[:, at] = (other[:, at] + 1) % 256
    return ((gpt(idx, **options) - gpt(other, **options)).abs() > 1e-6).any(-1).any(0)


# --- what a position sees ---


def test_a_later_token_cannot_change_an_earlier_logit(gpt):
    """Catches: a missing causal mask, or one that is off by one in either direction."""
    for place in range(6):
        assert moved(gpt, ids(2, 6), place).tolist() == [t >= place for t in range(6)]


def test_a_prefix_sees_itself_both_ways_and_nothing_behind_it(gpt):
    """Catches: a prefix that sees the text (the answer leaks), or sees only backward."""
    for place in range(6):
        changed = moved(gpt, ids(2, 6), place, prefix=torch.tensor([3, 3])).tolist()
        assert changed == ([True] * 6 if place < 3 else [t >= place for t in range(6)])


def test_prefixes_of_different_rows_do_not_mix(gpt):
    """Catches: the first row's prefix used for all."""
    idx, lengths = ids(3, 6), torch.tensor([0, 2, 5])
    together = gpt(idx, prefix=lengths)
    for b in range(3):
        alone = gpt(idx[b:b + 1], prefix=lengths[b:b + 1])[0]
        torch.testing.assert_close(together[b], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together[0], gpt(idx)[0], rtol=1e-4, atol=1e-4)  # no prefix: causal


def test_packed_answers_are_read_as_if_each_stood_alone(gpt):
    """Catches: positions that count on over another answer, an answer that sees its neighbor, a
    context that is filled by all answers together."""
    prompt, answers = ids(1, 4)[0].tolist(), [ids(1, n)[0].tolist() for n in (9, 11, 10)]
    packed = [pack(prompt, answers), pack(prompt[:3], answers[:1])]
    rows = [row.ids for row, _ in packed]
    segments = [of for _, of in packed]
    T = max(map(len, rows)) + gpt.config.block_size  # pads do not fill the context either
    assert max(map(len, rows)) > gpt.config.block_size >= 4 + 11
    idx = torch.tensor([row + [0] * (T - len(row)) for row in rows])
    segments = torch.tensor([row + [-1] * (T - len(row)) for row in segments])
    together = gpt(idx, segments=segments)
    for b, k, text in ((0, 1, prompt + answers[0]), (0, 2, prompt + answers[1]),
                       (0, 3, prompt + answers[2]), (1, 1, prompt[:3] + answers[0])):
        here = (segments[b] == 0) | (segments[b] == k)
        alone = gpt(torch.tensor([text]))[0]
        torch.testing.assert_close(together[b, here], alone, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="text has"):
        (row, _), of = pack(prompt, [[1] * gpt.config.block_size, [2]])
        gpt(torch.tensor([row]), segments=torch.tensor([of]))
    with pytest.raises(ValueError, match="segments cannot be combined with prefix"):
        gpt(idx, segments=segments, prefix=torch.tensor([1, 1]))


def test_pads_on_the_right_are_inert(gpt):
    """Catches: pads that reach real tokens (contract 2)."""
    idx = ids(2, 9)
    torch.testing.assert_close(gpt(idx)[:, :5], gpt(idx[:, :5]), rtol=1e-4, atol=1e-4)


def test_permuting_the_batch_permutes_the_logits(gpt):
    """Catches: rows that look at each other."""
    idx, order = ids(4, 6), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(gpt(idx[order]), gpt(idx)[order], rtol=1e-4, atol=1e-4)


def test_the_order_of_earlier_words_counts(gpt):
    """Catches: positions that are dropped, or taken at one index for all.

    Where positions only rotate, equal words in a row would not show it: all values are equal.
    """
    one, other = gpt(torch.tensor([[65, 66, 67], [66, 65, 67]]))
    assert (one[-1] - other[-1]).abs().max() > 0.1


@pytest.mark.parametrize("base", [None, "x", True, -1.0, 1.0, math.inf, math.nan, []])
def test_a_base_that_no_rotation_has_is_refused(gpt_config, base):
    """Catches: angles that are NaN, or all equal, found after hours."""
    with pytest.raises(ValueError, match="rotary_base is .*, expected 0 or a number above 1"):
        replace(gpt_config, rotary_base=base)
    with pytest.raises(ValueError, match="heads of width 15: rotation needs an even width"):
        replace(gpt_config, head_dim=15, rotary_base=10.0)


@pytest.mark.parametrize("wrong, message", [
    ({"n_kv_head": 3}, "n_head 4 is not a multiple of n_kv_head 3"),
    ({"n_embd": 30, "head_dim": 0}, "n_embd 30 is not a multiple of n_head 4"),
    ({"norm": "batch"}, "norm 'batch' is not one of layer, rms"),
    ({"bias": "some"}, "bias 'some' is not one of all, qkv, none"),
    ({"norm_eps": 0}, "norm_eps is 0, expected a number between 0 and 1"),
    ({"rotary_base": 0.0}, "neither learned nor rotary positions"),
    ({"rotary_scaling": STRETCHED | {"factor": -1}}, "factor is -1, expected a number above 0"),
    ({"rotary_scaling": STRETCHED | {"low": 4}}, "low 4 is not below high 4.0"),
    ({"tied": 1}, "tied is 1, expected True or False"),
    ({"qk_norm": None}, "qk_norm is None, expected True or False"),
])
def test_parts_that_no_model_has_are_refused_by_name(wrong, message):
    """Catches: a head of half a width, a model without order, found as nan after hours."""
    with pytest.raises(ValueError, match=message):
        GPTConfig(300, 32, 2, **{"n_embd": 32} | LLAMA | wrong)


# --- head ---


def test_the_logits_are_the_normed_stream_times_the_embedding(gpt):
    """Catches: an untied head, a missing last norm, positions from somewhere else."""
    idx, c = ids(2, 6), gpt.config
    x, rotary = gpt.wte.weight[idx], None
    if c.learned_positions:
        x = x + gpt.wpe.weight[:6]
    if c.rotary_base:
        scaling = Llama3Scaling(**STRETCHED) if c.rotary_scaling else None
        D = 20 if c.qk_norm else 32 // c.n_head
        rotary = rotation(torch.arange(6).expand(2, 6), frequencies(D, 50.0, scaling))
    for block in gpt.blocks:
        x = block(x, causal=True, rotary=rotary)
    torch.testing.assert_close(gpt(idx), gpt.norm(x) @ gpt.head.weight.T)
    assert (gpt.head.weight is gpt.wte.weight) == c.tied


def test_embeddings_in_place_of_ids_give_the_same_logits(gpt):
    """Catches: positions added twice or not at all on the way a VLM takes."""
    idx = ids(2, 6)
    assert torch.equal(gpt(emb=gpt.wte(idx)), gpt(idx))


def test_a_fresh_model_costs_ln_V(gpt_config):
    """Catches: initial weights so large that training starts from confident nonsense."""
    gpt = GPT(gpt_config)
    std = 0.1 if gpt_config.learned_positions and gpt_config.rotary_base else 0.02
    loss = next_token_loss(gpt(ids(8, 32)), ids(8, 32))
    assert loss.item() == pytest.approx(math.log(gpt_config.vocab_size), abs=0.05)
    assert gpt.wte.weight.std().item() == pytest.approx(std, rel=0.1)


def test_at_changes_neither_loss_nor_gradients(gpt):
    """Catches: positions chosen in another order than the targets, a loss with another divisor."""
    idx, targets = ids(3, 6), ids(3, 6)
    targets[0, :4], targets[1, ::2], targets[2, 3:] = IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX
    keep = targets != IGNORE_INDEX
    full = next_token_loss(gpt(idx), targets)
    some = next_token_loss(gpt(idx, at=keep), targets[keep])
    torch.testing.assert_close(some, full)
    for one, other in zip(torch.autograd.grad(full, list(gpt.parameters())),
                          torch.autograd.grad(some, list(gpt.parameters()))):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_no_gradient_reaches_what_comes_after_the_last_answer(gpt):
    """Catches: ignored positions that still push, or targets that look ahead."""
    emb = gpt.wte(ids(1, 6)).detach().requires_grad_()
    targets = torch.tensor([[IGNORE_INDEX, 5, 6, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX]])
    next_token_loss(gpt(emb=emb), targets).backward()
    assert (emb.grad[0].abs().sum(-1) > 0).tolist() == [True, True, True, False, False, False]


def test_recomputed_blocks_change_neither_loss_nor_gradients(gpt):
    """Catches: a mask or a rotation that is lost on the second pass, a block that is left out."""
    idx, prefix = ids(3, 6), torch.tensor([2, 0, 4])
    targets = ids(3, 6)
    grads = []
    for gpt.checkpoint_blocks in (False, True):
        loss = next_token_loss(gpt(idx, prefix=prefix), targets)
        grads.append([loss, *torch.autograd.grad(loss, list(gpt.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*grads))


# --- cache ---


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(5, 5), (5, 2), (1, 4)])
def test_new_tokens_with_a_cache_equal_one_pass(gpt, lengths: tuple[int, int]):
    """Catches: a pad's key that stays visible, one position for rows of different length, layers
    that share keys, a part of the block that is computed otherwise. Rows trade places on the way.
    """
    idx, n = ids(2, 8), torch.tensor(lengths)
    gpt.eval()
    cache = KVCache(gpt.config.n_layer, 2, 8)
    T = max(lengths)
    whole = gpt(idx[:, :T], cache=cache)
    assert torch.equal(whole, gpt(idx[:, :T]))
    decoder = Decoder(gpt, cache, n)
    for step in range(3):
        got = decoder(idx[range(2), n], n)
        n += 1
        for b in range(2):
            want = gpt(idx[b:b + 1, :n[b]])[0, -1]
            torch.testing.assert_close(got[b], want, rtol=1e-4, atol=1e-4)
        turned = torch.tensor([1, 0])
        decoder.select(turned)
        idx, n = idx[turned], n[turned]


def test_a_text_longer_than_the_context_is_refused(gpt):
    """Catches: an index error deep in the position embedding."""
    with pytest.raises(ValueError, match="text has 33 tokens, the context holds block_size 32"):
        gpt(ids(1, 33))


def test_a_position_beyond_the_context_is_refused(gpt):
    """Catches an index error, which on a GPU ends the process, for positions that are given."""
    gpt(ids(1, 2), positions=torch.tensor([[0, 31]]))
    with pytest.raises(ValueError, match="text has 33 tokens, the context holds block_size 32"):
        gpt(ids(1, 2), positions=torch.tensor([[0, 32]]))


# --- learning ---


def test_a_tiny_gpt_learns_one_batch_by_heart(gpt_config):
    """Catches: a gradient cut somewhere, targets the model cannot see, positions without effect."""
    gpt, text = GPT(gpt_config), ids(4, 17)
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(200):
        loss = next_token_loss(gpt(text[:, :-1]), text[:, 1:])
        if loss < 0.05:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    predicted = gpt(text[:, :-1]).argmax(-1)
    assert (predicted == text[:, 1:]).float().mean() > 0.95
