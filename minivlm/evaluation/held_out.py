"""Compute the held-out loss that train_lm.py, train_align.py and train_sft.py log."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import ContextManager

import torch
from torch import nn

from minivlm.loading.batches import Batch
from minivlm.losses import IGNORE_INDEX, next_token_loss


@torch.no_grad()
def held_out_loss(
    model: nn.Module, batches: list[Batch], device: torch.device,
    autocast: Callable[[], ContextManager] = nullcontext,
) -> float:
    """Compute the mean loss over the targets of all batches together, in nats per token.

    The model computes in evaluation mode. Then it is set to training mode, whatever its
    mode was before.

    Args:
        model: a GPT if the batches have no pictures, else a VLM.
        device: the model's.
        autocast: makes the context in which the model computes; by default it computes in
            the format of its weights.
    """
    model.eval()
    total = 0.0
    n = 0
    for batch in batches:
        batch = batch.to(device)
        at = batch.targets != IGNORE_INDEX                           # (B, T)
        inputs = [batch.idx] if batch.images is None else [batch.idx, batch.images]
        with autocast():
            logits = model(*inputs, at=at)                           # (targets, V)
        # the loss is a mean over this batch's targets: times their number, it is a sum
        total += float(next_token_loss(logits, batch.targets[at]) * at.sum())
        n += int(at.sum())
    model.train()
    return total / n
