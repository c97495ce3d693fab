"""How much arithmetic a model does, to compare its speed with what the machine can do."""

import torch
from torch import Tensor, nn

from minivlm.transformer import Attention


class FlopCounter:
    """Counts the floating-point operations of a model's matrix products, as it computes.

        linear map, convolution   2 x numbers it gives x numbers that each is a sum of
        attention                 4 x B x H x T x T x D: scores, and the sum of the values

    The backward pass is counted together with the forward pass. A map counts once more if
    its input has a gradient, and once more if its weight learns. Attention counts twice
    more. So a language model with N weights in its maps, the head among them, needs
    6 N + 12 L H D T for a token of a row of T, as in the source. Where attention is causal,
    half of its scores are never used, and count all the same.

    Not counted: norms and activations, LoRA's thin products, SigLIP's pooling, tokens that
    `cache.Decoder` reads, which calls no modules, what `GPT.checkpoint_blocks` computes a
    second time, and all that is compiled.

    Args:
        model: counted from now on, in `flops`.

    Source: Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B.
    """

    def __init__(self, model: nn.Module):
        self.flops = 0
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.register_forward_hook(self._add_map)
            elif isinstance(module, Attention):
                module.register_forward_hook(self._add_attention)

    def _add_map(
        self, module: nn.Linear | nn.Conv2d, inputs: tuple, output: Tensor
    ) -> None:
        if _is_elsewhere():
            return
        weight = module.weight
        # without gradients, as in an evaluation, the output has none either
        times = 1 + output.requires_grad * (inputs[0].requires_grad + weight.requires_grad)
        self.flops += 2 * output.numel() * weight[0].numel() * times

    def _add_attention(self, module: Attention, inputs: tuple, output: Tensor) -> None:
        if _is_elsewhere():
            return
        B, T, _ = inputs[0].shape
        H, _, D = module.heads
        self.flops += 4 * B * H * T * T * D * (1 + 2 * output.requires_grad)


def _is_elsewhere() -> bool:
    """Whether a module is called to compute gradients, or to be compiled."""
    # torch has no public name for the first
    return torch.compiler.is_compiling() or torch._C._current_graph_task_id() != -1
