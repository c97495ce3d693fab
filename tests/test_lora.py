"""minivlm/lora.py: nothing at the start, the same when merged, the reference when off."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from minivlm.loading.models import reward_model_from, vlm_from, without_prefix
from minivlm.lora import LoRALinear, adapters, adapters_off, add_lora, merged
from minivlm.running.checkpoint import load
from minivlm.vlm import VLM
from test_train_scripts import config_of

IDX = torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])
PATTERNS = "gpt.*,projector.*"


def stir_adapters(model: nn.Module) -> None:
    """As training does: B off 0, A somewhere else."""
    with torch.no_grad():
        for _, m in adapters(model):
            m.lora_A += 0.3 * torch.randn_like(m.lora_A)
            m.lora_B += 0.3 * torch.randn_like(m.lora_B)


def test_an_adapter_is_the_formula():
    """Catches A and B swapped, a scale of alpha alone, a bias added twice."""
    base = nn.Linear(5, 3)
    m, x = LoRALinear(base, rank=2, alpha=6), torch.randn(4, 5)
    stir_adapters(m)
    want = base(x) + 3 * x @ m.lora_A.T @ m.lora_B.T
    torch.testing.assert_close(m(x), want)
    assert m.lora_A.shape == (2, 5) and m.lora_B.shape == (3, 2)
    assert LoRALinear(nn.Linear(5, 3, bias=False), 2, 4)(x).shape == (4, 3)


@pytest.mark.parametrize("layers", [PATTERNS, "*", "gpt.*.attn.qkv, vit.*mlp.0"])
def test_a_fresh_adapter_changes_nothing_and_an_adapter_off_is_the_base_to_the_bit(vlm, layers):
    """Catches a B that is not 0, an adapter that stays on, a base that was changed."""
    before = vlm(IDX).detach()
    weights = copy.deepcopy(vlm.state_dict())
    names = add_lora(vlm, layers, rank=2)
    assert names == [name for name, _ in adapters(vlm)] and len(names) >= 4
    assert torch.equal(vlm(IDX), before)
    stir_adapters(vlm)
    assert not torch.allclose(vlm(IDX), before, atol=1e-3)
    with adapters_off(vlm):
        assert torch.equal(vlm(IDX), before)
        with adapters_off(vlm):  # off within off: only the outer one turns them on again
            pass
        assert torch.equal(vlm(IDX), before)
    assert not torch.allclose(vlm(IDX), before, atol=1e-3)
    after = vlm.state_dict()
    assert all(torch.equal(after[k], w) for k, w in weights.items())


def test_only_adapters_learn_and_they_hold_few_numbers(vlm):
    """Catches a base weight or a norm that learns on; A must learn once B has moved."""
    n = sum(p.numel() for p in vlm.parameters())
    add_lora(vlm, PATTERNS, rank=2)
    learns = {name for name, p in vlm.named_parameters() if p.requires_grad}
    assert learns and all(name.endswith(("lora_A", "lora_B")) for name in learns)
    assert sum(p.numel() for p in vlm.parameters() if p.requires_grad) < n / 5
    stir_adapters(vlm)
    vlm(IDX).square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for name, p in vlm.named_parameters()
               if not name.startswith("projector"))                  # no picture was shown


def test_merged_equals_unmerged(vlm, vlm_config):
    """Catches a scale forgotten in merging, B A the wrong way round, keys left over."""
    names = add_lora(vlm, "*", rank=3, alpha=5)
    stir_adapters(vlm)
    weights = merged(vlm.state_dict())
    plain = VLM(vlm_config)
    plain.load_state_dict(weights)                                   # strict: exactly its keys
    assert not list(adapters(plain)) and len(names) > 10
    images, idx = torch.randn(1, 3, 16, 16), torch.full((1, 6), vlm_config.image_id)
    idx[:, 4:] = 5
    torch.testing.assert_close(plain(idx, images), vlm(idx, images), rtol=1e-4, atol=1e-5)
    assert merged(weights).keys() == weights.keys()                  # nothing left to merge


def test_the_head_that_shares_its_weight_with_the_embeddings_gets_none(vlm):
    """Catches an adapter that merging would write into the word embeddings too."""
    assert "gpt.head" not in add_lora(vlm, "*", rank=2)
    assert vlm.gpt.head.weight is vlm.gpt.wte.weight


def test_a_missing_layer_and_a_rank_of_0_are_refused(vlm):
    """Catches a pattern that fits nothing, after which nothing would learn; nothing is changed."""
    for layers, rank, words in (("gpt.*,gtp.*", 2, "no linear map is called 'gtp.*'"),
                                ("", 2, "no linear map is called ''"),
                                ("gpt.norm", 2, "no linear map is called 'gpt.norm'"),
                                ("gpt.head", 2, "no linear map is called 'gpt.head'"),
                                ("*", 0, "rank 0"), ("vit.*", 2, "no linear map is called")):
        with pytest.raises(ValueError, match=words):
            add_lora(vlm, layers, rank, frozen=vlm.vit)
    assert not list(adapters(vlm)) and all(p.requires_grad for p in vlm.parameters())


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "grpo", "dpo"])
def test_a_stage_trains_adapters_and_its_checkpoint_is_a_model_like_any_other(
    stage, folder, runs, tmp_path: Path
):
    """Catches a base that moves, a checkpoint that only its own script can read, no resuming."""
    out = tmp_path / stage
    script, cfg = config_of(stage, folder, runs, out=str(out), lora=2, steps=2)
    script.main(cfg)
    script, cfg = config_of(stage, folder, runs, out=str(out), lora=2, steps=4, resume=True)
    script.main(cfg)
    state = torch.load(out / "ckpt.pt", weights_only=True)
    init = load(cfg.init, ("align", "sft"))["model"]
    of_vlm = {k.removeprefix("vlm."): v for k, v in state["model"].items()}
    assert all(torch.equal(of_vlm[k], v) for k, v in init.items())   # the base has not moved
    moved = {k for k, v in of_vlm.items() if k.endswith("lora_B") and v.any()}
    assert len(moved) >= 4
    if stage == "ppo":  # the value model is the reward model with adapters
        value = without_prefix(state["model"], "value_model.vlm.")
        scored = load(cfg.reward, ("reward",))["model"]
        assert all(torch.equal(value[k.removeprefix("vlm.")], v) for k, v in scored.items()
                   if k.startswith("vlm."))
        assert sum(v.any() for k, v in value.items() if k.endswith("lora_B")) >= 4
        assert state["model"]["value_model.head.weight"].any()
    model = (reward_model_from if stage == "reward" else vlm_from)(load(out, (stage,)))
    assert not list(adapters(model))
    if stage == "reward":
        assert model.std != 1
