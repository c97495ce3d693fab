"""Reads published weights: CLIP's and GPT-2's, as huggingface/transformers saves them.

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
from minivlm.loading.images import MEAN, STD
from minivlm.loading.models import check_fit
from minivlm.pretrained.tokenizers import read_tokenizer
from minivlm.pretrained.weight_names import GPT2_ACTS, clip_names, gpt2_names, to_ours
from minivlm.running.files import brief, expect, first_line, read_json
from minivlm.vit import ViTConfig

# --- models ---


def read_clip(folder: str | Path, image_size: int = 0) -> dict:
    """Read a CLIPModel, in the form that `models.clip_from` takes; without its tokenizer.

    Args:
        image_size: S in pixels; if it differs from the published one, the position
            embeddings are interpolated. 0 = the published one.

    Raises:
        FileNotFoundError, ValueError: if the folder holds no CLIPModel that fits.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    expect(config, folder, model_type="clip")
    vision = tower_config(config, "vision_config", folder)
    text = tower_config(config, "text_config", folder)
    mode = "crop"
    if (folder / "preprocessor_config.json").is_file():
        preprocessor = read_json(folder / "preprocessor_config.json")
        expect(preprocessor, folder, image_mean=list(MEAN), image_std=list(STD))
        if preprocessor.get("do_pad"):
            mode = "pad"
        elif not preprocessor.get("do_center_crop", True):
            mode = "stretch"
    # transformers leaves its defaults out of the file; they are the sizes of ViT-B/32
    C, n_layer, n_head, S, P = sizes(
        vision, folder, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
        image_size=224, patch_size=32,
    )
    text_C, text_n_layer, text_n_head, T, V = sizes(
        text, folder, hidden_size=512, num_hidden_layers=12, num_attention_heads=8,
        max_position_embeddings=77, vocab_size=49408,
    )
    # the MLP of our Block is four times as wide as the Block
    expect(vision, folder, intermediate_size=4 * C)
    expect(text, folder, intermediate_size=4 * text_C)
    [n_embd] = sizes(config, folder, projection_dim=512)
    act = vision.get("hidden_act", "quick_gelu")
    text_act = text.get("hidden_act", "quick_gelu")
    try:
        vit = ViTConfig(S, P, n_layer, n_head, C, act)
        c = CLIPConfig(vit, V, T, text_n_layer, text_n_head, text_C, n_embd, text_act)
    except ValueError as error:  # sizes that do not go together
        raise ValueError(f"{folder}: {error}") from None
    weights = to_ours(clip_names(c), read_weights(folder), folder)
    check_fit(weights, lambda: CLIP(c), str(folder))
    if image_size and image_size != S:
        c = replace(c, vit=replace(c.vit, image_size=image_size))
        weights["vit.pos"] = resize_positions(weights["vit.pos"], c.vit.n_tokens)
    configs = {"model": asdict(c), "fit": mode}
    return {"stage": "clip", "configs": configs, "model": weights}


def tower_config(config: dict, name: str, folder: Path) -> dict:
    """The config of one of CLIP's towers.

    Raises:
        ValueError: if it is no JSON object, or if our tower cannot do what it asks for.
    """
    tower = {}
    # the first published files have a second entry, "..._dict", of what is no default
    for key in (name, f"{name}_dict"):
        part = config.get(key) or {}
        if not isinstance(part, dict):
            raise ValueError(f"{folder}: {name} is no JSON object")
        tower |= part
    expect(tower, folder, layer_norm_eps=1e-5, num_channels=3)
    return tower


def read_gpt2(folder: str | Path) -> dict:
    """Read a GPT2LMHeadModel and its tokenizer, in the form that train_align.py takes.

    GPT-2 lacks most special tokens of the chat template. Each missing token gets a new
    embedding, the mean of all embeddings, so that it is not likely at first (Hewitt 2021,
    "Initializing New Word Embeddings for Pretrained Language Models"). Embeddings beyond
    the tokenizer's vocabulary, which only make their number round, are left out.

    Raises:
        FileNotFoundError, ValueError: if the folder holds no GPT2LMHeadModel that fits.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    expect(
        config, folder, model_type="gpt2", layer_norm_epsilon=1e-5,
        scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    acts = {theirs: ours for ours, theirs in GPT2_ACTS.items()}
    act = config.get("activation_function", "gelu_new")
    if act not in list(acts):  # a list has no hash
        raise ValueError(
            f"{folder}: activation_function is {brief(act)}, minivlm has {', '.join(acts)}"
        )
    C, n_layer, n_head, T, V = sizes(
        config, folder, n_embd=768, n_layer=12, n_head=12, n_positions=1024,
        vocab_size=50257,
    )
    if config.get("n_inner") is not None:  # None means four times the width, as in ours
        expect(config, folder, n_inner=4 * C)
    weights = {}
    for name, value in read_weights(folder).items():
        weights[name.removeprefix("transformer.")] = value
    head = weights.pop("lm_head.weight", None)
    ours = to_ours(gpt2_names(n_layer, "", ""), weights, folder)
    wte = ours["wte.weight"]                                         # (V, C)
    ours["head.weight"] = wte
    check_fit(ours, lambda: GPT(GPTConfig(V, T, n_layer, n_head, C)), str(folder))
    if head is not None and not torch.equal(head.float(), wte):
        raise ValueError(f"{folder}: the head is not tied to the embedding as minivlm's is")

    tokenizer, n_special = read_tokenizer(folder)
    known = len(tokenizer.ranks) + n_special
    if V < known:
        raise ValueError(f"{folder}: {known} tokens do not fit {V} embeddings")
    new = wte[:known].mean(0, keepdim=True).expand(tokenizer.vocab_size - known, -1)
    ours["wte.weight"] = ours["head.weight"] = torch.cat([wte[:known], new])
    c = GPTConfig(tokenizer.vocab_size, T, n_layer, n_head, C, act=acts[act])
    return {
        "stage": "lm", "configs": {"model": asdict(c)}, "model": ours,
        "tokenizer": tokenizer.to_text(),
    }


def resize_positions(pos: Tensor, n_tokens: int) -> Tensor:
    """Interpolate a ViT's position embeddings: (1 + n, C) -> (1 + n_tokens, C).

    The class token's embedding, the first, stays as it is.

    Args:
        pos: (1 + n, C), of the class token and of the patches, row by row.
        n_tokens: number of patches at the new size; n and n_tokens are square numbers.

    Source: Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.2; bicubic as in DeiT,
    Touvron et al. 2020, arXiv:2012.12877.
    """
    old = math.isqrt(len(pos) - 1)
    new = math.isqrt(n_tokens)
    grid = pos[1:].T.reshape(1, -1, old, old)                        # (1, C, old, old)
    grid = F.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    return torch.cat([pos[:1], grid.flatten(2)[0].T])                # (1 + n_tokens, C)


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


def sizes(config: dict, folder: Path, **defaults: int) -> list[int]:
    """Read sizes from a config, in the order of `defaults`.

    A size that is missing there has its default. A size beyond that of any published model
    is refused before anybody builds a model of that size.

    Args:
        defaults: name of a size -> its default.

    Raises:
        ValueError: if a size is no integer from 1 to 1,000 (layers) or 1,000,000 (others).
    """
    found = []
    for key, default in defaults.items():
        value = config.get(key, default)
        most = 1000 if "layer" in key else 1_000_000
        if type(value) is not int or not 0 < value <= most:
            raise ValueError(f"{folder}: {key} is {brief(value)}, expected 1 .. {most}")
        found.append(value)
    return found
