"""Reads published weights as huggingface/transformers saves them.

    read_lm        GPT-2, Llama, Qwen2, Qwen3: the families of families.py
    read_vision    CLIP, SigLIP
    read_vlm       LLaVA over any of them
    load_state     a run of ours, or what read_vlm reads

    config.json
    model.safetensors or pytorch_model.bin
    tokenizer.json, or vocab.json and merges.txt

Nothing is downloaded, and no code in a file is run. Reading model.safetensors needs the
safetensors package. export.py writes such folders.
"""

import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minivlm.clip import CLIP, CLIPConfig
from minivlm.gpt import GPT, GPTConfig
from minivlm.loading.models import check_fit
from minivlm.pretrained import families
from minivlm.pretrained.tokenizers import read_tokenizer
from minivlm.pretrained.weight_names import clip_names, llava_names, lm_names, to_ours
from minivlm.running import checkpoint
from minivlm.running.files import brief, expect, first_line, naming, read_json, sizes
from minivlm.tokenizer import Tokenizer
from minivlm.vit import MEAN, STD, ViTConfig
from minivlm.vlm import VLM, VLMConfig

# --- language models ---


def read_lm(folder: str | Path) -> dict:
    """Read a language model and its tokenizer, in the form that train_align.py takes.

    Tokens of the chat template that the tokenizer lacks get new embeddings, the mean of
    all, so that they are not likely at first (Hewitt 2021, "Initializing New Word
    Embeddings for Pretrained Language Models"). Embeddings beyond the tokenizer's
    vocabulary, which only make their number round, are left out.

    Returns:
        as `checkpoint.load`, but stage, configs, model and tokenizer alone; without
        tokenizer, and with all embeddings, if the folder has no tokenizer.

    Raises:
        FileNotFoundError, ValueError: if the folder holds no model of a known family.
    """
    folder = Path(folder)
    c = families.read_config(read_json(folder / "config.json"), folder)
    weights = read_weights(folder)
    head = weights.pop("lm_head.weight", None)
    if families.family_of(c) == "gpt2":  # a GPT2Model that was saved alone has no prefix
        weights = {
            f"transformer.{name.removeprefix('transformer.')}": x
            for name, x in weights.items()
        }
    if head is None and not c.tied:
        raise ValueError(f"{folder}: the head is missing, and not tied to the embedding")
    ours = to_ours(lm_names(replace(c, tied=True)), weights, folder)
    ours["head.weight"] = ours["wte.weight"] if head is None else head
    check_fit(ours, lambda: GPT(c), str(folder))
    if c.tied and not torch.equal(ours["head.weight"], ours["wte.weight"]):
        raise ValueError(f"{folder}: the head is not tied to the embedding")
    state = {"stage": "lm", "configs": {"model": asdict(c)}, "model": ours}
    # vocab.json alone does not tell how text is split: it is GPT-2's, or unknown
    names = ["tokenizer.json"] + ["vocab.json"] * (families.family_of(c) == "gpt2")
    if any((folder / name).is_file() for name in names):
        tokenizer, known = read_tokenizer(folder)
        ours |= with_tokens(ours, "", c, tokenizer, known, folder)
        c = replace(c, vocab_size=tokenizer.vocab_size)
        state |= {"configs": {"model": asdict(c)}, "tokenizer": tokenizer.to_text()}
    return state


def with_tokens(
    weights: dict[str, Tensor], prefix: str, c: GPTConfig, tokenizer: Tokenizer, known: int,
    folder: Path,
) -> dict[str, Tensor]:
    """Embeddings and head with a row for each token, see `read_lm`.

    Args:
        prefix: before the names "wte.weight" and "head.weight" in `weights`.
        known: how many ids the folder itself has.

    Raises:
        ValueError: if there are fewer embeddings than the folder has ids.
    """
    if c.vocab_size < known:
        raise ValueError(f"{folder}: {known} tokens do not fit {c.vocab_size} embeddings")
    grown = {}
    for name in (f"{prefix}wte.weight", f"{prefix}head.weight"):
        rows = weights[name][:known]                                 # (known, C)
        new = rows.float().mean(0, keepdim=True).to(rows.dtype)      # (1, C)
        grown[name] = torch.cat([rows, new.expand(tokenizer.vocab_size - known, -1)])
    if c.tied:
        grown[f"{prefix}head.weight"] = grown[f"{prefix}wte.weight"]
    return grown


