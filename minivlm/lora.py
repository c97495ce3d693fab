"""LoRA: low-rank adapters beside frozen linear maps.

    y = x W^T + b + scale (x A^T) B^T          A: (r, in), B: (out, r), scale: alpha / r

B starts at 0, so a model with fresh adapters is the model without. Only A and B learn, and with the
adapters off the very same weights are the reference, so that no second copy of it is needed.

Weights keep their names, and `lora_A`, `lora_B`, `lora_scale` stand beside them in a checkpoint;
`merged` folds them in, which is how a model is rebuilt.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1. Used by: train_sft.py, train_reward.py,
train_ppo.py, train_dpo.py.
"""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn


LAYERS = "gpt.*,projector.*"  # linear maps that get an adapter: all but the ViT's, as in LLaVA


class LoRALinear(nn.Linear):
    """A linear map with an adapter beside it, which takes the map's own weights, frozen.

    Args:
        base: the map.
        rank: r.
        alpha: what B A is multiplied by, in units of the rank.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        has_bias = base.bias is not None
        super().__init__(base.in_features, base.out_features, has_bias, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.requires_grad_(False)
        self.lora_A = nn.Parameter(self.weight.new_empty(rank, base.in_features))
        self.lora_B = nn.Parameter(self.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))        # as the paper's code, loralib
        self.register_buffer("lora_scale", torch.tensor(alpha / rank, device=self.weight.device))
        self.on = True

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = super().forward(x)
        if not self.on:
            return y
        return y + self.lora_scale * F.linear(F.linear(x, self.lora_A), self.lora_B)


def adapters(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Every map of a model that has an adapter, with its name."""
    return ((name, m) for name, m in model.named_modules() if isinstance(m, LoRALinear))


def add_lora(
    model: nn.Module, layers: str, rank: int, alpha: float = 0.0, frozen: nn.Module | None = None
) -> list[str]:
    """Freeze a model and put adapters beside linear maps of it.

    A map whose weight another module has too, as the GPT's head shares its word embeddings, gets
    none, since merging would change both.

    Args:
        layers: patterns of names, with commas between them: "gpt.*.attn.qkv,projector.*".
        rank: r, at least 1.
        alpha: 0 = twice the rank, as LLaVA's scripts have it.
        frozen: a part of the model whose maps get none.

    Returns:
        the names of the maps, in the model's order.

    Raises:
        ValueError: if a pattern fits no linear map, or the rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"a LoRA of rank {rank}, expected at least 1")
    spared = set(frozen.modules()) if frozen is not None else set()
    owners = Counter(id(p) for m in model.modules() for p in m._parameters.values())
    linear = {name: m for name, m in model.named_modules()
              if isinstance(m, nn.Linear) and owners[id(m.weight)] == 1 and m not in spared}
    chosen = set()
    for pattern in (p.strip() for p in layers.split(",")):
        fits = {name for name in linear if fnmatchcase(name, pattern)}
        if not fits:
            raise ValueError(f"no linear map is called {pattern!r}; there are {', '.join(linear)}")
        chosen |= fits
    model.requires_grad_(False)
    for name in (names := [name for name in linear if name in chosen]):
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, LoRALinear(linear[name], rank, alpha or 2 * rank))
    return names


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within it a model is what it was before it got adapters; without any, nothing changes."""
    were_on = [m for _, m in adapters(model) if m.on]
    for m in were_on:
        m.on = False
    try:
        yield
    finally:
        for m in were_on:
            m.on = True


def merged(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model with adapters as those of one without, W + scale B A; others unchanged."""
    out = {k: v for k, v in weights.items() if ".lora_" not in k}
    for key in weights:
        name, found, _ = key.rpartition(".lora_A")
        if found:
            A, B, scale = (weights[f"{name}.lora_{x}"] for x in ("A", "B", "scale"))
            out[f"{name}.weight"] = out[f"{name}.weight"] + scale * B @ A
    return out
