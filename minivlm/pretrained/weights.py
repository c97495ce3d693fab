"""Published weights as ours: CLIP and GPT-2, from a folder as huggingface/transformers writes it.

    folder: config.json, model.safetensors or pytorch_model.bin, tokenizer.json or merges.txt

Nothing is ever downloaded, and no code of a file is run. model.safetensors needs the package of
that name. The way back is export.py.

Used by: train_align.py --vision DIR --llm DIR; data/webdata/prepare.py --clip DIR.
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
from minivlm.pretrained.weight_names import clip_names, gpt2_names, to_ours
from minivlm.running.files import expect, first_line, read_json
from minivlm.vit import ViTConfig

def read_clip(folder: str | Path, image_size: int = 0) -> dict:
    """Read a CLIPModel as `models.clip_from` takes it; its tokenizer: `ClipTokenizer.read`.

    Args:
        image_size: S in pixels, other than the tower was trained with: its position embeddings are
            interpolated then. 0 keeps its own.

    Raises:
        FileNotFoundError, ValueError: if the folder holds no CLIPModel that fits.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    expect(config, folder, model_type="clip")
    towers = []
    for name in ("vision_config", "text_config"):  # "..._dict": how the first files wrote changes
        halves = [config.get(key) or {} for key in (name, f"{name}_dict")]
        if not all(isinstance(half, dict) for half in halves):
            raise ValueError(f"{folder}: {name} is no JSON object")
        part = halves[0] | halves[1]
        expect(part, folder, layer_norm_eps=1e-5, num_channels=3)
        towers.append(part)
    vision, text = towers
    if (folder / "preprocessor_config.json").is_file():
        expect(read_json(folder / "preprocessor_config.json"), folder, image_mean=list(MEAN),
               image_std=list(STD))
    C, mlp, n_layer, n_head, S, P = sizes(
        vision, folder, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
        num_attention_heads=12, image_size=224, patch_size=32)
    text_C, text_mlp, text_n_layer, text_n_head, T, V = sizes(
        text, folder, hidden_size=512, intermediate_size=2048, num_hidden_layers=12,
        num_attention_heads=8, max_position_embeddings=77, vocab_size=49408)
    expect(vision | {"intermediate_size": mlp}, folder, intermediate_size=4 * C)
    expect(text | {"intermediate_size": text_mlp}, folder, intermediate_size=4 * text_C)
    acts = [part.get("hidden_act", "quick_gelu") for part in towers]
    [n_embd] = sizes(config, folder, projection_dim=512)
    c = CLIPConfig(ViTConfig(S, P, n_layer, n_head, C, acts[0]), V, T, text_n_layer, text_n_head,
                   text_C, n_embd, acts[1])
    weights = to_ours(clip_names(c), read_weights(folder), folder)
    check_fit(weights, lambda: CLIP(c), str(folder))
    if image_size and image_size != S:
        c = replace(c, vit=replace(c.vit, image_size=image_size))
        weights["vit.pos"] = resize_positions(weights["vit.pos"], c.vit.n_tokens)
    return {"stage": "clip", "configs": {"model": asdict(c)}, "model": weights}


