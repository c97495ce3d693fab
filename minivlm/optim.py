"""Optimizers, and the learning rate over time.

    Muon    for the matrices inside blocks and the projector: momentum, then orthogonalized
    AdamW   for everything else: embeddings, heads, norms, biases

On two CPU cores Muon reaches a given quality in a fraction of the steps that AdamW needs;
`--muon_lr 0` uses AdamW for everything.
"""

import math
from collections import defaultdict

import torch
from torch import Tensor, nn

from minivlm.projector import Projector
from minivlm.transformer import Attention, Block, SwiGLU


@torch.no_grad()
def orthogonalize(G: Tensor) -> Tensor:
    """Push all singular values of each matrix towards 1 by Newton-Schulz iteration.

        X = G / |G|;   5 times: A = X X^T;  X = a X + (b A + c A A) X

    |G| is the Frobenius norm. The coefficients are chosen for speed, not for exactness:
    singular values end between about 0.7 and 1.2. The iteration computes in float32,
    because many CPUs have no fast units for bfloat16.

    Args:
        G: (n, R, C), n matrices of one shape, with R <= C.

    Returns:
        (n, R, C) in float32.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # from the source
    X = G.float()
    # the norm is at least the largest singular value; the iteration needs all of them <= 1
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        A = X @ X.mT                                                 # (n, R, R)
        X = a * X + (b * A + c * A @ A) @ X
    return X


class Muon(torch.optim.Optimizer):
    """SGD with momentum whose updates are orthogonalized; for 2-D parameters only.

        m = momentum * m + (1 - momentum) * g
        u = momentum * m + (1 - momentum) * g                                    Nesterov
        p = (1 - lr * weight_decay) * p
        p = p - lr * sqrt(max(1, rows / cols)) * orthogonalize(u)

    A matrix may hold several maps, one below the other, such as attention's q, k and v.
    Each of them is orthogonalized on its own.

    Args:
        params: parameters, or groups of them, as other optimizers take them.
        maps: matrix -> the rows of each of its maps; matrices that are not there are one.

    Raises:
        ValueError: if a parameter is not 2-D.
    """

    def __init__(
        self, params, lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0,
        maps: dict[Tensor, tuple[int, ...]] | None = None,
    ):
        self.maps = maps or {}
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        )
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(
                        f"Muon takes matrices, got a parameter of shape {tuple(p.shape)}"
                    )

    @torch.no_grad()
    def step(self):
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            # matrices of one shape are orthogonalized in one call, which is faster
            by_shape = defaultdict(list)  # (rows, cols) -> [(part of p, its update)]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["momentum"], group["momentum"])   # Nesterov's u
                p.mul_(1 - group["lr"] * group["weight_decay"])
                rows_of = self.maps.get(p, (len(p),))
                # pieces and transposes are views: writing to them changes p
                for piece, u in zip(p.split(rows_of), update.split(rows_of)):
                    rows, cols = u.shape
                    if rows > cols:
                        piece = piece.mT
                        u = u.mT
                    by_shape[rows, cols].append((piece, u))
            for (rows, cols), pairs in by_shape.items():
                updates = orthogonalize(torch.stack([u for _, u in pairs]))  # (n, R, C)
                stretch = math.sqrt(max(1, rows / cols))
                for (piece, _), u in zip(pairs, updates):
                    piece.sub_(u, alpha=group["lr"] * stretch)


class Optimizer:
    """Muon for the trainable matrices of blocks and projector, AdamW for the rest.

    Both are used as one optimizer. Weight decay acts on matrices and embeddings, never on
    biases, norms and single numbers.

    Args:
        model: its parameters that have requires_grad now are trained.
        lr: peak learning rate of AdamW.
        muon_lr: peak learning rate of Muon; 0 = AdamW for everything.
        weight_decay: for parameters of two or more dimensions.

    Raises:
        ValueError: if nothing is trainable.
    """

    def __init__(
        self, model: nn.Module, lr: float, muon_lr: float, weight_decay: float = 0.0
    ):
        inside = set()  # matrices of blocks and projector
        maps = {}
        if muon_lr > 0:
            for module in model.modules():
                if isinstance(module, (Block, Projector)):
                    inside.update(p for p in module.parameters() if p.ndim == 2)
                if isinstance(module, (Attention, SwiGLU)):
                    weight, rows = module.maps
                    maps[weight] = rows
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in trained if p in inside]
        rest = [p for p in trained if p not in inside]
        decayed = [p for p in rest if p.ndim >= 2]
        not_decayed = [p for p in rest if p.ndim < 2]
        if not trained:
            raise ValueError("nothing to train: every parameter is frozen")
        self.params = decayed + not_decayed + matrices
        self.parts = []
        self.peaks = []  # the peak learning rate of each part
        if rest:
            groups = [
                {"params": decayed, "weight_decay": weight_decay},
                {"params": not_decayed, "weight_decay": 0.0},
            ]
            # betas as in GPT-3 (Brown et al. 2020, appendix B)
            adamw = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)
            self.parts.append(adamw)
            self.peaks.append(lr)
        if matrices:
            muon = Muon(matrices, lr=muon_lr, weight_decay=weight_decay, maps=maps)
            self.parts.append(muon)
            self.peaks.append(muon_lr)

    def step(self, scale: float, clip: float) -> float:
        """Clip the gradient to norm `clip`, take a step, and set the gradient to None.

        If the gradient is NaN or inf, no step is taken: it would make the weights NaN.

        Args:
            scale: share of the peak learning rates, see `lr_scale`.
            clip: largest norm of the gradient of all parameters together; a larger gradient
                is scaled down to it. 0 is no limit.

        Returns:
            the gradient's norm before clipping.
        """
        # a limit of 0 would multiply every gradient by 0
        norm = float(nn.utils.clip_grad_norm_(self.params, clip or math.inf))
        for part, peak in zip(self.parts, self.peaks):
            for group in part.param_groups:
                group["lr"] = scale * peak
            if math.isfinite(norm):
                part.step()
            part.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> list[dict]:
        """Return the state of each optimizer, in plain types and tensors."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: if the states are not of as many optimizers as this one has.
        """
        if len(states) != len(self.parts):
            raise ValueError(
                f"checkpoint has {len(states)} optimizers, this run {len(self.parts)}; "
                "was muon_lr changed?"
            )
        for part, state in zip(self.parts, states):
            part.load_state_dict(state)


class Together:
    """Several Optimizers used as one, each with its own learning rates and clipping."""

    def __init__(self, *optimizers: Optimizer):
        self.optimizers = optimizers
        self.params = [p for optimizer in optimizers for p in optimizer.params]

    def step(self, scale: float, clip: float) -> float:
        """Step all of them; return the first one's gradient norm, see `Optimizer.step`."""
        norms = [optimizer.step(scale, clip) for optimizer in self.optimizers]
        return norms[0]

    def state_dict(self) -> list[list[dict]]:
        """Return the states of all of them."""
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, states: list[list[dict]]) -> None:
        """Restore what `state_dict` returned."""
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def with_slower_part(
    model: nn.Module, part: nn.Module, rate: float, lr: float, muon_lr: float,
    weight_decay: float = 0.0,
) -> Together:
    """Optimizers of a model and of a pretrained part of it, which learns more slowly.

    Args:
        part: for instance the ViT of a VLM. It is frozen, or made trainable, here.
        rate: the part's share of both learning rates; 0 freezes it.
        lr, muon_lr, weight_decay: as for `Optimizer`.

    Source: LLaVA-OneVision, arXiv:2408.03326, which trains the ViT at a fifth of the rate.
    """
    # The first Optimizer must not take the part. It takes every parameter that can learn at
    # that moment, so the part is frozen for that moment.
    part.requires_grad_(False)
    optimizers = [Optimizer(model, lr, muon_lr, weight_decay)]
    if rate:
        part.requires_grad_(True)
        optimizers.append(Optimizer(part, rate * lr, rate * muon_lr, weight_decay))
    return Together(*optimizers)


def lr_scale(step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    """Rise linearly over `warmup` steps, then fall along a cosine to `floor`.

    Args:
        step: 0 .. steps-1; at step 0 the result is 1 / warmup, not 0.
        floor: what the cosine reaches at `steps`, as a share of the peak learning rate.

    Returns:
        the learning rate as a share of its peak, 0 .. 1.

    >>> [round(lr_scale(s, 10, 2), 2) for s in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.04]
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
