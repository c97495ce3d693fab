"""Rotary positions: queries and keys are rotated by an angle that grows with the position.

The product of a rotated query and a rotated key then depends on their distance, not on
where both are.

Source: RoFormer, Su et al. 2021, arXiv:2104.09864.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Llama3Scaling:
    """How Llama 3.1 stretches a context of `original` positions to `factor` times as many.

    A frequency that turns more than `high` times within the original context stays; one
    that turns less than `low` times is divided by `factor`; between them there is a ramp.

    Raises:
        ValueError: if a field is no number above 0, or low is not below high.

    Source: Llama 3, Grattafiori et al. 2024, arXiv:2407.21783, and Llama-3.2-1B's config.
    """

    factor: float  # 32 in Llama 3.2
    low: float  # 1
    high: float  # 4
    original: int  # 8192, positions

    def __post_init__(self):
        for name, value in vars(self).items():
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise ValueError(f"{name} is {value!r}, expected a number above 0")
        if self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")


@lru_cache(maxsize=64)  # of a model they are always the same
def frequencies(
    head_dim: int, base: float, scaling: Llama3Scaling | None = None,
    device: torch.device = torch.device("cpu"),
) -> Tensor:
    """The angle of one position, of each pair of a head's numbers.

        f[i] = base^(-2 i / D),    i = 0 .. D/2 - 1

    Args:
        head_dim: D, an even number.
        base: above 1; a larger one lets farther distances differ.
        scaling: None for the frequencies as they are.

    Returns:
        (D/2,) float32, radians.

    Source: eq. 15.
    """
    f = base ** (-torch.arange(0, head_dim, 2, device=device) / head_dim)
    if scaling is None:
        return f
    turns = scaling.original * f / (2 * math.pi)  # within the original context
    kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return f * (kept + (1 - kept) / scaling.factor)


def rotation(positions: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    """How far the queries and keys of each position are rotated, as `rotate` takes it.

    Args:
        positions: (B, T).
        f: (D/2,), as `frequencies` returns them.

    Returns:
        (cos, cos) and (-sin, sin) of the angles, (B, T, 1, D) float32 each.
    """
    angles = positions[:, :, None, None] * f                         # (B, T, 1, D/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x_i, x_{i + D/2}) of x, (B, T, n, D), by its position's angle.

        x_i cos - x_{i + D/2} sin,    x_{i + D/2} cos + x_i sin

    Args:
        cos, sin: as `rotation` returns them.
    """
    return _Rotate.apply(x, cos.to(x.dtype), sin.to(x.dtype))


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the rotation back.

    So nothing of x is kept, and the backward pass takes as long as the forward pass, less
    than half of what it takes when autograd makes it out of the parts.
    """

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return torch.addcmul(x * cos, swapped(x), sin)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return torch.addcmul(grad * cos, swapped(grad), sin, value=-1), None, None


def swapped(x: Tensor) -> Tensor:
    """Exchange the halves of the last dimension."""
    return x.roll(x.shape[-1] // 2, dims=-1)