# --- towers ---


def read_vision(folder: str | Path, image_size: int = 0) -> dict:
    """Read a CLIPModel or a SiglipModel, in the form that `models.clip_from` takes.

    The tokenizer is left out. SigLIP 2's checkpoints of one resolution are SiglipModels.

    Args:
        image_size: S in pixels; if it differs from the published one, the position
            embeddings are interpolated. 0 = the published one.

    Raises:
        FileNotFoundError, ValueError: if the folder holds no such model that fits.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in ("clip", "siglip"):
        raise ValueError(
            f"{folder}: model_type is {brief(kind)}, minivlm has clip and siglip"
        )
    vision = tower_config(config, "vision_config", folder)
    expect(vision, folder, vision_use_head=True)
    vit = read_vit(vision, kind, folder)
    is_clip = kind == "clip"
    text = tower_config(config, "text_config", folder)
    # transformers leaves its defaults out of the file; those of CLIP are ViT-B/32's
    C, n_layer, n_head, T, V = sizes(
        text, folder, hidden_size=512 if is_clip else 768, num_hidden_layers=12,
        num_attention_heads=8 if is_clip else 12,
        max_position_embeddings=77 if is_clip else 64,
        vocab_size=49408 if is_clip else 32000,
    )
    expect(text, folder, layer_norm_eps=vit.norm_eps)
    if is_clip:
        expect(text, folder, intermediate_size=4 * C)
        [n_embd] = sizes(config, folder, projection_dim=512)
        act = text.get("hidden_act", "quick_gelu")
        own = {}
    else:
        expect(text, folder, hidden_act="gelu_pytorch_tanh")
        [n_inner] = sizes(text, folder, intermediate_size=3072)
        [n_embd] = sizes(text, folder, projection_size=C)
        act = "gelu_tanh"
        pad = text.get("pad_token_id", 1)
        if type(pad) is not int or not 0 <= pad < V:
            raise ValueError(f"{folder}: pad_token_id is {brief(pad)}, expected 0 .. {V - 1}")
        own = {"logit_bias": True, "text_n_inner": n_inner, "pad_id": pad}
    with naming(folder):
        c = CLIPConfig(vit, V, T, n_layer, n_head, C, n_embd, act, **own)
    weights = read_weights(folder)
    for name in ("logit_scale", "logit_bias"):  # SigLIP's have one dimension, ours none
        if name in weights and weights[name].numel() == 1:
            weights[name] = weights[name].reshape(())
    ours = to_ours(clip_names(c), weights, folder)
    check_fit(ours, lambda: CLIP(c), str(folder))
    if image_size and image_size != vit.image_size:
        if image_size % vit.patch_size:  # published sizes may have a rest, others need none
            raise ValueError(
                f"image_size {image_size} is not a multiple of patch_size {vit.patch_size}"
            )
        c = replace(c, vit=replace(vit, image_size=image_size))
        ours["vit.pos"] = resize_positions(ours["vit.pos"], c.vit.n_tokens, vit.n_class)
    configs = {"model": asdict(c), "fit": read_fit(vit, folder)}
    return {"stage": "clip", "configs": configs, "model": ours}


def tower_config(config: dict, name: str, folder: Path) -> dict:
    """The config of one of a model's towers.

    Raises:
        ValueError: if it is no JSON object.
    """
    tower = {}
    # the first published files have a second entry, "..._dict", of what is no default
    for key in (name, f"{name}_dict"):
        part = config.get(key) or {}
        if not isinstance(part, dict):
            raise ValueError(f"{folder}: {name} is no JSON object")
        tower |= part
    return tower


def read_vit(vision: dict, kind: str, folder: Path) -> ViTConfig:
    """The ViTConfig of a CLIPVisionConfig or a SiglipVisionConfig.

    Args:
        kind: "clip" or "siglip".

    Raises:
        ValueError: if our ViT cannot do what the config asks for.
    """
    is_clip = kind == "clip"
    eps = 1e-5 if is_clip else 1e-6
    expect(vision, folder, layer_norm_eps=eps, num_channels=3)
    C, n_layer, n_head, S, P = sizes(
        vision, folder, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
        image_size=224, patch_size=32 if is_clip else 16,
    )
    if is_clip:  # CLIP's MLPs are four times as wide as its blocks
        expect(vision, folder, intermediate_size=4 * C)
        act, n_inner = vision.get("hidden_act", "quick_gelu"), 0
    else:
        expect(vision, folder, hidden_act="gelu_pytorch_tanh")
        [n_inner] = sizes(vision, folder, intermediate_size=3072)
        act = "gelu_tanh"
    pool_head = vision.get("vision_use_head", True)
    if not isinstance(pool_head, bool):
        raise ValueError(f"{folder}: vision_use_head is {brief(pool_head)}")
    with naming(folder):
        return ViTConfig(
            S, P, n_layer, n_head, C, act, kind=kind, n_inner=n_inner, norm_eps=eps,
            pool_head=pool_head,
        )


def read_fit(vit: ViTConfig, folder: Path) -> str:
    """How a published model's pictures are made square, a mode of `images.fit`.

    Raises:
        ValueError: if they are normalized in another way than the ViT expects.
    """
    is_clip = vit.kind == "clip"
    usual = "crop" if is_clip else "stretch"
    if not (folder / "preprocessor_config.json").is_file():
        return usual
    preprocessor = read_json(folder / "preprocessor_config.json")
    mean, std = (list(MEAN), list(STD)) if is_clip else ([0.5] * 3, [0.5] * 3)
    expect(preprocessor, folder, image_mean=mean, image_std=std)
    if preprocessor.get("do_pad"):
        if not is_clip:
            raise ValueError(f"{folder}: do_pad is true; pictures are padded for CLIP only")
        return "pad"
    return "crop" if preprocessor.get("do_center_crop", is_clip) else "stretch"


# --- visual chatbots ---


def read_vlm(folder: str | Path) -> dict:
    """Read a LlavaForConditionalGeneration, in the form that `models.vlm_from` takes.

    Its text model may be of any family, its vision tower CLIP's or SigLIP's.

    Returns:
        what `checkpoint.load` returns for a run of train_sft.py.

    Raises:
        FileNotFoundError, ValueError: if the folder holds no such model that fits, or no
            tokenizer.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    expect(
        config, folder, model_type="llava", projector_hidden_act="gelu",
        multimodal_projector_bias=True,
    )
    vision = tower_config(config, "vision_config", folder)
    kind = str(vision.get("model_type", "clip_vision_model")).removesuffix("_vision_model")
    if kind not in ("clip", "siglip"):
        raise ValueError(f"{folder}: a vision tower of type {brief(kind)}, not clip or siglip")
    vit = read_vit(vision, kind, folder)
    layer = config.get("vision_feature_layer", -2)
    if type(layer) is not int or not -vit.n_layer <= layer < 0:
        raise ValueError(f"{folder}: vision_feature_layer is {brief(layer)}")
    vit = replace(vit, feature_layer=layer)
    expect(config, folder, vision_feature_select_strategy=select_strategy(vit))
    # LLaVA has a head of its own, whatever its text model says
    text = tower_config(config, "text_config", folder) | {"tie_word_embeddings": False}
    gpt = families.read_config({"model_type": "llama"} | text, folder)
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(f"no tokenizer.json in {folder}")
    tokenizer, known = read_tokenizer(folder)
    expect(config, folder, image_token_index=tokenizer.image)
    with naming(folder):
        c = VLMConfig(tokenizer.image, vit, gpt, "llava")
    theirs = {file_name(name): value for name, value in read_weights(folder).items()}
    weights = to_ours(llava_names(c), theirs, folder)
    check_fit(weights, lambda: VLM(replace(c, gpt=replace(gpt, tied=False))), str(folder))
    tied = torch.equal(weights["gpt.head.weight"], weights["gpt.wte.weight"])
    gpt = replace(gpt, tied=tied)
    weights |= with_tokens(weights, "gpt.", gpt, tokenizer, known, folder)
    c = replace(c, gpt=replace(gpt, vocab_size=tokenizer.vocab_size))
    configs = {
        "model": asdict(c), "fit": read_fit(vit, folder), "tokenizer": tokenizer.identity,
    }
    return {
        "stage": "sft", "configs": configs, "model": weights, "step": 0, "best": 0.0,
        "tokenizer": tokenizer.to_text(), "file": str(folder),
    }


