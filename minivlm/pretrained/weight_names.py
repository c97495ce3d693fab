"""Which of our tensors is which in huggingface/transformers' CLIPModel, GPT2LMHeadModel and
LlavaForConditionalGeneration, one table for both directions.

Used by: pretrained.py, export.py.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from minivlm.clip import CLIPConfig
from minivlm.vlm import VLMConfig

# one of our tensors, the published ones that make it up, whether those are transposed (Conv1D)
Names = list[tuple[str, tuple[str, ...], bool]]
BUFFERS = r"position_ids|h\.\d+\.attn\.(masked_)?bias"  # saved by older versions, not weights


def clip_block(ours: str, theirs: str) -> Names:
    """A block of either of CLIP's towers; queries, keys and values are three maps there."""
    pairs = [("norm1", ("layer_norm1",)), ("norm2", ("layer_norm2",)),
             ("attn.qkv", tuple(f"self_attn.{x}_proj" for x in "qkv")),
             ("attn.proj", ("self_attn.out_proj",)), ("mlp.0", ("mlp.fc1",)),
             ("mlp.2", ("mlp.fc2",))]
    return [(f"{ours}.{a}.{kind}", tuple(f"{theirs}.{x}.{kind}" for x in b), False)
            for a, b in pairs for kind in ("weight", "bias")]


def vit_names(n_layer: int, ours: str, theirs: str) -> Names:
    """CLIP's vision tower."""
    names = [("cls", "embeddings.class_embedding"), ("pos", "embeddings.position_embedding.weight"),
             ("patch.weight", "embeddings.patch_embedding.weight")]
    names += [(f"{a}.{kind}", f"{b}.{kind}") for a, b in (
        ("norm_pre", "pre_layrnorm"), ("norm_post", "post_layernorm"))  # sic: layrnorm
        for kind in ("weight", "bias")]
    return [(ours + a, (theirs + b,), False) for a, b in names] + [
        name for i in range(n_layer)
        for name in clip_block(f"{ours}blocks.{i}", f"{theirs}encoder.layers.{i}")]


def clip_names(c: CLIPConfig) -> Names:
    """CLIPModel."""
    text = [("wte.weight", "embeddings.token_embedding.weight"),
            ("wpe.weight", "embeddings.position_embedding.weight"),
            ("norm.weight", "final_layer_norm.weight"), ("norm.bias", "final_layer_norm.bias")]
    return [
        *vit_names(c.vit.n_layer, "vit.", "vision_model."),
        *((f"text.{a}", (f"text_model.{b}",), False) for a, b in text),
        *(name for i in range(c.text_n_layer)
          for name in clip_block(f"text.blocks.{i}", f"text_model.encoder.layers.{i}")),
        ("img_proj.weight", ("visual_projection.weight",), False),
        ("txt_proj.weight", ("text_projection.weight",), False),
        ("log_scale", ("logit_scale",), False),
    ]


def gpt2_names(n_layer: int, ours: str, theirs: str) -> Names:
    """GPT2Model, whose maps are Conv1D: (in, out) where ours are (out, in)."""
    names = [("wte.weight", "wte.weight", False), ("wpe.weight", "wpe.weight", False),
             ("norm.weight", "ln_f.weight", False), ("norm.bias", "ln_f.bias", False)]
    pairs = [("norm1", "ln_1"), ("attn.qkv", "attn.c_attn"), ("attn.proj", "attn.c_proj"),
             ("norm2", "ln_2"), ("mlp.0", "mlp.c_fc"), ("mlp.2", "mlp.c_proj")]
    names += [(f"blocks.{i}.{a}.{kind}", f"h.{i}.{b}.{kind}", kind == "weight" and "ln" not in b)
              for i in range(n_layer) for a, b in pairs for kind in ("weight", "bias")]
    return [(ours + a, (theirs + b,), turned) for a, b, turned in names]


def llava_names(c: VLMConfig) -> Names:
    """LlavaForConditionalGeneration over CLIP's vision tower and GPT-2."""
    connector = [(f"projector.net.{a}.{kind}", (f"multi_modal_projector.{b}.{kind}",), False)
                 for a, b in ((0, "linear_1"), (2, "linear_2")) for kind in ("weight", "bias")]
    return [*vit_names(c.vit.n_layer, "vit.", "vision_tower."), *connector,
            *gpt2_names(c.gpt.n_layer, "gpt.", "language_model.model."),
            ("gpt.head.weight", ("language_model.lm_head.weight",), False)]


def to_ours(names: Names, theirs: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Rename, turn and join published tensors, all of them.

    Raises:
        ValueError: if one is missing or left over, or parts do not go together.
    """
    left = {k: v for k, v in theirs.items() if not re.search(f"({BUFFERS})$", k)}
    missing = [b for _, group, _ in names for b in group if b not in left]
    unknown = left.keys() - {b for _, group, _ in names for b in group}
    if missing or unknown:
        raise ValueError(
            f"{folder} lacks {len(missing)} tensors {missing[:3]} and has {len(unknown)} that do "
            f"not belong there {sorted(unknown)[:3]}; it is of another architecture")
    out = {}
    for ours, group, turned in names:
        parts = [left[b] for b in group]
        if len({p.shape for p in parts}) > 1 or (turned and parts[0].ndim != 2):
            raise ValueError(f"{folder}: {group[0]} has the shape {tuple(parts[0].shape)}")
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        out[ours] = (whole.T if turned else whole).float().contiguous()
    return out


def to_theirs(names: Names, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename, turn and split our tensors into the published ones, as copies."""
    out = {}
    for name, group, turned in names:
        parts = ours[name].chunk(len(group)) if len(group) > 1 else [ours[name]]
        out |= {b: (p.T if turned else p).contiguous().clone() for b, p in zip(group, parts)}
    return out
