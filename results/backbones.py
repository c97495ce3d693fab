"""Measure memory and time of a step at true sizes, with each of the options that save memory.

    python results/backbones.py                        writes results/backbones/<size>.json
    python results/backbones.py --size llava-1.5-7b    on a GPU

Sizes, names and files are those of published folders; the weights are random, because memory
and time do not depend on them. Each line is a training script that takes a few steps:
train_align.py, train_sft.py, train_dpo.py. It runs twice, in processes of their own. The
first gives the time. In the second, the C library returns the memory of every large tensor at
once: on a CPU the peak would else count holes between tensors, two gigabytes of them.
"""

import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from minivlm.clip import CLIP, CLIPConfig
from minivlm.conversation import render
from minivlm.gpt import GPT
from minivlm.loading.models import on_meta
from minivlm.loading.prepared import load_records, write_records
from minivlm.pretrained import export, families
from minivlm.pretrained.weight_names import clip_names, lm_names, to_theirs
from minivlm.running import machine
from minivlm.running.options import check, cli
from minivlm.tokenizer import DIGITS_PATTERN, Tokenizer
from minivlm.vit import ViTConfig

HERE = Path(__file__).parent
ROOT = HERE.parent
# --- sizes, as published ---

LLAMA = {
    "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "max_position_embeddings": 8192,
}
TEXT = {
    "smollm2-135m": LLAMA | {
        "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152,
        "rope_theta": 100000,
    },
    "smollm2-1.7b": LLAMA | {
        "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32,
        "num_key_value_heads": 32, "intermediate_size": 8192, "vocab_size": 49152,
        "rope_theta": 130000,
    },
    "llava-1.5-7b": LLAMA | {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "intermediate_size": 11008, "vocab_size": 32000, "rope_theta": 10000,
        "tie_word_embeddings": False, "max_position_embeddings": 4096,
    },
}
SIGLIP = CLIPConfig(  # base-patch16-224
    ViTConfig(224, 16, 12, 12, 768, "gelu_tanh", kind="siglip", n_inner=3072, norm_eps=1e-6),
    32000, 64, 12, 12, 768, 768, "gelu_tanh", logit_bias=True, text_n_inner=3072, pad_id=1,
)
CLIP_L = CLIPConfig(  # ViT-L/14-336, LLaVA-1.5's
    ViTConfig(336, 14, 24, 16, 1024), 49408, 77, 12, 12, 768, 768, "quick_gelu",
)
TOWERS = {"smollm2-135m": SIGLIP, "smollm2-1.7b": SIGLIP, "llava-1.5-7b": CLIP_L}

# --- what is measured ---

