"""The loss on held-out batches, for train_lm.py, train_align.py and train_sft.py."""

import torch
from torch import nn

from minivlm.loading.batches import Batch
from minivlm.losses import IGNORE_INDEX, next_token_loss


@torch.no_grad()
def held_out_loss(model: nn.Module, batches: list[Batch], device: torch.device) -> float:
    """Mean loss per supervised token of all batches together, in nats.

    The model computes in evaluation mode, in float32, and returns to training mode.

    Args:
        model: a GPT for batches without pictures, else a VLM.
    """
    model.eval()
    total = 0.0
    n = 0
    for batch in batches:
        batch = batch.to(device)
        at = batch.targets != IGNORE_INDEX                           # (B, T)
        inputs = [batch.idx] if batch.images is None else [batch.idx, batch.images]
        logits = model(*inputs, at=at)                               # (M, V)
        # a batch weighs as much as it has supervised tokens
        total += float(next_token_loss(logits, batch.targets[at]) * at.sum())
        n += int(at.sum())
    model.train()
    return total / n
