"""Which of our tensors belongs to which published ones; one table for both directions.

The published models are huggingface/transformers' CLIPModel, GPT2LMHeadModel and
LlavaForConditionalGeneration.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from minivlm.clip import CLIPConfig
from minivlm.vlm import VLMConfig

# our tensor, the published tensors that make it up, and whether these are transposed
Names = list[tuple[str, tuple[str, ...], bool]]
# old files hold these as well; they are constants, not weights
BUFFERS = re.compile(r"(position_ids|h\.\d+\.attn\.(masked_)?bias)$")

# our activation -> GPT2Config's activation_function
GPT2_ACTS = {"gelu_tanh": "gelu_new", "gelu": "gelu"}

# --- one module ---


def tensor(ours: str, theirs: str) -> Names:
    """A tensor that is the same in both."""
    return [(ours, (theirs,), False)]


def layer(ours: str, *theirs: str) -> Names:
    """Weight and bias of a layer; several published layers may make up one of ours."""
    names = []
    for kind in ("weight", "bias"):
        names.append((f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in theirs), False))
    return names


def conv1d(ours: str, theirs: str) -> Names:
    """Weight and bias of GPT-2's Conv1D: a linear layer whose weight is (in, out)."""
    return [
        # ours is (out, in), as in torch's Linear
        (f"{ours}.weight", (f"{theirs}.weight",), True),
        (f"{ours}.bias", (f"{theirs}.bias",), False),
    ]


# --- whole models ---


def clip_blocks(n_layer: int, ours: str, theirs: str) -> Names:
    """The blocks of one of CLIP's towers, where queries, keys, values are three layers."""
    names = []
    for i in range(n_layer):
        a = f"{ours}blocks.{i}"
        b = f"{theirs}encoder.layers.{i}"
        names += layer(f"{a}.norm1", f"{b}.layer_norm1")
        names += layer(f"{a}.norm2", f"{b}.layer_norm2")
        # our one layer gives (3 C,): all queries, then all keys, then all values
        names += layer(f"{a}.attn.qkv", *(f"{b}.self_attn.{x}_proj" for x in "qkv"))
        names += layer(f"{a}.attn.proj", f"{b}.self_attn.out_proj")
        names += layer(f"{a}.mlp.0", f"{b}.mlp.fc1")
        names += layer(f"{a}.mlp.2", f"{b}.mlp.fc2")
    return names


def vit_names(n_layer: int, ours: str, theirs: str) -> Names:
    """CLIP's vision tower."""
    return [
        *tensor(f"{ours}cls", f"{theirs}embeddings.class_embedding"),
        *tensor(f"{ours}pos", f"{theirs}embeddings.position_embedding.weight"),
        *tensor(f"{ours}patch.weight", f"{theirs}embeddings.patch_embedding.weight"),
        *layer(f"{ours}norm_pre", f"{theirs}pre_layrnorm"),  # misspelled in transformers
        *layer(f"{ours}norm_post", f"{theirs}post_layernorm"),
        *clip_blocks(n_layer, ours, theirs),
    ]


def clip_names(c: CLIPConfig) -> Names:
    """CLIPModel."""
    return [
        *vit_names(c.vit.n_layer, "vit.", "vision_model."),
        *tensor("text.wte.weight", "text_model.embeddings.token_embedding.weight"),
        *tensor("text.wpe.weight", "text_model.embeddings.position_embedding.weight"),
        *layer("text.norm", "text_model.final_layer_norm"),
        *clip_blocks(c.text_n_layer, "text.", "text_model."),
        *tensor("img_proj.weight", "visual_projection.weight"),
        *tensor("txt_proj.weight", "text_projection.weight"),
        *tensor("log_scale", "logit_scale"),
    ]


def gpt2_names(n_layer: int, ours: str, theirs: str) -> Names:
    """GPT2Model."""
    names = [
        *tensor(f"{ours}wte.weight", f"{theirs}wte.weight"),
        *tensor(f"{ours}wpe.weight", f"{theirs}wpe.weight"),
        *layer(f"{ours}norm", f"{theirs}ln_f"),
    ]
    for i in range(n_layer):
        a = f"{ours}blocks.{i}"
        b = f"{theirs}h.{i}"
        names += layer(f"{a}.norm1", f"{b}.ln_1")
        # c_attn has queries, keys and values in our order already
        names += conv1d(f"{a}.attn.qkv", f"{b}.attn.c_attn")
        names += conv1d(f"{a}.attn.proj", f"{b}.attn.c_proj")
        names += layer(f"{a}.norm2", f"{b}.ln_2")
        names += conv1d(f"{a}.mlp.0", f"{b}.mlp.c_fc")
        names += conv1d(f"{a}.mlp.2", f"{b}.mlp.c_proj")
    return names


def llava_names(c: VLMConfig) -> Names:
    """LlavaForConditionalGeneration over CLIP's vision tower and GPT-2."""
    return [
        *vit_names(c.vit.n_layer, "vit.", "vision_tower."),
        *layer("projector.net.0", "multi_modal_projector.linear_1"),
        *layer("projector.net.2", "multi_modal_projector.linear_2"),
        *gpt2_names(c.gpt.n_layer, "gpt.", "language_model.model."),
        # tied to wte in our model, a tensor of its own there
        *tensor("gpt.head.weight", "language_model.lm_head.weight"),
    ]


# --- from one to the other ---


def to_ours(names: Names, theirs: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Rename, transpose and join all tensors of a published model.

    Args:
        folder: what an error names.

    Raises:
        ValueError: if a tensor is missing or left over, or has a shape that cannot be
            joined or transposed.
    """
    weights = {name: value for name, value in theirs.items() if not BUFFERS.search(name)}
    wanted = [name for _, group, _ in names for name in group]
    missing = [name for name in wanted if name not in weights]
    unknown = sorted(weights.keys() - set(wanted))
    if missing or unknown:
        raise ValueError(
            f"{folder} lacks {len(missing)} tensors {missing[:3]} and has {len(unknown)} "
            f"that do not belong there {unknown[:3]}; it is of another architecture"
        )
    out = {}
    for name, group, is_transposed in names:
        parts = [weights[published] for published in group]
        shape = parts[0].shape
        if len({part.shape for part in parts}) > 1 or (is_transposed and len(shape) != 2):
            raise ValueError(f"{folder}: {group[0]} has the shape {tuple(shape)}")
        # CLIP's logit scale has no dimension, which cat refuses
        joined = torch.cat(parts) if len(parts) > 1 else parts[0]
        # float32, since a file may be saved in half precision
        out[name] = (joined.T if is_transposed else joined).float().contiguous()
    return out


def to_theirs(names: Names, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename, transpose and split our tensors into published ones, which are copies."""
    out = {}
    for name, group, is_transposed in names:
        parts = ours[name].chunk(len(group)) if len(group) > 1 else [ours[name]]
        for published, part in zip(group, parts):
            # a copy, since safetensors refuses tensors that share memory
            out[published] = (part.T if is_transposed else part).contiguous().clone()
    return out
