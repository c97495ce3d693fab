"""Optimizers and the learning rate over time.

    Muon    for the matrices inside blocks and the projector: momentum, then orthogonalized
    AdamW   for everything else: embeddings, heads, norms, biases

On two CPU cores Muon reaches a given quality several times sooner than AdamW alone; `--muon_lr 0`
gives AdamW everywhere. Used by: every train_*.py.
"""

import math

import torch
from torch import Tensor, nn

from minivlm.projector import Projector
from minivlm.transformer import Block


@torch.no_grad()
def orthogonalize(G: Tensor, steps: int = 5) -> Tensor:
    """Push all singular values of each matrix towards 1 by Newton-Schulz iteration.

        X = G / |G|;   repeat: A = X X^T;  X = a X + (b A + c A A) X

    The quintic's coefficients trade exactness for speed: values end between about 0.7 and 1.2. It
    runs in float32 (bfloat16 has no fast units on many CPUs) on all equal-shaped matrices at once.

    Args:
        G: (n, R, C) with R <= C.
        steps: iterations; 5 suffice.

    Returns:
        (n, R, C).

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    X = G.float()
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        A = X @ X.mT                                                 # (n, R, R)
        X = a * X + (b * A + c * A @ A) @ X
    return X


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized, for 2-D parameters.

        m = momentum * m + (1 - momentum) * g
        p = (1 - lr * wd) * p - lr * sqrt(max(1, rows / cols)) * orthogonalize(nesterov(m))

    A map whose rows are three times its columns is attention's q, k, v in one: each third is
    orthogonalized on its own.

    Raises:
        ValueError: if a parameter is not 2-D.
    """

    def __init__(self, params, lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(
                        f"Muon takes matrices, got a parameter of shape {tuple(p.shape)}"
                    )

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[bool, int, int], list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["momentum"], group["momentum"])  # Nesterov's look ahead
                p.mul_(1 - group["lr"] * group["weight_decay"])
                parts = 3 if p.shape[0] == 3 * p.shape[1] else 1
                for piece, u in zip(p.chunk(parts), update.chunk(parts)):
                    tall = u.shape[0] > u.shape[1]
                    if tall:
                        piece, u = piece.mT, u.mT                    # views: writing reaches p
                    by_shape.setdefault((tall, *u.shape), []).append((piece, u))
            for (tall, rows, cols), pairs in by_shape.items():
                stretch = math.sqrt(cols / rows) if tall else 1.0
                for (piece, _), u in zip(pairs, orthogonalize(torch.stack([u for _, u in pairs]))):
                    piece.sub_(u, alpha=group["lr"] * stretch)


class Optimizer:
    """Muon for the trainable matrices of blocks and projector, AdamW for the rest, as one.

    Weight decay acts on matrices and embeddings, never on biases, norms and single numbers.

    Args:
        model: its parameters with requires_grad are trained.
        lr: AdamW's peak rate.
        muon_lr: Muon's peak rate; 0 leaves all to AdamW.
        weight_decay: for parameters of two or more dimensions.

    Raises:
        ValueError: if nothing is trainable.
    """

    def __init__(
        self, model: nn.Module, lr: float, muon_lr: float, weight_decay: float = 0.0,
        betas=(0.9, 0.95),
    ):
        inside = {
            p for m in model.modules() if isinstance(m, (Block, Projector)) for p in m.parameters()
            if p.ndim == 2 and p.requires_grad and muon_lr > 0
        }
        rest = [p for p in model.parameters() if p.requires_grad and p not in inside]
        if not inside and not rest:
            raise ValueError("nothing to train: every parameter is frozen")
        self.parts: list[torch.optim.Optimizer] = []
        if rest:
            groups = [
                {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
                {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
            ]
            self.parts.append(torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True))
        if inside:
            ordered = [p for p in model.parameters() if p in inside]
            self.parts.append(Muon(ordered, lr=muon_lr, weight_decay=weight_decay))
        self.peaks = [[group["lr"] for group in part.param_groups] for part in self.parts]
        self.params = [
            p for part in self.parts for group in part.param_groups for p in group["params"]
        ]

    def step(self, scale: float, clip: float) -> float:
        """Clip the gradient to norm `clip`, step at `scale` times the peak rates, forget it.

        A gradient that is not finite is forgotten without a step: it would end the weights.

        Returns:
            the gradient's norm before clipping.
        """
        norm = float(nn.utils.clip_grad_norm_(self.params, clip))
        for part, peaks in zip(self.parts, self.peaks):
            for group, peak in zip(part.param_groups, peaks):
                group["lr"] = scale * peak
            if math.isfinite(norm):
                part.step()
            part.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> list[dict]:
        """Both optimizers' states, plain types and tensors."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        """Restore what state_dict gave.

        Raises:
            ValueError: if the states belong to another set of optimizers.
        """
        if len(states) != len(self.parts):
            raise ValueError(
                f"checkpoint has {len(states)} optimizers, this run {len(self.parts)}; "
                "was muon_lr changed?"
            )
        for part, state in zip(self.parts, states):
            part.load_state_dict(state)


class Together:
    """Several Optimizers stepped as one, each with its own rates and its own clipping."""

    def __init__(self, *optimizers: Optimizer):
        self.optimizers = optimizers

    def step(self, scale: float, clip: float) -> float:
        """Step all; return the first one's norm."""
        return [optimizer.step(scale, clip) for optimizer in self.optimizers][0]

    def state_dict(self) -> list[list[dict]]:
        """The states of all."""
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, states: list[list[dict]]) -> None:
        """Restore what state_dict gave."""
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def lr_scale(step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    """Rise linearly over `warmup` steps, then fall along a cosine to `floor`; a share of the peak.

    The first step already moves: (0 + 1) / warmup.

    >>> [round(lr_scale(s, 10, 2), 2) for s in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.04]
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
