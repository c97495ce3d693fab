"""Half precision: what must be computed in float32 is, whatever comes in, whatever surrounds it."""

import copy
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import chat
import evaluate
from minivlm.loading.models import place, vlm_from, without_prefix
from minivlm.lora import LAYERS, add_lora
from minivlm.losses import (
    clip_loss, dpo_loss, kl_estimate, match_loss, next_token_loss, ppo_policy_loss,
    ppo_value_loss, ranking_loss, reward_loss, sequence_logprobs, token_logprobs,
)
from minivlm.vlm import VLM
from test_lora import stir_adapters
from test_train_scripts import config_of, rows_of

B, T, V = 6, 7, 50
MASK = torch.arange(T) < torch.tensor([7, 1, 3, 5, 7, 2])[:, None]
TARGETS = (torch.arange(B * T).view(B, T) % V).masked_fill(~MASK, -100)


def some(*shape: int, scale: float = 1.0):
    """A function that draws a tensor, when the test has seeded."""
    return lambda: scale * torch.randn(*shape)


def unit() -> Tensor:
    return F.normalize(torch.randn(B, 32), dim=-1)


def nats() -> Tensor:
    return -3 * torch.randn(B, T).abs()


LOSSES = {
    "next token": (lambda x: next_token_loss(x, TARGETS), [some(B, T, V, scale=30)]),
    "smoothed": (lambda x: next_token_loss(x, TARGETS, 0.1), [some(B, T, V, scale=30)]),
    "log-probabilities": (lambda x: token_logprobs(x, TARGETS).sum(), [some(B, T, V, scale=30)]),
    "InfoNCE": (lambda a, b: clip_loss(a, b, 100.0), [unit, unit]),
    "match": (lambda x: match_loss(x, torch.tensor([0, 1] * 3)), [some(B, 2, scale=30)]),
    "reward": (lambda a, b: reward_loss(a, b, 0.3).mean(), [some(B, scale=10), some(B, scale=10)]),
    "ranking": (lambda x: ranking_loss(x, torch.tensor([[1, 2, 2]] * 2)), [some(2, 3, scale=10)]),
    "policy": (lambda a, b, c: ppo_policy_loss(a, b, c, MASK, 0.2)[0], [nats, nats, some(B, T)]),
    "value": (lambda a, b, c: ppo_value_loss(a, b, c, MASK, 0.2), [some(B, T, scale=10)] * 3),
    "sequence": (lambda x: sequence_logprobs(x, MASK).sum(), [nats]),
    **{kind: (lambda a, b, kind=kind: kl_estimate(a, b, kind).mean(), [nats, nats])
       for kind in ("k1", "k2", "k3")},
    **{f"dpo {kind}": (lambda a, b, c, d, kind=kind: dpo_loss(a, b, c, d, 0.5, kind).mean(),
                       [some(B, scale=30)] * 4)
       for kind in ("sigmoid", "robust", "hinge", "ipo", "kto")},
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_computed_in_float32_inside_and_outside_of_autocast(name, dtype):
    """Catches sums of exponentials in half precision, similarities times 100 rounded to a quarter,
    and differences of nearly equal numbers taken before they are widened.
    """
    loss, made = LOSSES[name]
    half = [make().to(dtype) for make in made]
    whole = [x.float().requires_grad_() for x in half]
    want = loss(*whole)
    grads = torch.autograd.grad(want, whole)
    assert torch.equal(loss(*half), want)
    with torch.autocast("cpu", dtype):
        assert torch.equal(loss(*half), want)
        again = loss(*whole)
    assert torch.equal(again, want) and want.dtype == torch.float32
    assert all(map(torch.equal, torch.autograd.grad(again, whole), grads))


def test_a_probability_of_one_has_no_loss_in_half_precision():
    """Catches an overflow: logits of 60,000 are the largest that float16 holds, and exp of them is
    infinite.
    """
    logits = torch.tensor([[[60000.0, -60000.0]]], dtype=torch.float16)
    assert next_token_loss(logits, torch.tensor([[0]])) == 0
    assert next_token_loss(logits, torch.tensor([[1]])) > 1e5


@pytest.mark.parametrize("stage", ["clip", "sft", "ppo", "grpo", "dpo"])
def test_a_run_in_bfloat16_goes_where_one_in_float32_goes(stage, runs, folder, tmp_path):
    """Catches a model that only computes in one type, and weights that are kept in the other."""
    script, cfg = config_of(stage, folder, runs, out=str(tmp_path), dtype="bfloat16", steps=2)
    script.main(cfg)
    a, b = (rows_of(out / "metrics.csv") for out in (runs / stage, tmp_path))
    # a score is that of six drawn answers, and half precision draws others
    key = "val_entropy" if stage in ("ppo", "grpo") else "val_loss"
    measured = [(row, exact) for row, exact in zip(b, a) if row[key]]  # others are means of steps
    assert [row["step"] for row, _ in measured] == ["0", "2"]
    for row, exact in measured:
        assert float(row[key]) == pytest.approx(float(exact[key]), rel=0.05, abs=0.02)
    kept = torch.load(tmp_path / "ckpt.pt", weights_only=True)["model"]
    assert not {v.dtype for v in kept.values()} & {torch.bfloat16, torch.float16}


def placed(vlm: VLM, half: bool, *, lora: bool) -> VLM:
    """A copy as a run holds it that freezes the ViT, or trains adapters only."""
    model = copy.deepcopy(vlm)
    model.vit.requires_grad_(False)
    if lora:
        torch.manual_seed(1)
        add_lora(model, LAYERS, 2, frozen=model.vit)
        stir_adapters(model)
    place(model, torch.device("cpu"), half)
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lora", [False, True])
def test_frozen_weights_that_were_read_in_half_precision_stay_so_and_no_number_changes(
    vlm, lora, dtype
):
    """Catches weights that learn in half precision, a residual stream rounded to bfloat16, a
    float32 copy of what is frozen, and float16 rounded to bfloat16.
    """
    vlm.to(dtype)
    whole, half = (placed(vlm, half, lora=lora) for half in (False, True))
    assert {p.dtype for p in whole.parameters()} == {torch.float32}
    kept = {name for name, p in half.named_parameters() if p.dtype == dtype}
    assert {p.dtype for p in half.parameters()} == {torch.float32, dtype}
    assert all(not half.get_parameter(name).requires_grad for name in kept)
    matrices = {n for n, p in vlm.vit.named_parameters() if "mlp" in n and p.ndim == 2}
    assert {f"vit.{n}" for n in matrices} <= kept and not any("norm" in n for n in kept)
    assert ("gpt.wte.weight" in kept) == ("gpt.blocks.0.mlp.0.weight" in kept) == lora
    idx = torch.tensor([[vlm.config.image_id] * 4 + [5, 6, 7]])
    images = torch.randn(1, 3, 16, 16)
    results = []
    for model in (whole, half):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(idx, images)                              # (1, T, V)
            loss = next_token_loss(logits, idx)
        loss.backward()
        learns = [p.grad for p in model.parameters() if p.requires_grad]
        results.append([logits, *learns])
    assert all(map(torch.equal, *results))
    with torch.autocast("cpu", torch.bfloat16):
        assert model.gpt.embed(idx).dtype == torch.float32


def test_a_model_takes_over_the_tensors_that_were_read(vlm, vlm_config):
    """Catches weights that are in memory twice, a head that is tied no more, and a model that
    shares its tensors with another.
    """
    def state() -> dict:
        weights = {name: w.clone().bfloat16() for name, w in vlm.state_dict().items()}
        return {"stage": "sft", "configs": {"model": asdict(vlm_config)}, "model": weights}

    read = state()
    where = {name: w.data_ptr() for name, w in read["model"].items()}
    model = vlm_from(read, take=True, half=True)
    assert {name: p.data_ptr() for name, p in model.named_parameters()}.items() <= where.items()
    assert read["model"] == {} and model.gpt.head.weight is model.gpt.wte.weight
    read = state()
    model, other = vlm_from(read), vlm_from(read)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not {p.data_ptr() for p in model.parameters()} & {
        p.data_ptr() for p in other.parameters()}
    in_float32 = {name: w.float() for name, w in read["model"].items()}
    two = [vlm_from(read | {"model": dict(in_float32)}) for _ in range(2)]
    assert two[0].vit.pos.data_ptr() != two[1].vit.pos.data_ptr()
    assert model.gpt.head.weight is model.gpt.wte.weight


def test_half_precision_goes_through_lora_to_the_next_stage_and_the_chat(runs, folder, tmp_path):
    """Catches a stage that widens what it only read, or that cannot go on from it."""
    half = torch.load(runs / "sft" / "best.pt", weights_only=True)
    half["model"] = {name: w.bfloat16() for name, w in half["model"].items()}
    (tmp_path / "half").mkdir()
    torch.save(half, tmp_path / "half" / "best.pt")
    kept = []
    for stage, before in (("sft", "half"), ("reward", "sft"), ("dpo", "sft")):
        script, cfg = config_of(
            stage, folder, runs, init=str(tmp_path / before), out=str(tmp_path / stage), lora=2,
            dtype="bfloat16", steps=2,
        )
        script.main(cfg)
        kept.append(torch.load(tmp_path / stage / "ckpt.pt", weights_only=True)["model"])
        name = "gpt.blocks.0.attn.qkv"
        vlm = without_prefix(kept[-1], "vlm.") or kept[-1]
        assert vlm[f"{name}.weight"].dtype == torch.bfloat16
        assert vlm[f"{name}.lora_A"].dtype == vlm["gpt.norm.weight"].dtype == torch.float32
    script, cfg = config_of(
        "ppo", folder, runs, init=str(tmp_path / "sft"), reward=str(tmp_path / "reward"),
        out=str(tmp_path / "ppo"), lora=2, dtype="bfloat16", steps=1)
    script.main(cfg)
    for dtype in ("bfloat16", "float32"):
        picture = str(folder / "samples" / "0.png")
        chat.main(chat.Config(
            str(tmp_path / "dpo"), picture, "What?", max_new_tokens=3, dtype=dtype))
        evaluate.main(evaluate.Config(
            str(tmp_path / "dpo"), str(folder), n_questions=2, n_describe=2, max_new_tokens=3,
            blind=False, dtype=dtype))


def test_adapters_are_merged_in_the_format_of_the_run(vlm, vlm_config):
    """Catches LoRA's small sums rounded away for who computes in float32, or widened for who keeps
    half precision.
    """
    vlm.bfloat16()
    add_lora(vlm, LAYERS, 2)
    stir_adapters(vlm)
    state = {"stage": "sft", "configs": {"model": asdict(vlm_config)}, "model": vlm.state_dict()}
    name = "gpt.blocks.0.attn.qkv"
    layer = vlm.get_submodule(name)
    want = layer.weight.float() + layer.lora_scale.float() * layer.lora_B @ layer.lora_A
    assert torch.equal(vlm_from(dict(state)).get_submodule(name).weight, want)
    half = vlm_from(dict(state), half=True).get_submodule(name).weight
    assert torch.equal(half, want.bfloat16())
