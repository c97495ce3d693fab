"""Which of our tensors belongs to which published ones; one table for both directions.

The published models are huggingface/transformers' CLIPModel, SiglipModel, GPT2LMHeadModel,
LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM and LlavaForConditionalGeneration.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minivlm.clip import CLIPConfig
from minivlm.gpt import GPTConfig
from minivlm.pretrained.families import family_of
from minivlm.vit import ViTConfig
from minivlm.vlm import VLMConfig


@dataclass(frozen=True)
class Pair:
    """One of our tensors, and the published ones that make it up, one below the other."""

    ours: str
    theirs: tuple[str, ...]
    rows: tuple[int, ...] = ()  # of each published tensor; () = all have the same
    is_transposed: bool = False


Names = list[Pair]
# old files hold these as well; they are constants, not weights
BUFFERS = re.compile(
    r"(position_ids|h\.\d+\.attn\.(masked_)?bias|rotary_emb\.inv_freq)$"
)

# --- one module ---


def tensor(ours: str, theirs: str) -> Names:
    """A tensor that is the same in both."""
    return [Pair(ours, (theirs,))]


def layer(
    ours: str, *theirs: str, rows: tuple[int, ...] = (), bias: bool = True
) -> Names:
    """Weight and bias of a layer; several published layers may make up one of ours."""
    names = []
    for kind in ("weight", "bias") if bias else ("weight",):
        published = tuple(f"{name}.{kind}" for name in theirs)
        names.append(Pair(f"{ours}.{kind}", published, rows))
    return names


def conv1d(ours: str, theirs: str) -> Names:
    """Weight and bias of GPT-2's Conv1D: a linear layer whose weight is (in, out)."""
    return [
        # ours is (out, in), as in torch's Linear
        Pair(f"{ours}.weight", (f"{theirs}.weight",), is_transposed=True),
        Pair(f"{ours}.bias", (f"{theirs}.bias",)),
    ]


# --- whole models ---


def clip_blocks(n_layer: int, ours: str, theirs: str) -> Names:
    """The blocks of a tower of CLIP's or SigLIP's, where q, k and v are three layers."""
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


def vit_names(c: ViTConfig, ours: str, theirs: str) -> Names:
    """CLIP's vision tower, or SigLIP's."""
    if c.kind == "siglip":
        pool, head = f"{ours}head", f"{theirs}head"
        names = [
            *layer(f"{ours}patch", f"{theirs}embeddings.patch_embedding"),
            *tensor(f"{ours}pos", f"{theirs}embeddings.position_embedding.weight"),
            *clip_blocks(c.n_layer, ours, theirs),
            *layer(f"{ours}norm_post", f"{theirs}post_layernorm"),
        ]
        return names if not c.pool_head else [
            *names,
            *tensor(f"{pool}.probe", f"{head}.probe"),
            *tensor(f"{pool}.qkv.weight", f"{head}.attention.in_proj_weight"),
            *tensor(f"{pool}.qkv.bias", f"{head}.attention.in_proj_bias"),
            *layer(f"{pool}.proj", f"{head}.attention.out_proj"),
            *layer(f"{pool}.norm", f"{head}.layernorm"),
            *layer(f"{pool}.mlp.0", f"{head}.mlp.fc1"),
            *layer(f"{pool}.mlp.2", f"{head}.mlp.fc2"),
        ]
    return [
        *tensor(f"{ours}cls", f"{theirs}embeddings.class_embedding"),
        *tensor(f"{ours}pos", f"{theirs}embeddings.position_embedding.weight"),
        *tensor(f"{ours}patch.weight", f"{theirs}embeddings.patch_embedding.weight"),
        *layer(f"{ours}norm_pre", f"{theirs}pre_layrnorm"),  # misspelled in transformers
        *layer(f"{ours}norm_post", f"{theirs}post_layernorm"),
        *clip_blocks(c.n_layer, ours, theirs),
    ]