RETURNED = {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # bytes; larger tensors are mapped
LORA = ("--lora", "64", "--muon_lr", "0")
AGAIN = ("--checkpoint_blocks",)
HALF = ("--dtype", "bfloat16")
WHOLE = ("--dtype", "float32")
VARIANTS = {  # stage -> the options of each line
    "align": [WHOLE, HALF, (*HALF, *AGAIN)],
    "sft": [
        (*WHOLE, "--muon_lr", "0"), (*WHOLE, "--muon_lr", "0", *AGAIN), (*WHOLE, *LORA),
        (*WHOLE, *LORA, *AGAIN), (*HALF, *LORA), (*HALF, *LORA, *AGAIN),
    ],
    "dpo": [WHOLE, (*WHOLE, *LORA), (*HALF, *LORA), (*HALF, *LORA, *AGAIN)],
}


@dataclass
class Config:
    """Options; the comments are the help texts."""

    data: str = "data/book/prepared"  # data folder whose dialogues and pictures are used
    size: str = "smollm2-135m"  # smollm2-135m | smollm2-1.7b | llava-1.5-7b
    batch_size: int = 4  # >= 1; rows per step; pairs for DPO
    steps: int = 3  # >= 2; steps of each line; the first is not timed
    out: str = ""  # file to write; empty = results/backbones/<size>.json


# --- folders as published ---


def write_vocabulary(folder: Path, n: int) -> Tokenizer:
    """Write the tokenizer.json of a byte-level BPE with n tokens, most of them nonsense.

    Its pattern and chat template are SmolLM2's.
    """
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    rng = random.Random(0)
    pieces = [bytes([i]) for i in range(256)]
    known = set(pieces)
    while len(pieces) < n - len(special):
        new = rng.choice(pieces) + bytes([rng.randrange(97, 123)])
        if len(new) < 12 and new not in known:
            known.add(new)
            pieces.append(new)
    ranks = {piece: i for i, piece in enumerate(pieces)}
    ids = {name: len(ranks) + i for i, name in enumerate((*special, "<image>"))}
    tokenizer = Tokenizer(ranks, DIGITS_PATTERN, ids, "chatml")
    file = export.tokenizer_file(tokenizer)
    file["added_tokens"] = file["added_tokens"][:len(special)]  # no LM has an <image>
    (folder / "tokenizer.json").write_text(json.dumps(file))
    return tokenizer


def random_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Draw weights for a model without memory, one tensor at a time, in bfloat16."""
    weights, shared = {}, {}
    for name, w in model.state_dict(keep_vars=True).items():
        if id(w) not in shared:  # a tied head is its embedding
            one = w.ndim == 1 and name.endswith("weight")  # a norm
            shared[id(w)] = torch.empty(w.shape, dtype=torch.bfloat16).normal_(one, 0.02)
        weights[name] = shared[id(w)]
    return weights


def publish(folder: Path, config: dict, names, model: nn.Module) -> None:
    """Write config.json and random weights in bfloat16 to a folder."""
    folder.mkdir(parents=True)
    weights = to_theirs(names, random_weights(model))
    export.write(folder, weights, {"config.json": config | {"dtype": "bfloat16"}})


def write_backbones(folder: Path, size: str) -> Tokenizer:
    """Write `folder`/text and `folder`/vision; return the text model's tokenizer."""
    c = families.read_config(TEXT[size], folder)
    publish(folder / "text", TEXT[size], lm_names(c), on_meta(lambda: GPT(c)))
    tower = TOWERS[size]
    config = (
        export.siglip_config(tower) if tower.is_siglip else export.clip_config(tower, None)
    )
    publish(folder / "vision", config, clip_names(tower), on_meta(lambda: CLIP(tower)))
    return write_vocabulary(folder / "text", c.vocab_size)


def write_data(source: str, folder: Path, tokenizer: Tokenizer, N: int, n: int) -> float:
    """Write n records of a data folder with pictures in files, and pairs of their answers.

    Args:
        N: image tokens.

    Returns:
        tokens of a dialogue, on average, the image tokens included.
    """
    folder.mkdir()
    records = [r for r in load_records(source, "val", ("image",)) if "npy#" in r["image"]][:n]
    pixels = np.load(Path(source) / "val.npy", mmap_mode="r")
    lengths, pairs = [], []
    for i, r in enumerate(records):
        row = pixels[int(r["image"].partition("#")[2])]
        Image.fromarray(row).save(folder / f"{i}.png")
        r["image"] = f"{i}.png"
        lengths.append(len(render(r["conversations"], tokenizer, N).ids))
        turns = r["conversations"][:1]
        chosen = r["conversations"][1]["value"]
        pairs.append({
            "id": str(i), "image": r["image"], "conversations": turns, "chosen": chosen,
            "rejected": f"I think that {chosen}",
        })
    files = {"train": records, "val": records[:2], "pairs": pairs, "pairs_val": pairs[:2]}
    for split, rows in files.items():
        write_records(folder, split, rows)
    meta = {"name": "backbones", "image_size": 60}
    (folder / "meta.json").write_text(json.dumps(meta))
    return sum(lengths) / len(lengths)


# --- one line ---


def measure(stage: str, folder: Path, options: tuple[str, ...], cfg: Config) -> dict:
    """Run a stage twice; return its peak memory and the ms of a step; raises as `run`.

    If the memory does not suffice, neither is there.
    """
    rows = run(stage, folder, options, cfg, {})
    exact = rows and run(stage, folder, options, cfg, RETURNED)
    entry = {"stage": stage, "options": " ".join(options)}
    if exact:
        times = [float(row["ms"]) for row in rows if row["ms"]][1:]
        entry |= {"ms": min(times), "gb": max(float(row["gb"]) for row in exact)}
    return entry


def run(
    stage: str, folder: Path, options: tuple[str, ...], cfg: Config, more: dict[str, str]
) -> list[dict[str, str]]:
    """Run a stage for a few steps; return the rows of its log, or [] without memory.

    Args:
        more: environment variables.

    Raises:
        RuntimeError: if the script fails, with the last lines that it wrote.
    """
    sources = {
        "align": ("--vision", "vision", "--llm", "text", "--projector", "llava"),
        "sft": ("--init", "align", "--n_texts", "0", "--grad_accum", "1"),
        "dpo": ("--init", "sft", "--split", "pairs", "--val_split", "pairs_val",
                "--prompts", "", "--grad_accum", "1"),
    }
    words = [str(folder / word) if (folder / word).exists() and word else word
             for word in sources[stage]]
    out = folder / stage
    command = [
        sys.executable, str(ROOT / f"train_{stage}.py"), "--data", str(folder / "data"),
        "--out", str(out), *words, *options, "--batch_size", str(cfg.batch_size),
        "--steps", str(cfg.steps), "--log_every", "1", "--eval_every", str(cfg.steps + 1),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | more
    )
    if done.returncode:
        if "out of memory" in done.stderr.lower() or done.returncode == -9:  # killed
            return []
        raise RuntimeError(f"train_{stage}.py {' '.join(options)}: {done.stderr[-300:]}")
    with (out / "metrics.csv").open() as f:
        return list(csv.DictReader(f))


def main(cfg: Config) -> dict[str, float]:
    """Measure all lines and write the file."""
    check(cfg)
    began = time.time()
    c = families.read_config(TEXT[cfg.size], HERE)
    weights = on_meta(lambda: GPT(c)).parameters()
    report = {"n_weights": sum(w.numel() for w in weights), "lines": []}
    out = Path(cfg.out or HERE / "backbones" / f"{cfg.size}.json")
    out.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = write_backbones(folder, cfg.size)
        N = TOWERS[cfg.size].vit.n_tokens
        tokens = write_data(cfg.data, folder / "data", tokenizer, N, 4 * cfg.batch_size)
        report |= {"tokens": tokens, "image_tokens": N}
        for stage, variants in VARIANTS.items():
            for options in variants:
                line = measure(stage, folder, options, cfg)
                print(line, flush=True)
                report["lines"].append(line)
                # after each line, as a long run may be stopped
                whole = machine.provenance(cfg, began) | report
                out.write_text(json.dumps(whole, indent=1) + "\n")
    return {}


if __name__ == "__main__":
    cli(main, Config)