def file_name(name: str) -> str:
    """The name of one of LLaVA's tensors in the files that people have.

    transformers' own names have changed: "model." came before, and the head moved.

    >>> file_name("model.language_model.layers.0.mlp.up_proj.weight")
    'language_model.model.layers.0.mlp.up_proj.weight'
    >>> file_name("vision_tower.vision_model.post_layernorm.bias")
    'vision_tower.post_layernorm.bias'
    """
    name = name.removeprefix("model.").replace("vision_tower.vision_model.", "vision_tower.")
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    inner = name.removeprefix("language_model.")
    if inner != name and not inner.startswith(("model.", "lm_head.")):
        return f"language_model.model.{inner}"
    return name


def resize_positions(pos: Tensor, n_tokens: int, n_class: int = 1) -> Tensor:
    """Interpolate a ViT's position embeddings: (n_class + n, C) -> (n_class + n_tokens, C).

    The class token's embedding, the first, stays as it is.

    Args:
        pos: of the class token, if there is one, and of the patches, row by row.
        n_tokens: number of patches at the new size; n and n_tokens are square numbers.
        n_class: 1 with class token, else 0.

    Source: Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.2; bicubic as in DeiT,
    Touvron et al. 2020, arXiv:2012.12877.
    """
    old = math.isqrt(len(pos) - n_class)
    new = math.isqrt(n_tokens)
    grid = pos[n_class:].T.reshape(1, -1, old, old).float()          # (1, C, old, old)
    grid = F.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    return torch.cat([pos[:n_class], grid.flatten(2)[0].T.to(pos.dtype)])