def clip_names(c: CLIPConfig) -> Names:
    """CLIPModel, or SiglipModel."""
    if c.is_siglip:
        ends = [
            *layer("txt_proj", "text_model.head"),
            *tensor("log_scale", "logit_scale"), *tensor("bias", "logit_bias"),
        ]
    else:
        ends = [
            *tensor("img_proj.weight", "visual_projection.weight"),
            *tensor("txt_proj.weight", "text_projection.weight"),
            *tensor("log_scale", "logit_scale"),
        ]
    return [
        *vit_names(c.vit, "vit.", "vision_model."),
        *tensor("text.wte.weight", "text_model.embeddings.token_embedding.weight"),
        *tensor("text.wpe.weight", "text_model.embeddings.position_embedding.weight"),
        *layer("text.norm", "text_model.final_layer_norm"),
        *clip_blocks(c.text_n_layer, "text.", "text_model."),
        *ends,
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


def llama_names(c: GPTConfig, ours: str, theirs: str) -> Names:
    """LlamaModel, Qwen2Model or Qwen3Model; without the head."""
    H, G, D = c.block.heads
    names = [
        *tensor(f"{ours}wte.weight", f"{theirs}embed_tokens.weight"),
        *tensor(f"{ours}norm.weight", f"{theirs}norm.weight"),
    ]
    for i in range(c.n_layer):
        a = f"{ours}blocks.{i}"
        b = f"{theirs}layers.{i}"
        names += tensor(f"{a}.norm1.weight", f"{b}.input_layernorm.weight")
        names += layer(
            f"{a}.attn.qkv", *(f"{b}.self_attn.{x}_proj" for x in "qkv"),
            rows=(H * D, G * D, G * D), bias=c.bias == "qkv",
        )
        if c.qk_norm:
            names += tensor(f"{a}.attn.norm_q.weight", f"{b}.self_attn.q_norm.weight")
            names += tensor(f"{a}.attn.norm_k.weight", f"{b}.self_attn.k_norm.weight")
        names += tensor(f"{a}.attn.proj.weight", f"{b}.self_attn.o_proj.weight")
        names += tensor(f"{a}.norm2.weight", f"{b}.post_attention_layernorm.weight")
        names += layer(
            f"{a}.mlp.gate_up", f"{b}.mlp.gate_proj", f"{b}.mlp.up_proj", bias=False
        )
        names += tensor(f"{a}.mlp.down.weight", f"{b}.mlp.down_proj.weight")
    return names


def lm_names(c: GPTConfig) -> Names:
    """All tensors of a language model. A tied head is the embedding and has no name."""
    if family_of(c) == "gpt2":
        return gpt2_names(c.n_layer, "", "transformer.")
    head = [] if c.tied else tensor("head.weight", "lm_head.weight")
    return llama_names(c, "", "model.") + head


def llava_names(c: VLMConfig) -> Names:
    """LlavaForConditionalGeneration over CLIP's or SigLIP's tower and any of the families."""
    ours, theirs = "gpt.", "language_model.model."
    if family_of(c.gpt) == "gpt2":
        text = gpt2_names(c.gpt.n_layer, ours, theirs)
    else:
        text = llama_names(c.gpt, ours, theirs)
    return [
        *vit_names(c.vit, "vit.", "vision_tower."),
        *layer("projector.net.0", "multi_modal_projector.linear_1"),
        *layer("projector.net.2", "multi_modal_projector.linear_2"),
        *text,
        # where it is tied to wte in our model, it is a tensor of its own there
        *tensor("gpt.head.weight", "language_model.lm_head.weight"),
    ]


# --- from one to the other ---


def to_ours(names: Names, theirs: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Rename, transpose and join all tensors of a published model, each in its own type.

    Args:
        theirs: is empty afterwards, so that no tensor is in memory twice.
        folder: what an error names.

    Raises:
        ValueError: if a tensor is missing or left over, or has a shape that cannot be
            joined or transposed.
    """
    wanted = [name for pair in names for name in pair.theirs]
    missing = [name for name in wanted if name not in theirs]
    left_over = theirs.keys() - set(wanted)
    unknown = sorted(name for name in left_over if not BUFFERS.search(name))
    if missing or unknown:
        raise ValueError(
            f"{folder} lacks {len(missing)} tensors {missing[:3]} and has {len(unknown)} "
            f"that do not belong there {unknown[:3]}; it is of another architecture"
        )
    out = {}
    for pair in names:
        parts = [theirs.pop(published) for published in pair.theirs]
        rows = pair.rows or (len(parts[0]) if parts[0].ndim else 0,) * len(parts)
        if pair.is_transposed and parts[0].ndim != 2:
            shape = tuple(parts[0].shape)
            raise ValueError(f"{folder}: {pair.theirs[0]} is {shape}, expected a matrix")
        for published, part, n in zip(pair.theirs, parts, rows):
            expected = (n, *parts[0].shape[1:])
            if len(parts) > 1 and part.shape != expected:
                raise ValueError(
                    f"{folder}: {published} is {tuple(part.shape)}, expected {expected}"
                )
        # CLIP's logit scale has no dimension, which cat refuses; a copy, since a tensor of a
        # safetensors file is a part of that file
        joined = torch.cat(parts) if len(parts) > 1 else parts[0].clone()
        out[pair.ours] = (joined.T if pair.is_transposed else joined).contiguous()
    theirs.clear()
    return out


def to_theirs(names: Names, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename, transpose and split our tensors into published ones, which are copies."""
    out = {}
    for pair in names:
        whole, n = ours[pair.ours], len(pair.theirs)
        if n == 1:
            parts = [whole]
        else:
            parts = whole.split(pair.rows or len(whole) // n)
        for published, part in zip(pair.theirs, parts):
            # a copy, since safetensors refuses tensors that share memory
            out[published] = (part.T if pair.is_transposed else part).contiguous().clone()
    return out