def read_gpt2(folder: str | Path) -> dict:
    """Read a GPT2LMHeadModel and its tokenizer as train_align.py takes a language model.

    The chat template's special tokens that GPT-2 lacks get new rows of the embedding, each the mean
    of all rows, so that none is likely at first (Hewitt 2021, "Initializing New Word Embeddings for
    Pretrained Language Models"). Rows of no token, there to make their number round, are left out.

    Raises:
        FileNotFoundError, ValueError: if the folder holds no GPT2LMHeadModel that fits.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    expect(config, folder, model_type="gpt2", activation_function="gelu_new",
           layer_norm_epsilon=1e-5, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False,
           add_cross_attention=False)
    C, n_layer, n_head, T, V = sizes(
        config, folder, n_embd=768, n_layer=12, n_head=12, n_positions=1024, vocab_size=50257)
    if config.get("n_inner") is not None:
        expect(config, folder, n_inner=4 * C)
    weights = {k.removeprefix("transformer."): v for k, v in read_weights(folder).items()}
    head = weights.pop("lm_head.weight", None)
    ours = to_ours(gpt2_names(n_layer, "", ""), weights, folder)
    wte = ours["head.weight"] = ours["wte.weight"]
    check_fit(ours, lambda: GPT(GPTConfig(V, T, n_layer, n_head, C)), str(folder))
    if head is not None and not torch.equal(head.float(), wte):
        raise ValueError(f"{folder}: the head is not tied to the embedding, as minivlm's is")
    tokenizer, n_special = read_tokenizer(folder)
    known = len(tokenizer.ranks) + n_special
    if V < known:
        raise ValueError(f"{folder}: {known} tokens do not fit {V} embeddings")
    new = wte[:known].mean(0, keepdim=True).expand(tokenizer.vocab_size - known, -1)
    ours["wte.weight"] = ours["head.weight"] = torch.cat([wte[:known], new])
    config = GPTConfig(tokenizer.vocab_size, T, n_layer, n_head, C)
    return {"stage": "lm", "configs": {"model": asdict(config)}, "model": ours,
            "tokenizer": tokenizer.to_text()}


def resize_positions(pos: Tensor, n_tokens: int) -> Tensor:
    """Interpolate a ViT's position embeddings: (1 + n, C) -> (1 + n_tokens, C), the class's kept.

    Args:
        n_tokens: a square number of patches; n is one too.

    Source: Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.2; bicubic as in DeiT, Touvron et
    al. 2020, arXiv:2012.12877.
    """
    old, new = math.isqrt(len(pos) - 1), math.isqrt(n_tokens)
    grid = pos[1:].T.reshape(1, -1, old, old)                        # (1, C, old, old)
    grid = F.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    return torch.cat([pos[:1], grid.flatten(2)[0].T])                # (1 + n_tokens, C)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors or pytorch_model.bin, in one file or in parts.

    Raises:
        FileNotFoundError: if there is neither.
        ValueError: if a file is damaged, holds more than finite tensors, or leaves the folder; if
            the safetensors package is missing.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if index.is_file():
            where = read_json(index).get("weight_map")
            parts = list(where.values()) if isinstance(where, dict) else [None]
            if any(not isinstance(p, str) or Path(p).name != p for p in parts):
                raise ValueError(f"{index} does not name files of its folder")
            parts = sorted(set(parts))
        elif (folder / name).is_file():
            parts = [name]
        else:
            continue
        load = partial(torch.load, map_location="cpu", weights_only=True)
        if name.endswith(".safetensors"):
            load = safetensors().load_file
        weights = {}
        for part in parts:
            try:
                weights |= load(folder / part)
            except Exception as error:  # a damaged file can break anywhere inside either reader
                raise ValueError(f"{folder / part} is no readable file of tensors "
                                 f"({first_line(error)})") from None
        for key, value in weights.items():
            if not isinstance(key, str) or not isinstance(value, Tensor):
                raise ValueError(f"{folder / name} holds more than named tensors")
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise ValueError(f"{folder / name}: {key} has numbers that are not finite")
        return weights
    raise FileNotFoundError(f"neither model.safetensors nor pytorch_model.bin in {folder}")


def safetensors():
    """The package's torch half.

    Raises:
        ValueError: if it is not installed, with the remedy.
    """
    try:
        import safetensors.torch
    except ImportError:
        raise ValueError("this needs another package: pip install safetensors") from None
    return safetensors.torch


def sizes(config: dict, folder: Path, **defaults: int) -> list[int]:
    """Entries of a config that must be positive integers; a missing one has the value given here.

    Wider than any published tower is refused, before anything of such a size is made.

    Raises:
        ValueError: naming the first that is none.
    """
    for key, default in defaults.items():
        value = config.get(key, default)
        most = 1000 if "layer" in key else 1_000_000
        if type(value) is not int or not 0 < value <= most:
            raise ValueError(f"{folder}: {key} is {value!r}, expected 1 .. {most}")
    return [config.get(key, default) for key, default in defaults.items()]
