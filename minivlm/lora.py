"""LoRA: low-rank adapters beside frozen linear maps.

    y = x W^T + b + scale (x A^T) B^T          A: (r, in), B: (out, r), scale: alpha / r

B starts at 0, so fresh adapters change nothing. Only A and B learn. With its adapters off,
a policy is its own reference, so no second copy of the weights is needed.

In a checkpoint the weights keep their names, and `lora_A`, `lora_B`, `lora_scale` stand
beside them. When a model is rebuilt from a checkpoint, `merged` adds the adapters to the
weights.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
"""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# which linear maps get an adapter: those of the GPT's blocks and of the projector, not the
# head and not the ViT's, as in LLaVA
LAYERS = "gpt.blocks.*,projector.*"


class LoRALinear(nn.Linear):
    """A linear map and its adapter; the weights are those of the given map, frozen.

    Args:
        base: the given map.
        rank: r; an adapter of higher rank can learn more, and needs more memory.
        alpha: part of the scale alpha / r; a larger alpha gives the adapter more weight.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        # on "meta" no memory is filled and nothing is drawn: the weights come from base
        super().__init__(
            base.in_features, base.out_features, base.bias is not None, device="meta"
        )
        self.weight = base.weight
        self.bias = base.bias
        self.requires_grad_(False)
        # the weights may be in a narrower format; what learns is not
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        self.lora_A = nn.Parameter(self.weight.new_empty(rank, base.in_features, dtype=dtype))
        self.lora_B = nn.Parameter(self.weight.new_zeros(base.out_features, rank, dtype=dtype))
        # as in loralib, the paper's code
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        # a buffer, so that a checkpoint holds all that merging needs
        scale = torch.tensor(alpha / rank, device=self.weight.device)
        self.register_buffer("lora_scale", scale)
        self.on = True

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = super().forward(x)
        if not self.on:
            return y
        # two thin products: B A alone would be as large as W
        return y + self.lora_scale * F.linear(F.linear(x, self.lora_A), self.lora_B)


def adapters(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Yield every linear map of a model that has an adapter, with its name."""
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield name, module


def add_lora(
    model: nn.Module, layers: str, rank: int, alpha: float = 0.0,
    frozen: nn.Module | None = None,
) -> list[str]:
    """Freeze a model and put adapters beside some of its linear maps.

    A map that shares its weight with another module gets none, because merging would change
    both. A tied head is such a map: it shares its weight with the word embeddings.

    Args:
        layers: patterns of names, separated by commas: "gpt.*.attn.qkv,projector.*".
        rank: r, at least 1.
        alpha: see `LoRALinear`; 0 = twice the rank, as in LLaVA's scripts.
        frozen: a part of the model whose maps get no adapter.

    Returns:
        the names of the maps, in the model's order.

    Raises:
        ValueError: if a pattern fits no linear map, or the rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"a LoRA of rank {rank}, expected at least 1")
    excluded = set(frozen.modules()) if frozen is not None else set()
    # by default a shared weight would be listed only once
    n_owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    linear = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module not in excluded:
            if n_owners[id(module.weight)] == 1:
                linear[name] = module
    chosen = set()
    for pattern in layers.split(","):
        pattern = pattern.strip()
        fits = [name for name in linear if fnmatchcase(name, pattern)]
        if not fits:
            raise ValueError(
                f"no linear map is called {pattern!r}; there are {', '.join(linear)}"
            )
        chosen.update(fits)
    model.requires_grad_(False)  # only now: a refused pattern must not change the model
    names = [name for name in linear if name in chosen]
    for name in names:
        parent, _, last = name.rpartition(".")
        adapted = LoRALinear(linear[name], rank, alpha or 2 * rank)
        setattr(model.get_submodule(parent), last, adapted)
    return names


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Turn all adapters of a model off inside the with block; a model may have none."""
    # nested blocks: an inner one must not turn on what the outer one has turned off
    were_on = [module for _, module in adapters(model) if module.on]
    for module in were_on:
        module.on = False
    try:
        yield
    finally:
        for module in were_on:
            module.on = True


def merged(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights for a model without adapters: W becomes W + scale B A.

    Each W keeps its number format. Where that is bfloat16, the sum is rounded to it.
    """
    plain = {name: w for name, w in weights.items() if ".lora_" not in name}
    for key, A in weights.items():
        name = key.removesuffix(".lora_A")
        if name != key:
            B = weights[f"{name}.lora_B"]
            scale = weights[f"{name}.lora_scale"]
            W = plain[f"{name}.weight"]
            plain[f"{name}.weight"] = (W + scale * B @ A).to(W.dtype)
    return plain