def select_strategy(c: ViTConfig) -> str:
    """LLaVA's word for which of a ViT's outputs are features: all but a class token."""
    return "default" if c.n_class else "full"


def is_published(path: str | Path) -> bool:
    """Tell whether a path is the folder of a published model, and not a run folder."""
    config = Path(path) / "config.json"  # a run folder has one, too
    is_run = any(Path(path).glob("*.pt"))
    return config.is_file() and not is_run and "model_type" in read_json(config)


def load_state(path: str | Path, stages: tuple[str, ...]) -> dict:
    """Read a run's checkpoint; or a published chatbot, if a run of train_sft.py will do.

    Args:
        path: a checkpoint file, a run folder, or the folder of a published model.
        stages: as for `checkpoint.load`.

    Returns and raises as `checkpoint.load` and `read_vlm`.
    """
    if "sft" in stages and is_published(path):
        return read_vlm(path)
    return checkpoint.load(path, stages)


# --- files ---


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of model.safetensors or pytorch_model.bin, which may be in parts.

    Raises:
        FileNotFoundError: if there is neither.
        ValueError: if a file is damaged, holds anything but finite tensors, or lies outside
            of the folder; or if the safetensors package is missing.
    """
    name, parts = weight_files(folder)
    # without weights_only, a pickle could run any program
    load = partial(torch.load, map_location="cpu", weights_only=True)
    if name.endswith(".safetensors"):
        load = safetensors().load_file
    weights = {}
    for part in parts:
        try:
            weights |= load(folder / part)
        except Exception as error:  # a damaged file can break anywhere inside either reader
            raise ValueError(
                f"{folder / part} is no readable file of tensors ({first_line(error)})"
            ) from None
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{folder / name} holds more than named tensors")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ValueError(f"{folder / name}: {key} has numbers that are not finite")
    return weights


def weight_files(folder: Path) -> tuple[str, list[str]]:
    """Find the files of a folder's weights.

    Returns:
        "model.safetensors" or "pytorch_model.bin", and the names of the files, which are
        several if the weights are in parts.

    Raises:
        FileNotFoundError: if there are no weights.
        ValueError: if an index names anything but files of the folder.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if index.is_file():
            file_of = read_json(index).get("weight_map")  # tensor -> file
            parts = list(file_of.values()) if isinstance(file_of, dict) else [None]
            if any(not isinstance(part, str) or Path(part).name != part for part in parts):
                raise ValueError(f"{index} does not name files of its folder")
            return name, sorted(set(parts))
        if (folder / name).is_file():
            return name, [name]
    raise FileNotFoundError(f"neither model.safetensors nor pytorch_model.bin in {folder}")


def safetensors():
    """Import the module of the safetensors package that reads and writes torch tensors.

    Raises:
        ValueError: if the package is not installed, with the remedy.
    """
    try:
        import safetensors.torch
    except ImportError:
        raise ValueError("this needs another package: pip install safetensors") from None
    return safetensors.torch
